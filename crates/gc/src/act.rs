//! Acting on what a look found: cap, then each candidate read anew, judged again, and left alone when it is no longer so.

use std::time::Duration;

use curfew_core::audit::Action;
use curfew_core::clock::KillOrder;
use curfew_core::gc::{JobStatus, JobStub, KNOWN_SLACK, Mode, NodeLeft, Purge, Verdict, node_left, purge};
use curfew_core::operation::By;
use curfew_core::{AllocId, JobKey, NodeId, OpId, TaskName, Timestamp};
use curfew_nomad::SignalOutcome;
use futures::StreamExt;
use serde_json::{Value, json};

use crate::candidate::{Act, Candidate, Outcome};
use crate::known::entry;
use crate::look::Found;
use crate::report::Report;
use crate::{Error, Gc};

/// Candidates acted on at the same time.
const AT_ONCE: usize = 8;
/// How old the read before a SIGKILL may be.
const STALE: Duration = Duration::from_secs(1);
/// How often it is read anew when it was.
const READS: usize = 3;
/// A client reports an end within a second or so; one that does not has not ended it.
const DEAD_WITHIN: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(250);

/// What came of it, and what more there is to say.
type Came = (Outcome, String);

fn said(outcome: Outcome, text: impl Into<String>) -> Result<Came, Error> {
    Ok((outcome, text.into()))
}

impl Gc {
    /// Acts on what was found and is to be acted on.
    pub async fn act(&self, mut found: Found) -> Report {
        let capped = self.capped(&found);
        let mut done = Vec::new();
        let candidates = std::mem::take(&mut found.candidates);
        for verdict in Verdict::ALL {
            let mine: Vec<_> = candidates.iter().filter(|c| c.verdict == verdict).cloned().collect();
            if self.settings.modes.of(verdict) != Mode::Act {
                done.extend(mine);
                continue;
            }
            if capped.contains(&verdict) {
                done.extend(
                    mine.into_iter().map(|c| if c.act.is_some() { Candidate { outcome: Outcome::Capped, ..c } } else { c }),
                );
                continue;
            }
            if !found.complete(verdict) {
                done.extend(mine.into_iter().map(|c| Candidate { said: "not all could be learned: not acted on".into(), ..c }));
                continue;
            }
            let acting: Vec<_> = mine.into_iter().map(|c| self.act_on(c)).collect();
            done.extend(futures::stream::iter(acting).buffered(AT_ONCE).collect::<Vec<_>>().await);
        }
        found.candidates = done;
        self.prune(&mut found).await;
        self.remember(&mut found);
        self.report(found, false)
    }

    /// The report of a look that nobody acts on.
    pub fn dry(&self, mut found: Found) -> Report {
        let over = self.capped(&found);
        for c in &mut found.candidates {
            if c.act.is_some() && self.settings.modes.of(c.verdict) == Mode::Act {
                c.outcome = if over.contains(&c.verdict) { Outcome::Capped } else { Outcome::WouldAct };
            }
        }
        self.report(found, true)
    }

    /// The verdicts of which there is more to act on than the cap allows.
    fn capped(&self, found: &Found) -> Vec<Verdict> {
        let over = |v: &Verdict| self.settings.cap.is_some_and(|cap| found.wanted(*v) > cap);
        Verdict::ALL.into_iter().filter(|v| self.settings.modes.of(*v) == Mode::Act && over(v)).collect()
    }

    async fn act_on(&self, mut candidate: Candidate) -> Candidate {
        let Some(act) = candidate.act.clone() else { return candidate };
        let came = match &act {
            Act::Kill { alloc, task } => self.kill(alloc, task).await,
            Act::Stop { job, job_modify_index } => self.stop(candidate.verdict, job, *job_modify_index, &candidate.why).await,
            Act::Purge { job, job_modify_index } => self.purge(job, *job_modify_index).await,
            Act::Release(id) => self.release(*id).await,
            Act::MakeEligible(node) => self.make_eligible(node).await,
        };
        (candidate.outcome, candidate.said) = came.unwrap_or_else(|e| (Outcome::Failed, curfew_core::error::chain(&e)));
        let (verdict, subject) = (candidate.verdict.as_str(), serde_json::to_string(&candidate.subject).unwrap_or_default());
        tracing::info!(verdict, %subject, outcome = ?candidate.outcome, said = %candidate.said, "acted");
        candidate
    }

    async fn audit(&self, action: Action, alloc: Option<&AllocId>, task: Option<&TaskName>, detail: Value) -> Result<(), Error> {
        let row = entry(self.clock.now(), &self.who, action, detail);
        let row = curfew_core::audit::AuditEntry { alloc: alloc.cloned(), task: task.cloned(), ..row };
        self.known.audit(row).await
    }

