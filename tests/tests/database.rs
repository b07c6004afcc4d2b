//! Databases that cannot be used: a sentence with the way out, exit code 1 or 2.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use curfew_tests::command::{Ran, curfew};
use curfew_tests::controller::Controller;
use curfew_tests::jobs::{IMPOLITE, POLITE, service, task};
use curfew_tests::lab::unique;
use curfew_tests::run::Given;
use curfew_tests::{free_port, wait};
use rustix::process::geteuid;
use tempfile::TempDir;

async fn serve(nomad: &str, database: &str) -> Ran {
    let listen = format!("127.0.0.1:{}", free_port());
    let args = ["serve", "--database", database, "--listen", &listen];
    curfew(args).env("NOMAD_ADDR", nomad).within(Duration::from_secs(30)).run().await
}

fn sqlite(path: &Path) -> String {
    format!("sqlite:{}", path.display())
}

pub async fn locked_by_another_controller(given: Given) {
    let lab = given.shared().await;
    let ran = serve(lab.cluster.addr(), &sqlite(&lab.curfew.database())).await;
    let pid = lab.curfew.proc().pid.to_string();
    let ran = ran.code(1).says(&[&lab.curfew.database().display().to_string(), "--database"]);
    assert!(ran.stderr.contains(&pid) || ran.stderr.contains("another"), "it should say who has it: {ran}");
    // The first one goes on.
    lab.run(&["status"]).run().await.code(0);
}

pub async fn a_folder_a_missing_folder_another_file(given: Given) {
    let lab = given.shared().await;
    let dir = TempDir::new().unwrap();
    let nomad = lab.cluster.addr();
    serve(nomad, &sqlite(dir.path())).await.code(1).says(&[&dir.path().display().to_string()]);
    let missing = dir.path().join("no/such/folder/x.db");
    serve(nomad, &sqlite(&missing)).await.code(1).says(&["does not exist", "mkdir -p"]);
    let text = dir.path().join("letter.txt");
    std::fs::write(&text, "Dear database,\n".repeat(500)).unwrap();
    serve(nomad, &sqlite(&text)).await.code(1).says(&["not an SQLite database", "--database"]);
    assert_eq!(std::fs::read_to_string(&text).unwrap(), "Dear database,\n".repeat(500));
    for odd in ["nonsense", "sqlite:", ""] {
        serve(nomad, odd).await.code(2).says(&["sqlite:"]);
    }
    serve(nomad, "postgres://x").await.code(2).says(&["names no user", "postgres://USER:PASSWORD@HOST:PORT/DATABASE"]);
}

/// Read-only media, since root may write everywhere else.
pub async fn not_writable(given: Given) {
    let Some(disk) = SmallDisk::mount(&given, "1m") else { return };
    let lab = given.shared().await;
    disk.remount_read_only();
    let path = disk.0.path().join("x.db");
    serve(lab.cluster.addr(), &sqlite(&path)).await.code(1).says(&["--database"]);
}

/// A full disk refuses new requests with a sentence, kills go on, and freed space is enough to go on with.
pub async fn disk_full(given: Given) {
    let Some(disk) = SmallDisk::mount(&given, "2m") else { return };
    let lab = given.own().await;
    let path = disk.0.path().join("x.db");
    let full = disk.0.path().join("ballast");
    let mut curfew = Controller::new(lab.cluster.addr(), &[]).with_database(&path);
    curfew.launch();
    curfew.ready().await;
    let fill = || {
        let mut ballast = std::fs::OpenOptions::new().create(true).append(true).open(&full).unwrap();
        while std::io::Write::write_all(&mut ballast, &[0; 4096]).is_ok() {}
        while std::io::Write::write_all(&mut ballast, &[0; 1]).is_ok() {}
    };
    let id = unique("full-disk");
    let job = service(&id, vec![task("t", IMPOLITE)]).to_string();
    curfew.curfew(["job", "run", "-"]).stdin(job).run().await.code(0);
    fill();
    // What fits into pages that are there already may still be taken: refused soon, by name.
    wait::eventually(Duration::from_secs(30), "a refusal", async || {
        fill();
        let other = service(&unique("refused"), vec![task("t", POLITE)]).to_string();
        let ran = curfew.curfew(["job", "run", "-", "--detach"]).stdin(other).run().await;
        if ran.code == Some(1) && ran.stderr.contains("full") { Ok(()) } else { Err(ran.to_string()) }
    })
    .await;
    let (status, why) = curfew.api().call(reqwest::Method::GET, "/readyz", None).await.unwrap();
    assert_eq!(status, 503, "{why}");
    std::fs::remove_file(&full).unwrap();
    curfew.ready().await;
    curfew.curfew(["job", "stop", &id, "--stop-timeout", "1s", "--fail-on-kill"]).run().await.code(3);
}

pub async fn a_full_disk_at_the_start(given: Given) {
    let Some(disk) = SmallDisk::mount(&given, "64k") else { return };
    let lab = given.shared().await;
    let mut ballast = std::fs::File::create(disk.0.path().join("ballast")).unwrap();
    while std::io::Write::write_all(&mut ballast, &[0; 1024]).is_ok() {}
    serve(lab.cluster.addr(), &sqlite(&disk.0.path().join("x.db"))).await.code(1).says(&["full"]);
}

pub async fn a_newer_schema(given: Given) {
    let lab = given.own().await;
    let mut curfew = Controller::start(lab.cluster.addr(), &[]).await;
    let path = curfew.database();
    curfew.end(rustix::process::Signal::TERM, Duration::from_secs(10)).await;
    let database = rusqlite::Connection::open(&path).unwrap();
    database.execute("INSERT INTO schema_version (version, made_by) VALUES (999, 'a test')", []).unwrap();
    drop(database);
    let ran = serve(lab.cluster.addr(), &sqlite(&path)).await.code(1).says(&["newer"]);
    assert!(ran.stderr.contains("999"), "{ran}");
}

/// A file system of its own, for whoever may mount one.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(given: &Given, size: &str) -> Option<Self> {
        let dir = TempDir::with_prefix("curfew-test-disk-").unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "curfew-test"]).arg(dir.path()).output();
        let mounted = geteuid().is_root() && mount.is_ok_and(|o| o.status.success());
        if !mounted {
            given.skip("mounting a small file system needs root");
            return None;
        }
        Some(Self(dir))
    }

    fn remount_read_only(&self) {
        let status = Command::new("mount").args(["-o", "remount,ro"]).arg(self.0.path()).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a controller may still be on its way out.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}
