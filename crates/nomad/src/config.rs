//! Where Nomad is and how to reach it, as every Nomad user says it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use curfew_core::Namespace;

/// What is wrong with a [`NomadConfig`], with the way out.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("NOMAD_ADDR \"{addr}\" is not an address: {why}; write it as in http://127.0.0.1:4646, https://… or unix:///path")]
    Address { addr: String, why: String },
    #[error("the {what} {} cannot be read", path.display())]
    File { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("the {what} {} does not hold what it should (PEM): {why}", path.display())]
    Pem { what: &'static str, path: PathBuf, why: String },
    #[error("{0}")]
    Tls(String),
    #[error("the token holds a character that cannot be sent in a header")]
    Token,
    #[error("the token file {} cannot be read", path.display())]
    TokenFile { path: PathBuf, source: std::io::Error },
    #[error("NOMAD_ADDR has several addresses, and {0} is among them; a unix socket stands alone, and http and https do not mix")]
    Mixed(String),
    #[error("the HTTP client could not be set up")]
    Client(#[source] reqwest::Error),
}

#[derive(Clone)]
pub struct NomadConfig {
    /// `http://…`, `https://…` or `unix:///path`; several of one cluster's agents with commas between them. When the one that is used
    /// cannot be reached, does not answer or has no leader, the next one is asked.
    pub addr: String,
    pub token: Option<String>,
    /// Read anew every few seconds, instead of `token`.
    pub token_file: Option<PathBuf>,
    /// Where the token came from, for the sentence that says that it was refused.
    pub token_source: String,
    /// The namespace of a job that names none.
    pub namespace: Namespace,
    /// Sent with every call when set; Nomad forwards to that region.
    pub region: Option<String>,
    pub ca_cert: Option<PathBuf>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    /// The name that the agents' certificates carry (`server.global.nomad`) when it is not the host of their address.
    pub tls_server_name: Option<String>,
    /// Deadline of one call, from the wait for a connection to the last byte of the answer.
    pub timeout: Duration,
    /// Deadline of a signal call: shorter, because a clock waits behind it and repeating it is safe.
    pub signal_timeout: Duration,
    /// An answer larger than this is an error, not memory.
    pub max_body: usize,
    /// Calls in flight at once, event streams not counted. Agents limit connections per client address (100 by default).
    pub max_in_flight: usize,
    /// Idle connections kept.
    pub max_idle: usize,
    /// Allocations asked for per page of a list.
    pub per_page: u32,
    /// A good stream answers with a byte at once; with a bad token it never does (design fact 12).
    pub stream_first_byte: Duration,
    /// Nomad sends a heartbeat every 30 s when nothing happens.
    pub stream_idle: Duration,
    /// The longest line of an event stream: one frame of events.
    pub stream_max_line: usize,
}

impl Default for NomadConfig {
    fn default() -> Self {
        Self {
            addr: "http://127.0.0.1:4646".into(),
            token: None,
            token_file: None,
            token_source: "NOMAD_TOKEN".into(),
            namespace: Namespace::default(),
            region: None,
            ca_cert: None,
            client_cert: None,
            client_key: None,
            tls_server_name: None,
            timeout: Duration::from_secs(30),
            signal_timeout: Duration::from_secs(10),
            max_body: 64 << 20,
            max_in_flight: 64,
            max_idle: 64,
            per_page: 1000,
            stream_first_byte: Duration::from_secs(5),
            stream_idle: Duration::from_secs(45),
            stream_max_line: 64 << 20,
        }
    }
}

impl NomadConfig {
    /// The variables that the `nomad` command reads, with its defaults. An empty variable counts as absent, as there.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let get = |name: &str| get(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let path = |name: &str| get(name).map(PathBuf::from);
        // A token that is set is meant, whatever file there is.
        let token_file = path("NOMAD_TOKEN_FILE").filter(|_| get("NOMAD_TOKEN").is_none());
        let token_source = token_file.as_ref().map_or("NOMAD_TOKEN".to_owned(), |f| format!("NOMAD_TOKEN_FILE {}", f.display()));
        let config = Self {
            token: get("NOMAD_TOKEN"),
            token_file,
            token_source,
            region: get("NOMAD_REGION"),
            ca_cert: path("NOMAD_CACERT"),
            client_cert: path("NOMAD_CLIENT_CERT"),
            client_key: path("NOMAD_CLIENT_KEY"),
            tls_server_name: get("NOMAD_TLS_SERVER_NAME"),
            ..Self::default()
        };
        let config = match get("NOMAD_ADDR") {
            Some(addr) => Self { addr, ..config },
            None => config,
        };
        let config = match get("NOMAD_NAMESPACE") {
            // The command takes `*` for "all"; a job cannot be registered there.
            Some(ns) if ns != "*" => Self { namespace: ns.into(), ..config },
            _ => config,
        };
        config.addresses()?;
        Ok(config)
    }

    /// At least one.
    pub(crate) fn addresses(&self) -> Result<Vec<Address>, ConfigError> {
        let all = self.addr.split(',').map(|a| Self { addr: a.trim().to_owned(), ..self.clone() }.address());
        let all = all.collect::<Result<Vec<_>, _>>()?;
        match all.iter().find(|a| all.len() > 1 && (a.socket.is_some() || a.scheme != all[0].scheme)) {
            Some(odd) => Err(ConfigError::Mixed(odd.shown.clone())),
            None => Ok(all),
        }
    }

    fn address(&self) -> Result<Address, ConfigError> {
        let bad = |why: &str| ConfigError::Address { addr: without_userinfo(&self.addr), why: why.into() };
        if let Some(path) = self.addr.strip_prefix("unix://") {
            if !path.starts_with('/') {
                return Err(bad("a unix socket needs an absolute path"));
            }
            return Ok(Address {
                base: "http://localhost".into(),
                socket: Some(path.into()),
                shown: self.addr.clone(),
                scheme: "http",
            });
        }
        let scheme = match self.addr.split_once("://") {
            Some(("http", _)) => "http",
            Some(("https", _)) => "https",
            Some((other, _)) => return Err(bad(&format!("the scheme \"{other}\" is not one of http, https, unix"))),
            None => return Err(bad("it has no scheme")),
        };
        let uri: http::Uri = self.addr.parse().map_err(|e: http::uri::InvalidUri| bad(&e.to_string()))?;
        let authority = uri.authority().filter(|a| !a.host().is_empty()).ok_or_else(|| bad("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("a user name or password in the address is not supported, use NOMAD_TOKEN"));
        }
        if uri.query().is_some() {
            return Err(bad("it holds a query"));
        }
        // A path is kept: a proxy may serve Nomad below one.
        let base = format!("{scheme}://{authority}{}", uri.path().trim_end_matches('/'));
        Ok(Address { shown: base.clone(), base, socket: None, scheme })
    }
}

/// [`NomadConfig::addr`], taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub base: String,
    pub socket: Option<PathBuf>,
    /// For people.
    pub shown: String,
    pub scheme: &'static str,
}

