//! The operations' table.

use std::time::Duration;

use curfew_core::audit::AuditEntry;
use curfew_core::operation::{By, Intervention, Kind, Lease, Operation, Request, State};
use curfew_core::{NodeId, OpId, Timestamp};
use rusqlite::types::{Type, Value as Sql, ValueRef};
use rusqlite::{Row, params, params_from_iter};

use super::db::{Db, Query, from_json, from_word, int};
use super::{audit, claims, kinds};
use crate::{
    Change, Created, DEFAULT_OPERATIONS, Held, NewOperation, OperationFilter, Pruned, QueueCount, QueueStatus, Result,
    StepResult, StoreError, Wanted, intervene, rules,
};

/// In the order in which `read` takes them.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, state, request, actor, reason, requested_at, deadline, finished_at, waiting_for, progress, outcome, error, \
             warnings, attempts, run_at, lease_holder, lease_expires_at, lease_epoch, revision, cancel, pause, parent \
             FROM operations ",
            $rest
        )
    };
}

const INSERT: Query<'_> = Query {
    name: "insert_operation",
    sql: "INSERT INTO operations (id, state, request, deadline, finished_at, waiting_for, progress, outcome, error, warnings, \
          attempts, run_at, lease_holder, lease_expires_at, lease_epoch, revision, cancel, pause, kind, target, actor, reason, \
          requested_at, parent) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, \
          ?20, ?21, ?22, ?23, ?24)",
};
/// Only under the epoch that was read.
const UPDATE: Query<'_> = Query {
    name: "update_operation",
    sql: "UPDATE operations SET state = ?2, request = ?3, deadline = ?4, finished_at = ?5, waiting_for = ?6, progress = ?7, \
          outcome = ?8, error = ?9, warnings = ?10, attempts = ?11, run_at = ?12, lease_holder = ?13, lease_expires_at = ?14, \
          lease_epoch = ?15, revision = ?16, cancel = ?17, pause = ?18 WHERE id = ?1 AND lease_epoch = ?19",
};
const LEASE: Query<'_> = Query {
    name: "lease",
    sql: "UPDATE operations SET state = 'running', lease_holder = ?3, lease_expires_at = ?4, lease_epoch = lease_epoch + 1, \
          progress = ?5 WHERE id = ?1 AND lease_epoch = ?2",
};
const RENEW: Query<'_> = Query {
    name: "renew",
    sql: "UPDATE operations SET lease_expires_at = ?3 WHERE id = ?1 AND lease_epoch = ?2 AND state = 'running'",
};
const BY_ID: Query<'_> = Query { name: "operation", sql: select!("WHERE id = ?1") };
const LIVE_ON: Query<'_> =
    Query { name: "live_on_target", sql: select!("WHERE target = ?1 AND kind = 'stop' AND finished_at IS NULL") };
const CHILDREN: Query<'_> =
    Query { name: "live_children", sql: select!("WHERE parent = ?1 AND finished_at IS NULL ORDER BY id") };
const LIVE: Query<'_> =
    Query { name: "live", sql: select!("WHERE kind = ?1 AND finished_at IS NULL AND id > ?2 ORDER BY id LIMIT ?3") };
const BY_KEY: Query<'_> = Query { name: "idempotency_key", sql: "SELECT digest, operation FROM idempotency_keys WHERE key = ?1" };
const REMEMBER_KEY: Query<'_> =
    Query { name: "remember_idempotency_key", sql: "INSERT INTO idempotency_keys (key, digest, operation) VALUES (?1, ?2, ?3)" };
/// The plus keeps SQLite from walking the kind's whole index.
const NUDGED: Query<'_> = Query {
    name: "lease_nudged",
    sql: select!(
        "WHERE id IN (SELECT value FROM json_each(?2)) AND state IN ('queued', 'waiting') AND +kind = ?1 ORDER BY run_at, id \
         LIMIT ?3"
    ),
};
const DUE: Query<'_> = Query {
    name: "lease_due",
    sql: select!("WHERE kind = ?1 AND state IN ('queued', 'waiting') AND run_at <= ?2 ORDER BY run_at, id LIMIT ?3"),
};
const EXPIRED: Query<'_> = Query {
    name: "lease_expired",
    sql: select!("WHERE kind = ?1 AND state = 'running' AND lease_expires_at <= ?2 ORDER BY run_at, id LIMIT ?3"),
};
const NEXT_RUN: Query<'_> =
    Query { name: "next_run_at", sql: "SELECT min(run_at) FROM operations WHERE kind = ?1 AND state IN ('queued', 'waiting')" };
