//! What operators read, as snapshots. Instants are the fixtures' own, so nothing in them changes from run to run.

use std::time::Duration;

use clap::Parser;
use curfew_client::{AllocPlan, DrainPlan, Gets, MaxParallel, NodePlan, OperationView, Problem, Strategy, Target};
use curfew_core::drain::{AllocLeft, DrainOptions, NodeOutcome, NodeState, Slow, Waits};
use curfew_core::operation::{By, Kind, Outcome, State};
use curfew_core::spec::JobType;
use curfew_core::{JobKey, Timestamp};
use insta::assert_snapshot;

use super::progress::{Lines, live};
use super::report::{report, summary};
use super::{plan, typed};
use crate::args::{Cli, Command};
use crate::exit;

const LONG: &str = "game-servers-europe-west-ranked-matchmaking-season-12-hotfix-0007";

/// So many seconds after the request.
fn at(seconds: f64) -> Timestamp {
    Timestamp::from_millis(1_790_000_000_000 + (seconds * 1000.0) as i64)
}

fn dc1() -> Target {
    Target::Datacenter { datacenter: "dc1".into() }
}

fn node(n: usize, state: NodeState) -> NodeOutcome {
    let begun = state != NodeState::Waiting;
    NodeOutcome {
        id: format!("0000000{n}-aaaa").as_str().into(),
        name: format!("dev{n}"),
        state,
        operation: None,
        started_at: begun.then(|| at(0.5)),
        ended_at: state.is_over().then(|| at(3.7)),
        deadline: begun.then(|| at(60.5)),
        waiting_for: None,
        exited: 0,
        killed: 0,
        left: 0,
        allocations: vec![],
        slowest: vec![],
    }
}

fn alloc(n: usize, job: &str, waits: Waits, kill_at: Option<f64>, waiting_for: &str) -> AllocLeft {
    AllocLeft {
        id: format!("{n:08}-bbbb").as_str().into(),
        job: JobKey::new(if job == LONG { "games" } else { "default" }, job),
        waits,
        kill_at: kill_at.map(at),
        waiting_for: waiting_for.into(),
    }
}

fn draining(n: usize, left: usize) -> NodeOutcome {
    let kinds = [
        (LONG, Waits::Clock, Some(60.5), ""),
        ("api", Waits::Turn, None, "its turn: Nomad moves it when enough others of its job are healthy"),
        ("logger", Waits::Last, None, "its turn: system jobs leave last"),
        ("cleaner", Waits::Poststop, Some(300.0), "its poststop task, which has a clock of its own"),
    ];
    let allocations = (0..left).map(|i| {
        let (job, waits, kill_at, why) = kinds[i % kinds.len()];
        alloc(n * 1000 + i, job, waits, kill_at, why)
    });
    NodeOutcome { left: left as u32, allocations: allocations.collect(), ..node(n, NodeState::Draining) }
}

fn op(kind: Kind, target: Target, state: State, nodes: Vec<NodeOutcome>) -> OperationView {
    let (exited, killed) = (nodes.iter().map(|n| n.exited).sum(), nodes.iter().map(|n| n.killed).sum());
    OperationView {
        id: "01a1fd93-d9ca-736a-9b4b-dad7fbe8a37c".parse().unwrap(),
        parent: None,
        kind,
        state,
        target,
        actor: "ops@desk".into(),
        reason: None,
        requested_at: at(0.0),
        deadline: Some(at(60.5)),
        finished_at: state.is_finished().then(|| at(10.3)),
        waiting_for: None,
        error: None,
        warnings: vec![],
        attempts: 0,
        leased_by: None,
        cancel: None,
        pause: None,
        outcome: Some(Outcome { exited, killed, nodes, ..Outcome::default() }),
    }
}

fn drained(n: usize, exited: u32, killed: u32) -> NodeOutcome {
    let slow = |job: &str, task: &str, took, killed| Slow {
        alloc: format!("{n:08}-bbbb").as_str().into(),
        job: job.into(),
        task: task.into(),
        took: Duration::from_millis(took),
        killed,
    };
    let slowest = match (exited, killed) {
        (0, 0) => vec![],
        (_, 0) => vec![slow("api", "web", 310 + n as u64, false)],
        _ => vec![slow(LONG, "server", 10_004, true), slow("api", "web", 200, false)],
    };
    NodeOutcome { exited, killed, slowest, ..node(n, NodeState::Drained) }
}

