//! The one way a call is made: escaped path, named query, token, permit, deadline, bounded body, class of failure.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::Semaphore;
use tracing::Instrument;
use tracing::field::Empty;

use curfew_core::Namespace;

use crate::calls::Calls;
use crate::config::{Address, ConfigError, NomadConfig};
use crate::error::{self, Asked, Error};
use crate::route::{Counters, Route, escape};
use crate::token::Token;
use crate::transport::{Body, Sockets, Transport, TransportError, is_loopback};

/// A Nomad. Cheap to clone; every clone shares connections, counters and the bound on calls in flight.
#[derive(Clone)]
pub struct Nomad(Arc<Inner>);

struct Inner {
    config: NomadConfig,
    /// At least one; `current` counts up when one is left.
    addresses: Vec<Address>,
    current: AtomicUsize,
    /// All of them, as people should see them.
    shown: String,
    token: Token,
    transport: Box<dyn Transport>,
    counters: Counters,
    calls: Calls,
    permits: Semaphore,
}

impl fmt::Debug for Nomad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Nomad").field(&self.0.config).finish()
    }
}

/// A request before it is sent. Namespace and region are set by name, so that neither can land in the other's place.
pub(crate) struct Call {
    route: Route,
    path: Result<String, String>,
    query: Vec<(&'static str, String)>,
    body: Bytes,
    regional: bool,
    address: Option<String>,
    timeout: Option<Duration>,
}

impl Call {
    pub(crate) fn new(route: Route, segments: &[&str]) -> Self {
        let path = route.path(segments);
        Self { route, path, query: Vec::new(), body: Bytes::new(), regional: true, address: None, timeout: None }
    }
    pub(crate) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }
    pub(crate) fn namespace(self, namespace: &Namespace) -> Self {
        self.query("namespace", namespace.as_str())
    }
    pub(crate) fn json(mut self, body: &Value) -> Self {
        self.body = body.to_string().into();
        self
    }
    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
    /// Asks the agent at this base address about itself, without a region: it must not be forwarded.
    pub(crate) fn at_agent(mut self, base: Option<String>) -> Self {
        self.address = base;
        self.regional = false;
        self
    }
}

/// An answer with a status of success.
pub(crate) struct Answer {
    pub(crate) asked: Box<Asked>,
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|e| self.unlike_nomad(&e.to_string()))
    }
    pub(crate) fn unlike_nomad(&self, why: &str) -> Error {
        let sentence = format!("{why}. Check that the address is a Nomad agent's");
        Error::NotNomad { asked: self.asked.clone(), status: self.status, sentence }
    }
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
    /// The raft index the answer is of; 0 when the answer names none.
    pub(crate) fn index(&self) -> u64 {
        self.header("X-Nomad-Index").and_then(|v| v.parse().ok()).unwrap_or(0)
    }
}

/// `Some` only for an answer; `None` only for this 404 in Nomad's own words. Any other 404 stays an error: a wrong path or a
/// proxy must not read as "gone" (lesson 1).
pub(crate) fn found<T>(result: Result<T, Error>, gone: &[&str]) -> Result<Option<T>, Error> {
    match result {
        Ok(answer) => Ok(Some(answer)),
        Err(Error::NotFound { body, .. }) if gone.contains(&body.as_str()) => Ok(None),
        Err(e) => Err(e),
    }
}

impl Nomad {
    /// Over sockets. Reads the certificate files; connects to nothing.
    pub fn new(config: NomadConfig) -> Result<Self, ConfigError> {
        let addresses = config.addresses()?;
        let sockets = Sockets::new(&config, &addresses)?;
        Self::assemble(config, addresses, Box::new(sockets))
    }

    /// Over any transport, such as a cluster in the same process. `config.addr` still names the host of each request.
    pub fn with_transport(config: NomadConfig, transport: impl Transport) -> Result<Self, ConfigError> {
        let addresses = config.addresses()?;
        Self::assemble(config, addresses, Box::new(transport))
    }

