//! Rows as PostgreSQL has them. What is written goes as one JSON array a statement, whose objects have the table's columns: however
//! many rows a group writes, it is one round trip.

use curfew_core::access::Token;
use curfew_core::audit::{AuditEntry, AuditRow};
use curfew_core::clock::{ClockKey, ClockRecord};
use curfew_core::operation::{Kind, Lease, Operation};
use curfew_core::{OpId, TaskName, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_postgres::Row;
use uuid::Uuid;

use super::trouble::{self, Trouble};
use crate::KindRow;

/// Reads a row's columns; an error names the query.
pub(super) struct Reader<'r> {
    pub(super) row: &'r Row,
    pub(super) query: &'static str,
    pub(super) place: &'r str,
}

type Read<T> = Result<T, Trouble>;

impl Reader<'_> {
    pub(super) fn get<'a, T: tokio_postgres::types::FromSql<'a>>(&'a self, column: &str) -> Read<T> {
        self.row.try_get(column).map_err(|e| trouble::unreadable(self.place, self.query, &e))
    }
    fn json<T: DeserializeOwned>(&self, column: &str) -> Read<T> {
        let text: &str = self.get(column)?;
        serde_json::from_str(text).map_err(|e| trouble::unreadable(self.place, self.query, &e))
    }
    fn json_or<T: DeserializeOwned>(&self, column: &str) -> Read<Option<T>> {
        let text: Option<&str> = self.get(column)?;
        text.map(|_| self.json(column)).transpose()
    }
    /// An enum's variant by the name that serde gives it.
    pub(super) fn word<T: DeserializeOwned>(&self, column: &str) -> Read<T> {
        let word: String = self.get(column)?;
        serde_json::from_value(Value::String(word)).map_err(|e| trouble::unreadable(self.place, self.query, &e))
    }
    pub(super) fn instant(&self, column: &str) -> Read<Timestamp> {
        self.get(column).map(Timestamp::from_micros)
    }
    fn instant_or(&self, column: &str) -> Read<Option<Timestamp>> {
        Ok(self.get::<Option<i64>>(column)?.map(Timestamp::from_micros))
    }
    pub(super) fn count(&self, column: &str) -> Read<u64> {
        Ok(self.get::<i64>(column)?.unsigned_abs())
    }
    pub(super) fn id(&self, column: &str) -> Read<OpId> {
        self.get::<Uuid>(column).map(OpId::from)
    }

    pub(super) fn operation(&self) -> Read<Operation> {
        Ok(Operation {
            id: self.id("id")?,
            parent: self.get::<Option<Uuid>>("parent")?.map(OpId::from),
            state: self.word("state")?,
            request: self.json("request")?,
            actor: self.get("actor")?,
            reason: self.get("reason")?,
            requested_at: self.instant("requested_at")?,
            deadline: self.instant_or("deadline")?,
            finished_at: self.instant_or("finished_at")?,
            waiting_for: self.get("waiting_for")?,
            progress: self.json("progress")?,
            outcome: self.json_or("outcome")?,
            error: self.get("error")?,
            warnings: self.json("warnings")?,
            attempts: u32::try_from(self.count("attempts")?).unwrap_or(u32::MAX),
            run_at: self.instant("run_at")?,
            lease: self.lease("lease_holder", "lease_expires_at", "lease_epoch")?,
            revision: self.count("revision")?,
            cancel: self.json_or("cancel")?,
            pause: self.json_or("pause")?,
        })
    }

    pub(super) fn lease(&self, holder: &str, expires_at: &str, epoch: &str) -> Read<Lease> {
        Ok(Lease { holder: self.get(holder)?, expires_at: self.instant_or(expires_at)?, epoch: self.count(epoch)? })
    }

    pub(super) fn kind(&self) -> Read<KindRow> {
        let duty = self.lease("duty_holder", "duty_expires_at", "duty_epoch")?;
        Ok(KindRow { kind: self.word("kind")?, pause: self.json_or("pause")?, duty })
    }

    pub(super) fn clock(&self) -> Read<ClockRecord> {
        self.json("record")
    }

    pub(super) fn token(&self) -> Read<Token> {
        self.json("record")
    }

    pub(super) fn audit(&self) -> Read<AuditRow> {
        Ok(AuditRow {
            seq: self.count("seq")?,
            entry: AuditEntry {
                at: self.instant("at")?,
                operation: self.get::<Option<Uuid>>("operation")?.map(OpId::from),
                actor: self.get("actor")?,
                action: self.word("action")?,
                alloc: self.get::<Option<String>>("alloc")?.map(Into::into),
                task: self.get::<Option<String>>("task")?.map(TaskName::from),
                detail: self.json_or("detail")?.unwrap_or_default(),
            },
        })
    }
}

