//! Clocks, silences and deadlines, under paused time.

use bytes::Bytes;
use curfew_nomad::{Body, NomadConfig, TransportError};
use futures::StreamExt;
use http::{Request, Response};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;

const NOON: &str = "2026-06-01T12:00:00Z";

/// Wall time that follows tokio's.
#[derive(Clone, Copy)]
struct Following(Timestamp, Instant);

impl Following {
    fn new() -> Self {
        Self(NOON.parse().unwrap(), Instant::now())
    }
}
impl Clock for Following {
    fn now(&self) -> Timestamp {
        self.0 + self.1.elapsed()
    }
}

/// A node, and what its client does when it is asked.
#[derive(Clone, Copy)]
enum Client {
    /// Measures itself every `every` seconds, by a clock that is off by so many.
    Measures {
        every: i64,
        off: i64,
    },
    Hangs,
    NoPath,
    JustStarted,
}

const SOUND: Client = Client::Measures { every: 1, off: 0 };

fn answer(clients: &[Client], path: &str, now: Timestamp) -> Option<(u16, Value)> {
    let body = match path {
        "/v1/status/leader" => json!("10.0.0.1:4647"),
        "/v1/agent/self" => json!({ "config": { "Version": { "Version": "2.0.5" }, "Region": "global" } }),
        "/v1/agent/members" => json!({ "Members": [
            { "Name": "s1.global", "Status": "alive", "Tags": { "build": "2.0.5", "region": "global" } },
            { "Name": "s2.global", "Status": "failed", "Tags": { "build": "2.0.5", "region": "global" } },
            { "Name": "old.eu", "Status": "alive", "Tags": { "build": "1.2.0", "region": "eu" } },
        ] }),
        "/v1/nodes" => Value::Array(
            (0..clients.len())
                .map(|i| json!({ "ID": format!("n{i}"), "Name": format!("c{i}"), "Status": "ready", "Version": "2.1.0" }))
                .collect(),
        ),
        _ => match path.split_once("node_id=n") {
            Some((_, i)) => match clients[i.parse::<usize>().unwrap()] {
                Client::Hangs => return None,
                Client::NoPath => return Some((404, json!("No path to node"))),
                Client::JustStarted => Value::Null,
                Client::Measures { every, off: client } => {
                    let secs = now.as_micros() / 1_000_000;
                    json!({ "Timestamp": ((secs - secs % every) + client) * 1_000_000_000 })
                }
            },
            None => {
                let id = path.trim_start_matches("/v1/node/");
                json!({ "ID": id, "Status": "ready", "Meta": { "max_kill_timeout": "48h" }, "Drivers": null })
            }
        },
    };
    Some((200, body))
}

/// The report of a cluster with these clients, whose agent's clock is off by so many seconds.
async fn examined(clients: &'static [Client], off: i64) -> Report {
    let clock = Following::new();
    let transport = move |request: Request<Bytes>| async move {
        let path = request.uri().path_and_query().unwrap().as_str().to_owned();
        let path = if path.contains("node_id") { path } else { request.uri().path().to_owned() };
        let Some((status, body)) = answer(clients, &path, clock.now()) else {
            return std::future::pending().await;
        };
        let text = if status == 200 { body.to_string() } else { body.as_str().unwrap().to_owned() };
        let shown = (clock.now().as_micros() / 1_000_000 + off) * 1_000_000;
        let date = Timestamp::from_micros(shown).to_string();
        let date = date.replace("2026-06-01T", "Mon, 01 Jun 2026 ").replace(".000000Z", " GMT");
        let body: Body = futures::stream::iter([Ok(Bytes::from(text))]).boxed();
        Ok::<_, TransportError>(Response::builder().status(status).header("Date", date).body(body).unwrap())
    };
    let config = NomadConfig { addr: "http://nomad.example:4646".into(), ..NomadConfig::default() };
    let nomad = Nomad::with_transport(config, transport).unwrap();
    examine(&nomad, &Config::default(), Arc::new(clock)).await
}

#[track_caller]
fn check<'a>(report: &'a Report, name: &str) -> (Verdict, &'a str) {
    let check = report.checks.iter().find(|c| c.name == name).unwrap_or_else(|| panic!("no {name} in {report:#?}"));
    assert_eq!(check.remedy.is_some(), matches!(check.verdict, Verdict::Warning | Verdict::Failed), "{check:?}");
    (check.verdict, &check.found)
}

