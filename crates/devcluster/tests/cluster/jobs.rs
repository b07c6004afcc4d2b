//! Registering, listing versions, dispatching, purging, scaling: what jobs do before any task is told to end.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Api, DAY, SECOND, id, ids, impolite, job, of_status, polite};

#[tokio::test(start_paused = true)]
async fn what_nomad_refuses_is_refused_in_its_words() {
    let api = Api::start(1).await;
    let mut late = job("pd", "service", &[impolite()]);
    late.as_object_mut().unwrap().remove("Update");
    let mut negative = job("neg", "service", &[polite()]);
    negative["TaskGroups"][0]["Tasks"][0]["KillTimeout"] = json!(-SECOND);
    let nested = |text: &str| {
        format!(
            "1 error occurred:\n\t* Task group g validation failed: 1 error occurred:\n\t* Task t validation failed: 1 error occurred:\n\t* {text}\n\n\n\n\n\n"
        )
    };
    for (path, body, status, text) in [
        ("/v1/jobs", json!({"Job": late}), 500, nested("KillTimout (24h0m0s) longer than the group's ProgressDeadline (10m0s)")),
        ("/v1/jobs", json!({"Job": negative}), 500, nested("KillTimeout must be a positive value")),
        ("/v1/jobs", json!({}), 400, "Job must be specified".into()),
        ("/v1/jobs", json!({"Job": {"ID": "x"}}), 500, "1 error occurred:\n\t* Missing job task groups\n\n".into()),
        (
            "/v1/jobs",
            json!({"Job": job("x y", "service", &[polite()])}),
            500,
            "1 error occurred:\n\t* Job ID contains a space\n\n".into(),
        ),
        (
            "/v1/jobs",
            json!({"Job": job("ok", "service", &[polite()]), "EnforceIndex": true, "JobModifyIndex": 999}),
            500,
            "Enforcing job modify index 999: job does not exist".into(),
        ),
        (
            "/v1/jobs?namespace=nope",
            json!({"Job": job("ns", "service", &[polite()])}),
            500,
            "1 error occurred:\n\t* job \"ns\" is in nonexistent namespace \"nope\"\n\n".into(),
        ),
    ] {
        let r = api.call("PUT", path, Some(&body)).await;
        assert_eq!((r.status, r.text), (status, text));
    }
    let r = api.raw("PUT", "/v1/jobs", b"not json".to_vec()).await;
    assert_eq!((r.status, r.text.as_str()), (400, "invalid character 'o' in literal null (expecting 'u')"));
    assert_eq!(api.call("GET", "/v1/nope", None).await.status, 404);
    let r = api.call("PATCH", "/v1/jobs", None).await;
    assert_eq!((r.status, r.text.as_str()), (405, "Invalid method"));
    assert_eq!(api.get("/v1/jobs").await, json!([]));
}

#[tokio::test(start_paused = true)]
async fn jobspecs_of_this_repository_parse_register_and_plan() {
    let api = Api::start(3).await;
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../jobspecs");
    let mut seen = 0;
    let folders = [dir.to_owned(), format!("{dir}/pollers")];
    for entry in folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()) {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "hcl") {
            continue;
        }
        let hcl = std::fs::read_to_string(&path).unwrap();
        let parsed = api.put("/v1/jobs/parse", json!({"JobHCL": hcl, "Canonicalize": true})).await;
        assert_eq!(parsed["Namespace"], "default");
        let v = api.put("/v1/validate/job", json!({"Job": parsed})).await;
        assert_eq!(v["ValidationErrors"], Value::Null, "{}: {v}", path.display());
        let name = id(&parsed);
        let plan = api.put(&format!("/v1/job/{name}/plan"), json!({"Job": parsed, "Diff": true})).await;
        assert_eq!(plan["Diff"]["Type"], "Added");
        // A periodic job places nothing by itself.
        if parsed["Periodic"].is_null() {
            let seconds = parsed["TaskGroups"][0]["Tasks"][0]["KillTimeout"].as_i64().unwrap() / SECOND;
            assert!(hcl.contains(&format!("kill_timeout = \"{seconds}s\"")), "{}: {seconds}", path.display());
            assert!(plan["Annotations"]["DesiredTGUpdates"]["pollers"]["Place"].as_u64().unwrap() > 0);
        }
        seen += 1;
    }
    assert!(seen >= 9, "{seen}");
    let r = api.call("PUT", "/v1/jobs/parse", Some(&json!({"JobHCL": "job \"x\" {\n  foo = 1\n}\n"}))).await;
    assert_eq!(r.status, 400);
    assert_eq!(
        r.text,
        "Failed to parse job: input.hcl:2,3-6: Unsupported argument; An argument named \"foo\" is not expected here."
    );
}

