//! Stops that have not finished: which allocations are theirs, and how far each has come.

use std::collections::BTreeSet;
use std::time::Duration;

use curfew_core::operation::{AllocOutcome, Demand, Operation, Request};
use curfew_core::spec::JobSpec;
use curfew_core::{AllocId, EvalId, JobKey, OpId, Timestamp, outcome};

use super::book::{Book, Effect};
use super::shelf::Tracked;

/// Evaluations of anybody's that may be complete between a DELETE and its answer.
const EARLY_EVALS: usize = 512;

/// A live stop operation.
pub(super) struct Stop {
    pub(super) op: OpId,
    pub(super) demands: Box<[Demand]>,
    /// Of the row that the demands are from: who read it earlier may come later.
    revision: u64,
    /// See `Context::late`.
    pub(super) late: Duration,
    pub(super) delete_index: Option<u64>,
    /// Until it is complete.
    eval: Option<EvalId>,
    /// Nomad has told every allocation: the evaluation of the DELETE is complete.
    eval_done: bool,
    /// Events may have been lost since it was opened.
    pub(super) gap: bool,
    ready: bool,
}

impl Stop {
    /// Whether an allocation placed by this specification is this stop's: registered before the DELETE.
    pub(super) fn covers(&self, spec: &JobSpec) -> bool {
        self.delete_index.is_none_or(|i| spec.job_modify_index < i)
    }
}

/// What a waiting stop operation can say about itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StopReport {
    /// Nomad has told every allocation, as far as is known.
    pub eval_done: bool,
    /// Events may have been lost since the stop was opened.
    pub gap: bool,
    pub waiting_for: Option<String>,
    /// The last clock's instant.
    pub deadline: Option<Timestamp>,
    pub allocations: Vec<AllocOutcome>,
    /// Covered allocations that are not known to be over.
    pub open: Vec<AllocId>,
    pub warnings: Vec<String>,
}

impl Book {
    /// An operation that the clocks must know of was accepted, changed, ended, or found again after a restart.
    pub fn changed(&mut self, op: &Operation, now: Timestamp, fx: &mut Vec<Effect>) {
        match (&op.request, op.state.is_finished()) {
            (Request::Stop { target, .. }, true) => self.stop_closed(op.id, target, now, fx),
            (Request::Stop { .. }, false) => self.stop_opened(op, now, fx),
            (Request::DrainNode { node, .. }, true) => self.drain_closed(op.id, &node.id, now, fx),
            (Request::DrainNode { .. }, false) => self.drain_opened(op, now, fx),
            (
                Request::Submit { .. }
                | Request::DrainDatacenter { .. }
                | Request::Undrain { .. }
                | Request::Rollout { .. }
                | Request::Deployment { .. },
                _,
            ) => {}
        }
    }

    /// A stop was accepted, joined, or found again after a restart.
    pub fn stop_opened(&mut self, op: &Operation, now: Timestamp, fx: &mut Vec<Effect>) {
        let Request::Stop { target, demands } = &op.request else { return };
        let (key, demands) = (self.kept(target), demands.as_slice().into());
        match self.jobs.get_mut(&key) {
            Some(s) if s.op == op.id => {
                if op.revision >= s.revision {
                    (s.demands, s.revision) = (demands, op.revision);
                }
                // A row that was read before its DELETE was written down does not know yet.
                s.late = s.late.max(op.late());
                // Another controller kept the clocks when its DELETE was sent, or somebody died over it: not all was seen here.
                let elsewhere = op.progress.delete_index > s.delete_index;
                s.gap |= elsewhere || op.progress.unknown;
                if elsewhere {
                    self.told(op.id, &key, op.progress.delete_index, op.progress.eval.clone());
                }
            }
            _ => {
                let delete_index = op.progress.delete_index;
                // Found again after a restart: whatever happened in between was not seen.
                let gap = op.progress.demands_sent > 0 || op.progress.unknown;
                let eval = op.progress.eval.clone();
                if let Some(eval) = &eval {
                    self.evals.insert(eval.clone(), key.clone());
                }
                let (revision, late) = (op.revision, op.late());
                let stop = Stop { op: op.id, demands, revision, late, delete_index, eval, eval_done: false, gap, ready: false };
                self.jobs.put(&key, stop);
            }
        }
        self.settle_job(&key, now, fx);
    }

    /// Nomad took the DELETE.
    pub fn stop_deleted(
        &mut self,
        op: OpId,
        key: &JobKey,
        index: u64,
        eval: Option<EvalId>,
        now: Timestamp,
        fx: &mut Vec<Effect>,
    ) {
        self.told(op, key, Some(index), eval);
        self.settle_job(key, now, fx);
    }

    fn told(&mut self, op: OpId, key: &JobKey, index: Option<u64>, eval: Option<EvalId>) {
        let Some(s) = self.jobs.get_mut(key).filter(|s| s.op == op) else { return };
        if let Some(old) = s.eval.take() {
            self.evals.remove(&old);
        }
        s.delete_index = index;
        s.ready = false;
        s.eval = eval.filter(|e| !self.early_evals.contains(e));
        s.eval_done = s.eval.is_none();
        if let Some(eval) = &s.eval {
            self.evals.insert(eval.clone(), key.clone());
        }
    }

