//! What people may do to an operation, and what each makes of its row. Pure, like the other rules.
//!
//! | | queued, waiting | running | paused | finished |
//! | --- | --- | --- | --- | --- |
//! | cancel | never begun: cancelled; else its next step ends it | the same, when its step has ended | as queued | refused |
//! | extend, kill-now | the demands, or a drain's deadline, give way to one instant | the same | the same | refused |
//! | retry | refused | refused | refused | queued, unless it succeeded |
//! | release | due now | the lease is taken away | refused | refused |
//! | pause | paused | paused when its step has ended | – | refused |
//! | resume | – | not paused after all | queued | refused |

use curfew_core::audit::{Action, AuditEntry};
use curfew_core::drain::{Moved, NodeProgress, NodeState};
use curfew_core::operation::{By, Demand, Intervention, Kind, Operation, Request, State, join, replace_until};
use curfew_core::{OpId, Timestamp};
use serde_json::{Map, Value, json};

use crate::{Result, StoreError};

/// `rival`: another live operation of the same kind and target, when the kind joins. `None`: it was so already.
pub(crate) fn intervene(op: &mut Operation, what: Intervention, by: &By, rival: Option<OpId>) -> Result<Option<AuditEntry>> {
    let id = op.id;
    let refuse = move |why: String| Err(StoreError::Refused { id, why });
    if op.state.is_finished() && what != Intervention::Retry {
        let asked = match what {
            Intervention::Cancel => "cancel",
            Intervention::ExtendBy(_) | Intervention::ExtendUntil(_) => "extend",
            Intervention::KillNow => "kill",
            Intervention::Release => "release",
            Intervention::Pause => "pause",
            Intervention::Resume | Intervention::Retry => "resume",
        };
        return refuse(format!("it is {} already: there is nothing left to {asked}", op.state.as_str()));
    }
    let mut detail = Map::new();
    let action = match what {
        Intervention::Cancel if op.cancel.is_some() => return Ok(None),
        Intervention::Cancel => cancel(op, by),
        Intervention::ExtendBy(_) if no_deadline(op) => {
            return refuse("it has no deadline that could be later; give it one by naming the instant: op extend --until".into());
        }
        Intervention::ExtendBy(longer) => {
            let until = op.deadline.map_or(by.at, |d| d.max(by.at)) + longer;
            set_until(op, until, by, &mut detail)?;
            Action::Extended
        }
        Intervention::ExtendUntil(until) if until <= by.at => {
            return refuse(format!("{until} has passed (it is {}); to end its tasks now, ask for that: op kill-now", by.at));
        }
        Intervention::ExtendUntil(until) => {
            set_until(op, until, by, &mut detail)?;
            Action::Extended
        }
        Intervention::KillNow => {
            set_until(op, by.at, by, &mut detail)?;
            Action::KillNow
        }
        Intervention::Retry => {
            retry(op, by, rival)?;
            Action::Retried
        }
        Intervention::Release => {
            release(op, by, &mut detail)?;
            Action::Released
        }
        Intervention::Pause if op.pause.is_some() => return Ok(None),
        Intervention::Pause => {
            op.pause = Some(by.clone());
            settle_pause(op);
            Action::Paused
        }
        Intervention::Resume if op.pause.is_none() && op.state != State::Paused => return Ok(None),
        Intervention::Resume => {
            unpause(op);
            Action::Resumed
        }
    };
    op.revision += 1;
    if op.state != State::Paused {
        op.run_at = op.run_at.min(by.at);
    }
    if let Some(reason) = &by.reason {
        detail.insert("reason".into(), json!(reason));
    }
    let detail = if detail.is_empty() { Value::Null } else { Value::Object(detail) };
    let (operation, actor) = (Some(op.id), by.actor.clone());
    Ok(Some(AuditEntry { at: by.at, operation, actor, action, alloc: None, task: None, detail }))
}

fn cancel(op: &mut Operation, by: &By) -> Action {
    let begun = op.lease.epoch > 0 || op.progress.unknown || op.progress.demands_sent > 0 || op.progress.sent_at.is_some();
    unpause(op);
    op.cancel = Some(by.clone());
    if begun {
        return Action::CancelAsked;
    }
    op.state = State::Cancelled;
    op.finished_at = Some(by.at);
    op.waiting_for = None;
    Action::Cancelled
}

fn no_deadline(op: &Operation) -> bool {
    match &op.request {
        Request::DrainNode { options, moved, .. } | Request::DrainDatacenter { options, moved, .. } => {
            options.no_deadline && moved.is_none()
        }
        _ => false,
    }
}

/// What an intervention on the drain of a set means for each of its children.
pub(crate) fn for_children(op: &Operation, what: Intervention) -> Option<Intervention> {
    let Request::DrainDatacenter { moved, .. } = &op.request else { return None };
    match what {
        Intervention::Cancel | Intervention::KillNow => Some(what),
        // All of them by the same instant.
        Intervention::ExtendBy(_) | Intervention::ExtendUntil(_) => moved.map(|m| Intervention::ExtendUntil(m.until)),
        Intervention::Retry | Intervention::Release | Intervention::Pause | Intervention::Resume => None,
    }
}