    fn assemble(config: NomadConfig, addresses: Vec<Address>, transport: Box<dyn Transport>) -> Result<Self, ConfigError> {
        let token = Token::new(&config)?;
        let shown = addresses.iter().map(|a| a.shown.as_str()).collect::<Vec<_>>().join(",");
        let permits = Semaphore::new(config.max_in_flight.clamp(1, Semaphore::MAX_PERMITS));
        Ok(Self(Arc::new(Inner {
            config,
            addresses,
            current: AtomicUsize::new(0),
            shown,
            token,
            transport,
            counters: Counters::default(),
            calls: Calls::default(),
            permits,
        })))
    }

    pub fn config(&self) -> &NomadConfig {
        &self.0.config
    }

    /// The address as people should see it.
    pub fn address(&self) -> &str {
        &self.0.shown
    }

    /// Which address is asked now. There is at least one.
    fn current(&self) -> (usize, &Address) {
        let n = self.0.current.load(Ordering::Relaxed);
        (n, &self.0.addresses[n % self.0.addresses.len()])
    }

    /// The next one from now on, unless somebody has left this one already.
    fn leave(&self, n: usize) {
        if self.0.addresses.len() > 1
            && self.0.current.compare_exchange(n, n.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            let to = &self.current().1.shown;
            tracing::warn!(to, "another address of NOMAD_ADDR is asked from now on");
        }
    }

    /// Whether what is sent stays on this machine: a unix socket, or loopback.
    pub fn is_local(&self) -> bool {
        let here = |address: &Address| {
            let host = address.base.parse::<http::Uri>().ok().and_then(|u| u.host().map(is_loopback));
            address.socket.is_some() || host == Some(true)
        };
        self.0.addresses.iter().all(here)
    }

    pub fn is_https(&self) -> bool {
        self.scheme() == "https"
    }