fn mixed() -> OperationView {
    let failed = NodeOutcome {
        waiting_for: Some("somebody else drains it now (meta operator=jo)".into()),
        started_at: None,
        ..node(4, NodeState::Failed)
    };
    let unreachable = NodeOutcome {
        left: 1,
        allocations: vec![alloc(1, "api", Waits::Node, None, "node dev6 to come back: it is disconnected")],
        ..node(6, NodeState::Draining)
    };
    let nodes = vec![drained(1, 3, 1), draining(2, 4), draining(3, 2), failed, node(5, NodeState::Waiting), unreachable];
    op(Kind::DrainDatacenter, dc1(), State::Waiting, nodes)
}

#[test]
fn the_view_fits_every_terminal() {
    let op = mixed();
    for (width, height) in [(80, 24), (120, 24), (80, 9), (80, 6), (40, 3)] {
        let view = live(&op, at(12.0), width, height);
        assert!(view.len() <= height, "{width}x{height}: {view:#?}");
        assert!(view.iter().all(|l| console::measure_text_width(l) <= width), "{width}x{height}: {view:#?}");
        assert_snapshot!(format!("live_{width}x{height}"), view.join("\n"));
    }
    assert!(live(&op, at(12.0), 80, 0).is_empty());
}

#[test]
fn hundreds_of_nodes_and_what_they_wait_for_are_counted() {
    let nodes = (0..300).map(|n| if n < 100 { drained(n, 2, 0) } else { draining(n, 50) });
    let op = op(Kind::DrainDatacenter, dc1(), State::Waiting, nodes.collect());
    assert_snapshot!("live_of_300", live(&op, at(12.0), 80, 12).join("\n"));
    let small: Vec<_> = (0..3).map(|n| draining(n, 60)).collect();
    let op = super::tests::op(Kind::DrainDatacenter, dc1(), State::Waiting, small);
    assert_snapshot!("live_of_180_allocations", live(&op, at(12.0), 80, 16).join("\n"));
}

#[test]
fn what_it_waits_for_as_a_whole_is_said_first() {
    let first = |op: &OperationView| live(op, at(70.5), 200, 10).remove(0);
    let mut op = op(Kind::DrainNode, Target::Node { node: "5355e9cc".into(), name: "dev1".into() }, State::Waiting, vec![]);
    op.waiting_for = Some("Nomad to answer".into());
    assert_eq!(first(&op), "node dev1: waits for Nomad to answer");
    op.outcome = Some(Outcome { nodes: vec![draining(1, 1)], ..Outcome::default() });
    assert_eq!(first(&op), "node dev1: 1 allocation left, 10.0s past its deadline");
    op.deadline = None;
    assert_eq!(first(&op), "node dev1: 1 allocation left, no deadline");
    op.pause = Some(By { actor: "jo".into(), reason: None, at: at(1.0) });
    op.state = State::Paused;
    assert_eq!(first(&op), "node dev1: paused by jo");
    op.cancel = op.pause.clone();
    assert_eq!(first(&op), "node dev1: being cancelled by jo");
}

/// The same drain looked at again and again: what is said, and that nothing is said twice.
#[test]
fn without_a_terminal_what_changed_is_said_once() {
    let mut lines = Lines::default();
    let mut all = vec![];
    let look = |op: &OperationView, seconds: f64, lines: &mut Lines, all: &mut Vec<String>| {
        all.extend(lines.news(op, at(seconds)));
        assert_eq!(lines.news(op, at(seconds)), Vec::<String>::new());
    };
    let mut op = op(Kind::DrainDatacenter, dc1(), State::Queued, vec![]);
    op.warnings = vec!["node dev2 cuts kill_timeout to 30s".into()];
    look(&op, 0.1, &mut lines, &mut all);
    let set = |op: &mut OperationView, state, nodes: Vec<NodeOutcome>| {
        op.state = state;
        op.outcome = Some(Outcome { nodes, ..Outcome::default() });
    };
    set(&mut op, State::Waiting, vec![draining(1, 30), draining(2, 2), node(3, NodeState::Waiting)]);
    look(&op, 1.0, &mut lines, &mut all);
    set(&mut op, State::Waiting, vec![draining(1, 25), draining(2, 2), node(3, NodeState::Waiting)]);
    look(&op, 2.0, &mut lines, &mut all);
    set(&mut op, State::Paused, vec![draining(1, 24), draining(2, 2), node(3, NodeState::Waiting)]);
    op.pause = Some(By { actor: "jo".into(), reason: None, at: at(8.0) });
    look(&op, 8.0, &mut lines, &mut all);
    op.pause = None;
    let mut extended = draining(1, 3);
    extended.deadline = Some(at(120.0));
    set(&mut op, State::Waiting, vec![extended.clone(), drained(2, 2, 0), draining(3, 0)]);
    look(&op, 9.0, &mut lines, &mut all);
    let away = alloc(1000, LONG, Waits::Node, None, "node dev1 to come back: it is down");
    set(&mut op, State::Waiting, vec![NodeOutcome { left: 1, allocations: vec![away], ..extended.clone() }, drained(2, 2, 0)]);
    look(&op, 11.0, &mut lines, &mut all);
    let back = alloc(1000, LONG, Waits::Report, None, "its client to report its end");
    set(&mut op, State::Waiting, vec![NodeOutcome { left: 1, allocations: vec![back], ..extended }, drained(2, 2, 0)]);
    look(&op, 12.0, &mut lines, &mut all);
    let gone = NodeOutcome { waiting_for: Some("Nomad does not know it any more".into()), ..node(3, NodeState::Gone) };
    set(&mut op, State::Succeeded, vec![drained(1, 2, 1), drained(2, 2, 0), gone]);
    op.finished_at = Some(at(14.0));
    look(&op, 14.0, &mut lines, &mut all);
    assert_snapshot!("lines", all.join("\n"));
}

