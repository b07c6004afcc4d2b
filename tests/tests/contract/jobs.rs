//! Facts 14, 16 and 20: what registering, dispatching and stopping do to a job and its allocations.

use curfew_tests::api::segment;
use curfew_tests::jobs::with;
use curfew_tests::wait::eventually;
use reqwest::Method;
use serde_json::{Value, json};

use crate::kit::{IMPOLITE, POLITE, batch, group, service, task, unique};
use crate::on::{On, SOON, brief, id, proc, s};

fn parent(id: &str) -> Value {
    with(batch(id, vec![task("t", POLITE)]), json!({ "ParameterizedJob": { "Payload": "optional", "MetaOptional": ["who"] } }))
}

async fn dispatch(on: &On, job: &str, token: &str) -> String {
    let answer =
        on.put(&format!("/v1/job/{job}/dispatch?idempotency_token={token}"), &json!({ "Meta": { "who": "me" } })).await.ok();
    let child = answer.body["DispatchedJobID"].as_str().unwrap().to_owned();
    on.owns(&child);
    child
}

pub async fn dispatching_twice_with_a_token_is_one_child(on: On) {
    let job = unique("dispatch");
    on.register(&parent(&job)).await.ok();
    let first = dispatch(&on, &job, &format!("{job}-a")).await;
    assert_eq!(dispatch(&on, &job, &format!("{job}-a")).await, first);
    assert_ne!(dispatch(&on, &job, &format!("{job}-b")).await, first);
    assert!(first.starts_with(&format!("{job}/dispatch-")), "{first}");
    on.running(&first, 1).await;
    let found = on.get(&format!("/v1/job/{}", segment(&first))).await.ok().body;
    assert_eq!((&found["ParentID"], &found["Meta"]["who"]), (&json!(job), &json!("me")));
}

pub async fn stopping_a_parent_leaves_its_children(on: On) {
    let job = unique("parent");
    on.register(&parent(&job)).await.ok();
    let child = dispatch(&on, &job, &job).await;
    let alloc = on.running(&child, 1).await.remove(0);
    on.delete(&job).await.ok();
    curfew_tests::wait::always(s(2), "that the child runs", async || {
        let now = on.alloc(id(&alloc)).await?;
        if now["DesiredStatus"] == "run" && now["ClientStatus"] == "running" { Ok(()) } else { Err(brief(&[now])) }
    })
    .await;
    on.delete(&child).await.ok();
    on.until(id(&alloc), "the child's end", |a| a["ClientStatus"] == "complete").await;
}

pub async fn registered_again_it_lives_twice(on: On) {
    let job = unique("twice");
    let first = on.start(&service(&job, vec![task("t", IMPOLITE)])).await;
    on.delete(&job).await.ok();
    on.event(id(&first), "t", "Killing").await;
    let next = service(&job, vec![with(task("t", IMPOLITE), json!({ "Env": { "V": "2" } }))]);
    let second = on.start(&next).await;
    assert_ne!(id(&first), id(&second));
    assert!(proc(&first, "t").lives() && proc(&second, "t").lives());
    let old = on.alloc(id(&first)).await.unwrap();
    assert_eq!((&old["DesiredStatus"], &old["ClientStatus"]), (&json!("stop"), &json!("running")));
}

pub async fn a_lower_count_stops_one(on: On) {
    let job = unique("count");
    let of = |count: u32| group(service(&job, vec![task("t", IMPOLITE)]), json!({ "Count": count }));
    on.start_all(&of(2), 2).await;
    on.register(&of(1)).await.ok();
    let (stopped, stays) = eventually(SOON, "one of two to be wanted stopped", async || {
        let all = on.allocs(&job).await?;
        let (stop, run): (Vec<Value>, Vec<Value>) = all.iter().cloned().partition(|a| a["DesiredStatus"] == "stop");
        if stop.len() == 1 && run.len() == 1 { Ok((stop[0].clone(), run[0].clone())) } else { Err(brief(&all)) }
    })
    .await;
    // The one with the highest index in its name.
    assert_eq!((&stopped["Name"], &stays["Name"]), (&json!(format!("{job}.g[1]")), &json!(format!("{job}.g[0]"))));
    on.event(id(&stopped), "t", "Killing").await;
    assert!(proc(&stopped, "t").lives() && proc(&stays, "t").lives());
}

pub async fn a_stop_raises_the_version(on: On) {
    let job = unique("version");
    on.start(&service(&job, vec![task("t", POLITE)])).await;
    let before = on.get(&format!("/v1/job/{job}")).await.ok().body;
    on.delete(&job).await.ok();
    let after = on.get(&format!("/v1/job/{job}")).await.ok().body;
    assert_eq!((&before["Version"], &after["Version"]), (&json!(0), &json!(1)));
    assert_eq!((&before["Stop"], &after["Stop"]), (&json!(false), &json!(true)));
}

