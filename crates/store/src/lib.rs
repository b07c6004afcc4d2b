//! The only crate with SQL: operations, clocks and the audit trail, in SQLite, in PostgreSQL, or in memory for tests.
//!
//! Every method is one transaction, durable when it returns. None spans a call to Nomad. Every write of a lease holder names
//! the row's id and the epoch it was leased under; when the epoch has moved on, the write fails with [`StoreError::Fenced`] and
//! changes nothing.

use std::time::Duration;

use async_trait::async_trait;
use curfew_core::access::Token;
use curfew_core::audit::{AuditEntry, AuditRow};
use curfew_core::clock::{ClockKey, ClockRecord};
use curfew_core::operation::{By, Intervention, Kind, Lease, Operation, Outcome, Progress, Request, State, Target};
use curfew_core::{NodeId, OpId, Timestamp};
use tokio::sync::broadcast;

mod error;
mod intervene;
mod memory;
mod open;
mod postgres;
mod rows;
mod rules;
mod sqlite;

pub use error::StoreError;
pub use memory::MemoryStore;
pub use open::{Database, open};
pub use postgres::PostgresStore;
pub use sqlite::SqliteStore;

pub type Result<T> = std::result::Result<T, StoreError>;

/// A request to be written down.
#[derive(Clone, Debug)]
pub struct NewOperation {
    pub id: OpId,
    /// The operation that asks for this one.
    pub parent: Option<OpId>,
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
    /// A live operation of the same kind and target took the request in; its earlier deadline wins.
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

/// How many rows of a table that is read whole are in memory at a time.
pub const PAGE: usize = 1000;

/// Which operations to list; newest first.
#[derive(Clone, Debug, Default)]
pub struct OperationFilter {
    pub kinds: Vec<Kind>,
    pub states: Vec<State>,
    pub target: Option<Target>,
    /// Only children of this one.
    pub parent: Option<OpId>,
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

/// How many operations of a kind may be leased now, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub kind: Kind,
    pub lease_for: Duration,
    pub limit: usize,
}

/// What happened in the database, told after its commit to everybody who asked for [`Store::changes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// An operation is another than before. `due`: it wants to be looked at now (it is new, somebody joined or intervened); not
    /// when a step just ended and said itself when the next one is due.
    Operation { id: OpId, due: bool },
    /// A kind was paused or resumed, or the keeper's duty changed hands.
    Kinds,
    /// Some changes may not have been told: look at everything.
    Missed,
}

/// How many changes a slow listener may fall behind; then it hears that it missed some.
const CHANGES: usize = 4096;

/// How many operations and rows of the trail a list holds when nothing is said.
const DEFAULT_OPERATIONS: usize = 100;
const DEFAULT_AUDIT: usize = 1000;

/// A kind as the database has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindRow {
    pub kind: Kind,
    /// Who paused it.
    pub pause: Option<By>,
    /// `kill` only: which controller keeps the clocks. The others have an empty one.
    pub duty: Lease,
}

/// Leave to keep the clocks, and to send SIGKILL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duty {
    pub epoch: u64,
    /// Unless renewed. `None`: it lasts as long as this process, since nobody else can open the database.
    pub expires_at: Option<Timestamp>,
}

/// What waits and what runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueStatus {
    /// Operations that have not finished; by kind, then state.
    pub counts: Vec<QueueCount>,
    /// Those that are leased; the lease that runs out first comes first.
    pub running: Vec<Held>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueCount {
    pub kind: Kind,
    pub state: State,
    pub count: u64,
    pub oldest_requested_at: Timestamp,
    pub oldest_run_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub id: OpId,
    pub kind: Kind,
    pub lease: Lease,
}

/// How many rows a prune removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    pub operations: u64,
    pub audit: u64,
}

