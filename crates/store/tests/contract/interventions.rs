//! What people do to an operation.

use std::sync::Arc;
use std::time::Duration;

use curfew_core::OpId;
use curfew_core::audit::Action;
use curfew_core::operation::{Demand, Intervention, Operation, Progress, State};
use curfew_store::{AuditFilter, Created, StepResult, Store, StoreError};
use serde_json::json;

use super::fixtures::*;

async fn refused(store: &Arc<dyn Store>, id: OpId, what: Intervention, seconds: u64) -> String {
    let (before, told) = (row(store, id).await, trail(store, id).await);
    let why = match store.intervene(id, what, by("ops", seconds)).await {
        Err(StoreError::Refused { id: theirs, why }) if theirs == id => why,
        other => panic!("{what:?}: {other:?}"),
    };
    assert_eq!((row(store, id).await, trail(store, id).await), (before, told), "{what:?}: a refusal changes nothing");
    why
}

async fn done(store: &Arc<dyn Store>, id: OpId, what: Intervention, seconds: u64) -> Operation {
    let op = store.intervene(id, what, by("ops", seconds)).await.unwrap();
    assert_eq!(row(store, id).await, op);
    op
}

async fn new_stop(store: &Arc<dyn Store>, job: &str) -> OpId {
    store.create(stop(job, 0)).await.unwrap().operation().id
}

/// Its DELETE is sent and it waits for a long time.
async fn sent(store: &Arc<dyn Store>, op: &Operation, seconds: u64) -> Operation {
    let progress =
        Progress { demands_sent: op.request.demands().len(), sent_at: Some(at(seconds)), unknown: false, ..op.progress.clone() };
    let result = StepResult { progress, ..step(op, State::Waiting, at(900)) };
    store.finish_step(op, result, vec![], at(seconds)).await.unwrap()
}

async fn ended(store: &Arc<dyn Store>, op: &Operation, state: State, seconds: u64) -> Operation {
    let result = StepResult { error: Some("why".into()), attempts: 3, ..step(op, state, at(seconds)) };
    store.finish_step(op, result, vec![], at(seconds)).await.unwrap()
}

pub async fn what_never_began_is_cancelled_at_once(store: Arc<dyn Store>) {
    let id = new_stop(&store, "a").await;
    store.pause_kind(curfew_core::operation::Kind::Stop, by("ops", 1)).await.unwrap();
    let op = done(&store, id, Intervention::Cancel, 2).await;
    assert_eq!((op.state, op.finished_at, op.cancel.clone()), (State::Cancelled, Some(at(2)), Some(by("ops", 2))));
    let rows = store.audit(AuditFilter { operation: Some(id), ..AuditFilter::default() }).await.unwrap();
    let told = &rows.last().unwrap().entry;
    assert_eq!((told.action, told.actor.as_str(), &told.detail), (Action::Cancelled, "ops", &json!({ "reason": "because" })));
    let why = refused(&store, id, Intervention::Cancel, 3).await;
    assert_eq!(why, "it is cancelled already: there is nothing left to cancel");
    assert!(matches!(store.create(stop("a", 4)).await.unwrap(), Created::New(_)), "nobody joins it");
}

pub async fn what_began_is_cancelled_by_its_next_step(store: Arc<dyn Store>) {
    let id = new_stop(&store, "a").await;
    let op = lease_one(&store, "h:1", at(0)).await;
    let asked = done(&store, id, Intervention::Cancel, 1).await;
    assert_eq!((asked.state, asked.revision, asked.lease.epoch), (State::Running, 1, 1), "the holder keeps it");
    let waiting = sent(&store, &op, 2).await;
    assert_eq!((waiting.state, waiting.run_at, waiting.cancel.clone()), (State::Waiting, at(2), Some(by("ops", 1))));
    assert_eq!(waiting.progress.demands_sent, 1, "a cancel wants no DELETE");
    assert_eq!(done(&store, id, Intervention::Cancel, 3).await, waiting, "once is enough");
    let op = lease_one(&store, "h:1", at(3)).await;
    assert!(op.cancel.is_some());
    let op = ended(&store, &op, State::Cancelled, 4).await;
    assert_eq!(op.state, State::Cancelled);
    assert_eq!(trail(&store, id).await, [Action::Requested, Action::Leased, Action::CancelAsked]);
}

pub async fn a_cancel_that_comes_too_late_undoes_no_end(store: Arc<dyn Store>) {
    let id = new_stop(&store, "a").await;
    let op = lease_one(&store, "h:1", at(0)).await;
    done(&store, id, Intervention::Cancel, 1).await;
    done(&store, id, Intervention::Pause, 1).await;
    let (result, audit) = succeeded(&op, at(2));
    let op = store.finish_step(&op, result, audit, at(2)).await.unwrap();
    assert_eq!((op.state, op.pause), (State::Succeeded, None));
}

