//! Drains: whose a node is, and what parents and children hear of each other.

use std::sync::Arc;
use std::time::Duration;

use curfew_core::NodeId;
use curfew_core::operation::{Intervention, Kind, Operation, State};
use curfew_store::{NewOperation, Store, StoreError};
use serde_json::json;

use super::fixtures::*;

const DRAINS: [Kind; 2] = [Kind::DrainNode, Kind::DrainDatacenter];

fn node(name: &str, seconds: u64) -> NewOperation {
    let request =
        json!({ "kind": "drain_node", "id": name, "name": name, "options": { "strategy": "migrate", "drain_timeout": "1h" } });
    NewOperation { request: serde_json::from_value(request).expect("a request"), deadline: None, ..stop("", seconds) }
}

fn set(names: &[&str], seconds: u64) -> NewOperation {
    let nodes: Vec<_> = names.iter().map(|n| json!({ "id": n, "name": n })).collect();
    let request = json!({ "kind": "drain_datacenter", "target": { "datacenter": "dc1" }, "selection": { "datacenter": "dc1" },
        "nodes": nodes, "options": { "strategy": "evacuate" } });
    NewOperation { request: serde_json::from_value(request).expect("a request"), deadline: None, ..stop("", seconds) }
}

fn of(parent: &Operation, new: NewOperation) -> NewOperation {
    NewOperation { parent: Some(parent.id), ..new }
}

async fn written(store: &Arc<dyn Store>, new: NewOperation) -> Operation {
    store.create(new).await.unwrap().operation().clone()
}

async fn leased(store: &Arc<dyn Store>, op: &Operation, seconds: u64) -> Operation {
    let mut all = lease(store, "host:1", &DRAINS, &[op.id], 1, at(seconds)).await;
    assert_eq!(all.len(), 1);
    let one = all.remove(0);
    assert_eq!(one.id, op.id);
    one
}

async fn finished(store: &Arc<dyn Store>, op: &Operation, state: State, seconds: u64) {
    let held = leased(store, op, seconds).await;
    store.finish_step(&held, step(&held, state, at(seconds)), vec![], at(seconds)).await.unwrap();
}

async fn claims(store: &Arc<dyn Store>) -> Vec<String> {
    store.claims().await.unwrap().into_iter().map(|(node, _)| node.to_string()).collect()
}

#[track_caller]
fn belongs_to<T: std::fmt::Debug>(op: &Operation, refused: Result<T, StoreError>) {
    match refused {
        Err(StoreError::Claimed { by, .. }) => assert_eq!(by, op.id),
        other => panic!("it belongs to another: {other:?}"),
    }
}

pub async fn a_node_belongs_to_one_drain(store: Arc<dyn Store>) {
    let first = written(&store, node("n1", 0)).await;
    belongs_to(&first, store.create(node("n1", 1)).await);
    belongs_to(&first, store.create(set(&["n0", "n1"], 1)).await);
    assert_eq!(claims(&store).await, ["n1"], "a refused one has nothing");
    assert_eq!(store.operations(Default::default()).await.unwrap().len(), 1, "and is not there");
    finished(&store, &first, State::Succeeded, 2).await;
    assert!(claims(&store).await.is_empty());
    let second = written(&store, node("n1", 3)).await;
    // One that never began is over at once.
    store.intervene(second.id, Intervention::Cancel, by("ops", 4)).await.unwrap();
    let third = written(&store, node("n1", 5)).await;
    match store.intervene(second.id, Intervention::Retry, by("ops", 6)).await {
        Err(StoreError::Refused { why, .. }) => assert!(why.contains(&third.id.to_string()), "{why}"),
        other => panic!("its node is another's: {other:?}"),
    }
}

pub async fn a_set_has_all_its_nodes_or_none_and_may_have_more(store: Arc<dyn Store>) {
    let alone = written(&store, node("n3", 0)).await;
    let dc = written(&store, set(&["n1", "n2"], 1)).await;
    let more = |names: &[&str]| names.iter().map(|n| NodeId::from(*n)).collect::<Vec<_>>();
    store.claim(dc.id, more(&["n2", "n4"])).await.unwrap();
    belongs_to(&alone, store.claim(dc.id, more(&["n5", "n3"])).await);
    assert_eq!(claims(&store).await, ["n1", "n2", "n3", "n4"]);
    // A child's nodes are its parent's.
    let child = written(&store, of(&dc, node("n1", 2))).await;
    finished(&store, &child, State::Succeeded, 3).await;
    assert_eq!(claims(&store).await, ["n1", "n2", "n3", "n4"]);
    finished(&store, &dc, State::Failed, 4).await;
    assert_eq!(claims(&store).await, ["n3"]);
    assert!(matches!(store.claim(dc.id, more(&["n5"])).await, Err(StoreError::Refused { .. })));
}

pub async fn a_childs_end_wakes_its_parent(store: Arc<dyn Store>) {
    let dc = written(&store, set(&["n1", "n2"], 0)).await;
    let (one, two) = (written(&store, of(&dc, node("n1", 1))).await, written(&store, of(&dc, node("n2", 1))).await);
    let held = leased(&store, &dc, 2).await;
    store.finish_step(&held, step(&held, State::Waiting, at(900)), vec![], at(2)).await.unwrap();
    finished(&store, &one, State::Succeeded, 3).await;
    assert_eq!(row(&store, dc.id).await.run_at, at(3));
    // While its step runs, what the step says about sleeping does not hold.
    let held = leased(&store, &dc, 4).await;
    finished(&store, &two, State::Failed, 5).await;
    let after = store.finish_step(&held, step(&held, State::Waiting, at(900)), vec![], at(6)).await.unwrap();
    assert!(after.run_at <= at(6), "{}", after.run_at);
}

