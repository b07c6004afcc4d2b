//! What a look at a job decides. A plan changes nothing; `apply` does, in one transaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::feasible::Failures;
use crate::job::Job;
use crate::state::{Alloc, ClientStatus, Deployment, Eval, GroupUpdates, Node, Reschedule};

pub(crate) const NOT_NEEDED: &str = "alloc not needed due to job update";
pub(crate) const MIGRATING: &str = "alloc is being migrated";
pub(crate) const UPDATING: &str = "alloc is being updated due to job update";
pub(crate) const LOST: &str = "alloc is lost since its node is down";
pub(crate) const NODE_TAINTED: &str = "alloc not needed as node is tainted";
pub(crate) const RESCHEDULED: &str = "alloc was rescheduled because it failed";
pub(crate) const UNKNOWN: &str = "alloc is unknown since its node is disconnected";

#[derive(Debug)]
pub(crate) struct Stop {
    pub alloc: Arc<Alloc>,
    pub description: &'static str,
    /// The server's own word on the client's status, for lost ones.
    pub client: Option<ClientStatus>,
}

#[derive(Debug)]
pub(crate) struct Place {
    pub group: usize,
    pub slot: usize,
    pub node: Arc<Node>,
    pub previous: Option<Arc<Alloc>>,
    pub reschedules: Vec<Reschedule>,
    pub canary: bool,
    pub in_deployment: bool,
    pub nodes_in_dc: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub job: Option<Arc<Job>>,
    pub stops: Vec<Stop>,
    pub places: Vec<Place>,
    /// Allocations that go on under the new version of their job.
    pub in_place: Vec<Arc<Alloc>>,
    /// Disconnected ones, with their follow-up evaluation.
    pub unknown: Vec<(Arc<Alloc>, String)>,
    pub followups: Vec<Eval>,
    /// Which failed allocation waits for which follow-up.
    pub waiting: Vec<(Arc<Alloc>, String)>,
    pub deployment: Option<Deployment>,
    pub deployment_changes: Vec<Deployment>,
    pub updates: BTreeMap<String, GroupUpdates>,
    pub queued: BTreeMap<String, usize>,
    pub failures: Failures,
}

impl Plan {
    pub(crate) fn is_empty(&self) -> bool {
        self.stops.is_empty()
            && self.places.is_empty()
            && self.in_place.is_empty()
            && self.unknown.is_empty()
            && self.followups.is_empty()
            && self.deployment.is_none()
            && self.deployment_changes.is_empty()
    }
}
