use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::alloc::Placed;
use crate::clock::Graces;
use crate::deployment::{Deployment, GroupProgress};
use crate::{Allocation, ClientStatus, Desired, EventKind, JobKey, Task, TaskEvent, TaskState};

const S: Duration = Duration::from_secs(1);

fn at(s: i64) -> Timestamp {
    Timestamp::from_millis(s * 1000)
}

fn graces() -> Graces {
    Graces { job_stop_timeout: S * 30, poststop_timeout: S * 300, settle: S }
}

/// Version `n` was registered at index `n * 100`.
fn version(n: u64, stable: bool) -> Version {
    of_type("service", n, stable)
}

fn of_type(kind: &str, n: u64, stable: bool) -> Version {
    Version::from_json(&json!({
        "ID": "j", "Type": kind, "Version": n, "JobModifyIndex": n * 100, "SubmitTime": n + 1, "Stable": stable, "Meta": { "curfew_managed": "true" },
        "TaskGroups": [{ "Name": "g", "Count": 1, "Meta": { "curfew_progress_deadline": "1m" },
            "RestartPolicy": { "Attempts": 10, "Mode": "delay", "Interval": 600_000_000_000_u64, "Delay": 10_000_000_000_u64 },
            "Tasks": [{ "Name": "t", "Driver": "raw_exec", "Meta": { "curfew_stop_timeout": "5s" } }] }],
    }))
}

fn deployment(n: u64, status: DeploymentStatus, index: u64) -> Deployment {
    let group = GroupProgress {
        progress_deadline: S * 90_000,
        require_progress_by: Some(at(0) + S * 90_000),
        desired: 1,
        placed: 1,
        healthy: u64::from(status == Successful),
        unhealthy: 0,
        canaries: 0,
        promoted: false,
        auto_promote: false,
    };
    Deployment {
        id: format!("deployment-{n}"),
        key: JobKey::new("default", "j"),
        job_version: n,
        status,
        description: String::new(),
        create_index: n * 100 + 1,
        modify_index: index,
        modified_at: None,
        groups: [("g".to_owned(), group)].into(),
    }
}

fn event(kind: EventKind, s: i64) -> TaskEvent {
    TaskEvent { kind, at: at(s), exit_code: 0, signal: 0, kill_timeout: None, delay: None, text: None }
}

fn exited(s: i64, code: i64) -> TaskEvent {
    TaskEvent { exit_code: code, ..event(EventKind::Terminated, s) }
}

fn restarting(s: i64, delay: u64) -> TaskEvent {
    TaskEvent { delay: Some(S * u32::try_from(delay).unwrap()), ..event(EventKind::Restarting, s) }
}

fn placed(id: &str, n: u64, desired: Desired, state: TaskState, events: Vec<TaskEvent>) -> Placed {
    let started_at = events.iter().rev().find(|e| e.kind == EventKind::Started).map(|e| e.at);
    let restarts = events.iter().filter(|e| e.kind == EventKind::Restarting).count();
    let task = Task { state, failed: false, restarts: restarts.try_into().unwrap(), started_at, finished_at: None, events };
    let client_status = match state {
        TaskState::Pending => ClientStatus::Pending,
        TaskState::Running => ClientStatus::Running,
        TaskState::Dead => ClientStatus::Complete,
    };
    let alloc = Allocation {
        id: id.into(),
        namespace: "default".into(),
        job: "j".into(),
        job_version: Some(n),
        group: "g".into(),
        name: "j.g[0]".into(),
        node: "n".into(),
        node_name: "dev1".into(),
        desired,
        client_status,
        migrate: false,
        no_shutdown_delay: false,
        create_index: n * 100 + 2,
        modify_index: n * 100 + 150,
        modified_at: None,
        tasks: [("t".into(), task)].into_iter().collect(),
    };
    Placed { alloc, created_at: Some(at(0)), healthy: None, health_at: None, canary: false, rescheduled: false }
}

fn running(id: &str, n: u64) -> Placed {
    placed(id, n, Desired::Run, TaskState::Running, vec![event(EventKind::Received, 0), event(EventKind::Started, 0)])
}

/// Version 2 was registered over 1.
fn seen(deployments: Vec<Deployment>, allocations: Vec<Placed>) -> Seen {
    let versions = vec![version(2, false), version(1, true), version(0, true)];
    Seen { registered: 200, deployments, versions, allocations, ..Seen::default() }
}

fn once(seen: &Seen) -> (RolloutView, Verdict) {
    follow(&RolloutView::default(), seen, &graces(), at(10))
}

