//! The audit trail and the clocks.

use std::sync::Arc;

use curfew_core::access::{Grant, NewToken, RANDOM, Scope, Token};
use curfew_core::audit::{Action, AuditEntry};
use curfew_core::clock::ClockRecord;
use curfew_core::operation::{By, State};
use curfew_store::{AuditFilter, Store};
use serde_json::{Value, json};

use super::fixtures::*;

fn clock(alloc: &str, task: &str, due: u64) -> ClockRecord {
    let record = json!({
        "alloc": alloc, "task": task, "incarnation": at(0), "namespace": "default", "job": "a/ü", "node": "n-1",
        "node_name": "alpha", "operation": null, "cause": "stopped", "start": at(1), "basis": "event", "seen_at": at(2),
        "unreachable_at": null, "due": at(due), "attempts": 0, "last_attempt_at": null, "last_error": null,
        "signalled_at": null, "ended_at": null
    });
    serde_json::from_value(record).expect("a clock")
}

fn about(alloc: &str, action: Action, second: u64) -> AuditEntry {
    AuditEntry {
        at: at(second),
        operation: None,
        actor: "host:1".into(),
        action,
        alloc: Some(alloc.into()),
        task: Some("web".into()),
        detail: json!({ "due": at(second + 30) }),
    }
}

pub async fn the_trail_tells_the_story_in_order(store: Arc<dyn Store>) {
    store.create(stop("a", 0)).await.unwrap();
    let op = lease_one(&store, "h:1", at(0)).await;
    let deleted = vec![entry(op.id, Action::JobDeleted, at(1)), entry(op.id, Action::Waiting, at(1))];
    store.finish_step(&op, step(&op, State::Waiting, at(9)), deleted, at(1)).await.unwrap();
    store
        .append_audit(vec![entry(op.id, Action::SigkillSending, at(9)), entry(op.id, Action::SigkillSent, at(9))])
        .await
        .unwrap();
    let op = lease_one(&store, "h:1", at(9)).await;
    let (result, audit) = succeeded(&op, at(10));
    store.finish_step(&op, result, audit, at(10)).await.unwrap();
    let told = [
        Action::Requested,
        Action::Leased,
        Action::JobDeleted,
        Action::Waiting,
        Action::SigkillSending,
        Action::SigkillSent,
        Action::Succeeded,
    ];
    assert_eq!(trail(&store, op.id).await, told);
    let rows = store.audit(AuditFilter::default()).await.unwrap();
    assert_eq!((rows[0].entry.actor.as_str(), &rows[0].entry.detail["reason"]), ("ops@example", &json!("end of season")));
    assert_eq!((rows[2].entry.detail.clone(), rows[2].entry.alloc.clone()), (Value::Null, None));
}

pub async fn the_trail_has_no_gap_and_fails_together(store: Arc<dyn Store>) {
    store.create(with_key(stop("a", 0), "k", "one")).await.unwrap();
    let op = lease_one(&store, "h:1", at(0)).await;
    for i in 0..20 {
        assert!(store.create(with_key(stop("b", i), "k", "two")).await.is_err());
        let (result, audit) = succeeded(&op, at(1));
        let mut stale = op.clone();
        stale.lease.epoch = 99;
        assert!(store.finish_step(&stale, result, audit, at(1)).await.is_err());
        store.append_audit(vec![about("x", Action::ClockArmed, i)]).await.unwrap();
    }
    let rows = store.audit(AuditFilter::default()).await.unwrap();
    assert_eq!(rows.iter().map(|r| r.seq).collect::<Vec<_>>(), (1..=22).collect::<Vec<_>>());
}

pub async fn the_trail_is_filtered_and_paged(store: Arc<dyn Store>) {
    for i in 0..10 {
        store.append_audit(vec![about("x", Action::ClockArmed, i)]).await.unwrap();
    }
    let op = store.create(stop("a", 100)).await.unwrap().operation().id;
    let seqs = async |filter| store.audit(filter).await.unwrap().iter().map(|r| r.seq).collect::<Vec<_>>();
    assert_eq!(seqs(AuditFilter { after_seq: 3, limit: 2, ..AuditFilter::default() }).await, [4, 5]);
    assert_eq!(seqs(AuditFilter { since: Some(at(8)), ..AuditFilter::default() }).await, [9, 10, 11]);
    assert_eq!(seqs(AuditFilter { operation: Some(op), ..AuditFilter::default() }).await, [11]);
    assert_eq!(seqs(AuditFilter { operation: Some(op), after_seq: 11, ..AuditFilter::default() }).await, Vec::<u64>::new());
}

