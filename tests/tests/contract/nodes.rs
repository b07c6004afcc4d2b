//! Facts 3, 7 and 8: what a node tells, and what becomes of its allocations when its client is away.

use curfew_tests::jobs::{nanos, on as pinned, with};
use serde_json::{Value, json};

use crate::kit::{IMPOLITE, group, service, task, unique};
use crate::on::{On, id, proc, s};

pub async fn the_agent_tells_its_max_kill_timeout(on: On) {
    let nodes = on.get("/v1/nodes").await.ok().body;
    let node = on.get(&format!("/v1/node/{}", nodes[0]["ID"].as_str().unwrap())).await.ok().body;
    let agent = curfew_tests::api::Api::new(format!("http://{}", node["HTTPAddr"].as_str().unwrap()));
    let own = agent.get("/v1/agent/self").await;
    assert_eq!(own["config"]["Client"]["MaxKillTimeout"], "30s", "{own}");
}

pub async fn no_path_to_a_dead_node(on: On) {
    let node = on.node().await;
    let job = pinned(service(&unique("path"), vec![task("t", IMPOLITE)]), &node.name);
    let alloc = on.start(&job).await;
    on.cluster.node_down(&node.name).await;
    let refused = async || {
        let answer = on.signal(id(&alloc), "SIGUSR1", "t").await;
        if answer.says() == (404, "No path to node") { Ok(()) } else { Err(format!("{answer:?}")) }
    };
    curfew_tests::wait::eventually(s(20), "no path", refused).await;
    on.cluster.node_up(&node.name).await;
}

/// The client's own time, by the way of a signal; a node that is away answers neither.
pub async fn its_clock_is_asked_for_as_a_signal_is_sent(on: On) {
    let node = on.node().await;
    let path = format!("/v1/client/stats?node_id={}", node.id);
    // A node that has just come back is ready before the server has a way to it.
    let ask = async || {
        let answer = on.get(&path).await;
        answer.body["Timestamp"].as_i64().ok_or_else(|| format!("{answer:?}"))
    };
    let shown = curfew_tests::wait::eventually(s(20), "the node's own statistics", ask).await;
    let behind = curfew_tests::now().as_micros() - shown / 1000;
    assert!((-100_000..10_000_000).contains(&behind), "{behind} us behind");
    let nobody = "00000000-0000-0000-0000-000000000000";
    let unknown = on.get(&format!("/v1/client/stats?node_id={nobody}")).await;
    assert_eq!(unknown.says(), (404, &*format!("Unknown node {nobody}")));
    on.cluster.node_down(&node.name).await;
    let refused = async || {
        let answer = on.get(&path).await;
        if answer.says() == (404, "No path to node") { Ok(()) } else { Err(format!("{answer:?}")) }
    };
    curfew_tests::wait::eventually(s(20), "no path", refused).await;
    on.cluster.node_up(&node.name).await;
}

/// Lost, and a second one beside it; when its node is back it runs again, still wanted stopped.
pub async fn a_dead_client_makes_it_lost_and_back_it_runs(on: On) {
    let node = on.node().await;
    let other = on.node().await;
    let two = format!("{}|{}", node.name, other.name);
    let only = json!([{ "LTarget": "${node.unique.name}", "RTarget": two, "Operand": "regexp" }]);
    let reschedule =
        json!({ "ReschedulePolicy": { "Attempts": 0, "Unlimited": true, "Delay": nanos(s(5)), "DelayFunction": "constant" } });
    let job = group(with(service(&unique("lost"), vec![task("t", IMPOLITE)]), json!({ "Constraints": only })), reschedule);
    let alloc = on.start(&job).await;
    let proc = proc(&alloc, "t");
    let home = alloc["NodeName"].as_str().unwrap().to_owned();
    on.cluster.node_down(&home).await;
    let lost = on.until(id(&alloc), "lost", |a| a["ClientStatus"] == "lost").await;
    assert_eq!((&lost["DesiredStatus"], &lost["TaskStates"]["t"]["State"]), (&json!("stop"), &json!("running")));
    assert!(proc.lives());
    let second = on.running(job["ID"].as_str().unwrap(), 1).await.remove(0);
    assert_ne!(id(&second), id(&alloc));
    on.cluster.node_up(&home).await;
    let back = on.until(id(&alloc), "running again", |a| a["ClientStatus"] == "running").await;
    assert_eq!(back["DesiredStatus"], "stop");
    assert!(proc.lives(), "it ended with its agent");
    on.signal(id(&alloc), "SIGKILL", "t").await.ok();
    proc.death(s(5), "the lost one").await;
}

pub async fn a_disconnect_block_makes_it_unknown(on: On) {
    let node = on.node().await;
    let block = json!({ "Disconnect": { "LostAfter": nanos(s(3600)), "Replace": false } });
    let job = group(pinned(service(&unique("unknown"), vec![task("t", IMPOLITE)]), &node.name), block);
    let alloc = on.start(&job).await;
    let proc = proc(&alloc, "t");
    on.cluster.node_down(&node.name).await;
    let seen = on.until(id(&alloc), "unknown", |a| a["ClientStatus"] == "unknown").await;
    assert_eq!(seen["DesiredStatus"], "run");
    assert!(proc.lives());
    on.delete(job["ID"].as_str().unwrap()).await.ok();
    on.until(id(&alloc), "wanted stopped", |a| a["DesiredStatus"] == "stop" && a["ClientStatus"] == "unknown").await;
    on.cluster.node_up(&node.name).await;
    on.until(id(&alloc), "running again", |a| a["ClientStatus"] == "running" && a["DesiredStatus"] == "stop").await;
    assert!(proc.lives());
}

/// Stopped while its node is away: lost, alive, and running again with a new day of `kill_timeout`.
pub async fn a_stopped_one_on_a_dead_node_lives_on(on: On) {
    let node = on.node().await;
    let job = pinned(service(&unique("away"), vec![task("t", IMPOLITE)]), &node.name);
    let alloc = on.start(&job).await;
    let proc = proc(&alloc, "t");
    on.cluster.node_down(&node.name).await;
    on.delete(job["ID"].as_str().unwrap()).await.ok();
    on.until(id(&alloc), "lost", |a| a["ClientStatus"] == "lost" && a["DesiredStatus"] == "stop").await;
    let down: Value = node.node().await.unwrap();
    assert_eq!(down["Status"], "down");
    assert!(proc.lives());
    on.cluster.node_up(&node.name).await;
    on.until(id(&alloc), "running again", |a| a["ClientStatus"] == "running").await;
    let told = on.event(id(&alloc), "t", "Killing").await;
    assert_eq!(told["KillTimeout"], nanos(crate::kit::DAY), "{told}");
    assert!(proc.lives());
    on.signal(id(&alloc), "SIGKILL", "t").await.ok();
    on.until(id(&alloc), "complete", |a| a["ClientStatus"] == "complete").await;
}
