//! What cannot be placed, and what an evaluation says about it; pages.

use curfew_tests::api::segment;
use curfew_tests::jobs::with;
use curfew_tests::wait::eventually;
use serde_json::{Value, json};

use crate::kit::{POLITE, group, service, task, unique};
use crate::on::{On, SOON};

/// The evaluation of its registration, once it is over, and the one that waits for better times.
async fn refused(on: &On, job: &Value) -> (Value, Value) {
    let id = job["ID"].as_str().unwrap();
    on.register(job).await.ok();
    eventually(SOON, "a blocked evaluation", async || {
        let all = on.get(&format!("/v1/job/{id}/evaluations")).await.ok().body;
        let of = |trigger: &str| all.as_array().into_iter().flatten().find(|e| e["TriggeredBy"] == trigger).cloned();
        match (of("job-register"), of("queued-allocs")) {
            (Some(first), Some(blocked)) if first["Status"] == "complete" => Ok((first, blocked)),
            _ => Err(all.to_string()),
        }
    })
    .await
}

pub async fn no_node_fits_the_constraint(on: On) {
    let job = unique("nowhere");
    let spec = group(service(&job, vec![task("t", POLITE)]), json!({ "Count": 3 }));
    let spec = with(spec, json!({ "Constraints": [{ "LTarget": "${node.class}", "Operand": "=", "RTarget": "nope" }] }));
    let (first, blocked) = refused(&on, &spec).await;
    let why = &first["FailedTGAllocs"]["g"];
    assert_eq!(why["ConstraintFiltered"], json!({ "${node.class} = nope": 2 }), "{first}");
    assert_eq!(
        (&why["NodesEvaluated"], &why["NodesFiltered"], &why["NodesExhausted"], &why["CoalescedFailures"]),
        (&json!(2), &json!(2), &json!(0), &json!(2))
    );
    assert_eq!(why["NodesAvailable"], json!({ "dc1": 1, "dc2": 1 }));
    assert_eq!((&first["QueuedAllocations"], &first["BlockedEval"]), (&json!({ "g": 3 }), &blocked["ID"]));
    assert_eq!(
        (&blocked["Status"], &blocked["StatusDescription"], &blocked["PreviousEval"]),
        (&json!("blocked"), &json!("created to place remaining allocations"), &first["ID"])
    );
    assert_eq!(blocked["FailedTGAllocs"]["g"]["NodesFiltered"], 2, "{blocked}");
    // 2.0 counts its deployment and says running although nothing of it runs; 1.8 and 1.10 say pending.
    let status = on.get(&format!("/v1/job/{job}")).await.ok().body["Status"].clone();
    assert!(status == "running" || status == "pending", "{status}");
    let summary = on.get(&format!("/v1/job/{job}/summary")).await.ok().body;
    assert_eq!((&summary["Summary"]["g"]["Queued"], &summary["Summary"]["g"]["Starting"]), (&json!(3), &json!(0)));
    on.delete(&job).await.ok();
    eventually(SOON, "the blocked one to be cancelled", async || {
        let all = on.get(&format!("/v1/job/{job}/evaluations")).await.ok().body;
        let now = all.as_array().into_iter().flatten().find(|e| e["ID"] == blocked["ID"]).cloned().unwrap_or_default();
        let why = now["StatusDescription"].as_str().unwrap_or_default();
        let well = now["Status"] == "canceled" && why.starts_with("evaluation \"") && why.ends_with("\" successful");
        if well { Ok(()) } else { Err(all.to_string()) }
    })
    .await;
}

pub async fn no_node_has_the_room(on: On) {
    let job = unique("room");
    let huge = json!({ "Resources": { "CPU": 20, "MemoryMB": 10_000_000 } });
    let (first, _) = refused(&on, &service(&job, vec![with(task("t", POLITE), huge)])).await;
    let why = &first["FailedTGAllocs"]["g"];
    assert_eq!(
        (&why["DimensionExhausted"], &why["NodesExhausted"], &why["ConstraintFiltered"]),
        (&json!({ "memory": 2 }), &json!(2), &Value::Null),
        "{first}"
    );
    assert_eq!(why["ResourcesExhausted"]["t"]["MemoryMB"], 10_000_000, "{first}");
}

pub async fn distinct_hosts_leaves_some_waiting(on: On) {
    let job = unique("distinct");
    let spec = group(service(&job, vec![task("t", POLITE)]), json!({ "Count": 4 }));
    let spec = with(spec, json!({ "Constraints": [{ "Operand": "distinct_hosts", "RTarget": "true" }] }));
    let (first, _) = refused(&on, &spec).await;
    assert_eq!(first["QueuedAllocations"], json!({ "g": 2 }), "{first}");
    let why = &first["FailedTGAllocs"]["g"];
    assert_eq!((&why["ConstraintFiltered"], &why["CoalescedFailures"]), (&json!({ "distinct_hosts": 2 }), &json!(1)), "{first}");
    let all = on.running(&job, 2).await;
    assert_ne!(all[0]["NodeID"], all[1]["NodeID"]);
}

pub async fn pages_and_what_they_refuse(on: On) {
    let job = unique("pages");
    on.start_all(&group(service(&job, vec![task("t", POLITE)]), json!({ "Count": 5 })), 5).await;
    for list in ["allocations", "evaluations", "deployments", "nodes", "jobs"] {
        let one = on.get(&format!("/v1/{list}?per_page=1")).await.ok();
        assert_eq!(one.body.as_array().map(Vec::len), Some(1), "{list}");
        let words = on.get(&format!("/v1/{list}?per_page=x")).await;
        assert_eq!(words.says(), (400, "Expect a number for `per_page` query string parameter"), "{list}");
        on.get(&format!("/v1/{list}?per_page=-1")).await.ok();
    }
    let filter = segment(&format!("JobID == \"{job}\""));
    let (mut seen, mut token, mut rounds) = (vec![], String::new(), 0);
    loop {
        let page = on.get(&format!("/v1/allocations?per_page=2&filter={filter}&next_token={token}")).await.ok();
        seen.extend(page.body.as_array().into_iter().flatten().map(|a| a["ID"].to_string()));
        page.header("x-nomad-nexttoken").clone_into(&mut token);
        rounds += 1;
        if token.is_empty() {
            break;
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!((seen.len(), rounds), (5, 3));
}
