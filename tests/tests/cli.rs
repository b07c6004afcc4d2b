//! The command line with bad input: a sentence with the way out, exit code 1 or 2, never a panic.

use std::io::Write;
use std::time::Duration;

use curfew_tests::cluster::{Cluster, Shape};
use curfew_tests::command::{Ran, clean, curfew};
use curfew_tests::controller::Controller;
use curfew_tests::fake::Fake;
use curfew_tests::free_port;
use curfew_tests::jobs::{POLITE, service, task};
use curfew_tests::lab::unique;
use curfew_tests::run::Given;
use serde_json::json;
use tempfile::{NamedTempFile, TempDir};

fn file(suffix: &str, text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::with_suffix(suffix).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn name(file: &NamedTempFile) -> &str {
    file.path().to_str().unwrap()
}

/// One sentence on standard error, nothing on standard output.
fn one_sentence(ran: &Ran) {
    assert_eq!(ran.stdout, "", "{ran}");
    let lines = ran.stderr.lines().filter(|l| !l.is_empty()).count();
    assert!(ran.stderr.starts_with("curfew: ") && lines <= 3, "{ran}");
}

pub async fn broken_hcl_names_file_line_and_column(given: Given) {
    let lab = given.shared().await;
    let spec = file(".hcl", "job \"x\" {\n  group \"g\" {\n    task \"t\" {\n      driver = \n    }\n  }\n}\n");
    let ran = lab.run(&["job", "run", name(&spec)]).run().await.code(1);
    // Nomad names the place: line 4, where the value is missing.
    let ran = ran.says(&[&format!("{}:4,", name(&spec))]);
    assert_eq!(ran.stdout, "", "{ran}");
    lab.run(&["job", "plan", name(&spec)]).run().await.code(1).says(&[&format!("{}:4,", name(&spec))]);
    let unknown = file(".hcl", "job \"x\" {\n  grupp \"g\" {\n  }\n}\n");
    lab.run(&["job", "run", name(&unknown)]).run().await.code(1).says(&[name(&unknown), "grupp"]);
}

pub async fn unknown_driver(given: Given) {
    let lab = given.shared().await;
    let id = unique("driver");
    let mut job = service(&id, vec![task("t", POLITE)]);
    job["TaskGroups"][0]["Tasks"][0]["Driver"] = json!("quantum");
    // Nomad would take it and never place it.
    for command in ["plan", "run"] {
        let ran = lab.run(&["job", command, "-"]).stdin(job.to_string()).run().await.code(1);
        one_sentence(&ran.says(&["task \"t\"", "quantum", "raw_exec"]));
    }
    lab.stop(&id, &[]).await.code(1).says(&["no job"]);
    job["TaskGroups"][0]["Tasks"][0]["Driver"] = json!("");
    lab.run(&["job", "run", "-"]).stdin(job.to_string()).run().await.code(1).says(&["driver"]);
}

pub async fn not_a_job(given: Given) {
    let lab = given.shared().await;
    for (text, words) in [
        ("{\"hello\": 1}", vec!["not a job"]),
        ("[1, 2]", vec!["not a job"]),
        ("{\"Job\": 7}", vec!["not a job"]),
        ("{\"ID\": \"x\"}", vec!["TaskGroups"]),
        ("{\"ID\": \"x\", \"TaskGroups\": []}", vec!["TaskGroups"]),
        ("{\"ID\": \"x\", ", vec!["not JSON"]),
        ("variable \"x\" {}\n", vec!["job"]),
        ("hello, world", vec![]),
    ] {
        let spec = file(".nomad", text);
        let ran = lab.run(&["job", "run", name(&spec)]).run().await;
        assert!(matches!(ran.code, Some(1 | 2)), "{text}: {ran}");
        let ran = ran.says(&words).says(&[name(&spec)]);
        assert_eq!(ran.stdout, "", "{ran}");
    }
    // Too wrong a value for a field that Curfew reads.
    let mut job = service("odd", vec![task("t", POLITE)]);
    job["TaskGroups"][0]["Tasks"][0]["KillTimeout"] = json!("soon");
    lab.run(&["job", "run", "-"]).stdin(job.to_string()).run().await.code(1).says(&["kill_timeout", "soon"]);
}

pub async fn no_file_an_empty_file_a_folder(_: Given) {
    let missing = curfew(["job", "run", "/no/such/file.hcl"]).run().await.code(1).says(&["/no/such/file.hcl", "cannot be read"]);
    one_sentence(&missing);
    let empty = file(".hcl", " \n\n");
    let ran = curfew(["job", "run", name(&empty)]).run().await.code(2).says(&[name(&empty), "is empty"]);
    one_sentence(&ran);
    let ran = curfew(["job", "run", "-"]).stdin("").run().await.code(2).says(&["standard input is empty"]);
    one_sentence(&ran);
    let folder = TempDir::new().unwrap();
    let ran = curfew(["job", "run", folder.path().to_str().unwrap()]).run().await.code(1).says(&["cannot be read"]);
    one_sentence(&ran);
    let binary = NamedTempFile::new().unwrap();
    std::fs::write(binary.path(), [0xff, 0xfe, 0x00, 0x80]).unwrap();
    one_sentence(&curfew(["job", "run", name(&binary)]).run().await.code(1).says(&[name(&binary)]));
}

pub async fn a_duration_without_a_unit(_: Given) {
    let ran = curfew(["job", "stop", "x", "--stop-timeout", "5"]).run().await.code(2);
    ran.says(&["--stop-timeout", "no unit", "30s"]);
    curfew(["job", "stop", "x", "--stop-timeout", "-5s"]).run().await.code(2);
    curfew(["job", "stop", "x", "--stop-timeout=-5s"]).run().await.code(2).says(&["negative"]);
    curfew(["job", "stop", "x", "--stop-timeout", "soon"]).run().await.code(2).says(&["soon"]);
    curfew(["job", "stop", "x", "--wait", "--detach"]).run().await.code(2);
    curfew(["job", "stop"]).run().await.code(2);
    curfew(["no-such-command"]).run().await.code(2);
    curfew(["op", "show", "not-an-id"]).run().await.code(2);
    curfew(["op", "list", "--state", "asleep"]).run().await.code(2).says(&["asleep", "succeeded"]);
    curfew(["op", "list", "--kind", "dance"]).run().await.code(2).says(&["dance", "stop"]);
}

pub async fn no_controller_or_something_else(_: Given) {
    for args in [&["job", "stop", "x"][..], &["op", "list"], &["audit"], &["status"], &["job", "run", "-"]] {
        let nobody = format!("http://127.0.0.1:{}", free_port());
        let ask = |addr: &str| curfew(args.iter().copied()).env("CURFEW_ADDR", addr).stdin("job \"x\" {}").run();
        one_sentence(&ask(&nobody).await.code(1).says(&["no controller answers", &nobody, "curfew serve"]));
        for nonsense in ["nonsense://", "http://", "ftp://127.0.0.1", "http://a b"] {
            one_sentence(&ask(nonsense).await.code(2).says(&["CURFEW_ADDR", "http://127.0.0.1:4690"]));
        }
        for fake in [Fake::web_site().await, Fake::other_api().await, Fake::forbidding().await] {
            one_sentence(&ask(&fake.addr).await.code(1).says(&["not as a Curfew controller", &fake.addr]));
        }
    }
    let elsewhere = Fake::web_site().await;
    curfew(["--addr", &elsewhere.addr, "status"]).run().await.code(1).says(&["--addr"]);
}

fn serve(dir: &TempDir) -> Vec<String> {
    let database = format!("sqlite:{}", dir.path().join("x.db").display());
    ["serve", "--database", &database, "--listen", &format!("127.0.0.1:{}", free_port())].map(String::from).into()
}

pub async fn nomad_is_not_there(_: Given) {
    let dir = TempDir::new().unwrap();
    let ask = |addr: &str| curfew(serve(&dir)).env("NOMAD_ADDR", addr).within(Duration::from_secs(40)).run();
    let nobody = format!("http://127.0.0.1:{}", free_port());
    one_sentence(&ask(&nobody).await.code(1).says(&["NOMAD_ADDR", &nobody, "refused"]));
    one_sentence(&ask("http://no-such-host.invalid:4646").await.code(1).says(&["NOMAD_ADDR", "no-such-host.invalid"]));
    for nonsense in ["nonsense", "ftp://127.0.0.1:4646", "http://"] {
        one_sentence(&ask(nonsense).await.code(2).says(&["NOMAD_ADDR", "http://127.0.0.1:4646"]));
    }
    for fake in [Fake::web_site().await, Fake::other_api().await] {
        one_sentence(&ask(&fake.addr).await.code(1).says(&["not as a Nomad", &fake.addr]));
    }
    let hangs = Fake::hanging().await;
    one_sentence(&ask(&hangs.addr).await.code(1).says(&[&hangs.addr]));
}

pub async fn the_token_is_wrong(given: Given) {
    let dir = TempDir::new().unwrap();
    let ask = |addr: &str| curfew(serve(&dir)).env("NOMAD_ADDR", addr).env("NOMAD_TOKEN", "wrong").run();
    let fake = Fake::forbidding().await;
    one_sentence(&ask(&fake.addr).await.code(1).says(&["Permission denied", "NOMAD_TOKEN"]));
    let locked = Cluster::start(given.kind, &Shape { nodes: 1, acl: true, ..Shape::default() }).await;
    let ran = curfew(serve(&dir)).env("NOMAD_ADDR", locked.addr()).run().await.code(1).says(&["NOMAD_TOKEN"]);
    one_sentence(&ran);
    one_sentence(&ask(locked.addr()).await.code(1).says(&["NOMAD_TOKEN"]));
}

pub async fn the_configuration_is_wrong(_: Given) {
    let typo = file(".toml", "job_stop_timout = \"3s\"\n");
    let ran = curfew(["serve", "--config", name(&typo)]).run().await.code(2);
    one_sentence(&ran.says(&[name(&typo), "job_stop_timout", "job_stop_timeout"]));
    let broken = file(".toml", "workers = \n");
    curfew(["serve", "--config", name(&broken)]).run().await.code(2).says(&[name(&broken)]);
    let unit = file(".toml", "job_stop_timeout = \"3\"\n");
    curfew(["serve", "--config", name(&unit)]).run().await.code(2).says(&["unit"]);
    curfew(["serve", "--config", "/no/such.toml"]).run().await.code(2).says(&["/no/such.toml"]);
    for (variable, value) in
        [("CURFEW_JOB_STOP_TIMEOUT", "7"), ("CURFEW_WORKERS", "many"), ("CURFEW_KILL_TIMEOUT", "20s"), ("CURFEW_WORKERS", "0")]
    {
        let key = variable.trim_start_matches("CURFEW_").to_lowercase();
        let ran = curfew(["serve"]).env(variable, value).run().await.code(2);
        assert!(ran.stderr.contains(variable) || ran.stderr.contains(&key), "{ran}");
    }
    curfew(["serve", "--database", "postgres://x"]).env("NOMAD_ADDR", "http://127.0.0.1:1").run().await.says(&["curfew: "]);
}

/// A certificate without its key, one that is none, a client's CA without a certificate.
pub async fn the_certificates_of_dev_are_wrong(_: Given) {
    let no_pem = file(".pem", "not a certificate");
    curfew(["dev", "--tls-cert", name(&no_pem)]).run().await.code(2).says(&["--tls-key"]);
    curfew(["dev", "--tls-ca", name(&no_pem)]).run().await.code(2).says(&["--tls-cert"]);
    let args = ["dev", "--cluster-only", "--port", "0", "--tls-cert", name(&no_pem), "--tls-key", name(&no_pem)];
    curfew(args).run().await.code(1).says(&[name(&no_pem), "PEM"]);
}

/// `| head`: a reader that goes away is no reason to panic.
pub async fn a_closed_standard_output(given: Given) {
    let lab = given.shared().await;
    for args in [&["op", "list", "--json"][..], &["audit"], &["audit", "--json"], &["--help"], &["status"]] {
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        let mut command = clean(&args, &[("CURFEW_ADDR".to_owned(), lab.curfew.addr().to_owned())]);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stdin(std::process::Stdio::null()).stdout(writer).stderr(std::process::Stdio::piped()).kill_on_drop(true);
        let out = tokio::time::timeout(Duration::from_secs(30), command.output()).await.unwrap().unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(!stderr.contains("panicked") && out.status.code().is_some(), "{args:?}: {:?} {stderr}", out.status);
    }
}

pub async fn a_second_controller_on_the_same_port(given: Given) {
    let lab = given.shared().await;
    let dir = TempDir::new().unwrap();
    let database = format!("sqlite:{}", dir.path().join("x.db").display());
    let listen = lab.curfew.addr().trim_start_matches("http://").to_owned();
    let ran = curfew(["serve", "--database", &database, "--listen", &listen]).env("NOMAD_ADDR", lab.cluster.addr()).run().await;
    one_sentence(&ran.code(1).says(&["cannot listen", &listen, "--listen"]));
}

pub async fn a_controller_that_is_ready_says_who_it_is(given: Given) {
    let lab = given.shared().await;
    let status = lab.run(&["status", "--json"]).run().await.code(0).json();
    assert_eq!((&status["service"], &status["phase"]), (&json!("curfew"), &json!("running")), "{status}");
    assert_eq!(status["nomad_address"], lab.cluster.addr(), "{status}");
    lab.run(&["op", "show", "01a1fd8a-a6f7-79d1-a321-1cd1668f28a8"]).run().await.code(1).says(&["no operation"]);
    let fresh = Controller::start(lab.cluster.addr(), &[]).await;
    let ran = fresh.curfew(["op", "list"]).run().await.code(0).says(&["no operations"]);
    assert_eq!(ran.stdout, "");
}
