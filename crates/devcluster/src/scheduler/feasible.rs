//! Which nodes may run a group: datacenter, pool, drivers, constraints, room.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use regex::Regex;

use crate::job::spec::Constraint;
use crate::job::{GroupSpec, JobSpec};
use crate::state::{Node, PlacementFailure, State, Usage};

/// Candidates looked at for one placement in a big cluster; Nomad takes about log2 of the nodes.
const SAMPLE: usize = 16;

/// Lower is better: to be avoided, allocations of the same job, allocations at all, order.
type Rank = (bool, usize, usize, usize);

/// Chooses nodes for one group, remembering what it has handed out.
pub(crate) struct Placer<'a> {
    state: &'a State,
    feasible: Vec<&'a Arc<Node>>,
    taken: HashMap<String, Usage>,
    same_job: HashMap<String, usize>,
    /// At most one allocation of the job on a node.
    distinct: bool,
    need: (i64, i64),
    /// By task: MHz and MiB.
    asked: BTreeMap<String, (i64, i64)>,
    /// The failure is that of the first allocation without a place.
    told: bool,
    start: usize,
    pub failure: PlacementFailure,
}

impl<'a> Placer<'a> {
    pub(crate) fn new(
        state: &'a State,
        job: &JobSpec,
        group: &GroupSpec,
        same_job: HashMap<String, usize>,
        taken: HashMap<String, Usage>,
    ) -> Self {
        let mut failure = PlacementFailure { pool: job.node_pool.clone(), ..PlacementFailure::default() };
        let mut feasible = Vec::new();
        for node in state.nodes.values().filter(|n| n.is_ready()) {
            if job.node_pool != "all" && node.config.node_pool != job.node_pool {
                continue;
            }
            if !in_datacenter(&job.datacenters, &node.config.datacenter) {
                continue;
            }
            failure.in_pool += 1;
            match failure.available.get_mut(&node.config.datacenter) {
                Some(n) => *n += 1,
                None => drop(failure.available.insert(node.config.datacenter.clone(), 1)),
            }
            failure.evaluated += 1;
            match refusal(node, job, group) {
                None => feasible.push(node),
                Some(why) => {
                    failure.filtered += 1;
                    *failure.constraint_filtered.entry(why).or_default() += 1;
                }
            }
        }
        let start = if feasible.is_empty() { 0 } else { (state.index as usize).wrapping_mul(7) % feasible.len() };
        let distinct =
            job.constraints.iter().chain(&group.constraints).any(|c| c.operand == "distinct_hosts" && c.right != "false");
        let need = (group.cpu, group.memory_mb);
        let asked = group.tasks.iter().map(|t| (t.name.clone(), (t.cpu, t.memory_mb))).collect();
        Self { state, feasible, taken, same_job, distinct, need, asked, told: false, start, failure }
    }

    pub(crate) fn nodes_in_dc(&self) -> usize {
        self.failure.available.values().sum()
    }

    pub(crate) fn feasible(&self) -> &[&'a Arc<Node>] {
        &self.feasible
    }

