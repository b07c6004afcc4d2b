//! Deployments, and their progress deadline, which Curfew keeps: Nomad's own had to be set above the raised `kill_timeout`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::spec::JobSpec;
use crate::{JobKey, Timestamp};

/// A deployment as Nomad shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    pub id: String,
    pub key: JobKey,
    pub job_version: u64,
    pub status: DeploymentStatus,
    /// In Nomad's words.
    pub description: String,
    pub create_index: u64,
    pub modify_index: u64,
    pub modified_at: Option<Timestamp>,
    pub groups: BTreeMap<String, GroupProgress>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeploymentStatus {
    Running,
    /// Waits for its operator: it cannot fail meanwhile.
    Paused,
    Successful,
    Failed,
    /// A newer version of its job took its place, or the job was stopped.
    Cancelled,
    /// Another region's turn.
    Other,
}

impl DeploymentStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Successful => "successful",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Other => "waiting",
        }
    }
    pub fn is_over(self) -> bool {
        matches!(self, Self::Successful | Self::Failed | Self::Cancelled)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupProgress {
    /// Nomad's deadline, after the submit transform.
    pub progress_deadline: Duration,
    /// The last progress plus Nomad's deadline.
    pub require_progress_by: Option<Timestamp>,
    pub desired: u64,
    pub placed: u64,
    pub healthy: u64,
    pub unhealthy: u64,
    pub canaries: u64,
    pub promoted: bool,
    pub auto_promote: bool,
}

impl GroupProgress {
    /// Nomad does not fail a deployment for such a group when a deadline passes: it has what it needs, or its canaries are
    /// healthy and wait for somebody's promotion.
    fn content(&self) -> bool {
        let needed = if self.canaries > 0 && !self.promoted { self.canaries } else { self.desired };
        self.healthy >= needed
    }

    /// Its canaries are healthy, and nobody but a person goes on from there.
    pub fn waits_for_promotion(&self) -> bool {
        self.canaries > 0 && !self.promoted && !self.auto_promote && self.healthy >= self.canaries
    }
}

/// When the author's `progress_deadline` passes without progress, as Nomad counts it: from the last allocation that became
/// healthy, the strictest group first. Nothing when no group has one or every group is content.
pub fn author_deadline(d: &Deployment, spec: &JobSpec) -> Option<Timestamp> {
    if d.status != DeploymentStatus::Running || !spec.managed {
        return None;
    }
    let of_group = |(name, g): (&String, &GroupProgress)| {
        let author = spec.groups.get(name)?.progress_deadline?;
        let last_progress = g.require_progress_by? - g.progress_deadline;
        (!g.content()).then(|| last_progress + author)
    };
    d.groups.iter().filter_map(of_group).min()
}

/// When a group fails its deployment without progress, whoever keeps that clock: the author's deadline where Curfew keeps it, else Nomad's.
pub fn group_deadline(d: &Deployment, name: &str, spec: Option<&JobSpec>) -> Option<Timestamp> {
    let g = d.groups.get(name).filter(|g| d.status == DeploymentStatus::Running && !g.content())?;
    let by = g.require_progress_by?;
    let author = spec.filter(|s| s.managed).and_then(|s| s.groups.get(name)?.progress_deadline);
    Some(author.map_or(by, |author| by - g.progress_deadline + author))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_millis(s * 1000)
    }

    fn spec() -> JobSpec {
        JobSpec::from_json(
            &serde_json::json!({ "ID": "j", "Type": "service", "Meta": { "curfew_managed": "true" }, "TaskGroups": [
            { "Name": "g", "Meta": { "curfew_progress_deadline": "1m" }, "Tasks": [] }, { "Name": "other", "Tasks": [] },
        ] }),
        )
    }

    fn group() -> GroupProgress {
        let hours = |h: u64| Duration::from_secs(h * 3600);
        GroupProgress {
            progress_deadline: hours(25),
            require_progress_by: Some(at(100) + hours(25)),
            desired: 2,
            placed: 1,
            healthy: 1,
            unhealthy: 0,
            canaries: 0,
            promoted: false,
            auto_promote: false,
        }
    }

    fn deployment(g: GroupProgress) -> Deployment {
        let key = JobKey::new("default", "j");
        Deployment {
            id: "d".into(),
            key,
            job_version: 1,
            status: DeploymentStatus::Running,
            description: String::new(),
            create_index: 1,
            modify_index: 1,
            modified_at: None,
            groups: [("g".to_owned(), g)].into(),
        }
    }

    #[test]
    fn it_counts_from_the_last_progress() {
        assert_eq!(author_deadline(&deployment(group()), &spec()), Some(at(160)));
    }

    #[test]
    fn a_group_that_has_what_it_needs_or_waits_for_promotion_fails_nothing() {
        for g in [
            GroupProgress { healthy: 2, ..group() },
            GroupProgress { canaries: 1, ..group() },
            GroupProgress { require_progress_by: None, ..group() },
        ] {
            assert_eq!(author_deadline(&deployment(g.clone()), &spec()), None, "{g:?}");
        }
        let promoted = GroupProgress { canaries: 1, promoted: true, ..group() };
        assert_eq!(author_deadline(&deployment(promoted), &spec()), Some(at(160)));
    }

    #[test]
    fn a_paused_deployment_and_an_unmanaged_job_are_left_alone() {
        assert_eq!(author_deadline(&Deployment { status: DeploymentStatus::Paused, ..deployment(group()) }, &spec()), None);
        assert_eq!(author_deadline(&deployment(group()), &JobSpec { managed: false, ..spec() }), None);
        let without = Deployment { groups: [("other".to_owned(), group())].into(), ..deployment(group()) };
        assert_eq!(author_deadline(&without, &spec()), None, "its author's deadline was not changed");
    }
}
