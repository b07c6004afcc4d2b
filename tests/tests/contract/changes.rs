//! What changes a job: canaries, promotion, scaling, going back, periodic and dispatched children, plans and refusals.

use curfew_tests::api::segment;
use curfew_tests::jobs::with;
use curfew_tests::wait::eventually;
use reqwest::Method;
use serde_json::{Value, json};

use crate::kit::{FLAKY, POLITE, batch, group, rolling, service, system, task, unique};
use crate::on::{Answer, On, SOON, brief, id, s};

const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

/// A version of a job, healthy after 3 s, with what its update block says besides.
fn version(job: &str, v: u32, count: u32, update: Value) -> Value {
    let spec = rolling(
        service(job, vec![with(task("t", POLITE), json!({ "Env": { "V": v.to_string() }, "KillTimeout": 5_000_000_000_u64 }))]),
        s(120),
    );
    let update = with(with(spec["Update"].clone(), json!({ "AutoRevert": false })), update);
    with(group(spec, json!({ "Count": count })), json!({ "Update": update }))
}

async fn deployment(on: &On, job: &str, version: u64, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(SOON, &format!("the deployment of v{version}"), async || {
        let all = on.get(&format!("/v1/job/{job}/deployments")).await.ok().body;
        let found = all.as_array().into_iter().flatten().find(|d| d["JobVersion"] == version).cloned().unwrap_or_default();
        if wanted(&found) { Ok(found) } else { Err(found.to_string()) }
    })
    .await
}

fn is(status: &'static str) -> impl Fn(&Value) -> bool {
    move |d| d["Status"] == status
}

fn healthy(count: u64) -> impl Fn(&Value) -> bool {
    move |d| d["TaskGroups"]["g"]["HealthyAllocs"] == count
}

/// The first version in place, the second under way with its canaries healthy.
async fn with_canary(on: &On, job: &str) -> Value {
    on.register(&version(job, 0, 2, json!({ "Canary": 1 }))).await.ok();
    deployment(on, job, 0, is("successful")).await;
    on.register(&version(job, 1, 2, json!({ "Canary": 1 }))).await.ok();
    deployment(on, job, 1, healthy(1)).await
}

async fn promote(on: &On, deployment: &str, body: Value) -> Answer {
    on.put(&format!("/v1/deployment/promote/{deployment}"), &body).await
}

fn of_version(all: &[Value], version: u64) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let mut out: Vec<_> =
        all.iter().filter(|a| a["JobVersion"] == version).map(|a| (text(&a["Name"]), text(&a["DesiredStatus"]))).collect();
    out.sort();
    out
}

pub async fn canaries_wait_for_their_promotion(on: On) {
    let job = unique("canary");
    on.register(&version(&job, 0, 2, json!({ "Canary": 1 }))).await.ok();
    deployment(&on, &job, 0, is("successful")).await;
    on.register(&version(&job, 1, 2, json!({ "Canary": 1 }))).await.ok();
    let young = deployment(&on, &job, 1, |d| d["TaskGroups"]["g"]["PlacedAllocs"] == 1).await;
    assert_eq!(young["StatusDescription"], "Deployment is running but requires manual promotion");
    let early = promote(&on, id(&young), json!({ "DeploymentID": young["ID"], "All": true })).await;
    let why = "1 error occurred:\n\t* Task group \"g\" has 0/1 healthy allocations\n\n";
    assert_eq!((early.status, early.text.as_str()), (500, why));
    let d = deployment(&on, &job, 1, healthy(1)).await;
    let all = on.allocs(&job).await.unwrap();
    assert_eq!((of_version(&all, 0).len(), of_version(&all, 1).len()), (2, 1), "{}", brief(&all));
    assert_eq!(promote(&on, id(&d), json!({ "All": true })).await.says(), (400, "DeploymentID must be specified"));
    let other = promote(&on, id(&d), json!({ "DeploymentID": NOBODY, "All": true })).await;
    assert_eq!(other.says(), (400, "Deployment ID does not match"));
    let nobody = promote(&on, NOBODY, json!({ "DeploymentID": NOBODY, "All": true })).await;
    assert_eq!(nobody.says(), (500, "deployment not found"));
    // Neither all nor a group: nothing is promoted, and that is no error.
    promote(&on, id(&d), json!({ "DeploymentID": d["ID"] })).await.ok();
    assert_eq!(deployment(&on, &job, 1, |_| true).await["TaskGroups"]["g"]["Promoted"], false);
    promote(&on, id(&d), json!({ "DeploymentID": d["ID"], "All": true })).await.ok();
    let over = deployment(&on, &job, 1, is("successful")).await;
    assert_eq!(over["StatusDescription"], "Deployment completed successfully");
    let all = on.allocs(&job).await.unwrap();
    let run = |slot: u8| (format!("{job}.g[{slot}]"), "run".to_owned());
    assert_eq!(of_version(&all, 1), [run(0), run(1)], "the canary stays: {}", brief(&all));
    assert!(all.iter().all(|a| a["DeploymentStatus"]["Canary"] != true), "{}", brief(&all));
    let again = promote(&on, id(&d), json!({ "DeploymentID": d["ID"], "All": true })).await;
    assert_eq!(again.says(), (500, "can't promote terminal deployment"));
}

