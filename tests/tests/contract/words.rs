//! Fact 2 and the words of Nomad's refusals.

use curfew_tests::cluster::Kind;
use reqwest::Method;
use serde_json::{Value, json};

use crate::kit::{POLITE, service, task, unique};
use crate::on::On;

const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

pub async fn a_kill_timeout_above_the_progress_deadline_is_refused(on: On) {
    let mut job = service(&unique("refused"), vec![task("t", POLITE)]);
    job.as_object_mut().unwrap().remove("Update");
    let answer = on.register(&job).await;
    assert_eq!(answer.status, 500, "{answer:?}");
    assert!(answer.text.contains("KillTimout (24h0m0s) longer than the group's ProgressDeadline (10m0s)"), "{answer:?}");
}

pub async fn failing_an_unknown_deployment(on: On) {
    let answer = on.put(&format!("/v1/deployment/fail/{NOBODY}"), &Value::Null).await;
    assert_eq!(answer.says(), (500, "deployment not found"));
}

pub async fn refused_specs(on: On) {
    let put = async |body: Value| on.put("/v1/jobs", &body).await;
    assert_eq!(put(json!({})).await.says(), (400, "Job must be specified"));
    let nothing = put(json!("not json")).await;
    assert_eq!(nothing.says(), (400, "invalid character 'o' in literal null (expecting 'u')"));
    let space = put(json!({ "Job": service("x y", vec![task("t", POLITE)]) })).await;
    assert_eq!(space.says(), (500, "1 error occurred:\n\t* Job ID contains a space\n\n"));
    let empty = put(json!({ "Job": { "ID": "x" } })).await;
    assert_eq!((empty.status, empty.text.contains("Missing job task groups")), (500, true), "{empty:?}");
    let mut negative = service(&unique("negative"), vec![task("t", POLITE)]);
    negative["TaskGroups"][0]["Tasks"][0]["KillTimeout"] = json!(-1_000_000_000);
    let negative = put(json!({ "Job": negative })).await;
    assert_eq!((negative.status, negative.text.contains("KillTimeout must be a positive value")), (500, true), "{negative:?}");
    let nowhere = on.put("/v1/jobs?namespace=nope", &json!({ "Job": service("ns", vec![task("t", POLITE)]) })).await;
    assert_eq!((nowhere.status, nowhere.text.contains("is in nonexistent namespace \"nope\"")), (500, true), "{nowhere:?}");
}

pub async fn unknown_things(on: On) {
    let nobody = unique("nobody");
    assert_eq!(on.get(&format!("/v1/job/{nobody}")).await.says(), (404, "job not found"));
    assert_eq!(on.get(&format!("/v1/allocation/{NOBODY}")).await.says(), (404, "alloc not found"));
    assert_eq!(
        on.get("/v1/allocation/short").await.says(),
        (500, "alloc lookup failed: index error: UUID must be 36 characters")
    );
    assert_eq!(on.get(&format!("/v1/evaluation/{NOBODY}")).await.says(), (404, "eval not found"));
    assert_eq!(on.get(&format!("/v1/node/{NOBODY}")).await.says(), (404, "node not found"));
    assert_eq!(on.get("/v1/nope").await.status, 404);
    assert_eq!(on.call(Method::PATCH, "/v1/jobs", None).await.says(), (405, "Invalid method"));
    let list = on.get(&format!("/v1/job/{nobody}/allocations")).await.ok();
    assert_eq!(list.body, json!([]));
    assert_eq!(on.get("/v1/jobs?namespace=nope").await.ok().body, json!([]));
}

/// Each is refused for what it asks, after the token was looked at.
pub async fn what_asks_for_a_right_changes_nothing(on: On) {
    let job = unique("nobody");
    let spec = service(&job, vec![task("t", POLITE)]);
    let register = json!({ "Job": spec, "EnforceIndex": true, "JobModifyIndex": (1_u64 << 53) - 1 });
    let refused = on.put("/v1/jobs", &register).await;
    assert_eq!(refused.says(), (500, "Enforcing job modify index 9007199254740991: job does not exist"));
    let refused = on.put(&format!("/v1/job/{job}/dispatch"), &json!({})).await;
    assert_eq!(refused.says(), (500, "parameterized job not found"));
    let odd = json!({ "NodeID": NOBODY, "Eligibility": "odd" });
    let refused = on.put(&format!("/v1/node/{NOBODY}/eligibility"), &odd).await;
    assert_eq!(refused.says(), (500, "invalid scheduling eligibility \"odd\""));
    assert_eq!(on.get(&format!("/v1/job/{job}")).await.status, 404);
}

pub async fn check_and_set(on: On) {
    let job = unique("cas");
    let spec = service(&job, vec![task("t", POLITE)]);
    let wrong = on.put("/v1/jobs", &json!({ "Job": spec, "EnforceIndex": true, "JobModifyIndex": 999 })).await;
    assert_eq!(wrong.says(), (500, "Enforcing job modify index 999: job does not exist"));
    on.register(&spec).await.ok();
    let late = on.put("/v1/jobs", &json!({ "Job": spec, "EnforceIndex": true, "JobModifyIndex": 0 })).await;
    assert_eq!((late.status, late.text.starts_with("Enforcing job modify index 0: job already exists")), (500, true), "{late:?}");
}

pub async fn leader_and_agent(on: On) {
    let leader = on.get("/v1/status/leader").await.ok();
    assert!(leader.body.as_str().is_some_and(|l| l.contains(':')), "{leader:?}");
    let agent = on.get("/v1/agent/self").await.ok();
    assert!(agent.body["config"]["Version"]["Version"].is_string(), "{agent:?}");
    let health = on.get("/v1/agent/health").await.ok();
    assert_eq!(health.body["server"]["ok"], true, "{health:?}");
    let members = on.get("/v1/agent/members").await.ok().body;
    let server = &members["Members"][0];
    assert_eq!((&server["Status"], &server["Tags"]["region"]), (&json!("alive"), &json!("global")), "{members}");
    assert_eq!(server["Tags"]["build"], agent.body["config"]["Version"]["Version"], "{members}");
    assert_eq!(on.get("/v1/regions").await.ok().body, json!(["global"]));
    let keys = on.get("/.well-known/jwks.json").await.ok().body;
    let keys = keys["keys"].as_array().unwrap_or_else(|| panic!("{keys}"));
    assert!(keys.iter().all(|k| k["use"] == "sig" && k["kid"].is_string() && k["alg"].is_string()), "{keys:?}");
    // The embedded cluster signs no identities.
    assert_eq!(keys.is_empty(), on.cluster.kind == Kind::Dev, "{keys:?}");
}
