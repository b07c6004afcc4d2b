//! What a step leaves behind, and what becomes of it when somebody joined in the meantime.

use std::sync::Arc;

use curfew_core::audit::Action;
use curfew_core::operation::{Outcome, State};
use curfew_store::{Created, NewOperation, OperationFilter, StepResult, Store, StoreError};

use super::fixtures::*;

pub async fn a_waiting_row_sleeps_until_its_time(store: Arc<dyn Store>) {
    store.create(stop("a", 0)).await.unwrap();
    let op = lease_one(&store, "h:1", at(0)).await;
    let result = StepResult {
        waiting_for: Some("2 tasks, until their clock".into()),
        deadline: Some(at(31)),
        warnings: vec!["w".into()],
        attempts: 3,
        error: Some("404 No path to node".into()),
        ..step(&op, State::Waiting, at(31))
    };
    let waiting = store.finish_step(&op, result, vec![entry(op.id, Action::Waiting, at(1))], at(1)).await.unwrap();
    assert_eq!((waiting.state, waiting.run_at, waiting.deadline), (State::Waiting, at(31), Some(at(31))));
    assert_eq!((waiting.lease.holder.as_deref(), waiting.lease.expires_at, waiting.lease.epoch), (None, None, 1));
    assert_eq!((waiting.attempts, waiting.finished_at, waiting.warnings.len()), (3, None, 1));
    assert_eq!(row(&store, op.id).await, waiting);
    assert!(lease(&store, "h:1", &BOTH, &[], 5, at(30)).await.is_empty());
    assert_eq!(lease_one(&store, "h:1", at(31)).await.lease.epoch, 2);
    let told = [Action::Requested, Action::Leased, Action::Waiting];
    assert_eq!(trail(&store, op.id).await, told, "a wake-up is not worth a row");
}

pub async fn a_finished_row_is_never_leased(store: Arc<dyn Store>) {
    for state in [State::Succeeded, State::Failed, State::Cancelled] {
        store.create(stop("a", 0)).await.unwrap();
        let op = lease_one(&store, "h:1", at(0)).await;
        let outcome = Some(Outcome { exited: 2, killed: 1, ..Outcome::default() });
        let result = StepResult { outcome, ..step(&op, state, at(1)) };
        let done = store.finish_step(&op, result, vec![], at(1)).await.unwrap();
        assert_eq!((done.state, done.finished_at, done.lease.holder.as_deref()), (state, Some(at(1)), None));
        assert_eq!(row(&store, op.id).await, done);
        assert!(lease(&store, "h:1", &BOTH, &[op.id], 5, at(9_999_999)).await.is_empty());
    }
    assert!(store.live(curfew_core::operation::Kind::Stop).await.unwrap().is_empty());
}

pub async fn a_join_hurries_a_waiting_row(store: Arc<dyn Store>) {
    store.create(stop("a", 0)).await.unwrap();
    let op = lease_one(&store, "h:1", at(0)).await;
    store.finish_step(&op, step(&op, State::Waiting, at(300)), vec![], at(1)).await.unwrap();
    let joined = store.create(stop("a", 20)).await.unwrap();
    assert!(matches!(&joined, Created::Joined(op) if op.run_at == at(20) && op.state == State::Waiting), "{joined:?}");
    assert_eq!(lease_one(&store, "h:1", at(20)).await.request.demands().len(), 2);
}

