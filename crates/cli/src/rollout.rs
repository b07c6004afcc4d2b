//! A rollout as a story: a line for each thing that happened, and how far each group is.

use std::collections::HashSet;

use curfew_client::OperationView;
use curfew_core::operation::State;
use curfew_core::rollout::{End, GroupView, Happening, RolloutView, What};
use curfew_core::{Timestamp, duration};

use crate::timeline::told;

fn view(op: &OperationView) -> Option<&RolloutView> {
    op.outcome.as_ref()?.rollout.as_ref()
}

/// Says each thing once.
#[derive(Default)]
pub struct Story {
    said: HashSet<String>,
}

impl Story {
    pub fn news(&mut self, op: &OperationView) -> Vec<String> {
        let mut new: Vec<(Timestamp, String)> = vec![];
        let job = op.target.name();
        let mut say = |at: Timestamp, key: String, text: String| {
            if self.said.insert(key) {
                new.push((at, text));
            }
        };
        say(op.requested_at, "requested".into(), format!("{job}: rollout accepted (operation {})", op.id));
        for w in &op.warnings {
            say(op.requested_at, format!("warning {w}"), format!("{job}: warning: {w}"));
        }
        let Some(view) = view(op) else { return told(new, op.requested_at) };
        for d in &view.deployments {
            let id = d.id.get(..8).unwrap_or(&d.id);
            let back = if d.rollback { ", going back" } else { "" };
            say(d.seen_at, format!("{} seen", d.id), format!("{job}: deployment {id} of version {}{back}", d.version));
            if let Some(at) = d.ended_at {
                say(at, format!("{} over", d.id), format!("{job}: deployment {id}: {}", d.description));
            }
        }
        for (name, group) in &view.groups {
            for h in &group.timeline {
                let key = format!("{:?} {} {:?} {}", h.at, h.alloc, h.task, sort(&h.what));
                say(h.at, key, format!("{}: {}", who(name, h), what(h)));
            }
            if group.promoted {
                say(op.requested_at.max(last(group)), format!("{name} promoted"), format!("{name}: canaries promoted"));
            }
            if let Some(unplaced) = &group.unplaced {
                say(last(group).max(op.requested_at), format!("{name} {unplaced}"), format!("{name}: {unplaced}"));
            }
        }
        told(new, op.requested_at)
    }
}

fn last(group: &GroupView) -> Timestamp {
    group.timeline.last().map_or_else(Timestamp::default, |h| h.at)
}

fn who(group: &str, h: &Happening) -> String {
    let version = h.version.map_or(String::new(), |v| format!(" (version {v})"));
    let task = h.task.as_ref().map_or(String::new(), |t| format!("/{t}"));
    format!("{group} {}{task} on {}{version}", h.alloc.short(), h.node)
}

fn exit(code: i64, signal: i64) -> String {
    if signal == 0 { format!("exit code {code}") } else { format!("exit code {code}, signal {signal}") }
}

fn sort(what: &What) -> &'static str {
    match what {
        What::Placed { .. } => "placed",
        What::Started => "started",
        What::Healthy => "healthy",
        What::Unhealthy { .. } => "unhealthy",
        What::Exited { .. } => "exited",
        What::Restarting { .. } => "restarting",
        What::StartFailed { .. } => "start failed",
        What::GaveUp { .. } => "gave up",
        What::ToldToEnd { .. } => "told to end",
        What::Sigkill => "SIGKILL",
        What::Ended { .. } => "ended",
    }
}

fn what(h: &Happening) -> String {
    match &h.what {
        What::Placed { canary: true } => "placed, a canary".into(),
        What::Placed { canary: false } | What::Started | What::Healthy => sort(&h.what).into(),
        What::Unhealthy { why: Some(why) } => format!("unhealthy: {why}"),
        What::Unhealthy { why: None } => "unhealthy".into(),
        What::Exited { exit_code, signal } => format!("exited, {}", exit(*exit_code, *signal)),
        What::Restarting { number, of, within, next_at } => {
            let within = duration::human(*within);
            let next = duration::human(next_at.since(h.at));
            if number > of {
                format!("all {of} restarts of {within} are used up, the next in {next}")
            } else {
                format!("restart {number} of {of} in {within}, starts in {next}")
            }
        }
        What::StartFailed { why } => format!("could not be started: {why}"),
        What::GaveUp { why } => format!("is not started again: {why}"),
        What::ToldToEnd { kill_at } => {
            let left = kill_at.map_or(String::new(), |k| format!(", SIGKILL in {}", duration::human(k.since(h.at))));
            format!("told to end{left}")
        }
        What::Sigkill => "SIGKILL sent".into(),
        What::Ended { exit_code, signal } => format!("ended, {}", exit(*exit_code, *signal)),
    }
}

/// How far each group is, a line each, and what it waits for.
pub fn status(op: &OperationView, now: Timestamp) -> Vec<String> {
    let Some(view) = view(op) else { return vec![] };
    let mut lines: Vec<String> = view.groups.iter().map(|(name, g)| group(name, g, now)).collect();
    lines.extend(op.waiting_for.as_ref().filter(|_| !op.state.is_finished()).map(|w| format!("waiting for {w}")));
    lines
}

fn group(name: &str, g: &GroupView, now: Timestamp) -> String {
    let mut parts = vec![format!("{} of {} healthy", g.healthy, g.desired), format!("{} placed", g.placed)];
    let mut some = |n: u64, what: &str| {
        if n > 0 {
            parts.push(format!("{n} {what}"));
        }
    };
    some(g.unhealthy, "unhealthy");
    some(g.leaving, "of another version leaving");
    if g.canaries > 0 {
        parts.push(format!("{} canaries{}", g.canaries, if g.promoted { ", promoted" } else { "" }));
    }
    parts.extend(g.deadline.map(|d| format!("fails in {} without progress", duration::human(d.since(now)))));
    format!("group {name}: {}", parts.join(", "))
}

/// The end of one that went well.
pub fn summary(op: &OperationView) -> String {
    let job = op.target.name();
    let took = op.finished_at.map_or(String::new(), |t| format!(" in {}", duration::human(t.since(op.requested_at))));
    let Some(view) = view(op).filter(|_| op.state == State::Succeeded) else { return format!("{job}: {}", op.state.as_str()) };
    let version = view.version.map_or(String::new(), |v| format!("version {v} "));
    match (view.unchanged, view.deployments.is_empty()) {
        (true, _) => format!("{job}: nothing to do: Nomad has this already, {version}runs"),
        (_, true) => format!("{job}: {version}deployed{took}; without a deployment: Nomad judged no health"),
        (_, false) => format!("{job}: {version}deployed{took}"),
    }
}

/// The end of one that did not.
pub fn ended(op: &OperationView, why: &str) -> String {
    match view(op).and_then(|v| Some((v.end?, v.reverted_to))) {
        Some((End::Reverted, Some(to))) => format!("reverted to version {to}: {why}"),
        Some((end, _)) if !why.starts_with(end.as_str()) => format!("{}: {why}", end.as_str()),
        _ => why.to_owned(),
    }
}
