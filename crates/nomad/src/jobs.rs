//! Jobs: parse, plan, register, read, delete. A job stays JSON on its way, so that no field is lost.

use curfew_core::alloc::Placed;
use curfew_core::gc::PurgeOrder;
use curfew_core::{Allocation, EvalId, JobKey, Namespace};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::{Call, Nomad, found};
use crate::error::Error;
use crate::route::Route;
use crate::wire::{self, BadAllocation};

/// Nomad's answer to a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// `None` for periodic and parameterized jobs, which are evaluated when they are launched.
    pub eval: Option<EvalId>,
    pub job_modify_index: u64,
    pub index: u64,
    /// Nomad's own warnings; empty when there are none.
    pub warnings: String,
}

/// Nomad's answer to a DELETE. It says nothing about the allocations: they hear of it later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deregistration {
    /// `None` when there was no such job (200 all the same, design fact 10), or when it is periodic or parameterized.
    pub eval: Option<EvalId>,
    pub index: u64,
    pub job_modify_index: u64,
}

/// Nomad's answer to a validation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validation {
    pub errors: Vec<String>,
    pub warnings: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct JobAnswer {
    #[serde(rename = "EvalID")]
    eval_id: String,
    job_modify_index: u64,
    index: u64,
    warnings: Option<String>,
}

impl JobAnswer {
    fn eval(&self) -> Option<EvalId> {
        (!self.eval_id.is_empty()).then(|| self.eval_id.as_str().into())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Versions {
    versions: Option<Vec<Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ValidationAnswer {
    validation_errors: Option<Vec<String>>,
    #[serde(default)]
    error: String,
    #[serde(default)]
    warnings: String,
}

const NO_JOB: &[&str] = &["job not found"];

impl Nomad {
    /// HCL to JSON by Nomad's own parser, not canonicalized: an absent `kill_timeout` stays null.
    /// A syntax error is [`Error::Refused`] with status 400 and the file, line and column in Nomad's words.
    pub async fn parse_hcl(&self, text: &str) -> Result<Value, Error> {
        let body = json!({ "JobHCL": text, "Canonicalize": false });
        // The namespace for which Nomad checks the token's right to parse.
        let answer = self.send(Call::new(Route::ParseJob, &[]).namespace(&self.config().namespace).json(&body)).await?;
        answer.json()
    }

    /// Registers a job. `enforce` is the JobModifyIndex it must have at the moment, 0 for "must not exist"; anything else
    /// is [`Error::Conflict`]. The namespace is the key's: a query's namespace takes precedence over the job's own in Nomad.
    pub async fn register(&self, key: &JobKey, job: &Value, enforce: Option<u64>) -> Result<Registration, Error> {
        let mut body = json!({ "Job": job });
        if let Some(index) = enforce {
            body["EnforceIndex"] = true.into();
            body["JobModifyIndex"] = index.into();
        }
        let answer = self.send(Call::new(Route::RegisterJob, &[]).namespace(&key.namespace).json(&body)).await?;
        let a: JobAnswer = answer.json()?;
        let eval = a.eval();
        Ok(Registration { eval, job_modify_index: a.job_modify_index, index: a.index, warnings: a.warnings.unwrap_or_default() })
    }

    /// A dry run of a registration: Nomad's annotations, failed placements, warnings, and the difference when asked for.
    pub async fn plan_job(&self, key: &JobKey, job: &Value, diff: bool) -> Result<Value, Error> {
        let body = json!({ "Job": job, "Diff": diff });
        let call = Call::new(Route::PlanJob, &[key.job.as_str()]).namespace(&key.namespace).json(&body);
        self.send(call).await?.json()
    }

    pub async fn validate(&self, namespace: &Namespace, job: &Value) -> Result<Validation, Error> {
        let body = json!({ "Job": job });
        let answer = self.send(Call::new(Route::ValidateJob, &[]).namespace(namespace).json(&body)).await?;
        let a: ValidationAnswer = answer.json()?;
        let mut errors = a.validation_errors.unwrap_or_default();
        if errors.is_empty() && !a.error.is_empty() {
            errors.push(a.error.trim().to_owned());
        }
        Ok(Validation { errors, warnings: a.warnings })
    }

    /// The job as Nomad holds it, stopped ones included. `None` only when Nomad says so in its own words.
    pub async fn job(&self, key: &JobKey) -> Result<Option<Value>, Error> {
        let call = Call::new(Route::Job, &[key.job.as_str()]).namespace(&key.namespace);
        let Some(answer) = found(self.send(call).await, NO_JOB)? else { return Ok(None) };
        let job: Value = answer.json()?;
        // Nomad finds sub-resources by the unescaped path's suffix: a job id that ends in `/allocations` reaches another one.
        if job["ID"] != key.job.as_str() {
            return Err(answer.unlike_nomad("it sent something else than the job"));
        }
        Ok(Some(job))
    }

    /// Newest first, as many as Nomad keeps.
    pub async fn job_versions(&self, key: &JobKey) -> Result<Option<Vec<Value>>, Error> {
        let call = Call::new(Route::JobVersions, &[key.job.as_str()]).namespace(&key.namespace);
        let Some(answer) = found(self.send(call).await, &["job not found", "job versions not found"])? else { return Ok(None) };
        let v: Versions = answer.json()?;
        Ok(v.versions)
    }

    /// Stops a job; it is not purged. Safe to repeat (design fact 10).
    pub async fn delete_job(&self, key: &JobKey, no_shutdown_delay: bool) -> Result<Deregistration, Error> {
        let mut call = Call::new(Route::DeleteJob, &[key.job.as_str()]).namespace(&key.namespace);
        if no_shutdown_delay {
            call = call.query("no_shutdown_delay", "true");
        }
        let a: JobAnswer = self.send(call).await?.json()?;
        Ok(Deregistration { eval: a.eval(), index: a.index, job_modify_index: a.job_modify_index })
    }

    /// The one call that purges a job. Nomad's call takes no condition: whoever makes it has read the job just before.
    pub async fn purge_job(&self, order: &PurgeOrder) -> Result<(), Error> {
        let key = order.key();
        let call = Call::new(Route::DeleteJob, &[key.job.as_str()]).namespace(&key.namespace).query("purge", "true");
        self.send(call).await?.json::<JobAnswer>().map(|_| ())
    }

    /// Every allocation Nomad knows of this job, also those of an earlier job with the same id. An unknown job has none.
    pub async fn job_allocations(&self, key: &JobKey) -> Result<(Vec<Allocation>, Vec<BadAllocation>), Error> {
        let call = Call::new(Route::JobAllocations, &[key.job.as_str()]).namespace(&key.namespace).query("all", "true");
        let answer = self.send(call).await?;
        wire::allocations(&answer.body).map_err(|why| answer.unlike_nomad(&why))
    }

    /// The allocations of the job as it was created last, with what a rollout needs.
    pub async fn placed(&self, key: &JobKey) -> Result<Vec<Placed>, Error> {
        let call = Call::new(Route::JobAllocations, &[key.job.as_str()]).namespace(&key.namespace);
        let answer = self.send(call).await?;
        wire::placed(&answer.body).map_err(|why| answer.unlike_nomad(&why))
    }
}
