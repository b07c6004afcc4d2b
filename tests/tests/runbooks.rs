//! docs/runbooks and docs/getting-started.md: every command of every page, as it stands there, on an embedded cluster and a controller that `systemctl` (a stand-in of
//! three commands, since no test may touch the machine's own) starts and stops.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use curfew_core::api::OperationView;
use curfew_core::operation::State;
use curfew_tests::cluster::{Cluster, Kind, Shape};
use curfew_tests::command::{Curfew, curfew};
use curfew_tests::jobs::{IMPOLITE, POLITE, on, service, task, with};
use curfew_tests::lab::{PATIENCE, unique};
use curfew_tests::process::{self, Proc};
use curfew_tests::run::Given;
use curfew_tests::wait::eventually;
use curfew_tests::{binary, free_port};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Starts and stops the controller of this folder, and the client of the embedded cluster's node.
const SYSTEMCTL: &str = r#"#!/bin/bash
set -eu
cd "$HOST"
case "$1 $2" in
  "start curfew")
    setsid flock running bash -c 'curfew serve --database "sqlite:$DATABASE" --listen "$LISTEN" & echo $! >pid; wait $!; echo $? >code' >>serve.log 2>&1 </dev/null &
    curl -sf --retry 200 --retry-all-errors --retry-delay 1 -o /dev/null "$CURFEW_ADDR/readyz" ;;
  "stop curfew")
    kill -TERM "$(cat pid)"
    # Held until it has ended.
    flock running true
    exit "$(cat code)" ;;
  "start nomad") curl -sf -X PUT -o /dev/null "$NOMAD_ADDR/dev/v1/node/$NODE/up" ;;
  *) echo "$* is not known here" >&2; exit 64 ;;
esac
"#;

struct Host {
    dir: TempDir,
    cluster: Cluster,
    env: Vec<(String, String)>,
}

impl Host {
    async fn new(nodes: usize) -> Self {
        let cluster = Cluster::start(Kind::Dev, &Shape { nodes, ..Shape::default() }).await;
        let dir = TempDir::with_prefix("curfew-test-runbook-").unwrap();
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(binary::curfew(), bin.join("curfew")).unwrap();
        let systemctl = bin.join("systemctl");
        std::fs::write(&systemctl, SYSTEMCTL).unwrap();
        std::fs::set_permissions(&systemctl, std::fs::Permissions::from_mode(0o755)).unwrap();
        let listen = format!("127.0.0.1:{}", free_port());
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        let env = [
            ("PATH", path),
            ("HOST", dir.path().display().to_string()),
            ("DATABASE", dir.path().join("curfew.db").display().to_string()),
            ("CURFEW_ADDR", format!("http://{listen}")),
            ("LISTEN", listen),
            ("NOMAD_ADDR", cluster.addr().to_owned()),
            ("no_proxy", "127.0.0.1".into()),
        ];
        let host = Self { dir, cluster, env: env.map(|(k, v)| (k.to_owned(), v)).into() };
        host.block("systemctl start curfew", &[0], &[]).await;
        host
    }

    fn curfew(&self, args: &[&str]) -> Curfew {
        self.env.iter().fold(curfew(args.iter().copied()), |c, (k, v)| c.env(k, v.as_str()))
    }

    /// Runs, and its only task's process is there.
    async fn starts(&self, job: Value) -> (String, Proc) {
        let id = job["ID"].as_str().unwrap().to_owned();
        self.curfew(&["job", "run", "-"]).stdin(job.to_string()).run().await.code(0);
        let proc = eventually(PATIENCE, &format!("{id} to run"), async || {
            let allocs = self.cluster.api.allocations(&id).await?;
            let alloc = allocs.first().and_then(|a| a["ID"].as_str()).ok_or_else(|| "no allocation".to_owned())?;
            let found = process::of_task(&id, alloc, "t");
            found.first().copied().filter(|p| p.minds_sigterm()).ok_or_else(|| format!("no process yet: {found:?}"))
        })
        .await;
        (id, proc)
    }

    /// `job stop … --detach`: the operation's id.
    async fn stops(&self, job: &str, within: &str) -> OperationView {
        self.curfew(&["job", "stop", job, "--stop-timeout", within, "--detach", "--json"]).run().await.code(0).operation()
    }

    async fn operation(&self, id: &str) -> OperationView {
        self.curfew(&["op", "show", id, "--json"]).run().await.code(0).operation()
    }

