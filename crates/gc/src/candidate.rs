//! One thing that is left over: what, why, what may be done about it, what came of it.

use curfew_core::gc::Verdict;
use curfew_core::{AllocId, JobId, JobKey, Namespace, NodeId, OpId, TaskName};
use serde::Serialize;
use serde_json::Value;

/// What it is about, as far as each applies.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Subject {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alloc: Option<AllocId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<OpId>,
}

impl Subject {
    pub(crate) fn job(key: &JobKey) -> Self {
        Self { namespace: Some(key.namespace.clone()), job: Some(key.job.clone()), ..Self::default() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Only reported: by its mode, or because nothing can or may be done.
    Reported,
    /// Would be acted on.
    WouldAct,
    /// More of them than the cap: none was touched.
    Capped,
    Done,
    /// Not the same any more when it was read again; left alone.
    Changed,
    /// Acted on, and still there.
    Left,
    Failed,
}

/// What is to be done about it: only the name of the thing. By what right is found out again when it is done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Act {
    Kill { alloc: AllocId, task: TaskName },
    Stop { job: JobKey, job_modify_index: u64 },
    Purge { job: JobKey, job_modify_index: u64 },
    Release(OpId),
    MakeEligible(NodeId),
}

#[derive(Clone, Debug, Serialize)]
pub struct Candidate {
    pub verdict: Verdict,
    #[serde(flatten)]
    pub subject: Subject,
    /// In a sentence.
    pub why: String,
    /// What was seen.
    pub evidence: Value,
    pub outcome: Outcome,
    /// What came of it, where there is more to say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub said: String,
    #[serde(skip)]
    pub(crate) act: Option<Act>,
}

impl Candidate {
    /// Whether anything can be done about it, when its verdict's mode says so.
    pub fn can_be_acted_on(&self) -> bool {
        self.act.is_some()
    }
}
