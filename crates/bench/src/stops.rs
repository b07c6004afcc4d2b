//! How fast stops are accepted: each is a row that survives a crash when its 202 comes. Beside it bare DELETEs to Nomad over as many
//! connections, in the same run, taking turns. The jobs have no allocation, so that nothing but the requests is measured; what the
//! controller does of the stops already, it does meanwhile.

use std::time::Duration;

use curfew_client::StopRequest;
use curfew_core::JobKey;
use futures::{StreamExt, TryStreamExt};
use serde_json::Value;
use tokio::time::Instant;

use crate::lab::Lab;
use crate::postgres::Schema;
use crate::report::{Report, Row, Spread};

#[derive(clap::Args)]
pub struct Args {
    /// How many jobs each round stops, and how many others it deletes.
    #[arg(long)]
    stops: Option<usize>,
    /// Requests at the same time, each on a connection of its own.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// A PostgreSQL, as postgres://USER@HOST:PORT/DATABASE; a schema of the bench's own is made in it and removed. Without one only
    /// SQLite is measured.
    #[arg(long, env = "CURFEW_TEST_POSTGRES", hide_env_values = true)]
    postgres: Option<String>,
}

/// On the embedded cluster a controller must accept so many a second.
const SQLITE: f64 = 3000.0;
const POSTGRES: f64 = 2000.0;
/// On a real Nomad, of what bare DELETEs reach.
const OF_BARE: f64 = 0.9;

pub async fn run(args: Args) -> anyhow::Result<Report> {
    anyhow::ensure!(args.connections > 0, "--connections 0 asks nothing");
    let lab = Lab::open(1).await?;
    let mut report = Report { name: "stops", on: lab.on.clone(), rounds: args.rounds, rows: vec![] };
    report.rows.extend(measure(&args, &lab, "SQLite", SQLITE).await?);
    lab.close().await;
    if let Some(server) = &args.postgres {
        let schema = Schema::make(server).await?;
        let lab = Lab::open_on(1, Some(&schema.url)).await?;
        let row = measure(&args, &lab, "PostgreSQL", POSTGRES).await;
        lab.close().await;
        schema.remove().await?;
        report.rows.extend(row?);
    }
    Ok(report)
}

async fn measure(args: &Args, lab: &Lab, database: &str, goal: f64) -> anyhow::Result<Option<Row>> {
    let stops = args.stops.unwrap_or(if lab.embedded { 5000 } else { 1000 });
    let (mut ours, mut bare) = (vec![], vec![]);
    for n in 0..args.rounds {
        let ids = |whose: &str| (0..stops).map(|i| format!("{whose}-{database}-{n}-{i}")).collect::<Vec<_>>();
        let (stopped, deleted) = (ids("stop"), ids("bare"));
        let empty = |id: &String| -> Value { lab.impolite(id, 0, None) };
        lab.register_all(stopped.iter().chain(&deleted).map(empty).collect()).await?;
        ours.push(
            timed(args.connections, &stopped, async |id| {
                Ok(lab.client.stop(id, &StopRequest::default(), None).await.map(drop)?)
            })
            .await?,
        );
        // What they made it do is over before the other's turn.
        lab.eventually("the stops to end", || async { Ok(lab.client.queue().await?.counts.is_empty()) }).await?;
        bare.push(
            timed(args.connections, &deleted, async |id| {
                Ok(lab.bare.delete_job(&JobKey::new("default", id), false).await.map(drop)?)
            })
            .await?,
        );
    }
    let Some(baseline) = Spread::of(&bare) else { return Ok(None) };
    let bound = if lab.embedded { 1e6 / goal } else { baseline.median / OF_BARE };
    Ok(Spread::of(&ours).map(|ours| Row {
        what: format!("{database}: {stops} stops accepted, {} connections", args.connections),
        unit: "ms/1000",
        ours,
        baseline: Some(baseline),
        baseline_is: "bare DELETEs to Nomad",
        bound: Some(bound),
    }))
}

/// Milliseconds for each thousand, with so many under way.
async fn timed(at_once: usize, ids: &[String], ask: impl AsyncFn(&str) -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let began = Instant::now();
    let asked = futures::stream::iter(ids).map(|id| ask(id)).buffer_unordered(at_once);
    asked.try_collect::<Vec<()>>().await?;
    let took: Duration = began.elapsed();
    Ok(took.as_secs_f64() * 1e6 / ids.len().max(1) as f64)
}
