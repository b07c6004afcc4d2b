//! Takes connections until it is told to end, and then ends every one of them: those that rest at once, those with a request
//! under way when it is answered, whatever is left when their time is over.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::Front;

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
    pub(crate) fn start(listener: TcpListener, front: Front) -> Self {
        let ends = Ends::default();
        let task = tokio::spawn(accept(listener, front.router(), ends.clone()));
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

async fn accept(listener: TcpListener, app: Router, ends: Ends) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = ends.close.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                connections.spawn(serve(stream, peer, app.clone(), ends.clone()));
            }
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

async fn serve(stream: TcpStream, peer: SocketAddr, app: Router, ends: Ends) {
    // Slower answers are all that a refusal costs.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        app.clone().oneshot(request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
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

fn tell(ended: Result<(), hyper::Error>) {
    if let Err(e) = ended {
        tracing::debug!(error = %e, "a connection broke");
    }
}
