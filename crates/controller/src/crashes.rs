//! Which tasks crash again and again. A task shows its last ten events, three to a restart; what the observer sees of restarts is kept
//! here, so that they can be counted in their interval as the client counts them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use curfew_core::restarts::{Restart, shown};
use curfew_core::{AllocId, Allocation, EventKind, Task, TaskName, Timestamp};

/// Tasks at most; those that restarted longest ago go.
const TASKS: usize = 10_000;
/// Restarts of one at most.
const RESTARTS: usize = 64;
/// A task that was restarted twice within this time crashes again and again.
const LOOP: Duration = Duration::from_secs(600);

/// What was seen of one allocation's task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// When its client received it: its first interval began then.
    pub received_at: Option<Timestamp>,
    /// Oldest first.
    pub restarts: Vec<Restart>,
}

/// Cheap to clone; every clone remembers the same.
#[derive(Clone, Default)]
pub struct Crashes(Arc<Mutex<HashMap<(AllocId, TaskName), Remembered>>>);

impl Crashes {
    /// What Nomad shows of these now. Those that have ended are forgotten.
    pub fn observe(&self, allocations: &[Allocation]) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for a in allocations {
            let over = a.desired != curfew_core::Desired::Run
                || a.tasks.values().all(|t| t.state == curfew_core::TaskState::Dead && t.started_at.is_some());
            for (name, task) in &a.tasks {
                let key = (a.id.clone(), name.clone());
                if over {
                    all.remove(&key);
                } else if task.restarts > 0 || all.contains_key(&key) {
                    all.entry(key).or_default().take_in(task);
                }
            }
        }
        while all.len() > TASKS {
            let oldest = all.iter().min_by_key(|(_, r)| r.restarts.last().map(|r| r.at)).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { break };
            all.remove(&oldest);
        }
    }

    /// With what it shows now.
    pub fn of(&self, alloc: &AllocId, name: &TaskName, task: &Task) -> Remembered {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = all.get(&(alloc.clone(), name.clone())).cloned().unwrap_or_default();
        known.take_in(task);
        known
    }

    /// How many tasks crash again and again now.
    pub fn looping(&self, now: Timestamp) -> usize {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let twice = |r: &&Remembered| r.restarts.iter().rev().nth(1).is_some_and(|r| r.at + LOOP >= now);
        all.values().filter(twice).count()
    }
}

impl Remembered {
    fn take_in(&mut self, task: &Task) {
        let received = task.events.iter().find(|e| e.kind == EventKind::Received).map(|e| e.at);
        self.received_at = self.received_at.or(received);
        self.restarts.extend(shown(task));
        // Of the same restart the earlier sight stays: it had more of the events.
        self.restarts.sort_by_key(|r| r.at);
        self.restarts.dedup_by_key(|r| r.at);
        let too_many = self.restarts.len().saturating_sub(RESTARTS);
        self.restarts.drain(..too_many);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use curfew_core::{TaskEvent, TaskState};

    fn at(s: i64) -> Timestamp {
        Timestamp::from_millis(s * 1000)
    }

    fn task(restarts: &[i64]) -> Task {
        let event = |s: &i64| TaskEvent {
            kind: EventKind::Restarting,
            at: at(*s),
            exit_code: 0,
            signal: 0,
            kill_timeout: None,
            delay: Some(Duration::from_secs(10)),
            text: None,
        };
        let events = restarts.iter().map(event).collect();
        Task {
            state: TaskState::Running,
            failed: false,
            restarts: restarts.len() as u64,
            started_at: Some(at(0)),
            finished_at: None,
            events,
        }
    }

    fn alloc(task: Task, desired: curfew_core::Desired) -> Allocation {
        Allocation {
            id: "a".into(),
            namespace: "default".into(),
            job: "j".into(),
            job_version: None,
            group: "g".into(),
            name: "j.g[0]".into(),
            node: "n".into(),
            node_name: "n".into(),
            desired,
            client_status: curfew_core::ClientStatus::Running,
            migrate: false,
            no_shutdown_delay: false,
            create_index: 1,
            modify_index: 1,
            modified_at: None,
            tasks: [("t".into(), task)].into_iter().collect(),
        }
    }

    #[test]
    fn restarts_are_remembered_beyond_the_events_and_forgotten_with_their_allocation() {
        use curfew_core::Desired;
        let crashes = Crashes::default();
        crashes.observe(&[alloc(task(&[]), Desired::Run)]);
        assert_eq!((crashes.looping(at(0)), crashes.0.lock().unwrap().len()), (0, 0), "what never restarted is not kept");
        crashes.observe(&[alloc(task(&[15, 40]), Desired::Run)]);
        crashes.observe(&[alloc(task(&[40, 65]), Desired::Run)]);
        let known = crashes.of(&"a".into(), &"t".into(), &task(&[90]));
        assert_eq!(known.restarts.iter().map(|r| r.at).collect::<Vec<_>>(), [15, 40, 65, 90].map(at));
        assert_eq!([at(70), at(640), at(641)].map(|now| crashes.looping(now)), [1, 1, 0]);
        crashes.observe(&[alloc(task(&[65]), Desired::Stop)]);
        assert_eq!(crashes.0.lock().unwrap().len(), 0);
    }

    #[test]
    fn how_it_ended_is_remembered_with_the_restart() {
        let crashes = Crashes::default();
        let mut crashed = task(&[15]);
        let terminated = TaskEvent { kind: EventKind::Terminated, at: at(14), exit_code: 3, ..crashed.events[0].clone() };
        crashed.events.insert(0, terminated);
        crashes.observe(&[alloc(crashed, curfew_core::Desired::Run)]);
        // A read that is older, and one whose events do not reach back as far.
        for read in [task(&[]), task(&[15])] {
            assert_eq!(crashes.of(&"a".into(), &"t".into(), &read).restarts[0].exit, Some((3, 0)));
        }
    }
}
