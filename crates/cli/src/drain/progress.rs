//! How far a drain has come: as a view that is drawn again and again, and as lines that are said once.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use console::truncate_str;
use curfew_client::{OperationView, Target};
use curfew_core::drain::{AllocLeft, NodeOutcome, NodeState, Waits};
use curfew_core::operation::State;
use curfew_core::{JobKey, NodeId, Timestamp, duration};

use crate::timeline::{Timeline, told};

/// `1 node`, `3 nodes`.
pub fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// `datacenter dc1`, `node dev1`, `nodes a, b`.
pub fn the(target: &Target) -> String {
    match target {
        Target::Job(key) => format!("job {}", job(key)),
        Target::Node { name, .. } => format!("node {name}"),
        Target::Datacenter { datacenter } => format!("datacenter {datacenter}"),
        Target::Nodes { nodes } => format!("nodes {nodes}"),
    }
}

pub fn job(key: &JobKey) -> String {
    if key.namespace.as_str() == "default" { key.job.to_string() } else { format!("{} ({})", key.job, key.namespace) }
}

pub fn nodes(op: &OperationView) -> &[NodeOutcome] {
    op.outcome.as_ref().map_or(&[], |o| &o.nodes)
}

fn left(op: &OperationView) -> usize {
    nodes(op).iter().map(|n| n.left as usize).sum()
}

/// The bound of the time that is left.
fn bound(deadline: Option<Timestamp>, now: Timestamp) -> String {
    match deadline {
        Some(d) if d >= now => format!("at most {}", duration::human(d.since(now))),
        Some(d) => format!("{} past its deadline", duration::human(now.since(d))),
        None => "no deadline".into(),
    }
}

/// What an allocation waits for.
fn waits(a: &AllocLeft, now: Timestamp) -> String {
    match (a.waits, a.kill_at) {
        (Waits::Clock, Some(at)) if at >= now => format!("told to end, SIGKILL in {}", duration::human(at.since(now))),
        (Waits::Clock, Some(at)) => format!("told to end, SIGKILL was due {} ago", duration::human(now.since(at))),
        (_, Some(at)) if at >= now => format!("waits for {}, SIGKILL in {}", a.waiting_for, duration::human(at.since(now))),
        _ => format!("waits for {}", a.waiting_for),
    }
}

/// Where help may be needed first, then by its clock.
fn in_order(n: &NodeOutcome) -> Vec<&AllocLeft> {
    let mut all: Vec<_> = n.allocations.iter().collect();
    all.sort_by_key(|a| (a.waits != Waits::Node, a.kill_at.is_none(), a.kill_at, &a.id));
    all
}

/// `2 tasks ended by themselves, 1 needed SIGKILL`.
pub fn ends(exited: u32, killed: u32) -> String {
    let by = if exited == 1 { "itself" } else { "themselves" };
    format!("{} ended by {by}, {killed} needed SIGKILL", count(exited as usize, "task"))
}

const BAR: usize = 30;

/// What a drain looks like now, in so many lines of so many columns at most.
pub fn live(op: &OperationView, now: Timestamp, width: usize, height: usize) -> Vec<String> {
    let all = nodes(op);
    let state = match (&op.cancel, &op.pause) {
        _ if op.state.is_finished() => op.state.as_str().to_owned(),
        (Some(by), _) => format!("being cancelled by {}", by.actor),
        (_, Some(by)) if op.state == State::Paused => format!("paused by {}", by.actor),
        _ if all.is_empty() => op.waiting_for.as_ref().map_or(op.state.as_str().into(), |w| format!("waits for {w}")),
        _ => format!("{} left, {}", count(left(op), "allocation"), bound(op.deadline, now)),
    };
    let mut lines = vec![format!("{}: {state}", the(&op.target))];
    let over = all.iter().filter(|n| n.state.is_over()).count();
    if !all.is_empty() {
        let full = BAR * over / all.len();
        lines.push(format!("[{:<BAR$}] {over} of {} done", "=".repeat(full), count(all.len(), "node")));
    }
    let in_state = |s: NodeState| all.iter().filter(move |n| n.state == s);
    let mut sums = vec![];
    for (state, word) in [(NodeState::Drained, "drained"), (NodeState::Waiting, "waiting"), (NodeState::Gone, "gone")] {
        let n = in_state(state).count();
        if n > 0 {
            sums.push(format!("{n} {word}"));
        }
    }
    let (exited, killed) = op.outcome.as_ref().map_or((0, 0), |o| (o.exited, o.killed));
    if exited + killed > 0 {
        sums.push(ends(exited, killed));
    }
    if !sums.is_empty() {
        lines.push(sums.join(", "));
    }
    let amiss = in_state(NodeState::Failed).chain(in_state(NodeState::Cancelled));
    let busy: Vec<&NodeOutcome> = amiss.chain(in_state(NodeState::Draining)).collect();
    lines.extend(by_node(&busy, now, width, height.saturating_sub(lines.len())));
    lines.truncate(height);
    lines.iter().map(|l| truncate_str(l, width, "…").into_owned()).collect()
}

