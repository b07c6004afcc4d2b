//! The one writer. Requests queue up while a commit is under way, and all that wait go into the next one: a hundred callers
//! cost one flush of the disk, not a hundred.
//!
//! Whoever finds the queue unattended starts a turn on tokio's blocking pool; the turn ends when the queue is empty. So no
//! thread idles, and paused tokio time stands still while a write is under way (it does for `spawn_blocking`, not for threads
//! of one's own).

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, oneshot};

use super::db::Db;
use super::owner::Owner;
use super::trouble;
use crate::{CHANGES, Change, Result, StoreError};

/// How many requests may wait; more wait for room.
const ROOM: usize = 4096;
/// How many requests share a commit.
const GROUP: usize = 256;

pub(super) struct Writer {
    path: PathBuf,
    queue: Mutex<Queue>,
    room: Arc<Semaphore>,
    conn: Mutex<Option<Owned>>,
    /// Told what each commit changed.
    pub(super) changes: broadcast::Sender<Change>,
}

/// A connection that writes, and the right to: whoever has the last turn gives the database up, also when the store is gone before.
pub(super) struct Owned {
    pub(super) conn: Connection,
    /// Absent for a database in memory. After the connection, also when they are dropped.
    pub(super) owner: Option<Owner>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Box<dyn Job>>,
    attended: bool,
}

/// Why a whole group failed.
struct GroupFailure {
    what: String,
    transient: bool,
    source: Option<Arc<rusqlite::Error>>,
}

