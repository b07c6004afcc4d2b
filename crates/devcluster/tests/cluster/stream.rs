//! The event stream.

use std::time::Duration;

use axum::body::BodyDataStream;
use axum::http::Request;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::Value;

use crate::harness::{Api, id, job, polite};

struct Lines(BodyDataStream, String);

impl Lines {
    async fn open(api: &Api, query: &str) -> Self {
        let request = Request::builder().uri(format!("/v1/event/stream?{query}")).body(Bytes::new()).unwrap();
        let r = api.cluster.call(request).await;
        assert_eq!(r.status(), 200);
        Self(r.into_body().into_data_stream(), String::new())
    }

    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((line, rest)) = self.1.split_once('\n') {
                let v = serde_json::from_str(line).unwrap();
                self.1 = rest.to_owned();
                return Some(v);
            }
            let chunk = tokio::time::timeout(Duration::from_secs(120), self.0.next()).await.expect("a line");
            self.1.push_str(std::str::from_utf8(&chunk?.unwrap()).unwrap());
        }
    }

    /// `Topic Type` of every event until one satisfies the condition.
    async fn until(&mut self, what: impl Fn(&Value) -> bool) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            let frame = self.next().await.expect("the stream goes on");
            for e in frame["Events"].as_array().into_iter().flatten() {
                seen.push(format!("{} {}", e["Topic"].as_str().unwrap(), e["Type"].as_str().unwrap()));
                if what(e) {
                    return seen;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_happens_comes_in_order() {
    let api = Api::start(1).await;
    let mut lines = Lines::open(&api, "topic=Job&topic=Evaluation&topic=Allocation&topic=Deployment").await;
    assert_eq!(lines.next().await.unwrap(), serde_json::json!({}));
    api.register(&job("ev", "service", &[polite()])).await;
    let seen = lines.until(|e| e["Payload"]["Allocation"]["ClientStatus"] == "running").await;
    assert_eq!(seen[..2], ["Job JobRegistered", "Evaluation JobRegistered"]);
    assert!(seen[2..].iter().any(|s| s == "Deployment PlanResult"));
    assert!(seen[2..].iter().any(|s| s == "Allocation PlanResult"));
    assert!(seen[2..].iter().any(|s| s == "Evaluation EvaluationUpdated"));
    assert_eq!(seen.last().unwrap(), "Allocation AllocationUpdated");
    api.delete("ev").await;
    let seen = lines.until(|e| e["Payload"]["Allocation"]["ClientStatus"] == "complete").await;
    assert_eq!(seen[0], "Job JobDeregistered");
    api.call("DELETE", "/v1/job/ev?purge=true", None).await;
    lines.until(|e| e["Payload"]["Deleted"] == true).await;
}

#[tokio::test(start_paused = true)]
async fn topics_keys_replay_and_heartbeats() {
    let api = Api::start(1).await;
    api.register(&job("a", "service", &[polite()])).await;
    let a = id(&api.running("a", 1).await[0]);
    api.register(&job("b", "service", &[polite()])).await;
    api.running("b", 1).await;
    // The buffer is replayed; the key of an allocation may be its job.
    let mut lines = Lines::open(&api, "topic=Allocation:a&index=1").await;
    lines.next().await;
    let first = lines.next().await.unwrap();
    assert_eq!(first["Events"].as_array().unwrap().len(), 1);
    assert_eq!(first["Events"][0]["Key"], a.as_str());
    assert_eq!(first["Events"][0]["FilterKeys"][0], "a");
    assert_eq!(first["Index"], first["Events"][0]["Index"]);
    let mut nothing = Lines::open(&api, "topic=Allocation:nobody").await;
    assert_eq!(nothing.next().await.unwrap(), serde_json::json!({}));
    let before = tokio::time::Instant::now();
    assert_eq!(nothing.next().await.unwrap(), serde_json::json!({}));
    assert_eq!(before.elapsed().as_secs(), 30);
    api.cluster.close_event_streams();
    assert!(nothing.next().await.is_none());
}
