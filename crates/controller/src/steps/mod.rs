//! One file a kind of operation. A step takes no input but the row: it reads, acts in a way that is safe to repeat, and says
//! what the row becomes.
//!
//! Told to stop, it drops what it only reads ([`Tools::read`]), finishes a call that changes Nomad and begins no other
//! ([`Tools::change`]). A change that does not come to an end in time is dropped and written down as unknown.

pub(crate) mod drain_node;
pub(crate) mod drain_set;
mod rollout;
mod steer;
mod stop;
mod submit;
mod undrain;

use std::sync::Arc;

use curfew_core::audit::{Action, AuditEntry};
use curfew_core::config::Config;
use curfew_core::operation::{Operation, Request, State};
use curfew_core::{Clock, Timestamp};
use curfew_nomad::Nomad;
use curfew_store::{StepResult, Store};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::keeper::Keeper;
use crate::observer::Sight;

/// What a step works with.
#[derive(Clone)]
pub struct Tools {
    pub nomad: Nomad,
    pub store: Arc<dyn Store>,
    pub keeper: Keeper,
    pub clock: Arc<dyn Clock>,
    pub config: Arc<Config>,
    pub sight: watch::Receiver<Sight>,
    /// `host:pid`, for the audit trail.
    pub actor: String,
    /// The controller is stopping and steps have had their time.
    pub told_to_stop: CancellationToken,
    pub random: Random,
}

/// From 0 up to 1, another each time.
pub type Random = Arc<dyn Fn() -> f64 + Send + Sync>;

/// The controller is stopping: the step ends here.
pub struct Stopping;

/// What a step did: the row's next state and the rows of the trail that belong to it.
pub struct Done {
    pub result: StepResult,
    pub audit: Vec<AuditEntry>,
}

impl Tools {
    pub async fn step(&self, op: &Operation) -> Done {
        let done = match &op.request {
            Request::Submit { target, registration } => self.submit(op, target, registration).await,
            Request::Rollout { target, registration } => self.rollout(op, target, registration).await,
            Request::Deployment { target, deployment, steer } => self.steer(op, target, deployment, *steer).await,
            Request::Stop { target, demands } => self.stop(op, target, demands).await,
            Request::DrainNode { node, options, was_eligible, .. } => self.drain_node(op, node, options, *was_eligible).await,
            Request::DrainDatacenter { selection, nodes, options, .. } => self.drain_set(op, selection, nodes, options).await,
            Request::Undrain { nodes, all, .. } => self.undrain(op, nodes, *all).await,
        };
        // No change is under way: what is known about the last one is as it was.
        done.unwrap_or_else(|Stopping| self.aborted(op, op.progress.unknown))
    }

    /// What changes nothing may be dropped midway.
    async fn read<T>(&self, call: impl Future<Output = T>) -> Result<T, Stopping> {
        tokio::select! {
            biased;
            () = self.told_to_stop.cancelled() => Err(Stopping),
            answer = call => Ok(answer),
        }
    }

    /// Once begun it goes on to its answer: only the worker drops it, and then its outcome is unknown.
    async fn change<T>(&self, call: impl Future<Output = T>) -> Result<T, Stopping> {
        if self.told_to_stop.is_cancelled() { Err(Stopping) } else { Ok(call.await) }
    }

    /// Back to the queue, due now.
    pub fn queued(&self, op: &Operation, waiting_for: Option<String>, unknown: bool) -> StepResult {
        let mut result = StepResult { waiting_for, attempts: op.attempts, ..self.result(op, State::Queued) };
        result.progress.unknown = unknown;
        result
    }

    /// The stop of the controller cut it off. With `unknown`, what was asked of Nomad last may have been done.
    pub fn aborted(&self, op: &Operation, unknown: bool) -> Done {
        let why = "aborted for retry: the controller was stopped in the middle of a step".to_owned();
        let audit = vec![self.entry(op, Action::Aborted, serde_json::json!({ "unknown": unknown, "retry": true }))];
        Done { result: self.queued(op, Some(why), unknown), audit }
    }

    fn result(&self, op: &Operation, state: State) -> StepResult {
        StepResult {
            state,
            run_at: self.clock.now(),
            waiting_for: None,
            progress: op.progress.clone(),
            deadline: op.deadline,
            outcome: op.outcome.clone(),
            error: None,
            warnings: op.warnings.clone(),
            attempts: 0,
        }
    }

    fn entry(&self, op: &Operation, action: Action, detail: Value) -> AuditEntry {
        AuditEntry {
            at: self.clock.now(),
            operation: Some(op.id),
            actor: self.actor.clone(),
            action,
            alloc: None,
            task: None,
            detail,
        }
    }

    fn waiting(&self, op: &Operation, run_at: Timestamp, waiting_for: String) -> StepResult {
        StepResult { run_at, waiting_for: Some(waiting_for), ..self.result(op, State::Waiting) }
    }

    /// Failed for now: the row waits and is tried again. What was asked of Nomad may have been done when `unknown`.
    fn retry(&self, op: &Operation, why: String, unknown: bool) -> Done {
        let attempts = op.attempts.saturating_add(1);
        let limits = self.config.kind(op.kind());
        if limits.attempts.is_some_and(|most| attempts >= most) {
            let mut done = self.failed(op, format!("given up after {attempts} attempts; the last error: {why}"));
            done.result.progress.unknown |= unknown;
            done.result.attempts = attempts;
            return done;
        }
        let wait = limits.backoff.wait(attempts, (self.random)());
        let mut progress = op.progress.clone();
        progress.unknown |= unknown;
        let audit =
            vec![self.entry(op, Action::Retrying, serde_json::json!({ "attempt": attempts, "error": why, "unknown": unknown }))];
        let run_at = self.clock.now() + wait;
        Done { result: StepResult { progress, attempts, ..self.waiting(op, run_at, format!("Nomad: {why}")) }, audit }
    }

    /// Ends it as somebody wished. `warning`: what could not be taken back.
    fn cancelled(&self, op: &Operation, warning: Option<String>) -> Done {
        let asked = op.cancel.as_ref();
        let detail = serde_json::json!({ "asked_by": asked.map(|by| &by.actor), "warning": warning });
        let audit = vec![self.entry(op, Action::Cancelled, detail)];
        let mut result = self.result(op, State::Cancelled);
        result.warnings.extend(warning.filter(|w| !op.warnings.contains(w)));
        Done { result, audit }
    }

    fn failed(&self, op: &Operation, why: String) -> Done {
        let audit = vec![self.entry(op, Action::Failed, serde_json::json!({ "error": why }))];
        Done { result: StepResult { error: Some(why), ..self.result(op, State::Failed) }, audit }
    }
}
