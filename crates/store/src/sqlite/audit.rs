//! The audit trail's table.

use curfew_core::audit::{AuditEntry, AuditRow};
use curfew_core::{AllocId, TaskName, Timestamp};
use rusqlite::types::{Type, Value as Sql};
use rusqlite::{Row, params, params_from_iter};
use serde_json::Value;

use super::db::{Db, Query, from_json, from_word, int};
use crate::{AuditFilter, DEFAULT_AUDIT, Result};

const APPEND: Query<'_> = Query {
    name: "append_audit",
    sql: "INSERT INTO audit (at, operation, actor, action, alloc, task, detail) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
};

pub(super) fn append<'a>(db: &Db<'_>, entries: impl IntoIterator<Item = &'a AuditEntry>) -> Result<()> {
    for e in entries {
        let detail = match &e.detail {
            Value::Null => None,
            detail => Some(db.json(APPEND.name, detail)?),
        };
        let row = params![
            e.at.as_micros(),
            e.operation.map(|id| id.to_string()),
            e.actor,
            e.action.as_str(),
            e.alloc.as_ref().map(AllocId::as_str),
            e.task.as_ref().map(TaskName::as_str),
            detail,
        ];
        db.execute(&APPEND, row)?;
    }
    Ok(())
}

pub(super) fn read(db: &Db<'_>, filter: &AuditFilter) -> Result<Vec<AuditRow>> {
    let mut sql = "SELECT seq, at, operation, actor, action, alloc, task, detail FROM audit WHERE seq > ?".to_owned();
    let mut values = vec![Sql::Integer(int(filter.after_seq))];
    if let Some(id) = filter.operation {
        sql.push_str(" AND operation = ?");
        values.push(Sql::Text(id.to_string()));
    }
    if let Some(since) = filter.since {
        sql.push_str(" AND at >= ?");
        values.push(Sql::Integer(since.as_micros()));
    }
    sql.push_str(" ORDER BY seq LIMIT ?");
    let limit = if filter.limit == 0 { DEFAULT_AUDIT } else { filter.limit };
    values.push(Sql::Integer(int(limit)));
    db.all(&Query { name: "audit", sql: &sql }, params_from_iter(values), row)
}

fn row(r: &Row<'_>) -> rusqlite::Result<AuditRow> {
    let operation: Option<String> = r.get(2)?;
    let operation = operation
        .map(|id| id.parse())
        .transpose()
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(2, Type::Text, Box::new(e)))?;
    let alloc: Option<String> = r.get(5)?;
    let task: Option<String> = r.get(6)?;
    let detail = match r.get_ref(7)? {
        rusqlite::types::ValueRef::Null => Value::Null,
        _ => from_json(r, 7)?,
    };
    Ok(AuditRow {
        seq: r.get::<_, i64>(0)?.unsigned_abs(),
        entry: AuditEntry {
            at: Timestamp::from_micros(r.get(1)?),
            operation,
            actor: r.get(3)?,
            action: from_word(r, 4)?,
            alloc: alloc.map(AllocId::from),
            task: task.map(TaskName::from),
            detail,
        },
    })
}
