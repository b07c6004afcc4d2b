//! `/v1/event/stream`: the buffer from an index on, then what comes, with `{}` in between and at the start.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Method;
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Call, reply};
use crate::core::Core;
use crate::state::events::{Event, Frame};

/// Topics with the keys wanted of each; an empty list is everything.
#[derive(Debug)]
struct Wanted {
    topics: Vec<(String, String)>,
    namespace: String,
}

impl Wanted {
    fn takes(&self, e: &Event) -> bool {
        if self.namespace != "*" && !e.namespace.is_empty() && e.namespace != self.namespace {
            return false;
        }
        let has = |key: &str| key == "*" || key == e.key || e.filter_keys.iter().flatten().any(|k| k == key);
        self.topics.iter().any(|(t, key)| (t == "*" || t == e.topic.as_str()) && has(key))
    }

    fn render(&self, frame: &Frame) -> Option<Vec<u8>> {
        let events: Vec<Value> = frame.events.iter().filter(|e| self.takes(e)).map(|e| e.to_json(frame.index)).collect();
        if events.is_empty() {
            return None;
        }
        let mut line = serde_json::to_vec(&json!({"Events": events, "Index": frame.index})).ok()?;
        line.push(b'\n');
        Some(line)
    }
}

pub(crate) fn open(call: &Call) -> Response {
    if !call.is(&[Method::GET]) {
        return reply::wrong_method();
    }
    let index = match call.query.get("index") {
        "" => 0,
        text => match text.parse::<u64>() {
            Ok(n) => n,
            Err(_) => return reply::text(400, &format!("Unable to parse index: strconv.Atoi: parsing {text:?}: invalid syntax")),
        },
    };
    let mut topics = Vec::new();
    for t in call.query.all("topic") {
        let (topic, key) = t.split_once(':').unwrap_or((t, "*"));
        topics.push((topic.to_owned(), if key.is_empty() { "*" } else { key }.to_owned()));
    }
    if topics.is_empty() {
        topics.push(("*".into(), "*".into()));
    }
    let wanted = Wanted { topics, namespace: call.query.namespace().to_owned() };
    let (tx, rx) = mpsc::channel::<Result<Bytes, std::io::Error>>(64);
    call.core.tracker.spawn(pump(call.core.clone(), wanted, index, tx));
    let body = Body::from_stream(futures::stream::unfold(rx, |mut rx| async move { rx.recv().await.map(|item| (item, rx)) }));
    reply::stream(body, "application/json")
}

async fn pump(core: Arc<Core>, wanted: Wanted, index: u64, tx: mpsc::Sender<Result<Bytes, std::io::Error>>) {
    let heartbeat = Bytes::from_static(b"{}\n");
    let mut changed = core.changed.subscribe();
    let mut ended = core.faults.streams.subscribe();
    let mute = core.faults.mute.subscribe();
    ended.borrow_and_update();
    if tx.send(Ok(heartbeat.clone())).await.is_err() {
        return;
    }
    // Without an index the whole buffer comes first, as Nomad's does.
    let mut next = index;
    let mut ticks = tokio::time::interval(core.config.event_heartbeat);
    ticks.tick().await;
    loop {
        changed.borrow_and_update();
        for frame in core.read(|s| s.events.since(next)) {
            next = frame.index + 1;
            if *mute.borrow() {
                continue;
            }
            if let Some(line) = wanted.render(&frame)
                && tx.send(Ok(Bytes::from(line))).await.is_err()
            {
                return;
            }
        }
        tokio::select! {
            biased;
            () = core.cancel.cancelled() => return,
            () = tx.closed() => return,
            _ = ended.changed() => return,
            news = changed.changed() => if news.is_err() { return },
            _ = ticks.tick() => {
                if !*mute.borrow() && tx.send(Ok(heartbeat.clone())).await.is_err() {
                    return;
                }
            }
        }
    }
}
