//! Whether the nodes let a raised `kill_timeout` stand (design fact 3: a client cuts it to its `max_kill_timeout`, silently).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use curfew_core::drain::Selection;
use curfew_core::spec::JobSpec;
use curfew_core::{Clock, NodeId, Timestamp, doctor, duration};
use curfew_nomad::{Error, NodeStatus, NodeStub, Nomad};
use futures::StreamExt;
use serde_json::Value;

/// Node meta that tells what cannot be read from a node otherwise.
const META: &str = "max_kill_timeout";
/// More nodes than this are not asked one by one at a submit.
const ASKED: usize = 200;
/// Nodes that are asked at the same time.
pub const AT_ONCE: usize = 16;
/// A client's configuration changes with its restart.
const KNOWN_FOR: Duration = Duration::from_secs(60);

/// When each node was asked, and what it said.
type Known = HashMap<NodeId, (Timestamp, Option<Duration>)>;

#[derive(Clone)]
pub struct Nodes {
    nomad: Nomad,
    clock: Arc<dyn Clock>,
    known: Arc<Mutex<Known>>,
}

impl Nodes {
    pub fn new(nomad: Nomad, clock: Arc<dyn Clock>) -> Self {
        Self { nomad, clock, known: Arc::default() }
    }

    /// Warnings about the nodes that the job may be placed on. A driver that no agent has ever heard of is a slip of the pen,
    /// which Nomad itself would take and wait for a node that has it.
    pub async fn check(&self, job: &Value) -> Result<Vec<String>, Unfit> {
        let all = self.nomad.nodes(None).await?;
        known_drivers(job, &all)?;
        let Some(needed) = longest_kill_timeout(job) else { return Ok(vec![]) };
        let mut candidates: Vec<_> = all.into_iter().filter(|n| n.status == NodeStatus::Ready && may_run(job, n)).collect();
        let skipped = candidates.len().saturating_sub(ASKED);
        candidates.truncate(ASKED);
        let limits: Vec<(String, Option<Duration>)> = futures::stream::iter(candidates)
            .map(|n| async move { (n.name.clone(), self.limit(&n.id).await) })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let mut by_limit: BTreeMap<Option<Duration>, Vec<String>> = BTreeMap::new();
        for (name, limit) in limits {
            if limit.is_none_or(|l| l < needed) {
                by_limit.entry(limit).or_default().push(name);
            }
        }
        let mut out: Vec<String> = by_limit.into_iter().map(|(limit, names)| sentence(limit, names, needed)).collect();
        if skipped > 0 {
            out.push(format!("{skipped} more nodes were not asked for their max_kill_timeout"));
        }
        Ok(out)
    }

    /// The node's `max_kill_timeout`, when it can be known: from its meta, else from its agent.
    pub async fn limit(&self, id: &NodeId) -> Option<Duration> {
        let now = self.clock.now();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied();
        if let Some((at, limit)) = known
            && now.since(at) < KNOWN_FOR
        {
            return limit;
        }
        let limit = self.ask(id).await;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), (now, limit));
        limit
    }

    async fn ask(&self, id: &NodeId) -> Option<Duration> {
        let node = self.nomad.node(id).await.ok()??;
        if let Some(told) = node.meta.get(META).and_then(|m| duration::parse(m).ok()) {
            return Some(told);
        }
        if node.http_addr.is_empty() {
            return None;
        }
        let scheme = if node.tls { "https" } else { "http" };
        self.nomad.agent_max_kill_timeout(&format!("{scheme}://{}", node.http_addr)).await.ok()?
    }
}

/// Those of a selection, in the order of their names.
pub(crate) async fn select(nomad: &Nomad, all: &[NodeStub], selection: &Selection) -> Result<Vec<NodeStub>, Error> {
    let named = |n: &NodeStub| selection.nodes.is_empty() || selection.nodes.iter().any(|word| means(word, n));
    let is = |wanted: Option<&str>, what: &str| wanted.is_none_or(|w| w == what);
    let mut found: Vec<NodeStub> = all
        .iter()
        .filter(|n| {
            named(n)
                && is(selection.datacenter.as_ref().map(|d| d.as_str()), &n.datacenter)
                && is(selection.node_pool.as_deref(), &n.pool)
                && is(selection.node_class.as_deref(), &n.class)
        })
        .cloned()
        .collect();
    if !selection.meta.is_empty() {
        // A list does not show meta.
        let asked: Vec<Result<Option<NodeStub>, Error>> = futures::stream::iter(found)
            .map(|n| async move {
                let node = nomad.node(&n.id).await?;
                let fits = node.is_some_and(|node| selection.meta.iter().all(|(k, v)| node.meta.get(k) == Some(v)));
                Ok(fits.then_some(n))
            })
            .buffered(AT_ONCE)
            .collect()
            .await;
        found = asked.into_iter().filter_map(Result::transpose).collect::<Result<_, _>>()?;
    }
    found.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    Ok(found)
}

