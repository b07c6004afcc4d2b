//! The store in SQLite: the contract, and what only a file can show.

// Marked so that clippy knows the helpers for tests, too.
#[cfg(test)]
mod contract;

#[cfg(test)]
mod keeps {
    use std::io::{BufRead, BufReader, Write};
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::sync::Arc;
    use std::time::Duration;

    use curfew_core::operation::Kind;
    use curfew_core::{OpId, Timestamp};
    use curfew_store::{AuditFilter, Created, OperationFilter, SqliteStore, Store, StoreError};
    use proptest::prelude::*;

    use crate::contract::fixtures::*;
    use crate::contract::{Opened, model};

    async fn on_disk(_rule: &str) -> Option<Opened> {
        let dir = tempfile::tempdir().unwrap();
        Some(Opened { store: open(&dir.path().join("curfew.db")), keep: Box::new(dir) })
    }

    async fn in_memory(_rule: &str) -> Option<Opened> {
        Some(Opened { store: SqliteStore::open_in_memory().unwrap(), keep: Box::new(()) })
    }

    fn open(path: &Path) -> Arc<dyn Store> {
        SqliteStore::open(path).unwrap()
    }

    mod file {
        crate::contract!(super::on_disk);
    }
    mod memory {
        crate::contract!(super::in_memory);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_interleaving_agrees_with_the_model(acts in model::acts()) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { model::agrees(SqliteStore::open_in_memory().unwrap(), acts).await });
        }
    }

    #[tokio::test]
    async fn what_a_dead_process_held_is_due_when_the_file_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("curfew.db");
        let store = open(&path);
        store.create(stop("a", 0)).await.unwrap();
        let theirs = lease_one(&store, "h:1", at(0)).await;
        store.close().await.unwrap();
        drop(store);
        let ours = lease_one(&open(&path), "h:2", at(1)).await;
        assert_eq!((ours.id, ours.lease.epoch), (theirs.id, 2));
    }

    /// The rule of the others does not hold here; the next test has what does.
    #[tokio::test]
    #[should_panic(expected = "left == right")]
    async fn a_duty_does_not_run_out() {
        crate::contract::kinds::a_duty_that_ran_out_is_taken_over(SqliteStore::open_in_memory().unwrap()).await;
    }

    #[tokio::test]
    async fn the_duty_lasts_as_long_as_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("curfew.db");
        let store = open(&path);
        let duty = store.take_duty("h:1", MINUTE, at(0)).await.unwrap().unwrap();
        assert_eq!((duty.epoch, duty.expires_at), (1, None));
        assert_eq!(store.take_duty("h:2", MINUTE, at(9_999)).await.unwrap(), None, "it does not run out");
        assert_eq!(store.renew_duty(1, MINUTE, at(9_999)).await.unwrap(), duty);
        store.close().await.unwrap();
        drop(store);
        let store = open(&path);
        assert!(matches!(store.renew_duty(1, MINUTE, at(1)).await, Err(StoreError::DutyLost { epoch: 1 })));
        assert_eq!(store.take_duty("h:2", MINUTE, at(1)).await.unwrap().map(|d| d.epoch), Some(2), "free, and counted on");
    }

    #[tokio::test]
    async fn everything_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("curfew.db");
        let store = open(&path);
        let waiting = store.create(with_key(stop("a", 0), "k", "body")).await.unwrap().operation().clone();
        store.create(submit("b", 1)).await.unwrap();
        let leased = lease_one(&store, "h:1", at(0)).await;
        let trail = store.audit(AuditFilter::default()).await.unwrap();
        store.close().await.unwrap();
        store.close().await.unwrap();

        let store = open(&path);
        let mut released = leased;
        released.lease.expires_at = Some(Timestamp::default());
        assert_eq!(row(&store, waiting.id).await, released, "its holder is gone, and nothing else changed");
        assert_eq!(store.operations(OperationFilter::default()).await.unwrap().len(), 2);
        assert_eq!(store.audit(AuditFilter::default()).await.unwrap(), trail);
        let again = store.create(with_key(stop("a", 2), "k", "body")).await.unwrap();
        assert!(matches!(again, Created::Replayed(op) if op.id == waiting.id));
        assert!(dir.path().join("curfew.db-wal").exists() && store.live(Kind::Stop).await.unwrap().len() == 1);
    }

    #[tokio::test]
    async fn dropping_without_closing_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("curfew.db");
        let id = open(&path).create(stop("a", 0)).await.unwrap().operation().id;
        // The turn that answered may hold the last reference for another moment.
        let store = eventually(|| SqliteStore::open(&path).ok()).await;
        assert!(store.operation(id).await.unwrap().is_some());
    }

    async fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
        let looking = async {
            loop {
                match look() {
                    Some(found) => return found,
                    None => tokio::time::sleep(Duration::from_millis(2)).await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), looking).await.expect("it comes true within 10 s")
    }

    /// Paused time runs ahead when everybody is idle; a write under way is not idle.
    #[tokio::test(start_paused = true)]
    async fn paused_time_stands_still_while_the_database_works() {
        let opened = on_disk("").await.unwrap();
        for i in 0..50 {
            let new = stop(&format!("job-{i}"), i);
            let written = tokio::time::timeout(Duration::from_millis(1), opened.store.create(new)).await;
            let id = written.expect("no time passes").unwrap().operation().id;
            let read = tokio::time::timeout(Duration::from_millis(1), opened.store.operation(id)).await;
            assert!(read.expect("no time passes").unwrap().is_some());
        }
    }

    const CHILD: &str = "CURFEW_STORE_TEST_CHILD";

    /// Not a test by itself: what `acknowledged_rows_survive_kill_9` runs and kills.
    #[test]
    fn child_that_writes_until_it_is_killed() {
        let Some(path) = std::env::var_os(CHILD) else { return };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let store = open(Path::new(&path));
            let writer = |w: u64, store: Arc<dyn Store>| async move {
                for i in 0.. {
                    let id = store.create(stop(&format!("job-{w}-{i}"), i)).await.unwrap().operation().id;
                    writeln!(std::io::stdout(), "acknowledged {id}").unwrap();
                }
            };
            futures::future::join_all((0..16).map(|w| tokio::spawn(writer(w, Arc::clone(&store))))).await;
        });
    }

    #[tokio::test]
    async fn acknowledged_rows_survive_kill_9() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("curfew.db");
        for round in 1..=3 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "keeps::child_that_writes_until_it_is_killed", "--nocapture"])
                .env(CHILD, &path)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
            let acknowledged = |line: String| line.split_once("acknowledged ").and_then(|(_, id)| id.parse::<OpId>().ok());
            let mut ids: Vec<OpId> = lines.by_ref().filter_map(acknowledged).take(200).collect();

            let refused = SqliteStore::open(&path).err().unwrap().to_string();
            assert!(refused.contains(&format!(":{}, another controller; stop it", child.id())), "{refused}");

            child.kill().unwrap();
            child.wait().unwrap();
            ids.extend(lines.filter_map(acknowledged));
            assert!(ids.len() >= 200, "round {round}: the child wrote {}", ids.len());

            // The lock went with its holder; nothing to wait for.
            let store = open(&path);
            for id in &ids {
                assert!(store.operation(*id).await.unwrap().is_some(), "round {round}: {id} was acknowledged");
            }
            let rows = store.audit(AuditFilter { limit: 1_000_000, ..AuditFilter::default() }).await.unwrap();
            assert!(rows.iter().map(|r| r.seq).eq(1..=rows.len() as u64), "the trail has a gap");
            store.close().await.unwrap();
        }
    }
}
