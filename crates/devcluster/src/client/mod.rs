//! The clients: one for each node, running allocations and reporting to the server in batches.

pub(crate) mod driver;
mod env;
mod health;
pub(crate) mod mock;
pub(crate) mod processes;
mod restart;
mod runner;
pub(crate) mod signals;
mod task;
mod template;
mod tree;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

pub(crate) use runner::{AllocRunner, SignalError};
pub(crate) use template::inside;

use crate::config::NodeConfig;
use crate::core::Core;
use crate::state::{Alloc, ClientStatus, TaskStates};

/// Updates that are not urgent wait for every fifth batch.
const TYPICAL_TICKS: u32 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Agent {
    Up,
    /// The agent process is gone; what it started lives on.
    Dead,
    /// The agent runs, but server and client do not hear each other.
    Cut,
}

/// What a client says about one allocation.
#[derive(Debug, Clone)]
pub(crate) struct ClientUpdate {
    pub client: ClientStatus,
    pub description: &'static str,
    pub tasks: Arc<TaskStates>,
    pub health: Option<(bool, i64)>,
}

#[derive(Debug, Default)]
struct Pending {
    updates: BTreeMap<String, ClientUpdate>,
    urgent: bool,
}

#[derive(Debug)]
pub(crate) struct NodeClient {
    id: String,
    config: Arc<NodeConfig>,
    core: Weak<Core>,
    runners: Mutex<BTreeMap<String, Arc<AllocRunner>>>,
    pending: Mutex<Pending>,
    wake: Notify,
    flush: Notify,
    agent: watch::Sender<Agent>,
    /// Statuses the server has, to tell urgent from ordinary.
    acknowledged: Mutex<HashMap<String, ClientStatus>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NodeClient {
    pub(crate) fn start(core: &Arc<Core>, id: String, config: Arc<NodeConfig>) -> Arc<Self> {
        let client = Arc::new(Self {
            id,
            config,
            core: Arc::downgrade(core),
            runners: Mutex::default(),
            pending: Mutex::default(),
            wake: Notify::new(),
            flush: Notify::new(),
            agent: watch::Sender::new(Agent::Up),
            acknowledged: Mutex::default(),
        });
        let (a, b) = (client.clone(), client.clone());
        let cancel = core.cancel.clone();
        core.tracker.spawn(async move {
            let both = futures::future::join(a.fetch_loop(), b.flush_loop());
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                _ = both => {}
            }
        });
        client
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn config(&self) -> &Arc<NodeConfig> {
        &self.config
    }

    pub(crate) fn core(&self) -> Option<Arc<Core>> {
        self.core.upgrade()
    }

    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(crate) fn agent(&self) -> Agent {
        *self.agent.borrow()
    }

    /// Server and client hear each other.
    pub(crate) fn reachable(&self) -> bool {
        self.agent() == Agent::Up
    }

    pub(crate) fn set_agent(&self, agent: Agent) {
        self.agent.send_replace(agent);
        self.wake.notify_one();
        self.flush.notify_one();
    }

    /// Returns once the agent process runs; a dead agent notices nothing and decides nothing.
    pub(crate) async fn alive(&self) {
        let mut rx = self.agent.subscribe();
        let _ = rx.wait_for(|a| *a != Agent::Dead).await;
    }

    /// Returns when the agent process dies.
    pub(crate) async fn death(&self) {
        let mut rx = self.agent.subscribe();
        if rx.wait_for(|a| *a == Agent::Dead).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    pub(crate) fn runner(&self, alloc: &str) -> Option<Arc<AllocRunner>> {
        lock(&self.runners).get(alloc).cloned()
    }

    async fn fetch_loop(self: Arc<Self>) {
        loop {
            self.wake.notified().await;
            if !self.reachable() {
                continue;
            }
            let Some(core) = self.core() else { return };
            let news: Vec<(String, Option<Arc<Alloc>>)> = core.write(|s| {
                let ids = s.for_node.remove(&self.id).unwrap_or_default();
                ids.into_iter().map(|id| (id.clone(), s.allocs.get(&id).cloned())).collect()
            });
            for (id, alloc) in news {
                self.take(&core, &id, alloc);
            }
        }
    }

    fn take(self: &Arc<Self>, core: &Arc<Core>, id: &str, alloc: Option<Arc<Alloc>>) {
        let known = self.runner(id);
        match (known, alloc) {
            (Some(runner), Some(alloc)) => runner.update(alloc),
            (Some(runner), None) => {
                // Forgotten by the server: no call finds it any more, its tasks are told to end all the same.
                lock(&self.runners).remove(id);
                lock(&self.pending).updates.remove(id);
                lock(&self.acknowledged).remove(id);
                runner.destroy();
            }
            (None, Some(alloc)) if !alloc.client.is_terminal() => {
                let previous = self.runner(&alloc.prev_alloc);
                let far = if previous.is_none() { alloc.prev_alloc.clone() } else { String::new() };
                let runner = AllocRunner::new(self.clone(), alloc, core.clock.clone());
                lock(&self.runners).insert(id.to_owned(), runner.clone());
                let waiting = core.clone();
                core.tracker.spawn(async move {
                    // The allocation before, when it is another node's, has to be over as far as the server knows.
                    if !far.is_empty() {
                        let gone = waiting.write(|s| s.when_gone(&far));
                        tokio::select! {
                            biased;
                            () = waiting.cancel.cancelled() => return,
                            () = gone.cancelled() => {}
                        }
                    }
                    runner.run(previous, waiting.cancel.clone()).await;
                });
            }
            (None, _) => {}
        }
    }

    /// After a time away: everything the server wants now, and everything the client has to say.
    /// `lived`: its agent ran on, only the server did not hear it.
    pub(crate) fn resync(self: &Arc<Self>, lived: bool) {
        let Some(core) = self.core() else { return };
        let wanted: Vec<Arc<Alloc>> = core.write(|s| {
            s.for_node.remove(&self.id);
            s.allocs_on(&self.id)
        });
        let ids: std::collections::HashSet<&str> = wanted.iter().map(|a| a.id.as_str()).collect();
        let gone: Vec<String> = lock(&self.runners).keys().filter(|id| !ids.contains(id.as_str())).cloned().collect();
        for id in gone {
            self.take(&core, &id, None);
        }
        for alloc in wanted {
            let id = alloc.id.clone();
            self.take(&core, &id, Some(alloc));
        }
        let runners: Vec<Arc<AllocRunner>> = lock(&self.runners).values().cloned().collect();
        for runner in runners {
            runner.reconnected(lived);
        }
    }

    /// Queues a report; a changed status goes out with the next batch, anything else with every fifth.
    pub(crate) fn report(&self, alloc: &str, update: ClientUpdate) {
        let known = lock(&self.acknowledged).get(alloc).copied();
        let urgent = match known {
            None => update.client == ClientStatus::Failed,
            Some(status) => status != update.client,
        };
        let mut p = lock(&self.pending);
        p.updates.insert(alloc.to_owned(), update);
        p.urgent |= urgent;
        drop(p);
        self.flush.notify_one();
    }

    async fn flush_loop(self: Arc<Self>) {
        let Some(period) = self.core().map(|c| c.config.client_batch.max(Duration::from_millis(1))) else { return };
        let start = Instant::now();
        loop {
            let (empty, urgent) = {
                let p = lock(&self.pending);
                (p.updates.is_empty(), p.urgent)
            };
            if empty || !self.reachable() {
                self.flush.notified().await;
                continue;
            }
            let step = if urgent { period } else { period * TYPICAL_TICKS };
            let elapsed = start.elapsed().as_nanos();
            let due = start + nanos((elapsed / step.as_nanos() + 1) * step.as_nanos());
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(due) => {}
                () = self.flush.notified() => continue,
            }
            if !self.reachable() {
                continue;
            }
            let updates = {
                let mut p = lock(&self.pending);
                p.urgent = false;
                std::mem::take(&mut p.updates)
            };
            let Some(core) = self.core() else { return };
            {
                let mut ack = lock(&self.acknowledged);
                for (id, u) in &updates {
                    ack.insert(id.clone(), u.client);
                }
            }
            core.write(|s| crate::server::client_report(s, &self.id, updates));
        }
    }
}

fn nanos(ns: u128) -> Duration {
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
}
