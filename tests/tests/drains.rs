//! Drains: what is to leave has left by the deadline, by the process list and not by Nomad's word.

use std::time::Duration;

use curfew_client::{Client, DrainRequest, Error, ExtendRequest, Selection, Strategy, UndrainRequest, Who};
use curfew_core::Timestamp;
use curfew_core::api::{Gets, OperationView};
use curfew_core::drain::{NodeState, Waits};
use curfew_core::operation::{Kind as OpKind, State};
use curfew_tests::cluster::{Cluster, Shape};
use curfew_tests::controller::Controller;
use curfew_tests::jobs::{IMPOLITE, POLITE, batch, group, nanos, on, service, task, with};
use curfew_tests::lab::{Lab, PATIENCE, Running, late, runs, task_of, unique};
use curfew_tests::postgres::Server;
use curfew_tests::process::{Proc, of_task};
use curfew_tests::run::Given;
use curfew_tests::wait::{always, clock_passes, eventually};
use serde_json::{Value, json};

/// Ends six seconds after it was told to.
const SIX_SECONDS_LEFT: &str = "trap 'sleep 6; exit 0' TERM; sleep 3600 & wait";

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn client(lab: &Lab) -> Client {
    Client::new(lab.curfew.addr()).unwrap()
}

fn of(selection: Selection, timeout: u64) -> DrainRequest {
    let who = Who { actor: Some("the tests".into()), reason: Some("to see".into()) };
    DrainRequest { selection, drain_timeout: Some(secs(timeout)), who, ..DrainRequest::default() }
}

fn datacenter(name: &str) -> Selection {
    Selection { datacenter: Some(name.into()), ..Selection::default() }
}

fn nodes(names: &[&str]) -> Selection {
    Selection { nodes: names.iter().map(|n| (*n).to_owned()).collect(), ..Selection::default() }
}

fn system(id: &str, script: &str) -> Value {
    let mut job = with(service(id, vec![task("t", script)]), json!({ "Type": "system" }));
    job["TaskGroups"][0].as_object_mut().unwrap().remove("ReschedulePolicy");
    job
}

async fn node(lab: &Lab, name: &str) -> Value {
    let all = lab.cluster.api.get("/v1/nodes").await;
    let found = all.as_array().unwrap().iter().find(|n| n["Name"] == name).cloned();
    found.unwrap_or_else(|| panic!("no node {name} in {all}"))
}

/// The jobs first: on a cluster that others use afterwards they would be placed again on the nodes that are given back, and live there.
async fn give_back(lab: &Lab, jobs: &[&str]) {
    for job in jobs {
        lab.stop(job, &["--stop-timeout", "1s"]).await.code(0);
    }
    for n in lab.cluster.api.get("/v1/nodes").await.as_array().unwrap() {
        let path = format!("/v1/node/{}/drain", n["ID"].as_str().unwrap());
        lab.cluster.api.put(&path, &json!({ "DrainSpec": null, "MarkEligible": true })).await;
    }
}

fn refused(answer: Result<OperationView, Error>, status: u16, kind: &str, words: &[&str]) {
    match answer {
        Err(Error::Refused(p)) => {
            assert_eq!((p.status, p.kind.as_str()), (status, format!("urn:curfew:problem:{kind}").as_str()), "{}", p.detail);
            words.iter().for_each(|w| assert!(p.detail.contains(w), "no {w}: {}", p.detail));
        }
        other => panic!("{kind} was expected: {other:?}"),
    }
}

/// All allocations of a job that run, with their processes.
async fn everywhere(lab: &Lab, job: &str, count: usize) -> Vec<Running> {
    eventually(PATIENCE, &format!("{count} allocations of {job}"), async || {
        let all = lab.cluster.api.allocations(job).await?;
        let found: Result<Vec<_>, _> =
            all.iter().filter(|a| a["DesiredStatus"] == "run").map(|a| lab.processes(job, a)).collect();
        found.and_then(|f| if f.len() == count { Ok(f) } else { Err(format!("{} of them", f.len())) })
    })
    .await
}

