//! Drain, its dry run, undrain, and what live drains show.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use curfew_core::api::{DrainPlan, DrainRequest, NodePlan, OperationView, UndrainRequest};
use curfew_core::clock::is_over;
use curfew_core::drain::{DrainOptions, NodeRef, NodeState, Selection, Strategy, plan};
use curfew_core::operation::{Operation, Request, State as OpState, Target};
use curfew_core::{NodeId, OpId, duration};
use curfew_nomad::{NodeStatus, NodeStub};
use curfew_store::{NewOperation, OperationFilter};
use futures::StreamExt;
use futures::TryStreamExt;

use super::description::Key;
use super::jobs::idempotency;
use super::problem::Refusal;
use super::{Body, Caller, Rpc};
use crate::keeper::DrainReport;
use crate::nodes;
use crate::steps::drain_node::{of_node, others};
use crate::steps::drain_set::outcome_of;

/// Nodes looked at, at the same time.
const AT_ONCE: usize = 16;
/// Warnings of one kind that are named; the others are counted.
const NAMED: usize = 20;

struct Chosen {
    all: Vec<NodeStub>,
    nodes: Vec<NodeStub>,
}

impl Rpc {
    /// The nodes of a selection: at least one, and each word for nodes means one.
    async fn choose(&self, selection: &Selection) -> Result<Chosen, Refusal> {
        if selection.is_empty() {
            return Err(Refusal::bad_request("name nodes, or say which ones: datacenter, node_pool, node_class or meta"));
        }
        let all = self.nomad.nodes(None).await?;
        for word in &selection.nodes {
            let meant: Vec<_> = all.iter().filter(|n| nodes::means(word, n)).collect();
            if let [one, another, ..] = meant.as_slice() {
                let (n, a, b) = (meant.len(), short(one), short(another));
                return Err(Refusal::ambiguous_node(format!(
                    "\"{word}\" is {n} nodes, {a} and {b} among them; write more of the id"
                )));
            }
            if meant.is_empty() {
                let nomad = self.nomad.address();
                return Err(Refusal::no_such_node(format!(
                    "there is no node \"{word}\" in Nomad at {nomad}; it has {}",
                    named(&all, |n| &n.name)
                )));
            }
        }
        let found = nodes::select(&self.nomad, &all, selection).await?;
        if found.is_empty() {
            let there = match &selection.datacenter {
                Some(dc) if !all.iter().any(|n| n.datacenter == dc.as_str()) => {
                    format!("there is no datacenter \"{dc}\" with nodes; there are {}", named(&all, |n| &n.datacenter))
                }
                _ => format!("no node fits: {selection}"),
            };
            return Err(Refusal::no_such_node(there));
        }
        Ok(Chosen { all, nodes: found })
    }

    fn options(&self, request: &DrainRequest, nodes: &[NodeStub]) -> Result<DrainOptions, Refusal> {
        if request.no_deadline && request.drain_timeout.is_some() {
            return Err(Refusal::bad_request("a drain has a drain_timeout or no deadline, not both"));
        }
        if request.drain_timeout.is_some_and(|t| t.is_zero()) {
            return Err(Refusal::bad_request("drain_timeout must be longer than zero; to end everything now, ask for a second"));
        }
        // Where every node has the same, it is written down; where they differ, each has its datacenter's.
        let mut configured = nodes.iter().map(|n| self.config.drain_timeout(&n.datacenter));
        let first = configured.next().unwrap_or(self.config.drain_timeout);
        let same = configured.all(|t| t == first).then_some(first);
        let drain_timeout = request.drain_timeout.or(same).filter(|_| !request.no_deadline);
        if let Some(asked) = request.drain_timeout
            && asked + self.config.job_stop_timeout >= self.config.kill_timeout
        {
            let show = duration::format;
            return Err(Refusal::timeouts(format!(
                "a drain timeout of {} and job_stop_timeout ({}) must together be shorter than kill_timeout ({}): Nomad would send SIGKILL before the deadline. Raise kill_timeout and submit the jobs again, or ask for less",
                show(asked),
                show(self.config.job_stop_timeout),
                show(self.config.kill_timeout)
            )));
        }
        let by_name = !request.selection.nodes.is_empty();
        let default = if by_name { Strategy::Migrate } else { Strategy::Evacuate };
        Ok(DrainOptions {
            strategy: request.strategy.unwrap_or(default),
            drain_timeout,
            no_deadline: request.no_deadline,
            max_parallel: request.max_parallel,
            ignore_system: request.ignore_system,
            only_managed: request.only_managed,
        })
    }

