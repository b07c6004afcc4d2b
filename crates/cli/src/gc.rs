//! `curfew gc`, and the gc that `curfew serve` runs from time to time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use curfew_controller::{Controller, GcPass, GcVerdict, Metrics, Phase, Reaper, SystemClock};
use curfew_core::config::Config;
use curfew_core::duration;
use curfew_core::gc::{Mode, Settings, Verdict};
use curfew_gc::{Candidate, Found, Gc, Known, Memory, Outcome, Parts, Report, Tally, Turn};
use curfew_nomad::Nomad;
use curfew_store::{Database, Store};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::args;
use crate::config;
use crate::exit::{Exit, Usage};
use crate::output::{can_ask, confirm, line, note, table};
use crate::remote::Remote;
use crate::serve;

pub async fn run(remote: &Remote, args: args::Gc) -> anyhow::Result<Exit> {
    let config = config::load(&args::Serve { config: args.config.clone(), database: args.database.clone(), listen: None })?;
    let settings = settings(&args, &config)?;
    let asks = !args.yes && !args.dry_run;
    if asks && (args.every.is_some() || !can_ask()) {
        let why = if args.every.is_some() { "--every asks nobody" } else { "there is no terminal to ask on" };
        return Err(Usage(format!("{why}: --yes acts, --dry-run only shows what it would do")).into());
    }
    // A Nomad client without the token's owner: as every other command's.
    let nomad = serve::nomad(&config, |name| std::env::var(name).ok())?;
    let turn = Turn::path(args.state.as_deref(), nomad.address());
    let (known, store) = known(remote, &args, &config).await?;
    let memory = match (&args.state, args.every) {
        (Some(path), _) => Memory::in_file(path)?,
        (None, Some(_)) => Memory::in_process(),
        (None, None) => Memory::none(),
    };
    let gc = Gc::new(Parts { nomad, known, clock: Arc::new(SystemClock), settings, who: serve::who(), memory });
    // As a Nomad job its report is for programs.
    let as_json = args.output.json || std::env::var_os("NOMAD_ALLOC_ID").is_some_and(|v| !v.is_empty());
    let hands = By { gc: &gc, args: &args, turn: &turn, as_json };
    let ended = tokio::select! {
        ended = hands.passes() => ended,
        stopped = stop_asked(), if args.every.is_some() => stopped.map(|()| Exit::Done),
    };
    if let Some(store) = store {
        store.close().await?;
    }
    ended
}

async fn stop_asked() -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        r = tokio::signal::ctrl_c() => r?,
    }
    Ok(())
}

/// The configuration, and the flags over it.
fn settings(args: &args::Gc, config: &Config) -> anyhow::Result<Settings> {
    let mut settings = config.gc()?;
    for text in &args.verdicts {
        settings.modes.set(text).map_err(|e| Usage(format!("--verdict {e}")))?;
    }
    if let Some(grace) = args.grace {
        settings.grace = grace;
    }
    if let Some(retention) = args.retention {
        settings.retention = retention;
    }
    if let Some(cap) = args.cap {
        settings.cap = Some(usize::try_from(cap)?);
    }
    if args.no_cap {
        settings.cap = None;
    }
    if !args.namespaces.is_empty() {
        settings.namespaces = args.namespaces.iter().map(|n| n.as_str().into()).collect();
    }
    Ok(settings)
}

/// Where operations are learned from: the database that a flag names, else the controller that somebody named, else the
/// database that the configuration names, else nowhere. Never a default that nobody asked for.
async fn known(remote: &Remote, args: &args::Gc, config: &Config) -> anyhow::Result<(Known, Option<Arc<dyn Store>>)> {
    if args.database.is_none() && remote.named()?.is_some() {
        return Ok((Known::Controller(remote.client()?), None));
    }
    if args.database.is_none() && config.database == Config::default().database {
        return Ok((Known::Nothing, None));
    }
    // A new and empty database would know of no operation, and every job would be an orphan.
    if let Some(path) = config.database.expose().strip_prefix("sqlite:")
        && !Path::new(path).is_file()
    {
        bail!("there is no database {path}; a gc makes none. Name another --database, or the controller with CURFEW_ADDR");
    }
    let database = Database::parse(config.database.expose()).map_err(|e| Usage(e.to_string()))?;
    let store = database.open().await?;
    Ok((Known::Database(store.clone()), Some(store)))
}

