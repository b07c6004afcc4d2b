//! Properties over generated cluster states, and the cases that a reader asks for first. Times are seconds.

use litemap::LiteMap;
use proptest::prelude::*;

use super::*;
use crate::drain::{Deadline, DrainMeta};
use crate::operation::{Demand, State};
use crate::spec::{GroupSpec, JobSpec, JobType, RestartPolicy, Role, TaskSpec};
use crate::{Allocation, ClientStatus, Desired, EventKind, JobKey, OpId, Task, TaskEvent, TaskState, Timestamp};

fn at(s: i64) -> Timestamp {
    Timestamp::from_millis(s * 1000)
}
const fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

const OWN: u64 = 20;
const GRACE: u64 = 900;
const GRACES: Graces = Graces { job_stop_timeout: secs(30), poststop_timeout: secs(300), settle: Duration::from_millis(1500) };

fn settings() -> Settings {
    Settings {
        modes: Modes::default(),
        cap: Some(100),
        grace: secs(GRACE),
        retention: secs(7 * 86_400),
        never_placed: secs(86_400),
        retention_operations: secs(30 * 86_400),
        retention_audit: secs(90 * 86_400),
        graces: GRACES,
        namespaces: vec![],
    }
}

fn spec(managed: bool) -> JobSpec {
    let task = |name: &str, role, leader| {
        let restart = RestartPolicy { attempts: 0, fail: true, ..RestartPolicy::default() };
        let spec = TaskSpec {
            name: name.into(),
            driver: "raw_exec".into(),
            role,
            leader,
            stop_timeout: Some(secs(OWN)),
            kill_timeout: secs(86_400),
            shutdown_delay: Duration::ZERO,
            restart,
        };
        (spec.name.clone(), spec)
    };
    let tasks = [task("a", Role::Main, false), task("b", Role::Main, true), task("c", Role::Sidecar, false)];
    let group = GroupSpec {
        tasks: tasks.into_iter().collect(),
        count: 1,
        shutdown_delay: Duration::ZERO,
        progress_deadline: None,
        only_on: vec![],
    };
    JobSpec {
        managed,
        job_type: JobType::Service,
        version: 0,
        job_modify_index: 5,
        stopped: false,
        parent: false,
        datacenters: vec![],
        node_pool: "default".into(),
        groups: [("g".to_owned(), group)].into_iter().collect(),
    }
}

fn event(kind: EventKind, s: i64, exit_code: i64) -> TaskEvent {
    TaskEvent { kind, at: at(s), exit_code, signal: 0, kill_timeout: None, delay: None, text: None }
}

fn alloc(id: usize, desired: Desired, client_status: ClientStatus, tasks: LiteMap<crate::TaskName, Task>) -> Allocation {
    Allocation {
        id: format!("{id:08}-8203-6163-e9fa-86ea80c11132").into(),
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
        modified_at: Some(at(0)),
        tasks,
    }
}

fn task(state: TaskState, events: Vec<TaskEvent>) -> Task {
    let started_at = events.iter().rev().find(|e| e.kind == EventKind::Started).map(|e| e.at);
    Task { state, failed: false, restarts: 0, started_at, finished_at: None, events }
}

fn stub() -> JobStub {
    JobStub {
        key: JobKey::new("default", "j"),
        parent: None,
        job_type: JobType::Service,
        status: JobStatus::Running,
        stopped: false,
        has_children: false,
        submitted_at: Some(at(0)),
        job_modify_index: 5,
        managed: true,
        operation: Some(OpId::new(at(0)).to_string()),
        queued: 0,
        placed: 1,
        live_children: 0,
    }
}

