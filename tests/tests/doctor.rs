//! `curfew doctor`: what it says of clusters that are well and of clusters that are not.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use curfew_tests::api::Api;
use curfew_tests::certificates::Authority;
use curfew_tests::cluster::{Cluster, Shape, leaderless};
use curfew_tests::command::{Ran, clean, curfew};
use curfew_tests::fake::Fake;
use curfew_tests::free_port;
use curfew_tests::jobs::{POLITE, service, task};
use curfew_tests::lab::{PATIENCE, unique};
use curfew_tests::process::Proc;
use curfew_tests::run::Given;
use curfew_tests::wait::eventually;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

async fn doctor(addr: &str, env: &[(&str, &str)], args: &[&str]) -> Ran {
    let args = ["doctor"].iter().chain(args).copied();
    let all = env.iter().fold(curfew(args).env("NOMAD_ADDR", addr), |c, (name, value)| c.env(name, *value));
    all.within(Duration::from_secs(90)).run().await
}

/// One check of a `--json` report: verdict, finding, remedy.
#[track_caller]
fn check<'a>(report: &'a Value, name: &str) -> (&'a str, &'a str, &'a str) {
    let found = report["checks"].as_array().unwrap().iter().find(|c| c["name"] == name);
    let c = found.unwrap_or_else(|| panic!("no check {name} in {report}"));
    let text = |key: &str| c[key].as_str().unwrap_or_default();
    (text("verdict"), text("found"), text("remedy"))
}

pub async fn a_healthy_cluster(given: Given) {
    let lab = given.shared().await;
    let cluster = &lab.cluster;
    let ran = doctor(cluster.addr(), &[], &[]).await.code(0);
    let leader: String = cluster.api.get("/v1/status/leader").await.as_str().unwrap().into();
    let shown = ran.stdout.replace(cluster.addr(), "ADDR").replace(&leader, "LEADER").replace(cluster.version(), "VERSION");
    let expected = "\
ok    address           ADDR answers
ok    tls               off; nothing leaves this machine on its way to the agent
ok    leader            LEADER
ok    servers           VERSION on 1 server
ok    acl               off: whoever reaches Nomad may do everything
ok    agent clock       in step with this machine's
ok    clients           VERSION on 3 clients
ok    nodes             3 nodes ready
ok    signal path       3 nodes reached as a signal would be
ok    client clocks     in step with this machine's on 3 nodes
ok    max_kill_timeout  at least 8760h on every node, kill_timeout is 24h
ok    drivers           no node runs one that takes no signals (qemu)
ADDR: 12 ok, 0 warnings, 0 failed, 0 not checked
";
    assert_eq!((shown.as_str(), ran.stderr.as_str()), (expected, ""), "{ran}");
    let report = doctor(cluster.addr(), &[], &["--json"]).await.code(0).json();
    assert_eq!(report["counts"], json!({ "ok": 12, "warning": 0, "failed": 0, "not_checked": 0 }), "{report}");
    assert_eq!(report["nomad"], cluster.addr());
}

pub async fn a_node_with_the_default_max_kill_timeout(given: Given) {
    let cluster = Cluster::start(given.kind, &Shape { nodes: 1, max_kill_timeout: None, ..Shape::default() }).await;
    let node = &cluster.nodes()[0];
    let ran = doctor(cluster.addr(), &[], &[]).await.code(1);
    for words in ["FAIL  max_kill_timeout", &format!("node {node} (30s)"), "max_kill_timeout = \"24h\""] {
        assert!(ran.stdout.contains(words), "no {words:?} in {ran}");
    }
    let within = [("CURFEW_KILL_TIMEOUT", "30s"), ("CURFEW_JOB_STOP_TIMEOUT", "10s"), ("CURFEW_DRAIN_TIMEOUT", "15s")];
    doctor(cluster.addr(), &within, &[]).await.code(0);
    let shorter = [("CURFEW_KILL_TIMEOUT", "1h"), ("CURFEW_JOB_STOP_TIMEOUT", "5m"), ("CURFEW_DRAIN_TIMEOUT", "50m")];
    let report = doctor(cluster.addr(), &shorter, &["--json"]).await.code(1).json();
    let (verdict, found, _) = check(&report, "max_kill_timeout");
    assert!(verdict == "failed" && found.contains("even a job_stop_timeout of 5m is cut short"), "{report}");
    assert_eq!(report["counts"]["failed"], 1, "{report}");
}

pub async fn a_server_without_a_leader(given: Given) {
    let (_server, addr) = leaderless(given.kind).await;
    let report = doctor(&addr, &[], &["--json"]).await.code(1).json();
    let (verdict, found, remedy) = check(&report, "leader");
    assert!(verdict == "failed" && found.contains("No cluster leader") && !remedy.is_empty(), "{report}");
    // What can be asked without one is asked all the same.
    assert_eq!((check(&report, "address").0, check(&report, "servers").0), ("ok", "ok"), "{report}");
    let (verdict, found, _) = check(&report, "clients");
    assert!(verdict == "not_checked" && found.contains("No cluster leader"), "{report}");
    assert_eq!(report["counts"]["failed"], 1, "{report}");
}

