//! A PostgreSQL for the tests: the one that CURFEW_TEST_POSTGRES names, a schema for each test; or one of the test's own, made from
//! the programs that are installed here.

pub mod clocked;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio_postgres::{Client, NoTls};

/// The server that tests share, or a loud word about what goes untested.
pub fn shared(test: &str) -> Option<String> {
    let url = std::env::var("CURFEW_TEST_POSTGRES").ok().filter(|u| !u.is_empty());
    if url.is_none() {
        eprintln!("SKIPPED {test}: CURFEW_TEST_POSTGRES names no PostgreSQL");
    }
    url
}

pub async fn client(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A schema that goes when this is dropped.
pub struct Schema {
    pub url: String,
    server: String,
    name: String,
}

impl Schema {
    pub async fn new(server: &str) -> Schema {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let admin = client(server).await;
        admin.batch_execute(&format!("DROP SCHEMA IF EXISTS {name} CASCADE; CREATE SCHEMA {name}")).await.unwrap();
        let mark = if server.contains('?') { '&' } else { '?' };
        Schema { url: format!("{server}{mark}options=-c%20search_path={name}"), server: server.to_owned(), name }
    }

    pub async fn client(&self) -> Client {
        client(&self.url).await
    }
}

impl Drop for Schema {
    fn drop(&mut self) {
        let (server, sql) = (self.server.clone(), format!("DROP SCHEMA {} CASCADE", self.name));
        // A test may end within its runtime or after it.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let done =
                    tokio::time::timeout(Duration::from_secs(10), async { client(&server).await.batch_execute(&sql).await });
                if !matches!(done.await, Ok(Ok(()))) {
                    eprintln!("a schema stays behind: {sql}");
                }
            });
        });
        let _ = dropping.join();
    }
}

/// A server of the test's own, stopped when dropped.
pub struct Server {
    dir: tempfile::TempDir,
    bin: PathBuf,
    pub port: u16,
}

impl Server {
    /// Debian keeps its programs out of PATH, by version. `None`: there are none.
    pub fn start(test: &str) -> Option<Server> {
        let Some(bin) = programs() else {
            eprintln!("SKIPPED {test}: PostgreSQL is not installed");
            return None;
        };
        let dir = tempfile::Builder::new().prefix("curfew-pg-").tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Server { dir, bin, port };
        if rustix::process::geteuid().is_root() {
            ok(Command::new("chown").arg(user()).arg(server.dir.path()));
        }
        let mut made = server.run("initdb");
        made.args(["--username=curfew", "--auth=trust", "--encoding=UTF8", "--no-sync", "--pgdata"]).arg(server.data());
        ok(&mut made);
        server.up();
        Some(server)
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn url(&self) -> String {
        format!("postgres://curfew:sesame@127.0.0.1:{}/postgres", self.port)
    }

    pub fn up(&self) {
        let options = format!(
            "-c listen_addresses=127.0.0.1 -c port={} -c unix_socket_directories={} -c fsync=off",
            self.port,
            self.dir.path().display()
        );
        let mut up = self.run("pg_ctl");
        up.arg("--pgdata").arg(self.data()).arg("--log").arg(self.dir.path().join("log"));
        ok(up.args(["--wait", "--timeout=60", "--options", &options, "start"]));
    }

    /// `mode` is `fast` or `immediate`.
    pub fn down(&self, mode: &str) {
        ok(self.run("pg_ctl").arg("--pgdata").arg(self.data()).args(["--wait", &format!("--mode={mode}"), "stop"]));
    }

    /// As an unprivileged user: PostgreSQL refuses to run as root.
    fn run(&self, program: &str) -> Command {
        let program = self.bin.join(program);
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", &user(), "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(self.dir.path());
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.run("pg_ctl").arg("--pgdata").arg(self.data()).args(["--wait", "--mode=immediate", "stop"]).output();
    }
}

fn programs() -> Option<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|e| Some((e.as_ref().ok()?.file_name().to_str()?.parse().ok()?, e.ok()?.path().join("bin"))))
        .filter(|(_, bin)| bin.join("initdb").exists())
        .collect();
    versions.sort();
    let in_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).find(|dir| dir.join("initdb").exists() && dir.join("pg_ctl").exists())
    };
    versions.pop().map(|(_, bin)| bin).or_else(in_path)
}

fn user() -> String {
    let known = Command::new("id").arg("postgres").output().is_ok_and(|o| o.status.success());
    if known { "postgres".into() } else { "nobody".into() }
}

fn ok(command: &mut Command) -> Output {
    // pg_ctl leaves a server behind that would keep a pipe open.
    let log = tempfile::NamedTempFile::new().unwrap();
    let output = |file: &Path| std::fs::read_to_string(file).unwrap_or_default();
    let (out, err) = (log.reopen().unwrap(), log.reopen().unwrap());
    let status = command.stdin(Stdio::null()).stdout(out).stderr(err).status().unwrap();
    assert!(status.success(), "{command:?}: {status}\n{}", output(log.path()));
    Output { status, stdout: vec![], stderr: vec![] }
}
