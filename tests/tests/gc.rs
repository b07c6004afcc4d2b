//! The gc: what is left over on purpose is named, reaped, and nothing else is touched.

use std::collections::BTreeSet;
use std::time::Duration;

use curfew_core::{OpId, Timestamp};
use curfew_tests::api::segment;
use curfew_tests::cluster::Kind;
use curfew_tests::command::{Ran, curfew};
use curfew_tests::jobs::{IMPOLITE, POLITE, batch, nanos, on, service, task, with};
use curfew_tests::lab::{Lab, PATIENCE, Running, unique};
use curfew_tests::postgres::Server;
use curfew_tests::process::Proc;
use curfew_tests::run::Given;
use curfew_tests::wait::{clock_passes, eventually};
use curfew_tests::{binary, now};
use serde_json::{Value, json};

/// The task's own stop timeout in these scenarios.
const OWN: Duration = Duration::from_secs(2);

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn impolite(id: &str) -> Value {
    service(id, vec![with(task("t", IMPOLITE), json!({ "KillTimeout": nanos(OWN) }))])
}

/// `curfew gc ARGS --json`, through the lab's proxy, without anything to ask about operations unless `args` names it.
async fn gc(lab: &Lab, args: &[&str]) -> Ran {
    let args: Vec<&str> = ["gc", "--json"].iter().chain(args).copied().collect();
    curfew(args).env("NOMAD_ADDR", lab.proxy().addr()).env("CURFEW_POSTSTOP_TIMEOUT", "8s").run().await
}

/// What a report says of these jobs: verdict, job, outcome.
fn of(ran: &Ran, jobs: &[&str]) -> BTreeSet<(String, String, String)> {
    let report = ran.json();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let rows = report["candidates"].as_array().cloned().unwrap_or_default().into_iter();
    let mine = rows.filter(|c| jobs.iter().any(|j| c["job"] == *j || text(&c["job"]).starts_with(&format!("{j}/"))));
    mine.map(|c| (text(&c["verdict"]), text(&c["job"]), text(&c["outcome"]))).collect()
}

fn rows<const N: usize>(rows: [(&str, &str, &str); N]) -> BTreeSet<(String, String, String)> {
    rows.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned())).into()
}

/// Every call that changes Nomad, as it was on the wire.
fn changes(lab: &Lab) -> Vec<String> {
    let all = ["PUT", "POST", "DELETE"].into_iter().flat_map(|m| lab.proxy().seen(m, "/v1/"));
    all.map(|seen| format!("{} {}", seen.method, seen.path)).collect()
}

/// When the task heard its SIGTERM, by its event.
async fn told(lab: &Lab, alloc: &str) -> Timestamp {
    eventually(PATIENCE, "the Killing event", async || {
        let alloc = lab.cluster.api.allocation(alloc).await?;
        let events = alloc["TaskStates"]["t"]["Events"].as_array().cloned().unwrap_or_default();
        let killing = events.iter().find(|e| e["Type"] == "Killing").and_then(|e| e["Time"].as_i64());
        killing.map(|ns| Timestamp::from_micros(ns / 1000)).ok_or_else(|| curfew_tests::lab::short(&[alloc]))
    })
    .await
}

/// The controller dies for good, and its database with it.
async fn nobody_is_left(lab: &mut Lab) {
    lab.own().kill().await;
    for suffix in ["", "-wal", "-shm", "-lock"] {
        // Not each of them is there.
        let _ = std::fs::remove_file(format!("{}{suffix}", lab.curfew.database().display()));
    }
}

/// Healthy work beside what is left over: one that heeds SIGTERM, one that does not, and one that was restarted before.
struct Neighbours(Vec<(Running, Proc)>);

impl Neighbours {
    async fn start(lab: &Lab) -> Self {
        let mut all = vec![];
        for script in [POLITE, IMPOLITE] {
            let running = lab.start(&service(&unique("healthy"), vec![task("t", script)])).await;
            let proc = running.task("t");
            all.push((running, proc));
        }
        let id = unique("healthy-restarted");
        let first = lab.start(&service(&id, vec![task("t", POLITE)])).await;
        let path = format!("/v1/client/allocation/{}/restart", first.alloc);
        lab.cluster.api.put(&path, &json!({ "TaskName": "t" })).await;
        let proc = eventually(PATIENCE, "the restart", async || {
            let alloc = lab.cluster.api.allocation(&first.alloc).await?;
            let running = lab.processes(&id, &alloc)?;
            let again = running.task("t");
            if again == first.task("t") { Err("the same process still".into()) } else { Ok(again) }
        })
        .await;
        all.push((first, proc));
        Self(all)
    }

