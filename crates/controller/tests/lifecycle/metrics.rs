//! What Prometheus reads, of a controller on an embedded cluster; and that docs/metrics.md tells exactly that.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use curfew_controller::{Controller, GcPass, GcVerdict, Metrics, Parts, SystemClock, random};
use curfew_core::Clock;
use curfew_core::config::Config;
use curfew_core::gc::Verdict;
use curfew_core::operation::{By, Kind};
use curfew_devcluster::{Cluster, ClusterConfig, NodeConfig};
use curfew_nomad::{Nomad, NomadConfig};
use curfew_store::{MemoryStore, Store};
use futures::FutureExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::flaky::Flaky;
use crate::kit::until;

pub struct Lab {
    pub cluster: Cluster,
    pub store: Arc<MemoryStore>,
    way: Arc<Flaky>,
    metrics: Metrics,
    pub controller: Controller,
    _dir: TempDir,
}

impl Lab {
    async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub async fn with(config: Config) -> Self {
        let dir = TempDir::with_prefix("curfew-metrics-").unwrap();
        let listen = Some(([127, 0, 0, 1], 0).into());
        let (nodes, data_dir) = (["n0", "n1"].map(|n| NodeConfig::new(n, "dc1")).into(), dir.path().join("cluster"));
        let cluster = Cluster::start(ClusterConfig { listen, nodes, data_dir, ..ClusterConfig::default() }).await.unwrap();
        let store = MemoryStore::new();
        let way = Flaky::way_to(&store);
        let metrics = Metrics::new();
        let its: Arc<dyn Store> = way.clone();
        let parts = Parts {
            nomad: nomad(&cluster),
            store: std::future::ready(Ok(its)).boxed(),
            clock: Arc::new(SystemClock),
            config,
            random: random(),
            holder: "test:1".into(),
            listener: Some(TcpListener::bind("127.0.0.1:0").await.unwrap()),
            metrics: metrics.clone(),
            gc: None,
        };
        let controller = curfew_controller::start(parts).unwrap();
        assert!(controller.started().await.is_ok());
        Self { cluster, store, way, metrics, controller, _dir: dir }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.controller.addr().unwrap())
    }

    async fn scrape(&self) -> Scrape {
        let answer = reqwest::get(self.url("/metrics")).await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
        Scrape(answer.text().await.unwrap())
    }

    /// Waits for a sample to have this value.
    async fn until(&self, sample: &str, value: f64) {
        until(&format!("{sample} to be {value}"), async || self.scrape().await.sample(sample) == Some(value)).await;
    }

    /// A job of one task that ignores SIGTERM is stopped, and killed.
    async fn kill_one(&self) {
        let nomad = nomad(&self.cluster);
        let task = json!({ "Name": "t", "Driver": "mock_driver", "Config": { "ignore_sigterm": true },
            "KillTimeout": 3_600_000_000_000u64, "Resources": { "CPU": 20, "MemoryMB": 10 } });
        let job = json!({ "ID": "impolite", "Name": "impolite", "Type": "batch", "Datacenters": ["dc1"],
            "TaskGroups": [{ "Name": "g", "Count": 1, "Tasks": [task] }] });
        let key = curfew_core::JobKey::new("default", "impolite");
        nomad.register(&key, &job, None).await.unwrap();
        until("the job to run", async || nomad.job_allocations(&key).await.unwrap().0.iter().any(|a| a.any_task_lives())).await;
        let body = json!({ "stop_timeout": "300ms" });
        let asked = reqwest::Client::new().post(self.url("/v1/jobs/impolite/stop")).json(&body).send().await.unwrap();
        assert_eq!(asked.status(), 202);
        let op: Value = asked.json().await.unwrap();
        let shown = self.url(&format!("/v1/operations/{}?wait=30s", op["id"].as_str().unwrap()));
        let op: Value = reqwest::get(shown).await.unwrap().json().await.unwrap();
        assert_eq!(op["outcome"]["killed"], 1, "{op}");
    }
}

pub fn nomad(cluster: &Cluster) -> Nomad {
    Nomad::new(NomadConfig { addr: cluster.base_url(), ..NomadConfig::default() }).unwrap()
}

struct Scrape(String);

impl Scrape {
    fn sample(&self, of: &str) -> Option<f64> {
        let value = self.0.lines().find_map(|l| l.strip_prefix(of)?.strip_prefix(' '))?;
        Some(value.parse().unwrap())
    }

