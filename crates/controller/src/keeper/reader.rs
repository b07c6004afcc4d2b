//! Reads just before a SIGKILL, and before an operation calls itself done: gathered, so that many clocks cost few calls.

use curfew_core::{AllocId, Allocation, ClientStatus, JobKey, TaskState};
use curfew_nomad::{BadAllocation, Nomad};
use futures::StreamExt;
use futures::stream::{self, FuturesUnordered};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Keeper;

/// What a list may take for each single read that it saves.
const SINGLE: Duration = Duration::from_millis(5);
/// A list is tried again after this: it may have been a bad moment.
const LIST_AGAIN: Duration = Duration::from_secs(60);
/// Single reads of one batch under way at once.
const AT_ONCE: usize = 16;

/// How long lists take. For each, however few it names, Nomad goes through every allocation of the cluster: in a small one it is
/// the cheapest read, in one of a hundred thousand it takes seconds.
#[derive(Clone, Default)]
pub(super) struct Lists(Arc<Mutex<Took>>);

#[derive(Clone, Copy, Default)]
enum Took {
    #[default]
    Unknown,
    /// The first is under way.
    Soon,
    Known(Duration, Instant),
}

impl Lists {
    fn took(&self) -> MutexGuard<'_, Took> {
        // What it guards is whole between any two calls.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one is to be made of so many single reads.
    fn worth(&self, reads: usize) -> bool {
        let mut took = self.took();
        match *took {
            _ if reads < 2 => false,
            Took::Unknown => {
                *took = Took::Soon;
                true
            }
            Took::Soon => false,
            Took::Known(took, _) => took < SINGLE * u32::try_from(reads).unwrap_or(u32::MAX),
        }
    }

    /// Whether it is long ago that one was made.
    fn to_be_tried(&self) -> bool {
        matches!(*self.took(), Took::Known(_, made) if made.elapsed() > LIST_AGAIN)
    }

    /// One was made, or could not be: that says nothing of how long they take.
    fn made(&self, began: Instant, whole: bool) {
        let mut took = self.took();
        *took = match *took {
            _ if whole => Took::Known(began.elapsed(), Instant::now()),
            Took::Soon => Took::Unknown,
            known => known,
        };
    }
}

/// As many as one filter names.
const BATCH: usize = 128;
/// How long a check of a job waits for others to share its list.
const GATHER_JOBS: Duration = Duration::from_millis(100);

#[derive(Clone)]
pub(super) struct ReadAlloc {
    pub id: AllocId,
    pub full: bool,
}

/// Answers [`ReadAlloc`]s to the keeper, in batches of what has come together.
pub(super) async fn read_allocations(nomad: Nomad, keeper: Keeper, lists: Lists, mut wanted: mpsc::Receiver<ReadAlloc>) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut under_way = FuturesUnordered::new();
    // Enough to keep the single reads of a busy moment going; more would only queue inside the transport.
    const BATCHES: usize = 16;
    loop {
        tokio::select! {
            n = wanted.recv_many(&mut batch, BATCH), if under_way.len() < BATCHES => {
                if n == 0 {
                    break;
                }
                under_way.push(read_batch(nomad.clone(), keeper.clone(), lists.clone(), std::mem::take(&mut batch)));
            }
            Some(()) = under_way.next(), if !under_way.is_empty() => {}
        }
    }
    while under_way.next().await.is_some() {}
}

