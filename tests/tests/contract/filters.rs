//! Fact 13: lists with filters, pages, prefixes and long polls.

use std::collections::BTreeSet;

use curfew_tests::api::segment;
use curfew_tests::jobs::with;
use curfew_tests::wait::eventually;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::kit::{IMPOLITE, POLITE, batch, group, service, task, unique};
use crate::on::{Answer, On, SOON, id, s};

const TOLD: &str = r#"any TaskStates as _, s { s.State == "running" and (any s.Events as _, e { e.Type == "Killing" }) }"#;

fn ids(answer: &Answer) -> Vec<String> {
    answer.body.as_array().unwrap().iter().filter_map(|a| a["ID"].as_str().map(str::to_owned)).collect()
}

pub async fn into_task_states_and_events(on: On) {
    let (told, well) = (unique("told"), unique("well"));
    let alloc = on.start(&service(&told, vec![task("t", IMPOLITE)])).await;
    let other = on.start(&service(&well, vec![task("t", IMPOLITE)])).await;
    on.delete(&told).await.ok();
    on.event(id(&alloc), "t", "Killing").await;
    for namespace in ["default", "*"] {
        let found = on.get(&format!("/v1/allocations?namespace={namespace}&filter={}", segment(TOLD))).await.ok();
        let found = ids(&found);
        assert!(found.contains(&id(&alloc).to_owned()) && !found.contains(&id(&other).to_owned()), "{found:?}");
    }
    let both = segment(&format!("JobID == \"{well}\" and ClientStatus == \"running\" and DesiredStatus == \"run\""));
    assert_eq!(ids(&on.get(&format!("/v1/allocations?filter={both}")).await.ok()), [id(&other)]);
    let none = segment(&format!("JobID == \"{well}\" and DesiredStatus != \"run\""));
    assert_eq!(on.get(&format!("/v1/allocations?filter={none}")).await.ok().body, json!([]));
}

pub async fn a_bad_filter_is_refused_in_words(on: On) {
    let bad = on.get("/v1/jobs?filter=%20%20Bad%20%3D").await;
    let words = r#"failed to create result paginator: failed to read filter expression: 1:7 (6): no match found, expected: "!=", "==", "contains", "in", "is", "matches", "not" or [ \t\r\n]"#;
    assert_eq!(bad.says(), (400, words));
    // Without the inner parentheses it does not parse.
    let open = r#"any TaskStates as _, s { s.State == "running" and any s.Events as _, e { e.Type == "Killing" } }"#;
    let open = on.get(&format!("/v1/allocations?filter={}", segment(open))).await;
    assert_eq!(open.status, 400, "{open:?}");
}

pub async fn pages_of_allocations(on: On) {
    let job = unique("pages");
    let all: BTreeSet<String> = on
        .start_all(&group(service(&job, vec![task("t", POLITE)]), json!({ "Count": 5 })), 5)
        .await
        .iter()
        .map(|a| id(a).to_owned())
        .collect();
    let filter = segment(&format!("JobID == \"{job}\""));
    let (mut seen, mut token) = (vec![], String::new());
    for round in 0.. {
        let path = format!("/v1/allocations?per_page=2&task_states=false&filter={filter}&next_token={}", segment(&token));
        let page = on.get(&path).await.ok();
        let found = ids(&page);
        assert!(found.len() <= 2 && round < 4, "{found:?}");
        seen.extend(found);
        assert!(page.body.as_array().unwrap().iter().all(|a| a["TaskStates"].is_null()), "{page:?}");
        page.header("x-nomad-nexttoken").clone_into(&mut token);
        if token.is_empty() {
            break;
        }
    }
    assert_eq!((seen.len(), seen.into_iter().collect::<BTreeSet<_>>()), (5, all));
}

pub async fn pages_of_jobs_by_prefix_and_meta(on: On) {
    let prefix = unique("list");
    for i in 0..5 {
        let meta = json!({ "Meta": { "owner": prefix, "n": i.to_string() } });
        on.register(&with(batch(&format!("{prefix}-{i}"), vec![task("t", POLITE)]), meta)).await.ok();
    }
    let all = on.get(&format!("/v1/jobs?prefix={prefix}&meta=true")).await.ok();
    assert_eq!(ids(&all).len(), 5);
    assert!(all.body.as_array().unwrap().iter().all(|j| j["Meta"]["owner"] == prefix.as_str()), "{all:?}");
    let without = on.get(&format!("/v1/jobs?prefix={prefix}")).await.ok();
    assert!(without.body.as_array().unwrap().iter().all(|j| j["Meta"].is_null()), "{without:?}");
    let page = on.get(&format!("/v1/jobs?prefix={prefix}&per_page=2")).await.ok();
    assert_eq!(ids(&page), [format!("{prefix}-0"), format!("{prefix}-1")]);
    let token = segment(page.header("x-nomad-nexttoken"));
    let next = on.get(&format!("/v1/jobs?prefix={prefix}&per_page=2&next_token={token}")).await.ok();
    assert_eq!(ids(&next), [format!("{prefix}-2"), format!("{prefix}-3")]);
    let filter = segment(&format!("Meta.owner == \"{prefix}\" and Meta.n == \"3\""));
    assert_eq!(ids(&on.get(&format!("/v1/jobs?meta=true&filter={filter}")).await.ok()), [format!("{prefix}-3")]);
}