    /// Room on the node, this plan's own placements counted.
    pub(crate) fn fits(&self, node: &Node) -> Option<&'static str> {
        let used = self.usage(&node.id);
        if used.cpu + self.need.0 > node.config.cpu {
            Some("cpu")
        } else if used.memory_mb + self.need.1 > node.config.memory_mb {
            Some("memory")
        } else {
            None
        }
    }

    fn usage(&self, id: &str) -> Usage {
        let base = self.state.usage.get(id).copied().unwrap_or_default();
        let more = self.taken.get(id).copied().unwrap_or_default();
        Usage { cpu: base.cpu + more.cpu, memory_mb: base.memory_mb + more.memory_mb, allocs: base.allocs + more.allocs }
    }

    pub(crate) fn take(&mut self, node: &Node) {
        let u = self.taken.entry(node.id.clone()).or_default();
        u.cpu += self.need.0;
        u.memory_mb += self.need.1;
        u.allocs += 1;
        *self.same_job.entry(node.id.clone()).or_default() += 1;
    }

    /// The node with the fewest allocations of the job, then with the fewest at all; `avoid` only when nothing else is left.
    pub(crate) fn choose(&mut self, avoid: &str) -> Option<Arc<Node>> {
        let n = self.feasible.len();
        let sample = if n <= 128 { n } else { SAMPLE };
        let mut best: Option<(Rank, &'a Arc<Node>)> = None;
        let (mut seen, mut occupied) = (0, 0);
        let mut exhausted: BTreeMap<&str, usize> = BTreeMap::new();
        for i in 0..n {
            let at = (self.start + i) % n;
            let node = self.feasible[at];
            if self.distinct && self.same_job.get(&node.id).is_some_and(|n| *n > 0) {
                occupied += 1;
                continue;
            }
            if let Some(dimension) = self.fits(node) {
                *exhausted.entry(dimension).or_default() += 1;
                continue;
            }
            let key = (node.id == avoid, self.same_job.get(&node.id).copied().unwrap_or(0), self.usage(&node.id).allocs, i);
            if best.as_ref().is_none_or(|(k, _)| key < *k) {
                best = Some((key, node));
            }
            seen += 1;
            if seen >= sample {
                break;
            }
        }
        let node = best.map(|(_, node)| node.clone());
        match &node {
            Some(node) => {
                if n > 128 {
                    self.start = (self.start + seen) % n;
                }
                self.take(node);
            }
            None => {
                for dimension in exhausted.keys() {
                    self.failure.lacks(dimension, &self.asked);
                }
                // The first that finds no place is told of, the others are counted.
                if !std::mem::replace(&mut self.told, true) {
                    self.failure.exhausted = exhausted.values().sum();
                    self.failure.dimension_exhausted.extend(exhausted.into_iter().map(|(d, n)| (d.to_owned(), n)));
                    if occupied > 0 {
                        self.failure.filtered += occupied;
                        self.failure.constraint_filtered.insert("distinct_hosts".into(), occupied);
                    }
                }
            }
        }
        node
    }

    pub(crate) fn into_taken(self) -> HashMap<String, Usage> {
        self.taken
    }
}

/// `*` and `?` as in a shell; Nomad's datacenter lists allow them.
fn in_datacenter(patterns: &[String], datacenter: &str) -> bool {
    patterns.iter().any(|p| glob(p.as_bytes(), datacenter.as_bytes()))
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.first(), text.first()) {
        (None, None) => true,
        (Some(b'*'), _) => glob(&pattern[1..], text) || (!text.is_empty() && glob(pattern, &text[1..])),
        (Some(b'?'), Some(_)) => glob(&pattern[1..], &text[1..]),
        (Some(p), Some(t)) if p == t => glob(&pattern[1..], &text[1..]),
        _ => false,
    }
}

/// The reason a node is no good for the group, as placement metrics name it.
/// Whether what runs on a node may stay there under a changed job: else it cannot be updated in place.
pub(crate) fn may_stay(node: &Node, job: &JobSpec, group: &GroupSpec) -> bool {
    in_datacenter(&job.datacenters, &node.config.datacenter) && refusal(node, job, group).is_none()
}

fn refusal(node: &Node, job: &JobSpec, group: &GroupSpec) -> Option<String> {
    if let Some(t) = group.tasks.iter().find(|t| !node.config.drivers.contains(&t.driver)) {
        tracing::trace!(node = %node.name, driver = %t.driver, "driver missing");
        return Some("missing drivers".to_owned());
    }
    job.constraints
        .iter()
        .chain(&group.constraints)
        .chain(group.tasks.iter().flat_map(|t| &t.constraints))
        .find(|c| !holds(c, node))
        .map(|c| match c.operand.as_str() {
            "distinct_hosts" => "distinct_hosts".to_owned(),
            op => format!("{} {op} {}", c.left, c.right),
        })
}