pub async fn a_failed_deployment_ends_its_canaries(on: On) {
    let job = unique("canary-fails");
    let d = with_canary(&on, &job).await;
    let failed = on.put(&format!("/v1/deployment/fail/{}", id(&d)), &json!({})).await.ok().body;
    assert_eq!(failed["RevertedJobVersion"], Value::Null);
    let d = deployment(&on, &job, 1, is("failed")).await;
    assert_eq!(d["StatusDescription"], "Deployment marked as failed");
    eventually(SOON, "the canary to be stopped", async || {
        let all = on.allocs(&job).await?;
        let well = of_version(&all, 1).iter().all(|a| a.1 == "stop") && of_version(&all, 0).iter().all(|a| a.1 == "run");
        if well { Ok(()) } else { Err(brief(&all)) }
    })
    .await;
}

pub async fn canaries_that_promote_themselves(on: On) {
    let job = unique("canary-auto");
    let update = json!({ "Canary": 1, "AutoPromote": true });
    on.register(&version(&job, 0, 1, update.clone())).await.ok();
    deployment(&on, &job, 0, is("successful")).await;
    on.register(&version(&job, 1, 1, update)).await.ok();
    let d = deployment(&on, &job, 1, is("running")).await;
    assert_eq!(d["StatusDescription"], "Deployment is running pending automatic promotion");
    let d = deployment(&on, &job, 1, is("successful")).await;
    assert_eq!(d["TaskGroups"]["g"]["Promoted"], true);
}

pub async fn a_deployment_is_paused_and_resumed(on: On) {
    let job = unique("pause");
    let d = with_canary(&on, &job).await;
    let path = format!("/v1/deployment/pause/{}", id(&d));
    let pause = async |pause: bool| on.put(&path, &json!({ "DeploymentID": d["ID"], "Pause": pause })).await;
    let nameless = on.put(&path, &json!({ "Pause": true })).await;
    assert_eq!(nameless.says(), (400, "DeploymentID must be specified"));
    let other = on.put(&path, &json!({ "DeploymentID": NOBODY, "Pause": true })).await;
    assert_eq!(other.says(), (400, "Deployment ID does not match"));
    pause(true).await.ok();
    let now = deployment(&on, &job, 1, is("paused")).await;
    assert_eq!(now["StatusDescription"], "Deployment is paused");
    pause(false).await.ok();
    deployment(&on, &job, 1, is("running")).await;
    on.put(&format!("/v1/deployment/fail/{}", id(&d)), &json!({})).await.ok();
    assert_eq!(pause(true).await.says(), (500, "can't pause terminal deployment"));
    let nobody = on.put(&format!("/v1/deployment/pause/{NOBODY}"), &json!({ "DeploymentID": NOBODY, "Pause": true })).await;
    assert_eq!(nobody.says(), (500, "deployment not found"));
}

