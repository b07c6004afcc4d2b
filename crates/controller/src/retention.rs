//! What is finished and old is removed from the database, an hour apart and in batches, so that nobody waits behind it.

use std::sync::Arc;
use std::time::Duration;

use curfew_core::Clock;
use curfew_core::config::Config;
use curfew_store::{Pruned, Store};
use tokio_util::sync::CancellationToken;

use crate::error::chain;

const INTERVAL: Duration = Duration::from_secs(3600);
/// Rows of each table that one transaction removes.
const BATCH: usize = 500;

pub async fn run(store: Arc<dyn Store>, clock: Arc<dyn Clock>, config: Arc<Config>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = prune(&*store, &*clock, &config) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

async fn prune(store: &dyn Store, clock: &dyn Clock, config: &Config) {
    let (finished_before, audit_before) = (clock.now() - config.retention_operations, clock.now() - config.retention_audit);
    let mut all = Pruned::default();
    loop {
        match store.prune(finished_before, audit_before, BATCH).await {
            Ok(Pruned { operations: 0, audit: 0 }) => break,
            Ok(some) => {
                all.operations += some.operations;
                all.audit += some.audit;
            }
            Err(e) => {
                tracing::error!(error = %chain(&e), "old rows could not be removed; trying again in an hour");
                break;
            }
        }
    }
    if all != Pruned::default() {
        tracing::info!(operations = all.operations, audit = all.audit, "old rows are removed");
    }
}
