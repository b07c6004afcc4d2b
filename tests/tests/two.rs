//! Two controllers on one PostgreSQL, hundreds of stops, and in the middle of it one is killed, or sleeps, or the database goes.
//!
//! Whatever happens: each request is one operation that ends once, each SIGKILL is the one holder's of its epoch and none comes before
//! its clock, and the trail tells all of it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use curfew_core::api::OperationView;
use curfew_core::operation::State;
use curfew_core::{OpId, Timestamp};
use curfew_tests::api::Api;
use curfew_tests::cluster::{Cluster, Kind, Shape};
use curfew_tests::controller::Controller;
use curfew_tests::jobs::{batch, nanos};
use curfew_tests::lab::{PATIENCE, unique};
use curfew_tests::postgres::Server;
use curfew_tests::proxy::Proxy;
use curfew_tests::run::Given;
use curfew_tests::wait::eventually;
use futures::{StreamExt, stream};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

/// Leases short enough that a test sees them run out.
pub const ENV: [(&str, &str); 4] = [
    ("CURFEW_KEEPER_LEASE", "2s"),
    ("CURFEW_NOMAD_TIMEOUT", "4s"),
    ("CURFEW_LEASE_TIMEOUT", "5s"),
    ("CURFEW_RESYNC_INTERVAL", "5s"),
];
/// For the first: what the whole way costs at that size. The others need only be in the middle of something.
const MANY: usize = 1000;
const SOME: usize = 300;
/// Requests at the same time.
const AT_ONCE: usize = 16;
/// Hundreds of stops on a small machine that does other things besides.
const LONG: Duration = Duration::from_secs(240);

pub async fn one_is_killed_in_the_middle(given: Given) {
    let Some(mut two) = Two::start(&given, MANY).await else { return };
    let asking = two.ask_all();
    let trouble = async {
        two.until_sent(MANY / 10).await;
        let (holder, other) = two.holder_and_other().await;
        two.controllers[holder].kill().await;
        two.keeps_the_clocks(other).await;
        two.controllers[holder].restart().await;
    };
    let (accepted, ()) = tokio::join!(asking, trouble);
    two.verify(accepted).await;
}