pub async fn without_progress_it_fails_at_its_deadline_and_reverts(on: On) {
    let job = unique("progress");
    let update = json!({ "AutoRevert": true, "ProgressDeadline": 16_000_000_000_u64 });
    on.register(&version(&job, 0, 1, update.clone())).await.ok();
    deployment(&on, &job, 0, is("successful")).await;
    let mut bad = version(&job, 1, 1, update);
    bad["TaskGroups"][0]["Tasks"][0]["Config"]["args"][1] = json!(FLAKY);
    bad["TaskGroups"][0]["ReschedulePolicy"] =
        json!({ "Unlimited": true, "Delay": 5_000_000_000_u64, "DelayFunction": "constant", "MaxDelay": 30_000_000_000_u64 });
    on.register(&bad).await.ok();
    let d = deployment(&on, &job, 1, is("failed")).await;
    assert_eq!(d["StatusDescription"], "Failed due to progress deadline - rolling back to job version 0");
    deployment(&on, &job, 2, is("successful")).await;
    let versions = on.get(&format!("/v1/job/{job}/versions")).await.ok().body;
    let stable: Vec<_> = versions["Versions"].as_array().unwrap().iter().map(|v| (&v["Version"], &v["Stable"])).collect();
    assert_eq!(stable, [(&json!(2), &json!(true)), (&json!(1), &json!(false)), (&json!(0), &json!(true))]);
}

async fn scale(on: &On, job: &str, body: Value) -> Answer {
    on.put(&format!("/v1/job/{job}/scale"), &body).await
}

/// Each is a new version, even with the count that there is; a message is kept without one.
pub async fn scaling(on: On) {
    let job = unique("scale");
    on.register(&version(&job, 0, 1, json!({}))).await.ok();
    deployment(&on, &job, 0, is("successful")).await;
    let wish = |count: Value, message: &str| json!({ "Count": count, "Message": message, "Target": { "Group": "g" } });
    let answer = scale(&on, &job, wish(json!(2), "two")).await.ok().body;
    assert_ne!(answer["EvalID"], "");
    on.running(&job, 2).await;
    deployment(&on, &job, 1, is("successful")).await;
    let words = scale(&on, &job, wish(Value::Null, "only words")).await.ok().body;
    assert_eq!(words["EvalID"], "");
    scale(&on, &job, wish(json!(2), "two again")).await.ok();
    let status = on.get(&format!("/v1/job/{job}/scale")).await.ok().body;
    let events = status["TaskGroups"]["g"]["Events"].as_array().unwrap().clone();
    let told: Vec<_> = events.iter().map(|e| (&e["Message"], &e["Count"], &e["PreviousCount"])).collect();
    let (one, two) = (json!(1), json!(2));
    assert_eq!(
        told,
        [(&json!("two again"), &two, &two), (&json!("only words"), &Value::Null, &two), (&json!("two"), &two, &one)]
    );
    assert_eq!((&status["TaskGroups"]["g"]["Desired"], &status["JobStopped"]), (&two, &json!(false)));
    assert_eq!(on.get(&format!("/v1/job/{job}")).await.ok().body["Version"], 2);
}

pub async fn refused_scaling(on: On) {
    let job = unique("unscaled");
    on.register(&version(&job, 0, 1, json!({}))).await.ok();
    deployment(&on, &job, 0, is("running")).await;
    let refused = async |body: Value| scale(&on, &job, body).await;
    let to = |count: i64| json!({ "Count": count, "Target": { "Group": "g" } });
    assert_eq!(refused(to(2)).await.says(), (400, "job scaling blocked due to active deployment"));
    assert_eq!(refused(json!({})).await.says(), (400, "missing task group name for scaling action"));
    assert_eq!(refused(to(-1)).await.says(), (400, "scaling action count can't be negative"));
    let unknown = refused(json!({ "Count": 2, "Target": { "Group": "x" } })).await;
    assert_eq!(unknown.says(), (400, "task group \"x\" specified for scaling does not exist in job"));
    let other = refused(json!({ "Count": 2, "Target": { "Group": "g", "Job": "x" } })).await;
    assert_eq!(other.says(), (400, "job ID in payload did not match URL"));
    let both = refused(json!({ "Count": 2, "Error": true, "Target": { "Group": "g" } })).await;
    assert_eq!(both.says(), (400, "scaling action should not contain count if error is true"));
    let nobody = unique("nobody");
    let answer = scale(&on, &nobody, to(1)).await;
    assert_eq!((answer.status, answer.text), (404, format!("job {nobody:?} not found")));
    let all = unique("unscaled-system");
    on.register(&system(&all, vec![task("t", POLITE)])).await.ok();
    let twice = scale(&on, &all, to(2)).await;
    // 1.8 scales none of them.
    let says = ["jobs of type \"system\" can only be scaled between 0 and 1", "cannot scale jobs of type \"system\""];
    assert!(twice.status == 400 && says.contains(&twice.text.as_str()), "{twice:?}");
}

