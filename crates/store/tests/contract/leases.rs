//! Who works on what, and for how long.

use std::sync::Arc;
use std::time::Duration;

use curfew_core::audit::Action;
use curfew_core::operation::{Kind, State};
use curfew_store::{AuditFilter, Store, StoreError};
use serde_json::json;

use super::fixtures::*;

pub async fn due_rows_come_oldest_first(store: Arc<dyn Store>) {
    for (job, second) in [("c", 30), ("a", 10), ("later", 90), ("b", 20)] {
        store.create(submit(job, second)).await.unwrap();
    }
    store.create(stop("s", 15)).await.unwrap();
    let leased = store.lease("h:1", &BOTH, &[], MINUTE, 10, at(60)).await.unwrap();
    let jobs: Vec<_> = leased.iter().map(|op| op.request.target().job.as_str()).collect();
    assert_eq!(jobs, ["a", "s", "b", "c"]);
    for op in &leased {
        assert_eq!((op.state, op.lease.epoch), (State::Running, 1));
        assert_eq!((op.lease.holder.as_deref(), op.lease.expires_at), (Some("h:1"), Some(at(120))));
        assert_eq!(row(&store, op.id).await, *op);
    }
}

pub async fn nudged_rows_come_first_and_early(store: Arc<dyn Store>) {
    store.create(submit("due", 0)).await.unwrap();
    let sleeping = store.create(submit("sleeping", 900)).await.unwrap().operation().id;
    let leased = store.lease("h:1", &BOTH, &[sleeping], MINUTE, 1, at(1)).await.unwrap();
    assert_eq!(leased.iter().map(|op| op.id).collect::<Vec<_>>(), [sleeping]);
    let more = store.lease("h:1", &BOTH, &[sleeping], MINUTE, 5, at(1)).await.unwrap();
    assert_eq!(more.len(), 1, "a running row is not nudged: {more:?}");
    let unknown = stop("nobody", 0).id;
    assert!(store.lease("h:1", &BOTH, &[unknown], MINUTE, 5, at(1)).await.unwrap().is_empty());
}

pub async fn other_kinds_stay(store: Arc<dyn Store>) {
    let stop = store.create(stop("a", 0)).await.unwrap().operation().id;
    assert!(store.lease("h:1", &[Kind::Submit], &[stop], MINUTE, 5, at(1)).await.unwrap().is_empty());
    assert!(store.lease("h:1", &[], &[stop], MINUTE, 5, at(1)).await.unwrap().is_empty());
    assert_eq!(store.lease("h:1", &[Kind::Stop], &[], MINUTE, 5, at(1)).await.unwrap().len(), 1);
}

pub async fn a_held_row_is_nobody_elses(store: Arc<dyn Store>) {
    store.create(stop("a", 0)).await.unwrap();
    let op = lease_one(&store, "h:1", at(0)).await;
    assert!(store.lease("h:2", &BOTH, &[op.id], MINUTE, 5, at(59)).await.unwrap().is_empty());
}

pub async fn an_expired_lease_is_taken_over(store: Arc<dyn Store>) {
    store.create(stop("a", 0)).await.unwrap();
    let theirs = lease_one(&store, "h:1", at(0)).await;
    let ours = lease_one(&store, "h:2", at(60)).await;
    assert_eq!((ours.id, ours.lease.epoch, ours.lease.expires_at), (theirs.id, 2, Some(at(120))));
    assert!(!theirs.progress.unknown && ours.progress.unknown, "the step before was cut off somewhere");
    let trail = store.audit(AuditFilter { operation: Some(ours.id), ..AuditFilter::default() }).await.unwrap();
    let taken = &trail.last().unwrap().entry;
    assert_eq!((taken.action, taken.actor.as_str()), (Action::Leased, "h:2"));
    assert_eq!(taken.detail, json!({ "epoch": 2, "previous_holder": "h:1", "expired_at": at(60) }));
}

pub async fn a_renewed_lease_does_not_expire(store: Arc<dyn Store>) {
    store.create(stop("a", 0)).await.unwrap();
    let op = lease_one(&store, "h:1", at(0)).await;
    store.renew(op.id, 1, at(100)).await.unwrap();
    assert!(store.lease("h:2", &BOTH, &[], MINUTE, 5, at(99)).await.unwrap().is_empty());
    assert_eq!(lease_one(&store, "h:2", at(100)).await.id, op.id);
    assert!(matches!(store.renew(op.id, 1, at(200)).await, Err(StoreError::Fenced { epoch: 1, .. })));
    store.renew(op.id, 2, at(200)).await.unwrap();
}

pub async fn a_fenced_worker_writes_nothing(store: Arc<dyn Store>) {
    store.create(stop("a", 0)).await.unwrap();
    let stale = lease_one(&store, "h:1", at(0)).await;
    let fresh = lease_one(&store, "h:2", at(60)).await;
    let before = trail(&store, stale.id).await;
    let (result, audit) = succeeded(&stale, at(61));
    let fenced = store.finish_step(&stale, result.clone(), audit.clone(), at(61)).await;
    assert!(matches!(fenced, Err(StoreError::Fenced { id, epoch: 1 }) if id == stale.id), "{fenced:?}");
    assert_eq!(row(&store, stale.id).await, fresh);
    assert_eq!(trail(&store, stale.id).await, before, "nor into the trail");
    store.finish_step(&fresh, result.clone(), audit.clone(), at(62)).await.unwrap();
    let twice = store.finish_step(&fresh, result, audit, at(63)).await;
    assert!(matches!(twice, Err(StoreError::Fenced { epoch: 2, .. })), "a step is finished once: {twice:?}");
    assert!(matches!(store.renew(fresh.id, 2, at(99)).await, Err(StoreError::Fenced { .. })));
}

pub async fn the_next_due_instant_is_known(store: Arc<dyn Store>) {
    assert_eq!(store.next_due(&BOTH).await.unwrap(), None);
    store.create(stop("a", 50)).await.unwrap();
    store.create(submit("b", 70)).await.unwrap();
    assert_eq!(store.next_due(&BOTH).await.unwrap(), Some(at(50)));
    assert_eq!(store.next_due(&[Kind::Submit]).await.unwrap(), Some(at(70)));
    assert_eq!(store.next_due(&[]).await.unwrap(), None);
    let op = store.lease("h:1", &[Kind::Stop], &[], Duration::from_secs(5), 1, at(50)).await.unwrap().remove(0);
    assert_eq!(store.next_due(&BOTH).await.unwrap(), Some(at(55)), "a lease that expires");
    store.finish_step(&op, step(&op, State::Waiting, at(400)), vec![], at(51)).await.unwrap();
    assert_eq!(store.next_due(&[Kind::Stop]).await.unwrap(), Some(at(400)));
}

pub async fn limits_are_kept(store: Arc<dyn Store>) {
    for i in 0..10 {
        store.create(stop(&format!("job-{i}"), i)).await.unwrap();
    }
    assert!(store.lease("h:1", &BOTH, &[], MINUTE, 0, at(60)).await.unwrap().is_empty());
    let mut jobs = Vec::new();
    for _ in 0..4 {
        let leased = store.lease("h:1", &BOTH, &[], MINUTE, 3, at(60)).await.unwrap();
        jobs.extend(leased.iter().map(|op| op.request.target().job.to_string()));
    }
    assert_eq!(jobs, (0..10).map(|i| format!("job-{i}")).collect::<Vec<_>>());
}
