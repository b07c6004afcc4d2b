//! What a scenario works in: a cluster, a controller, and the moves that every scenario makes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use curfew_core::Timestamp;
use curfew_core::api::OperationView;
use curfew_core::operation::{AllocOutcome, State, TaskOutcome};
use serde_json::{Value, json};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::api::Api;
use crate::cluster::{Cluster, Kind, Shape};
use crate::command::{Curfew, Ran};
use crate::controller::Controller;
use crate::process::{self, Proc};
use crate::proxy::Proxy;
use crate::wait::eventually;

/// Long enough for a small machine that does other things besides.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How late a death may be after its clock. On an idle machine it is a tenth of a second; a machine that runs a whole
/// suite at once gets more: 2 s and what it was late itself, or `CURFEW_TEST_LATE` seconds. It is never early by anything.
pub fn late() -> Duration {
    let told = std::env::var("CURFEW_TEST_LATE").ok().and_then(|s| s.parse().ok());
    told.map_or_else(|| Duration::from_secs(2) + stalled(), Duration::from_secs)
}

/// How much of the last ten seconds something waited for a CPU or a disk, where the system tells. At most as much again as is given
/// anyhow: what is later than that is late, whatever the machine did.
fn stalled() -> Duration {
    let share = |of: &str| {
        let text = std::fs::read_to_string(format!("/proc/pressure/{of}")).ok()?;
        text.split_whitespace().find_map(|w| w.strip_prefix("avg10="))?.parse::<f64>().ok()
    };
    let percent: f64 = ["cpu", "io"].into_iter().filter_map(share).sum();
    Duration::from_secs(10).mul_f64(percent.clamp(0.0, 20.0) / 100.0)
}

/// `POSTSTOP_TIMEOUT` of every controller here.
pub const POSTSTOP: Duration = Duration::from_secs(8);

const ENV: [(&str, &str); 2] = [("CURFEW_POSTSTOP_TIMEOUT", "8s"), ("CURFEW_RESYNC_INTERVAL", "5s")];

/// A cluster and its one controller. Two controllers on one cluster would keep each other's clocks.
pub struct Lab {
    pub cluster: Arc<Cluster>,
    pub curfew: Controlling,
    /// Only in a lab of one's own.
    pub proxy: Option<Proxy>,
    _alone: Option<OwnedMutexGuard<()>>,
}

pub enum Controlling {
    Shared(Arc<Controller>),
    Own(Box<Controller>),
}

impl std::ops::Deref for Controlling {
    type Target = Controller;
    fn deref(&self) -> &Controller {
        match self {
            Controlling::Shared(c) => c,
            Controlling::Own(c) => c,
        }
    }
}

/// A live allocation and its processes, the task's own first.
#[derive(Clone, Debug)]
pub struct Running {
    pub job: String,
    pub alloc: String,
    pub node: String,
    pub tasks: Vec<(String, Vec<Proc>)>,
}

impl Running {
    #[track_caller]
    pub fn task(&self, name: &str) -> Proc {
        self.all(name)[0]
    }

    #[track_caller]
    pub fn all(&self, name: &str) -> &[Proc] {
        &self.tasks.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no task {name} in {self:?}")).1
    }
}

/// What is made once and ended at the end of the run; nobody else would drop it.
type Once<T> = Mutex<Option<Arc<T>>>;

#[derive(Default)]
struct Shared {
    cluster: Once<Cluster>,
    curfew: Once<Controller>,
    /// For scenarios that break things; only a real one is worth sharing.
    rough: Once<Cluster>,
    alone: Arc<Mutex<()>>,
}

async fn once<T>(place: &Once<T>, make: impl AsyncFnOnce() -> T) -> Arc<T> {
    let mut place = place.lock().await;
    match &*place {
        Some(made) => made.clone(),
        None => place.insert(Arc::new(make().await)).clone(),
    }
}

/// Everything that outlives a scenario.
#[derive(Default)]
pub struct Labs {
    dev: Shared,
    real: Shared,
}

impl Labs {
    fn of(&self, kind: Kind) -> &Shared {
        match kind {
            Kind::Dev => &self.dev,
            Kind::Real => &self.real,
        }
    }

    /// Ends every shared controller, then every shared cluster.
    pub fn take_down(&self) {
        for shared in [&self.dev, &self.real] {
            if let Ok(mut curfew) = shared.curfew.try_lock() {
                *curfew = None;
            }
            for place in [&shared.cluster, &shared.rough] {
                if let Ok(mut cluster) = place.try_lock() {
                    *cluster = None;
                }
            }
        }
    }

    /// The cluster and the controller that well-behaved scenarios share.
    pub async fn shared(&self, kind: Kind) -> Lab {
        let shared = self.of(kind);
        let shape = Shape { nodes: 3, ..Shape::default() };
        let cluster = once(&shared.cluster, async || Cluster::start(kind, &shape).await).await;
        let curfew = once(&shared.curfew, async || Controller::start(cluster.addr(), &ENV).await).await;
        Lab { cluster, curfew: Controlling::Shared(curfew), proxy: None, _alone: None }
    }

