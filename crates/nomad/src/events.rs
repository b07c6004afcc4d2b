//! The event stream: hurries what a list would find later.

use bytes::BytesMut;
use curfew_core::spec::JobSpec;
use curfew_core::{Allocation, JobKey};
use futures::StreamExt;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};

use crate::client::{Call, Nomad};
use crate::error::{self, Asked, Error};
use crate::evaluations::{EvalStatus, EvalWire};
use crate::nodes::{Node, NodeWire};
use crate::route::Route;
use crate::transport::Body;
use crate::wire::{self, AllocationWire};

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Allocation(Box<Allocation>),
    Job {
        key: JobKey,
        spec: Box<JobSpec>,
        /// The event is of a stop (or of a purge).
        deregistered: bool,
        /// The job is gone from Nomad.
        purged: bool,
    },
    Evaluation(Box<EvalStatus>),
    Node(Box<Node>),
    /// Nothing happened for a while; the connection lives.
    Heartbeat,
    /// One event that could not be read. The rest of its frame is unharmed.
    Bad {
        topic: String,
        key: String,
        why: String,
    },
}

/// Events of one raft index. Checkpoint `index` after they were handled, never before (lesson 24).
#[derive(Clone, Debug, PartialEq)]
pub struct EventFrame {
    /// `None` for a heartbeat.
    pub index: Option<u64>,
    pub events: Vec<Event>,
}

/// Why a stream ended. Whatever the reason: list anew, then open another.
#[derive(Debug, thiserror::Error)]
pub enum StreamEnd {
    /// It could not be opened, or Nomad refused it.
    #[error("the event stream could not be opened")]
    Refused(#[source] Error),
    /// 200 and not one byte: the token may be wrong (design fact 12).
    #[error(
        "Nomad opened the event stream but sends nothing: check the token (it needs read-job in every namespace, and node read)"
    )]
    Silent,
    /// Not even a heartbeat for longer than the idle limit.
    #[error("the event stream fell silent")]
    Idle,
    /// The agent ended it.
    #[error("Nomad closed the event stream")]
    Closed,
    /// The connection broke.
    #[error("the event stream broke")]
    Broken(#[source] Error),
    /// A line longer than the configured bound.
    #[error("the event stream sent a line of more than {limit} bytes")]
    LineTooLong { limit: usize },
    /// A line that is not a frame of Nomad's.
    #[error("the event stream sent something that is not an event: {why}")]
    NotNomad { why: String },
}