#[tokio::test(start_paused = true)]
async fn in_step_and_reached() {
    let report = examined(&[SOUND, SOUND], 0).await;
    assert_eq!(check(&report, nodes::PATH), (Verdict::Ok, "2 nodes reached as a signal would be"));
    assert_eq!(check(&report, nodes::CLOCKS), (Verdict::Ok, "in step with this machine's on 2 nodes"));
    assert_eq!(check(&report, "agent clock"), (Verdict::Ok, "in step with this machine's"));
    assert_eq!(check(&report, nodes::LIMITS).0, Verdict::Ok);
    // Plain http, off this machine.
    let (verdict, found) = check(&report, "tls");
    assert!(verdict == Verdict::Warning && found.contains("every SIGKILL") && !found.contains("token"), "{found}");
    assert_eq!(check(&report, nodes::CLIENTS), (Verdict::Warning, "newer than Curfew knows: c0 (2.1.0), c1 (2.1.0)"));
    // Another region's servers are none of ours.
    assert_eq!(check(&report, "servers"), (Verdict::Warning, "2.0.5 on 2 servers; its peers do not reach s2.global"));
    assert_eq!((report.counts.failed, report.counts.not_checked), (0, 0), "{report:#?}");
}

#[tokio::test(start_paused = true)]
async fn clocks_that_are_off() {
    const BEHIND: Client = Client::Measures { every: 1, off: -10 };
    let behind = examined(&[SOUND, BEHIND], -10).await;
    assert_eq!(check(&behind, nodes::CLOCKS).0, Verdict::Warning);
    assert!(check(&behind, nodes::CLOCKS).1.starts_with("node c1 ("), "{behind:#?}");
    assert_eq!(check(&behind, "agent clock"), (Verdict::Warning, "at least 9.0s behind"));
    let ahead = examined(&[Client::Measures { every: 1, off: 10 }], 10).await;
    assert_eq!(check(&ahead, nodes::CLOCKS), (Verdict::Warning, "node c0 (10.0s ahead), at least"));
    assert_eq!(check(&ahead, "agent clock"), (Verdict::Warning, "at least 10.0s ahead"));
    // As much as job_stop_timeout: no grace is left.
    let lost = examined(&[SOUND, Client::Measures { every: 1, off: -40 }], -40).await;
    let (verdict, found) = check(&lost, nodes::CLOCKS);
    assert!(verdict == Verdict::Failed && found.contains("shortest grace, 30s"), "{found}");
    assert_eq!(check(&lost, "agent clock").0, Verdict::Failed);
}

/// A measure that is taken every ten minutes is old, not wrong.
#[tokio::test(start_paused = true)]
async fn an_old_measure_is_no_clock() {
    const SELDOM: Client = Client::Measures { every: 7 * 60, off: 0 };
    let seldom = examined(&[SOUND, SELDOM], 0).await;
    let (verdict, found) = check(&seldom, nodes::CLOCKS);
    assert!(verdict == Verdict::NotChecked && found.contains("node c1") && found.contains("collection_interval"), "{found}");
    let started = examined(&[Client::JustStarted], 0).await;
    assert_eq!((check(&started, nodes::CLOCKS).0, check(&started, nodes::PATH).0), (Verdict::NotChecked, Verdict::Ok));
}

#[tokio::test(start_paused = true)]
async fn silent_nodes_are_named_and_hide_nothing() {
    let report = examined(&[SOUND, Client::NoPath, Client::Hangs], 0).await;
    let (verdict, found) = check(&report, nodes::PATH);
    assert!(verdict == Verdict::Failed && found.starts_with("2 of 3 ready do not answer: nodes c1, c2 ("), "{found}");
    assert_eq!((check(&report, nodes::CLOCKS).0, check(&report, nodes::LIMITS).0), (Verdict::Ok, Verdict::Ok));
}

/// Hundreds of clients that hang: 16 at a time, 10 s each, and the whole of it within its deadline.
#[tokio::test(start_paused = true)]
async fn many_silent_nodes_end_within_the_deadline() {
    let began = Instant::now();
    let report = examined(&[Client::Hangs; 500], 0).await;
    assert!(began.elapsed() <= DEADLINE + Duration::from_secs(1), "{:?}", began.elapsed());
    let (verdict, found) = check(&report, nodes::PATH);
    assert!(verdict == Verdict::Failed && found.contains(" and ") && found.contains(" more"), "{found}");
    assert_eq!(check(&report, nodes::CLOCKS).0, Verdict::NotChecked);
}
