//! The command line of drains: what is shown, asked and said, and with which code it ends.

use std::time::Duration;

use curfew_core::api::{DrainPlan, OperationView};
use curfew_core::drain::NodeState;
use curfew_core::operation::State;
use curfew_tests::command::Ran;
use curfew_tests::jobs::{IMPOLITE, POLITE, on, service, task, with};
use curfew_tests::lab::{Lab, PATIENCE, late, unique};
use curfew_tests::process::Proc;
use curfew_tests::run::Given;
use curfew_tests::terminal::Terminal;
use serde_json::json;

/// The datacenters of two nodes on the embedded cluster: dev1 is in dc1, dev2 in dc2.
async fn impolite_on_dev1(lab: &Lab) -> (String, Proc) {
    let id = unique("drain-cli");
    let job = with(service(&id, vec![task("t", IMPOLITE)]), json!({ "Datacenters": ["dc1"] }));
    let running = lab.start(&on(job, "dev1")).await;
    (id, running.task("t"))
}

async fn eligible(lab: &Lab, name: &str) -> bool {
    let nodes = lab.cluster.api.get("/v1/nodes").await;
    nodes.as_array().unwrap().iter().any(|n| n["Name"] == name && n["SchedulingEligibility"] == "eligible")
}

#[track_caller]
fn prints(ran: &Ran, words: &[&str]) {
    words.iter().for_each(|w| assert!(ran.stdout.contains(w), "no {w:?} in: {ran}"));
}

/// The objects of a drain that was followed with `--json`: one a line, the last is its end.
#[track_caller]
fn objects(ran: &Ran) -> Vec<OperationView> {
    let read = |l: &str| serde_json::from_str(l).unwrap_or_else(|e| panic!("not an operation a line ({e}): {ran}"));
    ran.stdout.lines().map(read).collect()
}

pub async fn a_datacenter_from_the_plan_to_the_undrain(given: Given) {
    let lab = given.own().await;
    let (id, proc) = impolite_on_dev1(&lab).await;
    let drain = |more: &[&str]| {
        let all: Vec<&str> = ["datacenter", "drain", "dc1", "--drain-timeout", "4s"].iter().chain(more).copied().collect();
        lab.run(&all).run()
    };
    // No terminal, nobody to ask.
    let ran = drain(&[]).await.code(2).says(&["1 node with 1 allocation", "no terminal", "--yes", "--dry-run"]);
    assert_eq!(ran.stdout, "", "{ran}");
    let ran = drain(&["--dry-run", "--yes"]).await.code(0);
    prints(
        &ran,
        &["Drain of datacenter dc1: 1 node with 1 allocation", "strategy evacuate", &id, "SIGTERM at once", "Not replaced"],
    );
    let plan: DrainPlan = serde_json::from_value(drain(&["--dry-run", "--json"]).await.code(0).json()).unwrap();
    assert_eq!((plan.nodes.len(), plan.refused), (1, None));
    assert!(eligible(&lab, "dev1").await && proc.lives(), "a dry run changed something");

    let ran = drain(&["--yes", "--fail-on-kill", "--reason", "disks"]).await.code(3);
    assert!(!proc.lives() && ran.ended <= ran.began + Duration::from_secs(6) + late(), "{ran}");
    prints(&ran, &["dev1: drain begins", "SIGKILL", "dev1 drained in", "SLOWEST", &id]);
    prints(&ran, &["datacenter dc1 drained in", "1 node, 0 tasks ended by themselves, 1 needed SIGKILL"]);
    let listed = lab.run(&["op", "list", "--kind", "drain_datacenter", "--json"]).run().await.code(0).json();
    let op = listed[0]["id"].as_str().unwrap();
    assert_eq!(listed[0]["reason"], "disks");
    prints(&lab.run(&["op", "show", op]).run().await.code(0), &["datacenter    dc1", "dev1", "drained", "1 needed SIGKILL"]);
    lab.run(&["op", "watch", op, "--fail-on-kill"]).run().await.code(3);

    assert!(!eligible(&lab, "dev1").await);
    let ran = lab.run(&["datacenter", "undrain", "dc1"]).run().await.code(0);
    prints(&ran, &["dev1", "eligible", "datacenter dc1: 1 node takes allocations again"]);
    assert!(eligible(&lab, "dev1").await);
}

pub async fn of_a_node_as_json_one_object_a_line(given: Given) {
    let lab = given.own().await;
    let polite = unique("drain-cli-polite");
    lab.start(&on(service(&polite, vec![task("t", POLITE)]), "dev2")).await;
    let ran =
        lab.run(&["node", "drain", "dev2", "--strategy", "evacuate", "--drain-timeout", "30s", "--yes", "--json"]).run().await;
    let ran = ran.code(0);
    let ops = objects(&ran);
    let last = ops.last().unwrap();
    let (running, nodes) = (&ops[..ops.len() - 1], &last.outcome.as_ref().unwrap().nodes);
    assert!(!running.is_empty() && running.iter().all(|op| !op.state.is_finished()), "{ran}");
    assert_eq!((last.state, nodes[0].state, nodes[0].exited), (State::Succeeded, NodeState::Drained, 1), "{ran}");
    let undrained = lab.run(&["node", "undrain", "dev2", "--json"]).run().await.code(0);
    assert_eq!(objects(&undrained).last().unwrap().outcome.as_ref().unwrap().nodes[0].state, NodeState::Eligible);
}

