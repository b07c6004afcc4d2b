//! Rollout: register a job, then look at what becomes of it until that has an end.
//!
//! ```text
//!  queued ──▶ PUT job (as a submit does) ──▶ look ──▶ waiting ─┐ every second; slowly while it waits for a person
//!                                             ▲  └─────────────┘
//!                                             └─▶ deployed: succeeded │ reverted, failed, stalled, superseded: failed
//! ```
//!
//! It changes nothing but by its registration: Nomad rolls, the keeper's clocks end the old version's tasks, and the deployments' watch
//! fails what passes its author's deadline. Everything is read anew at each look, so a restart costs nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use curfew_core::JobKey;
use curfew_core::audit::Action;
use curfew_core::deployment::DeploymentStatus;
use curfew_core::operation::{Operation, Outcome, Registered, Registering, State};
use curfew_core::rollout::{End, RolloutView, Seen, Unplaced, Verdict, Version, follow};
use curfew_nomad::{Error, EvalState, EvalStatus};
use curfew_store::StepResult;
use serde_json::json;

use super::{Done, Stopping, Tools, submit};
use crate::error::chain;
use crate::observer::finished;

const LOOK: Duration = Duration::from_secs(1);
/// While only a person can go on.
const LOOK_SLOWLY: Duration = Duration::from_secs(5);

impl Tools {
    pub(super) async fn rollout(&self, op: &Operation, target: &JobKey, what: &Registering) -> Result<Done, Stopping> {
        let Some(registered) = op.outcome.as_ref().and_then(|o| o.registered.clone()) else {
            return Ok(match self.register(op, target, what).await? {
                Ok(registered) => {
                    let audit = vec![self.job_registered(op, &registered)];
                    let mut result = self.waiting(op, self.clock.now(), "Nomad to show the registration".into());
                    result.progress.unknown = false;
                    Done { result: StepResult { outcome: submit::outcome(registered), ..result }, audit }
                }
                Err(done) => *done,
            });
        };
        if op.cancel.is_some() {
            let warning = format!("it is no longer followed; {target} was registered and Nomad goes on with it");
            return Ok(self.cancelled(op, Some(warning)));
        }
        let seen = match self.read(self.seen(op, target, &registered, what.base_index)).await? {
            Ok(seen) => seen,
            // What was registered goes on; a token can be mended.
            Err(e) => return Ok(self.retry(op, chain(&e), false)),
        };
        let before = op.outcome.as_ref().and_then(|o| o.rollout.clone()).unwrap_or_default();
        let now = self.clock.now();
        let (view, verdict) = follow(&before, &seen, &self.config.graces(), now);
        Ok(match verdict {
            Verdict::Wait { waiting_for, deadline } => {
                let people = view.deployments.last().is_some_and(|d| d.status == DeploymentStatus::Paused)
                    || seen
                        .deployments
                        .iter()
                        .any(|d| d.status == DeploymentStatus::Running && d.groups.values().any(|g| g.waits_for_promotion()));
                let run_at = now + if people { LOOK_SLOWLY } else { LOOK };
                let result = self.waiting(op, run_at, waiting_for);
                Done { result: StepResult { deadline, outcome: outcome(registered, view), ..result }, audit: vec![] }
            }
            Verdict::End(end, why) => self.rollout_ended(op, registered, view, end, why),
        })
    }

    /// In this order, see [`Seen`].
    async fn seen(&self, op: &Operation, target: &JobKey, registered: &Registered, base: u64) -> Result<Seen, Error> {
        let evals = self.nomad.job_evaluations(target).await?;
        let deployments = self.nomad.job_deployments(target).await?;
        let versions = self.nomad.job_versions(target).await?.unwrap_or_default();
        let allocations = self.nomad.placed(target).await?;
        Ok(Seen {
            began: op.requested_at,
            registered: registered.job_modify_index,
            base,
            // One that waits for room is told of by `unplaced`.
            evaluating: evals.iter().any(|e| !finished(&e.state) && e.state != EvalState::Blocked),
            unplaced: unplaced(&evals),
            deployments,
            versions: versions.iter().map(Version::from_json).collect(),
            allocations,
        })
    }

    fn rollout_ended(&self, op: &Operation, registered: Registered, view: RolloutView, end: End, why: String) -> Done {
        let detail = json!({ "end": end, "version": view.version, "reverted_to": view.reverted_to, "why": why });
        let (state, action) = match end {
            End::Deployed => (State::Succeeded, Action::Succeeded),
            _ => (State::Failed, Action::Failed),
        };
        let audit = vec![self.entry(op, Action::RolloutEnded, detail), self.entry(op, action, json!({}))];
        let error = (end != End::Deployed).then_some(why);
        Done { result: StepResult { outcome: outcome(registered, view), error, ..self.result(op, state) }, audit }
    }
}

fn outcome(registered: Registered, view: RolloutView) -> Option<Outcome> {
    Some(Outcome { registered: Some(registered), rollout: Some(view), ..Outcome::default() })
}

/// From the evaluation that waits for room, which tells it itself or by the one that made it.
fn unplaced(evals: &[EvalStatus]) -> BTreeMap<String, Unplaced> {
    let blocked = evals.iter().filter(|e| e.state == EvalState::Blocked);
    let told = |e: &EvalStatus| -> BTreeMap<String, Unplaced> {
        let maker = || evals.iter().find(|m| m.blocked_eval.as_ref() == Some(&e.id)).map(|m| m.failed_groups.clone());
        if e.failed_groups.is_empty() { maker().unwrap_or_default() } else { e.failed_groups.clone() }
    };
    blocked.flat_map(told).collect()
}
