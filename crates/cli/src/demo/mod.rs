//! `curfew demo`: the main job, shown on an embedded cluster or on `NOMAD_ADDR`, with every promise checked.

mod controller;
mod promises;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use curfew_client::{Client, DrainRequest, OperationView, Selection, SpecText, StopRequest, SubmitRequest, UndrainRequest};
use curfew_controller::SystemClock;
use curfew_core::config::Config;
use curfew_core::gc::Verdict;
use curfew_core::operation::State;
use curfew_core::{Clock, JobKey, Timestamp};
use curfew_devcluster::NodeConfig;
use curfew_gc::{Gc, Known, Memory, Outcome, Parts, Report};
use curfew_nomad::{Nomad, NomadConfig};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::args;
use crate::dev;
use crate::drain::report::{self, report};
use crate::exit::{Exit, Usage};
use crate::job;
use crate::output::{line, note, width};
use crate::shown::Shown;
use crate::timeline::{Timeline, summary};
use controller::Controller;
use promises::Promises;

const GRACEFUL: &str = include_str!("../../../../jobspecs/poller-graceful.nomad.hcl");
const IMPOLITE: &str = include_str!("../../../../jobspecs/poller-impolite.nomad.hcl");
/// Of the embedded cluster's two nodes in dc1 and one in dc2.
const DRAINED: &str = "dc1";
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Jobs that are not running after this are not going to.
const PLACED_IN: Duration = Duration::from_secs(30);
/// A stop that has not ended this long after its clocks is a promise not kept.
const GRACE: Duration = Duration::from_secs(15);

pub async fn run(_args: args::Demo) -> anyhow::Result<Exit> {
    let dir = TempDir::with_prefix("curfew-demo-").context("no temporary folder could be made")?;
    let (cluster, addr) = match std::env::var("NOMAD_ADDR").ok().filter(|a| !a.is_empty()) {
        Some(addr) => {
            line(&format!("Curfew's demo on the Nomad at {addr} (NOMAD_ADDR)"));
            (None, addr)
        }
        None => {
            let nodes = [("dev1", "dc1"), ("dev2", "dc1"), ("dev3", "dc2")].map(|(n, dc)| NodeConfig::new(n, dc));
            let cluster = dev::cluster(4646, nodes.into(), dir.path().join("cluster")).await?;
            let addr = cluster.base_url();
            line(&format!("Curfew's demo on an embedded cluster of 3 nodes in 2 datacenters, {addr}"));
            (Some(cluster), addr)
        }
    };
    let told = tokio::select! {
        told = story(&addr, cluster.is_some(), &dir) => told,
        _ = tokio::signal::ctrl_c() => {
            note("stopped");
            Ok(Exit::Failed)
        }
    };
    if let Some(cluster) = cluster {
        cluster.shutdown().await;
    }
    told
}

struct Demo {
    nomad: Nomad,
    /// The cluster is the demo's own.
    own: bool,
    client: Client,
    zero: Timestamp,
    promises: Promises,
}

async fn story(addr: &str, own: bool, dir: &TempDir) -> anyhow::Result<Exit> {
    let env = |name: &str| if name == "NOMAD_ADDR" { Some(addr.to_owned()) } else { std::env::var(name).ok() };
    let config = NomadConfig::from_env(env).map_err(|e| Usage(curfew_controller::error::chain(&e)))?;
    let nomad = Nomad::new(config).map_err(|e| Usage(curfew_controller::error::chain(&e)))?;
    let mut controller = Controller::start(addr, dir.path()).await?;
    let client = Client::new(controller.addr())?;
    let mut demo = Demo { nomad, own, client, zero: SystemClock.now(), promises: Promises::default() };
    let told = demo.tell(&mut controller).await;
    if told.is_err() {
        demo.clean_up().await;
    }
    controller.stop().await?;
    told?;
    line("");
    line(&demo.promises.table());
    if demo.promises.all_kept() {
        line("\nEvery promise was kept.");
        Ok(Exit::Done)
    } else {
        note("\ncurfew: a promise was not kept");
        Ok(Exit::Failed)
    }
}

