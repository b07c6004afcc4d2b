//! The server's memory: tables, their indexes, and the transactions that change them.
//!
//! Every change happens inside a transaction that takes the next index, as a Raft log entry does: [`State::begin`], upserts,
//! [`State::commit`]. The upserts keep the secondary indexes, the job statuses and the event buffer in step.

pub(crate) mod alloc;
pub(crate) mod deployment;
pub(crate) mod eval;
pub(crate) mod events;
pub(crate) mod node;
pub(crate) mod task;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use alloc::{Alloc, ClientStatus, Desired, Health, Reschedule, Transition};
pub(crate) use deployment::{Deployment, DeploymentStatus, GroupRollout};
pub(crate) use eval::{Eval, EvalStatus, GroupUpdates, PlacementFailure};
pub(crate) use events::{Event, EventBuffer, Payload, Topic};
pub(crate) use node::{Drain, LastDrain, Node, NodeStatus};
pub(crate) use task::{Phase, TaskEvent, TaskState, TaskStates};

use crate::acl::tokens::Tokens;
use crate::clock::Clock;
use crate::ids::{Ids, number};
use crate::job::{Job, JobKey, JobKind};

/// Nomad keeps this many versions of a job.
const JOB_VERSIONS: usize = 6;
/// And this many scaling events of a group.
const SCALING_EVENTS: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Table {
    Jobs,
    Allocs,
    Nodes,
    Evals,
    Deployments,
    Vars,
    AclPolicies,
    AclTokens,
}

/// What the server has to do at an instant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// An evaluation with a `WaitUntil`.
    Eval(String),
    /// A deployment's progress deadline.
    Progress(String),
    /// A node's drain: its deadline, or another look at it.
    Drain(String),
    /// A client that has not been heard of.
    Heartbeat(String),
    /// A periodic job's next child.
    Periodic(JobKey),
}

#[derive(Debug)]
pub(crate) struct JobEntry {
    pub current: Arc<Job>,
    /// Newest first, the current one included.
    pub versions: Vec<Arc<Job>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Variable {
    pub items: BTreeMap<String, String>,
    pub create_index: u64,
    pub modify_index: u64,
    pub create_time: i64,
    pub modify_time: i64,
}

#[derive(Debug)]
pub(crate) struct State {
    pub clock: Clock,
    pub ids: Ids,
    pub index: u64,
    tables: HashMap<Table, u64>,
    kind: &'static str,
    pub jobs: BTreeMap<JobKey, JobEntry>,
    pub allocs: HashMap<String, Arc<Alloc>>,
    /// By create index and id: the order of lists.
    pub alloc_order: BTreeMap<(u64, u128), Arc<Alloc>>,
    allocs_by_job: HashMap<JobKey, BTreeSet<String>>,
    allocs_by_node: HashMap<String, BTreeSet<String>>,
    /// How many of a job's allocations are not terminal.
    live_of: HashMap<JobKey, usize>,
    /// Who waits for the end of an allocation on another node.
    awaited: HashMap<String, CancellationToken>,
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// Room taken on a node: MHz, MiB and the number of allocations that want to live.
    pub usage: HashMap<String, Usage>,
    pub evals: HashMap<String, Arc<Eval>>,
    pub eval_order: BTreeSet<(u64, String)>,
    evals_by_job: HashMap<JobKey, BTreeSet<String>>,
    pub deployments: HashMap<String, Arc<Deployment>>,
    pub deployment_order: BTreeSet<(u64, String)>,
    deployments_by_job: HashMap<JobKey, Vec<String>>,
    pub vars: BTreeMap<(String, String), Variable>,
    pub namespaces: BTreeSet<String>,
    pub events: EventBuffer,
    /// Evaluations ready for the scheduler.
    pub queue: VecDeque<String>,
    /// Evaluations waiting for room.
    pub blocked: BTreeSet<String>,
    /// What is due at an instant.
    pub timers: BTreeSet<(Instant, Timer)>,
    /// Nodes with a drain strategy.
    pub draining: BTreeSet<String>,
    /// What each node's client has not fetched yet.
    pub for_node: HashMap<String, Vec<String>>,
    /// Clients to wake when the lock is released.
    pub wake_nodes: BTreeSet<String>,
    /// Statuses to look at before the transaction ends.
    touched_jobs: BTreeSet<JobKey>,
    pub scheduler_config: Value,
    /// What was asked of each group's count, newest first.
    scaling: HashMap<JobKey, BTreeMap<String, VecDeque<Value>>>,
    pub acl: Tokens,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub cpu: i64,
    pub memory_mb: i64,
    pub allocs: usize,
}

fn awaitable(a: &Alloc) -> bool {
    !a.client.is_terminal() && a.client != ClientStatus::Unknown
}

impl State {
    pub(crate) fn new(clock: Clock, seed: u64, event_buffer: usize) -> Self {
        Self {
            clock,
            ids: Ids::new(seed),
            index: 0,
            tables: HashMap::new(),
            kind: "",
            jobs: BTreeMap::new(),
            allocs: HashMap::new(),
            alloc_order: BTreeMap::new(),
            allocs_by_job: HashMap::new(),
            allocs_by_node: HashMap::new(),
            live_of: HashMap::new(),
            awaited: HashMap::new(),
            nodes: BTreeMap::new(),
            usage: HashMap::new(),
            evals: HashMap::new(),
            eval_order: BTreeSet::new(),
            evals_by_job: HashMap::new(),
            deployments: HashMap::new(),
            deployment_order: BTreeSet::new(),
            deployments_by_job: HashMap::new(),
            vars: BTreeMap::new(),
            namespaces: BTreeSet::from(["default".to_owned()]),
            events: EventBuffer::new(event_buffer),
            queue: VecDeque::new(),
            blocked: BTreeSet::new(),
            timers: BTreeSet::new(),
            draining: BTreeSet::new(),
            for_node: HashMap::new(),
            wake_nodes: BTreeSet::new(),
            touched_jobs: BTreeSet::new(),
            scheduler_config: Value::Null,
            scaling: HashMap::new(),
            acl: Tokens::default(),
        }
    }

