//! What Nomad and the keeper show: jobs, nodes, clocks, and whether all is well.
#![expect(unused_qualifications, reason = "the macro that describes a route qualifies the types of its query")]

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use curfew_core::alloc::Placed;
use curfew_core::api::{
    AllocView, ClocksView, CrashView, JobRow, JobStatusView, NodeDrainView, NodeView, OperationView, TaskView,
};
use curfew_core::clock::ClockRecord;
use curfew_core::doctor::Report;
use curfew_core::gc::{JobStatus, JobStub};
use curfew_core::operation::{Kind, State as OpState};
use curfew_core::restarts::count;
use curfew_core::spec::{JobSpec, RestartPolicy};
use curfew_core::{EventKind, JobKey, Namespace, NodeId, OpId, Task, TaskName, Timestamp};
use curfew_nomad::JobFilter;
use curfew_store::OperationFilter;
use serde::Deserialize;
use utoipa::IntoParams;

use super::access::Caller;
use super::history::deployment;
use super::problem::Refusal;
use super::{Asked, Named, Rpc};
use crate::doctor;
use crate::keeper::{Whose, earliest};

/// Allocations of one job that are shown.
const ALLOCATIONS: usize = 100;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct JobsQuery {
    /// Only of this namespace; `*`, or absent, is all that the caller may see.
    namespace: Option<String>,
    /// Only those whose ids begin so.
    prefix: Option<String>,
    /// `true`: only those that were submitted through Curfew.
    #[serde(default)]
    managed: bool,
    /// The next page starts after this job, `NAMESPACE/ID`.
    after: Option<String>,
    /// 1000 when absent; at most 10000.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<usize>,
}

/// Jobs as Nomad lists them, by namespace and id.
#[utoipa::path(
    get, path = "/v1/jobs", tag = "jobs", params(JobsQuery),
    responses((status = 200, description = "A page of them; one that is shorter than `limit` is the last.", body = Vec<JobRow>))
)]
pub async fn jobs(State(rpc): State<Rpc>, caller: Caller, Asked(q): Asked<JobsQuery>) -> Result<Json<Vec<JobRow>>, Refusal> {
    let filter = if q.managed { JobFilter::managed() } else { JobFilter::any() };
    let limit = q.limit.unwrap_or(1000).clamp(1, 10_000);
    let after = q.after.as_deref().map(job_key).transpose()?;
    let lists = match q.namespace.map(Namespace::from).filter(|n| n.as_str() != "*") {
        Some(namespace) => {
            caller.reaches(&namespace)?;
            vec![namespace]
        }
        None if caller.is_everywhere() => vec![Namespace::from("*")],
        None => caller.namespaces(),
    };
    let mut rows = Vec::new();
    for namespace in lists {
        let mut pages = rpc.nomad.jobs(filter.clone(), namespace.as_str()).prefix(q.prefix.clone());
        pages = match &after {
            // Those of one namespace are before, or all after it.
            Some(after) if namespace.as_str() != "*" && namespace < after.namespace => continue,
            Some(after) if namespace.as_str() == "*" || namespace == after.namespace => pages.from(after).of(limit + 1),
            _ => pages.of(limit.saturating_sub(rows.len())),
        };
        while rows.len() < limit
            && let Some(page) = pages.next().await?
        {
            rows.extend(page.into_iter().filter(|j| Some(&j.key) != after.as_ref()).map(row));
        }
    }
    rows.truncate(limit);
    Ok(Json(rows))
}

/// `NAMESPACE/ID`: a namespace has no slash.
fn job_key(text: &str) -> Result<JobKey, Refusal> {
    let parts = text.split_once('/').filter(|(namespace, id)| !namespace.is_empty() && !id.is_empty());
    let (namespace, id) = parts.ok_or_else(|| Refusal::bad_request(format!("after: {text:?} is no NAMESPACE/ID of a job")))?;
    Ok(JobKey::new(namespace, id))
}