    /// What is hidden from the token would be left behind.
    fn blind(&self) -> Option<Refusal> {
        let why = self.sight.borrow().denied()?.to_owned();
        Some(Refusal::token(format!("a drain has to see every allocation of its nodes, and the token may not: {why}")))
    }

    /// Another operation has one of the nodes.
    async fn claimed(&self, nodes: &[NodeStub]) -> Result<Option<Refusal>, Refusal> {
        let claims: HashMap<NodeId, OpId> = self.store.claims().await?.into_iter().collect();
        Ok(nodes.iter().find_map(|n| Some(overlap(&n.name, *claims.get(&n.id)?))))
    }

    async fn plan_nodes(&self, chosen: &Chosen, options: &DrainOptions) -> Result<Vec<NodePlan>, Refusal> {
        let leaving: Vec<&NodeId> = chosen.nodes.iter().map(|n| &n.id).collect();
        let staying: Vec<&NodeStub> = chosen
            .all
            .iter()
            .filter(|n| n.eligible && n.status == NodeStatus::Ready && !n.draining && !leaving.contains(&&n.id))
            .collect();
        let staying = &staying;
        futures::stream::iter(chosen.nodes.clone())
            .map(|node| async move { self.plan_node(node, staying, options).await })
            .buffered(AT_ONCE)
            .try_collect()
            .await
    }

    async fn plan_node(&self, node: NodeStub, staying: &[&NodeStub], options: &DrainOptions) -> Result<NodePlan, Refusal> {
        let (now, graces) = (self.clock.now(), self.config.graces());
        let timeout = options.drain_timeout.unwrap_or_else(|| self.config.drain_timeout(&node.datacenter));
        let drain_timeout = (!options.no_deadline).then_some(timeout);
        let (mut allocations, mut problems) = (Vec::new(), Vec::new());
        let mut managed = None;
        for (alloc, spec) in self.nomad.node_allocations(&node.id).await? {
            if is_over(&alloc, spec.groups.get(&alloc.group), now, &graces) {
                continue;
            }
            let elsewhere = staying.iter().any(|n| nodes::may_run_there(&spec, &alloc.group, n));
            let planned = plan::of_allocation(&alloc, &spec, options, elsewhere, &graces);
            let tasks = || spec.groups.get(&alloc.group).into_iter().flat_map(|g| g.tasks.values());
            if spec.managed {
                let shortest = tasks().map(|t| t.kill_timeout).min();
                managed = managed.max(shortest);
                if let (Some(kill), Some(timeout)) = (shortest, drain_timeout)
                    && kill <= timeout
                {
                    let (kill, within) = (duration::format(kill), duration::format(timeout));
                    problems.push(format!("job {}: its kill_timeout is {kill}: Nomad itself sends SIGKILL so long after SIGTERM, before the deadline of {within}", planned.job));
                }
            }
            allocations.push(planned);
        }
        if let (Some(timeout), Some(kill_timeout)) = (drain_timeout, managed) {
            let needed = timeout + self.config.job_stop_timeout;
            match self.nodes.limit(&node.id).await {
                Some(limit) if limit < needed.min(kill_timeout) => {
                    let (limit, timeout) = (duration::format(limit), duration::format(timeout));
                    problems.push(format!("max_kill_timeout is {limit}: there Nomad itself sends SIGKILL {limit} after SIGTERM, whatever the drain timeout of {timeout} says. Raise max_kill_timeout in the client's configuration"));
                }
                Some(_) => {}
                None => problems.push("max_kill_timeout cannot be read; tell it in the node's meta as max_kill_timeout".into()),
            }
        }
        if node.status != NodeStatus::Ready {
            problems.push(format!("it is {}: what may live there is waited for until it is back", node.status.as_str()));
        }
        problems.sort();
        problems.dedup();
        allocations.sort_by(|a, b| (&a.job, &a.id).cmp(&(&b.job, &b.id)));
        Ok(NodePlan {
            id: node.id,
            name: node.name,
            datacenter: node.datacenter.into(),
            node_pool: node.pool,
            status: node.status.as_str().to_owned(),
            eligible: node.eligible,
            drain_timeout,
            allocations,
            problems,
        })
    }

