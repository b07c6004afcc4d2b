//! Certificates made for one test: a cluster's, and a TLS server that shows one.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// The name on the agents' certificate, besides `localhost`: none of their addresses.
pub const SERVER: &str = "server.global.nomad";

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    fn sign(&self, names: &[&str]) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        (CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// A server with a certificate for this name that says "hello" to whatever is asked; with `mutual` it wants a certificate in turn.
    pub async fn serve(&self, name: &str, mutual: bool) -> Secure {
        let (certificate, key) = self.sign(&[name]);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
        let config = if mutual {
            let mut roots = RootCertStore::empty();
            roots.add(self.certificate.der().clone()).unwrap();
            config.with_client_cert_verifier(WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap())
        } else {
            config.with_no_client_auth()
        };
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = config.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = format!("https://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // A handshake that fails is what the test is about.
                    let Ok(mut tls) = acceptor.accept(socket).await else { return };
                    let _ = tls.read(&mut [0; 4096]).await;
                    let _ = tls.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello").await;
                    let _ = tls.shutdown().await;
                });
            }
        });
        Secure { addr, task }
    }
}

pub struct Secure {
    pub addr: String,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Secure {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a Nomad cluster has, as PEM files in a folder of their own: a CA, the role and region as the name on its certificates; and
/// another CA with a client's certificate.
pub struct Certificates {
    dir: TempDir,
}

impl Certificates {
    pub fn new() -> Self {
        let made = Self { dir: TempDir::with_prefix("curfew-test-tls-").unwrap() };
        let (own, other) = (Authority::new("ca"), Authority::new("other-ca"));
        made.write("ca", &own.pem());
        made.write("other-ca", &other.pem());
        made.leaf("server", &own, &[SERVER, "client.global.nomad", "localhost"]);
        made.leaf("client", &own, &["cli.global.nomad"]);
        made.leaf("other-client", &other, &["cli.global.nomad"]);
        made
    }

    fn leaf(&self, file: &str, of: &Authority, names: &[&str]) {
        let (certificate, key) = of.sign(names);
        self.write(file, &certificate.pem());
        self.write(&format!("{file}-key"), &key.serialize_pem());
    }

    fn write(&self, name: &str, pem: &str) {
        std::fs::write(self.path(name), pem).unwrap();
    }

    /// `ca`, `server`, `client`, `other-ca`, `other-client`; `…-key` for the key of one.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.pem"))
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        let path = self.path(name);
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}
