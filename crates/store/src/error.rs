//! What can go wrong with the database, by what one can do about it.

use curfew_core::{NodeId, OpId};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The lease moved on: somebody else holds the row, or it was released. The write changed nothing.
    #[error("operation {id}: the lease of epoch {epoch} is no longer ours")]
    Fenced { id: OpId, epoch: u64 },
    /// Another controller keeps the clocks now, or nobody does.
    #[error("the keeper's duty of epoch {epoch} is no longer ours")]
    DutyLost { epoch: u64 },
    /// The operation is not in a state for what was asked; `why` is a sentence with the way out.
    #[error("operation {id}: {why}")]
    Refused { id: OpId, why: String },
    /// Another drain has that node until it is over.
    #[error("node {node} is drained by operation {by} already; watch that one (curfew op watch {by}), or cancel it first")]
    Claimed { node: NodeId, by: OpId },
    #[error("the idempotency key \"{key}\" was used before for a different request (operation {id}); use a new key")]
    IdempotencyConflict { key: String, id: OpId },
    #[error("there is no operation {0}")]
    NoSuchOperation(OpId),
    /// The database's URL cannot be used; says why, without the password.
    #[error("{0}")]
    BadUrl(String),
    /// Says what and where, and the way out; `source` has the driver's words.
    #[error("{what}")]
    Database {
        what: String,
        /// Worth trying again without anybody's help (busy, disk full may pass).
        transient: bool,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}
