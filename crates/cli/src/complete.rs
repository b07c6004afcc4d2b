//! What a package takes along: shell completions and manual pages, made from the arguments.

use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::{Cli, CliGc};
use crate::exit::Exit;
use crate::output::{line, note};

pub fn completions(shell: Shell) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "curfew", &mut script);
    line(String::from_utf8_lossy(&script).trim_end());
    Exit::Done
}

/// `curfew.1`, one page for each command below it, and `curfew-gc.1`.
pub fn man(dir: &Path) -> anyhow::Result<Exit> {
    let write = || {
        std::fs::create_dir_all(dir)?;
        let mut curfew = Cli::command().disable_help_subcommand(true);
        curfew.build();
        pages(&curfew, dir)?;
        pages(&CliGc::command(), dir)
    };
    write().with_context(|| format!("the manual pages cannot be written to {}", dir.display()))?;
    note(&format!("man {}", dir.join("curfew.1").display()));
    Ok(Exit::Done)
}

/// A page for the command and one for each below it. The library's own way would leave them without a version.
fn pages(command: &clap::Command, dir: &Path) -> std::io::Result<()> {
    let source = concat!("Curfew ", env!("CARGO_PKG_VERSION"));
    clap_mangen::Man::new(command.clone()).source(source).manual("Curfew").generate_to(dir)?;
    command.get_subcommands().filter(|c| !c.is_hide_set()).try_for_each(|c| pages(c, dir))
}
