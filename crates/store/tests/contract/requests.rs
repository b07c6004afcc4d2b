//! Writing requests down, joining, idempotency keys, lists.

use std::sync::Arc;

use curfew_core::audit::Action;
use curfew_core::operation::{Kind, Progress, State};
use curfew_core::{JobKey, OpId};
use curfew_store::{Created, NewOperation, OperationFilter, Store, StoreError};

use super::fixtures::*;

pub async fn what_was_written_is_what_is_read(store: Arc<dyn Store>) {
    let asked = NewOperation { warnings: vec!["node ß cuts it to 30s".into()], ..submit("a/child.ü", 5) };
    let Created::New(op) = store.create(asked.clone()).await.unwrap() else { panic!("new") };
    assert_eq!((op.id, op.state, op.run_at, op.requested_at), (asked.id, State::Queued, at(5), at(5)));
    assert_eq!((&op.request, &op.actor, &op.warnings), (&asked.request, &asked.actor, &asked.warnings));
    assert_eq!((op.lease.epoch, op.revision, op.finished_at, op.reason.clone()), (0, 0, None, None));
    assert_eq!(row(&store, op.id).await, op);
    assert_eq!(store.operation(stop("other", 0).id).await.unwrap(), None);
}

pub async fn submits_never_join(store: Arc<dyn Store>) {
    store.create(stop("a", 0)).await.unwrap();
    for _ in 0..2 {
        assert!(matches!(store.create(submit("a", 1)).await.unwrap(), Created::New(_)));
    }
    let live = store.live(Kind::Submit).await.unwrap();
    assert!(live.len() == 2 && live[0].id < live[1].id);
    // A page at a time.
    assert_eq!(store.live_after(Kind::Submit, OpId::MIN, 1).await.unwrap(), live[..1]);
    assert_eq!(store.live_after(Kind::Submit, live[0].id, 9).await.unwrap(), live[1..]);
    assert_eq!(store.live_after(Kind::Submit, live[1].id, 9).await.unwrap(), []);
}

pub async fn a_stop_joins_the_live_one(store: Arc<dyn Store>) {
    let first = store.create(stop_within("a", 0, 60)).await.unwrap().operation().clone();
    let hasty = NewOperation { warnings: vec!["w".into()], ..stop_within("a", 10, 5) };
    let Created::Joined(op) = store.create(hasty.clone()).await.unwrap() else { panic!("joined") };
    assert_eq!((op.id, op.deadline, op.revision), (first.id, Some(at(15)), 1));
    assert_eq!((op.request.demands(), op.warnings.clone()), (&[demand(10, 5)][..], vec!["w".to_owned()]));
    let Created::Joined(op) = store.create(stop_within("a", 11, 600)).await.unwrap() else { panic!("joined") };
    assert_eq!(op.deadline, Some(at(15)), "a later deadline changes nothing");
    assert_eq!(op.request.demands(), [demand(10, 5), demand(11, 600)], "but it wants its DELETE");
    assert_eq!(row(&store, op.id).await, op);
    assert_eq!(store.operation(hasty.id).await.unwrap(), None, "the joining request has no row of its own");
    assert_eq!(trail(&store, op.id).await, [Action::Requested, Action::Joined, Action::Joined]);
}

pub async fn a_finished_stop_takes_nobody_in(store: Arc<dyn Store>) {
    store.create(stop("a", 0)).await.unwrap();
    let op = lease_one(&store, "h:1", at(1)).await;
    let (result, audit) = succeeded(&op, at(2));
    store.finish_step(&op, result, audit, at(2)).await.unwrap();
    assert!(matches!(store.create(stop("a", 3)).await.unwrap(), Created::New(_)));
}

pub async fn namespaces_are_apart(store: Arc<dyn Store>) {
    store.create(stop("a", 0)).await.unwrap();
    assert!(matches!(store.create(stop_in("games", "a", 0)).await.unwrap(), Created::New(_)));
    assert!(matches!(store.create(stop_in("games", "a", 1)).await.unwrap(), Created::Joined(_)));
}

