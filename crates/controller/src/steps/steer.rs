//! Promote or fail a deployment because somebody asked for it.
//!
//! ```text
//!  queued ──▶ PUT promote │ fail ──▶ 200: succeeded
//!                           ├▶ refused in Nomad's words: failed
//!                           └▶ no answer: unknown ──▶ read the deployment: it is so already ──▶ succeeded
//!                                                                          └▶ PUT again
//! ```

use curfew_core::JobKey;
use curfew_core::audit::Action;
use curfew_core::deployment::{Deployment, DeploymentStatus};
use curfew_core::operation::{Operation, State, Steer};
use serde_json::{Value, json};

use super::{Done, Stopping, Tools};
use crate::error::chain;

impl Tools {
    pub(super) async fn steer(&self, op: &Operation, target: &JobKey, id: &str, steer: Steer) -> Result<Done, Stopping> {
        if op.progress.unknown {
            match self.read(self.nomad.deployment(id)).await? {
                Ok(Some(d)) if is_so(&d, steer) => return Ok(self.steered(op, target, id, steer)),
                Ok(Some(_)) => {}
                Ok(None) => return Ok(self.failed(op, format!("deployment {id} of {target} is gone from Nomad"))),
                Err(e) => return Ok(self.retry(op, chain(&e), true)),
            }
        }
        if op.cancel.is_some() {
            return Ok(self.cancelled(op, None));
        }
        let answer = match steer {
            Steer::Promote => self.change(self.nomad.promote_deployment(id)).await?,
            Steer::Fail => self.change(self.nomad.fail_deployment(id)).await?,
        };
        Ok(match answer {
            Ok(()) => self.steered(op, target, id, steer),
            Err(e) if e.outcome_unknown() => self.retry(op, chain(&e), true),
            Err(e) if e.is_transient() => self.retry(op, chain(&e), false),
            Err(e) => self.failed(op, chain(&e)),
        })
    }

    fn steered(&self, op: &Operation, target: &JobKey, id: &str, steer: Steer) -> Done {
        let action = match steer {
            Steer::Promote => Action::DeploymentPromoted,
            Steer::Fail => Action::DeploymentFailed,
        };
        let detail = json!({ "deployment": id, "job": target.job, "namespace": target.namespace });
        let audit = vec![self.entry(op, action, detail), self.entry(op, Action::Succeeded, Value::Null)];
        Done { result: self.settled(op, State::Succeeded), audit }
    }
}

fn is_so(d: &Deployment, steer: Steer) -> bool {
    match steer {
        Steer::Promote => d.groups.values().all(|g| g.canaries == 0 || g.promoted),
        Steer::Fail => d.status == DeploymentStatus::Failed,
    }
}