pub async fn one_sleeps_longer_than_its_lease(given: Given) {
    let Some(two) = Two::start(&given, SOME).await else { return };
    let asking = two.ask_all();
    let trouble = async {
        two.until_sent(SOME / 10).await;
        let (holder, other) = two.holder_and_other().await;
        let sleeper = two.controllers[holder].proc();
        sleeper.signal(Signal::STOP);
        two.keeps_the_clocks(other).await;
        let sent = || two.proxies[holder].seen("PUT", "/signal").len();
        let before = sent();
        sleeper.signal(Signal::CONT);
        eventually(PATIENCE, "the sleeper to know", async || {
            let status = two.controllers[holder].api().try_get("/v1/status").await?;
            if two.controllers[holder].log().contains("this one stands by") { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
        (holder, before)
    };
    let (accepted, (sleeper, before)) = tokio::join!(asking, trouble);
    let epochs = two.verify(accepted).await;
    // Unless the other one lost the duty to it again: then it is the trail that says which signal was whose.
    let name = two.name(sleeper).await;
    if epochs.values().filter(|e| e.holder == name).count() == 1 {
        assert_eq!(two.proxies[sleeper].seen("PUT", "/signal").len(), before, "{name} sent something after it had lost the duty");
    }
}

pub async fn their_database_restarts(given: Given) {
    let Some(two) = Two::start(&given, SOME).await else { return };
    let asking = two.ask_all();
    let trouble = async {
        two.until_sent(SOME / 10).await;
        two.database.down("immediate");
        for controller in &two.controllers {
            eventually(PATIENCE, "readiness to tell", async || {
                match controller.api().call(Method::GET, "/readyz", None).await? {
                    (503, why) if why.as_str().is_some_and(|w| w.contains("PostgreSQL")) => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        }
        two.database.up();
        for controller in &two.controllers {
            eventually(PATIENCE, "both to be ready again", async || {
                match controller.api().call(Method::GET, "/readyz", None).await? {
                    (200, _) => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        }
    };
    let (accepted, ()) = tokio::join!(asking, trouble);
    two.verify(accepted).await;
}

/// One after the other: each keeps a small machine busy by itself.
static TURN: Mutex<()> = Mutex::const_new(());

struct Two {
    controllers: [Controller; 2],
    /// One before each, so that a signal has a sender.
    proxies: [Proxy; 2],
    cluster: Cluster,
    database: Server,
    jobs: Vec<Job>,
    _turn: MutexGuard<'static, ()>,
}

/// One task; every second one ignores SIGTERM.
#[derive(Clone)]
struct Job {
    id: String,
    impolite: bool,
    stop_timeout: Duration,
}

/// Who held the duty under an epoch, and when the one before it had run out.
struct Epoch {
    holder: String,
    expired_at: Option<Timestamp>,
}

impl Two {
    async fn start(given: &Given, count: usize) -> Option<Two> {
        let turn = TURN.lock().await;
        let Some(database) = Server::start(given.name()) else {
            given.skip("PostgreSQL is not installed");
            return None;
        };
        let cluster = Cluster::start(Kind::Dev, &Shape { nodes: 4, ..Shape::default() }).await;
        let jobs: Vec<Job> = (0..count)
            .map(|n| {
                let impolite = n % 2 == 0;
                // Spread, so that clocks come due before, during and after the trouble.
                let stop_timeout = Duration::from_secs(if impolite { 2 + n as u64 / 2 % 7 } else { 600 });
                Job { id: unique("fleet"), impolite, stop_timeout }
            })
            .collect();
        register(&cluster, &jobs).await;
        let proxies = [Proxy::before(cluster.addr()).await, Proxy::before(cluster.addr()).await];
        let mut controllers = [&proxies[0], &proxies[1]].map(|p| Controller::new(&p.addr(), &ENV).on(&database.url()));
        for controller in &mut controllers {
            controller.launch();
            controller.ready().await;
        }
        Some(Two { controllers, proxies, cluster, database, jobs, _turn: turn })
    }

    /// Every job's stop, asked of one and the other in turns until one has accepted it. Borrows nothing: who is asked may be killed.
    fn ask_all(&self) -> impl Future<Output = HashMap<OpId, Job>> + use<> {
        let apis = [self.controllers[0].api().clone(), self.controllers[1].api().clone()];
        let asked = stream::iter(self.jobs.clone().into_iter().enumerate()).map(move |(n, job)| {
            let apis = apis.clone();
            async move { (ask(&apis, n, &job).await, job) }
        });
        asked.buffer_unordered(AT_ONCE).collect()
    }

    async fn until_sent(&self, count: usize) {
        eventually(LONG, &format!("{count} signals"), async || {
            let sent: usize = self.proxies.iter().map(|p| p.seen("PUT", "/signal").len()).sum();
            if sent >= count { Ok(()) } else { Err(format!("{sent} were sent")) }
        })
        .await;
    }

    /// `host:pid`.
    async fn name(&self, which: usize) -> String {
        self.controllers[which].api().get("/v1/status").await["controller"].as_str().unwrap().to_owned()
    }

    async fn holder_and_other(&self) -> (usize, usize) {
        let status = self.controllers[0].api().get("/v1/status").await;
        if status["keeper"] == status["controller"] { (0, 1) } else { (1, 0) }
    }

    async fn keeps_the_clocks(&self, which: usize) {
        eventually(PATIENCE, "the other one to take the duty", async || {
            let status = self.controllers[which].api().try_get("/v1/status").await?;
            if status["keeper"] == status["controller"] { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
    }

    /// Everything ended as it should, and the trail tells it. Returns who held the duty when.
    async fn verify(&self, accepted: HashMap<OpId, Job>) -> BTreeMap<u64, Epoch> {
        let api = self.controllers[0].api();
        assert_eq!(accepted.len(), self.jobs.len(), "each job has an operation of its own");
        eventually(LONG, "every stop to end", async || {
            let queue = api.try_get("/v1/queue").await?;
            if queue["counts"].as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(queue["counts"].to_string()) }
        })
        .await;
        self.all_dead().await;
        for op in self.operations().await {
            let job = accepted.get(&op.id).unwrap_or_else(|| panic!("nobody asked for {op:?}"));
            ended_well(&op, job);
        }
        let trail = self.trail().await;
        told_in_order(&trail, &accepted);
        signalled_by_the_holder(&trail)
    }

    /// As Nomad has it, not as Curfew says.
    async fn all_dead(&self) {
        let allocs = self.cluster.api.get("/v1/allocations?task_states=false").await;
        let living = allocs.as_array().unwrap().iter().filter(|a| a["ClientStatus"] == "running").count();
        assert_eq!(living, 0, "the operations have ended");
    }

    async fn operations(&self) -> Vec<OperationView> {
        let (mut all, mut before) = (Vec::new(), String::new());
        loop {
            let page = self.controllers[0].api().get(&format!("/v1/operations?kind=stop&limit=1000{before}")).await;
            let page: Vec<OperationView> = serde_json::from_value(page).unwrap();
            let Some(last) = page.last() else { break };
            before = format!("&before={}", last.id);
            all.extend(page);
        }
        assert_eq!(all.len(), self.jobs.len(), "no operation that nobody asked for, and none is lost");
        all
    }

    async fn trail(&self) -> Vec<Value> {
        let mut all: Vec<Value> = Vec::new();
        loop {
            let after = all.last().map_or(0, |r| r["seq"].as_u64().unwrap());
            let page = self.controllers[0].api().get(&format!("/v1/audit?after={after}&limit=10000")).await;
            match page.as_array().filter(|p| !p.is_empty()) {
                Some(page) => all.extend(page.iter().cloned()),
                None => return all,
            }
        }
    }
}

async fn register(cluster: &Cluster, jobs: &[Job]) {
    let registered = stream::iter(jobs).map(|job| async move {
        // Nomad's own clock is out of the way.
        let task = json!({ "Name": "t", "Driver": "mock_driver", "Config": { "ignore_sigterm": job.impolite },
                           "KillTimeout": nanos(Duration::from_secs(3600)), "Resources": { "CPU": 10, "MemoryMB": 10 } });
        cluster.api.put("/v1/jobs", &json!({ "Job": batch(&job.id, vec![task]) })).await;
    });
    registered.buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    eventually(LONG, "the fleet to run", async || {
        let allocs = cluster.api.try_get("/v1/allocations?task_states=false").await?;
        let running = allocs.as_array().map_or(0, |l| l.iter().filter(|a| a["ClientStatus"] == "running").count());
        if running == jobs.len() { Ok(()) } else { Err(format!("{running} of {} run", jobs.len())) }
    })
    .await;
}

async fn ask(apis: &[Api; 2], n: usize, job: &Job) -> OpId {
    let (path, key) = (format!("/v1/jobs/{}/stop", job.id), format!("once-{}", job.id));
    let body = json!({ "stop_timeout": format!("{}s", job.stop_timeout.as_secs()) });
    let mut turns = n..;
    eventually(LONG, &format!("somebody to accept the stop of {}", job.id), async || {
        let api = &apis[turns.next().unwrap_or(n) % 2];
        // One of them may be asleep. What it has taken already it will take once only.
        let answer = tokio::time::timeout(Duration::from_secs(5), api.post_once(&path, &body, &key)).await;
        match answer {
            Ok(Ok((202, op))) => Ok(op["id"].as_str().unwrap().parse().unwrap()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// By what the clients say of their tasks.
fn ended_well(op: &OperationView, job: &Job) {
    assert_eq!((op.state, op.target.name()), (State::Succeeded, job.id.as_str()), "{op:?}");
    let tasks: Vec<_> = op.outcome.iter().flat_map(|o| &o.allocations).flat_map(|a| &a.tasks).collect();
    let [task] = tasks[..] else { panic!("not one task: {op:?}") };
    let (Some(term), Some(ended)) = (task.term_at, task.ended_at) else { panic!("not all instants are known: {op:?}") };
    if job.impolite {
        assert_eq!((task.exit_code, task.signal), (Some(137), Some(9)), "{op:?}");
        assert!(ended >= op.requested_at + job.stop_timeout && ended >= term, "killed before its clock: {op:?}");
        assert!(task.signalled_at.is_none_or(|at| at >= op.requested_at + job.stop_timeout), "{op:?}");
    } else {
        assert_eq!((task.exit_code, task.signal, task.signalled_at), (Some(0), Some(0), None), "{op:?}");
    }
}

fn instant(value: &Value) -> Option<Timestamp> {
    serde_json::from_value(value.clone()).unwrap()
}

fn told_in_order(trail: &[Value], accepted: &HashMap<OpId, Job>) {
    let mut of: HashMap<&str, Vec<(&str, &Value)>> = HashMap::new();
    for (n, row) in trail.iter().enumerate() {
        assert_eq!(row["seq"], n + 1, "a gap before {row}");
        if let Some(op) = row["operation"].as_str() {
            of.entry(op).or_default().push((row["action"].as_str().unwrap(), row));
        }
    }
    assert_eq!(of.len(), accepted.len());
    for id in accepted.keys() {
        let rows = &of[id.to_string().as_str()];
        let places = |action: &str| -> Vec<u64> {
            rows.iter().filter(|(a, _)| *a == action).map(|(_, r)| r["seq"].as_u64().unwrap()).collect()
        };
        let (requested, leased, deleted, succeeded) =
            (places("requested"), places("leased"), places("job_deleted"), places("succeeded"));
        // Where an answer was lost with its asker the job is found stopped, which is told like a DELETE.
        let whole = requested.len() == 1 && succeeded.len() == 1 && !leased.is_empty() && !deleted.is_empty();
        assert!(whole, "{rows:?}");
        assert!(requested[0] < leased[0] && leased[0] < deleted[0] && deleted.iter().all(|d| *d < succeeded[0]), "{rows:?}");
        assert!(places("failed").is_empty() && places("joined").is_empty(), "{rows:?}");
    }
}

fn signalled_by_the_holder(trail: &[Value]) -> BTreeMap<u64, Epoch> {
    let mut epochs: BTreeMap<u64, Epoch> = BTreeMap::new();
    for row in trail.iter().filter(|r| r["action"] == "duty_taken") {
        let epoch = row["detail"]["epoch"].as_u64().unwrap();
        assert!(epochs.keys().all(|e| *e < epoch), "epochs count up: {row}");
        epochs.insert(
            epoch,
            Epoch { holder: row["actor"].as_str().unwrap().into(), expired_at: instant(&row["detail"]["expired_at"]) },
        );
    }
    let sending: Vec<&Value> = trail.iter().filter(|r| r["action"] == "sigkill_sending").collect();
    assert!(!sending.is_empty());
    for row in &sending {
        let epoch = row["detail"]["duty"].as_u64().unwrap();
        let held = &epochs[&epoch];
        assert_eq!(row["actor"], held.holder, "not the holder's of epoch {epoch}: {row}");
        // Ordered while the duty was held: who was fenced orders nothing.
        let until = epochs.get(&(epoch + 1)).and_then(|next| next.expired_at);
        assert!(until.is_none_or(|u| instant(&row["at"]).unwrap() <= u), "epoch {epoch} had run out at {until:?}: {row}");
    }
    for row in trail.iter().filter(|r| r["action"] == "sigkill_sent") {
        assert!(row["detail"]["late_seconds"].as_f64().unwrap() >= 0.0, "before its clock: {row}");
    }
    epochs
}
