//! SQLite: one file, one controller, nothing to install.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use curfew_core::access::Token;
use curfew_core::audit::{AuditEntry, AuditRow};
use curfew_core::clock::{ClockKey, ClockRecord};
use curfew_core::operation::{By, Intervention, Kind, Operation};
use curfew_core::{NodeId, OpId, Timestamp};
use rusqlite::Connection;
use tokio::sync::broadcast;

use crate::{
    AuditFilter, Change, Created, Duty, KindRow, NewOperation, OperationFilter, Pruned, QueueStatus, Result, StepResult, Store,
    Wanted,
};

mod audit;
mod claims;
mod clocks;
mod db;
mod kinds;
mod operations;
mod owner;
mod readers;
mod schema;
#[cfg(test)]
mod tests;
mod tokens;
mod trouble;
mod writer;

use db::{Db, Query};
use operations::Call;
use owner::Owner;
use readers::Readers;
use writer::{Owned, Writer};

const CHECK: Query<'_> = Query {
    name: "check",
    sql: "INSERT INTO checks (one, count) VALUES (1, 1) ON CONFLICT (one) DO UPDATE SET count = count + 1",
};

const RELEASE: Query<'_> =
    Query { name: "release_leases", sql: "UPDATE operations SET lease_expires_at = 0 WHERE state = 'running'" };
const FREE_DUTY: Query<'_> =
    Query { name: "free_duty", sql: "UPDATE kinds SET duty_holder = NULL WHERE duty_holder IS NOT NULL" };

/// The store in an SQLite file. Calls need a tokio runtime; opening does not.
pub struct SqliteStore {
    path: PathBuf,
    /// Absent for a database in memory, which has the one connection.
    readers: Option<Arc<Readers>>,
    writer: Arc<Writer>,
}

impl SqliteStore {
    /// Opens the database, makes it when there is none, and brings its schema up to date. Blocks for as long as that takes.
    ///
    /// Fails when another controller holds the file, when a newer curfew made it, and when the file or its directory cannot be
    /// used; each error says what to do.
    pub fn open(path: &Path) -> Result<Arc<SqliteStore>> {
        let path = real_path(path)?;
        let owner = Owner::take(&path)?;
        make_private(&path)?;
        let conn = db::connect(&path)?;
        schema::migrate(&conn, &path)?;
        db::make_durable(&conn, &path)?;
        // SQLite opens a file that it may not write without a word; better told now than by the first request.
        Db::new(&conn, &path).execute(&CHECK, [])?;
        // Whoever held a lease held the file: that process is gone, and its rows need not wait for their leases to run out.
        Db::new(&conn, &path).execute(&RELEASE, [])?;
        Db::new(&conn, &path).execute(&FREE_DUTY, [])?;
        let readers = Readers::open(path.clone())?;
        let writer = Writer::new(Owned { conn, owner: Some(owner) }, path.clone());
        Ok(Arc::new(SqliteStore { path, readers: Some(readers), writer }))
    }

    /// A database that is gone with the last reference to it; for tests.
    pub fn open_in_memory() -> Result<Arc<SqliteStore>> {
        let path = PathBuf::from(":memory:");
        let failed = |e| trouble::sql(Path::new(":memory:"), "open", e);
        let conn = Connection::open_in_memory().map_err(failed)?;
        db::settle(&conn).map_err(failed)?;
        schema::migrate(&conn, &path)?;
        let writer = Writer::new(Owned { conn, owner: None }, path.clone());
        Ok(Arc::new(SqliteStore { path, readers: None, writer }))
    }

    async fn write<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Db<'_>) -> Result<T> + Send + 'static,
    {
        self.writer.run(work).await
    }

    async fn read<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Db<'_>) -> Result<T> + Send + 'static,
    {
        match &self.readers {
            Some(readers) => readers.run(work).await,
            None => self.writer.run(work).await,
        }
    }
}

