//! What every test of the contract writes.

use std::sync::Arc;
use std::time::Duration;

use curfew_core::audit::{Action, AuditEntry};
use curfew_core::operation::{By, Demand, Kind, Operation, Progress, Request, State};
use curfew_core::{JobKey, OpId, Timestamp};
use curfew_store::{AuditFilter, NewOperation, StepResult, Store, Wanted};
use serde_json::{Value, json};

pub const MINUTE: Duration = Duration::from_secs(60);
pub const BOTH: [Kind; 2] = [Kind::Submit, Kind::Stop];

/// Seconds after an arbitrary start.
pub fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(1_700_000_000_000) + Duration::from_secs(seconds)
}

/// From JSON, here and below: what core adds later has a default there, since rows of an earlier version must be read.
pub fn demand(seconds: u64, stop_timeout: u64) -> Demand {
    let json = json!({ "at": at(seconds), "stop_timeout": format!("{stop_timeout}s") });
    serde_json::from_value(json).expect("a demand")
}

/// A stop requested at `seconds` that leaves 30 s.
pub fn stop(job: &str, seconds: u64) -> NewOperation {
    stop_within(job, seconds, 30)
}

pub fn stop_within(job: &str, seconds: u64, stop_timeout: u64) -> NewOperation {
    NewOperation {
        id: OpId::new(at(seconds)),
        parent: None,
        request: Request::Stop { target: JobKey::new("default", job), demands: vec![demand(seconds, stop_timeout)] },
        actor: "ops@example".into(),
        reason: Some("end of season".into()),
        at: at(seconds),
        deadline: Some(at(seconds + stop_timeout)),
        warnings: vec![],
        idempotency: None,
    }
}

pub fn stop_in(namespace: &str, job: &str, seconds: u64) -> NewOperation {
    let request = Request::Stop { target: JobKey::new(namespace, job), demands: vec![demand(seconds, 30)] };
    NewOperation { request, ..stop(job, seconds) }
}

pub fn submit(job: &str, seconds: u64) -> NewOperation {
    let spec = json!({ "ID": job, "Meta": { "größe": "日本" }, "FieldOfTheFuture": [1, null, 2.5] });
    let request = json!({ "kind": "submit", "target": { "namespace": "default", "job": job }, "spec": spec, "base_index": 0 });
    let request = serde_json::from_value(request).expect("a request");
    NewOperation { request, deadline: None, reason: None, ..stop(job, seconds) }
}

pub fn with_key(new: NewOperation, key: &str, digest: &str) -> NewOperation {
    NewOperation { idempotency: Some((key.into(), digest.into())), ..new }
}

/// A step that leaves the row as it is, in `state`.
pub fn step(op: &Operation, state: State, run_at: Timestamp) -> StepResult {
    StepResult {
        state,
        run_at,
        waiting_for: None,
        progress: op.progress.clone(),
        deadline: op.deadline,
        outcome: None,
        error: None,
        warnings: op.warnings.clone(),
        attempts: 0,
    }
}

/// Everything sent, everything done.
pub fn succeeded(op: &Operation, now: Timestamp) -> (StepResult, Vec<AuditEntry>) {
    let progress = Progress { demands_sent: op.request.demands().len(), ..op.progress.clone() };
    (StepResult { progress, ..step(op, State::Succeeded, now) }, vec![entry(op.id, Action::Succeeded, now)])
}

pub fn entry(operation: OpId, action: Action, now: Timestamp) -> AuditEntry {
    AuditEntry {
        at: now,
        operation: Some(operation),
        actor: "host:1".into(),
        action,
        alloc: None,
        task: None,
        detail: Value::Null,
    }
}

/// As many as there are of each kind, for a minute.
pub fn wanted(kinds: &[Kind]) -> Vec<Wanted> {
    kinds.iter().map(|kind| Wanted { kind: *kind, lease_for: MINUTE, limit: usize::MAX }).collect()
}

pub async fn lease(
    store: &Arc<dyn Store>,
    holder: &str,
    kinds: &[Kind],
    ids: &[OpId],
    limit: usize,
    now: Timestamp,
) -> Vec<Operation> {
    store.lease(holder, &wanted(kinds), ids, limit, now).await.unwrap()
}

pub fn by(actor: &str, seconds: u64) -> By {
    By { actor: actor.into(), reason: Some("because".into()), at: at(seconds) }
}

pub async fn lease_one(store: &Arc<dyn Store>, holder: &str, now: Timestamp) -> Operation {
    let mut leased = lease(store, holder, &BOTH, &[], 1, now).await;
    assert_eq!(leased.len(), 1, "something is due at {now}");
    leased.remove(0)
}

pub async fn row(store: &Arc<dyn Store>, id: OpId) -> Operation {
    store.operation(id).await.unwrap().expect("the operation is there")
}

pub async fn trail(store: &Arc<dyn Store>, id: OpId) -> Vec<Action> {
    let filter = AuditFilter { operation: Some(id), ..AuditFilter::default() };
    store.audit(filter).await.unwrap().into_iter().map(|r| r.entry.action).collect()
}