    /// With what the keeper knows.
    pub(super) async fn node_view(&self, op: Operation, node: &NodeRef) -> OperationView {
        let report = self.keeper.drain_report(op.id, node.id.clone()).await;
        let failing = op.attempts > 0;
        // Where the clocks are not kept, as it was written last.
        let begun = report.is_some() || op.node_drain().is_some();
        let state = if begun { NodeState::Draining } else { NodeState::Waiting };
        let report = report.unwrap_or_default();
        let (why, outcome) = (report.waiting_for.clone(), of_node(&op, node, report, state, None));
        let mut view = OperationView::from(op);
        if !failing && !matches!(view.state, curfew_core::operation::State::Paused) {
            view.waiting_for = why.or(view.waiting_for);
        }
        view.outcome = Some(outcome);
        view
    }

    /// With what the keeper knows of each child.
    pub(super) async fn set_view(&self, op: Operation) -> OperationView {
        let mut outcome = outcome_of(&op);
        let states = OpState::ALL.into_iter().filter(|s| !s.is_finished()).collect();
        let filter = OperationFilter { parent: Some(op.id), states, limit: usize::MAX >> 1, ..OperationFilter::default() };
        // A database that is away leaves what the set itself knows.
        let live = self.store.operations(filter).await.unwrap_or_default();
        let live: HashMap<OpId, Operation> = live.into_iter().map(|child| (child.id, child)).collect();
        for n in outcome.nodes.iter_mut().filter(|n| n.state == NodeState::Draining) {
            let Some(child) = n.operation.and_then(|id| live.get(&id)) else { continue };
            let Some(report) = self.keeper.drain_report(child.id, n.id.clone()).await else { continue };
            let node = NodeRef { id: n.id.clone(), name: n.name.clone() };
            *n = one(child, &node, report);
        }
        outcome.exited = outcome.nodes.iter().map(|n| n.exited).sum();
        outcome.killed = outcome.nodes.iter().map(|n| n.killed).sum();
        let mut view = OperationView::from(op);
        view.outcome = Some(outcome);
        view
    }
}

fn one(child: &Operation, node: &NodeRef, report: DrainReport) -> curfew_core::drain::NodeOutcome {
    let mut all = of_node(child, node, report, NodeState::Draining, None).nodes;
    let mut n = all.pop().unwrap_or_else(|| curfew_core::drain::NodeOutcome::nothing(node, NodeState::Draining));
    n.operation = Some(child.id);
    n
}

/// Somebody who is not Curfew drains one of the nodes.
fn foreign(nodes: &[NodeStub]) -> Option<Refusal> {
    let theirs = nodes.iter().find_map(|n| {
        let last = n.last_drain.as_ref().filter(|d| n.draining && d.curfew.is_none())?;
        Some(others(&n.name, &last.meta))
    });
    theirs.map(Refusal::drained_by_other)
}

fn overlap(node: &str, by: OpId) -> Refusal {
    Refusal::overlap(format!(
        "node {node} is drained by operation {by} already; watch that one (curfew op watch {by}), or cancel it first"
    ))
}

fn short(node: &NodeStub) -> String {
    format!("{} ({})", node.name, node.id.as_str().get(..8).unwrap_or_default())
}

/// What there is, each once.
fn named(all: &[NodeStub], of: impl Fn(&NodeStub) -> &str) -> String {
    const SHOWN: usize = 8;
    let mut names: Vec<&str> = all.iter().map(of).collect();
    names.sort_unstable();
    names.dedup();
    let more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    match (names.is_empty(), more) {
        (true, _) => "none".into(),
        (_, 0) => names.join(", "),
        _ => format!("{} and {more} more", names.join(", ")),
    }
}

fn target(selection: &Selection, nodes: &[NodeStub]) -> Target {
    match (selection.one_datacenter(), nodes) {
        (Some(dc), _) => Target::Datacenter { datacenter: dc.clone() },
        (None, [one]) if !selection.grows() => Target::Node { node: one.id.clone(), name: one.name.clone() },
        _ => Target::Nodes { nodes: selection.to_string() },
    }
}

fn refs(nodes: &[NodeStub]) -> Vec<NodeRef> {
    nodes.iter().map(|n| NodeRef { id: n.id.clone(), name: n.name.clone() }).collect()
}

