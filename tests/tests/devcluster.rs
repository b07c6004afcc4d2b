//! The embedded cluster as people use it: by the lines of its page, and with Nomad's own command line.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use curfew_tests::cluster::{Cluster, Kind, Shape, nomad_binary};
use curfew_tests::run::Given;
use curfew_tests::wait::eventually;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

const PAGE: &str = include_str!("../../docs/dev-cluster.md");

/// Exit code 0 or not, and all it said.
async fn ran(mut command: Command) -> (bool, String) {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let out = tokio::time::timeout(Duration::from_secs(90), command.output()).await.expect("the command ends").unwrap();
    (out.status.success(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
}

pub async fn the_lines_of_its_page_work(given: Given) {
    let mut look = Command::new("curl");
    look.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    if look.status().await.is_err() {
        given.skip("there is no curl on this machine");
        return;
    }
    let cluster = Cluster::start(Kind::Dev, &Shape { nodes: 3, ..Shape::default() }).await;
    let lines: Vec<&str> = PAGE.lines().filter(|l| l.starts_with("curl ")).collect();
    assert!(lines.len() > 15, "{lines:?}");
    for line in &lines {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", line]).env("NOMAD_ADDR", cluster.addr()).env("no_proxy", "127.0.0.1");
        let (good, said) = ran(command).await;
        assert!(good, "{line}: {said}");
    }
    // The last of them heals.
    let status = cluster.api.get("/dev/v1/status").await;
    let up = status["Nodes"].as_array().unwrap().iter().all(|n| n["Agent"] == "up");
    assert!(up && status["Leader"] == true && status["Faults"] == Value::Array(vec![]), "{status}");
}

const SPEC: &str = r#"
job "rolls" {
  datacenters = ["*"]
  group "g" {
    count = 2
    update {
      canary = 1
      min_healthy_time = "1s"
      healthy_deadline = "20s"
      progress_deadline = "60s"
      health_check = "task_states"
    }
    task "t" {
      driver = "raw_exec"
      kill_timeout = "5s"
      env {
        V = "1"
      }
      config {
        command = "/bin/sh"
        args = ["-c", "echo hello; while :; do sleep 0.2; done"]
      }
    }
  }
}
"#;

const CHILDREN: &str = r#"
job "NAME" {
  datacenters = ["dc1"]
  type = "batch"
  BLOCK
  group "g" {
    task "t" {
      driver = "raw_exec"
      config {
        command = "/bin/true"
      }
    }
  }
}
"#;

struct Official<'a> {
    binary: &'a Path,
    cluster: &'a Cluster,
}

impl Official<'_> {
    async fn run(&self, args: &[&str]) -> (bool, String) {
        let mut command = Command::new(self.binary);
        command.args(args).env("NOMAD_ADDR", self.cluster.addr()).env("NO_COLOR", "1");
        ran(command).await
    }

    async fn ok(&self, args: &[&str]) -> String {
        let (good, said) = self.run(args).await;
        assert!(good, "nomad {args:?}: {said}");
        assert!(!said.contains("panic:"), "nomad {args:?}: {said}");
        said
    }

    async fn says(&self, args: &[&str], words: &str) {
        let said = self.ok(args).await;
        assert!(said.contains(words), "nomad {args:?} does not say {words:?}: {said}");
    }

    async fn until(&self, path: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(Duration::from_secs(45), what, async || {
            let now = self.cluster.api.try_get(path).await?;
            if wanted(&now) { Ok(now) } else { Err(now.to_string()) }
        })
        .await
    }
}

fn running(all: &Value) -> Vec<&str> {
    let up = |a: &&Value| a["ClientStatus"] == "running" && a["DesiredStatus"] == "run";
    all.as_array().into_iter().flatten().filter(up).filter_map(|a| a["ID"].as_str()).collect()
}

