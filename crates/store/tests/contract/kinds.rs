//! Kinds: pausing them, the keeper's duty, what waits, what is kept, and who hears of changes.

use std::sync::Arc;

use curfew_core::audit::Action;
use curfew_core::operation::{Intervention, Kind, State};
use curfew_core::{OpId, Timestamp};
use curfew_store::{AuditFilter, Change, NewOperation, OperationFilter, Pruned, Store, StoreError};
use serde_json::json;
use tokio::sync::broadcast;

use super::fixtures::*;

pub async fn nothing_of_a_paused_kind_is_leased(store: Arc<dyn Store>) {
    let stop = store.create(stop("a", 0)).await.unwrap().operation().id;
    let running = lease_one(&store, "h:1", at(0)).await;
    store.create(submit("b", 1)).await.unwrap();
    let row = store.pause_kind(Kind::Stop, by("ops", 2)).await.unwrap();
    assert_eq!((row.kind, row.pause.clone()), (Kind::Stop, Some(by("ops", 2))));
    assert_eq!(store.pause_kind(Kind::Stop, by("else", 3)).await.unwrap(), row, "the first pause stands");
    // The step that runs finishes, and renews.
    store.renew(running.id, 1, MINUTE, at(3)).await.unwrap();
    store.finish_step(&running, step(&running, State::Waiting, at(4)), vec![], at(3)).await.unwrap();
    assert_eq!(store.next_due(&BOTH, at(5)).await.unwrap(), Some(at(1)), "that of the other kind");
    let leased = lease(&store, "h:1", &BOTH, &[stop], 5, at(500)).await;
    assert_eq!(leased.iter().map(|op| op.kind()).collect::<Vec<_>>(), [Kind::Submit]);
    let row = store.resume_kind(Kind::Stop, by("ops", 501)).await.unwrap();
    assert_eq!(row.pause, None);
    assert_eq!(store.resume_kind(Kind::Stop, by("ops", 502)).await.unwrap(), row);
    assert_eq!(lease_one(&store, "h:1", at(502)).await.id, stop);
    let rows = store.audit(AuditFilter { since: Some(at(2)), ..AuditFilter::default() }).await.unwrap();
    let told: Vec<_> =
        rows.iter().filter(|r| r.entry.operation.is_none()).map(|r| (r.entry.action, r.entry.detail.clone())).collect();
    let detail = json!({ "kind": "stop", "reason": "because" });
    assert_eq!(told, [(Action::KindPaused, detail.clone()), (Action::KindResumed, detail)]);
}

pub async fn an_expired_lease_of_a_paused_kind_stays(store: Arc<dyn Store>) {
    store.create(stop("a", 0)).await.unwrap();
    lease_one(&store, "h:1", at(0)).await;
    store.pause_kind(Kind::Stop, by("ops", 1)).await.unwrap();
    assert!(lease(&store, "h:2", &BOTH, &[], 5, at(500)).await.is_empty());
    assert_eq!(store.next_due(&BOTH, at(500)).await.unwrap(), None);
}

pub async fn every_kind_is_listed_and_kill_can_be_paused(store: Arc<dyn Store>) {
    let kinds = store.kinds().await.unwrap();
    assert_eq!(kinds.iter().map(|k| k.kind).collect::<Vec<_>>(), Kind::ALL);
    assert!(kinds.iter().all(|k| k.pause.is_none() && k.duty.holder.is_none()));
    store.pause_kind(Kind::Kill, by("ops", 1)).await.unwrap();
    let duty = store.take_duty("h:1", MINUTE, at(1)).await.unwrap().expect("pausing the clocks leaves the duty");
    let kinds = store.kinds().await.unwrap();
    let kill = kinds.iter().find(|k| k.kind == Kind::Kill).unwrap();
    assert_eq!((kill.pause.clone(), kill.duty.holder.as_deref(), kill.duty.epoch), (Some(by("ops", 1)), Some("h:1"), duty.epoch));
}