/// Without symbolic links, so that two names of one file have one lock.
fn real_path(path: &Path) -> Result<PathBuf> {
    let refuse = |what: String| Err(trouble::database(what, false, None));
    let p = path.display();
    let Some(name) = path.file_name() else {
        return refuse(format!("\"{p}\" does not name a file; write --database sqlite:PATH"));
    };
    if path.is_dir() {
        return refuse(format!("the database {p} is a directory; name a file in it, as in {}", path.join("curfew.db").display()));
    }
    if let Ok(real) = fs::canonicalize(path) {
        return Ok(real);
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match fs::canonicalize(parent) {
        Ok(real) if real.is_dir() => Ok(real.join(name)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let d = parent.display();
            refuse(format!("the directory {d} for the database {p} does not exist; make it with: mkdir -p '{d}'"))
        }
        Err(e) if e.kind() != io::ErrorKind::NotADirectory => {
            Err(trouble::io(path, format!("its directory {} cannot be entered", parent.display()), e))
        }
        _ => refuse(format!("the database {p} cannot be made: {} is not a directory; name another --database", parent.display())),
    }
}

/// Specifications may hold secrets: a new database is its owner's alone. SQLite gives its side files the same mode.
fn make_private(path: &Path) -> Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(trouble::io(path, "the file cannot be made".to_owned(), e)),
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn create(&self, new: NewOperation) -> Result<Created> {
        self.write(|db| operations::create(db, new)).await
    }

    async fn lease(&self, holder: &str, wanted: &[Wanted], ids: &[OpId], limit: usize, now: Timestamp) -> Result<Vec<Operation>> {
        let call = Call { holder: holder.to_owned(), wanted: wanted.to_vec(), ids: ids.to_vec(), limit, now };
        self.write(move |db| operations::lease(db, &call)).await
    }

    async fn renew(&self, id: OpId, epoch: u64, lease_for: Duration, now: Timestamp) -> Result<()> {
        self.write(move |db| operations::renew(db, id, epoch, now + lease_for)).await
    }

    async fn finish_step(
        &self,
        leased: &Operation,
        result: StepResult,
        audit: Vec<AuditEntry>,
        now: Timestamp,
    ) -> Result<Operation> {
        let leased = leased.clone();
        self.write(move |db| operations::finish_step(db, &leased, result, audit, now)).await
    }

    async fn intervene(&self, id: OpId, what: Intervention, by: By) -> Result<Operation> {
        self.write(move |db| operations::intervene(db, id, what, &by)).await
    }

    async fn claim(&self, id: OpId, nodes: Vec<NodeId>) -> Result<()> {
        self.write(move |db| operations::claim(db, id, &nodes)).await
    }

    async fn claims(&self) -> Result<Vec<(NodeId, OpId)>> {
        self.read(claims::all).await
    }

    async fn operation(&self, id: OpId) -> Result<Option<Operation>> {
        self.read(move |db| operations::by_id(db, id)).await
    }

    async fn operations(&self, filter: OperationFilter) -> Result<Vec<Operation>> {
        self.read(move |db| operations::list(db, &filter)).await
    }

    async fn live_after(&self, kind: Kind, after: OpId, limit: usize) -> Result<Vec<Operation>> {
        self.read(move |db| operations::live(db, kind, after, limit)).await
    }

    async fn next_due(&self, kinds: &[Kind], _now: Timestamp) -> Result<Option<Timestamp>> {
        let kinds = kinds.to_vec();
        self.read(move |db| operations::next_due(db, &kinds)).await
    }

    async fn queue_status(&self) -> Result<QueueStatus> {
        self.read(operations::queue_status).await
    }

    async fn kinds(&self) -> Result<Vec<KindRow>> {
        self.read(kinds::all).await
    }

    async fn pause_kind(&self, kind: Kind, by: By) -> Result<KindRow> {
        self.write(move |db| kinds::set_pause(db, kind, &by, true)).await
    }

    async fn resume_kind(&self, kind: Kind, by: By) -> Result<KindRow> {
        self.write(move |db| kinds::set_pause(db, kind, &by, false)).await
    }

    async fn take_duty(&self, holder: &str, _lease_for: Duration, now: Timestamp) -> Result<Option<Duty>> {
        let holder = holder.to_owned();
        self.write(move |db| kinds::take_duty(db, &holder, now)).await
    }

    async fn renew_duty(&self, epoch: u64, _lease_for: Duration, _now: Timestamp) -> Result<Duty> {
        self.read(move |db| kinds::renew_duty(db, epoch)).await
    }

    async fn give_up_duty(&self, epoch: u64, now: Timestamp) -> Result<()> {
        self.write(move |db| kinds::give_up_duty(db, epoch, now)).await
    }

    fn changes(&self) -> broadcast::Receiver<Change> {
        self.writer.changes.subscribe()
    }

    async fn prune(&self, finished_before: Timestamp, audit_before: Timestamp, limit: usize) -> Result<Pruned> {
        self.write(move |db| operations::prune(db, finished_before, audit_before, limit)).await
    }

    async fn put_clocks(&self, clocks: Vec<ClockRecord>, audit: Vec<AuditEntry>) -> Result<()> {
        self.write(move |db| {
            clocks::put(db, &clocks)?;
            audit::append(db, &audit)
        })
        .await
    }

    async fn remove_clocks(&self, keys: Vec<ClockKey>, audit: Vec<AuditEntry>) -> Result<()> {
        self.write(move |db| {
            clocks::remove(db, &keys)?;
            audit::append(db, &audit)
        })
        .await
    }

    async fn clocks_after(&self, after: Option<ClockKey>, limit: usize) -> Result<Vec<ClockRecord>> {
        self.read(move |db| clocks::page(db, after.as_ref(), limit)).await
    }

    async fn put_token(&self, token: Token, audit: Vec<AuditEntry>) -> Result<()> {
        self.write(move |db| {
            tokens::put(db, &token)?;
            audit::append(db, &audit)
        })
        .await
    }

    async fn token(&self, id: &str) -> Result<Option<Token>> {
        let id = id.to_owned();
        self.read(move |db| tokens::one(db, &id)).await
    }

    async fn tokens(&self) -> Result<Vec<Token>> {
        self.read(tokens::all).await
    }

    async fn append_audit(&self, audit: Vec<AuditEntry>) -> Result<()> {
        self.write(move |db| audit::append(db, &audit)).await
    }

    async fn audit(&self, filter: AuditFilter) -> Result<Vec<AuditRow>> {
        self.read(move |db| audit::read(db, &filter)).await
    }

    async fn check(&self) -> Result<()> {
        self.write(|db| db.execute(&CHECK, []).map(|_| ())).await
    }

    async fn close(&self) -> Result<()> {
        if let Some(readers) = &self.readers {
            readers.close().await;
        }
        let Some(Owned { conn, owner }) = self.writer.close().await else { return Ok(()) };
        let path = self.path.clone();
        let fold = move || {
            let folded = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            let closed = conn.close().map_err(|(_, e)| e);
            drop(owner);
            folded.and(closed).map_err(|e| trouble::sql(&path, "close", e))
        };
        tokio::task::spawn_blocking(fold).await.unwrap_or_else(|_| Err(trouble::lost(&self.path)))
    }
}