fn a_task() -> impl Strategy<Value = Task> {
    let kinds = [
        EventKind::Started,
        EventKind::Killing,
        EventKind::RestartSignaled,
        EventKind::Terminated,
        EventKind::Restarting,
        EventKind::Signaling,
        EventKind::Killed,
    ];
    let one = (prop::sample::select(kinds.to_vec()), 0..2000i64, prop::sample::select(vec![0i64, 1]));
    let state = prop::sample::select(vec![TaskState::Pending, TaskState::Running, TaskState::Running, TaskState::Dead]);
    (state, prop::collection::vec(one, 0..6), any::<bool>()).prop_map(|(state, mut events, started)| {
        if started {
            events.push((EventKind::Started, 0, 0));
        }
        events.sort_by_key(|e| e.1);
        let events: Vec<_> = events.into_iter().map(|(kind, s, code)| event(kind, s, code)).collect();
        let ended = events.last().map(|e| e.at).filter(|_| state == TaskState::Dead);
        Task { finished_at: ended, ..task(state, events) }
    })
}

fn an_alloc() -> impl Strategy<Value = Allocation> {
    let desired = prop::sample::select(vec![Desired::Run, Desired::Run, Desired::Stop, Desired::Evict]);
    let status = prop::sample::select(vec![
        ClientStatus::Pending,
        ClientStatus::Running,
        ClientStatus::Complete,
        ClientStatus::Failed,
        ClientStatus::Lost,
        ClientStatus::Unknown,
    ]);
    let tasks = prop::collection::btree_map(prop::sample::select(vec!["a", "b", "c", "stranger"]), a_task(), 0..4);
    (0..1000usize, desired, status, tasks, prop::option::of(0..2000i64), any::<bool>()).prop_map(
        |(id, desired, status, tasks, modified, migrate)| Allocation {
            modified_at: modified.map(at),
            migrate,
            ..alloc(id, desired, status, tasks.into_iter().map(|(n, t)| (n.into(), t)).collect())
        },
    )
}

fn some_knowledge() -> impl Strategy<Value = Knowledge> {
    let stop = (0..2000i64, prop::option::of(0..600u64), prop::option::of(1..10u64), prop::option::of(0..4000i64));
    prop_oneof![
        Just(Knowledge::Nothing),
        Just(Knowledge::Uncovered),
        stop.prop_map(|(asked, timeout, delete_index, deadline)| {
            let demand = Demand {
                at: at(asked),
                stop_timeout: timeout.map(secs),
                until: None,
                no_shutdown_delay: false,
                purge: false,
                job_index: 5,
            };
            Knowledge::Stop(LiveStop {
                operation: OpId::new(at(0)),
                demands: vec![demand],
                late: Duration::ZERO,
                delete_index,
                deadline: deadline.map(at),
            })
        })
    ]
}

/// Every sign by which a task may have been told to end, read independently of `derive`: without one of them it is healthy.
fn any_sign(a: &Allocation, name: &crate::TaskName) -> bool {
    let t = &a.tasks[name];
    let since = t.running_since();
    let own = t
        .events
        .iter()
        .any(|e| matches!(e.kind, EventKind::Killing | EventKind::RestartSignaled) && since.is_some_and(|s| e.at >= s));
    let sibling = a.tasks.iter().any(|(n, t)| {
        n != name && (t.state == TaskState::Dead || t.events.last().is_some_and(|e| e.kind == EventKind::Terminated))
    });
    a.desired != Desired::Run || own || sibling
}