pub async fn one_controller_has_the_duty(store: Arc<dyn Store>) {
    let first = store.take_duty("h:1", MINUTE, at(0)).await.unwrap().unwrap();
    assert_eq!(first.epoch, 1);
    assert_eq!(store.take_duty("h:2", MINUTE, at(59)).await.unwrap(), None);
    assert_eq!(store.take_duty("h:1", MINUTE, at(59)).await.unwrap(), None, "nor its own holder twice");
    assert_eq!(store.renew_duty(1, MINUTE, at(40)).await.unwrap().epoch, 1);
    assert_eq!(store.take_duty("h:2", MINUTE, at(99)).await.unwrap(), None);
    store.give_up_duty(1, at(50)).await.unwrap();
    assert!(matches!(store.renew_duty(1, MINUTE, at(51)).await, Err(StoreError::DutyLost { epoch: 1 })));
    let second = store.take_duty("h:2", MINUTE, at(51)).await.unwrap().unwrap();
    assert_eq!(second.epoch, 2);
    store.give_up_duty(1, at(52)).await.unwrap();
    assert!(store.renew_duty(2, MINUTE, at(52)).await.is_ok(), "a stale holder gives nothing away");
    let rows = store.audit(AuditFilter::default()).await.unwrap();
    let told: Vec<_> = rows.iter().map(|r| (r.entry.action, r.entry.actor.as_str(), &r.entry.detail["epoch"])).collect();
    let (one, two) = (json!(1), json!(2));
    assert_eq!(told, [(Action::DutyTaken, "h:1", &one), (Action::DutyGivenUp, "h:1", &one), (Action::DutyTaken, "h:2", &two)]);
}

/// Not for a database that one process owns: there the duty lasts as long as the process.
pub async fn a_duty_that_ran_out_is_taken_over(store: Arc<dyn Store>) {
    let first = store.take_duty("h:1", MINUTE, at(0)).await.unwrap().unwrap();
    assert_eq!(first.expires_at, Some(at(60)));
    assert_eq!(store.renew_duty(1, MINUTE, at(70)).await.unwrap().expires_at, Some(at(130)), "late, but nobody took it");
    assert_eq!(store.take_duty("h:2", MINUTE, at(129)).await.unwrap(), None);
    let second = store.take_duty("h:2", MINUTE, at(130)).await.unwrap().unwrap();
    assert_eq!((second.epoch, second.expires_at), (2, Some(at(190))));
    assert!(matches!(store.renew_duty(1, MINUTE, at(131)).await, Err(StoreError::DutyLost { epoch: 1 })));
    let rows = store.audit(AuditFilter::default()).await.unwrap();
    let detail = &rows.last().unwrap().entry.detail;
    assert_eq!(*detail, json!({ "epoch": 2, "previous_holder": "h:1", "expired_at": at(130) }));
}

pub async fn the_queue_is_counted_and_the_holders_are_named(store: Arc<dyn Store>) {
    assert_eq!(store.queue_status().await.unwrap(), Default::default());
    for (job, second) in [("a", 5), ("b", 3), ("c", 9)] {
        store.create(stop(job, second)).await.unwrap();
    }
    store.create(submit("d", 20)).await.unwrap();
    let held = lease_one(&store, "h:1", at(3)).await;
    let done = lease_one(&store, "h:1", at(5)).await;
    let (result, audit) = succeeded(&done, at(6));
    store.finish_step(&done, result, audit, at(6)).await.unwrap();
    let status = store.queue_status().await.unwrap();
    let counts: Vec<_> =
        status.counts.iter().map(|c| (c.kind, c.state, c.count, c.oldest_requested_at, c.oldest_run_at)).collect();
    assert_eq!(
        counts,
        [
            (Kind::Stop, State::Queued, 1, at(9), at(9)),
            (Kind::Stop, State::Running, 1, at(3), at(3)),
            (Kind::Submit, State::Queued, 1, at(20), at(20)),
        ]
    );
    let [running] = &status.running[..] else { panic!("{status:?}") };
    assert_eq!((running.id, running.kind, &running.lease), (held.id, Kind::Stop, &held.lease));
}

async fn finished(store: &Arc<dyn Store>, new: NewOperation, seconds: u64) -> OpId {
    let id = store.create(new).await.unwrap().operation().id;
    let op = store.lease("h:1", &wanted(&BOTH), &[id], 1, at(seconds)).await.unwrap().remove(0);
    let (result, audit) = succeeded(&op, at(seconds));
    store.finish_step(&op, result, audit, at(seconds)).await.unwrap();
    id
}

