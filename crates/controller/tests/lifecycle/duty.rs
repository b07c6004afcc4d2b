//! Two controllers, one database, one embedded cluster: one of them keeps the clocks.

use std::sync::Arc;
use std::time::Duration;

use curfew_controller::{Controller, Metrics, Parts, SystemClock, random};
use curfew_core::audit::{Action, AuditRow};
use curfew_core::config::Config;
use curfew_core::operation::{By, Demand, Intervention, Kind, Request, State};
use curfew_core::{Clock, JobKey, OpId, Timestamp};
use curfew_devcluster::{Cluster, ClusterConfig, NodeConfig};
use curfew_nomad::{Nomad, NomadConfig};
use curfew_store::{AuditFilter, MemoryStore, NewOperation, Store};
use futures::FutureExt;
use serde_json::json;
use tempfile::TempDir;

use crate::flaky::Flaky;
use crate::kit::until;

const S: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(2);

struct Two {
    cluster: Cluster,
    store: Arc<MemoryStore>,
    _dir: TempDir,
}

struct One {
    nomad: Nomad,
    way: Arc<Flaky>,
    controller: Controller,
}

impl One {
    fn signals(&self) -> u64 {
        self.nomad.requests().iter().filter(|(route, _)| route.ends_with("/signal")).map(|(_, n)| n).sum()
    }
}

impl Two {
    async fn new() -> Self {
        let dir = TempDir::with_prefix("curfew-duty-").unwrap();
        let config = ClusterConfig {
            listen: Some(([127, 0, 0, 1], 0).into()),
            nodes: vec![NodeConfig { cpu: 100_000, memory_mb: 100_000, ..NodeConfig::new("n0", "dc1") }],
            data_dir: dir.path().join("cluster"),
            ..ClusterConfig::default()
        };
        Self { cluster: Cluster::start(config).await.unwrap(), store: MemoryStore::new(), _dir: dir }
    }

    fn nomad(&self) -> Nomad {
        Nomad::new(NomadConfig { addr: self.cluster.base_url(), ..NomadConfig::default() }).unwrap()
    }

    async fn start(&self, holder: &str) -> One {
        let (nomad, way) = (self.nomad(), Flaky::way_to(&self.store));
        let store: Arc<dyn Store> = way.clone();
        let parts = Parts {
            nomad: nomad.clone(),
            store: std::future::ready(Ok(store)).boxed(),
            clock: Arc::new(SystemClock),
            config: Config { keeper_lease: LEASE, resync_interval: S, ..Config::default() },
            random: random(),
            holder: holder.into(),
            listener: None,
            metrics: Metrics::new(),
            gc: None,
        };
        let controller = curfew_controller::start(parts).unwrap();
        assert!(controller.started().await.is_ok());
        One { nomad, way, controller }
    }

    /// Jobs of one task each that ignores SIGTERM, running.
    async fn jobs(&self, count: usize) -> Vec<JobKey> {
        let nomad = self.nomad();
        let mut keys = vec![];
        for i in 0..count {
            let id = format!("j{i}");
            let task = json!({ "Name": "t", "Driver": "mock_driver", "Config": { "ignore_sigterm": true },
                "KillTimeout": 3_600_000_000_000u64, "Resources": { "CPU": 20, "MemoryMB": 10 } });
            let job = json!({ "ID": id, "Name": id, "Type": "batch", "Datacenters": ["dc1"],
                "TaskGroups": [{ "Name": "g", "Count": 1, "Tasks": [task] }] });
            let key = JobKey::new("default", id.as_str());
            nomad.register(&key, &job, None).await.unwrap();
            keys.push(key);
        }
        for key in &keys {
            until("the job to run", async || {
                let (allocs, _) = nomad.job_allocations(key).await.unwrap();
                allocs.len() == 1 && allocs[0].any_task_lives()
            })
            .await;
        }
        keys
    }

    async fn lives(&self, key: &JobKey) -> bool {
        self.nomad().job_allocations(key).await.unwrap().0.iter().any(curfew_core::Allocation::any_task_lives)
    }

    async fn stop(&self, key: &JobKey, timeout: Duration) -> OpId {
        let at = SystemClock.now();
        let demand =
            Demand { at, stop_timeout: Some(timeout), until: None, no_shutdown_delay: false, purge: false, job_index: 0 };
        let new = NewOperation {
            id: OpId::new(at),
            parent: None,
            request: Request::Stop { target: key.clone(), demands: vec![demand] },
            actor: "somebody".into(),
            reason: None,
            at,
            deadline: None,
            warnings: vec![],
            idempotency: None,
        };
        self.store.create(new).await.unwrap().operation().id
    }

    async fn state(&self, id: OpId) -> State {
        self.store.operation(id).await.unwrap().unwrap().state
    }

    async fn finished(&self, ops: &[OpId]) {
        for id in ops {
            until("the stop to end", async || self.state(*id).await == State::Succeeded).await;
        }
    }

    async fn keeper(&self) -> Option<String> {
        let kinds = self.store.kinds().await.unwrap();
        kinds.into_iter().find(|k| k.kind == Kind::Kill).and_then(|k| k.duty.holder)
    }

    async fn trail(&self) -> Vec<AuditRow> {
        self.store.audit(AuditFilter { limit: 10_000, ..AuditFilter::default() }).await.unwrap()
    }

