//! `curfew doctor`: asks Nomad itself, with the configuration that `curfew serve` would have.

use std::sync::Arc;
use std::time::Duration;

use curfew_client::Kind;
use curfew_controller::{SystemClock, doctor};
use curfew_core::doctor::{Check, Report, Verdict, counted};

use crate::args::{Doctor, Serve};
use crate::exit::Exit;
use crate::op::by;
use crate::output::{self, colour, line};
use crate::remote::Remote;
use crate::{config, serve};

pub async fn run(remote: &Remote, args: Doctor) -> anyhow::Result<Exit> {
    let config = config::load(&Serve { config: args.config, ..Serve::default() })?;
    let nomad = serve::nomad(&config, |name| std::env::var(name).ok())?;
    let examined = async {
        let (mut report, paused) = tokio::join!(doctor::examine(&nomad, &config, Arc::new(SystemClock)), paused(remote));
        report.checks.extend(paused);
        Report::new(report.at, &report.nomad, report.checks)
    };
    let report = tokio::select! {
        report = examined => report,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted; nothing was changed"),
    };
    if args.output.json {
        output::json(&report)?;
    } else {
        line(&shown(&report, colour(&std::io::stdout())));
    }
    Ok(if report.counts.failed > 0 { Exit::Failed } else { Exit::Done })
}

/// Whether somebody told the controller to kill nobody; nothing when no controller answers.
async fn paused(remote: &Remote) -> Option<Check> {
    const PATIENCE: Duration = Duration::from_secs(3);
    let kinds = tokio::time::timeout(PATIENCE, remote.client().ok()?.kinds()).await.ok()?.ok()?;
    let kill = kinds.into_iter().find(|k| k.kind == Kind::Kill)?;
    Some(match kill.pause {
        None => Check::ok("kill clocks", "not paused"),
        Some(p) => Check::failed("kill clocks", format!("paused {}: no task is killed", by(&p)), "curfew kind resume kill"),
    })
}

fn shown(report: &Report, colour: bool) -> String {
    let wide = report.checks.iter().map(|c| c.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for check in &report.checks {
        let (word, code) = word(check.verdict);
        let word = if colour { format!("\x1b[{code}m{word:4}\x1b[0m") } else { format!("{word:4}") };
        text += &format!("{word}  {:wide$}  {}\n", check.name, check.found);
        if let Some(remedy) = &check.remedy {
            text += &format!("      {:wide$}  to do: {remedy}\n", "");
        }
    }
    let c = &report.counts;
    text += &format!(
        "{}: {} ok, {}, {} failed, {} not checked",
        report.nomad,
        c.ok,
        counted(c.warning, "warning"),
        c.failed,
        c.not_checked
    );
    text
}

fn word(verdict: Verdict) -> (&'static str, u8) {
    match verdict {
        Verdict::Ok => ("ok", 32),
        Verdict::Warning => ("warn", 33),
        Verdict::Failed => ("FAIL", 31),
        Verdict::NotChecked => ("?", 36),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use curfew_core::Timestamp;

    #[test]
    fn what_people_read() {
        let checks = vec![
            Check::ok("address", "http://127.0.0.1:4646 answers"),
            Check::warning("tls", "off", "turn it on"),
            Check::failed("max_kill_timeout", "below kill_timeout (24h) on node c1 (30s)", "raise it"),
            Check::not_checked("leader", "no answer"),
        ];
        let report = Report::new(Timestamp::default(), "http://127.0.0.1:4646", checks);
        let text = "\
ok    address           http://127.0.0.1:4646 answers
warn  tls               off
                        to do: turn it on
FAIL  max_kill_timeout  below kill_timeout (24h) on node c1 (30s)
                        to do: raise it
?     leader            no answer
http://127.0.0.1:4646: 1 ok, 1 warning, 1 failed, 1 not checked";
        assert_eq!(shown(&report, false), text);
        assert!(shown(&report, true).contains("\x1b[31mFAIL\x1b[0m  max_kill_timeout"));
    }
}
