//! What `curfew-nomad` says and hears, without a controller in between.

use curfew_core::clock::{Context, Graces, KillOrder, derive};
use curfew_core::config::Config;
use curfew_core::operation::Demand;
use curfew_core::spec::JobSpec;
use curfew_core::submit::{SubmitPolicy, transform};
use curfew_core::{AllocId, Allocation, Desired, JobKey, Namespace, OpId, TaskState};
use curfew_nomad::{Error, Event, EventFrame, Filter, Nomad, NomadConfig, SignalOutcome};
use curfew_tests::cluster::{Cluster, Shape};
use curfew_tests::lab::PATIENCE;
use curfew_tests::now;
use curfew_tests::run::Given;
use curfew_tests::wait::eventually;
use serde_json::{Value, json};
use std::time::Duration;

/// A cluster without a controller: nobody else signals.
async fn alone(given: &Given) -> (Cluster, Nomad) {
    let cluster = Cluster::start(given.kind, &Shape { nodes: 1, ..Shape::default() }).await;
    let addr = cluster.addr().to_owned();
    let config = NomadConfig::from_env(|name| (name == "NOMAD_ADDR").then(|| addr.clone())).unwrap();
    (cluster, Nomad::new(config).unwrap())
}

fn impolite(id: &str) -> Value {
    json!({ "ID": id, "Type": "batch", "Datacenters": ["*"], "TaskGroups": [{ "Name": "g", "Tasks": [{
        "Name": "t", "Driver": "raw_exec", "KillTimeout": 2_000_000_000_i64,
        "Config": { "command": "/bin/sh", "args": ["-c", "trap '' TERM; while :; do read -t 1 x <> /dev/null || sleep 0.2; done"] },
        "Resources": { "CPU": 20, "MemoryMB": 16 } }] }] })
}

async fn submit(nomad: &Nomad, job: Value) -> JobKey {
    let policy = SubmitPolicy::from(&Config::default());
    let s = transform(job, &policy, OpId::new(now()), &Namespace::default()).unwrap();
    let validation = nomad.validate(&s.key.namespace, &s.job).await.unwrap();
    assert!(validation.errors.is_empty(), "{validation:?}");
    nomad.plan_job(&s.key, &s.job, true).await.unwrap();
    let r = nomad.register(&s.key, &s.job, None).await.unwrap();
    assert!(r.eval.is_some() && r.job_modify_index > 0);
    s.key
}

async fn running(nomad: &Nomad, key: &JobKey) -> Allocation {
    eventually(PATIENCE, "running", async || {
        let (allocs, bad) = nomad.job_allocations(key).await.unwrap();
        assert!(bad.is_empty(), "{bad:?}");
        let live = allocs.iter().find(|a| a.desired == Desired::Run && a.tasks.values().any(|t| t.state == TaskState::Running));
        live.cloned().ok_or(format!("{allocs:?}"))
    })
    .await
}

fn order(alloc: &Allocation, spec: &JobSpec) -> Result<KillOrder, String> {
    let config = Config::default();
    let graces = Graces { job_stop_timeout: Duration::from_secs(1), ..config.graces() };
    let demands: [Demand; 0] = [];
    let cx = Context { spec, demands: &demands, graces: &graces, memory: &[], late: Duration::ZERO, drain: None, now: now() };
    let derived = derive(alloc, &cx);
    derived.clocks.first().and_then(|c| c.order(now())).ok_or(format!("{derived:?}"))
}

