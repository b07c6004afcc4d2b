//! Collecting evidence, page by page: what is kept are the candidates, never the cluster.

use std::collections::BTreeMap;

use curfew_core::gc::{KNOWN_SLACK, Mode, NodeLeft, Verdict, node_left};
use curfew_core::{AllocId, TaskName, Timestamp};
use curfew_nomad::Filter;
use curfew_nomad::JobFilter;
use futures::{StreamExt, TryStreamExt};
use serde_json::json;

use crate::candidate::{Act, Candidate, Outcome, Subject};
use crate::jobs::Around;
use crate::told::{Nodes, Read, evidence};
use crate::{Error, Gc, Known};

/// Candidates of one verdict that are kept; more are counted.
const KEPT: usize = 10_000;
/// Jobs of one page that are looked at together.
const AT_ONCE: usize = 8;

/// What a look found.
#[derive(Debug, Default)]
pub struct Found {
    pub(crate) candidates: Vec<Candidate>,
    /// All that were found, also those that are not kept.
    pub(crate) counts: BTreeMap<Verdict, usize>,
    /// What could not be learned, and which verdicts are not complete without it.
    pub(crate) failures: Vec<(Vec<Verdict>, String)>,
    pub(crate) began: Timestamp,
    pub(crate) requests_before: BTreeMap<&'static str, u64>,
    pub(crate) notes: Vec<String>,
}

impl Found {
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Only these; the others are left to another pass.
    pub fn only(mut self, wanted: impl Fn(&Candidate) -> bool) -> Self {
        self.candidates.retain(wanted);
        self.counts = BTreeMap::new();
        for c in &self.candidates {
            *self.counts.entry(c.verdict).or_default() += 1;
        }
        self
    }

    fn add(&mut self, candidate: Candidate) {
        let count = self.counts.entry(candidate.verdict).or_default();
        *count += 1;
        if *count <= KEPT {
            self.candidates.push(candidate);
        }
    }

    /// How many of a verdict there are to act on. Of those that were counted and not kept each may be one.
    pub(crate) fn wanted(&self, verdict: Verdict) -> usize {
        let kept = || self.candidates.iter().filter(|c| c.verdict == verdict);
        let counted = self.counts.get(&verdict).copied().unwrap_or(0);
        kept().filter(|c| c.act.is_some()).count() + counted.saturating_sub(kept().count())
    }

    fn failed(&mut self, verdicts: &[Verdict], e: &Error) {
        self.failures.push((verdicts.into(), curfew_core::error::chain(e)));
    }

    /// Whether all of a verdict is known: nothing is acted on by half a list.
    pub(crate) fn complete(&self, verdict: Verdict) -> bool {
        !self.failures.iter().any(|(verdicts, _)| verdicts.contains(&verdict))
    }
}

const OF_JOBS: [Verdict; 4] = [Verdict::Orphan, Verdict::ChildOfStoppedParent, Verdict::NeverPlaced, Verdict::Purge];

impl Gc {
    /// Looks at everything once. Changes nothing.
    pub async fn look(&self) -> Found {
        let now = self.clock.now();
        let requests_before = self.nomad.requests().into_iter().collect();
        let mut found = Found { began: now, requests_before, ..Found::default() };
        let off = |v: &Verdict| self.settings.modes.of(*v) == Mode::Off;
        if !off(&Verdict::PastClock) || !off(&Verdict::NodeLeft) {
            match self.nomad.nodes(None).await {
                Err(e) => found.failed(&[Verdict::PastClock, Verdict::NodeLeft], &e.into()),
                Ok(nodes) => {
                    let nodes: Nodes = nodes.into_iter().map(|n| (n.id.clone(), n)).collect();
                    if !off(&Verdict::PastClock)
                        && let Err(e) = self.look_at_told(&nodes, &mut found).await
                    {
                        found.failed(&[Verdict::PastClock], &e);
                    }
                    if !off(&Verdict::NodeLeft)
                        && let Err(e) = self.look_at_nodes(&nodes, &mut found).await
                    {
                        found.failed(&[Verdict::NodeLeft], &e);
                    }
                }
            }
        }
        if !OF_JOBS.iter().all(off)
            && let Err(e) = self.look_at_jobs(now, &mut found).await
        {
            found.failed(&OF_JOBS, &e);
        } else {
            self.sightings(|s| s.forget_before(now));
        }
        if !off(&Verdict::ExpiredLease)
            && let Err(e) = self.look_at_leases(now, &mut found).await
        {
            found.failed(&[Verdict::ExpiredLease], &e);
        }
        found
    }

    fn namespaces(&self) -> Vec<String> {
        match self.settings.namespaces.as_slice() {
            [] => vec!["*".into()],
            named => named.iter().map(ToString::to_string).collect(),
        }
    }