/// The value behind `${node.…}`, `${attr.…}` or `${meta.…}`; a literal stands for itself.
pub(crate) fn target(text: &str, node: &Node) -> Option<String> {
    let Some(name) = text.strip_prefix("${").and_then(|t| t.strip_suffix('}')) else { return Some(text.to_owned()) };
    if let Some(key) = name.strip_prefix("attr.") {
        return node.attributes.get(key).cloned();
    }
    if let Some(key) = name.strip_prefix("meta.") {
        return node.config.meta.get(key).cloned();
    }
    match name {
        "node.unique.id" => Some(node.id.clone()),
        "node.unique.name" => Some(node.name.to_string()),
        "node.datacenter" => Some(node.config.datacenter.clone()),
        "node.class" => Some(node.config.node_class.clone()),
        "node.pool" => Some(node.config.node_pool.clone()),
        "node.region" => Some("global".into()),
        _ => name.strip_prefix("node.meta.").and_then(|k| node.config.meta.get(k).cloned()),
    }
}

fn holds(c: &Constraint, node: &Node) -> bool {
    let left = target(&c.left, node);
    let right = target(&c.right, node);
    match c.operand.as_str() {
        "distinct_hosts" | "distinct_property" => true,
        "is_set" => left.is_some(),
        "is_not_set" => left.is_none(),
        "!=" | "not" => left != right,
        "" | "=" | "==" | "is" => left.is_some() && left == right,
        op => {
            let (Some(left), Some(right)) = (left, right) else { return false };
            match op {
                "<" => compare(&left, &right).is_lt(),
                "<=" => compare(&left, &right).is_le(),
                ">" => compare(&left, &right).is_gt(),
                ">=" => compare(&left, &right).is_ge(),
                "regexp" => Regex::new(&right).is_ok_and(|r| r.is_match(&left)),
                "set_contains" | "set_contains_all" => right.split(',').all(|w| contains(&left, w)),
                "set_contains_any" => right.split(',').any(|w| contains(&left, w)),
                "version" | "semver" => version(&left, &right),
                _ => false,
            }
        }
    }
}

fn contains(list: &str, want: &str) -> bool {
    list.split(',').any(|x| x.trim() == want.trim())
}

fn compare(a: &str, b: &str) -> std::cmp::Ordering {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(x), Ok(y)) => x.total_cmp(&y),
        _ => a.cmp(b),
    }
}

fn version(have: &str, want: &str) -> bool {
    let numbers = |t: &str| -> Vec<u64> { t.trim().trim_start_matches('v').split('.').map(|n| n.parse().unwrap_or(0)).collect() };
    want.split(',').all(|part| {
        let part = part.trim();
        let at = part.find(|c: char| c.is_ascii_digit() || c == 'v').unwrap_or(part.len());
        let (op, number) = (part[..at].trim(), numbers(&part[at..]));
        let have = numbers(have);
        match op {
            "" | "=" => have == number,
            "!=" => have != number,
            ">" => have > number,
            ">=" => have >= number,
            "<" => have < number,
            "<=" => have <= number,
            "~>" => have >= number && have.first() == number.first(),
            _ => false,
        }
    })
}

/// How many allocations of a job each node holds.
pub(crate) fn count_by_node<'a>(allocs: impl Iterator<Item = &'a crate::state::Alloc>) -> HashMap<String, usize> {
    let mut map = HashMap::new();
    for a in allocs {
        *map.entry(a.node_id.clone()).or_default() += 1;
    }
    map
}

pub(crate) type Failures = BTreeMap<String, PlacementFailure>;

#[cfg(test)]
mod tests {
    use super::{glob, version};

    #[test]
    fn globs() {
        assert!(glob(b"dc*", b"dc1"));
        assert!(glob(b"*", b"x"));
        assert!(!glob(b"dc?", b"dc12"));
    }

    #[test]
    fn versions() {
        assert!(version("2.0.5", ">= 1.8, < 3.0"));
        assert!(!version("2.0.5", "< 2.0.0"));
    }
}