pub async fn a_node_that_is_down(given: Given) {
    let lab = given.own().await;
    let node = lab.cluster.nodes()[1].clone();
    lab.cluster.node_down(&node).await;
    let seen = async || {
        let report = doctor(lab.cluster.addr(), &[], &["--json"]).await.json();
        let (verdict, found, remedy) = check(&report, "nodes");
        let named = verdict == "warning" && found.contains(&node) && !remedy.is_empty();
        if named { Ok(report) } else { Err(report.to_string()) }
    };
    let report = eventually(PATIENCE, "the node to be missed", seen).await;
    assert_eq!((&report["counts"]["failed"], check(&report, "signal path").0), (&json!(0), "ok"), "{report}");
    doctor(lab.cluster.addr(), &[], &[]).await.code(0);
    lab.cluster.node_up(&node).await;
}

/// The verdicts of the rights of a token that may only read.
#[track_caller]
fn only_reads(report: &Value) {
    for (name, line) in
        [("acl submit-job", "capabilities = [\"submit-job\"]"), ("acl alloc-lifecycle", "capabilities = [\"alloc-lifecycle\"]")]
    {
        let (verdict, found, remedy) = check(report, name);
        assert!(verdict == "failed" && found.starts_with("missing") && remedy.contains(line), "{name}: {report}");
    }
    for (name, line) in [("acl dispatch-job", "dispatch-job"), ("acl node write", "node { policy = \"write\" }")] {
        let (verdict, found, remedy) = check(report, name);
        assert!(verdict == "warning" && found.starts_with("missing") && remedy.contains(line), "{name}: {report}");
    }
    for name in ["acl", "acl read-job", "acl every namespace", "acl list-jobs", "acl node read"] {
        assert_eq!(check(report, name).0, "ok", "{name}: {report}");
    }
    assert_eq!(report["counts"]["failed"], 2, "{report}");
}

async fn runs(api: &Api, job: &str) {
    eventually(PATIENCE, "the job to run", async || {
        let all = api.allocations(job).await?;
        if all.iter().any(|a| a["ClientStatus"] == "running") { Ok(()) } else { Err(format!("{all:?}")) }
    })
    .await;
}

async fn token(api: &Api, name: &str, rules: &str) -> String {
    api.put(&format!("/v1/acl/policy/{name}"), &json!({ "Name": name, "Rules": rules })).await;
    let made = api.put("/v1/acl/token", &json!({ "Name": name, "Type": "client", "Policies": [name] })).await;
    made["SecretID"].as_str().unwrap().to_owned()
}

pub async fn a_read_only_token(given: Given) {
    let cluster = Cluster::start(given.kind, &Shape { nodes: 1, acl: true, ..Shape::default() }).await;
    let api = &cluster.api;
    let id = unique("reads");
    let job = json!({ "Job": service(&id, vec![task("t", POLITE)]) });
    api.put("/v1/jobs", &job).await;
    runs(api, &id).await;
    let index = api.get(&format!("/v1/job/{id}")).await["JobModifyIndex"].clone();
    let read = r#"namespace "*" { policy = "read" } node { policy = "read" } agent { policy = "read" }"#;
    let read = token(api, "read", read).await;
    let report = doctor(cluster.addr(), &[("NOMAD_TOKEN", &read)], &["--json"]).await.code(1).json();
    only_reads(&report);
    // The one that people are given.
    let rights = include_str!("../../deploy/nomad/policy.hcl");
    let full = token(api, "full", rights).await;
    let report = doctor(cluster.addr(), &[("NOMAD_TOKEN", &full)], &["--json"]).await.json();
    assert_eq!(report["counts"], json!({ "ok": 21, "warning": 0, "failed": 0, "not_checked": 0 }), "{report}");
    api.put("/v1/namespace/hidden", &json!({ "Name": "hidden" })).await;
    let partly = token(api, "partly", &rights.replace("\"*\"", "\"default\"")).await;
    let report = doctor(cluster.addr(), &[("NOMAD_TOKEN", &partly)], &["--json"]).await.json();
    let (verdict, found, remedy) = check(&report, "acl every namespace");
    if cluster.is_at_least((1, 10, 0)) {
        assert!(verdict == "failed" && found.contains("a drain would miss") && remedy.contains("read-job"), "{report}");
    } else {
        assert!(verdict == "not_checked" && found.contains("before 1.10"), "{report}");
    }
    let nobody = doctor(cluster.addr(), &[], &["--json"]).await.code(1).json();
    assert_eq!((check(&nobody, "acl").0, check(&nobody, "acl node read").0), ("warning", "failed"), "{nobody}");
    let unknown = "11111111-1111-1111-1111-111111111111";
    let report = doctor(cluster.addr(), &[("NOMAD_TOKEN", unknown)], &["--json"]).await.code(1).json();
    let (verdict, found, _) = check(&report, "acl");
    assert!(verdict == "failed" && found.contains("not known") && !report.to_string().contains(unknown), "{report}");
    // It asked a lot, and nothing came of it.
    let jobs = api.get("/v1/jobs?namespace=*").await;
    assert_eq!(jobs.as_array().map(Vec::len), Some(1), "{jobs}");
    assert_eq!(api.get(&format!("/v1/job/{id}")).await["JobModifyIndex"], index);
    let states = &api.allocations(&id).await.unwrap()[0]["TaskStates"]["t"];
    assert!(!states["Events"].to_string().contains("Signaling"), "{states}");
    api.delete(&format!("/v1/job/{id}")).await;
}

