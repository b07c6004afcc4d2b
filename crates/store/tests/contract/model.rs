//! Random interleavings of requests, leases, steps and expiries against a model that fits on one page. The model knows a row by
//! what the rules are about and nothing else.

use std::sync::Arc;
use std::time::Duration;

use curfew_core::OpId;
use curfew_core::operation::{Operation, State};
use curfew_store::{AuditFilter, Created, Store, StoreError};
use proptest::prelude::*;

use super::fixtures::*;

#[derive(Clone, Debug)]
pub enum Act {
    Stop {
        job: u8,
        stop_timeout: u64,
    },
    Submit {
        job: u8,
    },
    Lease {
        worker: u8,
        limit: usize,
        nudge: Option<usize>,
    },
    /// A lease that some worker holds or held: finish its step.
    Finish {
        which: usize,
        end: End,
    },
    Renew {
        which: usize,
        seconds: u64,
    },
    Pass {
        seconds: u64,
    },
}

#[derive(Clone, Copy, Debug)]
pub enum End {
    Wait(u64),
    Succeed,
    Fail,
}

pub fn acts() -> impl Strategy<Value = Vec<Act>> {
    let end = prop_oneof![3 => (0..90u64).prop_map(End::Wait), 2 => Just(End::Succeed), 1 => Just(End::Fail)];
    let act = prop_oneof![
        3 => (0..3u8, 1..90u64).prop_map(|(job, stop_timeout)| Act::Stop { job, stop_timeout }),
        1 => (0..3u8).prop_map(|job| Act::Submit { job }),
        4 => (0..3u8, 0..4usize, prop::option::of(any::<usize>())).prop_map(|(worker, limit, nudge)| Act::Lease { worker, limit, nudge }),
        4 => (any::<usize>(), end).prop_map(|(which, end)| Act::Finish { which, end }),
        1 => (any::<usize>(), 1..90u64).prop_map(|(which, seconds)| Act::Renew { which, seconds }),
        3 => (1..70u64).prop_map(|seconds| Act::Pass { seconds }),
    ];
    prop::collection::vec(act, 1..60)
}

#[derive(Clone, Debug)]
struct Row {
    id: OpId,
    job: u8,
    stop: bool,
    state: State,
    run_at: u64,
    deadline: Option<u64>,
    epoch: u64,
    expires: u64,
    revision: u64,
}

impl Row {
    fn sleeps(&self) -> bool {
        matches!(self.state, State::Queued | State::Waiting)
    }
}

const LEASE: u64 = 60;

/// Plays `acts` on the store and on the model; they must agree at each step.
pub async fn agrees(store: Arc<dyn Store>, acts: Vec<Act>) {
    let mut rows: Vec<Row> = Vec::new();
    let mut leases: Vec<Operation> = Vec::new();
    let mut told = 0;
    let mut now = 0;
    for act in acts {
        match act {
            Act::Pass { seconds } => now += seconds,
            Act::Stop { job, stop_timeout } => {
                // Two requests at the very same instant for the very same thing are one.
                now += 1;
                let created = store.create(stop_within(&format!("job-{job}"), now, stop_timeout)).await.unwrap();
                let due = now + stop_timeout;
                match rows.iter_mut().find(|r| r.stop && r.job == job && !r.state.is_finished()) {
                    Some(row) => {
                        assert!(matches!(created, Created::Joined(_)));
                        (row.run_at, row.revision) = (row.run_at.min(now), row.revision + 1);
                        row.deadline = row.deadline.min(Some(due));
                    }
                    None => {
                        assert!(matches!(created, Created::New(_)));
                        rows.push(new_row(created.operation().id, job, true, now, Some(due)));
                    }
                }
                told += 1;
            }
            Act::Submit { job } => {
                let created = store.create(submit(&format!("job-{job}"), now)).await.unwrap();
                assert!(matches!(created, Created::New(_)));
                rows.push(new_row(created.operation().id, job, false, now, None));
                told += 1;
            }
            Act::Lease { worker, limit, nudge } => {
                let nudged = nudge.filter(|_| !rows.is_empty()).map(|n| rows[n % rows.len()].id);
                let ids: Vec<OpId> = nudged.into_iter().collect();
                let leased = lease(&store, &format!("h:{worker}"), &BOTH, &ids, limit, at(now)).await;
                let expected = expected_leases(&mut rows, nudged, limit, now, &mut told);
                assert_eq!(leased.iter().map(|op| (op.id, op.lease.epoch)).collect::<Vec<_>>(), expected);
                leases.extend(leased);
            }
            Act::Finish { which, end } if !leases.is_empty() => {
                let leased = &leases[which % leases.len()];
                let row = rows.iter_mut().find(|r| r.id == leased.id).unwrap();
                told += finish(&store, row, leased, end, now).await;
            }
            Act::Renew { which, seconds } if !leases.is_empty() => {
                let leased = &leases[which % leases.len()];
                let row = rows.iter_mut().find(|r| r.id == leased.id).unwrap();
                let renewed = store.renew(leased.id, leased.lease.epoch, Duration::from_secs(seconds), at(now)).await;
                assert_eq!(renewed.is_ok(), holds(row, leased));
                if renewed.is_ok() {
                    row.expires = now + seconds;
                }
            }
            Act::Finish { .. } | Act::Renew { .. } => {}
        }
        compare(&store, &rows, told, now).await;
    }
}

