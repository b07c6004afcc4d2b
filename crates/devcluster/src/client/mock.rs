//! Tasks without processes, for scale and for tests under paused time.
//!
//! Driver names `mock_driver` and `mock`; `nosignal` is the same but refuses signal calls as drivers without signals do.
//! Config, all optional, durations in Go's syntax: `run_for` (for ever when absent), `exit_code`, `exit_signal`,
//! `start_error` (the task cannot start, with this text), `start_block_for`, `ignore_sigterm` (neither SIGTERM nor SIGINT
//! ends it), `kill_after` (ends this long after SIGTERM or SIGINT), `term_exit_code` (its exit code then, 0).

use std::sync::Mutex;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::driver::Exit;
use super::lock;
use crate::duration;

#[derive(Debug)]
pub(crate) struct Mock {
    refuses_signals: bool,
    ignore_term: bool,
    kill_after: Duration,
    term_code: i64,
    due: Mutex<Due>,
    changed: Notify,
}

#[derive(Debug)]
struct Due {
    at: Option<Instant>,
    exit: Exit,
}

impl Mock {
    pub(crate) fn start(driver: &str, config: &Value) -> Result<Self, String> {
        if let Some(text) = config.get("start_error").and_then(Value::as_str).filter(|t| !t.is_empty()) {
            return Err(text.to_owned());
        }
        let int = |key: &str| config.get(key).and_then(Value::as_i64).unwrap_or(0);
        let run_for = time(config, "run_for")?;
        Ok(Self {
            refuses_signals: driver == "nosignal",
            ignore_term: config.get("ignore_sigterm").and_then(Value::as_bool).unwrap_or(false),
            kill_after: time(config, "kill_after")?.unwrap_or_default(),
            term_code: int("term_exit_code"),
            due: Mutex::new(Due {
                at: run_for.map(|d| Instant::now() + d),
                exit: Exit { code: int("exit_code"), signal: int("exit_signal") },
            }),
            changed: Notify::new(),
        })
    }

    pub(crate) async fn wait(&self) -> Exit {
        loop {
            let changed = self.changed.notified();
            let (at, exit) = {
                let due = lock(&self.due);
                (due.at, due.exit)
            };
            match at {
                Some(at) if at <= Instant::now() => {
                    // Another waiter may be asleep on the old instant.
                    self.changed.notify_waiters();
                    return exit;
                }
                Some(at) => {
                    tokio::select! {
                        biased;
                        () = changed => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => changed.await,
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<(), String> {
        if self.refuses_signals {
            return Err("SignalTask is not supported by this driver".into());
        }
        self.interrupt(signal)
    }

    pub(crate) fn interrupt(&self, signal: Signal) -> Result<(), String> {
        let now = Instant::now();
        let mut due = lock(&self.due);
        if due.at.is_some_and(|at| at <= now) {
            return Err("process already finished".into());
        }
        let (at, exit) = match signal {
            Signal::KILL => (now, Exit { code: 137, signal: 9 }),
            Signal::TERM | Signal::INT if self.ignore_term => return Ok(()),
            Signal::TERM | Signal::INT => (now + self.kill_after, Exit { code: self.term_code, signal: 0 }),
            // As a program without handlers: these end nothing.
            Signal::HUP | Signal::USR1 | Signal::USR2 | Signal::CONT | Signal::CHILD | Signal::URG | Signal::WINCH => {
                return Ok(());
            }
            other => (now, Exit { code: 128 + i64::from(other.as_raw()), signal: i64::from(other.as_raw()) }),
        };
        if due.at.is_none_or(|old| at < old) {
            *due = Due { at: Some(at), exit };
            drop(due);
            self.changed.notify_waiters();
        }
        Ok(())
    }
}

/// A duration in a mock task's config: Go's text or nanoseconds.
pub(crate) fn time(config: &Value, key: &str) -> Result<Option<Duration>, String> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(t)) if t.is_empty() => Ok(None),
        Some(Value::String(t)) => match duration::parse(t) {
            Some(ns) => Ok(Some(crate::job::spec::nanos(ns))),
            None => Err(format!("{key} {t:?} not a valid duration")),
        },
        Some(v) => Ok(v.as_i64().map(crate::job::spec::nanos)),
    }
}
