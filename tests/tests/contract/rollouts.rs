//! Facts 2, 5 and 17: deployments under a high `kill_timeout`.

use std::time::Duration;

use curfew_tests::jobs::{on as pinned, with};
use curfew_tests::wait::{always, eventually};
use reqwest::Method;
use serde_json::{Value, json};

use crate::kit::{DAY, FLAKY, IMPOLITE, POLITE, group, rolling, service, task, unique};
use crate::on::{On, SOON, brief, id, proc, s};

fn version(id: &str, script: &str, progress: Duration) -> Value {
    rolling(service(id, vec![task("t", script)]), progress)
}

async fn deployments(on: &On, job: &str) -> Result<Vec<Value>, String> {
    let filter = curfew_tests::api::segment(&format!("JobID == \"{job}\""));
    let answer = on.try_call(Method::GET, &format!("/v1/deployments?namespace=*&filter={filter}"), None).await?;
    let mut list = answer.body.as_array().cloned().ok_or(answer.text)?;
    list.sort_by_key(|d| d["JobVersion"].as_u64());
    Ok(list)
}

fn short(list: &[Value]) -> String {
    let line = |d: &Value| format!("v{} {} {}", d["JobVersion"], d["Status"], d["StatusDescription"]);
    list.iter().map(line).collect::<Vec<_>>().join("; ")
}

async fn deployment(on: &On, job: &str, version: u64, status: &str) -> Value {
    eventually(SOON, &format!("deployment of v{version} {status}"), async || {
        let list = deployments(on, job).await?;
        let found = list.iter().find(|d| d["JobVersion"] == version && d["Status"] == status);
        found.cloned().ok_or_else(|| short(&list))
    })
    .await
}

pub async fn progress_deadline_zero_fails_at_the_first_unhealthy_allocation_and_reverts(on: On) {
    let job = unique("revert");
    on.start(&version(&job, POLITE, Duration::ZERO)).await;
    deployment(&on, &job, 0, "successful").await;
    on.register(&version(&job, FLAKY, Duration::ZERO)).await.ok();
    let failed = deployment(&on, &job, 1, "failed").await;
    assert_eq!(failed["StatusDescription"], "Failed due to unhealthy allocations - rolling back to job version 0");
    deployment(&on, &job, 2, "successful").await;
    let now = on.get(&format!("/v1/job/{job}")).await.ok().body;
    assert_eq!(now["TaskGroups"][0]["Tasks"][0]["Config"]["args"][1], POLITE);
}

/// Past its `healthy_deadline` the deployment runs on, and would for 25 hours.
pub async fn a_long_progress_deadline_never_fails_a_flaky_version(on: On) {
    let job = unique("never");
    let policy = json!({ "ReschedulePolicy": { "Attempts": 0, "Unlimited": true, "Delay": 5_000_000_000_u64, "DelayFunction": "constant" } });
    on.start(&group(version(&job, POLITE, DAY + s(3600)), policy.clone())).await;
    deployment(&on, &job, 0, "successful").await;
    on.register(&group(version(&job, FLAKY, DAY + s(3600)), policy)).await.ok();
    deployment(&on, &job, 1, "running").await;
    let unhealthy = async || {
        let all = on.allocs(&job).await?;
        let seen = all.iter().any(|a| a["JobVersion"] == 1 && a["DeploymentStatus"]["Healthy"] == false);
        if seen { Ok(()) } else { Err(brief(&all)) }
    };
    eventually(SOON, "an unhealthy allocation", unhealthy).await;
    always(s(4), "that the deployment runs on", async || {
        let list = deployments(&on, &job).await?;
        if list.last().is_some_and(|d| d["Status"] == "running" && d["JobVersion"] == 1) { Ok(()) } else { Err(short(&list)) }
    })
    .await;
}

