//! Who works on what, and for how long.

use std::sync::Arc;
use std::time::Duration;

use curfew_core::audit::Action;
use curfew_core::operation::{Kind, State};
use curfew_store::{AuditFilter, Store, StoreError, Wanted};
use serde_json::json;

use super::fixtures::*;

pub async fn due_rows_come_oldest_first(store: Arc<dyn Store>) {
    for (job, second) in [("c", 30), ("a", 10), ("later", 90), ("b", 20)] {
        store.create(submit(job, second)).await.unwrap();
    }
    store.create(stop("s", 15)).await.unwrap();
    let leased = lease(&store, "h:1", &BOTH, &[], 10, at(60)).await;
    let jobs: Vec<_> = leased.iter().map(|op| op.request.target().name().to_owned()).collect();
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
    let leased = lease(&store, "h:1", &BOTH, &[sleeping], 1, at(1)).await;
    assert_eq!(leased.iter().map(|op| op.id).collect::<Vec<_>>(), [sleeping]);
    let more = lease(&store, "h:1", &BOTH, &[sleeping], 5, at(1)).await;
    assert_eq!(more.len(), 1, "a running row is not nudged: {more:?}");
    let unknown = stop("nobody", 0).id;
    assert!(lease(&store, "h:1", &BOTH, &[unknown], 5, at(1)).await.is_empty());
}

pub async fn other_kinds_stay(store: Arc<dyn Store>) {
    let stop = store.create(stop("a", 0)).await.unwrap().operation().id;
    assert!(lease(&store, "h:1", &[Kind::Submit], &[stop], 5, at(1)).await.is_empty());
    assert!(lease(&store, "h:1", &[], &[stop], 5, at(1)).await.is_empty());
    assert_eq!(lease(&store, "h:1", &[Kind::Stop], &[], 5, at(1)).await.len(), 1);
}

pub async fn a_held_row_is_nobody_elses(store: Arc<dyn Store>) {
    store.create(stop("a", 0)).await.unwrap();
    let op = lease_one(&store, "h:1", at(0)).await;
    assert!(lease(&store, "h:2", &BOTH, &[op.id], 5, at(59)).await.is_empty());
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
    store.renew(op.id, 1, MINUTE, at(40)).await.unwrap();
    assert!(lease(&store, "h:2", &BOTH, &[], 5, at(99)).await.is_empty());
    assert_eq!(lease_one(&store, "h:2", at(100)).await.id, op.id);
    assert!(matches!(store.renew(op.id, 1, MINUTE, at(140)).await, Err(StoreError::Fenced { epoch: 1, .. })));
    store.renew(op.id, 2, MINUTE, at(140)).await.unwrap();
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
    assert!(matches!(store.renew(fresh.id, 2, MINUTE, at(63)).await, Err(StoreError::Fenced { .. })));
}

pub async fn the_next_due_instant_is_known(store: Arc<dyn Store>) {
    assert_eq!(store.next_due(&BOTH, at(50)).await.unwrap(), None);
    store.create(stop("a", 50)).await.unwrap();
    store.create(submit("b", 70)).await.unwrap();
    assert_eq!(store.next_due(&BOTH, at(50)).await.unwrap(), Some(at(50)));
    assert_eq!(store.next_due(&[Kind::Submit], at(50)).await.unwrap(), Some(at(70)));
    assert_eq!(store.next_due(&[], at(0)).await.unwrap(), None);
    let brief = [Wanted { kind: Kind::Stop, lease_for: Duration::from_secs(5), limit: 1 }];
    let op = store.lease("h:1", &brief, &[], 1, at(50)).await.unwrap().remove(0);
    assert_eq!(store.next_due(&BOTH, at(50)).await.unwrap(), Some(at(55)), "a lease that expires");
    store.finish_step(&op, step(&op, State::Waiting, at(400)), vec![], at(51)).await.unwrap();
    assert_eq!(store.next_due(&[Kind::Stop], at(51)).await.unwrap(), Some(at(400)));
}

pub async fn limits_are_kept(store: Arc<dyn Store>) {
    for i in 0..10 {
        store.create(stop(&format!("job-{i}"), i)).await.unwrap();
    }
    assert!(lease(&store, "h:1", &BOTH, &[], 0, at(60)).await.is_empty());
    let mut jobs = Vec::new();
    for _ in 0..4 {
        let leased = lease(&store, "h:1", &BOTH, &[], 3, at(60)).await;
        jobs.extend(leased.iter().map(|op| op.request.target().name().to_owned()));
    }
    assert_eq!(jobs, (0..10).map(|i| format!("job-{i}")).collect::<Vec<_>>());
}

pub async fn each_kind_has_a_limit_of_its_own(store: Arc<dyn Store>) {
    for i in 0..4 {
        store.create(stop(&format!("s-{i}"), i)).await.unwrap();
        store.create(submit(&format!("r-{i}"), i)).await.unwrap();
    }
    let wanted = |stops, submits| {
        [(Kind::Stop, stops), (Kind::Submit, submits)].map(|(kind, limit)| Wanted { kind, lease_for: MINUTE, limit })
    };
    let mut counts = Vec::new();
    let nudged = store.live(Kind::Stop).await.unwrap()[3].id;
    for (limits, total) in [((1, 3), 10), ((2, 0), 10), ((9, 9), 1), ((0, 9), 10)] {
        let leased = store.lease("h:1", &wanted(limits.0, limits.1), &[nudged], total, at(60)).await.unwrap();
        let stops = leased.iter().filter(|op| op.kind() == Kind::Stop).count();
        counts.push((stops, leased.len() - stops));
        assert!(counts.len() > 1 || leased[0].id == nudged);
    }
    assert_eq!(counts, [(1, 3), (2, 0), (1, 0), (0, 1)]);
}
