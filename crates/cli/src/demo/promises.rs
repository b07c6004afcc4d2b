//! What was promised, and what came of it.

use std::time::Duration;

use curfew_client::OperationView;
use curfew_core::Timestamp;
use curfew_core::operation::{State, TaskOutcome};

use crate::output::table;
use crate::timeline::how;

/// How long after its clock a task may be found dead.
const DEAD_WITHIN: Duration = Duration::from_millis(500);

#[derive(Default)]
pub struct Promises {
    rows: Vec<(String, String, bool)>,
}

impl Promises {
    fn note(&mut self, promise: &str, what: String, kept: bool) {
        self.rows.push((promise.to_owned(), what, kept));
    }

    pub fn all_kept(&self) -> bool {
        self.rows.iter().all(|r| r.2)
    }

    pub fn table(&self) -> String {
        let rows = self.rows.iter().map(|(promise, what, kept)| {
            let kept = if *kept { "kept" } else { "NOT KEPT" };
            [promise.clone(), what.clone(), kept.to_owned()]
        });
        table(["PROMISE", "WHAT HAPPENED", ""], rows.collect())
    }

    pub fn graceful(&mut self, op: &OperationView) {
        let tasks: Vec<_> = tasks(op).collect();
        let by_themselves = tasks.iter().all(|t| t.signalled_at.is_none() && t.exit_code == Some(0));
        let what = format!(
            "{} of {} exited with code 0, no SIGKILL",
            tasks.iter().filter(|t| t.exit_code == Some(0)).count(),
            tasks.len()
        );
        self.note("A job that heeds SIGTERM is left to end by itself", what, done(op) && !tasks.is_empty() && by_themselves);
    }

    pub fn killed(&mut self, promise: &str, op: &OperationView) {
        let mut any = false;
        for t in tasks(op) {
            any = true;
            let (Some(clock), Some(sent), Some(end)) = (t.kill_at, t.signalled_at, t.ended_at) else {
                self.note(promise, format!("{}, no SIGKILL", how(t)), false);
                continue;
            };
            let what = format!(
                "SIGKILL {:+.3}s, dead {:+.3}s from the clock ({})",
                sent.seconds_after(clock),
                end.seconds_after(clock),
                how(t)
            );
            let kept = done(op) && sent >= clock && end <= clock + DEAD_WITHIN && t.signal == Some(9);
            self.note(promise, what, kept);
        }
        if !any {
            self.note(promise, "no task was there to be stopped".into(), false);
        }
    }

    pub fn stopped_cleanly(&mut self, clean: bool) {
        let what = if clean { "exit code 0" } else { "another exit code" };
        self.note("A controller that is told to stop ends cleanly in the middle of a stop", what.into(), clean);
    }

    pub fn same_clock(&mut self, before: Timestamp, op: &OperationView) {
        for t in tasks(op) {
            // The event that tells the SIGTERM may show a moment later than the stop.
            let moved = t.kill_at.map_or(f64::INFINITY, |k| k.seconds_after(before));
            self.note("A restart neither shortens nor resets a clock", format!("it moved by {moved:+.3}s"), moved.abs() < 1.0);
        }
    }

    /// `late`: how long after the deadline each task that was killed had ended.
    pub fn drained(&mut self, datacenter: &str, op: &OperationView, alive: usize, late: &[f64]) {
        let last = late.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let what = format!("{alive} tasks alive, the last was dead {last:+.3}s from the deadline");
        let in_time = !late.is_empty() && late.iter().all(|l| *l >= 0.0 && *l <= DEAD_WITHIN.as_secs_f64());
        self.note(&format!("Nothing of {datacenter} lives at the drain's deadline"), what, done(op) && alive == 0 && in_time);
    }

    pub fn reaped(&mut self, done: usize, left: usize, healthy: bool) {
        let beside =
            if healthy { "the healthy job beside it is the same process" } else { "the healthy job beside it was touched" };
        let what = format!("{done} task ended by the gc, {left} alive; {beside}");
        self.note("The gc reaps what a lost controller left, and nothing else", what, done == 1 && left == 0 && healthy);
    }

    pub fn nothing_left(&mut self, job: &str, alive: usize) {
        self.note(&format!("Nothing of {job} lives at the end"), format!("{alive} tasks alive"), alive == 0);
    }
}

fn tasks(op: &OperationView) -> impl Iterator<Item = &TaskOutcome> {
    op.outcome.iter().flat_map(|o| &o.allocations).flat_map(|a| &a.tasks)
}

fn done(op: &OperationView) -> bool {
    op.state == State::Succeeded
}
