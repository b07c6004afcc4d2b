//! The tokens' table: read one by one by its id, so the record is one column.

use curfew_core::access::Token;
use rusqlite::params;

use super::db::{Db, Query, from_json};
use crate::Result;

const PUT: Query<'_> = Query {
    name: "put_token",
    sql: "INSERT INTO tokens (id, record) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET record = excluded.record",
};
const ONE: Query<'_> = Query { name: "token", sql: "SELECT record FROM tokens WHERE id = ?1" };
const ALL: Query<'_> = Query { name: "tokens", sql: "SELECT record FROM tokens ORDER BY id" };

#[cfg(test)]
pub(super) const HOT: &[(&Query<'_>, &str)] = &[(&ONE, "PRIMARY KEY")];

pub(super) fn put(db: &Db<'_>, token: &Token) -> Result<()> {
    let record = db.json(PUT.name, token)?;
    db.execute(&PUT, params![token.id, record]).map(drop)
}

pub(super) fn one(db: &Db<'_>, id: &str) -> Result<Option<Token>> {
    db.one(&ONE, params![id], |r| from_json(r, 0))
}

pub(super) fn all(db: &Db<'_>) -> Result<Vec<Token>> {
    db.all(&ALL, [], |r| from_json(r, 0))
}