fn lives(t: &Task) -> bool {
    t.started_at.is_some() && t.state != TaskState::Dead
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// No verdict touches a task that was not told to end, nor one of a job that is not Curfew's, nor one before its clock
    /// and the slack; the same state twice gives the same verdicts.
    #[test]
    fn only_what_was_told_to_end_is_past_its_clock(
        a in an_alloc(), known in some_knowledge(), managed in any::<bool>(), heard in any::<bool>(), now in 0..6000i64,
    ) {
        let judge = |spec: &JobSpec, s: &Settings| past_clock(&a, spec, &known, None, heard, s, at(now));
        let found = judge(&spec(managed), &settings());
        prop_assert!(managed || found.is_empty());
        prop_assert!(may_be_told(&a) || found.is_empty());
        for past in &found {
            prop_assert!(lives(&a.tasks[past.task()]) && any_sign(&a, past.task()), "{past:?}");
            let slack = if matches!(known, Knowledge::Uncovered) { KNOWN_SLACK } else { secs(60) };
            prop_assert!(past.due >= past.clock() + slack && at(now) >= past.due, "{past:?}");
            prop_assert!(past.order(at(now)).is_some() && past.order(past.due - secs(1)).is_none());
            prop_assert!(past.clock() >= past.start());
            if known == Knowledge::Nothing {
                prop_assert!(at(now) >= past.start() + secs(GRACE));
            }
        }
        prop_assert_eq!(&found, &judge(&spec(managed), &settings()));
        let elsewhere = Settings { namespaces: vec!["other".into()], ..settings() };
        prop_assert!(judge(&spec(true), &elsewhere).is_empty());
    }

    /// Every live task that is past its clock gets a verdict: one that shows `Killing` in its own incarnation, and one that is
    /// wanted stopped and shows nothing, by when Nomad last wrote its allocation.
    #[test]
    fn every_live_task_past_its_clock_is_found(a in an_alloc(), now in 0..6000i64, known in prop::sample::select(vec![Knowledge::Nothing, Knowledge::Uncovered])) {
        let found = past_clock(&a, &spec(true), &known, None, true, &settings(), at(now));
        let slack = if known == Knowledge::Nothing { secs(GRACE) } else { KNOWN_SLACK };
        for (name, t) in &a.tasks {
            let Some(since) = t.running_since() else { continue };
            // Between two starts there is no process.
            let between = t.last_at(EventKind::Terminated).is_some_and(|end| end >= since);
            if !lives(t) || between || name.as_str() == "stranger" {
                continue;
            }
            let killing = t.events.iter().find(|e| e.kind == EventKind::Killing && e.at >= since).map(|e| e.at);
            let unreachable = matches!(a.client_status, ClientStatus::Lost | ClientStatus::Unknown);
            let told = match (killing, a.modified_at) {
                (Some(k), _) => k,
                (None, Some(m)) if a.desired != Desired::Run && !unreachable => m,
                _ => continue,
            };
            let last = told + secs(OWN) + GRACES.settle + slack;
            if at(now) >= last {
                prop_assert!(found.iter().any(|p| p.task() == name), "{name} told at {told}: {a:?}");
            }
        }
    }

    /// Nothing is purged with a task that lives or may start, whatever the statuses say.
    #[test]
    fn nothing_that_may_live_is_purged(
        allocs in prop::collection::vec(an_alloc(), 0..4), unreadable in 0..2usize, stopped in any::<bool>(), days in 0..30i64,
        dead in any::<bool>(), children in 0..2u64,
    ) {
        let status = if dead { JobStatus::Dead } else { JobStatus::Running };
        let job = JobStub { status, stopped, live_children: children, ..stub() };
        let now = at(days * 86_400);
        let verdict = purge(&job, &allocs, unreadable, None, &settings(), now);
        if let Purge::Now(order) = &verdict {
            prop_assert!(dead && stopped && unreadable == 0 && children == 0 && now >= at(0) + settings().retention);
            prop_assert_eq!((order.key(), order.job_modify_index()), (&job.key, job.job_modify_index));
        }
        if matches!(verdict, Purge::Now(_) | Purge::StopFirst) {
            for a in &allocs {
                prop_assert!(!a.tasks.values().any(lives), "{a:?}");
                prop_assert!(!a.may_still_start(), "{a:?}");
                prop_assert!(a.modified_at.is_none_or(|m| now >= m + settings().retention));
            }
        }
        prop_assert_eq!(verdict, purge(&job, &allocs, unreadable, None, &settings(), now));
    }

    /// What was acted on gives no second verdict: a killed task is dead, a dead job is stopped, then gone.
    #[test]
    fn acting_twice_changes_nothing_more(allocs in prop::collection::vec(an_alloc(), 0..4), now in 2000..9000i64) {
        let mut allocs = allocs;
        let pass = |allocs: &mut Vec<Allocation>| {
            let mut killed = 0;
            for a in allocs.iter_mut() {
                for past in past_clock(a, &spec(true), &Knowledge::Nothing, None, true, &settings(), at(now)) {
                    let t = a.tasks.get_mut(past.task()).unwrap();
                    t.state = TaskState::Dead;
                    t.finished_at = Some(at(now));
                    killed += 1;
                }
            }
            killed
        };
        pass(&mut allocs);
        // An end may tell others of the group at once; nothing of theirs is past its clock yet.
        prop_assert_eq!(pass(&mut allocs), 0);
        let later = at(now) + settings().retention * 2;
        let job = JobStub { status: JobStatus::Dead, stopped: false, ..stub() };
        match purge(&job, &allocs, 0, None, &settings(), later) {
            Purge::StopFirst => {
                let stopped = JobStub { stopped: true, job_modify_index: 6, ..job };
                let verdict = purge(&stopped, &allocs, 0, None, &settings(), later);
                prop_assert!(matches!(verdict, Purge::Now(_)), "{:?}", verdict);
            }
            Purge::Now(_) => prop_assert!(false, "Nomad could have placed it again"),
            Purge::Keep | Purge::NotYet(_) => {}
        }
    }
}

