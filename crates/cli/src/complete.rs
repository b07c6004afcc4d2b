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
        clap_mangen::generate_to(Cli::command(), dir)?;
        clap_mangen::Man::new(CliGc::command()).generate_to(dir)?;
        std::io::Result::Ok(())
    };
    write().with_context(|| format!("the manual pages cannot be written to {}", dir.display()))?;
    note(&format!("man {}", dir.join("curfew.1").display()));
    Ok(Exit::Done)
}
