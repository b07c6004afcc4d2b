//! Giving out leases. Rows that another controller is about to take are skipped, not waited for.

use std::time::Duration;

use curfew_core::operation::{Kind, Operation};
use curfew_core::{OpId, Timestamp};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::group::NOW;
use super::record;
use super::session::{Done, Params, Query, Session, Sessions};
use crate::Wanted;
use crate::rows::Rows;

const SHARE_KINDS: Query = Query { name: "lease_lock", sql: "SELECT pg_advisory_xact_lock_shared($1)" };
const NUDGED: Query = Query {
    name: "lease_nudged",
    sql: "SELECT * FROM operations WHERE id = ANY($3) AND kind = $1 AND state IN ('queued', 'waiting') \
          AND NOT EXISTS (SELECT 1 FROM kinds k WHERE k.kind = $1 AND k.pause IS NOT NULL) \
          ORDER BY run_at, id LIMIT $2 FOR UPDATE SKIP LOCKED",
};
/// Not those that were nudged: they are taken, though nothing of that is written yet.
const DUE: Query = Query {
    name: "lease_due",
    sql: "SELECT * FROM operations WHERE kind = $1 AND state IN ('queued', 'waiting') AND run_at <= (SELECT curfew_now()) \
          AND id <> ALL($3) AND NOT EXISTS (SELECT 1 FROM kinds k WHERE k.kind = $1 AND k.pause IS NOT NULL) \
          ORDER BY run_at, id LIMIT $2 FOR UPDATE SKIP LOCKED",
};
const EXPIRED: Query = Query {
    name: "lease_expired",
    sql: "SELECT * FROM operations WHERE kind = $1 AND state = 'running' AND lease_expires_at <= (SELECT curfew_now()) \
          AND id <> ALL($3) AND NOT EXISTS (SELECT 1 FROM kinds k WHERE k.kind = $1 AND k.pause IS NOT NULL) \
          ORDER BY run_at, id LIMIT $2 FOR UPDATE SKIP LOCKED",
};
/// In microseconds from now.
const NEXT: Query = Query {
    name: "next_due",
    sql: "SELECT min(at) - curfew_now() AS within FROM unnest($1::text[]) AS k (kind), LATERAL ( \
            SELECT min(run_at) AS at FROM operations o WHERE o.kind = k.kind AND state IN ('queued', 'waiting') \
            UNION ALL \
            SELECT min(lease_expires_at) FROM operations o WHERE o.kind = k.kind AND state = 'running') due \
          WHERE NOT EXISTS (SELECT 1 FROM kinds WHERE kinds.kind = k.kind AND pause IS NOT NULL)",
};

/// A call of `lease`, as it was made.
pub(super) struct Call<'c> {
    pub(super) holder: &'c str,
    pub(super) wanted: &'c [Wanted],
    pub(super) ids: &'c [OpId],
    pub(super) limit: usize,
    pub(super) now: Timestamp,
}

pub(super) async fn lease(sessions: &Sessions, call: &Call<'_>) -> Done<Vec<Operation>> {
    let mut session = sessions.session().await?;
    match take(&mut session, sessions, call).await {
        Ok(taken) if taken.is_empty() => {
            session.rollback().await;
            Ok(taken)
        }
        Ok(taken) => session.commit().await.map(|()| taken),
        Err(trouble) => {
            if !trouble.broke_connection() {
                session.rollback().await;
            }
            Err(trouble)
        }
    }
}

/// What is left to give out.
struct Room {
    wanted: Vec<Wanted>,
    limit: usize,
}

impl Room {
    fn of(&self, w: &Wanted) -> i64 {
        i64::try_from(w.limit.min(self.limit)).unwrap_or(i64::MAX)
    }
}