const NEXT_EXPIRY: Query<'_> = Query {
    name: "next_lease_expiry",
    sql: "SELECT min(lease_expires_at) FROM operations WHERE kind = ?1 AND state = 'running'",
};
const QUEUE: Query<'_> = Query {
    name: "queue_status",
    sql: "SELECT kind, state, count(*), min(requested_at), min(run_at) FROM operations WHERE finished_at IS NULL \
          GROUP BY kind, state ORDER BY kind, state",
};
const RUNNING: Query<'_> = Query {
    name: "queue_running",
    sql: "SELECT id, kind, lease_holder, lease_expires_at, lease_epoch FROM operations WHERE state = 'running' \
          ORDER BY lease_expires_at, id",
};
/// Children go with their parents.
const PRUNABLE: Query<'_> = Query {
    name: "prune_find",
    sql: "SELECT id FROM operations o WHERE finished_at < ?1 AND parent IS NULL AND NOT EXISTS \
          (SELECT 1 FROM operations c WHERE c.parent = o.id AND c.finished_at IS NULL) ORDER BY finished_at LIMIT ?2",
};
const FAMILY: Query<'_> = Query { name: "prune_count", sql: "SELECT count(*) FROM operations WHERE id = ?1 OR parent = ?1" };
const FORGET: Query<'_> = Query { name: "prune", sql: "DELETE FROM operations WHERE id = ?1" };
const PRUNE_AUDIT: Query<'_> = Query {
    name: "prune_audit",
    sql: "DELETE FROM audit WHERE seq IN (SELECT seq FROM audit a WHERE at < ?1 AND NOT EXISTS \
          (SELECT 1 FROM operations o WHERE o.id = a.operation AND o.finished_at IS NULL) ORDER BY at LIMIT ?2)",
};

