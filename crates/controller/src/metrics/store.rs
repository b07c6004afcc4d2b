//! The store as the controller uses it, measured: the one seam through which every request, lease and step goes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use curfew_core::access::Token;
use curfew_core::audit::{AuditEntry, AuditRow};
use curfew_core::clock::{ClockKey, ClockRecord};
use curfew_core::operation::{By, Intervention, Kind, Operation};
use curfew_core::{NodeId, OpId, Timestamp};
use curfew_store::{
    AuditFilter, Change, Created, Duty, KindRow, NewOperation, OperationFilter, Pruned, QueueStatus, Result, StepResult, Store,
    StoreError, Wanted,
};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::{Metrics, from_zero};
use crate::trace;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCall {
    call: &'static str,
}

pub(super) struct Calls {
    seconds: Family<ByCall, Histogram>,
    errors: Family<ByCall, Counter>,
}

/// A commit is a few milliseconds on a disk; a database that hangs is given up after seconds.
const SECONDS: [f64; 8] = [0.0005, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0];

impl Calls {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let all = Self { seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)), errors: Family::default() };
        let help = "How long calls of the database took, by what was asked";
        registry.register_with_unit("store_call_duration", help, Unit::Seconds, all.seconds.clone());
        registry.register("store_errors", "Calls that the database failed, by what was asked", all.errors.clone());
        for call in CALLS {
            from_zero(&all.errors, &ByCall { call });
        }
        all
    }
}

pub(super) struct Measured {
    pub(super) inner: Arc<dyn Store>,
    pub(super) metrics: Metrics,
}

impl Measured {
    async fn time<T>(&self, call: &'static str, asked: impl Future<Output = Result<T>>) -> Result<T> {
        let began = Instant::now();
        let answer = asked.await;
        let calls = &self.metrics.0.store;
        calls.seconds.get_or_create(&ByCall { call }).observe(began.elapsed().as_secs_f64());
        // A refusal is an answer.
        if let Err(StoreError::Database { .. } | StoreError::BadUrl(_)) = &answer {
            calls.errors.get_or_create(&ByCall { call }).inc();
        }
        answer
    }
}

fn fenced<T>(answer: &Result<T>) -> bool {
    matches!(answer, Err(StoreError::Fenced { .. }))
}

/// Every call as the trait has it; those with something to count beside are written out above the macro's use.
macro_rules! measured {
    ($($name:ident($($arg:ident: $type:ty),*) -> $answer:ty;)*) => {
        const CALLS: [&str; 5 + [$(stringify!($name)),*].len()] =
            ["create", "renew", "finish_step", "intervene", "close", $(stringify!($name)),*];

        #[async_trait]
        impl Store for Measured {
            async fn create(&self, new: NewOperation) -> Result<Created> {
                let created = self.time("create", self.inner.create(new)).await?;
                self.metrics.accepted(&created);
                trace::about(created.operation().id);
                Ok(created)
            }
            async fn renew(&self, id: OpId, epoch: u64, lease_for: Duration, now: Timestamp) -> Result<()> {
                let renewed = self.time("renew", self.inner.renew(id, epoch, lease_for, now)).await;
                if fenced(&renewed) {
                    self.metrics.lease_lost("renewal");
                }
                renewed
            }
            async fn finish_step(
                &self,
                leased: &Operation,
                result: StepResult,
                audit: Vec<AuditEntry>,
                now: Timestamp,
            ) -> Result<Operation> {
                let after = self.time("finish_step", self.inner.finish_step(leased, result, audit, now)).await;
                match &after {
                    Ok(op) if op.state.is_finished() => self.metrics.finished(op),
                    _ if fenced(&after) => self.metrics.lease_lost("write"),
                    _ => {}
                }
                after
            }
            async fn intervene(&self, id: OpId, what: Intervention, by: By) -> Result<Operation> {
                let at = by.at;
                let after = self.time("intervene", self.inner.intervene(id, what, by)).await?;
                // One that never began is cancelled at once.
                if after.state.is_finished() && after.finished_at == Some(at) {
                    self.metrics.finished(&after);
                }
                Ok(after)
            }
            async fn close(&self) -> Result<()> {
                self.time("close", self.inner.close()).await
            }
            fn changes(&self) -> broadcast::Receiver<Change> {
                self.inner.changes()
            }
            $(async fn $name(&self, $($arg: $type),*) -> Result<$answer> {
                self.time(stringify!($name), self.inner.$name($($arg),*)).await
            })*
        }
    };
}

measured! {
    lease(holder: &str, wanted: &[Wanted], ids: &[OpId], limit: usize, now: Timestamp) -> Vec<Operation>;
    claim(id: OpId, nodes: Vec<NodeId>) -> ();
    claims() -> Vec<(NodeId, OpId)>;
    operation(id: OpId) -> Option<Operation>;
    operations(filter: OperationFilter) -> Vec<Operation>;
    live_after(kind: Kind, after: OpId, limit: usize) -> Vec<Operation>;
    next_due(kinds: &[Kind], now: Timestamp) -> Option<Timestamp>;
    queue_status() -> QueueStatus;
    kinds() -> Vec<KindRow>;
    pause_kind(kind: Kind, by: By) -> KindRow;
    resume_kind(kind: Kind, by: By) -> KindRow;
    take_duty(holder: &str, lease_for: Duration, now: Timestamp) -> Option<Duty>;
    renew_duty(epoch: u64, lease_for: Duration, now: Timestamp) -> Duty;
    give_up_duty(epoch: u64, now: Timestamp) -> ();
    prune(finished_before: Timestamp, audit_before: Timestamp, limit: usize) -> Pruned;
    put_clocks(clocks: Vec<ClockRecord>, audit: Vec<AuditEntry>) -> ();
    remove_clocks(keys: Vec<ClockKey>, audit: Vec<AuditEntry>) -> ();
    clocks_after(after: Option<ClockKey>, limit: usize) -> Vec<ClockRecord>;
    append_audit(audit: Vec<AuditEntry>) -> ();
    audit(filter: AuditFilter) -> Vec<AuditRow>;
    put_token(token: Token, audit: Vec<AuditEntry>) -> ();
    token(id: &str) -> Option<Token>;
    tokens() -> Vec<Token>;
    check() -> ();
}