pub async fn what_is_done_to_a_set_is_done_to_its_children(store: Arc<dyn Store>) {
    let dc = written(&store, set(&["n1", "n2", "n3"], 0)).await;
    let (over, begun) = (written(&store, of(&dc, node("n1", 1))).await, written(&store, of(&dc, node("n2", 1))).await);
    finished(&store, &over, State::Succeeded, 2).await;
    let held = leased(&store, &begun, 2).await;
    store.finish_step(&held, step(&held, State::Waiting, at(900)), vec![], at(2)).await.unwrap();
    let fresh = written(&store, of(&dc, node("n3", 3))).await;

    store.intervene(dc.id, Intervention::ExtendUntil(at(500)), by("ops", 10)).await.unwrap();
    for op in [&dc, &begun, &fresh] {
        let now = row(&store, op.id).await;
        assert_eq!(
            (now.request.moved().map(|m| m.until), now.deadline, now.run_at <= at(10)),
            (Some(at(500)), Some(at(500)), true)
        );
    }
    store.intervene(dc.id, Intervention::KillNow, by("ops", 11)).await.unwrap();
    assert!(row(&store, begun.id).await.request.moved().unwrap().is_kill_now());
    // Paused is the set alone: what drains goes on.
    store.intervene(dc.id, Intervention::Pause, by("ops", 12)).await.unwrap();
    assert_eq!((row(&store, dc.id).await.state, row(&store, begun.id).await.state), (State::Paused, State::Waiting));
    // The end of a child while it is paused does not wake it.
    store.intervene(dc.id, Intervention::Resume, by("ops", 13)).await.unwrap();
    let _ = leased(&store, &dc, 14).await;
    store.intervene(dc.id, Intervention::Cancel, by("ops", 15)).await.unwrap();
    assert!(row(&store, begun.id).await.cancel.is_some());
    assert_eq!(row(&store, fresh.id).await.state, State::Cancelled);
    assert_eq!(row(&store, over.id).await.state, State::Succeeded);
    assert!(row(&store, over.id).await.request.moved().is_none());
}

pub async fn a_deadline_that_is_not_there_cannot_be_later(store: Arc<dyn Store>) {
    let request =
        json!({ "kind": "drain_node", "id": "n1", "name": "n1", "options": { "strategy": "migrate", "no_deadline": true } });
    let op =
        written(&store, NewOperation { request: serde_json::from_value(request).expect("a request"), ..node("n1", 0) }).await;
    let longer = Intervention::ExtendBy(Duration::from_secs(60));
    match store.intervene(op.id, longer, by("ops", 1)).await {
        Err(StoreError::Refused { why, .. }) => assert!(why.contains("--until"), "{why}"),
        other => panic!("there is nothing to extend: {other:?}"),
    }
    store.intervene(op.id, Intervention::ExtendUntil(at(50)), by("ops", 2)).await.unwrap();
    let op = store.intervene(op.id, longer, by("ops", 3)).await.unwrap();
    assert_eq!(op.deadline, Some(at(110)));
}

pub async fn a_set_that_is_tried_again_has_its_nodes_again(store: Arc<dyn Store>) {
    let dc = written(&store, set(&["n1", "n2"], 0)).await;
    let held = leased(&store, &dc, 1).await;
    let mut result = step(&held, State::Failed, at(1));
    let progress = json!({ "set": { "nodes": [
        { "id": "n1", "name": "n1", "datacenter": "dc1", "was_eligible": true, "state": "drained" },
        { "id": "n2", "name": "n2", "datacenter": "dc1", "was_eligible": false, "child": dc.id, "state": "failed" },
        { "id": "n9", "name": "n9", "datacenter": "dc1", "was_eligible": true, "state": "waiting" },
    ] } });
    result.progress = serde_json::from_value(progress).expect("a progress");
    store.finish_step(&held, result, vec![], at(1)).await.unwrap();
    assert!(claims(&store).await.is_empty());
    let again = store.intervene(dc.id, Intervention::Retry, by("ops", 2)).await.unwrap();
    assert_eq!(claims(&store).await, ["n1", "n2", "n9"]);
    let set = again.progress.set.unwrap();
    let nodes: Vec<_> = set.nodes.iter().map(|n| (n.state.as_str(), n.child, n.was_eligible)).collect();
    assert_eq!((set.round, nodes), (1, vec![("drained", None, true), ("waiting", None, false), ("waiting", None, true)]));
    // A part of it is not tried again by itself.
    let child = written(&store, of(&dc, node("n2", 3))).await;
    finished(&store, &child, State::Failed, 4).await;
    match store.intervene(child.id, Intervention::Retry, by("ops", 5)).await {
        Err(StoreError::Refused { why, .. }) => assert!(why.contains(&dc.id.to_string()), "{why}"),
        other => panic!("its parent is to be tried: {other:?}"),
    }
}
