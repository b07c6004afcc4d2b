//! An operation as a story: one line for each thing that happened, at the time it happened.

use std::collections::HashSet;

use curfew_client::OperationView;
use curfew_core::operation::{AllocOutcome, State, TaskOutcome};
use curfew_core::{Timestamp, duration};

/// Turns what is known of an operation now into the lines that were not said before.
#[derive(Default)]
pub struct Timeline {
    said: HashSet<String>,
    /// Lines count from here; the request when absent.
    zero: Option<Timestamp>,
}

impl Timeline {
    pub fn since(zero: Timestamp) -> Self {
        Self { zero: Some(zero), ..Self::default() }
    }

    /// Lines of an operation count from here.
    pub fn zero(&self, op: &OperationView) -> Timestamp {
        self.zero.unwrap_or(op.requested_at)
    }

    pub fn lines(&mut self, op: &OperationView) -> Vec<String> {
        let new = self.events(op);
        told(new, self.zero(op))
    }

    /// What was not said before, in no order.
    pub fn events(&mut self, op: &OperationView) -> Vec<(Timestamp, String)> {
        let first = self.said.is_empty();
        let mut new: Vec<(Timestamp, String)> = Vec::new();
        let mut say = |at: Timestamp, key: String, text: String| {
            if self.said.insert(key) {
                new.push((at, text));
            }
        };
        let target = op.target.name();
        say(op.requested_at, "requested".into(), format!("{target}: {} accepted (operation {})", op.kind.as_str(), op.id));
        // What was learned on the way is told when it is known.
        let learned = if first { op.requested_at } else { op.finished_at.unwrap_or(op.requested_at) };
        for w in &op.warnings {
            say(learned, format!("warning {w}"), format!("{target}: warning: {w}"));
        }
        for a in op.outcome.iter().flat_map(|o| &o.allocations) {
            for t in &a.tasks {
                task_lines(a, t, &mut say);
            }
        }
        if let Some(at) = op.finished_at {
            let text = match op.state {
                State::Succeeded => "done".to_owned(),
                other => format!("{}{}", other.as_str(), op.error.as_ref().map_or(String::new(), |e| format!(": {e}"))),
            };
            say(at, "finished".into(), format!("{target}: {text}"));
        }
        new
    }
}

/// As lines in the order of their times.
pub fn told(mut events: Vec<(Timestamp, String)>, zero: Timestamp) -> Vec<String> {
    events.sort_by_key(|(at, _)| *at);
    events.into_iter().map(|(at, text)| format!("{:>+8.3}s  {text}", at.seconds_after(zero))).collect()
}

fn task_lines(a: &AllocOutcome, t: &TaskOutcome, say: &mut impl FnMut(Timestamp, String, String)) {
    let who = format!("{} {}/{} on {}", a.job, a.id.short(), t.name, a.node);
    let key = |what: &str| format!("{}/{} {what}", a.id, t.name);
    if let Some(at) = t.term_at {
        let left = t.kill_at.map_or(String::new(), |k| format!(", SIGKILL in {}", duration::human(k.since(at))));
        say(at, key("term"), format!("{who}: told to end{left}"));
    }
    if let Some(at) = t.signalled_at {
        let late = t.kill_at.map_or(String::new(), |k| format!(" ({:+.3}s from its clock)", at.seconds_after(k)));
        say(at, key("kill"), format!("{who}: SIGKILL sent{late}"));
    }
    if let Some(at) = t.ended_at {
        say(at, key("end"), format!("{who}: ended, {}", how(t)));
    }
}

/// `exit code 0`, `exit code 137, signal 9`.
pub fn how(t: &TaskOutcome) -> String {
    match (t.exit_code, t.signal) {
        (Some(code), Some(signal)) if signal != 0 => format!("exit code {code}, signal {signal}"),
        (Some(code), _) => format!("exit code {code}"),
        _ => "Nomad does not say how".into(),
    }
}

/// What it comes to, in a line.
pub fn summary(op: &OperationView) -> String {
    let Some(o) = &op.outcome else { return format!("{} {}", op.target.name(), op.state.as_str()) };
    let tasks = |n: u32| if n == 1 { "1 task".to_owned() } else { format!("{n} tasks") };
    let took = op.finished_at.map_or(String::new(), |t| format!(" in {}", duration::human(t.since(op.requested_at))));
    match (o.exited, o.killed) {
        (0, 0) => format!("{} stopped{took}: no task was alive", op.target.name()),
        (e, k) => format!("{} stopped{took}: {} ended by themselves, {} needed SIGKILL", op.target.name(), tasks(e), tasks(k)),
    }
}
