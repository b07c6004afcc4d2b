//! What concerns every node: version, `max_kill_timeout`, clock, and whether a signal would reach it.

use std::future::Future;
use std::time::Duration;

use curfew_core::doctor::{self, Check, Skew, Verdict, counted};
use curfew_core::duration;
use curfew_nomad::{Error, NodeStatus, NodeStub};
use futures::StreamExt;

use super::{DEADLINE, Doctor, NTP, ask};
use crate::error::chain;
use crate::nodes::{AT_ONCE, Nodes};

pub(super) const CLIENTS: &str = "clients";
pub(super) const DOWN: &str = "nodes";
pub(super) const PATH: &str = "signal path";
pub(super) const CLOCKS: &str = "client clocks";
pub(super) const LIMITS: &str = "max_kill_timeout";
pub(super) const DRIVERS: &str = "drivers";

/// A client measures itself every second, and that takes it a while.
const MEASURE_AGE: Duration = Duration::from_secs(2);
/// Until it has measured itself again.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What came of asking one node as a signal would.
enum Heard {
    /// It answers, and what its clock says when that can be known.
    Time(Option<Skew>),
    Silent(String),
    /// The question was refused before it reached the node.
    NotAsked(String),
}

/// Asks each, a few at a time, within the deadline. Gives the answers, and how many are missing.
async fn each<T, F: Future<Output = T>>(nodes: Vec<NodeStub>, f: impl Fn(NodeStub) -> F) -> (Vec<T>, usize) {
    let all = nodes.len();
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let mut answers = futures::stream::iter(nodes).map(f).buffer_unordered(AT_ONCE);
    let mut heard = vec![];
    while let Ok(Some(answer)) = tokio::time::timeout_at(deadline, answers.next()).await {
        heard.push(answer);
    }
    let missing = all - heard.len();
    (heard, missing)
}

