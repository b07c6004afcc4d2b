//! A Nomad in this process: no sockets, so that tokio's paused time decides every deadline.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use curfew_nomad::{Body, Nomad, NomadConfig, TransportError};
use futures::StreamExt;
use futures::stream;
use http::{Request, Response};

pub fn body(chunks: Vec<&'static [u8]>) -> Body {
    stream::iter(chunks).map(|c| Ok(Bytes::from_static(c))).boxed()
}

/// An answer and then nothing more, for ever.
pub fn open_body(chunks: Vec<&'static [u8]>) -> Body {
    stream::iter(chunks).map(|c| Ok(Bytes::from_static(c))).chain(stream::pending()).boxed()
}

pub fn respond(status: u16, text: impl Into<String>) -> Response<Body> {
    let text = text.into();
    Response::builder().status(status).body(stream::iter([Ok(Bytes::from(text))]).boxed()).unwrap()
}

#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<Request<Bytes>>>>);

impl Log {
    /// `METHOD /path?query` of every request.
    pub fn lines(&self) -> Vec<String> {
        let line = |r: &Request<Bytes>| format!("{} {}", r.method(), r.uri().path_and_query().unwrap());
        self.0.lock().unwrap().iter().map(line).collect()
    }
    pub fn last_body(&self) -> serde_json::Value {
        serde_json::from_slice(self.0.lock().unwrap().last().unwrap().body()).unwrap()
    }
    pub fn last_header(&self, name: &str) -> Option<String> {
        self.0.lock().unwrap().last().unwrap().headers().get(name).map(|v| v.to_str().unwrap().to_owned())
    }
}

pub fn config() -> NomadConfig {
    NomadConfig { addr: "http://nomad.test:4646".into(), token: Some("s3cret".into()), ..NomadConfig::default() }
}

/// A Nomad that answers each request by this function, and a log of what was asked.
pub fn nomad_with(
    config: NomadConfig,
    answer: impl Fn(&Request<Bytes>) -> Response<Body> + Send + Sync + 'static,
) -> (Nomad, Log) {
    let log = Log::default();
    let seen = log.clone();
    let transport = move |request: Request<Bytes>| {
        let answer = answer(&request);
        seen.0.lock().unwrap().push(request);
        async move { Ok::<_, TransportError>(answer) }
    };
    (Nomad::with_transport(config, transport).unwrap(), log)
}

pub fn nomad(answer: impl Fn(&Request<Bytes>) -> Response<Body> + Send + Sync + 'static) -> (Nomad, Log) {
    nomad_with(config(), answer)
}
