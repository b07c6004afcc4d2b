//! Jobs that are left over: what is read of each, and the candidates that follow.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use curfew_core::gc::{
    JobStatus, JobStub, Mode, Owner, ParentState, Purge, Sighting, Verdict, abandoned_child, never_placed, owner, purge,
};
use curfew_core::{Allocation, JobKey, OpId, Timestamp, duration};
use serde_json::{Value, json};

use crate::candidate::{Act, Candidate, Outcome, Subject};
use crate::{Error, Gc};

const KEPT: usize = 4096;

/// What one pass knows beside the job itself.
pub(crate) struct Around {
    pub(crate) now: Timestamp,
    /// The oldest thing the database knows; `None` when orphans are not looked for.
    pub(crate) remembers_since: Option<Timestamp>,
    parents: Mutex<HashMap<JobKey, ParentState>>,
    /// Operations found in the database: many children have one.
    owners: Mutex<HashMap<OpId, bool>>,
    purgeable: AtomicUsize,
    /// Dead jobs that were not looked at because there are more than the cap already.
    pub(crate) unlooked: AtomicUsize,
}

impl Around {
    pub(crate) fn new(now: Timestamp, remembers_since: Option<Timestamp>) -> Self {
        let (parents, owners) = (Mutex::default(), Mutex::default());
        Self { now, remembers_since, parents, owners, purgeable: AtomicUsize::new(0), unlooked: AtomicUsize::new(0) }
    }
}

fn remember<K: std::hash::Hash + Eq, V>(map: &Mutex<HashMap<K, V>>, key: K, value: V) {
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    if map.len() >= KEPT {
        map.clear();
    }
    map.insert(key, value);
}

fn recall<K: std::hash::Hash + Eq, V: Copy>(map: &Mutex<HashMap<K, V>>, key: &K) -> Option<V> {
    map.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied()
}

impl Gc {
    fn mode(&self, verdict: Verdict) -> Mode {
        self.settings.modes.of(verdict)
    }

    /// Every verdict on one job.
    pub(crate) async fn judge_job(&self, job: &JobStub, around: &Around) -> Result<Vec<Candidate>, Error> {
        if !job.is_ours(&self.settings) {
            return Ok(vec![]);
        }
        let mut found = vec![];
        if self.mode(Verdict::Orphan) != Mode::Off
            && let Some(why) = self.orphan(job, around).await?
        {
            let seen = self.sightings(|s| s.see(Verdict::Orphan, job, around.now));
            found.push(self.orphan_candidate(job, why, seen));
        }
        if self.mode(Verdict::ChildOfStoppedParent) != Mode::Off
            && let Some(parent) = self.parent(job, around).await?
            && abandoned_child(job, &self.settings, parent)
        {
            let state = if parent == ParentState::Gone { "gone" } else { "stopped" };
            let named = job.parent.as_ref().map(ToString::to_string).unwrap_or_default();
            let evidence = json!({ "parent": named, "parent_is": state, "job_modify_index": job.job_modify_index });
            found.push(stop(Verdict::ChildOfStoppedParent, job, format!("its parent \"{named}\" is {state}"), evidence));
        }
        if self.mode(Verdict::NeverPlaced) != Mode::Off
            && never_placed(job, &self.settings, around.now)
            && self.allocations(job).await?.0.is_empty()
        {
            let evidence = json!({ "submitted_at": job.submitted_at, "queued": job.queued });
            let waits = job.submitted_at.map(|at| duration::human(around.now.since(at))).unwrap_or_default();
            found.push(stop(Verdict::NeverPlaced, job, format!("nothing of it was placed for {waits}"), evidence));
        }
        if self.mode(Verdict::Purge) != Mode::Off && job.status == JobStatus::Dead {
            found.extend(self.purgeable(job, around).await?);
        }
        Ok(found)
    }

    /// Why a job is nobody's.
    async fn orphan(&self, job: &JobStub, around: &Around) -> Result<Option<String>, Error> {
        let Some(since) = around.remembers_since else { return Ok(None) };
        match owner(job, &self.settings, since) {
            Owner::NotJudged => Ok(None),
            Owner::Nameless => Ok(Some("it is marked as Curfew's and names no operation".into())),
            Owner::Ask(id) => {
                let known = match recall(&around.owners, &id) {
                    Some(known) => known,
                    None => {
                        let known = self.known.state(id).await?.is_some();
                        remember(&around.owners, id, known);
                        known
                    }
                };
                Ok((!known).then(|| format!("operation {id}, which it names, is not known")))
            }
        }
    }

    fn orphan_candidate(&self, job: &JobStub, why: String, seen: Sighting) -> Candidate {
        let evidence = json!({
            "operation": job.operation, "job_modify_index": job.job_modify_index, "sightings": seen.count, "first_seen": seen.first,
        });
        let mut candidate = stop(Verdict::Orphan, job, why, evidence);
        // Only what names an operation, was seen often enough, and by a gc that remembers.
        let proven = self.remembers() && seen.is_enough(self.settings.grace);
        let nameless = job.operation.as_deref().and_then(|o| o.parse::<OpId>().ok()).is_none();
        if nameless || !proven {
            candidate.act = None;
            candidate.said = match (nameless, self.remembers()) {
                (true, _) => "never stopped by a gc".into(),
                (_, false) => "one pass proves nothing: --state or --every lets a gc remember".into(),
                _ => format!("seen {} times since {}", seen.count, seen.first),
            };
        }
        candidate
    }