    pub(crate) fn now(&self) -> i64 {
        self.clock.now_ns()
    }

    /// Starts a transaction; `kind` is the type its events carry.
    pub(crate) fn begin(&mut self, kind: &'static str) -> u64 {
        self.index += 1;
        self.kind = kind;
        self.index
    }

    /// Ends the transaction: recomputes job statuses and hands the frame to the event buffer.
    pub(crate) fn commit(&mut self) {
        for key in std::mem::take(&mut self.touched_jobs) {
            self.refresh_job_status(&key);
        }
        let index = self.index;
        self.events.close(index);
    }

    pub(crate) fn table(&self, table: Table) -> u64 {
        self.tables.get(&table).copied().unwrap_or(0).max(1)
    }

    pub(crate) fn touch(&mut self, table: Table) {
        self.tables.insert(table, self.index);
    }

    // --- jobs ---

    pub(crate) fn job(&self, key: &JobKey) -> Option<Arc<Job>> {
        self.jobs.get(key).map(|e| e.current.clone())
    }

    /// Stores a job; `new_version` keeps the one before it in the list of versions.
    pub(crate) fn put_job(&mut self, mut job: Job, new_version: bool) -> Arc<Job> {
        job.modify_index = self.index;
        let key = job.key();
        let job = Arc::new(job);
        let entry = self.jobs.entry(key.clone()).or_insert_with(|| JobEntry { current: job.clone(), versions: vec![] });
        entry.current = job.clone();
        match entry.versions.first_mut() {
            Some(first) if !new_version => *first = job.clone(),
            _ => entry.versions.insert(0, job.clone()),
        }
        entry.versions.truncate(JOB_VERSIONS);
        self.touch(Table::Jobs);
        self.job_event(&job);
        self.touched_jobs.insert(key);
        job
    }

    fn job_event(&mut self, job: &Arc<Job>) {
        self.events.push(Event {
            topic: Topic::Job,
            kind: self.kind,
            key: job.spec.id.clone(),
            namespace: job.spec.namespace.clone(),
            filter_keys: (!job.spec.parent_id.is_empty()).then(|| vec![job.spec.parent_id.clone()]),
            payload: Payload::Job(job.clone()),
        });
    }

