//! What goes wrong with files, each time a sentence with the path and the way out.

#[cfg(test)]
#[path = "contract/fixtures.rs"]
#[expect(dead_code, reason = "shared with the contract, which uses all of it")]
mod fixtures;

#[cfg(test)]
mod trouble {
    use std::fs;
    use std::io::{Seek, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::Arc;

    use curfew_core::OpId;
    use curfew_store::{OperationFilter, SqliteStore, Store, StoreError};

    use crate::fixtures::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("curfew.db");
        (dir, path)
    }

    /// The sentence of a refused open, with the place redacted.
    fn refused(path: &Path, dir: &Path) -> String {
        match SqliteStore::open(path).err().expect("refused") {
            StoreError::Database { what, transient: false, .. } => what.replace(dir.to_str().unwrap(), "DIR"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_second_controller_is_refused_under_any_name() {
        let (dir, path) = place();
        let first = SqliteStore::open(&path).unwrap();
        let held = refused(&path, dir.path());
        assert!(held.starts_with("the database DIR/curfew.db is in use by "), "{held}");
        assert!(
            held.contains(&format!(":{}, another controller; stop it, or give this one another --database", std::process::id()))
        );
        let link = dir.path().join("link.db");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(refused(&link, dir.path()), held);
        drop(first);
        SqliteStore::open(&link).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("curfew.db-lock")).unwrap(), "", "a name does not outlive its lock");
    }

    #[test]
    fn a_new_database_is_its_owners_alone() {
        let (dir, path) = place();
        let _store = SqliteStore::open(&path).unwrap();
        for name in ["curfew.db", "curfew.db-wal", "curfew.db-lock"] {
            let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{name} is {mode:o}");
        }
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let (dir, path) = place();
        drop(SqliteStore::open(&path).unwrap());
        let raw = rusqlite::Connection::open(&path).unwrap();
        raw.execute("INSERT INTO schema_version (version, made_by) VALUES (7, '9.1.0')", []).unwrap();
        drop(raw);
        assert_eq!(
            refused(&path, dir.path()),
            "the database DIR/curfew.db was made by a newer curfew (9.1.0): schema 7, this one knows 4; upgrade curfew, or name \
             another --database"
        );
    }

    #[test]
    fn what_is_not_curfews_is_left_alone() {
        let (dir, path) = place();
        fs::write(&path, "dear diary, this is not a database at all\n".repeat(100)).unwrap();
        let before = fs::read(&path).unwrap();
        assert_eq!(
            refused(&path, dir.path()),
            "DIR/curfew.db is not an SQLite database (schema_version); name another --database, or move that file away to start an \
             empty one"
        );
        assert_eq!(fs::read(&path).unwrap(), before);

        let other = dir.path().join("other.db");
        rusqlite::Connection::open(&other).unwrap().execute("CREATE TABLE songs (name TEXT)", []).unwrap();
        let before = fs::read(&other).unwrap();
        assert_eq!(
            refused(&other, dir.path()),
            "DIR/other.db is an SQLite database of another program, not curfew's; name another --database"
        );
        assert_eq!(fs::read(&other).unwrap(), before);
    }

    #[test]
    fn places_that_cannot_hold_a_database_are_named() {
        let (dir, path) = place();
        let d = dir.path();
        assert_eq!(refused(d, d), "the database DIR is a directory; name a file in it, as in DIR/curfew.db");
        assert_eq!(
            refused(&d.join("no/where/x.db"), d),
            "the directory DIR/no/where for the database DIR/no/where/x.db does not exist; make it with: mkdir -p 'DIR/no/where'"
        );
        fs::write(&path, "").unwrap();
        assert_eq!(
            refused(&path.join("x.db"), d),
            "the database DIR/curfew.db/x.db cannot be made: DIR/curfew.db is not a directory; name another --database"
        );
        assert!(
            refused(Path::new("/"), d).contains("is a directory") || refused(Path::new("/"), d).contains("does not name a file")
        );
        assert!(refused(Path::new(""), d).contains("does not name a file"));
        // A directory in which not even root can make a file.
        let unwritable = refused(Path::new("/proc/curfew.db"), d);
        assert!(unwritable.starts_with("the database /proc/curfew.db cannot be used: its lock file"), "{unwritable}");
        SqliteStore::open(&path).expect("an empty file becomes a database");
    }

    #[tokio::test]
    async fn a_damaged_file_is_an_error_and_not_a_panic() {
        let (dir, path) = place();
        let store = SqliteStore::open(&path).unwrap();
        for i in 0..300 {
            store.create(stop(&format!("job-{i}"), i)).await.unwrap();
        }
        store.close().await.unwrap();
        let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        let length = file.metadata().unwrap().len();
        file.seek(std::io::SeekFrom::Start(4096)).unwrap();
        file.write_all(&vec![0xa5; usize::try_from(length).unwrap() - 4096]).unwrap();
        drop(file);
        let said = match SqliteStore::open(&path) {
            Err(e) => e.to_string(),
            Ok(store) => store.operations(OperationFilter::default()).await.unwrap_err().to_string(),
        };
        let said = said.replace(dir.path().to_str().unwrap(), "DIR");
        assert!(
            said.starts_with("the database DIR/curfew.db is damaged (") && said.contains("restore it from a backup"),
            "{said}"
        );
    }

    /// A file system of its own, gone when dropped.
    struct SmallDisk(tempfile::TempDir);

    impl SmallDisk {
        fn new(size: &str) -> Option<SmallDisk> {
            let dir = tempfile::tempdir().unwrap();
            let options = format!("size={size},mode=700");
            let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).output();
            mount.is_ok_and(|o| o.status.success()).then_some(SmallDisk(dir))
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            let unmounted = Command::new("umount").arg(self.0.path()).status();
            assert!(unmounted.is_ok_and(|s| s.success()) || std::thread::panicking());
        }
    }