/// A gc by hand, or as a job.
struct By<'a> {
    gc: &'a Gc,
    args: &'a args::Gc,
    turn: &'a Path,
    as_json: bool,
}

impl By<'_> {
    async fn passes(&self) -> anyhow::Result<Exit> {
        loop {
            let report = self.pass().await?;
            self.print(&report)?;
            let Some(every) = self.args.every else { return Ok(exit(&report)) };
            tokio::time::sleep(every).await;
        }
    }

    async fn pass(&self) -> anyhow::Result<Report> {
        if self.args.dry_run {
            return Ok(self.gc.dry(self.gc.look().await));
        }
        if self.args.yes {
            let _turn = self.turn().await?;
            return Ok(self.gc.act(self.gc.look().await).await);
        }
        let found = self.gc.look().await;
        if !self.agreed(&found)? {
            return Ok(self.gc.dry(found));
        }
        let _turn = self.turn().await?;
        Ok(self.gc.act(found).await)
    }

    async fn turn(&self) -> anyhow::Result<Turn> {
        let path = self.turn;
        Ok(Turn::take(path, || note(&format!("another gc is at work ({}); waiting for it", path.display()))).await?)
    }

    /// Shows what it would do, and asks.
    fn agreed(&self, found: &Found) -> anyhow::Result<bool> {
        let acts: Vec<&Candidate> = found.candidates().iter().filter(|c| self.would_act(c)).collect();
        if acts.is_empty() {
            return Ok(true);
        }
        note(&rows(acts.iter().copied()));
        confirm(&format!("{} of these would be acted on as VERDICT says. Go on?", acts.len()))
    }

    fn would_act(&self, c: &Candidate) -> bool {
        c.can_be_acted_on() && self.gc.settings().modes.of(c.verdict) == Mode::Act
    }

    fn print(&self, report: &Report) -> anyhow::Result<()> {
        if self.as_json {
            // One document a line: a log of passes.
            line(&serde_json::to_string(report)?);
        } else {
            print(report);
        }
        Ok(())
    }
}

fn exit(report: &Report) -> Exit {
    match report.exit {
        0 => Exit::Done,
        3 => Exit::LEFT_OVER,
        4 => Exit::CAPPED,
        _ => Exit::Failed,
    }
}

fn print(report: &Report) {
    if !report.candidates.is_empty() {
        line(&rows(report.candidates.iter()));
        line("");
    }
    let counts = report.verdicts.iter().map(|(verdict, t)| {
        let capped = if t.capped { "more than the cap: none touched" } else { "" };
        let n = |n: usize| n.to_string();
        [verdict.as_str().to_owned(), t.mode.as_str().to_owned(), n(t.found), n(t.done), n(t.left), capped.to_owned()]
    });
    line(&table(["VERDICT", "MODE", "FOUND", "DONE", "LEFT", ""], counts.collect()));
    report.notes.iter().for_each(|n| line(n));
    report.failures.iter().for_each(|f| note(&format!("curfew: {f}")));
    let requests: u64 = report.requests.values().sum();
    let (lasted, known) = (duration::human(report.lasted()), &report.known);
    line(&format!("\n{lasted}, {requests} calls to Nomad; operations known from: {known}"));
    if report.dry_run {
        line("A dry run: nothing was changed.");
    }
}

fn rows<'a>(candidates: impl Iterator<Item = &'a Candidate>) -> String {
    let rows = candidates.map(|c| {
        let s = &c.subject;
        let job = s.job.as_ref().map(|job| match &s.namespace {
            Some(ns) if ns.as_str() != "default" => format!("{job} ({ns})"),
            _ => job.to_string(),
        });
        let task = s.alloc.as_ref().zip(s.task.as_ref()).map(|(a, t)| format!("{}/{t}", a.short()));
        let operation = s.operation.filter(|_| s.job.is_none()).map(|id| id.to_string());
        let what: Vec<String> = [job, task, s.node.clone(), operation].into_iter().flatten().collect();
        let outcome = match c.outcome {
            Outcome::Reported => "reported",
            Outcome::WouldAct => "would act",
            Outcome::Capped => "capped",
            Outcome::Done => "done",
            Outcome::Changed => "changed",
            Outcome::Left => "left",
            Outcome::Failed => "failed",
        };
        let outcome = if c.said.is_empty() { outcome.to_owned() } else { format!("{outcome}: {}", c.said) };
        [c.verdict.as_str().to_owned(), what.join(" "), c.why.clone(), outcome]
    });
    table(["VERDICT", "WHAT", "WHY", "OUTCOME"], rows.collect())
}