impl Demo {
    async fn tell(&mut self, controller: &mut Controller) -> anyhow::Result<()> {
        line("\n1. Two jobs are submitted. Nomad's kill_timeout becomes 24h; Curfew keeps the clocks.\n");
        self.submit("graceful", GRACEFUL).await?;
        self.submit("impolite", IMPOLITE).await?;
        self.until_running("graceful").await?;
        self.until_running("impolite").await?;

        line(
            "\n2. Both are stopped with a stop timeout of 5s. The graceful poller exits on SIGTERM; the impolite one ignores it.\n",
        );
        let graceful = self.stop("graceful").await?;
        let impolite = self.stop("impolite").await?;
        let (graceful, impolite) = self.follow_both(graceful, impolite).await?;
        self.promises.graceful(&graceful);
        self.promises.killed("The impolite job dies by its clock", &impolite);

        line(
            "\n3. In the middle of a stop the controller is killed (kill -9) and started again, then stopped (SIGTERM) and started again.\n",
        );
        self.submit("impolite", IMPOLITE).await?;
        self.until_running("impolite").await?;
        let op = self.stop("impolite").await?;
        let mut timeline = Timeline::since(self.zero);
        let armed = self.follow(&mut timeline, op.clone(), |op| clock_of(op).is_some()).await?;
        let clock = clock_of(&armed).context("no clock was armed")?;
        self.say(&format!("kill -9 of the controller ({}), {} before the clock", controller.pid(), left(clock)));
        controller.kill_9().await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        controller.start_again().await?;
        self.say(&format!("the controller is back ({}), {} before the clock", controller.pid(), left(clock)));
        let (phases, clean) = controller.told_to_stop().await?;
        let exit = if clean { "exit code 0" } else { "not exit code 0" };
        self.say(&format!("SIGTERM to the controller: {}, gone, {exit}", phases.join(", ")));
        self.promises.stopped_cleanly(clean);
        let phases = controller.starts_again().await?;
        self.say(&format!("started again: {} ({}), {} before the clock", phases.join(", "), controller.pid(), left(clock)));
        let survived = self.follow(&mut timeline, op, |op| op.state.is_finished()).await?;
        line(&format!("           {}", summary(&survived)));
        self.promises.killed("The clock survives kill -9 and SIGTERM of the controller", &survived);
        self.promises.same_clock(clock, &survived);
        self.a_datacenter_drained().await?;

        line(
            "\n5. The controller is lost for good, and its database with it. A job is stopped behind its back; the gc reaps it.\n",
        );
        self.lost_for_good(controller).await?;
        for name in ["graceful", "impolite"] {
            let left = self.alive(name).await?;
            self.promises.nothing_left(&id(name), left);
        }
        Ok(())
    }

    /// What can move runs in the other datacenter; what ignores SIGTERM is gone at the deadline.
    async fn a_datacenter_drained(&mut self) -> anyhow::Result<()> {
        if !self.own {
            line("\n4. Left out on a cluster that is not the demo's own: datacenter dc1 would be drained.");
            return Ok(());
        }
        line("\n4. Datacenter dc1 is drained, with 5s to leave.\n");
        self.submit("graceful", GRACEFUL).await?;
        self.submit("impolite", &IMPOLITE.replacen("[\"dc1\", \"dc2\"]", "[\"dc1\"]", 1)).await?;
        self.until_running("graceful").await?;
        self.until_running("impolite").await?;
        let selection = Selection { datacenter: Some(DRAINED.into()), ..Selection::default() };
        let who = || job::who(Some("curfew demo".into()));
        let request = DrainRequest {
            selection: selection.clone(),
            drain_timeout: Some(STOP_TIMEOUT),
            who: who(),
            ..DrainRequest::default()
        };
        let op = self.client.drain(&request, None).await?;
        let op = self.look_on(op).await?;
        line(&format!("\n{}\n\n           {}\n", report(&op, width()), report::summary(&op)));
        let mut late = vec![];
        for n in op.outcome.iter().flat_map(|o| &o.nodes) {
            let Some(child) = n.operation else { continue };
            let child = self.client.operation(child).await?;
            let tasks = child.outcome.into_iter().flat_map(|o| o.allocations).flat_map(|a| a.tasks);
            let killed = tasks.filter(|t| t.signalled_at.is_some());
            late.extend(killed.filter_map(|t| Some(t.ended_at?.seconds_after(n.deadline?))));
        }
        let mut alive = 0;
        for node in self.nomad.nodes(None).await?.into_iter().filter(|n| n.datacenter == DRAINED) {
            let tasks = self.nomad.node_allocations(&node.id).await?;
            let live = tasks.iter().flat_map(|(a, _)| a.tasks.values()).filter(|t| t.lives()).count();
            alive += live;
        }
        self.promises.drained(DRAINED, &op, alive, &late);
        self.until_running("graceful").await?;
        for name in ["graceful", "impolite"] {
            let op = self.stop(name).await?;
            self.client.wait(op.id, STOP_TIMEOUT + GRACE).await?;
        }
        let op = self.client.undrain(&UndrainRequest { selection, all: false, who: who() }, None).await?;
        let op = self.client.wait(op.id, GRACE).await?;
        self.say(&report::summary(&op));
        Ok(())
    }

