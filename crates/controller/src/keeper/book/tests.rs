//! What the book says is to be done, event by event. Times are milliseconds.

use curfew_core::config::Config;
use curfew_core::operation::{Lease, Operation, Progress, Request, State};
use curfew_core::{ClientStatus, Task, TaskEvent, TaskName, TaskState};
use serde_json::Value;

use super::*;

const ID: &str = "5355e9cc-8203-6163-e9fa-86ea80c11132";

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis(ms)
}

fn key() -> JobKey {
    JobKey::new("default", "j")
}

fn id() -> AllocId {
    ID.into()
}

fn spec(index: u64, stop_timeout: &str) -> JobSpec {
    JobSpec::from_json(&json!({
        "ID": "j", "Type": "service", "JobModifyIndex": index, "Meta": { "curfew_managed": "true" },
        "TaskGroups": [{ "Name": "g", "Tasks": [{
            "Name": "t", "Driver": "raw_exec", "KillTimeout": 86_400_000_000_000u64, "Meta": { "curfew_stop_timeout": stop_timeout },
        }] }],
    }))
}

fn event(kind: EventKind, ms: i64) -> TaskEvent {
    TaskEvent { kind, at: at(ms), exit_code: 0, signal: 0, kill_timeout: None, delay: None, text: None }
}

struct Shown {
    desired: Desired,
    status: ClientStatus,
    state: TaskState,
    events: Vec<TaskEvent>,
    create_index: u64,
    modify_index: u64,
}

impl Shown {
    fn healthy() -> Self {
        let (desired, status, state) = (Desired::Run, ClientStatus::Running, TaskState::Running);
        Self { desired, status, state, events: vec![], create_index: 10, modify_index: 20 }
    }
    fn stopped(events: Vec<TaskEvent>) -> Self {
        Self { desired: Desired::Stop, events, modify_index: 30, ..Self::healthy() }
    }
    fn dead(signal: i64) -> Self {
        let end = TaskEvent { exit_code: if signal == 9 { 137 } else { 0 }, signal, ..event(EventKind::Terminated, 5000) };
        let events = vec![event(EventKind::Killing, 1000), end];
        Self { state: TaskState::Dead, status: ClientStatus::Complete, modify_index: 40, ..Self::stopped(events) }
    }
    fn alloc(self) -> Allocation {
        let events = [vec![event(EventKind::Started, 0)], self.events].concat();
        let task = Task { state: self.state, failed: false, restarts: 0, started_at: Some(at(0)), finished_at: None, events };
        Allocation {
            id: id(),
            namespace: "default".into(),
            job: "j".into(),
            job_version: None,
            group: "g".into(),
            name: "j.g[0]".into(),
            node: "n".into(),
            node_name: "n1".into(),
            desired: self.desired,
            client_status: self.status,
            migrate: false,
            no_shutdown_delay: false,
            create_index: self.create_index,
            modify_index: self.modify_index,
            modified_at: None,
            tasks: [("t".into(), task)].into_iter().collect(),
        }
    }
}

fn killing() -> Vec<TaskEvent> {
    vec![event(EventKind::Killing, 1000)]
}

fn stop_op(stop_timeout: u64) -> Operation {
    let demand = Demand {
        at: at(900),
        stop_timeout: Some(Duration::from_secs(stop_timeout)),
        until: None,
        no_shutdown_delay: false,
        purge: false,
        job_index: 5,
    };
    Operation {
        id: OpId::new(at(900)),
        state: State::Running,
        request: Request::Stop { target: key(), demands: vec![demand] },
        actor: "ops".into(),
        reason: None,
        requested_at: at(900),
        deadline: None,
        finished_at: None,
        waiting_for: None,
        progress: Progress::default(),
        outcome: None,
        error: None,
        warnings: vec![],
        attempts: 0,
        run_at: at(900),
        lease: Lease::default(),
        revision: 0,
        parent: None,
        cancel: None,
        pause: None,
    }
}

fn all() -> Whose {
    Whose::Each(Box::new(|_| true))
}