/// Three nodes in dc1, two in dc2; services, batch and system jobs, half of them impolite.
pub async fn a_datacenter_is_empty_by_the_deadline(given: Given) {
    let shape = Shape { nodes: 5, ..Shape::default() };
    let lab = given.labs.own_of(given.kind, &shape, &[]).await;
    let curfew = client(&lab);
    let name = |s: &str| unique(s);
    let (polite, impolite, last, b_polite, b_impolite, s_polite, s_impolite) =
        (name("svc-p"), name("svc-i"), name("six"), name("batch-p"), name("batch-i"), name("sys-p"), name("sys-i"));
    let many = |job: Value, count: u64| group(job, json!({ "Count": count }));
    let only_dc1 = |job: Value| with(job, json!({ "Datacenters": ["dc1"] }));
    let jobs = [
        (many(service(&polite, vec![task("t", POLITE)]), 5), 5),
        (many(service(&impolite, vec![task("t", IMPOLITE)]), 5), 5),
        (only_dc1(service(&last, vec![task("t", SIX_SECONDS_LEFT)])), 1),
        (many(only_dc1(batch(&b_polite, vec![task("t", POLITE)])), 2), 2),
        (many(only_dc1(batch(&b_impolite, vec![task("t", IMPOLITE)])), 2), 2),
        (system(&s_polite, POLITE), 5),
        (system(&s_impolite, IMPOLITE), 5),
    ];
    let mut all = vec![];
    for (job, count) in &jobs {
        lab.submit(job).await;
        all.extend(everywhere(&lab, job["ID"].as_str().unwrap(), *count).await);
    }
    let in_dc1: Vec<String> = ["dev1", "dev3", "dev5"].map(String::from).into();
    let (inside, outside): (Vec<Running>, Vec<Running>) = all.into_iter().partition(|r| in_dc1.contains(&r.node));
    assert!(inside.len() >= 11 && outside.len() >= 4, "{} and {}", inside.len(), outside.len());

    let plan = curfew.drain_plan(&of(datacenter("dc1"), 10)).await.unwrap();
    assert_eq!((plan.nodes.len(), plan.options.strategy, plan.refused), (3, Strategy::Evacuate, None));
    assert_eq!(plan.nodes.iter().map(|n| n.allocations.len()).sum::<usize>(), inside.len());
    let gets = |job: &str| plan.nodes.iter().flat_map(|n| &n.allocations).find(|a| a.job.job.as_str() == job).unwrap();
    assert_eq!((gets(&s_polite).gets, gets(&b_polite).gets), (Gets::ToldLast, Gets::ToldAtOnce));
    assert!(
        gets(&b_polite).not_replaced.is_some() && gets(&last).not_replaced.as_ref().is_some_and(|w| w.contains("no other node"))
    );

    let op = curfew.drain(&of(datacenter("dc1"), 10), None).await.unwrap();
    assert_eq!(op.kind, OpKind::DrainDatacenter);
    let deadline = op.requested_at + secs(10);
    let watch = async |proc: Proc, r: &Running| proc.death(PATIENCE, &format!("{} on {}", r.job, r.node)).await;
    let deaths = futures::future::join_all(inside.iter().map(|r| watch(r.task("t"), r))).await;
    for (r, death) in inside.iter().zip(&deaths) {
        assert!(*death <= deadline + late(), "{} on {} died {:?} after the deadline", r.job, r.node, death.since(deadline));
        let obeys = [&polite, &b_polite, &s_polite, &last].contains(&&r.job);
        assert!(obeys || *death >= deadline, "{} died {:?} before the deadline", r.job, deadline.since(*death));
    }
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    assert_eq!(op.state, State::Succeeded, "{op:?}");
    let outcome = op.outcome.unwrap();
    assert!(
        outcome.nodes.iter().all(|n| n.state == NodeState::Drained && n.started_at.is_some() && n.ended_at.is_some()),
        "{outcome:?}"
    );
    let impolite_inside = inside.iter().filter(|r| [&impolite, &b_impolite, &s_impolite].contains(&&r.job)).count();
    assert_eq!(
        (outcome.killed as usize, (outcome.exited + outcome.killed) as usize),
        (impolite_inside, inside.len()),
        "{outcome:?}"
    );
    // It had six seconds of work left, and finished it.
    let six = lab.cluster.api.allocations(&last).await.unwrap();
    let six = six.iter().find(|a| a["ID"] == inside.iter().find(|r| r.job == last).unwrap().alloc.as_str()).unwrap();
    assert_eq!(six["TaskStates"]["t"]["Failed"], false, "{}", six["TaskStates"]);
    // The other datacenter was not touched, and nothing came to a node of dc1.
    assert!(outside.iter().all(|r| r.task("t").lives()));
    for (job, _) in &jobs {
        for a in lab.cluster.api.allocations(job["ID"].as_str().unwrap()).await.unwrap() {
            let new = !inside.iter().any(|r| a["ID"] == r.alloc.as_str());
            assert!(!(new && in_dc1.iter().any(|n| a["NodeName"] == n.as_str())), "{} came to {}", a["JobID"], a["NodeName"]);
        }
    }
    for n in &in_dc1 {
        let n = node(&lab, n).await;
        assert_eq!((&n["SchedulingEligibility"], &n["Drain"]), (&json!("ineligible"), &json!(false)), "{n}");
        assert_eq!(n["LastDrain"]["Meta"]["curfew_reason"], "to see");
    }
    let undrained =
        curfew.undrain(&UndrainRequest { selection: datacenter("dc1"), ..UndrainRequest::default() }, None).await.unwrap();
    let undrained = lab.curfew.finished(undrained.id, PATIENCE).await;
    assert!(undrained.outcome.unwrap().nodes.iter().all(|n| n.state == NodeState::Eligible));
    assert_eq!(node(&lab, "dev1").await["SchedulingEligibility"], "eligible");
}