    /// A drain to its end, as `curfew datacenter drain` shows it.
    async fn look_on(&self, mut op: OperationView) -> anyhow::Result<OperationView> {
        let mut shown = Shown::drain(self.zero);
        let give_up = Instant::now() + STOP_TIMEOUT + GRACE;
        loop {
            shown.look(&op)?;
            if op.state.is_finished() {
                return Ok(op);
            }
            if Instant::now() > give_up {
                bail!(
                    "{} is not drained; it waits for {}",
                    op.target.name(),
                    op.waiting_for.as_deref().unwrap_or("nothing it could name")
                );
            }
            op = self.client.wait(op.id, Duration::from_millis(500)).await?;
        }
    }

    /// What nobody keeps a clock for any more lives until a gc comes by. Healthy work beside it is left alone.
    async fn lost_for_good(&mut self, controller: &mut Controller) -> anyhow::Result<()> {
        self.submit("graceful", GRACEFUL).await?;
        self.submit("impolite", &IMPOLITE.replacen("kill_timeout = \"10s\"", "kill_timeout = \"3s\"", 1)).await?;
        self.until_running("graceful").await?;
        self.until_running("impolite").await?;
        let healthy = self.incarnations("graceful").await?;
        self.say(&format!("kill -9 of the controller ({}), and its database is removed", controller.pid()));
        controller.lose().await?;
        let report = self.reaped().await;
        let (still, left) = (self.incarnations("graceful").await, self.alive("impolite").await);
        // Whatever came of it, the clean-up wants a controller.
        controller.start_again().await?;
        let (report, still, left) = (report?, still?, left?);
        let done: Vec<_> = report.candidates.iter().filter(|c| c.outcome == Outcome::Done).collect();
        for c in &done {
            self.say(&format!("gc: {} {}: {}", id("impolite"), c.why, c.said));
        }
        self.promises.reaped(done.len(), left, !healthy.is_empty() && healthy == still);
        self.say(&format!("a new controller with an empty database ({})", controller.pid()));
        let op = self.stop("graceful").await?;
        let op = self.follow(&mut Timeline::since(self.zero), op, |op| op.state.is_finished()).await?;
        line(&format!("           {}", summary(&op)));
        Ok(())
    }

