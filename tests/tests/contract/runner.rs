//! The contract's own `main`: every case on every cluster, then the table.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use curfew_tests::cluster::{Kind, nomad_binary};
use curfew_tests::run::when_interrupted;
use futures::FutureExt;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;
use tokio::time::Instant;

use crate::clusters::{Clusters, Which};
use crate::on::On;
use crate::{replay, routes};

pub type Fut = Pin<Box<dyn Future<Output = ()>>>;

pub struct Case {
    pub fact: u8,
    pub name: &'static str,
    pub which: Which,
    pub body: fn(On) -> Fut,
}

/// `FACT CLUSTER function;` a case.
macro_rules! cases {
    ($($fact:literal $which:ident $($path:ident)::+;)*) => {
        &[$($crate::runner::Case {
            fact: $fact,
            name: stringify!($($path)::+),
            which: $which,
            body: |on| Box::pin($($path)::+(on)),
        }),*]
    };
}
pub(crate) use cases;

/// Cases are mostly waiting.
const AT_ONCE: usize = 20;
/// No case is meant to take that long.
const AT_MOST: Duration = Duration::from_secs(240);

type Results = Arc<Mutex<BTreeMap<(String, bool), String>>>;

struct World {
    runtime: Runtime,
    clusters: Clusters,
    results: Results,
}

pub fn main(cases: &'static [Case]) {
    let (table, rest): (Vec<String>, Vec<String>) = std::env::args().partition(|a| a == "--table");
    let mut args = Arguments::from_iter(rest);
    args.test_threads = args.test_threads.or(Some(AT_ONCE));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let world = Arc::new(World { runtime, clusters: Clusters::default(), results: Results::default() });
    let mut trials = vec![];
    let real = nomad_binary().is_some();
    // The slow ones first: what is left at the end is short.
    let replays = replay::Replays::load();
    trials.extend(replays.trials(world.runtime.handle()));
    for case in cases {
        for kind in [Kind::Real, Kind::Dev] {
            if kind == Kind::Dev || real {
                let world = world.clone();
                trials.push(Trial::test(format!("{}::{}", place(kind), name(case)), move || world.run(case, kind)));
            }
        }
    }
    trials.push(Trial::test("routes::every_call_of_the_gateway_is_covered", move || routes::covered(cases)));
    if !real && !args.list {
        let names: Vec<String> = cases.iter().map(name).collect();
        eprintln!("SKIPPED on a real Nomad, because CURFEW_TEST_NOMAD names no binary: {}", names.join(", "));
    }
    let on_signal = world.clone();
    world.runtime.spawn(when_interrupted(move || on_signal.clusters.take_down()));
    let conclusion = libtest_mimic::run(&args, trials);
    world.clusters.take_down();
    let skips: Vec<String> = world
        .results
        .lock()
        .unwrap()
        .iter()
        .filter(|(_, r)| r.starts_with("skipped"))
        .map(|((n, real), r)| format!("SKIPPED {n} on {}: {r}", if *real { "a real Nomad" } else { "the embedded cluster" }))
        .collect();
    skips.iter().for_each(|s| eprintln!("{s}"));
    if !table.is_empty() {
        println!("{}", world.table(cases, real));
    }
    let stale = replays.stale();
    stale.iter().for_each(|s| eprintln!("FAILED: {s}"));
    if !stale.is_empty() {
        std::process::exit(101);
    }
    conclusion.exit();
}

pub fn name(case: &Case) -> String {
    case.name.split_whitespace().collect()
}

fn place(kind: Kind) -> &'static str {
    if kind == Kind::Real { "real" } else { "dev" }
}

impl World {
    fn run(self: &Arc<Self>, case: &'static Case, kind: Kind) -> Result<(), Failed> {
        let world = self.clone();
        let done = self.runtime.block_on(async move {
            let held = match caught(world.clusters.get(kind, case.which)).await {
                Ok(held) => held,
                Err(e) => return (Duration::ZERO, Err(format!("its cluster did not start: {e}")), None),
            };
            let on = On::new(held);
            let began = Instant::now();
            let end = match tokio::time::timeout(AT_MOST, caught((case.body)(on.clone()))).await {
                Ok(Ok(())) => routes::kept(&name(case), &on),
                Ok(Err(panic)) => Err(panic),
                Err(_) => Err(format!("not over after {AT_MOST:?}")),
            };
            on.clean().await;
            (began.elapsed(), end, on.skipped())
        });
        let (took, end, skipped) = done;
        let shown = match (&end, skipped) {
            (Err(_), _) => "FAILED".into(),
            (Ok(()), Some(why)) => format!("skipped: {why}"),
            (Ok(()), None) => format!("ok {:.1} s", took.as_secs_f64()),
        };
        self.results.lock().unwrap().insert((name(case), kind == Kind::Real), shown);
        end.map_err(Failed::from)
    }

    fn table(&self, cases: &[Case], real: bool) -> String {
        let results = self.results.lock().unwrap();
        let shown = |case: &Case, real_one: bool| {
            let none = if real_one && !real { "skipped: CURFEW_TEST_NOMAD is not set" } else { "not run" };
            results.get(&(name(case), real_one)).cloned().unwrap_or_else(|| none.into())
        };
        let wide = cases.iter().map(|c| name(c).len()).max().unwrap_or(0);
        let mut text = format!("\nfact  {:wide$}  {:14}  real Nomad\n", "case", "embedded");
        for case in cases {
            let fact = if case.fact == 0 { "-".to_owned() } else { case.fact.to_string() };
            text += &format!("{fact:>4}  {:wide$}  {:14}  {}\n", name(case), shown(case, false), shown(case, true));
        }
        text
    }
}

/// What comes of it, or the words of its panic.
pub async fn caught<T>(body: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(body).catch_unwind().await.map_err(|panic| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(other) => other.downcast::<&str>().map_or_else(|_| "it panicked".into(), |t| (*t).to_owned()),
    })
}
