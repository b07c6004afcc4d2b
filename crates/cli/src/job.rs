//! Submit, plan and stop jobs, and what is done to their deployments.

pub mod history;
mod stop_all;

use std::io::Read;
use std::path::Path;

use anyhow::Context;
use curfew_client::{Client, OperationView, RevertRequest, SpecText, SteerRequest, StopRequest, SubmitRequest, Who};

use crate::args::{Job, JobRevert, JobRun, JobSpecArgs, JobSteer, JobStop, Waiting};
use crate::exit::{Exit, Usage};
use crate::look;
use crate::op::Watch;
use crate::output::{json, line, note, table};
use crate::remote::Remote;

pub async fn run(remote: &Remote, command: Job) -> anyhow::Result<Exit> {
    let client = remote.client()?;
    match command {
        Job::Run(args) => submit(&client, args).await,
        Job::Plan(args) => plan(&client, args).await,
        Job::Stop(args) => stop(&client, args).await,
        Job::Status(args) => look::job(&client, args).await,
        Job::List(args) => look::jobs(&client, args).await,
        Job::History(args) => history::history(&client, args).await,
        Job::Promote(args) => {
            let op = client.promote(&args.id, &args.request(), None).await?;
            args.follow(&client, op).await
        }
        Job::Fail(args) => {
            let op = client.fail(&args.id, &args.request(), None).await?;
            args.follow(&client, op).await
        }
        Job::Revert(JobRevert { job, version }) => {
            let SteerRequest { namespace, who } = job.request();
            let op = client.revert(&job.id, &RevertRequest { version, namespace, who }, None).await?;
            job.follow(&client, op).await
        }
    }
}

impl JobSteer {
    fn request(&self) -> SteerRequest {
        SteerRequest { namespace: self.namespace.as_deref().map(Into::into), who: who(self.who.reason.clone()) }
    }

    async fn follow(&self, client: &Client, op: OperationView) -> anyhow::Result<Exit> {
        if self.waiting.detach {
            return detached(&op, self.output.json);
        }
        Watch { json: self.output.json, timeout: self.waiting.timeout, fail_on_kill: false }.follow(client, op).await
    }
}

/// Who asks, for the audit trail.
pub fn who(reason: Option<String>) -> Who {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "unknown".into());
    let host = curfew_controller::hostname();
    Who { actor: Some(format!("{user}@{host}")), reason }
}

/// Reads a specification: a JSON object is Nomad's API form, anything else is HCL.
fn read(path: &Path) -> anyhow::Result<SpecText> {
    let mut text = String::new();
    let name = if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).context("standard input cannot be read")?;
        "standard input".to_owned()
    } else {
        text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        path.display().to_string()
    };
    if text.trim().is_empty() {
        return Err(Usage(format!("{name} is empty; it should hold a job in HCL or JSON")).into());
    }
    if !text.trim_start().starts_with(['{', '[']) {
        return Ok(SpecText::Hcl(text));
    }
    Ok(SpecText::Json(serde_json::from_str(&text).with_context(|| format!("{name} is not JSON"))?))
}

fn request(args: &JobSpecArgs, who: Who) -> anyhow::Result<SubmitRequest> {
    let (spec, namespace) = (read(&args.spec)?, args.namespace.as_deref().map(Into::into));
    Ok(SubmitRequest { spec, namespace, watch: false, check_index: None, who })
}

/// What Nomad says of HCL names no file; the caller knows it.
fn in_file<T>(result: Result<T, curfew_client::Error>, path: &Path) -> anyhow::Result<T> {
    result.map_err(|e| match e {
        curfew_client::Error::Refused(p) if p.kind.ends_with("refused-by-nomad") || p.kind.ends_with("bad-specification") => {
            anyhow::anyhow!("{}: {}", path.display(), p.detail.replace("input.hcl:", &format!("{}:", path.display())))
        }
        other => other.into(),
    })
}

async fn submit(client: &Client, args: JobRun) -> anyhow::Result<Exit> {
    let (watch, check_index) = (args.watch, args.check_index);
    let request = SubmitRequest { watch, check_index, ..request(&args.spec, who(args.who.reason))? };
    let op = in_file(client.submit(&request, None).await, &args.spec.spec)?;
    if !args.spec.output.json {
        op.warnings.iter().for_each(|w| note(&format!("warning: {w}")));
    }
    if args.waiting.detach {
        return detached(&op, args.spec.output.json);
    }
    let file = args.spec.spec.display().to_string();
    Watch { json: args.spec.output.json, timeout: args.waiting.timeout, fail_on_kill: false }
        .follow_in(client, op, Some(&file))
        .await
}

async fn plan(client: &Client, args: JobSpecArgs) -> anyhow::Result<Exit> {
    let plan = in_file(client.plan(&request(&args, Who::default())?).await, &args.spec)?;
    if args.output.json {
        json(&plan)?;
        return Ok(Exit::Done);
    }
    plan.warnings.iter().for_each(|w| note(&format!("warning: {w}")));
    if plan.changes.is_empty() {
        line("Curfew changes nothing.");
    } else {
        line("Curfew changes:");
        let rows = plan.changes.into_iter().map(|c| [format!("  {}", c.path), c.from, "->".into(), c.to, c.why]);
        line(&table(["", "FROM", "", "TO", "WHY"], rows.collect()));
    }
    line(&format!("\nNomad plans ({}):", plan.nomad["Diff"]["Type"].as_str().unwrap_or("unknown")));
    let updates = plan.nomad["Annotations"]["DesiredTGUpdates"].as_object();
    for (group, counts) in updates.into_iter().flatten() {
        let counts = counts.as_object().into_iter().flatten().filter(|(_, n)| n.as_u64().unwrap_or(0) > 0);
        let counts: Vec<String> = counts.map(|(what, n)| format!("{n} {what}")).collect();
        line(&format!("  group {group}: {}", if counts.is_empty() { "nothing to do".into() } else { counts.join(", ") }));
    }
    for (group, metric) in plan.nomad["FailedTGAllocs"].as_object().into_iter().flatten() {
        line(&format!(
            "  group {group}: not everything can be placed ({} nodes evaluated, {} filtered, {} exhausted)",
            metric["NodesEvaluated"], metric["NodesFiltered"], metric["NodesExhausted"]
        ));
    }
    if let Some(w) = plan.nomad["Warnings"].as_str().filter(|w| !w.is_empty()) {
        note(&format!("Nomad: {w}"));
    }
    Ok(Exit::Done)
}

async fn stop(client: &Client, args: JobStop) -> anyhow::Result<Exit> {
    let request = StopRequest {
        namespace: args.namespace.as_deref().map(Into::into),
        stop_timeout: args.stop_timeout,
        no_shutdown_delay: args.no_shutdown_delay,
        purge_when_dead: args.purge_when_dead,
        who: who(args.who.reason.clone()),
    };
    let Some(id) = &args.id else { return stop_all::run(client, &args, request).await };
    let op = client.stop(id, &request, None).await?;
    if args.waiting.detach {
        return detached(&op, args.output.json);
    }
    let Waiting { timeout, .. } = args.waiting;
    Watch { json: args.output.json, timeout, fail_on_kill: args.fail_on_kill }.follow(client, op).await
}

pub fn detached(op: &OperationView, as_json: bool) -> anyhow::Result<Exit> {
    if as_json {
        json(op)?;
    } else {
        line(&op.id.to_string());
    }
    Ok(Exit::Done)
}
