//! Two gcs on one machine take turns, by the operating system's lock on a file: it ends with the process, however that ends.
//!
//! Gcs on different machines are not held apart by it. Each reads a candidate right before it acts, and each of its calls is safe to
//! repeat.

use std::fs::{File, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    #[error("the lock file {} cannot be used; name another place with --state", path.display())]
    File { path: PathBuf, source: std::io::Error },
}

const LOOK: Duration = Duration::from_millis(100);

/// Held until dropped.
#[derive(Debug)]
pub struct Turn {
    _file: File,
}

impl Turn {
    /// Waits until no other gc has it; `waiting` is called once when it has to.
    pub async fn take(path: &Path, waiting: impl FnOnce()) -> Result<Self, TurnError> {
        let failed = |source| TurnError::File { path: path.into(), source };
        // Not emptied, not removed: another gc may hold it. Not followed: it may lie where anybody can write.
        let nofollow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let mut how = File::options();
        how.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(nofollow);
        let file = how.open(path).map_err(failed)?;
        let mut waiting = Some(waiting);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::Error(e)) => return Err(failed(e)),
                Err(TryLockError::WouldBlock) => {
                    if let Some(say) = waiting.take() {
                        say();
                    }
                    tokio::time::sleep(LOOK).await;
                }
            }
        }
    }

    /// The lock of this user's gcs for a Nomad, or beside the state file that they share.
    pub fn path(state: Option<&Path>, nomad: &str) -> PathBuf {
        match state {
            Some(state) => {
                let mut name = state.as_os_str().to_owned();
                name.push("-lock");
                name.into()
            }
            None => {
                let plain: String = nomad.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
                let uid = rustix::process::getuid().as_raw();
                std::env::temp_dir().join(format!("curfew-gc-{uid}-{plain}.lock"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_waits_until_the_first_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let path = Turn::path(Some(&dir.path().join("gc.json")), "http://127.0.0.1:4646");
        let first = Turn::take(&path, || panic!("nobody has it")).await.unwrap();
        let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let second = tokio::spawn(async move { Turn::take(&path, move || said.send(()).unwrap()).await });
        heard.recv().await.unwrap();
        assert!(!second.is_finished());
        drop(first);
        second.await.unwrap().unwrap();
    }
}
