//! Which drain a node belongs to.

use curfew_core::operation::Operation;
use curfew_core::{NodeId, OpId};
use rusqlite::params;

use super::db::{Db, Query};
use super::operations::op_id;
use crate::{Result, StoreError};

const HOLDER: Query<'_> = Query { name: "claim_holder", sql: "SELECT operation FROM claims WHERE node = ?1" };
const CLAIM: Query<'_> = Query { name: "claim", sql: "INSERT OR IGNORE INTO claims (node, operation) VALUES (?1, ?2)" };
const RELEASE: Query<'_> = Query { name: "release_claims", sql: "DELETE FROM claims WHERE operation = ?1" };
const ALL: Query<'_> = Query { name: "claims", sql: "SELECT node, operation FROM claims ORDER BY node" };

/// All of them, or none and [`StoreError::Claimed`].
pub(super) fn take(db: &Db<'_>, id: OpId, nodes: &[NodeId]) -> Result<()> {
    for node in nodes {
        match holder(db, node)? {
            Some(by) if by != id => return Err(StoreError::Claimed { node: node.clone(), by }),
            Some(_) => {}
            None => {
                db.execute(&CLAIM, params![node.as_str(), id.to_string()])?;
            }
        }
    }
    Ok(())
}

/// Another operation that has one of this one's nodes.
pub(super) fn rival(db: &Db<'_>, op: &Operation) -> Result<Option<OpId>> {
    for node in op.claims() {
        if let Some(by) = holder(db, &node)?.filter(|by| *by != op.id) {
            return Ok(Some(by));
        }
    }
    Ok(None)
}

pub(super) fn release(db: &Db<'_>, id: OpId) -> Result<()> {
    db.execute(&RELEASE, [id.to_string()]).map(|_| ())
}

pub(super) fn all(db: &Db<'_>) -> Result<Vec<(NodeId, OpId)>> {
    db.all(&ALL, [], |r| Ok((r.get::<_, String>(0)?.into(), op_id(r, 1)?)))
}

fn holder(db: &Db<'_>, node: &NodeId) -> Result<Option<OpId>> {
    db.one(&HOLDER, [node.as_str()], |r| op_id(r, 0))
}
