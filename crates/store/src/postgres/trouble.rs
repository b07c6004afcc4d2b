//! PostgreSQL's errors as sentences: what, where, and the way out. The driver's own words stay in `source`. The place is host, port
//! and database; nothing here ever holds the password.

use std::error::Error as _;
use std::fmt;
use std::sync::Arc;

use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use crate::StoreError;

/// Why something failed; copied to everybody whose request shared the transaction.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) what: String,
    pub(super) transient: bool,
    /// Nothing was written, and another try right now may well succeed.
    pub(super) retry: bool,
    pub(super) source: Option<Arc<Error>>,
}

impl Trouble {
    pub(super) fn error(&self) -> StoreError {
        let source = self.source.clone().map(|e| Box::new(Shared(e)) as _);
        StoreError::Database { what: self.what.clone(), transient: self.transient, source }
    }

    pub(super) fn said(what: String, transient: bool) -> Self {
        Self { what, transient, retry: false, source: None }
    }

    /// The connection is not to be used again.
    pub(super) fn broke_connection(&self) -> bool {
        self.source.as_ref().is_none_or(|e| e.as_db_error().is_none())
    }
}

impl From<Trouble> for StoreError {
    fn from(t: Trouble) -> Self {
        t.error()
    }
}

#[derive(Debug)]
struct Shared(Arc<Error>);

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_db_error() {
            Some(db) => write!(f, "{} (SQLSTATE {})", db.message(), db.code().code()),
            None => fmt::Display::fmt(&self.0, f),
        }
    }
}

impl std::error::Error for Shared {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // A message of the server is its own source.
        if self.0.as_db_error().is_some() { None } else { self.0.source() }
    }
}

/// What went wrong with the query called `query`.
pub(super) fn sql(place: &str, query: &str, e: Error) -> Trouble {
    let (what, transient, retry) = sentence(place, query, &e);
    Trouble { what, transient, retry, source: Some(Arc::new(e)) }
}

/// The sentence, whether waiting may help, and whether another try at once may.
fn sentence(place: &str, query: &str, e: &Error) -> (String, bool, bool) {
    let Some(db) = e.as_db_error() else { return without_server(place, query, e) };
    let (code, said) = (db.code(), db.message());
    let conflict = [
        SqlState::UNIQUE_VIOLATION,
        SqlState::FOREIGN_KEY_VIOLATION,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::T_R_SERIALIZATION_FAILURE,
    ];
    if conflict.contains(code) {
        return (format!("{place}: {query} met another controller's write; trying again may help"), true, true);
    }
    if [SqlState::INVALID_PASSWORD, SqlState::INVALID_AUTHORIZATION_SPECIFICATION].contains(code) {
        let what = format!(
            "{place} refused the login: {said}; look at the user and the password in the database's URL, and at the server's \
             pg_hba.conf"
        );
        return (what, false, false);
    }
    if *code == SqlState::INVALID_CATALOG_NAME {
        return (format!("{place}: {said}; make it with: createdb, or name another in the database's URL"), false, false);
    }
    if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        return (
            format!("{place}: {query}: {said}; grant this user what it lacks, or give curfew a schema of its own"),
            false,
            false,
        );
    }
    if *code == SqlState::READ_ONLY_SQL_TRANSACTION {
        return (format!("{place} takes no writes ({query}): it is a standby; name the primary"), true, false);
    }
    if *code == SqlState::DISK_FULL {
        return (format!("the disk of {place} is full ({query}); free some space and the work goes on"), true, false);
    }
    if *code == SqlState::TOO_MANY_CONNECTIONS {
        return (format!("{place} has no connection left for curfew ({said}); raise max_connections"), true, false);
    }
    if [SqlState::QUERY_CANCELED, SqlState::LOCK_NOT_AVAILABLE].contains(code) {
        return (
            format!("{place} took too long over {query} ({said}); something else holds it up, see pg_stat_activity"),
            true,
            false,
        );
    }
    if [SqlState::CHARACTER_NOT_IN_REPERTOIRE, SqlState::UNTRANSLATABLE_CHARACTER].contains(code) {
        return (format!("{place} cannot keep a text with the character NUL in it ({query}); leave it out"), false, false);
    }
    let class = code.code().get(..2).unwrap_or_default();
    match class {
        // Being shut down, started, or short of something.
        "08" | "53" | "57" | "58" => (format!("{place} cannot serve {query} now: {said}"), true, class == "57"),
        _ => (format!("{place}: the query {query} failed"), false, false),
    }
}

fn without_server(place: &str, query: &str, e: &Error) -> (String, bool, bool) {
    let io = e.source().and_then(|s| s.downcast_ref::<std::io::Error>());
    let mut innermost = e.source();
    while let Some(deeper) = innermost.and_then(|s| s.source()) {
        innermost = Some(deeper);
    }
    let words = innermost.map(ToString::to_string).unwrap_or_default();
    if e.to_string().contains("TLS") {
        let what = format!(
            "{place}: the encrypted connection failed: {words}; sslrootcert=FILE in the URL names the CA of its certificate, \
             sslmode=disable goes without TLS"
        );
        return (what, false, false);
    }
    if query == "connect" {
        let why = match io.map(std::io::Error::kind) {
            Some(std::io::ErrorKind::ConnectionRefused) => "nobody listens there".to_owned(),
            _ if words.is_empty() => e.to_string(),
            _ => words,
        };
        return (format!("{place} cannot be reached: {why}; is it running, and is that its address?"), true, false);
    }
    if e.is_closed() || io.is_some() {
        return (format!("the connection to {place} broke ({query}); it is made anew"), true, true);
    }
    (format!("{place}: the query {query} failed"), false, false)
}

/// A commit whose answer was lost.
pub(super) fn unknown(place: &str, e: Error) -> Trouble {
    let what = format!("the connection to {place} broke during a commit; whether it was written is unknown");
    Trouble { what, transient: true, retry: false, source: Some(Arc::new(e)) }
}

pub(super) fn late(place: &str, query: &str) -> Trouble {
    Trouble::said(format!("{place} did not answer in time ({query}); whether it was written is unknown"), true)
}

pub(super) fn closed(place: &str) -> Trouble {
    Trouble::said(format!("{place} was closed: this controller is stopping"), false)
}

pub(super) fn unreadable(place: &str, query: &str, why: &dyn fmt::Display) -> Trouble {
    let what = format!(
        "{place} holds a row that this curfew cannot read ({query}: {why}); was it changed by hand or by another version?"
    );
    Trouble::said(what, false)
}
