//! One allocation on its client: starts tasks in their order, ends the others when one ends for good, reports.
//!
//! As in Nomad the loop that reports is also the one that ends the others, and it waits for them: while it waits, nothing
//! more is reported (fact 9).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::task::TaskRunner;
use super::{ClientUpdate, NodeClient, health, lock};
use crate::clock::Clock;
use crate::job::{GroupSpec, Hook};
use crate::state::{Alloc, ClientStatus, Desired, Phase, TaskEvent, TaskStates};

#[derive(Debug)]
pub(crate) enum SignalError {
    TaskNotFound,
    Failed(String),
}

#[derive(Debug)]
pub(crate) struct AllocRunner {
    pub id: String,
    pub node: Arc<NodeClient>,
    pub clock: Clock,
    alloc: watch::Sender<Arc<Alloc>>,
    pub tasks: Vec<Arc<TaskRunner>>,
    changed: Notify,
    /// The states as last handled; health looks at these.
    pub broadcast: watch::Sender<Arc<TaskStates>>,
    stopping: CancellationToken,
    /// Group and task shutdown delays are skipped.
    pub skip_delay: CancellationToken,
    done: CancellationToken,
    /// Set once the runner waits for nothing but itself.
    over_time: AtomicBool,
    health: Mutex<Option<(bool, i64)>>,
    last: Mutex<Option<Arc<TaskStates>>>,
}

impl AllocRunner {
    pub(crate) fn new(node: Arc<NodeClient>, alloc: Arc<Alloc>, clock: Clock) -> Arc<Self> {
        let now = clock.now_ns();
        let tasks = alloc.spec().tasks.iter().map(|t| Arc::new(TaskRunner::new(t.clone(), &alloc, now))).collect();
        Arc::new(Self {
            id: alloc.id.clone(),
            node,
            clock,
            alloc: watch::Sender::new(alloc),
            tasks,
            changed: Notify::new(),
            broadcast: watch::Sender::new(Arc::default()),
            stopping: CancellationToken::new(),
            skip_delay: CancellationToken::new(),
            done: CancellationToken::new(),
            over_time: AtomicBool::new(false),
            health: Mutex::default(),
            last: Mutex::default(),
        })
    }

    pub(crate) fn alloc(&self) -> Arc<Alloc> {
        self.alloc.borrow().clone()
    }

    pub(crate) fn updates(&self) -> watch::Receiver<Arc<Alloc>> {
        self.alloc.subscribe()
    }

    pub(crate) fn group(&self) -> Arc<GroupSpec> {
        let a = self.alloc();
        a.job.spec.groups[a.group].clone()
    }

    pub(crate) fn now(&self) -> i64 {
        self.clock.now_ns()
    }

    pub(crate) fn notify(&self) {
        self.changed.notify_one();
    }

    pub(crate) fn over_time(&self) -> bool {
        self.over_time.load(Ordering::Relaxed)
    }

    /// The server changed its mind about the allocation.
    pub(crate) fn update(&self, alloc: Arc<Alloc>) {
        if alloc.transition.no_shutdown_delay == Some(true) {
            self.skip_delay.cancel();
        }
        let stop = alloc.desired == Desired::Stop;
        self.alloc.send_replace(alloc);
        if stop {
            self.stopping.cancel();
        }
    }

    /// The server forgot the allocation.
    pub(crate) fn destroy(&self) {
        self.stopping.cancel();
    }

    /// Tells the server again what it missed.
    pub(crate) fn reconnected(&self, lived: bool) {
        let reported = lock(&self.last).clone();
        if reported.is_some() {
            // An agent that was started anew has picked its tasks up again; it was not there to lose the server.
            if lived && self.alloc().client == ClientStatus::Unknown {
                for t in self.tasks.iter().filter(|t| t.phase() == Phase::Running) {
                    t.emit(self, TaskEvent::reconnected(self.now()));
                }
            }
            self.report(self.states());
        }
    }

    pub(crate) fn states(&self) -> Arc<TaskStates> {
        Arc::new(self.tasks.iter().map(|t| (t.name().to_owned(), t.state())).collect())
    }