    /// An evaluation is complete: if it was a stop's, every allocation has been told.
    pub fn eval_done(&mut self, eval: &EvalId, fx: &mut Vec<Effect>) {
        let Some(key) = self.evals.remove(eval) else {
            // Nomad is often done before its answer to the DELETE has been handled here.
            if self.early_evals.len() >= EARLY_EVALS {
                self.early_evals.pop_front();
            }
            self.early_evals.push_back(eval.clone());
            return;
        };
        if let Some(s) = self.jobs.get_mut(&key).filter(|s| s.eval.as_ref() == Some(eval)) {
            (s.eval_done, s.eval) = (true, None);
        }
        self.check_ready(&key, fx);
    }

    /// The operation is finished; what was kept for its report can go.
    pub fn stop_closed(&mut self, op: OpId, key: &JobKey, now: Timestamp, fx: &mut Vec<Effect>) {
        if self.jobs.get(key).is_none_or(|s| s.op != op) {
            return;
        }
        if let Some(eval) = self.jobs.take(key).and_then(|s| s.eval) {
            self.evals.remove(&eval);
        }
        self.settle_job(key, now, fx);
    }

    pub fn stop_report(&self, op: OpId, key: &JobKey, now: Timestamp) -> Option<StopReport> {
        let stop = self.jobs.get(key).filter(|s| s.op == op)?;
        let mut report = StopReport { eval_done: stop.eval_done, gap: stop.gap, ..StopReport::default() };
        let (mut live, mut nodes) = (0usize, BTreeSet::new());
        for id in self.jobs.of(key) {
            let Some(t) = self.allocs.get(id).filter(|t| self.covered(stop, t)) else { continue };
            let Some(alloc) = &t.alloc else {
                report.open.push(id.clone());
                continue;
            };
            if !self.over(&t, now) {
                report.open.push(id.clone());
            }
            live += alloc.tasks.values().filter(|t| t.lives()).count();
            let failing = t.records.iter().filter(|r| r.ended_at.is_none());
            for r in failing {
                report.deadline = report.deadline.max(Some(r.due));
                if let Some(e) = &r.last_error {
                    nodes.insert(format!("node {} ({e})", r.node_name));
                }
            }
            if !t.unreachable.is_empty() {
                nodes.insert(format!(
                    "node {} to come back (allocation {} is {})",
                    alloc.node_name,
                    id.short(),
                    alloc.client_status.as_str()
                ));
            }
            // What an earlier cause had ended is not this stop's doing.
            let records: Vec<_> = t.records.iter().filter(|r| r.operation == Some(stop.op)).cloned().collect();
            report.allocations.push(outcome::of_allocation(
                alloc,
                t.spec.as_deref(),
                &stop.demands,
                None,
                &records,
                &self.graces,
            ));
            if let Some((cut, node)) = self.cut_kill_timeout(alloc) {
                report.warnings.push(format!(
                    "node {node} cut kill_timeout to {}: its max_kill_timeout is lower than {}, so Nomad itself sends SIGKILL then",
                    curfew_core::duration::format(cut),
                    curfew_core::duration::format(self.kill_timeout)
                ));
            }
        }
        report.allocations.sort_by(|a, b| a.id.cmp(&b.id));
        report.warnings.sort();
        report.warnings.dedup();
        let tasks = |n: usize| if n == 1 { "1 task".to_owned() } else { format!("{n} tasks") };
        report.waiting_for = if !nodes.is_empty() {
            let nodes: Vec<_> = nodes.into_iter().take(5).collect();
            Some(format!("{}; {} may live there", nodes.join(", "), tasks(live)))
        } else if live > 0 {
            let left = match &self.leave.paused {
                Some(by) => format!(", and somebody to resume kill: {} paused it, no SIGKILL is sent", by.actor),
                None => report.deadline.map_or(String::new(), |d| format!(", SIGKILL at {d}")),
            };
            Some(format!("{} to end{left}", tasks(live)))
        } else if !report.open.is_empty() {
            Some("Nomad to report the end of its allocations".into())
        } else if !stop.eval_done {
            Some("Nomad to tell the job's allocations".into())
        } else {
            None
        };
        Some(report)
    }

    fn covered(&self, stop: &Stop, t: &Tracked) -> bool {
        match (&t.spec, &t.alloc) {
            (Some(spec), _) => stop.covers(spec),
            (None, Some(alloc)) => stop.delete_index.is_none_or(|i| alloc.create_index < i),
            (None, None) => t.records.iter().any(|r| r.operation == Some(stop.op)),
        }
    }

    pub(super) fn check_ready(&mut self, key: &JobKey, fx: &mut Vec<Effect>) {
        let Some(stop) = self.jobs.get(key) else { return };
        let open = |id: &AllocId| {
            self.allocs.get(id).is_some_and(|t| self.covered(stop, &t) && t.alloc.as_ref().is_none_or(|_| !self.over(&t, t.seen)))
        };
        let ready = stop.eval_done && stop.delete_index.is_some() && !self.jobs.of(key).any(open);
        if ready && !stop.ready {
            fx.push(Effect::Nudge(stop.op));
        }
        if let Some(stop) = self.jobs.get_mut(key) {
            stop.ready = ready;
        }
    }
}
