//! Looking at jobs, nodes and clocks through the controller.

use curfew_client::Client;
use curfew_core::{Clock, TaskState, duration};

use crate::args::{Clocks, JobList, JobStatus, Output};
use crate::exit::Exit;
use crate::job::history;
use crate::output::{json, line, note, table};
use crate::remote::Remote;

fn yes(is: bool, word: &str) -> String {
    if is { word.to_owned() } else { String::new() }
}

pub async fn jobs(client: &Client, args: JobList) -> anyhow::Result<Exit> {
    let mut query = vec![("managed", (!args.all).to_string())];
    query.extend(args.namespace.map(|n| ("namespace", n)));
    query.extend(args.prefix.map(|p| ("prefix", p)));
    let mut jobs = client.jobs(&query, args.limit.saturating_add(1)).await?;
    let more = jobs.len() > args.limit;
    jobs.truncate(args.limit);
    if args.output.json {
        json(&jobs)?;
        return Ok(Exit::Done);
    }
    if jobs.is_empty() {
        note(if args.all { "no jobs" } else { "no jobs that were submitted through Curfew; --all lists the others too" });
        return Ok(Exit::Done);
    }
    let rows = jobs.into_iter().map(|j| {
        let status = if j.stopped { format!("{}, stopped", j.status) } else { j.status };
        let kind = format!("{:?}", j.job_type).to_lowercase();
        [j.key.job.to_string(), j.key.namespace.to_string(), kind, status, yes(j.managed, "managed")]
    });
    line(&table(["JOB", "NAMESPACE", "TYPE", "STATUS", ""], rows.collect()));
    if more {
        note("and more; --limit shows them");
    }
    Ok(Exit::Done)
}

pub async fn job(client: &Client, args: JobStatus) -> anyhow::Result<Exit> {
    let job = client.job(&args.id, args.namespace.as_deref()).await?;
    if args.output.json {
        json(&job)?;
        return Ok(Exit::Done);
    }
    let row = &job.row;
    line(&format!("job           {} (namespace {})", row.key.job, row.key.namespace));
    let stopped = if row.stopped { ", stopped" } else { "" };
    line(&format!("status        {}{stopped}, version {}{}", row.status, job.version, yes(row.managed, ", managed")));
    if let Some(d) = &job.deployment {
        let id = d.id.get(..8).unwrap_or(&d.id);
        let unhealthy = if d.unhealthy > 0 { format!(", {} unhealthy", d.unhealthy) } else { String::new() };
        line(&format!("deployment    {id} of version {}: {} of {} healthy{unhealthy}", d.version, d.healthy, d.desired));
        line(&format!("              {}", d.description));
    }
    for op in &job.operations {
        let deadline = op.deadline.map_or(String::new(), |d| format!(", deadline {d}"));
        line(&format!("under way     {} {} ({}{deadline})", op.kind.as_str(), op.id, op.state.as_str()));
    }
    let now = curfew_controller::SystemClock.now();
    let rows = job.allocations.iter().flat_map(|a| {
        a.tasks.iter().map(move |t| {
            let kill = t.kill_at.map_or(String::new(), |at| match at > now {
                true => format!("in {}", duration::human(at.since(now))),
                false => "due".into(),
            });
            let state = if t.lives { "lives" } else { "ended" };
            let summary = a.client_status.as_str().to_owned();
            [a.id.short().to_owned(), a.node.clone(), summary, t.name.to_string(), state.to_owned(), kill]
        })
    });
    let rows: Vec<_> = rows.collect();
    if !rows.is_empty() {
        line(&table(["ALLOC", "NODE", "STATUS", "TASK", "", "SIGKILL"], rows));
    }
    for a in &job.allocations {
        for (t, crash) in a.tasks.iter().filter_map(|t| Some((t, t.crashes.as_ref()?))) {
            let dead = t.state == TaskState::Dead;
            line(&format!("{}/{} crashes: {}", a.id.short(), t.name, history::crashes(crash, dead, now)));
        }
    }
    Ok(Exit::Done)
}

pub async fn nodes(remote: &Remote, output: Output) -> anyhow::Result<Exit> {
    let nodes = remote.client()?.nodes().await?;
    if output.json {
        json(&nodes)?;
        return Ok(Exit::Done);
    }
    let rows = nodes.into_iter().map(|n| {
        let eligible = if n.eligible { "eligible" } else { "ineligible" };
        let deadline = n.drain.as_ref().filter(|_| n.draining || n.operation.is_some()).and_then(|d| d.deadline);
        let deadline = deadline.map_or(String::new(), |d| format!(", deadline {d}"));
        let drain = match (n.operation, n.draining) {
            (Some(op), _) => format!("by {op}{deadline}"),
            (None, true) if n.drain.is_some() => format!("by Curfew{deadline}"),
            (None, true) => "by somebody else".to_owned(),
            (None, false) => String::new(),
        };
        [
            n.name,
            n.id.as_str().get(..8).unwrap_or_default().to_owned(),
            n.datacenter.to_string(),
            n.status,
            eligible.into(),
            drain,
        ]
    });
    line(&table(["NODE", "ID", "DATACENTER", "STATUS", "ELIGIBILITY", "DRAIN"], rows.collect()));
    Ok(Exit::Done)
}

pub async fn clocks(remote: &Remote, args: Clocks) -> anyhow::Result<Exit> {
    let mut query = vec![("limit", args.limit.to_string())];
    query.extend(args.job.map(|j| ("job", j)));
    query.extend(args.namespace.map(|n| ("namespace", n)));
    let found = remote.client()?.clocks(&query).await?;
    if args.output.json {
        json(&found)?;
        return Ok(Exit::Done);
    }
    if !found.live {
        note("this controller stands by: the clocks as they were written down last");
    }
    if found.clocks.is_empty() {
        note("no clock is armed");
        return Ok(Exit::Done);
    }
    let now = curfew_controller::SystemClock.now();
    let more = found.armed - found.clocks.len();
    let rows = found.clocks.into_iter().map(|c| {
        let due = match c.due > now {
            true => format!("in {}", duration::human(c.due.since(now))),
            false => format!("{} ago", duration::human(now.since(c.due))),
        };
        let task = format!("{}/{}", c.key.alloc.short(), c.key.task);
        [
            due,
            c.job.job.to_string(),
            c.job.namespace.to_string(),
            task,
            c.node_name,
            c.cause.as_str().to_owned(),
            c.last_error.unwrap_or_default(),
        ]
    });
    line(&table(["SIGKILL", "JOB", "NAMESPACE", "TASK", "NODE", "CAUSE", "LAST ERROR"], rows.collect()));
    if more > 0 {
        note(&format!("and {more} more; --limit shows them"));
    }
    Ok(Exit::Done)
}