    fn jobs(&self) -> Vec<&str> {
        self.0.iter().map(|(r, _)| r.job.as_str()).collect()
    }

    /// The same processes as before, and nobody said a word about them.
    #[track_caller]
    fn untouched(&self, ran: &Ran) {
        assert!(self.0.iter().all(|(_, p)| p.lives()), "{ran}");
        assert_eq!(of(ran, &self.jobs()), BTreeSet::new(), "{ran}");
    }
}

/// The controller is killed after its DELETEs, and the database is lost. What is past its clock and the grace is ended, not
/// before; a dry run changes nothing.
pub async fn a_lost_controller_and_a_lost_database(given: Given) {
    let mut lab = given.own().await;
    let neighbours = Neighbours::start(&lab).await;
    let (a, b) = (unique("left-a"), unique("left-b"));
    let running = [lab.start(&impolite(&a)).await, lab.start(&impolite(&b)).await];
    // The request's hour dies with the database; the task's own two seconds are in Nomad.
    lab.stop_detached(&a, &["--stop-timeout", "1h"]).await;
    lab.stop_detached(&b, &["--stop-timeout", "1h"]).await;
    let told = [told(&lab, &running[0].alloc).await, told(&lab, &running[1].alloc).await];
    nobody_is_left(&mut lab).await;
    let last = told[0].max(told[1]);
    clock_passes(last + OWN + s(1), "both clocks").await;
    let before = changes(&lab);
    let early = gc(&lab, &["--yes", "--grace", "10m"]).await;
    assert_eq!(of(&early, &[&a, &b]), rows([]), "{early}");
    clock_passes(last + OWN + s(4), "both clocks and the grace").await;
    let dry = gc(&lab, &["--dry-run", "--grace", "3s"]).await.code(3);
    assert_eq!(of(&dry, &[&a, &b]), rows([("past_clock", &a, "would_act"), ("past_clock", &b, "would_act")]), "{dry}");
    neighbours.untouched(&dry);
    assert_eq!(changes(&lab), before, "neither changed anything");
    assert!(running.iter().all(|r| r.task("t").lives()));
    let evidence = dry.json()["candidates"].as_array().cloned().unwrap_or_default();
    let evidence = evidence.into_iter().find(|c| c["job"] == a.as_str()).unwrap();
    assert_eq!(evidence["evidence"]["cause"], "stopped", "{dry}");
    assert_eq!(evidence["alloc"], running[0].alloc.as_str(), "{dry}");

    let ran = gc(&lab, &["--yes", "--grace", "3s"]).await;
    assert_eq!(of(&ran, &[&a, &b]), rows([("past_clock", &a, "done"), ("past_clock", &b, "done")]), "{ran}");
    assert!(running.iter().all(|r| !r.task("t").lives()), "{ran}");
    neighbours.untouched(&ran);
    for r in &running {
        let signals = lab.proxy().seen("PUT", &format!("/v1/client/allocation/{}/signal", r.alloc));
        assert_eq!(signals.len(), 1, "{signals:?}");
        assert_eq!(signals[0].body, json!({ "Signal": "SIGKILL", "Task": "t" }));
    }
    assert_eq!(changes(&lab).len(), before.len() + 2, "one SIGKILL each, and nothing else: {:?}", changes(&lab));
    let again = gc(&lab, &["--yes", "--grace", "3s"]).await;
    assert_eq!(of(&again, &[&a, &b]), rows([]), "{again}");
    assert_eq!(changes(&lab).len(), before.len() + 2, "{again}");
    neighbours.untouched(&again);
}