pub async fn going_back_to_a_version(on: On) {
    let job = unique("back");
    for v in 0..2 {
        on.register(&version(&job, v, 1, json!({}))).await.ok();
        deployment(&on, &job, u64::from(v), is("successful")).await;
    }
    let body = json!({ "JobID": job, "JobVersion": 0, "EnforcePriorVersion": 1 });
    on.put(&format!("/v1/job/{job}/revert"), &body).await.ok();
    deployment(&on, &job, 2, is("successful")).await;
    let versions = on.get(&format!("/v1/job/{job}/versions?diffs=true")).await.ok().body;
    let env = |v: &Value| v["TaskGroups"][0]["Tasks"][0]["Env"]["V"].clone();
    let told: Vec<Value> = versions["Versions"].as_array().unwrap().iter().map(env).collect();
    assert_eq!(told, ["0", "1", "0"]);
    assert_eq!(versions["Diffs"].as_array().map(Vec::len), Some(2));
}

pub async fn refused_reverts(on: On) {
    let job = unique("no-way-back");
    on.register(&version(&job, 0, 1, json!({}))).await.ok();
    let revert = async |body: Value| on.put(&format!("/v1/job/{job}/revert"), &body).await;
    assert_eq!(revert(json!({})).await.says(), (400, "JobID must be specified"));
    assert_eq!(revert(json!({ "JobID": "x", "JobVersion": 0 })).await.says(), (400, "Job ID does not match"));
    assert_eq!(revert(json!({ "JobID": job, "JobVersion": 0 })).await.says(), (500, "can't revert to current version"));
    let unknown = revert(json!({ "JobID": job, "JobVersion": 9 })).await;
    assert_eq!((unknown.status, unknown.text), (500, format!("job {job:?} in namespace \"default\" at version 9 not found")));
    let stable = on.put(&format!("/v1/job/{job}/stable"), &json!({ "JobID": job, "JobVersion": 9, "Stable": true })).await;
    assert_eq!((stable.status, stable.text), (500, format!("job {job:?} in namespace \"default\" at version 9 not found")));
    let evaluate = async |job: &str, body: Value| on.put(&format!("/v1/job/{job}/evaluate"), &body).await;
    evaluate(&job, json!({ "JobID": job })).await.ok();
    assert_eq!(evaluate(&job, json!({ "JobID": "x" })).await.says(), (400, "JobID not same as job name"));
    let nobody = unique("nobody");
    assert_eq!(evaluate(&nobody, json!({ "JobID": nobody })).await.says(), (500, "job not found"));
    let answer = on.put(&format!("/v1/job/{nobody}/revert"), &json!({ "JobID": nobody, "JobVersion": 0 })).await;
    assert_eq!((answer.status, answer.text), (500, format!("job {nobody:?} not found")));
}

fn periodic(job: &str) -> Value {
    let cron = json!({ "Enabled": true, "SpecType": "cron", "Specs": ["0 0 1 1 *"], "ProhibitOverlap": true, "TimeZone": "UTC" });
    with(batch(job, vec![task("t", POLITE)]), json!({ "Periodic": cron }))
}