    /// The operation when a task of it has heard SIGTERM.
    async fn told(&self, id: &str) -> OperationView {
        eventually(PATIENCE, "it to be told", async || {
            let op = self.operation(id).await;
            let told = op.outcome.iter().flat_map(|o| &o.allocations).flat_map(|a| &a.tasks).any(|t| t.term_at.is_some());
            // And not in the middle of a step.
            if told && op.state == State::Waiting { Ok(op) } else { Err(format!("{op:?}")) }
        })
        .await
    }

    /// Every block of a page, in order.
    async fn page(&self, name: &str, vars: &[(&str, &str)]) {
        let blocks = blocks(name);
        assert!(blocks.len() >= 4, "{name} has {} blocks", blocks.len());
        for Block { codes, text } in &blocks {
            self.block(text, codes, vars).await;
        }
    }

    async fn block(&self, text: &str, codes: &[i32], vars: &[(&str, &str)]) {
        let mut command = tokio::process::Command::new("bash");
        command.args(["-euc", text]).env_clear().envs(self.env.iter().cloned()).envs(vars.iter().copied());
        command.stdin(Stdio::null()).kill_on_drop(true).current_dir(self.dir.path());
        let log = self.dir.path().join("block.log");
        let file = std::fs::File::create(&log).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let status = tokio::time::timeout(Duration::from_secs(150), command.status()).await;
        let said = || format!("{}\n--- serve\n{}", read(&log), read(&self.dir.path().join("serve.log")));
        let Ok(status) = status else { panic!("did not end: {text}\n{}", said()) };
        let code = status.unwrap().code();
        assert!(code.is_some_and(|c| codes.contains(&c)), "exit code {code:?}, not {codes:?}:\n{text}\n{}", said());
        assert!(!said().contains("panicked"), "{}", said());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let pid = read(&self.dir.path().join("pid")).trim().parse::<i32>().ok().and_then(Proc::of);
        if let Some(controller) = pid {
            controller.signal(rustix::process::Signal::KILL);
        }
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

struct Block {
    codes: Vec<i32>,
    text: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbooks")
}

/// The blocks of a page that begin with `sh`: "```sh", or "```sh exit=0,1". Others are for people.
fn blocks(page: &str) -> Vec<Block> {
    let text = read(&folder().join(page));
    let mut blocks = vec![];
    let mut open: Option<Block> = None;
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(info), None) => {
                let (word, rest) = info.split_once(' ').unwrap_or((info, "exit=0"));
                let codes = rest.strip_prefix("exit=").unwrap_or_else(|| panic!("{page}: {line}"));
                let codes = if word == "sh" { codes.split(',').map(|c| c.parse().unwrap()).collect() } else { vec![] };
                open = Some(Block { codes, text: String::new() });
            }
            (Some(_), Some(_)) => blocks.extend(open.take().filter(|b| !b.codes.is_empty())),
            (None, Some(block)) => block.text.push_str(&format!("{line}\n")),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{page}: a block that does not end");
    blocks
}

/// Needs `curl` and `flock` beside the shell. Whether they are missing.
fn cannot(given: &Given) -> bool {
    let missing = ["curl", "flock", "setsid"].into_iter().find(|p| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        !std::env::split_paths(&path).any(|dir| dir.join(p).exists())
    });
    if let Some(program) = missing {
        given.skip(&format!("there is no {program} on this machine"));
    }
    missing.is_some()
}

fn impolite(id: &str) -> Value {
    service(id, vec![with(task("t", IMPOLITE), json!({ "KillTimeout": 3_000_000_000u64 }))])
}

pub async fn every_page_is_run(_: Given) {
    let mut pages: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|f| f.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|f| f != "README.md")
        .collect();
    pages.sort();
    assert_eq!(
        pages,
        [
            "database-lost.md",
            "drain-a-datacenter.md",
            "node-will-not-die.md",
            "pause-a-kind.md",
            "stop-the-controller.md",
            "stuck-operation.md"
        ],
        "each has its scenario below"
    );
    let index = read(&folder().join("README.md"));
    assert!(pages.iter().all(|p| index.contains(&format!("]({p})"))), "{index}");
}