/// `migrate`: a batch job hears SIGTERM so long before the deadline that it can use its stop timeout.
pub async fn batch_hears_of_it_in_time(given: Given) {
    let lab = given.own().await;
    let home = lab.cluster.nodes()[0].clone();
    let (obeys, ignores) = (unique("drain-batch"), unique("drain-batch-i"));
    let own = |script: &str| vec![with(task("t", script), json!({ "KillTimeout": nanos(secs(3)) }))];
    let first = lab.start(&on(batch(&obeys, own(POLITE)), &home)).await;
    let second = lab.start(&on(batch(&ignores, own(IMPOLITE)), &home)).await;
    let op = client(&lab).drain(&of(nodes(&[&home]), 12), None).await.unwrap();
    assert_eq!(op.kind, OpKind::DrainNode);
    let quiet = eventually(PATIENCE, "that it is under way", async || {
        let op = lab.curfew.operation(op.id).await;
        let n = op.outcome.as_ref().and_then(|o| o.nodes.first()).cloned();
        n.filter(|n| n.left == 2).ok_or(format!("{op:?}"))
    })
    .await;
    assert!(quiet.allocations.iter().all(|a| a.waits == Waits::Turn), "{quiet:?}");
    let deadline = quiet.deadline.unwrap();
    let (soft, hard) = tokio::join!(first.task("t").death(PATIENCE, &obeys), second.task("t").death(PATIENCE, &ignores));
    assert!(soft <= deadline - secs(1) && soft >= deadline - secs(6), "told {:?} before the deadline", deadline.since(soft));
    assert!(hard >= deadline && hard <= deadline + late(), "{hard}, and the deadline was {deadline}");
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    assert_eq!((op.state, op.deadline), (State::Succeeded, Some(deadline)), "{op:?}");
    assert_eq!(op.outcome.as_ref().map(|o| (o.exited, o.killed)), Some((1, 1)), "{op:?}");
    assert_eq!(task_of(&op, Some(&second.alloc), "t").kill_at, Some(deadline));
    give_back(&lab, &[&obeys, &ignores]).await;
}

/// An unmanaged job is covered too.
pub async fn killed_in_the_middle_the_deadline_holds(given: Given) {
    let mut lab = given.own().await;
    let home = lab.cluster.nodes()[0].clone();
    let (managed, wild) = (unique("drain-crash"), unique("drain-wild"));
    let first = lab.start(&on(service(&managed, vec![task("t", IMPOLITE)]), &home)).await;
    let day = with(task("t", IMPOLITE), json!({ "KillTimeout": nanos(secs(86_400)), "KillSignal": "SIGTERM" }));
    let job = group(on(service(&wild, vec![day]), &home), json!({ "Update": { "ProgressDeadline": 0 } }));
    lab.cluster.api.put("/v1/jobs", &json!({ "Job": job })).await;
    let second = lab.running(&wild).await;
    let request = DrainRequest { strategy: Some(Strategy::Evacuate), ..of(nodes(&[&home]), 12) };
    let op = client(&lab).drain(&request, None).await.unwrap();
    let told = async |id: &str| {
        let a = lab.alloc(id).await;
        if a["DesiredStatus"] == "stop" { Ok(()) } else { Err(a["DesiredStatus"].to_string()) }
    };
    eventually(PATIENCE, "that they were told", async || told(&first.alloc).await).await;
    eventually(PATIENCE, "that they were told", async || told(&second.alloc).await).await;
    lab.own().kill().await;
    lab.own().restart().await;
    let deadline = lab.curfew.operation(op.id).await.deadline.unwrap();
    assert!(deadline >= op.requested_at + secs(12) && deadline <= op.requested_at + secs(14), "{deadline}");
    let (a, b) = tokio::join!(first.task("t").death(PATIENCE, &managed), second.task("t").death(PATIENCE, &wild));
    for death in [a, b] {
        assert!(death >= deadline && death <= deadline + late(), "{death}, and the deadline was {deadline}");
    }
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    assert_eq!((op.state, op.outcome.as_ref().map(|o| o.killed)), (State::Succeeded, Some(2)), "{op:?}");
    give_back(&lab, &[&managed, &wild]).await;
}

/// What was told keeps the drain's deadline, the rest stays, the nodes are as they were.
pub async fn cancelled_by_an_undrain_it_gives_the_nodes_back(given: Given) {
    let lab = given.own().await;
    let curfew = client(&lab);
    let [home, other] = [0, 1].map(|i| lab.cluster.nodes()[i].clone());
    let path = format!("/v1/node/{}/eligibility", node(&lab, &other).await["ID"].as_str().unwrap());
    let id = unique("drain-cancel");
    let batch_id = unique("drain-cancel-b");
    let told = lab.start(&on(service(&id, vec![task("t", IMPOLITE)]), &home)).await;
    lab.cluster.api.put(&path, &json!({ "Eligibility": "ineligible" })).await;
    let both = nodes(&[&home, &other]);
    let request = DrainRequest { strategy: Some(Strategy::Evacuate), ..of(both.clone(), 15) };
    let op = curfew.drain(&request, None).await.unwrap();
    assert_eq!(op.kind, OpKind::DrainDatacenter);
    eventually(PATIENCE, "that it was told", async || {
        let a = lab.alloc(&told.alloc).await;
        if a["DesiredStatus"] == "stop" { Ok(()) } else { Err(a["DesiredStatus"].to_string()) }
    })
    .await;
    // Nobody else may drain one of them meanwhile.
    refused(curfew.drain(&of(nodes(&[&home]), 5), None).await, 409, "overlap", &[&op.id.to_string(), &home]);
    let plan = curfew.drain_plan(&of(nodes(&[&home]), 5)).await.unwrap();
    assert!(plan.refused.is_some_and(|r| r.contains(&op.id.to_string())));
    let back = curfew.undrain(&UndrainRequest { selection: both, ..UndrainRequest::default() }, None).await.unwrap();
    let back = lab.curfew.finished(back.id, PATIENCE).await;
    let states: Vec<_> = back.outcome.unwrap().nodes.into_iter().map(|n| (n.name, n.state)).collect();
    assert_eq!(states, [(home.clone(), NodeState::Eligible), (other.clone(), NodeState::LeftAlone)]);
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    assert_eq!(op.state, State::Cancelled, "{op:?}");
    assert_eq!(node(&lab, &home).await["SchedulingEligibility"], "eligible");
    assert_eq!(node(&lab, &other).await["SchedulingEligibility"], "ineligible", "as it was before");
    // Told is told: by the deadline that it was given, although the operation is over.
    let child = op.outcome.unwrap().nodes.into_iter().find(|n| n.name == home).unwrap();
    let deadline = child.deadline.unwrap();
    let death = told.task("t").death(PATIENCE, &id).await;
    assert!(death >= deadline && death <= deadline + late(), "{death}, and the deadline was {deadline}");
    // The node takes work again.
    lab.start(&on(batch(&batch_id, vec![task("t", POLITE)]), &home)).await;
    give_back(&lab, &[&id, &batch_id]).await;
}