/// Nobody asks whether the child before still runs: that is the clock's own rule.
pub async fn a_periodic_job_is_forced(on: On) {
    let job = unique("periodic");
    let registered = on.register(&periodic(&job)).await.ok().body;
    assert_eq!(registered["EvalID"], "");
    assert_eq!(on.get(&format!("/v1/job/{job}")).await.ok().body["Status"], "running");
    let force = async || on.put(&format!("/v1/job/{job}/periodic/force"), &Value::Null).await;
    let children = async || on.get(&format!("/v1/jobs?prefix={}", segment(&format!("{job}/")))).await.ok().body;
    force().await.ok();
    let child = eventually(SOON, "a running child", async || {
        let all = children().await;
        let up = all[0]["Status"] == "running" && all[0]["ParentID"] == job.as_str();
        if up { Ok(id(&all[0]).to_owned()) } else { Err(all.to_string()) }
    })
    .await;
    on.owns(&child);
    let second = child.strip_prefix(&format!("{job}/periodic-")).and_then(|t| t.parse::<i64>().ok());
    assert!(second.is_some_and(|t| t > 1_700_000_000), "{child}");
    let whole = on.get(&format!("/v1/job/{}", segment(&child))).await.ok().body;
    assert_eq!((&whole["Periodic"], &whole["Name"], &whole["Dispatched"]), (&Value::Null, &json!(child), &json!(false)));
    // A second later, with the first still there.
    eventually(SOON, "another child", async || {
        force().await.ok();
        let all = children().await;
        all.as_array().into_iter().flatten().for_each(|c| on.owns(id(c)));
        if all.as_array().is_some_and(|l| l.len() > 1) { Ok(()) } else { Err(all.to_string()) }
    })
    .await;
    on.delete(&job).await.ok();
    assert_eq!(on.get(&format!("/v1/job/{job}")).await.ok().body["Status"], "dead");
    assert!(children().await.as_array().unwrap().iter().all(|c| c["Status"] != "dead"), "children live on");
    let why = format!("force launch for job {job:?} failed: can't force run non-tracked job {job:?} (default)");
    let stopped = force().await;
    assert_eq!((stopped.status, stopped.text), (500, why));
}

pub async fn refused_periodic_jobs(on: On) {
    let job = unique("unperiodic");
    on.register(&service(&job, vec![task("t", POLITE)])).await.ok();
    let force = async |job: &str| on.put(&format!("/v1/job/{job}/periodic/force"), &Value::Null).await;
    assert_eq!(force(&job).await.says(), (500, "can't force launch non-periodic job"));
    assert_eq!(force(&unique("nobody")).await.says(), (500, "job not found"));
    for (key, value, says) in [
        ("Specs", json!(["nonsense"]), "Invalid cron spec \"nonsense\": missing field(s)"),
        ("SpecType", json!("x"), "Unknown periodic specification type \"x\""),
    ] {
        let mut bad = periodic(&unique("unperiodic"));
        bad["Periodic"][key] = value;
        let answer = on.register(&bad).await;
        let whole = format!("1 error occurred:\n\t* 1 error occurred:\n\t* {says}\n\n\n\n");
        assert_eq!((answer.status, answer.text), (500, whole));
    }
}

fn parameterized(job: &str) -> Value {
    let rules = json!({ "Payload": "required", "MetaRequired": ["a"], "MetaOptional": ["b"] });
    with(batch(job, vec![task("t", POLITE)]), json!({ "ParameterizedJob": rules }))
}

pub async fn what_a_dispatch_needs(on: On) {
    let job = unique("dispatch");
    on.register(&parameterized(&job)).await.ok();
    let dispatch = async |body: Value| on.put(&format!("/v1/job/{job}/dispatch"), &body).await;
    let none = dispatch(json!({ "Meta": { "a": "1" } })).await;
    assert_eq!(none.says(), (500, "Payload is not provided but required by parameterized job"));
    let missing = dispatch(json!({ "Payload": "aGk=" })).await;
    assert_eq!(missing.says(), (500, "Dispatch did not provide required meta keys: [a]"));
    let more = dispatch(json!({ "Payload": "aGk=", "Meta": { "a": "1", "z": "2" } })).await;
    assert_eq!(more.says(), (500, "Dispatch request included unpermitted metadata keys: [z]"));
    let bad = dispatch(json!({ "Payload": "*", "Meta": { "a": "1" } })).await;
    assert_eq!(bad.says(), (400, "illegal base64 data at input byte 0"));
    let other = dispatch(json!({ "JobID": "x", "Payload": "aGk=", "Meta": { "a": "1" } })).await;
    assert_eq!(other.says(), (400, "Job ID does not match"));
    let empty = on.call(Method::PUT, &format!("/v1/job/{job}/dispatch"), None).await;
    assert_eq!(empty.says(), (400, "Request body is empty"));
    let nobody = on.put(&format!("/v1/job/{}/dispatch", unique("nobody")), &json!({})).await;
    assert_eq!(nobody.says(), (500, "parameterized job not found"));
    on.delete(&job).await.ok();
    let stopped = dispatch(json!({ "Payload": "aGk=", "Meta": { "a": "1" } })).await;
    assert_eq!((stopped.status, stopped.text), (500, format!("Specified job {job:?} is stopped")));
    let mut maybe = parameterized(&unique("dispatch"));
    maybe["ParameterizedJob"]["Payload"] = json!("maybe");
    let maybe = on.register(&maybe).await;
    assert_eq!((maybe.status, maybe.text.contains("Unknown payload requirement: \"maybe\"")), (500, true), "{maybe:?}");
}