/// The earliest are shown, and how many more there are; what lies packed is counted without being unpacked.
#[test]
fn the_earliest_clocks_are_shown_and_all_are_counted() {
    let mut b = book();
    let told = |b: &mut Book, n: u8, ms: i64| {
        let alloc = Allocation {
            id: format!("a{n}").as_str().into(),
            job: format!("j{n}").as_str().into(),
            ..Shown::stopped(killing()).alloc()
        };
        b.specs.insert(&alloc.job_key(), &spec(5, "1h"));
        b.observe(alloc, at(ms), &mut vec![]);
    };
    (0..5).for_each(|n| told(&mut b, n, 1100));
    let whole = b.clocks(&all(), 9);
    assert_eq!((whole.0.len(), whole.1, b.allocs.open()), (5, 5, 0));
    assert!(whole.0.is_sorted_by_key(|c| (c.due, c.key.clone())));
    let (two, armed) = b.clocks(&all(), 2);
    assert_eq!((two.as_slice(), armed), (&whole.0[..2], 5));
    let odd = Whose::Each(Box::new(|k| k.job.as_str() == "j1" || k.job.as_str() == "j3"));
    let jobs: Vec<_> = b.clocks(&odd, 9).0.into_iter().map(|c| c.job.job.to_string()).collect();
    assert_eq!(jobs, ["j1", "j3"]);
    assert_eq!(b.clocks(&Whose::Job(key()), 9), (vec![], 0));
}

/// Long before its clock nothing of a stop stays open, whatever is asked meanwhile; near it, all of it is at hand and goes its way.
#[test]
fn a_stop_that_waits_lies_packed_and_goes_out_in_time() {
    let mut b = book();
    let op = stop_op(3600);
    let mut fx = Vec::new();
    b.stop_opened(&op, at(900), &mut fx);
    observe(&mut b, Shown::stopped(killing()), 1100);
    assert_eq!(b.allocs.open(), 0);
    let clock = due(&b).unwrap();
    assert_eq!(clock, at(1000 + 3_600_000));
    let (census, report) = (b.census(at(2000)), b.stop_report(op.id, &key(), at(2000)).unwrap());
    assert_eq!((census.clocks, census.overdue, census.stops), (1, 0, 1));
    assert_eq!((report.deadline, report.open.len(), report.allocations.len()), (Some(clock), 1, 1));
    assert_eq!(b.clocks(&all(), 9), b.clocks(&Whose::Job(key()), 9));
    b.resynced(at(1000), &mut fx);
    b.node_ready(&"n".into(), at(3000));
    b.stop_opened(&op, at(3000), &mut fx);
    observe(&mut b, Shown::stopped(killing()), 4000);
    assert_eq!((b.allocs.open(), due(&b)), (0, Some(clock)));
    // The next controller: before anything is read, and after.
    let mut next = book();
    next.restore(b.clocks(&all(), 9).0, at(5000));
    next.stop_opened(&op, at(5000), &mut fx);
    assert_eq!((next.allocs.open(), next.census(at(5000)).clocks, next.next_wake()), (0, 1, b.next_wake()));
    observe(&mut next, Shown::stopped(killing()), 6000);
    assert_eq!((next.allocs.open(), next.next_wake()), (0, b.next_wake()));
    for b in [&mut b, &mut next] {
        let due = clock.as_micros() / 1000;
        assert_eq!(tick(b, due - 300), []);
        assert_eq!(b.allocs.open(), 0);
        assert_eq!(tick(b, due - 250), [Did::Read { full: false }]);
        assert_eq!(b.allocs.open(), 1);
        assert!(fresh(b, Shown::stopped(killing()), due - 240).contains(&Did::Kill));
        assert_eq!(b.census(at(due + 1)).overdue, 1);
    }
}

/// A book that knows the job's specification (stop timeout 3 s).
fn book() -> Book {
    let mut b = Book::new(&Config::default(), "h:1".into());
    b.set_leave(Leave { epoch: Some(1), paused: None }, at(0));
    b.specs.insert(&key(), &spec(5, "3s"));
    b
}

#[derive(Debug, PartialEq)]
enum Did {
    Persist,
    Forget,
    Audit(Action),
    Read { full: bool },
    Kill,
    Nudge,
    ReadNode,
    Late(Duration),
}