fn row(job: JobStub) -> JobRow {
    let status = match job.status {
        JobStatus::Pending => "pending",
        JobStatus::Running => "running",
        JobStatus::Dead => "dead",
    };
    JobRow {
        key: job.key,
        job_type: job.job_type,
        status: status.into(),
        stopped: job.stopped,
        managed: job.managed,
        operation: job.operation,
        parent: job.parent,
        submitted_at: job.submitted_at,
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct JobQuery {
    /// The job's; the controller's (`NOMAD_NAMESPACE`) when absent.
    pub(super) namespace: Option<Namespace>,
}

/// One job: its deployment, its allocations, the clocks of its tasks and what crashes, and what is under way for it.
#[utoipa::path(
    get, path = "/v1/jobs/{job}", tag = "jobs",
    params(("job" = String, Path, description = "The job's id, percent-encoded."), JobQuery),
    responses((status = 200, description = "The job as it is now.", body = JobStatusView))
)]
pub async fn job(
    State(rpc): State<Rpc>,
    caller: Caller,
    Named(job): Named<String>,
    Asked(q): Asked<JobQuery>,
) -> Result<Json<JobStatusView>, Refusal> {
    let namespace = rpc.namespace(q.namespace)?;
    caller.reaches(&namespace)?;
    let key = JobKey { namespace, job: job.as_str().into() };
    let gone = || Refusal::no_such_job(format!("there is no job {key} in Nomad at {}", rpc.nomad.address()));
    let stub = rpc.nomad.job_stub(&key).await?.ok_or_else(gone)?;
    let mut allocations = rpc.nomad.placed(&key).await?;
    allocations.sort_by(|a, b| (b.alloc.create_index, &b.alloc.id).cmp(&(a.alloc.create_index, &a.alloc.id)));
    allocations.truncate(ALLOCATIONS);
    let deployments = rpc.nomad.job_deployments(&key).await?;
    let versions = rpc.nomad.job_versions(&key).await?.unwrap_or_default();
    let specs: HashMap<u64, JobSpec> = versions.iter().map(JobSpec::from_json).map(|s| (s.version, s)).collect();
    let clocks = rpc.armed(Whose::Job(key.clone()), usize::MAX).await?.clocks;
    let live = |s: &OpState| !s.is_finished();
    let filter = OperationFilter {
        target: Some(key.clone().into()),
        states: OpState::ALL.into_iter().filter(live).collect(),
        ..OperationFilter::default()
    };
    let operations = rpc.store.operations(filter).await?.into_iter().map(OperationView::from).collect();
    Ok(Json(JobStatusView {
        version: versions.iter().filter_map(|v| v["Version"].as_u64()).max().unwrap_or(0),
        job_modify_index: stub.job_modify_index,
        row: row(stub),
        deployment: deployments.iter().max_by_key(|d| d.create_index).map(deployment),
        allocations: allocations
            .iter()
            .map(|p| rpc.allocation(p, p.alloc.job_version.and_then(|v| specs.get(&v)), &clocks))
            .collect(),
        operations,
    }))
}

impl Rpc {
    fn allocation(&self, p: &Placed, spec: Option<&JobSpec>, clocks: &[ClockRecord]) -> AllocView {
        let (alloc, now) = (&p.alloc, self.clock.now());
        let tasks = alloc.tasks.iter().map(|(name, task)| {
            let clock = clocks.iter().find(|c| {
                c.key.alloc == alloc.id
                    && c.key.task == *name
                    && Some(c.key.incarnation) == task.incarnation()
                    && c.ended_at.is_none()
            });
            TaskView {
                name: name.clone(),
                state: task.state,
                lives: task.lives(),
                started_at: task.started_at,
                finished_at: task.finished_at,
                kill_at: clock.map(|c| c.due),
                restarts: task.restarts,
                crashes: spec
                    .and_then(|s| s.task(&alloc.group, name))
                    .and_then(|t| self.crashes_of(p, name, task, t.restart, now)),
            }
        });
        AllocView {
            id: alloc.id.clone(),
            group: alloc.group.clone(),
            node: alloc.node_name.clone(),
            version: alloc.job_version,
            desired: alloc.desired,
            client_status: alloc.client_status,
            tasks: tasks.collect(),
        }
    }