/// Until it is collected.
pub async fn a_token_stands_for_its_child_after_its_end(on: On) {
    let job = unique("token");
    on.register(&parameterized(&job)).await.ok();
    let dispatch = async || {
        let body = json!({ "Payload": "aGk=", "Meta": { "a": "1" } });
        let answer = on.put(&format!("/v1/job/{job}/dispatch?idempotency_token={job}"), &body).await.ok().body;
        let child = answer["DispatchedJobID"].as_str().unwrap().to_owned();
        on.owns(&child);
        (child, answer["EvalID"].as_str().unwrap_or_default().to_owned())
    };
    let (child, eval) = dispatch().await;
    assert_ne!(eval, "");
    on.running(&child, 1).await;
    on.delete(&child).await.ok();
    eventually(SOON, "the child's end", async || {
        let now = on.get(&format!("/v1/job/{}", segment(&child))).await.ok().body;
        if now["Status"] == "dead" { Ok(()) } else { Err(now["Status"].to_string()) }
    })
    .await;
    assert_eq!(dispatch().await, (child, String::new()));
}

pub async fn plans_count_what_is_wanted(on: On) {
    let job = unique("plans");
    let plan = async |spec: &Value| on.put(&format!("/v1/job/{job}/plan"), &json!({ "Job": spec, "Diff": true })).await.ok().body;
    let first = version(&job, 0, 2, json!({}));
    on.register(&first).await.ok();
    deployment(&on, &job, 0, is("successful")).await;
    let counts = |plan: &Value| {
        let g = &plan["Annotations"]["DesiredTGUpdates"]["g"];
        ["Place", "Stop", "InPlaceUpdate", "DestructiveUpdate", "Canary", "Ignore"].map(|k| g[k].as_u64().unwrap_or(99))
    };
    let same = plan(&first).await;
    assert_eq!((counts(&same), &same["Diff"]["Type"]), ([0, 0, 0, 0, 0, 2], &json!("None")));
    assert_eq!(counts(&plan(&version(&job, 1, 2, json!({}))).await), [0, 0, 0, 1, 0, 1]);
    assert_eq!(counts(&plan(&version(&job, 1, 2, json!({ "Canary": 1 }))).await), [0, 0, 0, 0, 1, 2]);
    assert_eq!(counts(&plan(&version(&job, 0, 1, json!({}))).await), [0, 1, 1, 0, 0, 0]);
    let nowhere = json!({ "Constraints": [{ "LTarget": "${node.class}", "Operand": "=", "RTarget": "nope" }] });
    let other = unique("plans");
    let spec = with(version(&other, 0, 3, json!({})), nowhere);
    let blocked = on.put(&format!("/v1/job/{other}/plan"), &json!({ "Job": spec, "Diff": false })).await.ok().body;
    assert_eq!(counts(&blocked), [3, 0, 0, 0, 0, 0], "placed or not");
    assert_eq!(blocked["FailedTGAllocs"]["g"]["CoalescedFailures"], 2);
    on.delete(&job).await.ok();
    let again = eventually(SOON, "nothing to be left", async || {
        let again = plan(&first).await;
        if counts(&again) == [2, 0, 0, 0, 0, 0] { Ok(again) } else { Err(again["Annotations"].to_string()) }
    })
    .await;
    assert_eq!(again["Diff"]["Type"], "Edited", "a stopped job is still there");
}