    pub(crate) fn note_scaling(&mut self, key: &JobKey, group: &str, event: Value) {
        let list = self.scaling.entry(key.clone()).or_default().entry(group.to_owned()).or_default();
        list.push_front(event);
        list.truncate(SCALING_EVENTS);
        self.touch(Table::Jobs);
    }

    pub(crate) fn scaling_of(&self, key: &JobKey, group: &str) -> Option<&VecDeque<Value>> {
        self.scaling.get(key)?.get(group)
    }

    pub(crate) fn mark_stable(&mut self, key: &JobKey, version: u64, stable: bool) {
        let index = self.index;
        let Some(entry) = self.jobs.get_mut(key) else { return };
        for v in entry.versions.iter_mut().filter(|v| v.version == version) {
            let mut job = Job::clone(v);
            job.stable = stable;
            job.modify_index = index;
            *v = Arc::new(job);
            if entry.current.version == version {
                entry.current = v.clone();
            }
        }
        self.touch(Table::Jobs);
    }

    /// Removes a job with everything that hangs on it; its clients learn of it as a removal.
    pub(crate) fn purge_job(&mut self, key: &JobKey) {
        if self.jobs.remove(key).is_none() {
            return;
        }
        self.scaling.remove(key);
        self.events.push(Event {
            topic: Topic::Job,
            kind: self.kind,
            key: key.1.clone(),
            namespace: key.0.clone(),
            filter_keys: None,
            payload: Payload::JobDeleted,
        });
        for id in self.alloc_ids_of(key) {
            self.remove_alloc(&id);
        }
        for id in self.deployments_by_job.remove(key).unwrap_or_default() {
            if let Some(d) = self.deployments.remove(&id) {
                self.deployment_order.remove(&(d.create_index, id));
            }
            self.touch(Table::Deployments);
        }
        // Evaluations outlive their job until they are collected; none may still wait for it.
        for e in self.evals_of(key).iter().filter(|e| e.status == EvalStatus::Blocked) {
            let mut e = Eval::clone(e);
            e.status = EvalStatus::Cancelled;
            self.put_eval(e);
        }
        self.touch(Table::Jobs);
    }

    fn refresh_job_status(&mut self, key: &JobKey) {
        let Some(entry) = self.jobs.get(key) else { return };
        let job = entry.current.clone();
        let status = self.job_status(&job);
        if status == job.status {
            return;
        }
        let mut changed = Job::clone(&job);
        changed.status = status;
        changed.modify_index = self.index;
        let changed = Arc::new(changed);
        if let Some(entry) = self.jobs.get_mut(key) {
            entry.current = changed.clone();
            if let Some(first) = entry.versions.first_mut() {
                *first = changed.clone();
            }
        }
        self.touch(Table::Jobs);
        self.job_event(&changed);
    }

    fn job_status(&self, job: &Job) -> &'static str {
        if job.spec.periodic || job.spec.parameterized || (job.spec.kind == JobKind::System) {
            return if job.stop { "dead" } else { "running" };
        }
        let key = job.key();
        let active = |id| self.deployments.get(id).is_some_and(|d: &Arc<Deployment>| d.status.is_active());
        if self.deployments_by_job.get(&key).into_iter().flatten().any(active) {
            return "running";
        }
        if self.live_of.get(&key).is_some_and(|n| *n > 0) {
            return "running";
        }
        let mut any = self.allocs_by_job.get(&key).is_some_and(|ids| !ids.is_empty());
        for id in self.evals_by_job.get(&key).into_iter().flatten() {
            if let Some(e) = self.evals.get(id) {
                any = true;
                if !e.status.is_terminal() {
                    return "pending";
                }
            }
        }
        if any { "dead" } else { "pending" }
    }

    // --- allocations ---

    /// A job's allocations in no order that means anything.
    pub(crate) fn allocs_of_iter(&self, key: &JobKey) -> impl Iterator<Item = &Arc<Alloc>> {
        self.allocs_by_job.get(key).into_iter().flatten().filter_map(|id| self.allocs.get(id))
    }

