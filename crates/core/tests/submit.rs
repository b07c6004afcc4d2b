//! The submit transform: what it changes, what it leaves, what it refuses.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use curfew_core::config::Config;
use curfew_core::spec::{JobSpec, META_OPERATION, META_PROGRESS_DEADLINE, META_STOP_TIMEOUT};
use curfew_core::submit::{Submission, SubmitPolicy, read_spec_json, transform};
use curfew_core::{JobKey, Namespace, OpId, TaskName, Timestamp, duration};
use proptest::prelude::*;
use serde_json::{Value, json};

const S: u64 = 1_000_000_000;
const H: u64 = 3600 * S;

fn policy() -> SubmitPolicy {
    SubmitPolicy::from(&Config::default())
}

fn op() -> OpId {
    OpId::from(uuid::Uuid::from_u128(7))
}

fn submit(job: Value) -> Submission {
    transform(job, &policy(), op(), &Namespace::default()).unwrap()
}

fn refusal(job: Value) -> String {
    transform(job, &policy(), op(), &Namespace::default()).unwrap_err().to_string()
}

fn job(kind: &str, task: Value) -> Value {
    json!({ "ID": "j", "Type": kind, "TaskGroups": [{ "Name": "g", "Tasks": [task] }] })
}

fn task(extra: Value) -> Value {
    let mut task = json!({ "Name": "t", "Driver": "raw_exec" });
    task.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    task
}

fn first_task(s: &Submission) -> &Value {
    &s.job["TaskGroups"][0]["Tasks"][0]
}

fn paths(s: &Submission) -> Vec<&str> {
    s.changes.iter().map(|c| c.path.as_str()).collect()
}

#[test]
fn a_written_kill_timeout_becomes_the_stop_timeout() {
    let s = submit(job("batch", task(json!({ "KillTimeout": 2 * S, "Meta": { "own": "x" } }))));
    let t = first_task(&s);
    assert_eq!(t["KillTimeout"], 24 * H);
    assert_eq!(t["KillSignal"], "SIGTERM");
    assert_eq!(t["Meta"], json!({ "own": "x", META_STOP_TIMEOUT: "2s" }));
    assert_eq!(s.job["Meta"], json!({ "curfew_managed": "true", META_OPERATION: op().to_string() }));
    assert_eq!(
        paths(&s),
        [
            "group \"g\" / task \"t\" / meta curfew_stop_timeout",
            "group \"g\" / task \"t\" / kill_timeout",
            "group \"g\" / task \"t\" / kill_signal",
            "meta curfew_managed",
            "meta curfew_operation"
        ]
    );
    assert_eq!((s.changes[1].from.as_str(), s.changes[1].to.as_str()), ("2s", "24h"));
    assert!(s.warnings.is_empty());
    let spec = JobSpec::from_json(&s.job);
    assert!(spec.managed);
    assert_eq!(spec.task("g", &TaskName::from("t")).unwrap().stop_timeout, Some(Duration::from_secs(2)));
}

#[test]
fn a_task_without_kill_timeout_gets_no_stop_timeout_of_its_own_not_even_the_second_time() {
    for absent in [json!({}), json!({ "KillTimeout": null })] {
        let s = submit(job("batch", task(absent)));
        assert_eq!(first_task(&s)["Meta"], Value::Null);
        assert_eq!(first_task(&s)["KillTimeout"], 24 * H);
        assert_eq!(s.changes[0].from, "not set (5s by default)");
        assert!(s.changes[0].why.contains("JOB_STOP_TIMEOUT (30s)"), "{}", s.changes[0].why);
        let again = submit(s.job.clone());
        assert_eq!((again.job, again.changes), (s.job.clone(), vec![]));
        // Nor when KILL_TIMEOUT was raised in between.
        let raised = SubmitPolicy { kill_timeout: Duration::from_secs(48 * 3600), ..policy() };
        let again = transform(s.job, &raised, op(), &Namespace::default()).unwrap();
        assert_eq!((first_task(&again)["Meta"].clone(), first_task(&again)["KillTimeout"].clone()), (Value::Null, json!(48 * H)));
    }
}