fn ends(seen: &Seen) -> (End, String) {
    match once(seen).1 {
        Verdict::End(end, why) => (end, why),
        wait @ Verdict::Wait { .. } => panic!("{wait:?}"),
    }
}

fn waits(seen: &Seen) -> String {
    match once(seen).1 {
        Verdict::Wait { waiting_for, .. } => waiting_for,
        end @ Verdict::End(..) => panic!("{end:?}"),
    }
}

use DeploymentStatus::{Cancelled, Failed, Paused, Running, Successful};

#[test]
fn it_follows_the_deployment_of_its_own_version_and_never_an_older_one() {
    let old = deployment(1, Successful, 150);
    assert_eq!(waits(&Seen { evaluating: true, ..seen(vec![old.clone()], vec![]) }), "Nomad to place its allocations");
    let of_ours = seen(vec![old.clone(), deployment(2, Running, 250)], vec![running("a", 2)]);
    let (view, verdict) = once(&of_ours);
    assert_eq!((view.version, view.deployments.len(), view.deployments[0].version), (Some(2), 1, 2));
    let Verdict::Wait { waiting_for, deadline } = verdict else { panic!("{verdict:?}") };
    assert_eq!((waiting_for.as_str(), deadline), ("group g: 0 of 1 healthy", Some(at(60))), "the author's minute");
    assert_eq!(ends(&seen(vec![old, deployment(2, Successful, 260)], vec![running("a", 2)])).0, End::Deployed);
}

#[test]
fn what_was_told_to_end_is_waited_for_while_its_node_is_there() {
    let told = vec![event(EventKind::Started, 0), event(EventKind::Killing, 4)];
    let old = placed("old", 1, Desired::Stop, TaskState::Running, told);
    let good = deployment(2, Successful, 260);
    let (view, verdict) = once(&seen(vec![good.clone()], vec![running("a", 2), old.clone()]));
    let Verdict::Wait { waiting_for, .. } = verdict else { panic!("{verdict:?}") };
    assert_eq!(waiting_for, format!("1 allocation of another version to end, SIGKILL at {}", at(9)));
    let group = &view.groups["g"];
    assert_eq!(group.leaving, 1);
    assert!(group.timeline.iter().any(|h| h.alloc.as_str() == "old" && h.what == What::ToldToEnd { kill_at: Some(at(9)) }));
    let mut lost = old;
    lost.alloc.client_status = ClientStatus::Lost;
    assert_eq!(ends(&seen(vec![good], vec![running("a", 2), lost])).0, End::Deployed);
}

/// Version 3 was submitted when version 1 was: Nomad went back to that one.
fn rolled_back(second: Option<DeploymentStatus>) -> Seen {
    let failed = Deployment { description: "Failed due to unhealthy allocations".into(), ..deployment(2, Failed, 300) };
    let all = [Some(failed), second.map(|status| deployment(3, status, 350))];
    let before = seen(all.into_iter().flatten().collect(), vec![running("a", 3)]);
    let back = Version { submitted: version(1, true).submitted, ..version(3, true) };
    let versions = [vec![back], before.versions].concat();
    Seen { versions, ..before }
}

#[test]
fn an_auto_revert_is_followed_to_its_end_and_the_version_named() {
    assert_eq!(waits(&Seen { evaluating: true, ..rolled_back(None) }), "Nomad to place its allocations");
    assert!(waits(&rolled_back(Some(Running))).starts_with("group g: 0 of 1 healthy"));
    let (view, verdict) = once(&rolled_back(Some(Successful)));
    assert!(matches!(verdict, Verdict::End(End::Reverted, _)), "{verdict:?}");
    assert_eq!((view.end, view.reverted_to, view.failed_by), (Some(End::Reverted), Some(1), Some(FailedBy::Unhealthy)));
    assert_eq!(view.deployments.iter().map(|d| d.rollback).collect::<Vec<_>>(), [false, true]);
    let (end, why) = ends(&rolled_back(Some(Failed)));
    assert!(end == End::Failed && why.contains("going back to version 1 failed as well"), "{why}");
    assert_eq!(ends(&rolled_back(Some(Cancelled))).0, End::Superseded);
}

#[test]
fn a_newer_version_of_somebody_elses_is_no_rollback() {
    let mut both = rolled_back(Some(Successful));
    both.versions[0].submitted = 4;
    assert_eq!(ends(&both).0, End::Failed);
}

