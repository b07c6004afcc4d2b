//! Takes connections until it is told to end, and then ends every one of them: those that rest at once, those with a request
//! under way when it is answered, whatever is left when their time is over.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::Instrument;

use super::Front;
use super::access::CertificateNames;
use super::limits::{Full, Limits, Why};
use super::tls::Tls;

/// A client that does not finish its request's head.
const HEAD: Duration = Duration::from_secs(30);

pub struct Server {
    task: JoinHandle<()>,
    ends: Ends,
}

#[derive(Clone, Default)]
struct Ends {
    /// No new connection, no further request on those there are.
    close: CancellationToken,
    cut: CancellationToken,
}

impl Server {
    pub(crate) fn start(listener: TcpListener, front: Front, tls: Option<Tls>, limits: Limits) -> Self {
        let ends = Ends::default();
        let served = Served { app: front.router(), tls, limits, ends: ends.clone() };
        let task = tokio::spawn(accept(listener, served));
        Self { task, ends }
    }

    /// Returns when the last connection is closed; requests under way have `grace`.
    pub async fn end(mut self, grace: Duration) {
        self.ends.close.cancel();
        if tokio::time::timeout(grace, &mut self.task).await.is_err() {
            self.ends.cut.cancel();
            // A panic in it has ended it too.
            let _ = self.task.await;
        }
    }
}

/// What every connection shares.
#[derive(Clone)]
struct Served {
    app: Router,
    tls: Option<Tls>,
    limits: Limits,
    ends: Ends,
}

async fn accept(listener: TcpListener, served: Served) {
    let connections = TaskTracker::new();
    let ends = &served.ends;
    loop {
        let accepted = tokio::select! {
            biased;
            () = ends.close.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match served.limits.connection(peer.ip()) {
                Ok(place) => {
                    let served = served.clone();
                    connections.spawn(async move {
                        served.serve(stream, peer).await;
                        drop(place);
                    });
                }
                Err(full) => {
                    if let Some(closed) = served.limits.refused_often(full.why(Why::Connections)) {
                        let of = if full == Full::All { "all together" } else { "this address" };
                        tracing::warn!(%peer, closed, "too many connections of {of}: closed, and so many since this was said last");
                    }
                }
            },
            Err(e) if is_the_clients(&e) => {}
            Err(e) => {
                // Too many open files, as a rule: some will be closed.
                tracing::warn!(error = %e, "a connection could not be taken");
                tokio::select! {
                    () = ends.close.cancelled() => break,
                    () = tokio::time::sleep(Duration::from_millis(500)) => {}
                }
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

fn is_the_clients(e: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(e.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

impl Served {
    async fn serve(self, stream: TcpStream, peer: SocketAddr) {
        // Slower answers are all that a refusal costs.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else { return self.talk(stream, peer, CertificateNames::default()).await };
        let accepted = tokio::select! {
            accepted = tls.accept(stream) => accepted,
            () = self.ends.close.cancelled() => return,
        };
        match accepted {
            Ok((stream, names)) => self.talk(stream, peer, names).await,
            Err(e) => {
                self.limits.refused(Why::Handshake);
                tracing::warn!(%peer, error = %e, "no TLS was agreed on");
            }
        }
    }

    async fn talk(self, stream: impl AsyncRead + AsyncWrite + Unpin, peer: SocketAddr, names: CertificateNames) {
        let Self { app, limits, ends, .. } = self;
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let mut request = request.map(Body::new);
            let id = request_id(request.headers());
            let span = tracing::info_span!("rpc", request = %id.to_str().unwrap_or_default());
            request.extensions_mut().insert(ConnectInfo(peer));
            request.extensions_mut().insert(names.clone());
            let answer = app.clone().oneshot(request);
            async move {
                answer.await.map(|mut response| {
                    response.headers_mut().insert(REQUEST_ID, id);
                    response
                })
            }
            .instrument(span)
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD);
        let connection = http.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let tell = |ended: Result<(), hyper::Error>| {
            let Err(e) = ended else { return };
            if e.is_timeout() {
                limits.refused(Why::Slow);
                tracing::info!(%peer, "a connection that sent nothing, or half a head, is closed");
            } else {
                tracing::debug!(%peer, error = %e, "a connection broke");
            }
        };
        tokio::select! {
            ended = &mut connection => return tell(ended),
            () = ends.close.cancelled() => {}
        }
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            ended = &mut connection => tell(ended),
            () = ends.cut.cancelled() => tracing::debug!(%peer, "a connection is cut"),
        }
    }
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The caller's, where it is a word of reasonable length; else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let plain = |v: &&HeaderValue| {
        (1..=64).contains(&v.len()) && v.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(b))
    };
    let new = || HeaderValue::try_from(uuid::Uuid::new_v4().to_string()).ok();
    headers.get(REQUEST_ID).filter(plain).cloned().or_else(new).unwrap_or(HeaderValue::from_static("none"))
}
