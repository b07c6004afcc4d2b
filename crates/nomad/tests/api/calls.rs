use std::collections::BTreeMap;
use std::time::Duration;

use curfew_core::clock::{Context, KillOrder, derive};
use curfew_core::config::Config;
use curfew_core::drain::Deadline;
use curfew_core::gc::{JobStatus, Purge, Sighting, purge};
use curfew_core::operation::Demand;
use curfew_core::spec::JobType;
use curfew_core::{ClientStatus, Desired, EventKind, JobKey, Namespace, TaskName, TaskState, Timestamp};
use curfew_nomad::{DrainDeadline, Error, EvalState, JobFilter, NodeStatus, Nomad, NomadConfig, SignalOutcome, TransportError};
use serde_json::{Value, json};

use crate::fake::{body, config, nomad, nomad_with, respond};

const FULL: &str = include_str!("../fixtures/allocation_full.json");
const LIST: &str = include_str!("../fixtures/allocation_list.json");
const ALLOC: &str = "5355e9cc-8203-6163-e9fa-86ea80c11132";

#[tokio::test]
async fn namespace_and_region_each_in_their_own_place_and_segments_escaped() {
    let config = NomadConfig { region: Some("eu".into()), namespace: "fallback".into(), ..config() };
    let (nomad, log) = nomad_with(config, |r| match r.uri().path() {
        p if p.ends_with("/allocations") => respond(200, "[]"),
        _ => respond(200, r#"{"EvalID":"","Index":7,"JobModifyIndex":7}"#),
    });
    let key = JobKey::new("games", "lobby/dispatch-1 ü?#%.x");
    nomad.delete_job(&key, false).await.unwrap();
    nomad.delete_job(&key, true).await.unwrap();
    nomad.job_allocations(&key).await.unwrap();
    nomad.register(&key, &json!({ "ID": "x", "Namespace": "elsewhere" }), Some(3)).await.unwrap();
    let job = "lobby%2Fdispatch-1%20%C3%BC%3F%23%25.x";
    assert_eq!(
        log.lines(),
        [
            format!("DELETE /v1/job/{job}?namespace=games&region=eu"),
            format!("DELETE /v1/job/{job}?namespace=games&no_shutdown_delay=true&region=eu"),
            format!("GET /v1/job/{job}/allocations?namespace=games&all=true&region=eu"),
            "PUT /v1/jobs?namespace=games&region=eu".to_owned(),
        ]
    );
    assert_eq!(
        log.last_body(),
        json!({ "Job": { "ID": "x", "Namespace": "elsewhere" }, "EnforceIndex": true, "JobModifyIndex": 3 })
    );
    assert_eq!(log.last_header("x-nomad-token").as_deref(), Some("s3cret"));
    assert_eq!(nomad.requests(), [("PUT /v1/jobs", 1), ("DELETE /v1/job/:job", 2), ("GET /v1/job/:job/allocations", 1)]);
    assert!(matches!(nomad.job(&JobKey::new("games", "..")).await, Err(Error::Unaskable { .. })));
}

#[tokio::test]
async fn an_agent_is_asked_at_its_own_address_and_without_a_region() {
    let answer = |max: Value| json!({ "config": { "Version": { "Version": "2.0.5" }, "Client": { "Enabled": true, "MaxKillTimeout": max } } });
    for (max, expected) in [(json!("8760h"), 8760 * 3600), (json!(""), 30), (Value::Null, 30)] {
        let text = answer(max).to_string();
        let config = NomadConfig { region: Some("eu".into()), ..config() };
        let (nomad, log) = nomad_with(config, move |r| {
            assert_eq!(r.uri().authority().unwrap(), "10.0.0.7:4646");
            respond(200, text.clone())
        });
        let got = nomad.agent_max_kill_timeout("10.0.0.7:4646").await.unwrap();
        assert_eq!(got, Some(Duration::from_secs(expected)));
        assert_eq!(log.lines(), ["GET /v1/agent/self"]);
    }
    let (nomad, _) = nomad(|_| respond(200, r#"{"config":{"Version":{"Version":"2.0.5"},"Client":{"Enabled":false}}}"#));
    assert_eq!(nomad.agent_self().await.unwrap().max_kill_timeout, None);
}

#[tokio::test]
async fn hcl_is_parsed_without_canonicalizing() {
    let (nomad, log) = nomad(|_| respond(200, r#"{"ID":"x"}"#));
    nomad.parse_hcl("job \"x\" {}").await.unwrap();
    assert_eq!(log.last_body(), json!({ "JobHCL": "job \"x\" {}", "Canonicalize": false }));
    assert_eq!(log.lines(), ["POST /v1/jobs/parse?namespace=default"]);
}

#[tokio::test]
async fn a_full_allocation_comes_with_its_job() {
    let (nomad, _) = nomad(|_| respond(200, FULL));
    let (alloc, job) = nomad.allocation(&ALLOC.into()).await.unwrap().unwrap();
    let job = job.unwrap();
    assert_eq!((alloc.id.as_str(), alloc.job_key(), alloc.group.as_str()), (ALLOC, JobKey::new("default", "impolite"), "g"));
    assert_eq!((alloc.desired, alloc.client_status, alloc.job_version), (Desired::Stop, ClientStatus::Complete, Some(0)));
    assert_eq!((alloc.create_index, alloc.modify_index, alloc.migrate), (30, 38, false));
    let task = &alloc.tasks[&TaskName::from("t")];
    assert_eq!((task.state, task.lives()), (TaskState::Dead, false));
    assert_eq!(task.started_at.unwrap().as_micros(), 1_795_244_541_632_759);
    let killing = task.last(EventKind::Killing).unwrap();
    assert_eq!((killing.at.as_micros(), killing.kill_timeout), (1_795_244_541_834_048, Some(Duration::from_secs(86_400))));
    let end = task.last(EventKind::Terminated).unwrap();
    assert_eq!((end.exit_code, end.signal), (137, 9));
    assert_eq!(job.task("g", &TaskName::from("t")).unwrap().kill_timeout, Duration::from_secs(86_400));
}

#[tokio::test]
async fn one_bad_allocation_is_one_bad_allocation() {
    let good: Value = serde_json::from_str::<Value>(LIST).unwrap()[0].clone();
    let with = |path: &str, value: Value| {
        let mut a = good.clone();
        *a.pointer_mut(path).unwrap() = value;
        a
    };
    let mut zero = good.clone();
    zero["TaskStates"]["t"]["StartedAt"] = "0001-01-01T00:00:00Z".into();
    zero["TaskStates"]["never"] = Value::Null;
    let cases = json!([
        good,
        with("/ClientStatus", json!("dreaming")),
        with("/DesiredStatus", json!("rest")),
        with("/TaskStates/t/State", json!("limbo")),
        with("/TaskStates/t/StartedAt", json!("yesterday")),
        zero,
        with("/TaskStates", Value::Null),
    ]);
    // The same beside one whose very shape is wrong, which takes the slower road.
    let mut odd = cases.clone();
    odd.as_array_mut().unwrap().push(json!({ "ID": "odd", "Namespace": 5 }));
    for (list, bad) in [(cases, 4), (odd, 5)] {
        let (nomad, _) = nomad(move |_| respond(200, list.to_string()));
        let (read, unread) = nomad.job_allocations(&JobKey::new("default", "x")).await.unwrap();
        assert_eq!((read.len(), unread.len()), (3, bad), "{unread:?}");
        assert_eq!(unread[0].why, "ClientStatus \"dreaming\" is not known");
        assert_eq!(unread[2].why, "task \"t\": State \"limbo\" is not known");
        assert_eq!(unread[0].id, read[0].id);
        assert_eq!(read[1].tasks[&TaskName::from("t")].started_at, None);
        assert!(read[2].tasks.is_empty());
    }
}

#[tokio::test]
async fn pages_follow_the_opaque_token_of_the_header() {
    let page = |token: Option<&str>| {
        let mut r = respond(200, LIST);
        if let Some(t) = token {
            r.headers_mut().insert("X-Nomad-Nexttoken", t.parse().unwrap());
        }
        r.headers_mut().insert("X-Nomad-Index", "42".parse().unwrap());
        r
    };
    let (nomad, log) =
        nomad(move |r| if r.uri().query().unwrap().contains("next_token") { page(None) } else { page(Some("264.e153/&x")) });
    let mut pages = nomad.allocations(None, "*", 2);
    let first = pages.next().await.unwrap().unwrap();
    assert_eq!((first.allocations.len(), first.index), (1, 42));
    assert!(pages.next().await.unwrap().is_some());
    assert!(pages.next().await.unwrap().is_none());
    assert_eq!(
        log.lines(),
        [
            "GET /v1/allocations?namespace=%2A&per_page=2",
            "GET /v1/allocations?namespace=%2A&per_page=2&next_token=264.e153%2F%26x"
        ]
    );
    let (stuck, _) = crate::fake::nomad(move |_| page(Some("same")));
    let mut pages = stuck.allocations(None, "*", 2);
    pages.next().await.unwrap();
    assert!(pages.next().await.unwrap_err().to_string().contains("does not advance"));
}

#[tokio::test]
async fn gone_is_only_what_nomad_calls_gone() {
    let key = JobKey::new("default", "x");
    let job = async |status, text: &'static str| nomad(move |_| respond(status, text)).0.job(&key).await;
    assert_eq!(job(404, "job not found").await.unwrap(), None);
    assert!(matches!(job(404, "404 page not found\n").await, Err(Error::NotNomad { .. })));
    assert!(matches!(job(404, "").await, Err(Error::NotNomad { .. })));
    assert!(matches!(job(404, "<html>nginx</html>").await, Err(Error::NotNomad { .. })));
    assert!(matches!(job(404, "alloc not found").await, Err(Error::NotFound { .. })));
    let alloc = async |status, text: &'static str| nomad(move |_| respond(status, text)).0.allocation(&ALLOC.into()).await;
    assert!(alloc(404, "alloc not found").await.unwrap().is_none());
    // What lives in a namespace that the token may not read: not gone, and no reason to ask in haste.
    let hidden = alloc(500, "Unknown allocation \"6e1c2c0b-1a8e-4a9d-9f0d-5d2b1a1f1c11\"").await.unwrap_err();
    assert!(matches!(hidden, Error::Refused { status: 500, .. }) && !hidden.is_transient(), "{hidden:?}");
    // Nomad answers another resource when an id ends like one.
    assert!(matches!(job(200, "[]").await, Err(Error::NotNomad { .. })));
    assert!(matches!(job(200, "pong").await, Err(Error::NotNomad { .. })));
}

#[tokio::test]
async fn classes_of_refusal() {
    let delete = async |status, text: &'static str| {
        nomad(move |_| respond(status, text)).0.delete_job(&JobKey::new("default", "x"), false).await.unwrap_err()
    };
    let e = delete(403, "Permission denied").await;
    assert!(matches!(e, Error::PermissionDenied { .. }));
    assert_eq!(
        e.to_string(),
        "Nomad refused DELETE /v1/job/x: Permission denied. The token of NOMAD_TOKEN was sent; the call needs: namespace capability submit-job"
    );
    assert_eq!((e.status(), e.is_transient(), e.outcome_unknown()), (Some(403), false, false));
    // (status, text, transient, outcome unknown)
    for (status, text, transient, unknown) in [
        (500, "No cluster leader", true, false),
        (500, "rpc error: No cluster leader", true, false),
        (500, "rpc error: leadership lost while committing log", true, true),
        (500, "rpc error: EOF", true, true),
        (500, "rpc error: failed to get conn: dial tcp 10.0.0.1:4647: i/o timeout", true, true),
        (500, "1 error occurred:\n\t* Job ID contains a space\n\n", false, false),
        (429, "Your IP is issuing too many concurrent connections, please rate limit your calls\n", true, false),
        (502, "<html>bad gateway</html>", true, true),
        (503, "", true, true),
        (400, "Client sent an HTTP request to an HTTPS server.\n", false, false),
        (301, "", false, false),
    ] {
        let e = delete(status, text).await;
        assert_eq!((e.is_transient(), e.outcome_unknown()), (transient, unknown), "{status} {text}: {e:?}");
        assert!(!format!("{e:?} {e}").contains("s3cret"));
        assert_eq!(e.asked().to_string(), "DELETE /v1/job/x");
    }
    let e = delete(500, "1 error occurred:\n\t* Job ID contains a space\n\n").await;
    assert_eq!(
        (e.to_string().as_str(), e.body().unwrap().lines().count()),
        ("1 error occurred:\n\t* Job ID contains a space", 2)
    );
    let e = delete(400, "Client sent an HTTP request to an HTTPS server.\n").await;
    assert!(e.to_string().contains("https://nomad.test:4646"), "{e}");
    let (n, _) = nomad(|_| respond(500, "Enforcing job modify index 999: job does not exist"));
    assert!(matches!(n.register(&JobKey::new("default", "x"), &json!({}), Some(999)).await, Err(Error::Conflict { .. })));
    // Whatever became of a read, nothing was changed.
    let (n, _) = nomad(|_| respond(500, "rpc error: EOF"));
    assert!(!n.job(&JobKey::new("default", "x")).await.unwrap_err().outcome_unknown());
    assert!(!n.parse_hcl("").await.unwrap_err().outcome_unknown());
}

#[tokio::test(start_paused = true)]
async fn every_call_has_a_deadline_and_says_whether_it_was_sent() {
    let config = NomadConfig { max_in_flight: 1, timeout: Duration::from_secs(30), ..config() };
    let hangs =
        |_: http::Request<bytes::Bytes>| std::future::pending::<Result<http::Response<curfew_nomad::Body>, TransportError>>();
    let nomad = Nomad::with_transport(config, hangs).unwrap();
    let key = JobKey::new("default", "x");
    let (first, second) = tokio::join!(nomad.delete_job(&key, false), async {
        // Asked a moment later: it waits behind the first for the only permit, until its own deadline is nearly there.
        tokio::task::yield_now().await;
        nomad.delete_job(&key, false).await
    });
    let first = first.unwrap_err();
    assert!(matches!(first, Error::Timeout { sent: true, .. }) && first.outcome_unknown() && first.is_transient());
    assert_eq!(first.to_string(), "Nomad at http://nomad.test:4646 did not answer DELETE /v1/job/x within 30s");
    let second = second.unwrap_err();
    assert!(matches!(second, Error::Timeout { .. }), "{second:?}");
    assert!(nomad.requests()[0].1 <= 2);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_cut_by_the_deadline_and_a_large_one_by_the_bound() {
    let (slow, _) = nomad(|_| http::Response::new(crate::fake::open_body(vec![b"[{"])));
    let e = slow.job_allocations(&JobKey::new("default", "x")).await.unwrap_err();
    assert!(matches!(e, Error::Timeout { sent: true, .. }), "{e:?}");
    let (huge, _) =
        nomad_with(NomadConfig { max_body: 10, ..config() }, |_| http::Response::new(body(vec![b"[      ", b"      ]"])));
    let e = huge.job_allocations(&JobKey::new("default", "x")).await.unwrap_err();
    assert!(matches!(e, Error::TooLarge { limit: 10, .. }), "{e:?}");
}

/// An order, the only way there is: an allocation that was told to end, past its clock.
async fn kill_order() -> KillOrder {
    let mut wire: Value = serde_json::from_str(FULL).unwrap();
    let task = &mut wire["TaskStates"]["t"];
    task["State"] = "running".into();
    let kept: Vec<Value> = task["Events"].as_array().unwrap().iter().take(4).cloned().collect();
    task["Events"] = kept.into();
    wire["Job"]["Meta"] = json!({ "curfew_managed": "true" });
    let (nomad, _) = nomad(move |_| respond(200, wire.to_string()));
    let (alloc, spec) = nomad.allocation(&ALLOC.into()).await.unwrap().unwrap();
    let graces = Config::default().graces();
    let demands: [Demand; 0] = [];
    let now = Timestamp::from_millis(1_795_244_600_000);
    let cx =
        Context { spec: &spec.unwrap(), demands: &demands, late: Duration::ZERO, drain: None, graces: &graces, memory: &[], now };
    derive(&alloc, &cx).clocks[0].order(now).unwrap()
}

#[tokio::test]
async fn a_sigkill_names_its_task_and_its_answers_are_told_apart() {
    let order = kill_order().await;
    let (ok, log) = nomad(|_| respond(200, r#"{"Index":0}"#));
    assert_eq!(ok.sigkill(&order, || false).await.unwrap(), SignalOutcome::Withheld, "and nothing was asked");
    assert_eq!(ok.sigkill(&order, || true).await.unwrap(), SignalOutcome::Sent);
    assert_eq!(log.lines(), [format!("PUT /v1/client/allocation/{ALLOC}/signal")]);
    assert_eq!(log.last_body(), json!({ "Signal": "SIGKILL", "Task": "t" }));
    for (status, text, expected) in [
        (404, "No path to node", "Unreachable"),
        (404, "Unknown node \"5833\"", "Unreachable"),
        (500, "rpc error: EOF", "Unreachable"),
        (500, "session open: session shutdown", "Unreachable"),
        (500, "rpc error: failed to get conn: rpc error: lead thread didn't get connection", "Unreachable"),
        (404, "Unknown allocation \"00000000\"", "Gone"),
        (500, "Task not running", "NotRunning"),
        (500, "rpc error: Task not running", "NotRunning"),
        (500, "1 error occurred:\n\t* Failed to signal task: t, err: os: process already finished\n\n", "NotRunning"),
        (500, "rpc error: code = Unknown desc = os: process already finished", "NotRunning"),
        (500, "task not found for given id", "NotRunning"),
        (500, "SignalTask is not supported by this driver", "Unsupported"),
        (500, "QEMU driver can't signal commands", "Unsupported"),
    ] {
        let (n, _) = nomad(move |_| respond(status, text));
        let outcome = n.sigkill(&order, || true).await.unwrap();
        assert!(format!("{outcome:?}").starts_with(expected), "{text}: {outcome:?}");
    }
    for (status, text) in [
        (500, "Unknown allocation \"00000000\""),
        (500, "Task not found"),
        (403, "Permission denied"),
        (500, "No cluster leader"),
        (404, "404 page not found"),
    ] {
        let (n, _) = nomad(move |_| respond(status, text));
        assert!(n.sigkill(&order, || true).await.is_err(), "{text}");
    }
}

#[tokio::test]
async fn evaluations_nodes_validation_and_leader() {
    let eval = r#"{"ID":"e1","Namespace":"games","JobID":"j","Status":"blocked","TriggeredBy":"job-register","FailedTGAllocs":{"g":{"x":1}},"BlockedEval":"","NextEval":"n","ModifyIndex":9}"#;
    let (n, _) = nomad(move |_| respond(200, eval));
    let e = n.evaluation(&"e1".into()).await.unwrap().unwrap();
    assert_eq!(
        (e.key, e.state, e.failed_groups.into_keys().collect::<Vec<_>>()),
        (JobKey::new("games", "j"), EvalState::Blocked, vec!["g".to_owned()])
    );
    assert_eq!((e.blocked_eval, e.next_eval), (None, Some("n".into())));
    let (n, _) = nomad(|_| respond(404, "eval not found"));
    assert_eq!(n.evaluation(&"e1".into()).await.unwrap(), None);

    let list = r#"[{"ID":"n1","Name":"c1","Datacenter":"dc1","Status":"down","SchedulingEligibility":"ineligible","Drain":true,
        "Drivers":{"raw_exec":{"Detected":true,"Healthy":true},"qemu":{"Detected":true,"Healthy":false},"odd":null}}]"#;
    let (n, log) = nomad(move |_| respond(200, list));
    let nodes = n.nodes(Some("Datacenter == \"dc1\"")).await.unwrap();
    assert_eq!((nodes[0].status.clone(), nodes[0].eligible, nodes[0].draining), (NodeStatus::Down, false, true));
    assert_eq!(nodes[0].drivers, ["raw_exec"]);
    assert_eq!(nodes[0].known_drivers, ["odd", "qemu", "raw_exec"]);
    assert_eq!(log.lines(), ["GET /v1/nodes?filter=Datacenter%20%3D%3D%20%22dc1%22"]);

    let (n, _) =
        nomad(|_| respond(200, r#"{"DriverConfigValidated":true,"Error":"1 error","ValidationErrors":null,"Warnings":"w"}"#));
    let v = n.validate(&Namespace::default(), &json!({})).await.unwrap();
    assert_eq!((v.errors, v.warnings), (vec!["1 error".to_owned()], "w".to_owned()));

    let (n, _) = nomad(|_| respond(200, "\"\""));
    assert!(matches!(n.leader().await, Err(Error::NoLeader { .. })));
}

#[tokio::test]
async fn a_drain_is_asked_for_with_its_meta_and_its_deadline_in_nanoseconds() {
    let (nomad, log) = nomad(|_| respond(200, r#"{"Index":7,"EvalIDs":null}"#));
    let meta = BTreeMap::from([("curfew_operation".to_owned(), "x".to_owned())]);
    let node = "d379627f-54a5-2fac-fb44-6fdf0b4197ef".into();
    for (deadline, nanos) in [
        (DrainDeadline::Now, -1),
        (DrainDeadline::Never, 0),
        (DrainDeadline::After(Duration::ZERO), 1),
        (DrainDeadline::After(Duration::from_secs(4)), 4_000_000_000_i64),
    ] {
        nomad.drain_node(&node, deadline, true, &meta).await.unwrap();
        assert_eq!(
            log.last_body(),
            json!({ "NodeID": node, "DrainSpec": { "Deadline": nanos, "IgnoreSystemJobs": true }, "MarkEligible": false, "Meta": meta })
        );
    }
    nomad.undrain_node(&node, true).await.unwrap();
    assert_eq!(log.last_body(), json!({ "NodeID": node, "DrainSpec": null, "MarkEligible": true }));
    nomad.set_eligibility(&node, false).await.unwrap();
    assert_eq!(log.last_body(), json!({ "NodeID": node, "Eligibility": "ineligible" }));
    assert_eq!(log.lines().last().unwrap(), "PUT /v1/node/d379627f-54a5-2fac-fb44-6fdf0b4197ef/eligibility");
}

#[tokio::test]
async fn a_nodes_allocations_come_with_their_jobs_and_one_that_cannot_be_read_is_an_error() {
    let list = format!("[{FULL}]");
    let (nomad, log) = nomad(move |_| respond(200, list.clone()));
    let all = nomad.node_allocations(&"n".into()).await.unwrap();
    assert_eq!((all.len(), all[0].0.id.as_str(), all[0].1.job_type), (1, ALLOC, JobType::Service));
    assert_eq!(log.lines(), ["GET /v1/node/n/allocations"]);
    let (nomad, _) = crate::fake::nomad(|_| respond(200, "null"));
    assert!(nomad.node_allocations(&"n".into()).await.unwrap().is_empty());
    let without_job = {
        let mut alloc: Value = serde_json::from_str(FULL).unwrap();
        alloc.as_object_mut().unwrap().remove("Job");
        json!([alloc]).to_string()
    };
    for (body, word) in [(r#"[{"ID":"x"}]"#.to_owned(), "missing field"), (without_job, "has no job")] {
        let (nomad, _) = crate::fake::nomad(move |_| respond(200, body.clone()));
        let e = nomad.node_allocations(&"n".into()).await.unwrap_err();
        assert!(matches!(e, Error::NotNomad { .. }) && e.to_string().contains(word), "{e}");
    }
}

/// Nomad says what the newest change on the node was, also when the token may not see what changed.
#[tokio::test]
async fn allocations_that_are_hidden_from_the_token_are_an_error() {
    let newest = serde_json::from_str::<Value>(FULL).unwrap()["ModifyIndex"].as_u64().unwrap();
    for (index, hidden) in [(newest, false), (newest + 1, true)] {
        let (nomad, _) = nomad(move |_| {
            let mut answer = respond(200, format!("[{FULL}]"));
            answer.headers_mut().insert("X-Nomad-Index", index.into());
            answer
        });
        let all = nomad.node_allocations(&"n".into()).await;
        let denied = matches!(&all, Err(Error::PermissionDenied { capability, .. }) if capability.contains("every namespace"));
        assert_eq!((all.is_ok(), denied), (!hidden, hidden), "{all:?}");
    }
}

/// As a real Nomad showed it (recordings drain_cancel).
#[tokio::test]
async fn a_nodes_last_drain_says_whose_it_was() {
    let op = curfew_core::OpId::new(Timestamp::from_millis(1_790_000_000_000));
    let node = |meta: Value, status: &str| {
        json!({ "ID": "n", "Name": "n1", "Datacenter": "dc1", "NodeClass": "big", "Status": "ready", "SchedulingEligibility": "ineligible", "Drain": true,
            "LastDrain": { "AccessorID": "token:acls-disabled", "Meta": meta, "StartedAt": "2026-11-21T07:05:24Z", "Status": status, "UpdatedAt": "2026-11-21T07:05:24Z" } })
    };
    for (meta, status, ours, cancelled) in [
        (json!({ "curfew_operation": op, "curfew_deadline": "none" }), "draining", true, false),
        (json!({ "by": "record" }), "canceled", false, true),
        (Value::Null, "complete", false, false),
    ] {
        let text = node(meta, status).to_string();
        let (nomad, _) = nomad(move |_| respond(200, text.clone()));
        let stub = nomad.node(&"n".into()).await.unwrap().unwrap().stub;
        let last = stub.last_drain.unwrap();
        assert_eq!((last.curfew.map(|m| m.operation == op), last.cancelled), (ours.then_some(true), cancelled));
        assert_eq!((stub.class.as_str(), stub.draining, stub.eligible), ("big", true, false));
    }
}

fn job_row(id: &str, more: Value) -> Value {
    let mut row = json!({
        "ID": id, "ParentID": "", "Namespace": "games", "Type": "batch", "Status": "dead", "Stop": true, "Periodic": false,
        "ParameterizedJob": true, "SubmitTime": 1_790_000_000_000_000_000_i64, "JobModifyIndex": 7,
        "Meta": { "curfew_managed": "true", "curfew_operation": "op" },
        "JobSummary": {
            "Summary": { "g": { "Queued": 2, "Complete": 3, "Failed": 1, "Running": 0, "Starting": 0, "Lost": 0, "Unknown": 0 } },
            "Children": { "Pending": 1, "Running": 2, "Dead": 4 },
        },
    });
    row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    row
}

#[tokio::test]
async fn the_list_of_jobs_is_read_and_a_job_that_cannot_be_read_is_no_empty_list() {
    let rows =
        json!([job_row("a", json!({})), job_row("a/dispatch-1", json!({ "ParentID": "a", "Meta": null, "JobSummary": null }))]);
    let (nomad, log) = nomad(move |_| respond(200, rows.to_string()));
    let page = nomad.jobs(JobFilter::managed_and_odd(), "*").next().await.unwrap().unwrap();
    assert_eq!(
        log.lines(),
        [
            "GET /v1/jobs?namespace=%2A&meta=true&per_page=1000&filter=Meta.curfew_managed%20%3D%3D%20%22true%22%20and%20%28Status%20%21%3D%20%22running%22%20or%20ParentID%20%21%3D%20%22%22%29"
        ]
    );
    let a = &page[0];
    assert_eq!((a.key.clone(), a.status, a.stopped, a.has_children), (JobKey::new("games", "a"), JobStatus::Dead, true, true));
    assert_eq!((a.managed, a.operation.as_deref(), a.queued, a.placed, a.live_children), (true, Some("op"), 2, 4, 3));
    assert_eq!(a.submitted_at, Some(Timestamp::from_millis(1_790_000_000_000)));
    assert_eq!(page[1].parent_key(), Some(JobKey::new("games", "a")));
    assert!(!page[1].managed);
    // The one that is asked for, by its exact id, and not its child.
    assert_eq!(nomad.job_stub(&JobKey::new("games", "a")).await.unwrap().as_ref(), Some(a));
    assert_eq!(nomad.job_stub(&JobKey::new("games", "b")).await.unwrap(), None);
    assert!(log.lines()[1].contains("namespace=games") && log.lines()[1].contains("prefix=a"), "{:?}", log.lines());
    let (odd, _) = crate::fake::nomad(|_| respond(200, json!([job_row("a", json!({ "Status": "asleep" }))]).to_string()));
    let e = odd.jobs(JobFilter::managed(), "*").next().await.unwrap_err().to_string();
    assert!(e.contains("asleep") && e.contains('a'), "{e}");
}

#[tokio::test]
async fn a_purge_takes_an_order_and_names_the_namespace() {
    let (nomad, log) = nomad(|_| respond(200, r#"{"EvalID":"","Index":7,"JobModifyIndex":7}"#));
    let settings = Config { gc_retention: Duration::from_secs(1), ..Config::default() }.gc().unwrap();
    let (list, _) = crate::fake::nomad(|_| respond(200, json!([job_row("a b/ü", json!({ "JobSummary": null }))]).to_string()));
    let job = list.jobs(JobFilter::managed(), "*").next().await.unwrap().unwrap().remove(0);
    let now = job.submitted_at.unwrap() + Duration::from_secs(60);
    let seen = Sighting { first: job.submitted_at.unwrap(), last: now, count: 1 };
    let Purge::Now(order) = purge(&job, &[], 0, Some(seen), &settings, now) else { panic!("not to be purged") };
    nomad.purge_job(&order).await.unwrap();
    assert_eq!(log.lines(), ["DELETE /v1/job/a%20b%2F%C3%BC?namespace=games&purge=true"]);
}

#[tokio::test]
async fn what_a_node_was_drained_by_and_giving_it_back() {
    let operation = "01a1fe5d-ab09-7331-95a5-238fe21f51e5";
    let meta = json!({ "curfew_operation": operation, "curfew_deadline": "2026-11-21T13:00:00Z", "curfew_only_managed": "true" });
    let row = |drain: Value| json!([{ "ID": "n", "Name": "c1", "Status": "ready", "SchedulingEligibility": "ineligible", "LastDrain": drain }]);
    let rows = row(json!({ "StartedAt": "2026-11-21T12:00:00Z", "Status": "complete", "Meta": meta })).to_string();
    let (nomad, log) = nomad(move |r| if r.method() == "GET" { respond(200, rows.clone()) } else { respond(200, "{}") });
    let node = nomad.nodes(None).await.unwrap().remove(0);
    let drain = node.last_drain.unwrap();
    let curfew = drain.curfew.unwrap();
    assert_eq!(drain.started_at, Some("2026-11-21T12:00:00Z".parse().unwrap()));
    assert_eq!((curfew.operation.to_string(), curfew.only_managed), (operation.to_owned(), true));
    assert_eq!(curfew.deadline, Deadline::At("2026-11-21T13:00:00Z".parse().unwrap()));
    nomad.undrain_node(&node.id, true).await.unwrap();
    assert_eq!(log.last_body(), json!({ "NodeID": node.id, "DrainSpec": null, "MarkEligible": true }));
    let (others, _) = crate::fake::nomad(move |_| respond(200, row(json!({ "Status": "complete", "Meta": null })).to_string()));
    assert_eq!(others.nodes(None).await.unwrap().remove(0).last_drain.unwrap().curfew, None);
}

/// One that answers, but cannot: the next call goes elsewhere.
#[tokio::test]
async fn a_server_without_a_leader_is_left() {
    let config = NomadConfig { addr: "http://a.test:1,http://b.test:1".into(), ..config() };
    let (nomad, _) = nomad_with(config, |r| match r.uri().host() {
        Some("a.test") => respond(500, "No cluster leader"),
        _ => respond(200, "[]"),
    });
    assert!(matches!(nomad.nodes(None).await, Err(Error::NoLeader { .. })));
    assert_eq!(nomad.nodes(None).await.unwrap(), []);
    assert_eq!(nomad.nodes(None).await.unwrap(), []);
    assert_eq!(nomad.address(), "http://a.test:1,http://b.test:1");
}

#[tokio::test(start_paused = true)]
async fn a_token_file_is_read_anew_and_a_missing_one_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let config = NomadConfig { token: None, token_file: Some(path.clone()), ..config() };
    let e = Nomad::with_transport(config.clone(), never).unwrap_err();
    assert!(e.to_string().contains("token"), "{e}");
    std::fs::write(&path, "first\n").unwrap();
    let (nomad, log) = nomad_with(config, |_| respond(200, "[]"));
    let asked = async |expected: &str| {
        nomad.nodes(None).await.unwrap();
        assert_eq!(log.last_header("x-nomad-token").as_deref(), Some(expected));
    };
    asked("first").await;
    std::fs::write(&path, "second").unwrap();
    asked("first").await;
    tokio::time::advance(Duration::from_secs(4)).await;
    asked("second").await;
    std::fs::remove_file(&path).unwrap();
    tokio::time::advance(Duration::from_secs(4)).await;
    asked("second").await;
}

async fn never(_: http::Request<bytes::Bytes>) -> Result<http::Response<curfew_nomad::Body>, TransportError> {
    Err(TransportError::Connect("nothing is asked".into()))
}