    /// Stops the job past every controller, and runs a gc with nobody to ask, for the demo's own job: on somebody's cluster the leftovers of others are not the demo's.
    async fn reaped(&self) -> anyhow::Result<Report> {
        let mut settings = Config::default().gc()?;
        settings.grace = Duration::from_secs(1);
        for verdict in Verdict::ALL.into_iter().filter(|v| *v != Verdict::PastClock) {
            settings.modes.set(&format!("{}=off", verdict.as_str()))?;
        }
        let parts = Parts {
            nomad: self.nomad.clone(),
            known: Known::Nothing,
            clock: Arc::new(SystemClock),
            settings,
            who: "curfew demo".into(),
            memory: Memory::none(),
        };
        let gc = Gc::new(parts);
        self.nomad.delete_job(&key("impolite"), false).await?;
        self.say(&format!("{}: told to end by somebody else; it ignores SIGTERM, and Nomad would wait for 24h", id("impolite")));
        let mine = key("impolite").job;
        let give_up = Instant::now() + PLACED_IN;
        let mut said = false;
        loop {
            let found = gc.look().await.only(|c| c.subject.job.as_ref() == Some(&mine));
            if !found.candidates().is_empty() || Instant::now() > give_up {
                return Ok(gc.act(found).await);
            }
            if !std::mem::replace(&mut said, true) {
                self.say("gc: nothing is past its clock and the grace (1s here, 15m as a rule)");
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Which starts of its tasks live.
    async fn incarnations(&self, name: &str) -> anyhow::Result<Vec<Timestamp>> {
        let (allocs, _) = self.nomad.job_allocations(&key(name)).await?;
        let live = allocs.iter().flat_map(|a| a.tasks.values()).filter(|t| t.lives());
        Ok(live.filter_map(curfew_core::Task::incarnation).collect())
    }

    fn say(&self, text: &str) {
        line(&format!("{:>+8.3}s  {text}", SystemClock.now().seconds_after(self.zero)));
    }

    async fn submit(&self, name: &str, spec: &str) -> anyhow::Result<()> {
        // An id of its own, so that on somebody's cluster it meets nobody's job.
        let spec = spec.replacen(&format!("job \"poller-{name}\""), &format!("job \"{}\"", id(name)), 1);
        let who = job::who(Some("curfew demo".into()));
        let op = self
            .client
            .submit(&SubmitRequest { spec: SpecText::Hcl(spec), namespace: None, watch: false, check_index: None, who }, None)
            .await?;
        let op = self.client.wait(op.id, PLACED_IN).await?;
        for w in &op.warnings {
            self.say(&format!("{}: warning: {w}", id(name)));
        }
        match (&op.state, &op.error) {
            (State::Succeeded, _) => self.say(&format!("{} submitted (operation {})", id(name), op.id)),
            (_, Some(e)) => bail!("{} could not be submitted: {e}", id(name)),
            (_, None) => bail!("{} could not be submitted: it is {}", id(name), op.state.as_str()),
        }
        Ok(())
    }

    async fn until_running(&self, name: &str) -> anyhow::Result<()> {
        let give_up = Instant::now() + PLACED_IN;
        loop {
            let (allocs, _) = self.nomad.job_allocations(&key(name)).await?;
            let running: Vec<_> = allocs.iter().filter(|a| a.desired == curfew_core::Desired::Run).collect();
            if !running.is_empty() && running.iter().all(|a| a.any_task_lives()) {
                let mut nodes: Vec<_> = running.iter().map(|a| a.node_name.as_str()).collect();
                nodes.sort_unstable();
                self.say(&format!("{} runs on {}", id(name), nodes.join(", ")));
                return Ok(());
            }
            if Instant::now() > give_up {
                bail!(
                    "{} does not run after {}s; the demo's jobs need a datacenter named dc1 with the raw_exec driver",
                    id(name),
                    PLACED_IN.as_secs()
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn stop(&self, name: &str) -> anyhow::Result<OperationView> {
        let who = job::who(Some("curfew demo".into()));
        let request = StopRequest { stop_timeout: Some(STOP_TIMEOUT), who, ..StopRequest::default() };
        Ok(self.client.stop(&id(name), &request, None).await?)
    }

    async fn follow_both(&self, a: OperationView, b: OperationView) -> anyhow::Result<(OperationView, OperationView)> {
        let (mut first, mut second) = (Timeline::since(self.zero), Timeline::since(self.zero));
        let (a, b) = tokio::try_join!(
            self.follow(&mut first, a, |op| op.state.is_finished()),
            self.follow(&mut second, b, |op| op.state.is_finished())
        )?;
        line(&format!("           {}", summary(&a)));
        line(&format!("           {}", summary(&b)));
        Ok((a, b))
    }

    /// Tells what happens to an operation until `until` holds.
    async fn follow(
        &self,
        timeline: &mut Timeline,
        mut op: OperationView,
        until: impl Fn(&OperationView) -> bool,
    ) -> anyhow::Result<OperationView> {
        let give_up = Instant::now() + STOP_TIMEOUT + GRACE;
        loop {
            timeline.lines(&op).iter().for_each(|l| line(l));
            if until(&op) {
                return Ok(op);
            }
            if Instant::now() > give_up {
                bail!(
                    "{} has not ended; it waits for {}",
                    op.target.name(),
                    op.waiting_for.as_deref().unwrap_or("nothing it could name")
                );
            }
            op = self.client.wait(op.id, Duration::from_millis(100)).await?;
        }
    }

    /// How many tasks of the job live, as Nomad shows them.
    async fn alive(&self, name: &str) -> anyhow::Result<usize> {
        let (allocs, _) = self.nomad.job_allocations(&key(name)).await?;
        Ok(allocs.iter().flat_map(|a| a.tasks.values()).filter(|t| t.lives()).count())
    }

    /// After a failure nothing of the demo stays behind on somebody's cluster.
    async fn clean_up(&self) {
        for name in ["graceful", "impolite"] {
            let request = StopRequest { stop_timeout: Some(Duration::from_secs(1)), ..StopRequest::default() };
            let Ok(op) = self.client.stop(&id(name), &request, None).await else { continue };
            if self.client.wait(op.id, GRACE).await.is_err() {
                note(&format!("curfew: {} may still run; stop it with nomad job stop", id(name)));
            }
        }
    }
}

fn id(name: &str) -> String {
    format!("curfew-demo-{name}")
}

fn key(name: &str) -> JobKey {
    JobKey::new("default", id(name))
}

fn clock_of(op: &OperationView) -> Option<Timestamp> {
    op.outcome.iter().flat_map(|o| &o.allocations).flat_map(|a| &a.tasks).filter_map(|t| t.kill_at).max()
}

fn left(clock: Timestamp) -> String {
    curfew_core::duration::human(clock.since(SystemClock.now()))
}
