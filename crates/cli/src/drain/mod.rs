//! Drains and undrains: what would be touched is shown, it is asked, and then it is followed.

pub mod args;
mod plan;
pub mod progress;
pub mod report;
#[cfg(test)]
mod tests;

use curfew_client::{Client, Error, OperationView, Selection};

use crate::exit::{Exit, Usage};
use crate::job::detached;
use crate::op::Watch;
use crate::output::{can_ask, confirm, error, json, line, note, width};
use crate::remote::Remote;
use args::{Datacenter, How, Node, UndrainHow};

pub async fn node(remote: &Remote, command: Node) -> anyhow::Result<Exit> {
    match command {
        Node::Drain(args) => drain(remote, args.nodes.selection()?, args.how).await,
        Node::Undrain(args) => undrain(remote, args.nodes.selection()?, args.how).await,
        Node::List(output) => crate::look::nodes(remote, output).await,
    }
}

pub async fn datacenter(remote: &Remote, command: Datacenter) -> anyhow::Result<Exit> {
    match command {
        Datacenter::Drain(args) => drain(remote, args.datacenter.selection()?, args.how).await,
        Datacenter::Undrain(args) => undrain(remote, args.datacenter.selection()?, args.how).await,
    }
}

async fn drain(remote: &Remote, selection: Selection, how: How) -> anyhow::Result<Exit> {
    let client = remote.client()?;
    let request = how.request(selection);
    if how.dry_run {
        let plan = client.drain_plan(&request).await.map_err(typed)?;
        if how.output.json {
            json(&plan)?;
        } else {
            line(&plan::whole(&plan, width()));
        }
        return Ok(match &plan.refused {
            Some(why) => {
                error(&format!("this drain would be refused now: {why}"));
                Exit::Failed
            }
            None => Exit::Done,
        });
    }
    if !how.yes {
        let plan = client.drain_plan(&request).await.map_err(typed)?;
        if let Some(why) = plan.refused {
            anyhow::bail!("{why}");
        }
        if !can_ask() {
            let what = plan::what(&plan);
            return Err(Usage(format!(
                "this drains {what}, and there is no terminal to ask on: --yes does it, --dry-run shows it"
            ))
            .into());
        }
        note(&plan::short(&plan, width()));
        if !confirm(&format!("\nDrain {}?", plan::what(&plan)))? {
            note("nothing was done");
            return Ok(Exit::Failed);
        }
    }
    let op = client.drain(&request, None).await.map_err(typed)?;
    if how.waiting.detach {
        op.warnings.iter().for_each(|w| note(&format!("warning: {w}")));
        return detached(&op, how.output.json);
    }
    follow(&client, op, how.output.json, how.waiting.timeout, how.fail_on_kill).await
}

async fn undrain(remote: &Remote, selection: Selection, how: UndrainHow) -> anyhow::Result<Exit> {
    let client = remote.client()?;
    let op = client.undrain(&how.request(selection), None).await.map_err(typed)?;
    if how.waiting.detach {
        return detached(&op, how.output.json);
    }
    follow(&client, op, how.output.json, how.waiting.timeout, false).await
}

async fn follow(
    client: &Client,
    op: OperationView,
    json: bool,
    timeout: Option<std::time::Duration>,
    fail_on_kill: bool,
) -> anyhow::Result<Exit> {
    Watch { json, timeout, fail_on_kill }.follow(client, op).await
}

/// What the person typed wrong is another exit code than what does not work.
fn typed(e: Error) -> anyhow::Error {
    const TYPED: [&str; 4] = ["no-such-node", "ambiguous-node", "bad-request", "timeouts"];
    match e {
        Error::Refused(p) if p.kind.rsplit(':').next().is_some_and(|k| TYPED.contains(&k)) => Usage(p.detail).into(),
        other => other.into(),
    }
}