fn did(fx: &mut Vec<Effect>) -> Vec<Did> {
    let short = |e: Effect| match e {
        Effect::Persist(_) => Did::Persist,
        Effect::Forget(_) => Did::Forget,
        Effect::Audit(a) => Did::Audit(a.action),
        Effect::Read { full, .. } => Did::Read { full },
        Effect::Kill { .. } => Did::Kill,
        Effect::Nudge(_) => Did::Nudge,
        Effect::ReadNode(_) => Did::ReadNode,
        Effect::Late(by) => Did::Late(by),
    };
    fx.drain(..).map(short).collect()
}

fn observe(b: &mut Book, shown: Shown, ms: i64) -> Vec<Did> {
    let mut fx = vec![];
    b.observe(shown.alloc(), at(ms), &mut fx);
    did(&mut fx)
}
fn tick(b: &mut Book, ms: i64) -> Vec<Did> {
    let mut fx = vec![];
    b.tick(at(ms), &mut fx);
    did(&mut fx)
}
fn fresh(b: &mut Book, shown: Shown, ms: i64) -> Vec<Did> {
    let mut fx = vec![];
    b.fresh(&id(), Some((shown.alloc(), None)), at(ms), &mut fx);
    did(&mut fx)
}
fn answer(b: &mut Book, answer: Answer, ms: i64) -> Vec<Did> {
    let clock = b.allocs.get(&id()).unwrap().records[0].key.clone();
    let mut fx = vec![];
    b.answered(&id(), vec![(clock, at(ms), answer)], at(ms), &mut fx);
    did(&mut fx)
}

/// Armed at 1 s, read and killed at 4 s.
fn at_the_kill() -> Book {
    let mut b = book();
    observe(&mut b, Shown::stopped(killing()), 1100);
    assert_eq!(tick(&mut b, 3990), [Did::Read { full: false }]);
    assert_eq!(fresh(&mut b, Shown::stopped(killing()), 3995), [Did::Persist, Did::Audit(Action::SigkillSending), Did::Kill]);
    b
}

#[test]
fn a_healthy_allocation_leaves_no_trace() {
    let mut b = book();
    assert_eq!(observe(&mut b, Shown::healthy(), 1000), []);
    let restarted_before = vec![event(EventKind::Terminated, 500), event(EventKind::Started, 600)];
    assert_eq!(observe(&mut b, Shown { events: restarted_before, ..Shown::healthy() }, 1000), []);
    assert!(b.allocs.is_empty() && b.jobs.is_empty() && b.next_wake().is_none());
}

#[test]
fn told_to_end_armed_read_anew_killed_and_gone() {
    let mut b = book();
    assert_eq!(observe(&mut b, Shown::stopped(killing()), 1100), [Did::Audit(Action::ClockArmed), Did::Persist]);
    assert_eq!(observe(&mut b, Shown::stopped(killing()), 1200), [], "the same event again changes nothing");
    assert_eq!(tick(&mut b, 3700), [], "not yet");
    let mut b = at_the_kill();
    assert_eq!(tick(&mut b, 4100), [], "the answer is under way");
    assert_eq!(
        answer(&mut b, Answer::Sent, 4001),
        [Did::Late(Duration::from_millis(1)), Did::Persist, Did::Audit(Action::SigkillSent)]
    );
    assert_eq!(observe(&mut b, Shown::dead(9), 4300), [Did::Audit(Action::ClockEnded), Did::Persist, Did::Forget]);
    assert!(b.allocs.is_empty() && b.next_wake().is_none());
}

#[test]
fn a_sigkill_that_did_not_end_it_is_sent_again_after_another_read() {
    let mut b = at_the_kill();
    answer(&mut b, Answer::Sent, 4001);
    assert_eq!(tick(&mut b, 7000), []);
    assert_eq!(tick(&mut b, 8001), [Did::Read { full: false }]);
    assert!(fresh(&mut b, Shown::stopped(killing()), 8010).contains(&Did::Kill));
    // Its lateness was counted with the first.
    assert_eq!(answer(&mut b, Answer::Sent, 8011), [Did::Persist, Did::Audit(Action::SigkillSent)]);
}

