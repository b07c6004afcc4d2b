//! The drain of a set of nodes, a datacenter above all: one durable operation with a child for each node.
//!
//! ```text
//!  queued ─▶ look: which nodes, eligible before? (written down) ─▶ every one ineligible ─▶ children, max_parallel at a time
//!                                    ▲                                                        │ a child's end wakes it
//!                                    └── nodes that appear join ──────────────────────────────┴─▶ all over ─▶ succeeded | failed
//! ```
//!
//! No node is drained before every node of the set is ineligible, so that nothing moves onto one that is next. What was eligible
//! before is written down by a step of its own, before the first call that changes it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use curfew_core::audit::Action;
use curfew_core::drain::{DrainOptions, NodeRef, NodeState, Selection, SetNode, SetProgress};
use curfew_core::operation::{By, Intervention, Operation, Outcome, Progress, Request, State};
use curfew_core::{NodeId, OpId, Timestamp};
use curfew_nomad::NodeStub;
use curfew_store::{NewOperation, OperationFilter, StepResult, StoreError};
use futures::StreamExt;
use serde_json::json;

use super::{Done, Stopping, Tools};
use crate::error::chain;
use crate::nodes;

/// How often it looks whether nodes came or went, and at its children although none of them ended.
const LOOK: Duration = Duration::from_secs(10);
/// Nodes made ineligible, or children made, at the same time.
const AT_ONCE: usize = 16;

impl Tools {
    pub(super) async fn drain_set(
        &self,
        op: &Operation,
        selection: &Selection,
        first: &[NodeRef],
        options: &DrainOptions,
    ) -> Result<Done, Stopping> {
        let mut set = op.progress.set.clone().unwrap_or_default();
        let now = self.clock.now();
        let news = match set.looked_at {
            Some(at) if now.since(at) < LOOK && op.cancel.is_none() => None,
            _ => match self.read(self.look(op, selection, first, &mut set)).await? {
                Ok(news) => Some(news),
                Err(why) => return Ok(self.retry(op, why, false)),
            },
        };
        if news == Some(true) {
            // What was eligible before is known to the database before anything changes.
            return Ok(self.set_goes_on(op, set, now, "its nodes to be made ineligible".into()));
        }
        if op.cancel.is_none()
            && let Err(why) = self.change(self.mark(&mut set)).await?
        {
            return Ok(self.retry(&with(op, set), why, false));
        }
        let live = match self.children(op, &mut set).await {
            Ok(live) => live,
            Err(e) => return Ok(self.retry(&with(op, set), chain(&e), false)),
        };
        if let Err(e) = self.hand_on(op, &live).await {
            return Ok(self.retry(&with(op, set), chain(&e), false));
        }
        if op.cancel.is_some() {
            return self.cancel_set(op, set, live.len()).await;
        }
        if let Err(e) = self.start(op, options, &mut set).await {
            return Ok(self.retry(&with(op, set), chain(&e), false));
        }
        let open = set.nodes.iter().filter(|n| !n.state.is_over()).count();
        if open == 0 {
            return Ok(self.set_ended(op, set));
        }
        let (waiting, draining) = (count(&set, NodeState::Waiting), count(&set, NodeState::Draining));
        let more = if waiting > 0 { format!(", {waiting} more to have their turn") } else { String::new() };
        let why = format!("{} to drain{more}", if draining == 1 { "1 node".into() } else { format!("{draining} nodes") });
        let deadline = self.set_bound(op, options, &set, &live, now);
        let mut done = self.set_goes_on(op, set, now + LOOK, why);
        done.result.deadline = deadline;
        Ok(done)
    }

    fn set_goes_on(&self, op: &Operation, set: SetProgress, run_at: Timestamp, why: String) -> Done {
        let op = with(op, set);
        Done { result: self.waiting(&op, run_at, why), audit: vec![] }
    }

