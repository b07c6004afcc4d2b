//! A way to a store that two controllers share, which can be away for one of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use curfew_core::access::Token;
use curfew_core::audit::{AuditEntry, AuditRow};
use curfew_core::clock::{ClockKey, ClockRecord};
use curfew_core::operation::{By, Intervention, Kind, Operation};
use curfew_core::{NodeId, OpId, Timestamp};
use curfew_store::{
    AuditFilter, Change, Created, Duty, KindRow, MemoryStore, NewOperation, OperationFilter, Pruned, QueueStatus, Result,
    StepResult, Store, StoreError, Wanted,
};
use tokio::sync::broadcast;

pub struct Flaky {
    inner: Arc<MemoryStore>,
    away: AtomicBool,
}

impl Flaky {
    pub fn way_to(inner: &Arc<MemoryStore>) -> Arc<Self> {
        Arc::new(Self { inner: inner.clone(), away: AtomicBool::new(false) })
    }

    pub fn away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    fn reached(&self) -> Result<&MemoryStore> {
        match self.away.load(Ordering::SeqCst) {
            false => Ok(&self.inner),
            true => Err(StoreError::Database { what: "the database is away".into(), transient: true, source: None }),
        }
    }
}

#[async_trait]
impl Store for Flaky {
    async fn create(&self, new: NewOperation) -> Result<Created> {
        self.reached()?.create(new).await
    }
    async fn lease(&self, holder: &str, wanted: &[Wanted], ids: &[OpId], limit: usize, now: Timestamp) -> Result<Vec<Operation>> {
        self.reached()?.lease(holder, wanted, ids, limit, now).await
    }
    async fn renew(&self, id: OpId, epoch: u64, lease_for: Duration, now: Timestamp) -> Result<()> {
        self.reached()?.renew(id, epoch, lease_for, now).await
    }
    async fn finish_step(
        &self,
        leased: &Operation,
        result: StepResult,
        audit: Vec<AuditEntry>,
        now: Timestamp,
    ) -> Result<Operation> {
        self.reached()?.finish_step(leased, result, audit, now).await
    }
    async fn intervene(&self, id: OpId, what: Intervention, by: By) -> Result<Operation> {
        self.reached()?.intervene(id, what, by).await
    }
    async fn claim(&self, id: OpId, nodes: Vec<NodeId>) -> Result<()> {
        self.reached()?.claim(id, nodes).await
    }
    async fn claims(&self) -> Result<Vec<(NodeId, OpId)>> {
        self.reached()?.claims().await
    }
    async fn operation(&self, id: OpId) -> Result<Option<Operation>> {
        self.reached()?.operation(id).await
    }
    async fn operations(&self, filter: OperationFilter) -> Result<Vec<Operation>> {
        self.reached()?.operations(filter).await
    }
    async fn live_after(&self, kind: Kind, after: OpId, limit: usize) -> Result<Vec<Operation>> {
        self.reached()?.live_after(kind, after, limit).await
    }
    async fn next_due(&self, kinds: &[Kind], now: Timestamp) -> Result<Option<Timestamp>> {
        self.reached()?.next_due(kinds, now).await
    }
    async fn queue_status(&self) -> Result<QueueStatus> {
        self.reached()?.queue_status().await
    }
    async fn kinds(&self) -> Result<Vec<KindRow>> {
        self.reached()?.kinds().await
    }
    async fn pause_kind(&self, kind: Kind, by: By) -> Result<KindRow> {
        self.reached()?.pause_kind(kind, by).await
    }
    async fn resume_kind(&self, kind: Kind, by: By) -> Result<KindRow> {
        self.reached()?.resume_kind(kind, by).await
    }
    async fn take_duty(&self, holder: &str, lease_for: Duration, now: Timestamp) -> Result<Option<Duty>> {
        self.reached()?.take_duty(holder, lease_for, now).await
    }
    async fn renew_duty(&self, epoch: u64, lease_for: Duration, now: Timestamp) -> Result<Duty> {
        self.reached()?.renew_duty(epoch, lease_for, now).await
    }
    async fn give_up_duty(&self, epoch: u64, now: Timestamp) -> Result<()> {
        self.reached()?.give_up_duty(epoch, now).await
    }
    fn changes(&self) -> broadcast::Receiver<Change> {
        self.inner.changes()
    }
    async fn prune(&self, finished_before: Timestamp, audit_before: Timestamp, limit: usize) -> Result<Pruned> {
        self.reached()?.prune(finished_before, audit_before, limit).await
    }
    async fn put_clocks(&self, clocks: Vec<ClockRecord>, audit: Vec<AuditEntry>) -> Result<()> {
        self.reached()?.put_clocks(clocks, audit).await
    }
    async fn remove_clocks(&self, keys: Vec<ClockKey>, audit: Vec<AuditEntry>) -> Result<()> {
        self.reached()?.remove_clocks(keys, audit).await
    }
    async fn clocks_after(&self, after: Option<ClockKey>, limit: usize) -> Result<Vec<ClockRecord>> {
        self.reached()?.clocks_after(after, limit).await
    }
    async fn put_token(&self, token: Token, audit: Vec<AuditEntry>) -> Result<()> {
        self.reached()?.put_token(token, audit).await
    }
    async fn token(&self, id: &str) -> Result<Option<Token>> {
        self.reached()?.token(id).await
    }
    async fn tokens(&self) -> Result<Vec<Token>> {
        self.reached()?.tokens().await
    }
    async fn append_audit(&self, audit: Vec<AuditEntry>) -> Result<()> {
        self.reached()?.append_audit(audit).await
    }
    async fn audit(&self, filter: AuditFilter) -> Result<Vec<AuditRow>> {
        self.reached()?.audit(filter).await
    }
    async fn check(&self) -> Result<()> {
        self.reached()?.check().await
    }
    /// The other controller goes on with it.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
