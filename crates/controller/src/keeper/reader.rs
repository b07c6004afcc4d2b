//! Reads just before a SIGKILL, and before an operation calls itself done: gathered, so that many clocks cost few calls.

use curfew_core::{AllocId, Allocation, JobKey};
use curfew_nomad::Nomad;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Keeper;

/// From so many on, one list is made of the single reads; from the second number on where a list has become slow, since Nomad
/// goes through every allocation of the cluster for it.
const LIST_FROM: [usize; 2] = [2, 32];
const SLOW_LIST: Duration = Duration::from_millis(150);
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
pub(super) async fn read_allocations(nomad: Nomad, keeper: Keeper, mut wanted: mpsc::Receiver<ReadAlloc>) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut under_way = FuturesUnordered::new();
    // Enough to keep the single reads of a busy moment going; more would only queue inside the transport.
    const BATCHES: usize = 16;
    let mut slow = false;
    loop {
        tokio::select! {
            n = wanted.recv_many(&mut batch, BATCH), if under_way.len() < BATCHES => {
                if n == 0 {
                    break;
                }
                let from = LIST_FROM[usize::from(slow)];
                under_way.push(read_batch(nomad.clone(), keeper.clone(), std::mem::take(&mut batch), from));
            }
            Some(took) = under_way.next(), if !under_way.is_empty() => {
                slow = took.map_or(slow, |t| t > SLOW_LIST);
            }
        }
    }
    while under_way.next().await.is_some() {}
}

/// Returns how long the list took, when there was one.
async fn read_batch(nomad: Nomad, keeper: Keeper, batch: Vec<ReadAlloc>, list_from: usize) -> Option<Duration> {
    let (listed, single): (Vec<_>, Vec<_>) = batch.into_iter().partition(|r| !r.full);
    let (listed, single) = if listed.len() < list_from { (vec![], [single, listed].concat()) } else { (listed, single) };
    let list = async {
        if listed.is_empty() {
            return None;
        }
        let began = Instant::now();
        let ids: Vec<AllocId> = listed.into_iter().map(|r| r.id).collect();
        let read = nomad.allocations_by_id(&ids).await;
        let took = began.elapsed();
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
        Some(took)
    };
    let singles = async {
        let mut reads: FuturesUnordered<_> = single.into_iter().map(|r| read_one(&nomad, &keeper, r.id)).collect();
        while reads.next().await.is_some() {}
    };
    tokio::join!(list, singles).0
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

pub(super) async fn read_jobs(nomad: Nomad, mut wanted: mpsc::Receiver<ReadJob>) {
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
        let answer = nomad.not_over_allocations(&keys).await.map_err(|e| crate::error::chain(&e));
        let answer = answer.and_then(|page| match page.bad.first() {
            None => Ok(page.allocations),
            // Somebody's unreadable allocation could be this job's: not knowing is not "over".
            Some(bad) => Err(format!("an allocation in Nomad's answer could not be read: {bad:?}")),
        });
        for r in batch {
            let mine = answer.as_ref().map_err(Clone::clone);
            let mine = mine.map(|all| all.iter().filter(|a| a.job_key() == r.key).cloned().collect());
            // The step that asked may have been cancelled.
            let _ = r.reply.send(mine);
        }
    }
}