trait Job: Send {
    /// Does its work inside the transaction; says in a sentence why not.
    fn run(&mut self, db: &Db<'_>) -> std::result::Result<(), String>;
    fn answer(self: Box<Self>, group: std::result::Result<(), &GroupFailure>);
}

struct Request<T, F> {
    work: Option<F>,
    done: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
    _room: OwnedSemaphorePermit,
}

impl<T, F> Job for Request<T, F>
where
    T: Send,
    F: FnOnce(&Db<'_>) -> Result<T> + Send,
{
    fn run(&mut self, db: &Db<'_>) -> std::result::Result<(), String> {
        let Some(work) = self.work.take() else { return Ok(()) };
        // What a panic leaves half done is rolled back with its savepoint.
        let done = catch_unwind(AssertUnwindSafe(|| work(db))).unwrap_or_else(|_| Err(trouble::bug(db.path())));
        let said = done.as_ref().map(|_| ()).map_err(ToString::to_string);
        self.done = Some(done);
        said
    }

    fn answer(self: Box<Self>, group: std::result::Result<(), &GroupFailure>) {
        let answer = match (self.done, group) {
            // Its own error tells more than that of the group.
            (Some(Err(e)), _) => Err(e),
            (Some(done), Ok(())) => done,
            (_, Err(failure)) => Err(failure.error()),
            (None, Ok(())) => return,
        };
        // The caller may have gone; the write stands nevertheless.
        let _ = self.reply.send(answer);
    }
}

impl GroupFailure {
    fn sql(path: &Path, query: &str, e: rusqlite::Error) -> Self {
        let (what, transient) = trouble::sentence(path, query, &e);
        Self { what, transient, source: Some(Arc::new(e)) }
    }

    fn error(&self) -> StoreError {
        let source = self.source.clone().map(|e| Box::new(e) as _);
        StoreError::Database { what: self.what.clone(), transient: self.transient, source }
    }
}

impl Writer {
    pub(super) fn new(conn: Owned, path: PathBuf) -> Arc<Self> {
        let (changes, _) = broadcast::channel(CHANGES);
        let room = Arc::new(Semaphore::new(ROOM));
        Arc::new(Self { path, queue: Mutex::default(), room, conn: Mutex::new(Some(conn)), changes })
    }

    /// Runs `work` in a transaction and returns when that is durable. A caller that goes away does not undo it.
    pub(super) async fn run<T, F>(self: &Arc<Self>, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Db<'_>) -> Result<T> + Send + 'static,
    {
        let room = Arc::clone(&self.room).acquire_owned().await.map_err(|_| trouble::closed(&self.path))?;
        let (reply, answer) = oneshot::channel();
        let unattended = {
            let mut queue = lock(&self.queue);
            queue.waiting.push_back(Box::new(Request { work: Some(work), done: None, reply, _room: room }));
            !std::mem::replace(&mut queue.attended, true)
        };
        if unattended {
            let turn = Turn { writer: Arc::clone(self), over: false };
            drop(tokio::task::spawn_blocking(move || turn.serve()));
        }
        answer.await.unwrap_or_else(|_| Err(trouble::lost(&self.path)))
    }

    /// Waits for what is under way and hands the connection out; everything later is refused. `None` the second time.
    pub(super) async fn close(&self) -> Option<Owned> {
        let everything = u32::try_from(ROOM).unwrap_or(u32::MAX);
        let all = self.room.acquire_many(everything).await.ok()?;
        self.room.close();
        drop(all);
        lock(&self.conn).take()
    }

    fn commit(&self, mut group: Vec<Box<dyn Job>>) {
        let conn = lock(&self.conn);
        let committed = match &*conn {
            Some(Owned { conn, .. }) => self.try_commit(conn, &mut group),
            None => Err(GroupFailure { what: trouble::closed(&self.path).to_string(), transient: false, source: None }),
        };
        drop(conn);
        if let Err(failure) = &committed {
            tracing::warn!(requests = group.len(), error = %failure.what, "a group of writes failed");
        }
        for job in group {
            job.answer(committed.as_ref().map(|_| ()));
        }
    }

    fn try_commit(&self, conn: &Connection, group: &mut [Box<dyn Job>]) -> std::result::Result<(), GroupFailure> {
        let done = self.in_transaction(conn, group);
        if !conn.is_autocommit() {
            // Nothing of a failed group may stay behind for the next one.
            if let Err(e) = conn.execute_batch("ROLLBACK") {
                tracing::error!(path = %self.path.display(), error = %e, "a failed group of writes could not be rolled back");
            }
        }
        done
    }

    fn in_transaction(&self, conn: &Connection, group: &mut [Box<dyn Job>]) -> std::result::Result<(), GroupFailure> {
        let step = |query: &'static str, sql: &str| {
            let run = || conn.prepare_cached(sql)?.execute([]);
            run().map(|_| ()).map_err(|e| GroupFailure::sql(&self.path, query, e))
        };
        let db = Db::new(conn, &self.path);
        step("begin", "BEGIN IMMEDIATE")?;
        for job in group {
            step("savepoint", "SAVEPOINT request")?;
            let before = db.changes().len();
            if let Err(why) = job.run(&db) {
                db.changes().truncate(before);
                if conn.is_autocommit() {
                    // Some failures (a full disk among them) make SQLite undo the whole transaction, the others' work too.
                    let what = format!("a write was undone together with another that failed: {why}");
                    return Err(GroupFailure { what, transient: true, source: None });
                }
                step("rollback_request", "ROLLBACK TO request")?;
            }
            step("release", "RELEASE request")?;
        }
        step("commit", "COMMIT")?;
        for change in db.changes().drain(..) {
            // Nobody listens, perhaps.
            let _ = self.changes.send(change);
        }
        Ok(())
    }
}

/// Somebody attends the queue until it is empty.
struct Turn {
    writer: Arc<Writer>,
    over: bool,
}

impl Turn {
    fn serve(mut self) {
        while let Some(group) = self.next_group() {
            self.writer.commit(group);
        }
    }

    fn next_group(&mut self) -> Option<Vec<Box<dyn Job>>> {
        let mut queue = lock(&self.writer.queue);
        let n = queue.waiting.len().min(GROUP);
        if n == 0 {
            queue.attended = false;
            self.over = true;
            return None;
        }
        Some(queue.waiting.drain(..n).collect())
    }
}

impl Drop for Turn {
    /// A runtime that goes down drops a turn that has not begun. Others may have queued up behind it already, perhaps from
    /// another runtime, so it is served here and now.
    fn drop(&mut self) {
        while !self.over
            && let Some(group) = self.next_group()
        {
            self.writer.commit(group);
        }
    }
}

/// What the mutexes guard is consistent between any two statements.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
