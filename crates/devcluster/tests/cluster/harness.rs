//! An in-process cluster and a small client for its router.

use std::time::Duration;

use axum::http::{HeaderMap, Request};
use curfew_devcluster::{Cluster, ClusterConfig, NodeConfig};
use serde_json::{Value, json};
use tempfile::TempDir;

pub struct Api {
    pub cluster: Cluster,
    pub dir: TempDir,
}

pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {} {}", self.status, self.text))
    }

    pub fn index(&self) -> u64 {
        self.headers["x-nomad-index"].to_str().unwrap().parse().unwrap()
    }
}

pub fn nodes(n: usize) -> Vec<NodeConfig> {
    (1..=n).map(|i| NodeConfig::new(format!("n{i}"), if i < 3 { "dc1" } else { "dc2" })).collect()
}

impl Api {
    pub async fn start(n: usize) -> Self {
        Self::with(nodes(n), |_| {}).await
    }

    pub async fn with(nodes: Vec<NodeConfig>, change: impl FnOnce(&mut ClusterConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = ClusterConfig::in_process(nodes, dir.path());
        config.wall_base = Some(Duration::from_secs(1_795_244_000));
        change(&mut config);
        Self { cluster: Cluster::start(config).await.unwrap(), dir }
    }

    pub async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Reply {
        let bytes = body.map_or_else(Vec::new, |b| serde_json::to_vec(b).unwrap());
        self.raw(method, path, bytes).await
    }

    pub async fn raw(&self, method: &str, path: &str, body: Vec<u8>) -> Reply {
        let request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
        let (parts, body) = self.cluster.call(request).await.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        Reply { status: parts.status.as_u16(), headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
    }

    pub async fn get(&self, path: &str) -> Value {
        let r = self.call("GET", path, None).await;
        assert_eq!(r.status, 200, "GET {path}: {}", r.text);
        r.json()
    }

    pub async fn put(&self, path: &str, body: Value) -> Value {
        let r = self.call("PUT", path, Some(&body)).await;
        assert_eq!(r.status, 200, "PUT {path}: {}", r.text);
        if r.text.is_empty() { Value::Null } else { r.json() }
    }

    pub async fn register(&self, job: &Value) -> Value {
        self.put("/v1/jobs", json!({"Job": job})).await
    }

    pub async fn delete(&self, id: &str) -> Value {
        let r = self.call("DELETE", &format!("/v1/job/{id}"), None).await;
        assert_eq!(r.status, 200);
        r.json()
    }

    pub async fn allocs(&self, job: &str) -> Vec<Value> {
        self.get(&format!("/v1/job/{job}/allocations?all=true")).await.as_array().unwrap().clone()
    }

    pub async fn alloc(&self, id: &str) -> Value {
        self.get(&format!("/v1/allocation/{id}")).await
    }

    pub async fn signal(&self, alloc: &str, task: &str, signal: &str) -> Reply {
        self.call("PUT", &format!("/v1/client/allocation/{alloc}/signal"), Some(&json!({"Task": task, "Signal": signal}))).await
    }

    /// Waits until the answer to a read satisfies a condition; the last answer is in the message when it never does.
    pub async fn until(&self, path: &str, what: &str, ok: impl Fn(&Value) -> bool) -> Value {
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        let mut last = Value::Null;
        let found = tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                ticks.tick().await;
                let r = self.call("GET", path, None).await;
                last = serde_json::from_str(&r.text).unwrap_or(Value::String(r.text));
                if ok(&last) {
                    return;
                }
            }
        })
        .await;
        assert!(found.is_ok(), "{what} never came true at {path}; last: {}", serde_json::to_string_pretty(&last).unwrap());
        last
    }

    /// Waits until a job has `n` allocations whose clients say `status`, and returns them.
    pub async fn running(&self, job: &str, n: usize) -> Vec<Value> {
        let running = |v: &Value| of_status(v, "running").len() == n;
        let all = self.until(&format!("/v1/job/{job}/allocations"), "running", running).await;
        of_status(&all, "running")
    }

    pub async fn alloc_until(&self, id: &str, what: &str, ok: impl Fn(&Value) -> bool) -> Value {
        self.until(&format!("/v1/allocation/{id}"), what, ok).await
    }

    /// Lets a stretch of tokio time pass; under paused time nothing is waited for.
    pub async fn pass(&self, d: Duration) {
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + d, d);
        ticks.tick().await;
    }
}

pub fn of_status(list: &Value, status: &str) -> Vec<Value> {
    list.as_array().into_iter().flatten().filter(|a| a["ClientStatus"] == status).cloned().collect()
}

pub fn id(v: &Value) -> String {
    v["ID"].as_str().unwrap().to_owned()
}

pub fn ids(list: &[Value]) -> Vec<String> {
    list.iter().map(id).collect()
}

/// The types of a task's events, oldest first.
pub fn events(alloc: &Value, task: &str) -> Vec<String> {
    alloc["TaskStates"][task]["Events"].as_array().into_iter().flatten().map(|e| e["Type"].as_str().unwrap().to_owned()).collect()
}

pub fn last_event(alloc: &Value, task: &str) -> Value {
    alloc["TaskStates"][task]["Events"].as_array().and_then(|e| e.last()).cloned().unwrap_or_default()
}

pub const DAY: i64 = 86_400_000_000_000;
pub const SECOND: i64 = 1_000_000_000;

/// A mock task with a day of `kill_timeout`.
pub fn mock(name: &str, config: Value) -> Value {
    json!({
        "Name": name, "Driver": "mock", "Config": config, "KillTimeout": DAY, "KillSignal": "SIGTERM",
        "Resources": {"CPU": 10, "MemoryMB": 10},
    })
}

pub fn polite() -> Value {
    mock("t", json!({}))
}

pub fn impolite() -> Value {
    mock("t", json!({"ignore_sigterm": true}))
}

/// A real shell.
pub fn shell(name: &str, script: &str) -> Value {
    json!({
        "Name": name, "Driver": "raw_exec", "Config": {"command": "/bin/bash", "args": ["-c", script]}, "KillTimeout": DAY,
        "KillSignal": "SIGTERM", "Resources": {"CPU": 10, "MemoryMB": 10},
    })
}

pub fn job(id: &str, kind: &str, tasks: &[Value]) -> Value {
    let mut j = json!({
        "ID": id, "Name": id, "Type": kind, "Datacenters": ["dc1", "dc2"], "TaskGroups": [{"Name": "g", "Count": 1, "Tasks": tasks}],
    });
    if kind == "service" {
        j["Update"] = json!({"ProgressDeadline": 0});
    }
    j
}

pub fn no_restarts(mut job: Value) -> Value {
    job["TaskGroups"][0]["RestartPolicy"] = json!({"Attempts": 0, "Interval": 600 * SECOND, "Delay": SECOND, "Mode": "fail"});
    job
}
