//! What a row becomes, whatever database holds it. Each backend reads a row, asks here, and writes the answer in the same
//! transaction.

use std::time::Duration;

use curfew_core::audit::{Action, AuditEntry};
use curfew_core::operation::{self, By, Demand, Kind, Lease, Operation, Progress, Request, State};
use curfew_core::{OpId, Timestamp};
use serde_json::{Map, Value, json};

use crate::{Duty, KindRow, NewOperation, Result, StepResult, StoreError, intervene};

/// The row of a request that joins nothing.
pub(crate) fn fresh(new: NewOperation) -> Operation {
    Operation {
        id: new.id,
        parent: new.parent,
        state: State::Queued,
        request: new.request,
        actor: new.actor,
        reason: new.reason,
        requested_at: new.at,
        deadline: new.deadline,
        finished_at: None,
        waiting_for: None,
        progress: Progress::default(),
        outcome: None,
        error: None,
        warnings: new.warnings,
        attempts: 0,
        run_at: new.at,
        lease: Lease::default(),
        revision: 0,
        cancel: None,
        pause: None,
    }
}

pub(crate) fn requested(new: &NewOperation) -> AuditEntry {
    entry(new.id, Action::Requested, new, &new.request)
}

/// A live operation takes another request for the same target in.
pub(crate) fn take_in(op: &mut Operation, new: NewOperation) -> AuditEntry {
    let told = entry(op.id, Action::Joined, &new, &new.request);
    let theirs = new.request.demands().to_vec();
    if let Request::Stop { demands, .. } = &mut op.request {
        theirs.into_iter().for_each(|d| operation::join(demands, d));
    }
    op.deadline = earlier(op.deadline, new.deadline);
    // Whoever asks now wants it done, whatever somebody wished before.
    op.cancel = None;
    op.run_at = op.run_at.min(new.at);
    add_missing(&mut op.warnings, new.warnings);
    op.revision += 1;
    newest_is_unsent(op);
    told
}

/// Somebody takes a row to work on it. The trail hears of the first time and of a lease that ran out, not of each wake-up.
pub(crate) fn lease(op: &mut Operation, holder: &str, lease_for: Duration, now: Timestamp) -> Option<AuditEntry> {
    let before = std::mem::take(&mut op.lease);
    let taken_over = op.state == State::Running;
    op.state = State::Running;
    op.lease = Lease { holder: Some(holder.to_owned()), expires_at: Some(now + lease_for), epoch: before.epoch + 1 };
    if before.epoch > 0 && !taken_over {
        return None;
    }
    let mut detail = Map::new();
    detail.insert("epoch".into(), op.lease.epoch.into());
    if taken_over {
        // Its step was cut off somewhere: what it asked of Nomad last may have been done.
        op.progress.unknown = true;
        detail.insert("previous_holder".into(), json!(before.holder));
        detail.insert("expired_at".into(), json!(before.expires_at));
    }
    Some(AuditEntry {
        at: now,
        operation: Some(op.id),
        actor: holder.to_owned(),
        action: Action::Leased,
        alloc: None,
        task: None,
        detail: Value::Object(detail),
    })
}

/// A kind that nobody touched.
pub(crate) fn kind(kind: Kind) -> KindRow {
    KindRow { kind, pause: None, duty: Lease::default() }
}

/// `None`: it was so already.
pub(crate) fn pause_kind(row: &mut KindRow, by: &By, pause: bool) -> Option<AuditEntry> {
    if row.pause.is_some() == pause {
        return None;
    }
    row.pause = pause.then(|| by.clone());
    let action = if pause { Action::KindPaused } else { Action::KindResumed };
    let mut detail = json!({ "kind": row.kind });
    if let (Some(reason), Value::Object(detail)) = (&by.reason, &mut detail) {
        detail.insert("reason".into(), json!(reason));
    }
    Some(about_kinds(&by.actor, action, by.at, detail))
}

