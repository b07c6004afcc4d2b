//! `/v1/event/stream`: the buffer from an index on, then what comes, with `{}` in between and at the start.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::access::{Call, acl};
use super::reply;
use crate::acl::{ALL, Acl};
use crate::core::Core;
use crate::state::Table;
use crate::state::events::{Event, Frame};

/// Topics with the keys wanted of each; an empty list is everything.
#[derive(Debug)]
struct Wanted {
    topics: Vec<(String, String)>,
    /// `*` stands for the namespaces there are when the stream is opened: one made later is not in it, as in Nomad.
    namespaces: Vec<String>,
}

impl Wanted {
    fn takes(&self, e: &Event) -> bool {
        if !e.namespace.is_empty() && !self.namespaces.contains(&e.namespace) {
            return false;
        }
        let has = |key: &str| key == "*" || key == e.key || e.filter_keys.iter().flatten().any(|k| k == key);
        self.topics.iter().any(|(t, key)| (t == "*" || t == e.topic.as_str()) && has(key))
    }

    /// Every topic in every namespace that is asked for must be allowed: one that is not, and nothing is shown.
    fn allowed(&self, acl: &Acl) -> bool {
        let topic = |topic: &str, namespace: &str| match topic {
            "Deployment" | "Evaluation" | "Allocation" | "Job" | "Service" | "CSIPlugin" => acl.may(namespace, &["read-job"]),
            "HostVolume" => acl.may(namespace, &["host-volume-read"]),
            "CSIVolume" => acl.may(namespace, &["csi-read-volume"]),
            "Node" => acl.node_read(),
            "Operator" => acl.operator_read(),
            "Variable" => acl.any_variable(namespace),
            _ => acl.management(),
        };
        self.namespaces.iter().all(|n| self.topics.iter().all(|(t, _)| topic(t, n)))
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
    let namespaces = match call.query.namespace() {
        ALL => call.core.read(|s| s.namespaces.iter().cloned().collect()),
        one => vec![one.to_owned()],
    };
    let wanted = Wanted { topics, namespaces };
    let (tx, rx) = mpsc::channel::<Result<Bytes, std::io::Error>>(64);
    call.core.tracker.spawn(pump(call.core.clone(), call.secret.clone(), wanted, index, tx));
    let body = Body::from_stream(futures::stream::unfold(rx, |mut rx| async move { rx.recv().await.map(|item| (item, rx)) }));
    reply::stream(body, "application/json")
}

/// The index of the policies and tokens that are now.
fn acl_index(core: &Core) -> u64 {
    core.read(|s| s.table(Table::AclPolicies).max(s.table(Table::AclTokens)))
}

async fn pump(core: Arc<Core>, secret: String, wanted: Wanted, index: u64, tx: mpsc::Sender<Result<Bytes, std::io::Error>>) {
    let heartbeat = Bytes::from_static(b"{}\n");
    let mut changed = core.changed.subscribe();
    let mut ended = core.faults.streams.subscribe();
    let mute = core.faults.mute.subscribe();
    ended.borrow_and_update();
    let allowed = || acl(&core, &secret).is_ok_and(|acl| wanted.allowed(&acl));
    let mut seen = acl_index(&core);
    if !allowed() {
        // Nomad answers 200, writes not one byte and leaves the connection open.
        tokio::select! {
            () = core.cancel.cancelled() => {}
            () = tx.closed() => {}
            _ = ended.changed() => {}
        }
        return;
    }
    if tx.send(Ok(heartbeat.clone())).await.is_err() {
        return;
    }
    // Without an index the whole buffer comes first, as Nomad's does.
    let mut next = index;
    let mut ticks = tokio::time::interval(core.config.event_heartbeat);
    ticks.tick().await;
    loop {
        changed.borrow_and_update();
        // A stream that is no longer allowed, or whose token has expired, ends.
        let now = acl_index(&core);
        if acl(&core, &secret).is_err() || (now != seen && !allowed()) {
            return;
        }
        seen = now;
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