    /// Only while its last restart counts in an interval that is not over.
    fn crashes_of(&self, p: &Placed, name: &TaskName, task: &Task, policy: RestartPolicy, now: Timestamp) -> Option<CrashView> {
        let known = self.crashes.of(&p.alloc.id, name, task);
        let since = known.received_at.or(p.created_at)?;
        let last = *count(policy, since, task.restarts, &known.restarts).last()?;
        // What is remembered may be newer than what was read.
        let started = task.last_at(EventKind::Started).is_some_and(|at| at > last.restart.at);
        let waits = !started && last.restart.next() >= now;
        if last.until < now && !waits {
            return None;
        }
        Some(CrashView {
            restarts: last.number.min(policy.attempts),
            of: policy.attempts,
            within: policy.interval,
            until: last.until,
            used_up: last.number > policy.attempts,
            next_at: waits.then(|| last.restart.next()),
            exit_code: last.restart.exit.map(|(code, _)| code),
            signal: last.restart.exit.map(|(_, signal)| signal),
        })
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct NodesQuery {
    /// The next page starts after this node, `NAME/ID`.
    after: Option<String>,
    /// 1000 when absent; at most 10000.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<usize>,
}

/// Nodes, by name and id, with the state of their drains.
#[utoipa::path(
    get, path = "/v1/nodes", tag = "nodes", params(NodesQuery),
    responses((status = 200, description = "A page of them; one that is shorter than `limit` is the last.", body = Vec<NodeView>))
)]
pub async fn nodes(State(rpc): State<Rpc>, caller: Caller, Asked(q): Asked<NodesQuery>) -> Result<Json<Vec<NodeView>>, Refusal> {
    caller.everywhere()?;
    let claims: HashMap<NodeId, OpId> = rpc.store.claims().await?.into_iter().collect();
    let mut nodes = rpc.nomad.nodes(None).await?;
    if let Some(after) = &q.after {
        // An id has no slash, a name may have one.
        let after =
            after.rsplit_once('/').ok_or_else(|| Refusal::bad_request(format!("after: {after:?} is no NAME/ID of a node")))?;
        nodes.retain(|n| (n.name.as_str(), n.id.as_str()) > after);
    }
    nodes.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    nodes.truncate(q.limit.unwrap_or(1000).clamp(1, 10_000));
    let view = |n: curfew_nomad::NodeStub| NodeView {
        operation: claims.get(&n.id).copied(),
        drain: n.last_drain.and_then(|last| {
            let ours = last.curfew?;
            let (started_at, deadline) = (ours.started_at.or(last.started_at), ours.deadline.at());
            Some(NodeDrainView { operation: ours.operation, started_at, deadline, cancelled: last.cancelled })
        }),
        id: n.id,
        name: n.name,
        datacenter: n.datacenter.into(),
        node_pool: n.pool,
        node_class: n.class,
        version: n.version,
        status: n.status.as_str().to_owned(),
        eligible: n.eligible,
        draining: n.draining,
    };
    Ok(Json(nodes.into_iter().map(view).collect()))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ClocksQuery {
    /// Only of this job.
    job: Option<String>,
    /// Only of this namespace.
    namespace: Option<Namespace>,
    /// 1000 when absent; at most 10000.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<usize>,
}

impl Rpc {
    /// The earliest that are armed, and how many there are: from the keeper's memory where it keeps them.
    async fn armed(&self, whose: Whose, most: usize) -> Result<ClocksView, Refusal> {
        let whose = Arc::new(whose);
        if let Some((clocks, armed)) = self.keeper.clocks(whose.clone(), most).await {
            return Ok(ClocksView { live: true, clocks, armed });
        }
        let mut clocks = self.store.clocks().await?;
        clocks.retain(|c| c.ended_at.is_none() && whose.has(&c.job));
        let armed = clocks.len();
        Ok(ClocksView { live: false, clocks: earliest(clocks, most), armed })
    }
}

/// The kill clocks that are armed: which task gets SIGKILL when, and why.
#[utoipa::path(
    get, path = "/v1/clocks", tag = "operations", params(ClocksQuery),
    responses((status = 200, description = "The next one first.", body = ClocksView))
)]
pub async fn clocks(State(rpc): State<Rpc>, caller: Caller, Asked(q): Asked<ClocksQuery>) -> Result<Json<ClocksView>, Refusal> {
    let most = q.limit.unwrap_or(1000).clamp(1, 10_000);
    let wanted = move |key: &JobKey| {
        caller.sees_namespace(&key.namespace)
            && q.namespace.as_ref().is_none_or(|ns| *ns == key.namespace)
            && q.job.as_ref().is_none_or(|job| job == key.job.as_str())
    };
    Ok(Json(rpc.armed(Whose::Each(Box::new(wanted)), most).await?))
}

/// Whether Curfew can keep its promises on this Nomad. It asks every node, so it takes its time; one at a time.
#[utoipa::path(
    get, path = "/v1/doctor", tag = "controller", responses((status = 200, description = "Each check, and what to do.", body = Report))
)]
pub async fn examine(State(rpc): State<Rpc>, caller: Caller) -> Result<Json<Report>, Refusal> {
    caller.everywhere()?;
    let _turn = rpc.turns.doctor.lock().await;
    let mut report = doctor::examine(&rpc.nomad, &rpc.config, rpc.clock.clone()).await;
    let kinds = rpc.store.kinds().await?;
    let paused = kinds.into_iter().find(|k| k.kind == Kind::Kill).and_then(|k| k.pause);
    report.checks.push(doctor::kill_clocks(paused.as_ref()));
    Ok(Json(Report::new(report.at, &report.nomad, report.checks)))
}