    pub(crate) fn alloc_ids_of(&self, key: &JobKey) -> Vec<String> {
        self.allocs_by_job.get(key).map(|s| s.iter().cloned().collect()).unwrap_or_default()
    }

    /// A job's allocations, oldest first.
    pub(crate) fn allocs_of(&self, key: &JobKey) -> Vec<Arc<Alloc>> {
        let mut all: Vec<Arc<Alloc>> = self.allocs_of_iter(key).cloned().collect();
        all.sort_by(|a, b| (a.create_index, a.slot, &a.id).cmp(&(b.create_index, b.slot, &b.id)));
        all
    }

    pub(crate) fn allocs_on(&self, node: &str) -> Vec<Arc<Alloc>> {
        self.allocs_by_node.get(node).into_iter().flatten().filter_map(|id| self.allocs.get(id)).cloned().collect()
    }

    /// Stores an allocation that the server changed: its client has to hear of it.
    pub(crate) fn put_alloc(&mut self, mut alloc: Alloc) -> Arc<Alloc> {
        alloc.alloc_modify_index = self.index;
        alloc.modify_time = self.now();
        let node = alloc.node_id.clone();
        let id = alloc.id.clone();
        let stored = self.store_alloc(alloc);
        self.tell_client(node, id);
        stored
    }

    fn tell_client(&mut self, node: String, alloc: String) {
        self.wake_nodes.insert(node.clone());
        self.for_node.entry(node).or_default().push(alloc);
    }

    /// Stores what the client reported: nothing to tell the client.
    pub(crate) fn put_client_alloc(&mut self, alloc: Alloc) -> Arc<Alloc> {
        self.store_alloc(alloc)
    }

    fn store_alloc(&mut self, mut alloc: Alloc) -> Arc<Alloc> {
        alloc.modify_index = self.index;
        let key = alloc.job_key();
        let alloc = Arc::new(alloc);
        let old = self.allocs.insert(alloc.id.clone(), alloc.clone());
        if let Some(old) = &old {
            self.account(old, -1);
        } else {
            self.allocs_by_job.entry(key.clone()).or_default().insert(alloc.id.clone());
            self.allocs_by_node.entry(alloc.node_id.clone()).or_default().insert(alloc.id.clone());
        }
        self.alloc_order.insert((alloc.create_index, number(&alloc.id)), alloc.clone());
        self.account(&alloc, 1);
        self.count_live(&key, old.as_ref().is_some_and(|o| !o.is_terminal()), !alloc.is_terminal());
        if !awaitable(&alloc)
            && let Some(waiting) = self.awaited.remove(&alloc.id)
        {
            waiting.cancel();
        }
        self.touch(Table::Allocs);
        self.events.push(Event {
            topic: Topic::Allocation,
            kind: self.kind,
            key: alloc.id.clone(),
            namespace: key.0.clone(),
            filter_keys: Some(vec![key.1.clone(), alloc.deployment_id.clone()]),
            payload: Payload::Alloc(alloc.clone()),
        });
        if old.is_none_or(|o| o.is_terminal() != alloc.is_terminal()) {
            self.touched_jobs.insert(key);
        }
        alloc
    }

    fn count_live(&mut self, key: &JobKey, was: bool, is: bool) {
        match (was, is) {
            (false, true) => *self.live_of.entry(key.clone()).or_default() += 1,
            (true, false) => {
                if let Some(n) = self.live_of.get_mut(key) {
                    *n = n.saturating_sub(1);
                }
            }
            _ => {}
        }
    }

    /// Cancelled once an allocation is over as far as the server knows, or cannot be heard of.
    pub(crate) fn when_gone(&mut self, id: &str) -> CancellationToken {
        if self.allocs.get(id).is_some_and(|a| awaitable(a)) {
            return self.awaited.entry(id.to_owned()).or_default().clone();
        }
        let gone = CancellationToken::new();
        gone.cancel();
        gone
    }

    fn account(&mut self, alloc: &Alloc, sign: i64) {
        // As Nomad's, room is taken until the client says that it is over.
        if alloc.client.is_terminal() {
            return;
        }
        let (cpu, memory) = (alloc.spec().cpu, alloc.spec().memory_mb);
        let u = self.usage.entry(alloc.node_id.clone()).or_default();
        u.cpu += sign * cpu;
        u.memory_mb += sign * memory;
        u.allocs = if sign > 0 { u.allocs + 1 } else { u.allocs.saturating_sub(1) };
    }