/// Each of these on purpose: stopped by hand, a child whose parent was stopped, an orphan, a dead job. A dry run names exactly
/// those; three passes clear them; the next one finds nothing.
pub async fn leftovers_of_every_kind(given: Given) {
    let mut lab = given.own().await;
    let neighbours = Neighbours::start(&lab).await;
    let (by_hand, parent, orphan, dead) = (unique("by-hand"), unique("parent"), unique("orphan"), unique("dead"));
    let jobs = [by_hand.as_str(), &parent, &orphan, &dead];
    let hung = lab.start(&impolite(&by_hand)).await;
    lab.start(&service(&dead, vec![task("t", POLITE)])).await;
    lab.stop(&dead, &[]).await.code(0);
    lab.submit(&with(batch(&parent, vec![task("t", POLITE)]), json!({ "ParameterizedJob": { "Payload": "optional" } }))).await;
    let dispatched = lab.cluster.api.put(&format!("/v1/job/{parent}/dispatch"), &json!({})).await;
    let child = dispatched["DispatchedJobID"].as_str().unwrap().to_owned();
    let child_proc = lab.running(&child).await.task("t");
    // A controller with another database submitted this one.
    let meta = json!({ "curfew_managed": "true", "curfew_operation": OpId::new(now()).to_string() });
    let body = json!({ "Job": with(service(&orphan, vec![task("t", POLITE)]), json!({ "Meta": meta })) });
    lab.cluster.api.put("/v1/jobs", &body).await;
    let orphan_proc = lab.running(&orphan).await.task("t");
    lab.own().kill().await;
    lab.discard(&by_hand).await;
    lab.discard(&parent).await;
    let told = told(&lab, &hung.alloc).await;
    clock_passes(told + OWN + s(2), "the clock and the grace").await;

    let database = format!("sqlite:{}", lab.curfew.database().display());
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("gc.json").display().to_string();
    let flags = ["--grace", "1s", "--retention", "1s", "--database", &database, "--state", &state];
    let acting: Vec<&str> =
        flags.iter().chain(&["--verdict", "orphan=act", "--verdict", "child_of_stopped_parent=act"]).copied().collect();
    let dry = gc(&lab, &[&acting[..], &["--dry-run"]].concat()).await.code(3);
    let expected = rows([
        ("past_clock", &by_hand, "would_act"),
        ("child_of_stopped_parent", &child, "would_act"),
        // One pass proves nothing.
        ("orphan", &orphan, "reported"),
        ("purge", &dead, "would_act"),
    ]);
    let purge_of_by_hand = |rows: &BTreeSet<(String, String, String)>| -> BTreeSet<_> {
        // Dead to Nomad, alive in truth, or its parent's child alive: not yet to be purged, and why.
        rows.iter().filter(|r| !(r.0 == "purge" && r.2 == "reported")).cloned().collect()
    };
    assert_eq!(purge_of_by_hand(&of(&dry, &jobs)), expected, "{dry}");
    neighbours.untouched(&dry);
    assert!(hung.task("t").lives() && child_proc.lives() && orphan_proc.lives());

    let first = gc(&lab, &[&acting[..], &["--yes"]].concat()).await;
    neighbours.untouched(&first);
    let found = purge_of_by_hand(&of(&first, &jobs));
    let done = rows([
        ("past_clock", &by_hand, "done"),
        ("child_of_stopped_parent", &child, "done"),
        ("orphan", &orphan, "reported"),
        ("purge", &dead, "done"),
    ]);
    assert_eq!(found, done, "{first}");
    child_proc.death(PATIENCE, "the child").await;
    assert!(!hung.task("t").lives() && orphan_proc.lives(), "{first}");
    assert_eq!(lab.cluster.api.try_get(&format!("/v1/job/{dead}")).await.map_err(|e| e.contains("404")), Err(true));
    eventually(PATIENCE, "everything to be reaped", async || {
        let ran = gc(&lab, &[&acting[..], &["--yes"]].concat()).await;
        neighbours.untouched(&ran);
        let left = of(&ran, &jobs);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}\n{ran}")) }
    })
    .await;
    orphan_proc.death(PATIENCE, "the orphan").await;
    let stops = lab.proxy().seen("DELETE", &format!("/v1/job/{orphan}"));
    assert!(stops.iter().any(|s| !s.path.contains("purge")), "the orphan was stopped before it was purged: {stops:?}");
}