    /// A controller of one's own behind a proxy, on a cluster that nobody else uses meanwhile.
    pub async fn own(&self, kind: Kind) -> Lab {
        self.own_with(kind, &[]).await
    }

    pub async fn own_with(&self, kind: Kind, env: &[(&str, &str)]) -> Lab {
        self.own_of(kind, &Shape::default(), env).await
    }

    /// On as many nodes as the shape says; a real cluster has its two in any case.
    pub async fn own_of(&self, kind: Kind, shape: &Shape, env: &[(&str, &str)]) -> Lab {
        let (cluster, alone) = match kind {
            Kind::Dev => (Arc::new(Cluster::start(kind, shape).await), None),
            Kind::Real => {
                // Ten seconds and half a gigabyte each: one after the other.
                let alone = self.real.alone.clone().lock_owned().await;
                let rough = once(&self.real.rough, async || Cluster::start(kind, &Shape::default()).await).await;
                rough.heal().await;
                (rough, Some(alone))
            }
        };
        let proxy = Proxy::before(cluster.addr()).await;
        let env: Vec<(&str, &str)> = ENV.iter().chain(env).copied().collect();
        let curfew = Controller::start(&proxy.addr(), &env).await;
        Lab { cluster, curfew: Controlling::Own(Box::new(curfew)), proxy: Some(proxy), _alone: alone }
    }
}

/// A job's id that nobody else in this run uses.
pub fn unique(name: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Lab {
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().unwrap_or_else(|| panic!("a shared lab has no proxy"))
    }

    pub fn own(&mut self) -> &mut Controller {
        match &mut self.curfew {
            Controlling::Own(c) => c,
            Controlling::Shared(_) => panic!("a shared controller is not to be killed"),
        }
    }

    pub fn run(&self, args: &[&str]) -> Curfew {
        self.curfew.curfew(args.iter().copied())
    }

    /// `curfew job run -`, done.
    pub async fn submit(&self, job: &Value) -> OperationView {
        let ran = self.run(&["job", "run", "-", "--json"]).stdin(job.to_string()).run().await.code(0);
        let op = ran.operation();
        assert_eq!(op.state, State::Succeeded, "{ran}");
        op
    }

    /// Submitted, and its (only) allocation's processes there, heeding signals.
    pub async fn start(&self, job: &Value) -> Running {
        self.submit(job).await;
        self.running(job["ID"].as_str().unwrap()).await
    }

    pub async fn running(&self, job: &str) -> Running {
        self.running_besides(job, "").await
    }

    /// The youngest allocation of a job that Nomad wants running and that is not `old`, when all its tasks run.
    pub async fn running_besides(&self, job: &str, old: &str) -> Running {
        eventually(PATIENCE, &format!("job {job} to run"), async || {
            let all = self.cluster.api.allocations(job).await?;
            let found = all.iter().find(|a| a["DesiredStatus"] == "run" && a["ID"] != old);
            let Some(alloc) = found else { return Err(self.why_not(job, &all).await) };
            self.processes(job, alloc)
        })
        .await
    }

    async fn why_not(&self, job: &str, all: &[Value]) -> String {
        let evals = self.cluster.api.try_get(&format!("/v1/job/{}/evaluations", crate::api::segment(job))).await;
        format!("{}; evaluations {evals:?}", short(all))
    }

    pub fn processes(&self, job: &str, alloc: &Value) -> Result<Running, String> {
        processes(job, alloc)
    }

    /// `curfew job stop … --json`, waited for.
    pub async fn stop(&self, job: &str, more: &[&str]) -> Ran {
        let args: Vec<&str> = ["job", "stop", job, "--wait", "--json"].iter().chain(more).copied().collect();
        self.run(&args).run().await
    }

    /// `curfew job stop … --detach`: accepted, nothing more.
    pub async fn stop_detached(&self, job: &str, more: &[&str]) -> OperationView {
        let args: Vec<&str> = ["job", "stop", job, "--detach", "--json"].iter().chain(more).copied().collect();
        self.run(&args).run().await.code(0).operation()
    }

    /// The allocation as Nomad shows it now.
    pub async fn alloc(&self, id: &str) -> Value {
        self.cluster.api.allocation(id).await.unwrap_or_else(|e| panic!("{e}"))
    }

    /// A healthy job beside what happens; its process must be the same at the end.
    pub async fn neighbour(&self) -> (String, Proc) {
        let id = unique("neighbour");
        let running = self.start(&crate::jobs::service(&id, vec![crate::jobs::task("t", crate::jobs::POLITE)])).await;
        let proc = running.task("t");
        (id, proc)
    }

    /// No longer needed: ends the job without waiting for it.
    pub async fn discard(&self, job: &str) {
        self.cluster.api.delete(&format!("/v1/job/{}", crate::api::segment(job))).await;
    }
}

