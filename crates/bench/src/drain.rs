//! A datacenter drained by Curfew, and by the cluster's own drain of the same nodes. The controller is a process of its own; the cluster
//! and its mock tasks are in this one, another for each measurement.

use std::time::Duration;

use anyhow::{bail, ensure};
use curfew_client::{Client, DrainRequest, Selection, Strategy};
use curfew_core::operation::State;
use curfew_core::{JobKey, NodeId};
use curfew_devcluster::{Cluster, ClusterConfig, NodeConfig};
use curfew_nomad::{DrainDeadline, Nomad};
use futures::{StreamExt, TryStreamExt};
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::clocks::until;
use crate::keep::{self, Kept, memory_mib};
use crate::placement::call;
use crate::report::{Report, Row, Spread};

#[derive(clap::Args)]
pub struct Args {
    /// Nodes that are drained.
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// Allocations on them; a service job for each node's share, which is spread over all of them.
    #[arg(long, default_value_t = 10_000)]
    allocations: usize,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// Against the cluster's own drain.
const SLOWER: f64 = 1.05;
/// For those that ignore SIGTERM; in the baseline Nomad's own kill_timeout.
const EVACUATED_WITHIN: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Nodes that take what leaves.
const OTHERS: usize = 50;
const AT_ONCE: usize = 16;
const LOOK: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_secs(900);

#[derive(Default)]
struct Measured {
    empty: Vec<f64>,
    own: Vec<f64>,
    said: Vec<f64>,
    peak: Vec<f64>,
    shown: Vec<f64>,
    asked: Vec<f64>,
}

pub async fn run(args: Args) -> anyhow::Result<Report> {
    ensure!(args.nodes > 0 && args.allocations >= args.nodes, "--allocations must be at least --nodes, and that at least 1");
    let mut rows = vec![];
    for strategy in [Strategy::Migrate, Strategy::Evacuate] {
        let mut m = Measured::default();
        for _ in 0..args.rounds {
            m.own.push(by_itself(&args, strategy).await?);
            by_curfew(&args, strategy, &mut m).await?;
        }
        rows.extend(m.rows(strategy, args.allocations));
    }
    let on = format!("the embedded cluster, {} nodes, {} allocations", args.nodes, args.allocations);
    Ok(Report { name: "drain", on, rounds: args.rounds, rows })
}

impl Measured {
    fn rows(&self, strategy: Strategy, allocations: usize) -> Vec<Row> {
        let own = Spread::of(&self.own);
        let row = |what: String, unit, of: &[f64], baseline: Option<Spread>, bound| {
            Some(Row { what, unit, ours: Spread::of(of)?, baseline, baseline_is: "the cluster's own drain", bound })
        };
        let s = strategy.as_str();
        let per_alloc: Vec<f64> = self.asked.iter().map(|n| n / allocations as f64).collect();
        let rows = [
            row(format!("{s}: until nothing lives there"), "s", &self.empty, own, own.map(|o| o.median * SLOWER)),
            row("  the operation says so after".into(), "s", &self.said, None, None),
            row("  requests to Nomad for each allocation".into(), "", &per_alloc, None, None),
            row("  its operation shown in the middle".into(), "s", &self.shown, None, None),
            row("  peak memory of the controller".into(), "MiB", &self.peak, None, None),
        ];
        rows.into_iter().flatten().collect()
    }
}

/// A cluster in which everything runs in dc1, and dc2 has room for all of it.
struct Full {
    cluster: Cluster,
    nomad: Nomad,
    drained: Vec<NodeId>,
    dir: TempDir,
}

impl Full {
    async fn start(args: &Args, strategy: Strategy, kill_timeout: Duration) -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("curfew-bench-")?;
        let node = |name: String, dc: &str| NodeConfig {
            cpu: 10_000_000,
            memory_mb: 10_000_000,
            max_kill_timeout: 2 * DAY,
            ..NodeConfig::new(name, dc)
        };
        let nodes =
            (0..args.nodes).map(|i| node(format!("a{i}"), "dc1")).chain((0..OTHERS).map(|i| node(format!("b{i}"), "dc2")));
        let config = ClusterConfig {
            listen: Some(([127, 0, 0, 1], 0).into()),
            nodes: nodes.collect(),
            data_dir: dir.path().join("cluster"),
            ..ClusterConfig::default()
        };
        let cluster = Cluster::start(config).await?;
        let nomad = keep::nomad(&cluster.base_url())?;
        let (drained, others): (Vec<_>, Vec<_>) = nomad.nodes(None).await?.into_iter().partition(|n| n.datacenter == "dc1");
        let eligible = async |yes| {
            let all = others.iter().map(|n| nomad.set_eligibility(&n.id, yes));
            futures::future::try_join_all(all).await
        };
        eligible(false).await?;
        let count = args.allocations / args.nodes;
        let registering = futures::stream::iter(0..args.nodes).map(|i| {
            let (nomad, id) = (&nomad, format!("drain-{i}"));
            async move {
                nomad
                    .register(&JobKey::new("default", id.as_str()), &job(&id, count, strategy, kill_timeout), None)
                    .await
                    .map(drop)
            }
        });
        registering.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
        let full = Self { cluster, drained: drained.iter().map(|n| n.id.clone()).collect(), dir, nomad: nomad.clone() };
        until("the tasks to run and be healthy", async || {
            Ok(!full.any("allocations", "ClientStatus != \"running\"").await?
                && !full.any("deployments", "Status != \"successful\"").await?)
        })
        .await?;
        eligible(true).await?;
        Ok(full)
    }