pub async fn somebody_elses_drain_is_left_alone(given: Given) {
    let lab = given.own().await;
    let curfew = client(&lab);
    let home = lab.cluster.nodes()[0].clone();
    let id = unique("drain-theirs");
    let running = lab.start(&on(batch(&id, vec![task("t", POLITE)]), &home)).await;
    let path = format!("/v1/node/{}/drain", node(&lab, &home).await["ID"].as_str().unwrap());
    let spec = json!({ "DrainSpec": { "Deadline": 600_000_000_000_i64 }, "Meta": { "owner": "ops" } });
    lab.cluster.api.put(&path, &spec).await;
    refused(
        curfew.drain(&of(nodes(&[&home]), 5), None).await,
        409,
        "drained-by-other",
        &["owner=ops", "nomad node drain -disable", &home],
    );
    let only = UndrainRequest { selection: nodes(&[&home]), ..UndrainRequest::default() };
    let left = curfew.undrain(&only, None).await.unwrap();
    let left = lab.curfew.finished(left.id, PATIENCE).await.outcome.unwrap().nodes.remove(0);
    assert_eq!(left.state, NodeState::LeftAlone);
    let all = curfew.undrain(&UndrainRequest { all: true, ..only }, None).await.unwrap();
    let all = lab.curfew.finished(all.id, PATIENCE).await.outcome.unwrap().nodes.remove(0);
    assert_eq!(all.state, NodeState::Eligible);
    // Somebody ends ours: it says so, and does not fight.
    let op = curfew.drain(&of(nodes(&[&home]), 60), None).await.unwrap();
    eventually(PATIENCE, "that it drains", async || {
        let n = node(&lab, &home).await;
        if n["Drain"] == true { Ok(()) } else { Err(n.to_string()) }
    })
    .await;
    lab.cluster.api.put(&path, &json!({ "DrainSpec": null, "MarkEligible": true })).await;
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    assert!(op.state == State::Failed && op.error.as_ref().is_some_and(|e| e.contains("somebody ended the drain")), "{op:?}");
    always(secs(1), "that it was left alone", async || if running.task("t").lives() { Ok(()) } else { Err("it is dead".into()) })
        .await;
    give_back(&lab, &[&id]).await;
}

/// The list of a node leaves out what the token may not see: without it nobody could say that the node is empty.
pub async fn what_the_token_hides_is_no_empty_node(given: Given) {
    let cluster = Cluster::start(given.kind, &Shape { nodes: 1, acl: true, ..Shape::default() }).await;
    let (api, home) = (&cluster.api, &cluster.nodes()[0]);
    api.put("/v1/namespace/hidden", &json!({ "Name": "hidden" })).await;
    let may_see = async |namespaces: &str| {
        let rest = r#"node { policy = "write" } agent { policy = "read" }"#;
        let rules = format!("namespace {namespaces:?} {{ policy = \"write\" }} {rest}");
        api.put("/v1/acl/policy/curfew", &json!({ "Name": "curfew", "Rules": rules })).await;
    };
    may_see("default").await;
    let made = api.put("/v1/acl/token", &json!({ "Name": "curfew", "Type": "client", "Policies": ["curfew"] })).await;
    let (seen, hidden) = (unique("drain-seen"), unique("drain-hidden"));
    for (id, space) in [(&seen, "default"), (&hidden, "hidden")] {
        let job = with(batch(id, vec![task("t", IMPOLITE)]), json!({ "Namespace": space }));
        api.put("/v1/jobs", &json!({ "Job": job })).await;
        runs(api, space, id).await;
    }
    let mut curfew = Controller::new(cluster.addr(), &[("NOMAD_TOKEN", made["SecretID"].as_str().unwrap())]);
    curfew.launch();
    let client = Client::new(curfew.addr()).unwrap();
    let request = DrainRequest { strategy: Some(Strategy::Evacuate), ..of(nodes(&[home]), 4) };
    // Before 1.10 the event stream opens with any namespace, and the list itself has to give it away.
    let tells = cluster.is_at_least((1, 10, 0));
    let status = curfew.api().clone();
    let blind = async || {
        eventually(PATIENCE, "the event stream to be refused", async || {
            let status = status.try_get("/v1/status").await?;
            let says = status["nomad"].as_str().unwrap_or_default();
            if if tells { says.contains("read-job in every namespace") } else { says == "in sight" } {
                Ok(())
            } else {
                Err(says.to_owned())
            }
        })
        .await;
    };
    blind().await;
    refused(client.drain(&request, None).await, 502, "nomad-permission-denied", &["read-job in every namespace"]);
    let n = api.get("/v1/nodes").await[0].clone();
    assert_eq!((&n["SchedulingEligibility"], &n["Drain"]), (&json!("eligible"), &json!(false)), "nothing was done");
    if !tells {
        return;
    }
    // It learns to see, and is blinded in the middle: then it does not say that the node is empty.
    may_see("*").await;
    curfew.ready().await;
    let op = client.drain(&request, None).await.unwrap();
    eventually(PATIENCE, "the drain to start", async || {
        let op = curfew.operation(op.id).await;
        if op.outcome.as_ref().is_some_and(|o| o.nodes.iter().any(|n| n.deadline.is_some())) {
            Ok(())
        } else {
            Err(format!("{op:?}"))
        }
    })
    .await;
    curfew.kill().await;
    may_see("default").await;
    curfew.launch();
    blind().await;
    eventually(PATIENCE, "that it says why it does not end", async || {
        let op = curfew.operation(op.id).await;
        let says = op.waiting_for.clone().unwrap_or_default();
        // What it waits for still stands there while the next step is under way.
        if says.contains("every namespace") && op.state == State::Waiting { Ok(()) } else { Err(format!("{op:?}")) }
    })
    .await;
    may_see("*").await;
    let op = curfew.finished(op.id, PATIENCE).await;
    assert_eq!(op.state, State::Succeeded, "{op:?}");
}

