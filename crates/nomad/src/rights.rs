//! What the token may do, found out by asking for it in ways that change nothing.
//!
//! Each question is one that Nomad refuses for lack of permission before it looks at anything else, and that cannot be carried
//! out by whoever has the permission: it names what does not exist, or what Nomad never takes.

use curfew_core::doctor::minor;
use curfew_core::{AllocId, JobKey};
use serde_json::json;

use crate::client::{Call, Nomad};
use crate::error::Error;
use crate::events::StreamEnd;
use crate::filter::Filter;
use crate::route::Route;

/// What Curfew needs (design fact 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    SubmitJob,
    ReadJob,
    /// In every namespace that there is: what is left out of a list is left out without a word.
    ReadEverywhere,
    ListJobs,
    AllocLifecycle,
    DispatchJob,
    NodeRead,
    NodeWrite,
    AgentRead,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum May {
    Yes,
    No,
    /// Nomad refuses it for another reason. Its words.
    Refused(String),
    /// It cannot be told, and why.
    NotTold(&'static str),
}

/// No job, node or task has such a name: Nomad refuses a slash in a task's, and gives out random ids.
const NOBODY: &str = "curfew-doctor-asks/nothing";
const NO_NAMESPACE: &str = "curfew-doctor-asks";
const NO_NODE: &str = "00000000-0000-0000-0000-000000000000";
/// No index of Nomad's comes that far.
const NO_INDEX: u64 = (1 << 53) - 1;

impl Right {
    pub const ALL: [Self; 9] = [
        Self::SubmitJob,
        Self::ReadJob,
        Self::ReadEverywhere,
        Self::ListJobs,
        Self::AllocLifecycle,
        Self::DispatchJob,
        Self::NodeRead,
        Self::NodeWrite,
        Self::AgentRead,
    ];
}

impl Nomad {
    /// Whether the token has a right: for jobs in the configured namespace, for `alloc-lifecycle` in that of any running allocation.
    pub async fn may(&self, right: Right) -> Result<May, Error> {
        let key = JobKey::new(self.config().namespace.as_str(), NOBODY);
        let path = [key.job.as_str()];
        let namespaced = |route| Call::new(route, &path).namespace(&key.namespace);
        let asked = match right {
            // A plan would not do: from Nomad 2.0 it has a capability of its own. Nobody can register at that index.
            Right::SubmitJob => self.register(&key, &never(&key), Some(NO_INDEX)).await.map(drop),
            Right::ReadJob => self.job(&key).await.map(drop),
            Right::ReadEverywhere => return self.may_read_everywhere().await,
            Right::ListJobs => {
                let call = Call::new(Route::Jobs, &[]).namespace(&key.namespace).query("per_page", "1");
                self.send(call).await.map(drop)
            }
            Right::AllocLifecycle => match self.any_running().await {
                // Nomad looks for the allocation before it looks at the token, so it takes one that is there.
                Ok(Some(alloc)) => self.signal_nobody(&alloc).await,
                Ok(None) | Err(Error::PermissionDenied { .. }) => {
                    return Ok(May::NotTold("the token sees no running allocation to try it on"));
                }
                Err(e) => Err(e),
            },
            Right::DispatchJob => self.send(namespaced(Route::DispatchJob).json(&json!({}))).await.map(drop),
            Right::NodeRead => self.send(Call::new(Route::Nodes, &[]).query("per_page", "1")).await.map(drop),
            Right::NodeWrite => {
                let body = json!({ "NodeID": NO_NODE, "Eligibility": "curfew-doctor" });
                self.send(Call::new(Route::NodeEligibility, &[NO_NODE]).json(&body)).await.map(drop)
            }
            Right::AgentRead => self.agent_self().await.map(drop),
        };
        match asked {
            Ok(()) => Ok(May::Yes),
            Err(Error::PermissionDenied { body, .. }) => Ok(match body.as_str() {
                // A token that Nomad does not know is told either.
                "Permission denied" | "ACL token not found" => May::No,
                _ => May::Refused(body),
            }),
            Err(e) => past_the_token(e),
        }
    }

    /// The event stream of all namespaces wants it in each of them, and node read. Before 1.10 any one may open it: there only a
    /// token for every name there could be is told apart.
    async fn may_read_everywhere(&self) -> Result<May, Error> {
        let first = match self.events(None).await {
            Ok(mut stream) => stream.next().await.map(drop),
            Err(end) => Err(end),
        };
        match first {
            Ok(()) => {}
            Err(end) if end.is_denied() => return Ok(May::No),
            Err(StreamEnd::Refused(e) | StreamEnd::Broken(e)) => return Err(e),
            Err(_) => return Ok(May::NotTold("the event stream ended before it told anything")),
        }
        match self.job(&JobKey::new(NO_NAMESPACE, NOBODY)).await {
            Ok(_) => Ok(May::Yes),
            Err(Error::PermissionDenied { .. }) if minor(&self.version().await?).is_some_and(|v| v >= (1, 10)) => Ok(May::Yes),
            Err(Error::PermissionDenied { .. }) => Ok(May::NotTold(
                "a Nomad before 1.10 does not tell which namespaces it hides from a token without namespace \"*\"",
            )),
            Err(e) => Err(e),
        }
    }

    async fn any_running(&self) -> Result<Option<AllocId>, Error> {
        let page = self.allocations(Some(Filter::running()), "*", 1).next().await?.unwrap_or_default();
        Ok(page.allocations.into_iter().next().map(|a| a.id))
    }

    /// A signal that means nothing, to a task that no job can have.
    async fn signal_nobody(&self, alloc: &AllocId) -> Result<(), Error> {
        let body = json!({ "Signal": "SIGCONT", "Task": NOBODY });
        let call = Call::new(Route::Signal, &[alloc.as_str()]).json(&body);
        self.send(call.timeout(self.config().signal_timeout)).await.map(drop)
    }
}

/// The words of a refusal that comes after the token was found good, as it was meant to. Anything else proves nothing.
fn past_the_token(e: Error) -> Result<May, Error> {
    const TEXTS: [&str; 5] = [
        "Enforcing job modify index",
        "parameterized job not found",
        "Task not found",
        "invalid scheduling eligibility",
        "node not found",
    ];
    if e.body().is_some_and(|b| TEXTS.iter().any(|t| b.contains(t))) { Ok(May::Yes) } else { Err(e) }
}

/// A job that runs nothing, even if it were registered: it waits to be dispatched.
fn never(key: &JobKey) -> serde_json::Value {
    let task = json!({ "Name": "nothing", "Driver": "raw_exec", "Config": { "command": "/bin/true" } });
    json!({
        "ID": key.job.as_str(), "Name": key.job.as_str(), "Namespace": key.namespace.as_str(), "Type": "batch", "Datacenters": ["*"],
        "ParameterizedJob": { "Payload": "optional" }, "TaskGroups": [{ "Name": "nothing", "Count": 1, "Tasks": [task] }],
    })
}