pub async fn refusals_of_validate(on: On) {
    let spec = version(&unique("validate"), 0, 1, json!({}));
    let first = |spec: Value, update: Value| with(spec.clone(), json!({ "Update": with(spec["Update"].clone(), update) }));
    for (bad, says) in [
        (with(spec.clone(), json!({ "Type": "batch" })), "Job type \"batch\" does not allow update block"),
        (first(spec.clone(), json!({ "AutoPromote": true })), "Auto Promote requires a Canary count greater than zero"),
        (
            first(spec.clone(), json!({ "HealthyDeadline": 200_000_000_000_u64 })),
            "Task group g validation failed: 1 error occurred:\n\t* Healthy deadline must be less than progress deadline: 3m20s > 2m0s",
        ),
        (with(spec.clone(), json!({ "Type": "x" })), "Invalid job type: \"x\""),
        (with(spec.clone(), json!({ "Priority": 500 })), "ob priority must be between [1, 100]"),
        (group(spec.clone(), json!({ "Count": -1 })), "Task group count can't be negative"),
    ] {
        let answer = on.put("/v1/validate/job", &json!({ "Job": bad })).await.ok().body;
        assert!(answer["Error"].as_str().is_some_and(|e| e.contains(says)), "{says}: {answer}");
        let registered = on.put("/v1/jobs", &json!({ "Job": bad })).await;
        assert!(registered.status == 500 && registered.text.contains(says), "{says}: {registered:?}");
    }
    assert_eq!(on.put("/v1/validate/job", &json!({})).await.says(), (400, "Job must be specified"));
}

pub async fn an_allocation_is_stopped_and_restarted(on: On) {
    let job = unique("alloc");
    let alloc = on.start(&version(&job, 0, 1, json!({}))).await;
    let path = format!("/v1/client/allocation/{}/restart", id(&alloc));
    let restart = async |body: Value| on.put(&path, &body).await;
    let unknown = restart(json!({ "TaskName": "x" })).await;
    assert_eq!(unknown.says(), (500, "Could not find task runner for task: x"));
    let both = restart(json!({ "TaskName": "t", "AllTasks": true })).await;
    assert_eq!((both.status, both.text.is_empty()), (500, false));
    let nobody = on.put(&format!("/v1/client/allocation/{NOBODY}/restart"), &json!({})).await;
    assert_eq!((nobody.status, nobody.text), (404, format!("Unknown allocation {NOBODY:?}")));
    restart(json!({ "TaskName": "t" })).await.ok();
    on.until(id(&alloc), "restarted", |a| a["TaskStates"]["t"]["Restarts"] == 1 && a["TaskStates"]["t"]["State"] == "running")
        .await;
    let nobody = on.put(&format!("/v1/allocation/{NOBODY}/stop"), &Value::Null).await;
    assert_eq!(nobody.status, 404, "{nobody:?}");
    on.put(&format!("/v1/allocation/{}/stop", id(&alloc)), &Value::Null).await.ok();
    let over = on.until(id(&alloc), "its end", |a| a["ClientStatus"] == "complete").await;
    assert_eq!((&over["DesiredStatus"], &over["DesiredDescription"]), (&json!("stop"), &json!("alloc is being migrated")));
    let next = on.running(&job, 1).await.remove(0);
    assert_eq!((&next["Name"], id(&next) != id(&alloc)), (&over["Name"], true));
}

/// One stopped by hand is back with the next look at the job, not before.
pub async fn a_system_job_runs_everywhere_once(on: On) {
    let job = unique("system");
    let all = on.start_all(&system(&job, vec![task("t", POLITE)]), 2).await;
    assert_ne!(all[0]["NodeID"], all[1]["NodeID"]);
    assert!(all.iter().all(|a| a["Name"] == format!("{job}.g[0]")), "{}", brief(&all));
    let stopped = on.put(&format!("/v1/allocation/{}/stop", id(&all[0])), &Value::Null).await.ok().body;
    let over = on.until(id(&all[0]), "its end", |a| a["ClientStatus"] == "complete").await;
    assert_eq!(over["DesiredDescription"], "alloc not needed as node is tainted");
    // The stop puts nothing in its place, but any evaluation after it may.
    let now = on.allocs(&job).await.unwrap();
    let placed = now.iter().find(|a| all.iter().all(|old| old["ID"] != a["ID"]) && a["EvalID"] == stopped["EvalID"]);
    assert!(placed.is_none(), "{}", brief(&now));
    on.put(&format!("/v1/job/{job}/evaluate"), &json!({ "JobID": job })).await.ok();
    on.running(&job, 2).await;
}
