//! The `curfew` command: arguments, configuration, wiring, output; nothing else.

mod args;
mod audit;
mod complete;
mod config;
mod demo;
mod dev;
mod doctor;
mod drain;
mod example;
mod exit;
mod gc;
mod job;
mod look;
mod op;
mod output;
mod queue;
mod remote;
mod rollout;
mod serve;
mod shown;
mod timeline;
mod token;
mod traces;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, CliGc, Command};
use exit::Exit;

/// The `curfew` program.
pub fn curfew() -> ExitCode {
    // A reader that closes early (`| head`) is not an error worth a panic.
    start(Cli::parse())
}

/// The `curfew-gc` program: `curfew gc` by itself.
pub fn curfew_gc() -> ExitCode {
    start(CliGc::parse().into())
}

fn start(cli: Cli) -> ExitCode {
    // Two rustls providers in one process panic: this one everywhere.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let traces = match traces::wanted(&cli.command) {
        Ok(traces) => traces,
        Err(e) => {
            output::error(&output::chain(&e));
            return Exit::Usage.into();
        }
    };
    output::start_logging(&cli.log, cli.command.logs_at(), traces.as_ref());
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(r) => r,
        Err(e) => {
            output::error(&format!("the runtime could not be started: {e}"));
            return Exit::Failed.into();
        }
    };
    let exit = runtime.block_on(run(cli));
    // A task that hangs in a blocking call does not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    if let Some(traces) = traces {
        traces.end();
    }
    match exit {
        Ok(exit) => exit.into(),
        Err(e) => {
            output::error(&output::chain(&e));
            exit::of(&e).into()
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<Exit> {
    let remote = &cli.remote;
    match cli.command {
        Command::Serve(args) => serve::run(args).await,
        Command::Dev(args) => dev::run(args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Job(command) => job::run(remote, command).await,
        Command::Node(command) => drain::node(remote, command).await,
        Command::Datacenter(command) => drain::datacenter(remote, command).await,
        Command::Op(command) => op::run(remote, command).await,
        Command::Kind(command) => queue::kind(remote, command).await,
        Command::Queue(command) => queue::run(remote, command).await,
        Command::Audit(args) => audit::run(remote, args).await,
        Command::Doctor(args) => doctor::run(remote, args).await,
        Command::Gc(args) => gc::run(remote, args).await,
        Command::Clocks(args) => look::clocks(remote, args).await,
        Command::Token(command) => token::run(remote, command).await,
        Command::Status(args) => op::status(remote, args).await,
        Command::Config(command) => config::run(command),
        Command::Completions { shell } => Ok(complete::completions(shell)),
        Command::Man { dir } => complete::man(&dir),
        Command::Openapi => {
            output::line(curfew_controller::openapi().trim_end());
            Ok(Exit::Done)
        }
    }
}