    /// Metrics as Prometheus names them, with type and labels.
    fn families(&self) -> BTreeMap<String, (String, BTreeSet<String>)> {
        let mut families = BTreeMap::new();
        for line in self.0.lines() {
            let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) else { continue };
            // An info is a gauge of 1 whose labels inform.
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                _ => ("", kind),
            };
            let stem = if kind == "histogram" { format!("{name}_count") } else { format!("{name}{suffix}") };
            let mut labels = BTreeSet::new();
            for sample in self.0.lines().filter_map(|l| l.strip_prefix(&stem)) {
                let within = sample.strip_prefix('{').and_then(|l| l.split_once("} ")).map_or("", |(l, _)| l);
                labels.extend(within.split("\",").filter_map(|l| Some(l.split_once('=')?.0.to_owned())));
            }
            assert!(self.0.lines().any(|l| l.starts_with(&stem)), "{name} has no sample");
            families.insert(format!("{name}{suffix}"), (kind.to_owned(), labels));
        }
        families
    }
}

/// The tables of docs/metrics.md.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|l| l.starts_with("| `curfew_")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, meaning] = cells[..] else { panic!("not four cells: {line}") };
        assert!(!meaning.is_empty(), "{line}");
        let labels = labels.split(',').map(|l| l.trim().trim_matches('`')).filter(|l| *l != "–").map(str::to_owned);
        let name = name.trim_matches('`').to_owned();
        assert!(rows.insert(name.clone(), (kind.to_owned(), labels.collect())).is_none(), "{name} has two rows");
    }
    rows
}

#[tokio::test]
async fn metrics_md_has_every_metric_with_its_type_and_labels_and_no_other() {
    let lab = Lab::new().await;
    lab.kill_one().await;
    let (exported, documented) = (lab.scrape().await.families(), documented());
    for (name, what) in &exported {
        assert_eq!(documented.get(name), Some(what), "docs/metrics.md: the row of {name}");
    }
    for name in documented.keys() {
        assert!(exported.contains_key(name), "docs/metrics.md explains {name}, which is not exported");
    }
    lab.controller.stop(true).await;
}

#[tokio::test]
async fn a_stop_by_sigkill_is_counted_once_where_it_happened_and_names_nobody() {
    let (lab, other) = (Lab::new().await, Lab::new().await);
    lab.kill_one().await;
    lab.until("curfew_ready", 1.0).await;
    let scrape = lab.scrape().await;
    for (sample, value) in [
        ("curfew_operations_accepted_total{kind=\"stop\",result=\"new\"}", 1.0),
        ("curfew_operations_finished_total{kind=\"stop\",result=\"succeeded\"}", 1.0),
        ("curfew_operation_tasks_total{kind=\"stop\",end=\"killed\"}", 1.0),
        ("curfew_operation_tasks_total{kind=\"stop\",end=\"exited\"}", 0.0),
        ("curfew_operation_duration_seconds_count{kind=\"stop\"}", 1.0),
        ("curfew_sigkills_total{cause=\"stopped\",answer=\"sent\"}", 1.0),
        ("curfew_clock_lateness_seconds_count", 1.0),
        ("curfew_nomad_requests_total{route=\"PUT /v1/client/allocation/:alloc/signal\",outcome=\"ok\"}", 1.0),
        ("curfew_nomad_requests_total{route=\"DELETE /v1/job/:job\",outcome=\"ok\"}", 1.0),
        ("curfew_rpc_requests_total{method=\"POST\",route=\"/v1/jobs/{job}/stop\",status=\"202\"}", 1.0),
        ("curfew_rpc_requests_total{method=\"GET\",route=\"/v1/operations/{id}\",status=\"200\"}", 1.0),
        ("curfew_store_errors_total{call=\"create\"}", 0.0),
        ("curfew_store_call_duration_seconds_count{call=\"create\"}", 1.0),
        ("curfew_phase{phase=\"running\"}", 1.0),
        ("curfew_phase{phase=\"starting\"}", 0.0),
        ("curfew_keeper_duty_held", 1.0),
        ("curfew_keeper_duty_epoch", 1.0),
        ("curfew_operations{kind=\"stop\",state=\"waiting\"}", 0.0),
        ("curfew_clocks_armed", 0.0),
    ] {
        assert_eq!(scrape.sample(sample), Some(value), "{sample}\n{}", scrape.0);
    }
    let late = scrape.sample("curfew_clock_lateness_seconds_sum").unwrap();
    assert!((0.0..10.0).contains(&late), "{late}");
    // The job is in the labels of nothing; no node either.
    for id in ["impolite", "n0\""] {
        assert!(!scrape.0.contains(id), "{id}:\n{}", scrape.0);
    }
    let beside = other.scrape().await;
    assert_eq!(beside.sample("curfew_operations_accepted_total{kind=\"stop\",result=\"new\"}"), Some(0.0));
    lab.controller.stop(true).await;
    other.controller.stop(true).await;
}

