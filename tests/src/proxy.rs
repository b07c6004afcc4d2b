//! A proxy before Nomad: writes down every request, and can be cut like a cable.
//!
//! ```text
//! controller ──▶ cable (bytes; can be cut) ──▶ recorder (requests; can refuse) ──▶ Nomad
//! ```

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A request as Nomad got it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// With its query, as it was on the wire.
    pub path: String,
    pub body: Value,
}

/// What is refused instead of being passed on.
#[derive(Clone)]
pub struct Refuse {
    pub method: &'static str,
    /// A part of the path.
    pub path: &'static str,
    pub status: u16,
    pub body: &'static str,
}

struct Recorder {
    http: reqwest::Client,
    nomad: String,
    seen: Mutex<Vec<Seen>>,
    refuse: Mutex<Option<Refuse>>,
}

pub struct Proxy {
    addr: SocketAddr,
    recorder: Arc<Recorder>,
    cut: watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Proxy {
    pub async fn before(nomad: &str) -> Self {
        let recorder = Arc::new(Recorder {
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            nomad: nomad.into(),
            seen: Mutex::default(),
            refuse: Mutex::default(),
        });
        let inner = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let behind = inner.local_addr().unwrap();
        let app = Router::new().fallback(pass_on).with_state(recorder.clone());
        let serving = tokio::spawn(async move { axum::serve(inner, app).await.unwrap() });
        let outer = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = outer.local_addr().unwrap();
        let cut = watch::Sender::new(false);
        let cable = tokio::spawn(cable(outer, behind, cut.clone()));
        Self { addr, recorder, cut, tasks: vec![serving, cable] }
    }

    pub fn addr(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Cuts every connection, and new ones as soon as they are made; or mends the cable.
    pub fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }

    /// Answers what matches itself, until told otherwise.
    pub fn refuse(&self, what: Option<Refuse>) {
        *self.recorder.refuse.lock().unwrap() = what;
    }

    /// What came through, oldest first: the method's and a part of the path.
    pub fn seen(&self, method: &str, path: &str) -> Vec<Seen> {
        let all = self.recorder.seen.lock().unwrap();
        all.iter().filter(|s| s.method == method && s.path.contains(path)).cloned().collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        self.cut.send_replace(true);
    }
}

async fn cable(outer: TcpListener, behind: SocketAddr, cut: watch::Sender<bool>) {
    while let Ok((mut near, _)) = outer.accept().await {
        let mut cut = cut.subscribe();
        tokio::spawn(async move {
            let pipe = async {
                if let Ok(mut far) = TcpStream::connect(behind).await {
                    // Either side may go away at any time.
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                }
            };
            tokio::select! {
                () = pipe => {}
                _ = cut.wait_for(|c| *c) => {}
            }
        });
    }
}

async fn pass_on(State(recorder): State<Arc<Recorder>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let Ok(body) = axum::body::to_bytes(body, 64 << 20).await else { return StatusCode::BAD_REQUEST.into_response() };
    let seen =
        Seen { method: parts.method.to_string(), path: path.clone(), body: serde_json::from_slice(&body).unwrap_or(Value::Null) };
    recorder.seen.lock().unwrap().push(seen);
    let refuse = recorder.refuse.lock().unwrap().clone();
    if let Some(r) = refuse.filter(|r| parts.method == r.method && path.contains(r.path)) {
        return (StatusCode::from_u16(r.status).unwrap(), r.body).into_response();
    }
    let mut headers = parts.headers;
    headers.remove("host");
    let sent = recorder.http.request(parts.method, format!("{}{path}", recorder.nomad)).headers(headers).body(body).send().await;
    match sent {
        Ok(answer) => {
            let mut response = Response::builder().status(answer.status());
            for (name, value) in answer.headers() {
                if name != "transfer-encoding" && name != "connection" {
                    response = response.header(name, value);
                }
            }
            response.body(Body::from_stream(answer.bytes_stream())).unwrap()
        }
        Err(e) => (StatusCode::BAD_GATEWAY, e.to_string()).into_response(),
    }
}
