//! Stop: DELETE the job, then wait until none of its tasks lives. The clocks do the killing; this only watches.
//!
//! ```text
//!  queued ──▶ DELETE ──▶ evaluation complete ──▶ every allocation over, read once more ──▶ succeeded
//!               │  ▲            (event, else GET)     │ no: wait for events or the clocks
//!   no answer:  ▼  │ same registration as asked for   ▼
//!            unknown ──▶ read the job ── registered again since ──▶ failed, the new one is left alone
//!                              └─ stopped or gone ──▶ go on as after a DELETE
//! ```
//!
//! Cancelled before Nomad heard of it, the job stays as it is. After that nothing can be taken back, and the end says so.

use std::time::Duration;

use curfew_core::audit::Action;
use curfew_core::gc::{Purge, purge_when_dead};
use curfew_core::operation::{Demand, Operation, Progress, State};
use curfew_core::{JobKey, outcome};
use curfew_nomad::Error;
use curfew_store::StepResult;
use serde_json::{Value, json};

use super::{Done, Stopping, Tools};
use crate::error::chain;
use crate::keeper::StopReport;
use crate::observer::finished;

/// A DELETE this soon after its request needs no look at the job first: nobody registered it again unseen.
const PROMPT: Duration = Duration::from_secs(5);
/// Without events an evaluation is asked for after this.
const EVAL_WAIT: Duration = Duration::from_secs(2);
/// How soon it looks again whether a job can be purged.
const PURGE_LOOK: Duration = Duration::from_millis(500);
const TELLING: &str = "Nomad to tell the job's allocations";
/// How often a waiting stop looks by itself: a quarter of the time that is left until its last clock, between these two. What it
/// waits for wakes it, and the keeper hears of that from lists as well as from events, so this is only for what nobody thought of.
const LOOK: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(3600)];

impl Tools {
    pub(super) async fn stop(&self, op: &Operation, target: &JobKey, demands: &[Demand]) -> Result<Done, Stopping> {
        // The clocks must know the request's timeout before the first task hears of it.
        self.keeper.tell(op.clone()).await;
        if op.cancel.is_some() {
            return self.cancel_stop(op, target).await;
        }
        if op.progress.demands_sent < demands.len() {
            return self.delete(op, target, demands).await;
        }
        let Some(report) = self.keeper.report(op.id, target.clone()).await else {
            return Ok(self.elsewhere(op));
        };
        if let Some(eval) = op.progress.eval.as_ref().filter(|_| !report.eval_done) {
            // Woken before its time by something else: the event is likely on its way.
            if self.clock.now() < op.run_at {
                return Ok(Done { result: self.waiting(op, op.run_at, TELLING.into()), audit: vec![] });
            }
            match self.read(self.nomad.evaluation(eval)).await? {
                Ok(Some(e)) if !finished(&e.state) => {
                    let why = format!("Nomad to process evaluation {eval} ({:?})", e.state).to_lowercase();
                    return Ok(Done { result: self.waiting(op, self.clock.now() + EVAL_WAIT, why), audit: vec![] });
                }
                // Gone: it was complete long ago.
                Ok(_) => self.keeper.eval_done(eval.clone()).await,
                Err(e) => return Ok(self.retry(op, chain(&e), false)),
            }
        }
        // What is listed before the clock comes to it needs no question of its own: there may be thousands of stops, and the next
        // one's SIGTERM waits for its turn behind them.
        let listed_often = self.config.resync_interval * 3;
        if !report.open.is_empty() && report.deadline.is_some_and(|at| at > self.clock.now() + listed_often) {
            return Ok(self.goes_on(op, report));
        }
        // Each way of hearing of allocations can miss one; this asks for all that are not over.
        let open = match self.read(self.keeper.not_over(target.clone())).await? {
            Ok(open) => open,
            Err(why) => return Ok(self.retry(op, why, false)),
        };
        let index = op.progress.delete_index.unwrap_or(u64::MAX);
        let mine: Vec<_> = open.into_iter().filter(|a| a.create_index < index).collect();
        if mine.is_empty() && report.gap {
            // Some may have ended while nobody looked: they belong into the report.
            match self.read(self.nomad.job_allocations(target)).await? {
                Ok((all, _)) => self.keeper.observed(all.into_iter().filter(|a| a.create_index < index).collect()).await,
                Err(e) => return Ok(self.retry(op, chain(&e), false)),
            }
        }
        if !mine.is_empty() {
            self.keeper.observed(mine.clone()).await;
        }
        let Some(report) = self.keeper.report(op.id, target.clone()).await else {
            return Ok(self.elsewhere(op));
        };
        if mine.is_empty() && report.open.is_empty() {
            if !demands.iter().any(|d| d.purge) {
                return Ok(self.ended(op, report.allocations, report.warnings));
            }
            return self.purge(op, target, report).await;
        }
        if mine.is_empty() {
            // The keeper has not heard of some end: it reads those anew.
            for id in &report.open {
                match self.read(self.nomad.allocation(id)).await? {
                    Ok(Some((a, _))) => self.keeper.observed(vec![a]).await,
                    Ok(None) => self.keeper.resynced(self.clock.now()).await,
                    Err(e) => return Ok(self.retry(op, chain(&e), false)),
                }
            }
            let result =
                self.waiting(op, self.clock.now() + Duration::from_millis(500), "the last allocations to be read".into());
            return Ok(Done { result, audit: vec![] });
        }
        Ok(self.goes_on(op, report))
    }