pub async fn what_is_old_and_finished_is_removed(store: Arc<dyn Store>) {
    let old = finished(&store, with_key(stop("a", 0), "k", "body"), 10).await;
    let parent = finished(&store, stop("p", 0), 20).await;
    let child = finished(&store, NewOperation { parent: Some(parent), ..stop("c", 0) }, 15).await;
    let busy = finished(&store, stop("q", 0), 20).await;
    let running = store.create(NewOperation { parent: Some(busy), ..stop("r", 0) }).await.unwrap().operation().id;
    let young = finished(&store, stop("b", 0), 100).await;
    let children = OperationFilter { parent: Some(parent), ..OperationFilter::default() };
    assert_eq!(store.operations(children).await.unwrap().iter().map(|op| op.id).collect::<Vec<_>>(), [child]);
    assert_eq!(row(&store, child).await.parent, Some(parent));

    let prune = async |finished, audit, limit| store.prune(at(finished), at(audit), limit).await.unwrap();
    assert_eq!(prune(10, 0, 100).await, Pruned::default(), "not before its time");
    assert_eq!(prune(50, 0, 1).await, Pruned { operations: 1, audit: 0 });
    assert_eq!(store.operation(old).await.unwrap(), None);
    assert_eq!(prune(50, 0, 100).await, Pruned { operations: 2, audit: 0 }, "a child goes with its parent");
    for kept in [busy, running, young] {
        assert!(store.operation(kept).await.unwrap().is_some());
    }
    assert!(store.operation(child).await.unwrap().is_none());
    let again = store.create(with_key(stop("a", 200), "k", "another body")).await;
    assert!(again.is_ok(), "its key is free: {again:?}");

    let count = async |id| trail(&store, id).await.len();
    let before = count(running).await;
    assert_eq!(prune(0, 16, 3).await.audit, 3, "in batches");
    while prune(0, 16, 3).await.audit > 0 {}
    assert_eq!((count(old).await, count(child).await), (0, 0));
    assert_eq!(count(running).await, before, "a live operation keeps its story");
    assert_eq!(count(young).await, 2, "what is not that old stays: its lease and its end");
}

fn heard(changes: &mut broadcast::Receiver<Change>) -> Vec<Change> {
    std::iter::from_fn(|| changes.try_recv().ok()).collect()
}

/// Waits until `count` changes were heard; other processes' take a moment.
async fn hear(changes: &mut broadcast::Receiver<Change>, count: usize) -> Vec<Change> {
    let mut heard = Vec::new();
    let hearing = async {
        while heard.len() < count {
            heard.push(changes.recv().await.expect("the store is open"));
        }
    };
    let late = tokio::time::timeout(MINUTE / 4, hearing).await.is_err();
    assert!(!late, "{count} changes expected, heard {heard:?}");
    heard
}

pub async fn changes_are_told_after_they_are_written(store: Arc<dyn Store>) {
    let mut changes = store.changes();
    let now: Timestamp = at(1);
    let id = store.create(with_key(stop("a", 0), "k", "body")).await.unwrap().operation().id;
    store.create(with_key(stop("a", 0), "k", "body")).await.unwrap();
    store.create(stop("a", 1)).await.unwrap();
    assert!(store.create(with_key(stop("a", 0), "k", "other")).await.is_err());
    let op = lease_one(&store, "h:1", now).await;
    store.renew(id, 1, MINUTE, now).await.unwrap();
    store.finish_step(&op, step(&op, State::Waiting, at(9)), vec![entry(id, Action::Waiting, now)], now).await.unwrap();
    store.intervene(id, Intervention::KillNow, by("ops", 2)).await.unwrap();
    assert!(store.intervene(id, Intervention::Retry, by("ops", 2)).await.is_err());
    store.pause_kind(Kind::Stop, by("ops", 3)).await.unwrap();
    store.pause_kind(Kind::Stop, by("ops", 3)).await.unwrap();
    store.take_duty("h:1", MINUTE, at(3)).await.unwrap();
    let due = |due| Change::Operation { id, due };
    let told = [due(true), due(true), due(false), due(true), Change::Kinds, Change::Kinds];
    assert_eq!(hear(&mut changes, told.len()).await, told);
    assert_eq!(heard(&mut changes), []);
}