/// Every command of the official client that our pages name, and those that an operator tries first.
pub async fn the_official_command_line(given: Given) {
    let Some(binary) = nomad_binary() else {
        given.skip("CURFEW_TEST_NOMAD names no Nomad binary, so no official command was run");
        return;
    };
    let cluster = Cluster::start(Kind::Dev, &Shape { nodes: 2, ..Shape::default() }).await;
    let n = Official { binary: Path::new(&binary), cluster: &cluster };
    let dir = TempDir::with_prefix("curfew-test-official-").unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let first = file("rolls.hcl", SPEC);
    let second = file("rolls2.hcl", &SPEC.replace("V = \"1\"", "V = \"2\""));
    let children = |name: &str, block: &str| file(name, &CHILDREN.replace("NAME", name).replace("BLOCK", block));
    let cron = children("cron", "periodic {\n    crons = [\"0 0 1 1 *\"]\n  }");
    let parent = children("parent", "parameterized {\n    meta_optional = [\"who\"]\n  }");

    // Jobs.
    n.says(&["job", "validate", &first], "Job validation successful").await;
    let (changes, plan) = n.run(&["job", "plan", &first]).await;
    assert!(!changes && plan.contains("+ Job: \"rolls\"") && plan.contains("All tasks successfully allocated"), "{plan}");
    n.says(&["job", "run", &first], "Deployment completed successfully").await;
    n.ok(&["job", "run", &cron]).await;
    n.ok(&["job", "run", &parent]).await;
    n.says(&["status"], "rolls").await;
    n.says(&["job", "status"], "batch/periodic").await;
    n.says(&["job", "status", "rolls"], "running").await;
    n.ok(&["job", "inspect", "rolls"]).await;
    n.says(&["job", "dispatch", "-meta", "who=me", "parent"], "finished with status \"complete\"").await;
    n.says(&["job", "periodic", "force", "cron"], "finished with status \"complete\"").await;

    // Deployments.
    let latest = "/v1/job/rolls/deployment";
    n.ok(&["job", "run", "-detach", &second]).await;
    let d = n.until(latest, "a healthy canary", |d| d["TaskGroups"]["g"]["HealthyAllocs"] == 1).await;
    let d = d["ID"].as_str().unwrap();
    n.says(&["deployment", "list"], "requires manual promotion").await;
    n.says(&["deployment", "status", "-monitor=false", d], "Promoted").await;
    n.ok(&["deployment", "pause", d]).await;
    n.ok(&["deployment", "resume", "-detach", d]).await;
    n.ok(&["deployment", "promote", d]).await;
    n.until(latest, "the deployment's end", |d| d["Status"] == "successful").await;
    n.ok(&["job", "run", "-detach", &first]).await;
    let d = n.until(latest, "another canary", |d| d["TaskGroups"]["g"]["HealthyAllocs"] == 1).await;
    n.ok(&["deployment", "fail", "-detach", d["ID"].as_str().unwrap()]).await;
    n.says(&["job", "history", "-p", "rolls"], "Version").await;
    n.ok(&["job", "revert", "-detach", "rolls", "1"]).await;
    n.until(latest, "the way back", |d| d["JobVersion"] == 3).await;
    n.ok(&["job", "eval", "-detach", "rolls"]).await;
    n.until(latest, "no deployment to wait for", |d| d["Status"] == "successful").await;
    n.ok(&["job", "scale", "-detach", "rolls", "g", "3"]).await;
    n.says(&["job", "deployments", "rolls"], "successful").await;

    // Allocations and evaluations.
    let all = n.until("/v1/job/rolls/allocations", "three running", |all| running(all).len() == 3).await;
    n.until(latest, "the third to be healthy", |d| d["Status"] == "successful").await;
    let alloc = running(&all)[0];
    n.ok(&["job", "allocs", "rolls"]).await;
    n.says(&["alloc", "status", alloc], "Task started by client").await;
    n.says(&["alloc", "status", "-verbose", &alloc[..8]], alloc).await;
    n.says(&["alloc", "logs", alloc], "hello").await;
    n.ok(&["alloc", "fs", alloc]).await;
    n.ok(&["alloc", "checks", alloc]).await;
    n.ok(&["alloc", "signal", "-s", "SIGCONT", alloc, "t"]).await;
    n.ok(&["alloc", "restart", alloc]).await;
    n.ok(&["alloc", "stop", alloc]).await;
    let evals = cluster.api.get("/v1/job/rolls/evaluations").await;
    let eval = evals[0]["ID"].as_str().unwrap();
    n.says(&["eval", "status", eval], "Status").await;
    n.says(&["eval", "list"], "rolls").await;

    // Nodes.
    let nodes = cluster.api.get("/v1/nodes").await;
    let node = nodes[0]["ID"].as_str().unwrap();
    n.says(&["node", "status"], "ready").await;
    n.says(&["node", "status", "-verbose"], node).await;
    n.ok(&["node", "status", "-stats", node]).await;
    n.says(&["node", "status", "-verbose", node], "raw_exec").await;
    n.ok(&["node", "meta", "read", "-node-id", node]).await;
    n.ok(&["node", "eligibility", "-disable", node]).await;
    n.ok(&["node", "eligibility", "-enable", node]).await;
    n.says(&["node", "drain", "-enable", "-deadline", "10s", "-yes", node], "Drain complete").await;
    n.says(&["node", "drain", "-disable", "-yes", node], "drain strategy unset").await;
    n.ok(&["node", "drain", "-enable", "-no-deadline", "-m", "why", "-meta", "a=b", "-yes", "-detach", node]).await;
    n.ok(&["node", "drain", "-monitor", node]).await;
    n.ok(&["node", "drain", "-disable", "-yes", node]).await;
    n.ok(&["node", "drain", "-enable", "-force", "-ignore-system", "-yes", "-detach", node]).await;
    n.ok(&["node", "drain", "-disable", "-yes", node]).await;
    n.ok(&["node", "pool", "list"]).await;

    // The rest of what is asked of a server.
    n.says(&["server", "members"], "alive").await;
    n.ok(&["namespace", "list"]).await;
    n.ok(&["operator", "raft", "list-peers"]).await;
    n.ok(&["operator", "scheduler", "get-config"]).await;
    n.ok(&["agent-info"]).await;
    n.ok(&["job", "stop", "rolls"]).await;
    n.ok(&["job", "stop", "-purge", "-detach", "cron"]).await;
    n.ok(&["system", "gc"]).await;
    let (good, said) = n.run(&["job", "run", &file("broken.hcl", "job \"x\" {\n  foo = 1\n}\n")]).await;
    assert!(!good && said.contains("foo"), "{said}");
}
