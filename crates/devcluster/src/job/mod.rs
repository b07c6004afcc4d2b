//! Jobs: the JSON that was registered (the truth, unknown fields included) and the digest the cluster works with.

pub(crate) mod canonical;
pub(crate) mod diff;
pub(crate) mod hcl;
pub(crate) mod skeleton;
pub(crate) mod spec;
pub(crate) mod validate;

use std::sync::Arc;

use serde_json::{Map, Value, json};

pub(crate) use spec::{GroupSpec, Hook, JobKind, JobSpec, RestartPolicy, TaskSpec, Template};

/// Namespace and id.
pub(crate) type JobKey = (String, String);

/// One version of a job as the server keeps it.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub spec: Arc<JobSpec>,
    /// The registered JSON in the server's form; the fields below win over what it says.
    pub value: Arc<Value>,
    pub version: u64,
    pub stop: bool,
    pub stable: bool,
    pub status: &'static str,
    pub create_index: u64,
    pub modify_index: u64,
    pub job_modify_index: u64,
    pub submit_time: i64,
}

impl Job {
    pub(crate) fn key(&self) -> JobKey {
        (self.spec.namespace.clone(), self.spec.id.clone())
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut map: Map<String, Value> = match self.value.as_ref() {
            Value::Object(m) => m.clone(),
            _ => Map::new(),
        };
        for (key, value) in [
            ("Version", json!(self.version)),
            ("Stop", json!(self.stop)),
            ("Stable", json!(self.stable)),
            ("Status", json!(self.status)),
            ("CreateIndex", json!(self.create_index)),
            ("ModifyIndex", json!(self.modify_index)),
            ("JobModifyIndex", json!(self.job_modify_index)),
            ("SubmitTime", json!(self.submit_time)),
        ] {
            map.insert(key.into(), value);
        }
        Value::Object(map)
    }
}
