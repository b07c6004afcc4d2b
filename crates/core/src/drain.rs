//! Drains: what is asked for, how far one has come, and what a Curfew drain leaves in Nomad.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Object, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::{AllocId, Datacenter, JobId, JobKey, NodeId, OpId, Timestamp, duration};

pub mod course;
mod meta;
pub mod plan;

pub use meta::{Deadline, DrainMeta};

/// How the tasks of a node are told to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// At Nomad's pace; what is left hears SIGTERM a stop timeout before the deadline.
    Migrate,
    /// SIGTERM to everything at the start, and the whole drain timeout to leave.
    Evacuate,
}

impl Strategy {
    pub fn as_str(self) -> &'static str {
        match self {
            Strategy::Migrate => "migrate",
            Strategy::Evacuate => "evacuate",
        }
    }
}

/// How many nodes of a set are drained at the same time. As text `3` or `20%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MaxParallel {
    Nodes(u32),
    Percent(u8),
}

impl MaxParallel {
    /// Of a set of so many nodes; at least one.
    pub fn of(self, nodes: usize) -> usize {
        match self {
            MaxParallel::Nodes(n) => (n as usize).max(1),
            MaxParallel::Percent(p) => (nodes * usize::from(p) / 100).max(1),
        }
    }
}

impl fmt::Display for MaxParallel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MaxParallel::Nodes(n) => write!(f, "{n}"),
            MaxParallel::Percent(p) => write!(f, "{p}%"),
        }
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("\"{0}\" is not a number of nodes: write one from 1 on, as in 3, or a share from 1% to 100%, as in 20%")]
pub struct BadMaxParallel(String);

impl FromStr for MaxParallel {
    type Err = BadMaxParallel;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = match text.trim().strip_suffix('%') {
            Some(share) => share.trim().parse().ok().filter(|p| (1..=100).contains(p)).map(MaxParallel::Percent),
            None => text.trim().parse().ok().filter(|n| *n > 0).map(MaxParallel::Nodes),
        };
        read.ok_or_else(|| BadMaxParallel(text.to_owned()))
    }
}

impl TryFrom<String> for MaxParallel {
    type Error = BadMaxParallel;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl PartialSchema for MaxParallel {
    fn schema() -> RefOr<Schema> {
        let text = Object::builder().schema_type(Type::String).pattern(Some("^([1-9][0-9]{0,5}|([1-9][0-9]?|100)%)$"));
        text.description(Some("A number of nodes, as in `3`, or a share, as in `20%`.")).into()
    }
}
impl ToSchema for MaxParallel {}

impl From<MaxParallel> for String {
    fn from(n: MaxParallel) -> Self {
        n.to_string()
    }
}

/// Which nodes: those for which everything that is given holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Selection {
    /// Each an id, the beginning of one, or a name. Empty: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datacenter: Option<Datacenter>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_pool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_class: Option<String>,
    /// Of the node's configuration.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
}

impl Selection {
    /// Nothing is given: that would be every node there is.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
    /// Nodes that appear later belong to it too: it says what they are like, not which ones they are.
    pub fn grows(&self) -> bool {
        self.nodes.is_empty()
    }
    /// Only a datacenter was named.
    pub fn one_datacenter(&self) -> Option<&Datacenter> {
        let only = Self { datacenter: self.datacenter.clone(), ..Self::default() };
        self.datacenter.as_ref().filter(|_| *self == only)
    }
}

/// In words, as people would name the set.
impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMED: usize = 5;
        let mut words = Vec::new();
        if !self.nodes.is_empty() {
            let more = self.nodes.len().saturating_sub(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let named: Vec<_> = self.nodes.iter().take(NAMED).map(String::as_str).collect();
            words.push(format!("{}{more}", named.join(", ")));
        }
        words.extend(self.datacenter.iter().map(|d| format!("datacenter {d}")));
        words.extend(self.node_pool.iter().map(|p| format!("node pool {p}")));
        words.extend(self.node_class.iter().map(|c| format!("node class {c}")));
        words.extend(self.meta.iter().map(|(k, v)| format!("meta {k}={v}")));
        f.write_str(&words.join(", "))
    }
}

/// What a drain was asked to do, with everything that was left out filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainOptions {
    pub strategy: Strategy,
    /// For each node from the moment that its drain starts. Absent: none, or, of a set, what the configuration has for each
    /// node's datacenter.
    #[serde(default, with = "duration::text_opt", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<duration::Text>)]
    pub drain_timeout: Option<Duration>,
    /// Nothing is killed because of this drain.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_deadline: bool,
    /// Of a set; absent: all at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_parallel: Option<MaxParallel>,
    /// System jobs stay.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignore_system: bool,
    /// Clocks only for what was submitted through Curfew; the drain waits for nothing else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_managed: bool,
}

/// Somebody moved the deadline: extended it, or cut it short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    pub at: Timestamp,
    pub until: Timestamp,
}

impl Moved {
    pub fn is_kill_now(&self) -> bool {
        self.until <= self.at
    }
}

/// A node of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRef {
    pub id: NodeId,
    pub name: String,
}

/// What was last asked of Nomad for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    pub at: Timestamp,
    pub what: Ask,
    /// Our deadline as its meta has it.
    pub deadline: Option<Timestamp>,
}

/// A drain as Nomad can have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Tell everything at once.
    Force { ignore_system: bool },
    /// At Nomad's pace; what is left is told then, system jobs last. `None`: never.
    Pace { until: Option<Timestamp>, ignore_system: bool },
}

