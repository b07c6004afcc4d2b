//! What pending stops cost a controller that has nothing to do but wait for their clocks. The controller is a process of its own (this
//! program again), so that what is measured is its alone; the cluster and its mock tasks are in this one.

use std::time::Duration;

use anyhow::{Context, ensure};
use curfew_client::{Client, StopRequest};
use curfew_core::JobKey;
use curfew_devcluster::{Cluster, ClusterConfig, NodeConfig};
use curfew_nomad::{Filter, Nomad};
use futures::{StreamExt, TryStreamExt};
use serde_json::json;
use tempfile::TempDir;
use tokio::process::Child;
use tokio::time::Instant;

use crate::keep::{self, Kept, memory_mib, nomad};
use crate::report::{Report, Row, Spread};

#[derive(clap::Args)]
pub struct Args {
    /// Stops of one task each, all of them waiting for their clocks.
    #[arg(long, default_value_t = 100_000)]
    stops: usize,
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// For how long the idle controller is watched, in seconds.
    #[arg(long, default_value_t = 60)]
    idle: u64,
}

/// Longer than the run takes.
const STOP_TIMEOUT: Duration = Duration::from_secs(20 * 3600);
const KILL_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
const AT_ONCE: usize = 32;
const PATIENCE: Duration = Duration::from_secs(1800);

const MEMORY_MIB: f64 = 150.0;
const IDLE_PERCENT: f64 = 1.0;
const ARMED_SECONDS: f64 = 2.0;

pub async fn run(args: Args) -> anyhow::Result<Report> {
    ensure!(args.nodes > 0 && args.stops > 0, "--nodes and --stops must be at least 1");
    let dir = TempDir::with_prefix("curfew-bench-")?;
    let nodes = (0..args.nodes).map(|i| NodeConfig {
        cpu: 10_000_000,
        memory_mb: 10_000_000,
        max_kill_timeout: 2 * KILL_TIMEOUT,
        ..NodeConfig::new(format!("n{i}"), "dc1")
    });
    let config = ClusterConfig {
        listen: Some(([127, 0, 0, 1], 0).into()),
        nodes: nodes.collect(),
        data_dir: dir.path().join("cluster"),
        ..ClusterConfig::default()
    };
    let cluster = Cluster::start(config).await?;
    let bare = nomad(&cluster.base_url())?;
    let ids: Vec<String> = (0..args.stops).map(|i| format!("clock-{i}")).collect();
    register(&bare, &ids).await?;

    let kept = Kept::new(&cluster.base_url(), &dir.path().join("curfew.db")).await?;
    let client = Client::new(kept.addr())?;
    let mut controller = kept.launch()?;
    until("the controller to see Nomad", async || Ok(client.status().await.is_ok_and(|s| s.nomad == "in sight"))).await?;
    let began = Instant::now();
    let request = StopRequest { stop_timeout: Some(STOP_TIMEOUT), ..StopRequest::default() };
    let stopping = futures::stream::iter(&ids).map(|id| client.stop(id, &request, None)).buffer_unordered(AT_ONCE);
    stopping.try_for_each(|_| async { Ok(()) }).await?;
    let accepted = began.elapsed().as_secs_f64();
    until("its clocks", async || Ok(client.status().await?.clocks_armed == args.stops)).await?;
    quiet(&client, &controller).await?;
    let (memory, idle) = (memory_mib(&controller, "VmRSS")?, idle(&controller, args.idle).await?);

    controller.kill().await?;
    let began = Instant::now();
    controller = kept.launch()?;
    until("its clocks again", async || Ok(client.status().await.is_ok_and(|s| s.clocks_armed == args.stops))).await?;
    let armed = began.elapsed().as_secs_f64();
    quiet(&client, &controller).await?;
    let (memory_again, idle_again) = (memory_mib(&controller, "VmRSS")?, self::idle(&controller, args.idle).await?);
    controller.kill().await?;
    cluster.shutdown().await;

    let row = |what: &str, unit, value: f64, bound| Row {
        what: what.to_owned(),
        unit,
        ours: Spread { median: value, least: value, most: value },
        baseline: None,
        baseline_is: "-",
        bound,
    };
    Ok(Report {
        name: "clocks",
        on: format!("the embedded cluster, {} stops of one mock task each, {} nodes", args.stops, args.nodes),
        rounds: 1,
        rows: vec![
            row("all stops accepted", "s", accepted, None),
            row("resident memory", "MiB", memory, Some(MEMORY_MIB)),
            row("CPU while idle, of one core", "%", idle, Some(IDLE_PERCENT)),
            row("killed and started again, until armed", "s", armed, Some(ARMED_SECONDS)),
            row("resident memory after that", "MiB", memory_again, Some(MEMORY_MIB)),
            row("CPU while idle after that", "%", idle_again, Some(IDLE_PERCENT)),
        ],
    })
}

async fn register(bare: &Nomad, ids: &[String]) -> anyhow::Result<()> {
    let registering = futures::stream::iter(ids).map(|id| async move {
        // Nomad's own clock is out of the way.
        let task = json!({ "Name": "t", "Driver": "mock_driver", "Config": { "ignore_sigterm": true },
                           "KillTimeout": u64::try_from(KILL_TIMEOUT.as_nanos()).unwrap_or(u64::MAX),
                           "Resources": { "CPU": 20, "MemoryMB": 10 } });
        let job = json!({ "ID": id, "Name": id, "Type": "batch", "Datacenters": ["dc1"],
                          "TaskGroups": [{ "Name": "g", "Count": 1, "Tasks": [task] }] });
        bare.register(&JobKey::new("default", id.as_str()), &job, None).await.map(drop)
    });
    registering.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    until("the tasks to run", async || {
        let mut pages = bare.allocations(Some(Filter::running()), "*", 5000);
        let mut running = 0;
        while let Some(page) = pages.next().await? {
            running += page.allocations.len();
        }
        Ok(running == ids.len())
    })
    .await
}

/// What the stops made it do is over: no step runs, and nothing that had changed is still being listed anew.
async fn quiet(client: &Client, controller: &Child) -> anyhow::Result<()> {
    // Longer than from one list to the next (`resync_interval`).
    const LOOK: u64 = 15;
    until("the controller to be idle", async || {
        Ok(client.queue().await?.running.is_empty() && idle(controller, LOOK).await? < 2.0)
    })
    .await
}

/// Percent of one core over so many seconds.
async fn idle(controller: &Child, seconds: u64) -> anyhow::Result<f64> {
    let before = cpu_seconds(controller)?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    Ok((cpu_seconds(controller)? - before) * 100.0 / seconds.max(1) as f64)
}

/// User and system time so far. The kernel shows hundredths of a second, whatever its own tick is.
fn cpu_seconds(controller: &Child) -> anyhow::Result<f64> {
    let stat = keep::proc_file(controller, "stat")?;
    // The command's name may hold spaces and brackets: fields count from the last one.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace()).context("/proc/…/stat")?;
    let ticks: Vec<f64> = fields.skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let began = Instant::now();
    while !holds().await? {
        ensure!(began.elapsed() < PATIENCE, "gave up after {} s: waiting for {what}", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
