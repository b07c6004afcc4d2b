//! What only the inside can arrange: who shares a commit with whom, and which index a query takes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use futures::future::poll_immediate;
use rusqlite::Connection;

use super::db::{Db, Query};
use super::writer::{Owned, Writer};
use super::{SqliteStore, clocks, operations, schema, tokens, trouble};
use crate::{Result, Store, StoreError};

const ADD: Query<'_> = Query { name: "add", sql: "INSERT INTO numbers (n) VALUES (?1)" };
const NUMBERS: Query<'_> = Query { name: "numbers", sql: "SELECT n FROM numbers ORDER BY n" };
/// Found wrong only by the COMMIT.
const WRONG_LATER: Query<'_> = Query { name: "wrong_later", sql: "INSERT INTO children (parent) VALUES (?1)" };

/// A writer on a file with a table of numbers.
fn writer() -> (tempfile::TempDir, Arc<Writer>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("numbers.db");
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch(
        "PRAGMA journal_mode = wal; PRAGMA foreign_keys = on; CREATE TABLE numbers (n INTEGER PRIMARY KEY) STRICT; \
         CREATE TABLE children (parent INTEGER REFERENCES numbers (n) DEFERRABLE INITIALLY DEFERRED) STRICT;",
    )
    .unwrap();
    conn.busy_timeout(Duration::ZERO).unwrap();
    (dir, Writer::new(Owned { conn, owner: None }, path))
}