#[tokio::test(start_paused = true)]
async fn unknown_fields_survive() {
    let api = Api::start(1).await;
    let mut j = job("j", "service", &[polite()]);
    j["FromTheFuture"] = json!({"a": [1, 2]});
    j["TaskGroups"][0]["Tasks"][0]["AlsoNew"] = json!("x");
    api.register(&j).await;
    let back = api.get("/v1/job/j").await;
    assert_eq!(back["FromTheFuture"], json!({"a": [1, 2]}));
    assert_eq!(back["TaskGroups"][0]["Tasks"][0]["AlsoNew"], "x");
    assert_eq!(back["TaskGroups"][0]["Tasks"][0]["KillTimeout"], json!(DAY));
}

#[tokio::test(start_paused = true)]
async fn purging_a_live_job_hides_what_lives_on() {
    let api = Api::start(1).await;
    api.register(&job("j", "service", &[impolite()])).await;
    let a = id(&api.running("j", 1).await[0]);
    api.call("DELETE", "/v1/job/j?purge=true", None).await;
    let r = api.call("GET", &format!("/v1/allocation/{a}"), None).await;
    assert_eq!((r.status, r.text.as_str()), (404, "alloc not found"));
    assert_eq!(api.allocs("j").await, Vec::<Value>::new());
    assert_eq!(api.get("/v1/jobs?prefix=j").await, json!([]));
    let r = api.signal(&a, "t", "SIGKILL").await;
    assert_eq!((r.status, r.text), (404, format!("Unknown allocation {a:?}")));
    let r = api.call("GET", "/v1/job/j", None).await;
    assert_eq!((r.status, r.text.as_str()), (404, "job not found"));
    assert!(r.index() > 1);
}

#[tokio::test(start_paused = true)]
async fn registered_again_while_the_stopped_one_lives() {
    let api = Api::start(1).await;
    api.register(&job("j", "service", &[impolite()])).await;
    let old = id(&api.running("j", 1).await[0]);
    api.delete("j").await;
    api.alloc_until(&old, "stopped", |a| a["DesiredStatus"] == "stop").await;
    let mut again = job("j", "service", &[impolite()]);
    again["TaskGroups"][0]["Tasks"][0]["Env"] = json!({"V": "2"});
    api.register(&again).await;
    let both = api.running("j", 2).await;
    let new = both.iter().find(|a| id(a) != old).unwrap();
    assert_eq!((&new["JobVersion"], &new["DesiredStatus"]), (&json!(2), &json!("run")));
    api.signal(&old, "t", "SIGKILL").await;
    api.alloc_until(&old, "complete", |a| a["ClientStatus"] == "complete").await;
    assert_eq!(ids(&api.running("j", 1).await), [id(new)]);
}

