//! What can be learned of operations: from the database beside it, from a controller, or not at all.

use std::sync::Arc;

use curfew_client::{Client, OperationView, StopRequest, Who};
use curfew_core::audit::{Action, AuditEntry};
use curfew_core::gc::{Knowledge, LiveStop, Settings};
use curfew_core::operation::{By, Intervention, Kind, Operation, State};
use curfew_core::{JobKey, OpId, Timestamp};
use curfew_store::{AuditFilter, Held, OperationFilter, Pruned, Store, StoreError};

use crate::Error;

#[derive(Clone)]
pub enum Known {
    Nothing,
    Database(Arc<dyn Store>),
    Controller(Client),
}

const LIVE: [State; 4] = [State::Queued, State::Running, State::Waiting, State::Paused];

impl Known {
    pub fn is_nothing(&self) -> bool {
        matches!(self, Known::Nothing)
    }

    /// The live stop of a job, with its demands where they can be had.
    pub(crate) async fn about(&self, job: &JobKey) -> Result<Knowledge, Error> {
        let stop = match self {
            Known::Nothing => return Ok(Knowledge::Nothing),
            Known::Database(store) => {
                let filter = OperationFilter {
                    kinds: vec![Kind::Stop],
                    states: LIVE.into(),
                    target: Some(job.clone().into()),
                    limit: 1,
                    ..OperationFilter::default()
                };
                store.operations(filter).await?.into_iter().next().map(of_row)
            }
            Known::Controller(client) => {
                // At most one stop of a job is live, and it is among the newest.
                let query = [
                    ("kind", Kind::Stop.as_str().to_owned()),
                    ("job", job.job.to_string()),
                    ("namespace", job.namespace.to_string()),
                ];
                let found = client.operations(&query, 10).await?;
                found.into_iter().find(|op| !op.state.is_finished()).map(of_view)
            }
        };
        Ok(stop.map_or(Knowledge::Uncovered, Knowledge::Stop))
    }

    /// The state of an operation; `None` when there is no such operation, or nobody to ask.
    pub(crate) async fn state(&self, id: OpId) -> Result<Option<State>, Error> {
        match self {
            Known::Nothing => Ok(None),
            Known::Database(store) => Ok(store.operation(id).await?.map(|op| op.state)),
            Known::Controller(client) => match client.operation(id).await {
                Ok(op) => Ok(Some(op.state)),
                Err(curfew_client::Error::Refused(p)) if p.status == 404 => Ok(None),
                Err(e) => Err(e.into()),
            },
        }
    }

    /// The oldest thing that the database still knows. `None` when it is empty, or nobody is asked: it remembers nothing.
    pub(crate) async fn remembers_since(&self, settings: &Settings, now: Timestamp) -> Result<Option<Timestamp>, Error> {
        let oldest = match self {
            Known::Nothing => None,
            Known::Database(store) => {
                let first = store.audit(AuditFilter { limit: 1, ..AuditFilter::default() }).await?;
                first.first().map(|row| row.entry.at)
            }
            Known::Controller(client) => {
                let first = client.audit(&[("limit", "1".to_owned())]).await?;
                first.first().map(|row| row.entry.at)
            }
        };
        Ok(oldest.map(|at| at.max(now - settings.retention_operations)))
    }

    /// Writes what is done into the audit trail, where there is one. A stop through a controller is in its own.
    pub(crate) async fn audit(&self, entry: AuditEntry) -> Result<(), Error> {
        match self {
            Known::Database(store) => Ok(store.append_audit(vec![entry]).await?),
            Known::Nothing | Known::Controller(_) => Ok(()),
        }
    }

    /// Asks the controller to stop a job; `None` when there is none to ask.
    pub(crate) async fn stop(&self, job: &JobKey, who: &str, why: &str) -> Option<Result<OpId, Error>> {
        let Known::Controller(client) = self else { return None };
        let who = Who { actor: Some(format!("gc {who}")), reason: Some(why.to_owned()) };
        let request = StopRequest { namespace: Some(job.namespace.clone()), who, ..StopRequest::default() };
        Some(client.stop(job.job.as_str(), &request, None).await.map(|op| op.id).map_err(Error::from))
    }

    /// Running operations whose lease ran out a while ago: their worker is gone and nobody has taken them over. A controller
    /// that answers sees to its own.
    pub(crate) async fn expired_leases(&self, before: Timestamp) -> Result<Vec<Held>, Error> {
        let Known::Database(store) = self else { return Ok(vec![]) };
        let running = store.queue_status().await?.running;
        Ok(running.into_iter().filter(|held| expired(held, before)).collect())
    }

    /// Takes such a lease away. `false` when it is held again, or the operation has ended.
    pub(crate) async fn release(&self, id: OpId, before: Timestamp, by: By) -> Result<bool, Error> {
        let Known::Database(store) = self else { return Ok(false) };
        if !self.expired_leases(before).await?.iter().any(|held| held.id == id) {
            return Ok(false);
        }
        match store.intervene(id, Intervention::Release, by).await {
            Ok(_) => Ok(true),
            Err(StoreError::Refused { .. } | StoreError::NoSuchOperation(_)) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Who paused the kill clocks. Nobody sends SIGKILL then, a gc no more than a controller.
    pub(crate) async fn kill_paused(&self) -> Result<Option<By>, Error> {
        Ok(match self {
            Known::Nothing => None,
            Known::Database(store) => {
                store.kinds().await?.into_iter().find(|row| row.kind == Kind::Kill).and_then(|row| row.pause)
            }
            Known::Controller(client) => client.kinds().await?.into_iter().find(|k| k.kind == Kind::Kill).and_then(|k| k.pause),
        })
    }

    /// Removes what is past its retention, a batch at a time; `None` when it is not this gc's to do.
    pub(crate) async fn prune(&self, settings: &Settings, now: Timestamp) -> Result<Option<Pruned>, Error> {
        const BATCH: usize = 1000;
        const BATCHES: usize = 1000;
        let Known::Database(store) = self else { return Ok(None) };
        let mut all = Pruned::default();
        for _ in 0..BATCHES {
            let pruned = store.prune(now - settings.retention_operations, now - settings.retention_audit, BATCH).await?;
            all.operations += pruned.operations;
            all.audit += pruned.audit;
            if pruned == Pruned::default() {
                break;
            }
        }
        Ok(Some(all))
    }
}

fn expired(held: &Held, before: Timestamp) -> bool {
    held.lease.expires_at.is_some_and(|at| at < before)
}

fn of_row(op: Operation) -> LiveStop {
    LiveStop {
        operation: op.id,
        demands: op.request.demands().to_vec(),
        late: op.late(),
        delete_index: op.progress.delete_index,
        deadline: op.deadline,
    }
}

fn of_view(op: OperationView) -> LiveStop {
    LiveStop { operation: op.id, demands: vec![], late: std::time::Duration::ZERO, delete_index: None, deadline: op.deadline }
}

/// A row of the audit trail about an allocation's task, or about nothing but the gc itself.
pub(crate) fn entry(at: Timestamp, who: &str, action: Action, detail: serde_json::Value) -> AuditEntry {
    AuditEntry { at, operation: None, actor: format!("gc {who}"), action, alloc: None, task: None, detail }
}
