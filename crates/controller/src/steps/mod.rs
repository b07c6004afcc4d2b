//! One file a kind of operation. A step takes no input but the row: it reads, acts in a way that is safe to repeat, and says
//! what the row becomes.

mod stop;
mod submit;

use std::sync::Arc;

use curfew_core::audit::{Action, AuditEntry};
use curfew_core::config::Config;
use curfew_core::operation::{Operation, Request, State};
use curfew_core::{Clock, Timestamp};
use curfew_nomad::Nomad;
use curfew_store::StepResult;
use serde_json::Value;

use crate::keeper::Keeper;

/// What a step works with.
#[derive(Clone)]
pub struct Tools {
    pub nomad: Nomad,
    pub keeper: Keeper,
    pub clock: Arc<dyn Clock>,
    pub config: Arc<Config>,
    /// `host:pid`, for the audit trail.
    pub actor: String,
}

/// What a step did: the row's next state and the rows of the trail that belong to it.
pub struct Done {
    pub result: StepResult,
    pub audit: Vec<AuditEntry>,
}

impl Tools {
    pub async fn step(&self, op: &Operation) -> Done {
        match &op.request {
            Request::Submit { target, spec, base_index } => self.submit(op, target, spec, *base_index).await,
            Request::Stop { target, demands } => self.stop(op, target, demands).await,
        }
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
        let wait = self.config.kind(op.kind()).backoff.wait(attempts, 1.0);
        let mut progress = op.progress.clone();
        progress.unknown |= unknown;
        let audit =
            vec![self.entry(op, Action::Retrying, serde_json::json!({ "attempt": attempts, "error": why, "unknown": unknown }))];
        let run_at = self.clock.now() + wait;
        Done { result: StepResult { progress, attempts, ..self.waiting(op, run_at, format!("Nomad: {why}")) }, audit }
    }

    fn failed(&self, op: &Operation, why: String) -> Done {
        let audit = vec![self.entry(op, Action::Failed, serde_json::json!({ "error": why }))];
        Done { result: StepResult { error: Some(why), ..self.result(op, State::Failed) }, audit }
    }
}
