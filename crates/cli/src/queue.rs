//! Whole kinds, and the queue.

use curfew_client::{Client, HeldView, Kind, KindView, PauseKindRequest};
use curfew_core::{Clock, Timestamp, duration};

use crate::args::{KindCommand, Output, Queue};
use crate::exit::{Exit, Usage};
use crate::job::who;
use crate::op::by;
use crate::output::{json, line, note, table};
use crate::remote::Remote;

pub async fn kind(remote: &Remote, command: KindCommand) -> anyhow::Result<Exit> {
    let client = remote.client()?;
    match command {
        KindCommand::List(output) => {
            let kinds = client.kinds().await?;
            if output.json {
                json(&kinds)?;
                return Ok(Exit::Done);
            }
            let rows = kinds.into_iter().map(|k| {
                let keeper = k.duty.and_then(|d| d.holder.map(|h| format!("clocks kept by {h} (epoch {})", d.epoch)));
                let state = k.pause.map_or("runs".into(), |p| format!("paused {}", by(&p)));
                [k.kind.as_str().into(), state, keeper.unwrap_or_default()]
            });
            line(&table(["KIND", "STATE", ""], rows.collect()));
            Ok(Exit::Done)
        }
        KindCommand::Pause(args) => {
            let kind = known(&args.kind)?;
            if kind == Kind::Kill && !args.yes_really {
                let why = "while kill is paused no task is killed, however late it is; add --yes-really if that is what you want";
                return Err(Usage(why.into()).into());
            }
            let request = PauseKindRequest { yes_really: args.yes_really, who: who(args.who.reason) };
            said(&client.pause_kind(kind, &request).await?, args.output)
        }
        KindCommand::Resume(args) => said(&client.resume_kind(known(&args.kind)?, who(args.who.reason)).await?, args.output),
    }
}

fn known(name: &str) -> Result<Kind, Usage> {
    let names = || Kind::ALL.map(Kind::as_str).join(", ");
    Kind::parse(name).ok_or_else(|| Usage(format!("there is no kind \"{name}\"; there are {}", names())))
}

fn said(row: &KindView, output: Output) -> anyhow::Result<Exit> {
    if output.json {
        json(row)?;
        return Ok(Exit::Done);
    }
    let kind = row.kind.as_str();
    match (&row.pause, row.kind) {
        (None, _) => line(&format!("{kind} runs")),
        (Some(p), Kind::Kill) => {
            line(&format!("{kind} is paused {}", by(p)));
            note("no task is killed until: curfew kind resume kill");
        }
        (Some(p), _) => line(&format!("{kind} is paused {}; what runs finishes its step", by(p))),
    }
    Ok(Exit::Done)
}

pub async fn run(remote: &Remote, command: Queue) -> anyhow::Result<Exit> {
    let client = remote.client()?;
    match command {
        Queue::Status(output) => status(&client, output).await,
        Queue::ConfirmDrained(output) => {
            let running = client.queue().await?.running;
            let exit = if running.is_empty() { Exit::Done } else { Exit::Failed };
            if output.json {
                json(&running)?;
            } else if running.is_empty() {
                line("drained: no controller works on anything");
            } else {
                line(&holders(running));
            }
            Ok(exit)
        }
    }
}

async fn status(client: &Client, output: Output) -> anyhow::Result<Exit> {
    let (queue, kinds) = (client.queue().await?, client.kinds().await?);
    if output.json {
        json(&queue)?;
        return Ok(Exit::Done);
    }
    let now = curfew_controller::SystemClock.now();
    let age = |t: Timestamp| duration::format(std::time::Duration::from_secs(now.since(t).as_secs()));
    if queue.counts.is_empty() {
        line("nothing waits and nothing runs");
    } else {
        let rows = queue.counts.into_iter().map(|c| {
            let due = match c.oldest_run_at > now {
                true => format!("in {}", duration::format(std::time::Duration::from_secs(c.oldest_run_at.since(now).as_secs()))),
                false => "now".into(),
            };
            [c.kind.as_str().into(), c.state.as_str().into(), c.count.to_string(), age(c.oldest_requested_at), due]
        });
        line(&table(["KIND", "STATE", "COUNT", "OLDEST", "NEXT"], rows.collect()));
    }
    if !queue.running.is_empty() {
        line("");
        line(&holders(queue.running));
    }
    for k in kinds {
        if let Some(p) = &k.pause {
            line(&format!("\n{} is paused {}", k.kind.as_str(), by(p)));
        }
    }
    Ok(Exit::Done)
}

fn holders(running: Vec<HeldView>) -> String {
    let rows = running.into_iter().map(|h| {
        let until = h.lease.expires_at.map_or("-".to_owned(), |t| t.to_string());
        [h.lease.holder.unwrap_or_else(|| "-".into()), h.kind.as_str().into(), h.id.to_string(), h.lease.epoch.to_string(), until]
    });
    table(["HELD BY", "KIND", "OPERATION", "EPOCH", "UNTIL"], rows.collect())
}
