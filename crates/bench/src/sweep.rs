//! A pass of the gc over a large and healthy cluster, beside a plain listing of the same pages; each in a process of its own, so
//! that its memory is its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use curfew_controller::SystemClock;
use curfew_core::config::Config;
use curfew_core::operation::{Registering, Request};
use curfew_core::{Clock, JobKey, OpId};
use curfew_devcluster::{Cluster, ClusterConfig, NodeConfig};
use curfew_gc::{Gc, Known, Memory, Parts};
use curfew_nomad::{Filter, JobFilter, Nomad, NomadConfig};
use curfew_store::{NewOperation, SqliteStore, Store};
use futures::{StreamExt, TryStreamExt};
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::placement::call;
use crate::report::{Report, Row, Spread};

#[derive(clap::Args)]
pub struct Args {
    /// How many jobs of one allocation each.
    #[arg(long, default_value_t = 100_000)]
    jobs: usize,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// What a process of its own does: a pass, or a plain listing.
    #[arg(long, hide = true, requires = "nomad")]
    alone: Option<Alone>,
    #[arg(long, hide = true)]
    nomad: Option<String>,
    #[arg(long, hide = true)]
    database: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Alone {
    /// The lists that a pass asks for, read and dropped.
    Listing,
    /// A pass with nobody to ask.
    Pass,
    /// The lists of a pass that looks for orphans.
    ListingAll,
    /// A pass with a database.
    PassDatabase,
}

/// What a process says of itself.
#[derive(Serialize, Deserialize)]
struct Told {
    seconds: f64,
    peak_mb: f64,
    rows: usize,
}

/// Against the plain listing of the same pages.
const SLOWER: f64 = 1.5;
const MEMORY_MB: f64 = 150.0;
/// Jobs of one operation, as the children of a parameterized job are.
const SIBLINGS: usize = 100;

pub async fn run(args: Args) -> anyhow::Result<Option<Report>> {
    if let (Some(alone), Some(nomad)) = (args.alone, &args.nomad) {
        let told = told(alone, nomad, args.database.as_deref()).await?;
        crate::report::line(&serde_json::to_string(&told)?);
        return Ok(None);
    }
    let dir = TempDir::with_prefix("curfew-bench-")?;
    let database = dir.path().join("curfew.db");
    let cluster = large(args.jobs, &dir, &database).await?;
    let address = cluster.base_url();
    let mut all: [Vec<Told>; 4] = Default::default();
    let kinds = [Alone::Listing, Alone::Pass, Alone::ListingAll, Alone::PassDatabase];
    for _ in 0..args.rounds {
        for (kind, told) in kinds.iter().zip(&mut all) {
            told.push(in_its_own_process(*kind, &address, &database).await?);
        }
    }
    cluster.shutdown().await;
    let [listing, pass, listing_all, with_database] = &all;
    let mut rows = Vec::new();
    for (what, ours, baseline) in
        [("a pass, nobody to ask", pass, listing), ("a pass that looks for orphans", with_database, listing_all)]
    {
        let seconds = |told: &[Told]| Spread::of(&told.iter().map(|t| t.seconds).collect::<Vec<_>>());
        let (Some(mine), plain) = (seconds(ours), seconds(baseline)) else { continue };
        let bound = plain.map(|p| p.median * SLOWER);
        let baseline_is = "listing the same pages";
        rows.push(Row { what: what.into(), unit: "s", ours: mine, baseline: plain, baseline_is, bound });
        let peak = |told: &[Told]| Spread::of(&told.iter().map(|t| t.peak_mb).collect::<Vec<_>>());
        let listed = ours.first().map_or(0, |t| t.rows);
        if let Some(mine) = peak(ours) {
            let what = format!("  its peak memory ({listed} candidates)");
            rows.push(Row { what, unit: "MB", ours: mine, baseline: peak(baseline), baseline_is, bound: Some(MEMORY_MB) });
        }
    }
    Ok(Some(Report { name: "sweep", on: format!("the embedded cluster, {} jobs", args.jobs), rounds: args.rounds, rows }))
}

async fn large(jobs: usize, dir: &TempDir, database: &Path) -> anyhow::Result<Cluster> {
    const AT_ONCE: usize = 64;
    let node = |i| NodeConfig { cpu: 10_000_000, memory_mb: 10_000_000, ..NodeConfig::new(format!("n{i}"), "dc1") };
    let config = ClusterConfig {
        listen: Some(([127, 0, 0, 1], 0).into()),
        nodes: (0..20).map(node).collect(),
        data_dir: dir.path().join("cluster"),
        ..ClusterConfig::default()
    };
    let cluster = Cluster::start(config).await?;
    let store = SqliteStore::open(database)?;
    // The first row of the trail is older than every job.
    let operations: Vec<OpId> = (0..jobs.div_ceil(SIBLINGS)).map(|_| OpId::new(SystemClock.now())).collect();
    for (i, id) in operations.iter().enumerate() {
        let target = JobKey::new("default", format!("sweep-{}", i * SIBLINGS));
        let request = Request::Submit {
            target,
            registration: Registering { spec: Box::new(json!({})), base_index: 0, only_onto_base: false },
        };
        let at = SystemClock.now();
        let new = NewOperation {
            id: *id,
            parent: None,
            request,
            actor: "bench".into(),
            reason: None,
            at,
            deadline: None,
            warnings: vec![],
            idempotency: None,
        };
        store.create(new).await?;
    }
    store.close().await?;
    let registering: Vec<_> = (0..jobs)
        .filter_map(|i| operations.get(i / SIBLINGS).map(|op| job(i, op)))
        .map(|job| call(&cluster, Method::PUT, "/v1/jobs", job))
        .collect();
    futures::stream::iter(registering).buffer_unordered(AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;
    let give_up = Instant::now() + Duration::from_secs(600);
    let pending = "/v1/allocations?per_page=1&filter=ClientStatus%20%21%3D%20%22running%22";
    loop {
        let some = call(&cluster, Method::GET, pending, Value::Null).await?;
        let waiting =
            call(&cluster, Method::GET, "/v1/jobs?per_page=1&filter=Status%20%21%3D%20%22running%22", Value::Null).await?;
        if [&some, &waiting].iter().all(|list| list.as_array().is_some_and(Vec::is_empty)) {
            return Ok(cluster);
        }
        if Instant::now() > give_up {
            bail!("the cluster's jobs do not run: {waiting}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn job(i: usize, operation: &OpId) -> Value {
    let id = format!("sweep-{i}");
    json!({ "Job": {
        "ID": id, "Name": id, "Type": "batch", "Datacenters": ["dc1"],
        "Meta": { "curfew_managed": "true", "curfew_operation": operation.to_string() },
        "TaskGroups": [{ "Name": "g", "Count": 1, "Tasks": [{
            "Name": "t", "Driver": "mock_driver", "Config": { "ignore_sigterm": true }, "Resources": { "CPU": 1, "MemoryMB": 1 },
        }] }],
    } })
}

async fn in_its_own_process(kind: Alone, nomad: &str, database: &Path) -> anyhow::Result<Told> {
    let kind = clap::ValueEnum::to_possible_value(&kind).context("a kind without a name")?.get_name().to_owned();
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.args(["sweep", "--alone", &kind, "--nomad", nomad, "--database"]).arg(database);
    let out = command.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true).output().await?;
    if !out.status.success() {
        bail!("the process of {kind} ended with {}", out.status);
    }
    Ok(serde_json::from_slice(&out.stdout)?)
}

async fn told(kind: Alone, nomad: &str, database: Option<&Path>) -> anyhow::Result<Told> {
    let nomad = Nomad::new(NomadConfig { addr: nomad.into(), ..NomadConfig::default() })?;
    let store = match (kind, database) {
        (Alone::PassDatabase, Some(path)) => Some(SqliteStore::open(path)?),
        _ => None,
    };
    // The connection is there before it counts.
    nomad.version().await?;
    let began = Instant::now();
    let rows = match kind {
        Alone::Listing => listing(&nomad, JobFilter::managed_and_odd()).await?,
        Alone::ListingAll => listing(&nomad, JobFilter::managed()).await?,
        Alone::Pass | Alone::PassDatabase => {
            let known = match store.clone() {
                Some(store) => Known::Database(store),
                None => Known::Nothing,
            };
            let settings = Config::default().gc()?;
            let parts =
                Parts { nomad, known, clock: Arc::new(SystemClock), settings, who: "bench".into(), memory: Memory::none() };
            let report = {
                let gc = Gc::new(parts);
                gc.dry(gc.look().await)
            };
            if !report.failures.is_empty() {
                bail!("the pass failed: {:?}", report.failures);
            }
            report.candidates.len()
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    if let Some(store) = store {
        store.close().await?;
    }
    Ok(Told { seconds, peak_mb: peak_mb()?, rows })
}

/// The calls of a pass, their answers read and dropped.
async fn listing(nomad: &Nomad, jobs: JobFilter) -> anyhow::Result<usize> {
    let mut rows = nomad.nodes(None).await?.len();
    let mut pages = nomad.allocations(Some(Filter::told_to_end()), "*", nomad.config().per_page);
    while let Some(page) = pages.next().await? {
        rows += page.allocations.len();
    }
    let mut pages = nomad.jobs(jobs, "*");
    while let Some(page) = pages.next().await? {
        rows += page.len();
    }
    Ok(rows)
}

/// The most memory that this process ever had, as the kernel counts it.
fn peak_mb() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status").context("no /proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kb: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kb / 1024.0)
}