    /// Which nodes belong to it now. Whether one joined that has to be made ineligible.
    async fn look(
        &self,
        op: &Operation,
        selection: &Selection,
        first: &[NodeRef],
        set: &mut SetProgress,
    ) -> Result<bool, String> {
        let all = self.nomad.nodes(None).await.map_err(|e| chain(&e))?;
        let by_id: HashMap<&NodeId, &NodeStub> = all.iter().map(|n| (&n.id, n)).collect();
        let known: HashSet<NodeId> = set.nodes.iter().map(|n| n.node.id.clone()).collect();
        let begun = set.looked_at.is_some();
        set.looked_at = Some(self.clock.now());
        let mut joined: Vec<NodeId> = first.iter().map(|n| n.id.clone()).filter(|id| !known.contains(id)).collect();
        if begun && selection.grows() && op.cancel.is_none() {
            let found = nodes::select(&self.nomad, &all, selection).await.map_err(|e| chain(&e))?;
            let new: Vec<NodeId> = found.iter().map(|n| n.id.clone()).filter(|id| !known.contains(id)).collect();
            for id in new {
                match self.store.claim(op.id, vec![id.clone()]).await {
                    Ok(()) => joined.push(id),
                    // It is drained already, by another operation.
                    Err(StoreError::Claimed { .. }) => {}
                    Err(e) => return Err(chain(&e)),
                }
            }
        }
        let any = !joined.is_empty();
        for id in joined {
            let node = first.iter().find(|n| n.id == id).cloned();
            let Some(stub) = by_id.get(&id) else {
                set.nodes.extend(node.map(|node| SetNode {
                    node,
                    datacenter: "".into(),
                    was_eligible: false,
                    marked: false,
                    child: None,
                    state: NodeState::Gone,
                    report: None,
                }));
                continue;
            };
            set.nodes.push(SetNode {
                node: NodeRef { id: stub.id.clone(), name: stub.name.clone() },
                datacenter: stub.datacenter.as_str().into(),
                was_eligible: stub.eligible,
                marked: false,
                child: None,
                state: NodeState::Waiting,
                report: None,
            });
        }
        for n in set.nodes.iter_mut().filter(|n| n.state == NodeState::Waiting && !by_id.contains_key(&n.node.id)) {
            n.state = NodeState::Gone;
        }
        Ok(any)
    }

