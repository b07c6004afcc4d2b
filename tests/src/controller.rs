//! `curfew serve` as a child process, with a database of its own.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use curfew_core::OpId;
use curfew_core::api::OperationView;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Child;

use crate::api::Api;
use crate::command::{self, Curfew, curfew};
use crate::process::Proc;
use crate::{free_port, wait};

pub struct Controller {
    dir: TempDir,
    database: Option<PathBuf>,
    /// A database that is no file of its own.
    url: Option<String>,
    nomad: String,
    env: Vec<(String, String)>,
    port: u16,
    child: Option<Child>,
    api: Api,
}

impl Controller {
    /// Running and ready, unless `env` makes it something that cannot be.
    pub async fn start(nomad: &str, env: &[(&str, &str)]) -> Self {
        let mut controller = Self::new(nomad, env);
        controller.launch();
        controller.ready().await;
        controller
    }

    pub fn new(nomad: &str, env: &[(&str, &str)]) -> Self {
        let port = free_port();
        Self {
            dir: TempDir::with_prefix("curfew-test-controller-").unwrap(),
            database: None,
            url: env.iter().find(|(k, _)| *k == "CURFEW_DATABASE").map(|(_, url)| (*url).to_owned()),
            nomad: nomad.into(),
            env: env.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            port,
            child: None,
            api: Api::new(format!("http://127.0.0.1:{port}")),
        }
    }

    pub fn addr(&self) -> &str {
        &self.api.addr
    }

    pub fn api(&self) -> &Api {
        &self.api
    }

    pub fn database(&self) -> PathBuf {
        self.database.clone().unwrap_or_else(|| self.dir.path().join("curfew.db"))
    }

    /// Its database elsewhere than in its own temporary folder.
    pub fn with_database(mut self, path: &std::path::Path) -> Self {
        self.database = Some(path.to_owned());
        self
    }

    /// On a database that others may use, too.
    pub fn on(mut self, url: &str) -> Self {
        self.url = Some(url.to_owned());
        self
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("serve.log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The arguments of its `serve`.
    pub fn args(&self) -> Vec<String> {
        let database = self.url.clone().unwrap_or_else(|| format!("sqlite:{}", self.database().display()));
        ["serve", "--database", &database, "--listen", &format!("127.0.0.1:{}", self.port)].map(String::from).into()
    }

    pub fn launch(&mut self) {
        let log = OpenOptions::new().create(true).append(true).open(self.log_file()).unwrap();
        let mut env = vec![
            ("NOMAD_ADDR".to_owned(), self.nomad.clone()),
            ("CURFEW_LOG".to_owned(), "info,curfew_controller=debug".to_owned()),
            ("NO_COLOR".to_owned(), "1".to_owned()),
        ];
        env.extend(self.env.iter().cloned());
        let mut serve = command::clean(&self.args(), &env);
        let copy: File = log.try_clone().unwrap();
        serve.stdin(Stdio::null()).stdout(copy).stderr(log).kill_on_drop(true);
        self.child = Some(serve.spawn().unwrap());
    }

    pub async fn ready(&mut self) {
        let api = self.api.clone();
        let log = self.log_file();
        let child = self.child.as_mut().unwrap();
        wait::eventually(Duration::from_secs(30), "the controller to be ready", async || {
            let log = || std::fs::read_to_string(&log).unwrap_or_default();
            if let Ok(Some(status)) = child.try_wait() {
                panic!("the controller ended ({status}):\n{}", log());
            }
            match api.call(reqwest::Method::GET, "/readyz", None).await {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}\n{}", log())),
            }
        })
        .await;
    }

    pub fn proc(&self) -> Proc {
        let pid = self.child.as_ref().and_then(Child::id).unwrap();
        Proc::of(i32::try_from(pid).unwrap()).unwrap()
    }

    /// `kill -9`: no chance to write anything down.
    pub async fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().await.unwrap();
    }

    /// A signal, and how it ended.
    pub async fn end(&mut self, signal: Signal, within: Duration) -> ExitStatus {
        self.proc().signal(signal);
        let mut child = self.child.take().unwrap();
        match tokio::time::timeout(within, child.wait()).await {
            Ok(status) => status.unwrap(),
            Err(_) => panic!("the controller did not end within {within:?} of {signal:?}:\n{}", self.log()),
        }
    }

    pub async fn restart(&mut self) {
        self.launch();
        self.ready().await;
    }

    /// A command that asks this controller.
    pub fn curfew<S: Into<String>>(&self, args: impl IntoIterator<Item = S>) -> Curfew {
        curfew(args).env("CURFEW_ADDR", self.addr())
    }

    pub async fn operation(&self, id: OpId) -> OperationView {
        serde_json::from_value(self.api.get(&format!("/v1/operations/{id}")).await).unwrap()
    }

    /// The operation at its end.
    pub async fn finished(&self, id: OpId, within: Duration) -> OperationView {
        wait::eventually(within, &format!("operation {id} to end"), async || {
            let op = self.api.try_get(&format!("/v1/operations/{id}")).await?;
            let op: OperationView = serde_json::from_value(op.clone()).map_err(|e| format!("{e}: {op}"))?;
            if op.state.is_finished() { Ok(op) } else { Err(format!("{op:?}")) }
        })
        .await
    }

    /// The actions of an operation's audit trail, oldest first.
    pub async fn trail(&self, id: OpId) -> Vec<Value> {
        let rows = self.api.get(&format!("/v1/audit?operation={id}")).await;
        rows.as_array().cloned().unwrap_or_default()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(60)..].join("\n");
            eprintln!("--- the end of the controller's log\n{tail}\n---");
        }
    }
}