pub async fn agents_nodes_and_leader(given: Given) {
    let (_cluster, nomad) = alone(&given).await;
    let me = nomad.agent_self().await.unwrap();
    assert!(me.version.starts_with(|c: char| c.is_ascii_digit()), "{me:?}");
    assert!(nomad.leader().await.unwrap().contains(':'));
    let nodes = nomad.nodes(Some(r#"Status == "ready""#)).await.unwrap();
    let node = nomad.node(&nodes[0].id).await.unwrap().unwrap();
    assert_eq!(node.stub, nodes[0]);
    assert!(node.stub.drivers.contains(&"raw_exec".to_owned()));
    let max = nomad.agent_max_kill_timeout(&node.http_addr).await.unwrap();
    assert!(max >= Some(Duration::from_secs(30)), "{max:?}");
    assert_eq!(nomad.node(&"00000000-0000-0000-0000-000000000000".into()).await.unwrap(), None);
}

pub async fn parse_and_refusals_in_nomads_words(given: Given) {
    let (_cluster, nomad) = alone(&given).await;
    let hcl = "job \"p\" {\n group \"g\" {\n task \"t\" {\n driver = \"raw_exec\"\n config {\n command = \"/bin/true\"\n }\n }\n }\n}\n";
    let job = nomad.parse_hcl(hcl).await.unwrap();
    assert_eq!(job["TaskGroups"][0]["Tasks"][0]["KillTimeout"], Value::Null);
    let e = nomad.parse_hcl("job \"x\" {").await.unwrap_err();
    assert!(matches!(e, Error::Refused { status: 400, .. }) && e.to_string().contains("1,9"), "{e}");
    // A service job without update: refused with 24h alone, taken after the transform.
    let policy = SubmitPolicy::from(&Config::default());
    let mut raw = job.clone();
    raw["TaskGroups"][0]["Tasks"][0]["KillTimeout"] = json!(86_400_000_000_000_i64);
    let key = JobKey::new("default", "p");
    let e = nomad.register(&key, &raw, None).await.unwrap_err();
    assert!(matches!(&e, Error::Refused { body, .. } if body.contains("ProgressDeadline")), "{e}");
    for update in [
        Value::Null,
        json!({ "MaxParallel": 0 }),
        json!({ "ProgressDeadline": 0 }),
        json!({ "ProgressDeadline": 360_000_000_000_i64 }),
    ] {
        let mut spec = job.clone();
        spec["Update"] = update.clone();
        let s = transform(spec, &policy, OpId::new(now()), &Namespace::default()).unwrap();
        let v = nomad.validate(&s.key.namespace, &s.job).await.unwrap();
        assert!(v.errors.is_empty(), "{update}: {v:?}");
    }
    let e = nomad.register(&key, &job, Some(999)).await.unwrap_err();
    assert!(matches!(e, Error::Conflict { .. }), "{e}");
    let spaced = JobKey::new("default", "a b");
    let mut job = job;
    job["ID"] = "a b".into();
    assert!(matches!(nomad.register(&spaced, &job, None).await.unwrap_err(), Error::Refused { .. }));
    assert_eq!(nomad.job(&JobKey::new("default", "no/such")).await.unwrap(), None);
    assert_eq!(nomad.job_versions(&JobKey::new("default", "no/such")).await.unwrap(), None);
    assert_eq!(nomad.delete_job(&JobKey::new("default", "no/such"), false).await.unwrap().eval, None);
    assert_eq!(nomad.evaluation(&"00000000-0000-0000-0000-000000000000".into()).await.unwrap(), None);
    assert!(nomad.allocation(&"00000000-0000-0000-0000-000000000000".into()).await.unwrap().is_none());
    let gone = nomad.allocations_by_id(&["00000000-0000-0000-0000-000000000000".into()]).await.unwrap();
    assert!(gone.allocations.is_empty());
}

pub async fn filters_find_odd_ids_and_nothing_else(given: Given) {
    let (_cluster, nomad) = alone(&given).await;
    let mut stream = nomad.events(None).await.unwrap();
    let tag = now().as_micros();
    let ids: Vec<String> = ["a.b/c-1", "aXb/c-1", "ü^($|[q]){2}?", "back`tick\"quote\\slash", "plus+star*"]
        .iter()
        .map(|s| format!("{s}-{tag}"))
        .collect();
    let mut keys = Vec::new();
    for id in &ids {
        keys.push(submit(&nomad, impolite(id)).await);
    }
    let mut allocs = Vec::new();
    for key in &keys {
        assert_eq!(nomad.job(key).await.unwrap().unwrap()["ID"], key.job.as_str());
        assert_eq!(nomad.job_versions(key).await.unwrap().unwrap().len(), 1);
        let alloc = running(&nomad, key).await;
        let found = nomad.not_over_allocations(std::slice::from_ref(key)).await.unwrap();
        let found: Vec<_> = found.allocations.iter().map(|a| (&a.job, &a.id)).collect();
        assert_eq!(found, [(&key.job, &alloc.id)], "{key}");
        allocs.push(alloc);
    }
    assert_eq!(nomad.not_over_allocations(&keys).await.unwrap().allocations.len(), keys.len());
    assert!(nomad.not_over_allocations(&[JobKey::new("other", ids[0].as_str())]).await.unwrap().allocations.is_empty());

    // By id, beside ids that do not exist, in more than one batch; and the same list in pages of two.
    let mut wanted: Vec<AllocId> = (0..200).map(|i| format!("00000000-0000-0000-0000-{i:012}").into()).collect();
    wanted.extend(allocs.iter().map(|a| a.id.clone()));
    let mut read: Vec<_> = nomad.allocations_by_id(&wanted).await.unwrap().allocations.into_iter().map(|a| a.id).collect();
    let mut sorted: Vec<_> = allocs.iter().map(|a| a.id.clone()).collect();
    read.sort();
    sorted.sort();
    assert_eq!(read, sorted);
    let mut pages = nomad.allocations(Filter::ids(&sorted).pop(), "*", 2);
    let mut sizes = Vec::new();
    while let Some(page) = pages.next().await.unwrap() {
        sizes.push(page.allocations.len());
    }
    assert_eq!(sizes, [2, 2, 1]);

    // Nobody was told to end yet.
    let told = async || {
        let mut found = Vec::new();
        let mut pages = nomad.told_to_end();
        while let Some(page) = pages.next().await.unwrap() {
            assert!(page.bad.is_empty(), "{:?}", page.bad);
            found.extend(page.allocations.into_iter().filter(|a| sorted.contains(&a.id)));
        }
        found
    };
    assert!(told().await.is_empty());

    // Told to end: found by the filter, killed by name, dead by 137.
    for key in &keys {
        let d = nomad.delete_job(key, false).await.unwrap();
        let eval = d.eval.unwrap();
        assert_eq!(nomad.evaluation(&eval).await.unwrap().unwrap().key, *key);
    }
    eventually(PATIENCE, "told", async || match told().await {
        all if all.len() == keys.len() => Ok(()),
        some => Err(format!("{some:?}")),
    })
    .await;
    for alloc in &allocs {
        let kill = eventually(PATIENCE, "an order", async || {
            let (fresh, spec) = nomad.allocation(&alloc.id).await.unwrap().unwrap();
            order(&fresh, &spec.unwrap())
        })
        .await;
        assert_eq!(nomad.sigkill(&kill, || true).await.unwrap(), SignalOutcome::Sent);
        eventually(PATIENCE, "dead", async || {
            let (fresh, _) = nomad.allocation(&alloc.id).await.unwrap().unwrap();
            if fresh.any_task_lives() { Err(format!("{fresh:?}")) } else { Ok(()) }
        })
        .await;
        let again = nomad.sigkill(&kill, || true).await.unwrap();
        assert!(matches!(again, SignalOutcome::NotRunning(_)), "{again:?}");
    }
    assert!(nomad.not_over_allocations(&keys).await.unwrap().allocations.is_empty());

    // The stream told all of it.
    let (mut jobs, mut seen) = (0, 0);
    while jobs < keys.len() || seen < keys.len() {
        let EventFrame { events, .. } = tokio::time::timeout(Duration::from_secs(10), stream.next()).await.unwrap().unwrap();
        for event in events {
            match event {
                Event::Bad { .. } => panic!("{event:?}"),
                Event::Job { key, deregistered: true, spec, .. } if keys.contains(&key) => {
                    assert!(spec.managed && spec.stopped);
                    jobs += 1;
                }
                Event::Allocation(a) if sorted.contains(&a.id) && !a.any_task_lives() && a.desired == Desired::Stop => seen += 1,
                _ => {}
            }
        }
    }
}