async fn read_batch(nomad: Nomad, keeper: Keeper, lists: Lists, batch: Vec<ReadAlloc>) {
    let (listed, single): (Vec<_>, Vec<_>) = batch.into_iter().partition(|r| !r.full);
    let (listed, single) = if lists.worth(listed.len()) { (listed, single) } else { (vec![], [single, listed].concat()) };
    let list = async {
        if listed.is_empty() {
            return;
        }
        let began = Instant::now();
        let ids: Vec<AllocId> = listed.into_iter().map(|r| r.id).collect();
        let read = nomad.allocations_by_id(&ids).await;
        lists.made(began, read.is_ok());
        match read {
            Ok(page) => {
                let mut found: HashMap<AllocId, Allocation> = page.allocations.into_iter().map(|a| (a.id.clone(), a)).collect();
                for bad in page.bad {
                    tracing::warn!(?bad, "an allocation in Nomad's list could not be read");
                }
                for id in ids {
                    match found.remove(&id) {
                        Some(a) => keeper.fresh(id, Ok(Some((a, None)))).await,
                        // Missing from a filtered list is not yet gone: that is said by the allocation's own address.
                        None => read_one(&nomad, &keeper, id).await,
                    }
                }
            }
            Err(e) => {
                tracing::warn!(error = %crate::error::chain(&e), "reading allocations before their SIGKILL failed");
                for id in ids {
                    keeper.fresh(id, Err(())).await;
                }
            }
        }
    };
    let singles = async {
        let mut reads: FuturesUnordered<_> = single.into_iter().map(|r| read_one(&nomad, &keeper, r.id)).collect();
        while reads.next().await.is_some() {}
    };
    tokio::join!(list, singles);
}

async fn read_one(nomad: &Nomad, keeper: &Keeper, id: AllocId) {
    let read = nomad.allocation(&id).await.map_err(|e| {
        tracing::warn!(alloc = %id, error = %crate::error::chain(&e), "reading an allocation before its SIGKILL failed");
    });
    keeper.fresh(id, read).await;
}

/// Which of a job's allocations are not over.
pub(super) struct ReadJob {
    pub key: JobKey,
    pub reply: oneshot::Sender<Result<Vec<Allocation>, String>>,
}

pub(super) async fn read_jobs(nomad: Nomad, lists: Lists, mut wanted: mpsc::Receiver<ReadJob>) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        if wanted.recv_many(&mut batch, BATCH).await == 0 {
            return;
        }
        let full = tokio::time::sleep(GATHER_JOBS);
        tokio::pin!(full);
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            tokio::select! {
                n = wanted.recv_many(&mut batch, room) => if n == 0 { break },
                () = &mut full => break,
            }
        }
        let batch = std::mem::take(&mut batch);
        let mut keys: Vec<JobKey> = batch.iter().map(|r| r.key.clone()).collect();
        keys.sort();
        keys.dedup();
        if !lists.worth(keys.len()) && !lists.to_be_tried() {
            let reads = batch.into_iter().map(async |r| {
                let read = nomad.job_allocations(&r.key).await.map_err(|e| crate::error::chain(&e));
                let read = read.and_then(|(all, bad)| readable(all, &bad));
                // The step that asked may have been cancelled.
                let _ = r.reply.send(read.map(|all| all.into_iter().filter(not_over).collect()));
            });
            stream::iter(reads).for_each_concurrent(AT_ONCE, |read| read).await;
            continue;
        }
        let began = Instant::now();
        let answer = nomad.not_over_allocations(&keys).await.map_err(|e| crate::error::chain(&e));
        lists.made(began, answer.is_ok());
        // Somebody's unreadable allocation could be this job's.
        let answer = answer.and_then(|page| readable(page.allocations, &page.bad));
        for r in batch {
            let mine = answer.as_ref().map_err(Clone::clone);
            let mine = mine.map(|all| all.iter().filter(|a| a.job_key() == r.key).cloned().collect());
            let _ = r.reply.send(mine);
        }
    }
}

/// Not knowing is not "over".
fn readable(allocations: Vec<Allocation>, bad: &[BadAllocation]) -> Result<Vec<Allocation>, String> {
    match bad.first() {
        None => Ok(allocations),
        Some(bad) => Err(format!("an allocation in Nomad's answer could not be read: {bad:?}")),
    }
}

/// As the list's filter has it.
fn not_over(a: &Allocation) -> bool {
    matches!(a.client_status, ClientStatus::Pending | ClientStatus::Running | ClientStatus::Unknown)
        || a.tasks.values().any(|t| t.state != TaskState::Dead)
}

