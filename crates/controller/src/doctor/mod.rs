//! Whether Curfew's promises can be kept on this Nomad: asks, changes nothing, and says what to do.
//!
//! Each check has a deadline and stands alone; one that cannot be asked says why. What a finding means is decided in
//! [`curfew_core::doctor`]. A new check is a function here and a line in [`examine`].

mod nodes;
mod rights;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use curfew_core::config::Config;
use curfew_core::doctor::{self, Check, Report, Skew, Verdict};
use curfew_core::operation::By;
use curfew_core::{Clock, Timestamp, duration};
use curfew_nomad::{AgentSelf, Error, Nomad};

use crate::error::chain;

/// Of each check, beside the deadlines of its calls.
const DEADLINE: Duration = Duration::from_secs(30);
/// The `Date` header has no fractions.
const DATE_AGE: Duration = Duration::from_secs(1);

/// The checks that need an answer from Nomad, for when there is none.
const NEED_NOMAD: [&str; 10] = [
    "leader",
    "servers",
    "acl",
    "agent clock",
    nodes::CLIENTS,
    nodes::DOWN,
    nodes::PATH,
    nodes::CLOCKS,
    nodes::LIMITS,
    nodes::DRIVERS,
];

/// Why something could not be asked.
#[derive(Debug, thiserror::Error)]
enum Why {
    #[error(transparent)]
    Nomad(#[from] Error),
    #[error("no answer within {}", duration::format(DEADLINE))]
    Late,
}

impl Why {
    fn text(&self) -> String {
        chain(self)
    }

    /// Whether a Nomad answered, if only to refuse.
    fn answered(&self) -> bool {
        matches!(self, Self::Nomad(e) if e.status().is_some() && !matches!(e, Error::NotNomad { .. }))
    }
}

async fn ask<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, Why> {
    Ok(tokio::time::timeout(DEADLINE, call).await.map_err(|_| Why::Late)??)
}

struct Doctor<'a> {
    nomad: &'a Nomad,
    config: &'a Config,
    clock: Arc<dyn Clock>,
}

/// Examines the Nomad that a controller with this configuration would use.
pub async fn examine(nomad: &Nomad, config: &Config, clock: Arc<dyn Clock>) -> Report {
    let at = clock.now();
    let doctor = Doctor { nomad, config, clock };
    let (leader, agent) = tokio::join!(ask(nomad.leader()), ask(nomad.agent_self()));
    let mut checks = doctor.connection(&leader, &agent);
    if checks.iter().any(|c| c.verdict == Verdict::Failed) {
        checks.extend(NEED_NOMAD.map(|name| Check::not_checked(name, "no answer from Nomad")));
        return Report::new(at, nomad.address(), checks);
    }
    checks.push(led(leader));
    let region = agent.as_ref().ok().map(|a| a.region.clone());
    let (servers, rights, agent_clock, nodes) =
        tokio::join!(doctor.servers(region), doctor.rights(&agent), doctor.agent_clock(), doctor.nodes());
    checks.push(servers);
    checks.extend(rights);
    checks.push(agent_clock);
    checks.extend(nodes);
    Report::new(at, nomad.address(), checks)
}

/// Whether somebody told the controllers to kill nobody.
pub fn kill_clocks(paused: Option<&By>) -> Check {
    let Some(by) = paused else { return Check::ok("kill clocks", "not paused") };
    let why = by.reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
    let found = format!("paused by {} at {}{why}: no task is killed", by.actor, by.at);
    Check::failed("kill clocks", found, "curfew kind resume kill")
}

fn led(leader: Result<String, Why>) -> Check {
    match leader {
        Ok(leader) => Check::ok("leader", leader),
        Err(Why::Nomad(Error::NoLeader { body, .. })) => Check::failed(
            "leader",
            format!("none: {body}. Nothing can be stopped or submitted until there is one"),
            "start the missing servers (see bootstrap_expect and `nomad server members`)",
        ),
        Err(why) => Check::not_checked("leader", why.text()),
    }
}

