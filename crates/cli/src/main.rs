//! The `curfew` command: arguments, configuration, wiring, output; nothing else.

mod args;
mod config;
mod demo;
mod dev;
mod doctor;
mod drain;
mod exit;
mod job;
mod op;
mod output;
mod serve;
mod shown;
mod timeline;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use exit::Exit;

fn main() -> ExitCode {
    // A reader that closes early (`| head`) is not an error worth a panic.
    let cli = Cli::parse();
    // Two rustls providers in one process panic: this one everywhere.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    output::start_logging(&cli.log, cli.command.logs_at());
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
    match exit {
        Ok(exit) => exit.into(),
        Err(e) => {
            output::error(&output::chain(&e));
            exit::of(&e).into()
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<Exit> {
    let addr = cli.addr;
    match cli.command {
        Command::Serve(args) => serve::run(args).await,
        Command::Dev(args) => dev::run(args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Job(command) => job::run(&addr, command).await,
        Command::Node(command) => drain::node(&addr, command).await,
        Command::Datacenter(command) => drain::datacenter(&addr, command).await,
        Command::Op(command) => op::run(&addr, command).await,
        Command::Audit(args) => op::audit(&addr, args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Status(args) => op::status(&addr, args).await,
    }
}