#[cfg(test)]
mod tests {
    use curfew_devcluster::{Cluster, ClusterConfig, NodeConfig};
    use curfew_nomad::NomadConfig;
    use serde_json::json;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_list_is_worth_what_it_saves() {
        let lists = Lists::default();
        let made = async |time: Duration, whole: bool| {
            let began = Instant::now();
            tokio::time::advance(time).await;
            lists.made(began, whole);
        };
        assert!(!lists.worth(1) && lists.worth(2), "the first tells");
        assert!(!lists.worth(BATCH), "nobody else waits to be told");
        made(Duration::from_secs(10), false).await;
        assert!(lists.worth(2));
        made(Duration::from_millis(159), true).await;
        assert!(lists.worth(32) && !lists.worth(31));
        made(Duration::from_secs(10), false).await;
        assert!(lists.worth(32), "what failed after a long time is no slow list");
        made(Duration::from_secs(3), true).await;
        assert!(!lists.worth(BATCH) && !lists.to_be_tried());
        tokio::time::advance(LIST_AGAIN + Duration::from_millis(1)).await;
        assert!(!lists.worth(BATCH) && lists.to_be_tried(), "no SIGKILL waits for the attempt");
    }

    #[tokio::test]
    async fn jobs_are_read_one_by_one_where_lists_are_slow() {
        let dir = tempfile::TempDir::with_prefix("curfew-reader-").unwrap();
        let config = ClusterConfig {
            listen: Some(([127, 0, 0, 1], 0).into()),
            nodes: vec![NodeConfig::new("n0", "dc1")],
            data_dir: dir.path().join("cluster"),
            ..ClusterConfig::default()
        };
        let cluster = Cluster::start(config).await.unwrap();
        let nomad = Nomad::new(NomadConfig { addr: cluster.base_url(), ..NomadConfig::default() }).unwrap();
        let key = |id: &str| JobKey::new("default", id);
        for (id, run_for) in [("over", "1ms"), ("lives", "1h"), ("lives-too", "1h")] {
            let task = json!({ "Name": "t", "Driver": "mock_driver", "Config": { "run_for": run_for } });
            let group = json!({ "Name": "g", "Count": 1, "RestartPolicy": { "Attempts": 0, "Mode": "fail" }, "Tasks": [task] });
            let job = json!({ "ID": id, "Type": "batch", "Datacenters": ["dc1"], "TaskGroups": [group] });
            nomad.register(&key(id), &job, None).await.unwrap();
        }
        let asked = ["over", "lives", "lives-too", "nobody"];
        let state = async || {
            let all = asked.iter().map(async |id| nomad.job_allocations(&key(id)).await.unwrap().0);
            futures::future::join_all(all)
                .await
                .concat()
                .into_iter()
                .map(|a| (a.job.to_string(), a.client_status))
                .collect::<Vec<_>>()
        };
        let placed = [("over", ClientStatus::Complete), ("lives", ClientStatus::Running), ("lives-too", ClientStatus::Running)];
        while state().await != placed.map(|(id, status)| (id.to_owned(), status)) {
            tokio::task::yield_now().await;
        }

        let lists = Lists::default();
        let (tx, rx) = mpsc::channel(16);
        let reading = tokio::spawn(read_jobs(nomad.clone(), lists.clone(), rx));
        let answers = async || {
            let asking = asked.iter().map(async |id| {
                let (reply, answer) = oneshot::channel();
                tx.send(ReadJob { key: key(id), reply }).await.unwrap();
                answer.await.unwrap().unwrap().into_iter().map(|a| a.job.to_string()).collect::<Vec<_>>()
            });
            futures::future::join_all(asking).await
        };
        let count = |route: &str| nomad.requests().iter().find(|(r, _)| *r == route).map_or(0, |(_, n)| *n);
        let counts = || (count("GET /v1/allocations"), count("GET /v1/job/:job/allocations"));
        let lives = [vec![], vec!["lives".to_owned()], vec!["lives-too".into()], vec![]];
        let before = counts();
        assert_eq!((answers().await, counts()), (lives.to_vec(), (before.0 + 1, before.1)));
        *lists.took() = Took::Known(Duration::from_secs(3), Instant::now());
        assert_eq!((answers().await, counts()), (lives.to_vec(), (before.0 + 1, before.1 + 4)));
        reading.abort();
        cluster.shutdown().await;
    }
}
