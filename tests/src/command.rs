//! Running the `curfew` command and keeping all it said.

use std::process::Stdio;
use std::time::Duration;

use curfew_core::Timestamp;
use curfew_core::api::OperationView;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::ChildStdout;

use crate::{binary, now};

/// A command line to be run. Nothing of this process's own `NOMAD_…` and `CURFEW_…` reaches it.
pub struct Curfew {
    args: Vec<String>,
    env: Vec<(String, String)>,
    stdin: Option<Vec<u8>>,
    within: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Ran {
    pub args: Vec<String>,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub began: Timestamp,
    pub ended: Timestamp,
}

pub fn curfew<S: Into<String>>(args: impl IntoIterator<Item = S>) -> Curfew {
    Curfew { args: args.into_iter().map(Into::into).collect(), env: vec![], stdin: None, within: Duration::from_secs(120) }
}

/// The binary with a clean environment.
pub fn clean(args: &[String], env: &[(String, String)]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(binary::curfew());
    command.args(args);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CURFEW_") || name.starts_with("NOMAD_") || name.to_lowercase().ends_with("_proxy") {
            command.env_remove(name);
        }
    }
    command.envs(env.iter().map(|(k, v)| (k, v)));
    command
}

impl Curfew {
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn stdin(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(text.into());
        self
    }

    /// How long it may take; a command that hangs is a failure.
    pub fn within(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }

    pub async fn run(self) -> Ran {
        let mut command = clean(&self.args, &self.env);
        let stdin = if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() };
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let began = now();
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{} could not be run: {e}", binary::curfew().display()));
        if let (Some(mut pipe), Some(text)) = (child.stdin.take(), &self.stdin) {
            // One that does not read its input closes it; its exit code tells more.
            let _ = pipe.write_all(text).await;
        }
        let out = match tokio::time::timeout(self.within, child.wait_with_output()).await {
            Ok(out) => out.unwrap(),
            Err(_) => panic!("`curfew {}` did not end within {:?}", self.args.join(" "), self.within),
        };
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let ran = Ran {
            args: self.args,
            code: out.status.code(),
            stdout: text(out.stdout),
            stderr: text(out.stderr),
            began,
            ended: now(),
        };
        assert!(!ran.stderr.contains("panicked") && !ran.stdout.contains("panicked"), "{ran}");
        ran
    }
}

/// A command that goes on by itself and prints a JSON value a line.
pub struct Following {
    child: tokio::process::Child,
    lines: Lines<BufReader<ChildStdout>>,
    rows: Vec<Value>,
}

impl Curfew {
    pub fn follow(self) -> Following {
        let mut command = clean(&self.args, &self.env);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Following { child, lines, rows: vec![] }
    }
}

impl Following {
    /// All it has printed, up to the row with this action.
    pub async fn until(&mut self, action: &str) -> Vec<Value> {
        while self.rows.last().is_none_or(|r| r["action"] != action) {
            let line = match tokio::time::timeout(Duration::from_secs(60), self.lines.next_line()).await {
                Ok(line) => line.unwrap().unwrap_or_else(|| panic!("it ended before {action}: {:?}", self.rows)),
                Err(_) => panic!("waited for {action}; it printed {:?}", self.rows),
            };
            self.rows.push(serde_json::from_str(&line).unwrap());
        }
        self.rows.clone()
    }

    /// Ctrl-C, and its exit code.
    pub async fn interrupt(mut self) -> Option<i32> {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        crate::process::Proc::of(pid).unwrap().signal(rustix::process::Signal::INT);
        let ended = tokio::time::timeout(Duration::from_secs(10), self.child.wait()).await;
        ended.unwrap_or_else(|_| panic!("Ctrl-C did not end it")).unwrap().code()
    }
}

impl Ran {
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// One line on standard error that says all of `words`, and nothing that only a programmer understands.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in: {self}");
        }
        for debris in ["Error {", "Os {", "stack backtrace", "RUST_BACKTRACE", "reqwest::"] {
            assert!(!self.stderr.contains(debris), "{debris:?} in: {self}");
        }
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("not JSON ({e}): {self}"))
    }

    #[track_caller]
    pub fn operation(&self) -> OperationView {
        serde_json::from_value(self.json()).unwrap_or_else(|e| panic!("not an operation ({e}): {self}"))
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "`curfew {}` exited with {:?}", self.args.join(" "), self.code)?;
        writeln!(f, "--- standard output\n{}--- standard error\n{}---", self.stdout, self.stderr)
    }
}
