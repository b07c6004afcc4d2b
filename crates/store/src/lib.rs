//! The only crate with SQL: operations, clocks and the audit trail.
//!
//! Every method is one transaction, durable when it returns. None spans a call to Nomad. Every write of a lease holder names
//! the row's id and the epoch it was leased under; when the epoch has moved on, the write fails with [`StoreError::Fenced`] and
//! changes nothing.

use std::time::Duration;

use async_trait::async_trait;
use curfew_core::audit::{AuditEntry, AuditRow};
use curfew_core::clock::{ClockKey, ClockRecord};
use curfew_core::operation::{Kind, Operation, Outcome, Progress, Request, State};
use curfew_core::{JobKey, OpId, Timestamp};

mod error;
mod rules;
mod sqlite;

pub use error::StoreError;
pub use sqlite::SqliteStore;

pub type Result<T> = std::result::Result<T, StoreError>;

/// A request to be written down.
#[derive(Clone, Debug)]
pub struct NewOperation {
    pub id: OpId,
    pub request: Request,
    pub actor: String,
    pub reason: Option<String>,
    pub at: Timestamp,
    pub deadline: Option<Timestamp>,
    pub warnings: Vec<String>,
    /// The caller's `Idempotency-Key` and a digest of what it asked for.
    pub idempotency: Option<(String, String)>,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Created {
    New(Operation),
    /// The same idempotency key and body came before; this is that operation as it is now.
    Replayed(Operation),
    /// A live stop of the same job took the demand in; its earlier deadline wins.
    Joined(Operation),
}

impl Created {
    pub fn operation(&self) -> &Operation {
        match self {
            Created::New(op) | Created::Replayed(op) | Created::Joined(op) => op,
        }
    }
}

/// What a step leaves behind.
#[derive(Clone, Debug)]
pub struct StepResult {
    pub state: State,
    /// `waiting` and `queued` only: when to look again.
    pub run_at: Timestamp,
    pub waiting_for: Option<String>,
    pub progress: Progress,
    pub deadline: Option<Timestamp>,
    pub outcome: Option<Outcome>,
    pub error: Option<String>,
    pub warnings: Vec<String>,
    pub attempts: u32,
}

/// Which operations to list; newest first.
#[derive(Clone, Debug, Default)]
pub struct OperationFilter {
    pub kinds: Vec<Kind>,
    pub states: Vec<State>,
    pub target: Option<JobKey>,
    /// Only operations older than this one (for the next page).
    pub before: Option<OpId>,
    /// Zero means 100.
    pub limit: usize,
}

/// Which rows of the audit trail to read; oldest first.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    pub operation: Option<OpId>,
    pub after_seq: u64,
    pub since: Option<Timestamp>,
    /// Zero means 1,000.
    pub limit: usize,
}

#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Writes a request down, or finds the operation it belongs to: the same idempotency key (a different body is
    /// [`StoreError::IdempotencyConflict`]); else, for a stop, a live stop of the same job, which takes the demand in
    /// (`core::operation::join`), becomes due now, and counts its revision up; the newest demand never counts as sent, even when
    /// the list was folded. A `requested` or `joined` row goes into the audit trail in the same transaction.
    async fn create(&self, new: NewOperation) -> Result<Created>;

    /// Leases up to `limit` operations of `kinds`: those in `ids` first when they are `queued` or `waiting`, then whatever is
    /// `queued` or `waiting` and due at `now`, then `running` ones whose lease has expired. Each becomes `running` with
    /// the epoch counted up. Oldest `run_at` first in each of the three. A `leased` row goes into the trail for the first lease and
    /// for one that was taken from an expired holder, not for each wake-up.
    async fn lease(
        &self,
        holder: &str,
        kinds: &[Kind],
        ids: &[OpId],
        lease_for: Duration,
        limit: usize,
        now: Timestamp,
    ) -> Result<Vec<Operation>>;

    /// Prolongs a lease; `Fenced` when it is no longer ours.
    async fn renew(&self, id: OpId, epoch: u64, expires_at: Timestamp) -> Result<()>;

    /// Writes what a step did and gives the lease back, with its audit rows. When the row's revision moved on since it was
    /// leased (somebody joined), a `waiting` result is due at once instead of at its `run_at`, and a finished one becomes
    /// `queued` instead, due at once; then `audit` loses its `succeeded`, `failed` or `cancelled` row and gains a `waiting` one that
    /// says why. The earlier deadline and everybody's warnings are kept. Returns the row as it is then.
    async fn finish_step(
        &self,
        leased: &Operation,
        result: StepResult,
        audit: Vec<AuditEntry>,
        now: Timestamp,
    ) -> Result<Operation>;

    async fn operation(&self, id: OpId) -> Result<Option<Operation>>;
    async fn operations(&self, filter: OperationFilter) -> Result<Vec<Operation>>;
    /// Every operation of `kind` that has not finished.
    async fn live(&self, kind: Kind) -> Result<Vec<Operation>>;
    /// The earliest instant at which some operation is due or some lease expires.
    async fn next_due(&self, kinds: &[Kind]) -> Result<Option<Timestamp>>;

    /// Writes clocks (insert or replace by key) with their audit rows.
    async fn put_clocks(&self, clocks: Vec<ClockRecord>, audit: Vec<AuditEntry>) -> Result<()>;
    async fn remove_clocks(&self, keys: Vec<ClockKey>, audit: Vec<AuditEntry>) -> Result<()>;
    async fn clocks(&self) -> Result<Vec<ClockRecord>>;

    async fn append_audit(&self, audit: Vec<AuditEntry>) -> Result<()>;
    async fn audit(&self, filter: AuditFilter) -> Result<Vec<AuditRow>>;

    /// Whether a write would be durable now (for readiness).
    async fn check(&self) -> Result<()>;
    /// Finishes what is under way, folds the log back and gives the lock on the file up.
    async fn close(&self) -> Result<()>;
}
