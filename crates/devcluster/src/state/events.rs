//! The event buffer behind `/v1/event/stream`: one frame an index, rendered only when somebody listens.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{Alloc, Deployment, Eval, Node};
use crate::job::Job;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Topic {
    Job,
    Allocation,
    Node,
    Evaluation,
    Deployment,
}

impl Topic {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Job => "Job",
            Self::Allocation => "Allocation",
            Self::Node => "Node",
            Self::Evaluation => "Evaluation",
            Self::Deployment => "Deployment",
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Payload {
    Job(Arc<Job>),
    JobDeleted,
    Alloc(Arc<Alloc>),
    Node(Arc<Node>),
    Eval(Arc<Eval>),
    Deployment(Arc<Deployment>),
}

#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub topic: Topic,
    pub kind: &'static str,
    pub key: String,
    pub namespace: String,
    pub filter_keys: Option<Vec<String>>,
    pub payload: Payload,
}

impl Event {
    pub(crate) fn to_json(&self, index: u64) -> Value {
        let payload = match &self.payload {
            Payload::Job(j) => json!({"Job": j.to_json()}),
            Payload::JobDeleted => json!({"Deleted": true}),
            Payload::Alloc(a) => json!({"Allocation": a.to_json(false)}),
            Payload::Node(n) => json!({"Node": n.to_json()}),
            Payload::Eval(e) => json!({"Evaluation": e.to_json()}),
            Payload::Deployment(d) => json!({"Deployment": d.to_json()}),
        };
        let mut m = Map::new();
        m.insert("FilterKeys".into(), json!(self.filter_keys));
        m.insert("Index".into(), json!(index));
        m.insert("Key".into(), json!(self.key));
        m.insert("Namespace".into(), json!(self.namespace));
        m.insert("Payload".into(), payload);
        m.insert("Topic".into(), json!(self.topic.as_str()));
        m.insert("Type".into(), json!(self.kind));
        Value::Object(m)
    }
}

#[derive(Debug)]
pub(crate) struct Frame {
    pub index: u64,
    pub events: Vec<Event>,
}

#[derive(Debug)]
pub(crate) struct EventBuffer {
    frames: VecDeque<Arc<Frame>>,
    open: Vec<Event>,
    /// Where in the open frame a thing stands.
    at: HashMap<(Topic, String), usize>,
    capacity: usize,
}

impl EventBuffer {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { frames: VecDeque::new(), open: Vec::new(), at: HashMap::new(), capacity: capacity.max(1) }
    }

    /// Adds to the frame of the running transaction; a later state of the same thing replaces the earlier one.
    pub(crate) fn push(&mut self, event: Event) {
        match self.at.entry((event.topic, event.key.clone())) {
            Entry::Occupied(at) => self.open[*at.get()] = event,
            Entry::Vacant(free) => {
                free.insert(self.open.len());
                self.open.push(event);
            }
        }
    }

    pub(crate) fn close(&mut self, index: u64) {
        if self.open.is_empty() {
            return;
        }
        self.at.clear();
        if self.frames.len() >= self.capacity {
            self.frames.pop_front();
        }
        self.frames.push_back(Arc::new(Frame { index, events: std::mem::take(&mut self.open) }));
    }

    /// Frames with an index of at least `from`.
    pub(crate) fn since(&self, from: u64) -> Vec<Arc<Frame>> {
        let start = self.frames.partition_point(|f| f.index < from);
        self.frames.iter().skip(start).cloned().collect()
    }
}