fn new_row(id: OpId, job: u8, stop: bool, now: u64, deadline: Option<u64>) -> Row {
    Row { id, job, stop, state: State::Queued, run_at: now, deadline, epoch: 0, expires: 0, revision: 0 }
}

fn holds(row: &Row, leased: &Operation) -> bool {
    row.state == State::Running && row.epoch == leased.lease.epoch
}

fn expected_leases(rows: &mut [Row], nudged: Option<OpId>, limit: usize, now: u64, told: &mut u64) -> Vec<(OpId, u64)> {
    let mut order: Vec<usize> = Vec::new();
    let groups: [&dyn Fn(&Row) -> bool; 3] =
        [&|r| Some(r.id) == nudged && r.sleeps(), &|r| Some(r.id) != nudged && r.sleeps() && r.run_at <= now, &|r| {
            r.state == State::Running && r.expires <= now
        }];
    for belongs in groups {
        let mut group: Vec<usize> = (0..rows.len()).filter(|i| belongs(&rows[*i])).collect();
        group.sort_by_key(|i| (rows[*i].run_at, rows[*i].id));
        order.extend(group);
    }
    order.truncate(limit);
    let take = |i: usize| {
        let row = &mut rows[i];
        *told += u64::from(row.epoch == 0 || row.state == State::Running);
        (row.state, row.epoch, row.expires) = (State::Running, row.epoch + 1, now + LEASE);
        (row.id, row.epoch)
    };
    order.into_iter().map(take).collect()
}

/// How many rows the trail gained.
async fn finish(store: &Arc<dyn Store>, row: &mut Row, leased: &Operation, end: End, now: u64) -> u64 {
    let (state, run_at) = match end {
        End::Wait(seconds) => (State::Waiting, now + seconds),
        End::Succeed => (State::Succeeded, now),
        End::Fail => (State::Failed, now),
    };
    let done = store.finish_step(leased, step(leased, state, at(run_at)), vec![], at(now)).await;
    if !holds(row, leased) {
        assert!(matches!(done, Err(StoreError::Fenced { .. })), "{done:?}");
        return 0;
    }
    let joined = row.revision != leased.revision;
    row.state = if joined && state.is_finished() { State::Queued } else { state };
    row.run_at = if joined { run_at.min(now) } else { run_at };
    assert_eq!(done.unwrap().state, row.state);
    u64::from(joined && state.is_finished())
}

async fn compare(store: &Arc<dyn Store>, rows: &[Row], told: u64, now: u64) {
    for row in rows {
        let op = store.operation(row.id).await.unwrap().unwrap();
        let theirs = (op.state, op.run_at, op.lease.epoch, op.revision, op.deadline, op.finished_at.is_some());
        let ours = (row.state, at(row.run_at), row.epoch, row.revision, row.deadline.map(at), row.state.is_finished());
        assert_eq!(theirs, ours);
        assert_eq!(op.lease.expires_at, (row.state == State::Running).then(|| at(row.expires)));
    }
    let due = |r: &Row| if r.state == State::Running { Some(r.expires) } else { r.sleeps().then_some(r.run_at) };
    assert_eq!(store.next_due(&BOTH, at(now)).await.unwrap(), rows.iter().filter_map(due).min().map(at));
    let trail = store.audit(AuditFilter { limit: 10_000, ..AuditFilter::default() }).await.unwrap();
    assert!(trail.iter().map(|r| r.seq).eq(1..=told), "{told} rows expected in {trail:?}");
}
