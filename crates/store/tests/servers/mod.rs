//! The PostgreSQL that CURFEW_TEST_POSTGRES names; each test has a schema of its own in it.

pub mod clocked;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio_postgres::{Client, NoTls};

/// The server that tests share, or a loud word about what goes untested.
pub fn shared(test: &str) -> Option<String> {
    let url = std::env::var("CURFEW_TEST_POSTGRES").ok().filter(|u| !u.is_empty());
    if url.is_none() {
        eprintln!("SKIPPED {test}: CURFEW_TEST_POSTGRES names no PostgreSQL");
    }
    url
}

pub async fn client(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A schema that goes when this is dropped.
pub struct Schema {
    pub url: String,
    server: String,
    name: String,
}

impl Schema {
    pub async fn new(server: &str) -> Schema {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let admin = client(server).await;
        admin.batch_execute(&format!("DROP SCHEMA IF EXISTS {name} CASCADE; CREATE SCHEMA {name}")).await.unwrap();
        let mark = if server.contains('?') { '&' } else { '?' };
        Schema { url: format!("{server}{mark}options=-c%20search_path={name}"), server: server.to_owned(), name }
    }

    pub async fn client(&self) -> Client {
        client(&self.url).await
    }
}

impl Drop for Schema {
    fn drop(&mut self) {
        let (server, sql) = (self.server.clone(), format!("DROP SCHEMA {} CASCADE", self.name));
        // A test may end within its runtime or after it.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let done =
                    tokio::time::timeout(Duration::from_secs(10), async { client(&server).await.batch_execute(&sql).await });
                if !matches!(done.await, Ok(Ok(()))) {
                    eprintln!("a schema stays behind: {sql}");
                }
            });
        });
        let _ = dropping.join();
    }
}