#[tokio::test]
async fn a_paused_kill_an_unknown_path_and_a_pass_of_the_gc_show() {
    let lab = Lab::new().await;
    assert_eq!(lab.scrape().await.sample("curfew_kind_paused{kind=\"kill\"}"), Some(0.0));
    let by = By { actor: "somebody".into(), reason: None, at: SystemClock.now() };
    lab.store.pause_kind(Kind::Kill, by).await.unwrap();
    lab.until("curfew_kind_paused{kind=\"kill\"}", 1.0).await;
    assert_eq!(reqwest::get(lab.url("/v1/nothing/of/the/kind")).await.unwrap().status(), 404);
    let verdict = GcVerdict { verdict: Verdict::Orphan, found: 7, acted: 0, left: 7, capped: true };
    let pass = GcPass { ended_at: SystemClock.now(), took: Duration::from_millis(1500), exit: 4, verdicts: vec![verdict] };
    lab.metrics.gc_pass(&pass);
    let scrape = lab.scrape().await;
    for (sample, value) in [
        ("curfew_rpc_requests_total{method=\"GET\",route=\"none\",status=\"404\"}", 1.0),
        ("curfew_gc_passes_total{result=\"capped\"}", 1.0),
        ("curfew_gc_candidates{verdict=\"orphan\"}", 7.0),
        ("curfew_gc_capped{verdict=\"orphan\"}", 1.0),
        ("curfew_gc_capped{verdict=\"purge\"}", 0.0),
        ("curfew_gc_last_pass_duration_seconds", 1.5),
    ] {
        assert_eq!(scrape.sample(sample), Some(value), "{sample}\n{}", scrape.0);
    }
    lab.controller.stop(true).await;
}

/// It is registered, runs, and so its rollout is over; what it does afterwards is a crash loop.
#[tokio::test]
async fn a_rollout_and_the_crash_loop_after_it_are_counted() {
    let lab = Lab::new().await;
    let scrape = lab.scrape().await;
    assert_eq!(scrape.sample("curfew_rollouts_total{result=\"stalled\"}"), Some(0.0));
    assert_eq!(scrape.sample("curfew_tasks_crashing"), Some(0.0));
    let task = json!({ "Name": "t", "Driver": "mock_driver", "Config": { "run_for": "500ms", "exit_code": 1 },
        "Resources": { "CPU": 20, "MemoryMB": 10 } });
    let restart = json!({ "Attempts": 100, "Mode": "fail", "Interval": 3_600_000_000_000u64, "Delay": 100_000_000 });
    let job = json!({ "ID": "crasher", "Name": "crasher", "Type": "batch", "Datacenters": ["dc1"],
        "TaskGroups": [{ "Name": "g", "Count": 1, "RestartPolicy": restart, "Tasks": [task] }] });
    let body = json!({ "spec": { "json": job }, "watch": true });
    let asked = reqwest::Client::new().post(lab.url("/v1/jobs")).json(&body).send().await.unwrap();
    assert_eq!(asked.status(), 202);
    lab.until("curfew_rollouts_total{result=\"deployed\"}", 1.0).await;
    lab.until("curfew_tasks_crashing", 1.0).await;
    lab.controller.stop(true).await;
}

/// What cannot be read is absent, not zero, and the rest is there.
#[tokio::test]
async fn a_database_that_is_gone_does_not_hide_the_rest() {
    let lab = Lab::new().await;
    lab.until("curfew_ready", 1.0).await;
    lab.way.away(true);
    let scrape = lab.scrape().await;
    assert_eq!(scrape.sample("curfew_store_readable"), Some(0.0));
    assert_eq!(scrape.sample("curfew_ready"), Some(0.0));
    assert_eq!(scrape.sample("curfew_operations{kind=\"stop\",state=\"queued\"}"), None);
    assert_eq!(scrape.sample("curfew_phase{phase=\"running\"}"), Some(1.0));
    assert_eq!(scrape.sample("curfew_nomad_in_sight"), Some(1.0));
    let failed = scrape.sample("curfew_store_errors_total{call=\"check\"}");
    assert!(failed >= Some(1.0), "{failed:?}");
    lab.way.away(false);
    lab.until("curfew_store_readable", 1.0).await;
    lab.controller.stop(true).await;
}
