//! A connection that knows where it leads to, and queries that have names.

use std::cell::{RefCell, RefMut};
use std::path::Path;
use std::time::Duration;

use rusqlite::types::Type;
use rusqlite::{Connection, OpenFlags, Params, Row};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::trouble;
use crate::{Change, Result};

/// How long a write waits for another program that writes to the same file (a backup, a shell).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A statement; its name is what errors call it.
pub(super) struct Query<'q> {
    pub(super) name: &'static str,
    pub(super) sql: &'q str,
}

/// What a request may do inside its transaction.
pub(super) struct Db<'c> {
    conn: &'c Connection,
    path: &'c Path,
    /// To be told when what was done is committed.
    changes: RefCell<Vec<Change>>,
}

impl<'c> Db<'c> {
    pub(super) fn new(conn: &'c Connection, path: &'c Path) -> Self {
        Self { conn, path, changes: RefCell::default() }
    }

    pub(super) fn changed(&self, change: Change) {
        self.changes.borrow_mut().push(change);
    }

    pub(super) fn changes(&self) -> RefMut<'_, Vec<Change>> {
        self.changes.borrow_mut()
    }

    pub(super) fn path(&self) -> &Path {
        self.path
    }

    /// How many rows it changed.
    pub(super) fn execute(&self, q: &Query<'_>, params: impl Params) -> Result<usize> {
        let run = || self.conn.prepare_cached(q.sql)?.execute(params);
        run().map_err(|e| trouble::sql(self.path, q.name, e))
    }

    pub(super) fn all<T>(
        &self,
        q: &Query<'_>,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let run = || self.conn.prepare_cached(q.sql)?.query_map(params, read)?.collect::<rusqlite::Result<Vec<T>>>();
        run().map_err(|e| trouble::sql(self.path, q.name, e))
    }

    pub(super) fn one<T>(
        &self,
        q: &Query<'_>,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        Ok(self.all(q, params, read)?.pop())
    }

    pub(super) fn json(&self, what: &'static str, value: &impl Serialize) -> Result<String> {
        let failed = |e: serde_json::Error| trouble::sql(self.path, what, rusqlite::Error::ToSqlConversionFailure(e.into()));
        serde_json::to_string(value).map_err(failed)
    }
}

/// Reads a JSON column.
pub(super) fn from_json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    serde_json::from_str(text).map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, e.into()))
}

/// Reads the name of an enum's variant, as serde has it.
pub(super) fn from_word<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let word: String = row.get(column)?;
    serde_json::from_value(serde_json::Value::String(word))
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, e.into()))
}

/// SQLite counts in signed integers.
pub(super) fn int(n: impl TryInto<i64>) -> i64 {
    n.try_into().unwrap_or(i64::MAX)
}

pub(super) fn connect(path: &Path) -> Result<Connection> {
    let failed = |e| trouble::sql(path, "open", e);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(failed)?;
    settle(&conn).map_err(failed)?;
    Ok(conn)
}

pub(super) fn settle(conn: &Connection) -> rusqlite::Result<()> {
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.set_prepared_statement_cache_capacity(64);
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.pragma_update(None, "temp_store", "memory")
}

/// A commit is on the disk when it returns; readers do not wait for it.
pub(super) fn make_durable(conn: &Connection, path: &Path) -> Result<()> {
    let failed = |e| trouble::sql(path, "journal_mode", e);
    let mode: String = conn.query_row("PRAGMA journal_mode = wal", [], |r| r.get(0)).map_err(failed)?;
    if mode != "wal" {
        let what = format!(
            "the database {} is on a file system without shared memory (journal mode {mode}); put it on a local disk",
            path.display()
        );
        return Err(trouble::database(what, false, None));
    }
    conn.pragma_update(None, "synchronous", "full").map_err(failed)?;
    // Large enough that folding the log back does not happen every few commits, small enough for the disk.
    conn.pragma_update(None, "wal_autocheckpoint", 4000).map_err(failed)?;
    conn.pragma_update(None, "journal_size_limit", 64 * 1024 * 1024).map_err(failed)?;
    conn.pragma_update(None, "cache_size", -4096).map_err(failed)
}