#[test]
fn a_deadline_that_passed_is_told_from_a_hand_that_failed_it() {
    let running = seen(vec![deployment(2, Running, 250)], vec![running("a", 2)]);
    let (before, _) = once(&running);
    let marked = Deployment { description: "Deployment marked as failed".into(), ..deployment(2, Failed, 300) };
    let failed = Seen { deployments: vec![marked], ..running };
    let by = |now: i64| follow(&before, &failed, &graces(), at(now)).0.failed_by;
    assert_eq!((by(59), by(61)), (Some(FailedBy::Hand), Some(FailedBy::ProgressDeadline)));
}

#[test]
fn paused_cancelled_stopped_purged() {
    assert!(waits(&seen(vec![deployment(2, Paused, 250)], vec![])).contains("resume"));
    let stopped = |stop: bool| {
        let mut s = seen(vec![deployment(2, Cancelled, 300)], vec![]);
        s.versions.insert(0, version(3, false));
        s.versions[0].spec.stopped = stop;
        ends(&s)
    };
    assert_eq!(stopped(true), (End::Superseded, "the job was stopped".into()));
    assert_eq!(stopped(false), (End::Superseded, "version 3 of the job was registered".into()));
    assert_eq!(ends(&Seen { versions: vec![], ..seen(vec![], vec![]) }).0, End::Superseded);
    // Nomad cancels the deployment with the evaluation of the newer version; until then nothing is certain.
    let mut early = seen(vec![deployment(2, Running, 250)], vec![]);
    early.versions.insert(0, version(3, false));
    waits(&early);
}

#[test]
fn canaries_wait_for_a_person_and_say_so() {
    let mut d = deployment(2, Running, 250);
    let g = d.groups.get_mut("g").unwrap();
    (g.desired, g.canaries, g.healthy) = (3, 1, 1);
    assert_eq!(waits(&seen(vec![d.clone()], vec![])), "group g: 1 of 1 canaries healthy, to be promoted: curfew job promote j");
    d.groups.get_mut("g").unwrap().auto_promote = true;
    assert!(waits(&seen(vec![d], vec![])).starts_with("group g: 1 of 1 canaries healthy"));
}

fn no_place() -> BTreeMap<String, Unplaced> {
    let constraints = [("${attr.kernel.name} = windows".to_owned(), 3)].into();
    [("g".to_owned(), Unplaced { allocations: 1, nodes: 3, filtered: 3, constraints, ..Unplaced::default() })].into()
}

#[test]
fn what_has_no_place_waits_for_its_deadline_and_stalls_without_one() {
    let mut d = deployment(2, Running, 250);
    let unplaced = |d: &Deployment| Seen { unplaced: no_place(), ..seen(vec![d.clone()], vec![]) };
    let sentence = "1 allocation has no place on 3 nodes: constraint \"${attr.kernel.name} = windows\" rules out 3 nodes";
    assert_eq!(waits(&unplaced(&d)), format!("group g: 0 of 1 healthy, {sentence}"));
    d.groups.get_mut("g").unwrap().require_progress_by = None;
    assert_eq!(ends(&unplaced(&d)), (End::Stalled, format!("group g: {sentence}")));
    // Room may come, for as long as the author grants for progress.
    let full = |s: Seen| Seen { unplaced: no_room(), began: at(-55), ..s };
    let by = |now: i64| follow(&RolloutView::default(), &full(unplaced(&d)), &graces(), at(now)).1;
    assert!(matches!(by(4), Verdict::Wait { deadline: Some(d), .. } if d == at(5)), "{:?}", by(4));
    assert!(matches!(by(5), Verdict::End(End::Stalled, _)), "{:?}", by(5));
    assert!(waits(&full(batch(vec![]))).contains("2 nodes have too little memory"));
    // Something is under way yet.
    waits(&Seen { allocations: vec![running("a", 2)], ..unplaced(&d) });
}

fn no_room() -> BTreeMap<String, Unplaced> {
    let short_of = [("memory".to_owned(), 2)].into();
    [("g".to_owned(), Unplaced { allocations: 2, nodes: 2, exhausted: 2, short_of, ..Unplaced::default() })].into()
}

fn batch(allocations: Vec<Placed>) -> Seen {
    let versions = vec![of_type("batch", 2, false), of_type("batch", 1, false)];
    Seen { versions, ..seen(vec![], allocations) }
}

