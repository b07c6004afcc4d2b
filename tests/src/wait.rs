//! The one place that waits. A scenario never sleeps: it waits for a condition, and when that does not come it says what it saw
//! last.

use std::time::Duration;

use curfew_core::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::now;

/// Looks until the answer is there; after `deadline` it fails with what was seen last.
pub async fn eventually<T>(deadline: Duration, what: &str, look: impl AsyncFnMut() -> Result<T, String>) -> T {
    within(deadline, look).await.unwrap_or_else(|state| panic!("waited {deadline:?} for {what}; last seen: {state}"))
}

/// Looks until the answer is there; after `deadline` it gives what was seen last.
pub async fn within<T>(deadline: Duration, mut look: impl AsyncFnMut() -> Result<T, String>) -> Result<T, String> {
    let until = Instant::now() + deadline;
    let mut pace = interval(Duration::from_millis(20));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for round in 0.. {
        // Quick at first, then easy on a small machine.
        for _ in 0..if round < 40 { 1 } else { 5 } {
            pace.tick().await;
        }
        match look().await {
            Ok(found) => return Ok(found),
            Err(state) if Instant::now() > until => return Err(state),
            Err(_) => {}
        }
    }
    unreachable!("the rounds do not end")
}

/// Waits until the wall clock has passed an instant. For what must not happen before it, and what counts from it.
pub async fn clock_passes(instant: Timestamp, what: &str) {
    let left = instant.since(now());
    eventually(left + Duration::from_secs(5), what, async || {
        let now = now();
        if now >= instant { Ok(()) } else { Err(format!("it is {now}, waiting for {instant}")) }
    })
    .await;
}

/// Looks again and again for `span` and fails as soon as the condition does not hold.
pub async fn always(span: Duration, what: &str, mut look: impl AsyncFnMut() -> Result<(), String>) {
    let until = Instant::now() + span;
    let mut pace = interval(Duration::from_millis(50));
    while Instant::now() < until {
        pace.tick().await;
        if let Err(state) = look().await {
            panic!("{what} did not hold: {state}");
        }
    }
}
