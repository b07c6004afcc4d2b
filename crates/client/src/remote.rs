//! Which controllers, and how they are reached: addresses, credentials, TLS.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::Method;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::{ExposeSecret, SecretString};

use crate::Error;

/// What a [`crate::Client`] needs to know.
#[derive(Clone, Default)]
pub struct Options {
    /// As in `CURFEW_ADDR`: one address, or several that share a database, separated by commas. When the one that is used cannot
    /// be reached or stops, the next one is asked.
    pub addr: String,
    /// Sent with every request.
    pub token: Option<SecretString>,
    /// Read for every request instead: a workload identity that Nomad renews.
    pub token_file: Option<PathBuf>,
    /// The CA of the controllers' certificates, in PEM; the system's when absent.
    pub ca_cert: Option<PathBuf>,
    /// A certificate of the client's own with its key, in PEM.
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
}

/// Without the token.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { addr, token, token_file, ca_cert, client_cert, .. } = self;
        f.debug_struct("Options")
            .field("addr", addr)
            .field("token", &token.as_ref().map(|_| "(set)"))
            .field("token_file", token_file)
            .field("ca_cert", ca_cert)
            .field("client_cert", client_cert)
            .finish_non_exhaustive()
    }
}

#[derive(Clone)]
pub(crate) struct Remote {
    http: reqwest::Client,
    addrs: Arc<[String]>,
    /// Which of them answered last.
    current: Arc<AtomicUsize>,
    token: Option<SecretString>,
    token_file: Option<PathBuf>,
}

impl Remote {
    pub(crate) fn new(options: Options) -> Result<Self, Error> {
        let addrs = options.addr.split(',').map(|a| address(a.trim())).collect::<Result<Vec<_>, _>>()?;
        // Answers twice: another part of the process may have installed the same one before.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let http = reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).no_proxy();
        let http = match tls(&options)? {
            Some(config) => http.tls_backend_preconfigured(config),
            None => http,
        };
        let http = http.build().map_err(|e| Error::BadAddress { addr: options.addr.clone(), why: e.to_string() })?;
        let (token, token_file) = (options.token, options.token_file);
        Ok(Self { http, addrs: addrs.into(), current: Arc::default(), token, token_file })
    }

    /// The address that is asked now.
    pub(crate) fn addr(&self) -> &str {
        let n = self.current.load(Ordering::Relaxed);
        self.addrs.get(n % self.addrs.len().max(1)).map_or("", String::as_str)
    }

    pub(crate) fn count(&self) -> usize {
        self.addrs.len()
    }

    /// The next one from now on, unless somebody else has gone on from `from` already.
    pub(crate) fn leave(&self, from: &str) {
        let n = self.current.load(Ordering::Relaxed);
        if self.addr() == from {
            // Somebody else was faster: nothing to do.
            let _ = self.current.compare_exchange(n, (n + 1) % self.addrs.len().max(1), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    pub(crate) fn request(&self, addr: &str, method: Method, path: &str) -> Result<reqwest::RequestBuilder, Error> {
        let request = self.http.request(method, format!("{addr}{path}"));
        let token = match &self.token_file {
            None => self.token.clone(),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.clone(), source })?;
                Some(SecretString::from(text.trim()))
            }
        };
        let Some(token) = token else { return Ok(request) };
        let value = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()));
        let mut value = value.map_err(|_| Error::BadToken)?;
        value.set_sensitive(true);
        Ok(request.header(AUTHORIZATION, value))
    }
}

fn address(addr: &str) -> Result<String, Error> {
    let bad = |why: String| Error::BadAddress { addr: addr.to_owned(), why };
    let full = if addr.contains("://") { addr.to_owned() } else { format!("http://{addr}") };
    let url = reqwest::Url::parse(&full).map_err(|e| bad(e.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err(bad("it needs a scheme and a host".into()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        let addr = format!("{}://…", url.scheme());
        return Err(Error::BadAddress { addr, why: "a user name or password in it is not supported, use CURFEW_TOKEN".into() });
    }
    Ok(full.trim_end_matches('/').to_owned())
}

/// `None`: the system's roots and no certificate.
fn tls(options: &Options) -> Result<Option<rustls::ClientConfig>, Error> {
    let identity = match (&options.client_cert, &options.client_key) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some((cert, key)),
        _ => return Err(Error::Tls("a client certificate needs its key, and the key its certificate".into())),
    };
    if options.ca_cert.is_none() && identity.is_none() {
        return Ok(None);
    }
    let read = |path: &PathBuf| std::fs::read(path).map_err(|source| Error::File { path: path.clone(), source });
    let bad = |path: &PathBuf, why: &dyn fmt::Display| Error::Tls(format!("{}: {why}", path.display()));
    let chain = |path: &PathBuf| -> Result<Vec<CertificateDer<'static>>, Error> {
        CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<_, _>>().map_err(|e| bad(path, &e))
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Tls(e.to_string()))?;
    let builder = match &options.ca_cert {
        Some(path) => {
            let mut roots = rustls::RootCertStore::empty();
            for cert in chain(path)? {
                roots.add(cert).map_err(|e| bad(path, &e))?;
            }
            builder.with_root_certificates(roots)
        }
        None => {
            let verifier = rustls_platform_verifier::Verifier::new(provider).map_err(|e| Error::Tls(e.to_string()))?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|e| bad(key, &e))?;
            builder.with_client_auth_cert(chain(cert)?, secret).map_err(|e| bad(cert, &e))?
        }
    };
    Ok(Some(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_left_once_however_many_find_it_gone() {
        let remote = Remote::new(Options { addr: "127.0.0.1:1, https://b:2/,c:3".into(), ..Options::default() }).unwrap();
        assert_eq!((remote.addr(), remote.count()), ("http://127.0.0.1:1", 3));
        remote.leave("http://127.0.0.1:1");
        remote.leave("http://127.0.0.1:1");
        assert_eq!(remote.addr(), "https://b:2");
        remote.leave("https://b:2");
        remote.leave("http://c:3");
        assert_eq!(remote.addr(), "http://127.0.0.1:1");
    }

    #[test]
    fn no_secret_is_shown() {
        let options = Options { addr: "a:1".into(), token: Some("sesame".into()), ..Options::default() };
        assert!(!format!("{options:?}").contains("sesame"));
        let e = Remote::new(Options { addr: "http://me:sesame@a:1".into(), ..Options::default() }).err().unwrap();
        assert!(!format!("{e} {e:?}").contains("sesame"), "{e}");
    }
}