/// What runs all the time, and the index that makes it cheap.
#[cfg(test)]
pub(super) const HOT: &[(&Query<'_>, &str)] = &[
    (&UPDATE, "sqlite_autoindex_operations_1"),
    (&LEASE, "sqlite_autoindex_operations_1"),
    (&RENEW, "sqlite_autoindex_operations_1"),
    (&BY_ID, "sqlite_autoindex_operations_1"),
    (&BY_KEY, "PRIMARY KEY"),
    (&LIVE_ON, "operations_one_live"),
    (&LIVE, "operations_live"),
    (&CHILDREN, "operations_parent"),
    (&NUDGED, "sqlite_autoindex_operations_1"),
    (&DUE, "operations_due"),
    (&EXPIRED, "operations_leased"),
    (&NEXT_RUN, "operations_due"),
    (&NEXT_EXPIRY, "operations_leased"),
    (&PRUNABLE, "operations_finished"),
];

pub(super) fn create(db: &Db<'_>, new: NewOperation) -> Result<Created> {
    if let Some((key, digest)) = &new.idempotency
        && let Some((theirs, id)) = db.one(&BY_KEY, [key], |r| Ok((r.get::<_, String>(0)?, op_id(r, 1)?)))?
    {
        return match theirs == *digest {
            true => Ok(Created::Replayed(existing(db, id)?)),
            false => Err(StoreError::IdempotencyConflict { key: key.clone(), id }),
        };
    }
    let key = new.idempotency.clone();
    let (told, created) = match live_on(db, &new.request)? {
        Some(mut op) => {
            let told = rules::take_in(&mut op, new);
            update(db, &op, op.lease.epoch)?;
            (told, Created::Joined(op))
        }
        None => {
            let told = rules::requested(&new);
            let op = rules::fresh(new);
            insert(db, &op)?;
            claims::take(db, op.id, &op.claims())?;
            (told, Created::New(op))
        }
    };
    if let Some((key, digest)) = key {
        db.execute(&REMEMBER_KEY, params![key, digest, created.operation().id.to_string()])?;
    }
    audit::append(db, [&told])?;
    db.changed(Change::Operation { id: created.operation().id, due: true });
    Ok(created)
}

/// A call of `lease`, as it was made.
pub(super) struct Call {
    pub(super) holder: String,
    pub(super) wanted: Vec<Wanted>,
    pub(super) ids: Vec<OpId>,
    pub(super) limit: usize,
    pub(super) now: Timestamp,
}

pub(super) fn lease(db: &Db<'_>, call: &Call) -> Result<Vec<Operation>> {
    let paused = kinds::paused(db)?;
    let mut wanted: Vec<Wanted> = call.wanted.iter().filter(|w| !paused.contains(&w.kind)).copied().collect();
    let ids = db.json(NUDGED.name, &call.ids)?;
    let mut taken = Vec::new();
    for query in [&NUDGED, &DUE, &EXPIRED] {
        if query.name == NUDGED.name && call.ids.is_empty() {
            continue;
        }
        // One query a kind: each walks its own part of the index, and a paused kind's rows are in nobody's way.
        let mut found = Vec::new();
        for w in &wanted {
            let room = w.limit.min(call.limit - taken.len());
            if room > 0 {
                let by = if query.name == NUDGED.name { Sql::Text(ids.clone()) } else { Sql::Integer(call.now.as_micros()) };
                let rows = db.all(query, params![w.kind.as_str(), by, int(room)], read)?;
                found.extend(rows.into_iter().map(|op| (op, w.lease_for)));
            }
        }
        found.sort_by_key(|(op, _)| (op.run_at, op.id));
        found.truncate(call.limit - taken.len());
        for (op, lease_for) in found {
            if let Some(op) = take(db, call, op, lease_for)? {
                wanted.iter_mut().filter(|w| w.kind == op.kind()).for_each(|w| w.limit -= 1);
                taken.push(op);
            }
        }
    }
    Ok(taken)
}

fn take(db: &Db<'_>, call: &Call, mut op: Operation, lease_for: Duration) -> Result<Option<Operation>> {
    let before = op.lease.epoch;
    let told = rules::lease(&mut op, &call.holder, lease_for, call.now);
    let expires_at = op.lease.expires_at.map(Timestamp::as_micros);
    let progress = db.json(LEASE.name, &op.progress)?;
    if db.execute(&LEASE, params![op.id.to_string(), int(before), call.holder, expires_at, progress])? != 1 {
        return Ok(None);
    }
    audit::append(db, &told)?;
    Ok(Some(op))
}

pub(super) fn renew(db: &Db<'_>, id: OpId, epoch: u64, expires_at: Timestamp) -> Result<()> {
    if db.execute(&RENEW, params![id.to_string(), int(epoch), expires_at.as_micros()])? == 1 {
        return Ok(());
    }
    existing(db, id)?;
    Err(StoreError::Fenced { id, epoch })
}

pub(super) fn finish_step(
    db: &Db<'_>,
    leased: &Operation,
    result: StepResult,
    audit: Vec<AuditEntry>,
    now: Timestamp,
) -> Result<Operation> {
    let mut row = existing(db, leased.id)?;
    let audit = rules::finish(&mut row, leased, result, audit, now)?;
    update(db, &row, row.lease.epoch)?;
    audit::append(db, &audit)?;
    db.changed(Change::Operation { id: row.id, due: false });
    ended(db, &row, now)?;
    Ok(row)
}

/// What follows from an operation's end, if that is what it came to.
fn ended(db: &Db<'_>, row: &Operation, now: Timestamp) -> Result<()> {
    if !row.state.is_finished() {
        return Ok(());
    }
    claims::release(db, row.id)?;
    let Some(mut parent) = row.parent.map(|id| by_id(db, id)).transpose()?.flatten() else { return Ok(()) };
    let before = parent.lease.epoch;
    if rules::child_ended(&mut parent, now) {
        update(db, &parent, before)?;
        db.changed(Change::Operation { id: parent.id, due: true });
    }
    Ok(())
}

pub(super) fn intervene(db: &Db<'_>, id: OpId, what: Intervention, by: &By) -> Result<Operation> {
    let mut row = existing(db, id)?;
    let before = row.lease.epoch;
    let rival = live_on(db, &row.request)?.map(|op| op.id).filter(|rival| *rival != id);
    let rival = rival.or(claims::rival(db, &row)?);
    if let Some(told) = intervene::intervene(&mut row, what, by, rival)? {
        update(db, &row, before)?;
        audit::append(db, [&told])?;
        db.changed(Change::Operation { id, due: true });
        if row.state.is_finished() {
            ended(db, &row, by.at)?;
        } else if what == Intervention::Retry {
            claims::take(db, id, &row.claims())?;
        }
        if let Some(what) = intervene::for_children(&row, what) {
            for child in db.all(&CHILDREN, [id.to_string()], read)? {
                intervene(db, child.id, what, by)?;
            }
        }
    }
    Ok(row)
}

pub(super) fn claim(db: &Db<'_>, id: OpId, nodes: &[NodeId]) -> Result<()> {
    rules::may_claim(&existing(db, id)?)?;
    claims::take(db, id, nodes)
}

pub(super) fn queue_status(db: &Db<'_>) -> Result<QueueStatus> {
    let counts = db.all(&QUEUE, [], |r| {
        Ok(QueueCount {
            kind: from_word(r, 0)?,
            state: from_word(r, 1)?,
            count: r.get::<_, i64>(2)?.unsigned_abs(),
            oldest_requested_at: Timestamp::from_micros(r.get(3)?),
            oldest_run_at: Timestamp::from_micros(r.get(4)?),
        })
    })?;
    let running = db.all(&RUNNING, [], |r| {
        let expires_at = r.get::<_, Option<i64>>(3)?.map(Timestamp::from_micros);
        let lease = Lease { holder: r.get(2)?, expires_at, epoch: r.get::<_, i64>(4)?.unsigned_abs() };
        Ok(Held { id: op_id(r, 0)?, kind: from_word(r, 1)?, lease })
    })?;
    Ok(QueueStatus { counts, running })
}

pub(super) fn prune(db: &Db<'_>, finished_before: Timestamp, audit_before: Timestamp, limit: usize) -> Result<Pruned> {
    let roots = db.all(&PRUNABLE, params![finished_before.as_micros(), int(limit)], |r| r.get::<_, String>(0))?;
    let mut operations = 0;
    for id in roots {
        operations += db.one(&FAMILY, [&id], |r| r.get::<_, i64>(0))?.unwrap_or(0).unsigned_abs();
        db.execute(&FORGET, [&id])?;
    }
    let audit = db.execute(&PRUNE_AUDIT, params![audit_before.as_micros(), int(limit)])? as u64;
    Ok(Pruned { operations, audit })
}

pub(super) fn by_id(db: &Db<'_>, id: OpId) -> Result<Option<Operation>> {
    db.one(&BY_ID, [id.to_string()], read)
}

pub(super) fn live(db: &Db<'_>, kind: Kind, after: OpId, limit: usize) -> Result<Vec<Operation>> {
    db.all(&LIVE, params![kind.as_str(), after.to_string(), int(limit)], read)
}

pub(super) fn list(db: &Db<'_>, filter: &OperationFilter) -> Result<Vec<Operation>> {
    let mut sql = select!("WHERE true").to_owned();
    let mut values = Vec::new();
    let mut one_of = |column: &str, words: Vec<&'static str>| {
        if !words.is_empty() {
            let marks = vec!["?"; words.len()].join(", ");
            sql.push_str(&format!(" AND {column} IN ({marks})"));
            values.extend(words.into_iter().map(|w| Sql::Text(w.to_owned())));
        }
    };
    one_of("kind", filter.kinds.iter().map(|k| k.as_str()).collect());
    one_of("state", filter.states.iter().map(|s| s.as_str()).collect());
    if !filter.states.is_empty() && filter.states.iter().all(|s| !s.is_finished()) {
        // Says nothing new, but lets SQLite look among the live ones only.
        sql.push_str(" AND finished_at IS NULL");
    }
    if let Some(target) = &filter.target {
        sql.push_str(" AND target = ?");
        values.push(Sql::Text(target.key()));
    }
    if let Some(parent) = filter.parent {
        sql.push_str(" AND parent = ?");
        values.push(Sql::Text(parent.to_string()));
    }
    if let Some(before) = filter.before {
        sql.push_str(" AND id < ?");
        values.push(Sql::Text(before.to_string()));
    }
    sql.push_str(" ORDER BY id DESC LIMIT ?");
    let limit = if filter.limit == 0 { DEFAULT_OPERATIONS } else { filter.limit };
    values.push(Sql::Integer(int(limit)));
    db.all(&Query { name: "operations", sql: &sql }, params_from_iter(values), read)
}