fn told(killing: i64) -> Allocation {
    let t = task(TaskState::Running, vec![event(EventKind::Started, 0, 0), event(EventKind::Killing, killing, 0)]);
    alloc(1, Desired::Stop, ClientStatus::Running, [("a".into(), t)].into_iter().collect())
}

#[test]
fn without_a_database_a_clock_has_the_grace_on_top_and_with_one_the_controller_goes_first() {
    let due = |known: Knowledge| {
        let found = past_clock(&told(100), &spec(true), &known, None, true, &settings(), at(100_000));
        found.first().map(|p| (p.due.since(at(100)).as_secs(), p.operation.is_some()))
    };
    assert_eq!(due(Knowledge::Nothing), Some((OWN + GRACE, false)));
    assert_eq!(due(Knowledge::Uncovered), Some((OWN + 60, false)));
    let stop = |timeout, deadline: Option<i64>| {
        let demand = Demand {
            at: at(90),
            stop_timeout: Some(secs(timeout)),
            until: None,
            no_shutdown_delay: false,
            purge: false,
            job_index: 5,
        };
        let operation = OpId::new(at(90));
        let deadline = deadline.map(at);
        Knowledge::Stop(LiveStop { operation, demands: vec![demand], late: Duration::ZERO, delete_index: Some(9), deadline })
    };
    assert_eq!(due(stop(3600, None)), Some((3600 + GRACE, true)), "what the request left counts");
    assert_eq!(due(stop(5, Some(5000))), Some((4900 + GRACE, true)), "and so does its deadline");
    let Knowledge::Stop(s) = stop(3600, None) else { unreachable!() };
    let older = Knowledge::Stop(LiveStop { delete_index: Some(5), ..s });
    assert_eq!(due(older), Some((OWN + 60, false)), "registered after the DELETE: not that stop's");
}

#[test]
fn what_a_drain_moves_has_the_drains_deadline_and_none_without() {
    let moved = Allocation { migrate: true, ..told(100) };
    let judge = |a: &Allocation, deadline| {
        let drain = DrainMeta {
            operation: OpId::new(at(0)),
            deadline,
            started_at: Some(at(50)),
            only_managed: false,
            ignore_system: false,
            was_eligible: true,
        };
        past_clock(a, &spec(true), &Knowledge::Nothing, Some(&drain), true, &settings(), at(100_000)).first().map(|p| p.due)
    };
    assert_eq!(judge(&moved, Deadline::At(at(5000))), Some(at(5000) + secs(GRACE)));
    assert_eq!(judge(&moved, Deadline::Never), None);
    assert_eq!(judge(&moved, Deadline::Unreadable), None);
    assert!(judge(&told(100), Deadline::Never).is_some(), "its job was stopped; the drain did not move it");
}

#[test]
fn silence_is_no_end_without_a_time_and_on_a_node_that_is_away() {
    let silent = || {
        let t = task(TaskState::Running, vec![event(EventKind::Started, 0, 0)]);
        alloc(1, Desired::Stop, ClientStatus::Running, [("a".into(), t)].into_iter().collect())
    };
    let judge = |a: Allocation| past_clock(&a, &spec(true), &Knowledge::Nothing, None, true, &settings(), at(100_000)).len();
    assert_eq!(judge(silent()), 1);
    assert_eq!(judge(Allocation { modified_at: None, ..silent() }), 0);
    assert_eq!(judge(Allocation { client_status: ClientStatus::Lost, ..silent() }), 0);
}

