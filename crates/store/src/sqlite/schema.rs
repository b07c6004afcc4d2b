//! The tables, and the way to them from every earlier version. Forwards only.

use std::path::Path;

use rusqlite::Connection;

use super::trouble;
use crate::Result;

/// One step each; a step that was released is never changed again. The schema's version is the number of steps.
const MIGRATIONS: &[&str] = &[
    include_str!("schema/001.sql"),
    include_str!("schema/002.sql"),
    include_str!("schema/003.sql"),
    include_str!("schema/004.sql"),
];

/// "CURF", in the file's header: the file is ours.
const APPLICATION_ID: i32 = 0x4355_5246;

/// Brings an empty or an older database to this version. Looks before it changes anything.
pub(super) fn migrate(conn: &Connection, path: &Path) -> Result<()> {
    let failed = |e| trouble::sql(path, "migrate", e);
    let found = version(conn, path)?;
    let known = MIGRATIONS.len();
    if found == known {
        return Ok(());
    }
    conn.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
    let done = apply(conn, found).and_then(|()| conn.execute_batch("COMMIT"));
    if done.is_err() && !conn.is_autocommit() {
        conn.execute_batch("ROLLBACK").map_err(failed)?;
    }
    done.map_err(failed)?;
    tracing::info!(path = %path.display(), from = found, to = known, "the database has a new schema");
    Ok(())
}

fn apply(conn: &Connection, found: usize) -> rusqlite::Result<()> {
    conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    for (i, step) in MIGRATIONS.iter().enumerate().skip(found) {
        conn.execute_batch(step)?;
        let row = ((i + 1) as i64, env!("CARGO_PKG_VERSION"));
        conn.execute("INSERT INTO schema_version (version, made_by) VALUES (?1, ?2)", row)?;
    }
    Ok(())
}

fn version(conn: &Connection, path: &Path) -> Result<usize> {
    let failed = |e| trouble::sql(path, "schema_version", e);
    let id: i32 = conn.query_row("PRAGMA application_id", [], |r| r.get(0)).map_err(failed)?;
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_master", [], |r| r.get(0)).map_err(failed)?;
    if tables == 0 && (id == 0 || id == APPLICATION_ID) {
        return Ok(0);
    }
    if id != APPLICATION_ID {
        let what = format!("{} is an SQLite database of another program, not curfew's; name another --database", path.display());
        return Err(trouble::database(what, false, None));
    }
    let sql = "SELECT version, made_by FROM schema_version ORDER BY version DESC LIMIT 1";
    let (found, made_by): (i64, String) = conn.query_row(sql, [], |r| Ok((r.get(0)?, r.get(1)?))).map_err(failed)?;
    let known = MIGRATIONS.len();
    usize::try_from(found).ok().filter(|v| *v <= known).ok_or_else(|| {
        let what = format!(
            "the database {} was made by a newer curfew ({made_by}): schema {found}, this one knows {known}; upgrade curfew, or \
             name another --database",
            path.display()
        );
        trouble::database(what, false, None)
    })
}
