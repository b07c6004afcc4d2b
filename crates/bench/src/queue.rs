//! Operations written down, leased and finished, in milliseconds for each thousand: by backend and number of workers; on PostgreSQL
//! beside another queue crate on the same server, in the same run, taking turns.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use curfew_controller::SystemClock;
use curfew_core::audit::{Action, AuditEntry};
use curfew_core::operation::{Demand, Kind, Operation, Progress, Request, State};
use curfew_core::{Clock, JobKey, OpId};
use curfew_store::{MemoryStore, NewOperation, PostgresStore, SqliteStore, StepResult, Store, Wanted};
use futures::future::try_join_all;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::postgres::Schema;
use crate::report::{Report, Row, Spread};

#[derive(clap::Args)]
pub struct Args {
    /// How many operations each round writes down, leases and finishes.
    #[arg(long, default_value_t = 5000)]
    operations: usize,
    /// How many at the same time.
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    workers: Vec<usize>,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// A PostgreSQL, as postgres://USER@HOST:PORT/DATABASE; schemas of the bench's own are made in it and removed. Without one only
    /// the other backends are measured.
    #[arg(long, env = "CURFEW_TEST_POSTGRES", hide_env_values = true)]
    postgres: Option<String>,
    /// The program that measures another queue crate, as `cargo build --release --manifest-path crates/bench/peer/Cargo.toml` makes
    /// it.
    #[arg(long, requires = "postgres")]
    peer: Option<PathBuf>,
}

/// With 64 callers a database must take so many creates a second (milliseconds for each thousand are a million by that).
const SQLITE_CREATES: f64 = 3000.0;
const POSTGRES_CREATES: f64 = 2000.0;

struct Ours(Arc<dyn Store>);

impl Ours {
    /// Writes `count` requests down, `workers` at the same time; each is durable when it returns.
    async fn fill(&self, count: usize, workers: usize) -> anyhow::Result<()> {
        let callers = (0..workers).map(|w| {
            let store = Arc::clone(&self.0);
            tokio::spawn(async move {
                for i in (w..count).step_by(workers) {
                    store.create(request(i)).await?;
                }
                anyhow::Ok(())
            })
        });
        try_join_all(callers).await?.into_iter().collect()
    }

    /// Leases and finishes them as the controller does it: one loop leases for every worker that is free, each step's end is a write of its own.
    async fn drain(&self, count: usize, workers: usize) -> anyhow::Result<()> {
        let free = Arc::new(Semaphore::new(workers));
        let mut steps = JoinSet::new();
        let mut left = count;
        while left > 0 {
            // Waits for one at least, then takes all there are.
            drop(free.acquire().await?);
            let limit = free.available_permits().min(left);
            let wanted = [Wanted { kind: Kind::Stop, lease_for: Duration::from_secs(300), limit }];
            let leased = self.0.lease("bench:1", &wanted, &[], limit, SystemClock.now()).await?;
            anyhow::ensure!(!leased.is_empty(), "{left} operations are left and none is due");
            left -= leased.len();
            for op in leased {
                let (store, slot) = (Arc::clone(&self.0), Arc::clone(&free).acquire_owned().await?);
                steps.spawn(async move {
                    finish(&*store, &op).await?;
                    drop(slot);
                    anyhow::Ok(())
                });
            }
        }
        while let Some(step) = steps.join_next().await {
            step??;
        }
        Ok(())
    }
}

fn request(i: usize) -> NewOperation {
    let now = SystemClock.now();
    let demand = Demand { at: now, stop_timeout: None, until: None, no_shutdown_delay: false, purge: false, job_index: 1 };
    NewOperation {
        id: OpId::new(now),
        parent: None,
        request: Request::Stop { target: JobKey::new("default", format!("bench-{i}")), demands: vec![demand] },
        actor: "bench".into(),
        reason: None,
        at: now,
        deadline: None,
        warnings: vec![],
        idempotency: None,
    }
}

async fn finish(store: &dyn Store, op: &Operation) -> anyhow::Result<()> {
    let now = SystemClock.now();
    let result = StepResult {
        state: State::Succeeded,
        run_at: now,
        waiting_for: None,
        progress: Progress { demands_sent: 1, ..op.progress.clone() },
        deadline: None,
        outcome: None,
        error: None,
        warnings: vec![],
        attempts: 0,
    };
    let (operation, actor) = (Some(op.id), "bench:1".to_owned());
    let told = AuditEntry { at: now, operation, actor, action: Action::Succeeded, alloc: None, task: None, detail: Value::Null };
    store.finish_step(op, result, vec![told], now).await?;
    Ok(())
}