#[test]
fn what_the_last_read_shows_counts_not_what_was_known() {
    // It ended by itself.
    let mut b = book();
    observe(&mut b, Shown::stopped(killing()), 1100);
    tick(&mut b, 3990);
    assert!(!fresh(&mut b, Shown::dead(0), 3995).contains(&Did::Kill));
    // A restart: it lives on as another incarnation.
    let mut b = book();
    observe(&mut b, Shown { events: vec![event(EventKind::RestartSignaled, 1000)], ..Shown::healthy() }, 1100);
    assert_eq!(tick(&mut b, 3980), [Did::Read { full: false }]);
    let mut again = Shown { modify_index: 50, ..Shown::healthy() }.alloc();
    let task = again.tasks.get_mut(&TaskName::from("t")).unwrap();
    (task.started_at, task.events) =
        (Some(at(3900)), vec![event(EventKind::RestartSignaled, 1000), event(EventKind::Started, 3900)]);
    let mut fx = vec![];
    b.fresh(&id(), Some((again, None)), at(3985), &mut fx);
    assert_eq!(did(&mut fx), [Did::Audit(Action::ClockEnded), Did::Persist, Did::Forget]);
}

#[test]
fn a_restart_is_read_as_late_as_can_be_and_a_stop_together_with_others() {
    let mut b = book();
    observe(&mut b, Shown { events: vec![event(EventKind::RestartSignaled, 1000)], ..Shown::healthy() }, 1100);
    assert_eq!(b.next_wake(), Some(at(3975)));
    let mut b = book();
    observe(&mut b, Shown::stopped(killing()), 1100);
    assert_eq!(b.next_wake(), Some(at(3750)));
}

#[test]
fn an_older_picture_does_not_undo_a_newer_one() {
    let mut b = at_the_kill();
    answer(&mut b, Answer::Sent, 4001);
    let op = stop_op(3);
    let mut fx = vec![];
    b.stop_opened(&op, at(4100), &mut fx);
    observe(&mut b, Shown::dead(9), 4300);
    assert_eq!(observe(&mut b, Shown::stopped(killing()), 4400), []);
    assert!(b.allocs.get(&id()).unwrap().records[0].ended_at.is_some());
}

#[test]
fn an_unreachable_node_is_tried_again_and_at_once_when_it_is_back() {
    let mut b = at_the_kill();
    answer(&mut b, Answer::Unreachable("No path to node".into()), 4001);
    assert_eq!(tick(&mut b, 4500), []);
    let away = Census { clocks: 1, overdue: 1, most_overdue: Duration::from_millis(500), nodes_away: 1, ..Census::default() };
    assert_eq!(b.census(at(4500)), away);
    b.node_ready(&"n".into(), at(4600));
    assert_eq!(tick(&mut b, 4600), [Did::Read { full: false }]);
    // SIGTERM had been heard (the event shows): it is killed now, not a grace later.
    assert!(fresh(&mut b, Shown::stopped(killing()), 4610).contains(&Did::Kill));
    assert_eq!(answer(&mut b, Answer::Sent, 4611)[0], Did::Late(Duration::from_millis(611)));
    assert_eq!(b.census(at(4611)).nodes_away, 0);
}

#[test]
fn a_task_whose_node_was_gone_before_it_was_told_gets_its_grace_when_it_is_back() {
    let mut b = book();
    observe(&mut b, Shown::stopped(vec![]), 1000);
    observe(&mut b, Shown { status: ClientStatus::Lost, modify_index: 31, ..Shown::stopped(vec![]) }, 2000);
    assert_eq!(b.next_wake(), None, "it cannot have heard SIGTERM");
    assert_eq!(b.census(at(2000)), Census { nodes_away: 1, ..Census::default() });
    observe(&mut b, Shown { modify_index: 32, ..Shown::stopped(vec![event(EventKind::Killing, 60_000)]) }, 60_100);
    assert_eq!(b.next_wake(), Some(at(62_750)));
}

#[test]
fn a_driver_without_signals_is_told_once() {
    let mut b = at_the_kill();
    answer(&mut b, Answer::Unsupported("SignalTask is not supported by this driver".into()), 4001);
    assert_eq!(b.next_wake(), None);
}

