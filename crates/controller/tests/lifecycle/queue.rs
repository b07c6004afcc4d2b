//! Leases, attempts and interventions as the dispatcher sees them. Time is paused: the bounds are exact.

use std::collections::BTreeMap;
use std::time::Duration;

use curfew_core::audit::Action;
use curfew_core::kinds::Overrides;
use curfew_core::operation::{By, Intervention, Kind, State};
use curfew_core::{Clock, OpId};
use curfew_store::{Store, Wanted};
use tokio_util::sync::CancellationToken;

use crate::kit::{DELETED, Lab, hangs, stays, until, when};

const S: Duration = Duration::from_secs(1);

fn by(lab: &Lab) -> By {
    By { actor: "me".into(), reason: Some("it is stuck".into()), at: lab.clock.now() }
}

/// Somebody leases it, and is never heard of again.
async fn taken_by_somebody(lab: &Lab, store: &dyn Store) -> OpId {
    let id = lab.ask(store, "j").await;
    let wanted = [Wanted { kind: Kind::Stop, lease_for: lab.config.kind(Kind::Stop).lease_timeout, limit: 1 }];
    let leased = store.lease("gone:7", &wanted, &[id], 1, lab.clock.now()).await.unwrap();
    assert_eq!(leased.len(), 1);
    id
}

#[tokio::test(start_paused = true)]
async fn a_stuck_row_is_taken_over_after_its_kinds_timeout() {
    let lab = Lab::new(Box::new(|line| line.starts_with("DELETE").then(|| Box::pin(async { DELETED.to_owned() }) as _)));
    let store = lab.store();
    let began = lab.clock.now();
    let id = taken_by_somebody(&lab, &*store).await;
    let controller = lab.start(store.clone());
    let mut taken =
        Box::pin(until("its row to be taken over", async || store.operation(id).await.unwrap().unwrap().lease.epoch > 1));
    // `until` gives up after 30 s of its own.
    stays(&mut taken, 29 * S, "the lease of somebody who is gone").await;
    drop(taken);
    let timeout = lab.config.kind(Kind::Stop).lease_timeout;
    tokio::time::advance(timeout - 35 * S).await;
    assert_eq!(store.operation(id).await.unwrap().unwrap().lease.epoch, 1, "not yet");
    until("its row to be taken over", async || store.operation(id).await.unwrap().unwrap().lease.epoch > 1).await;
    let took = lab.clock.now().since(began);
    assert!(took >= timeout && took < timeout + 6 * S, "{took:?}");
    until("it to be deleted", async || lab.asked("GET /v1/job/j") > 0).await;
    controller.stop(true).await;
}

#[tokio::test(start_paused = true)]
async fn a_released_row_is_taken_at_once() {
    let lab = Lab::new(Box::new(|line| line.starts_with("DELETE").then(|| Box::pin(async { DELETED.to_owned() }) as _)));
    let store = lab.store();
    let id = taken_by_somebody(&lab, &*store).await;
    let controller = lab.start(store.clone());
    let began = lab.clock.now();
    store.intervene(id, Intervention::Release, by(&lab)).await.unwrap();
    until("its row to be taken", async || store.operation(id).await.unwrap().unwrap().lease.epoch > 2).await;
    assert!(lab.clock.now().since(began) < S, "{:?}", lab.clock.now().since(began));
    controller.stop(true).await;
}

/// Its holder is this very controller: the step that hangs ends, and the next one looks before it repeats.
#[tokio::test(start_paused = true)]
async fn a_step_whose_row_is_released_stops_in_the_middle() {
    let lab = Lab::new(Box::new(|line| line.starts_with("DELETE").then(hangs)));
    let store = lab.store();
    let id = lab.ask(&*store, "j").await;
    let controller = lab.start(store.clone());
    lab.until_asked("DELETE", 1).await;
    store.intervene(id, Intervention::Release, by(&lab)).await.unwrap();
    lab.until_asked("GET /v1/job/j", 1).await;
    until("one step at a time", async || controller.counts().await.is_some_and(|c| c.steps <= 1)).await;
    controller.hurry();
    controller.stopped().await;
    drop(store);
    let (op, trail) = lab.left(id).await;
    assert!(op.progress.unknown, "{op:?}");
    assert!(trail.contains(&Action::Released), "{trail:?}");
}

#[tokio::test(start_paused = true)]
async fn a_kind_has_its_own_concurrency_and_attempts() {
    let gate = CancellationToken::new();
    let open = gate.clone();
    let mut lab = Lab::with_timeout(5 * S, Box::new(move |line| line.starts_with("DELETE").then(|| when(&open, "not json"))));
    let limits = Overrides { concurrency: Some(2), attempts: Some(3), ..Overrides::default() };
    lab.config.kinds = BTreeMap::from([(Kind::Stop, limits)]);
    let store = lab.store();
    let mut ops = vec![];
    for i in 0..5 {
        ops.push(lab.ask(&*store, &format!("j{i}")).await);
    }
    let controller = lab.start(store.clone());
    lab.until_asked("DELETE", 2).await;
    let mut third = Box::pin(lab.until_asked("DELETE", 3));
    stays(&mut third, 4 * S, "a third step").await;
    drop(third);
    gate.cancel();
    until("all to be given up", async || {
        for id in &ops {
            if store.operation(*id).await.unwrap().unwrap().state != State::Failed {
                return false;
            }
        }
        true
    })
    .await;
    for id in &ops {
        let op = store.operation(*id).await.unwrap().unwrap();
        let error = op.error.unwrap();
        assert!(error.contains("given up after 3 attempts") && error.len() > 60, "with the last error: {error}");
        assert!(op.progress.unknown, "its last DELETE may have been done");
    }
    controller.stop(true).await;
}