#[test]
fn an_explicit_stop_timeout_wins_and_must_parse() {
    let s = submit(job("batch", task(json!({ "KillTimeout": 2 * S, "Meta": { META_STOP_TIMEOUT: "1m" } }))));
    assert_eq!(first_task(&s)["Meta"][META_STOP_TIMEOUT], "1m");
    let e = refusal(job("batch", task(json!({ "Meta": { META_STOP_TIMEOUT: "5" } }))));
    assert!(e.starts_with("group \"g\" / task \"t\": meta curfew_stop_timeout \"5\" is not a duration: it has no unit"), "{e}");
}

#[test]
fn durations_come_as_nanoseconds_or_as_gos_text() {
    for (written, kept) in [
        (json!("30s"), "30s"),
        (json!("1.5h"), "1h 30m"),
        (json!("1h0m5s"), "1h 5s"),
        (json!(0), "0s"),
        (json!("250ms"), "250ms"),
    ] {
        let s = submit(job("batch", task(json!({ "KillTimeout": written }))));
        assert_eq!(first_task(&s)["Meta"][META_STOP_TIMEOUT], kept);
        assert!(duration::parse(kept).is_ok());
    }
    for (bad, why) in [
        (json!(-5), "negative"),
        (json!("soon"), "not a duration"),
        (json!("5"), "not a duration"),
        (json!(1.5), "whole"),
        (json!([]), "neither"),
    ] {
        let e = refusal(job("batch", task(json!({ "KillTimeout": bad }))));
        assert!(e.starts_with("group \"g\" / task \"t\": kill_timeout is") && e.contains(why), "{e}");
    }
}

#[test]
fn a_longer_kill_timeout_is_kept_and_said() {
    let s = submit(job("batch", task(json!({ "KillTimeout": 72 * H }))));
    assert_eq!(
        (first_task(&s)["KillTimeout"].clone(), first_task(&s)["Meta"][META_STOP_TIMEOUT].clone()),
        (json!(72 * H), json!("72h"))
    );
    assert!(s.warnings[0].contains("longer than KILL_TIMEOUT (24h)"), "{}", s.warnings[0]);
    // Nomad must not be faster than the stop timeout that the author named in meta.
    let s = submit(job("batch", task(json!({ "Meta": { META_STOP_TIMEOUT: "30h" } }))));
    assert_eq!(first_task(&s)["KillTimeout"], 30 * H);
}

#[test]
fn a_set_signal_stays_and_an_empty_one_does_not() {
    assert_eq!(first_task(&submit(job("batch", task(json!({ "KillSignal": "SIGQUIT" })))))["KillSignal"], "SIGQUIT");
    assert_eq!(first_task(&submit(job("batch", task(json!({ "KillSignal": "" })))))["KillSignal"], "SIGTERM");
    let s = submit(job("batch", task(json!({ "Driver": "docker" }))));
    assert!(s.warnings[0].contains("STOPSIGNAL"));
}

#[test]
fn a_driver_without_signals_is_left_alone() {
    let vm = task(json!({ "Driver": "qemu", "KillTimeout": 60 * S, "Meta": null }));
    let s = submit(job("service", vm.clone()));
    assert_eq!(first_task(&s), &vm);
    assert_eq!(s.job["TaskGroups"][0]["Update"], Value::Null);
    assert!(s.warnings[0].contains("qemu takes no signals") && s.warnings[0].contains("(1m)"), "{}", s.warnings[0]);
}

fn service(job_update: Value, group_update: Value) -> Value {
    json!({ "ID": "j", "TaskGroups": [{ "Name": "g", "Update": group_update, "Tasks": [task(json!({}))] }], "Update": job_update })
}