pub async fn clocks_are_replaced_by_key_and_removed(store: Arc<dyn Store>) {
    let first = vec![clock("x", "web", 30), clock("x", "log", 30), clock("y", "web", 40)];
    let armed = vec![about("x", Action::ClockArmed, 1), about("y", Action::ClockArmed, 1)];
    store.put_clocks(first.clone(), armed).await.unwrap();
    let mut moved = ClockRecord { due: at(35), attempts: 2, last_error: Some("404".into()), ..first[0].clone() };
    store.put_clocks(vec![moved.clone()], vec![about("x", Action::ClockMoved, 2)]).await.unwrap();
    moved.key.incarnation = at(50);
    store.put_clocks(vec![moved.clone()], vec![]).await.unwrap();
    let mut clocks = store.clocks().await.unwrap();
    clocks.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(
        clocks.iter().map(|c| (c.key.task.as_str(), c.due)).collect::<Vec<_>>(),
        [("log", at(30)), ("web", at(35)), ("web", at(35)), ("web", at(40))]
    );
    assert_eq!(clocks[2], moved);
    // A page at a time, each once.
    let mut paged = vec![];
    while let [page] = &*store.clocks_after(paged.last().map(|c: &ClockRecord| c.key.clone()), 1).await.unwrap() {
        paged.push(page.clone());
    }
    assert_eq!(paged, clocks);
    assert_eq!(store.clocks_after(None, 3).await.unwrap(), clocks[..3]);
    let gone = clocks[1..].iter().map(|c| c.key.clone()).collect();
    store.remove_clocks(gone, vec![about("x", Action::ClockEnded, 3)]).await.unwrap();
    assert_eq!(store.clocks().await.unwrap(), [first[1].clone()]);
    let told = store.audit(AuditFilter::default()).await.unwrap();
    assert_eq!((told.len(), told[3].entry.clone()), (4, about("x", Action::ClockEnded, 3)));
}

pub async fn tokens_are_found_by_their_id_and_replaced(store: Arc<dyn Store>) {
    let mint = |name: &str, random: u8| {
        let grant = Grant { scopes: [Scope::Read, Scope::Stop].into(), namespaces: ["prod".into()].into() };
        let new = NewToken { name: name.into(), grant, by: "op".into(), at: at(1), expires_at: Some(at(100)) };
        Token::mint(new, &[random; RANDOM]).unwrap()
    };
    let ((first, text), (second, _)) = (mint("ci", 1), mint("deploy", 2));
    store.put_token(first.clone(), vec![told(Action::TokenCreated)]).await.unwrap();
    store.put_token(second.clone(), vec![]).await.unwrap();
    let found = store.token(&first.id).await.unwrap().unwrap();
    assert!(found == first && found.is(&text));
    assert_eq!(store.token("0000000000000000").await.unwrap(), None);
    let by = By { actor: "op".into(), reason: Some("lost".into()), at: at(9) };
    let mut gone = first;
    gone.revoked = Some(by);
    store.put_token(gone.clone(), vec![told(Action::TokenRevoked)]).await.unwrap();
    assert_eq!(store.tokens().await.unwrap(), [gone, second]);
    let trail = store.audit(AuditFilter::default()).await.unwrap();
    assert_eq!(trail.iter().map(|r| r.entry.action).collect::<Vec<_>>(), [Action::TokenCreated, Action::TokenRevoked]);
}

fn told(action: Action) -> AuditEntry {
    let (at, actor) = (at(1), "op".to_owned());
    AuditEntry { at, operation: None, actor, action, alloc: None, task: None, detail: Value::Null }
}

pub async fn checks_write(store: Arc<dyn Store>) {
    for _ in 0..3 {
        store.check().await.unwrap();
    }
    store.close().await.unwrap();
    assert!(store.check().await.is_err(), "a closed store is not ready");
}
