//! The table of causes, case by case. Times are milliseconds.

use litemap::LiteMap;
use proptest::prelude::*;

use super::*;
use crate::TaskEvent;
use crate::spec::RestartPolicy;

const S: i64 = 1000;

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis(ms)
}
fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn event(kind: EventKind, ms: i64) -> TaskEvent {
    TaskEvent { kind, at: at(ms), exit_code: 0, signal: 0, kill_timeout: None, delay: None, text: None }
}
fn exited(ms: i64, code: i64) -> TaskEvent {
    TaskEvent { exit_code: code, ..event(EventKind::Terminated, ms) }
}

fn task(state: TaskState, events: Vec<TaskEvent>) -> Task {
    let started_at = events.iter().rev().find(|e| e.kind == EventKind::Started).map(|e| e.at);
    Task { state, failed: false, restarts: 0, started_at, finished_at: None, events }
}
/// Started at zero, then these events.
fn running(events: Vec<TaskEvent>) -> Task {
    task(TaskState::Running, [vec![event(EventKind::Started, 0)], events].concat())
}

fn alloc(desired: Desired, client_status: ClientStatus, tasks: Vec<(&str, Task)>) -> Allocation {
    Allocation {
        id: "5355e9cc-8203-6163-e9fa-86ea80c11132".into(),
        namespace: "default".into(),
        job: "j".into(),
        job_version: Some(0),
        group: "g".into(),
        name: "j.g[0]".into(),
        node: "n".into(),
        node_name: "n1".into(),
        desired,
        client_status,
        migrate: false,
        no_shutdown_delay: false,
        create_index: 10,
        modify_index: 11,
        modified_at: None,
        tasks: tasks.into_iter().map(|(n, t)| (n.into(), t)).collect(),
    }
}

fn task_spec(name: &str, role: Role) -> TaskSpec {
    TaskSpec {
        name: name.into(),
        driver: "raw_exec".into(),
        role,
        leader: false,
        stop_timeout: Some(secs(2)),
        kill_timeout: secs(86_400),
        shutdown_delay: Duration::ZERO,
        restart: RestartPolicy { attempts: 0, fail: true, ..RestartPolicy::default() },
    }
}

fn restarted_by(spec: &mut JobSpec, restart: RestartPolicy) {
    spec.groups.get_mut("g").unwrap().tasks.iter_mut().for_each(|(_, t)| t.restart = restart);
}

fn job(job_type: JobType, tasks: Vec<TaskSpec>) -> JobSpec {
    let tasks: LiteMap<_, _> = tasks.into_iter().map(|t| (t.name.clone(), t)).collect();
    let group = GroupSpec { tasks, count: 1, shutdown_delay: Duration::ZERO, progress_deadline: None, only_on: vec![] };
    JobSpec {
        managed: true,
        job_type,
        version: 0,
        job_modify_index: 5,
        stopped: false,
        parent: false,
        datacenters: vec![],
        node_pool: "default".into(),
        groups: [("g".to_owned(), group)].into_iter().collect(),
    }
}
fn one_task() -> JobSpec {
    job(JobType::Service, vec![task_spec("t", Role::Main)])
}

const GRACES: Graces =
    Graces { job_stop_timeout: secs_const(30), poststop_timeout: secs_const(300), settle: Duration::from_millis(1500) };