/// More than the cap: none of them is touched, and the exit code says so.
pub async fn more_than_the_cap(given: Given) {
    let mut lab = given.own().await;
    let ids = [unique("cap"), unique("cap"), unique("cap")];
    let mut running = vec![];
    for id in &ids {
        running.push(lab.start(&impolite(id)).await);
    }
    lab.own().kill().await;
    for id in &ids {
        lab.discard(id).await;
    }
    let mut last = now();
    for r in &running {
        last = last.max(told(&lab, &r.alloc).await);
    }
    clock_passes(last + OWN + s(1), "the clocks").await;
    let before = changes(&lab);
    let capped = gc(&lab, &["--yes", "--grace", "1s", "--cap", "2", "--verdict", "purge=off"]).await.code(4);
    assert!(capped.json()["verdicts"]["past_clock"]["capped"] == true, "{capped}");
    assert_eq!(changes(&lab), before);
    assert!(running.iter().all(|r| r.task("t").lives()), "{capped}");
    let all = gc(&lab, &["--yes", "--grace", "1s", "--no-cap", "--verdict", "purge=off"]).await;
    assert!(running.iter().all(|r| !r.task("t").lives()), "{all}");
}

/// Two at once take turns: each task is signalled once.
pub async fn two_at_once(given: Given) {
    let mut lab = given.own().await;
    let id = unique("twice");
    let running = lab.start(&impolite(&id)).await;
    lab.own().kill().await;
    lab.discard(&id).await;
    clock_passes(told(&lab, &running.alloc).await + OWN + s(1), "the clock").await;
    let flags = ["--yes", "--grace", "1s", "--verdict", "purge=off"];
    let (one, two) = tokio::join!(gc(&lab, &flags), gc(&lab, &flags));
    let done = [&one, &two].map(|ran| of(ran, &[&id]).len());
    assert_eq!(done.iter().sum::<usize>(), 1, "{one}\n{two}");
    assert_eq!(lab.proxy().seen("PUT", "/signal").len(), 1, "{one}\n{two}");
    assert!(!running.task("t").lives());
}

/// A read that was a second on its way says nothing any more: no signal rests on it.
pub async fn a_read_that_was_long_on_its_way(given: Given) {
    let mut lab = given.own().await;
    let id = unique("slow");
    let running = lab.start(&impolite(&id)).await;
    lab.own().kill().await;
    lab.discard(&id).await;
    clock_passes(told(&lab, &running.alloc).await + OWN + s(1), "the clock").await;
    let fault = json!({ "Kind": "delay", "Method": "GET", "Path": "/v1/allocation/*", "Delay": "1100ms" });
    lab.cluster.api.put("/dev/v1/faults", &fault).await;
    let flags = ["--yes", "--grace", "1s", "--verdict", "purge=off"];
    let ran = gc(&lab, &flags).await;
    assert_eq!(of(&ran, &[&id]), rows([("past_clock", &id, "left")]), "{ran}");
    assert!(ran.to_string().contains("Nomad answers so late"), "{ran}");
    assert_eq!(lab.proxy().seen("PUT", "/signal").len(), 0, "{ran}");
    assert!(running.task("t").lives());
    lab.cluster.api.call(reqwest::Method::DELETE, "/dev/v1/faults", None).await.unwrap();
    let ran = gc(&lab, &flags).await;
    assert_eq!(of(&ran, &[&id]), rows([("past_clock", &id, "done")]), "{ran}");
    assert!(!running.task("t").lives());
}