/// A value as the text of its JSON, for a column that holds that.
fn text(value: &impl Serialize) -> Value {
    serde_json::to_string(value).map_or(Value::Null, Value::String)
}

fn text_or(value: &Option<impl Serialize>) -> Value {
    value.as_ref().map_or(Value::Null, text)
}

fn micros(at: Option<Timestamp>) -> Option<i64> {
    at.map(Timestamp::as_micros)
}

/// What changes in the life of an operation, but for its request.
pub(super) fn changing(op: &Operation) -> Value {
    json!({
        "id": op.id, "state": op.state, "deadline": micros(op.deadline), "finished_at": micros(op.finished_at),
        "waiting_for": op.waiting_for, "progress": text(&op.progress), "outcome": text_or(&op.outcome), "error": op.error,
        "warnings": text(&op.warnings), "attempts": op.attempts, "run_at": op.run_at.as_micros(),
        "lease_holder": op.lease.holder, "lease_expires_at": micros(op.lease.expires_at), "lease_epoch": op.lease.epoch,
        "revision": op.revision, "cancel": text_or(&op.cancel), "pause": text_or(&op.pause),
    })
}

pub(super) fn request(op: &Operation) -> Value {
    json!({ "id": op.id, "request": text(&op.request) })
}

pub(super) fn whole(op: &Operation) -> Value {
    let mut all = changing(op);
    if let Value::Object(all) = &mut all {
        let rest = json!({
            "kind": op.kind(), "target": op.request.target().key(), "parent": op.parent, "request": text(&op.request),
            "actor": op.actor, "reason": op.reason, "requested_at": op.requested_at.as_micros(),
        });
        if let Value::Object(rest) = rest {
            all.extend(rest);
        }
    }
    all
}

pub(super) fn claim(node: &str, operation: OpId) -> Value {
    json!({ "node": node, "operation": operation })
}

pub(super) fn key(key: &str, digest: &str, operation: OpId) -> Value {
    json!({ "key": key, "digest": digest, "operation": operation })
}

/// `n` counts within the statement, from 1.
pub(super) fn entry(n: usize, e: &AuditEntry) -> Value {
    json!({
        "seq": n, "at": e.at.as_micros(), "operation": e.operation, "actor": e.actor, "action": e.action.as_str(), "alloc": e.alloc,
        "task": e.task, "detail": if e.detail.is_null() { Value::Null } else { text(&e.detail) },
    })
}

pub(super) fn clock(key: &ClockKey, record: Option<&ClockRecord>) -> Value {
    json!({
        "alloc": key.alloc, "task": key.task, "incarnation": key.incarnation.as_micros(),
        "record": record.map_or(Value::Null, text),
    })
}

pub(super) fn token(token: &Token) -> Value {
    json!({ "id": token.id, "record": text(token) })
}

pub(super) fn kind(row: &KindRow) -> Value {
    json!({
        "kind": row.kind, "pause": text_or(&row.pause), "duty_holder": row.duty.holder,
        "duty_expires_at": micros(row.duty.expires_at), "duty_epoch": row.duty.epoch,
    })
}

pub(super) fn words(kinds: impl IntoIterator<Item = Kind>) -> Vec<&'static str> {
    kinds.into_iter().map(Kind::as_str).collect()
}