    pub(crate) async fn parent(&self, job: &JobStub, around: &Around) -> Result<Option<ParentState>, Error> {
        let Some(key) = job.parent_key() else { return Ok(None) };
        if job.stopped || job.status == JobStatus::Dead {
            return Ok(None);
        }
        if let Some(state) = recall(&around.parents, &key) {
            return Ok(Some(state));
        }
        let state = self.parent_now(&key).await?;
        remember(&around.parents, key, state);
        Ok(Some(state))
    }

    async fn parent_now(&self, key: &JobKey) -> Result<ParentState, Error> {
        Ok(match self.nomad.job(key).await? {
            None => ParentState::Gone,
            Some(parent) if parent["Stop"] == true => ParentState::Stopped,
            Some(_) => ParentState::Wanted,
        })
    }

    pub(crate) async fn allocations(&self, job: &JobStub) -> Result<(Vec<Allocation>, usize), Error> {
        let (allocations, bad) = self.nomad.job_allocations(&job.key).await?;
        Ok((allocations, bad.len()))
    }

    async fn purgeable(&self, job: &JobStub, around: &Around) -> Result<Option<Candidate>, Error> {
        // Too young by what the list shows: the read would tell nothing new.
        if purge(job, &[], 0, Some(forever()), &self.settings, around.now) == Purge::Keep {
            return Ok(None);
        }
        let acts = self.mode(Verdict::Purge) == Mode::Act;
        if acts && self.settings.cap.is_some_and(|cap| around.purgeable.load(Ordering::Relaxed) > cap) {
            around.unlooked.fetch_add(1, Ordering::Relaxed);
            return Ok(None);
        }
        let (allocations, unreadable) = self.allocations(job).await?;
        // Without allocations nothing but memory tells since when it is dead.
        let seen =
            (allocations.is_empty() && self.remembers()).then(|| self.sightings(|s| s.see(Verdict::Purge, job, around.now)));
        let evidence = json!({
            "submitted_at": job.submitted_at, "job_modify_index": job.job_modify_index, "allocations": allocations.len(),
            "last_change": allocations.iter().filter_map(|a| a.modified_at).max(), "seen_dead_since": seen.map(|s| s.first),
        });
        let candidate = |why: String, act| Candidate {
            verdict: Verdict::Purge,
            subject: Subject::job(&job.key),
            why,
            evidence,
            outcome: Outcome::Reported,
            said: String::new(),
            act,
        };
        Ok(match purge(job, &allocations, unreadable, seen, &self.settings, around.now) {
            Purge::Keep => None,
            Purge::NotYet(why) => Some(candidate(format!("it cannot be purged yet: {why}"), None)),
            Purge::StopFirst | Purge::Now(_) => {
                around.purgeable.fetch_add(1, Ordering::Relaxed);
                let act = Act::Purge { job: job.key.clone(), job_modify_index: job.job_modify_index };
                let days = duration::format(self.settings.retention);
                Some(candidate(format!("dead for longer than {days}, every allocation is over"), Some(act)))
            }
        })
    }

    /// Whether a job that was to be stopped is still to be, read anew.
    pub(crate) async fn still_to_stop(&self, verdict: Verdict, job: &JobStub, now: Timestamp) -> Result<bool, Error> {
        Ok(match verdict {
            Verdict::Orphan => {
                let since = self.known.remembers_since(&self.settings, now).await?;
                let owner = since.map_or(Owner::NotJudged, |s| owner(job, &self.settings, s));
                match owner {
                    Owner::Ask(id) => self.known.state(id).await?.is_none(),
                    Owner::Nameless | Owner::NotJudged => false,
                }
            }
            Verdict::ChildOfStoppedParent => match job.parent_key() {
                Some(key) => abandoned_child(job, &self.settings, self.parent_now(&key).await?),
                None => false,
            },
            Verdict::NeverPlaced => never_placed(job, &self.settings, now) && self.allocations(job).await?.0.is_empty(),
            Verdict::PastClock | Verdict::Purge | Verdict::ExpiredLease | Verdict::NodeLeft | Verdict::Retention => false,
        })
    }
}

/// Seen dead since the beginning of time: for the question whether anything else keeps a job.
fn forever() -> Sighting {
    let long_ago = Timestamp::from_micros(0);
    Sighting { first: long_ago, last: long_ago, count: 1 }
}

fn stop(verdict: Verdict, job: &JobStub, why: String, evidence: Value) -> Candidate {
    let act = Act::Stop { job: job.key.clone(), job_modify_index: job.job_modify_index };
    let subject = Subject::job(&job.key);
    Candidate { verdict, subject, why, evidence, outcome: Outcome::Reported, said: String::new(), act: Some(act) }
}