fn without_userinfo(addr: &str) -> String {
    match (addr.find("://"), addr.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}…@{}", &addr[..scheme + 3], &addr[at + 1..]),
        _ => addr.to_owned(),
    }
}

/// Without the token.
impl fmt::Debug for NomadConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NomadConfig")
            .field("addr", &without_userinfo(&self.addr))
            .field("token", &self.token.as_ref().map(|_| "(set)"))
            .field("token_file", &self.token_file)
            .field("namespace", &self.namespace)
            .field("region", &self.region)
            .field("ca_cert", &self.ca_cert)
            .field("tls_server_name", &self.tls_server_name)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_of_every_nomad_user() {
        let env = |name: &str| {
            let value = match name {
                "NOMAD_ADDR" => "https://nomad.example:4646/",
                "NOMAD_TOKEN" => "s3cret",
                "NOMAD_NAMESPACE" => "games",
                "NOMAD_REGION" => "eu",
                "NOMAD_CACERT" => "ca.pem",
                "NOMAD_TLS_SERVER_NAME" => "",
                _ => return None,
            };
            Some(value.to_owned())
        };
        let c = NomadConfig::from_env(env).unwrap();
        assert_eq!(c.address().unwrap().base, "https://nomad.example:4646");
        assert_eq!((c.namespace.as_str(), c.region.as_deref(), c.tls_server_name.as_deref()), ("games", Some("eu"), None));
        assert!(!format!("{c:?}").contains("s3cret"));
        assert_eq!(NomadConfig::from_env(|_| None).unwrap().addr, "http://127.0.0.1:4646");
    }

    #[test]
    fn an_address_that_is_none_is_refused_with_the_way_out() {
        for (addr, why) in [
            ("127.0.0.1:4646", "no scheme"),
            ("ftp://x", "ftp"),
            ("http://", "is not an address"),
            ("http://me:pw@host:1", "not supported"),
            ("unix://relative", "absolute"),
        ] {
            let e = NomadConfig { addr: addr.into(), ..NomadConfig::default() }.address().unwrap_err().to_string();
            assert!(e.contains(why) && !e.contains("pw"), "{addr}: {e}");
        }
    }

    #[test]
    fn several_addresses_are_of_one_scheme_and_a_socket_stands_alone() {
        let of = |addr: &str| NomadConfig { addr: addr.into(), ..NomadConfig::default() }.addresses();
        let bases: Vec<String> = of("https://a:4646, https://b:4646/").unwrap().into_iter().map(|a| a.base).collect();
        assert_eq!(bases, ["https://a:4646", "https://b:4646"]);
        for (addr, why) in
            [("http://a:1,https://b:1", "https://b:1"), ("http://a:1,unix:///s", "unix:///s"), ("http://a:1,", "no scheme")]
        {
            let e = of(addr).unwrap_err().to_string();
            assert!(e.contains(why), "{addr}: {e}");
        }
    }

    #[test]
    fn a_token_that_is_set_comes_before_one_in_a_file() {
        let env = |token: Option<&str>| {
            let token = token.map(str::to_owned);
            let get = |name: &str| match name {
                "NOMAD_TOKEN" => token.clone(),
                "NOMAD_TOKEN_FILE" => Some("/run/token".into()),
                _ => None,
            };
            NomadConfig::from_env(get).unwrap()
        };
        assert_eq!(env(Some("t")).token_file, None);
        let filed = env(None);
        assert_eq!(
            (filed.token_file.as_deref(), &*filed.token_source),
            (Some("/run/token".as_ref()), "NOMAD_TOKEN_FILE /run/token")
        );
    }
}