#[test]
fn a_turn_that_came_too_late_is_read_again_soon_and_tells_no_lie() {
    let mut b = at_the_kill();
    assert_eq!(answer(&mut b, Answer::Stale, 4001), [], "nothing was sent");
    assert!(b.allocs.get(&id()).unwrap().records[0].signalled_at.is_none());
    assert_eq!(b.next_wake(), Some(at(4251)));
    assert_eq!(tick(&mut b, 4251), [Did::Read { full: false }]);
    assert!(fresh(&mut b, Shown::stopped(killing()), 4260).contains(&Did::Kill));
}

#[test]
fn gone_counts_only_after_it_was_read() {
    let mut b = at_the_kill();
    assert!(answer(&mut b, Answer::Gone("Unknown allocation".into()), 4001).contains(&Did::Read { full: true }));
    assert!(b.allocs.get(&id()).is_some());
    let mut fx = vec![];
    b.fresh(&id(), None, at(4100), &mut fx);
    assert_eq!(did(&mut fx), [Did::Audit(Action::ClockEnded), Did::Forget]);
    assert!(b.allocs.is_empty());
}

#[test]
fn after_a_restart_a_clock_keeps_its_instant_and_still_needs_a_read() {
    let mut before = book();
    observe(&mut before, Shown::stopped(vec![]), 1000);
    let records = before.allocs.get(&id()).unwrap().records.clone();
    let mut b = book();
    b.restore(records.clone(), at(1000));
    assert_eq!(b.next_wake(), Some(records[0].due - Duration::from_millis(250)));
    let due = records[0].due.as_micros() / 1000;
    assert_eq!(tick(&mut b, due), [Did::Read { full: true }]);
    assert!(fresh(&mut b, Shown::stopped(vec![]), due + 5).contains(&Did::Kill), "first seen a restart ago: not a new grace");
    // Whatever was written down, a task that nobody told to end is left alone.
    let mut b = book();
    b.restore(records, at(1000));
    tick(&mut b, due);
    assert_eq!(fresh(&mut b, Shown::healthy(), due + 5), [Did::Audit(Action::ClockEnded), Did::Persist, Did::Forget]);
}

#[test]
fn an_unknown_specification_is_read_and_nothing_is_decided_before() {
    let mut b = Book::new(&Config::default(), "h:1".into());
    b.set_leave(Leave { epoch: Some(1), paused: None }, at(0));
    assert_eq!(observe(&mut b, Shown::stopped(killing()), 1100), [Did::Read { full: true }]);
    assert_eq!(observe(&mut b, Shown::stopped(killing()), 1200), [], "one read at a time");
    let mut fx = vec![];
    b.fresh(&id(), Some((Shown::stopped(killing()).alloc(), Some(spec(5, "3s")))), at(1300), &mut fx);
    assert_eq!(did(&mut fx), [Did::Audit(Action::ClockArmed), Did::Persist]);
    b.gap();
    assert!(b.specs.newest(&key()).is_none(), "after a gap the newest registration is not known");
}

#[test]
fn a_stop_is_ready_when_everything_was_told_and_is_over() {
    let mut b = book();
    let (op, mut fx) = (stop_op(2), vec![]);
    b.stop_opened(&op, at(900), &mut fx);
    observe(&mut b, Shown::stopped(killing()), 1100);
    assert_eq!(b.next_wake(), Some(at(2750)), "the request's 2s, not the task's 3s");
    b.stop_deleted(op.id, &key(), 25, Some("e".into()), at(1200), &mut fx);
    assert_eq!(did(&mut fx), []);
    observe(&mut b, Shown::dead(0), 1500);
    b.eval_done(&"e".into(), &mut fx);
    assert_eq!(did(&mut fx), [Did::Nudge]);
    let report = b.stop_report(op.id, &key(), at(1600)).unwrap();
    assert_eq!((report.open.len(), report.allocations.len(), report.waiting_for), (0, 1, None));
    assert_eq!(report.allocations[0].tasks[0].exit_code, Some(0));
    b.stop_closed(op.id, &key(), at(1700), &mut fx);
    assert_eq!(did(&mut fx), [Did::Forget]);
    assert!(b.allocs.is_empty() && b.jobs.is_empty() && b.evals.is_empty());
}