fn set_until(op: &mut Operation, until: Timestamp, by: &By, detail: &mut Map<String, Value>) -> Result<()> {
    match &mut op.request {
        Request::Stop { demands, .. } => {
            let all_sent = op.progress.demands_sent >= demands.len();
            replace_until(demands, until);
            op.progress.demands_sent = if all_sent { demands.len() } else { 0 };
        }
        Request::DrainNode { moved, .. } | Request::DrainDatacenter { moved, .. } => *moved = Some(Moved { at: by.at, until }),
        Request::Submit { .. } | Request::Undrain { .. } | Request::Rollout { .. } | Request::Deployment { .. } => {
            let why = format!("a {} has no deadline to move", op.kind().as_str());
            return Err(StoreError::Refused { id: op.id, why });
        }
    }
    detail.insert("from".into(), json!(op.deadline));
    detail.insert("until".into(), json!(until));
    op.deadline = Some(until.max(by.at));
    Ok(())
}

fn retry(op: &mut Operation, by: &By, rival: Option<OpId>) -> Result<()> {
    let id = op.id;
    let refuse = move |why: String| Err(StoreError::Refused { id, why });
    if let Some(parent) = op.parent {
        return refuse(format!("it is a part of operation {parent}; try that one again"));
    }
    match (op.state, rival) {
        (State::Failed | State::Cancelled, None) => {}
        (State::Failed | State::Cancelled, Some(rival)) => {
            return refuse(format!("operation {rival} does the same to {} now; watch that one", op.request.target()));
        }
        (state, _) => {
            return refuse(format!("it is {}: only one that failed or was cancelled can be tried again", state.as_str()));
        }
    }
    op.state = State::Queued;
    // What it asked of Nomad before may have been done: read before repeating.
    op.progress.unknown = true;
    if let (Request::Stop { demands, .. }, None) = (&mut op.request, op.progress.sent_at) {
        // Nomad never heard of it, so nothing was owed meanwhile: its graces begin now.
        let mut again = Vec::new();
        for d in demands.drain(..) {
            join(&mut again, Demand { at: by.at, until: d.until.filter(|u| *u > by.at), ..d });
        }
        *demands = again;
        op.progress.demands_sent = 0;
        op.deadline = None;
    }
    again(op);
    op.run_at = by.at;
    (op.attempts, op.error, op.finished_at, op.outcome) = (0, None, None, None);
    (op.cancel, op.pause, op.waiting_for) = (None, None, None);
    Ok(())
}

/// A drain that is tried again begins anew, its timeout too; what a node was before it stays known.
fn again(op: &mut Operation) {
    let (Request::DrainNode { moved, .. } | Request::DrainDatacenter { moved, .. }) = &mut op.request else { return };
    *moved = None;
    op.deadline = None;
    if let Some(node) = &mut op.progress.node {
        *node = NodeProgress { was_eligible: node.was_eligible, ..NodeProgress::default() };
    }
    if let Some(set) = &mut op.progress.set {
        set.round += 1;
        for n in set.nodes.iter_mut().filter(|n| !matches!(n.state, NodeState::Drained | NodeState::Gone)) {
            (n.state, n.child, n.report) = (NodeState::Waiting, None, None);
        }
    }
}

fn release(op: &mut Operation, by: &By, detail: &mut Map<String, Value>) -> Result<()> {
    match op.state {
        State::Paused => {
            return Err(StoreError::Refused { id: op.id, why: "it is paused and nobody holds it; resume it: op resume".into() });
        }
        State::Running => {
            detail.insert("previous_holder".into(), json!(op.lease.holder));
            op.lease.holder = None;
            op.lease.expires_at = None;
            op.lease.epoch += 1;
            op.progress.unknown = true;
            op.state = State::Queued;
            settle_pause(op);
        }
        _ => {}
    }
    detail.insert("epoch".into(), op.lease.epoch.into());
    op.run_at = by.at;
    Ok(())
}

/// A pause comes into force when no step runs.
pub(crate) fn settle_pause(op: &mut Operation) {
    let Some(by) = op.pause.as_ref() else { return };
    if op.state.is_finished() {
        op.pause = None;
        return;
    }
    if op.state == State::Running {
        return;
    }
    op.state = State::Paused;
    let clocks = match op.kind() {
        Kind::Stop | Kind::DrainNode => "; its clocks run on",
        Kind::DrainDatacenter => "; the nodes that drain go on",
        Kind::Rollout => "; Nomad goes on with what it took",
        Kind::Submit | Kind::Undrain | Kind::Deployment | Kind::Kill => "",
    };
    op.waiting_for = Some(format!("somebody to resume it: {} paused it{clocks}", by.actor));
}

fn unpause(op: &mut Operation) {
    op.pause = None;
    if op.state == State::Paused {
        op.state = State::Queued;
        op.waiting_for = None;
    }
}