    #[tokio::test]
    async fn a_full_disk_is_said_and_survived() {
        let Some(disk) = SmallDisk::new("4m") else {
            eprintln!("SKIPPED a_full_disk_is_said_and_survived: mounting a small file system needs root");
            return;
        };
        let path = disk.0.path().join("curfew.db");
        let store: Arc<dyn Store> = SqliteStore::open(&path).unwrap();
        let ballast = disk.0.path().join("ballast");
        fs::write(&ballast, vec![0; 1 << 20]).unwrap();
        let mut written: Vec<OpId> = Vec::new();
        let full = loop {
            let burst = (0..16).map(|i| store.create(stop(&format!("job-{}-{i}", written.len()), 0)));
            let mut failure = None;
            for created in futures::future::join_all(burst).await {
                match created {
                    Ok(created) => written.push(created.operation().id),
                    Err(e) => failure = Some(e),
                }
            }
            if let Some(e) = failure {
                break e;
            }
            assert!(written.len() < 100_000, "4 MiB are full at some time");
        };
        let StoreError::Database { what, transient: true, source: Some(_) } = &full else { panic!("{full:?}") };
        assert!(what.contains(path.to_str().unwrap()) && what.contains("full") && what.contains("free some space"), "{what}");
        // A smaller write may still have found room.
        let mut checks = 0;
        let unready = loop {
            match store.check().await {
                Err(e) => break e.to_string(),
                Ok(()) => checks += 1,
            }
            assert!(checks < 10_000, "readiness tells");
        };
        assert!(unready.contains("full"), "{unready}");
        for id in &written {
            assert!(store.operation(*id).await.unwrap().is_some(), "reads go on");
        }
        let e = SqliteStore::open(&disk.0.path().join("another.db")).err().unwrap().to_string();
        assert!(e.contains("full"), "{e}");

        fs::remove_file(&ballast).unwrap();
        store.check().await.expect("the work goes on");
        written.push(store.create(stop("after", 0)).await.unwrap().operation().id);
        store.close().await.unwrap();
        let store = SqliteStore::open(&path).unwrap();
        for id in &written {
            assert!(store.operation(*id).await.unwrap().is_some(), "{id} was acknowledged");
        }
        store.close().await.unwrap();
    }
}