/// Milliseconds for each thousand.
async fn timed(count: usize, work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<f64> {
    let began = Instant::now();
    work.await?;
    Ok(began.elapsed().as_secs_f64() * 1e6 / count as f64)
}

/// What one queue took, round by round.
#[derive(Default)]
struct Taken {
    fill: Vec<f64>,
    drain: Vec<f64>,
    both: Vec<f64>,
}

impl Taken {
    async fn round(&mut self, queue: &Ours, count: usize, workers: usize) -> anyhow::Result<()> {
        let fill = timed(count, queue.fill(count, workers)).await?;
        let drain = timed(count, queue.drain(count, workers)).await?;
        self.add(fill, drain);
        Ok(())
    }

    fn add(&mut self, fill: f64, drain: f64) {
        self.fill.push(fill);
        self.drain.push(drain);
        self.both.push(fill + drain);
    }
}

pub async fn run(args: Args) -> anyhow::Result<Report> {
    let dir = tempfile::tempdir()?;
    let mut report = Report { name: "queue", on: "this machine".into(), rounds: args.rounds, rows: vec![] };
    for workers in &args.workers {
        let workers = (*workers).max(1);
        let (mut memory, mut sqlite, mut postgres, mut peer) =
            (Taken::default(), Taken::default(), Taken::default(), Taken::default());
        for round in 0..args.rounds {
            memory.round(&Ours(MemoryStore::new()), args.operations, workers).await?;
            let store = SqliteStore::open(&dir.path().join(format!("{workers}-{round}.db")))?;
            sqlite.round(&Ours(store.clone()), args.operations, workers).await?;
            store.close().await?;
            let Some(url) = &args.postgres else { continue };
            on_postgres(url, args.operations, workers, &mut postgres).await.context("PostgreSQL")?;
            if let Some(program) = &args.peer {
                beside(program, url, args.operations, workers, &mut peer).await.context("the other queue")?;
            }
        }
        rows(&mut report, "memory", workers, &memory, &Taken::default(), None);
        rows(&mut report, "SQLite", workers, &sqlite, &Taken::default(), Some(SQLITE_CREATES));
        rows(&mut report, "PostgreSQL", workers, &postgres, &peer, Some(POSTGRES_CREATES));
    }
    Ok(report)
}

async fn on_postgres(url: &str, count: usize, workers: usize, taken: &mut Taken) -> anyhow::Result<()> {
    let schema = Schema::make(url).await?;
    let store = PostgresStore::open(&schema.url).await?;
    let done = taken.round(&Ours(store.clone()), count, workers).await;
    store.close().await?;
    schema.remove().await?;
    done
}

/// The other queue is a program of its own (`crates/bench/peer`): its crates and ours cannot be in one build.
async fn beside(peer: &Path, url: &str, count: usize, workers: usize, taken: &mut Taken) -> anyhow::Result<()> {
    let mut program = tokio::process::Command::new(peer);
    program.env("POSTGRES", url).args([count.to_string(), workers.to_string()]).stdin(Stdio::null()).kill_on_drop(true);
    let output = program.output().await.with_context(|| peer.display().to_string())?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let [fill, drain]: [f64; 2] = serde_json::from_slice(&output.stdout)?;
    taken.add(fill, drain);
    Ok(())
}

fn rows(report: &mut Report, backend: &str, workers: usize, ours: &Taken, peer: &Taken, creates: Option<f64>) {
    let parts =
        [("enqueue", &ours.fill, &peer.fill), ("lease and finish", &ours.drain, &peer.drain), ("both", &ours.both, &peer.both)];
    for (what, ours, peer) in parts {
        let Some(ours) = Spread::of(ours) else { continue };
        let baseline = Spread::of(peer);
        // Many callers at once is what the bounds are about; twice the other queue over the whole way.
        let bound = match (what, baseline) {
            ("enqueue", _) if workers >= 64 => creates.map(|rate| 1e6 / rate),
            ("both", Some(peer)) => Some(peer.median / 2.0),
            _ => None,
        };
        let what = format!("{backend}, {workers} at once: {what}");
        report.rows.push(Row {
            what,
            unit: "ms/1000",
            ours,
            baseline,
            baseline_is: if baseline.is_some() { "graphile_worker" } else { "-" },
            bound,
        });
    }
}