#[test]
fn the_progress_deadline_is_kept_and_raised_where_it_takes_effect() {
    let cases = [
        // job, group, kept, group's update afterwards
        (Value::Null, Value::Null, Some("10m"), json!({ "ProgressDeadline": 25 * H })),
        (json!({}), Value::Null, Some("10m"), json!({ "ProgressDeadline": 25 * H })),
        (json!({ "ProgressDeadline": 360 * S, "Canary": 1 }), Value::Null, Some("6m"), json!({ "ProgressDeadline": 25 * H })),
        (
            json!({ "ProgressDeadline": "6m" }),
            json!({ "ProgressDeadline": 420 * S, "AutoRevert": true }),
            Some("7m"),
            json!({ "ProgressDeadline": 25 * H, "AutoRevert": true }),
        ),
        (
            json!({ "ProgressDeadline": 360 * S }),
            json!({ "ProgressDeadline": null }),
            Some("6m"),
            json!({ "ProgressDeadline": 25 * H }),
        ),
        // Zero has a meaning of its own, wherever it is written.
        (json!({ "ProgressDeadline": 0 }), Value::Null, None, Value::Null),
        (Value::Null, json!({ "ProgressDeadline": 0 }), None, json!({ "ProgressDeadline": 0 })),
        (
            json!({ "ProgressDeadline": 0 }),
            json!({ "ProgressDeadline": 600 * S }),
            Some("10m"),
            json!({ "ProgressDeadline": 25 * H }),
        ),
        // Long enough already: Nomad can watch it by itself.
        (Value::Null, json!({ "ProgressDeadline": 48 * H }), None, json!({ "ProgressDeadline": 48 * H })),
        // No deployments, but Nomad's check does not know that.
        (json!({ "MaxParallel": 0 }), Value::Null, None, json!({ "ProgressDeadline": 25 * H })),
        (
            json!({ "MaxParallel": 0 }),
            json!({ "MaxParallel": 2 }),
            Some("10m"),
            json!({ "MaxParallel": 2, "ProgressDeadline": 25 * H }),
        ),
        // All zero: Nomad hands it to no group.
        (
            json!({ "Stagger": 0, "MaxParallel": 0, "HealthCheck": "", "MinHealthyTime": 0, "HealthyDeadline": 0, "ProgressDeadline": 0, "AutoRevert": false }),
            Value::Null,
            None,
            Value::Null,
        ),
    ];
    for (job_update, group_update, kept, after) in cases {
        let s = submit(service(job_update.clone(), group_update.clone()));
        let group = &s.job["TaskGroups"][0];
        let case = format!("{job_update} {group_update}");
        assert_eq!(s.job["Update"], job_update, "{case}");
        assert_eq!(group["Update"], after, "{case}");
        assert_eq!(group["Meta"][META_PROGRESS_DEADLINE].as_str(), kept, "{case}");
        let again = submit(s.job.clone());
        assert_eq!((again.job, again.changes), (s.job, vec![]), "{case}");
    }
}

#[test]
fn only_service_jobs_need_a_progress_deadline() {
    for kind in ["batch", "system", "sysbatch"] {
        assert_eq!(submit(job(kind, task(json!({})))).job["TaskGroups"][0]["Update"], Value::Null);
    }
    assert_eq!(submit(job("", task(json!({})))).job["TaskGroups"][0]["Update"]["ProgressDeadline"], 25 * H);
}

#[test]
fn what_nomad_would_refuse_stays_refused() {
    let e = refusal(service(Value::Null, json!({ "ProgressDeadline": 120 * S })));
    assert!(e.starts_with("group \"g\": healthy_deadline (5m) must be shorter than progress_deadline (2m)"), "{e}");
    let mut spec = service(Value::Null, Value::Null);
    spec["TaskGroups"][0]["Meta"] = json!({ META_PROGRESS_DEADLINE: "often" });
    assert!(refusal(spec).contains("meta curfew_progress_deadline \"often\" is not a duration"));
}