async fn take(session: &mut Session, sessions: &Sessions, call: &Call<'_>) -> Done<Vec<Operation>> {
    let mut room = Room { wanted: call.wanted.to_vec(), limit: call.limit };
    let nudged: Vec<Uuid> = call.ids.iter().map(|id| id.uuid()).collect();
    let none: Vec<Uuid> = Vec::new();
    // Sent together, answered in this order: what is paused is read under the lock. What was nudged must be taken before the rest is
    // asked for.
    let queries: &[&Query] = if nudged.is_empty() { &[&DUE, &EXPIRED] } else { &[&NUDGED] };
    let asks = Asks::new(&room, queries, if nudged.is_empty() { &none } else { &nudged });
    let lock: Params<'_> = &[&sessions.kinds_lock];
    let asked = asks.steps();
    let mut steps = vec![(&SHARE_KINDS, lock), (&NOW, &[] as Params<'_>)];
    steps.extend(asked.iter().map(|(q, params)| (*q, params.as_slice())));
    let mut answers = session.begin(&steps).await?.into_iter().skip(1);
    let now = answers.next().unwrap_or_default();
    let now = now.first().map_or(Ok(call.now), |row| session.reader(row, NOW.name).instant("now"))?;
    let mut rows = Rows::default();
    rows.skew = now.as_micros().saturating_sub(call.now.as_micros());
    let mut taken = Vec::new();
    for found in asks.by_query(answers) {
        hand_out(session, call, found, &mut room, &mut rows, &mut taken)?;
    }
    if !nudged.is_empty() && room.limit > 0 {
        let already: Vec<Uuid> = taken.iter().map(|op: &Operation| op.id.uuid()).collect();
        let asks = Asks::new(&room, &[&DUE, &EXPIRED], &already);
        let asked = asks.steps();
        let steps: Vec<(&Query, Params<'_>)> = asked.iter().map(|(q, params)| (*q, params.as_slice())).collect();
        for found in asks.by_query(session.flight(&steps).await?.into_iter()) {
            hand_out(session, call, found, &mut room, &mut rows, &mut taken)?;
        }
    }
    if !taken.is_empty() {
        let wrote = rows.take_wrote();
        session.write(&[], &rows, &wrote, &sessions.channel).await?;
    }
    Ok(taken)
}

/// One question a query and kind: each walks its own part of the index.
struct Asks<'a> {
    of: Vec<(&'a Query, &'static str, i64, Duration)>,
    ids: &'a Vec<Uuid>,
    queries: usize,
}

impl<'a> Asks<'a> {
    fn new(room: &Room, queries: &[&'a Query], ids: &'a Vec<Uuid>) -> Self {
        let kinds = || room.wanted.iter().filter(|w| room.of(w) > 0).map(|w| (w.kind.as_str(), room.of(w), w.lease_for));
        let of = queries.iter().flat_map(|q| kinds().map(|(kind, limit, lease_for)| (*q, kind, limit, lease_for))).collect();
        Asks { of, ids, queries: queries.len() }
    }

    fn steps(&self) -> Vec<(&'a Query, [&(dyn ToSql + Sync); 3])> {
        self.of.iter().map(|(q, kind, limit, _)| (*q, [kind as &(dyn ToSql + Sync), limit, self.ids])).collect()
    }

    /// What each query found, of all kinds.
    fn by_query(&self, answers: impl Iterator<Item = Vec<Row>>) -> Vec<Vec<(Row, Duration)>> {
        let kinds = self.of.len() / self.queries.max(1);
        let mut found: Vec<Vec<(Row, Duration)>> = (0..self.queries).map(|_| Vec::new()).collect();
        for (i, (rows, (.., lease_for))) in answers.zip(&self.of).enumerate() {
            if let Some(found) = found.get_mut(i / kinds.max(1)) {
                found.extend(rows.into_iter().map(|row| (row, *lease_for)));
            }
        }
        found
    }
}

fn hand_out(
    session: &Session,
    call: &Call<'_>,
    found: Vec<(Row, Duration)>,
    room: &mut Room,
    rows: &mut Rows,
    taken: &mut Vec<Operation>,
) -> Done<()> {
    let read = |(row, lease_for): &(Row, Duration)| Ok((session.reader(row, "lease").operation()?, *lease_for));
    let mut found = found.iter().map(read).collect::<Done<Vec<(Operation, Duration)>>>()?;
    found.sort_by_key(|(op, _)| (op.run_at, op.id));
    for (op, lease_for) in found {
        let Some(w) = room.wanted.iter_mut().find(|w| w.kind == op.kind() && w.limit > 0 && room.limit > 0) else { continue };
        let id = op.id;
        rows.load(op);
        if let Some(op) = rows.lease(id, call.holder, lease_for, call.now) {
            w.limit -= 1;
            room.limit -= 1;
            taken.push(op);
        }
    }
    Ok(())
}

/// By the caller's clock.
pub(super) async fn next_due(sessions: &Sessions, kinds: &[Kind], now: Timestamp) -> Done<Option<Timestamp>> {
    let kinds = record::words(kinds.iter().copied());
    let within = sessions.read_as(&NEXT, &[&kinds], |r| r.get::<Option<i64>>("within")).await?.pop().flatten();
    Ok(within.map(|within| Timestamp::from_micros(now.as_micros().saturating_add(within))))
}