#[test]
fn an_evaluation_that_was_done_before_the_delete_answered_is_not_forgotten() {
    let mut b = book();
    let (op, mut fx) = (stop_op(2), vec![]);
    b.stop_opened(&op, at(900), &mut fx);
    b.eval_done(&"e".into(), &mut fx);
    b.stop_deleted(op.id, &key(), 25, Some("e".into()), at(1200), &mut fx);
    assert_eq!(did(&mut fx), [Did::Nudge]);
}

/// The row knows of a DELETE that this keeper has not seen: an allocation may have ended meanwhile, and belongs into the report.
#[test]
fn a_stop_that_another_controller_carried_on_has_a_gap() {
    let mut b = book();
    let (op, mut fx) = (stop_op(2), vec![]);
    b.stop_opened(&op, at(900), &mut fx);
    assert!(!b.stop_report(op.id, &key(), at(1000)).unwrap().gap);
    let sent = Progress { demands_sent: 1, delete_index: Some(25), eval: Some("e".into()), ..Progress::default() };
    b.stop_opened(&Operation { progress: sent.clone(), ..op.clone() }, at(1200), &mut fx);
    b.eval_done(&"e".into(), &mut fx);
    let report = b.stop_report(op.id, &key(), at(1300)).unwrap();
    assert!(report.gap && report.eval_done);
    b.specs.insert(&key(), &spec(28, "60s"));
    observe(&mut b, Shown { create_index: 29, ..Shown::stopped(killing()) }, 1400);
    assert!(b.stop_report(op.id, &key(), at(1500)).unwrap().allocations.is_empty(), "registered again since");

    // Its own DELETE leaves none, unless its holder before was cut off over one.
    for (unknown, gap) in [(false, false), (true, true)] {
        let mut b = book();
        b.stop_opened(&op, at(900), &mut fx);
        b.stop_opened(&Operation { progress: Progress { unknown, ..Progress::default() }, ..op.clone() }, at(950), &mut fx);
        b.stop_deleted(op.id, &key(), 25, Some("e".into()), at(1000), &mut fx);
        b.stop_opened(&Operation { progress: sent.clone(), ..op.clone() }, at(1100), &mut fx);
        assert_eq!(b.stop_report(op.id, &key(), at(1200)).unwrap().gap, gap);
    }
}

#[test]
fn a_job_registered_again_is_not_the_stops() {
    let mut b = book();
    let (op, mut fx) = (stop_op(2), vec![]);
    b.stop_opened(&op, at(900), &mut fx);
    b.stop_deleted(op.id, &key(), 25, None, at(1000), &mut fx);
    b.specs.insert(&key(), &spec(28, "60s"));
    // An allocation of the new registration, replaced later: its own timeout counts, and the stop does not wait for it.
    observe(&mut b, Shown { create_index: 29, ..Shown::stopped(killing()) }, 1100);
    assert_eq!(b.next_wake(), Some(at(60_750)));
    assert!(b.stop_report(op.id, &key(), at(1200)).unwrap().allocations.is_empty());
}

#[test]
fn what_a_resync_does_not_name_is_read() {
    let mut b = book();
    observe(&mut b, Shown::stopped(killing()), 1100);
    let mut fx = vec![];
    b.resynced(at(1000), &mut fx);
    assert_eq!(did(&mut fx), [], "seen since it began");
    b.resynced(at(2000), &mut fx);
    assert_eq!(did(&mut fx), [Did::Read { full: false }]);
}

#[test]
fn the_trail_of_a_kill_says_when_and_why() {
    let mut b = book();
    observe(&mut b, Shown::stopped(killing()), 1100);
    let mut fx = vec![];
    b.tick(at(3990), &mut fx);
    fx.clear();
    b.fresh(&id(), Some((Shown::stopped(killing()).alloc(), None)), at(3995), &mut fx);
    let detail = fx.iter().find_map(|e| match e {
        Effect::Audit(a) if a.action == Action::SigkillSending => Some(a.detail.clone()),
        _ => None,
    });
    let expected: Value =
        json!({ "attempt": 1, "cause": "stopped", "told_at": at(1000), "clock": at(4000), "job": "j", "node": "n1", "duty": 1 });
    assert_eq!(detail, Some(expected));
}

