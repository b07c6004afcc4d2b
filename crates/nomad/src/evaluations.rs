//! Evaluations: what became of a registration or a stop.

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
    /// Groups with allocations that found no place.
    pub failed_groups: Vec<String>,
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
    failed_tg_allocs: Option<std::collections::BTreeMap<String, serde::de::IgnoredAny>>,
    #[serde(default)]
    blocked_eval: String,
    #[serde(default)]
    next_eval: String,
    #[serde(default)]
    modify_index: u64,
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
            failed_groups: w.failed_tg_allocs.unwrap_or_default().into_keys().collect(),
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
}
