//! Everything that happened to allocations, deployments and nodes, from the cluster's event stream.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use curfew_tests::cluster::Cluster;
use serde_json::Value;

/// States by id, oldest first.
#[derive(Default)]
pub struct Seen {
    pub allocs: BTreeMap<String, (String, Vec<String>)>,
    pub deployments: BTreeMap<String, (u64, Vec<String>)>,
    pub nodes: BTreeMap<String, Vec<String>>,
    pub frames: Vec<Value>,
}

pub struct Watch {
    pub seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    pub async fn on(cluster: &Cluster) -> Self {
        let http = cluster.api.access.client().build().unwrap();
        let mut answer = http.get(format!("{}/v1/event/stream?namespace=*", cluster.addr())).send().await.unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let into = seen.clone();
        let task = tokio::spawn(async move {
            let mut rest = vec![];
            while let Ok(Some(bytes)) = answer.chunk().await {
                rest.extend_from_slice(&bytes);
                while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    if let Ok(frame) = serde_json::from_slice::<Value>(&line) {
                        note(&mut into.lock().unwrap(), frame);
                    }
                }
            }
        });
        Self { seen, task }
    }
}

fn python(v: &Value) -> &'static str {
    match v.as_bool() {
        Some(true) => "True",
        Some(false) => "False",
        None => "None",
    }
}

fn note(seen: &mut Seen, frame: Value) {
    for event in frame["Events"].as_array().into_iter().flatten() {
        let of = |topic: &str| event["Payload"].get(topic);
        let text = |v: &Value, key: &str| v[key].as_str().unwrap_or_default().to_owned();
        if let Some(a) = of("Allocation") {
            let state = format!(
                "{} {} {}",
                text(a, "DesiredStatus"),
                text(a, "ClientStatus"),
                python(&a["DesiredTransition"]["Migrate"])
            );
            let entry = seen.allocs.entry(text(a, "ID")).or_insert_with(|| (text(a, "JobID"), vec![]));
            if entry.1.last() != Some(&state) {
                entry.1.push(state);
            }
        }
        if let Some(d) = of("Deployment") {
            let state = format!("{}: {}", text(d, "Status"), text(d, "StatusDescription"));
            let entry =
                seen.deployments.entry(text(d, "ID")).or_insert_with(|| (d["JobVersion"].as_u64().unwrap_or_default(), vec![]));
            if entry.1.last() != Some(&state) {
                entry.1.push(state);
            }
        }
        if let Some(n) = of("Node") {
            let draining = Value::Bool(!n["DrainStrategy"].is_null());
            let state = format!("{} {}", python(&draining), text(n, "SchedulingEligibility"));
            let states = seen.nodes.entry(text(n, "ID")).or_default();
            if states.last() != Some(&state) {
                states.push(state);
            }
        }
    }
    if frame.get("Events").is_some() {
        seen.frames.push(frame);
    }
}