#[test]
fn an_orphan_is_one_that_the_database_could_know() {
    let id = |s| Some(OpId::new(at(s)).to_string());
    let judge = |operation: Option<String>| owner(&JobStub { operation, ..stub() }, &settings(), at(1000));
    assert!(matches!(judge(id(2000)), Owner::Ask(_)));
    assert_eq!(judge(id(500)), Owner::NotJudged, "a new database makes nobody's job an orphan");
    assert_eq!(judge(None), Owner::Nameless);
    assert_eq!(judge(Some("7".into())), Owner::Nameless);
    assert_eq!(judge(Some("5355e9cc-8203-4163-a9fa-86ea80c11132".into())), Owner::Nameless, "an id that tells no time");
    for job in
        [JobStub { managed: false, ..stub() }, JobStub { stopped: true, ..stub() }, JobStub { status: JobStatus::Dead, ..stub() }]
    {
        assert_eq!(owner(&JobStub { operation: id(2000), ..job }, &settings(), at(1000)), Owner::NotJudged);
    }
}

#[test]
fn one_pass_never_proves_an_orphan() {
    let mut seen = Sightings::default();
    let job = stub();
    let see = |seen: &mut Sightings, s: i64| seen.see(Verdict::Orphan, &job, at(s)).is_enough(secs(GRACE));
    assert!(!see(&mut seen, 0) && !see(&mut seen, 0), "the same pass counts once");
    assert!(!see(&mut seen, 10) && !see(&mut seen, 20) && !see(&mut seen, 30), "often, but not for long enough");
    assert!(see(&mut seen, 900));
    assert!(!seen.see(Verdict::Orphan, &JobStub { job_modify_index: 6, ..stub() }, at(901)).is_enough(secs(GRACE)));
    let text = serde_json::to_string(&seen).unwrap();
    assert_eq!(serde_json::from_str::<Sightings>(&text).unwrap(), seen);
    seen.forget_before(at(901));
    assert_eq!(seen.len(), 1);
}

#[test]
fn children_live_on_with_their_parent_only() {
    let child = JobStub { parent: Some("p".into()), ..stub() };
    let judge = |job: &JobStub, parent| abandoned_child(job, &settings(), parent);
    assert!(judge(&child, ParentState::Stopped) && judge(&child, ParentState::Gone));
    assert!(!judge(&child, ParentState::Wanted) && !judge(&stub(), ParentState::Gone));
    assert!(!judge(&JobStub { stopped: true, ..child.clone() }, ParentState::Gone));
    assert!(!judge(&JobStub { managed: false, ..child }, ParentState::Gone));
}

#[test]
fn never_placed_is_a_whole_job_that_waits_for_longer_than_the_limit() {
    let waits = JobStub { status: JobStatus::Pending, queued: 2, placed: 0, ..stub() };
    let judge = |job: &JobStub, s: i64| never_placed(job, &settings(), at(s));
    assert!(judge(&waits, 86_400) && !judge(&waits, 86_399));
    assert!(!judge(&JobStub { placed: 1, ..waits.clone() }, 90_000));
    assert!(!judge(&JobStub { submitted_at: None, ..waits.clone() }, 90_000));
    assert!(!judge(&JobStub { job_type: JobType::System, ..waits }, 90_000));
}