/// As many nodes as there is room for; then as many allocations of each as there is room for.
fn by_node(busy: &[&NodeOutcome], now: Timestamp, width: usize, room: usize) -> Vec<String> {
    if busy.len() > room {
        let Some(shown) = room.checked_sub(1) else { return vec![] };
        let rest = &busy[shown..];
        let of_them: u32 = rest.iter().map(|n| n.left).sum();
        let more = format!("  … and {}, with {} left", count(rest.len(), "more node"), count(of_them as usize, "allocation"));
        return busy[..shown].iter().map(|n| heading(n, now)).chain([more]).collect();
    }
    let lines = |n: &NodeOutcome, each: usize| {
        let shown = n.allocations.len().min(each);
        // Below none, "and so many more" would only repeat the heading.
        1 + shown + usize::from(shown > 0 && (n.left as usize) > shown)
    };
    let most = busy.iter().map(|n| n.allocations.len()).max().unwrap_or(0);
    let each = (1..=most).take_while(|each| busy.iter().map(|n| lines(n, *each)).sum::<usize>() <= room).last().unwrap_or(0);
    let mut all = vec![];
    for n in busy {
        all.push(heading(n, now));
        let shown = in_order(n).into_iter().take(each);
        // However long its name is, there is room for what it waits for.
        let name = |a: &AllocLeft| truncate_str(&job(&a.job), (width / 3).max(12), "…").into_owned();
        all.extend(shown.map(|a| format!("    {} {}  {}", a.id.short(), name(a), waits(a, now))));
        let rest = (n.left as usize).saturating_sub(n.allocations.len().min(each));
        if each > 0 && rest > 0 && !n.allocations.is_empty() {
            all.push(format!("    … and {rest} more"));
        }
    }
    all
}

fn heading(n: &NodeOutcome, now: Timestamp) -> String {
    match n.state {
        NodeState::Draining if n.left == 0 => {
            let why = n.waiting_for.as_ref().map_or("begins".to_owned(), |w| format!("waits for {w}"));
            format!("  {}  {why}", n.name)
        }
        NodeState::Draining => format!("  {}  {} left, {}", n.name, n.left, bound(n.deadline, now)),
        _ => format!("  {}", over(n)),
    }
}

/// What came of a node.
pub fn over(n: &NodeOutcome) -> String {
    let why = n.waiting_for.as_ref().map_or(String::new(), |w| format!(": {w}"));
    let took =
        n.started_at.zip(n.ended_at).map_or(String::new(), |(from, to)| format!(" in {}", duration::human(to.since(from))));
    match n.state {
        NodeState::Drained if n.exited + n.killed == 0 => format!("{} drained{took}: no task was to leave", n.name),
        NodeState::Drained => format!("{} drained{took}: {}", n.name, ends(n.exited, n.killed)),
        NodeState::Gone => format!("{} left the cluster{why}", n.name),
        NodeState::LeftAlone => format!("{} left as it is{why}", n.name),
        other => format!("{} {}{why}", n.name, other.as_str()),
    }
}

