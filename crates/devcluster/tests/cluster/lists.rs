//! Pages, filters, prefixes, long polls.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Api, id, job, mock, polite};

async fn five() -> Api {
    let api = Api::start(1).await;
    for i in 0..5 {
        let mut j = job(&format!("list-{i}"), "service", &[polite()]);
        j["Meta"] = json!({"owner": "lull", "n": i.to_string()});
        api.register(&j).await;
        api.running(&format!("list-{i}"), 1).await;
    }
    api
}

fn names(v: &Value, key: &str) -> Vec<String> {
    v.as_array().unwrap().iter().map(|x| x[key].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn pages_and_tokens() {
    let api = five().await;
    let r = api.call("GET", "/v1/jobs?prefix=list-&per_page=2", None).await;
    assert_eq!(r.headers["x-nomad-nexttoken"], "default.list-2");
    assert_eq!(names(&r.json(), "ID"), ["list-0", "list-1"]);
    assert_eq!(api.get("/v1/jobs?per_page=2&next_token=list-2").await, json!([]));
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let r = api.call("GET", &format!("/v1/allocations?per_page=2&task_states=false&next_token={token}"), None).await;
        seen.extend(names(&r.json(), "ID"));
        assert_eq!(r.json()[0]["TaskStates"], Value::Null);
        match r.headers.get("x-nomad-nexttoken") {
            Some(t) => token = t.to_str().unwrap().to_owned(),
            None => break,
        }
    }
    assert_eq!(seen, names(&api.get("/v1/allocations").await, "ID"));
    let meta = api.get("/v1/jobs?meta=true&filter=Meta.owner%20%3D%3D%20%22lull%22%20and%20Meta.n%20!%3D%20%223%22").await;
    assert_eq!(names(&meta, "ID"), ["list-0", "list-1", "list-2", "list-4"]);
    assert_eq!(meta[0]["Meta"], json!({"owner": "lull", "n": "0"}));
    let short = &seen[0][..8];
    assert_eq!(names(&api.get(&format!("/v1/allocations?prefix={short}")).await, "ID"), [seen[0].clone()]);
    assert_eq!(api.get("/v1/nodes?resources=true").await[0]["NodeResources"]["MinDynamicPort"], 20000);
}

#[tokio::test(start_paused = true)]
async fn filters_reach_into_task_states() {
    let api = Api::start(1).await;
    let tasks = [mock("t", json!({"ignore_sigterm": true})), mock("u", json!({}))];
    api.register(&job("a", "service", &tasks)).await;
    api.register(&job("b", "service", &tasks)).await;
    let a = id(&api.running("a", 1).await[0]);
    api.running("b", 1).await;
    api.delete("a").await;
    let filter = "any TaskStates as _, s { s.State == \"running\" and (any s.Events as _, e { e.Type == \"Killing\" }) }";
    let path = format!("/v1/allocations?namespace=*&filter={}", encode(filter));
    let found = api.until(&path, "told to end", |v| v.as_array().unwrap().len() == 1).await;
    assert_eq!(id(&found[0]), a);
    for (filter, n) in [
        ("ClientStatus == \"running\" and DesiredStatus == \"stop\"", 1),
        ("JobID matches \"^(a|x)$\"", 1),
        ("DesiredTransition.Migrate == true", 0),
        ("ID matches \"^(aaaaaaaa|bbbbbbbb)\"", 0),
        ("TaskStates is not empty", 2),
    ] {
        let r = api.get(&format!("/v1/allocations?filter={}", encode(filter))).await;
        assert_eq!(r.as_array().unwrap().len(), n, "{filter}");
    }
    let r = api.call("GET", "/v1/jobs?filter=%20%20Bad%20%3D", None).await;
    assert_eq!(r.status, 400);
    assert!(
        r.text.starts_with(
            "failed to create result paginator: failed to read filter expression: 1:7 (6): no match found, expected: "
        )
    );
}

fn encode(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

#[tokio::test(start_paused = true)]
async fn long_polls_wait_and_wake() {
    let api = Api::start(1).await;
    api.register(&job("j", "service", &[polite()])).await;
    api.running("j", 1).await;
    // Health comes later than running; wait until nothing more is due.
    api.pass(Duration::from_secs(30)).await;
    let index = api.call("GET", "/v1/job/j/allocations", None).await.index();
    let before = tokio::time::Instant::now();
    let r = api.call("GET", &format!("/v1/job/j/allocations?index={index}&wait=1s"), None).await;
    assert_eq!((r.index(), before.elapsed().as_secs()), (index, 1));
    let path = format!("/v1/job/j/allocations?index={index}&wait=10s");
    let (r, _) = tokio::join!(api.call("GET", &path, None), async {
        api.pass(Duration::from_millis(500)).await;
        api.delete("j").await
    });
    assert!(r.index() > index);
    assert_eq!(r.json()[0]["DesiredStatus"], "stop");
    assert!(before.elapsed() < Duration::from_secs(3));
}
