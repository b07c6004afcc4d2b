//! How a request travels: over sockets with `reqwest`, or into a function in the same process.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::config::{Address, ConfigError, NomadConfig};
use crate::tls;

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

/// Sockets. One client for the configured address, one for agents at their own (only when that is another kind of socket).
pub(crate) struct Sockets {
    main: reqwest::Client,
    agents: reqwest::Client,
    base: Arc<str>,
}

impl Sockets {
    pub(crate) fn new(config: &NomadConfig, address: &Address) -> Result<Self, ConfigError> {
        let agents = builder(config)?.build().map_err(ConfigError::Client)?;
        let main = match &address.socket {
            None => agents.clone(),
            Some(path) => builder(config)?.unix_socket(path.clone()).build().map_err(ConfigError::Client)?,
        };
        Ok(Self { main, agents, base: address.base.as_str().into() })
    }
}

fn builder(config: &NomadConfig) -> Result<reqwest::ClientBuilder, ConfigError> {
    let builder = reqwest::Client::builder()
        // `http_proxy` is honoured even for loopback otherwise, and a proxy between a clock and its SIGKILL helps nobody.
        .no_proxy()
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
        let client = if request.uri().to_string().starts_with(&*self.base) { &self.main } else { &self.agents };
        let client = client.clone();
        Box::pin(async move {
            let request = reqwest::Request::try_from(request).map_err(|e| TransportError::Connect(e.into()))?;
            let response = client.execute(request).await.map_err(|e| {
                let never_sent = e.is_connect() || e.is_builder();
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