const fn secs_const(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn derive_at(a: &Allocation, spec: &JobSpec, demands: &[Demand], memory: &[ClockRecord], now: i64) -> Derived {
    drained(a, spec, demands, None, memory, now)
}
fn drained(
    a: &Allocation,
    spec: &JobSpec,
    demands: &[Demand],
    drain: Option<NodeDrain>,
    memory: &[ClockRecord],
    now: i64,
) -> Derived {
    derive(a, &Context { spec, demands, late: Duration::ZERO, drain, graces: &GRACES, memory, now: at(now) })
}
/// Started at 10 s.
fn drain_until(deadline: Option<i64>) -> NodeDrain {
    NodeDrain { deadline: deadline.map(at), started_at: at(10 * S), only_managed: false, ignore_system: false }
}
/// Told at `ms` by a drain of its node.
fn moved(ms: i64) -> Allocation {
    let told = running(vec![event(EventKind::Killing, ms)]);
    Allocation { migrate: true, ..alloc(Desired::Stop, ClientStatus::Running, vec![("t", told)]) }
}
fn demand(ms: i64, timeout: Option<u64>) -> Demand {
    let stop_timeout = timeout.map(secs);
    Demand { at: at(ms), stop_timeout, until: None, no_shutdown_delay: false, purge: false, job_index: 0 }
}
fn unmanaged() -> JobSpec {
    JobSpec { managed: false, ..one_task() }
}
/// (task, cause, start, due) of each clock.
fn clocks(a: &Allocation, spec: &JobSpec, now: i64) -> Vec<(String, Cause, i64, i64)> {
    told(&derive_at(a, spec, &[], &[], now))
}
fn told(d: &Derived) -> Vec<(String, Cause, i64, i64)> {
    let ms = |t: Timestamp| t.as_micros() / 1000;
    d.clocks.iter().map(|c| (c.key.task.to_string(), c.cause, ms(c.start), ms(c.due))).collect()
}
fn one(cause: Cause, start: i64, due: i64) -> Vec<(String, Cause, i64, i64)> {
    vec![("t".to_owned(), cause, start, due)]
}

fn record(c: &KillClock) -> ClockRecord {
    ClockRecord {
        key: c.key.clone(),
        job: JobKey::new("default", "j"),
        node: "n".into(),
        node_name: "n1".into(),
        operation: None,
        cause: c.cause,
        start: c.start,
        basis: c.basis,
        seen_at: c.seen_at,
        unreachable_at: None,
        due: c.due,
        attempts: 0,
        last_attempt_at: None,
        last_error: None,
        signalled_at: None,
        ended_at: None,
    }
}

#[test]
fn a_healthy_task_has_no_clock_whatever_happened_to_it_before() {
    let lived_before = [EventKind::Killing, EventKind::RestartSignaled, EventKind::Terminated, EventKind::Signaling];
    for kind in lived_before {
        let t =
            task(TaskState::Running, vec![event(EventKind::Started, 0), event(kind, 5 * S), event(EventKind::Started, 6 * S)]);
        assert_eq!(clocks(&alloc(Desired::Run, ClientStatus::Running, vec![("t", t)]), &one_task(), 100 * S), vec![]);
    }
}

#[test]
fn stopped_counts_from_the_killing_event_and_moves_there_from_what_was_seen() {
    let spec = one_task();
    let silent = alloc(Desired::Stop, ClientStatus::Running, vec![("t", running(vec![]))]);
    let first = derive_at(&silent, &spec, &[], &[], 10 * S);
    assert_eq!(told(&first), one(Cause::Stopped, 10 * S, 13_500));
    assert_eq!(first.clocks[0].basis(), Basis::Seen);
    // A later look without an event does not move it.
    let memory = [record(&first.clocks[0])];
    assert_eq!(told(&derive_at(&silent, &spec, &[], &memory, 11 * S)), one(Cause::Stopped, 10 * S, 13_500));
    // The event shows: that was its SIGTERM.
    let with_event = alloc(Desired::Stop, ClientStatus::Running, vec![("t", running(vec![event(EventKind::Killing, 10_300)]))]);
    assert_eq!(told(&derive_at(&with_event, &spec, &[], &memory, 11 * S)), one(Cause::Stopped, 10_300, 12_300));
}

#[test]
fn the_event_of_a_sigterm_is_waited_for_where_it_is_the_tasks_turn() {
    let mut spec = one_task();
    let silent = alloc(Desired::Stop, ClientStatus::Running, vec![("t", running(vec![]))]);
    let short = [Demand {
        at: at(9 * S),
        stop_timeout: Some(secs(1)),
        until: None,
        no_shutdown_delay: false,
        purge: false,
        job_index: 5,
    }];
    let first = derive_at(&silent, &spec, &short, &[], 10 * S);
    assert_eq!(told(&first), one(Cause::Stopped, 10 * S, 12_500));
    let memory = [record(&first.clocks[0])];
    let shown = alloc(Desired::Stop, ClientStatus::Running, vec![("t", running(vec![event(EventKind::Killing, 10_050)]))]);
    assert_eq!(told(&derive_at(&shown, &spec, &short, &memory, 11 * S)), one(Cause::Stopped, 10_050, 11_050));
    // A sidecar hears of it when the others are dead: with no event it is due with them.
    spec.groups.get_mut("g").unwrap().tasks.get_mut(&TaskName::from("t")).unwrap().role = Role::Sidecar;
    let due = |timeout| {
        let demand = Demand { stop_timeout: Some(secs(timeout)), ..short[0] };
        derive_at(&silent, &spec, &[demand], &[], 10 * S).clocks[0].due()
    };
    assert_eq!((due(1), due(3)), (at(11_500), at(13 * S)));
}

#[test]
fn what_is_told_last_has_little_more_than_what_was_told_first() {
    let spec = one_task();
    let silent = alloc(Desired::Stop, ClientStatus::Running, vec![("t", running(vec![]))]);
    let mut memory = [record(&derive_at(&silent, &spec, &[], &[], 10 * S).clocks[0])];
    // Its leader took 1.9 of its 2 seconds.
    let after = alloc(Desired::Stop, ClientStatus::Running, vec![("t", running(vec![event(EventKind::Killing, 11_900)]))]);
    assert_eq!(told(&derive_at(&after, &spec, &[], &memory, 12 * S)), one(Cause::Stopped, 11_900, 13_500));
    memory[0].unreachable_at = Some(at(11 * S));
    assert_eq!(told(&derive_at(&after, &spec, &[], &memory, 12 * S)), one(Cause::Stopped, 11_900, 13_900));
}

#[test]
fn nothing_gives_an_order_before_its_instant() {
    let a = alloc(Desired::Stop, ClientStatus::Running, vec![("t", running(vec![event(EventKind::Killing, 10 * S)]))]);
    let d = derive_at(&a, &one_task(), &[], &[], 10 * S);
    assert!(d.clocks[0].order(at(12 * S - 1)).is_none());
    assert_eq!(d.clocks[0].order(at(12 * S)).unwrap().task().as_str(), "t");
}

#[test]
fn every_client_status_with_a_live_task_has_its_clock() {
    use ClientStatus::*;
    for status in [Pending, Running, Complete, Failed, Lost, Unknown] {
        for state in [TaskState::Pending, TaskState::Running] {
            let t = Task { state, ..running(vec![event(EventKind::Killing, 10 * S)]) };
            let a = alloc(Desired::Stop, status, vec![("t", t)]);
            assert_eq!(clocks(&a, &one_task(), 11 * S), one(Cause::Stopped, 10 * S, 12 * S), "{status:?} {state:?}");
            let graces = GRACES;
            assert!(!is_over(&a, one_task().groups.get("g"), at(11 * S), &graces), "{status:?} {state:?}");
        }
        let dead = alloc(Desired::Stop, status, vec![("t", Task { state: TaskState::Dead, ..running(vec![exited(11 * S, 0)]) })]);
        assert_eq!(clocks(&dead, &one_task(), 11 * S), vec![], "{status:?}");
        assert!(is_over(&dead, one_task().groups.get("g"), at(11 * S), &GRACES), "{status:?}");
    }
}

#[test]
fn a_task_on_an_unreachable_node_that_was_never_told_waits_for_the_node() {
    for status in [ClientStatus::Lost, ClientStatus::Unknown] {
        let d = derive_at(&alloc(Desired::Stop, status, vec![("t", running(vec![]))]), &one_task(), &[], &[], 99 * S);
        assert_eq!((told(&d), d.unreachable.len()), (vec![], 1), "{status:?}");
    }
    // "No path to node" at 12 s: it had not heard its SIGTERM before that.
    let spec = one_task();
    let a = alloc(Desired::Stop, ClientStatus::Running, vec![("t", running(vec![]))]);
    let mut memory = record(&derive_at(&a, &spec, &[], &[], 10 * S).clocks[0]);
    memory.unreachable_at = Some(at(12 * S));
    assert_eq!(told(&derive_at(&a, &spec, &[], &[memory], 13 * S)), one(Cause::Stopped, 12 * S, 15_500));
}

#[test]
fn demands_of_a_stop_the_earliest_wins() {
    let spec = one_task();
    let a = alloc(Desired::Stop, ClientStatus::Running, vec![("t", running(vec![event(EventKind::Killing, 10 * S)]))]);
    let demand = |ms, timeout: Option<u64>| Demand {
        at: at(ms),
        stop_timeout: timeout.map(secs),
        until: None,
        no_shutdown_delay: false,
        purge: false,
        job_index: 5,
    };
    let due = |demands: &[Demand]| derive_at(&a, &spec, demands, &[], 11 * S).clocks[0].due();
    assert_eq!(due(&[demand(9 * S, Some(30))]), at(40 * S), "the request's timeout, from the SIGTERM");
    assert_eq!(due(&[demand(9 * S, None)]), at(12 * S), "the task's own");
    assert_eq!(due(&[demand(9 * S, Some(30)), demand(15 * S, Some(3))]), at(18 * S), "the second counts from its own request");
    assert_eq!(due(&[demand(9 * S, Some(3)), demand(15 * S, Some(30))]), at(13 * S));
}

#[test]
fn an_extended_or_shortened_stop_is_due_at_its_instant_but_not_before_its_sigterm() {
    let spec = one_task();
    let events = vec![event(EventKind::Killing, 10 * S)];
    let a = alloc(Desired::Stop, ClientStatus::Running, vec![("t", running(events))]);
    let until = |s: i64| Demand {
        at: at(5 * S),
        stop_timeout: None,
        until: Some(at(s * S)),
        no_shutdown_delay: false,
        purge: false,
        job_index: 5,
    };
    let asked = Demand { stop_timeout: Some(secs(4)), until: None, ..until(0) };
    let due_when = |a: &Allocation, demands: &[Demand], late| {
        let cx = Context { spec: &spec, demands, late: secs(late), drain: None, graces: &GRACES, memory: &[], now: at(11 * S) };
        derive(a, &cx).clocks[0].due()
    };
    let due = |demands: &[Demand]| due_when(&a, demands, 0);
    assert_eq!(due(&[asked]), at(14 * S));
    assert_eq!(due(&[until(600)]), at(600 * S), "beyond the task's own timeout");
    assert_eq!(due_when(&a, &[until(600)], 300), at(600 * S), "an instant is never late");
    assert_eq!(due(&[until(12)]), at(12 * S));
    assert_eq!(due(&[until(7)]), at(10 * S), "kill-now waits for SIGTERM");
    assert_eq!(due(&[until(600), asked]), at(14 * S), "a request after the extension counts beside it");
    assert_eq!(due(&[until(12), asked]), at(12 * S));
    // A shutdown delay that is waited for comes before SIGTERM.
    let mut spec = one_task();
    spec.groups.get_mut("g").unwrap().tasks.get_mut(&TaskName::from("t")).unwrap().shutdown_delay = secs(6);
    let delayed = vec![event(EventKind::Killing, 10 * S), event(EventKind::WaitingForShutdownDelay, 10 * S)];
    let a = alloc(Desired::Stop, ClientStatus::Running, vec![("t", running(delayed))]);
    assert_eq!(derive_at(&a, &spec, &[until(7)], &[], 11 * S).clocks[0].due(), at(16 * S));
    // What tells it otherwise keeps its own, shorter grace.
    let restart =
        alloc(Desired::Run, ClientStatus::Running, vec![("t", running(vec![event(EventKind::RestartSignaled, 4 * S)]))]);
    assert_eq!(derive_at(&restart, &spec, &[until(600)], &[], 5 * S).clocks[0].due(), at(6 * S));
}

#[test]
fn a_stop_that_reached_nomad_late_is_due_by_its_request() {
    let (spec, killing) = (one_task(), running(vec![event(EventKind::Killing, 20 * S)]));
    let a = alloc(Desired::Stop, ClientStatus::Running, vec![("t", killing)]);
    let demand = |timeout| {
        [Demand {
            at: at(10 * S),
            stop_timeout: Some(secs(timeout)),
            until: None,
            no_shutdown_delay: false,
            purge: false,
            job_index: 5,
        }]
    };
    let due = |timeout, late| {
        let demands = demand(timeout);
        let cx = Context {
            spec: &spec,
            demands: &demands,
            late: secs(late),
            drain: None,
            graces: &GRACES,
            memory: &[],
            now: at(21 * S),
        };
        derive(&a, &cx).clocks[0].due()
    };
    assert_eq!(due(15, 0), at(35 * S));
    assert_eq!(due(15, 10), at(25 * S));
    assert_eq!(due(5, 10), at(20 * S), "at once, but not before its SIGTERM");
}

#[test]
fn an_unmanaged_job_has_clocks_only_while_curfew_stops_it() {
    let mut spec = one_task();
    spec.managed = false;
    let t = spec.groups.get_mut("g").unwrap().tasks.get_mut(&TaskName::from("t")).unwrap();
    (t.stop_timeout, t.kill_timeout) = (None, secs(7));
    let a = alloc(Desired::Stop, ClientStatus::Running, vec![("t", running(vec![event(EventKind::Killing, 10 * S)]))]);
    assert_eq!(clocks(&a, &spec, 11 * S), vec![]);
    let demand = Demand { at: at(9 * S), stop_timeout: None, until: None, no_shutdown_delay: false, purge: false, job_index: 5 };
    assert_eq!(told(&derive_at(&a, &spec, &[demand], &[], 11 * S)), one(Cause::Stopped, 10 * S, 17 * S));
}

#[test]
fn a_task_without_a_timeout_of_its_own_gets_job_stop_timeout() {
    let mut spec = one_task();
    spec.groups.get_mut("g").unwrap().tasks.get_mut(&TaskName::from("t")).unwrap().stop_timeout = None;
    let a = alloc(Desired::Stop, ClientStatus::Running, vec![("t", running(vec![event(EventKind::Killing, 10 * S)]))]);
    assert_eq!(clocks(&a, &spec, 11 * S), one(Cause::Stopped, 10 * S, 40 * S));
}

#[test]
fn a_shutdown_delay_counts_when_it_is_waited_for() {
    let mut spec = one_task();
    spec.groups.get_mut("g").unwrap().tasks.get_mut(&TaskName::from("t")).unwrap().shutdown_delay = secs(6);
    let delayed = vec![event(EventKind::Killing, 10 * S), event(EventKind::WaitingForShutdownDelay, 10 * S)];
    let t = Task { state: TaskState::Pending, ..running(delayed) };
    let a = alloc(Desired::Stop, ClientStatus::Pending, vec![("t", t)]);
    assert_eq!(clocks(&a, &spec, 11 * S), one(Cause::Stopped, 16 * S, 18 * S));
    // Derived again with its own memory: the same.
    let d = derive_at(&a, &spec, &[], &[], 11 * S);
    assert_eq!(told(&derive_at(&a, &spec, &[], &[record(&d.clocks[0])], 15 * S)), one(Cause::Stopped, 16 * S, 18 * S));
    let skipped = alloc(Desired::Stop, ClientStatus::Running, vec![("t", running(vec![event(EventKind::Killing, 10 * S)]))]);
    assert_eq!(clocks(&skipped, &spec, 11 * S), one(Cause::Stopped, 10 * S, 12 * S));
    // No event yet: both the group's and the task's delay may be under way.
    spec.groups.get_mut("g").unwrap().shutdown_delay = secs(4);
    let silent = alloc(Desired::Stop, ClientStatus::Running, vec![("t", running(vec![]))]);
    assert_eq!(clocks(&silent, &spec, 10 * S), one(Cause::Stopped, 20 * S, 23_500));
    let no_delay = Allocation { no_shutdown_delay: true, ..silent };
    assert_eq!(clocks(&no_delay, &spec, 10 * S), one(Cause::Stopped, 10 * S, 13_500));
}

#[test]
fn max_run_duration_and_restarts_count_from_their_events() {
    let killing = running(vec![event(EventKind::Killing, 4 * S)]);
    let a = alloc(Desired::Run, ClientStatus::Complete, vec![("t", killing)]);
    assert_eq!(clocks(&a, &one_task(), 5 * S), one(Cause::Killing, 4 * S, 6 * S));
    let restart = running(vec![event(EventKind::RestartSignaled, 4 * S)]);
    let a = alloc(Desired::Run, ClientStatus::Running, vec![("t", restart)]);
    assert_eq!(clocks(&a, &one_task(), 5 * S), one(Cause::Restart, 4 * S, 6 * S));
}

#[test]
fn of_several_causes_the_earliest_clock_wins() {
    let restarted_then_stopped = vec![event(EventKind::RestartSignaled, 4 * S), event(EventKind::Killing, 5 * S)];
    let a = alloc(Desired::Stop, ClientStatus::Running, vec![("t", running(restarted_then_stopped))]);
    let demand =
        Demand { at: at(5 * S), stop_timeout: Some(secs(30)), until: None, no_shutdown_delay: false, purge: false, job_index: 5 };
    assert_eq!(told(&derive_at(&a, &one_task(), &[demand], &[], 5 * S)), one(Cause::Restart, 4 * S, 6 * S));
    let shorter = Demand { stop_timeout: Some(Duration::from_millis(500)), ..demand };
    assert_eq!(told(&derive_at(&a, &one_task(), &[shorter], &[], 5 * S)), one(Cause::Stopped, 5 * S, 5500));
}

#[test]
fn an_event_pushed_out_by_our_own_signals_is_remembered_for_the_same_incarnation_only() {
    let spec = one_task();
    let first = alloc(Desired::Run, ClientStatus::Running, vec![("t", running(vec![event(EventKind::Killing, 4 * S)]))]);
    let memory = [record(&derive_at(&first, &spec, &[], &[], 5 * S).clocks[0])];
    let signals = || (0..10).map(|i| event(EventKind::Signaling, 7 * S + i)).collect::<Vec<_>>();
    let pushed_out = Task { started_at: Some(at(0)), ..task(TaskState::Running, signals()) };
    let a = alloc(Desired::Run, ClientStatus::Running, vec![("t", pushed_out.clone())]);
    assert_eq!(told(&derive_at(&a, &spec, &[], &memory, 9 * S)), one(Cause::Killing, 4 * S, 6 * S));
    assert_eq!(told(&derive_at(&a, &spec, &[], &[], 9 * S)), vec![], "without memory nothing is proven");
    let restarted = Task { started_at: Some(at(8 * S)), ..pushed_out };
    let a = alloc(Desired::Run, ClientStatus::Running, vec![("t", restarted)]);
    assert_eq!(told(&derive_at(&a, &spec, &[], &memory, 9 * S)), vec![]);
}

#[test]
fn a_clients_clock_ahead_of_ours_never_puts_the_start_in_the_future() {
    let a = alloc(Desired::Stop, ClientStatus::Running, vec![("t", running(vec![event(EventKind::Killing, 60 * S)]))]);
    let d = derive_at(&a, &one_task(), &[], &[], 10 * S);
    assert_eq!(told(&d), one(Cause::Stopped, 10 * S, 12 * S));
    assert_eq!(told(&derive_at(&a, &one_task(), &[], &[record(&d.clocks[0])], 11 * S)), one(Cause::Stopped, 10 * S, 12 * S));
}

#[test]
fn a_leader_that_ended_tells_the_others_after_the_settle_time() {
    let mut leader = task_spec("main", Role::Main);
    leader.leader = true;
    let spec = job(JobType::Batch, vec![leader, task_spec("t", Role::Main)]);
    let a = alloc(Desired::Run, ClientStatus::Running, vec![("main", running(vec![exited(3 * S, 0)])), ("t", running(vec![]))]);
    let early = derive_at(&a, &spec, &[], &[], 4 * S);
    assert_eq!((told(&early), early.recheck_at), (vec![], Some(at(4500))));
    assert_eq!(clocks(&a, &spec, 4500), one(Cause::SiblingEnded, 3 * S, 5 * S));
}

#[test]
fn a_task_that_will_be_restarted_tells_nobody() {
    let mut leader = task_spec("main", Role::Main);
    leader.leader = true;
    let mut spec = job(JobType::Service, vec![leader, task_spec("t", Role::Main)]);
    let policy = |attempts, fail| RestartPolicy { attempts, fail, ..RestartPolicy::default() };
    let a = |restarts| {
        let main = Task { restarts, ..running(vec![exited(3 * S, 1)]) };
        alloc(Desired::Run, ClientStatus::Running, vec![("main", main), ("t", running(vec![]))])
    };
    for (restart, restarts, ends) in [
        (policy(0, true), 0, true),
        (policy(0, false), 0, true),
        (policy(2, true), 0, false),
        (policy(2, true), 1, false),
        (policy(2, true), 2, true),
        (policy(2, false), 9, false),
    ] {
        restarted_by(&mut spec, restart);
        let expected = if ends { one(Cause::SiblingEnded, 3 * S, 5 * S) } else { vec![] };
        assert_eq!(clocks(&a(restarts), &spec, 60 * S), expected, "{restart:?} after {restarts}");
    }
}

#[test]
fn a_sidecar_is_told_by_the_last_main_task_and_a_batch_neighbour_is_not() {
    let done = || running(vec![exited(3 * S, 0)]);
    let sidecar = job(JobType::Batch, vec![task_spec("main", Role::Main), task_spec("t", Role::Sidecar)]);
    let a = alloc(Desired::Run, ClientStatus::Running, vec![("main", done()), ("t", running(vec![]))]);
    assert_eq!(clocks(&a, &sidecar, 60 * S), one(Cause::SiblingEnded, 3 * S, 5 * S));
    let neighbours = job(JobType::Batch, vec![task_spec("main", Role::Main), task_spec("t", Role::Main)]);
    assert_eq!(clocks(&a, &neighbours, 60 * S), vec![]);
    let two =
        job(JobType::Batch, vec![task_spec("main", Role::Main), task_spec("more", Role::Main), task_spec("t", Role::Sidecar)]);
    let a = alloc(Desired::Run, ClientStatus::Running, vec![("main", done()), ("more", running(vec![])), ("t", running(vec![]))]);
    assert_eq!(clocks(&a, &two, 60 * S), vec![], "one main task still works");
}

#[test]
fn a_poststop_task_has_a_clock_of_its_own_only_when_the_allocation_is_wanted_stopped() {
    let spec = job(JobType::Batch, vec![task_spec("main", Role::Main), task_spec("t", Role::Poststop)]);
    let main = || Task { state: TaskState::Dead, ..running(vec![exited(3 * S, 0)]) };
    let post = || task(TaskState::Running, vec![event(EventKind::Started, 4 * S)]);
    let with = |desired| alloc(desired, ClientStatus::Running, vec![("main", main()), ("t", post())]);
    assert_eq!(clocks(&with(Desired::Stop), &spec, 5 * S), one(Cause::Poststop, 4 * S, 304 * S));
    assert_eq!(clocks(&with(Desired::Run), &spec, 5 * S), vec![], "it runs after a natural end");
}

#[test]
fn an_allocation_is_over_only_after_its_poststop_task() {
    let spec = job(JobType::Batch, vec![task_spec("main", Role::Main), task_spec("t", Role::Poststop)]);
    let group = spec.groups.get("g");
    let main = || Task { state: TaskState::Dead, ..running(vec![exited(3 * S, 0)]) };
    let post = |state| Task { state, failed: false, restarts: 0, started_at: None, finished_at: None, events: vec![] };
    let with = |state| alloc(Desired::Stop, ClientStatus::Running, vec![("main", main()), ("t", post(state))]);
    assert!(!is_over(&with(TaskState::Pending), group, at(4 * S), &GRACES));
    assert!(is_over(&with(TaskState::Dead), group, at(4 * S), &GRACES));
    assert!(is_over(&with(TaskState::Pending), group, at(900 * S), &GRACES), "a client that was going to start it has");
    let never_placed = alloc(Desired::Stop, ClientStatus::Pending, vec![]);
    assert!(!is_over(&never_placed, group, at(4 * S), &GRACES));
}

#[test]
fn what_a_drain_moves_has_the_deadline_and_nothing_shorter() {
    let due = |a: &Allocation, spec: &JobSpec, demands: &[Demand], drain| {
        told(&drained(a, spec, demands, Some(drain), &[], 20 * S)).iter().map(|c| c.3).collect::<Vec<_>>()
    };
    for spec in [one_task(), unmanaged()] {
        assert_eq!(due(&moved(12 * S), &spec, &[], drain_until(Some(60 * S))), [60 * S]);
        assert_eq!(due(&moved(12 * S), &spec, &[], drain_until(Some(11 * S))), [12 * S], "not before it was told");
        assert_eq!(due(&moved(12 * S), &spec, &[], drain_until(None)), Vec::<i64>::new(), "no deadline, no clock");
        // Its job is stopped too: the earlier of both.
        assert_eq!(due(&moved(12 * S), &spec, &[demand(15 * S, Some(5))], drain_until(Some(60 * S))), [20 * S]);
        assert_eq!(due(&moved(12 * S), &spec, &[demand(15 * S, Some(500))], drain_until(Some(60 * S))), [60 * S]);
        assert_eq!(due(&moved(12 * S), &spec, &[demand(15 * S, Some(5))], drain_until(None)), [20 * S]);
    }
    // A client whose clock is a little behind was told by this drain all the same; much earlier it was somebody else.
    assert_eq!(due(&moved(7 * S), &one_task(), &[], drain_until(Some(60 * S))), [60 * S]);
    assert_eq!(due(&moved(2 * S), &one_task(), &[], drain_until(Some(60 * S))), [4 * S]);
    // Told otherwise: its own timeout, and the deadline at the latest; one that is nobody's, the deadline.
    let replaced = Allocation { migrate: false, ..moved(12 * S) };
    assert_eq!(due(&replaced, &one_task(), &[], drain_until(Some(60 * S))), [14 * S]);
    assert_eq!(due(&replaced, &one_task(), &[], drain_until(Some(13 * S))), [13 * S]);
    assert_eq!(due(&replaced, &unmanaged(), &[], drain_until(Some(60 * S))), [60 * S]);
    assert_eq!(due(&replaced, &unmanaged(), &[], drain_until(None)), Vec::<i64>::new());
}

#[test]
fn a_drain_covers_what_it_was_asked_to() {
    let count = |a: &Allocation, spec: &JobSpec, drain| drained(a, spec, &[], Some(drain), &[], 20 * S).clocks.len();
    let all = drain_until(Some(15 * S));
    let only_managed = NodeDrain { only_managed: true, ..all };
    assert_eq!((count(&moved(12 * S), &unmanaged(), all), count(&moved(12 * S), &unmanaged(), only_managed)), (1, 0));
    let system = |managed| JobSpec { managed, job_type: JobType::System, ..one_task() };
    let ignoring = NodeDrain { ignore_system: true, ..all };
    assert_eq!(count(&moved(12 * S), &system(false), ignoring), 0);
    assert_eq!(told(&drained(&moved(12 * S), &system(true), &[], Some(ignoring), &[], 20 * S))[0].3, 14 * S, "its own clock");
    // Nomad wants it to run: untouchable.
    let wanted = Allocation { desired: Desired::Run, ..moved(12 * S) };
    assert_eq!(count(&wanted, &unmanaged(), all), 0);
}

#[test]
fn a_shutdown_delay_does_not_move_a_drains_deadline_but_for_one_that_no_event_tells() {
    let mut spec = one_task();
    spec.groups.get_mut("g").unwrap().tasks.get_mut(&"t".into()).unwrap().shutdown_delay = secs(100);
    let mut a = moved(12 * S);
    a.tasks.get_mut(&"t".into()).unwrap().events.push(event(EventKind::WaitingForShutdownDelay, 12 * S));
    assert_eq!(told(&drained(&a, &spec, &[], Some(drain_until(Some(60 * S))), &[], 20 * S))[0].3, 60 * S);
    let silent = Allocation { migrate: true, ..alloc(Desired::Stop, ClientStatus::Running, vec![("t", running(vec![]))]) };
    let seen = |drain| told(&drained(&silent, &one_task(), &[], Some(drain), &[], 20 * S))[0].3;
    assert_eq!((seen(drain_until(Some(60 * S))), seen(drain_until(Some(15 * S)))), (60 * S, 21_500));
}

fn kind() -> impl Strategy<Value = EventKind> {
    use EventKind::*;
    prop::sample::select(vec![
        Started,
        Terminated,
        Killing,
        Killed,
        Restarting,
        RestartSignaled,
        Signaling,
        WaitingForShutdownDelay,
        Other,
    ])
}

fn any_task() -> impl Strategy<Value = Task> {
    let events = prop::collection::vec((kind(), 1..5000i64, -1..3i64), 0..10);
    (prop::sample::select(vec![TaskState::Pending, TaskState::Running, TaskState::Dead]), events, 0..4u64, any::<bool>())
        .prop_map(|(state, events, restarts, failed)| {
            let mut now = 0;
            let events = events.into_iter().map(|(k, step, code)| {
                now += step;
                TaskEvent { exit_code: code, ..event(k, now) }
            });
            Task { restarts, failed, ..task(state, events.collect()) }
        })
}

proptest! {
    /// A task that nothing told is untouchable: no sign of its own since it started, no sibling that ended.
    #[test]
    fn no_clock_without_a_sign(a in any_task(), b in any_task(), attempts in 0..3u64, batch: bool, now in 0..100_000i64) {
        let job_type = if batch { JobType::Batch } else { JobType::Service };
        let mut spec = job(job_type, vec![task_spec("a", Role::Main), task_spec("b", Role::Main)]);
        restarted_by(&mut spec, RestartPolicy { attempts, fail: true, ..RestartPolicy::default() });
        let al = alloc(Desired::Run, ClientStatus::Running, vec![("a", a), ("b", b)]);
        for c in derive_at(&al, &spec, &[], &[], now).clocks {
            let own = &al.tasks[&c.key.task];
            prop_assert!(own.lives());
            prop_assert!(c.due >= c.start && c.start <= at(now));
            let since = own.running_since().unwrap();
            let sign = |k| own.events.iter().any(|e| e.kind == k && e.at >= since);
            match c.cause {
                Cause::Killing => prop_assert!(sign(EventKind::Killing)),
                Cause::Restart => prop_assert!(sign(EventKind::RestartSignaled)),
                Cause::SiblingEnded => {
                    let other = al.tasks.iter().find(|(n, _)| **n != c.key.task).unwrap().1;
                    prop_assert!(other.failed && other.state == TaskState::Dead
                        || other.events.last().is_some_and(|e| e.kind == EventKind::Terminated));
                }
                Cause::Stopped | Cause::Poststop => prop_assert!(false, "nobody stopped it"),
            }
        }
    }

    /// Under a drain nothing is killed before its deadline unless its job is stopped too, and everything that was told has a clock
    /// by the later of deadline and SIGTERM.
    #[test]
    fn a_drain_kills_at_its_deadline_neither_before_nor_after(
        t in any_task(), managed: bool, demanded in prop::option::of(0..50_000i64), deadline in 10_000..90_000i64, now in 0..100_000i64,
        remember: bool,
    ) {
        let spec = JobSpec { managed, ..one_task() };
        let al = Allocation { migrate: true, ..alloc(Desired::Stop, ClientStatus::Running, vec![("t", t)]) };
        let drain = NodeDrain { deadline: Some(at(deadline)), started_at: at(0), only_managed: false, ignore_system: false };
        let demands: Vec<Demand> = demanded.map(|ms| demand(ms, Some(3))).into_iter().collect();
        let first = drained(&al, &spec, &demands, Some(drain), &[], now);
        let memory: Vec<_> = if remember { first.clocks.iter().map(record).collect() } else { vec![] };
        let d = drained(&al, &spec, &demands, Some(drain), &memory, now);
        let lives = al.tasks.values().any(|t| t.lives() && !ended_since_start(t));
        prop_assert_eq!(d.clocks.len(), usize::from(lives));
        for c in d.clocks {
            prop_assert!(demanded.is_some() || c.due >= at(deadline), "{} before {deadline}", c.due);
            prop_assert!(c.due <= at(deadline).max(c.start + GRACES.settle), "{} after {deadline}", c.due);
        }
    }

    /// Looking again, with what was written down, never moves a clock that rests on an event.
    #[test]
    fn a_clock_does_not_move(t in any_task(), now in 0..100_000i64, later in 0..100_000i64, stop: bool) {
        let desired = if stop { Desired::Stop } else { Desired::Run };
        let al = alloc(desired, ClientStatus::Running, vec![("t", t)]);
        let first = derive_at(&al, &one_task(), &[], &[], now);
        let memory: Vec<_> = first.clocks.iter().map(record).collect();
        let second = derive_at(&al, &one_task(), &[], &memory, now + later);
        prop_assert_eq!(told(&first), told(&second));
    }
}
