//! The command line of drains.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use curfew_client::{DrainRequest, MaxParallel, Selection, Strategy, UndrainRequest};
use curfew_core::duration::parse as duration;

use crate::args::{Output, Waiting, Who};
use crate::exit::Usage;
use crate::job::who;

#[derive(Subcommand)]
pub enum Node {
    /// Empty nodes: nothing new comes, and what lives there leaves by the deadline.
    Drain(NodeDrain),
    /// Cancel drains of nodes, and let what Curfew drained take allocations again.
    Undrain(NodeUndrain),
    /// List nodes with the state of their drains.
    List(Output),
}

#[derive(Subcommand)]
pub enum Datacenter {
    /// Empty every node of a datacenter.
    Drain(DatacenterDrain),
    /// Cancel drains in a datacenter, and let what Curfew drained take allocations again.
    Undrain(DatacenterUndrain),
}

#[derive(Args)]
pub struct NodeDrain {
    #[command(flatten)]
    pub nodes: Nodes,
    #[command(flatten)]
    pub how: How,
}

#[derive(Args)]
pub struct DatacenterDrain {
    #[command(flatten)]
    pub datacenter: InDatacenter,
    #[command(flatten)]
    pub how: How,
}

#[derive(Args)]
pub struct NodeUndrain {
    #[command(flatten)]
    pub nodes: Nodes,
    #[command(flatten)]
    pub how: UndrainHow,
}

#[derive(Args)]
pub struct DatacenterUndrain {
    #[command(flatten)]
    pub datacenter: InDatacenter,
    #[command(flatten)]
    pub how: UndrainHow,
}

/// Nodes by whatever describes them.
#[derive(Args)]
#[group(id = "which", required = true, multiple = true, args = ["nodes", "datacenter", "node_pool", "node_class", "meta"])]
pub struct Nodes {
    /// Ids, beginnings of ids, or names.
    #[arg(value_name = "NODE")]
    pub nodes: Vec<String>,
    /// Only nodes of this datacenter.
    #[arg(long, value_name = "NAME")]
    pub datacenter: Option<String>,
    #[command(flatten)]
    pub like: Like,
}

#[derive(Args)]
pub struct InDatacenter {
    /// The datacenter's name.
    #[arg(value_name = "DC")]
    pub datacenter: String,
    #[command(flatten)]
    pub like: Like,
}

#[derive(Args)]
pub struct Like {
    /// Only nodes of this pool.
    #[arg(long, value_name = "NAME")]
    pub node_pool: Option<String>,
    /// Only nodes of this class.
    #[arg(long, value_name = "NAME")]
    pub node_class: Option<String>,
    /// Only nodes with this in their meta; may be given several times.
    #[arg(long, visible_alias = "selector", value_name = "KEY=VALUE", value_parser = pair)]
    pub meta: Vec<(String, String)>,
}

/// How a drain is done.
#[derive(Args)]
pub struct How {
    /// What lives on a node so long after its drain began gets SIGKILL; without it the datacenter's in the configuration, else
    /// the default (1h).
    #[arg(long, visible_alias = "deadline", value_name = "DURATION", value_parser = drain_timeout)]
    pub drain_timeout: Option<Duration>,
    /// Wait as long as it takes: nothing is killed because of the drain.
    #[arg(long, conflicts_with = "drain_timeout")]
    pub no_deadline: bool,
    /// How tasks are told to leave; without it migrate for nodes that are named, else evacuate.
    #[arg(long, value_enum)]
    pub strategy: Option<Way>,
    /// How many nodes at a time, as in 3 or 20%; without it all of them.
    #[arg(long, value_name = "N")]
    pub max_parallel: Option<MaxParallel>,
    /// Let system jobs stay.
    #[arg(long)]
    pub ignore_system: bool,
    /// Kill, and wait for, only what was submitted through Curfew.
    #[arg(long)]
    pub only_managed: bool,
    /// Show what it would do, and change nothing whatever else is given.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
    /// Exit with 3 when SIGKILL was needed.
    #[arg(long, conflicts_with = "detach")]
    pub fail_on_kill: bool,
    #[command(flatten)]
    pub who: Who,
    #[command(flatten)]
    pub waiting: Waiting,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args)]
pub struct UndrainHow {
    /// Also nodes that somebody else drained or made ineligible.
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub who: Who,
    #[command(flatten)]
    pub waiting: Waiting,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Way {
    /// At Nomad's pace; what is left hears SIGTERM a stop timeout before the deadline.
    Migrate,
    /// SIGTERM to everything at the start, and the whole drain timeout to leave.
    Evacuate,
}

impl From<Way> for Strategy {
    fn from(way: Way) -> Self {
        match way {
            Way::Migrate => Strategy::Migrate,
            Way::Evacuate => Strategy::Evacuate,
        }
    }
}

impl Nodes {
    pub fn selection(self) -> Result<Selection, Usage> {
        Ok(Selection { nodes: self.nodes, ..self.like.within(self.datacenter)? })
    }
}

impl InDatacenter {
    pub fn selection(self) -> Result<Selection, Usage> {
        self.like.within(Some(self.datacenter))
    }
}

impl Like {
    fn within(self, datacenter: Option<String>) -> Result<Selection, Usage> {
        let mut meta = BTreeMap::new();
        for (key, value) in self.meta {
            if let Some(other) = meta.insert(key.clone(), value.clone()).filter(|o| *o != value) {
                return Err(Usage(format!("--meta {key}={other} and --meta {key}={value}: no node has both")));
            }
        }
        let datacenter = datacenter.map(|d| d.as_str().into());
        Ok(Selection { datacenter, node_pool: self.node_pool, node_class: self.node_class, meta, ..Selection::default() })
    }
}

impl How {
    pub fn request(&self, selection: Selection) -> DrainRequest {
        DrainRequest {
            selection,
            strategy: self.strategy.map(Into::into),
            drain_timeout: self.drain_timeout,
            no_deadline: self.no_deadline,
            max_parallel: self.max_parallel,
            ignore_system: self.ignore_system,
            only_managed: self.only_managed,
            dry_run: self.dry_run,
            who: who(self.who.reason.clone()),
        }
    }
}

impl UndrainHow {
    pub fn request(&self, selection: Selection) -> UndrainRequest {
        UndrainRequest { selection, all: self.all, who: who(self.who.reason.clone()) }
    }
}

fn drain_timeout(text: &str) -> Result<Duration, String> {
    match duration(text) {
        Ok(Duration::ZERO) => Err("that leaves a task no time at all; --no-deadline is for a drain without one".into()),
        other => other.map_err(|e| e.to_string()),
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE, as in rack=r1")?;
    if key.is_empty() {
        return Err("the key is missing; write it as KEY=VALUE, as in rack=r1".into());
    }
    Ok((key.to_owned(), value.to_owned()))
}
