//! Submit: register the job once.
//!
//! ```text
//! PUT /v1/jobs ──▶ 200: succeeded
//!               ├▶ refused in Nomad's words: failed
//!               └▶ no answer: unknown ──▶ plan: Nomad has it ─────────────▶ succeeded
//!                                          ├▶ unchanged since the request ─▶ PUT again, only onto that index
//!                                          └▶ changed by somebody else ────▶ failed; theirs stays
//! ```
//!
//! Cancelled before Nomad took it, nothing is registered; after that the end says that it was.

use curfew_core::JobKey;
use curfew_core::audit::{Action, AuditEntry};
use curfew_core::operation::{Operation, Outcome, Registered, Registering, State};
use curfew_core::spec::META_OPERATION;
use curfew_nomad::Error;
use curfew_store::StepResult;
use serde_json::{Value, json};

use super::{Done, Stopping, Tools};
use crate::error::chain;

impl Tools {
    pub(super) async fn submit(&self, op: &Operation, target: &JobKey, what: &Registering) -> Result<Done, Stopping> {
        Ok(match self.register(op, target, what).await? {
            Ok(registered) => {
                let audit = vec![self.job_registered(op, &registered), self.entry(op, Action::Succeeded, Value::Null)];
                Done { result: StepResult { outcome: outcome(registered), ..self.settled(op, State::Succeeded) }, audit }
            }
            Err(done) => *done,
        })
    }

    /// What Nomad answered, or what else the step comes to.
    pub(super) async fn register(
        &self,
        op: &Operation,
        target: &JobKey,
        what: &Registering,
    ) -> Result<Result<Registered, Box<Done>>, Stopping> {
        let done = |done: Done| Ok(Err(Box::new(done)));
        let mut enforce = what.only_onto_base.then_some(what.base_index);
        if op.progress.unknown {
            match self.read(self.landed(op, target, what)).await? {
                Ok(Landed::Yes(index)) if op.cancel.is_some() => {
                    let warning = format!("job {target} was registered already (index {index}); to end it: curfew job stop");
                    return done(self.cancelled(op, Some(warning)));
                }
                Ok(Landed::Yes(index)) => {
                    return Ok(Ok(Registered { eval: None, job_modify_index: index, warnings: String::new() }));
                }
                Ok(Landed::No) => enforce = Some(what.base_index),
                Ok(Landed::Overtaken(index)) => {
                    return done(self.failed(
                        op,
                        format!("the answer to the registration was lost, and job {target} was changed by somebody else since (index {index}); theirs was left alone"),
                    ));
                }
                Err(e) if e.is_transient() => return done(self.retry(op, chain(&e), false)),
                Err(e) => return done(self.failed(op, chain(&e))),
            }
        }
        if op.cancel.is_some() {
            return done(self.cancelled(op, None));
        }
        match self.change(self.nomad.register(target, &what.spec, enforce)).await? {
            Ok(r) => {
                let warnings = r.warnings.trim().to_owned();
                Ok(Ok(Registered { eval: r.eval, job_modify_index: r.job_modify_index, warnings }))
            }
            Err(e) if e.outcome_unknown() => done(self.retry(op, chain(&e), true)),
            Err(e) if e.is_transient() => done(self.retry(op, chain(&e), false)),
            Err(e) => done(self.failed(op, chain(&e))),
        }
    }

    pub(super) fn job_registered(&self, op: &Operation, r: &Registered) -> AuditEntry {
        self.entry(op, Action::JobRegistered, json!({ "job_modify_index": r.job_modify_index, "eval": r.eval }))
    }

    /// Nothing that was asked of Nomad is unknown.
    pub(super) fn settled(&self, op: &Operation, state: State) -> StepResult {
        let mut result = self.result(op, state);
        result.progress.unknown = false;
        result
    }

    async fn landed(&self, op: &Operation, target: &JobKey, what: &Registering) -> Result<Landed, Error> {
        let Some(job) = self.nomad.job(target).await? else { return Ok(Landed::No) };
        let index = job["JobModifyIndex"].as_u64().unwrap_or(0);
        if index == what.base_index {
            return Ok(Landed::No);
        }
        if job["Stop"] != true {
            if job["Meta"][META_OPERATION] == op.id.to_string() {
                return Ok(Landed::Yes(index));
            }
            // An update keeps the first operation's id; what Nomad would change tells whether it was ours.
            let plan = self.nomad.plan_job(target, &what.spec, true).await?;
            if plan["Diff"]["Type"] == "None" {
                return Ok(Landed::Yes(index));
            }
        }
        Ok(Landed::Overtaken(index))
    }
}

pub(super) fn outcome(registered: Registered) -> Option<Outcome> {
    Some(Outcome { registered: Some(registered), ..Outcome::default() })
}

enum Landed {
    Yes(u64),
    No,
    Overtaken(u64),
}
