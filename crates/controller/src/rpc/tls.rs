//! The listener's TLS: a certificate that is read anew when its files change, and client certificates where they are demanded.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use curfew_core::config::Config;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::access::CertificateNames;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// A client that does not finish its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{key} {file} cannot be read")]
    File {
        key: &'static str,
        file: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{key} {file} does not hold what it should (PEM): {why}")]
    Pem { key: &'static str, file: String, why: String },
}

/// The files as they were read.
#[derive(Clone, PartialEq, Eq)]
struct Files {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

#[derive(Clone)]
pub struct Tls {
    config: Arc<Config>,
    now: Arc<RwLock<Arc<ServerConfig>>>,
}

impl Tls {
    /// `None` where the configuration wants none.
    pub fn new(config: &Arc<Config>, stop: CancellationToken) -> Result<Option<Self>, TlsError> {
        if config.tls_cert.is_empty() {
            return Ok(None);
        }
        let files = Files::read(config)?;
        let tls = Self { config: config.clone(), now: Arc::new(RwLock::new(files.server(config)?)) };
        tokio::spawn(tls.clone().follow(files, stop));
        Ok(Some(tls))
    }

    /// New connections have the new certificate. Files that do not fit together (one was replaced, the other not yet) change nothing.
    async fn follow(self, mut held: Files, stop: CancellationToken) {
        let mut refused = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let config = self.config.clone();
            // Small files; the disk may be slow all the same.
            let Ok(read) = tokio::task::spawn_blocking(move || Files::read(&config)).await else { return };
            let made = read.and_then(|files| match files == held {
                true => Ok(None),
                false => files.server(&self.config).map(|server| Some((files, server))),
            });
            match made {
                Ok(None) => refused = None,
                Ok(Some((files, server))) => {
                    (held, refused) = (files, None);
                    *self.now.write().unwrap_or_else(PoisonError::into_inner) = server;
                    tracing::info!(cert = self.config.tls_cert, "the RPC's certificate was read anew");
                }
                Err(e) => {
                    let why = crate::error::chain(&e);
                    if refused.as_ref() != Some(&why) {
                        tracing::error!(error = %why, "the RPC's certificate cannot be read anew; the old one stays");
                        refused = Some(why);
                    }
                }
            }
        }
    }

    /// The stream behind TLS, and the names in the client's certificate.
    pub async fn accept(&self, stream: TcpStream) -> std::io::Result<(TlsStream<TcpStream>, CertificateNames)> {
        let config = self.now.read().unwrap_or_else(PoisonError::into_inner).clone();
        let accepted = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await;
        let stream = accepted.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        let names = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(names).unwrap_or_default();
        Ok((stream, names))
    }
}

/// The DNS names and URIs (SPIFFE ids, say) of a certificate that was verified.
fn names(certificate: &CertificateDer<'_>) -> CertificateNames {
    let Ok(parsed) = webpki::EndEntityCert::try_from(certificate) else { return CertificateNames::default() };
    CertificateNames(parsed.valid_dns_names().chain(parsed.valid_uri_names()).map(str::to_owned).collect())
}

fn read(key: &'static str, file: &str) -> Result<Vec<u8>, TlsError> {
    std::fs::read(Path::new(file)).map_err(|source| TlsError::File { key, file: file.to_owned(), source })
}

impl Files {
    fn read(config: &Config) -> Result<Self, TlsError> {
        let client_ca = (!config.tls_client_ca.is_empty()).then(|| read("tls_client_ca", &config.tls_client_ca)).transpose()?;
        Ok(Self { cert: read("tls_cert", &config.tls_cert)?, key: read("tls_key", &config.tls_key)?, client_ca })
    }

    fn server(&self, config: &Config) -> Result<Arc<ServerConfig>, TlsError> {
        let bad = |key: &'static str, file: &str, why: &dyn std::fmt::Display| TlsError::Pem {
            key,
            file: file.to_owned(),
            why: why.to_string(),
        };
        let (cert, key, ca) = (&config.tls_cert, &config.tls_key, &config.tls_client_ca);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain = certificates(&self.cert).map_err(|why| bad("tls_cert", cert, &why))?;
        let secret = PrivateKeyDer::from_pem_slice(&self.key).map_err(|e| bad("tls_key", key, &e))?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| bad("tls_cert", cert, &e))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(pem).map_err(|why| bad("tls_client_ca", ca, &why))? {
                    roots.add(root).map_err(|e| bad("tls_client_ca", ca, &e))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|e| bad("tls_client_ca", ca, &e))?)
            }
        };
        let mut server = builder.with_single_cert(chain, secret).map_err(|e| bad("tls_cert", cert, &e))?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(server))
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    if all.is_empty() { Err("it holds no certificate".into()) } else { Ok(all) }
}