/// A dead job whose task lives is not purged, however old, and the report says why; when the task is dead it is.
pub async fn a_purge_never_hides_a_living_task(given: Given) {
    let mut lab = given.own().await;
    let id = unique("hidden");
    let running = lab.start(&impolite(&id)).await;
    lab.own().kill().await;
    lab.discard(&id).await;
    told(&lab, &running.alloc).await;
    let flags = ["--yes", "--retention", "1ms", "--verdict", "past_clock=off"];
    eventually(PATIENCE, "Nomad to call it dead", async || {
        let ran = gc(&lab, &flags).await;
        let row = ran.json()["candidates"].as_array().cloned().unwrap_or_default();
        let row = row.into_iter().find(|c| c["job"] == id.as_str()).ok_or_else(|| ran.to_string())?;
        assert_eq!((&row["verdict"], &row["outcome"]), (&json!("purge"), &json!("reported")), "{ran}");
        assert!(row["why"].as_str().unwrap().contains("task t lives"), "{ran}");
        Ok(())
    })
    .await;
    assert!(running.task("t").lives());
    let path = format!("/v1/job/{}?", segment(&id));
    let purges = || lab.proxy().seen("DELETE", &path).iter().filter(|s| s.path.contains("purge=true")).count();
    assert_eq!(purges(), 0);
    running.task("t").signal(rustix::process::Signal::KILL);
    eventually(PATIENCE, "the purge", async || {
        let ran = gc(&lab, &flags).await;
        let gone = lab.cluster.api.try_get(&format!("/v1/job/{id}")).await;
        if gone.as_ref().is_err_and(|e| e.contains("404")) { Ok(()) } else { Err(ran.to_string()) }
    })
    .await;
    assert_eq!(purges(), 1);
}

/// A node that is away: the gc says so and exits with 3; when the node is back, and its task told again, it is ended.
pub async fn a_node_that_is_away(given: Given) {
    let mut lab = given.own().await;
    let node = lab.cluster.nodes()[1].clone();
    let id = unique("away");
    let running = lab.start(&on(impolite(&id), &node)).await;
    let proc = running.task("t");
    lab.own().kill().await;
    lab.discard(&id).await;
    clock_passes(told(&lab, &running.alloc).await + OWN + s(1), "the clock").await;
    lab.cluster.node_down(&node).await;
    let flags = ["--yes", "--grace", "1s", "--verdict", "purge=off"];
    let away = eventually(PATIENCE, "the node to be out of reach", async || {
        let ran = gc(&lab, &flags).await;
        if of(&ran, &[&id]) == rows([("past_clock", &id, "left")]) { Ok(ran) } else { Err(ran.to_string()) }
    })
    .await;
    let away = away.code(3);
    assert!(away.stdout.contains("cannot be reached") && proc.lives(), "{away}");
    lab.cluster.node_up(&node).await;
    lab.cluster.nodes_ready(lab.cluster.nodes().len()).await;
    eventually(PATIENCE, "its end", async || {
        let ran = gc(&lab, &flags).await;
        if proc.lives() { Err(ran.to_string()) } else { Ok(()) }
    })
    .await;
}

/// With a controller to ask, what it stops is left to it for as long as it said.
pub async fn a_live_stop_is_the_controllers(given: Given) {
    let lab = given.own().await;
    let id = unique("asked");
    let running = lab.start(&impolite(&id)).await;
    lab.stop_detached(&id, &["--stop-timeout", "1h"]).await;
    clock_passes(told(&lab, &running.alloc).await + OWN + s(2), "the task's own timeout").await;
    let args = ["gc", "--json", "--yes", "--grace", "1s"];
    let asking = lab.run(&args).env("NOMAD_ADDR", lab.proxy().addr()).run().await;
    assert_eq!(of(&asking, &[&id]), rows([]), "{asking}");
    assert_eq!(asking.json()["known"], lab.curfew.addr(), "{asking}");
    assert!(running.task("t").lives());
    // Its database is in use, and a gc does not pretend to know.
    let database = format!("sqlite:{}", lab.curfew.database().display());
    gc(&lab, &["--yes", "--database", &database]).await.code(1).says(&["in use by"]);
    lab.stop(&id, &["--stop-timeout", "1s"]).await.code(0);
}