#[test]
fn without_a_deployment_it_is_done_when_what_was_placed_has_started() {
    let unstarted = placed("a", 2, Desired::Run, TaskState::Pending, vec![]);
    assert_eq!(waits(&batch(vec![unstarted])), "1 allocation to start");
    assert_eq!(ends(&batch(vec![running("a", 2)])).0, End::Deployed);
    assert_eq!(ends(&batch(vec![])).0, End::Deployed, "a count of zero");
    let (end, why) = ends(&Seen { unplaced: no_place(), ..batch(vec![]) });
    assert!(end == End::Stalled && why.contains("${attr.kernel.name} = windows"), "{why}");
    let mut failed = placed("a", 2, Desired::Run, TaskState::Dead, vec![event(EventKind::Started, 0), exited(2, 3)]);
    failed.alloc.client_status = ClientStatus::Failed;
    let (end, why) = ends(&batch(vec![failed.clone()]));
    assert!(end == End::Failed && why.contains("task t exited with 3"), "{why}");
    failed.rescheduled = true;
    assert_eq!(ends(&batch(vec![failed, running("b", 2)])).0, End::Deployed);
    let mut newer = batch(vec![running("a", 2)]);
    newer.versions.insert(0, of_type("batch", 3, false));
    assert_eq!(ends(&newer).0, End::Superseded);
}

#[test]
fn the_same_again_is_nothing_to_do_unless_it_failed_before() {
    let again = |status| Seen { base: 200, ..seen(vec![deployment(2, status, 250)], vec![running("a", 2)]) };
    let (view, verdict) = once(&again(Successful));
    assert_eq!((view.unchanged, verdict), (true, Verdict::End(End::Deployed, String::new())));
    assert_eq!(ends(&again(Failed)).0, End::Failed);
    waits(&again(Running));
    assert_eq!(ends(&Seen { base: 200, ..batch(vec![]) }).0, End::Deployed);
    // As a real Nomad answers: an index of the job that no version has.
    let (view, verdict) = once(&Seen { base: 200, registered: 220, ..again(Successful) });
    assert_eq!((view.unchanged, view.version, verdict), (true, Some(2), Verdict::End(End::Deployed, String::new())));
}

/// A task keeps ten events; the story keeps what was seen, and numbers restarts as the client does.
#[test]
fn the_story_outlives_the_ten_events() {
    let look = |events: Vec<TaskEvent>, restarts: u64, before: &RolloutView| {
        let mut p = placed("a", 2, Desired::Run, TaskState::Running, events);
        p.alloc.tasks.iter_mut().for_each(|(_, t)| t.restarts = restarts);
        follow(before, &seen(vec![deployment(2, Running, 250)], vec![p]), &graces(), at(10)).0
    };
    let first = vec![event(EventKind::Received, 0), event(EventKind::Started, 0), exited(15, 1), restarting(15, 10)];
    let view = look(first, 1, &RolloutView::default());
    let later = vec![event(EventKind::Started, 25), exited(40, 1), restarting(40, 10), event(EventKind::Started, 50)];
    let view = look(later.clone(), 2, &view);
    let same = look(later, 2, &view);
    assert_eq!(view, same, "what is known already is not told twice");
    let story: Vec<(i64, What)> =
        view.groups["g"].timeline.iter().map(|h| (h.at.as_micros() / 1_000_000, h.what.clone())).collect();
    let exit = What::Exited { exit_code: 1, signal: 0 };
    let restart = |number, next| What::Restarting { number, of: 10, within: S * 600, next_at: at(next) };
    let expected = [
        (0, What::Placed { canary: false }),
        (0, What::Started),
        (15, exit.clone()),
        (15, restart(1, 25)),
        (25, What::Started),
        (40, exit),
        (40, restart(2, 50)),
        (50, What::Started),
    ];
    assert_eq!(story, expected);
    let text = serde_json::to_value(&view.groups["g"].timeline[6]).unwrap();
    let json = json!({ "at": at(40), "alloc": "a", "node": "dev1", "version": 2, "task": "t",
        "what": { "is": "restarting", "number": 2, "of": 10, "within": "10m", "next_at": at(50) } });
    assert_eq!(text, json);
    assert_eq!(serde_json::from_value::<RolloutView>(serde_json::to_value(&view).unwrap()).unwrap(), view);
}

#[test]
fn an_endless_story_is_cut_at_its_beginning() {
    let mut view = RolloutView::default();
    for n in 0..300i64 {
        let events = vec![event(EventKind::Started, n * 20), exited(n * 20 + 10, 1), restarting(n * 20 + 10, 10)];
        view = follow(
            &view,
            &seen(vec![deployment(2, Running, 250)], vec![placed("a", 2, Desired::Run, TaskState::Running, events)]),
            &graces(),
            at(10),
        )
        .0;
    }
    let group = &view.groups["g"];
    assert_eq!((group.timeline.len(), group.timeline.last().unwrap().at), (400, at(299 * 20 + 10)));
    assert_eq!(group.left_out, 900 + 1 - 400);
}
