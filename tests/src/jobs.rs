//! Jobs as scenarios need them, in Nomad's API JSON. A task is one process that ignores SIGTERM, or a shell that obeys it.

use std::time::Duration;

use serde_json::{Value, json};

/// Ignores SIGTERM and SIGINT from its first moment on; `exec` keeps that, so it is one process without a child.
pub const IMPOLITE: &str = "trap '' TERM INT; exec sleep 3600";
/// Ends at once with exit code 0.
pub const POLITE: &str = "trap 'exit 0' TERM; sleep 3600 & wait";
/// Ignores SIGTERM, and so does its child.
pub const TREE: &str = "trap '' TERM INT; sleep 3601 & wait; wait";

pub fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

/// A raw_exec task that runs `script` in a shell.
pub fn task(name: &str, script: &str) -> Value {
    json!({ "Name": name, "Driver": "raw_exec", "Config": { "command": "/bin/sh", "args": ["-c", script] },
            "Resources": { "CPU": 10, "MemoryMB": 10 } })
}

/// With fields set or replaced, one level deep.
pub fn with(mut value: Value, fields: Value) -> Value {
    if let (Value::Object(into), Value::Object(fields)) = (&mut value, fields) {
        into.extend(fields);
    }
    value
}

/// A service job of one group; no restarts, no rescheduling.
pub fn service(id: &str, tasks: Vec<Value>) -> Value {
    job(id, "service", tasks)
}

pub fn batch(id: &str, tasks: Vec<Value>) -> Value {
    job(id, "batch", tasks)
}

fn job(id: &str, kind: &str, tasks: Vec<Value>) -> Value {
    json!({ "ID": id, "Name": id, "Type": kind, "Datacenters": ["*"], "TaskGroups": [{
        "Name": "g", "Count": 1, "Tasks": tasks,
        "RestartPolicy": { "Attempts": 0, "Mode": "fail", "Interval": nanos(Duration::from_secs(60)), "Delay": nanos(Duration::from_secs(1)) },
        "ReschedulePolicy": { "Attempts": 0, "Unlimited": false } }] })
}

/// The same job with its only group changed.
pub fn group(mut job: Value, fields: Value) -> Value {
    let group = job["TaskGroups"][0].take();
    job["TaskGroups"][0] = with(group, fields);
    job
}

/// Only on this node.
pub fn on(job: Value, node: &str) -> Value {
    with(job, json!({ "Constraints": [{ "LTarget": "${node.unique.name}", "RTarget": node, "Operand": "=" }] }))
}