pub async fn getting_started(given: Given) {
    if cannot(&given) {
        return;
    }
    let host = Host::new(3).await;
    host.page("../getting-started.md", &[]).await;
    let left = host.cluster.api.get("/v1/allocations").await;
    let lives = |a: &&Value| a["TaskStates"]["t"]["State"] != "dead" && !a["TaskStates"].is_null();
    assert_eq!(left.as_array().unwrap().iter().filter(lives).count(), 0, "{left}");
}

pub async fn drain_a_datacenter(given: Given) {
    if cannot(&given) {
        return;
    }
    let host = Host::new(3).await;
    let (_, deaf) = host.starts(on(impolite(&unique("deaf")), "dev1")).await;
    let (_, polite) = host.starts(on(service(&unique("polite"), vec![task("t", POLITE)]), "dev3")).await;
    let (_, elsewhere) = host.starts(on(impolite(&unique("elsewhere")), "dev2")).await;
    host.page("drain-a-datacenter.md", &[("DC", "dc1"), ("DRAIN_TIMEOUT", "4s")]).await;
    assert!(!deaf.lives() && !polite.lives() && elsewhere.lives());
    let nodes = host.cluster.api.get("/v1/nodes").await;
    for node in nodes.as_array().unwrap() {
        assert_eq!(node["SchedulingEligibility"], "eligible", "{nodes}");
    }
}

pub async fn stop_the_controller(given: Given) {
    if cannot(&given) {
        return;
    }
    let host = Host::new(1).await;
    let (id, deaf) = host.starts(impolite(&unique("deaf"))).await;
    let op = host.stops(&id, "1h").await.id.to_string();
    let clock = host.told(&op).await.deadline;
    host.page("stop-the-controller.md", &[]).await;
    assert!(deaf.lives(), "its clock is an hour away");
    let after = host.told(&op).await;
    assert_eq!((after.state, after.deadline), (State::Waiting, clock), "{after:?}");
    let kinds = host.curfew(&["kind", "list", "--json"]).run().await.code(0).json();
    assert!(kinds.as_array().unwrap().iter().all(|k| k["pause"].is_null()), "{kinds}");
}

pub async fn pause_a_kind(given: Given) {
    if cannot(&given) {
        return;
    }
    let host = Host::new(1).await;
    let (_, healthy) = host.starts(impolite(&unique("healthy"))).await;
    host.page("pause-a-kind.md", &[]).await;
    assert!(healthy.lives());
    let status = host.curfew(&["status", "--json"]).run().await.code(0).json();
    assert_eq!(status["paused"], json!([]), "{status}");
}

pub async fn stuck_operation(given: Given) {
    if cannot(&given) {
        return;
    }
    let host = Host::new(1).await;
    let (id, deaf) = host.starts(impolite(&unique("deaf"))).await;
    let op = host.stops(&id, "1h").await.id.to_string();
    host.page("stuck-operation.md", &[("OP", &op)]).await;
    assert!(!deaf.lives());
    let after = host.operation(&op).await;
    assert_eq!((after.state, after.outcome.unwrap().killed), (State::Succeeded, 1));
}

pub async fn a_node_that_will_not_die(given: Given) {
    if cannot(&given) {
        return;
    }
    let host = Host::new(2).await;
    let (id, deaf) = host.starts(on(impolite(&unique("deaf")), "dev1")).await;
    // Time enough for a busy machine to take the node away before the clock.
    let op = host.stops(&id, "6s").await.id.to_string();
    host.told(&op).await;
    host.cluster.node_down("dev1").await;
    eventually(PATIENCE, "the operation to name its node", async || {
        let op = host.operation(&op).await;
        if op.waiting_for.as_ref().is_some_and(|w| w.contains("node dev1")) { Ok(()) } else { Err(format!("{op:?}")) }
    })
    .await;
    assert!(deaf.lives());
    host.page("node-will-not-die.md", &[("OP", &op), ("NODE", "dev1")]).await;
    assert!(!deaf.lives());
    let after = host.operation(&op).await;
    assert_eq!((after.state, after.outcome.unwrap().killed), (State::Succeeded, 1));
}

pub async fn a_lost_database(given: Given) {
    if cannot(&given) {
        return;
    }
    let host = Host::new(1).await;
    let (_, healthy) = host.starts(impolite(&unique("healthy"))).await;
    let (id, deaf) = host.starts(impolite(&unique("deaf"))).await;
    host.stops(&id, "20s").await;
    host.page("database-lost.md", &[("JOB", &id)]).await;
    assert!(!deaf.lives() && healthy.lives());
}
