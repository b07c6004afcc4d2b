//! One task: started when its turn comes, waited for, started again as its policy says, ended when told.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;

use super::driver::{Exit, Handle};
use super::env::{self, Dirs};
use super::mock::Mock;
use super::processes::Start;
use super::restart::{Restarts, Verdict};
use super::runner::AllocRunner;
use super::{lock, template};
use crate::job::spec::nanos;
use crate::job::{Hook, TaskSpec};
use crate::state::{Alloc, Phase, TaskEvent, TaskState};

#[derive(Debug)]
pub(crate) struct TaskRunner {
    spec: Arc<TaskSpec>,
    inner: Mutex<Inner>,
    kill: CancellationToken,
    done: CancellationToken,
    gate: CancellationToken,
}

#[derive(Debug)]
struct Inner {
    state: TaskState,
    handle: Option<Handle>,
    restarts: Restarts,
    prepared: bool,
    starts: u32,
}

enum Started {
    Yes(Handle),
    No(String),
}

impl TaskRunner {
    pub(crate) fn new(spec: Arc<TaskSpec>, alloc: &Alloc, now: i64) -> Self {
        let mut hasher = DefaultHasher::new();
        (&alloc.id, &spec.name).hash(&mut hasher);
        let on_success = match spec.hook {
            Hook::Main => !alloc.job.spec.kind.is_batch(),
            _ => spec.sidecar,
        };
        let restarts = Restarts::new(spec.restart.clone(), on_success, now, hasher.finish());
        let mut state = TaskState::new();
        state.push(TaskEvent::received(now));
        Self {
            spec,
            inner: Mutex::new(Inner { state, handle: None, restarts, prepared: false, starts: 0 }),
            kill: CancellationToken::new(),
            done: CancellationToken::new(),
            gate: CancellationToken::new(),
        }
    }

    pub(crate) fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    pub(crate) fn state(&self) -> TaskState {
        lock(&self.inner).state.clone()
    }

    pub(crate) fn phase(&self) -> Phase {
        lock(&self.inner).state.phase
    }

    pub(crate) fn done(&self) -> &CancellationToken {
        &self.done
    }

    pub(crate) fn open(&self) {
        self.gate.cancel();
    }

    fn handle(&self) -> Option<Handle> {
        lock(&self.inner).handle.clone()
    }

    pub(crate) fn emit(&self, ar: &AllocRunner, event: TaskEvent) {
        lock(&self.inner).state.push(event);
        ar.notify();
    }

    fn set_phase(&self, ar: &AllocRunner, phase: Phase, event: Option<TaskEvent>) {
        {
            let mut inner = lock(&self.inner);
            if let Some(event) = event {
                inner.state.push(event);
            }
            let now = ar.now();
            if phase == Phase::Running && inner.state.phase != Phase::Running {
                inner.state.started_at = now;
            }
            if phase == Phase::Dead && inner.state.finished_at == 0 {
                inner.state.finished_at = now;
            }
            inner.state.phase = phase;
        }
        ar.notify();
    }

    /// Tells it to end. A task that has ended hears nothing.
    pub(crate) fn kill(&self, ar: &AllocRunner) {
        self.kill.cancel();
        let finished = lock(&self.inner).state.finished_at != 0;
        if !finished {
            let timeout = ar.kill_timeout(self.spec.kill_timeout);
            let event = if ar.over_time() {
                TaskEvent::killing_over_time(ar.now(), timeout)
            } else {
                TaskEvent::killing(ar.now(), timeout)
            };
            self.emit(ar, event);
        }
    }

    /// Lets a dead task go for good.
    pub(crate) fn release(&self) {
        self.kill.cancel();
    }

    pub(crate) fn signal(&self, ar: &AllocRunner, signal: &str) -> Result<(), String> {
        let Some(handle) = self.handle() else { return Err("Task not running".into()) };
        self.emit(ar, TaskEvent::signaling(ar.now(), signal));
        handle.signal(signal)
    }

    /// A template's signal: no call waits for its outcome.
    pub(crate) fn interrupt(&self, signal: &str) {
        if let Some(handle) = self.handle() {
            handle.interrupt(signal);
        }
    }