pub(super) fn next_due(db: &Db<'_>, kinds: &[Kind]) -> Result<Option<Timestamp>> {
    let mut next: Option<i64> = None;
    let paused = kinds::paused(db)?;
    for kind in kinds.iter().filter(|k| !paused.contains(k)) {
        for query in [&NEXT_RUN, &NEXT_EXPIRY] {
            let at = db.one(query, [kind.as_str()], |r| r.get::<_, Option<i64>>(0))?.flatten();
            next = next.into_iter().chain(at).min();
        }
    }
    Ok(next.map(Timestamp::from_micros))
}

/// The live operation that a request joins.
fn live_on(db: &Db<'_>, request: &Request) -> Result<Option<Operation>> {
    match request.kind() {
        // The only kind that joins.
        Kind::Stop => db.one(&LIVE_ON, [request.target().key()], read),
        _ => Ok(None),
    }
}

fn existing(db: &Db<'_>, id: OpId) -> Result<Operation> {
    by_id(db, id)?.ok_or(StoreError::NoSuchOperation(id))
}

/// What `insert` and `update` have in common, ?1 to ?18.
fn changing(db: &Db<'_>, name: &'static str, op: &Operation) -> Result<Vec<Sql>> {
    let text = |t: &Option<String>| t.clone().map_or(Sql::Null, Sql::Text);
    let instant = |t: Option<Timestamp>| t.map_or(Sql::Null, |t| Sql::Integer(t.as_micros()));
    Ok(vec![
        Sql::Text(op.id.to_string()),
        Sql::Text(op.state.as_str().to_owned()),
        Sql::Text(db.json(name, &op.request)?),
        instant(op.deadline),
        instant(op.finished_at),
        text(&op.waiting_for),
        Sql::Text(db.json(name, &op.progress)?),
        op.outcome.as_ref().map(|o| db.json(name, o)).transpose()?.map_or(Sql::Null, Sql::Text),
        text(&op.error),
        Sql::Text(db.json(name, &op.warnings)?),
        Sql::Integer(op.attempts.into()),
        instant(Some(op.run_at)),
        text(&op.lease.holder),
        instant(op.lease.expires_at),
        Sql::Integer(int(op.lease.epoch)),
        Sql::Integer(int(op.revision)),
        op.cancel.as_ref().map(|by| db.json(name, by)).transpose()?.map_or(Sql::Null, Sql::Text),
        op.pause.as_ref().map(|by| db.json(name, by)).transpose()?.map_or(Sql::Null, Sql::Text),
    ])
}

