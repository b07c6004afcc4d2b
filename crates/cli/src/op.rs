//! Looking at operations, following one, the audit trail, the controller's status.

use std::time::Duration;

use curfew_client::{Client, Error, ExtendRequest, OperationView};
use curfew_core::operation::{By, Kind, State, Target};
use curfew_core::rollout::End;
use tokio::time::Instant;

use crate::args::{Op, OpList, Output};
use crate::drain::progress::{live, the};
use crate::drain::report::{report, summary};
use crate::exit::{Exit, Usage};
use crate::job::who;
use crate::output::{error, json, line, note, table, width};
use crate::remote::Remote;
use crate::shown::{Shown, by_node, is_drain};
use crate::{rollout, timeline};

pub async fn run(remote: &Remote, command: Op) -> anyhow::Result<Exit> {
    let client = remote.client()?;
    match command {
        Op::List(args) => list(&client, args).await,
        Op::Show(args) => {
            let op = client.operation(args.id).await?;
            if args.output.json {
                json(&op)?;
            } else {
                show(&op);
            }
            Ok(Exit::Done)
        }
        Op::Watch(args) => {
            let op = client.operation(args.id).await?;
            let watch = Watch { json: args.output.json, timeout: args.timeout, fail_on_kill: args.fail_on_kill };
            watch.follow(&client, op).await
        }
        Op::Extend(args) => {
            let request = ExtendRequest { by: args.by, until: args.until, who: who(args.who.reason) };
            said(&client.extend(args.id, &request).await?, "extended", args.output)
        }
        Op::Cancel(args) => said(&client.cancel(args.id, who(args.who.reason)).await?, "cancelled", args.output),
        Op::KillNow(args) => {
            said(&client.kill_now(args.id, who(args.who.reason)).await?, "its tasks get SIGKILL now", args.output)
        }
        Op::Release(args) => said(&client.release(args.id, who(args.who.reason)).await?, "released", args.output),
        Op::Retry(args) => said(&client.retry(args.id, who(args.who.reason)).await?, "queued again", args.output),
        Op::Pause(args) => said(&client.pause(args.id, who(args.who.reason)).await?, "paused", args.output),
        Op::Resume(args) => said(&client.resume(args.id, who(args.who.reason)).await?, "resumed", args.output),
    }
}

/// What became of an operation that somebody stepped in on.
fn said(op: &OperationView, done: &str, output: Output) -> anyhow::Result<Exit> {
    if output.json {
        json(op)?;
        return Ok(Exit::Done);
    }
    op.warnings.iter().for_each(|w| note(&format!("warning: {w}")));
    let target = format!("{} of {}", op.kind.as_str(), op.target);
    line(&match (&op.cancel, op.state) {
        (Some(_), state) if !state.is_finished() => {
            format!("{target}: it has begun, so its next step cancels it: curfew op watch {}", op.id)
        }
        (_, State::Running) if op.pause.is_some() => format!("{target}: {done} when the step that runs has ended"),
        (_, state) if state.is_finished() => format!("{target}: {}", state.as_str()),
        (_, state) => {
            let deadline = op.deadline.map_or(String::new(), |d| format!(", deadline {d}"));
            format!("{target}: {done} ({}{deadline})", state.as_str())
        }
    });
    Ok(Exit::Done)
}

/// How an operation is followed.
pub struct Watch {
    pub json: bool,
    pub timeout: Option<Duration>,
    pub fail_on_kill: bool,
}

/// While it is followed, it is asked for this often; an end is told at once.
const LOOK: Duration = Duration::from_millis(250);
/// What is asked for may be thousands of allocations.
const LOOK_AT_DRAIN: Duration = Duration::from_secs(1);

impl Watch {
    /// Follows it to its end; Ctrl-C detaches and cancels nothing.
    pub async fn follow(&self, client: &Client, op: OperationView) -> anyhow::Result<Exit> {
        self.follow_in(client, op, None).await
    }

    /// The same, for what was read from a file that an error should name.
    pub async fn follow_in(&self, client: &Client, op: OperationView, file: Option<&str>) -> anyhow::Result<Exit> {
        let id = op.id;
        tokio::select! {
            end = self.until_finished(client, op) => match end? {
                Some(op) => self.ended(&op, file),
                None => Ok(Exit::StillRunning),
            },
            _ = tokio::signal::ctrl_c() => {
                note(&format!("detached; the operation goes on: curfew op watch {id}"));
                Ok(Exit::StillRunning)
            }
        }
    }

