//! How a request travels: over sockets with `reqwest`, or into a function in the same process.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::config::{Address, ConfigError, NomadConfig};
use crate::{error, tls};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// An answer's body as it arrives.
pub type Body = BoxStream<'static, Result<Bytes, BoxError>>;

/// Why no answer came.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No connection, so nothing was sent.
    #[error("no connection")]
    Connect(#[source] BoxError),
    /// The connection broke after the request may have been sent.
    #[error("the connection broke")]
    Broken(#[source] BoxError),
}

/// Carries one request. It sets no deadline: [`crate::Nomad`] does, by tokio's clock, so that paused time works.
pub trait Transport: Send + Sync + 'static {
    fn send(&self, request: http::Request<Bytes>) -> BoxFuture<'static, Result<http::Response<Body>, TransportError>>;
}

/// Any `Fn(Request) -> Future<Response>`: a cluster in the same process needs no sockets.
impl<F, Fut> Transport for F
where
    F: Fn(http::Request<Bytes>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<http::Response<Body>, TransportError>> + Send + 'static,
{
    fn send(&self, request: http::Request<Bytes>) -> BoxFuture<'static, Result<http::Response<Body>, TransportError>> {
        Box::pin(self(request))
    }
}

/// Sockets: the configured unix socket, or TCP, past any proxy of the environment when the host is this machine.
pub(crate) struct Sockets {
    socket: Option<reqwest::Client>,
    direct: reqwest::Client,
    proxied: reqwest::Client,
    base: Arc<str>,
}

impl Sockets {
    pub(crate) fn new(config: &NomadConfig, addresses: &[Address]) -> Result<Self, ConfigError> {
        // A socket stands alone.
        let alone = match addresses {
            [one] => one.socket.as_ref().map(|path| (path, &one.base)),
            _ => None,
        };
        // Where there is another one to ask, an agent that takes no connection is not waited for.
        let several = addresses.len() > 1;
        let builder = |config: &NomadConfig| {
            let builder = builder(config)?;
            Ok::<_, ConfigError>(if several { builder.connect_timeout(ELSEWHERE) } else { builder })
        };
        let build = |b: reqwest::ClientBuilder| b.build().map_err(ConfigError::Client);
        let socket = match alone {
            None => None,
            Some((path, _)) => Some(build(builder(config)?.no_proxy().unix_socket(path.clone()))?),
        };
        let direct = build(builder(config)?.no_proxy())?;
        let proxied = build(builder(config)?)?;
        Ok(Self { socket, direct, proxied, base: alone.map_or("", |(_, base)| base.as_str()).into() })
    }

    fn client(&self, uri: &http::Uri) -> &reqwest::Client {
        match &self.socket {
            Some(socket) if uri.to_string().starts_with(&*self.base) => socket,
            // `http_proxy` is honoured even for loopback otherwise.
            _ if uri.host().is_some_and(is_loopback) => &self.direct,
            _ => &self.proxied,
        }
    }
}

const ELSEWHERE: Duration = Duration::from_secs(3);

pub(crate) fn is_loopback(host: &str) -> bool {
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.is_loopback())
}

fn builder(config: &NomadConfig) -> Result<reqwest::ClientBuilder, ConfigError> {
    let builder = reqwest::Client::builder()
        .http1_only()
        .tcp_nodelay(true)
        // A redirect would carry the token to wherever it points.
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("curfew/", env!("CARGO_PKG_VERSION")))
        .pool_max_idle_per_host(config.max_idle);
    tls::apply(builder, config)
}

impl Transport for Sockets {
    fn send(&self, request: http::Request<Bytes>) -> BoxFuture<'static, Result<http::Response<Body>, TransportError>> {
        let client = self.client(request.uri()).clone();
        Box::pin(async move {
            let request = reqwest::Request::try_from(request).map_err(|e| TransportError::Connect(e.into()))?;
            let response = client.execute(request).await.map_err(|e| {
                let never_sent = e.is_connect() || e.is_builder() || error::never_taken(&e);
                // Without the URL: the error that wraps this one says what was asked.
                let e = e.without_url();
                if never_sent { TransportError::Connect(e.into()) } else { TransportError::Broken(e.into()) }
            })?;
            let mut answer = http::Response::builder().status(response.status());
            if let Some(headers) = answer.headers_mut() {
                *headers = response.headers().clone();
            }
            let body: Body = response.bytes_stream().map(|chunk| chunk.map_err(|e| e.without_url().into())).boxed();
            answer.body(body).map_err(|e| TransportError::Broken(e.into()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_asked_without_a_proxy() {
        for (host, here) in [
            ("127.0.0.1", true),
            ("127.8.0.1", true),
            ("[::1]", true),
            ("LocalHost", true),
            ("10.0.0.1", false),
            ("nomad.example", false),
        ] {
            assert_eq!(is_loopback(host), here, "{host}");
        }
    }
}
