//! What came of a drain, node by node.

use curfew_client::OperationView;
use curfew_core::drain::{NodeOutcome, NodeState, Slow};
use curfew_core::operation::{Kind, State};
use curfew_core::{Timestamp, duration};

use super::progress::{count, ends, nodes, over, the};
use crate::output::fitted;

/// So many of all nodes' slowest.
const SLOWEST: usize = 5;

/// A row for each node, who was slowest, and why a node was not drained.
pub fn report(op: &OperationView, width: Option<usize>) -> String {
    let all = nodes(op);
    if op.kind == Kind::Undrain {
        let rows = all.iter().map(|n| [n.name.clone(), n.state.as_str().into(), n.waiting_for.clone().unwrap_or_default()]);
        return fitted(width, ["NODE", "STATE", ""], rows.collect());
    }
    let after = |at: Option<Timestamp>| at.map_or("-".to_owned(), |t| format!("+{}", duration::human(t.since(op.requested_at))));
    let rows = all.iter().map(|n| {
        let took = n.started_at.zip(n.ended_at).map_or("-".to_owned(), |(from, to)| duration::human(to.since(from)));
        let slowest = n.slowest.first().map_or(String::new(), |s| format!("{} {}", s.job, lasted(s)));
        [
            n.name.clone(),
            n.state.as_str().into(),
            after(n.started_at),
            after(n.ended_at),
            took,
            n.exited.to_string(),
            n.killed.to_string(),
            slowest,
        ]
    });
    let mut parts = vec![];
    if !all.is_empty() {
        parts.push(fitted(width, ["NODE", "STATE", "START", "END", "TOOK", "EXITED", "SIGKILL", "SLOWEST"], rows.collect()));
    }
    let mut slowest: Vec<(&NodeOutcome, &Slow)> = all.iter().flat_map(|n| n.slowest.iter().map(move |s| (n, s))).collect();
    slowest.sort_by_key(|(_, s)| std::cmp::Reverse(s.took));
    if !slowest.is_empty() {
        let rows = slowest
            .iter()
            .take(SLOWEST)
            .map(|(n, s)| [s.job.to_string(), format!("{}/{}", s.alloc.short(), s.task), n.name.clone(), lasted(s)]);
        parts.push(fitted(width, ["SLOWEST TO LEAVE", "TASK", "NODE", "TOOK"], rows.collect()));
    }
    let amiss: Vec<_> = all.iter().filter(|n| n.state.is_over() && n.state != NodeState::Drained).map(over).collect();
    if !amiss.is_empty() {
        parts.push(amiss.join("\n"));
    }
    parts.join("\n\n")
}

fn lasted(s: &Slow) -> String {
    format!("{}{}", duration::human(s.took), if s.killed { ", SIGKILL" } else { "" })
}

/// What it comes to, in a line.
pub fn summary(op: &OperationView) -> String {
    let all = nodes(op);
    let those = |s: NodeState| all.iter().filter(|n| n.state == s).count();
    let took = op.finished_at.map_or(String::new(), |t| format!(" in {}", duration::human(t.since(op.requested_at))));
    let target = the(&op.target);
    if op.kind == Kind::Undrain {
        let alone = those(NodeState::LeftAlone);
        let alone = if alone > 0 { format!(", {alone} left alone") } else { String::new() };
        let eligible = if those(NodeState::Eligible) == 1 { "takes" } else { "take" };
        return format!("{target}: {} {eligible} allocations again{alone}", count(those(NodeState::Eligible), "node"));
    }
    let ends = op.outcome.as_ref().map_or_else(|| ends(0, 0), |o| ends(o.exited, o.killed));
    match op.state {
        State::Succeeded if op.kind == Kind::DrainNode => format!("{target} drained{took}: {ends}"),
        State::Succeeded => format!("{target} drained{took}: {}, {ends}", count(all.len(), "node")),
        state if op.kind == Kind::DrainNode => format!("{target} {}{took}: {ends}", state.as_str()),
        state => {
            let drained = those(NodeState::Drained) + those(NodeState::Gone);
            format!("{target} {}{took}: {drained} of {} drained, {ends}", state.as_str(), count(all.len(), "node"))
        }
    }
}
