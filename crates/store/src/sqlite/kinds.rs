//! The table of kinds: who paused which, and which controller keeps the clocks.

use std::collections::HashSet;

use curfew_core::Timestamp;
use curfew_core::operation::{By, Kind, Lease};
use rusqlite::params;
use rusqlite::types::ValueRef;

use super::audit;
use super::db::{Db, Query, from_json, from_word, int};
use crate::{Change, Duty, KindRow, Result, StoreError, rules};

const KINDS: Query<'_> = Query { name: "kinds", sql: "SELECT kind, pause, duty_holder, duty_expires_at, duty_epoch FROM kinds" };
const PAUSED: Query<'_> = Query { name: "paused_kinds", sql: "SELECT kind FROM kinds WHERE pause IS NOT NULL" };
const PAUSE: Query<'_> = Query {
    name: "pause_kind",
    sql: "INSERT INTO kinds (kind, pause) VALUES (?1, ?2) ON CONFLICT (kind) DO UPDATE SET pause = excluded.pause",
};
const DUTY: Query<'_> = Query {
    name: "set_duty",
    sql: "INSERT INTO kinds (kind, duty_holder, duty_epoch) VALUES ('kill', ?1, ?2) \
          ON CONFLICT (kind) DO UPDATE SET duty_holder = excluded.duty_holder, duty_epoch = excluded.duty_epoch",
};

pub(super) fn all(db: &Db<'_>) -> Result<Vec<KindRow>> {
    let found = db.all(&KINDS, [], |r| {
        let pause = match r.get_ref(1)? {
            ValueRef::Null => None,
            _ => Some(from_json(r, 1)?),
        };
        let expires_at = r.get::<_, Option<i64>>(3)?.map(Timestamp::from_micros);
        let duty = Lease { holder: r.get(2)?, expires_at, epoch: r.get::<_, i64>(4)?.unsigned_abs() };
        Ok(KindRow { kind: from_word(r, 0)?, pause, duty })
    })?;
    let row = |kind| found.iter().find(|r| r.kind == kind).cloned().unwrap_or_else(|| rules::kind(kind));
    Ok(Kind::ALL.map(row).into())
}

pub(super) fn paused(db: &Db<'_>) -> Result<HashSet<Kind>> {
    Ok(db.all(&PAUSED, [], |r| from_word(r, 0))?.into_iter().collect())
}

pub(super) fn set_pause(db: &Db<'_>, kind: Kind, by: &By, pause: bool) -> Result<KindRow> {
    let mut row = one(db, kind)?;
    if let Some(told) = rules::pause_kind(&mut row, by, pause) {
        let who = row.pause.as_ref().map(|by| db.json(PAUSE.name, by)).transpose()?;
        db.execute(&PAUSE, params![kind.as_str(), who])?;
        audit::append(db, [&told])?;
        db.changed(Change::Kinds);
    }
    Ok(row)
}

fn one(db: &Db<'_>, kind: Kind) -> Result<KindRow> {
    Ok(all(db)?.into_iter().find(|r| r.kind == kind).unwrap_or_else(|| rules::kind(kind)))
}

/// The file's lock is the proof that nobody else has it, so it does not run out.
pub(super) fn take_duty(db: &Db<'_>, holder: &str, now: Timestamp) -> Result<Option<Duty>> {
    let mut duty = one(db, Kind::Kill)?.duty;
    let Some(told) = rules::take_duty(&mut duty, holder, None, now) else { return Ok(None) };
    db.execute(&DUTY, params![duty.holder, int(duty.epoch)])?;
    audit::append(db, [&told])?;
    db.changed(Change::Kinds);
    Ok(Some(Duty { epoch: duty.epoch, expires_at: None }))
}

pub(super) fn renew_duty(db: &Db<'_>, epoch: u64) -> Result<Duty> {
    let duty = one(db, Kind::Kill)?.duty;
    match duty.holder.is_some() && duty.epoch == epoch {
        true => Ok(Duty { epoch, expires_at: None }),
        false => Err(StoreError::DutyLost { epoch }),
    }
}

pub(super) fn give_up_duty(db: &Db<'_>, epoch: u64, now: Timestamp) -> Result<()> {
    let mut duty = one(db, Kind::Kill)?.duty;
    if let Some(told) = rules::give_up_duty(&mut duty, epoch, now) {
        db.execute(&DUTY, params![duty.holder, int(duty.epoch)])?;
        audit::append(db, [&told])?;
        db.changed(Change::Kinds);
    }
    Ok(())
}