impl Doctor<'_> {
    pub(super) async fn nodes(&self) -> Vec<Check> {
        let nodes = match ask(self.nomad.nodes(None)).await {
            Ok(nodes) => nodes,
            Err(why) => {
                let others =
                    [DOWN, PATH, CLOCKS, LIMITS, DRIVERS].map(|name| Check::not_checked(name, "the nodes could not be listed"));
                return [Check::not_checked(CLIENTS, why.text())].into_iter().chain(others).collect();
            }
        };
        let up: Vec<NodeStub> = nodes.iter().filter(|n| n.status == NodeStatus::Ready).cloned().collect();
        let ((path, clocks), limits) = tokio::join!(self.paths(up.clone()), self.limits(up.clone()));
        let versions: Vec<_> = up.iter().map(|n| (n.name.clone(), n.version.clone())).collect();
        vec![
            doctor::versions(CLIENTS, "client", &versions),
            down(&nodes),
            path,
            clocks,
            limits,
            drivers(&up, &self.config.signalless_drivers),
        ]
    }

    async fn limits(&self, up: Vec<NodeStub>) -> Check {
        let nodes = &Nodes::new(self.nomad.clone(), self.clock.clone());
        let all = up.len();
        let (limits, missing) = each(up, |n| async move { (n.name, nodes.limit(&n.id).await) }).await;
        let check = doctor::max_kill_timeout(LIMITS, &limits, self.config.kill_timeout, self.config.job_stop_timeout);
        if missing > 0 && check.verdict == Verdict::Ok {
            return late(LIMITS, missing, all);
        }
        check
    }

    /// Whether a signal would reach each node, and what time it is there.
    async fn paths(&self, up: Vec<NodeStub>) -> (Check, Check) {
        let all = up.len();
        let (heard, missing) = each(up, |n| async move { (self.hear(&n).await, n.name) }).await;
        let (mut silent, mut refused, mut skews, mut timeless) = (vec![], None, vec![], vec![]);
        let mut reason = String::new();
        for (heard, name) in heard {
            match heard {
                Heard::Time(Some(skew)) => skews.push((name, skew)),
                Heard::Time(None) => timeless.push(name),
                Heard::Silent(why) => {
                    silent.push(name);
                    reason = why;
                }
                Heard::NotAsked(why) => refused = Some(why),
            }
        }
        let reached = skews.len() + timeless.len();
        let path = if !silent.is_empty() {
            let found = format!("{} of {all} ready do not answer: {} ({reason})", silent.len(), doctor::nodes(silent));
            Check::failed(PATH, found, "no SIGKILL reaches these: mend their agent, or its connection to the servers' RPC port")
        } else if let Some(why) = &refused {
            Check::not_checked(PATH, why)
        } else if missing > 0 {
            late(PATH, missing, all)
        } else {
            Check::ok(PATH, format!("{} reached as a signal would be", counted(reached, "node")))
        };
        let clocks = match refused {
            Some(why) if reached == 0 => Check::not_checked(CLOCKS, why),
            _ => self.clocks(skews, timeless),
        };
        (path, clocks)
    }

    fn clocks(&self, mut skews: Vec<(String, Skew)>, timeless: Vec<String>) -> Check {
        let grace = self.shortest_grace();
        let all = skews.len();
        let worst = |v: Verdict| v == Verdict::Failed;
        let failed = skews.iter().any(|(_, s)| worst(s.verdict(grace)));
        skews.retain(|(_, s)| s.verdict(grace) != Verdict::Ok);
        let off = skews.iter().map(|(n, s)| format!("{n} ({})", doctor::ahead_or_behind(s.sure()))).collect();
        if failed {
            return Check::failed(CLOCKS, format!("{}, at least: {}", doctor::nodes(off), self.too_far()), NTP);
        }
        if !skews.is_empty() {
            return Check::warning(CLOCKS, format!("{}, at least", doctor::nodes(off)), NTP);
        }
        if all == 0 && timeless.is_empty() {
            return Check::not_checked(CLOCKS, "no node answered");
        }
        if !timeless.is_empty() {
            let why = "it has not measured itself in the last seconds (telemetry collection_interval)";
            return Check::not_checked(CLOCKS, format!("{}: {why}; the others are in step", doctor::nodes(timeless)));
        }
        Check::ok(CLOCKS, format!("in step with this machine's on {}", counted(all, "node")))
    }

    /// An old measure looks like a clock that is behind. One that changed between two looks is no older than the time between them.
    async fn hear(&self, node: &NodeStub) -> Heard {
        let began = self.clock.now();
        let first = match self.nomad.client_clock(&node.id).await {
            Ok(Some(shown)) => shown,
            Ok(None) => return Heard::Time(None),
            Err(e @ (Error::PermissionDenied { .. } | Error::NoLeader { .. } | Error::Unreachable { .. })) => {
                return Heard::NotAsked(chain(&e));
            }
            Err(e) => return Heard::Silent(chain(&e)),
        };
        let skew = Skew::of(first, MEASURE_AGE, began, self.clock.now());
        if skew.sure() >= 0.0 || skew.verdict(self.shortest_grace()) == Verdict::Ok {
            return Heard::Time(Some(skew));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        let sent = self.clock.now();
        match self.nomad.client_clock(&node.id).await {
            Ok(Some(shown)) if shown != first => {
                let received = self.clock.now();
                Heard::Time(Some(Skew::of(shown, received.since(began), sent, received)))
            }
            _ => Heard::Time(None),
        }
    }
}

fn late(name: &str, missing: usize, all: usize) -> Check {
    Check::not_checked(
        name,
        format!("{missing} of {} did not answer within {}", counted(all, "node"), duration::format(DEADLINE)),
    )
}

fn down(nodes: &[NodeStub]) -> Check {
    let away: Vec<String> = nodes.iter().filter(|n| n.status != NodeStatus::Ready).map(|n| n.name.clone()).collect();
    if away.is_empty() {
        return Check::ok(DOWN, format!("{} ready", counted(nodes.len(), "node")));
    }
    let found = format!("{} of {} not ready: {}", away.len(), counted(nodes.len(), "node"), doctor::names(away));
    Check::warning(
        DOWN,
        found,
        "a stop waits for what runs there until the node is back; a node that is gone for good: `nomad system gc`",
    )
}

fn drivers(up: &[NodeStub], signalless: &[String]) -> Check {
    let has = |n: &&NodeStub| n.drivers.iter().any(|d| signalless.contains(d));
    let with: Vec<String> = up.iter().filter(has).map(|n| n.name.clone()).collect();
    let which = signalless.join(", ");
    if with.is_empty() {
        return Check::ok(DRIVERS, format!("no node runs one that takes no signals ({which})"));
    }
    let found =
        format!("{} can run {which}, which takes no signals: such a task keeps its author's kill_timeout", doctor::nodes(with));
    Check::ok(DRIVERS, found)
}
