//! One controller a database. The lock is the operating system's, on a file beside the database, so it ends with the process,
//! however that ends; the text in it is for people.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::trouble;
use crate::Result;

/// Holds the database until dropped.
pub(super) struct Owner {
    file: File,
}

impl Owner {
    pub(super) fn take(database: &Path) -> Result<Owner> {
        let path = beside(database);
        let unusable = |e| trouble::io(database, format!("its lock file {} cannot be written", path.display()), e);
        // Never removed again: between a removal and the next lock two processes could each hold "the" file.
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held_by(database, &mut file)),
            Err(TryLockError::Error(e)) => {
                return Err(trouble::io(database, format!("{} cannot be locked", path.display()), e));
            }
        }
        write_holder(&mut file).map_err(unusable)?;
        Ok(Owner { file })
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // The name must not outlive the lock; closing the file gives the lock up.
        if let Err(e) = self.file.set_len(0) {
            tracing::debug!(error = %e, "the holder's name stays in the lock file");
        }
    }
}

fn beside(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-lock");
    name.into()
}

fn write_holder(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    writeln!(file, "{host}:{}", std::process::id())
}

fn held_by(database: &Path, file: &mut File) -> crate::StoreError {
    let mut holder = String::new();
    let who = match file.take(1024).read_to_string(&mut holder) {
        Ok(_) if !holder.trim().is_empty() => holder.trim(),
        _ => "another process",
    };
    let what = format!(
        "the database {} is in use by {who}, another controller; stop it, or give this one another --database",
        database.display()
    );
    trouble::database(what, false, None)
}