pub async fn what_is_refused(given: Given) {
    let lab = given.shared().await;
    let curfew = client(&lab);
    let drain = async |selection: Selection| curfew.drain(&of(selection, 5), None).await;
    refused(drain(Selection::default()).await, 400, "bad-request", &["datacenter"]);
    refused(drain(nodes(&["nobody"])).await, 404, "no-such-node", &["nobody", "dev1"]);
    refused(drain(datacenter("dc9")).await, 404, "no-such-node", &["dc9", "dc1, dc2"]);
    refused(drain(Selection { node_class: Some("gpu".into()), ..datacenter("dc1") }).await, 404, "no-such-node", &["gpu"]);
    // Ids are hexadecimal: of three nodes, two begin alike for some digit, or none does.
    let ids = lab.cluster.api.get("/v1/nodes").await;
    let ids: Vec<String> = ids.as_array().unwrap().iter().map(|n| n["ID"].as_str().unwrap()[..1].to_owned()).collect();
    if let Some(twice) = ids.iter().find(|d| ids.iter().filter(|o| o == d).count() > 1) {
        refused(drain(nodes(&[twice])).await, 422, "ambiguous-node", &["write more of the id"]);
    }
    let both = DrainRequest { no_deadline: true, ..of(datacenter("dc1"), 5) };
    refused(curfew.drain(&both, None).await, 400, "bad-request", &["not both"]);
    refused(curfew.drain(&of(datacenter("dc1"), 90_000), None).await, 422, "timeouts", &["kill_timeout (24h)", "25h"]);
    refused(curfew.drain(&of(datacenter("dc1"), 0), None).await, 400, "bad-request", &["longer than zero"]);
    let fits = curfew.drain_plan(&DrainRequest { drain_timeout: None, ..of(datacenter("dc1"), 1) }).await.unwrap();
    assert_eq!(fits.options.drain_timeout, Some(secs(3600)), "the default");
    assert_eq!(lab.cluster.api.get("/v1/nodes").await[0]["SchedulingEligibility"], "eligible", "nothing was done");
}

/// Its node is away at the deadline: the operation names it and waits, and what comes back is ended then.
pub async fn a_node_that_dies_and_comes_back(given: Given) {
    let lab = given.own().await;
    let home = lab.cluster.nodes()[0].clone();
    let id = unique("drain-away");
    let running = lab.start(&on(service(&id, vec![task("t", IMPOLITE)]), &home)).await;
    let request = DrainRequest { strategy: Some(Strategy::Evacuate), ..of(nodes(&[&home]), 6) };
    let op = client(&lab).drain(&request, None).await.unwrap();
    eventually(PATIENCE, "its SIGTERM", async || {
        let a = lab.alloc(&running.alloc).await;
        let killing = |e: &Value| e["Type"] == "Killing";
        let told = a["TaskStates"]["t"]["Events"].as_array().is_some_and(|e| e.iter().any(killing));
        if told { Ok(()) } else { Err(a["TaskStates"].to_string()) }
    })
    .await;
    lab.cluster.node_down(&home).await;
    eventually(PATIENCE, "that it names the node", async || {
        let op = lab.curfew.operation(op.id).await;
        let says = op.waiting_for.clone().unwrap_or_default();
        let past = op.deadline.is_some_and(|d| curfew_tests::now() > d);
        if past && says.contains(&home) && says.contains("come back") { Ok(()) } else { Err(format!("{op:?}")) }
    })
    .await;
    assert!(running.task("t").lives());
    lab.cluster.node_up(&home).await;
    running.task("t").death(PATIENCE, &id).await;
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    assert_eq!((op.state, op.outcome.as_ref().map(|o| o.killed)), (State::Succeeded, Some(1)), "{op:?}");
}

