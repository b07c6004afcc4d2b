//! The kill clocks' table. They are written one by one and read all together, so the record is one column.

use curfew_core::clock::{ClockKey, ClockRecord};
use rusqlite::params;

use super::db::{Db, Query, from_json, int};
use crate::Result;

const PUT: Query<'_> = Query {
    name: "put_clock",
    sql: "INSERT INTO clocks (alloc, task, incarnation, record) VALUES (?1, ?2, ?3, ?4) \
          ON CONFLICT (alloc, task, incarnation) DO UPDATE SET record = excluded.record",
};
const REMOVE: Query<'_> =
    Query { name: "remove_clock", sql: "DELETE FROM clocks WHERE alloc = ?1 AND task = ?2 AND incarnation = ?3" };
const PAGE: Query<'_> = Query {
    name: "clocks",
    sql: "SELECT record FROM clocks WHERE (alloc, task, incarnation) > (?1, ?2, ?3) ORDER BY alloc, task, incarnation LIMIT ?4",
};

#[cfg(test)]
pub(super) const HOT: &[(&Query<'_>, &str)] = &[(&REMOVE, "PRIMARY KEY"), (&PAGE, "PRIMARY KEY")];

pub(super) fn put(db: &Db<'_>, clocks: &[ClockRecord]) -> Result<()> {
    for c in clocks {
        let ClockKey { alloc, task, incarnation } = &c.key;
        let record = db.json(PUT.name, c)?;
        db.execute(&PUT, params![alloc.as_str(), task.as_str(), incarnation.as_micros(), record])?;
    }
    Ok(())
}

pub(super) fn remove(db: &Db<'_>, keys: &[ClockKey]) -> Result<()> {
    for ClockKey { alloc, task, incarnation } in keys {
        db.execute(&REMOVE, params![alloc.as_str(), task.as_str(), incarnation.as_micros()])?;
    }
    Ok(())
}

pub(super) fn page(db: &Db<'_>, after: Option<&ClockKey>, limit: usize) -> Result<Vec<ClockRecord>> {
    let (alloc, task, incarnation) =
        after.map_or(("", "", 0), |k| (k.alloc.as_str(), k.task.as_str(), k.incarnation.as_micros()));
    db.all(&PAGE, params![alloc, task, incarnation, int(limit)], |r| from_json(r, 0))
}
