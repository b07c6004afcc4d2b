//! What is in flight when the stop comes, and what is left of it. Time is paused: the bounds are exact.

use std::time::Duration;

use curfew_controller::{CLEAN_UP, Ending, LONGEST_END, Phase};
use curfew_core::audit::Action;
use curfew_core::operation::State;
use curfew_store::{Store, StoreError, Wanted};
use futures::FutureExt;
use futures::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::kit::{DELETED, Lab, hangs, stays, until, when};

const S: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn stop_returns_when_the_last_of_it_is_done_whoever_asks_and_how_often() {
    let gate = CancellationToken::new();
    let open = gate.clone();
    let lab = Lab::new(Box::new(move |line| line.starts_with("DELETE").then(|| when(&open, DELETED))));
    let store = lab.store();
    let op = lab.ask(&*store, "j").await;
    let controller = lab.start(store.clone());
    lab.until_asked("DELETE", 1).await;
    drop(controller.clone());
    assert_eq!(*controller.phase().borrow(), Phase::Running, "a dropped handle stops nothing");

    controller.stop(false).await;
    controller.stop(false).await;
    let (a, b) = (controller.clone(), controller.clone());
    let mut all = Box::pin(join_all([async move { a.stop(true).await }.boxed(), async move { b.stop(true).await }.boxed()]));
    stays(&mut all, 10 * S, "stop(wait)").await;
    assert_eq!(*controller.phase().borrow(), Phase::ShuttingDown);
    let later = lab.ask(&*store, "later").await;
    stays(&mut all, 10 * S, "stop(wait)").await;
    assert_eq!(lab.asked("DELETE"), 1, "nothing more was leased");

    gate.cancel();
    all.await;
    assert_eq!(controller.stopped().await, Ending::Clean);
    assert!(matches!(store.check().await, Err(StoreError::Database { .. })), "the database is closed");
    controller.stop(true).await;
    drop(store);
    let (op, trail) = lab.left(op).await;
    assert_eq!((op.state, op.progress.delete_index, op.progress.unknown), (State::Waiting, Some(12), false), "{op:?}");
    assert!(trail.contains(&Action::JobDeleted), "{trail:?}");
    assert_eq!(lab.left(later).await.0.state, State::Queued);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_hangs_is_cut_at_its_bound_and_written_down_as_unknown() {
    let lab = Lab::new(Box::new(|line| line.starts_with("DELETE").then(hangs)));
    let store = lab.store();
    let mut ops = vec![];
    for i in 0..50 {
        ops.push(lab.ask(&*store, &format!("j{i}")).await);
    }
    let controller = lab.start(store);
    lab.until_asked("DELETE", 50).await;
    let asked = Instant::now();
    controller.stop(true).await;
    let took = asked.elapsed();
    assert_eq!(controller.stopped().await, Ending::Aborted);
    let timeout = lab.config.shutdown_timeout;
    assert_eq!(timeout, 25 * S);
    assert!(took >= timeout + S && took <= timeout + CLEAN_UP, "{took:?}");
    for op in ops {
        let (op, trail) = lab.left(op).await;
        assert_eq!((op.state, op.progress.unknown, op.lease.holder.as_deref()), (State::Queued, true, None), "{op:?}");
        assert!(op.waiting_for.as_ref().unwrap().contains("aborted for retry"), "{op:?}");
        assert_eq!(trail.iter().filter(|a| **a == Action::Aborted).count(), 1, "{trail:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_that_is_answered_while_it_cleans_up_is_not_unknown() {
    let gate = CancellationToken::new();
    let open = gate.clone();
    let lab = Lab::new(Box::new(move |line| line.starts_with("DELETE").then(|| when(&open, DELETED))));
    let store = lab.store();
    let op = lab.ask(&*store, "j").await;
    let controller = lab.start(store);
    lab.until_asked("DELETE", 1).await;
    let mut stop = Box::pin(controller.stop(true));
    stays(&mut stop, lab.config.shutdown_timeout + S, "stop(wait)").await;
    gate.cancel();
    stop.await;
    assert_eq!(controller.stopped().await, Ending::Aborted, "it took longer than it may");
    let (op, trail) = lab.left(op).await;
    assert_eq!((op.state, op.progress.delete_index, op.progress.unknown), (State::Waiting, Some(12), false), "{op:?}");
    assert!(!trail.contains(&Action::Aborted), "{trail:?}");
}

#[tokio::test(start_paused = true)]
async fn a_step_that_only_reads_stops_at_once_and_begins_no_change() {
    let lab = Lab::new(Box::new(|line| line.starts_with("GET /v1/job/").then(hangs)));
    let store = lab.store();
    let op = lab.ask(&*store, "j").await;
    // Older than what is deleted without a look at the job.
    tokio::time::advance(10 * S).await;
    let controller = lab.start(store);
    lab.until_asked("GET /v1/job/", 1).await;
    let asked = Instant::now();
    controller.stop(true).await;
    let took = asked.elapsed();
    assert!(took < lab.config.shutdown_timeout + S / 2, "{took:?}");
    let (op, trail) = lab.left(op).await;
    assert_eq!((op.state, op.progress.unknown), (State::Queued, false), "{op:?}");
    assert!(trail.contains(&Action::Aborted), "{trail:?}");
    assert_eq!(lab.asked("DELETE"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_second_wish_to_stop_waits_for_nothing() {
    let lab = Lab::new(Box::new(|line| line.starts_with("DELETE").then(hangs)));
    let store = lab.store();
    let op = lab.ask(&*store, "j").await;
    let controller = lab.start(store);
    lab.until_asked("DELETE", 1).await;
    let asked = Instant::now();
    controller.stop(false).await;
    controller.hurry();
    controller.hurry();
    assert_eq!(controller.stopped().await, Ending::Aborted);
    assert!(asked.elapsed() < S, "{:?}", asked.elapsed());
    let (op, _) = lab.left(op).await;
    assert_eq!((op.state, op.progress.unknown), (State::Queued, true), "{op:?}");
}

/// Everything of Nomad hangs, but nothing is in flight: that is a clean end, and a quick one.
#[tokio::test(start_paused = true)]
async fn a_nomad_that_hangs_holds_nobody_up_when_no_step_is_in_flight() {
    let lab = Lab::new(Box::new(|_| Some(hangs())));
    let controller = lab.start(lab.store());
    lab.until_asked("GET", 2).await;
    let asked = Instant::now();
    controller.stop(true).await;
    assert_eq!(controller.stopped().await, Ending::Clean);
    assert!(asked.elapsed() < S, "{:?}", asked.elapsed());
}

/// The database hangs (another program holds it): the end has its bound, and the row that was leased is taken over with an
/// unknown outcome.
#[tokio::test]
async fn a_row_that_cannot_be_written_is_unknown_to_whoever_takes_it_over() {
    let mut lab = Lab::new(Box::new(|line| line.starts_with("DELETE").then(hangs)));
    lab.config.shutdown_timeout = Duration::from_millis(100);
    let store = lab.store();
    let id = lab.ask(&*store, "j").await;
    let controller = lab.start(store);
    lab.until_asked("DELETE", 1).await;
    let other = rusqlite::Connection::open(lab.dir.path().join("curfew.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let asked = Instant::now();
    controller.stop(true).await;
    assert_eq!(controller.stopped().await, Ending::Aborted);
    // Some time for a machine that does other things besides.
    let bound = lab.config.shutdown_timeout + LONGEST_END + 3 * S;
    assert!(asked.elapsed() < bound, "{:?} of {bound:?}", asked.elapsed());
    other.execute_batch("ROLLBACK").unwrap();
    drop(other);
    // The write that was under way may have come through yet; then the row says so itself.
    until("the database to be given up", async || curfew_store::SqliteStore::open(&lab.dir.path().join("curfew.db")).is_ok())
        .await;
    let (op, _) = lab.left(id).await;
    match op.state {
        State::Queued => assert!(op.progress.unknown, "{op:?}"),
        _ => {
            let store = lab.store();
            let wanted = [Wanted { kind: op.kind(), lease_for: S, limit: 1 }];
            let taken = store.lease("next:1", &wanted, &[], 1, op.lease.expires_at.unwrap() + S).await.unwrap();
            assert!(taken.first().is_some_and(|op| op.progress.unknown), "{taken:?} of {op:?}");
        }
    }
}