    /// Every node of the set takes no allocations before the first one is drained.
    async fn mark(&self, set: &mut SetProgress) -> Result<(), String> {
        let todo: Vec<(usize, NodeId)> = set
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, n)| n.state == NodeState::Waiting && !n.marked)
            .map(|(i, n)| (i, n.node.id.clone()))
            .collect();
        let mut asked = futures::stream::iter(todo)
            .map(|(i, id)| async move { (i, self.nomad.set_eligibility(&id, false).await) })
            .buffer_unordered(AT_ONCE);
        let mut failed = None;
        while let Some((i, answer)) = asked.next().await {
            match (answer, set.nodes.get_mut(i)) {
                (Ok(()), Some(n)) => n.marked = true,
                (Err(e), Some(n)) => failed = Some(format!("node {}: {}", n.node.name, chain(&e))),
                (_, None) => {}
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Brings the set in line with its children; returns those that live.
    async fn children(&self, op: &Operation, set: &mut SetProgress) -> Result<Vec<Operation>, StoreError> {
        let live = self.live_children(op.id).await?;
        let ids: HashMap<OpId, &Operation> = live.iter().map(|c| (c.id, c)).collect();
        for n in set.nodes.iter_mut().filter(|n| n.state == NodeState::Draining) {
            let Some(id) = n.child.filter(|id| !ids.contains_key(id)) else { continue };
            let Some(child) = self.store.operation(id).await? else { continue };
            let report = child.outcome.as_ref().and_then(|o| o.nodes.first()).cloned();
            n.state = match (child.state, &report) {
                (State::Succeeded, Some(r)) => r.state,
                (State::Succeeded, None) => NodeState::Drained,
                (State::Cancelled, _) => NodeState::Cancelled,
                (State::Failed, _) => NodeState::Failed,
                // It came back to life, or is about to show among the live ones.
                _ => continue,
            };
            n.report = report.map(|r| {
                let waiting_for = child.error.clone().or(child.warnings.first().cloned());
                Box::new(curfew_core::drain::NodeOutcome {
                    operation: Some(id),
                    allocations: vec![],
                    waiting_for,
                    state: n.state,
                    ..r
                })
            });
        }
        Ok(live)
    }

    /// What was done to the set while one of its steps made children reaches those too.
    async fn hand_on(&self, op: &Operation, live: &[Operation]) -> Result<(), StoreError> {
        for child in live {
            let theirs = child.request.moved();
            let moved = op.request.moved().filter(|m| match m.is_kill_now() {
                true => !theirs.is_some_and(|t| t.is_kill_now()),
                false => theirs.is_none_or(|t| t.at < m.at) && child.deadline.is_none_or(|d| d < m.until),
            });
            let cancel = op.cancel.as_ref().filter(|_| child.cancel.is_none());
            let what = match (cancel, moved) {
                (Some(_), _) => Intervention::Cancel,
                (None, Some(m)) if m.is_kill_now() => Intervention::KillNow,
                (None, Some(m)) if m.until > self.clock.now() => Intervention::ExtendUntil(m.until),
                _ => continue,
            };
            let by =
                By { actor: op.actor.clone(), reason: Some(format!("by its parent, operation {}", op.id)), at: self.clock.now() };
            match self.store.intervene(child.id, what, by).await {
                // It ended just now.
                Ok(_) | Err(StoreError::Refused { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    pub(crate) async fn live_children(&self, parent: OpId) -> Result<Vec<Operation>, StoreError> {
        let states = State::ALL.into_iter().filter(|s| !s.is_finished()).collect();
        let filter = OperationFilter { parent: Some(parent), states, limit: usize::MAX >> 1, ..OperationFilter::default() };
        self.store.operations(filter).await
    }

    /// Makes children for as many nodes as may be drained at the same time. The same child again is the one that is there.
    async fn start(&self, op: &Operation, options: &DrainOptions, set: &mut SetProgress) -> Result<(), StoreError> {
        let room = options.max_parallel.map_or(usize::MAX, |p| p.of(set.nodes.len()));
        let room = room.saturating_sub(count(set, NodeState::Draining));
        let now = self.clock.now();
        let turn: Vec<(usize, NewOperation)> = set
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, n)| n.state == NodeState::Waiting && n.marked)
            .take(room)
            .map(|(i, n)| (i, self.child(op, options, n, set.round, now)))
            .collect();
        let mut made = futures::stream::iter(turn)
            .map(|(i, new)| async move { (i, self.store.create(new).await) })
            .buffer_unordered(AT_ONCE);
        let mut failed = None;
        while let Some((i, created)) = made.next().await {
            match (created, set.nodes.get_mut(i)) {
                (Ok(created), Some(n)) => (n.state, n.child) = (NodeState::Draining, Some(created.operation().id)),
                (Err(e), _) => failed = Some(e),
                (_, None) => {}
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn child(&self, op: &Operation, options: &DrainOptions, n: &SetNode, round: u32, now: Timestamp) -> NewOperation {
        let timeout = options.drain_timeout.unwrap_or_else(|| self.config.drain_timeout(n.datacenter.as_str()));
        let drain_timeout = (!options.no_deadline).then_some(timeout);
        // Cut short, the set leaves nobody time any more; extended, a node that starts later has its own.
        let moved = op.request.moved().filter(|m| m.is_kill_now() || drain_timeout.is_some_and(|t| m.until > now + t));
        let options = DrainOptions { drain_timeout, max_parallel: None, ..options.clone() };
        NewOperation {
            id: OpId::new(now),
            parent: Some(op.id),
            request: Request::DrainNode { node: n.node.clone(), options, was_eligible: Some(n.was_eligible), moved },
            actor: op.actor.clone(),
            reason: op.reason.clone(),
            at: now,
            deadline: moved.map(|m| m.until).or(drain_timeout.map(|t| now + t)),
            warnings: vec![],
            idempotency: Some((format!("{}/{}/{round}", op.id, n.node.id), "child".into())),
        }
    }

    /// No node has longer than this: those that drain, and the timeouts of those whose turn comes.
    fn set_bound(
        &self,
        op: &Operation,
        options: &DrainOptions,
        set: &SetProgress,
        live: &[Operation],
        now: Timestamp,
    ) -> Option<Timestamp> {
        if options.no_deadline && op.request.moved().is_none() {
            return None;
        }
        let last = live.iter().filter_map(|c| c.node_drain().map_or(c.deadline, |d| d.deadline)).max();
        let waiting = count(set, NodeState::Waiting);
        if op.request.moved().is_some_and(|m| m.is_kill_now()) || waiting == 0 {
            return last.or(op.deadline);
        }
        let longest =
            set.nodes.iter().map(|n| options.drain_timeout.unwrap_or_else(|| self.config.drain_timeout(n.datacenter.as_str())));
        let rounds = waiting.div_ceil(options.max_parallel.map_or(waiting, |p| p.of(set.nodes.len())));
        let rounds = u32::try_from(rounds).unwrap_or(u32::MAX);
        Some(last.unwrap_or(now) + longest.max().unwrap_or_default().saturating_mul(rounds))
    }

    /// Its children were cancelled with it. What it made ineligible and nobody drained is eligible again.
    async fn cancel_set(&self, op: &Operation, mut set: SetProgress, live: usize) -> Result<Done, Stopping> {
        if live > 0 {
            let why = format!("{live} of its nodes to be given back");
            return Ok(self.set_goes_on(op, set, self.clock.now() + LOOK, why));
        }
        for n in &mut set.nodes {
            // A node that was marked in a step that could not write it down is ineligible too.
            if n.state == NodeState::Waiting && n.was_eligible {
                if let Err(e) = self.change(self.nomad.undrain_node(&n.node.id, true)).await? {
                    return Ok(self.retry(&with(op, set), chain(&e), false));
                }
                n.marked = false;
            }
            if n.state == NodeState::Waiting {
                n.state = NodeState::Cancelled;
            }
        }
        let drained = count(&set, NodeState::Drained);
        let op = with(op, set);
        let mut result = StepResult { outcome: Some(outcome_of(&op)), ..self.result(&op, State::Cancelled) };
        if drained > 0 {
            result.warnings.push(format!(
                "{drained} nodes were drained before it was cancelled; they stay ineligible: curfew node undrain gives them back"
            ));
        }
        let by = op.cancel.as_ref();
        let detail = json!({ "by": by.map(|b| &b.actor), "reason": by.and_then(|b| b.reason.as_ref()) });
        Ok(Done { result, audit: vec![self.entry(&op, Action::Cancelled, detail)] })
    }

    fn set_ended(&self, op: &Operation, set: SetProgress) -> Done {
        let op = &with(op, set);
        let outcome = outcome_of(op);
        let of = |state| outcome.nodes.iter().filter(move |n| n.state == state).map(|n| n.name.clone()).collect::<Vec<_>>();
        let (failed, cancelled, gone) = (of(NodeState::Failed), of(NodeState::Cancelled), of(NodeState::Gone));
        let detail =
            json!({ "nodes": outcome.nodes.len(), "exited": outcome.exited, "killed": outcome.killed, "failed": failed.len() });
        let mut warnings = vec![];
        if !cancelled.is_empty() {
            warnings.push(format!("the drain of {} was cancelled", cancelled.join(", ")));
        }
        if !gone.is_empty() {
            warnings.push(format!("{} left the cluster: whether anything still lives there cannot be seen", gone.join(", ")));
        }
        let mut done = match outcome.nodes.iter().find(|n| n.state == NodeState::Failed) {
            None => Done { result: self.result(op, State::Succeeded), audit: vec![self.entry(op, Action::Succeeded, detail)] },
            Some(n) => {
                let why = n.waiting_for.as_deref().unwrap_or("see its operation");
                let all = outcome.nodes.len();
                self.failed(op, format!("{} of {all} nodes could not be drained: {} ({why})", failed.len(), failed.join(", ")))
            }
        };
        done.result.outcome = Some(outcome);
        done.result.warnings.extend(warnings);
        done
    }
}

fn with(op: &Operation, set: SetProgress) -> Operation {
    Operation { progress: Progress { set: Some(set), ..op.progress.clone() }, ..op.clone() }
}

fn count(set: &SetProgress, state: NodeState) -> usize {
    set.nodes.iter().filter(|n| n.state == state).count()
}

/// What is known of a set without asking its children.
pub(crate) fn outcome_of(op: &Operation) -> Outcome {
    let set = op.progress.set.iter().flat_map(|s| &s.nodes);
    let nodes: Vec<_> = set
        .map(|n| match &n.report {
            Some(report) => (**report).clone(),
            None => curfew_core::drain::NodeOutcome {
                operation: n.child,
                ..curfew_core::drain::NodeOutcome::nothing(&n.node, n.state)
            },
        })
        .collect();
    let sum = |of: fn(&curfew_core::drain::NodeOutcome) -> u32| nodes.iter().map(of).fold(0, u32::saturating_add);
    Outcome { exited: sum(|n| n.exited), killed: sum(|n| n.killed), nodes, ..Outcome::default() }
}
