//! Measures graphile_worker, a queue on PostgreSQL, for `curfew-bench queue --peer`. `POSTGRES` names the server; the arguments are how many
//! jobs, and how many at the same time. Prints milliseconds for each thousand, `[enqueue, run]`. In the way its documentation recommends for many small jobs: batches of jobs are fetched
//! ahead into a queue of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail};
use futures::future::try_join_all;
use graphile_worker::{IntoTaskHandlerResult, JobSpec, LocalQueueConfig, TaskHandler, Worker, WorkerContext, WorkerOptions};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

const SCHEMA: &str = "curfew_bench_peer";

#[derive(Serialize, Deserialize)]
struct Stop {
    namespace: String,
    job: String,
}

/// How many are still to be finished, and who waits for the last.
#[derive(Clone, Debug)]
struct Left(Arc<(AtomicUsize, Notify)>);

impl TaskHandler for Stop {
    const IDENTIFIER: &'static str = "stop";

    async fn run(self, cx: WorkerContext) -> impl IntoTaskHandlerResult {
        if let Some(left) = cx.get_ext::<Left>()
            && left.0.0.fetch_sub(1, Ordering::SeqCst) == 1
        {
            left.0.1.notify_one();
        }
        Ok::<(), String>(())
    }
}

struct Peer {
    url: String,
    worker: Arc<Worker>,
    left: Left,
}

impl Peer {
    async fn new(url: &str, workers: usize) -> anyhow::Result<Peer> {
        admin(url).await?.batch_execute(&format!("DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")).await?;
        let left = Left(Arc::new((AtomicUsize::new(0), Notify::new())));
        let worker = WorkerOptions::default()
            .database_url(url)
            .schema(SCHEMA)
            .concurrency(workers)
            .local_queue(LocalQueueConfig::default())
            .listen_os_shutdown_signals(false)
            .define_job::<Stop>()
            .add_extension(left.clone())
            .init()
            .await?;
        Ok(Peer { url: url.to_owned(), worker: Arc::new(worker), left })
    }

    async fn remove(self) -> anyhow::Result<()> {
        drop(self.worker);
        admin(&self.url).await?.batch_execute(&format!("DROP SCHEMA {SCHEMA} CASCADE")).await?;
        Ok(())
    }
}

impl Peer {
    async fn fill(&self, count: usize, workers: usize) -> anyhow::Result<()> {
        let callers = (0..workers).map(|w| {
            let utils = self.worker.create_utils();
            tokio::spawn(async move {
                for i in (w..count).step_by(workers) {
                    let stop = Stop { namespace: "default".into(), job: format!("bench-{i}") };
                    utils.add_job(stop, JobSpec::default()).await?;
                }
                anyhow::Ok(())
            })
        });
        try_join_all(callers).await?.into_iter().collect()
    }

    /// Over when its table is empty: a job is deleted when it is done.
    async fn drain(&self, count: usize) -> anyhow::Result<()> {
        let admin = admin(&self.url).await?;
        self.left.0.0.store(count, Ordering::SeqCst);
        let worker = Arc::clone(&self.worker);
        let running = tokio::spawn(async move { worker.run().await });
        self.left.0.1.notified().await;
        let sql = format!("SELECT count(*) FROM {SCHEMA}._private_jobs");
        while admin.query_one(&sql, &[]).await?.get::<_, i64>(0) > 0 {}
        running.abort();
        // Its end is the abort.
        let _ = running.await;
        Ok(())
    }
}

async fn admin(url: &str) -> anyhow::Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = std::env::var("POSTGRES").context("POSTGRES names no server")?;
    let mut numbers = std::env::args().skip(1).map(|a| a.parse::<usize>());
    let (Some(count), Some(workers)) = (numbers.next(), numbers.next()) else { bail!("JOBS and WORKERS are missing") };
    let (count, workers) = (count?.max(1), workers?.max(1));
    let peer = Peer::new(&url, workers).await?;
    let each = |began: Instant| began.elapsed().as_secs_f64() * 1e6 / count as f64;
    let began = Instant::now();
    peer.fill(count, workers).await?;
    let fill = each(began);
    let began = Instant::now();
    peer.drain(count).await?;
    let drain = each(began);
    peer.remove().await?;
    println!("[{fill}, {drain}]");
    Ok(())
}