#[test]
fn why_a_dead_job_is_not_purged_yet() {
    let dead = JobStub { status: JobStatus::Dead, stopped: true, ..stub() };
    let old = at(30 * 86_400);
    let over = || {
        let t = Task { finished_at: Some(at(50)), ..task(TaskState::Dead, vec![event(EventKind::Started, 0, 0)]) };
        alloc(1, Desired::Stop, ClientStatus::Complete, [("a".into(), t)].into_iter().collect())
    };
    let why = |allocs: &[Allocation], unreadable| match purge(&dead, allocs, unreadable, None, &settings(), old) {
        Purge::NotYet(why) => why,
        other => panic!("{other:?}"),
    };
    assert!(matches!(purge(&dead, &[over()], 0, None, &settings(), old), Purge::Now(_)));
    assert_eq!(why(&[told(100)], 0), "allocation 00000001 on n1: task a lives");
    let lost = alloc(2, Desired::Stop, ClientStatus::Lost, LiteMap::new());
    assert_eq!(why(&[over(), lost], 0), "allocation 00000002 on n1 is lost and tells nothing of its tasks");
    assert!(why(&[over()], 1).contains("could not be read"));
    assert!(why(&[], 0).contains("since when"));
    let seen = Sighting { first: at(0), last: old, count: 9 };
    assert!(matches!(purge(&dead, &[], 0, Some(seen), &settings(), old), Purge::Now(_)));
    let just_now = Sighting { first: old, last: old, count: 1 };
    assert_eq!(purge(&dead, &[], 0, Some(just_now), &settings(), old), Purge::Keep);
    assert_eq!(purge(&dead, &[over()], 0, None, &settings(), at(6 * 86_400)), Purge::Keep);
    let stranger = Allocation { job: "other".into(), ..over() };
    assert!(why(&[stranger], 0).contains("another job"));
}

#[test]
fn a_purge_rests_on_a_job_that_did_not_change_meanwhile() {
    let dead = JobStub { status: JobStatus::Dead, stopped: true, ..stub() };
    let over = Task { finished_at: Some(at(50)), ..task(TaskState::Dead, vec![event(EventKind::Started, 0, 0)]) };
    let over = alloc(1, Desired::Stop, ClientStatus::Complete, [("a".into(), over)].into_iter().collect());
    let judge = |before: &JobStub, after: &JobStub| purge_when_dead(before, std::slice::from_ref(&over), 0, after);
    assert!(matches!(judge(&dead, &dead), Purge::Now(_)));
    let again = JobStub { status: JobStatus::Pending, stopped: false, job_modify_index: 9, ..dead.clone() };
    assert_eq!(judge(&dead, &again), Purge::Keep, "somebody wants it again");
    let twice = JobStub { job_modify_index: 12, ..dead.clone() };
    assert!(matches!(judge(&dead, &twice), Purge::NotYet(_)), "registered and stopped again: what it started was not read");
    assert!(matches!(judge(&JobStub { live_children: 1, ..dead.clone() }, &dead), Purge::NotYet(_)));
}

#[test]
fn a_node_is_given_back_only_after_a_cancelled_drain() {
    for state in [None, Some(State::Succeeded), Some(State::Failed)] {
        assert!(matches!(node_left(false, false, true, state), NodeLeft::Report(_)), "{state:?}");
    }
    assert!(matches!(node_left(false, false, true, Some(State::Cancelled)), NodeLeft::MakeEligible(_)));
    assert_eq!(node_left(false, true, true, Some(State::Running)), NodeLeft::Fine);
    assert_eq!(node_left(true, false, true, None), NodeLeft::Fine);
    assert_eq!(node_left(false, false, false, Some(State::Cancelled)), NodeLeft::Fine, "it took none before the drain");
    assert!(matches!(node_left(false, true, false, Some(State::Cancelled)), NodeLeft::MakeEligible(_)), "its drain is to end");
}

#[test]
fn modes_are_written_as_verdict_and_mode() {
    let mut modes = Modes::default();
    assert_eq!((modes.of(Verdict::Orphan), modes.of(Verdict::PastClock)), (Mode::Report, Mode::Act));
    modes.set("orphan=act").unwrap();
    modes.set(" purge = off ").unwrap();
    assert_eq!((modes.of(Verdict::Orphan), modes.of(Verdict::Purge)), (Mode::Act, Mode::Off));
    for bad in ["orphan", "orfan=act", "orphan=maybe", ""] {
        let e = modes.set(bad).unwrap_err().to_string();
        assert!(e.contains("orphan=report") && e.contains("past_clock"), "{e}");
    }
    assert!(Verdict::ALL.iter().enumerate().all(|(i, v)| *v as usize == i && Verdict::parse(v.as_str()) == Some(*v)));
}