/// While the kill clocks are paused a gc kills nobody either: it asks the controller, or reads the database when that is gone.
/// The database is PostgreSQL, where it may read beside a controller.
pub async fn paused_clocks_are_paused_for_it_too(given: Given) {
    let Some(server) = Server::start(given.name()) else {
        given.skip("PostgreSQL is not installed");
        return;
    };
    let mut lab = given.own_with(&[("CURFEW_DATABASE", &server.url())]).await;
    let id = unique("paused");
    let running = lab.start(&impolite(&id)).await;
    lab.run(&["kind", "pause", "kill", "--yes-really", "--reason", "an incident"]).run().await.code(0);
    lab.stop_detached(&id, &["--stop-timeout", "1s"]).await;
    clock_passes(told(&lab, &running.alloc).await + s(4), "its clock, and the grace").await;
    let left = async |ran: Ran| {
        let ran = ran.code(3);
        assert!(ran.stdout.contains("the kill clocks are paused by"), "{ran}");
        assert_eq!(of(&ran, &[&id]), rows([("past_clock", &id, "left")]), "{ran}");
        assert!(running.task("t").lives(), "{ran}");
    };
    let args = ["gc", "--json", "--yes", "--grace", "1s"];
    left(lab.run(&args).env("NOMAD_ADDR", lab.proxy().addr()).run().await).await;
    let url = server.url();
    let beside = ["--yes", "--grace", "1s", "--database", &url];
    left(gc(&lab, &beside).await).await;
    lab.own().kill().await;
    left(gc(&lab, &beside).await).await;
    lab.own().restart().await;
    lab.run(&["kind", "resume", "kill"]).run().await.code(0);
    running.task("t").death(PATIENCE, "the task").await;
    gc(&lab, &beside).await.code(0);
}

/// With a controller a stop is an operation like any other, with the gc's name and reason.
pub async fn a_child_is_stopped_through_the_controller(given: Given) {
    let lab = given.own().await;
    let parent = unique("parent");
    lab.submit(&with(batch(&parent, vec![task("t", POLITE)]), json!({ "ParameterizedJob": { "Payload": "optional" } }))).await;
    let dispatched = lab.cluster.api.put(&format!("/v1/job/{parent}/dispatch"), &json!({})).await;
    let child = dispatched["DispatchedJobID"].as_str().unwrap().to_owned();
    let proc = lab.running(&child).await.task("t");
    let args = ["gc", "--json", "--yes", "--verdict", "child_of_stopped_parent=act"];
    let asking = async || lab.run(&args).env("NOMAD_ADDR", lab.proxy().addr()).run().await;
    let healthy = asking().await;
    assert_eq!(of(&healthy, &[&parent]), rows([]), "{healthy}");
    lab.discard(&parent).await;
    let ran = asking().await;
    assert_eq!(of(&ran, &[&parent]), rows([("child_of_stopped_parent", &child, "done")]), "{ran}");
    proc.death(PATIENCE, "the child").await;
    let ops = lab.run(&["op", "list", "--kind", "stop", "--job", &child, "--json"]).run().await.code(0).json();
    assert!(ops[0]["actor"].as_str().is_some_and(|a| a.starts_with("gc ")), "{ops}");
    assert!(ops[0]["reason"].as_str().is_some_and(|r| r.contains("child_of_stopped_parent")), "{ops}");
}

