//! A PostgreSQL of a test's own, made from the programs that are installed here, to be stopped, started and misconfigured.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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

    pub fn reload(&self) {
        ok(self.run("pg_ctl").arg("--pgdata").arg(self.data()).arg("reload"));
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

/// Where they are.
pub fn programs() -> Option<PathBuf> {
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

/// As whom it runs, when the test runs as root.
pub fn user() -> String {
    let known = Command::new("id").arg("postgres").output().is_ok_and(|o| o.status.success());
    if known { "postgres".into() } else { "nobody".into() }
}

pub fn ok(command: &mut Command) {
    // pg_ctl leaves a server behind that would keep a pipe open.
    let log = tempfile::NamedTempFile::new().unwrap();
    let output = |file: &Path| std::fs::read_to_string(file).unwrap_or_default();
    let (out, err) = (log.reopen().unwrap(), log.reopen().unwrap());
    let status = command.stdin(Stdio::null()).stdout(out).stderr(err).status().unwrap();
    assert!(status.success(), "{command:?}: {status}\n{}", output(log.path()));
}