    fn goes_on(&self, op: &Operation, report: StopReport) -> Done {
        let now = self.clock.now();
        let run_at = now + next_look(report.deadline.map(|d| d.since(now)), !report.open.is_empty());
        let why = report.waiting_for.unwrap_or_else(|| "its allocations to end".into());
        let mut result = self.waiting(op, run_at, why);
        result.deadline = report.deadline.or(op.deadline);
        Done { result, audit: vec![] }
    }

    /// Nothing of it lives. Purged on evidence that is read once more; while something may live, not (design fact 6).
    async fn purge(&self, op: &Operation, target: &JobKey, mut report: StopReport) -> Result<Done, Stopping> {
        let evidence = async {
            let Some(stub) = self.nomad.job_stub(target).await? else { return Ok(None) };
            let (allocations, bad) = self.nomad.job_allocations(target).await?;
            let Some(after) = self.nomad.job_stub(target).await? else { return Ok(None) };
            Ok(Some(purge_when_dead(&stub, &allocations, bad.len(), &after)))
        };
        let purge: Result<Option<Purge>, Error> = self.read(evidence).await?;
        let mut purged = vec![];
        match purge {
            Ok(Some(Purge::Now(order))) => match self.change(self.nomad.purge_job(&order)).await? {
                Ok(()) => {
                    purged.push(self.entry(op, Action::JobPurged, json!({ "job": target.job, "namespace": target.namespace })))
                }
                Err(e) => return Ok(self.retry(op, chain(&e), e.outcome_unknown())),
            },
            Ok(Some(Purge::NotYet(why))) => {
                let result = self.waiting(op, self.clock.now() + PURGE_LOOK, format!("its purge: {why}"));
                return Ok(Done { result, audit: vec![] });
            }
            // Somebody wants it again.
            Ok(Some(Purge::Keep | Purge::StopFirst)) => {
                report.warnings.push(format!("{target} was registered again and is not purged"));
            }
            Ok(None) => {}
            Err(e) => return Ok(self.retry(op, chain(&e), false)),
        }
        let mut done = self.ended(op, report.allocations, report.warnings);
        done.audit.splice(0..0, purged);
        Ok(done)
    }

    /// The clocks are kept by another controller now, which looks at this at once; or this one is stopping.
    pub(super) fn elsewhere(&self, op: &Operation) -> Done {
        Done { result: self.waiting(op, self.clock.now(), "the controller that keeps the clocks".into()), audit: vec![] }
    }

    /// Nobody is asked to forget a SIGTERM: what Nomad was told stays told.
    async fn cancel_stop(&self, op: &Operation, target: &JobKey) -> Result<Done, Stopping> {
        let known = &op.progress;
        let mut told = known.sent_at.is_some() || known.delete_index.is_some() || known.demands_sent > 0;
        if known.unknown && !told {
            match self.read(self.nomad.job(target)).await? {
                Ok(job) => told = job.is_none_or(|j| j["Stop"] == true),
                Err(e) => return Ok(self.retry(op, chain(&e), false)),
            }
        }
        let warning = told.then(|| {
            format!(
                "Nomad was told to stop {target} already and its SIGTERM is out: its tasks end by their own stop timeouts. Register the job again to have it back"
            )
        });
        let mut done = self.cancelled(op, warning);
        if told && let Some(report) = self.keeper.report(op.id, target.clone()).await {
            done.result.outcome = Some(outcome::total(report.allocations));
        }
        Ok(done)
    }

