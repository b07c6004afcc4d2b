//! How a new version rolls in, and back.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Api, DAY, SECOND, id, job, mock, of_status};

fn rolling(config: Value, count: usize, progress_deadline: i64) -> Value {
    let mut j = job("j", "service", &[mock("t", config)]);
    j["Update"] = json!({
        "MaxParallel": 1, "MinHealthyTime": 2 * SECOND, "HealthyDeadline": 10 * SECOND, "ProgressDeadline": progress_deadline,
        "AutoRevert": true, "HealthCheck": "task_states",
    });
    j["TaskGroups"][0]["Count"] = json!(count);
    j["TaskGroups"][0]["RestartPolicy"] = json!({"Attempts": 10, "Interval": 600 * SECOND, "Delay": SECOND, "Mode": "delay"});
    j
}

async fn deployment(api: &Api, version: u64, status: &str) -> Value {
    let found = |v: &Value| v.as_array().unwrap().iter().find(|d| d["JobVersion"] == version).cloned();
    let all = api.until("/v1/job/j/deployments", status, |v| found(v).is_some_and(|d| d["Status"] == status)).await;
    found(&all).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_new_version_rolls_in_and_a_flaky_one_rolls_back() {
    let api = Api::start(1).await;
    api.register(&rolling(json!({"v": 1}), 2, 0)).await;
    let d = deployment(&api, 0, "successful").await;
    assert_eq!(d["StatusDescription"], "Deployment completed successfully");
    assert_eq!((&d["TaskGroups"]["g"]["HealthyAllocs"], &d["TaskGroups"]["g"]["DesiredTotal"]), (&json!(2), &json!(2)));
    assert_eq!(api.get("/v1/job/j").await["Stable"], true);
    api.register(&rolling(json!({"v": 2}), 2, 0)).await;
    deployment(&api, 1, "successful").await;
    let all = api.get("/v1/job/j/allocations").await;
    assert_eq!(of_status(&all, "running").iter().filter(|a| a["JobVersion"] == 1).count(), 2);
    assert_eq!(of_status(&all, "complete").iter().filter(|a| a["JobVersion"] == 0).count(), 2);
    // The flaky one never becomes healthy; one of two is replaced, then everything goes back.
    api.register(&rolling(json!({"v": 3, "run_for": "1s", "exit_code": 1}), 2, 0)).await;
    let failed = deployment(&api, 2, "failed").await;
    assert_eq!(failed["StatusDescription"], "Failed due to unhealthy allocations - rolling back to job version 1");
    deployment(&api, 3, "successful").await;
    let all = api.get("/v1/job/j/allocations").await;
    assert_eq!(of_status(&all, "running").iter().filter(|a| a["JobVersion"] == 3).count(), 2);
    assert_eq!(all.as_array().unwrap().iter().filter(|a| a["JobVersion"] == 2).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_long_progress_deadline_never_fails_a_flaky_version() {
    let api = Api::start(1).await;
    api.register(&rolling(json!({"v": 1}), 2, 25 * 3600 * SECOND)).await;
    deployment(&api, 0, "successful").await;
    api.register(&rolling(json!({"v": 2, "run_for": "1s", "exit_code": 1}), 2, 25 * 3600 * SECOND)).await;
    deployment(&api, 1, "running").await;
    api.pass(Duration::from_secs(600)).await;
    let d = deployment(&api, 1, "running").await;
    assert_eq!(d["TaskGroups"]["g"]["UnhealthyAllocs"], 1);
    // Failing it by hand rolls it back; failing it twice is an error.
    let path = format!("/v1/deployment/fail/{}", id(&d));
    let r = api.put(&path, json!({})).await;
    assert_eq!(r["RevertedJobVersion"], 0);
    let d = deployment(&api, 1, "failed").await;
    assert_eq!(d["StatusDescription"], "Deployment marked as failed - rolling back to job version 0");
    deployment(&api, 2, "successful").await;
    let r = api.call("PUT", &path, None).await;
    assert_eq!((r.status, r.text.as_str()), (500, "can't fail terminal deployment"));
    let r = api.call("PUT", "/v1/deployment/fail/00000000-0000-0000-0000-000000000000", None).await;
    assert_eq!((r.status, r.text.as_str()), (500, "deployment not found"));
}

#[tokio::test(start_paused = true)]
async fn a_progress_deadline_fails_what_makes_no_progress() {
    let api = Api::start(1).await;
    let mut j = rolling(json!({"v": 1}), 1, 60 * SECOND);
    j["TaskGroups"][0]["Tasks"][0]["KillTimeout"] = json!(5 * SECOND);
    api.register(&j).await;
    deployment(&api, 0, "successful").await;
    j["TaskGroups"][0]["Tasks"][0]["Config"] = json!({"run_for": "1s", "exit_code": 1});
    api.register(&j).await;
    deployment(&api, 1, "running").await;
    api.pass(Duration::from_secs(60)).await;
    let d = deployment(&api, 1, "failed").await;
    assert_eq!(d["StatusDescription"], "Failed due to progress deadline - rolling back to job version 0");
}

#[tokio::test(start_paused = true)]
async fn an_impolite_old_version_blocks_the_new_one() {
    let api = Api::start(1).await;
    api.register(&rolling(json!({"v": 1, "ignore_sigterm": true}), 2, 0)).await;
    deployment(&api, 0, "successful").await;
    api.register(&rolling(json!({"v": 2}), 2, 0)).await;
    api.pass(Duration::from_secs(3600)).await;
    let all = api.get("/v1/job/j/allocations").await;
    let new = all.as_array().unwrap().iter().find(|a| a["JobVersion"] == 1).unwrap().clone();
    assert_eq!(new["ClientStatus"], "pending");
    let old = all.as_array().unwrap().iter().find(|a| a["DesiredStatus"] == "stop").unwrap();
    assert_eq!(
        (&old["ClientStatus"], &old["DesiredDescription"]),
        (&json!("running"), &json!("alloc is being updated due to job update"))
    );
    // A newer version cancels what hangs.
    api.register(&rolling(json!({"v": 3}), 2, 0)).await;
    let d = deployment(&api, 1, "cancelled").await;
    assert_eq!(d["StatusDescription"], "Cancelled due to newer version of job");
    let stopped = api.alloc_until(&id(&new), "stopped", |a| a["DesiredStatus"] == "stop").await;
    assert_eq!(stopped["ClientStatus"], "pending");
    api.signal(&id(old), "t", "SIGKILL").await;
    api.alloc_until(&id(&new), "over", |a| a["ClientStatus"] == "complete").await;
}

#[tokio::test(start_paused = true)]
async fn stopping_the_job_cancels_its_deployment() {
    let api = Api::start(1).await;
    let mut j = rolling(json!({}), 1, 0);
    j["Update"]["MinHealthyTime"] = json!(5 * SECOND);
    api.register(&j).await;
    api.running("j", 1).await;
    api.delete("j").await;
    assert_eq!(deployment(&api, 0, "cancelled").await["StatusDescription"], "Cancelled because job is stopped");
}

#[tokio::test(start_paused = true)]
async fn canaries_wait_for_promotion() {
    let api = Api::start(2).await;
    let mut j = rolling(json!({"v": 1}), 2, 0);
    j["Update"]["Canary"] = json!(1);
    api.register(&j).await;
    deployment(&api, 0, "successful").await;
    j["TaskGroups"][0]["Tasks"][0]["Config"] = json!({"v": 2});
    api.register(&j).await;
    api.running("j", 3).await;
    let d = api
        .until("/v1/job/j/deployment", "canary healthy", |d| d["JobVersion"] == 1 && d["TaskGroups"]["g"]["HealthyAllocs"] == 1)
        .await;
    assert_eq!((&d["TaskGroups"]["g"]["DesiredCanaries"], &d["TaskGroups"]["g"]["Promoted"]), (&json!(1), &json!(false)));
    api.pass(Duration::from_secs(60)).await;
    assert_eq!(deployment(&api, 1, "running").await["TaskGroups"]["g"]["PlacedAllocs"], 1);
    api.put(&format!("/v1/deployment/promote/{}", id(&d)), json!({"DeploymentID": id(&d), "All": true})).await;
    deployment(&api, 1, "successful").await;
    let all = api.get("/v1/job/j/allocations").await;
    let live: Vec<_> = of_status(&all, "running");
    assert_eq!((live.len(), live.iter().filter(|a| a["JobVersion"] == 1).count()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_kill_timeout_of_a_day_is_accepted_with_no_progress_deadline() {
    let api = Api::start(1).await;
    let j = rolling(json!({}), 1, 0);
    assert_eq!(j["TaskGroups"][0]["Tasks"][0]["KillTimeout"], json!(DAY));
    api.register(&j).await;
    api.running("j", 1).await;
}