/// What is left over in the database, and on a node: a lease without a worker, rows past their retention, a node that a cancelled
/// drain left ineligible. A node whose drain nobody knows is named and left alone.
pub async fn leftovers_of_operations(given: Given) {
    let mut lab = given.own().await;
    let (a, b) = (unique("leased"), unique("drained"));
    let leased = lab.submit(&service(&a, vec![task("t", POLITE)])).await.id;
    let cancelled = lab.submit(&service(&b, vec![task("t", POLITE)])).await.id;
    lab.own().kill().await;
    let file = lab.curfew.database();
    let database = rusqlite::Connection::open(&file).unwrap();
    let change = |sql: &str, id: OpId| assert_eq!(database.execute(sql, [id.to_string()]).unwrap(), 1, "{sql}");
    let running = "state = 'running', finished_at = NULL, lease_holder = 'gone:1', lease_expires_at = 1";
    change(&format!("UPDATE operations SET {running} WHERE id = ?1"), leased);
    change("UPDATE operations SET state = 'cancelled' WHERE id = ?1", cancelled);
    let nodes = lab.cluster.api.get("/v1/nodes").await;
    let node = |i: usize| nodes[i]["ID"].as_str().unwrap().to_owned();
    let ineligible = async |id: &str, operation: OpId| {
        let meta = json!({ "curfew_operation": operation.to_string(), "curfew_deadline": "none" });
        let spec = json!({ "DrainSpec": { "Deadline": 3_600_000_000_000_u64, "IgnoreSystemJobs": true }, "Meta": meta });
        lab.cluster.api.put(&format!("/v1/node/{id}/drain"), &spec).await;
        lab.cluster.api.put(&format!("/v1/node/{id}/drain"), &json!({ "DrainSpec": null, "MarkEligible": false })).await;
    };
    ineligible(&node(0), cancelled).await;
    ineligible(&node(1), OpId::new(now())).await;

    let url = format!("sqlite:{}", file.display());
    let flags = ["--database", &url, "--verdict", "node_left=act", "--verdict", "purge=off"];
    let of_nodes = |ran: &Ran| -> BTreeSet<(String, String)> {
        let rows = ran.json()["candidates"].as_array().cloned().unwrap_or_default().into_iter();
        let wanted = rows.filter(|c| c["verdict"] == "node_left" || c["operation"] == leased.to_string());
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        wanted.map(|c| (text(&c["verdict"]), text(&c["outcome"]))).collect()
    };
    let pairs = |all: [(&str, &str); 3]| -> BTreeSet<_> { all.map(|(a, b)| (a.to_owned(), b.to_owned())).into() };
    let before = changes(&lab).len();
    let dry = gc(&lab, &[&flags[..], &["--dry-run"]].concat()).await.code(3);
    assert_eq!(
        of_nodes(&dry),
        pairs([("node_left", "would_act"), ("node_left", "reported"), ("expired_lease", "would_act")]),
        "{dry}"
    );
    assert_eq!(changes(&lab).len(), before);
    let ran = gc(&lab, &[&flags[..], &["--yes"]].concat()).await.code(3);
    assert_eq!(of_nodes(&ran), pairs([("node_left", "done"), ("node_left", "reported"), ("expired_lease", "done")]), "{ran}");
    let eligible = async |id: &str| lab.cluster.api.get(&format!("/v1/node/{id}")).await["SchedulingEligibility"].clone();
    assert_eq!((eligible(&node(0)).await, eligible(&node(1)).await), (json!("eligible"), json!("ineligible")));
    let state: String =
        database.query_row("SELECT state FROM operations WHERE id = ?1", [leased.to_string()], |row| row.get(0)).unwrap();
    assert_eq!(state, "queued");
    let args: Vec<&str> = ["gc", "--json", "--yes"].iter().chain(&flags).copied().collect();
    let pruned = curfew(args).env("NOMAD_ADDR", lab.proxy().addr()).env("CURFEW_RETENTION_OPERATIONS", "1ms").run().await;
    assert!(pruned.json()["notes"].to_string().contains("past their retention removed"), "{pruned}");
    let left: i64 =
        database.query_row("SELECT count(*) FROM operations WHERE finished_at IS NOT NULL", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0, "{pruned}");
    lab.cluster.api.put(&format!("/v1/node/{}/eligibility", node(1)), &json!({ "Eligibility": "eligible" })).await;
    lab.discard(&a).await;
    lab.discard(&b).await;
}

/// The gc that the controller runs by itself: a dead job is purged, with a row in the trail.
pub async fn beside_the_controller(given: Given) {
    let lab = given.own_with(&[("CURFEW_GC_INTERVAL", "1s"), ("CURFEW_GC_RETENTION", "1s")]).await;
    let neighbours = Neighbours::start(&lab).await;
    let id = unique("purged");
    lab.start(&service(&id, vec![task("t", POLITE)])).await;
    lab.stop(&id, &[]).await.code(0);
    eventually(PATIENCE, "the purge", async || match lab.cluster.api.try_get(&format!("/v1/job/{id}")).await {
        Err(e) if e.contains("404") => Ok(()),
        other => Err(format!("{other:?}\n{}", lab.curfew.log())),
    })
    .await;
    let trail = eventually(PATIENCE, "the row of the purge", async || {
        let rows = lab.curfew.api().get("/v1/audit?limit=10000").await;
        let rows = rows.as_array().cloned().unwrap_or_default();
        let found = rows.iter().find(|r| r["action"] == "job_purged" && r["detail"]["job"]["job"] == id.as_str());
        found.cloned().ok_or_else(|| format!("{} rows", rows.len()))
    })
    .await;
    assert!(trail["actor"].as_str().unwrap().starts_with("gc "), "{trail}");
    assert!(neighbours.0.iter().all(|(_, p)| p.lives()));
}

