//! TLS as Nomad's agents use it: a private CA, client certificates, and one name (`server.global.nomad`) on every certificate.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::config::{ConfigError, NomadConfig};

pub(crate) fn apply(builder: reqwest::ClientBuilder, config: &NomadConfig) -> Result<reqwest::ClientBuilder, ConfigError> {
    let identity = match (&config.client_cert, &config.client_key) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some((cert.as_path(), key.as_path())),
        (Some(_), None) => return Err(ConfigError::Tls("NOMAD_CLIENT_CERT is set, NOMAD_CLIENT_KEY is not".into())),
        (None, Some(_)) => return Err(ConfigError::Tls("NOMAD_CLIENT_KEY is set, NOMAD_CLIENT_CERT is not".into())),
    };
    let Some(ca) = &config.ca_cert else {
        if let Some(name) = &config.tls_server_name {
            return Err(ConfigError::Tls(format!("NOMAD_TLS_SERVER_NAME \"{name}\" needs NOMAD_CACERT as well")));
        }
        let Some((cert, key)) = identity else { return Ok(builder) };
        let mut pem = read("client certificate", cert)?;
        pem.extend(read("client key", key)?);
        let identity = reqwest::Identity::from_pem(&pem).map_err(|e| pem_error("client certificate", cert, &e))?;
        return Ok(builder.identity(identity));
    };
    Ok(builder.tls_backend_preconfigured(client_config(ca, identity, config.tls_server_name.as_deref())?))
}

fn client_config(ca: &Path, identity: Option<(&Path, &Path)>, name: Option<&str>) -> Result<rustls::ClientConfig, ConfigError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for cert in certificates("CA certificate", ca)? {
        roots.add(cert).map_err(|e| pem_error("CA certificate", ca, &e))?;
    }
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|e| pem_error("CA certificate", ca, &e))?;
    let expected = match name {
        None => None,
        Some(n) => Some(
            ServerName::try_from(n.to_owned()).map_err(|e| ConfigError::Tls(format!("NOMAD_TLS_SERVER_NAME \"{n}\": {e}")))?,
        ),
    };
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| ConfigError::Tls(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Named { inner, expected }));
    match identity {
        None => Ok(builder.with_no_client_auth()),
        Some((cert, key)) => {
            let pem = read("client key", key)?;
            let secret = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| pem_error("client key", key, &e))?;
            let chain = certificates("client certificate", cert)?;
            builder.with_client_auth_cert(chain, secret).map_err(|e| pem_error("client certificate", cert, &e))
        }
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|source| ConfigError::File { what, path: path.into(), source })
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let pem = read(what, path)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|e| pem_error(what, path, &e))?;
    if found.is_empty() {
        return Err(pem_error(what, path, &"it holds no certificate"));
    }
    Ok(found)
}

fn pem_error(what: &'static str, path: &Path, why: &dyn std::fmt::Display) -> ConfigError {
    ConfigError::Pem { what, path: path.into(), why: why.to_string() }
}

/// Checks a certificate in full, but against the configured name instead of the address's host: Nomad's certificates carry the
/// role and region, and the agents of a cluster are reached by many addresses.
#[derive(Debug)]
struct Named {
    inner: Arc<WebPkiServerVerifier>,
    expected: Option<ServerName<'static>>,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let name = self.expected.as_ref().unwrap_or(server_name);
        self.inner.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