/// What is not rescheduled cannot become healthy any more: the deployment fails long before its deadline.
pub async fn without_rescheduling_it_fails_in_spite_of_a_long_progress_deadline(on: On) {
    let job = unique("final");
    on.start(&version(&job, POLITE, DAY + s(3600))).await;
    deployment(&on, &job, 0, "successful").await;
    on.register(&version(&job, FLAKY, DAY + s(3600))).await.ok();
    let failed = deployment(&on, &job, 1, "failed").await;
    assert_eq!(failed["StatusDescription"], "Failed due to unhealthy allocations - rolling back to job version 0");
}

pub async fn the_replacement_waits_for_the_old_allocation(on: On) {
    let job = unique("stuck");
    let alloc = on.start(&version(&job, IMPOLITE, Duration::ZERO)).await;
    deployment(&on, &job, 0, "successful").await;
    let proc = proc(&alloc, "t");
    let next = version(&job, IMPOLITE, Duration::ZERO);
    let next = group(next, json!({ "Tasks": [with(task("t", IMPOLITE), json!({ "Env": { "V": "2" } }))] }));
    on.register(&next).await.ok();
    on.event(id(&alloc), "t", "Killing").await;
    always(s(4), "that the new one waits", async || {
        let all = on.allocs(&job).await?;
        let waits = all.len() == 2 && all[0]["JobVersion"] == 1 && all[0]["ClientStatus"] == "pending";
        if waits && proc.lives() { Ok(()) } else { Err(brief(&all)) }
    })
    .await;
    on.signal(id(&alloc), "SIGKILL", "t").await.ok();
    let new = on.running(&job, 1).await.remove(0);
    assert_eq!(new["JobVersion"], 1);
}

/// On another node it waits as well: the client asks the server about the one before it.
pub async fn the_replacement_waits_on_another_node_too(on: On) {
    let job = unique("stuck-far");
    let of = |node: usize| pinned(version(&job, IMPOLITE, Duration::ZERO), &on.cluster.nodes()[node]);
    let alloc = on.start(&of(0)).await;
    deployment(&on, &job, 0, "successful").await;
    on.register(&of(1)).await.ok();
    on.event(id(&alloc), "t", "Killing").await;
    always(s(4), "that the new one waits", async || {
        let all = on.allocs(&job).await?;
        let waits = all.len() == 2 && all[0]["JobVersion"] == 1 && all[0]["ClientStatus"] == "pending";
        if waits && all[0]["NodeName"] != alloc["NodeName"] { Ok(()) } else { Err(brief(&all)) }
    })
    .await;
    on.signal(id(&alloc), "SIGKILL", "t").await.ok();
    let new = on.running(&job, 1).await.remove(0);
    assert_eq!(new["JobVersion"], 1);
}

pub async fn failing_a_deployment_rolls_it_back(on: On) {
    let job = unique("fail");
    on.start(&version(&job, POLITE, DAY + s(3600))).await;
    deployment(&on, &job, 0, "successful").await;
    on.register(&version(&job, FLAKY, DAY + s(3600))).await.ok();
    let running = deployment(&on, &job, 1, "running").await;
    let path = format!("/v1/deployment/fail/{}", id(&running));
    on.put(&path, &Value::Null).await.ok();
    let one = on.get(&format!("/v1/deployment/{}", id(&running))).await.ok().body;
    assert_eq!((&one["Status"], &one["JobID"]), (&json!("failed"), &json!(job)));
    let failed = deployment(&on, &job, 1, "failed").await;
    assert_eq!(failed["StatusDescription"], "Deployment marked as failed - rolling back to job version 0");
    // Submitted when the version was that Nomad goes back to: so the rollback's is told from somebody's next one.
    let versions = on.get(&format!("/v1/job/{job}/versions")).await.ok().body["Versions"].clone();
    let submitted = |i: usize| versions[i]["SubmitTime"].as_i64().unwrap();
    assert_eq!((&versions[0]["Version"], submitted(0)), (&json!(2), submitted(2)), "{versions}");
    assert!(submitted(1) > submitted(2), "{versions}");
    deployment(&on, &job, 2, "successful").await;
    assert_eq!(on.put(&path, &Value::Null).await.says(), (500, "can't fail terminal deployment"));
}