/// Holds the writer in a commit of its own until released, so that what is asked for meanwhile makes one group.
struct Held {
    release: mpsc::Sender<()>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl Held {
    async fn hold(writer: &Arc<Writer>) -> Held {
        let (release, released) = mpsc::channel();
        let (entered, inside) = tokio::sync::oneshot::channel();
        let writer = Arc::clone(writer);
        let hold = async move {
            writer
                .run(move |_| {
                    let _ = entered.send(());
                    released.recv_timeout(Duration::from_secs(10)).expect("released within 10 s");
                    Ok(())
                })
                .await
        };
        let task = tokio::spawn(hold);
        inside.await.unwrap();
        Held { release, task }
    }

    async fn release(self) {
        self.release.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

async fn add(writer: &Arc<Writer>, n: i64) -> Result<()> {
    writer.run(move |db| db.execute(&ADD, [n]).map(|_| ())).await
}

async fn numbers(writer: &Arc<Writer>) -> Vec<i64> {
    writer.run(|db| db.all(&NUMBERS, [], |r| r.get(0))).await.unwrap()
}

#[tokio::test]
async fn one_bad_request_does_not_harm_the_others_of_its_group() {
    let (_dir, writer) = writer();
    let held = Held::hold(&writer).await;
    let half_done = async |n: i64| {
        let half = writer.run(move |db: &Db<'_>| {
            db.execute(&ADD, [n])?;
            db.execute(&ADD, [1])
        });
        half.await.unwrap_err().to_string()
    };
    let (one, half, two, ()) = tokio::join!(add(&writer, 1), half_done(7), add(&writer, 2), held.release());
    one.unwrap();
    two.unwrap();
    assert!(half.contains("the query add on the database"), "{half}");
    assert_eq!(numbers(&writer).await, [1, 2], "half of a request is not there");
}

#[tokio::test]
async fn a_failed_commit_fails_its_whole_group_and_the_writer_goes_on() {
    let (_dir, writer) = writer();
    let held = Held::hold(&writer).await;
    let wrong = writer.run(|db| db.execute(&WRONG_LATER, [99]));
    let (one, wrong, two, ()) = tokio::join!(add(&writer, 1), wrong, add(&writer, 2), held.release());
    for e in [one.unwrap_err(), wrong.unwrap_err(), two.unwrap_err()] {
        let StoreError::Database { what, source: Some(source), .. } = e else { panic!("{e:?}") };
        assert!(what.starts_with("the query commit on the database"), "{what}");
        assert_eq!(source.to_string(), "FOREIGN KEY constraint failed");
    }
    add(&writer, 3).await.unwrap();
    assert_eq!(numbers(&writer).await, [3]);
}

#[tokio::test]
async fn a_database_that_may_not_grow_says_so() {
    let (_dir, writer) = writer();
    let no_more = Query { name: "no_more", sql: "PRAGMA max_page_count = 1" };
    writer.run(move |db| db.all(&no_more, [], |_| Ok(()))).await.unwrap();
    let mut n = 0;
    let full = loop {
        match add(&writer, n).await {
            Ok(()) => n += 1,
            Err(e) => break e,
        }
        assert!(n < 10_000);
    };
    let StoreError::Database { what, transient: true, .. } = full else { panic!("{full:?}") };
    assert!(what.contains("is full (add); free some space and the work goes on"), "{what}");
    assert_eq!(numbers(&writer).await.len() as i64, n, "what was acknowledged is there");
}

#[tokio::test]
async fn another_programs_lock_is_busy_and_passes() {
    let (dir, writer) = writer();
    let other = Connection::open(dir.path().join("numbers.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let busy = add(&writer, 1).await.unwrap_err();
    assert!(matches!(&busy, StoreError::Database { transient: true, .. }), "{busy:?}");
    assert!(busy.to_string().contains("is busy: another program is writing to it (begin); find it with: fuser -v"), "{busy}");
    other.execute_batch("COMMIT").unwrap();
    add(&writer, 2).await.unwrap();
    assert_eq!(numbers(&writer).await, [2]);
}

#[tokio::test]
async fn a_caller_that_goes_away_undoes_nothing() {
    let (_dir, writer) = writer();
    let held = Held::hold(&writer).await;
    {
        let mut gone = Box::pin(add(&writer, 1));
        assert!(poll_immediate(&mut gone).await.is_none());
    }
    held.release().await;
    assert_eq!(numbers(&writer).await, [1]);
}

#[tokio::test]
async fn a_panic_in_a_request_stops_nobody_else() {
    let (_dir, writer) = writer();
    let panics = writer.run(|db: &Db<'_>| -> Result<()> {
        db.execute(&ADD, [1])?;
        panic!("a bug, on purpose");
    });
    let held = Held::hold(&writer).await;
    let (panicked, two, ()) = tokio::join!(panics, add(&writer, 2), held.release());
    assert!(panicked.unwrap_err().to_string().contains("failed by a bug in curfew and was not written"));
    two.unwrap();
    assert_eq!(numbers(&writer).await, [2]);
}

/// Somebody who opens it then would find it change under his hands.
#[tokio::test]
async fn a_store_that_is_gone_has_its_file_until_its_last_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("curfew.db");
    let store = SqliteStore::open(&path).unwrap();
    let held = Held::hold(&store.writer).await;
    held.task.abort();
    drop(store);
    let early = SqliteStore::open(&path).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(early.contains("is in use by"), "{early:?}");
    held.release.send(()).unwrap();
    let opened = async {
        while SqliteStore::open(&path).is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), opened).await.expect("given up when the write was over");
}

#[test]
fn a_runtime_that_goes_down_leaves_nothing_undone() {
    let (_dir, writer) = writer();
    let runtime = |n: usize| tokio::runtime::Builder::new_current_thread().max_blocking_threads(n).build().unwrap();
    let first = runtime(1);
    let (release, released) = mpsc::channel::<()>();
    first.block_on(async {
        // The only blocking thread is taken, so the writer's turn cannot begin before the runtime ends.
        drop(tokio::task::spawn_blocking(move || released.recv()));
        let mut waiting = Box::pin(add(&writer, 1));
        assert!(poll_immediate(&mut waiting).await.is_none());
    });
    first.shutdown_background();
    release.send(()).unwrap();
    runtime(1).block_on(async {
        add(&writer, 2).await.unwrap();
        assert_eq!(numbers(&writer).await, [1, 2]);
    });
}

#[tokio::test]
async fn a_read_does_not_wait_behind_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("curfew.db")).unwrap();
    let held = Held::hold(&store.writer).await;
    assert_eq!(store.clocks().await.unwrap(), []);
    held.release().await;
}

