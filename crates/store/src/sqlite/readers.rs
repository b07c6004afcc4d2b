//! Reads have connections of their own, so they never wait behind a commit. Each begins after the call did and so sees every
//! write that was acknowledged before.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::db::{self, Db};
use super::trouble;
use super::writer::lock;
use crate::Result;

/// How many reads run at the same time.
const READERS: usize = 4;

pub(super) struct Readers {
    path: PathBuf,
    free: Mutex<Vec<Connection>>,
    room: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn open(path: PathBuf) -> Result<Arc<Self>> {
        let free = (0..READERS).map(|_| reader(&path)).collect::<Result<Vec<_>>>()?;
        Ok(Arc::new(Self { path, free: Mutex::new(free), room: Arc::new(Semaphore::new(READERS)) }))
    }

    pub(super) async fn run<T, F>(self: &Arc<Self>, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Db<'_>) -> Result<T> + Send + 'static,
    {
        let room = Arc::clone(&self.room).acquire_owned().await.map_err(|_| trouble::closed(&self.path))?;
        let this = Arc::clone(self);
        let read = move || {
            let free = lock(&this.free).pop();
            // A read that panicked took its connection with it.
            let conn = free.map_or_else(|| reader(&this.path), Ok)?;
            let answer = work(&Db::new(&conn, &this.path));
            lock(&this.free).push(conn);
            drop(room);
            answer
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|_| Err(trouble::lost(&self.path)))
    }

    /// Waits for the reads under way; later ones are refused.
    pub(super) async fn close(&self) {
        let everything = u32::try_from(READERS).unwrap_or(u32::MAX);
        if let Ok(all) = self.room.acquire_many(everything).await {
            self.room.close();
            drop(all);
        }
        lock(&self.free).clear();
    }
}

fn reader(path: &std::path::Path) -> Result<Connection> {
    let conn = db::connect(path)?;
    let failed = |e| trouble::sql(path, "open", e);
    // The system has the file's pages in memory as well.
    conn.pragma_update(None, "cache_size", -512).map_err(failed)?;
    conn.pragma_update(None, "query_only", true).map_err(failed)?;
    Ok(conn)
}