    async fn delete(&self, op: &Operation, target: &JobKey, demands: &[Demand]) -> Result<Done, Stopping> {
        let unsent = demands.get(op.progress.demands_sent..).unwrap_or_default();
        let Some(newest) = unsent.last() else { return Ok(self.failed(op, "the request holds no demand".into())) };
        let prompt = !op.progress.unknown && self.clock.now().since(newest.at) < PROMPT;
        if !prompt {
            match self.read(self.look_before_repeating(op, target, newest, demands.len())).await? {
                Ok(None) => {}
                Ok(Some(done)) => return Ok(done),
                Err(e) => return Ok(self.retry(op, chain(&e), false)),
            }
        }
        let no_shutdown_delay = unsent.iter().any(|d| d.no_shutdown_delay);
        let answer = self.change(self.nomad.delete_job(target, no_shutdown_delay)).await?;
        Ok(match answer {
            Ok(d) => {
                let detail = json!({ "index": d.job_modify_index, "eval": d.eval });
                let progress = Progress {
                    demands_sent: demands.len(),
                    sent_at: op.progress.sent_at.or(Some(self.clock.now())),
                    delete_index: Some(d.job_modify_index),
                    eval: d.eval,
                    unknown: false,
                    ..Progress::default()
                };
                self.deleted(op, target, progress, detail).await
            }
            Err(e) if e.outcome_unknown() => self.retry(op, chain(&e), true),
            // A token can be mended, a leader found: what was accepted is not given up.
            Err(e) => self.retry(op, chain(&e), false),
        })
    }

    /// A DELETE may have been done already, and the job registered again since: that one is not to be touched.
    async fn look_before_repeating(
        &self,
        op: &Operation,
        target: &JobKey,
        asked: &Demand,
        demands: usize,
    ) -> Result<Option<Done>, Error> {
        let job = self.nomad.job(target).await?;
        let index = job.as_ref().and_then(|j| j["JobModifyIndex"].as_u64());
        let stopped = job.as_ref().is_none_or(|j| j["Stop"] == true);
        if stopped {
            // Gone counts like stopped: what was created before now is this stop's.
            let progress = Progress {
                demands_sent: demands,
                sent_at: op.progress.sent_at,
                delete_index: Some(index.unwrap_or(u64::MAX)),
                eval: None,
                unknown: false,
                ..Progress::default()
            };
            let detail = json!({ "index": index, "found": if job.is_some() { "stopped already" } else { "gone already" } });
            return Ok(Some(self.deleted(op, target, progress, detail).await));
        }
        if asked.job_index != 0 && index.is_some_and(|i| i > asked.job_index) {
            let why = format!(
                "job {target} was registered again (index {}) before this stop reached Nomad; the new one was left alone. Stop it again if that is what you want",
                index.unwrap_or(0)
            );
            return Ok(Some(self.failed(op, why)));
        }
        Ok(None)
    }

    async fn deleted(&self, op: &Operation, target: &JobKey, progress: Progress, detail: Value) -> Done {
        let index = progress.delete_index.unwrap_or(u64::MAX);
        // How late the DELETE was counts for the clocks.
        let late = Progress { sent_at: progress.sent_at, ..op.progress.clone() };
        self.keeper.tell(Operation { progress: late, ..op.clone() }).await;
        self.keeper.stop_deleted(op.id, target.clone(), index, progress.eval.clone()).await;
        // Without an evaluation (periodic, parameterized, gone) there is nothing to wait for.
        let wait = if progress.eval.is_some() { EVAL_WAIT } else { Duration::ZERO };
        let audit = vec![self.entry(op, Action::JobDeleted, detail)];
        let run_at = self.clock.now() + wait;
        Done { result: StepResult { progress, ..self.waiting(op, run_at, TELLING.into()) }, audit }
    }

    fn ended(&self, op: &Operation, allocations: Vec<curfew_core::operation::AllocOutcome>, warnings: Vec<String>) -> Done {
        let outcome = outcome::total(allocations);
        let detail = json!({ "exited": outcome.exited, "killed": outcome.killed });
        let deadline = outcome.allocations.iter().flat_map(|a| &a.tasks).filter_map(|t| t.kill_at).max().or(op.deadline);
        let mut result = StepResult { outcome: Some(outcome), deadline, ..self.result(op, State::Succeeded) };
        for w in warnings {
            if !result.warnings.contains(&w) {
                result.warnings.push(w);
            }
        }
        Done { result, audit: vec![self.entry(op, Action::Succeeded, detail)] }
    }
}

/// After how long a waiting stop looks again, when `left` is left until its last clock. `open`: the keeper follows what it waits
/// for, and will wake it.
fn next_look(left: Option<Duration>, open: bool) -> Duration {
    const SOON: Duration = Duration::from_secs(2);
    match left {
        _ if !open => SOON,
        None => LOOK[0],
        Some(left) => (left / 4).clamp(LOOK[0], LOOK[1]).min(left + SOON),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_that_waits_long_seldom_looks_and_never_past_its_clock() {
        let s = Duration::from_secs;
        for (left, look) in [(0, 2), (10, 12), (28, 30), (100, 30), (400, 100), (14_000, 3500), (200_000, 3600)] {
            assert_eq!(next_look(Some(s(left)), true), s(look), "{left}");
        }
        assert_eq!(next_look(None, true), s(30));
        // Nobody would wake it.
        assert_eq!(next_look(Some(s(200_000)), false), s(2));
    }
}