    pub(crate) fn scheme(&self) -> &'static str {
        self.current().1.scheme
    }

    pub(crate) fn calls(&self) -> &Calls {
        &self.0.calls
    }

    /// How often each route was asked since the start, as `METHOD template`.
    pub fn requests(&self) -> Vec<(&'static str, u64)> {
        self.0.counters.snapshot()
    }

    /// One call, from the wait for a permit to the last byte, within its deadline.
    pub(crate) async fn send(&self, call: Call) -> Result<Answer, Error> {
        let asked = self.asked(&call);
        // What nobody holds back is sent.
        self.send_if(call, &|| true).await?.ok_or_else(|| Error::Unaskable { asked, why: "it was held back".into() })
    }

    /// The same, unless `may` says no when its turn has come: then nothing is sent, and there is no answer.
    pub(crate) async fn send_if(&self, call: Call, may: &(dyn Fn() -> bool + Sync)) -> Result<Option<Answer>, Error> {
        let asked = self.asked(&call);
        let after = call.timeout.unwrap_or(self.0.config.timeout);
        let deadline = tokio::time::Instant::now() + after;
        let timeout = |sent| Error::Timeout { asked: asked.clone(), after, sent };
        let Ok(permit) = tokio::time::timeout_at(deadline, self.0.permits.acquire()).await else {
            self.0.calls.never_sent(call.route, "no_turn");
            return Err(timeout(false));
        };
        if !may() {
            self.0.calls.never_sent(call.route, "held_back");
            return Ok(None);
        }
        let timed = self.0.calls.begin(call.route);
        let (before, elsewhere) = (self.current().0, call.address.is_some());
        let span = tracing::debug_span!("nomad", route = call.route.label(), outcome = Empty, otel.kind = "client");
        let exchange = self.exchange(&asked, call).instrument(span.clone());
        let answer = tokio::time::timeout_at(deadline, exchange).await.unwrap_or_else(|_| Err(timeout(true)));
        span.record("outcome", answer.as_ref().err().map_or("ok", Error::class));
        drop(permit);
        timed.end(&answer);
        if let Err(e) = &answer {
            if !elsewhere && matches!(e, Error::Timeout { .. } | Error::NoLeader { .. }) {
                self.leave(before);
            }
            tracing::debug!(%asked, error = %e, "Nomad call failed");
        }
        answer.map(Some)
    }

    async fn exchange(&self, asked: &Asked, call: Call) -> Result<Answer, Error> {
        let capability = call.route.capability();
        let limit = self.0.config.max_body;
        let response = self.open(asked, call).await?;
        let (parts, body) = response.into_parts();
        let body = collect(asked, body, limit).await?;
        let status = parts.status.as_u16();
        if !parts.status.is_success() {
            let kind = parts.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
            return Err(error::classify(asked.clone().into(), status, kind, &body, &self.token_words(), capability));
        }
        Ok(Answer { asked: asked.clone().into(), status, headers: parts.headers, body })
    }

    /// Sends and returns as soon as the headers are there; the caller sets the deadlines. Takes no permit.
    pub(crate) async fn open(&self, asked: &Asked, call: Call) -> Result<http::Response<Body>, Error> {
        let mut left = self.0.addresses.len();
        loop {
            let (n, address) = self.current();
            let request = self.request(&call, address).map_err(|why| Error::Unaskable { asked: asked.clone().into(), why })?;
            self.0.counters.count(call.route);
            let error = match self.0.transport.send(request).await {
                Ok(response) => return Ok(response),
                Err(e) => e,
            };
            if call.address.is_none() {
                self.leave(n);
            }
            left -= 1;
            match error {
                TransportError::Broken(source) => return Err(error::broken(asked.clone().into(), source)),
                // Nothing was sent: it can be asked elsewhere. Not a signal: the read before it has aged meanwhile.
                TransportError::Connect(_) if left > 0 && call.address.is_none() && call.route != Route::Signal => {}
                TransportError::Connect(source) => return Err(error::unreachable(asked.clone().into(), source)),
            }
        }
    }

    /// The error of an answer that is not a success, for callers of [`Nomad::open`].
    pub(crate) async fn refusal(&self, asked: &Asked, route: Route, response: http::Response<Body>) -> Error {
        let (parts, body) = response.into_parts();
        let kind = parts.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        match collect(asked, body, self.0.config.max_body).await {
            Err(e) => e,
            Ok(b) => {
                error::classify(asked.clone().into(), parts.status.as_u16(), &kind, &b, &self.token_words(), route.capability())
            }
        }
    }

    pub(crate) fn asked(&self, call: &Call) -> Box<Asked> {
        let path = call.path.clone().unwrap_or_else(|_| call.route.template().to_owned());
        let address = call.address.clone().unwrap_or_else(|| self.0.shown.clone());
        Box::new(Asked { method: call.route.method(), path, address, changes: call.route.changes() })
    }

    fn request(&self, call: &Call, address: &Address) -> Result<http::Request<Bytes>, String> {
        let mut uri = call.address.clone().unwrap_or_else(|| address.base.clone());
        uri.push_str(call.path.as_deref().map_err(Clone::clone)?);
        let region = self.0.config.region.clone().filter(|_| call.regional).map(|r| ("region", r));
        let mut separator = '?';
        for (name, value) in call.query.iter().chain(&region) {
            uri.push(separator);
            uri.push_str(name);
            uri.push('=');
            uri.push_str(&escape(value));
            separator = '&';
        }
        let mut request = http::Request::builder().method(call.route.method()).uri(uri).header(ACCEPT, "application/json");
        if !call.body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(token) = self.0.token.value() {
            request = request.header("X-Nomad-Token", token);
        }
        request.body(call.body.clone()).map_err(|e| format!("this cannot be asked of Nomad: {e}"))
    }

    /// Nomad answered, and left out what the token may not see.
    pub(crate) fn hidden(&self, asked: Box<Asked>, route: Route, what: &str) -> Error {
        Error::PermissionDenied { asked, body: what.into(), token: self.token_words(), capability: route.capability() }
    }

    fn token_words(&self) -> String {
        let source = &self.0.config.token_source;
        match self.0.token.value() {
            Some(_) => format!("The token of {source} was sent"),
            None => format!("No token was sent: set {source}"),
        }
    }
}

async fn collect(asked: &Asked, mut body: Body, limit: usize) -> Result<Bytes, Error> {
    let mut all = BytesMut::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|e| error::broken(asked.clone().into(), e))?;
        if all.len() + chunk.len() > limit {
            return Err(Error::TooLarge { asked: asked.clone().into(), limit });
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}