    /// The operation at its end; nothing when it was not waited for any longer.
    async fn until_finished(&self, client: &Client, mut op: OperationView) -> anyhow::Result<Option<OperationView>> {
        let mut shown = Shown::of(&op, self.json);
        let look = if is_drain(op.kind) { LOOK_AT_DRAIN } else { LOOK };
        let give_up = self.timeout.map(|t| Instant::now() + t);
        let mut lost = false;
        loop {
            shown.look(&op)?;
            if op.state.is_finished() {
                return Ok(Some(op));
            }
            let mut wait = look;
            if let Some(until) = give_up {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    shown.document(&op, self.json)?;
                    shown.note(&format!("gave up waiting; the operation goes on: curfew op watch {}", op.id));
                    return Ok(None);
                }
                wait = wait.min(left);
            }
            match client.wait(op.id, wait).await {
                Ok(now) => {
                    if std::mem::take(&mut lost) {
                        shown.note("the controller is back");
                    }
                    op = now;
                }
                Err(e) if e.is_transient() || matches!(e, Error::NotCurfew { .. }) => {
                    if !std::mem::replace(&mut lost, true) {
                        shown.note(&format!("{e}; the operation is written down, waiting for the controller"));
                    }
                    tokio::time::sleep(wait.min(LOOK)).await;
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn ended(&self, op: &OperationView, file: Option<&str>) -> anyhow::Result<Exit> {
        if by_node(op.kind) {
            return Ok(self.ended_by_node(op));
        }
        if op.kind == Kind::Rollout {
            // As JSON the last line was its end already.
            if !self.json {
                match (&op.error, op.state) {
                    (Some(e), _) => error(&format!("{}: {}", file.unwrap_or(op.target.name()), rollout::ended(op, e))),
                    (None, State::Succeeded) => line(&rollout::summary(op)),
                    (None, _) => {}
                }
            }
            return Ok(exit_of(op, false));
        }
        if op.kind == Kind::Deployment && op.state == State::Failed {
            error(&format!("{}: {}", op.target.name(), op.error.as_deref().unwrap_or("failed")));
        }
        let registered = op.outcome.as_ref().and_then(|o| o.registered.as_ref());
        if self.json {
            json(op)?;
        } else if let (State::Succeeded, Some(r)) = (op.state, registered) {
            r.warnings.lines().for_each(|w| note(&format!("Nomad: {w}")));
            let eval = r.eval.as_ref().map_or(String::new(), |e| format!(", evaluation {e}"));
            line(&format!("{} registered (index {}{eval}, operation {})", op.target.name(), r.job_modify_index, op.id));
        } else if op.state == State::Succeeded && op.kind != Kind::Deployment {
            line(&timeline::summary(op));
        } else if let (Some(e), Some(file)) = (&op.error, file) {
            anyhow::bail!("{file}: {e}");
        }
        Ok(exit_of(op, self.fail_on_kill))
    }

    /// What came of each node. As JSON the last line was its end already.
    fn ended_by_node(&self, op: &OperationView) -> Exit {
        if !self.json {
            let report = report(op, width());
            line(&if report.is_empty() { summary(op) } else { format!("\n{report}\n\n{}", summary(op)) });
        }
        if op.state == State::Failed {
            error(&format!("{}: {}", the(&op.target), op.error.as_deref().unwrap_or("failed")));
        }
        exit_of(op, self.fail_on_kill)
    }
}

fn exit_of(op: &OperationView, fail_on_kill: bool) -> Exit {
    let rollout = op.outcome.as_ref().and_then(|o| o.rollout.as_ref()?.end);
    match op.state {
        State::Failed if rollout == Some(End::Reverted) => Exit::Reverted,
        State::Failed if rollout == Some(End::Stalled) => Exit::Stalled,
        State::Failed if rollout == Some(End::Superseded) => Exit::Superseded,
        State::Succeeded if fail_on_kill && op.outcome.as_ref().is_some_and(|o| o.killed > 0) => Exit::Killed,
        State::Succeeded => Exit::Done,
        State::Cancelled => Exit::Cancelled,
        _ => Exit::Failed,
    }
}

async fn list(client: &Client, args: OpList) -> anyhow::Result<Exit> {
    let mut query = vec![];
    if let Some(kind) = args.kind {
        let known = Kind::parse(&kind)
            .ok_or_else(|| Usage(format!("there is no kind \"{kind}\"; there are {}", names(&Kind::ALL.map(Kind::as_str)))))?;
        query.push(("kind", known.as_str().into()));
    }
    if let Some(state) = args.state {
        let known = State::parse(&state).ok_or_else(|| {
            Usage(format!("there is no state \"{state}\"; there are {}", names(&State::ALL.map(State::as_str))))
        })?;
        query.push(("state", known.as_str().into()));
    }
    query.extend(args.job.map(|j| ("job", j)));
    query.extend(args.namespace.map(|n| ("namespace", n)));
    query.extend(args.parent.map(|p| ("parent", p.to_string())));
    let ops = client.operations(&query, args.limit).await?;
    if args.output.json {
        json(&ops)?;
        return Ok(Exit::Done);
    }
    if ops.is_empty() {
        note("no operations");
        return Ok(Exit::Done);
    }
    let rows = ops.into_iter().map(|o| {
        let what = o.error.or(o.waiting_for.filter(|_| !o.state.is_finished())).unwrap_or_default();
        [
            o.id.to_string(),
            o.kind.as_str().into(),
            o.state.as_str().into(),
            o.target.name().to_owned(),
            o.requested_at.to_string(),
            o.actor,
            what,
        ]
    });
    line(&table(["ID", "KIND", "STATE", "TARGET", "REQUESTED", "ACTOR", "WAITING FOR / ERROR"], rows.collect()));
    Ok(Exit::Done)
}

fn names(all: &[&str]) -> String {
    all.join(", ")
}

pub fn show(op: &OperationView) {
    let optional = |name: &str, value: Option<String>| {
        if let Some(v) = value {
            line(&format!("{name:<14}{v}"));
        }
    };
    line(&format!("operation     {}", op.id));
    line(&format!("kind          {}", op.kind.as_str()));
    line(&format!("state         {}", op.state.as_str()));
    match &op.target {
        Target::Job(key) => line(&format!("job           {} (namespace {})", key.job, key.namespace)),
        Target::Node { node, name } => line(&format!("node          {name} ({node})")),
        Target::Datacenter { datacenter } => line(&format!("datacenter    {datacenter}")),
        Target::Nodes { nodes } => line(&format!("nodes         {nodes}")),
    }
    line(&format!("actor         {}", op.actor));
    optional("reason", op.reason.clone());
    line(&format!("requested     {}", op.requested_at));
    optional("deadline", op.deadline.map(|d| d.to_string()));
    optional("finished", op.finished_at.map(|d| d.to_string()));
    optional("waiting for", op.waiting_for.clone().filter(|_| !op.state.is_finished()));
    optional("error", op.error.clone());
    optional("leased by", op.leased_by.clone());
    optional("parent", op.parent.map(|p| p.to_string()));
    optional("paused", op.pause.as_ref().map(by));
    optional("to be ended", op.cancel.as_ref().filter(|_| !op.state.is_finished()).map(|c| format!("cancelled {}", by(c))));
    for w in &op.warnings {
        line(&format!("warning       {w}"));
    }
    if is_drain(op.kind) && !op.state.is_finished() {
        let now = curfew_core::Clock::now(&curfew_controller::SystemClock);
        let width = width().unwrap_or(usize::MAX);
        line("");
        live(op, now, width, usize::MAX).iter().for_each(|l| line(l));
    } else if by_node(op.kind) {
        line(&format!("\n{}\n\n{}", report(op, width()), summary(op)));
    }
    if op.outcome.as_ref().is_some_and(|o| o.rollout.is_some()) {
        line("");
        rollout::Story::default().news(op).iter().for_each(|l| line(l));
        rollout::status(op, op.finished_at.unwrap_or_else(|| curfew_core::Clock::now(&curfew_controller::SystemClock)))
            .iter()
            .for_each(|l| line(l));
    }
    tasks(op);
}

/// By whom, when and why.
pub fn by(by: &By) -> String {
    let reason = by.reason.as_ref().map_or(String::new(), |r| format!(": {r}"));
    format!("by {} at {}{reason}", by.actor, by.at)
}

/// A row for each task.
fn tasks(op: &OperationView) {
    let time =
        |t: Option<curfew_core::Timestamp>| t.map_or("-".to_owned(), |t| format!("{:+.3}s", t.seconds_after(op.requested_at)));
    let rows: Vec<_> = op
        .outcome
        .iter()
        .flat_map(|o| &o.allocations)
        .flat_map(|a| {
            a.tasks.iter().map(move |t| {
                let how = if t.ended_at.is_some() { timeline::how(t) } else { "alive".into() };
                [
                    a.id.short().into(),
                    a.node.clone(),
                    t.name.to_string(),
                    time(t.term_at),
                    time(t.kill_at),
                    time(t.signalled_at),
                    time(t.ended_at),
                    how,
                ]
            })
        })
        .collect();
    if !rows.is_empty() {
        line(&table(["ALLOC", "NODE", "TASK", "SIGTERM", "CLOCK", "SIGKILL", "ENDED", "HOW"], rows));
    }
}

pub async fn status(remote: &Remote, output: Output) -> anyhow::Result<Exit> {
    let status = remote.client()?.status().await?;
    if output.json {
        json(&status)?;
    } else {
        line(&format!(
            "controller    {} (curfew {}), {} since {}",
            status.controller, status.version, status.phase, status.started_at
        ));
        line(&format!("nomad         {}, {}", status.nomad_address, status.nomad));
        let keeper = match &status.keeper {
            Some(keeper) if *keeper == status.controller => "kept here".to_owned(),
            Some(keeper) => format!("kept by {keeper}; this controller stands by"),
            None => "kept by nobody at the moment".to_owned(),
        };
        line(&format!("clocks        {} armed, {keeper}", status.clocks_armed));
        line(&format!("operations    {} not finished", status.operations_live));
        for row in &status.paused {
            let harm = if row.kind == Kind::Kill { "; no task is killed" } else { "" };
            let who = row.pause.as_ref().map(by).unwrap_or_default();
            line(&format!("paused        {} {who}{harm}", row.kind.as_str()));
        }
    }
    Ok(Exit::Done)
}