/// Whether a word on a command line means this node: its id, the beginning of it, or its name.
pub(crate) fn means(word: &str, node: &NodeStub) -> bool {
    node.name == word || (!word.is_empty() && node.id.as_str().starts_with(word))
}

/// Whether Nomad may place an allocation of the job's group there.
pub(crate) fn may_run_there(job: &JobSpec, group: &str, node: &NodeStub) -> bool {
    let named = job.groups.get(group).is_none_or(|g| g.only_on.iter().all(|n| *n == node.name || *n == node.id.as_str()));
    named
        && (job.node_pool == "all" || job.node_pool == node.pool || node.pool.is_empty())
        && (job.datacenters.is_empty() || job.datacenters.iter().any(|p| glob(p, &node.datacenter)))
}

/// Why a job cannot be submitted as it is.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("the nodes could not be listed")]
    Nomad(#[from] Error),
    #[error("group \"{group}\" / task \"{task}\": no node knows the driver \"{driver}\"; the nodes know {known}")]
    Driver { group: String, task: String, driver: String, known: String },
}

fn known_drivers(job: &Value, nodes: &[NodeStub]) -> Result<(), Unfit> {
    let known: BTreeSet<&str> = nodes.iter().flat_map(|n| &n.known_drivers).map(String::as_str).collect();
    if known.is_empty() {
        return Ok(());
    }
    for group in job["TaskGroups"].as_array().into_iter().flatten() {
        for task in group["Tasks"].as_array().into_iter().flatten() {
            let Some(driver) = task["Driver"].as_str().filter(|d| !d.is_empty() && !known.contains(d)) else { continue };
            let name = |v: &Value| v["Name"].as_str().unwrap_or_default().to_owned();
            let known = known.into_iter().collect::<Vec<_>>().join(", ");
            return Err(Unfit::Driver { group: name(group), task: name(task), driver: driver.into(), known });
        }
    }
    Ok(())
}

fn longest_kill_timeout(job: &Value) -> Option<Duration> {
    let groups = job["TaskGroups"].as_array()?.iter();
    groups
        .flat_map(|g| g["Tasks"].as_array().into_iter().flatten())
        .filter_map(|t| t["KillTimeout"].as_u64())
        .max()
        .map(Duration::from_nanos)
}

fn may_run(job: &Value, node: &NodeStub) -> bool {
    let pool = job["NodePool"].as_str().filter(|p| !p.is_empty()).unwrap_or("default");
    let datacenters = job["Datacenters"].as_array().filter(|d| !d.is_empty());
    (pool == "all" || pool == node.pool || node.pool.is_empty())
        && datacenters.is_none_or(|d| d.iter().filter_map(Value::as_str).any(|p| glob(p, &node.datacenter)))
}

/// Nomad allows `*` in a datacenter's name.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            rest.char_indices().map(|(i, _)| i).chain([rest.len()]).any(|i| rest.get(i..).is_some_and(|r| glob(tail, r)))
        }),
    }
}

fn sentence(limit: Option<Duration>, names: Vec<String>, needed: Duration) -> String {
    let who = doctor::nodes(names);
    let needed = duration::format(needed);
    match limit {
        Some(l) => {
            let l = duration::format(l);
            format!(
                "{who}: max_kill_timeout is {l}, below this job's kill_timeout of {needed}: there Nomad itself sends SIGKILL {l} after SIGTERM. Raise max_kill_timeout in the client's configuration"
            )
        }
        None => format!(
            "{who}: max_kill_timeout cannot be read; make sure that it is at least {needed}, and tell it in the node's meta as max_kill_timeout"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datacenters_match_as_nomad_has_them() {
        for (pattern, text, matches) in [
            ("dc1", "dc1", true),
            ("dc1", "dc12", false),
            ("*", "dc1", true),
            ("dc*", "dc1", true),
            ("*1", "dc1", true),
            ("d*2", "dc1", false),
        ] {
            assert_eq!(glob(pattern, text), matches, "{pattern} {text}");
        }
    }

    #[test]
    fn the_warning_names_node_and_value() {
        let s = sentence(Some(Duration::from_secs(30)), vec!["c2".into(), "c1".into()], Duration::from_secs(86_400));
        assert!(s.starts_with("nodes c1, c2: max_kill_timeout is 30s, below this job's kill_timeout of 24h"), "{s}");
    }
}