#[test]
fn the_report_at_the_end() {
    let mut done =
        op(Kind::DrainDatacenter, dc1(), State::Succeeded, vec![drained(1, 3, 1), drained(2, 12, 0), drained(3, 0, 0)]);
    for (name, width) in [("80", Some(80)), ("120", Some(120)), ("without_a_terminal", None)] {
        assert_snapshot!(format!("report_{name}"), format!("{}\n\n{}", report(&done, width), summary(&done)));
    }
    done.state = State::Failed;
    done.outcome = mixed().outcome;
    assert_snapshot!("report_failed", format!("{}\n\n{}", report(&done, Some(100)), summary(&done)));
    let dev1 = Target::Node { node: "5355e9cc".into(), name: "dev1".into() };
    let one = op(Kind::DrainNode, dev1, State::Succeeded, vec![drained(1, 1, 1)]);
    assert_eq!(summary(&one), "node dev1 drained in 10.3s: 1 task ended by itself, 1 needed SIGKILL");
    let alone = NodeOutcome {
        waiting_for: Some("jo made it ineligible; --all would change that".into()),
        ..node(2, NodeState::LeftAlone)
    };
    let undrain = op(Kind::Undrain, dc1(), State::Succeeded, vec![node(1, NodeState::Eligible), alone]);
    assert_snapshot!("report_undrain", format!("{}\n\n{}", report(&undrain, Some(80)), summary(&undrain)));
}

fn drain_plan(nodes: usize) -> DrainPlan {
    let each = |n: usize| {
        let a = |i: usize, job: &str, job_type, managed, gets, not_replaced: Option<&str>| AllocPlan {
            id: format!("{:08}-bbbb", n * 10 + i).as_str().into(),
            job: JobKey::new(if job == LONG { "games" } else { "default" }, job),
            group: "servers".into(),
            job_type,
            managed,
            gets,
            stop_timeout: Duration::from_secs(30),
            not_replaced: not_replaced.map(str::to_owned),
        };
        NodePlan {
            id: format!("{n:08}-aaaa").as_str().into(),
            name: format!("dev{n}"),
            datacenter: "dc1".into(),
            node_pool: "default".into(),
            status: if n == 2 { "down".into() } else { "ready".into() },
            eligible: n != 3,
            drain_timeout: Some(Duration::from_secs(3600)),
            allocations: vec![
                a(0, LONG, JobType::Service, true, Gets::ToldAtOnce, None),
                a(1, "nightly", JobType::Batch, false, Gets::ToldAtOnce, Some("a batch job is not placed again")),
                a(2, "logger", JobType::System, true, Gets::Stays, None),
            ],
            problems: if n < 2 { vec!["max_kill_timeout is 30s: Nomad kills after that, not after 1h".into()] } else { vec![] },
        }
    };
    DrainPlan {
        target: dc1(),
        options: DrainOptions {
            strategy: Strategy::Evacuate,
            drain_timeout: Some(Duration::from_secs(3600)),
            no_deadline: false,
            max_parallel: Some(MaxParallel::Percent(20)),
            ignore_system: true,
            only_managed: false,
        },
        nodes: (0..nodes).map(each).collect(),
        warnings: vec!["no node of another datacenter takes allocations of \"logger\"".into()],
        refused: None,
    }
}

#[test]
fn the_plan_before_it_is_asked() {
    let plan = drain_plan(4);
    assert_eq!(plan::what(&plan), "4 nodes with 8 allocations");
    for width in [80, 120] {
        assert_snapshot!(format!("plan_{width}"), plan::short(&plan, Some(width)));
        assert_snapshot!(format!("dry_run_{width}"), plan::whole(&plan, Some(width)));
        for text in [plan::short(&plan, Some(width)), plan::whole(&plan, Some(width))] {
            let tables = text.split("\n\n").filter(|part| part.starts_with(' '));
            tables.flat_map(str::lines).for_each(|l| assert!(console::measure_text_width(l) <= width, "{width}: {l}"));
        }
    }
    let mut open = drain_plan(0);
    open.options.no_deadline = true;
    assert_snapshot!("plan_without_a_deadline_or_a_node", plan::short(&open, Some(80)));
}

