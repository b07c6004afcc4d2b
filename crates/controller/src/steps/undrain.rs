//! Undrain: live drains of these nodes are cancelled, and what a Curfew drain made ineligible takes allocations again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use curfew_core::audit::Action;
use curfew_core::drain::{NodeOutcome, NodeRef, NodeState};
use curfew_core::operation::{By, Intervention, Kind, Operation, Outcome, State};
use curfew_core::{NodeId, OpId};
use curfew_store::{StepResult, StoreError};
use serde_json::json;

use super::drain_node::others;
use super::{Done, Stopping, Tools};
use crate::error::chain;

/// How soon it looks again whether what it cancelled is over.
const LOOK: Duration = Duration::from_millis(500);

impl Tools {
    pub(super) async fn undrain(&self, op: &Operation, nodes: &[NodeRef], all: bool) -> Result<Done, Stopping> {
        if op.cancel.is_some() {
            return Ok(Done {
                result: self.result(op, State::Cancelled),
                audit: vec![self.entry(op, Action::Cancelled, json!({}))],
            });
        }
        let waiting = match self.cancel_drains(op, nodes).await {
            Ok(waiting) => waiting,
            Err(e) => return Ok(self.retry(op, chain(&e), false)),
        };
        if let Some(id) = waiting.cancelled {
            let why = format!("drain {id}, which was cancelled, to end");
            return Ok(Done { result: self.waiting(op, self.clock.now() + LOOK, why), audit: vec![] });
        }
        let (mut outcomes, mut audit) = (Vec::new(), Vec::new());
        for node in nodes {
            let left = |why: String| NodeOutcome { waiting_for: Some(why), ..NodeOutcome::nothing(node, NodeState::LeftAlone) };
            if let Some(holder) = waiting.part_of.get(&node.id) {
                let why = format!("its turn in operation {holder} has not come; cancel that one, or undrain all of its nodes");
                outcomes.push(left(why));
                continue;
            }
            let seen = match self.read(self.nomad.node(&node.id)).await? {
                Ok(Some(n)) => n.stub,
                Ok(None) => {
                    outcomes.push(left("it is no longer in Nomad".into()));
                    continue;
                }
                Err(e) => return Ok(self.retry(op, chain(&e), false)),
            };
            let ours = seen.last_drain.as_ref().and_then(|d| d.curfew.as_ref());
            let foreign = match (&seen.last_drain, ours) {
                _ if all || (seen.eligible && !seen.draining) => None,
                (Some(d), None) if seen.draining => Some(others(&seen.name, &d.meta)),
                (_, None) => Some("somebody else made it ineligible; give it back with --all".to_owned()),
                (_, Some(meta)) if !meta.was_eligible => {
                    Some("it took no allocations before it was drained; give it back with --all".to_owned())
                }
                _ => None,
            };
            if let Some(why) = foreign {
                outcomes.push(left(why));
                continue;
            }
            if seen.draining || !seen.eligible {
                if let Err(e) = self.change(self.nomad.undrain_node(&node.id, true)).await? {
                    let unknown = e.outcome_unknown();
                    return Ok(self.retry(op, chain(&e), unknown));
                }
                audit.push(self.entry(op, Action::NodeEligible, json!({ "node": node.name })));
            }
            outcomes.push(NodeOutcome::nothing(node, NodeState::Eligible));
        }
        let count = |state| outcomes.iter().filter(|n| n.state == state).count();
        let detail = json!({ "eligible": count(NodeState::Eligible), "left_alone": count(NodeState::LeftAlone) });
        audit.push(self.entry(op, Action::Succeeded, detail));
        let outcome = Some(Outcome { nodes: outcomes, ..Outcome::default() });
        Ok(Done { result: StepResult { outcome, ..self.result(op, State::Succeeded) }, audit })
    }

    /// Cancels what drains these nodes.
    async fn cancel_drains(&self, op: &Operation, nodes: &[NodeRef]) -> Result<Waiting, StoreError> {
        let mine: HashSet<&NodeId> = nodes.iter().map(|n| &n.id).collect();
        let claims = self.store.claims().await?;
        let mut of_holder: HashMap<OpId, Vec<NodeId>> = HashMap::new();
        for (node, holder) in claims {
            of_holder.entry(holder).or_default().push(node);
        }
        let mut waiting = Waiting { cancelled: None, part_of: HashMap::new() };
        for (holder, claimed) in of_holder {
            let wanted: Vec<&NodeId> = claimed.iter().filter(|n| mine.contains(n)).collect();
            if wanted.is_empty() {
                continue;
            }
            if wanted.len() == claimed.len() {
                waiting.cancelled = Some(self.cancel_one(op, holder).await?);
                continue;
            }
            // A part of a set: the others go on.
            let children = self.live_children(holder).await?;
            let set = self.store.operation(holder).await?.and_then(|o| o.progress.set).unwrap_or_default();
            for node in wanted {
                let target = |o: &Operation| o.kind() == Kind::DrainNode && o.request.target().key() == format!("node:{node}");
                let over = set.nodes.iter().any(|n| n.node.id == *node && n.state.is_over());
                match children.iter().find(|c| target(c)) {
                    Some(child) => waiting.cancelled = Some(self.cancel_one(op, child.id).await?),
                    None if over => {}
                    None => {
                        waiting.part_of.insert(node.clone(), holder);
                    }
                }
            }
        }
        Ok(waiting)
    }

    async fn cancel_one(&self, op: &Operation, id: OpId) -> Result<OpId, StoreError> {
        let by = By { actor: op.actor.clone(), reason: Some(format!("undrain, operation {}", op.id)), at: self.clock.now() };
        match self.store.intervene(id, Intervention::Cancel, by).await {
            // It ended just now.
            Ok(_) | Err(StoreError::Refused { .. }) => Ok(id),
            Err(e) => Err(e),
        }
    }
}

struct Waiting {
    /// One that lives yet.
    cancelled: Option<OpId>,
    /// Nodes that a set holds and has not begun with.
    part_of: HashMap<NodeId, OpId>,
}