impl StreamEnd {
    /// Whether the token lacks what it takes, as far as Nomad tells: from 2.0 on it says nothing at all, 1.8 answers 500.
    pub fn is_denied(&self) -> bool {
        match self {
            Self::Silent | Self::Refused(Error::PermissionDenied { .. }) => true,
            Self::Refused(e) => e.body().is_some_and(|b| b.contains("Permission denied")),
            _ => false,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct FrameWire<'a> {
    #[serde(default)]
    index: u64,
    #[serde(borrow)]
    events: Option<Vec<&'a RawValue>>,
    /// Sent instead of events when the stream fails on the server.
    error: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EventWire<'a> {
    topic: String,
    #[serde(rename = "Type", default)]
    kind: String,
    #[serde(default)]
    key: String,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

/// An open stream.
pub struct EventStream {
    nomad: Nomad,
    asked: Box<Asked>,
    body: Body,
    buffer: BytesMut,
    /// How far `buffer` was searched for a line's end.
    searched: usize,
    /// When the next byte is due.
    due: Instant,
    any_byte: bool,
}

impl Nomad {
    /// Opens the stream of allocations, jobs, nodes and evaluations of all namespaces, from `index` on when given. An index
    /// that Nomad's buffer no longer holds silently starts later (design fact 12): a list must follow every opening.
    pub async fn events(&self, index: Option<u64>) -> Result<EventStream, StreamEnd> {
        let mut call = Call::new(Route::Events, &[]);
        for topic in ["Allocation", "Job", "Node", "Evaluation"] {
            call = call.query("topic", topic);
        }
        call = call.query("namespace", "*");
        if let Some(index) = index {
            call = call.query("index", index.to_string());
        }
        let asked = self.asked(&call);
        let after = self.config().timeout;
        let opening = async {
            let response = self.open(&asked, call).await?;
            if response.status().is_success() {
                return Ok(response.into_body());
            }
            Err(self.refusal(&asked, Route::Events, response).await)
        };
        let timed = self.calls().begin(Route::Events);
        let opened = tokio::time::timeout(after, opening).await;
        let opened = opened.unwrap_or_else(|_| Err(Error::Timeout { asked: asked.clone(), after, sent: true }));
        timed.end(&opened);
        let body = opened.map_err(StreamEnd::Refused)?;
        let due = Instant::now() + self.config().stream_first_byte;
        Ok(EventStream { nomad: self.clone(), asked, body, buffer: BytesMut::new(), searched: 0, due, any_byte: false })
    }
}

impl EventStream {
    /// The next frame. Safe to cancel: nothing that arrived is lost.
    pub async fn next(&mut self) -> Result<EventFrame, StreamEnd> {
        loop {
            while let Some(line) = self.line() {
                let line = line.trim_ascii();
                if !line.is_empty() {
                    return frame(line);
                }
            }
            let limit = self.nomad.config().stream_max_line;
            if self.buffer.len() > limit {
                return Err(StreamEnd::LineTooLong { limit });
            }
            match timeout_at(self.due, self.body.next()).await {
                Err(_) if self.any_byte => return Err(StreamEnd::Idle),
                Err(_) => return Err(StreamEnd::Silent),
                Ok(None) => return Err(StreamEnd::Closed),
                Ok(Some(Err(e))) => return Err(StreamEnd::Broken(error::broken(self.asked.clone(), e))),
                Ok(Some(Ok(chunk))) if chunk.is_empty() => {}
                Ok(Some(Ok(chunk))) => {
                    self.any_byte = true;
                    self.due = Instant::now() + self.nomad.config().stream_idle;
                    self.buffer.extend_from_slice(&chunk);
                }
            }
        }
    }

    fn line(&mut self) -> Option<BytesMut> {
        match self.buffer[self.searched..].iter().position(|b| *b == b'\n') {
            Some(at) => {
                let line = self.buffer.split_to(self.searched + at + 1);
                self.searched = 0;
                Some(line)
            }
            None => {
                self.searched = self.buffer.len();
                None
            }
        }
    }
}

fn frame(line: &[u8]) -> Result<EventFrame, StreamEnd> {
    let wire: FrameWire<'_> = serde_json::from_slice(line).map_err(|e| StreamEnd::NotNomad { why: e.to_string() })?;
    if let Some(error) = wire.error.filter(|e| !e.is_null()) {
        return Err(StreamEnd::NotNomad { why: error.to_string() });
    }
    match wire.events {
        None => Ok(EventFrame { index: None, events: vec![Event::Heartbeat] }),
        Some(events) => Ok(EventFrame { index: Some(wire.index), events: events.into_iter().filter_map(event).collect() }),
    }
}

/// `None` for a topic that was not asked for.
fn event(raw: &RawValue) -> Option<Event> {
    let wire: EventWire<'_> = match serde_json::from_str(raw.get()) {
        Ok(wire) => wire,
        Err(e) => return Some(Event::Bad { topic: String::new(), key: String::new(), why: e.to_string() }),
    };
    let payload = wire.payload.map_or("null", RawValue::get);
    let read = match wire.topic.as_str() {
        "Allocation" => allocation(payload),
        "Job" => job(payload, &wire.kind),
        "Evaluation" => evaluation(payload),
        "Node" => node(payload),
        _ => return None,
    };
    Some(read.unwrap_or_else(|why| Event::Bad { topic: wire.topic, key: wire.key, why }))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AllocationPayload {
    allocation: AllocationWire,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EvaluationPayload {
    evaluation: EvalWire,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NodePayload {
    node: NodeWire,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct JobPayload {
    job: Value,
    /// Purged.
    #[serde(default)]
    deleted: bool,
}

fn read<'a, T: Deserialize<'a>>(payload: &'a str) -> Result<T, String> {
    serde_json::from_str(payload).map_err(|e| e.to_string())
}

fn allocation(payload: &str) -> Result<Event, String> {
    let (allocation, _) = wire::allocation(read::<AllocationPayload>(payload)?.allocation)?;
    Ok(Event::Allocation(Box::new(allocation)))
}

fn evaluation(payload: &str) -> Result<Event, String> {
    Ok(Event::Evaluation(Box::new(read::<EvaluationPayload>(payload)?.evaluation.into())))
}

fn node(payload: &str) -> Result<Event, String> {
    Ok(Event::Node(Box::new(Node::from(read::<NodePayload>(payload)?.node))))
}

fn job(payload: &str, kind: &str) -> Result<Event, String> {
    let JobPayload { job, deleted } = read(payload)?;
    let (Some(id), Some(namespace)) = (job["ID"].as_str(), job["Namespace"].as_str()) else {
        return Err("its job has no ID or no Namespace".into());
    };
    Ok(Event::Job {
        key: JobKey::new(namespace, id),
        spec: Box::new(JobSpec::from_json(&job)),
        deregistered: matches!(kind, "JobDeregistered" | "JobBatchDeregistered"),
        purged: deleted,
    })
}
