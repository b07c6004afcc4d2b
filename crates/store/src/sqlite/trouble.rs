//! SQLite's errors as sentences: what, where, and the way out. The driver's own words stay in `source`.

use std::io;
use std::path::Path;

use rusqlite::ErrorCode;

use crate::StoreError;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong with the query called `query`.
pub(super) fn sql(path: &Path, query: &str, e: rusqlite::Error) -> StoreError {
    let (what, transient) = sentence(path, query, &e);
    database(what, transient, Some(e.into()))
}

/// The sentence, and whether waiting may help.
pub(super) fn sentence(path: &Path, query: &str, e: &rusqlite::Error) -> (String, bool) {
    let p = path.display();
    if let rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..) = e {
        let what = format!(
            "the database {p} holds a row that this curfew cannot read ({query}); was it changed by hand or by another version?"
        );
        return (what, false);
    }
    match e.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            (format!("the database {p} is busy: another program is writing to it ({query}); find it with: fuser -v '{p}'"), true)
        }
        Some(ErrorCode::DiskFull) => {
            (format!("the disk that holds the database {p} is full ({query}); free some space and the work goes on"), true)
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => (
            format!(
                "the database {p} cannot be written ({query}): give this user write access to the file and to its directory, \
                 or name another --database"
            ),
            false,
        ),
        Some(ErrorCode::CannotOpen) => (
            format!(
                "the database {p} cannot be opened ({query}): give this user read and write access to the file and to its \
                 directory, or name another --database"
            ),
            false,
        ),
        Some(ErrorCode::NotADatabase) => (
            format!(
                "{p} is not an SQLite database ({query}); name another --database, or move that file away to start an empty one"
            ),
            false,
        ),
        Some(ErrorCode::DatabaseCorrupt) => (
            format!(
                "the database {p} is damaged ({query}); stop curfew and restore it from a backup, or save what can be read with: \
                 sqlite3 '{p}' .recover"
            ),
            false,
        ),
        Some(ErrorCode::SystemIoFailure) => {
            (format!("reading or writing the database {p} failed ({query}); look at the disk and at the kernel's log"), true)
        }
        _ => (format!("the query {query} on the database {p} failed"), false),
    }
}

/// A file beside or around the database could not be used.
pub(super) fn io(path: &Path, what: String, e: io::Error) -> StoreError {
    let p = path.display();
    let (way_out, transient) = match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ("the disk is full: free some space", true),
        io::ErrorKind::PermissionDenied => ("give this user write access there, or name another --database", false),
        io::ErrorKind::ReadOnlyFilesystem => ("that file system is read-only: name another --database", false),
        _ => ("name another --database, or make that place usable", false),
    };
    database(format!("the database {p} cannot be used: {what}; {way_out}"), transient, Some(e.into()))
}

pub(super) fn database(what: String, transient: bool, source: Option<Source>) -> StoreError {
    StoreError::Database { what, transient, source }
}

pub(super) fn closed(path: &Path) -> StoreError {
    database(format!("the database {} was closed: this controller is stopping", path.display()), false, None)
}

/// A request panicked. The rest of its group goes on without it.
pub(super) fn bug(path: &Path) -> StoreError {
    let what =
        format!("a request to the database {} failed by a bug in curfew and was not written; the log has more", path.display());
    database(what, false, None)
}

/// The thread that was to answer is gone. The write may or may not have happened.
pub(super) fn lost(path: &Path) -> StoreError {
    let what = format!(
        "a request to the database {} was given up before its answer, because the program is stopping or failed; whether it was \
         written is unknown",
        path.display()
    );
    database(what, true, None)
}
