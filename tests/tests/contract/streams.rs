//! Fact 12: the event stream.

use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;

use crate::kit::{POLITE, service, task, unique};
use crate::on::{On, s};

/// Frames of a stream, one line each.
struct Frames {
    answer: reqwest::Response,
    rest: Vec<u8>,
}

impl Frames {
    async fn open(on: &On, query: &str) -> Self {
        let answer = on.stream(query).await;
        assert_eq!(answer.status(), 200);
        Self { answer, rest: vec![] }
    }

    async fn next(&mut self, within: Duration) -> Value {
        let read = async {
            loop {
                if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = self.rest.drain(..=end).collect();
                    return serde_json::from_slice(&line).unwrap();
                }
                self.rest.extend(self.answer.chunk().await.unwrap().expect("the stream ended"));
            }
        };
        timeout(within, read).await.unwrap_or_else(|_| panic!("no frame within {within:?}"))
    }

    /// The first event that is wanted.
    async fn event(&mut self, within: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        let find = async {
            loop {
                let frame = self.next(within).await;
                if let Some(e) = frame["Events"].as_array().into_iter().flatten().find(|e| wanted(e)) {
                    return e.clone();
                }
            }
        };
        timeout(within, find).await.unwrap_or_else(|_| panic!("not such event within {within:?}"))
    }
}

/// What happened before the stream was opened comes first, then what happens.
pub async fn the_buffer_comes_first(on: On) {
    let job = unique("buffer");
    on.start(&service(&job, vec![task("t", POLITE)])).await;
    let mut frames = Frames::open(&on, &format!("topic=Job:{job}&topic=Allocation:{job}")).await;
    let mine = |e: &Value| e["Key"] == job.as_str() || e["FilterKeys"][0] == job.as_str();
    let first = frames.event(s(10), mine).await;
    assert_eq!((&first["Topic"], &first["Type"]), (&Value::from("Job"), &Value::from("JobRegistered")), "{first}");
    let up = |e: &Value| e["Topic"] == "Allocation" && e["Payload"]["Allocation"]["ClientStatus"] == "running";
    frames.event(s(10), up).await;
    on.delete(&job).await.ok();
    let gone = frames.event(s(20), |e| e["Type"] == "JobDeregistered").await;
    assert!(gone["Index"].as_u64() > first["Index"].as_u64());
    let over = |e: &Value| e["Topic"] == "Allocation" && e["Payload"]["Allocation"]["ClientStatus"] == "complete";
    frames.event(s(20), over).await;
}

/// Index 1 is no longer there, or never was: no error, it starts with what there is.
pub async fn an_index_that_is_too_old_starts_later(on: On) {
    let job = unique("old");
    on.start(&service(&job, vec![task("t", POLITE)])).await;
    let mut frames = Frames::open(&on, &format!("topic=Job:{job}&index=1")).await;
    let event = frames.event(s(10), |e| e["Key"] == job.as_str()).await;
    assert!(event["Index"].as_u64() > Some(1), "{event}");
}

pub async fn topics_and_keys_choose(on: On) {
    let (mine, other) = (unique("mine"), unique("other"));
    let mut frames = Frames::open(&on, &format!("topic=Job:{mine}")).await;
    on.start(&service(&other, vec![task("t", POLITE)])).await;
    on.start(&service(&mine, vec![task("t", POLITE)])).await;
    let event = frames.event(s(10), |_| true).await;
    assert_eq!((&event["Topic"], &event["Key"]), (&Value::from("Job"), &Value::from(mine.as_str())), "{event}");
}

/// `{}` at once, and every 30 s.
pub async fn it_says_that_it_is_there_when_nothing_happens(on: On) {
    let nobody = unique("nobody");
    let mut frames = Frames::open(&on, &format!("topic=Job:{nobody}")).await;
    assert_eq!(frames.next(s(5)).await, serde_json::json!({}));
    assert_eq!(frames.next(s(45)).await, serde_json::json!({}));
}