    /// The order for one task, and the instant before the read that it rests on. `None` when it is not past its clock any more.
    async fn order(&self, alloc: &AllocId, task: &TaskName) -> Result<Option<(KillOrder, Timestamp)>, Error> {
        let Some((seen, _)) = self.nomad.allocation(alloc).await? else { return Ok(None) };
        let known = self.about(&seen).await?;
        let node = self.nomad.node(&seen.node).await?.map(|n| n.stub);
        // Last, so that as little as possible lies between it and the signal.
        let asked = self.clock.now();
        let Some((seen, Some(spec))) = self.nomad.allocation(alloc).await? else { return Ok(None) };
        let now = self.clock.now();
        let past = self.judge(&seen, &spec, &known, node.as_ref(), now).into_iter().find(|p| p.task() == task);
        Ok(past.and_then(|p| p.order(now)).map(|order| (order, asked)))
    }

    async fn kill(&self, alloc: &AllocId, task: &TaskName) -> Result<Came, Error> {
        if let Some(by) = self.known.kill_paused().await? {
            return said(Outcome::Left, format!("the kill clocks are paused by {}", by.actor));
        }
        self.audit(Action::SigkillSending, Some(alloc), Some(task), Value::Null).await?;
        let mut reads = 0;
        let (order, answer) = loop {
            let Some((order, asked)) = self.order(alloc, task).await? else {
                self.audit(Action::ClockEnded, Some(alloc), Some(task), Value::Null).await?;
                return said(Outcome::Changed, "it is not past its clock any more");
            };
            reads += 1;
            // The answer may have been long on its way, and the turn among the calls long in coming.
            match self.nomad.sigkill(&order, || self.clock.now().since(asked) < STALE).await? {
                SignalOutcome::Withheld if reads < READS => {}
                answer => break (order, answer),
            }
        };
        let refused = match answer {
            SignalOutcome::Sent => None,
            SignalOutcome::NotRunning(_) | SignalOutcome::Gone(_) => None,
            SignalOutcome::Unreachable(why) => Some(format!("its node cannot be reached: {why}")),
            SignalOutcome::Unsupported(why) => Some(format!("its driver takes no signals: {why}")),
            SignalOutcome::Withheld => Some(
                "not sent: Nomad answers so late that what was read says nothing any more; another pass reads it anew".into(),
            ),
        };
        let (action, detail) = match &refused {
            None => (Action::SigkillSent, Value::Null),
            Some(why) => (Action::SigkillFailed, json!({ "error": why })),
        };
        self.audit(action, Some(alloc), Some(task), detail).await?;
        if let Some(why) = refused {
            return said(Outcome::Left, why);
        }
        let until = tokio::time::Instant::now() + DEAD_WITHIN;
        loop {
            let dead = match self.nomad.allocation(alloc).await? {
                None => true,
                // Another incarnation is another matter.
                Some((a, _)) => a.tasks.get(task).is_none_or(|t| !t.lives() || t.incarnation() != Some(order.incarnation())),
            };
            if dead {
                return said(Outcome::Done, "SIGKILL, dead");
            }
            if tokio::time::Instant::now() >= until {
                return said(Outcome::Left, format!("it lives {}s after SIGKILL", DEAD_WITHIN.as_secs()));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The job as the list shows it now, when it is still the one that was judged.
    async fn same(&self, key: &JobKey, job_modify_index: u64) -> Result<Option<JobStub>, Error> {
        Ok(self.nomad.job_stub(key).await?.filter(|j| j.job_modify_index == job_modify_index))
    }

    async fn stop(&self, verdict: Verdict, key: &JobKey, index: u64, why: &str) -> Result<Came, Error> {
        let Some(job) = self.same(key, index).await? else { return said(Outcome::Changed, "the job was changed meanwhile") };
        if !self.still_to_stop(verdict, &job, self.clock.now()).await? {
            return said(Outcome::Changed, "it is no longer so");
        }
        if let Some(stopped) = self.known.stop(key, &self.who, &format!("{}: {why}", verdict.as_str())).await {
            let id = stopped?;
            return said(Outcome::Done, format!("stopped by the controller (operation {id})"));
        }
        self.nomad.delete_job(key, false).await?;
        self.audit(Action::JobDeleted, None, None, json!({ "job": key, "verdict": verdict, "why": why })).await?;
        said(Outcome::Done, "stopped: its tasks are told to end")
    }

    async fn purge(&self, key: &JobKey, index: u64) -> Result<Came, Error> {
        let Some(mut job) = self.same(key, index).await? else { return said(Outcome::Changed, "the job was changed meanwhile") };
        if !job.stopped {
            // Nomad could place it again between the read and the purge: not after this.
            if !matches!(self.judge_purge(&job).await?, Purge::StopFirst) {
                return said(Outcome::Changed, "it is no longer so");
            }
            self.nomad.delete_job(key, false).await?;
            match self.dead_again(key).await? {
                Some(stopped) => job = stopped,
                None => return said(Outcome::Left, "it was stopped, and is not dead yet: the next pass purges it"),
            }
        }
        // The allocations first, the job last: whatever starts one changes the job before.
        let order = match self.judge_purge(&job).await? {
            Purge::Now(order) => order,
            Purge::NotYet(why) => return said(Outcome::Changed, format!("it cannot be purged any more: {why}")),
            Purge::Keep | Purge::StopFirst => return said(Outcome::Changed, "it is no longer so"),
        };
        if self.same(key, order.job_modify_index()).await?.is_none_or(|j| j != job) {
            return said(Outcome::Changed, "the job was changed meanwhile");
        }
        self.nomad.purge_job(&order).await?;
        self.audit(Action::JobPurged, None, None, json!({ "job": key })).await?;
        match self.nomad.job(key).await? {
            None => said(Outcome::Done, "purged"),
            Some(_) => said(Outcome::Left, "Nomad took the purge, and the job is there"),
        }
    }

    async fn judge_purge(&self, job: &JobStub) -> Result<Purge, Error> {
        let (allocations, unreadable) = self.allocations(job).await?;
        let now = self.clock.now();
        let seen = (allocations.is_empty() && self.remembers()).then(|| self.sightings(|s| s.recall_dead(job))).flatten();
        Ok(purge(job, &allocations, unreadable, seen, &self.settings, now))
    }

    /// After its stop a dead job has an evaluation under way for a moment.
    async fn dead_again(&self, key: &JobKey) -> Result<Option<JobStub>, Error> {
        let until = tokio::time::Instant::now() + DEAD_WITHIN;
        loop {
            match self.nomad.job_stub(key).await? {
                Some(job) if job.stopped && job.status == JobStatus::Dead => return Ok(Some(job)),
                Some(job) if job.stopped && tokio::time::Instant::now() < until => tokio::time::sleep(LOOK).await,
                _ => return Ok(None),
            }
        }
    }

    async fn release(&self, id: OpId) -> Result<Came, Error> {
        let now = self.clock.now();
        let by = By { actor: format!("gc {}", self.who), reason: Some(Verdict::ExpiredLease.as_str().into()), at: now };
        match self.known.release(id, now - KNOWN_SLACK, by).await? {
            true => said(Outcome::Done, "back in the queue"),
            false => said(Outcome::Changed, "somebody took it over, or it has ended"),
        }
    }

    async fn make_eligible(&self, id: &NodeId) -> Result<Came, Error> {
        let Some(node) = self.nomad.node(id).await?.map(|n| n.stub) else { return said(Outcome::Changed, "the node is gone") };
        let Some(drain) = node.last_drain.as_ref().and_then(|d| d.curfew.as_ref()) else {
            return said(Outcome::Changed, "somebody else drained it since");
        };
        let state = self.known.state(drain.operation).await?;
        if !matches!(node_left(node.eligible, node.draining, drain.was_eligible, state), NodeLeft::MakeEligible(_)) {
            return said(Outcome::Changed, "it is no longer so");
        }
        self.nomad.undrain_node(id, drain.was_eligible).await?;
        said(Outcome::Done, if drain.was_eligible { "eligible again" } else { "its drain is ended" })
    }

    async fn prune(&self, found: &mut Found) {
        if self.settings.modes.of(Verdict::Retention) != Mode::Act {
            return;
        }
        match self.known.prune(&self.settings, self.clock.now()).await {
            Ok(Some(pruned)) if pruned.operations + pruned.audit > 0 => {
                found.notes.push(format!(
                    "{} operations and {} audit rows past their retention removed",
                    pruned.operations, pruned.audit
                ));
            }
            Ok(_) => {}
            Err(e) => found.failures.push((vec![Verdict::Retention], curfew_core::error::chain(&e))),
        }
    }

    fn remember(&self, found: &mut Found) {
        let saved = self.memory.lock().unwrap_or_else(std::sync::PoisonError::into_inner).save();
        if let Err(e) = saved {
            found.failures.push((vec![], curfew_core::error::chain(&e)));
        }
    }
}