    pub(crate) async fn restart(&self, ar: &AllocRunner, reason: &'static str) -> Result<(), String> {
        self.restart_with(ar, TaskEvent::restart_signaled(ar.now(), reason)).await
    }

    pub(crate) async fn restart_with(&self, ar: &AllocRunner, event: TaskEvent) -> Result<(), String> {
        if self.phase() != Phase::Running {
            return Err("Task not running".into());
        }
        self.emit(ar, event);
        lock(&self.inner).restarts.set_triggered();
        if let Some(handle) = self.handle() {
            self.stop_handle(ar, &handle).await;
        }
        Ok(())
    }

    /// The driver's way to end it; starts anew when the agent died meanwhile.
    async fn stop_handle(&self, ar: &AllocRunner, handle: &Handle) -> Exit {
        let timeout = nanos(ar.kill_timeout(self.spec.kill_timeout));
        loop {
            tokio::select! {
                biased;
                exit = handle.stop(&self.spec.kill_signal, timeout) => return exit,
                () = ar.node.death() => {}
            }
            ar.node.alive().await;
        }
    }

    pub(crate) async fn run(&self, ar: &Arc<AllocRunner>) {
        ar.notify();
        let poststop = self.spec.hook == Hook::Poststop;
        'main: while !ar.should_shut_down(poststop) {
            tokio::select! {
                biased;
                () = self.kill.cancelled() => break,
                () = self.gate.cancelled() => {}
            }
            ar.node.alive().await;
            if ar.should_shut_down(poststop) || self.kill.is_cancelled() {
                break;
            }
            let started = self.start(ar).await;
            let exit = match started {
                Started::Yes(handle) => {
                    lock(&self.inner).handle = Some(handle.clone());
                    self.set_phase(ar, Phase::Running, Some(TaskEvent::started(ar.now())));
                    let watcher = template::watch(ar, self);
                    let exit = tokio::select! {
                        biased;
                        exit = self.wait(ar, &handle) => exit,
                        () = watcher => unreachable_exit(),
                    };
                    ar.node.alive().await;
                    self.emit(ar, TaskEvent::terminated(ar.now(), exit.code, exit.signal));
                    lock(&self.inner).handle = None;
                    // The end is seen and reported before anybody decides what follows from it.
                    tokio::task::yield_now().await;
                    Some(exit)
                }
                Started::No(error) => {
                    self.emit(ar, TaskEvent::driver_failure(ar.now(), error));
                    None
                }
            };
            let verdict = lock(&self.inner).restarts.verdict(exit, ar.now());
            match verdict {
                Verdict::Killed => {
                    self.emit(ar, TaskEvent::killed(ar.now()));
                    break 'main;
                }
                Verdict::Terminated => break 'main,
                Verdict::NotRestarting(reason) => {
                    self.set_phase(ar, Phase::Dead, Some(TaskEvent::not_restarting(ar.now(), reason)));
                    break 'main;
                }
                Verdict::Restart { delay, reason } => {
                    self.set_phase(ar, Phase::Pending, Some(TaskEvent::restarting(ar.now(), delay, reason)));
                    tokio::select! {
                        biased;
                        () = self.kill.cancelled() => break 'main,
                        () = ar.wait_delay(nanos(delay)) => {}
                    }
                }
            }
        }
        self.set_phase(ar, Phase::Dead, None);
        // Nomad keeps a dead task's runner until nothing of the allocation lives: it could be started again.
        if !poststop {
            self.kill.cancelled().await;
        }
        self.done.cancel();
    }

    async fn wait(&self, ar: &AllocRunner, handle: &Handle) -> Exit {
        tokio::select! {
            biased;
            exit = handle.wait() => exit,
            () = self.kill.cancelled() => self.end(ar, handle).await,
        }
    }

    /// After it was told to end: the shutdown delay, then signal and timeout.
    async fn end(&self, ar: &AllocRunner, handle: &Handle) -> Exit {
        let delay = self.spec.shutdown_delay;
        if delay > 0 {
            let skip = ar.skip_delay.is_cancelled();
            let event =
                if skip { TaskEvent::skipping_delay(ar.now(), delay) } else { TaskEvent::waiting_for_delay(ar.now(), delay) };
            self.set_phase(ar, Phase::Pending, Some(event));
            tokio::select! {
                biased;
                // Ended inside the delay: not yet killed, so its policy speaks once more.
                exit = handle.wait() => return exit,
                () = ar.skip_delay.cancelled() => {}
                () = ar.wait_delay(nanos(delay)) => {}
            }
        }
        ar.node.alive().await;
        lock(&self.inner).restarts.set_killed();
        let timeout = nanos(ar.kill_timeout(self.spec.kill_timeout));
        loop {
            tokio::select! {
                biased;
                exit = handle.stop(&self.spec.kill_signal, timeout) => return exit,
                () = ar.node.death() => {}
            }
            // The agent came back and tells it once more, with all its time.
            ar.node.alive().await;
            self.emit(ar, TaskEvent::killing(ar.now(), ar.kill_timeout(self.spec.kill_timeout)));
        }
    }

    async fn start(&self, ar: &Arc<AllocRunner>) -> Started {
        let Some(core) = ar.node.core() else { return Started::No("the cluster is gone".into()) };
        let first = !std::mem::replace(&mut lock(&self.inner).prepared, true);
        if first {
            self.emit(ar, TaskEvent::setup(ar.now(), "Building Task Directory"));
        }
        let spec = &self.spec;
        let alloc = ar.alloc();
        if matches!(spec.driver.as_str(), "mock_driver" | "mock" | "nosignal") {
            if let Ok(Some(block)) = super::mock::time(&spec.config, "start_block_for") {
                ar.wait_delay(block).await;
            }
            return match Mock::start(&spec.driver, &spec.config) {
                Ok(mock) => Started::Yes(Handle::Mock(Arc::new(mock))),
                Err(e) => Started::No(e),
            };
        }
        let Some(node) = core.read(|s| s.nodes.get(&alloc.node_id).cloned()) else {
            return Started::No("the node is gone".into());
        };
        let dirs = Dirs::of(&core.config.data_dir.join("alloc"), &alloc.id, &spec.name);
        if let Err(e) = dirs.create() {
            return Started::No(format!("failed to build task directory: {e}"));
        }
        let mut env = env::environment(&alloc, spec, &node, &dirs, &core.config.region);
        if let Err(e) = self.payload(&alloc, &dirs) {
            return Started::No(e);
        }
        match template::render_all(&core, &alloc, spec, &dirs, &env, &node) {
            Ok(more) => env.extend(more),
            Err(e) => return Started::No(e),
        }
        let command = spec.config.get("command").and_then(serde_json::Value::as_str).unwrap_or_default();
        if command.is_empty() {
            return Started::No("missing command for driver".into());
        }
        let command = env::interpolate(command, &env, &node);
        let args: Vec<String> = env::strings(spec.config.get("args")).iter().map(|a| env::interpolate(a, &env, &node)).collect();
        let starts = {
            let mut inner = lock(&self.inner);
            inner.starts += 1;
            inner.starts
        };
        let start = Start {
            command: &command,
            args: &args,
            env: &env,
            dir: &dirs.task,
            stdout: dirs.log(&spec.name, "stdout"),
            stderr: dirs.log(&spec.name, "stderr"),
            // Two clusters with one seed have the same ids.
            mark: &format!("{}/{}/{}/{starts}", core.mark, alloc.id, spec.name),
        };
        match core.processes.spawn(&core, &start) {
            Ok(p) => Started::Yes(Handle::Process(p)),
            Err(e) => Started::No(e),
        }
    }

    /// A dispatched job's payload, where the task wants it.
    fn payload(&self, alloc: &Alloc, dirs: &Dirs) -> Result<(), String> {
        let Some(file) = self.spec.dispatch_payload.as_deref().filter(|f| !f.is_empty()) else { return Ok(()) };
        let Some(text) = alloc.job.value.get("Payload").and_then(serde_json::Value::as_str) else { return Ok(()) };
        let bytes = crate::base64::decode(text).unwrap_or_default();
        let path = template::inside(&dirs.local(), file).ok_or("the payload's path leaves the task directory")?;
        std::fs::write(path, bytes).map_err(|e| format!("failed to write the payload: {e}"))
    }
}

/// The template watcher never ends by itself.
fn unreachable_exit() -> Exit {
    Exit { code: -1, signal: 0 }
}
