//! Which database a URL names.

use std::path::PathBuf;
use std::sync::Arc;

use crate::postgres::Address;
use crate::{PostgresStore, Result, SqliteStore, Store, StoreError};

/// What a URL names, before anything is opened.
pub struct Database(Named);

enum Named {
    Sqlite(PathBuf),
    Postgres(Box<Address>),
}

impl Database {
    /// `sqlite:PATH` or `postgres://…`; anything else is [`StoreError::BadUrl`]. No error holds the password.
    pub fn parse(url: &str) -> Result<Database> {
        let bad = |what: String| {
            StoreError::BadUrl(format!(
                "{what}; write sqlite:PATH, as in sqlite:/var/lib/curfew/curfew.db, or \
                 postgres://USER:PASSWORD@HOST:PORT/DATABASE"
            ))
        };
        match url.split_once(':') {
            Some(("sqlite", path)) if !path.is_empty() => Ok(Database(Named::Sqlite(path.into()))),
            Some(("postgres" | "postgresql", rest)) if rest.starts_with("//") => {
                Ok(Database(Named::Postgres(Box::new(Address::parse(url)?))))
            }
            // What stands after it may hold a password.
            Some((scheme, _)) => Err(bad(format!("the database \"{scheme}:…\" is not one Curfew knows"))),
            None => Err(bad(format!("the database \"{url}\" is not one Curfew knows"))),
        }
    }

    pub async fn open(self) -> Result<Arc<dyn Store>> {
        match self.0 {
            Named::Sqlite(path) => {
                let opening = tokio::task::spawn_blocking(move || SqliteStore::open(&path));
                let stopped = |_| StoreError::Database {
                    what: "the database was not opened: the program is stopping".into(),
                    transient: false,
                    source: None,
                };
                Ok(opening.await.map_err(stopped)??)
            }
            Named::Postgres(address) => Ok(PostgresStore::connect(*address).await?),
        }
    }
}

/// Opens the database that `url` names.
pub async fn open(url: &str) -> Result<Arc<dyn Store>> {
    Database::parse(url)?.open().await
}