fn moved(shown: Shown) -> Allocation {
    Allocation { migrate: true, ..shown.alloc() }
}

fn drained_until(ms: i64) -> curfew_nomad::NodeStub {
    let meta = curfew_core::drain::DrainMeta {
        operation: OpId::new(at(900)),
        deadline: curfew_core::drain::Deadline::At(at(ms)),
        started_at: Some(at(900)),
        only_managed: false,
        ignore_system: false,
        was_eligible: true,
    };
    let last = curfew_nomad::LastDrain { started_at: None, cancelled: true, curfew: Some(meta), meta: Default::default() };
    curfew_nomad::NodeStub {
        id: "n".into(),
        name: "n1".into(),
        datacenter: "dc1".into(),
        pool: "default".into(),
        class: String::new(),
        status: curfew_nomad::NodeStatus::Ready,
        eligible: true,
        draining: false,
        drivers: vec![],
        known_drivers: vec![],
        last_drain: Some(last),
        version: String::new(),
        modify_index: 7,
    }
}

fn due(b: &Book) -> Option<Timestamp> {
    b.allocs.get(&id()).unwrap().records.first().map(|r| r.due)
}

/// Whose drain moves it is asked once; then it has that drain's deadline, although no operation lives, until another is told of.
#[test]
fn what_a_drain_moves_waits_for_its_nodes_meta() {
    let (mut b, mut fx) = (book(), vec![]);
    b.observe(moved(Shown::stopped(killing())), at(1100), &mut fx);
    b.observe(moved(Shown { modify_index: 31, ..Shown::stopped(killing()) }), at(1150), &mut fx);
    assert_eq!(did(&mut fx), [Did::ReadNode], "no clock before it is known, and nobody asks twice");
    b.node_read(&"n".into(), Err(()), at(1200), &mut fx);
    b.tick(at(1800), &mut fx);
    assert_eq!(did(&mut fx), [Did::ReadNode], "asked again when it failed");
    b.node_read(&"n".into(), Ok(Some(drained_until(60_000))), at(1900), &mut fx);
    assert_eq!((did(&mut fx), due(&b)), (vec![Did::Audit(Action::ClockArmed), Did::Persist], Some(at(60_000))));
    b.node_seen(&drained_until(90_000), at(2000), &mut fx);
    assert_eq!((did(&mut fx), due(&b)), (vec![Did::Audit(Action::ClockMoved), Did::Persist], Some(at(90_000))));
    // Of a node that no drain of Curfew's emptied, it has its own timeout.
    let mut b = book();
    b.observe(moved(Shown::stopped(killing())), at(1100), &mut fx);
    b.node_read(&"n".into(), Ok(None), at(1200), &mut fx);
    assert_eq!(due(&b), Some(at(4000)));
}

/// Nomad keeps the meta of a drain for good: what is stopped on that node later has its own timeout, not a deadline of long ago.
#[test]
fn a_drain_that_is_over_is_no_deadline_for_what_it_did_not_move() {
    let (mut b, mut fx) = (book(), vec![]);
    b.node_seen(&drained_until(950), at(960), &mut fx);
    b.observe(Shown::stopped(killing()).alloc(), at(1100), &mut fx);
    assert_eq!(due(&b), Some(at(4000)));
    let mut b = book();
    b.node_seen(&drained_until(60_000), at(960), &mut fx);
    b.observe(Shown::stopped(killing()).alloc(), at(1100), &mut fx);
    assert_eq!(due(&b), Some(at(4000)));
}

fn drain_op(deadline: i64) -> Operation {
    let request =
        json!({ "kind": "drain_node", "id": "n", "name": "n1", "options": { "strategy": "evacuate", "drain_timeout": "1m" } });
    let progress = json!({ "node": { "was_eligible": true, "started_at": at(900), "deadline": at(deadline) } });
    Operation {
        request: serde_json::from_value(request).unwrap(),
        progress: serde_json::from_value(progress).unwrap(),
        ..stop_op(3)
    }
}