#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Writes a request down, or finds the operation it belongs to: the same idempotency key (a different body is
    /// [`StoreError::IdempotencyConflict`]); else, for a kind that joins, a live one of the same target, which takes the demand in
    /// (`core::operation::join`), becomes due now, and counts its revision up; the newest demand never counts as sent, even when
    /// the list was folded. A `requested` or `joined` row goes into the audit trail in the same transaction. A drain claims its
    /// nodes (`Operation::claims`), all of them or [`StoreError::Claimed`], and has them until it has finished.
    async fn create(&self, new: NewOperation) -> Result<Created>;

    /// Leases up to `limit` operations of the `wanted` kinds, each kind up to its own: those in `ids` first when they are `queued`
    /// or `waiting`, then whatever is `queued` or `waiting` and due at `now`, then `running` ones whose lease has expired. Each
    /// becomes `running` with the epoch counted up. Oldest `run_at` first in each of the three. Nothing of a paused kind. A `leased`
    /// row goes into the trail for the first lease and for one that was taken from an expired holder, not for each wake-up.
    async fn lease(&self, holder: &str, wanted: &[Wanted], ids: &[OpId], limit: usize, now: Timestamp) -> Result<Vec<Operation>>;

    /// Prolongs a lease; `Fenced` when it is no longer ours.
    async fn renew(&self, id: OpId, epoch: u64, lease_for: Duration, now: Timestamp) -> Result<()>;

    /// Writes what a step did and gives the lease back, with its audit rows. When the row's revision moved on since it was
    /// leased (somebody joined or intervened), a `waiting` result is due at once instead of at its `run_at`; the row's own deadline
    /// and everybody's warnings are kept. When somebody joined, a finished result becomes `queued` instead, due at once; then
    /// `audit` loses its `succeeded`, `failed` or `cancelled` row and gains a `waiting` one that says why. A row that was paused
    /// meanwhile becomes `paused` unless it has finished. When it has, its claims are free and its parent, if it lives, is due at
    /// once. Returns the row as it is then.
    async fn finish_step(
        &self,
        leased: &Operation,
        result: StepResult,
        audit: Vec<AuditEntry>,
        now: Timestamp,
    ) -> Result<Operation>;

    /// What a person does to an operation, with its row in the audit trail. Doing again what is done already changes nothing;
    /// what its state does not allow is [`StoreError::Refused`]. Of the drain of a set, a cancel and a moved deadline are handed
    /// to the children that live, in the same transaction. A retry claims the nodes again.
    async fn intervene(&self, id: OpId, what: Intervention, by: By) -> Result<Operation>;

    /// Claims more nodes for a drain that lives, all of them or [`StoreError::Claimed`]. Those that it has already stay.
    async fn claim(&self, id: OpId, nodes: Vec<NodeId>) -> Result<()>;
    /// Every claimed node, and which operation has it.
    async fn claims(&self) -> Result<Vec<(NodeId, OpId)>>;

    async fn operation(&self, id: OpId) -> Result<Option<Operation>>;
    async fn operations(&self, filter: OperationFilter) -> Result<Vec<Operation>>;
    /// Operations of `kind` that have not finished, oldest first: at most `limit` of those after this one.
    async fn live_after(&self, kind: Kind, after: OpId, limit: usize) -> Result<Vec<Operation>>;
    /// All of them, however many.
    async fn live(&self, kind: Kind) -> Result<Vec<Operation>> {
        let mut all = vec![];
        loop {
            let page = self.live_after(kind, all.last().map_or(OpId::MIN, |op: &Operation| op.id), PAGE).await?;
            if page.is_empty() {
                return Ok(all);
            }
            all.extend(page);
        }
    }
    /// The earliest instant, by the caller's clock, at which some operation of `kinds` is due or some lease expires. Paused kinds
    /// do not count.
    async fn next_due(&self, kinds: &[Kind], now: Timestamp) -> Result<Option<Timestamp>>;
    /// What waits and what runs; finished operations do not count.
    async fn queue_status(&self) -> Result<QueueStatus>;

    /// Every kind, in the order of [`Kind::ALL`].
    async fn kinds(&self) -> Result<Vec<KindRow>>;
    /// Nothing of a paused kind is leased, by no controller, until it is resumed. What runs goes on to the end of its step.
    async fn pause_kind(&self, kind: Kind, by: By) -> Result<KindRow>;
    async fn resume_kind(&self, kind: Kind, by: By) -> Result<KindRow>;

    /// The keeper's duty, when it is free or its holder let it expire: the epoch counts up each time. One controller has it. Where the
    /// database has a clock, that one decides, and tells when it was taken.
    async fn take_duty(&self, holder: &str, lease_for: Duration, now: Timestamp) -> Result<Option<Duty>>;
    /// Prolongs it, also when it had expired and nobody took it; [`StoreError::DutyLost`] when somebody did.
    async fn renew_duty(&self, epoch: u64, lease_for: Duration, now: Timestamp) -> Result<Duty>;
    /// Makes it free for the next one. Nothing to do when it was lost already.
    async fn give_up_duty(&self, epoch: u64, now: Timestamp) -> Result<()>;

    /// Every change from now on, whoever made it.
    fn changes(&self) -> broadcast::Receiver<Change>;

    /// Removes up to `limit` operations that finished before `finished_before`, with their keys and children, and up to `limit`
    /// rows of the audit trail older than `audit_before`. Neither a parent of a live operation nor a live one's trail.
    async fn prune(&self, finished_before: Timestamp, audit_before: Timestamp, limit: usize) -> Result<Pruned>;

    /// Writes clocks (insert or replace by key) with their audit rows.
    async fn put_clocks(&self, clocks: Vec<ClockRecord>, audit: Vec<AuditEntry>) -> Result<()>;
    async fn remove_clocks(&self, keys: Vec<ClockKey>, audit: Vec<AuditEntry>) -> Result<()>;
    /// At most `limit` clocks in the order of their keys, those after this one.
    async fn clocks_after(&self, after: Option<ClockKey>, limit: usize) -> Result<Vec<ClockRecord>>;
    /// All of them, however many.
    async fn clocks(&self) -> Result<Vec<ClockRecord>> {
        let mut all = vec![];
        loop {
            let page = self.clocks_after(all.last().map(|c: &ClockRecord| c.key.clone()), PAGE).await?;
            if page.is_empty() {
                return Ok(all);
            }
            all.extend(page);
        }
    }

    /// Writes a token (insert or replace by its id) with its audit rows.
    async fn put_token(&self, token: Token, audit: Vec<AuditEntry>) -> Result<()>;
    async fn token(&self, id: &str) -> Result<Option<Token>>;
    /// All of them, those that ended too; by id.
    async fn tokens(&self) -> Result<Vec<Token>>;

    async fn append_audit(&self, audit: Vec<AuditEntry>) -> Result<()>;
    async fn audit(&self, filter: AuditFilter) -> Result<Vec<AuditRow>>;

    /// Whether a write would be durable now (for readiness).
    async fn check(&self) -> Result<()>;
    /// Finishes what is under way, folds the log back and gives the lock on the file up.
    async fn close(&self) -> Result<()>;
}