pub async fn a_join_while_running_makes_waiting_due_at_once(store: Arc<dyn Store>) {
    store.create(stop_within("a", 0, 300)).await.unwrap();
    let op = lease_one(&store, "h:1", at(0)).await;
    let hasty = NewOperation { warnings: vec!["theirs".into()], ..stop_within("a", 2, 5) };
    let Created::Joined(joined) = store.create(hasty).await.unwrap() else { panic!("joined") };
    assert_eq!((joined.state, joined.lease.epoch), (State::Running, 1), "the holder keeps it");
    let result = StepResult { warnings: vec!["ours".into()], ..step(&op, State::Waiting, at(300)) };
    let waiting = store.finish_step(&op, result, vec![], at(3)).await.unwrap();
    assert_eq!((waiting.state, waiting.run_at, waiting.deadline), (State::Waiting, at(3), Some(at(7))));
    assert_eq!(waiting.warnings, ["ours", "theirs"]);
    let again = lease_one(&store, "h:1", at(3)).await;
    assert_eq!(again.request.demands(), [demand(2, 5)], "it outruns the first");
    assert_eq!(again.progress.demands_sent, 0, "and wants a DELETE of its own");
    let waiting = store.finish_step(&again, step(&again, State::Waiting, at(300)), vec![], at(4)).await.unwrap();
    assert_eq!(waiting.run_at, at(300), "nobody joined since");
}

pub async fn a_join_while_running_undoes_the_end(store: Arc<dyn Store>) {
    store.create(stop("a", 0)).await.unwrap();
    let op = lease_one(&store, "h:1", at(0)).await;
    assert!(matches!(store.create(stop("a", 2)).await.unwrap(), Created::Joined(_)));
    let (result, audit) = succeeded(&op, at(3));
    let row = store.finish_step(&op, result, audit, at(3)).await.unwrap();
    assert_eq!((row.state, row.run_at, row.finished_at), (State::Queued, at(3), None));
    assert_eq!((row.progress.demands_sent, row.request.demands().len()), (1, 2), "the new demand wants its own DELETE");
    let told = [Action::Requested, Action::Leased, Action::Joined, Action::Waiting];
    assert_eq!(trail(&store, op.id).await, told, "the trail does not say that it succeeded");
    let again = lease_one(&store, "h:1", at(3)).await;
    let (result, audit) = succeeded(&again, at(4));
    assert_eq!(store.finish_step(&again, result, audit, at(4)).await.unwrap().state, State::Succeeded);
}

pub async fn a_paused_row_stays(store: Arc<dyn Store>) {
    store.create(stop("a", 0)).await.unwrap();
    let op = lease_one(&store, "h:1", at(0)).await;
    store.finish_step(&op, step(&op, State::Paused, at(1)), vec![], at(1)).await.unwrap();
    assert!(lease(&store, "h:1", &BOTH, &[op.id], 5, at(9_999)).await.is_empty());
    assert_eq!(store.next_due(&BOTH, at(1)).await.unwrap(), None);
    assert!(matches!(store.create(stop("a", 2)).await.unwrap(), Created::Joined(op) if op.state == State::Paused));
}

pub async fn a_step_cannot_end_running(store: Arc<dyn Store>) {
    store.create(stop("a", 0)).await.unwrap();
    let op = lease_one(&store, "h:1", at(0)).await;
    let wrong = store.finish_step(&op, step(&op, State::Running, at(1)), vec![entry(op.id, Action::Waiting, at(1))], at(1)).await;
    assert!(matches!(wrong, Err(StoreError::Database { transient: false, .. })), "{wrong:?}");
    assert_eq!(row(&store, op.id).await, op);
    assert_eq!(trail(&store, op.id).await, [Action::Requested, Action::Leased]);
}

pub async fn unknown_operations_are_named(store: Arc<dyn Store>) {
    store.create(stop("a", 0)).await.unwrap();
    let mut op = lease_one(&store, "h:1", at(0)).await;
    op.id = stop("b", 0).id;
    let (result, audit) = succeeded(&op, at(1));
    assert!(matches!(store.finish_step(&op, result, audit, at(1)).await, Err(StoreError::NoSuchOperation(id)) if id == op.id));
    assert!(matches!(store.renew(op.id, 1, MINUTE, at(1)).await, Err(StoreError::NoSuchOperation(id)) if id == op.id));
    assert_eq!(store.operations(OperationFilter::default()).await.unwrap().len(), 1);
}
