//! The audit trail.

use std::time::Duration;

use curfew_client::{Client, Error};
use curfew_core::Clock;
use curfew_core::audit::AuditRow;

use crate::args::Audit;
use crate::exit::Exit;
use crate::output::{json, json_line, line, note};
use crate::remote::Remote;

/// How often a trail that is followed is asked for.
const LOOK: Duration = Duration::from_millis(500);

pub async fn run(remote: &Remote, args: Audit) -> anyhow::Result<Exit> {
    let client = remote.client()?;
    let mut query = vec![];
    query.extend(args.op.map(|op| ("operation", op.to_string())));
    query.extend(args.since.map(|s| ("since", (curfew_controller::SystemClock.now() - s).to_string())));
    let mut trail = Trail { client, query, after: 0 };
    if args.follow {
        return tokio::select! {
            failed = trail.follow(args.output.json) => failed,
            // Nobody stops anything by no longer looking.
            _ = tokio::signal::ctrl_c() => Ok(Exit::Done),
        };
    }
    let mut all = vec![];
    loop {
        let page = trail.next().await?;
        if page.is_empty() {
            break;
        }
        match args.output.json {
            true => all.extend(page),
            false => page.iter().for_each(show),
        }
    }
    if args.output.json {
        json(&all)?;
    }
    Ok(Exit::Done)
}

/// Read page by page, each row once.
struct Trail {
    client: Client,
    query: Vec<(&'static str, String)>,
    after: u64,
}

impl Trail {
    async fn next(&mut self) -> Result<Vec<AuditRow>, Error> {
        let mut query = self.query.clone();
        query.push(("after", self.after.to_string()));
        let page = self.client.audit(&query).await?;
        self.after = page.last().map_or(self.after, |row| row.seq);
        Ok(page)
    }

    /// A controller that is away comes back, and the trail with it. A wrong address says so at once.
    async fn follow(&mut self, as_json: bool) -> anyhow::Result<Exit> {
        let (mut lost, mut first) = (false, true);
        loop {
            match self.next().await {
                Ok(page) => {
                    if std::mem::take(&mut lost) {
                        note("the controller is back");
                    }
                    first = false;
                    for row in &page {
                        match as_json {
                            true => json_line(row)?,
                            false => show(row),
                        }
                    }
                    if !page.is_empty() {
                        continue;
                    }
                }
                Err(e) if !first && (e.is_transient() || matches!(e, Error::NotCurfew { .. })) => {
                    if !std::mem::replace(&mut lost, true) {
                        note(&format!("{e}; waiting for it"));
                    }
                }
                Err(e) => return Err(e.into()),
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn show(row: &AuditRow) {
    let e = &row.entry;
    let subject = match (&e.alloc, &e.task) {
        (Some(a), Some(t)) => format!(" {}/{t}", a.short()),
        _ => String::new(),
    };
    let detail = if e.detail.is_null() { String::new() } else { format!(" {}", e.detail) };
    let op = e.operation.map_or("-".to_owned(), |o| o.to_string());
    line(&format!("{} {op} {} {}{subject}{detail}", e.at, e.actor, e.action.as_str()));
}