#[tokio::test(start_paused = true)]
async fn a_lower_count_stops_one() {
    let api = Api::start(2).await;
    let mut j = job("j", "service", &[impolite()]);
    j["TaskGroups"][0]["Count"] = json!(2);
    api.register(&j).await;
    api.running("j", 2).await;
    j["TaskGroups"][0]["Count"] = json!(1);
    api.register(&j).await;
    let all = api.until("/v1/job/j/allocations", "one stopped", |v| {
        v.as_array().unwrap().iter().filter(|a| a["DesiredStatus"] == "stop").count() == 1
    });
    let all = all.await;
    let stopped = all.as_array().unwrap().iter().find(|a| a["DesiredStatus"] == "stop").unwrap();
    assert_eq!(
        (&stopped["Name"], &stopped["DesiredDescription"]),
        (&json!("j.g[1]"), &json!("alloc not needed due to job update"))
    );
    // The other goes on under the new version, in place.
    let kept = all.as_array().unwrap().iter().find(|a| a["DesiredStatus"] == "run").unwrap();
    assert_eq!((&kept["JobVersion"], &kept["ClientStatus"]), (&json!(1), &json!("running")));
    api.until("/v1/job/j/deployment", "over", |d| d["Status"] == "successful").await;
    let r = api.put("/v1/job/j/scale", json!({"Count": 3, "Target": {"Group": "g"}})).await;
    assert_ne!(r["EvalID"], "");
    api.until("/v1/job/j/allocations", "scaled", |v| {
        v.as_array().unwrap().iter().filter(|a| a["DesiredStatus"] == "run" && a["ClientStatus"] == "running").count() == 3
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn stopping_one_allocation_places_another() {
    let api = Api::start(1).await;
    api.register(&job("j", "service", &[impolite()])).await;
    let a = id(&api.running("j", 1).await[0]);
    api.put(&format!("/v1/allocation/{a}/stop"), json!({})).await;
    let old = api.alloc_until(&a, "stopped", |a| a["DesiredStatus"] == "stop").await;
    assert_eq!(old["DesiredDescription"], "alloc is being migrated");
    // On the same node the replacement waits for the old one to be gone.
    api.pass(Duration::from_secs(30)).await;
    let new = api.alloc(old["NextAllocation"].as_str().unwrap()).await;
    assert_eq!((&new["ClientStatus"], &new["DesiredStatus"]), (&json!("pending"), &json!("run")));
    api.signal(&a, "t", "SIGKILL").await;
    api.alloc_until(&id(&new), "running", |a| a["ClientStatus"] == "running").await;
}

#[tokio::test(start_paused = true)]
async fn dispatch_is_idempotent_and_children_have_slashes() {
    let api = Api::start(1).await;
    let mut j = job("p", "batch", &[polite()]);
    j["ParameterizedJob"] = json!({"Payload": "optional", "MetaOptional": ["who"]});
    let r = api.register(&j).await;
    assert_eq!(r["EvalID"], "");
    let path = "/v1/job/p/dispatch?idempotency_token=abc";
    let one = api.put(path, json!({"Meta": {"who": "me"}})).await;
    let two = api.put(path, json!({"Meta": {"who": "me"}})).await;
    assert_eq!(one["DispatchedJobID"], two["DispatchedJobID"]);
    assert_eq!(two["EvalID"], "");
    let child = one["DispatchedJobID"].as_str().unwrap();
    assert!(child.starts_with("p/dispatch-"));
    for spelled in [child.replace('/', "%2F"), child.to_owned()] {
        api.running(&spelled, 1).await;
    }
    let escaped = child.replace('/', "%2F");
    assert_eq!(api.get(&format!("/v1/job/{escaped}")).await["ParentID"], "p");
    // Stopping the parent leaves the child alone.
    let d = api.delete("p").await;
    assert_eq!(d["EvalID"], "");
    let list = api.get("/v1/jobs?prefix=p").await;
    assert_eq!((&list[0]["Status"], &list[0]["JobSummary"]["Children"]["Running"]), (&json!("dead"), &json!(1)));
    assert_eq!(list[1]["Status"], "running");
    let r = api.call("PUT", "/v1/job/p/dispatch", Some(&json!({"Meta": {"bad": "x"}}))).await;
    assert_eq!(r.status, 500);
}

#[tokio::test(start_paused = true)]
async fn a_periodic_job_launches_and_can_be_forced() {
    let api = Api::start(1).await;
    let mut j = job("cron", "batch", &[crate::harness::mock("t", json!({"run_for": "1s"}))]);
    j["Periodic"] = json!({"Enabled": true, "Spec": "*/1 * * * *", "SpecType": "cron"});
    api.register(&j).await;
    api.put("/v1/job/cron/periodic/force", json!({})).await;
    api.until("/v1/jobs?prefix=cron/", "forced child done", |v| v[0]["Status"] == "dead").await;
    api.pass(Duration::from_secs(61)).await;
    api.until("/v1/jobs?prefix=cron/", "second child", |v| v.as_array().unwrap().len() >= 2).await;
    assert_eq!(api.get("/v1/jobs?prefix=cron").await[0]["Status"], "running");
}

#[tokio::test(start_paused = true)]
async fn versions_and_revert() {
    let api = Api::start(1).await;
    let mut j = job("j", "service", &[polite()]);
    api.register(&j).await;
    api.running("j", 1).await;
    // The same again changes nothing.
    api.register(&j).await;
    assert_eq!(api.get("/v1/job/j").await["Version"], 0);
    j["TaskGroups"][0]["Tasks"][0]["Env"] = json!({"V": "2"});
    api.register(&j).await;
    assert_eq!(api.get("/v1/job/j").await["Version"], 1);
    api.put("/v1/job/j/revert", json!({"JobID": "j", "JobVersion": 0})).await;
    let v = api.get("/v1/job/j/versions").await;
    let versions: Vec<u64> = v["Versions"].as_array().unwrap().iter().map(|v| v["Version"].as_u64().unwrap()).collect();
    assert_eq!(versions, [2, 1, 0]);
    assert_eq!(v["Versions"][0]["TaskGroups"][0]["Tasks"][0]["Env"], Value::Null);
}

#[tokio::test(start_paused = true)]
async fn system_gc_leaves_what_still_runs() {
    let api = Api::start(1).await;
    api.register(&job("j", "service", &[impolite()])).await;
    api.register(&job("k", "service", &[polite()])).await;
    let a = id(&api.running("j", 1).await[0]);
    let b = id(&api.running("k", 1).await[0]);
    api.delete("j").await;
    api.delete("k").await;
    api.alloc_until(&b, "complete", |a| a["ClientStatus"] == "complete").await;
    api.put("/v1/system/gc", json!({})).await;
    assert_eq!(api.alloc(&a).await["ClientStatus"], "running");
    assert_eq!(api.get("/v1/job/j").await["Status"], "dead");
    assert_eq!(api.call("GET", "/v1/job/k", None).await.status, 404);
}

#[tokio::test(start_paused = true)]
async fn ids_with_dots_and_unicode() {
    let api = Api::start(1).await;
    for name in ["a.b", "grüße-世界"] {
        api.register(&job(name, "service", &[polite()])).await;
        let escaped: String = name.bytes().map(|b| format!("%{b:02X}")).collect();
        api.running(&escaped, 1).await;
        api.delete(&escaped).await;
        api.until(&format!("/v1/job/{escaped}/allocations"), "complete", |v| of_status(v, "complete").len() == 1).await;
    }
}
