//! Finds every process of a task: by its group, by parentage, and by the mark in its environment, so that a child that
//! left the group or lost its parent is found too.

use std::collections::HashSet;
use std::fs;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

struct Entry {
    pid: i32,
    parent: i32,
    group: i32,
}

fn entries() -> Vec<Entry> {
    let Ok(dir) = fs::read_dir("/proc") else { return Vec::new() };
    dir.flatten()
        .filter_map(|e| {
            let pid: i32 = e.file_name().to_str()?.parse().ok()?;
            // The command's name may hold spaces and brackets: fields count from the last one.
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let rest = stat.get(stat.rfind(')')? + 2..)?;
            let mut fields = rest.split(' ');
            let state = fields.next()?;
            if state == "Z" || state == "X" {
                return None;
            }
            Some(Entry { pid, parent: fields.next()?.parse().ok()?, group: fields.next()?.parse().ok()? })
        })
        .collect()
}

fn marked(pid: i32, mark: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ")).is_ok_and(|env| env.split(|b| *b == 0).any(|v| v == mark.as_bytes()))
}

/// The task's processes that still live. `mark` is the `NAME=value` its environment holds.
pub(crate) fn members(root: i32, mark: &str) -> Vec<i32> {
    let all = entries();
    let mut found: HashSet<i32> =
        all.iter().filter(|e| e.pid == root || e.group == root || marked(e.pid, mark)).map(|e| e.pid).collect();
    loop {
        let more: Vec<i32> = all.iter().filter(|e| found.contains(&e.parent) && !found.contains(&e.pid)).map(|e| e.pid).collect();
        if more.is_empty() {
            return found.into_iter().collect();
        }
        found.extend(more);
    }
}

/// SIGKILL for the whole tree, until no member is left: a process may fork while it is being looked for.
pub(crate) fn kill(root: i32, mark: &str) {
    let own = std::process::id();
    for _ in 0..8 {
        let members = members(root, mark);
        let mut hit = false;
        for pid in members {
            if u32::try_from(pid).is_ok_and(|p| p == own) {
                continue;
            }
            hit |= send(pid, Signal::KILL).is_ok();
        }
        if !hit {
            return;
        }
    }
}

/// One signal to one process, by a descriptor where the kernel has them.
pub(crate) fn send(pid: i32, signal: Signal) -> rustix::io::Result<()> {
    let Some(pid) = Pid::from_raw(pid) else { return Err(rustix::io::Errno::SRCH) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => pidfd_send_signal(fd, signal),
        Err(rustix::io::Errno::NOSYS) => rustix::process::kill_process(pid, signal),
        Err(e) => Err(e),
    }
}
