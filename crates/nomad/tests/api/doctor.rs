//! What the doctor asks: rights, clocks, servers.

use curfew_core::Timestamp;
use curfew_nomad::{Error, May, Right};
use serde_json::json;

use crate::fake::{config, nomad_with, respond};

const RUNNING: &str = r#"[{"ID":"5355e9cc-8203-6163-e9fa-86ea80c11132","Namespace":"games","JobID":"j","TaskGroup":"g","DesiredStatus":"run","ClientStatus":"running"}]"#;

#[tokio::test]
async fn each_right_is_asked_for_in_a_way_that_cannot_be_carried_out() {
    for (right, line, refusal) in [
        (Right::SubmitJob, "PUT /v1/jobs?namespace=default", "Enforcing job modify index 9007199254740991: job does not exist"),
        (Right::ReadJob, "GET /v1/job/curfew-doctor-asks%2Fnothing?namespace=default", "job not found"),
        (
            Right::DispatchJob,
            "PUT /v1/job/curfew-doctor-asks%2Fnothing/dispatch?namespace=default",
            "parameterized job not found",
        ),
        (
            Right::NodeWrite,
            "PUT /v1/node/00000000-0000-0000-0000-000000000000/eligibility",
            "invalid scheduling eligibility \"x\"",
        ),
        (Right::AllocLifecycle, "PUT /v1/client/allocation/5355e9cc-8203-6163-e9fa-86ea80c11132/signal", "Task not found"),
    ] {
        let status = if right == Right::ReadJob { 404 } else { 500 };
        let ask = async |status, words: &'static str| {
            let (nomad, log) = nomad_with(config(), move |r| match r.uri().path() {
                "/v1/allocations" => respond(200, RUNNING),
                _ => respond(status, words),
            });
            (nomad.may(right).await, log)
        };
        let (may, log) = ask(status, refusal).await;
        assert_eq!(may.unwrap(), May::Yes, "{right:?}");
        assert_eq!(log.lines().last().unwrap(), line);
        assert_eq!(ask(403, "Permission denied").await.0.unwrap(), May::No);
        assert_eq!(ask(403, "ACL token not found").await.0.unwrap(), May::No);
        assert_eq!(
            ask(403, "Job registration is disabled").await.0.unwrap(),
            May::Refused("Job registration is disabled".into())
        );
        // Anything else proves nothing.
        let odd = ask(500, "rpc error: something else").await.0;
        assert!(matches!(odd, Err(Error::Refused { .. })), "{right:?}: {odd:?}");
    }
}

#[tokio::test]
async fn what_is_asked_would_harm_nobody_even_if_it_were_done() {
    let (nomad, log) = nomad_with(config(), |r| respond(200, if r.uri().path() == "/v1/allocations" { RUNNING } else { "{}" }));
    nomad.may(Right::SubmitJob).await.unwrap();
    let asked = log.last_body();
    assert_eq!((&asked["EnforceIndex"], &asked["JobModifyIndex"]), (&json!(true), &json!((1_u64 << 53) - 1)));
    // It would wait for a dispatch for ever.
    assert!(asked["Job"]["ParameterizedJob"].is_object() && asked["Job"]["Type"] == "batch", "{asked}");
    nomad.may(Right::AllocLifecycle).await.unwrap();
    let signal = log.last_body();
    // Nomad allows no slash in a task's name.
    assert!(signal["Signal"] == "SIGCONT" && signal["Task"].as_str().unwrap().contains('/'), "{signal}");
    let (empty, _) = nomad_with(config(), |_| respond(200, "[]"));
    assert_eq!(
        empty.may(Right::AllocLifecycle).await.unwrap(),
        May::NotTold("the token sees no running allocation to try it on")
    );
    let (blind, _) = nomad_with(config(), |_| respond(403, "Permission denied"));
    assert_eq!(
        blind.may(Right::AllocLifecycle).await.unwrap(),
        May::NotTold("the token sees no running allocation to try it on")
    );
}

#[tokio::test]
async fn clocks_and_servers() {
    let (nomad, log) = nomad_with(config(), |r| match r.uri().path() {
        "/v1/client/stats" if r.uri().query() == Some("node_id=n1") => respond(200, r#"{"Timestamp":1796000000123456789}"#),
        "/v1/client/stats" => respond(200, "null"),
        "/v1/status/leader" => {
            let mut answer = respond(200, r#""10.0.0.1:4647""#);
            answer.headers_mut().insert("date", "Sat, 21 Nov 2026 13:12:20 GMT".parse().unwrap());
            answer
        }
        _ => respond(
            200,
            r#"{"Members":[{"Name":"s.eu","Status":"alive","Tags":{"build":"2.0.5","region":"eu"}},{"Name":"odd","Status":"left","Tags":null}]}"#,
        ),
    });
    assert_eq!(nomad.client_clock(&"n1".into()).await.unwrap(), Some(Timestamp::from_micros(1_796_000_000_123_456)));
    assert_eq!(nomad.client_clock(&"n2".into()).await.unwrap(), None);
    assert_eq!(nomad.agent_clock().await.unwrap(), Some("2026-11-21T13:12:20Z".parse().unwrap()));
    let servers = nomad.servers().await.unwrap();
    let shown: Vec<_> = servers.iter().map(|s| [&*s.name, &*s.region, &*s.version, &*s.status]).collect();
    assert_eq!(shown, [["s.eu", "eu", "2.0.5", "alive"], ["odd", "", "", "left"]]);
    assert_eq!(log.lines().last().unwrap(), "GET /v1/agent/members");
}