pub async fn stopping_one_allocation_places_another(on: On) {
    let job = unique("alone");
    let alloc = on.start(&service(&job, vec![task("t", IMPOLITE)])).await;
    on.put(&format!("/v1/allocation/{}/stop", id(&alloc)), &Value::Null).await.ok();
    let old = on.until(id(&alloc), "wanted stopped", |a| a["DesiredStatus"] == "stop").await;
    assert_eq!(old["DesiredTransition"]["Migrate"], true, "{}", brief(std::slice::from_ref(&old)));
    let another = async || {
        let all = on.allocs(&job).await?;
        if all.len() == 2 && all[0]["DesiredStatus"] == "run" { Ok(()) } else { Err(brief(&all)) }
    };
    eventually(SOON, "another one", another).await;
    on.event(id(&alloc), "t", "Killing").await;
    assert!(proc(&alloc, "t").lives());
}

pub async fn registering_the_same_twice(on: On) {
    let job = unique("same");
    let spec = service(&job, vec![task("t", POLITE)]);
    let alloc = on.start(&spec).await;
    let before = on.get(&format!("/v1/job/{job}")).await.ok().body;
    let again = on.register(&spec).await.ok().body;
    let now = on.get(&format!("/v1/job/{job}")).await.ok().body;
    assert_eq!((&now["Version"], &now["JobModifyIndex"]), (&json!(0), &before["JobModifyIndex"]));
    // An index that no version has: so it is told that there was nothing to do.
    assert_eq!(again["JobModifyIndex"], before["ModifyIndex"], "{again}");
    assert!(again["JobModifyIndex"].as_u64() > now["JobModifyIndex"].as_u64(), "{again}");
    curfew_tests::wait::always(s(1), "that nothing changes", async || {
        let all = on.allocs(&job).await?;
        if all.len() == 1 && id(&all[0]) == id(&alloc) { Ok(()) } else { Err(brief(&all)) }
    })
    .await;
}

const HCL: &str = r#"
job "parsed" {
  datacenters = ["dc1"]
  group "g" {
    task "t" {
      driver = "raw_exec"
      config {
        command = "/bin/true"
      }
    }
  }
}
"#;

/// Not canonical, a `kill_timeout` that nobody wrote is null; canonical, it is 5 s.
pub async fn parse_canonical_and_not(on: On) {
    let parse = async |canonicalize: bool| {
        let body = json!({ "JobHCL": HCL, "Canonicalize": canonicalize });
        on.call(Method::POST, "/v1/jobs/parse", Some(&body)).await.ok().body
    };
    let (plain, full) = (parse(false).await, parse(true).await);
    assert_eq!((&plain["ID"], &full["ID"]), (&json!("parsed"), &json!("parsed")));
    let kill = |job: &Value| job["TaskGroups"][0]["Tasks"][0]["KillTimeout"].clone();
    assert_eq!((kill(&plain), kill(&full)), (Value::Null, json!(5_000_000_000_u64)));
    let bad = json!({ "JobHCL": "job \"x\" {", "Canonicalize": true });
    let bad = on.call(Method::POST, "/v1/jobs/parse", Some(&bad)).await;
    assert_eq!(bad.status, 400, "{bad:?}");
    assert!(bad.text.starts_with("Failed to parse job: input.hcl:1,9-10: Unclosed configuration block"), "{bad:?}");
}

pub async fn plan_and_validate_change_nothing(on: On) {
    let job = unique("plan");
    let spec = service(&job, vec![task("t", POLITE)]);
    let valid = on.put("/v1/validate/job", &json!({ "Job": spec })).await.ok().body;
    assert_eq!((&valid["Error"], &valid["ValidationErrors"]), (&json!(""), &Value::Null), "{valid}");
    let plan = on.put(&format!("/v1/job/{job}/plan"), &json!({ "Job": spec, "Diff": true })).await.ok().body;
    assert_eq!(
        (&plan["Diff"]["Type"], &plan["Annotations"]["DesiredTGUpdates"]["g"]["Place"]),
        (&json!("Added"), &json!(1)),
        "{plan}"
    );
    assert_eq!(on.get(&format!("/v1/job/{job}")).await.says(), (404, "job not found"));
    let wrong = on.put("/v1/validate/job", &json!({ "Job": with(spec, json!({ "TaskGroups": [] })) })).await.ok().body;
    assert!(wrong["Error"].as_str().is_some_and(|e| e.contains("Missing job task groups")), "{wrong}");
}

pub async fn versions_and_evaluation(on: On) {
    let job = unique("versions");
    let first = service(&job, vec![task("t", POLITE)]);
    let answer = on.register(&first).await.ok().body;
    on.running(&job, 1).await;
    on.register(&with(first, json!({ "Priority": 60 }))).await.ok();
    let versions = on.get(&format!("/v1/job/{job}/versions")).await.ok().body;
    let numbers: Vec<&Value> = versions["Versions"].as_array().unwrap().iter().map(|v| &v["Version"]).collect();
    assert_eq!(numbers, [1, 0], "the newest comes first");
    let eval = answer["EvalID"].as_str().unwrap().to_owned();
    eventually(SOON, "the evaluation", async || {
        let eval = on.get(&format!("/v1/evaluation/{eval}")).await.ok().body;
        if eval["Status"] == "complete" && eval["JobID"] == job.as_str() { Ok(()) } else { Err(eval.to_string()) }
    })
    .await;
}