#[test]
fn the_key_is_the_jobs_own_namespace_or_the_default_never_the_region() {
    let spec = |ns: Value| json!({ "ID": "a/b.ü", "Region": "eu", "Namespace": ns, "TaskGroups": [{}] });
    let key = |ns| transform(spec(ns), &policy(), op(), &Namespace::from("games")).unwrap();
    assert_eq!(key(json!("own")).key, JobKey::new("own", "a/b.ü"));
    for none in [Value::Null, json!("")] {
        let s = key(none.clone());
        assert_eq!((s.key, s.job["Namespace"].clone()), (JobKey::new("games", "a/b.ü"), none));
    }
}

#[test]
fn the_operation_of_a_live_job_is_the_callers_to_keep() {
    let first = submit(job("batch", task(json!({}))));
    let other = OpId::new(Timestamp::from_millis(1));
    let s = transform(first.job.clone(), &policy(), other, &Namespace::default()).unwrap();
    assert_eq!(paths(&s), ["meta curfew_operation"]);
    assert_eq!((s.changes[0].from.clone(), s.changes[0].to.clone()), (op().to_string(), other.to_string()));
}

#[test]
fn both_forms_of_json_and_what_is_no_job() {
    let bare = r#"{"ID":"j","TaskGroups":[{"Name":"g"}]}"#;
    assert_eq!(read_spec_json(bare).unwrap(), read_spec_json(&format!(r#"{{"Job":{bare}}}"#)).unwrap());
    for (text, why) in [
        ("{", "the specification is not JSON: EOF while parsing an object at line 1 column 1"),
        ("[1]", "this is not a job: it is not a JSON object"),
        (r#"{"Job":null}"#, "this is not a job: it is not a JSON object"),
        (r#"{"a":1}"#, "this is not a job: it has no \"ID\""),
        (r#"{"ID":""}"#, "this is not a job: it has no \"ID\""),
        (r#"{"ID":"j"}"#, "this is not a job: \"j\" has no \"TaskGroups\""),
        (r#"{"ID":"j","TaskGroups":[]}"#, "this is not a job: \"j\" has no \"TaskGroups\""),
        (r#"{"id":"j","TaskGroups":[{}]}"#, "the job: write \"ID\" instead of \"id\""),
    ] {
        assert_eq!(read_spec_json(text).unwrap_err().to_string(), why);
    }
}

#[test]
fn another_spelling_of_a_field_cannot_slip_past() {
    let e = refusal(job("batch", task(json!({ "killTimeout": 5 }))));
    assert_eq!(e, "group \"g\" / task \"t\": write \"KillTimeout\" instead of \"killTimeout\"");
}

#[test]
fn shapes_that_are_none_are_refused_with_their_place() {
    assert_eq!(refusal(json!({ "ID": "j", "TaskGroups": [7] })), "group 1: it is not an object");
    assert_eq!(refusal(json!({ "ID": "j", "TaskGroups": [{ "Tasks": [7] }] })), "group 1 / task 1: it is not an object");
    assert_eq!(
        refusal(job("batch", task(json!({ "Meta": [], "KillTimeout": 5 })))),
        "group \"g\" / task \"t\": \"Meta\" is not an object"
    );
}

/// The job without everything that the transform may touch.
fn untouched(mut job: Value) -> Value {
    fn drop_meta(v: &mut Value, names: &[&str]) {
        let Some(o) = v.as_object_mut() else { return };
        if let Some(meta) = o.get_mut("Meta").and_then(Value::as_object_mut) {
            meta.retain(|k, _| !names.contains(&k.as_str()));
        }
        if o.get("Meta").is_none_or(|m| m.is_null() || m == &json!({})) {
            o.remove("Meta");
        }
    }
    drop_meta(&mut job, &["curfew_managed", META_OPERATION]);
    for g in job["TaskGroups"].as_array_mut().unwrap() {
        drop_meta(g, &[META_PROGRESS_DEADLINE]);
        let g = g.as_object_mut().unwrap();
        if let Some(u) = g.get_mut("Update").and_then(Value::as_object_mut) {
            u.remove("ProgressDeadline");
        }
        if g.get("Update").is_none_or(|u| u.is_null() || u == &json!({})) {
            g.remove("Update");
        }
        for t in g["Tasks"].as_array_mut().unwrap() {
            drop_meta(t, &[META_STOP_TIMEOUT]);
            let t = t.as_object_mut().unwrap();
            t.remove("KillTimeout");
            t.remove("KillSignal");
        }
    }
    job
}

fn some_duration() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        (0u64..100 * H).prop_map(Value::from),
        (0u64..200_000).prop_map(|s| json!(format!("{s}s"))),
        (0u64..90, 0u64..60).prop_map(|(h, m)| json!(format!("{h}h{m}m"))),
    ]
}

fn some_meta() -> impl Strategy<Value = Value> {
    prop_oneof![Just(Value::Null), Just(json!({})), "[a-z]{1,6}".prop_map(|v| json!({ "own": v, "NOMAD": "x" }))]
}

fn some_update() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        (some_duration(), prop_oneof![Just(Value::Null), Just(json!(0)), Just(json!(3))], any::<bool>()).prop_map(|(p, n, revert)| {
            json!({ "ProgressDeadline": p, "HealthyDeadline": 0, "MaxParallel": n, "AutoRevert": revert, "Later": { "x": [1] } })
        }),
    ]
}

prop_compose! {
    fn some_task()(
        kill in some_duration(), meta in some_meta(), signal in prop_oneof![Just(json!(null)), Just(json!("")), Just(json!("SIGINT"))],
        driver in prop_oneof![Just("raw_exec"), Just("qemu"), Just("docker")], unknown in any::<i64>(), name in "[a-zü ]{0,4}",
    ) -> Value {
        json!({ "Name": name, "Driver": driver, "KillTimeout": kill, "Meta": meta, "KillSignal": signal, "NotYetInvented": { "deep": [unknown, null, 1.5] } })
    }
}

prop_compose! {
    fn some_job()(
        groups in prop::collection::vec((some_update(), some_meta(), prop::collection::vec(some_task(), 0..3)), 1..3),
        update in some_update(), meta in some_meta(),
        kind in prop_oneof![Just(json!(null)), Just(json!("service")), Just(json!("batch")), Just(json!("system"))],
    ) -> Value {
        let groups: Vec<Value> = groups.into_iter().map(|(u, m, t)| json!({ "Name": "g", "Update": u, "Meta": m, "Tasks": t, "Count": 3 })).collect();
        json!({
            "ID": "j", "Type": kind, "Update": update, "Meta": meta, "TaskGroups": groups, "Region": "eu",
            "Periodic": { "Spec": "* * * * *" }, "ParameterizedJob": { "Payload": "required" }, "Multiregion": { "Regions": [{ "Name": "x" }] }
        })
    }
}

proptest! {
    #[test]
    fn everything_else_is_untouched_and_a_second_time_changes_nothing(job in some_job()) {
        let Ok(once) = transform(job.clone(), &policy(), op(), &Namespace::default()) else { return Ok(()) };
        prop_assert_eq!(untouched(once.job.clone()), untouched(job.clone()));
        let twice = transform(once.job.clone(), &policy(), op(), &Namespace::default()).unwrap();
        prop_assert_eq!(&twice.job, &once.job);
        prop_assert!(twice.changes.is_empty(), "{:?}", twice.changes);
        // Nomad's own check: no service task outlives its group's progress deadline.
        if !matches!(job["Type"].as_str(), Some("batch" | "system")) {
            for g in once.job["TaskGroups"].as_array().unwrap() {
                let Some(deadline) = g["Update"]["ProgressDeadline"].as_u64().filter(|d| *d > 0) else { continue };
                for t in g["Tasks"].as_array().unwrap().iter().filter(|t| t["Driver"] != "qemu") {
                    prop_assert!(t["KillTimeout"].as_u64().unwrap() <= deadline);
                }
            }
        }
        let raised = once.job["TaskGroups"].as_array().unwrap().iter().flat_map(|g| g["Tasks"].as_array().unwrap());
        for t in raised.filter(|t| t["Driver"] != "qemu") {
            prop_assert!(t["KillTimeout"].as_u64().unwrap() >= 24 * H);
        }
    }
}
