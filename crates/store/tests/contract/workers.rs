//! Many at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use curfew_core::OpId;
use curfew_core::audit::Action;
use curfew_core::operation::{Kind, State};
use curfew_store::{AuditFilter, Created, OperationFilter, Store};
use futures::future::{join_all, try_join_all};

use super::fixtures::*;

async fn all<T: Send + 'static>(tasks: impl Iterator<Item = impl Future<Output = T> + Send + 'static>) -> Vec<T> {
    try_join_all(tasks.map(tokio::spawn)).await.unwrap()
}

pub async fn a_row_has_one_holder(store: Arc<dyn Store>) {
    join_all((0..200).map(|i| store.create(stop(&format!("job-{i}"), i)))).await;
    let worker = |w: usize, store: Arc<dyn Store>| async move {
        let mut mine: Vec<OpId> = Vec::new();
        loop {
            let leased = lease(&store, &format!("h:{w}"), &BOTH, &[], 3, at(300)).await;
            if leased.is_empty() {
                return mine;
            }
            mine.extend(leased.iter().map(|op| op.id));
        }
    };
    let mut ids = all((0..8).map(|w| worker(w, Arc::clone(&store)))).await.concat();
    assert_eq!(ids.len(), 200);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 200, "none of them twice");
}

pub async fn requests_at_once_make_one_stop(store: Arc<dyn Store>) {
    let request = |i: u64, store: Arc<dyn Store>| async move { store.create(stop_within("a", 1, 30 + i)).await.unwrap() };
    let created = all((0..24).map(|i| request(i, Arc::clone(&store)))).await;
    assert_eq!(created.iter().filter(|c| matches!(c, Created::New(_))).count(), 1);
    let live = store.live(Kind::Stop).await.unwrap();
    assert_eq!((live.len(), live[0].revision), (1, 23));
    assert!(live[0].request.demands().contains(&demand(1, 30)), "the strictest stays: {:?}", live[0].request.demands());
    assert_eq!(live[0].deadline, Some(at(31)), "the earliest of all");
}

pub async fn a_key_used_at_once_makes_one_operation(store: Arc<dyn Store>) {
    let request = |store: Arc<dyn Store>| async move { store.create(with_key(submit("a", 1), "k", "body")).await.unwrap() };
    let created = all((0..24).map(|_| request(Arc::clone(&store)))).await;
    assert_eq!(created.iter().filter(|c| matches!(c, Created::New(_))).count(), 1);
    assert_eq!(store.operations(OperationFilter::default()).await.unwrap().len(), 1);
}

/// Requests, workers and reads all at the same time: every operation ends, each end is written once, and no row of the trail
/// is missing.
pub async fn a_crowd_finishes_everything_once(store: Arc<dyn Store>) {
    const REQUESTS: u64 = 240;
    let requester = |r: u64, store: Arc<dyn Store>| async move {
        for i in 0..REQUESTS / 4 {
            store.create(stop(&format!("job-{}", (i * 7 + r) % 30), i)).await.unwrap();
        }
    };
    let requesters = tokio::spawn(all((0..4).map(|r| requester(r, Arc::clone(&store))).collect::<Vec<_>>().into_iter()));
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let worker = |w: usize, store: Arc<dyn Store>, done: Arc<std::sync::atomic::AtomicBool>| async move {
        loop {
            let last = done.load(std::sync::atomic::Ordering::SeqCst);
            let leased = lease(&store, &format!("h:{w}"), &BOTH, &[], 4, at(1000)).await;
            if leased.is_empty() && last {
                return;
            }
            for op in leased {
                let unsent = op.progress.demands_sent < op.request.demands().len();
                let (result, audit) = succeeded(&op, at(1000));
                // Two steps each, as a stop has: the first tells Nomad, the second sees that all is over.
                match unsent {
                    true => {
                        let result = curfew_store::StepResult { state: State::Waiting, run_at: at(1000), ..result };
                        store.finish_step(&op, result, vec![], at(1000)).await.unwrap()
                    }
                    false => store.finish_step(&op, result, audit, at(1000)).await.unwrap(),
                };
            }
            tokio::task::yield_now().await;
        }
    };
    let workers =
        tokio::spawn(all((0..4).map(|w| worker(w, Arc::clone(&store), Arc::clone(&done))).collect::<Vec<_>>().into_iter()));
    requesters.await.unwrap();
    done.store(true, std::sync::atomic::Ordering::SeqCst);
    workers.await.unwrap();

    assert_eq!(store.live(Kind::Stop).await.unwrap(), []);
    let operations = store.operations(OperationFilter { limit: 1000, ..OperationFilter::default() }).await.unwrap();
    let demands: u64 = operations.iter().map(|op| op.revision + 1).sum();
    assert_eq!(demands, REQUESTS, "each request made an operation or joined one");
    let rows = store.audit(AuditFilter { limit: 100_000, ..AuditFilter::default() }).await.unwrap();
    assert!(rows.iter().map(|r| r.seq).eq(1..=rows.len() as u64), "the trail has a gap");
    let mut ends: BTreeMap<OpId, usize> = BTreeMap::new();
    for end in rows.iter().filter(|r| r.entry.action == Action::Succeeded) {
        *ends.entry(end.entry.operation.unwrap()).or_default() += 1;
    }
    assert_eq!(ends.len(), operations.len());
    assert!(ends.values().all(|n| *n == 1), "an operation ended twice");
}
