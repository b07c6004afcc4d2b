//! Stop many jobs: each is an operation of its own, and all are followed.

use std::time::Duration;

use curfew_client::{Client, OperationView, StopRequest};
use curfew_core::operation::State;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::args::JobStop;
use crate::exit::{Exit, Usage};
use crate::output::{can_ask, confirm, error, json_line, line, note};
use crate::timeline::{Timeline, summary};

/// More than that are not stopped by one command.
const MOST: usize = 10_000;
/// Asked for, and followed, at the same time.
const AT_ONCE: usize = 32;
/// One long poll.
const WAIT: Duration = Duration::from_secs(60);

pub async fn run(client: &Client, args: &JobStop, request: StopRequest) -> anyhow::Result<Exit> {
    let mut query = vec![("managed", "true".to_owned())];
    query.extend(args.prefix.clone().map(|p| ("prefix", p)));
    query.extend(args.namespace.clone().map(|n| ("namespace", n)));
    let all = client.jobs(&query, MOST).await?;
    if all.len() >= MOST {
        return Err(Usage(format!("these are {MOST} jobs or more; narrow them down with --prefix")).into());
    }
    // A stopped one is only there to be purged.
    let jobs: Vec<_> = all.into_iter().filter(|j| !j.stopped || args.purge_when_dead).collect();
    if jobs.is_empty() {
        note("no jobs to stop");
        return Ok(Exit::Done);
    }
    let what = if jobs.len() == 1 { "1 job".to_owned() } else { format!("{} jobs", jobs.len()) };
    if !args.yes {
        let verb = if args.purge_when_dead { "stops and purges" } else { "stops" };
        if !can_ask() {
            return Err(Usage(format!("this {verb} {what}, and there is no terminal to ask on: --yes does it")).into());
        }
        jobs.iter().for_each(|j| note(&format!("  {}", j.key.job)));
        if !confirm(&format!("This {verb} {what}. Go on?"))? {
            note("nothing was done");
            return Ok(Exit::Failed);
        }
    }
    let give_up = args.waiting.timeout.map(|t| Instant::now() + t);
    let mut left = jobs.into_iter();
    let mut under_way = JoinSet::new();
    let mut worst = Exit::Done;
    let (mut exited, mut killed, mut stopped) = (0, 0, 0);
    loop {
        while under_way.len() < AT_ONCE
            && let Some(job) = left.next()
        {
            let (client, detach) = (client.clone(), args.waiting.detach);
            let request = StopRequest { namespace: Some(job.key.namespace), ..request.clone() };
            under_way.spawn(async move {
                (job.key.job.to_string(), one(&client, job.key.job.as_str(), &request, detach, give_up).await)
            });
        }
        let ended = tokio::select! {
            ended = under_way.join_next() => ended,
            _ = tokio::signal::ctrl_c() => {
                note("detached; the stops that were asked for go on: curfew op list --kind stop");
                return Ok(Exit::StillRunning);
            }
        };
        let Some(ended) = ended else { break };
        let (job, answer) = ended?;
        match answer {
            Ok(op) => {
                if let Some(o) = op.outcome.as_ref().filter(|_| op.state == State::Succeeded) {
                    (exited, killed, stopped) = (exited + o.exited, killed + o.killed, stopped + 1);
                }
                worst = worse(worst, told(&op, args)?);
            }
            Err(e) => {
                error(&format!("{job}: {e}"));
                worst = Exit::Failed;
            }
        }
    }
    if !args.output.json && !args.waiting.detach {
        line(&format!("{stopped} of {what} stopped: {exited} tasks ended by themselves, {killed} needed SIGKILL"));
    }
    Ok(if worst == Exit::Done && args.fail_on_kill && killed > 0 { Exit::Killed } else { worst })
}

/// The stop of one job at its end, or as it is when it is not waited for any longer.
async fn one(
    client: &Client,
    job: &str,
    request: &StopRequest,
    detach: bool,
    give_up: Option<Instant>,
) -> Result<OperationView, curfew_client::Error> {
    let mut op = client.stop(job, request, None).await?;
    while !detach && !op.state.is_finished() {
        let left = give_up.map_or(WAIT, |until| until.saturating_duration_since(Instant::now()).min(WAIT));
        if left.is_zero() {
            break;
        }
        match client.wait(op.id, left).await {
            Ok(now) => op = now,
            // It is written down: the controller comes back.
            Err(e) if e.is_transient() => tokio::time::sleep(left.min(Duration::from_millis(500))).await,
            Err(e) => return Err(e),
        }
    }
    Ok(op)
}

fn told(op: &OperationView, args: &JobStop) -> anyhow::Result<Exit> {
    if args.output.json {
        json_line(op)?;
    } else if args.waiting.detach {
        line(&format!("{} {}", op.id, op.target.name()));
    } else {
        Timeline::default().lines(op).iter().for_each(|l| line(l));
        if op.state == State::Succeeded {
            line(&summary(op));
        }
    }
    Ok(match op.state {
        State::Succeeded => Exit::Done,
        State::Cancelled => Exit::Cancelled,
        State::Failed => Exit::Failed,
        _ if args.waiting.detach => Exit::Done,
        _ => Exit::StillRunning,
    })
}

fn worse(a: Exit, b: Exit) -> Exit {
    let rank = |e: Exit| match e {
        Exit::Done => 0,
        Exit::StillRunning => 1,
        Exit::Cancelled => 2,
        _ => 3,
    };
    if rank(b) > rank(a) { b } else { a }
}
