//! What was recorded of a real Nomad, asked of the embedded cluster again: status, headers, words, the shape of every body,
//! and the order in which allocations, deployments and nodes changed.

mod compare;
mod differences;
mod play;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use curfew_tests::cluster::{Cluster, Kind, Shape};
use libtest_mimic::{Failed, Trial};
use serde_json::Value;
use tokio::runtime::Handle;

pub use compare::Diff;

use crate::runner::caught;
use differences::Wanted;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// What all replays have in common: the list of wanted differences, and which of them were seen.
pub struct Replays {
    names: Vec<String>,
    wanted: Wanted,
    done: Mutex<Vec<String>>,
}

impl Replays {
    pub fn load() -> Arc<Self> {
        let folder = fixtures().join("recordings");
        let files = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path());
        let mut names: Vec<String> = files
            .filter(|f| f.extension().is_some_and(|e| e == "jsonl"))
            .map(|f| f.file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        names.sort();
        Arc::new(Self { names, wanted: Wanted::load(&fixtures().join("differences.toml")), done: Mutex::default() })
    }

    pub fn trials(self: &Arc<Self>, runtime: &Handle) -> Vec<Trial> {
        let trial = |name: &String| {
            let (all, runtime, name) = (self.clone(), runtime.clone(), name.clone());
            Trial::test(format!("replay::{name}"), move || runtime.block_on(all.replay(&name)))
        };
        self.names.iter().map(trial).collect()
    }

    async fn replay(&self, name: &str) -> Result<(), Failed> {
        let text = std::fs::read_to_string(fixtures().join(format!("recordings/{name}.jsonl"))).unwrap();
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let away = lines.iter().any(|l| l["do"] == "node down");
        let acl = lines.iter().any(|l| l.get("as").is_some());
        let shape = Shape { nodes: if away { 3 } else { 1 }, acl, ..Shape::default() };
        let diffs = caught(async {
            let cluster = Cluster::start(Kind::Dev, &shape).await;
            play::play(&cluster, &lines).await
        })
        .await?;
        let unwanted: Vec<String> = diffs.iter().filter(|d| !self.wanted.has(name, d)).map(ToString::to_string).collect();
        self.done.lock().unwrap().push(name.to_owned());
        if unwanted.is_empty() { Ok(()) } else { Err(unwanted.join("\n").into()) }
    }

    /// After a run of all replays: listed differences that no longer occur.
    pub fn stale(&self) -> Vec<String> {
        if self.done.lock().unwrap().len() < self.names.len() { vec![] } else { self.wanted.unseen() }
    }
}