    async fn look_at_told(&self, nodes: &Nodes, found: &mut Found) -> Result<(), Error> {
        let mut read = Read::default();
        for namespace in self.namespaces() {
            let mut pages = self.nomad.allocations(Some(Filter::told_to_end()), &namespace, self.nomad.config().per_page);
            while let Some(page) = pages.next().await? {
                for bad in &page.bad {
                    // Each is judged by itself: the others are no less past their clocks.
                    found.failures.push((vec![], format!("allocation {} cannot be read: {}", bad.id, bad.why)));
                }
                for alloc in &page.allocations {
                    let now = self.clock.now();
                    for past in self.past_of(alloc, nodes, &mut read, now).await? {
                        let over = curfew_core::duration::human(now.since(past.clock()));
                        let subject = Subject {
                            alloc: Some(alloc.id.clone()),
                            task: Some(past.task().clone()),
                            node: Some(alloc.node_name.clone()),
                            operation: past.operation,
                            ..Subject::job(&alloc.job_key())
                        };
                        found.add(Candidate {
                            verdict: Verdict::PastClock,
                            subject,
                            why: format!("told to end at {} ({}), {over} past its clock", past.start(), past.cause().as_str()),
                            evidence: evidence(alloc, &past),
                            outcome: Outcome::Reported,
                            said: String::new(),
                            act: Some(kill(&alloc.id, past.task())),
                        });
                    }
                }
            }
        }
        Ok(())
    }

    async fn look_at_jobs(&self, now: Timestamp, found: &mut Found) -> Result<(), Error> {
        let orphans = self.settings.modes.of(Verdict::Orphan) != Mode::Off && !self.known.is_nothing();
        let remembers_since = if orphans { self.known.remembers_since(&self.settings, now).await? } else { None };
        let around = Around::new(now, remembers_since);
        // Only orphans can be among the jobs that run as they should.
        let filter = || if remembers_since.is_some() { JobFilter::managed() } else { JobFilter::managed_and_odd() };
        for namespace in self.namespaces() {
            let mut pages = self.nomad.jobs(filter(), &namespace);
            while let Some(page) = pages.next().await? {
                let judging: Vec<_> = page.iter().map(|job| self.judge_job(job, &around)).collect();
                let judged: Vec<Vec<Candidate>> = futures::stream::iter(judging).buffered(AT_ONCE).try_collect().await?;
                judged.into_iter().flatten().for_each(|c| found.add(c));
            }
        }
        let unlooked = around.unlooked.into_inner();
        if unlooked > 0 {
            found.notes.push(format!("{unlooked} more old dead jobs were not looked at: there are more than the cap already"));
            *found.counts.entry(Verdict::Purge).or_default() += unlooked;
        }
        Ok(())
    }

    async fn look_at_leases(&self, now: Timestamp, found: &mut Found) -> Result<(), Error> {
        for op in self.known.expired_leases(now - KNOWN_SLACK).await? {
            let holder = op.lease.holder.as_deref().unwrap_or("nobody");
            let evidence = json!({ "holder": op.lease.holder, "expired_at": op.lease.expires_at, "epoch": op.lease.epoch });
            found.add(Candidate {
                verdict: Verdict::ExpiredLease,
                subject: Subject { operation: Some(op.id), ..Subject::default() },
                why: format!("the lease of {holder} on this {} ran out and nobody took it over", op.kind.as_str()),
                evidence,
                outcome: Outcome::Reported,
                said: String::new(),
                act: Some(Act::Release(op.id)),
            });
        }
        Ok(())
    }

    async fn look_at_nodes(&self, nodes: &Nodes, found: &mut Found) -> Result<(), Error> {
        for node in nodes.values().filter(|n| !n.eligible || n.draining) {
            let Some(drain) = node.last_drain.as_ref().and_then(|d| d.curfew.as_ref()) else { continue };
            let state = self.known.state(drain.operation).await?;
            let (why, act) = match node_left(node.eligible, node.draining, drain.was_eligible, state) {
                NodeLeft::Fine => continue,
                NodeLeft::Report(why) => (why, None),
                NodeLeft::MakeEligible(why) => (why, Some(Act::MakeEligible(node.id.clone()))),
            };
            let said = match self.known {
                Known::Nothing => "nobody to ask about its operation: set CURFEW_ADDR or --database".to_owned(),
                _ => String::new(),
            };
            found.add(Candidate {
                verdict: Verdict::NodeLeft,
                subject: Subject { node: Some(node.name.clone()), operation: Some(drain.operation), ..Subject::default() },
                why: why.to_owned(),
                evidence: json!({ "eligible": node.eligible, "draining": node.draining, "operation_state": state }),
                outcome: Outcome::Reported,
                said,
                act,
            });
        }
        Ok(())
    }
}

fn kill(alloc: &AllocId, task: &TaskName) -> Act {
    Act::Kill { alloc: alloc.clone(), task: task.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_counts_what_would_be_acted_on_and_what_nobody_kept() {
        let candidate = |act: bool| Candidate {
            verdict: Verdict::Purge,
            subject: Subject::default(),
            why: String::new(),
            evidence: json!({}),
            outcome: Outcome::Reported,
            said: String::new(),
            act: act.then(|| kill(&"a".into(), &"t".into())),
        };
        let mut found = Found::default();
        (0..150).for_each(|_| found.add(candidate(false)));
        (0..5).for_each(|_| found.add(candidate(true)));
        assert_eq!((found.wanted(Verdict::Purge), found.wanted(Verdict::Orphan)), (5, 0), "150 are only reported");
        (0..KEPT).for_each(|_| found.add(candidate(true)));
        assert_eq!((found.candidates.len(), found.wanted(Verdict::Purge)), (KEPT, KEPT - 150 + 155));
        let mine = found.only(|c| c.act.is_none());
        assert_eq!((mine.wanted(Verdict::Purge), mine.counts[&Verdict::Purge]), (0, 150));
        let half = Found { failures: vec![(OF_JOBS.into(), "no answer".into())], ..Found::default() };
        assert!(!half.complete(Verdict::Purge) && half.complete(Verdict::PastClock));
    }
}