/// Every node is ineligible before the first one is drained, and the next one waits for the one before.
pub async fn one_node_at_a_time(given: Given) {
    let shape = Shape { nodes: 5, ..Shape::default() };
    let lab = given.labs.own_of(given.kind, &shape, &[]).await;
    let id = unique("drain-turns");
    let job = with(group(service(&id, vec![task("t", IMPOLITE)]), json!({ "Count": 3 })), json!({ "Datacenters": ["dc1"] }));
    let spread = json!({ "Constraints": [{ "Operand": "distinct_hosts", "RTarget": "true" }] });
    lab.submit(&with(job, spread)).await;
    everywhere(&lab, &id, 3).await;
    let request = DrainRequest { max_parallel: Some("1".parse().unwrap()), ..of(datacenter("dc1"), 3) };
    let op = client(&lab).drain(&request, None).await.unwrap();
    let first = eventually(PATIENCE, "the first one to drain", async || {
        let op = lab.curfew.operation(op.id).await;
        let nodes = op.outcome.map(|o| o.nodes).unwrap_or_default();
        if nodes.iter().any(|n| n.state == NodeState::Draining) { Ok(nodes) } else { Err(format!("{nodes:?}")) }
    })
    .await;
    assert_eq!(first.iter().filter(|n| n.state == NodeState::Waiting).count(), 2, "{first:?}");
    for n in ["dev1", "dev3", "dev5"] {
        assert_eq!(node(&lab, n).await["SchedulingEligibility"], "ineligible");
    }
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    let mut turns: Vec<_> = op.outcome.unwrap().nodes.iter().map(|n| (n.started_at.unwrap(), n.ended_at.unwrap())).collect();
    turns.sort();
    assert!(op.state == State::Succeeded && turns.windows(2).all(|w| w[0].1 <= w[1].0), "{turns:?}");
    assert_eq!(lab.cluster.api.allocations(&id).await.unwrap().len(), 3, "nothing moved onto a node that was next");
}

/// Told to leave, with its process; the drain of its node has started.
async fn told(lab: &Lab, running: &Running) {
    eventually(PATIENCE, &format!("that {} was told", running.job), async || {
        let a = lab.alloc(&running.alloc).await;
        if a["DesiredStatus"] == "stop" { Ok(()) } else { Err(a["DesiredStatus"].to_string()) }
    })
    .await;
}

fn the_tests() -> Who {
    Who { actor: Some("the tests".into()), reason: None }
}