/// 100,000 waiting rows cost nothing as long as no question walks over all of them.
#[test]
fn the_hot_queries_take_their_index() {
    let conn = Connection::open_in_memory().unwrap();
    schema::migrate(&conn, &PathBuf::from(":memory:")).unwrap();
    for (query, index) in operations::HOT.iter().chain(clocks::HOT).chain(tokens::HOT) {
        let mut plan = conn.prepare(&format!("EXPLAIN QUERY PLAN {}", query.sql)).unwrap();
        let nothing = vec![rusqlite::types::Null; plan.parameter_count()];
        let steps = plan.query_map(rusqlite::params_from_iter(nothing), |r| r.get::<_, String>(3)).unwrap();
        let steps: Vec<String> = steps.map(std::result::Result::unwrap).collect();
        assert!(steps[0].contains(index), "{}: {steps:?}", query.name);
        let walks = |s: &String| s.starts_with("SCAN operations") || s.starts_with("SCAN clocks") || s.contains("TEMP B-TREE");
        let allowed = ["lease_nudged", "lease_expired"].contains(&query.name);
        assert!(allowed || !steps.iter().any(walks), "{}: {steps:?}", query.name);
    }
}

/// What a curfew of the first schema left is read by this one, and lives by its rules.
#[tokio::test]
async fn the_first_schema_becomes_this_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("curfew.db");
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch(include_str!("schema/001.sql")).unwrap();
    let id = "0193d7a0-0000-7000-8000-000000000001";
    conn.execute_batch(&format!(
        r#"PRAGMA application_id = 1129665094;
        INSERT INTO schema_version VALUES (1, '0.1.0');
        INSERT INTO operations VALUES ('{id}', 'stop', 'games', 'a/b', 'waiting',
            '{{"kind":"stop","target":{{"namespace":"games","job":"a/b"}},"demands":[{{"at":"2026-01-01T00:00:00Z","job_index":4}}]}}',
            'ops', NULL, 1, NULL, NULL, NULL, '{{}}', NULL, NULL, '[]', 0, 7, NULL, NULL, 3, 1);
        INSERT INTO idempotency_keys VALUES ('k', 'digest', '{id}');"#
    ))
    .unwrap();
    drop(conn);
    let store = SqliteStore::open(&path).unwrap();
    let target = curfew_core::JobKey::new("games", "a/b");
    let filter = crate::OperationFilter { target: Some(target.clone().into()), ..Default::default() };
    let found = store.operations(filter).await.unwrap();
    let [op] = &found[..] else { panic!("{found:?}") };
    assert_eq!((op.id.to_string().as_str(), op.lease.epoch, op.revision, &op.parent), (id, 3, 1, &None));
    let request = op.request.clone();
    let now = curfew_core::Timestamp::from_millis(9);
    let new = crate::NewOperation {
        id: curfew_core::OpId::new(now),
        parent: None,
        request,
        actor: "ops".into(),
        reason: None,
        at: now,
        deadline: None,
        warnings: vec![],
        idempotency: None,
    };
    assert!(matches!(store.create(new).await.unwrap(), crate::Created::Joined(joined) if joined.id == op.id));
}

#[test]
fn the_drivers_words_are_the_source_and_not_repeated() {
    let e = rusqlite::Error::QueryReturnedNoRows;
    let words = e.to_string();
    let said = trouble::sql(&PathBuf::from("/x/curfew.db"), "some_query", e);
    assert_eq!(said.to_string(), "the query some_query on the database /x/curfew.db failed");
    assert_eq!(std::error::Error::source(&said).map(ToString::to_string), Some(words));
}
