//! Evaluations: what became of a registration or a stop.

use std::collections::BTreeMap;

use curfew_core::rollout::Unplaced;
use curfew_core::{EvalId, JobKey};
use serde::Deserialize;

use crate::client::{Call, Nomad, found};
use crate::error::Error;
use crate::route::Route;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EvalState {
    Blocked,
    Pending,
    Complete,
    Failed,
    Canceled,
    Other(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalStatus {
    pub id: EvalId,
    pub key: JobKey,
    pub state: EvalState,
    pub description: String,
    pub triggered_by: String,
    /// Groups with allocations that found no place, and why.
    pub failed_groups: BTreeMap<String, Unplaced>,
    /// The evaluation that waits for room, when this one could not place everything.
    pub blocked_eval: Option<EvalId>,
    pub next_eval: Option<EvalId>,
    pub modify_index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct EvalWire {
    #[serde(rename = "ID")]
    id: String,
    namespace: String,
    #[serde(rename = "JobID", default)]
    job_id: String,
    status: String,
    #[serde(default)]
    status_description: String,
    #[serde(default)]
    triggered_by: String,
    #[serde(rename = "FailedTGAllocs")]
    failed_tg_allocs: Option<BTreeMap<String, MetricWire>>,
    #[serde(default)]
    blocked_eval: String,
    #[serde(default)]
    next_eval: String,
    #[serde(default)]
    modify_index: u64,
}

/// Of a group, why nothing (more) of it was placed.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct MetricWire {
    nodes_evaluated: u64,
    nodes_filtered: u64,
    nodes_exhausted: u64,
    constraint_filtered: Option<BTreeMap<String, u64>>,
    dimension_exhausted: Option<BTreeMap<String, u64>>,
    coalesced_failures: u64,
}

impl From<MetricWire> for Unplaced {
    fn from(m: MetricWire) -> Self {
        Self {
            allocations: m.coalesced_failures + 1,
            nodes: m.nodes_evaluated,
            filtered: m.nodes_filtered,
            exhausted: m.nodes_exhausted,
            constraints: m.constraint_filtered.unwrap_or_default(),
            short_of: m.dimension_exhausted.unwrap_or_default(),
        }
    }
}

impl From<EvalWire> for EvalStatus {
    fn from(w: EvalWire) -> Self {
        let id = |s: String| (!s.is_empty()).then(|| EvalId::from(s));
        let state = match w.status.as_str() {
            "blocked" => EvalState::Blocked,
            "pending" => EvalState::Pending,
            "complete" => EvalState::Complete,
            "failed" => EvalState::Failed,
            "canceled" | "cancelled" => EvalState::Canceled,
            _ => EvalState::Other(w.status),
        };
        Self {
            id: w.id.into(),
            key: JobKey::new(w.namespace, w.job_id),
            state,
            description: w.status_description,
            triggered_by: w.triggered_by,
            failed_groups: w.failed_tg_allocs.unwrap_or_default().into_iter().map(|(name, m)| (name, m.into())).collect(),
            blocked_eval: id(w.blocked_eval),
            next_eval: id(w.next_eval),
            modify_index: w.modify_index,
        }
    }
}

impl Nomad {
    pub async fn evaluation(&self, id: &EvalId) -> Result<Option<EvalStatus>, Error> {
        let call = Call::new(Route::Evaluation, &[id.as_str()]);
        let Some(answer) = found(self.send(call).await, &["eval not found"])? else { return Ok(None) };
        Ok(Some(answer.json::<EvalWire>()?.into()))
    }

    /// Those that Nomad still knows of a job, in no order.
    pub async fn job_evaluations(&self, key: &JobKey) -> Result<Vec<EvalStatus>, Error> {
        let call = Call::new(Route::JobEvaluations, &[key.job.as_str()]).namespace(&key.namespace);
        let all: Option<Vec<EvalWire>> = self.send(call).await?.json()?;
        Ok(all.unwrap_or_default().into_iter().map(EvalStatus::from).collect())
    }
}
