//! The kernel's process list: who lives, to whom it belongs.

use std::fs;
use std::time::Duration;

use curfew_core::Timestamp;
use rustix::process::{Pid, Signal, kill_process};

use crate::{now, wait};

/// One process; its start tells it from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Proc {
    pub pid: i32,
    started: u64,
}

impl Proc {
    /// `None` when there is no such process, or only what is left of it until its parent has looked.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name may hold spaces and brackets: fields count from the last one.
        let mut fields = stat[stat.rfind(')')? + 2..].split(' ');
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        (state != "Z" && state != "X").then_some(Self { pid, started })
    }

    pub fn lives(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Whether it ignores or catches SIGTERM already: a shell needs a moment for its `trap`.
    pub fn minds_sigterm(self) -> bool {
        const TERM: u64 = 1 << 14;
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let mask = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name));
            line.and_then(|l| u64::from_str_radix(l.trim(), 16).ok()).unwrap_or(0)
        };
        (mask("SigIgn:") | mask("SigCgt:")) & TERM != 0
    }

    /// The instant at which it was first seen dead.
    pub async fn death(self, within: Duration, what: &str) -> Timestamp {
        wait::eventually(within, &format!("the death of {what} (pid {})", self.pid), async || {
            if self.lives() { Err("it lives".to_owned()) } else { Ok(now()) }
        })
        .await
    }

    pub fn signal(self, signal: Signal) {
        if self.lives()
            && let Some(pid) = Pid::from_raw(self.pid)
        {
            // It may have ended since.
            let _ = kill_process(pid, signal);
        }
    }
}

fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok())
}

fn environ(pid: i32) -> Vec<Vec<u8>> {
    let all = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    all.split(|b| *b == 0).map(<[u8]>::to_vec).collect()
}

/// Every live process whose environment holds all of `variables` (`NAME=value`), the oldest first.
pub fn with_environment(variables: &[String]) -> Vec<Proc> {
    let mut found: Vec<Proc> = pids()
        .filter(|pid| {
            let env = environ(*pid);
            variables.iter().all(|v| env.iter().any(|e| e == v.as_bytes()))
        })
        .filter_map(Proc::of)
        .collect();
    found.sort_by_key(|p| (p.started, p.pid));
    found
}

/// The processes of one task of an allocation: what the driver started first, then its children. Two embedded clusters may
/// give the same allocation ids, so the job counts too.
pub fn of_task(job: &str, alloc: &str, task: &str) -> Vec<Proc> {
    with_environment(&[format!("NOMAD_JOB_ID={job}"), format!("NOMAD_ALLOC_ID={alloc}"), format!("NOMAD_TASK_NAME={task}")])
}

/// Ends, by their ids, all processes with `mark` (`NAME=value`) in their environment, until none is left.
pub fn end_marked(mark: &str) {
    let mark = [mark.to_owned()];
    for _ in 0..200 {
        let left = with_environment(&mark);
        if left.is_empty() {
            return;
        }
        left.iter().for_each(|p| p.signal(Signal::KILL));
        std::thread::yield_now();
    }
}

/// Ends, by their ids, all tasks whose allocation folder lies below `dir`.
pub fn end_below(dir: &std::path::Path) {
    let prefix = format!("NOMAD_ALLOC_DIR={}/", dir.display());
    for _ in 0..200 {
        let left: Vec<Proc> =
            pids().filter(|pid| environ(*pid).iter().any(|e| e.starts_with(prefix.as_bytes()))).filter_map(Proc::of).collect();
        if left.is_empty() {
            return;
        }
        left.iter().for_each(|p| p.signal(Signal::KILL));
        std::thread::yield_now();
    }
}