/// The processes of an allocation's running tasks; an error while one of them is not there yet.
fn processes(job: &str, alloc: &Value) -> Result<Running, String> {
    let id = alloc["ID"].as_str().unwrap_or_default();
    let mut tasks = vec![];
    let states = alloc["TaskStates"].as_object().filter(|s| !s.is_empty());
    let states = states.ok_or_else(|| format!("no task states: {}", short(std::slice::from_ref(alloc))))?;
    for (name, state) in states {
        match state["State"].as_str() {
            Some("running") => {}
            // A poststop task waits for the end of the others; here it is always called so.
            Some("pending") if name == "after" => continue,
            Some("dead") => continue,
            other => return Err(format!("task {name} is {other:?}: {}", short(std::slice::from_ref(alloc)))),
        }
        let found = process::of_task(job, id, name);
        if !found.first().is_some_and(|p| p.minds_sigterm()) {
            return Err(format!("task {name} has no process that heeds SIGTERM yet: {found:?}"));
        }
        tasks.push((name.clone(), found));
    }
    if tasks.is_empty() || alloc["ClientStatus"] != "running" {
        return Err(short(std::slice::from_ref(alloc)));
    }
    let node = alloc["NodeName"].as_str().unwrap_or_default().to_owned();
    Ok(Running { job: job.into(), alloc: id.into(), node, tasks })
}

/// A job's first allocation on a cluster without a lab, when all its tasks run and heed SIGTERM.
pub async fn runs(api: &Api, namespace: &str, job: &str) -> Running {
    eventually(PATIENCE, &format!("job {job} to run"), async || {
        let all = api.allocations_in(namespace, job).await?;
        processes(job, all.first().ok_or("it has no allocation")?)
    })
    .await
}

/// What one reads first in a list of allocations.
pub fn short(all: &[Value]) -> String {
    let rows = all.iter().map(|a| {
        let tasks: Vec<Value> = a["TaskStates"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(n, s)| {
                let events = s["Events"].as_array().into_iter().flatten();
                let events: Vec<_> = events.map(|e| json!([e["Type"], e["DisplayMessage"]])).collect();
                json!([n, s["State"], events])
            })
            .collect();
        json!([a["ID"], a["DesiredStatus"], a["ClientStatus"], tasks]).to_string()
    });
    rows.collect::<Vec<_>>().join("\n")
}

/// The outcome of one task of an operation's only allocation (or of the allocation that is named).
#[track_caller]
pub fn task_of<'a>(op: &'a OperationView, alloc: Option<&str>, task: &str) -> &'a TaskOutcome {
    let outcome = op.outcome.as_ref().unwrap_or_else(|| panic!("no outcome: {op:?}"));
    let mut all = outcome.allocations.iter().filter(|a: &&AllocOutcome| alloc.is_none_or(|id| a.id.as_str() == id));
    let found = all.next().unwrap_or_else(|| panic!("no such allocation: {op:?}"));
    found.tasks.iter().find(|t| t.name.as_str() == task).unwrap_or_else(|| panic!("no task {task}: {op:?}"))
}

/// A task that SIGKILL ended: by its clock, not before, and soon after.
#[track_caller]
pub fn assert_killed(task: &TaskOutcome, grace: Duration, death: Timestamp) {
    let (Some(term), Some(kill), Some(sent), Some(ended)) = (task.term_at, task.kill_at, task.signalled_at, task.ended_at) else {
        panic!("not all instants are known: {task:?}")
    };
    assert_eq!(kill.since(term), grace, "{task:?}");
    assert!(sent >= kill, "SIGKILL before its clock: {task:?}");
    assert!(ended >= kill, "dead before its clock: {task:?}");
    assert!(death >= kill, "seen dead at {death}, before its clock: {task:?}");
    assert!(death.since(kill) <= late(), "seen dead at {death}, {:?} after its clock: {task:?}", death.since(kill));
    // The client's own account; seldom an executor's error instead of 137 (docs/testing.md).
    assert!(matches!((task.exit_code, task.signal), (Some(137), Some(9)) | (Some(-1), _)), "{task:?}");
}

/// A task whose SIGTERM came after the instant that was promised: SIGKILL follows at once, and not before the promise.
#[track_caller]
pub fn assert_late(task: &TaskOutcome, promised: Timestamp) {
    let (Some(term), Some(kill), Some(sent)) = (task.term_at, task.kill_at, task.signalled_at) else {
        panic!("not all instants are known: {task:?}")
    };
    assert!(kill >= promised && sent >= kill && kill.since(term) == Duration::ZERO, "promised {promised}: {task:?}");
    assert!(matches!((task.exit_code, task.signal), (Some(137), Some(9)) | (Some(-1), _)), "{task:?}");
}

/// A task that ended by itself after SIGTERM.
#[track_caller]
pub fn assert_polite(task: &TaskOutcome) {
    assert_eq!((task.exit_code, task.signal, task.signalled_at), (Some(0), Some(0), None), "{task:?}");
    assert!(task.ended_at.is_some() && task.term_at.is_some(), "{task:?}");
}
