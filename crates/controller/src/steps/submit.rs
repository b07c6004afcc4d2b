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
use curfew_core::audit::Action;
use curfew_core::operation::{Operation, Outcome, Registered, State};
use curfew_core::spec::META_OPERATION;
use curfew_nomad::{Error, Registration};
use curfew_store::StepResult;
use serde_json::{Value, json};

use super::{Done, Stopping, Tools};
use crate::error::chain;

impl Tools {
    pub(super) async fn submit(&self, op: &Operation, target: &JobKey, spec: &Value, base_index: u64) -> Result<Done, Stopping> {
        let mut enforce = None;
        if op.progress.unknown {
            match self.read(self.landed(op, target, spec, base_index)).await? {
                Ok(Landed::Yes(index)) if op.cancel.is_some() => {
                    let warning = format!("job {target} was registered already (index {index}); to end it: curfew job stop");
                    return Ok(self.cancelled(op, Some(warning)));
                }
                Ok(Landed::Yes(index)) => {
                    let found = Registration { eval: None, job_modify_index: index, index, warnings: String::new() };
                    return Ok(self.registered(op, found));
                }
                Ok(Landed::No) => enforce = Some(base_index),
                Ok(Landed::Overtaken(index)) => {
                    return Ok(self.failed(
                        op,
                        format!("the answer to the registration was lost, and job {target} was changed by somebody else since (index {index}); theirs was left alone"),
                    ));
                }
                Err(e) if e.is_transient() => return Ok(self.retry(op, chain(&e), false)),
                Err(e) => return Ok(self.failed(op, chain(&e))),
            }
        }
        if op.cancel.is_some() {
            return Ok(self.cancelled(op, None));
        }
        let answer = self.change(self.nomad.register(target, spec, enforce)).await?;
        Ok(match answer {
            Ok(r) => self.registered(op, r),
            Err(e) if e.outcome_unknown() => self.retry(op, chain(&e), true),
            Err(e) if e.is_transient() => self.retry(op, chain(&e), false),
            Err(e) => self.failed(op, chain(&e)),
        })
    }

    async fn landed(&self, op: &Operation, target: &JobKey, spec: &Value, base_index: u64) -> Result<Landed, Error> {
        let Some(job) = self.nomad.job(target).await? else { return Ok(Landed::No) };
        let index = job["JobModifyIndex"].as_u64().unwrap_or(0);
        if index == base_index {
            return Ok(Landed::No);
        }
        if job["Stop"] != true {
            if job["Meta"][META_OPERATION] == op.id.to_string() {
                return Ok(Landed::Yes(index));
            }
            // An update keeps the first operation's id; what Nomad would change tells whether it was ours.
            let plan = self.nomad.plan_job(target, spec, true).await?;
            if plan["Diff"]["Type"] == "None" {
                return Ok(Landed::Yes(index));
            }
        }
        Ok(Landed::Overtaken(index))
    }

    fn registered(&self, op: &Operation, r: Registration) -> Done {
        let registered =
            Registered { eval: r.eval, job_modify_index: r.job_modify_index, warnings: r.warnings.trim().to_owned() };
        let detail = json!({ "job_modify_index": registered.job_modify_index, "eval": registered.eval });
        let audit = vec![self.entry(op, Action::JobRegistered, detail), self.entry(op, Action::Succeeded, Value::Null)];
        let mut result = StepResult {
            outcome: Some(Outcome { registered: Some(registered), ..Outcome::default() }),
            ..self.result(op, State::Succeeded)
        };
        result.progress.unknown = false;
        Done { result, audit }
    }
}

enum Landed {
    Yes(u64),
    No,
    Overtaken(u64),
}