fn insert(db: &Db<'_>, op: &Operation) -> Result<()> {
    let mut values = changing(db, INSERT.name, op)?;
    values.extend([
        Sql::Text(op.kind().as_str().to_owned()),
        Sql::Text(op.request.target().key()),
        Sql::Text(op.actor.clone()),
        op.reason.clone().map_or(Sql::Null, Sql::Text),
        Sql::Integer(op.requested_at.as_micros()),
        op.parent.map_or(Sql::Null, |id| Sql::Text(id.to_string())),
    ]);
    db.execute(&INSERT, params_from_iter(values)).map(|_| ())
}

fn update(db: &Db<'_>, op: &Operation, epoch_read: u64) -> Result<()> {
    let mut values = changing(db, UPDATE.name, op)?;
    values.push(Sql::Integer(int(epoch_read)));
    match db.execute(&UPDATE, params_from_iter(values))? {
        1 => Ok(()),
        _ => Err(StoreError::Fenced { id: op.id, epoch: op.lease.epoch }),
    }
}

pub(super) fn op_id(r: &Row<'_>, column: usize) -> rusqlite::Result<OpId> {
    let text = r.get_ref(column)?.as_str()?;
    text.parse().map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

fn read(r: &Row<'_>) -> rusqlite::Result<Operation> {
    let instant = |column: usize| r.get::<_, Option<i64>>(column).map(|t| t.map(Timestamp::from_micros));
    let by = |column: usize| match r.get_ref(column)? {
        ValueRef::Null => Ok(None),
        _ => from_json::<By>(r, column).map(Some),
    };
    let state: State = from_word(r, 1)?;
    Ok(Operation {
        id: op_id(r, 0)?,
        parent: match r.get_ref(21)? {
            ValueRef::Null => None,
            _ => Some(op_id(r, 21)?),
        },
        state,
        request: from_json(r, 2)?,
        actor: r.get(3)?,
        reason: r.get(4)?,
        requested_at: Timestamp::from_micros(r.get(5)?),
        deadline: instant(6)?,
        finished_at: instant(7)?,
        waiting_for: r.get(8)?,
        progress: from_json(r, 9)?,
        outcome: match r.get_ref(10)? {
            ValueRef::Null => None,
            _ => Some(from_json(r, 10)?),
        },
        error: r.get(11)?,
        warnings: from_json(r, 12)?,
        attempts: r.get(13)?,
        run_at: Timestamp::from_micros(r.get(14)?),
        lease: Lease { holder: r.get(15)?, expires_at: instant(16)?, epoch: r.get::<_, i64>(17)?.unsigned_abs() },
        revision: r.get::<_, i64>(18)?.unsigned_abs(),
        cancel: by(19)?,
        pause: by(20)?,
    })
}