    pub(crate) async fn run(self: Arc<Self>, previous: Option<Arc<Self>>, cancel: CancellationToken) {
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = self.clone().run_inner(previous) => {}
        }
    }

    async fn run_inner(self: Arc<Self>, previous: Option<Arc<Self>>) {
        // A replacement waits on its node for the one before it, even when it is not wanted any more itself.
        if let Some(previous) = previous {
            previous.done.cancelled().await;
        }
        let main = async {
            futures::future::join_all(self.tasks.iter().map(|t| t.run(&self))).await;
            self.done.cancel();
        };
        futures::future::join5(main, self.handle_states(), self.watch_stop(), self.watch_run_time(), health::watch(&self)).await;
    }

    async fn watch_stop(&self) {
        tokio::select! {
            biased;
            () = self.done.cancelled() => return,
            () = self.stopping.cancelled() => {}
        }
        self.node.alive().await;
        self.kill_tasks().await;
    }

    async fn watch_run_time(&self) {
        let Some(limit) = self.group().max_run_duration else { return };
        tokio::select! {
            biased;
            () = self.done.cancelled() => return,
            () = tokio::time::sleep(limit) => {}
        }
        self.node.alive().await;
        self.over_time.store(true, Ordering::Relaxed);
        self.kill_tasks().await;
    }

    async fn handle_states(&self) {
        let has_sidecars = self.tasks.iter().any(|t| t.spec().sidecar);
        loop {
            let last = tokio::select! {
                biased;
                () = self.done.cancelled() => true,
                () = self.changed.notified() => false,
            };
            self.node.alive().await;
            let mut states = self.states();
            let mut live = Vec::new();
            let mut reason: Option<Box<dyn Fn(i64) -> TaskEvent + Send>> = None;
            for t in self.tasks.iter().filter(|t| t.spec().hook != Hook::Poststop) {
                let Some(state) = states.get(t.name()) else { continue };
                if state.phase != Phase::Dead {
                    live.push(t.clone());
                } else if state.failed {
                    if reason.is_none() {
                        let name = t.name().to_owned();
                        reason = Some(Box::new(move |now| TaskEvent::sibling_failed(now, &name)));
                    }
                } else if t.spec().leader {
                    reason = Some(Box::new(TaskEvent::leader_dead));
                }
            }
            if live.is_empty() {
                for t in self.tasks.iter().filter(|t| t.spec().hook != Hook::Poststop) {
                    t.release();
                }
            } else {
                if reason.is_none() && has_sidecars && live.iter().all(|t| t.spec().sidecar) {
                    reason = Some(Box::new(TaskEvent::main_dead));
                }
                if let Some(reason) = reason {
                    for t in &live {
                        t.emit(self, reason(self.now()));
                    }
                    self.kill_tasks().await;
                    for t in &live {
                        t.done().cancelled().await;
                    }
                    states = self.states();
                }
            }
            self.coordinate(&states);
            self.broadcast.send_replace(states.clone());
            self.report(states);
            if last {
                return;
            }
        }
    }

    /// Opens the gate of every task whose turn has come.
    fn coordinate(&self, states: &TaskStates) {
        let of = |t: &TaskRunner| states.get(t.name()).map_or(Phase::Pending, |s| s.phase);
        let prestart_done = self.tasks.iter().filter(|t| t.spec().hook == Hook::Prestart).all(|t| {
            if t.spec().sidecar {
                of(t) != Phase::Pending
            } else {
                of(t) == Phase::Dead && states.get(t.name()).is_some_and(|s| !s.failed)
            }
        });
        let mains: Vec<&Arc<TaskRunner>> = self.tasks.iter().filter(|t| t.spec().hook == Hook::Main).collect();
        let mains_running = mains.iter().all(|t| of(t) == Phase::Running);
        let others_dead = self.tasks.iter().filter(|t| t.spec().hook != Hook::Poststop).all(|t| of(t) == Phase::Dead);
        for t in &self.tasks {
            let open = match t.spec().hook {
                Hook::Prestart => true,
                Hook::Main => prestart_done,
                Hook::Poststart => mains_running,
                Hook::Poststop => others_dead,
            };
            if open {
                t.open();
            }
        }
    }

    /// Leader first, then the others together, sidecars last, each waited for; poststop tasks are left alone.
    pub(crate) async fn kill_tasks(&self) {
        let delay = self.group().shutdown_delay;
        if !delay.is_zero() && !self.over_time() {
            tokio::select! {
                biased;
                () = self.skip_delay.cancelled() => {}
                () = tokio::time::sleep(delay) => {}
            }
        }
        if self.over_time() {
            for t in self.tasks.iter().filter(|t| t.spec().hook == Hook::Poststop) {
                t.kill(self);
            }
        }
        if let Some(leader) = self.tasks.iter().find(|t| t.spec().leader) {
            leader.kill(self);
            leader.done().cancelled().await;
        }
        for sidecars in [false, true] {
            let some: Vec<_> = self
                .tasks
                .iter()
                .filter(|t| !t.spec().leader && t.spec().hook != Hook::Poststop && t.spec().sidecar == sidecars)
                .collect();
            for t in &some {
                t.kill(self);
            }
            for t in &some {
                t.done().cancelled().await;
            }
        }
    }

    pub(crate) fn set_health(&self, healthy: bool) {
        *lock(&self.health) = Some((healthy, self.now()));
        self.report(self.states());
    }

    pub(crate) fn clear_health(&self) {
        *lock(&self.health) = None;
    }

    fn report(&self, states: Arc<TaskStates>) {
        let (mut client, mut description) = status(&states);
        if self.over_time() {
            client = ClientStatus::Complete;
            description = "allocation exceeded max_run_duration";
        }
        let mut health = *lock(&self.health);
        let mut states = states;
        if client.is_terminal() {
            let now = self.now();
            if client == ClientStatus::Failed && health.is_none() && !self.alloc().deployment_id.is_empty() {
                health = Some((false, now));
            }
            // Rescheduling counts from here.
            if states.values().any(|s| s.finished_at == 0) {
                let mut filled = TaskStates::clone(&states);
                for s in filled.values_mut().filter(|s| s.finished_at == 0) {
                    s.finished_at = now;
                }
                states = Arc::new(filled);
            }
        }
        *lock(&self.last) = Some(states.clone());
        self.node.report(&self.id, ClientUpdate { client, description, tasks: states, health });
    }

    // --- calls of the API ---

    pub(crate) fn signal(&self, task: &str, signal: &str) -> Result<(), SignalError> {
        if !task.is_empty() {
            let t = self.tasks.iter().find(|t| t.name() == task).ok_or(SignalError::TaskNotFound)?;
            return t.signal(self, signal).map_err(SignalError::Failed);
        }
        let errors: Vec<String> = self
            .tasks
            .iter()
            .filter_map(|t| t.signal(self, signal).err().map(|e| format!("Failed to signal task: {}, err: {e}", t.name())))
            .collect();
        if errors.is_empty() { Ok(()) } else { Err(SignalError::Failed(multierror(&errors))) }
    }

    /// Restarts one task or all that run; returns when the old processes are gone.
    pub(crate) async fn restart(&self, task: &str, all: bool) -> Result<(), String> {
        if self.alloc().is_terminal() {
            return Err("restart of an alloc that should not run".into());
        }
        if !task.is_empty() {
            let Some(t) = self.tasks.iter().find(|t| t.name() == task) else {
                return Err(format!("Could not find task runner for task: {task}"));
            };
            return t.restart(self, "User requested task to restart").await;
        }
        let reason = if all { "User requested all tasks to restart" } else { "User requested running tasks to restart" };
        futures::future::join_all(self.tasks.iter().map(|t| t.restart(self, reason))).await;
        Ok(())
    }

    /// Time since the first task started, for the statistics call.
    pub(crate) fn started_at(&self) -> Option<Instant> {
        self.tasks.iter().map(|t| t.state().started_at).filter(|t| *t > 0).min().map(|t| self.clock.instant_of(t))
    }

    pub(crate) fn kill_timeout(&self, wanted: i64) -> i64 {
        let most = i64::try_from(self.node.config().max_kill_timeout.as_nanos()).unwrap_or(i64::MAX);
        wanted.min(most)
    }

    pub(crate) fn should_shut_down(&self, poststop: bool) -> bool {
        let a = self.alloc();
        a.client.is_terminal() && a.client != ClientStatus::Lost || (!poststop && a.desired == Desired::Stop)
    }

    pub(crate) async fn wait_delay(&self, delay: Duration) {
        tokio::time::sleep(delay).await;
    }
}

pub(crate) fn multierror(errors: &[String]) -> String {
    let head = if errors.len() == 1 { "1 error occurred:".to_owned() } else { format!("{} errors occurred:", errors.len()) };
    let body: String = errors.iter().map(|e| format!("\n\t* {e}")).collect();
    format!("{head}{body}\n\n")
}

fn status(states: &TaskStates) -> (ClientStatus, &'static str) {
    let any = |f: &dyn Fn(&crate::state::TaskState) -> bool| states.values().any(f);
    if any(&|s| s.phase == Phase::Dead && s.failed) {
        (ClientStatus::Failed, "Failed tasks")
    } else if any(&|s| s.phase == Phase::Running) {
        (ClientStatus::Running, "Tasks are running")
    } else if any(&|s| s.phase == Phase::Pending) {
        (ClientStatus::Pending, "No tasks have started")
    } else {
        (ClientStatus::Complete, "All tasks have completed")
    }
}