pub async fn a_deadline_is_moved_both_ways(store: Arc<dyn Store>) {
    let id = new_stop(&store, "a").await;
    let op = lease_one(&store, "h:1", at(0)).await;
    sent(&store, &op, 1).await;
    let op = done(&store, id, Intervention::ExtendBy(Duration::from_secs(60)), 5).await;
    assert_eq!((op.deadline, op.run_at, op.progress.demands_sent), (Some(at(90)), at(5), 1), "no second DELETE");
    let [Demand { at: asked, until, .. }] = op.request.demands() else { panic!("{op:?}") };
    assert_eq!((*asked, *until), (at(0), Some(at(90))));
    let op = done(&store, id, Intervention::ExtendUntil(at(600)), 6).await;
    assert_eq!((op.deadline, op.request.demands().len()), (Some(at(600)), 1));
    assert!(refused(&store, id, Intervention::ExtendUntil(at(6)), 6).await.contains("has passed"));
    let Created::Joined(op) = store.create(stop("a", 10)).await.unwrap() else { panic!("joined") };
    assert_eq!((op.deadline, op.request.demands().len(), op.progress.demands_sent), (Some(at(40)), 2, 1), "shorter again");
    let op = done(&store, id, Intervention::KillNow, 20).await;
    assert_eq!((op.deadline, op.request.demands()[0].until), (Some(at(20)), Some(at(20))));
    assert_eq!((op.request.demands().len(), op.progress.demands_sent), (1, 0), "the one that joined still wants its DELETE");
    let op = done(&store, id, Intervention::ExtendBy(Duration::from_secs(60)), 100).await;
    assert_eq!(op.deadline, Some(at(160)), "a deadline that has passed counts from now");
    let told = trail(&store, id).await;
    assert_eq!(told[2..], [Action::Extended, Action::Extended, Action::Joined, Action::KillNow, Action::Extended]);
}

pub async fn an_extension_while_a_step_sends_the_delete_wants_no_other(store: Arc<dyn Store>) {
    let id = new_stop(&store, "a").await;
    let op = lease_one(&store, "h:1", at(0)).await;
    done(&store, id, Intervention::ExtendUntil(at(500)), 1).await;
    let op = sent(&store, &op, 2).await;
    assert_eq!((op.progress.demands_sent, op.deadline, op.run_at), (1, Some(at(500)), at(2)));
    let op = lease_one(&store, "h:1", at(2)).await;
    store.create(stop("a", 3)).await.unwrap();
    done(&store, id, Intervention::ExtendUntil(at(700)), 4).await;
    let failed = StepResult { state: State::Waiting, ..step(&op, State::Waiting, at(9)) };
    let op = store.finish_step(&op, failed, vec![], at(5)).await.unwrap();
    assert_eq!((op.request.demands().len(), op.deadline), (1, Some(at(700))));
    let op = lease_one(&store, "h:1", at(5)).await;
    done(&store, id, Intervention::KillNow, 6).await;
    let (result, audit) = succeeded(&op, at(7));
    assert_eq!(store.finish_step(&op, result, audit, at(7)).await.unwrap().state, State::Succeeded, "the end stands");
}

pub async fn only_stops_have_a_deadline_to_move(store: Arc<dyn Store>) {
    let id = store.create(submit("a", 0)).await.unwrap().operation().id;
    for what in [Intervention::KillNow, Intervention::ExtendUntil(at(60)), Intervention::ExtendBy(MINUTE)] {
        assert_eq!(refused(&store, id, what, 1).await, "a submit has no deadline to move");
    }
}

pub async fn a_failed_one_is_tried_again(store: Arc<dyn Store>) {
    let id = new_stop(&store, "a").await;
    assert!(refused(&store, id, Intervention::Retry, 1).await.contains("it is queued: only one that failed or was cancelled"));
    let op = lease_one(&store, "h:1", at(1)).await;
    ended(&store, &op, State::Failed, 2).await;
    let op = done(&store, id, Intervention::Retry, 1000).await;
    assert_eq!((op.state, op.run_at, op.attempts, op.error.clone()), (State::Queued, at(1000), 0, None));
    assert_eq!((op.finished_at, op.progress.unknown, op.lease.epoch), (None, true, 1));
    assert_eq!(op.request.demands()[0].at, at(1000), "Nomad never heard of it: its grace begins now");
    let op = lease_one(&store, "h:1", at(1000)).await;
    let op = sent(&store, &op, 1001).await;
    let op = store.lease("h:1", &wanted(&BOTH), &[op.id], 1, at(1002)).await.unwrap().remove(0);
    ended(&store, &op, State::Failed, 1003).await;
    let op = done(&store, id, Intervention::Retry, 2000).await;
    assert_eq!((op.request.demands()[0].at, op.progress.demands_sent), (at(1000), 1), "what was sent was sent");

    let op = lease_one(&store, "h:1", at(2000)).await;
    ended(&store, &op, State::Cancelled, 2001).await;
    let rival = store.create(stop("a", 2002)).await.unwrap().operation().id;
    let why = refused(&store, id, Intervention::Retry, 2003).await;
    assert!(why.contains(&rival.to_string()) && why.contains("job \"a\""), "{why}");
    let op = lease_one(&store, "h:1", at(2004)).await;
    let (result, audit) = succeeded(&op, at(2004));
    store.finish_step(&op, result, audit, at(2004)).await.unwrap();
    assert!(refused(&store, rival, Intervention::Retry, 2005).await.contains("it is succeeded"));
    assert_eq!(done(&store, id, Intervention::Retry, 2005).await.state, State::Queued);
}