pub async fn nothing_there_or_something_else(_: Given) {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let (site, other, hangs) = (Fake::web_site().await, Fake::other_api().await, Fake::hanging().await);
    for (addr, words) in [
        (&nobody, "refused the connection"),
        (&site.addr, "not as a Nomad does"),
        (&other.addr, "not as a Nomad does"),
        (&hangs.addr, "did not answer"),
    ] {
        let report = doctor(addr, &[("CURFEW_NOMAD_TIMEOUT", "1s")], &["--json"]).await.code(1).json();
        let (verdict, found, remedy) = check(&report, "address");
        assert!(verdict == "failed" && found.contains(words) && !remedy.is_empty(), "{report}");
        assert_eq!(check(&report, "signal path"), ("not_checked", "no answer from Nomad", ""), "{report}");
        assert_eq!((&report["counts"]["failed"], &report["counts"]["not_checked"]), (&json!(1), &json!(11)), "{report}");
    }
}

/// Each time the sentence names what to mend.
pub async fn tls_that_does_not_fit(_: Given) {
    let dir = TempDir::new().unwrap();
    let (right, wrong) = (Authority::new("right"), Authority::new("wrong"));
    let file = |name: &str, pem: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.display().to_string()
    };
    let (right_ca, wrong_ca) = (file("right.pem", &right.pem()), file("wrong.pem", &wrong.pem()));
    let here = right.serve("127.0.0.1", false).await;
    let named = right.serve("server.global.nomad", false).await;
    let mutual = right.serve("127.0.0.1", true).await;
    for (addr, env, words) in [
        (&here.addr, vec![("NOMAD_CACERT", &*wrong_ca)], vec!["not trusted", "NOMAD_CACERT"]),
        (&named.addr, vec![("NOMAD_CACERT", &*right_ca)], vec!["another name", "NOMAD_TLS_SERVER_NAME"]),
        (&mutual.addr, vec![("NOMAD_CACERT", &*right_ca)], vec!["NOMAD_CLIENT_CERT"]),
    ] {
        let report = doctor(addr, &env, &["--json"]).await.code(1).json();
        let (verdict, found, remedy) = check(&report, "tls");
        assert!(verdict == "failed" && words.iter().all(|w| found.contains(w)), "{words:?}: {report}");
        // Which file is in use.
        assert!(remedy.contains(env[0].1) && check(&report, "address").0 == "ok", "{report}");
    }
    // Through the handshake, and then it is no Nomad.
    let name = [("NOMAD_CACERT", &*right_ca), ("NOMAD_TLS_SERVER_NAME", "server.global.nomad")];
    let report = doctor(&named.addr, &name, &["--json"]).await.code(1).json();
    assert!(check(&report, "address").1.contains("not as a Nomad does"), "{report}");
}

pub async fn bad_configuration(_: Given) {
    let ask = async |env: &[(&str, &str)]| doctor("http://127.0.0.1:1", env, &[]).await.code(2);
    ask(&[("NOMAD_CACERT", "/no/such.pem")]).await.says(&["curfew: ", "/no/such.pem"]);
    ask(&[("CURFEW_KILL_TIMEOUT", "20s")]).await.says(&["kill_timeout"]);
    ask(&[("CURFEW_CONFIG", "/no/such.toml")]).await.says(&["/no/such.toml"]);
    assert!(!Path::new("curfew.db").exists(), "it needs no database");
}

pub async fn interrupted(_: Given) {
    let hangs = Fake::hanging().await;
    let mut command = clean(&["doctor".into()], &[("NOMAD_ADDR".into(), hangs.addr.clone())]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().unwrap();
    hangs.asked().await;
    Proc::of(child.id().unwrap().cast_signed()).unwrap().signal(Signal::INT);
    let out = tokio::time::timeout(Duration::from_secs(20), child.wait_with_output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!((out.status.code(), &*said, out.stdout.len()), (Some(1), "curfew: interrupted; nothing was changed\n", 0));
}
