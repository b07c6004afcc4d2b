//! Lists in pages: each row once, in order, and an end.

use std::collections::BTreeSet;

use curfew_client::Client;
use curfew_controller::tokens;
use curfew_core::access::{Grant, NewToken, Proof, Scope};
use curfew_core::config::Config;
use curfew_core::operation::{By, Kind};
use curfew_core::{Clock, JobKey, Timestamp};
use curfew_store::Store;
use serde_json::{Value, json};

use crate::kit::stop;
use crate::metrics::{Lab, nomad};

fn now() -> Timestamp {
    curfew_controller::SystemClock.now()
}

/// A list from its first page to its last, as a caller without our client would walk it.
async fn walk(lab: &Lab, token: Option<&str>, path: &str, limit: usize, cursor: impl Fn(&Value) -> String) -> Vec<String> {
    let mut all: Vec<String> = vec![];
    loop {
        let mut query = vec![("limit", limit.to_string())];
        query.extend(all.last().map(|last| ("after", last.clone())));
        let mut request = reqwest::Client::new().get(lab.url(path)).query(&query);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200, "{answer:?}");
        let page: Vec<Value> = answer.json().await.unwrap();
        assert!(page.len() <= limit, "{limit}: {page:?}");
        all.extend(page.iter().map(&cursor));
        assert!(all.len() <= 100, "it does not end: {all:?}");
        if page.len() < limit {
            return all;
        }
    }
}

fn job(row: &Value) -> String {
    format!("{}/{}", row["namespace"].as_str().unwrap(), row["job"].as_str().unwrap())
}

/// "games-eu.a" is before "games.b" as text, "games" before "games-eu" as a name: Nomad seeks by the one and goes by the other.
#[tokio::test]
async fn jobs_of_namespaces_with_hyphens_come_once_each() {
    let lab = Lab::with(Config { auth: vec![Proof::Tokens], ..Config::default() }).await;
    let nomad = nomad(&lab.cluster);
    let mut there = vec![];
    for namespace in ["default", "games", "games-eu", "games-eu-2", "gamesx"] {
        let made = reqwest::Client::new().put(format!("{}/v1/namespace/{namespace}", lab.cluster.base_url()));
        assert_eq!(made.json(&json!({ "Name": namespace })).send().await.unwrap().status(), 200);
        for id in ["a", "a-b", "a.b", "b/dispatch-1"] {
            let task = json!({ "Name": "t", "Driver": "mock_driver", "Resources": { "CPU": 20, "MemoryMB": 10 } });
            let job = json!({ "ID": id, "Name": id, "Namespace": namespace, "Type": "batch", "Datacenters": ["nowhere"],
                "TaskGroups": [{ "Name": "g", "Count": 1, "Tasks": [task] }] });
            nomad.register(&JobKey::new(namespace, id), &job, None).await.unwrap();
            there.push(format!("{namespace}/{id}"));
        }
    }
    let token = async |namespaces: &[&str]| {
        let grant = Grant { scopes: [Scope::Read].into(), namespaces: namespaces.iter().map(|n| (*n).into()).collect() };
        let new = NewToken { name: "t".into(), grant, by: "test".into(), at: now(), expires_at: None };
        tokens::create(&*lab.store, new, None).await.unwrap().1.to_string()
    };
    let (everywhere, some) = (token(&[]).await, token(&["games-eu", "default", "nowhere"]).await);
    let its: Vec<_> = there.iter().filter(|j| j.starts_with("games-eu/") || j.starts_with("default/")).cloned().collect();
    for limit in [1, 2, 3, 7, 100] {
        assert_eq!(walk(&lab, Some(&everywhere), "/v1/jobs", limit, job).await, there, "pages of {limit}");
        assert_eq!(walk(&lab, Some(&some), "/v1/jobs", limit, job).await, its, "pages of {limit}");
        let one = walk(&lab, Some(&everywhere), "/v1/jobs?namespace=games-eu&prefix=a", limit, job).await;
        assert_eq!(one, ["games-eu/a", "games-eu/a-b", "games-eu/a.b"], "pages of {limit}");
    }
    // The gc walks like this.
    let mut pages = nomad.jobs(curfew_nomad::JobFilter::any(), "*").of(3);
    let mut walked = vec![];
    while let Some(page) = pages.next().await.unwrap() {
        walked.extend(page.into_iter().map(|j| format!("{}/{}", j.key.namespace, j.key.job)));
        assert!(walked.len() <= there.len(), "it does not end: {walked:?}");
    }
    assert_eq!(walked, there);
    for bad in ["a", "/a", "games/", ""] {
        let url = reqwest::Url::parse_with_params(&lab.url("/v1/jobs"), [("after", bad)]).unwrap();
        let answer = reqwest::Client::new().get(url).bearer_auth(&everywhere).send().await.unwrap();
        assert_eq!(answer.status(), 400, "{bad:?}");
    }
    lab.controller.stop(true).await;
}

#[tokio::test]
async fn nodes_and_operations_come_in_pages_and_our_client_walks_them() {
    let lab = Lab::with(Config::default()).await;
    let client = Client::new(&lab.url("")).unwrap();
    let all = client.nodes().await.unwrap();
    let names: Vec<_> = all.iter().map(|n| format!("{}/{}", n.name, n.id)).collect();
    let node = |row: &Value| format!("{}/{}", row["name"].as_str().unwrap(), row["id"].as_str().unwrap());
    assert_eq!(walk(&lab, None, "/v1/nodes", 1, node).await, names);
    assert_eq!(names.len(), 2, "{names:?}");
    // More than a page of what stays.
    let by = By { actor: "test".into(), reason: None, at: now() };
    lab.store.pause_kind(Kind::Stop, by).await.unwrap();
    for i in 0..1001 {
        stop(&*lab.store, &format!("job-{i}"), now()).await;
    }
    let ids: BTreeSet<_> = client.operations(&[], usize::MAX).await.unwrap().iter().map(|op| op.id).collect();
    assert_eq!(ids.len(), 1001);
    assert_eq!(client.operations(&[], 1000).await.unwrap().len(), 1000);
    assert_eq!(client.operations(&[("job", "job-7".into())], 5).await.unwrap().len(), 1);
    assert_eq!(reqwest::get(lab.url("/v1/nodes?after=nobody")).await.unwrap().status(), 400);
    lab.controller.stop(true).await;
}