    pub(crate) fn remove_alloc(&mut self, id: &str) {
        let Some(alloc) = self.allocs.remove(id) else { return };
        self.account(&alloc, -1);
        self.count_live(&alloc.job_key(), !alloc.is_terminal(), false);
        if let Some(waiting) = self.awaited.remove(id) {
            waiting.cancel();
        }
        self.alloc_order.remove(&(alloc.create_index, number(id)));
        if let Some(set) = self.allocs_by_job.get_mut(&alloc.job_key()) {
            set.remove(id);
        }
        if let Some(set) = self.allocs_by_node.get_mut(&alloc.node_id) {
            set.remove(id);
        }
        self.tell_client(alloc.node_id.clone(), id.to_owned());
        self.touch(Table::Allocs);
    }

    // --- nodes ---

    pub(crate) fn put_node(&mut self, mut node: Node) -> Arc<Node> {
        node.modify_index = self.index;
        self.store_node(node)
    }

    /// An allocation report moves the node's own counter, not its modify index.
    pub(crate) fn note_node_report(&mut self, id: &str) {
        if let Some(node) = self.nodes.get(id) {
            let mut n = Node::clone(node);
            n.last_alloc_update = self.index;
            self.store_node(n);
        }
    }

    pub(crate) fn remove_node(&mut self, id: &str) {
        let Some(node) = self.nodes.remove(id) else { return };
        self.draining.remove(id);
        self.node_event(node);
    }

    fn store_node(&mut self, node: Node) -> Arc<Node> {
        let node = Arc::new(node);
        if node.drain.is_some() {
            self.draining.insert(node.id.clone());
        } else {
            self.draining.remove(&node.id);
        }
        self.nodes.insert(node.id.clone(), node.clone());
        self.node_event(node.clone());
        node
    }

    fn node_event(&mut self, node: Arc<Node>) {
        self.touch(Table::Nodes);
        self.events.push(Event {
            topic: Topic::Node,
            kind: self.kind,
            key: node.id.clone(),
            namespace: String::new(),
            filter_keys: None,
            payload: Payload::Node(node),
        });
    }

    // --- evaluations ---

    pub(crate) fn new_eval(&mut self, job: &Job, triggered_by: &'static str) -> Eval {
        let now = self.now();
        Eval {
            id: self.ids.uuid(),
            job: job.key(),
            kind: job.spec.kind.as_str(),
            priority: job.spec.priority,
            triggered_by,
            job_modify_index: 0,
            node_id: String::new(),
            deployment_id: String::new(),
            status: EvalStatus::Pending,
            status_description: String::new(),
            wait_until: 0,
            previous: String::new(),
            next: String::new(),
            blocked: String::new(),
            updates: None,
            queued: None,
            failures: BTreeMap::new(),
            snapshot_index: 0,
            create_index: 0,
            modify_index: 0,
            create_time: now,
            modify_time: now,
        }
    }

    pub(crate) fn put_eval(&mut self, mut eval: Eval) -> Arc<Eval> {
        eval.modify_index = self.index;
        eval.modify_time = self.now();
        if eval.create_index == 0 {
            eval.create_index = self.index;
        }
        let id = eval.id.clone();
        let eval = Arc::new(eval);
        let old = self.evals.insert(id.clone(), eval.clone());
        if old.is_none() {
            self.eval_order.insert((eval.create_index, id.clone()));
            self.evals_by_job.entry(eval.job.clone()).or_default().insert(id.clone());
        }
        let was_pending = old.as_ref().is_some_and(|o| o.status == EvalStatus::Pending);
        match eval.status {
            EvalStatus::Pending if !was_pending && eval.wait_until > 0 => {
                let at = self.clock.instant_of(eval.wait_until);
                self.timers.insert((at, Timer::Eval(id)));
            }
            EvalStatus::Pending if !was_pending => self.queue.push_back(id),
            EvalStatus::Blocked => {
                self.blocked.insert(id);
            }
            _ => {
                self.blocked.remove(&id);
            }
        }
        self.touch(Table::Evals);
        self.touched_jobs.insert(eval.job.clone());
        self.events.push(Event {
            topic: Topic::Evaluation,
            kind: self.kind,
            key: eval.id.clone(),
            namespace: eval.job.0.clone(),
            filter_keys: Some(vec![eval.job.1.clone(), eval.deployment_id.clone()]),
            payload: Payload::Eval(eval.clone()),
        });
        eval
    }

