//! What reaches Nomad: the author's job, unknown fields and all, with Curfew's changes and no others.

use std::io::Write;

use curfew_core::operation::State;
use curfew_tests::jobs::{POLITE, service, task, with};
use curfew_tests::lab::{Lab, unique};
use curfew_tests::run::Given;
use serde_json::{Value, json};

/// A job with something at every level that no Nomad and no Curfew knows.
fn odd(id: &str) -> Value {
    let odd = json!({ "FutureField": { "Deep": [1, 2.5, "three", null, { "Four": true }] }, "futureLower": "kept" });
    let mut job = service(id, vec![with(task("t", POLITE), odd.clone())]);
    job["TaskGroups"][0] = with(job["TaskGroups"][0].take(), odd.clone());
    job["Meta"] = json!({ "owner": "games", "größe": "klein" });
    with(job, odd)
}

/// The job in the last registration that Nomad got.
fn registered(lab: &Lab, id: &str) -> Value {
    let mut all = lab.proxy().seen("PUT", "/v1/jobs");
    all.extend(lab.proxy().seen("POST", "/v1/jobs"));
    all.retain(|s| s.body["Job"]["ID"] == id && !s.path.contains("plan"));
    all.pop().unwrap_or_else(|| panic!("no registration of {id}")).body["Job"].take()
}

/// What of `sent` differs in `got`; fields that only `got` has are changes too.
fn changes(sent: &Value, got: &Value, path: &str, out: &mut Vec<String>) {
    match (sent, got) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
                let (x, y) = (a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null));
                changes(x, y, &format!("{path}.{key}"), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().for_each(|(i, (x, y))| changes(x, y, &format!("{path}.{i}"), out));
        }
        (a, b) if a == b => {}
        _ => out.push(path.trim_start_matches('.').to_owned()),
    }
}

#[track_caller]
fn only_ours(sent: &Value, got: &Value) {
    let mut found = vec![];
    changes(sent, got, "", &mut found);
    found.sort();
    found.dedup();
    let ours = [
        "Meta.curfew_managed",
        "Meta.curfew_operation",
        "TaskGroups.0.Meta",
        "TaskGroups.0.Meta.curfew_progress_deadline",
        "TaskGroups.0.Tasks.0.KillSignal",
        "TaskGroups.0.Tasks.0.KillTimeout",
        "TaskGroups.0.Tasks.0.Meta",
        "TaskGroups.0.Update",
        "TaskGroups.0.Update.ProgressDeadline",
    ];
    let others: Vec<_> = found.iter().filter(|f| !ours.contains(&f.as_str())).collect();
    assert!(others.is_empty(), "changed besides Curfew's own: {others:?}\nsent {sent}\ngot {got}");
    assert!(found.iter().any(|f| f.ends_with("KillTimeout")), "{found:?}");
}

/// In each of the ways to hand it over.
pub async fn unknown_fields_reach_nomad_unchanged(given: Given) {
    let lab = given.own().await;
    let id = unique("odd");
    let job = odd(&id);
    let submit = async |args: &[&str], stdin: String| {
        let ran = lab.run(args).stdin(stdin).run().await.code(0);
        assert_eq!(ran.operation().state, State::Succeeded, "{ran}");
        only_ours(&job, &registered(&lab, &id));
    };
    submit(&["job", "run", "-", "--json"], job.to_string()).await;
    submit(&["job", "run", "-", "--json"], json!({ "Job": job }).to_string()).await;
    let mut file = tempfile::NamedTempFile::with_suffix(".json").unwrap();
    write!(file, "\n\n  {job:#}").unwrap();
    submit(&["job", "run", file.path().to_str().unwrap(), "--json"], String::new()).await;
    lab.stop(&id, &["--stop-timeout", "5s"]).await.code(0);
}

const HCL: &str = r#"
variable "unused" {
  default = "x"
}
job "NAME" {
  datacenters = ["*"]
  type        = "service"
  group "g" {
    task "t" {
      driver       = "raw_exec"
      kill_timeout = "7s"
      config {
        command = "/bin/sh"
        args    = ["-c", "trap 'exit 0' TERM; sleep 3600 & wait"]
      }
      resources {
        cpu    = 10
        memory = 10
      }
    }
  }
}
"#;

pub async fn hcl_is_parsed_by_nomad_and_the_authors_timeout_is_kept(given: Given) {
    let lab = given.own().await;
    let id = unique("hcl");
    let text = HCL.replace("variable \"unused\" {\n  default = \"x\"\n}\n", "").replace("NAME", &id);
    lab.run(&["job", "run", "-"]).stdin(text.clone()).run().await.code(0);
    let got = registered(&lab, &id);
    let task = &got["TaskGroups"][0]["Tasks"][0];
    assert_eq!(task["Meta"]["curfew_stop_timeout"], "7s", "{task}");
    assert_eq!(task["KillTimeout"], json!(86_400_000_000_000_u64), "{task}");
    assert_eq!(task["KillSignal"], "SIGTERM", "{task}");
    assert_eq!(got["Meta"]["curfew_managed"], "true", "{got}");
    // The plan shows exactly that, and changes nothing.
    let before = lab.proxy().seen("PUT", "/v1/jobs").len();
    let plan = lab.run(&["job", "plan", "-"]).stdin(text).run().await.code(0);
    for part in ["kill_timeout", "7s", "24h", "SIGTERM", "curfew_stop_timeout"] {
        assert!(plan.stdout.contains(part), "no {part}: {plan}");
    }
    let after = lab.proxy().seen("PUT", "/v1/jobs");
    assert!(after[before..].iter().all(|s| s.path.contains("parse") || s.path.contains("plan")), "{after:?}");
    lab.stop(&id, &["--stop-timeout", "5s"]).await.code(0);
}

/// Registered again as it is, a live job keeps its allocations: Curfew's own marks do not change from one submit to the next.
pub async fn the_same_spec_again_restarts_nothing(given: Given) {
    let lab = given.shared().await;
    let id = unique("same");
    let job = service(&id, vec![task("t", POLITE)]);
    let first = lab.start(&job).await;
    lab.submit(&job).await;
    let again = lab.running(&id).await;
    assert_eq!((again.alloc, again.tasks), (first.alloc, first.tasks));
    assert_eq!(lab.cluster.api.allocations(&id).await.unwrap().len(), 1);
    lab.stop(&id, &["--stop-timeout", "5s"]).await.code(0);
}

/// Each poller of the repository runs. The gc's own jobspec has a scenario with the others of the gc.
pub async fn the_jobspecs_of_the_repository(given: Given) {
    let lab = given.shared().await;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../jobspecs");
    let specs = std::fs::read_dir(folder).unwrap().flatten().map(|e| e.path());
    let mut specs: Vec<_> =
        specs.filter(|p| p.extension().is_some_and(|e| e == "hcl") && !p.ends_with("job-gc.nomad.hcl")).collect();
    specs.sort();
    assert!(!specs.is_empty());
    let mut jobs = std::collections::BTreeSet::new();
    for spec in specs {
        let ran = lab.run(&["job", "run", spec.to_str().unwrap(), "--json"]).run().await.code(0);
        jobs.insert(ran.operation().target.name().to_owned());
    }
    for job in jobs {
        lab.running(&job).await;
        lab.stop(&job, &["--stop-timeout", "2s"]).await.code(0);
    }
}