/// jobspecs/job-gc.nomad.hcl, submitted through Curfew: its periodic child runs, reaps, and its report is its log.
pub async fn the_jobspec(given: Given) {
    let lab = given.own().await;
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../jobspecs/job-gc.nomad.hcl");
    let text = std::fs::read_to_string(file).unwrap();
    for promised in ["prohibit_overlap = true", "*/15 * * * *", "identity {"] {
        assert!(text.contains(promised), "{promised}");
    }
    let id = unique("job-gc");
    let program = format!("exec {} --once", binary::named("curfew-gc").display());
    let mut text = text.replacen("job \"job-gc\"", &format!("job \"{id}\""), 1).replacen("exec curfew-gc --once", &program, 1);
    if given.kind == Kind::Dev {
        // The embedded cluster gives its tasks no socket.
        let address = format!("NOMAD_ADDR = \"{}\"", lab.cluster.addr());
        text = text.replacen("# NOMAD_ADDR = \"http://127.0.0.1:4646\"", &address, 1);
    }
    let left = unique("left");
    let running = lab.start(&impolite(&left)).await;
    lab.run(&["job", "run", "-"]).stdin(text).run().await.code(0);
    lab.cluster.api.put(&format!("/v1/job/{id}/periodic/force"), &Value::Null).await;
    let logs = eventually(PATIENCE, "the report in the child's log", async || {
        let jobs = lab.cluster.api.try_get(&format!("/v1/jobs?prefix={id}/periodic-")).await?;
        let child = jobs[0]["ID"].as_str().ok_or_else(|| format!("no child: {jobs}"))?.to_owned();
        let allocs = lab.cluster.api.allocations(&child).await?;
        let alloc = allocs.first().and_then(|a| a["ID"].as_str()).ok_or("no allocation")?.to_owned();
        let read = async |stream: &str| {
            let path = format!("/v1/client/fs/logs/{alloc}?task=gc&type={stream}&plain=true&origin=start&offset=0");
            lab.cluster.api.try_get(&path).await
        };
        match read("stdout").await? {
            report if report["service"] == "curfew-gc" => Ok(report),
            other => Err(format!("{other}; {:?}; {}", read("stderr").await, curfew_tests::lab::short(&allocs))),
        }
    })
    .await;
    assert_eq!(logs["failures"], json!([]), "{logs}");
    if given.kind == Kind::Real {
        assert!(logs["nomad"].as_str().is_some_and(|a| a.starts_with("unix://")), "the task's own socket: {logs}");
    }
    assert!(logs["requests"].as_object().is_some_and(|r| !r.is_empty()), "{logs}");
    assert!(running.task("t").lives(), "healthy work beside it");
    lab.stop(&left, &["--stop-timeout", "1s"]).await.code(0);
    lab.stop(&id, &[]).await.code(0);
}

pub async fn without_a_terminal_it_wants_a_word(_: Given) {
    let run = async |args: &[&str]| curfew(args.iter().copied()).run().await;
    run(&["gc"]).await.code(2).says(&["--yes", "--dry-run", "terminal"]);
    run(&["gc", "--every", "1m"]).await.code(2).says(&["--every asks nobody"]);
    run(&["gc", "--yes", "--dry-run"]).await.code(2);
    run(&["gc", "--dry-run", "--verdict", "orfan=act"]).await.code(2).says(&["orfan=act", "orphan"]);
    let none = run(&["gc", "--dry-run", "--database", "sqlite:/nowhere/curfew.db"]).await.code(1);
    none.says(&["no database", "/nowhere/curfew.db", "CURFEW_ADDR"]);
    // Nothing answers there: a failure, and not "nothing is left over".
    let port = curfew_tests::free_port();
    let away = curfew(["gc", "--dry-run", "--json"]).env("NOMAD_ADDR", format!("http://127.0.0.1:{port}")).run().await.code(1);
    assert_eq!(away.json()["exit"], 1, "{away}");
    assert!(!away.json()["failures"].as_array().unwrap().is_empty(), "{away}");
}
