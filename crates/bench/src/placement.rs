//! How fast the embedded cluster places and runs mock tasks in memory, and what they take there. It says what a test at that
//! scale costs, nothing about Curfew.

use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use curfew_devcluster::{Cluster, ClusterConfig, NodeConfig};
use futures::StreamExt;
use http::{Method, Request};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::report::{Report, Row, Spread};

#[derive(clap::Args)]
pub struct Args {
    /// Allocations, all jobs together.
    #[arg(long, default_value_t = 100_000)]
    allocations: usize,
    #[arg(long, default_value_t = 10_000)]
    nodes: usize,
    /// Service jobs, with a deployment each.
    #[arg(long, default_value_t = 100)]
    jobs: usize,
}

const PATIENCE: Duration = Duration::from_secs(900);

pub async fn run(args: Args) -> anyhow::Result<Report> {
    ensure!(
        args.jobs > 0 && args.allocations >= args.jobs,
        "--allocations {} is fewer than --jobs {}",
        args.allocations,
        args.jobs
    );
    ensure!(args.nodes > 0, "--nodes 0 leaves no place");
    let dir = TempDir::with_prefix("curfew-bench-")?;
    let count = args.allocations / args.jobs;
    let allocations = count * args.jobs;
    let nodes = (0..args.nodes).map(|i| NodeConfig::new(format!("n{i}"), "dc1")).collect();
    let before = resident()?;
    let cluster = Cluster::start(ClusterConfig::in_process(nodes, dir.path())).await?;
    let empty = resident()?;
    let began = Instant::now();
    for i in 0..args.jobs {
        call(&cluster, Method::PUT, "/v1/jobs", json!({ "Job": job(i, count) })).await?;
    }
    let placed = until(&cluster, args.jobs, began, |row| total(row) == count).await.context("placing")?;
    let running = until(&cluster, args.jobs, began, |row| row["Running"] == count).await.context("starting")?;
    let full = resident()?;
    let began = Instant::now();
    for i in 0..args.jobs {
        call(&cluster, Method::DELETE, &format!("/v1/job/job{i}"), Value::Null).await?;
    }
    let ended = until(&cluster, args.jobs, began, |row| row["Complete"] == count).await.context("stopping")?;
    cluster.shutdown().await;
    let row = |what: String, unit, value: f64| Row {
        what,
        unit,
        ours: Spread { median: value, least: value, most: value },
        baseline: None,
        baseline_is: "",
        bound: None,
    };
    Ok(Report {
        name: "placement",
        on: format!("the embedded cluster in memory, {} nodes, {} jobs", args.nodes, args.jobs),
        rounds: 1,
        rows: vec![
            row(format!("{allocations} allocations placed"), "s", placed),
            row(format!("{allocations} allocations running"), "s", running),
            row(format!("{allocations} allocations stopped"), "s", ended),
            row("resident: the nodes alone".into(), "MiB", empty - before),
            row("resident: everything running".into(), "MiB", full),
            row("resident: each allocation".into(), "KiB", (full - empty) * 1024.0 / allocations as f64),
        ],
    })
}

fn job(i: usize, count: usize) -> Value {
    let id = format!("job{i}");
    let task = json!({"Name": "t", "Driver": "mock", "Config": {}, "Resources": {"CPU": 20, "MemoryMB": 10}});
    json!({"ID": id, "Name": id, "Type": "service", "Datacenters": ["dc1"], "TaskGroups": [{"Name": "g", "Count": count, "Tasks": [task]}]})
}

fn total(row: &Value) -> usize {
    ["Starting", "Running", "Complete", "Failed", "Lost", "Unknown"].iter().filter_map(|k| row[*k].as_u64()).sum::<u64>() as usize
}

/// Seconds until every job's group is as wanted.
async fn until(cluster: &Cluster, jobs: usize, began: Instant, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<f64> {
    for i in 0..jobs {
        loop {
            let summary = call(cluster, Method::GET, &format!("/v1/job/job{i}/summary"), Value::Null).await?;
            let row = &summary["Summary"]["g"];
            if wanted(row) {
                break;
            }
            ensure!(began.elapsed() < PATIENCE, "gave up after {} s; job{i} is at {row}", PATIENCE.as_secs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(began.elapsed().as_secs_f64())
}

pub async fn call(cluster: &Cluster, method: Method, path: &str, body: Value) -> anyhow::Result<Value> {
    let bytes = if body.is_null() { Bytes::new() } else { serde_json::to_vec(&body)?.into() };
    let answer = cluster.call(Request::builder().method(method).uri(path).body(bytes)?).await;
    let status = answer.status();
    let mut chunks = answer.into_body().into_data_stream();
    let mut text = Vec::new();
    while let Some(chunk) = chunks.next().await {
        text.extend_from_slice(&chunk?);
    }
    ensure!(status.is_success(), "{path}: {status} {}", String::from_utf8_lossy(&text));
    Ok(serde_json::from_slice(&text)?)
}

/// MiB of this process in memory.
fn resident() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).and_then(|l| l.split_whitespace().next());
    Ok(kib.context("no VmRSS in /proc/self/status")?.parse::<f64>()? / 1024.0)
}
