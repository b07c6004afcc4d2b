//! Allocations with a task that was told to end: where their specifications and the requests about them come from.

use std::collections::HashMap;
use std::sync::Arc;

use curfew_core::gc::{Knowledge, PastClock, may_be_told, past_clock};
use curfew_core::spec::JobSpec;
use curfew_core::{Allocation, Desired, JobKey, NodeId, Timestamp};
use curfew_nomad::{NodeStatus, NodeStub};
use serde_json::{Value, json};

use crate::{Error, Gc};

/// Entries of each; then it is emptied. What is needed again is read again.
const KEPT: usize = 4096;

/// What one pass has read already.
#[derive(Default)]
pub(crate) struct Read {
    specs: HashMap<(JobKey, u64), Arc<JobSpec>>,
    known: HashMap<JobKey, Knowledge>,
}

pub(crate) type Nodes = HashMap<NodeId, NodeStub>;

impl Gc {
    /// What of an allocation, as a list shows it, lives past its clock.
    pub(crate) async fn past_of(
        &self,
        alloc: &Allocation,
        nodes: &Nodes,
        read: &mut Read,
        now: Timestamp,
    ) -> Result<Vec<PastClock>, Error> {
        if !may_be_told(alloc) {
            return Ok(vec![]);
        }
        let Some(spec) = self.spec_of(alloc, read).await? else { return Ok(vec![]) };
        if !spec.managed {
            return Ok(vec![]);
        }
        let key = alloc.job_key();
        let known = match read.known.get(&key) {
            Some(known) => known.clone(),
            None => {
                let known = self.about(alloc).await?;
                if read.known.len() >= KEPT {
                    read.known.clear();
                }
                read.known.insert(key, known.clone());
                known
            }
        };
        Ok(self.judge(alloc, &spec, &known, nodes.get(&alloc.node), now))
    }

    /// Whatever its job's requests say of it. A stop is the only one that says anything.
    pub(crate) async fn about(&self, alloc: &Allocation) -> Result<Knowledge, Error> {
        self.known.about(&alloc.job_key()).await
    }

    pub(crate) fn judge(
        &self,
        alloc: &Allocation,
        spec: &JobSpec,
        known: &Knowledge,
        node: Option<&NodeStub>,
        now: Timestamp,
    ) -> Vec<PastClock> {
        let heard = node.is_some_and(|n| n.status == NodeStatus::Ready);
        let drain = node.and_then(|n| n.last_drain.as_ref()).and_then(|d| d.curfew.as_ref());
        past_clock(alloc, spec, known, drain, heard, &self.settings, now)
    }

    async fn spec_of(&self, alloc: &Allocation, read: &mut Read) -> Result<Option<Arc<JobSpec>>, Error> {
        let key = alloc.job_version.map(|v| (alloc.job_key(), v));
        if let Some(spec) = key.as_ref().and_then(|k| read.specs.get(k)) {
            return Ok(Some(spec.clone()));
        }
        // Gone between the list and this: nothing of it is left over.
        let Some((_, spec)) = self.nomad.allocation(&alloc.id).await? else { return Ok(None) };
        let spec = Arc::new(spec.ok_or_else(|| Error::Unreadable(format!("allocation {} came without its job", alloc.id)))?);
        if let Some(key) = key {
            if read.specs.len() >= KEPT {
                read.specs.clear();
            }
            read.specs.insert(key, spec.clone());
        }
        Ok(Some(spec))
    }
}

pub(crate) fn evidence(alloc: &Allocation, past: &PastClock) -> Value {
    let task = alloc.tasks.get(past.task());
    json!({
        "cause": past.cause(),
        "told_at": past.start(),
        "clock": past.clock(),
        "left_alone_until": past.due,
        "operation": past.operation,
        "started_at": task.and_then(|t| t.started_at),
        "desired": match alloc.desired { Desired::Run => "run", Desired::Stop => "stop", Desired::Evict => "evict" },
        "client_status": alloc.client_status,
        "modified_at": alloc.modified_at,
    })
}