pub async fn the_same_key_and_body_is_the_same_operation(store: Arc<dyn Store>) {
    let first = store.create(with_key(submit("a", 0), "k", "body")).await.unwrap().operation().clone();
    let again = store.create(with_key(submit("a", 1), "k", "body")).await.unwrap();
    assert_eq!(again, Created::Replayed(first.clone()));
    let op = lease_one(&store, "h:1", at(1)).await;
    let (result, audit) = succeeded(&op, at(2));
    let done = store.finish_step(&op, result, audit, at(2)).await.unwrap();
    let again = store.create(with_key(submit("a", 3), "k", "body")).await.unwrap();
    assert_eq!(again, Created::Replayed(done), "as it is now");
    assert_eq!(trail(&store, first.id).await.iter().filter(|a| **a == Action::Requested).count(), 1);
}

pub async fn a_key_with_another_body_is_refused(store: Arc<dyn Store>) {
    let first = store.create(with_key(submit("a", 0), "k", "body")).await.unwrap().operation().id;
    match store.create(with_key(submit("b", 0), "k", "another")).await {
        Err(StoreError::IdempotencyConflict { key, id }) => assert_eq!((key.as_str(), id), ("k", first)),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.operations(OperationFilter::default()).await.unwrap().len(), 1);
}

pub async fn a_key_of_a_joined_request_is_remembered(store: Arc<dyn Store>) {
    store.create(stop("a", 0)).await.unwrap();
    let joined = store.create(with_key(stop("a", 1), "k", "body")).await.unwrap().operation().clone();
    let again = store.create(with_key(stop("a", 2), "k", "body")).await.unwrap();
    assert_eq!(again, Created::Replayed(joined), "neither a new demand nor a new row");
}

pub async fn a_long_list_of_demands_keeps_the_newest_unsent(store: Arc<dyn Store>) {
    store.create(stop("a", 0)).await.unwrap();
    for second in 1..100 {
        let op = lease_one(&store, "h:1", at(second)).await;
        let progress = Progress { demands_sent: op.request.demands().len(), ..op.progress.clone() };
        let sent = store.finish_step(
            &op,
            curfew_store::StepResult { progress, ..step(&op, State::Waiting, at(500)) },
            vec![],
            at(second),
        );
        sent.await.unwrap();
        let joined = store.create(stop("a", second)).await.unwrap().operation().clone();
        let (demands, sent) = (joined.request.demands(), joined.progress.demands_sent);
        assert!(demands.len() <= 32 && sent < demands.len(), "{sent} of {}", demands.len());
        assert_eq!(demands.last().map(|d| d.at), Some(at(second)));
    }
}

pub async fn lists_are_newest_first_and_paged(store: Arc<dyn Store>) {
    let mut ids = Vec::new();
    for second in 0..10 {
        let new = if second % 2 == 0 { stop("even", second * 10) } else { submit("odd", second * 10) };
        ids.push(store.create(new).await.unwrap().operation().id);
        let op = lease_one(&store, "h:1", at(second * 10)).await;
        let (result, audit) = succeeded(&op, at(second * 10));
        store.finish_step(&op, result, audit, at(second * 10)).await.unwrap();
    }
    ids.push(store.create(stop("even", 200)).await.unwrap().operation().id);
    ids.reverse();
    let list = async |filter| store.operations(filter).await.unwrap().iter().map(|op| op.id).collect::<Vec<_>>();
    assert_eq!(list(OperationFilter::default()).await, ids);
    assert_eq!(list(OperationFilter { limit: 3, ..OperationFilter::default() }).await, ids[..3]);
    assert_eq!(list(OperationFilter { limit: 3, before: Some(ids[2]), ..OperationFilter::default() }).await, ids[3..6]);
    let kinds = vec![Kind::Submit];
    assert_eq!(list(OperationFilter { kinds: kinds.clone(), ..OperationFilter::default() }).await.len(), 5);
    let target = Some(JobKey::new("default", "even").into());
    assert_eq!(list(OperationFilter { target: target.clone(), ..OperationFilter::default() }).await.len(), 6);
    assert_eq!(list(OperationFilter { target, kinds, ..OperationFilter::default() }).await, []);
    let live = vec![State::Queued, State::Running, State::Waiting];
    assert_eq!(list(OperationFilter { states: live, ..OperationFilter::default() }).await, ids[..1]);
    let ended = vec![State::Succeeded, State::Failed];
    assert_eq!(list(OperationFilter { states: ended, limit: 2, ..OperationFilter::default() }).await, ids[1..3]);
}