    async fn any(&self, what: &str, filter: &str) -> anyhow::Result<bool> {
        let filter: String = filter.bytes().map(|b| format!("%{b:02X}")).collect();
        let path = format!("/v1/{what}?per_page=1&task_states=false&filter={filter}");
        Ok(call(&self.cluster, Method::GET, &path, Value::Null).await?.as_array().is_some_and(|a| !a.is_empty()))
    }

    /// Seconds until nothing lives in dc1.
    async fn emptied(&self, began: Instant) -> anyhow::Result<f64> {
        while self.any("allocations", "NodeName matches \"^a\" and ClientStatus != \"complete\"").await? {
            ensure!(began.elapsed() < PATIENCE, "gave up after {} s", PATIENCE.as_secs());
            tokio::time::sleep(LOOK).await;
        }
        Ok(began.elapsed().as_secs_f64())
    }
}

/// Every node ineligible first, as anybody would who drains them all.
async fn by_itself(args: &Args, strategy: Strategy) -> anyhow::Result<f64> {
    let full = Full::start(args, strategy, EVACUATED_WITHIN).await?;
    let began = Instant::now();
    let nomad = &full.nomad;
    let mark = futures::stream::iter(&full.drained).map(|id| nomad.set_eligibility(id, false));
    mark.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    let deadline = match strategy {
        Strategy::Migrate => DrainDeadline::After(DAY),
        Strategy::Evacuate => DrainDeadline::Now,
    };
    let meta = Default::default();
    let drain = futures::stream::iter(&full.drained).map(|id| nomad.drain_node(id, deadline, false, &meta));
    drain.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    let seconds = full.emptied(began).await?;
    full.cluster.shutdown().await;
    Ok(seconds)
}

async fn by_curfew(args: &Args, strategy: Strategy, m: &mut Measured) -> anyhow::Result<()> {
    let full = Full::start(args, strategy, DAY).await?;
    let kept = Kept::new(&full.cluster.base_url(), &full.dir.path().join("curfew.db")).await?;
    let client = Client::new(kept.addr())?;
    let controller = kept.launch()?;
    until("the controller to see Nomad", async || Ok(client.status().await.is_ok_and(|s| s.nomad == "in sight"))).await?;
    let selection = Selection { datacenter: Some("dc1".into()), ..Selection::default() };
    let drain_timeout = match strategy {
        Strategy::Migrate => Duration::from_secs(4 * 3600),
        Strategy::Evacuate => EVACUATED_WITHIN,
    };
    let request =
        DrainRequest { selection, strategy: Some(strategy), drain_timeout: Some(drain_timeout), ..DrainRequest::default() };
    let began = Instant::now();
    let op = client.drain(&request, None).await?;
    let shown = async {
        tokio::time::sleep(EVACUATED_WITHIN / 2).await;
        let asked = Instant::now();
        client.operation(op.id).await?;
        anyhow::Ok(asked.elapsed().as_secs_f64())
    };
    let (empty, shown) = tokio::try_join!(full.emptied(began), shown)?;
    let ended = client.wait(op.id, PATIENCE).await?;
    let said = began.elapsed().as_secs_f64() - empty;
    if ended.state != State::Succeeded {
        bail!("the drain is {}: {}", ended.state.as_str(), ended.error.or(ended.waiting_for).unwrap_or_default());
    }
    m.peak.push(memory_mib(&controller, "VmHWM")?);
    m.asked.push(keep::asked(controller).await?.iter().map(|(_, n)| *n as f64).sum());
    m.empty.push(empty);
    m.said.push(said);
    m.shown.push(shown);
    full.cluster.shutdown().await;
    Ok(())
}

/// With Nomad's own defaults in its `migrate` block: one allocation of a job at a time, healthy for ten seconds.
fn job(id: &str, count: usize, strategy: Strategy, kill_timeout: Duration) -> Value {
    let impolite = strategy == Strategy::Evacuate;
    let task = json!({ "Name": "t", "Driver": "mock_driver", "Config": { "ignore_sigterm": impolite }, "KillSignal": "SIGTERM",
                       "KillTimeout": u64::try_from(kill_timeout.as_nanos()).unwrap_or(u64::MAX), "Resources": { "CPU": 20, "MemoryMB": 10 } });
    // Everything at once at the start; without a progress deadline a kill_timeout may be of any length.
    let update = json!({ "MaxParallel": count, "MinHealthyTime": 1_000_000_000, "ProgressDeadline": 0 });
    json!({ "ID": id, "Name": id, "Type": "service", "Datacenters": ["dc1", "dc2"], "Update": update,
            "TaskGroups": [{ "Name": "g", "Count": count, "Tasks": [task] }] })
}
