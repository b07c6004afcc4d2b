//! What every part of the cluster shares: the server's state behind one lock, and who to wake after it changed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::NodeClient;
use crate::client::processes::Processes;
use crate::clock::Clock;
use crate::config::ClusterConfig;
use crate::faults::Faults;
use crate::state::State;

/// Clusters this process has started.
static CLUSTERS: AtomicU64 = AtomicU64::new(0);

#[derive(Debug)]
pub(crate) struct Core {
    pub config: ClusterConfig,
    pub clock: Clock,
    state: Mutex<State>,
    /// The newest index; blocking queries and streams wait on it.
    pub changed: watch::Sender<u64>,
    pub schedule: Notify,
    pub timers: Notify,
    pub cancel: CancellationToken,
    pub tracker: TaskTracker,
    /// By node id.
    pub clients: RwLock<HashMap<String, Arc<NodeClient>>>,
    pub faults: Faults,
    pub processes: Processes,
    /// Tells this cluster's processes from any other's.
    pub mark: String,
    /// Without a leader every call but the agent's own is refused.
    leaderless: AtomicBool,
}

impl Core {
    pub(crate) fn new(config: ClusterConfig) -> Self {
        let clock = Clock::new(config.wall_base);
        let mut state = State::new(clock.clone(), config.seed, config.event_buffer);
        state.namespaces.extend(config.namespaces.iter().cloned());
        Self {
            clock,
            state: Mutex::new(state),
            changed: watch::Sender::new(0),
            schedule: Notify::new(),
            timers: Notify::new(),
            cancel: CancellationToken::new(),
            tracker: TaskTracker::new(),
            clients: RwLock::new(HashMap::new()),
            faults: Faults::default(),
            processes: Processes::default(),
            mark: format!("{}-{}", std::process::id(), CLUSTERS.fetch_add(1, Ordering::Relaxed)),
            leaderless: AtomicBool::new(false),
            config,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held is a bug elsewhere; the state itself is still the best there is.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read<R>(&self, f: impl FnOnce(&State) -> R) -> R {
        f(&self.lock())
    }

    /// Changes the state, then wakes whoever the change concerns.
    pub(crate) fn write<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let before = (state.index, state.timers.first().cloned());
        let out = f(&mut state);
        let index = state.index;
        let wake = std::mem::take(&mut state.wake_nodes);
        let ready = !state.queue.is_empty();
        let earlier = state.timers.first() != before.1.as_ref();
        drop(state);
        if index != before.0 {
            self.changed.send_replace(index);
        }
        if ready {
            self.schedule.notify_one();
        }
        if earlier {
            self.timers.notify_one();
        }
        if !wake.is_empty() {
            let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
            for node in wake {
                if let Some(client) = clients.get(&node) {
                    client.wake();
                }
            }
        }
        out
    }

    pub(crate) fn client(&self, node_id: &str) -> Option<Arc<NodeClient>> {
        self.clients.read().unwrap_or_else(PoisonError::into_inner).get(node_id).cloned()
    }

    pub(crate) fn client_by_name(&self, name: &str) -> Option<Arc<NodeClient>> {
        let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
        clients.values().find(|c| c.name() == name || c.id() == name).cloned()
    }

    pub(crate) fn set_leader(&self, present: bool) {
        self.leaderless.store(!present, Ordering::Relaxed);
    }

    pub(crate) fn has_leader(&self) -> bool {
        !self.leaderless.load(Ordering::Relaxed)
    }
}
