//! How late a SIGKILL is sent and how late a task is dead, counted from its clock; beside it the cluster's own `kill_timeout`.

use std::time::Duration;

use curfew_core::EventKind;
use futures::{StreamExt, TryStreamExt};

use crate::lab::Lab;
use crate::report::{Report, Row, Spread, percentile};

#[derive(clap::Args)]
pub struct Args {
    /// How many clocks [default: 10000 on the embedded cluster, 100 on NOMAD_ADDR].
    #[arg(long)]
    clocks: Option<usize>,
    /// Within how many seconds they are due.
    #[arg(long, default_value_t = 10.0)]
    within: f64,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// Clocks that fall due together: the allocations of one job.
const TOGETHER: usize = 10;
/// From the stop to the first clock: longer than it takes to stop them all.
const FIRST: Duration = Duration::from_secs(8);
/// The bound on the 99th percentile of sent minus clock.
const SENT_P99: f64 = 0.020;

#[derive(Default)]
struct Round {
    sent: Vec<f64>,
    dead: Vec<f64>,
    baseline: Vec<f64>,
}

pub async fn run(args: Args) -> anyhow::Result<Report> {
    let lab = Lab::open(50).await?;
    let clocks = args.clocks.unwrap_or(if lab.embedded { 10_000 } else { 100 });
    let jobs = clocks.div_ceil(TOGETHER);
    let timeout = |i: usize| FIRST + Duration::from_secs_f64(args.within * i as f64 / jobs as f64);
    let mut rounds = Vec::new();
    for n in 0..args.rounds {
        let mut round = Round::default();
        let ids: Vec<String> = (0..jobs).map(|i| format!("late-{n}-{i}")).collect();
        lab.submit_all(ids.iter().map(|id| lab.impolite(id, TOGETHER, None)).collect()).await?;
        lab.until_running(&ids, TOGETHER).await?;
        let ended = lab.stop_all(ids.iter().enumerate().map(|(i, id)| (id.clone(), timeout(i))).collect()).await?;
        for t in ended.iter().flat_map(|op| &op.outcome).flat_map(|o| &o.allocations).flat_map(|a| &a.tasks) {
            if let (Some(clock), Some(sent), Some(dead)) = (t.kill_at, t.signalled_at, t.ended_at) {
                round.sent.push(sent.seconds_after(clock));
                round.dead.push(dead.seconds_after(clock));
            }
        }
        anyhow::ensure!(round.sent.len() == jobs * TOGETHER, "{} of {} tasks were killed", round.sent.len(), jobs * TOGETHER);
        round.baseline = baseline(&lab, n, jobs, timeout).await?;
        rounds.push(round);
    }
    let over = |pick: fn(&mut Round) -> &mut Vec<f64>, p: f64, rounds: &mut Vec<Round>| {
        let per_round: Vec<f64> = rounds
            .iter_mut()
            .filter_map(|r| {
                let values = pick(r);
                values.sort_by(f64::total_cmp);
                percentile(values, p)
            })
            .collect();
        Spread::of(&per_round)
    };
    let mut rows = Vec::new();
    for (p, name) in [(0.0, "least"), (0.5, "p50"), (0.99, "p99"), (1.0, "most")] {
        if let Some(ours) = over(|r| &mut r.sent, p, &mut rounds) {
            let bound = (p == 0.99).then_some(SENT_P99);
            rows.push(Row {
                what: format!("SIGKILL sent minus clock, {name}"),
                unit: "s",
                ours,
                baseline: None,
                baseline_is: "-",
                bound,
            });
        }
    }
    for (p, name) in [(0.5, "p50"), (0.99, "p99"), (1.0, "most")] {
        let baseline = over(|r| &mut r.baseline, p, &mut rounds);
        if let Some(ours) = over(|r| &mut r.dead, p, &mut rounds) {
            // No later than the cluster's own clock; on the embedded one that clock is a function call away and no bound.
            let bound = baseline.filter(|_| p == 0.99 && !lab.embedded).map(|b| b.median);
            rows.push(Row {
                what: format!("death minus clock, {name}"),
                unit: "s",
                ours,
                baseline,
                baseline_is: "the cluster's kill_timeout",
                bound,
            });
        }
    }
    let on = format!("{}, {} clocks due within {:.0} s", lab.on, jobs * TOGETHER, args.within);
    lab.close().await;
    Ok(Report { name: "lateness", on, rounds: rounds.len(), rows })
}

/// The same jobs with the cluster's own `kill_timeout`, stopped by a bare DELETE.
async fn baseline(lab: &Lab, n: usize, jobs: usize, timeout: impl Fn(usize) -> Duration) -> anyhow::Result<Vec<f64>> {
    let ids: Vec<String> = (0..jobs).map(|i| format!("own-{n}-{i}")).collect();
    lab.register_all(ids.iter().enumerate().map(|(i, id)| lab.impolite(id, TOGETHER, Some(timeout(i)))).collect()).await?;
    lab.until_running(&ids, TOGETHER).await?;
    futures::stream::iter(&ids)
        .map(|id| async move { lab.bare.delete_job(&curfew_core::JobKey::new("default", id.as_str()), false).await.map(|_| ()) })
        .buffer_unordered(32)
        .try_collect::<Vec<()>>()
        .await?;
    lab.until_dead(&ids).await?;
    let mut late = Vec::new();
    for (i, id) in ids.iter().enumerate() {
        for task in lab.allocations(id).await?.iter().flat_map(|a| a.tasks.values()) {
            if let (Some(term), Some(end)) = (task.last_at(EventKind::Killing), task.last_at(EventKind::Terminated)) {
                late.push(end.seconds_after(term + timeout(i)));
            }
        }
    }
    Ok(late)
}
