//! A job's versions, and how a crash reads.

use curfew_client::Client;
use curfew_core::api::CrashView;
use curfew_core::{Timestamp, duration};

use crate::args::JobStatus;
use crate::exit::Exit;
use crate::output::{json, line, table};

/// `exit code 1, 4 of 10 restarts in 10m, the next attempt in 8.2s`.
pub fn crashes(c: &CrashView, dead: bool, now: Timestamp) -> String {
    let exit = match (c.exit_code, c.signal) {
        (Some(code), Some(0) | None) => format!("exit code {code}, "),
        (Some(code), Some(signal)) => format!("exit code {code}, signal {signal}, "),
        _ => String::new(),
    };
    let within = duration::format(c.within);
    let used = if c.used_up { ", all used up" } else { "" };
    let next = match c.next_at {
        Some(at) => format!(", the next attempt in {}", duration::human(at.since(now))),
        None if dead => ", it is not started again".to_owned(),
        None => ", it runs".to_owned(),
    };
    let until = duration::human(c.until.since(now));
    format!("{exit}{} of {} restarts in {within} (for {until} more){used}{next}", c.restarts, c.of)
}

pub async fn history(client: &Client, args: JobStatus) -> anyhow::Result<Exit> {
    let versions = client.job_history(&args.id, args.namespace.as_deref()).await?;
    if args.output.json {
        json(&versions)?;
        return Ok(Exit::Done);
    }
    let rows = versions.into_iter().map(|v| {
        let deployment = v.deployment.map_or("-".to_owned(), |d| d.status.as_str().to_owned());
        let end = v.end.map_or("-".to_owned(), |e| e.as_str().to_owned());
        let what = if v.stopped {
            "stop"
        } else if v.stable {
            "stable"
        } else {
            ""
        };
        [
            v.version.to_string(),
            v.submitted_at.map_or(String::new(), |t| t.to_string()),
            what.to_owned(),
            deployment,
            end,
            v.actor.unwrap_or_default(),
            v.reason.unwrap_or_default(),
        ]
    });
    line(&table(["VERSION", "SUBMITTED", "", "DEPLOYMENT", "ROLLOUT", "ACTOR", "REASON"], rows.collect()));
    Ok(Exit::Done)
}
