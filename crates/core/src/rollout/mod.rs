//! Rollouts: what becomes of a registration, from its deployment (or without one) to an end. See docs/ARCHITECTURE.md.
//!
//! ```text
//!  registered ──▶ its deployment ──▶ successful, the old ones gone ──▶ deployed
//!                     ├─ failed ──▶ Nomad rolls back ──▶ that deployment successful ──▶ reverted
//!                     │                └─ nothing to go back to, or it fails too ──▶ failed
//!                     ├─ cancelled: a newer version, or a stop ──▶ superseded
//!                     └─ no place, and no deadline to fail by ──▶ stalled
//! ```

mod follow;
#[cfg(test)]
mod tests;
mod timeline;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::deployment::DeploymentStatus;
use crate::{AllocId, TaskName, Timestamp, duration};

pub use follow::{Seen, Verdict, Version, follow};

/// How a rollout ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The registered version runs, and nothing of an older one.
    Deployed,
    /// It failed, and Nomad went back to an older version, which runs.
    Reverted,
    Failed,
    /// Nothing moves any more and no deadline will end it.
    Stalled,
    /// A newer version, or a stop of the job, came before its end.
    Superseded,
}

impl End {
    pub const ALL: [End; 5] = [End::Deployed, End::Reverted, End::Failed, End::Stalled, End::Superseded];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployed => "deployed",
            Self::Reverted => "reverted",
            Self::Failed => "failed",
            Self::Stalled => "stalled",
            Self::Superseded => "superseded",
        }
    }
}

/// Why Nomad called a deployment failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailedBy {
    /// Its author's deadline passed without progress, whoever kept it.
    ProgressDeadline,
    /// An allocation is unhealthy and nothing will mend it.
    Unhealthy,
    /// Somebody failed it.
    Hand,
}

/// How far a rollout has come: `outcome.rollout` of its operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolloutView {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    /// The job's version that was registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Nomad had exactly this already.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unchanged: bool,
    /// The older version that Nomad goes, or went, back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reverted_to: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_by: Option<FailedBy>,
    /// The registration's own, then the rollback's.
    #[serde(default)]
    pub deployments: Vec<DeploymentView>,
    #[serde(default)]
    pub groups: BTreeMap<String, GroupView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeploymentView {
    pub id: String,
    pub version: u64,
    pub status: DeploymentStatus,
    /// In Nomad's words.
    pub description: String,
    /// Made by Nomad to go back.
    pub rollback: bool,
    pub seen_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
}

/// One group: counts of the deployment that is followed now, and what happened since the registration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupView {
    pub desired: u64,
    pub placed: u64,
    pub healthy: u64,
    pub unhealthy: u64,
    pub canaries: u64,
    pub promoted: bool,
    /// Allocations of other versions that were told to end and live.
    pub leaving: u64,
    /// Without progress until then the deployment fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unplaced: Option<Unplaced>,
    /// In the order of time.
    #[serde(default)]
    pub timeline: Vec<Happening>,
    /// How many of the oldest were left out of the timeline.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// One thing that happened to an allocation, or to a task of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Happening {
    pub at: Timestamp,
    pub alloc: AllocId,
    pub node: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskName>,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum What {
    Placed {
        canary: bool,
    },
    Started,
    Healthy,
    Unhealthy {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// It ended although nobody told it to.
    Exited {
        exit_code: i64,
        signal: i64,
    },
    /// Its policy starts it again, the `number`th time of `of` within `within`. More than `of`: they are used up, and it waits for
    /// the end of that time.
    Restarting {
        number: u64,
        of: u64,
        #[serde(with = "duration::text")]
        #[schema(value_type = duration::Text)]
        within: Duration,
        next_at: Timestamp,
    },
    StartFailed {
        why: String,
    },
    /// It is not started again.
    GaveUp {
        why: String,
    },
    /// It is replaced, or no longer wanted: its SIGTERM, and its clock.
    ToldToEnd {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kill_at: Option<Timestamp>,
    },
    Sigkill,
    Ended {
        exit_code: i64,
        signal: i64,
    },
}

impl What {
    /// One thing of a kind happens to a task at one time.
    fn kind(&self) -> u8 {
        match self {
            Self::Placed { .. } => 0,
            Self::Started => 1,
            Self::Healthy => 2,
            Self::Unhealthy { .. } => 3,
            Self::Exited { .. } => 4,
            Self::Restarting { .. } => 5,
            Self::StartFailed { .. } => 6,
            Self::GaveUp { .. } => 7,
            Self::ToldToEnd { .. } => 8,
            Self::Sigkill => 9,
            Self::Ended { .. } => 10,
        }
    }
}

/// Why allocations of a group found no place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Unplaced {
    pub allocations: u64,
    /// How many nodes of its datacenters and its pool were looked at.
    pub nodes: u64,
    /// Those of them that a constraint rules out, and those that have no room.
    pub filtered: u64,
    pub exhausted: u64,
    /// Each constraint with the number of nodes that it ruled out.
    pub constraints: BTreeMap<String, u64>,
    /// What they have too little of, with the number of nodes.
    pub short_of: BTreeMap<String, u64>,
}

/// `1 node`, `3 nodes`.
pub(crate) fn count(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let have = if self.allocations == 1 { "has" } else { "have" };
        write!(f, "{} {have} no place", count(self.allocations, "allocation"))?;
        if self.nodes == 0 {
            return f.write_str(": there is no eligible node in its datacenters and its node pool");
        }
        write!(f, " on {}", count(self.nodes, "node"))?;
        let constraints = self.constraints.iter().map(|(c, n)| format!("constraint \"{c}\" rules out {}", count(*n, "node")));
        let short = self.short_of.iter().map(|(what, n)| format!("{} too little {what}", has(*n)));
        for (i, why) in constraints.chain(short).enumerate() {
            write!(f, "{}{why}", if i == 0 { ": " } else { "; " })?;
        }
        Ok(())
    }
}

fn has(n: u64) -> String {
    if n == 1 { "1 node has".into() } else { format!("{n} nodes have") }
}