/// Detached, given up on, and watched through a restart of the controller.
pub async fn a_watch_survives_the_controller(given: Given) {
    let mut lab = given.own().await;
    let (_, proc) = impolite_on_dev1(&lab).await;
    let args = ["datacenter", "drain", "dc1", "--drain-timeout", "8s", "--yes", "--detach"];
    let detached = lab.run(&args).run().await.code(0);
    let op = detached.stdout.trim();
    let gave_up = lab.run(&["op", "watch", op, "--timeout", "500ms"]).run().await.code(5);
    gave_up.says(&["gave up waiting", &format!("curfew op watch {op}")]);
    let addr = lab.curfew.addr().to_owned();
    let mut watch = Terminal::run(&["op", "watch", op], &[("CURFEW_ADDR", &addr)], 24, 100);
    watch.shows("1 allocation left, at most", PATIENCE).await;
    lab.own().kill().await;
    watch.shows("waiting for the controller", PATIENCE).await;
    lab.own().restart().await;
    watch.shows("the controller is back", PATIENCE).await;
    assert_eq!(watch.code(PATIENCE).await, Some(0), "{}", watch.seen());
    watch.shows("1 needed SIGKILL", PATIENCE).await;
    assert!(!proc.lives());
}

pub async fn what_was_typed_wrong_and_what_is_in_the_way(given: Given) {
    let lab = given.own().await;
    let (_, proc) = impolite_on_dev1(&lab).await;
    let refused = async |args: &[&str], code: i32, words: &[&str]| {
        let ran = lab.run(args).run().await.code(code).says(words);
        assert!(ran.stdout.is_empty() && ran.stderr.starts_with("curfew: "), "{ran}");
    };
    refused(&["node", "drain", "nobody"], 2, &["no node \"nobody\"", "dev1"]).await;
    refused(&["node", "undrain", "nobody"], 2, &["no node \"nobody\"", "dev1"]).await;
    refused(&["datacenter", "drain", "dc9", "--yes"], 2, &["dc9", "dc1, dc2"]).await;
    refused(&["datacenter", "undrain", "dc9"], 2, &["dc9", "dc1, dc2"]).await;
    refused(&["node", "drain", "--node-class", "gpu", "--dry-run"], 2, &["no node fits", "gpu"]).await;
    refused(&["node", "drain", "dev1", "--drain-timeout", "25h", "--yes"], 2, &["kill_timeout", "25h"]).await;
    assert!(eligible(&lab, "dev1").await);

    let detached =
        lab.run(&["node", "drain", "dev1", "--no-deadline", "--strategy", "evacuate", "--yes", "--detach"]).run().await;
    let detached = detached.code(0).says(&["without a deadline"]);
    let op = detached.stdout.trim();
    let watch = format!("curfew op watch {op}");
    refused(&["datacenter", "drain", "dc1", "--yes"], 1, &["dev1", &watch]).await;
    refused(&["datacenter", "drain", "dc1"], 1, &["dev1", &watch]).await;
    let plan = lab.run(&["datacenter", "drain", "dc1", "--dry-run"]).run().await.code(1).says(&["would be refused", &watch]);
    prints(&plan, &["Drain of datacenter dc1"]);
    prints(&lab.run(&["node", "undrain", "dev1"]).run().await.code(0), &["dev1", "takes allocations again"]);
    lab.run(&["op", "watch", op]).run().await.code(4);
    assert!(proc.lives(), "it has no deadline, and nobody stopped its job");
}

/// Asked, answered with no, answered with yes, drawn, detached from, and attached to again.
pub async fn on_a_terminal(given: Given) {
    let lab = given.own().await;
    let (id, proc) = impolite_on_dev1(&lab).await;
    let env = [("CURFEW_ADDR", lab.curfew.addr())];
    let args = ["datacenter", "drain", "dc1", "--drain-timeout", "12s"];
    let mut no = Terminal::run(&args, &env, 24, 100);
    no.shows("Drain 1 node with 1 allocation? [y/N]", PATIENCE).await;
    no.shows(&id, PATIENCE).await;
    no.types("n\n");
    assert_eq!(no.code(PATIENCE).await, Some(1), "{}", no.seen());
    no.shows("nothing was done", PATIENCE).await;
    assert!(eligible(&lab, "dev1").await);

    let mut yes = Terminal::run(&args, &env, 24, 100);
    yes.shows("[y/N]", PATIENCE).await;
    yes.types("y\n");
    yes.shows("0 of 1 node done", PATIENCE).await;
    yes.shows("1 allocation left, at most", PATIENCE).await;
    yes.shows("told to end, SIGKILL in", PATIENCE).await;
    yes.interrupts();
    assert_eq!(yes.code(PATIENCE).await, Some(5), "{}", yes.seen());
    yes.shows("detached; the operation goes on: curfew op watch ", PATIENCE).await;
    let seen = yes.seen();
    let op = seen.rsplit("curfew op watch ").next().unwrap().trim();

    // Narrow and low: what is drawn fits, and the report is whole.
    let mut again = Terminal::run(&["op", "watch", op], &env, 6, 40);
    assert_eq!(again.code(PATIENCE).await, Some(0), "{}", again.seen());
    again.shows("1 needed SIGKILL", PATIENCE).await;
    assert!(!proc.lives() && again.seen().contains("drained"), "{}", again.seen());
}