/// How far the drain of one node has come. Found again in Nomad by the drain's meta.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeProgress {
    /// Whether the node took allocations before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub was_eligible: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// Written when it starts; what somebody moved it to is in the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<Asked>,
}

/// How far the drain of a set has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SetProgress {
    pub nodes: Vec<SetNode>,
    /// Counts retries: each gives a node that was not drained another child.
    pub round: u32,
    /// When it last looked whether nodes came or went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub looked_at: Option<Timestamp>,
}

/// A node of a set, as far as its drain has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetNode {
    #[serde(flatten)]
    pub node: NodeRef,
    pub datacenter: Datacenter,
    /// Whether it took allocations before.
    pub was_eligible: bool,
    /// It was made ineligible by this drain.
    #[serde(default)]
    pub marked: bool,
    /// The operation that drains it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child: Option<OpId>,
    pub state: NodeState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Box<NodeOutcome>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Its turn has not come.
    Waiting,
    Draining,
    /// Nothing that was to leave lives there.
    Drained,
    /// It left the cluster.
    Gone,
    Failed,
    Cancelled,
    /// Of an undrain: it takes allocations again.
    Eligible,
    /// Of an undrain: it was left as it is; `waiting_for` or a warning says why.
    LeftAlone,
}

impl NodeState {
    pub fn as_str(self) -> &'static str {
        match self {
            NodeState::Waiting => "waiting",
            NodeState::Draining => "draining",
            NodeState::Drained => "drained",
            NodeState::Gone => "gone",
            NodeState::Failed => "failed",
            NodeState::Cancelled => "cancelled",
            NodeState::Eligible => "eligible",
            NodeState::LeftAlone => "left_alone",
        }
    }
    pub fn is_over(self) -> bool {
        !matches!(self, NodeState::Waiting | NodeState::Draining)
    }
}

/// What came, or is coming, of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeOutcome {
    pub id: NodeId,
    pub name: String,
    pub state: NodeState,
    /// Of a set: the operation that drains this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OpId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// In a sentence, what it waits for, or why it failed or was left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
    /// Tasks that ended by themselves after SIGTERM.
    pub exited: u32,
    /// Tasks that Curfew's SIGKILL ended.
    pub killed: u32,
    /// How many allocations are still to leave.
    #[serde(default)]
    pub left: u32,
    /// Some of those, while it drains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allocations: Vec<AllocLeft>,
    /// Whose tasks took longest from SIGTERM to their end; the slowest first, a few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slowest: Vec<Slow>,
}

impl NodeOutcome {
    /// Nothing came of it yet.
    pub fn nothing(node: &NodeRef, state: NodeState) -> Self {
        Self {
            id: node.id.clone(),
            name: node.name.clone(),
            state,
            operation: None,
            started_at: None,
            ended_at: None,
            deadline: None,
            waiting_for: None,
            exited: 0,
            killed: 0,
            left: 0,
            allocations: vec![],
            slowest: vec![],
        }
    }
}

/// An allocation that is still to leave its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AllocLeft {
    pub id: AllocId,
    #[serde(flatten)]
    pub job: JobKey,
    pub waits: Waits,
    /// When the last of its tasks gets SIGKILL, as far as is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_at: Option<Timestamp>,
    /// In a sentence, what it waits for.
    pub waiting_for: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Waits {
    /// It was told: for its end, or its clock.
    Clock,
    /// For its turn: Nomad tells it when others of its job are healthy elsewhere, or at Nomad's own deadline.
    Turn,
    /// A system job leaves last.
    Last,
    /// Its node cannot be reached.
    Node,
    /// A poststop task has a clock of its own.
    Poststop,
    /// For its client to report its end.
    Report,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Slow {
    pub alloc: AllocId,
    pub job: JobId,
    pub task: crate::TaskName,
    #[serde(with = "duration::text")]
    #[schema(value_type = duration::Text)]
    pub took: Duration,
    pub killed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_or_a_share_and_nonsense_is_refused_with_the_way_out() {
        for (text, of, is) in [("3", 10, 3), ("20%", 10, 2), ("1%", 10, 1), ("100%", 7, 7), ("9", 2, 9)] {
            let n: MaxParallel = text.parse().unwrap();
            assert_eq!((n.of(of), n.to_string()), (is, text.to_owned()));
        }
        for bad in ["0", "0%", "101%", "-1", "", "many", "2.5"] {
            let e = bad.parse::<MaxParallel>().unwrap_err().to_string();
            assert!(e.contains("20%") && e.contains(bad), "{e}");
        }
    }

    #[test]
    fn a_selection_is_named_in_words_and_only_a_datacenter_alone_is_one() {
        let dc1 = Selection { datacenter: Some("dc1".into()), ..Selection::default() };
        assert_eq!((dc1.to_string(), dc1.one_datacenter(), dc1.grows()), ("datacenter dc1".into(), Some(&"dc1".into()), true));
        let some = Selection {
            nodes: (1..8).map(|n| format!("n{n}")).collect(),
            meta: BTreeMap::from([("rack".into(), "r1".into())]),
            ..dc1
        };
        assert_eq!(some.to_string(), "n1, n2, n3, n4, n5 and 2 more, datacenter dc1, meta rack=r1");
        assert_eq!((some.one_datacenter(), some.grows(), some.is_empty()), (None, false, false));
        assert!(serde_json::from_str::<Selection>(r#"{"datacentre": "dc1"}"#).is_err());
        assert_eq!(serde_json::from_value::<Selection>(serde_json::to_value(&some).unwrap()).unwrap(), some);
    }
}