pub async fn a_released_row_is_due_and_its_holder_is_fenced(store: Arc<dyn Store>) {
    let id = new_stop(&store, "a").await;
    let stale = lease_one(&store, "h:1", at(0)).await;
    let op = done(&store, id, Intervention::Release, 1).await;
    assert_eq!((op.state, op.lease.epoch, op.lease.holder.clone(), op.lease.expires_at), (State::Queued, 2, None, None));
    assert_eq!((op.run_at, op.progress.unknown), (at(1), true));
    let (result, audit) = succeeded(&stale, at(2));
    let fenced = store.finish_step(&stale, result, audit, at(2)).await;
    assert!(matches!(fenced, Err(StoreError::Fenced { epoch: 1, .. })), "{fenced:?}");
    assert!(matches!(store.renew(id, 1, MINUTE, at(2)).await, Err(StoreError::Fenced { .. })));
    let fresh = lease_one(&store, "h:2", at(2)).await;
    assert_eq!(fresh.lease.epoch, 3);
    sent(&store, &fresh, 3).await;
    let op = done(&store, id, Intervention::Release, 4).await;
    assert_eq!((op.state, op.run_at, op.lease.epoch), (State::Waiting, at(4), 3), "nobody held it: due now");
    done(&store, id, Intervention::Pause, 5).await;
    assert!(refused(&store, id, Intervention::Release, 6).await.contains("op resume"));
    let rows = store.audit(AuditFilter { operation: Some(id), ..AuditFilter::default() }).await.unwrap();
    assert_eq!(rows[2].entry.detail, json!({ "previous_holder": "h:1", "epoch": 2, "reason": "because" }));
}

pub async fn a_paused_operation_waits_for_somebody(store: Arc<dyn Store>) {
    let id = new_stop(&store, "a").await;
    let op = done(&store, id, Intervention::Pause, 1).await;
    assert_eq!((op.state, op.run_at, op.pause.clone()), (State::Paused, at(0), Some(by("ops", 1))));
    assert_eq!(op.waiting_for.as_deref(), Some("somebody to resume it: ops paused it; its clocks run on"));
    assert_eq!(done(&store, id, Intervention::Pause, 2).await, op, "once is enough");
    assert!(lease(&store, "h:1", &BOTH, &[id], 5, at(99)).await.is_empty());
    let op = done(&store, id, Intervention::Resume, 100).await;
    assert_eq!((op.state, op.run_at, op.pause.clone(), op.waiting_for.clone()), (State::Queued, at(0), None, None));
    assert_eq!(done(&store, id, Intervention::Resume, 101).await, op);

    // While a step runs it comes into force at the step's end.
    let op = lease_one(&store, "h:1", at(100)).await;
    assert_eq!(done(&store, id, Intervention::Pause, 101).await.state, State::Running);
    let op = sent(&store, &op, 102).await;
    assert_eq!((op.state, op.progress.demands_sent, op.lease.holder.clone()), (State::Paused, 1, None));
    done(&store, id, Intervention::Resume, 103).await;
    let op = lease_one(&store, "h:1", at(103)).await;
    done(&store, id, Intervention::Pause, 104).await;
    done(&store, id, Intervention::Resume, 105).await;
    assert_eq!(sent(&store, &op, 106).await.state, State::Waiting, "not paused after all");

    // Asked to cancel it, it goes on to be cancelled.
    done(&store, id, Intervention::Pause, 107).await;
    let op = done(&store, id, Intervention::Cancel, 108).await;
    assert_eq!((op.state, op.pause.clone()), (State::Queued, None));
    assert_eq!(lease_one(&store, "h:1", at(108)).await.id, id);
}

pub async fn interventions_on_nothing_are_named(store: Arc<dyn Store>) {
    let id = stop("a", 0).id;
    let e = store.intervene(id, Intervention::Cancel, by("ops", 1)).await;
    assert!(matches!(e, Err(StoreError::NoSuchOperation(theirs)) if theirs == id), "{e:?}");
}