fn pass(report: &Report) -> GcPass {
    let of = |(verdict, t): (&Verdict, &Tally)| GcVerdict {
        verdict: *verdict,
        found: t.found,
        acted: t.done,
        left: t.left,
        capped: t.capped,
    };
    GcPass {
        ended_at: report.began + report.lasted(),
        took: report.lasted(),
        exit: report.exit,
        verdicts: report.verdicts.iter().map(of).collect(),
    }
}

/// The gc beside a controller: each interval, and when somebody asks for a pass.
pub struct Periodic {
    nomad: Nomad,
    settings: Settings,
    /// Zero: only when it is asked for.
    every: Duration,
    metrics: Metrics,
    asked: mpsc::Receiver<Asked>,
}

/// A pass that somebody waits for; `dry` only says what it would do.
struct Asked {
    dry: bool,
    reply: oneshot::Sender<Result<Value, String>>,
}

impl Periodic {
    /// With the way to ask it for a pass.
    pub fn new(config: &Config, nomad: &Nomad, metrics: &Metrics) -> anyhow::Result<(Self, Reaper)> {
        let (ask, asked) = mpsc::channel::<Asked>(1);
        let (nomad, metrics) = (nomad.clone(), metrics.clone());
        let reaper: Reaper = Arc::new(move |dry| {
            let ask = ask.clone();
            Box::pin(async move {
                let gone = || "the gc is not at work: the controller starts or stops".to_owned();
                let (reply, report) = oneshot::channel();
                ask.send(Asked { dry, reply }).await.map_err(|_| gone())?;
                report.await.map_err(|_| gone())?
            })
        });
        Ok((Self { nomad, settings: config.gc()?, every: config.gc_interval, metrics, asked }, reaper))
    }

    /// Until the controller stops; a pass in flight is cut off then, which leaves nothing half done.
    pub async fn beside(self, controller: Controller, database: oneshot::Receiver<Arc<dyn Store>>) {
        let mut phase = controller.phase();
        let stopping = phase.wait_for(|p| *p >= Phase::ShuttingDown);
        tokio::select! {
            _ = stopping => {}
            () = self.passes(database) => {}
        }
    }

    async fn passes(mut self, database: oneshot::Receiver<Arc<dyn Store>>) {
        // A database that cannot be opened ends the controller, and this with it.
        let Ok(store) = database.await else { return };
        let turn = Turn::path(None, self.nomad.address());
        let gc = Gc::new(Parts {
            nomad: self.nomad.clone(),
            known: Known::Database(store),
            clock: Arc::new(SystemClock),
            settings: self.settings.clone(),
            who: serve::who(),
            memory: Memory::in_process(),
        });
        loop {
            let asked = tokio::select! {
                () = tokio::time::sleep(self.every), if !self.every.is_zero() => None,
                asked = self.asked.recv() => asked,
            };
            let report = match &asked {
                Some(Asked { dry: true, .. }) => Ok(gc.dry(gc.look().await)),
                _ => self.act(&gc, &turn).await,
            };
            if let Some(Asked { reply, .. }) = asked {
                let report = report.and_then(|r| serde_json::to_value(&r).map_err(|e| e.to_string()));
                // Whoever asked may have gone; the pass stands.
                let _ = reply.send(report);
            }
        }
    }

    async fn act(&self, gc: &Gc, turn: &Path) -> Result<Report, String> {
        let turn = match Turn::take(turn, || tracing::info!("another gc is at work; waiting for it")).await {
            Ok(turn) => turn,
            Err(e) => {
                let why = curfew_core::error::chain(&e);
                tracing::error!(error = why, "the gc could not run");
                return Err(why);
            }
        };
        let report = gc.act(gc.look().await).await;
        drop(turn);
        self.metrics.gc_pass(&pass(&report));
        let found: usize = report.verdicts.values().map(|t| t.found).sum();
        let done: usize = report.verdicts.values().map(|t| t.done).sum();
        for failure in &report.failures {
            tracing::error!(error = failure, "the gc could not learn everything");
        }
        for (verdict, tally) in report.verdicts.iter().filter(|(_, t)| t.capped) {
            let (verdict, found) = (verdict.as_str(), tally.found);
            tracing::error!(verdict, found, "the gc found more than its cap and touched none; look with: curfew gc --dry-run");
        }
        tracing::info!(found, done, exit = report.exit, seconds = report.seconds, "gc");
        Ok(report)
    }
}
