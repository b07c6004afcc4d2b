//! The gc's decisions: what is left over, by which evidence, and what may be done about it.
//!
//! ```text
//!   evidence ──▶ verdict ──▶ report
//!                   │ act: read anew, the same verdict again, no longer the same: leave it
//!                   ▼
//!        KillOrder (core::clock)   a live task that was told to end, past its clock and the gc's slack
//!        PurgeOrder                a stopped job, every allocation over by its task states
//! ```
//!
//! A gc runs without memory and often without a database. What Nomad does not show it does not assume: where a request may have
//! left more time than Nomad shows, a grace is added; where an answer is missing, nothing follows from it.

mod job;
mod node;
mod sightings;
#[cfg(test)]
mod tests;
mod told;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Namespace;
use crate::clock::Graces;

pub use job::{
    JobStatus, JobStub, Owner, ParentState, Purge, PurgeOrder, abandoned_child, never_placed, owner, purge, purge_when_dead,
};
pub use node::{NodeLeft, node_left};
pub use sightings::{SIGHTINGS, Sighting, Sightings};
pub use told::{KNOWN_SLACK, Knowledge, LiveStop, PastClock, may_be_told, past_clock};

/// Why something is left over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// A task that was told to end lives past its clock.
    PastClock,
    /// A managed job that no operation knows.
    Orphan,
    /// A child that lives on although its parent was stopped or is gone.
    ChildOfStoppedParent,
    /// A job that never found a place.
    NeverPlaced,
    /// A dead job, older than its retention.
    Purge,
    /// An operation whose worker is gone.
    ExpiredLease,
    /// A node that a drain of Curfew's left ineligible or draining.
    NodeLeft,
    /// Finished operations and audit rows older than their retention.
    Retention,
}

impl Verdict {
    pub const ALL: [Verdict; 8] = [
        Verdict::PastClock,
        Verdict::Orphan,
        Verdict::ChildOfStoppedParent,
        Verdict::NeverPlaced,
        Verdict::Purge,
        Verdict::ExpiredLease,
        Verdict::NodeLeft,
        Verdict::Retention,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::PastClock => "past_clock",
            Verdict::Orphan => "orphan",
            Verdict::ChildOfStoppedParent => "child_of_stopped_parent",
            Verdict::NeverPlaced => "never_placed",
            Verdict::Purge => "purge",
            Verdict::ExpiredLease => "expired_lease",
            Verdict::NodeLeft => "node_left",
            Verdict::Retention => "retention",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.as_str() == text)
    }
}

/// What is done about a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    Off,
    Report,
    Act,
}

impl Mode {
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Off => "off",
            Mode::Report => "report",
            Mode::Act => "act",
        }
    }
}

/// The mode of each verdict. What ends work that nobody told to end is only reported unless somebody says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes([Mode; Verdict::ALL.len()]);

impl Default for Modes {
    fn default() -> Self {
        Self(Verdict::ALL.map(|v| match v {
            Verdict::PastClock | Verdict::Purge | Verdict::ExpiredLease | Verdict::Retention => Mode::Act,
            Verdict::Orphan | Verdict::ChildOfStoppedParent | Verdict::NeverPlaced | Verdict::NodeLeft => Mode::Report,
        }))
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("\"{0}\" is not a verdict and its mode; write one as in orphan=report: {names}, each off, report or act", names = Verdict::ALL.map(Verdict::as_str).join(", "))]
pub struct BadMode(String);

impl Modes {
    pub fn of(&self, verdict: Verdict) -> Mode {
        self.0[verdict as usize]
    }

    /// `orphan=act` over what was there.
    pub fn set(&mut self, text: &str) -> Result<(), BadMode> {
        let bad = || BadMode(text.to_owned());
        let (verdict, mode) = text.split_once('=').ok_or_else(bad)?;
        let verdict = Verdict::parse(verdict.trim()).ok_or_else(bad)?;
        self.0[verdict as usize] =
            [Mode::Off, Mode::Report, Mode::Act].into_iter().find(|m| m.as_str() == mode.trim()).ok_or_else(bad)?;
        Ok(())
    }
}

/// How a pass judges.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub modes: Modes,
    /// More candidates of a verdict than this: none of it is acted on.
    pub cap: Option<usize>,
    /// On top of a clock that no database explains.
    pub grace: Duration,
    /// How long a dead job is kept.
    pub retention: Duration,
    /// How long a job may wait for a place.
    pub never_placed: Duration,
    /// How long the database keeps finished operations: it cannot know an older one.
    pub retention_operations: Duration,
    pub retention_audit: Duration,
    pub graces: Graces,
    /// Empty means all.
    pub namespaces: Vec<Namespace>,
}

impl Settings {
    pub fn covers(&self, namespace: &Namespace) -> bool {
        self.namespaces.is_empty() || self.namespaces.contains(namespace)
    }
}
