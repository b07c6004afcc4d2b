//! What an agent says about itself.

use std::collections::BTreeMap;
use std::time::Duration;

use curfew_core::{Timestamp, duration};
use serde::Deserialize;
use serde_json::Value;

use crate::client::{Call, Nomad};
use crate::error::Error;
use crate::route::Route;

/// Nomad's own `max_kill_timeout` when the agent's configuration names none (design fact 3).
const DEFAULT_MAX_KILL_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentSelf {
    pub name: String,
    pub version: String,
    pub region: String,
    pub datacenter: String,
    pub acl_enabled: bool,
    /// `None` when the agent is not a client.
    pub max_kill_timeout: Option<Duration>,
}

/// A server as its peers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub name: String,
    pub region: String,
    pub version: String,
    /// `alive`, `leaving`, `left` or `failed`.
    pub status: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Members {
    members: Option<Vec<Member>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Member {
    name: String,
    status: String,
    tags: Option<BTreeMap<String, String>>,
}

impl Nomad {
    /// The agent at the configured address.
    pub async fn agent_self(&self) -> Result<AgentSelf, Error> {
        self.ask_agent(None).await
    }

    /// The public keys with which Nomad signs workload identities (a JWK set).
    pub async fn workload_keys(&self) -> Result<Value, Error> {
        self.send(Call::new(Route::WorkloadKeys, &[])).await?.json()
    }

    /// The longest `kill_timeout` that the client agent at this address grants: `host:port` as a node's `HTTPAddr` has it, with
    /// the scheme of the configured address. `None` when that agent is no client.
    pub async fn agent_max_kill_timeout(&self, http_addr: &str) -> Result<Option<Duration>, Error> {
        let base = if http_addr.contains("://") { http_addr.to_owned() } else { format!("{}://{http_addr}", self.scheme()) };
        Ok(self.ask_agent(Some(base)).await?.max_kill_timeout)
    }

    async fn ask_agent(&self, base: Option<String>) -> Result<AgentSelf, Error> {
        let answer = self.send(Call::new(Route::AgentSelf, &[]).at_agent(base)).await?;
        let body: Value = answer.json()?;
        let config = &body["config"];
        let Some(version) = config["Version"]["Version"].as_str() else {
            return Err(answer.unlike_nomad("it does not say which Nomad it is"));
        };
        let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
        let client = &config["Client"];
        let max_kill_timeout = match (client["Enabled"].as_bool().unwrap_or(false), &client["MaxKillTimeout"]) {
            (false, _) => None,
            (true, Value::String(s)) if !s.is_empty() => {
                Some(duration::parse(s).map_err(|e| answer.unlike_nomad(&format!("MaxKillTimeout: {e}")))?)
            }
            (true, Value::Number(ns)) => Some(Duration::from_nanos(ns.as_u64().unwrap_or(0))),
            (true, _) => Some(DEFAULT_MAX_KILL_TIMEOUT),
        };
        Ok(AgentSelf {
            name: text(&config["NodeName"]),
            version: version.to_owned(),
            region: text(&config["Region"]),
            datacenter: text(&config["Datacenter"]),
            acl_enabled: config["ACL"]["Enabled"].as_bool().unwrap_or(false),
            max_kill_timeout,
        })
    }

    /// The leader's RPC address. [`Error::NoLeader`] when there is none.
    pub async fn leader(&self) -> Result<String, Error> {
        let answer = self.send(Call::new(Route::Leader, &[])).await?;
        let leader: String = answer.json()?;
        if leader.is_empty() {
            return Err(Error::NoLeader { asked: answer.asked.clone(), status: answer.status, body: "No cluster leader".into() });
        }
        Ok(leader)
    }

    /// What time it is at the agent that answers, by its HTTP header: cut to the second. `None` when it does not say.
    pub async fn agent_clock(&self) -> Result<Option<Timestamp>, Error> {
        let answer = self.send(Call::new(Route::Leader, &[])).await?;
        let date = answer.header("date").and_then(|d| jiff::fmt::rfc2822::parse(d).ok());
        Ok(date.map(|d| Timestamp::from_micros(d.timestamp().as_microsecond())))
    }

    /// The servers, of all regions, as the agent that answers sees them.
    pub async fn servers(&self) -> Result<Vec<Server>, Error> {
        let answer: Members = self.send(Call::new(Route::Members, &[])).await?.json()?;
        let tag = |m: &Member, name: &str| m.tags.as_ref().and_then(|t| t.get(name)).cloned().unwrap_or_default();
        let server = |m: Member| Server { version: tag(&m, "build"), region: tag(&m, "region"), name: m.name, status: m.status };
        Ok(answer.members.unwrap_or_default().into_iter().map(server).collect())
    }

    /// Nomad's version at the configured address, as in `1.10.5`.
    pub async fn version(&self) -> Result<String, Error> {
        Ok(self.agent_self().await?.version)
    }
}
