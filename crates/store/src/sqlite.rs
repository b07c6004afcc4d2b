//! SQLite.
pub struct SqliteStore;
