//! How many calls to Nomad a stop costs, and an idle controller; beside it a stop that polls once a second.

use std::collections::BTreeMap;
use std::time::Duration;

use curfew_core::JobKey;

use crate::lab::Lab;
use crate::report::{Report, Row, Spread};

#[derive(clap::Args)]
pub struct Args {
    /// How many jobs, of one task each, are stopped together.
    #[arg(long)]
    stops: Option<usize>,
    /// For how long an idle controller is watched, in seconds.
    #[arg(long, default_value_t = 30)]
    idle: u64,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// One DELETE, one signal, and a tenth for everything that is shared.
const BOUND: f64 = 2.1;

pub async fn run(args: Args) -> anyhow::Result<Report> {
    let lab = Lab::open(20).await?;
    let stops = args.stops.unwrap_or(if lab.embedded { 500 } else { 60 });
    let mut routes: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    let (mut ours, mut polling, mut idle_empty, mut idle_full) = (vec![], vec![], vec![], vec![]);
    for n in 0..args.rounds {
        idle_empty.push(idle(&lab, args.idle).await);
        let ids: Vec<String> = (0..stops).map(|i| format!("req-{n}-{i}")).collect();
        lab.submit_all(ids.iter().map(|id| lab.impolite(id, 1, None)).collect()).await?;
        lab.until_running(&ids, 1).await?;
        idle_full.push(idle(&lab, args.idle).await);
        let before: BTreeMap<_, _> = lab.nomad.requests().into_iter().collect();
        lab.stop_all(ids.iter().map(|id| (id.clone(), STOP_TIMEOUT)).collect()).await?;
        let mut all = 0.0;
        for (route, count) in lab.nomad.requests() {
            let each = (count - before.get(route).copied().unwrap_or(0)) as f64 / stops as f64;
            all += each;
            if each > 0.0 {
                routes.entry(route).or_default().push(each);
            }
        }
        ours.push(all);
        polling.push(by_polling(&lab, n).await?);
    }
    let mut rows = Vec::new();
    if let Some(s) = Spread::of(&ours) {
        let what = format!("calls for each of {stops} stops of one live task");
        rows.push(Row {
            what,
            unit: "",
            ours: s,
            baseline: Spread::of(&polling),
            baseline_is: "a stop that polls each second",
            bound: Some(BOUND),
        });
    }
    for (route, each) in &routes {
        rows.extend(Spread::of(each).map(|ours| Row {
            what: format!("  {route}"),
            unit: "",
            ours,
            baseline: None,
            baseline_is: "-",
            bound: None,
        }));
    }
    if let (Some(s), Some(empty)) = (Spread::of(&idle_full), Spread::of(&idle_empty)) {
        let what = format!("calls a second while idle, {stops} healthy jobs");
        // Constant: as many as with no job at all, but for a list that falls into one window and not into the other.
        let bound = Some(empty.median + 1.0 / args.idle.max(1) as f64);
        rows.push(Row { what, unit: "1/s", ours: s, baseline: Some(empty), baseline_is: "idle without jobs", bound });
    }
    let on = lab.on.clone();
    lab.close().await;
    Ok(Report { name: "requests", on, rounds: args.rounds, rows })
}

fn calls(lab: &Lab) -> f64 {
    lab.nomad.requests().iter().map(|(_, n)| *n as f64).sum()
}

async fn idle(lab: &Lab, seconds: u64) -> f64 {
    let before = calls(lab);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    (calls(lab) - before) / seconds.max(1) as f64
}

/// What a script does: DELETE, list the allocations each second until none lives; the cluster's own clock kills.
async fn by_polling(lab: &Lab, n: usize) -> anyhow::Result<f64> {
    let id = format!("poll-{n}");
    lab.register_all(vec![lab.impolite(&id, 1, Some(STOP_TIMEOUT))]).await?;
    lab.until_running(std::slice::from_ref(&id), 1).await?;
    lab.bare.delete_job(&JobKey::new("default", id.as_str()), false).await?;
    let mut calls = 1.0;
    loop {
        calls += 1.0;
        if !lab.allocations(&id).await?.iter().any(curfew_core::Allocation::any_task_lives) {
            return Ok(calls);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
