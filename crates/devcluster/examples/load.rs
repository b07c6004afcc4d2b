//! How long answers take under load: N mock allocations, killed within ten seconds, beside 40 filtered lists a second.
//! `cargo run --release -p curfew-devcluster --example load -- [N]`

use std::io::Write;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use curfew_devcluster::{Cluster, ClusterConfig, NodeConfig};
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::ServiceExt;

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn call(router: &axum::Router, method: &str, path: &str, body: String) -> Result<Value, Failure> {
    let request = Request::builder().method(method).uri(path).body(Body::from(body))?;
    let response = router.clone().oneshot(request).await?;
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await?;
    Ok(serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

async fn count(router: &axum::Router, key: &str, n: u64) -> Result<(), Failure> {
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    loop {
        ticks.tick().await;
        let s = call(router, "GET", "/v1/job/load/summary", String::new()).await?;
        if s["Summary"]["g"][key].as_u64() == Some(n) {
            return Ok(());
        }
    }
}

fn report(what: &str, mut times: Vec<Duration>) -> std::io::Result<()> {
    times.sort();
    let at = |p: usize| times.get((times.len() * p / 1000).min(times.len().saturating_sub(1))).copied().unwrap_or_default();
    writeln!(std::io::stdout(), "{what}: n {} p50 {:?} p99 {:?} max {:?}", times.len(), at(500), at(990), at(1000))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let n: u64 = std::env::args().nth(1).map_or(Ok(10_000), |a| a.parse())?;
    let dir = std::env::temp_dir().join(format!("curfew-load-{}", std::process::id()));
    let nodes = (0..5).map(|i| NodeConfig::new(format!("n{i}"), "dc1")).collect();
    let cluster = Cluster::start(ClusterConfig::in_process(nodes, &dir)).await?;
    let router = cluster.router();
    let job = json!({"Job": {"ID": "load", "Type": "batch", "Datacenters": ["dc1"], "TaskGroups": [{"Name": "g", "Count": n, "Tasks": [{
        "Name": "t", "Driver": "mock", "Config": {"ignore_sigterm": true}, "KillTimeout": 86_400_000_000_000_i64, "KillSignal": "SIGTERM",
        "Resources": {"CPU": 1, "MemoryMB": 1},
    }]}]}});
    let start = Instant::now();
    call(&router, "PUT", "/v1/jobs", job.to_string()).await?;
    count(&router, "Running", n).await?;
    writeln!(std::io::stdout(), "placed and running after {:?}", start.elapsed())?;
    call(&router, "DELETE", "/v1/job/load", String::new()).await?;
    let list = call(&router, "GET", "/v1/allocations?task_states=false", String::new()).await?;
    let ids: Vec<String> = list.as_array().into_iter().flatten().filter_map(|a| a["ID"].as_str().map(str::to_owned)).collect();
    let lists = tokio::spawn({
        let (router, ids) = (router.clone(), ids.clone());
        async move {
            let mut times = Vec::new();
            let mut ticks = tokio::time::interval(Duration::from_millis(25));
            for i in 0..400 {
                ticks.tick().await;
                let some: Vec<&str> = (0..25).filter_map(|k| ids.get((i * 25 + k) % ids.len().max(1)).map(|s| &s[..8])).collect();
                let filter = format!("ID matches \"^({})\"", some.join("|"));
                let escaped: String = filter.bytes().map(|b| format!("%{b:02X}")).collect();
                let t = Instant::now();
                call(&router, "GET", &format!("/v1/allocations?filter={escaped}"), String::new()).await?;
                times.push(t.elapsed());
            }
            Ok::<_, Failure>(times)
        }
    });
    let mut times = Vec::new();
    let begin = Instant::now();
    for (i, id) in ids.iter().enumerate() {
        tokio::time::sleep_until(begin + Duration::from_secs(10).mul_f64(i as f64 / n as f64)).await;
        let t = Instant::now();
        call(&router, "PUT", &format!("/v1/client/allocation/{id}/signal"), r#"{"Signal":"SIGKILL","Task":"t"}"#.into()).await?;
        times.push(t.elapsed());
    }
    count(&router, "Complete", n).await?;
    report("signal", times)?;
    report("filtered list", lists.await??)?;
    cluster.shutdown().await;
    Ok(())
}
