//! A PostgresStore whose database takes the time from a table: before each call that says what time it is, the table is told. So the
//! same rules with the same artificial instants hold for a store that asks its database for the time.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use curfew_core::access::Token;
use curfew_core::audit::{AuditEntry, AuditRow};
use curfew_core::clock::{ClockKey, ClockRecord};
use curfew_core::operation::{By, Intervention, Kind, Operation};
use curfew_core::{NodeId, OpId, Timestamp};
use curfew_store::{
    AuditFilter, Change, Created, Duty, KindRow, NewOperation, OperationFilter, PostgresStore, Pruned, QueueStatus, Result,
    StepResult, Store, Wanted,
};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, broadcast};
use tokio_postgres::Client;

pub struct Clocked {
    inner: Arc<PostgresStore>,
    clock: Client,
    /// What the table says. Calls at the same instant run together; one at another instant waits for them.
    now: RwLock<Timestamp>,
}

/// For as long as this lives it is the instant that was asked for.
struct At<'a> {
    inner: &'a PostgresStore,
    _now: RwLockReadGuard<'a, Timestamp>,
}

impl Deref for At<'_> {
    type Target = PostgresStore;
    fn deref(&self) -> &PostgresStore {
        self.inner
    }
}

impl Clocked {
    pub async fn new(inner: Arc<PostgresStore>, clock: Client) -> Clocked {
        let own = "CREATE TABLE test_clock (micros BIGINT NOT NULL); INSERT INTO test_clock VALUES (0); \
                   CREATE OR REPLACE FUNCTION curfew_now() RETURNS BIGINT LANGUAGE sql VOLATILE AS \
                   $$ SELECT micros FROM test_clock $$";
        clock.batch_execute(own).await.unwrap();
        Clocked { inner, clock, now: RwLock::default() }
    }

    async fn at(&self, now: Timestamp) -> At<'_> {
        let same = self.now.read().await;
        if *same == now {
            return At { inner: &self.inner, _now: same };
        }
        drop(same);
        let mut other = self.now.write().await;
        self.clock.execute("UPDATE test_clock SET micros = $1", &[&now.as_micros()]).await.unwrap();
        *other = now;
        At { inner: &self.inner, _now: RwLockWriteGuard::downgrade(other) }
    }
}

#[async_trait]
impl Store for Clocked {
    async fn create(&self, new: NewOperation) -> Result<Created> {
        self.at(new.at).await.create(new).await
    }
    async fn lease(&self, holder: &str, wanted: &[Wanted], ids: &[OpId], limit: usize, now: Timestamp) -> Result<Vec<Operation>> {
        self.at(now).await.lease(holder, wanted, ids, limit, now).await
    }
    async fn renew(&self, id: OpId, epoch: u64, lease_for: Duration, now: Timestamp) -> Result<()> {
        self.at(now).await.renew(id, epoch, lease_for, now).await
    }
    async fn finish_step(
        &self,
        leased: &Operation,
        result: StepResult,
        audit: Vec<AuditEntry>,
        now: Timestamp,
    ) -> Result<Operation> {
        self.at(now).await.finish_step(leased, result, audit, now).await
    }
    async fn intervene(&self, id: OpId, what: Intervention, by: By) -> Result<Operation> {
        self.at(by.at).await.intervene(id, what, by).await
    }
    async fn claim(&self, id: OpId, nodes: Vec<NodeId>) -> Result<()> {
        self.inner.claim(id, nodes).await
    }
    async fn claims(&self) -> Result<Vec<(NodeId, OpId)>> {
        self.inner.claims().await
    }
    async fn operation(&self, id: OpId) -> Result<Option<Operation>> {
        self.inner.operation(id).await
    }
    async fn operations(&self, filter: OperationFilter) -> Result<Vec<Operation>> {
        self.inner.operations(filter).await
    }
    async fn live_after(&self, kind: Kind, after: OpId, limit: usize) -> Result<Vec<Operation>> {
        self.inner.live_after(kind, after, limit).await
    }
    async fn next_due(&self, kinds: &[Kind], now: Timestamp) -> Result<Option<Timestamp>> {
        self.at(now).await.next_due(kinds, now).await
    }
    async fn queue_status(&self) -> Result<QueueStatus> {
        self.inner.queue_status().await
    }
    async fn kinds(&self) -> Result<Vec<KindRow>> {
        self.inner.kinds().await
    }
    async fn pause_kind(&self, kind: Kind, by: By) -> Result<KindRow> {
        self.at(by.at).await.pause_kind(kind, by).await
    }
    async fn resume_kind(&self, kind: Kind, by: By) -> Result<KindRow> {
        self.at(by.at).await.resume_kind(kind, by).await
    }
    async fn take_duty(&self, holder: &str, lease_for: Duration, now: Timestamp) -> Result<Option<Duty>> {
        self.at(now).await.take_duty(holder, lease_for, now).await
    }
    async fn renew_duty(&self, epoch: u64, lease_for: Duration, now: Timestamp) -> Result<Duty> {
        self.at(now).await.renew_duty(epoch, lease_for, now).await
    }
    async fn give_up_duty(&self, epoch: u64, now: Timestamp) -> Result<()> {
        self.at(now).await.give_up_duty(epoch, now).await
    }
    fn changes(&self) -> broadcast::Receiver<Change> {
        self.inner.changes()
    }
    async fn prune(&self, finished_before: Timestamp, audit_before: Timestamp, limit: usize) -> Result<Pruned> {
        self.inner.prune(finished_before, audit_before, limit).await
    }
    async fn put_clocks(&self, clocks: Vec<ClockRecord>, audit: Vec<AuditEntry>) -> Result<()> {
        self.inner.put_clocks(clocks, audit).await
    }
    async fn remove_clocks(&self, keys: Vec<ClockKey>, audit: Vec<AuditEntry>) -> Result<()> {
        self.inner.remove_clocks(keys, audit).await
    }
    async fn clocks_after(&self, after: Option<ClockKey>, limit: usize) -> Result<Vec<ClockRecord>> {
        self.inner.clocks_after(after, limit).await
    }
    async fn put_token(&self, token: Token, audit: Vec<AuditEntry>) -> Result<()> {
        self.inner.put_token(token, audit).await
    }
    async fn token(&self, id: &str) -> Result<Option<Token>> {
        self.inner.token(id).await
    }
    async fn tokens(&self) -> Result<Vec<Token>> {
        self.inner.tokens().await
    }
    async fn append_audit(&self, audit: Vec<AuditEntry>) -> Result<()> {
        self.inner.append_audit(audit).await
    }
    async fn audit(&self, filter: AuditFilter) -> Result<Vec<AuditRow>> {
        self.inner.audit(filter).await
    }
    async fn check(&self) -> Result<()> {
        self.inner.check().await
    }
    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}