impl Doctor<'_> {
    /// Address and TLS. One of them has failed when no Nomad answered.
    fn connection(&self, leader: &Result<String, Why>, agent: &Result<AgentSelf, Why>) -> Vec<Check> {
        let address = self.nomad.address();
        let why = match (leader, agent) {
            (Err(why), Err(other)) if !why.answered() && !other.answered() => why,
            _ => return vec![Check::ok("address", format!("{address} answers")), self.tls()],
        };
        if matches!(why, Why::Nomad(e) if e.is_tls()) {
            let reached = Check::ok("address", format!("{address} takes connections"));
            return vec![reached, Check::failed("tls", why.text(), format!("mend one of these: {}", self.tls_settings()))];
        }
        let remedy = match why {
            Why::Nomad(Error::Timeout { .. }) | Why::Late => "check that agent's log, and the way to it",
            _ => "set NOMAD_ADDR to the HTTP address of a Nomad server, as in https://nomad.example:4646",
        };
        vec![Check::failed("address", why.text(), remedy), Check::not_checked("tls", "no answer from Nomad")]
    }

    fn tls(&self) -> Check {
        if self.nomad.is_https() {
            return Check::ok("tls", format!("on; {}", self.tls_settings()));
        }
        if self.nomad.is_local() {
            return Check::ok("tls", "off; nothing leaves this machine on its way to the agent");
        }
        let token = if self.nomad.config().token.is_some() { "the token and " } else { "" };
        Check::warning(
            "tls",
            format!("off: {token}every SIGKILL can be read and forged on the way"),
            "tls { http = true } in Nomad's configuration, NOMAD_ADDR=https://… and NOMAD_CACERT here",
        )
    }

    /// Which files and names are in use.
    fn tls_settings(&self) -> String {
        let c = self.nomad.config();
        let file = |name: &str, path: &Option<std::path::PathBuf>, without: &str| match path {
            Some(path) => format!("{name} is {}", path.display()),
            None => format!("{name} is not set{without}"),
        };
        let name = match &c.tls_server_name {
            Some(name) => format!("NOMAD_TLS_SERVER_NAME is {name}"),
            None => "NOMAD_TLS_SERVER_NAME is not set".into(),
        };
        let ca = file("NOMAD_CACERT", &c.ca_cert, " (the system's CAs count)");
        format!("{ca}, {}, {name}", file("NOMAD_CLIENT_CERT", &c.client_cert, ""))
    }

    async fn servers(&self, region: Option<String>) -> Check {
        const NAME: &str = "servers";
        let mut servers = match ask(self.nomad.servers()).await {
            Ok(servers) => servers,
            Err(why) => return Check::not_checked(NAME, why.text()),
        };
        let region = self.nomad.config().region.clone().or(region);
        servers.retain(|s| s.status != "left" && region.as_ref().is_none_or(|r| *r == s.region));
        let versions: Vec<_> = servers.iter().map(|s| (s.name.clone(), s.version.clone())).collect();
        let check = doctor::versions(NAME, "server", &versions);
        let away: Vec<_> = servers.into_iter().filter(|s| s.status == "failed").map(|s| s.name).collect();
        if check.verdict != Verdict::Ok || away.is_empty() {
            return check;
        }
        let found = format!("{}; its peers do not reach {}", check.found, doctor::names(away));
        Check::warning(NAME, found, "start it again, or `nomad server force-leave` it when it is gone for good")
    }

    /// The clock of the agent that answers. Other servers' cannot be asked for through it.
    async fn agent_clock(&self) -> Check {
        const NAME: &str = "agent clock";
        let sent = self.clock.now();
        let shown = ask(self.nomad.agent_clock()).await;
        let skew = |shown: Timestamp| Skew::of(shown, DATE_AGE, sent, self.clock.now());
        match shown {
            Ok(Some(shown)) => self.in_step(NAME, skew(shown)),
            Ok(None) => Check::not_checked(NAME, "its answer does not say what time it is"),
            Err(why) => Check::not_checked(NAME, why.text()),
        }
    }

    fn in_step(&self, name: &str, skew: Skew) -> Check {
        let off = doctor::ahead_or_behind(skew.sure());
        match skew.verdict(self.shortest_grace()) {
            Verdict::Ok => Check::ok(name, "in step with this machine's"),
            Verdict::Failed => Check::failed(name, format!("at least {off}: {}", self.too_far()), NTP),
            _ => Check::warning(name, format!("at least {off}"), NTP),
        }
    }

    /// A clock that is off by this much can take the whole of somebody's time.
    fn shortest_grace(&self) -> Duration {
        self.config.job_stop_timeout.min(self.config.poststop_timeout)
    }

    fn too_far(&self) -> String {
        format!("no less than the shortest grace, {}", duration::format(self.shortest_grace()))
    }
}

const NTP: &str =
    "keep the machines' clocks in step (NTP): a client's clock that is behind shortens every grace there by as much";

#[cfg(test)]
mod tests;
