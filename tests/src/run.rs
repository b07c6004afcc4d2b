//! The test binary's own `main`: names, clusters that are shared and taken down at the end, and what was skipped.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use libtest_mimic::{Arguments, Conclusion, Trial};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::cluster::{Kind, nomad_binary};
use crate::lab::Labs;

/// What a scenario is given.
#[derive(Clone)]
pub struct Given {
    pub kind: Kind,
    pub labs: Arc<Labs>,
    name: String,
    skipped: Arc<Mutex<Vec<String>>>,
}

impl Given {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Says aloud that this scenario, or a part of it, cannot be done here.
    pub fn skip(&self, why: &str) {
        eprintln!("SKIPPED {}: {why}", self.name);
        self.skipped.lock().unwrap().push(format!("{}: {why}", self.name));
    }

    pub async fn shared(&self) -> crate::lab::Lab {
        self.labs.shared(self.kind).await
    }

    pub async fn own(&self) -> crate::lab::Lab {
        self.labs.own(self.kind).await
    }

    pub async fn own_with(&self, env: &[(&str, &str)]) -> crate::lab::Lab {
        self.labs.own_with(self.kind, env).await
    }
}

type Body = Box<dyn FnOnce(Given) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// One scenario, written once. `on` are the clusters it runs on; without any it needs none.
pub struct Scenario {
    pub name: &'static str,
    pub on: &'static [Kind],
    pub body: fn() -> Body,
}

pub const BOTH: &[Kind] = &[Kind::Dev, Kind::Real];
pub const DEV: &[Kind] = &[Kind::Dev];
/// What the embedded cluster has not.
pub const REAL: &[Kind] = &[Kind::Real];
pub const NONE: &[Kind] = &[];

/// `scenarios![BOTH: stop::impolite, stop::polite; NONE: cli::empty_file]`: one trial for each function and cluster, named
/// `dev::stop::impolite` and `real::stop::impolite`.
#[macro_export]
macro_rules! scenarios {
    ($($on:ident: $($($path:ident)::+),+ $(,)?);+ $(;)?) => {
        vec![$($($crate::run::Scenario {
            name: stringify!($($path)::+),
            on: $crate::run::$on,
            body: || Box::new(|given| Box::pin($($path)::+(given))),
        }),+),+]
    };
}

/// Most of a scenario is waiting: far more of them at once than there are cores.
const AT_ONCE: usize = 16;

/// Runs what the command line asks for, as libtest does, and takes everything down.
pub fn main(scenarios: Vec<Scenario>) -> Conclusion {
    let mut args = Arguments::from_args();
    args.test_threads = args.test_threads.or(Some(AT_ONCE));
    let runtime = Arc::new(tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap());
    let labs = Arc::new(Labs::default());
    let skipped = Arc::new(Mutex::new(vec![]));
    let real = nomad_binary();
    let mut trials = vec![];
    let mut left_out = vec![];
    for scenario in scenarios {
        let kinds = if scenario.on.is_empty() { &[Kind::Dev] } else { scenario.on };
        for kind in kinds {
            let place = match (scenario.on.is_empty(), kind) {
                (true, _) => "alone",
                (_, Kind::Dev) => "dev",
                (_, Kind::Real) => "real",
            };
            let name = format!("{place}::{}", scenario.name.replace(' ', ""));
            if *kind == Kind::Real && real.is_none() {
                left_out.push(name);
                continue;
            }
            let given = Given { kind: *kind, labs: labs.clone(), name: name.clone(), skipped: skipped.clone() };
            trials.push(trial(runtime.clone(), given, name, scenario.body));
        }
    }
    if !left_out.is_empty() && !args.list {
        let names = left_out.join(", ");
        eprintln!("SKIPPED, because CURFEW_TEST_NOMAD names no Nomad binary: {names}");
    }
    let cleaning = labs.clone();
    drop(labs);
    let on_signal = cleaning.clone();
    runtime.spawn(when_interrupted(move || on_signal.take_down()));
    let conclusion = libtest_mimic::run(&args, trials);
    let skipped = skipped.lock().unwrap();
    skipped.iter().for_each(|s| eprintln!("SKIPPED {s}"));
    runtime.block_on(async { cleaning.take_down() });
    conclusion
}

/// Ctrl-C and SIGTERM end a run as its end does: nothing is left behind.
pub async fn when_interrupted(take_down: impl FnOnce()) {
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let code = tokio::select! {
        _ = tokio::signal::ctrl_c() => 130,
        _ = terminate.recv() => 143,
    };
    eprintln!("interrupted; taking the clusters down");
    take_down();
    std::process::exit(code);
}

fn trial(runtime: Arc<Runtime>, given: Given, name: String, body: fn() -> Body) -> Trial {
    Trial::test(name, move || {
        runtime.block_on(body()(given));
        Ok(())
    })
}