#[test]
fn a_question_stands_below_one_page() {
    let mut plan = drain_plan(300);
    for (n, node) in plan.nodes.iter_mut().enumerate() {
        node.problems = vec![format!("its max_kill_timeout is {n}s")];
        node.allocations[0].job = JobKey::new("default", format!("game-{n:03}"));
    }
    let text = plan::short(&plan, Some(120));
    assert!(text.lines().count() < 80, "{text}");
    for rest in ["… and 280 more nodes", "… and 282 more groups", "… and 281 more warnings"] {
        assert!(text.contains(rest), "{rest}: {text}");
    }
    assert!(plan::whole(&plan, Some(120)).contains("dev299: its max_kill_timeout is 299s"));
}

fn parse(args: &str) -> Result<super::args::NodeDrain, String> {
    let cli = Cli::try_parse_from(format!("curfew node drain {args}").split_whitespace()).map_err(|e| e.to_string())?;
    match cli.command {
        Command::Node(super::args::Node::Drain(drain)) => Ok(drain),
        _ => Err("another command".into()),
    }
}

#[test]
fn what_is_typed_is_what_is_asked_for() {
    let args = parse(
        "5355e9cc dev2 --datacenter dc1 --node-pool gpu --node-class big --meta rack=r1 --selector zone=a=b --drain-timeout 90s \
         --strategy evacuate --max-parallel 20% --ignore-system --only-managed --reason disks",
    )
    .unwrap();
    let request = args.how.request(args.nodes.selection().unwrap());
    let asked = serde_json::to_value(&request).unwrap();
    let selection = serde_json::json!({
        "nodes": ["5355e9cc", "dev2"], "datacenter": "dc1", "node_pool": "gpu", "node_class": "big", "meta": { "rack": "r1", "zone": "a=b" },
    });
    assert_eq!(asked["selection"], selection);
    for (key, value) in [("strategy", "evacuate"), ("drain_timeout", "1m 30s"), ("max_parallel", "20%"), ("reason", "disks")] {
        assert_eq!(asked[key], value, "{asked}");
    }
    for key in ["ignore_system", "only_managed"] {
        assert_eq!(asked[key], true, "{asked}");
    }
    assert_eq!((request.no_deadline, request.dry_run), (false, false));
    assert!(parse("dev1 --no-deadline").unwrap().how.request(Default::default()).no_deadline);
}

#[test]
fn nonsense_is_refused_with_the_way_out() {
    for (args, says) in [
        ("", "NODE"),
        ("dev1 --no-deadline --drain-timeout 1h", "--no-deadline"),
        ("dev1 --drain-timeout 0s", "--no-deadline"),
        ("dev1 --drain-timeout 0", "--no-deadline"),
        ("dev1 --drain-timeout=-5s", "negative"),
        ("dev1 --drain-timeout 5", "no unit"),
        ("dev1 --max-parallel 0", "20%"),
        ("dev1 --max-parallel 101%", "20%"),
        ("dev1 --strategy dance", "evacuate"),
        ("--meta rack", "KEY=VALUE"),
        ("--meta =r1", "KEY=VALUE"),
        ("dev1 --wait --detach", "--detach"),
        ("dev1 --fail-on-kill --detach", "--detach"),
    ] {
        let e = parse(args).err().unwrap_or_else(|| panic!("\"{args}\" was taken"));
        assert!(e.contains(says), "{args}: {e}");
    }
    let twice = parse("--meta rack=r1 --meta rack=r2").unwrap().nodes.selection().unwrap_err();
    assert!(twice.to_string().contains("rack=r2"), "{twice}");
}

#[test]
fn what_was_typed_wrong_exits_with_2_and_everything_else_with_1() {
    for (slug, status, code) in [
        ("no-such-node", 404, exit::Exit::Usage),
        ("ambiguous-node", 422, exit::Exit::Usage),
        ("bad-request", 400, exit::Exit::Usage),
        ("timeouts", 422, exit::Exit::Usage),
        ("overlap", 409, exit::Exit::Failed),
        ("drained-by-other", 409, exit::Exit::Failed),
        ("nomad", 502, exit::Exit::Failed),
    ] {
        let kind = format!("urn:curfew:problem:{slug}");
        let problem = Problem { kind, title: "t".into(), status, detail: "a sentence".into() };
        let e = typed(curfew_client::Error::Refused(problem));
        assert_eq!((exit::of(&e), e.to_string().as_str()), (code, "a sentence"), "{slug}");
    }
}
