//! From a URL to connections: what it may say, TLS by rustls, and the limits that every session has.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use futures::future::BoxFuture;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, Connection, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::trouble::{self, Trouble};
use crate::{Result, StoreError};

/// Connections for leases, reads and the writer; one more listens for changes.
const POOL: usize = 8;
/// A transaction of curfew's takes milliseconds. A controller that was stopped in the middle of one (SIGSTOP) must not hold the
/// others up for longer than their own leases last, so the server ends such sessions.
const SESSION: &str = "-c statement_timeout=10s -c lock_timeout=8s -c idle_in_transaction_session_timeout=3s";
/// The longest a caller waits for a connection, a new one included.
const CONNECT: Duration = Duration::from_secs(5);

pub(super) type Raw = (Client, Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>);

/// How to reach a database.
#[derive(Clone)]
pub(crate) struct Address {
    config: Config,
    tls: MakeRustlsConnect,
    /// Host, port and database, for people: never the password.
    pub(super) place: String,
}

impl Address {
    pub(crate) fn parse(url: &str) -> Result<Address> {
        let bad = |why: String| StoreError::BadUrl(format!("{why}; write postgres://USER:PASSWORD@HOST:PORT/DATABASE"));
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        // The parser would take what follows the first one for the host and show it.
        if base.matches('@').count() > 1 {
            return Err(bad("the database's URL has more than one @; in a user or a password write it as %40".into()));
        }
        let mut root: Option<PathBuf> = None;
        let mut rest = Vec::new();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            match pair.split_once('=') {
                Some(("sslrootcert", path)) => root = Some(PathBuf::from(path.replace("%2F", "/").replace("%20", " "))),
                // What `require` does here: the certificate and its name are checked.
                Some(("sslmode", "verify-full")) => rest.push("sslmode=require"),
                _ => rest.push(pair),
            }
        }
        let plain = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
        let mut config: Config = plain.parse().map_err(|e: tokio_postgres::Error| {
            let why = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
            bad(format!("the database's URL cannot be read ({why})"))
        })?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(bad("the database's URL names no host".into()));
        }
        if config.get_user().is_none() {
            return Err(bad("the database's URL names no user".into()));
        }
        let place = place(&config);
        config.options(format!("{SESSION} {}", config.get_options().unwrap_or_default()).trim().to_owned());
        config.connect_timeout(*config.get_connect_timeout().unwrap_or(&CONNECT));
        config.tcp_user_timeout(Duration::from_secs(15)).keepalives_idle(Duration::from_secs(15));
        config.keepalives_interval(Duration::from_secs(5)).keepalives_retries(3);
        if config.get_application_name().is_none() {
            config.application_name("curfew");
        }
        let tls = tls(root.as_deref(), config.get_ssl_mode())?;
        Ok(Address { config, tls, place })
    }

    pub(super) fn pool(&self) -> Result<Pool> {
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(self.config.clone(), self.tls.clone(), recycling);
        let pool = Pool::builder(manager).max_size(POOL).runtime(Runtime::Tokio1);
        let pool = pool.wait_timeout(Some(CONNECT * 2)).create_timeout(Some(CONNECT * 2)).build();
        pool.map_err(|e| Trouble::said(format!("{}: no connections can be made: {e}", self.place), false).error())
    }

    /// A connection of its own.
    pub(super) fn connect(&self) -> BoxFuture<'_, std::result::Result<Raw, Trouble>> {
        Box::pin(async {
            let connecting = tokio::time::timeout(CONNECT * 2, self.config.connect(self.tls.clone()));
            match connecting.await {
                Ok(connected) => connected.map_err(|e| trouble::sql(&self.place, "connect", e)),
                Err(_) => Err(trouble::late(&self.place, "connect")),
            }
        })
    }
}

fn place(config: &Config) -> String {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(name)) => name.clone(),
        #[cfg(unix)]
        Some(Host::Unix(path)) => path.display().to_string(),
        None => config.get_hostaddrs().first().map(ToString::to_string).unwrap_or_default(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let database = config.get_dbname().or(config.get_user()).unwrap_or_default();
    format!("the PostgreSQL database \"{database}\" at {host}:{port}")
}

fn tls(root: Option<&Path>, mode: SslMode) -> Result<MakeRustlsConnect> {
    let failed = |why: String| StoreError::BadUrl(format!("TLS to the database cannot be set up: {why}"));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| failed(e.to_string()))?;
    let config = match root {
        Some(path) => {
            let named = |e: &dyn std::fmt::Display| failed(format!("sslrootcert {}: {e}", path.display()));
            let mut roots = RootCertStore::empty();
            for cert in CertificateDer::pem_file_iter(path).map_err(|e| named(&e))? {
                roots.add(cert.map_err(|e| named(&e))?).map_err(|e| named(&e))?;
            }
            if roots.is_empty() {
                return Err(named(&"it holds no certificate"));
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        }
        None if mode == SslMode::Require => {
            builder.with_platform_verifier().map_err(|e| failed(e.to_string()))?.with_no_client_auth()
        }
        // Perhaps never used: a system without roots trusts nobody, and says so when a server offers TLS.
        None => match builder.clone().with_platform_verifier() {
            Ok(verified) => verified.with_no_client_auth(),
            Err(_) => builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth(),
        },
    };
    Ok(MakeRustlsConnect::new(config))
}