/// Takes the keeper's duty when it is free or has expired. `None`: somebody has it. Without `lease_for` it never expires.
pub(crate) fn take_duty(duty: &mut Lease, holder: &str, lease_for: Option<Duration>, now: Timestamp) -> Option<AuditEntry> {
    if duty.holder.is_some() && duty.expires_at.is_none_or(|at| at > now) {
        return None;
    }
    let before = std::mem::take(duty);
    *duty = Lease { holder: Some(holder.to_owned()), expires_at: lease_for.map(|d| now + d), epoch: before.epoch + 1 };
    let mut detail = json!({ "epoch": duty.epoch });
    if let (Some(previous), Value::Object(detail)) = (before.holder, &mut detail) {
        detail.insert("previous_holder".into(), json!(previous));
        detail.insert("expired_at".into(), json!(before.expires_at));
    }
    Some(about_kinds(holder, Action::DutyTaken, now, detail))
}

/// Also when it had run out, as long as nobody took it.
pub(crate) fn renew_duty(duty: &mut Lease, epoch: u64, lease_for: Duration, now: Timestamp) -> Result<Duty> {
    if duty.holder.is_none() || duty.epoch != epoch {
        return Err(StoreError::DutyLost { epoch });
    }
    duty.expires_at = Some(now + lease_for);
    Ok(Duty { epoch, expires_at: duty.expires_at })
}

/// `None`: it was somebody else's, or nobody's, already.
pub(crate) fn give_up_duty(duty: &mut Lease, epoch: u64, now: Timestamp) -> Option<AuditEntry> {
    let holder = duty.holder.take_if(|_| duty.epoch == epoch)?;
    duty.expires_at = None;
    Some(about_kinds(&holder, Action::DutyGivenUp, now, json!({ "epoch": epoch })))
}

fn about_kinds(actor: &str, action: Action, at: Timestamp, detail: Value) -> AuditEntry {
    AuditEntry { at, operation: None, actor: actor.to_owned(), action, alloc: None, task: None, detail }
}

/// `Fenced` unless the row is still held under this epoch.
pub(crate) fn held(row: &Operation, epoch: u64) -> Result<()> {
    match row.state == State::Running && row.lease.epoch == epoch {
        true => Ok(()),
        false => Err(StoreError::Fenced { id: row.id, epoch }),
    }
}

/// A step's result meets the row as it is now: somebody may have joined since it was leased.
pub(crate) fn finish(
    row: &mut Operation,
    leased: &Operation,
    result: StepResult,
    mut audit: Vec<AuditEntry>,
    now: Timestamp,
) -> Result<Vec<AuditEntry>> {
    held(row, leased.lease.epoch)?;
    if result.state == State::Running {
        return Err(StoreError::Database {
            what: format!("operation {}: a step cannot end in the state \"running\"; this is a bug in curfew", row.id),
            transient: false,
            source: None,
        });
    }
    let holder = row.lease.holder.take().unwrap_or_default();
    row.lease.expires_at = None;
    row.state = result.state;
    row.run_at = result.run_at;
    row.waiting_for = result.waiting_for;
    row.progress = result.progress;
    row.outcome = result.outcome;
    row.error = result.error;
    row.attempts = result.attempts;
    if row.revision == leased.revision {
        row.deadline = result.deadline;
        row.warnings = result.warnings;
    } else {
        // The step never saw what somebody else changed: that stays, and wants a step of its own at once.
        let theirs = std::mem::replace(&mut row.warnings, result.warnings);
        add_missing(&mut row.warnings, theirs);
        row.run_at = row.run_at.min(now);
        match (row.request.demands().last(), leased.request.demands().last()) {
            (Some(newest), Some(seen)) if !same_delete(newest, seen) => {
                newest_is_unsent(row);
                if row.state.is_finished() {
                    go_on(row, &holder, &mut audit, now);
                }
            }
            _ => sent_as_far_as(row, leased),
        }
    }
    row.finished_at = row.state.is_finished().then_some(now);
    intervene::settle_pause(row);
    Ok(audit)
}