/// It follows what runs there before it is told, reports on it to the end, and is nudged then.
#[test]
fn a_live_drain_follows_its_node_to_the_end() {
    let (mut b, mut fx) = (book(), vec![]);
    let op = drain_op(60_000);
    b.changed(&op, at(950), &mut fx);
    b.on_node(vec![(Shown::healthy().alloc(), spec(20, "2s"))], at(1000), &mut fx);
    assert_eq!(did(&mut fx), []);
    let report = b.drain_report(op.id, &"n".into(), at(1000)).unwrap();
    assert_eq!((report.left.len(), report.left[0].waits, report.deadline), (1, curfew_core::drain::Waits::Turn, None));
    b.resynced(at(1050), &mut fx);
    assert_eq!(did(&mut fx), [], "what waits for its turn is in no list of what was told, and is not read one by one");
    b.observe(moved(Shown::stopped(killing())), at(1100), &mut fx);
    assert_eq!((did(&mut fx), due(&b)), (vec![Did::Audit(Action::ClockArmed), Did::Persist], Some(at(60_000))));
    b.observe(moved(Shown::dead(9)), at(60_300), &mut fx);
    assert!(did(&mut fx).contains(&Did::Nudge));
    let report = b.drain_report(op.id, &"n".into(), at(60_300)).unwrap();
    assert_eq!((report.left.len(), report.allocations.len(), report.waiting_for), (0, 1, None));
    b.drain_closed(op.id, &"n".into(), at(60_400), &mut fx);
    assert!(b.allocs.is_empty() && b.by_node.is_empty() && b.drain_report(op.id, &"n".into(), at(60_400)).is_none());
}

/// What is due while nobody may kill is not even read for; with leave it is read, then killed.
#[test]
fn without_leave_a_clock_waits_and_with_it_goes_out_after_a_fresh_read() {
    let mut b = book();
    b.set_leave(Leave::default(), at(1000));
    observe(&mut b, Shown::stopped(killing()), 1100);
    assert_eq!(tick(&mut b, 3980), []);
    assert_eq!(b.next_wake(), None, "it does not go round and round");
    observe(&mut b, Shown::stopped(killing()), 5000);
    assert_eq!(tick(&mut b, 5001), []);
    b.set_leave(Leave { epoch: Some(7), paused: None }, at(6000));
    assert_eq!(tick(&mut b, 6000), [Did::Read { full: false }]);
    assert_eq!(fresh(&mut b, Shown::stopped(killing()), 6005), [Did::Persist, Did::Audit(Action::SigkillSending), Did::Kill]);
}

/// A signal that was given out ahead of its clock is called off when the clock moves; a row read before does not move it back.
#[test]
fn an_extension_calls_the_shot_off_and_an_older_row_does_not_undo_it() {
    let mut b = book();
    let (op, mut fx) = (stop_op(2), vec![]);
    b.stop_opened(&op, at(900), &mut fx);
    b.stop_deleted(op.id, &key(), 25, None, at(950), &mut fx);
    observe(&mut b, Shown::stopped(killing()), 1100);
    fx.clear();
    b.tick(at(2980), &mut fx);
    b.fresh(&id(), Some((Shown::stopped(killing()).alloc(), None)), at(2985), &mut fx);
    let shot = fx.iter().find_map(|e| match e {
        Effect::Kill { clocks, .. } => Some(clocks[0].off.clone()),
        _ => None,
    });
    let shot = shot.unwrap();
    assert!(!shot.is_cancelled());
    let mut extended = op.clone();
    extended.revision += 1;
    if let Request::Stop { demands, .. } = &mut extended.request {
        curfew_core::operation::replace_until(demands, at(9000));
    }
    b.stop_opened(&extended, at(2990), &mut fx);
    assert!(shot.is_cancelled());
    b.stop_opened(&op, at(2995), &mut fx);
    let withheld = Answer::Withheld("its clock was moved".into());
    assert_eq!(answer(&mut b, withheld, 3000), [Did::Audit(Action::SigkillFailed)]);
    assert_eq!(b.next_wake(), Some(at(8750)), "the extension counts");
}