    pub(crate) fn evals_of_iter(&self, key: &JobKey) -> impl Iterator<Item = &Arc<Eval>> {
        self.evals_by_job.get(key).into_iter().flatten().filter_map(|id| self.evals.get(id))
    }

    pub(crate) fn evals_of(&self, key: &JobKey) -> Vec<Arc<Eval>> {
        let mut all: Vec<Arc<Eval>> = self.evals_of_iter(key).cloned().collect();
        all.sort_by(|a, b| (a.create_index, &a.id).cmp(&(b.create_index, &b.id)));
        all
    }

    pub(crate) fn remove_eval(&mut self, id: &str) {
        if let Some(e) = self.evals.remove(id) {
            self.eval_order.remove(&(e.create_index, id.to_owned()));
            if let Some(set) = self.evals_by_job.get_mut(&e.job) {
                set.remove(id);
            }
            self.blocked.remove(id);
            self.touch(Table::Evals);
        }
    }

    /// Nodes have changed: what waited for that is looked at again.
    pub(crate) fn unblock(&mut self) {
        self.unblock_where(|_| true);
    }

    /// There is room: what no node fits waits on.
    pub(crate) fn unblock_for_room(&mut self) {
        self.unblock_where(Eval::waits_for_room);
    }

    fn unblock_where(&mut self, wanted: impl Fn(&Eval) -> bool) {
        for id in std::mem::take(&mut self.blocked) {
            let Some(eval) = self.evals.get(&id) else { continue };
            if !wanted(eval) {
                self.blocked.insert(id);
                continue;
            }
            let mut eval = Eval::clone(eval);
            eval.status = EvalStatus::Pending;
            self.put_eval(eval);
        }
    }

    // --- deployments ---

    pub(crate) fn put_deployment(&mut self, mut d: Deployment) -> Arc<Deployment> {
        d.modify_index = self.index;
        d.modify_time = self.now();
        if d.create_index == 0 {
            d.create_index = self.index;
            d.create_time = d.modify_time;
            self.deployment_order.insert((d.create_index, d.id.clone()));
            self.deployments_by_job.entry(d.job.clone()).or_default().push(d.id.clone());
        }
        let d = Arc::new(d);
        self.deployments.insert(d.id.clone(), d.clone());
        self.touched_jobs.insert(d.job.clone());
        self.touch(Table::Deployments);
        self.events.push(Event {
            topic: Topic::Deployment,
            kind: self.kind,
            key: d.id.clone(),
            namespace: d.job.0.clone(),
            filter_keys: Some(vec![d.job.1.clone()]),
            payload: Payload::Deployment(d.clone()),
        });
        d
    }

    pub(crate) fn remove_deployment(&mut self, id: &str) {
        if let Some(d) = self.deployments.remove(id) {
            self.deployment_order.remove(&(d.create_index, id.to_owned()));
            if let Some(list) = self.deployments_by_job.get_mut(&d.job) {
                list.retain(|x| x != id);
            }
            self.touch(Table::Deployments);
        }
    }

    /// Newest first.
    pub(crate) fn deployments_of(&self, key: &JobKey) -> Vec<Arc<Deployment>> {
        let mut all: Vec<Arc<Deployment>> =
            self.deployments_by_job.get(key).into_iter().flatten().filter_map(|id| self.deployments.get(id)).cloned().collect();
        all.sort_by_key(|d| std::cmp::Reverse(d.create_index));
        all
    }

    pub(crate) fn latest_deployment(&self, key: &JobKey) -> Option<Arc<Deployment>> {
        self.deployments_of(key).into_iter().next()
    }
}