/// Namespaces come by name, tokens are compared as text: a page that begins in "X-eu" begins with "X" again, unless that is left out.
pub async fn pages_of_jobs_across_namespaces(on: On) {
    fn token(namespace: &str, id: &str) -> String {
        format!("{namespace}.{id}")
    }
    let (owner, first) = (unique("across"), unique("space"));
    let second = format!("{first}-eu");
    for namespace in [&first, &second] {
        on.put(&format!("/v1/namespace/{namespace}"), &json!({ "Name": namespace })).await.ok();
        for id in ["a.b", "b"] {
            let never = json!({ "Namespace": namespace, "Datacenters": ["nowhere"], "Meta": { "owner": owner } });
            on.put("/v1/jobs", &json!({ "Job": with(batch(id, vec![task("t", POLITE)]), never) })).await.ok();
        }
    }
    let page = async |from: String, more: &str| {
        let filter = segment(&format!("Meta.owner == \"{owner}\"{more}"));
        let path = format!("/v1/jobs?namespace=*&meta=true&per_page=1&filter={filter}&next_token={}", segment(&from));
        let page = on.get(&path).await.ok();
        let row = &page.body[0];
        let found = token(row["Namespace"].as_str().unwrap(), row["ID"].as_str().unwrap());
        (found, page.header("x-nomad-nexttoken").to_owned())
    };
    assert_eq!(page(String::new(), "").await, (token(&first, "a.b"), token(&first, "b")));
    assert_eq!(page(token(&first, "b"), "").await, (token(&first, "b"), token(&second, "a.b")));
    assert_eq!(page(token(&second, "a.b"), "").await.0, token(&first, "a.b"), "it does not begin anew: is the filter of use?");
    let past = format!(" and Namespace != \"{first}\"");
    assert_eq!(page(token(&second, "a.b"), &past).await, (token(&second, "a.b"), token(&second, "b")));
    // A token that was made by hand, of a job that is not there.
    assert_eq!(page(token(&second, "a"), &past).await, (token(&second, "a.b"), token(&second, "b")));
    assert_eq!(page(token(&second, "b"), &past).await, (token(&second, "b"), String::new()));
    for namespace in [&first, &second] {
        for id in ["a.b", "b"] {
            on.call(reqwest::Method::DELETE, &format!("/v1/job/{id}?namespace={namespace}&purge=true"), None).await.ok();
        }
    }
}

pub async fn a_long_poll_waits_for_news(on: On) {
    let job = unique("poll");
    let alloc = on.start(&service(&job, vec![task("t", POLITE)])).await;
    let path = format!("/v1/job/{job}/allocations");
    let first = on.get(&path).await.ok();
    assert_eq!((first.header("x-nomad-knownleader"), first.header("x-nomad-lastcontact")), ("true", "0"));
    // What is changed before its index is asked about again: news at once; then each later index.
    on.delete(&job).await.ok();
    let (mut index, began) = (first.index(), Instant::now());
    let over = async || {
        let news = on.get(&format!("{path}?index={index}&wait=20s")).await.ok();
        assert!(news.index() >= index, "{} after {index}", news.index());
        index = news.index();
        let all = news.body.as_array().cloned().unwrap_or_default();
        if all.iter().any(|a| id(a) == id(&alloc) && a["ClientStatus"] == "complete") { Ok(()) } else { Err(format!("{all:?}")) }
    };
    eventually(SOON, "the end, by long polls", over).await;
    assert!(began.elapsed() < s(15), "news came only with the end of a wait: {:?}", began.elapsed());
}

pub async fn a_long_poll_without_news_ends_with_its_wait(on: On) {
    let job = unique("quiet");
    on.start(&batch(&job, vec![task("t", POLITE)])).await;
    let path = format!("/v1/job/{job}");
    let index = on.get(&path).await.ok().index();
    // Its summary may still have news for it once.
    let mut index = on.get(&format!("{path}?index={index}&wait=3s")).await.ok().index().max(index);
    let quiet = async || {
        let began = Instant::now();
        let answer = on.get(&format!("{path}?index={index}&wait=1s")).await.ok();
        let same = answer.index() == index;
        index = answer.index();
        if same && began.elapsed() >= s(1) && began.elapsed() < s(5) {
            Ok(())
        } else {
            Err(format!("{:?} {index}", began.elapsed()))
        }
    };
    eventually(SOON, "a quiet second", quiet).await;
}

pub async fn nodes_with_their_resources(on: On) {
    let nodes = on.get("/v1/nodes?resources=true").await.ok();
    let list = nodes.body.as_array().unwrap();
    assert_eq!(list.len(), 2, "{nodes:?}");
    let known: Vec<&Value> = list.iter().filter(|n| n["Status"] == "ready" && n["SchedulingEligibility"] == "eligible").collect();
    assert!(known.len() == 2 && list.iter().all(|n| n["NodeResources"].is_object()), "{nodes:?}");
    let node = on.get(&format!("/v1/node/{}", id(&list[0]))).await.ok().body;
    assert_eq!((&node["ID"], &node["DrainStrategy"]), (&list[0]["ID"], &Value::Null));
    assert_eq!(node["Attributes"]["driver.raw_exec"], "1");
}
