//! `curfew-bench`: measurements beside their baselines, in the same run, alternating.
//!
//! A bound is broken when it is missed by more than twice; then the exit code is 1. Figures from a shared machine say little
//! one by one, so each is a median over rounds with its spread, and a ratio to what was measured beside it.

mod clocks;
mod drain;
mod keep;
mod lab;
mod lateness;
mod placement;
mod postgres;
mod queue;
mod report;
mod requests;
mod stops;
mod sweep;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use report::Report;

/// As `curfew` itself has it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures Curfew on an embedded cluster, or on NOMAD_ADDR.
#[derive(Parser)]
#[command(name = "curfew-bench", version)]
struct Cli {
    /// Print JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// SIGKILL sent minus clock, and death minus clock, against the cluster's own kill_timeout.
    Lateness(lateness::Args),
    /// Calls to Nomad for each stop, and while idle, against a stop that polls.
    Requests(requests::Args),
    /// Seconds and memory of the embedded cluster itself for many mock allocations, in this process.
    Placement(placement::Args),
    /// Operations written down, leased and finished, by backend and number of workers, against another queue crate.
    Queue(queue::Args),
    /// A pass of the gc over a large and healthy cluster, against a plain listing of the same pages.
    Sweep(sweep::Args),
    /// Stops accepted and written down, over HTTP, against bare DELETEs to Nomad over as many connections.
    Stops(stops::Args),
    /// What many pending stops cost a controller that has nothing to do: memory, CPU, and the time from its start to its clocks.
    Clocks(clocks::Args),
    /// A datacenter drained, against the cluster's own drain of the same nodes: until nothing lives there, requests, memory.
    Drain(drain::Args),
    /// The controller that is measured, as a process of its own.
    #[command(hide = true)]
    Keep(keep::Keep),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Another part of the process may have installed the same one before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::ERROR).with_writer(std::io::stderr).init();
    let measured = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Into::into).and_then(|rt| {
        let measured = rt.block_on(async {
            match cli.what {
                What::Lateness(args) => lateness::run(args).await.map(Some),
                What::Requests(args) => requests::run(args).await.map(Some),
                What::Placement(args) => placement::run(args).await.map(Some),
                What::Queue(args) => queue::run(args).await.map(Some),
                What::Sweep(args) => sweep::run(args).await,
                What::Stops(args) => stops::run(args).await.map(Some),
                What::Clocks(args) => clocks::run(args).await.map(Some),
                What::Drain(args) => drain::run(args).await.map(Some),
                What::Keep(args) => keep::keep(args).await.map(|()| None),
            }
        });
        rt.shutdown_timeout(std::time::Duration::from_secs(1));
        measured
    });
    match measured {
        Ok(Some(report)) => report.print(cli.json),
        // A part that printed its own.
        Ok(None) => ExitCode::SUCCESS,
        Err(e) => {
            report::error(&format!("{e:#}"));
            ExitCode::FAILURE
        }
    }
}

impl Report {
    fn print(&self, json: bool) -> ExitCode {
        report::line(&if json { self.json() } else { self.table() });
        if self.broken() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}