    /// Each SIGKILL under the epoch of who held the duty then, none before its clock, each operation ended once.
    async fn check_trail(&self, ops: &[OpId]) {
        let trail = self.trail().await;
        let mut holder = (String::new(), 0);
        for row in &trail {
            let (e, detail) = (&row.entry, &row.entry.detail);
            match e.action {
                Action::DutyTaken => holder = (e.actor.clone(), detail["epoch"].as_u64().unwrap()),
                Action::SigkillSending => {
                    assert_eq!((e.actor.as_str(), detail["duty"].as_u64()), (holder.0.as_str(), Some(holder.1)), "{row:?}");
                }
                Action::SigkillSent => assert!(detail["late_seconds"].as_f64().unwrap() >= 0.0, "{row:?}"),
                _ => {}
            }
        }
        for id in ops {
            let ends = trail.iter().filter(|r| r.entry.operation == Some(*id) && r.entry.action == Action::Succeeded).count();
            assert_eq!(ends, 1, "{id}");
        }
    }

    async fn by(&self) -> By {
        By { actor: "me".into(), reason: None, at: SystemClock.now() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_cannot_renew_sends_nothing_and_the_other_one_takes_over() {
    let two = Two::new().await;
    let keys = two.jobs(5).await;
    let a = two.start("a:1").await;
    let b = two.start("b:2").await;
    assert_eq!(two.keeper().await.as_deref(), Some("a:1"));
    let mut ops = vec![];
    for key in &keys {
        ops.push(two.stop(key, 2 * LEASE).await);
    }
    for id in &ops {
        until("the stops to wait", async || two.state(*id).await == State::Waiting).await;
    }
    a.way.away(true);
    two.finished(&ops).await;
    assert_eq!((a.signals(), b.signals()), (0, 5), "only the new holder sent");
    assert_eq!(two.keeper().await.as_deref(), Some("b:2"));
    two.check_trail(&ops).await;
    // Back, it stands by; and takes over at once when the other one ends cleanly.
    a.way.away(false);
    let more = two.stop(&keys[0], S).await;
    two.finished(&[more]).await;
    b.controller.stop(true).await;
    until("the duty to be taken over", async || two.keeper().await.as_deref() == Some("a:1")).await;
    a.controller.stop(true).await;
    assert_eq!(two.keeper().await, None, "given up");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_for_longer_than_the_lease_costs_time_and_no_clock() {
    let two = Two::new().await;
    let keys = two.jobs(2).await;
    let a = two.start("a:1").await;
    let ops = [two.stop(&keys[0], LEASE).await, two.stop(&keys[1], LEASE).await];
    for id in &ops {
        until("the stops to wait", async || two.state(*id).await == State::Waiting).await;
    }
    a.way.away(true);
    let until_past = SystemClock.now() + 2 * LEASE;
    until("the clocks to pass", async || SystemClock.now() > until_past).await;
    assert_eq!(a.signals(), 0, "nobody could know that it still holds the duty");
    a.way.away(false);
    two.finished(&ops).await;
    assert_eq!(a.signals(), 2);
    two.check_trail(&ops).await;
    let taken = two.trail().await.iter().filter(|r| r.entry.action == Action::DutyTaken).count();
    assert_eq!(taken, 1, "the same epoch goes on");
    a.controller.stop(true).await;
}

/// Whoever changes something in the database, through whatever controller: the one that keeps the clocks hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_elsewhere_reaches_the_clocks() {
    let two = Two::new().await;
    let keys = two.jobs(4).await;
    let a = two.start("a:1").await;
    let long = 600 * S;
    let ops = [two.stop(&keys[0], long).await, two.stop(&keys[1], long).await, two.stop(&keys[2], 2 * S).await];
    for id in &ops {
        until("the stops to wait", async || two.state(*id).await == State::Waiting).await;
    }
    // A new request joins; somebody wants one dead now, although it is paused; one gets more time.
    two.stop(&keys[0], S).await;
    two.store.intervene(ops[1], Intervention::Pause, two.by().await).await.unwrap();
    two.store.intervene(ops[1], Intervention::KillNow, two.by().await).await.unwrap();
    let later: Timestamp = SystemClock.now() + 5 * S;
    two.store.intervene(ops[2], Intervention::ExtendUntil(later), two.by().await).await.unwrap();
    until("the paused one's task to die", async || !two.lives(&keys[1]).await).await;
    assert_eq!(two.state(ops[1]).await, State::Paused);
    two.store.intervene(ops[1], Intervention::Resume, two.by().await).await.unwrap();
    until("the third's task to die", async || !two.lives(&keys[2]).await).await;
    assert!(SystemClock.now() >= later, "extended");
    two.finished(&ops).await;
    two.check_trail(&ops).await;
    // While its kind is paused a stop is not begun; what was asked for is the clock's all the same once it is.
    two.store.pause_kind(Kind::Stop, two.by().await).await.unwrap();
    let last = two.stop(&keys[3], long).await;
    two.store.intervene(last, Intervention::Cancel, two.by().await).await.unwrap();
    assert_eq!(two.state(last).await, State::Cancelled);
    assert!(two.lives(&keys[3]).await);
    a.controller.stop(true).await;
}