/// An operation that has finished can have no more nodes.
pub(crate) fn may_claim(op: &Operation) -> Result<()> {
    if op.state.is_finished() {
        let why = format!("it is {} already and can have no more nodes", op.state.as_str());
        return Err(StoreError::Refused { id: op.id, why });
    }
    Ok(())
}

/// A child came to its end. Whether that makes its parent another row: it is due at once, also when its step runs now.
pub(crate) fn child_ended(parent: &mut Operation, now: Timestamp) -> bool {
    if parent.state.is_finished() {
        return false;
    }
    parent.revision += 1;
    if parent.state != State::Paused {
        parent.run_at = parent.run_at.min(now);
    }
    true
}

/// Whether the DELETE that the step sent for `seen` serves the newest demand too: nobody joined since, at most somebody moved
/// the deadline.
fn same_delete(newest: &Demand, seen: &Demand) -> bool {
    newest == seen || (newest.until.is_some() && newest.job_index == seen.job_index)
}

/// The step counted its DELETEs by the list it knew, which somebody folded since.
fn sent_as_far_as(row: &mut Operation, leased: &Operation) {
    let len = row.request.demands().len();
    let all = row.progress.demands_sent >= leased.request.demands().len();
    row.progress.demands_sent = if all { len } else { row.progress.demands_sent.min(len.saturating_sub(1)) };
}

/// The end that the step saw is not the end; the trail must not say so either.
fn go_on(row: &mut Operation, holder: &str, audit: &mut Vec<AuditEntry>, now: Timestamp) {
    let seen = row.state;
    row.state = State::Queued;
    row.error = None;
    row.waiting_for = None;
    let is_end = |e: &AuditEntry| {
        e.operation == Some(row.id) && matches!(e.action, Action::Succeeded | Action::Failed | Action::Cancelled)
    };
    audit.retain(|e| !is_end(e));
    audit.push(AuditEntry {
        at: now,
        operation: Some(row.id),
        actor: holder.to_owned(),
        action: Action::Waiting,
        alloc: None,
        task: None,
        detail: json!({ "instead_of": seen, "because": "another request joined while the step ran" }),
    });
}

/// Joining may fold the list of demands. The newest one still wants its DELETE, so it never counts as sent.
fn newest_is_unsent(op: &mut Operation) {
    let sent_at_most = op.request.demands().len().saturating_sub(1);
    op.progress.demands_sent = op.progress.demands_sent.min(sent_at_most);
}

fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    a.into_iter().chain(b).min()
}

fn add_missing(to: &mut Vec<String>, from: Vec<String>) {
    for w in from {
        if !to.contains(&w) {
            to.push(w);
        }
    }
}

/// The specification of a submit stays out of the trail: it is large, and it may hold secrets.
fn entry(operation: OpId, action: Action, new: &NewOperation, request: &Request) -> AuditEntry {
    let mut detail = Map::new();
    detail.insert("kind".into(), json!(request.kind()));
    if let Value::Object(target) = json!(request.target()) {
        detail.extend(target);
    }
    if let Some(reason) = &new.reason {
        detail.insert("reason".into(), json!(reason));
    }
    if let Some(deadline) = new.deadline {
        detail.insert("deadline".into(), json!(deadline));
    }
    if let Request::DrainNode { options, .. } | Request::DrainDatacenter { options, .. } = request {
        detail.insert("options".into(), json!(options));
    }
    if let [Demand { stop_timeout: Some(asked), .. }, ..] = request.demands() {
        detail.insert("stop_timeout".into(), json!(curfew_core::duration::format(*asked)));
    }
    AuditEntry {
        at: new.at,
        operation: Some(operation),
        actor: new.actor.clone(),
        action,
        alloc: None,
        task: None,
        detail: Value::Object(detail),
    }
}