/// The deadline moves in Nomad's meta too; while the drain is paused its clocks run on.
pub async fn extended_hurried_and_paused(given: Given) {
    let lab = given.own().await;
    let curfew = client(&lab);
    let home = lab.cluster.nodes()[0].clone();
    let (first, second) = (unique("drain-moved"), unique("drain-paused"));
    let running = lab.start(&on(batch(&first, vec![task("t", IMPOLITE)]), &home)).await;
    let request = |timeout| DrainRequest { strategy: Some(Strategy::Evacuate), ..of(nodes(&[&home]), timeout) };
    let op = curfew.drain(&request(5), None).await.unwrap();
    told(&lab, &running).await;
    let before = lab.curfew.operation(op.id).await.deadline.unwrap();
    let extend = ExtendRequest { by: Some(secs(3600)), until: None, who: the_tests() };
    let after = curfew.extend(op.id, &extend).await.unwrap().deadline.unwrap();
    assert_eq!(after, before + secs(3600));
    eventually(PATIENCE, "Nomad to know", async || {
        let meta = node(&lab, &home).await["LastDrain"]["Meta"].clone();
        if meta["curfew_deadline"] == after.to_string() { Ok(()) } else { Err(meta.to_string()) }
    })
    .await;
    clock_passes(before + secs(1), "the first deadline to pass").await;
    assert!(running.task("t").lives(), "the first deadline counts no more");
    let hurried = curfew.kill_now(op.id, the_tests()).await.unwrap();
    let death = running.task("t").death(PATIENCE, &first).await;
    let (least, most) = (hurried.deadline.unwrap(), curfew_tests::now());
    assert!(death >= least && most.since(least) <= late(), "{death}, hurried to {least}");
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    assert_eq!((op.state, op.outcome.map(|o| o.killed)), (State::Succeeded, Some(1)));
    let back = curfew.undrain(&UndrainRequest { selection: nodes(&[&home]), ..UndrainRequest::default() }, None).await.unwrap();
    lab.curfew.finished(back.id, PATIENCE).await;

    let running = lab.start(&on(batch(&second, vec![task("t", IMPOLITE)]), &home)).await;
    let op = curfew.drain(&request(5), None).await.unwrap();
    told(&lab, &running).await;
    let deadline = lab.curfew.operation(op.id).await.deadline.unwrap();
    curfew.pause(op.id, the_tests()).await.unwrap();
    let death = running.task("t").death(PATIENCE, &second).await;
    assert!(death >= deadline && death <= deadline + late(), "{death}, and the deadline was {deadline}");
    always(secs(2), "it stays paused", async || match lab.curfew.operation(op.id).await.state {
        State::Paused => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    curfew.resume(op.id, the_tests()).await.unwrap();
    assert_eq!(lab.curfew.finished(op.id, PATIENCE).await.state, State::Succeeded);
    give_back(&lab, &[&first, &second]).await;
}

/// A paused set starts no more nodes; the one that drains goes on. What moves the set's deadline moves its nodes'.
pub async fn a_set_is_paused_between_its_nodes_and_hurried(given: Given) {
    let lab = given.own().await;
    let curfew = client(&lab);
    let both = [0, 1].map(|i| lab.cluster.nodes()[i].clone());
    let ids = [unique("drain-set"), unique("drain-set")];
    let mut all = vec![];
    for (id, home) in ids.iter().zip(&both) {
        all.push(lab.start(&on(batch(id, vec![task("t", IMPOLITE)]), home)).await);
    }
    let selection = nodes(&[&both[0], &both[1]]);
    let one = Some("1".parse().unwrap());
    let request = DrainRequest { strategy: Some(Strategy::Evacuate), max_parallel: one, ..of(selection, 4) };
    let op = curfew.drain(&request, None).await.unwrap();
    let state_of = async |state: NodeState| {
        let nodes = lab.curfew.operation(op.id).await.outcome.map(|o| o.nodes).unwrap_or_default();
        nodes.iter().find(|n| n.state == state).map(|n| n.name.clone()).ok_or(format!("{nodes:?}"))
    };
    let first = eventually(PATIENCE, "the first node to drain", async || state_of(NodeState::Draining).await).await;
    curfew.pause(op.id, the_tests()).await.unwrap();
    let (gone, stays) = if first == both[0] { (&all[0], &all[1]) } else { (&all[1], &all[0]) };
    gone.task("t").death(PATIENCE, &gone.job).await;
    always(secs(3), "the other node has not begun", async || {
        let n = node(&lab, &stays.node).await;
        let waits = n["Drain"] == false && n["SchedulingEligibility"] == "ineligible" && stays.task("t").lives();
        if waits { Ok(()) } else { Err(n.to_string()) }
    })
    .await;
    curfew.resume(op.id, the_tests()).await.unwrap();
    told(&lab, stays).await;
    let hurried = curfew.kill_now(op.id, the_tests()).await.unwrap();
    stays.task("t").death(PATIENCE, &stays.job).await;
    assert!(curfew_tests::now().since(hurried.deadline.unwrap_or(hurried.requested_at)) <= secs(30));
    let op = lab.curfew.finished(op.id, PATIENCE).await;
    assert_eq!((op.state, op.outcome.map(|o| o.killed)), (State::Succeeded, Some(2)));
    give_back(&lab, &[&ids[0], &ids[1]]).await;
}

/// The one that appears joins, the one that is gone is named.
pub async fn nodes_that_appear_and_leave(given: Given) {
    let cluster = Cluster::start(given.kind, &Shape { nodes: 3, ..Shape::default() }).await;
    let curfew = Controller::start(cluster.addr(), &[("CURFEW_RESYNC_INTERVAL", "5s")]).await;
    let [stays, _, leaves] = [0, 1, 2].map(|i| cluster.nodes()[i].clone());
    for home in [&stays, &leaves] {
        let id = unique("drain-comes");
        let day = with(task("t", IMPOLITE), json!({ "KillTimeout": nanos(secs(86_400)), "KillSignal": "SIGTERM" }));
        cluster.api.put("/v1/jobs", &json!({ "Job": on(batch(&id, vec![day]), home) })).await;
        eventually(PATIENCE, &format!("{id} to run"), async || {
            let all = cluster.api.allocations(&id).await?;
            if all.iter().any(|a| a["ClientStatus"] == "running") { Ok(()) } else { Err(format!("{all:?}")) }
        })
        .await;
    }
    let client = Client::new(curfew.addr()).unwrap();
    let op = client.drain(&of(datacenter("dc1"), 40), None).await.unwrap();
    let states = async |wanted: &[(&str, NodeState)]| {
        let nodes = curfew.operation(op.id).await.outcome.map(|o| o.nodes).unwrap_or_default();
        let as_wanted = |w: &(&str, NodeState)| nodes.iter().any(|n| n.name == w.0 && n.state == w.1);
        if wanted.iter().all(as_wanted) { Ok(()) } else { Err(format!("{nodes:?}")) }
    };
    eventually(PATIENCE, "both to drain", async || {
        states(&[(&stays, NodeState::Draining), (&leaves, NodeState::Draining)]).await
    })
    .await;
    cluster.node_joins("late", "dc1").await;
    cluster.node_leaves(&leaves).await;
    let now = [(&*stays, NodeState::Draining), ("late", NodeState::Drained), (&*leaves, NodeState::Gone)];
    eventually(PATIENCE, "one to have joined and one to be gone", async || states(&now).await).await;
    let all = cluster.api.get("/v1/nodes").await;
    let late = all.as_array().unwrap().iter().find(|n| n["Name"] == "late").unwrap();
    assert_eq!(late["SchedulingEligibility"], "ineligible");
    let op = curfew.finished(op.id, PATIENCE).await;
    assert_eq!((op.state, op.outcome.map(|o| (o.killed, o.nodes.len()))), (State::Succeeded, Some((1, 3))));
    assert!(op.warnings.iter().any(|w| w.contains(&leaves) && w.contains("cannot be seen")), "{:?}", op.warnings);
}

/// The other one keeps the deadline, which is in the database and in Nomad.
pub async fn its_keeper_is_killed_in_the_middle(given: Given) {
    let Some(database) = Server::start(given.name()) else { return given.skip("PostgreSQL is not installed") };
    let cluster = Cluster::start(given.kind, &Shape { nodes: 3, ..Shape::default() }).await;
    let mut two = [0, 1].map(|_| Controller::new(cluster.addr(), &super::two::ENV).on(&database.url()));
    for controller in &mut two {
        controller.launch();
        controller.ready().await;
    }
    let homes: Vec<&String> = [0, 2].map(|i| &cluster.nodes()[i]).into();
    let mut victims = vec![];
    for home in &homes {
        let id = unique("drain-two");
        let day = with(task("t", IMPOLITE), json!({ "KillTimeout": nanos(secs(86_400)), "KillSignal": "SIGTERM" }));
        cluster.api.put("/v1/jobs", &json!({ "Job": on(batch(&id, vec![day]), home) })).await;
        victims.push(
            eventually(PATIENCE, &format!("{id} to run"), async || {
                let all = cluster.api.allocations(&id).await?;
                let found = all.iter().find(|a| a["ClientStatus"] == "running").and_then(|a| a["ID"].as_str()).map(str::to_owned);
                let alloc = found.ok_or_else(|| format!("{all:?}"))?;
                let proc = of_task(&id, &alloc, "t").first().copied().filter(|p| p.minds_sigterm());
                proc.map(|p| (id.clone(), alloc.clone(), p)).ok_or_else(|| "it does not heed SIGTERM yet".into())
            })
            .await,
        );
    }
    // Asked of whoever stands by.
    let status = two[0].api().get("/v1/status").await;
    let holder = usize::from(status["keeper"] != status["controller"]);
    let other = 1 - holder;
    let op = Client::new(two[other].addr()).unwrap().drain(&of(datacenter("dc1"), 12), None).await.unwrap();
    for (_, alloc, _) in &victims {
        eventually(PATIENCE, "it to be told", async || {
            let a = cluster.api.allocation(alloc).await?;
            if a["DesiredStatus"] == "stop" { Ok(()) } else { Err(a["DesiredStatus"].to_string()) }
        })
        .await;
    }
    two[holder].kill().await;
    let op_id = op.id;
    let deadlines: Vec<_> = eventually(PATIENCE, "the other one to tell the deadlines", async || {
        let nodes = two[other].operation(op_id).await.outcome.map(|o| o.nodes).unwrap_or_default();
        let all: Vec<_> = nodes.iter().filter_map(|n| n.deadline).collect();
        if all.len() == 2 { Ok(all) } else { Err(format!("{nodes:?}")) }
    })
    .await;
    let (least, most) = (*deadlines.iter().min().unwrap(), *deadlines.iter().max().unwrap());
    assert!(most <= op.requested_at + secs(16), "{most}");
    for (id, _, proc) in &victims {
        let death = proc.death(PATIENCE, id).await;
        assert!(death >= least && death <= most + late(), "{death}, and the deadlines were {deadlines:?}");
    }
    let op = two[other].finished(op_id, PATIENCE).await;
    assert_eq!((op.state, op.outcome.map(|o| o.killed)), (State::Succeeded, Some(2)));
}

/// Every controller dies, and the database with them: Nomad tells what is left in time, and the gc ends it by the deadline in the meta.
pub async fn nobody_is_left_but_nomad_and_the_gc(given: Given) {
    let mut lab = given.own().await;
    let home = lab.cluster.nodes()[0].clone();
    let id = unique("drain-alone");
    let running = lab.start(&on(batch(&id, vec![task("t", IMPOLITE)]), &home)).await;
    let op = client(&lab).drain(&of(nodes(&[&home]), 14), None).await.unwrap();
    let deadline = eventually(PATIENCE, "Nomad to have the drain", async || {
        let n = node(&lab, &home).await;
        let text = n["LastDrain"]["Meta"]["curfew_deadline"].as_str().filter(|_| n["Drain"] == true);
        text.and_then(|t| t.parse::<Timestamp>().ok()).ok_or(n.to_string())
    })
    .await;
    assert!(deadline >= op.requested_at + secs(14));
    lab.own().kill().await;
    std::fs::remove_file(lab.curfew.database()).unwrap();
    // Batch hears nothing before Nomad's own deadline, which lies before ours.
    told(&lab, &running).await;
    let gc = async || {
        let args = ["gc", "--yes", "--json", "--grace", "1s", "--verdict", "node_left=off"];
        let env = curfew_tests::command::curfew(args).env("NOMAD_ADDR", lab.cluster.addr());
        env.run().await
    };
    let early = gc().await;
    assert!(running.task("t").lives() || curfew_tests::now() > deadline, "before the deadline: {early}");
    clock_passes(deadline + secs(2), "the deadline to pass").await;
    assert!(running.task("t").lives(), "nobody was there to end it");
    let ran = gc().await;
    let death = running.task("t").death(PATIENCE, &id).await;
    assert!(death >= deadline, "{death}, and the deadline was {deadline}: {ran}");
    lab.own().restart().await;
    give_back(&lab, &[&id]).await;
}