/// A sentence for each problem, with its node's name: an operation has no plan to show them in.
fn problems(plans: &[NodePlan]) -> Vec<String> {
    let mut all: Vec<String> =
        plans.iter().flat_map(|n| n.problems.iter().map(move |p| format!("node {}: {p}", n.name))).collect();
    let more = all.len().saturating_sub(NAMED);
    all.truncate(NAMED);
    if more > 0 {
        all.push(format!("and {more} more of that kind; a dry run shows all"));
    }
    all
}

/// Drain nodes, or say what that would do.
#[utoipa::path(
    post, path = "/v1/nodes/drain", tag = "nodes", params(Key), request_body = DrainRequest,
    responses(
        (status = 200, description = "Of a dry run: the plan.", body = DrainPlan),
        (status = 202, description = "It is written down as this operation.", body = OperationView, headers(("Location" = String, description = "The operation's path.")))
    )
)]
pub async fn drain(
    State(rpc): State<Rpc>,
    caller: Caller,
    headers: HeaderMap,
    Body(request): Body<DrainRequest>,
) -> Result<Response, Refusal> {
    rpc.accepting()?;
    let idempotency = idempotency(&headers, "drain", &request)?;
    let chosen = rpc.choose(&request.selection).await?;
    let options = rpc.options(&request, &chosen.nodes)?;
    let target = target(&request.selection, &chosen.nodes);
    let plans = rpc.plan_nodes(&chosen, &options).await?;
    let mut warnings = vec![];
    if options.no_deadline {
        warnings.push(
            "without a deadline nothing is killed: what does not leave by itself is waited for, however long it takes".into(),
        );
    }
    if request.dry_run {
        let refused = foreign(&chosen.nodes).or(rpc.blind()).or(rpc.claimed(&chosen.nodes).await?).map(|r| r.detail().to_owned());
        return Ok(Json(DrainPlan { target, options, nodes: plans, warnings, refused }).into_response());
    }
    warnings.splice(0..0, problems(&plans));
    // Overlaps are the store's to refuse: the same key again is the operation that it made, which has the nodes.
    if let Some(refused) = foreign(&chosen.nodes).or(rpc.blind()) {
        return Err(refused);
    }
    let now = rpc.clock.now();
    let nodes = refs(&chosen.nodes);
    let deadline = options.drain_timeout.filter(|_| options.max_parallel.is_none()).map(|t| now + t);
    let request_of = match (&target, nodes.as_slice()) {
        (Target::Node { .. }, [node]) => Request::DrainNode { node: node.clone(), options, was_eligible: None, moved: None },
        _ => Request::DrainDatacenter { target, selection: request.selection, nodes, options, moved: None },
    };
    let created = rpc
        .create(NewOperation {
            id: OpId::new(now),
            parent: None,
            request: request_of,
            actor: caller.actor(&request.who),
            reason: request.who.reason,
            at: now,
            deadline,
            warnings,
            idempotency,
        })
        .await;
    created.map_err(|refused| refused.naming(&chosen.nodes.iter().map(|n| (n.id.as_str(), n.name.as_str())).collect::<Vec<_>>()))
}

/// Cancel drains, and let nodes take allocations again.
#[utoipa::path(
    post, path = "/v1/nodes/undrain", tag = "nodes", params(Key), request_body = UndrainRequest,
    responses((status = 202, description = "It is written down as this operation.", body = OperationView, headers(("Location" = String, description = "The operation's path."))))
)]
pub async fn undrain(
    State(rpc): State<Rpc>,
    caller: Caller,
    headers: HeaderMap,
    Body(request): Body<UndrainRequest>,
) -> Result<Response, Refusal> {
    rpc.accepting()?;
    let idempotency = idempotency(&headers, "undrain", &request)?;
    let chosen = rpc.choose(&request.selection).await?;
    let now = rpc.clock.now();
    rpc.create(NewOperation {
        id: OpId::new(now),
        parent: None,
        request: Request::Undrain {
            target: target(&request.selection, &chosen.nodes),
            nodes: refs(&chosen.nodes),
            all: request.all,
        },
        actor: caller.actor(&request.who),
        reason: request.who.reason,
        at: now,
        deadline: None,
        warnings: vec![],
        idempotency,
    })
    .await
}
