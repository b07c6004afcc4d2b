//! A command on a terminal of its own: what it asks, what it draws.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::process::Child;

use crate::command::clean;
use crate::wait::eventually;

pub struct Terminal {
    master: File,
    child: Child,
    seen: Arc<Mutex<String>>,
}

impl Terminal {
    /// The command with all three streams on it.
    pub fn run(args: &[&str], env: &[(&str, &str)], rows: u16, columns: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        tcsetwinsize(&master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let path = ptsname(&master, vec![]).unwrap().into_string().unwrap();
        let slave: OwnedFd = OpenOptions::new().read(true).write(true).open(path).unwrap().into();
        let stream = || Stdio::from(slave.try_clone().unwrap());
        let own = |text: &str| text.to_owned();
        let args: Vec<String> = args.iter().map(|a| own(a)).collect();
        let mut env: Vec<_> = env.iter().map(|(k, v)| (own(k), own(v))).collect();
        env.push((own("TERM"), own("xterm")));
        let mut command = clean(&args, &env);
        command.stdin(stream()).stdout(stream()).stderr(stream()).kill_on_drop(true);
        let child = command.spawn().unwrap();
        let (mut reader, seen) = (File::from(master.try_clone().unwrap()), Arc::new(Mutex::new(String::new())));
        let all = seen.clone();
        // Ends with an error when the last of the other side is closed.
        std::thread::spawn(move || {
            let mut some = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut some) {
                all.lock().unwrap().push_str(&String::from_utf8_lossy(&some[..n]));
            }
        });
        Self { master: master.into(), child, seen }
    }

    pub fn seen(&self) -> String {
        self.seen.lock().unwrap().clone()
    }

    pub async fn shows(&self, text: &str, within: Duration) {
        eventually(within, &format!("{text:?} on the terminal"), async || {
            let seen = self.seen();
            if seen.contains(text) { Ok(()) } else { Err(seen) }
        })
        .await;
    }

    pub fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// As Ctrl-C does to what runs on a terminal.
    pub fn interrupts(&self) {
        crate::process::Proc::of(i32::try_from(self.child.id().unwrap()).unwrap()).unwrap().signal(rustix::process::Signal::INT);
    }

    /// How it ended.
    pub async fn code(&mut self, within: Duration) -> Option<i32> {
        match tokio::time::timeout(within, self.child.wait()).await {
            Ok(status) => status.unwrap().code(),
            Err(_) => panic!("it did not end within {within:?}; on the terminal: {}", self.seen()),
        }
    }
}