/// Where nothing can be drawn twice: what changed, a line each.
#[derive(Default)]
pub struct Lines {
    story: Timeline,
    said: HashSet<String>,
    deadlines: HashMap<NodeId, Timestamp>,
    /// What was said of the whole, and when.
    total: Option<(usize, Timestamp)>,
    paused: bool,
}

/// The whole is summed up this often at most.
const SUM_UP: Duration = Duration::from_secs(5);
/// The last allocations are told one by one: then it matters what each waits for.
const LAST: usize = 20;

impl Lines {
    pub fn since(zero: Timestamp) -> Self {
        Self { story: Timeline::since(zero), ..Self::default() }
    }

    pub fn news(&mut self, op: &OperationView, now: Timestamp) -> Vec<String> {
        let mut events = vec![];
        for n in nodes(op) {
            self.node(n, op.finished_at.unwrap_or(now), &mut events);
        }
        if (op.state == State::Paused) != self.paused {
            self.paused = !self.paused;
            let by = op.pause.as_ref().map_or(String::new(), |by| format!(" by {}", by.actor));
            events.push((
                now,
                if self.paused { format!("{}: paused{by}", the(&op.target)) } else { format!("{}: resumed", the(&op.target)) },
            ));
        }
        if !op.state.is_finished() {
            self.whole(op, now, &mut events);
        }
        // Of what happened at the same time the whole is said last.
        events.extend(self.story.events(op));
        told(events, self.story.zero(op))
    }

    fn once(&mut self, key: String) -> bool {
        self.said.insert(key)
    }

    fn node(&mut self, n: &NodeOutcome, now: Timestamp, events: &mut Vec<(Timestamp, String)>) {
        if n.state.is_over() {
            if self.once(format!("{} over", n.id)) {
                events.push((n.ended_at.unwrap_or(now), over(n)));
            }
            return;
        }
        if let (NodeState::Draining, Some(at)) = (n.state, n.started_at)
            && self.once(format!("{} begins", n.id))
        {
            let left = count(n.left as usize, "allocation");
            let left = if n.left > 0 { format!("{left} to leave, ") } else { String::new() };
            events.push((at, format!("{}: drain begins, {left}{}", n.name, bound(n.deadline, at))));
        }
        if let Some(deadline) = n.deadline
            && let Some(before) = self.deadlines.insert(n.id.clone(), deadline)
            && deadline.seconds_after(before).abs() > 1.0
        {
            events.push((now, format!("{}: the deadline was moved, {}", n.name, bound(n.deadline, now))));
        }
        // It may come back and go again: each time is news.
        let key = format!("{} unreachable", n.id);
        match n.allocations.iter().find(|a| a.waits == Waits::Node) {
            Some(a) if self.once(key.clone()) => {
                events.push((now, format!("{}: waits for {}", n.name, a.waiting_for)));
            }
            Some(_) => {}
            None => {
                self.said.remove(&key);
            }
        }
    }

    fn whole(&mut self, op: &OperationView, now: Timestamp, events: &mut Vec<(Timestamp, String)>) {
        let left = left(op);
        let busy = nodes(op).iter().filter(|n| n.left > 0).count();
        let news = self.total.is_none_or(|(said, at)| said != left && now.since(at) >= SUM_UP);
        if news && left > 0 {
            let first = self.total.replace((left, now)).is_none();
            // Each node just said it.
            if !first {
                let (left, busy) = (count(left, "allocation"), count(busy, "node"));
                events.push((now, format!("{}: {left} left on {busy}, {}", the(&op.target), bound(op.deadline, now))));
            }
        }
        if left > LAST {
            return;
        }
        // Of one node its tasks' own story tells who was told to end.
        let told = op.outcome.as_ref().is_some_and(|o| !o.allocations.is_empty());
        for n in nodes(op) {
            for a in in_order(n) {
                let by_its_tasks = told && a.waits == Waits::Clock;
                if a.waits != Waits::Node && !by_its_tasks && self.once(format!("{} {:?}", a.id, a.waits)) {
                    events.push((now, format!("{} {} on {}: {}", job(&a.job), a.id.short(), n.name, waits(a, now))));
                }
            }
        }
    }
}
