//! Giving out leases. Rows that another controller is about to take are skipped, not waited for.

use std::time::Duration;

use curfew_core::operation::{Kind, Operation};
use curfew_core::{OpId, Timestamp};
use futures::future::try_join_all;
use tokio_postgres::Row;
use uuid::Uuid;

use super::group::NOW;
use super::record;
use super::session::{Done, Params, Query, Session, Sessions};
use super::trouble::Trouble;
use crate::Wanted;
use crate::rows::Rows;

const SHARE_KINDS: Query = Query { name: "lease_lock", sql: "SELECT pg_advisory_xact_lock_shared($1)" };
const PAUSED: Query = Query { name: "paused_kinds", sql: "SELECT kind FROM kinds WHERE pause IS NOT NULL" };
const NUDGED: Query = Query {
    name: "lease_nudged",
    sql: "SELECT * FROM operations WHERE id = ANY($3) AND kind = $1 AND state IN ('queued', 'waiting') ORDER BY run_at, id LIMIT $2 \
          FOR UPDATE SKIP LOCKED",
};
/// Not those that were nudged: they are taken, though nothing of that is written yet.
const DUE: Query = Query {
    name: "lease_due",
    sql: "SELECT * FROM operations WHERE kind = $1 AND state IN ('queued', 'waiting') AND run_at <= (SELECT curfew_now()) \
          AND id <> ALL($3) ORDER BY run_at, id LIMIT $2 FOR UPDATE SKIP LOCKED",
};
const EXPIRED: Query = Query {
    name: "lease_expired",
    sql: "SELECT * FROM operations WHERE kind = $1 AND state = 'running' AND lease_expires_at <= (SELECT curfew_now()) \
          AND id <> ALL($3) ORDER BY run_at, id LIMIT $2 FOR UPDATE SKIP LOCKED",
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
    session.begin().await?;
    match take(&session, sessions, call).await {
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

async fn take(session: &Session, sessions: &Sessions, call: &Call<'_>) -> Done<Vec<Operation>> {
    let lock = &sessions.kinds_lock;
    // Sent together, answered in this order: what is paused is read under the lock.
    let lock: Params<'_> = &[lock];
    let (_, now, paused) = tokio::try_join!(session.all(&SHARE_KINDS, lock), session.all(&NOW, &[]), session.all(&PAUSED, &[]))?;
    let now = now.first().map_or(Ok(call.now), |row| session.reader(row, NOW.name).instant("now"))?;
    let paused = paused.iter().map(|row| session.reader(row, PAUSED.name).word("kind")).collect::<Done<Vec<Kind>>>()?;
    let wanted = call.wanted.iter().filter(|w| !paused.contains(&w.kind)).copied().collect();
    let mut room = Room { wanted, limit: call.limit };
    let mut rows = Rows::default();
    rows.skew = now.as_micros().saturating_sub(call.now.as_micros());
    let mut taken = Vec::new();

    let nudged: Vec<Uuid> = call.ids.iter().map(|id| id.uuid()).collect();
    if !nudged.is_empty() {
        let found = of_each(session, &room, &NUDGED, &nudged).await?;
        hand_out(session, call, found, &mut room, &mut rows, &mut taken)?;
    }
    let already: Vec<Uuid> = taken.iter().map(|op: &Operation| op.id.uuid()).collect();
    let (due, expired) = tokio::try_join!(of_each(session, &room, &DUE, &already), of_each(session, &room, &EXPIRED, &already),)?;
    for found in [due, expired] {
        hand_out(session, call, found, &mut room, &mut rows, &mut taken)?;
    }
    if !taken.is_empty() {
        let wrote = rows.take_wrote();
        session.write(&rows, &wrote, &sessions.channel).await?;
    }
    Ok(taken)
}

/// One query a kind: each walks its own part of the index.
async fn of_each(session: &Session, room: &Room, q: &Query, ids: &Vec<Uuid>) -> Done<Vec<(Row, Duration)>> {
    let mut asked = Vec::new();
    for w in room.wanted.iter().filter(|w| room.of(w) > 0) {
        let (kind, limit) = (w.kind.as_str(), room.of(w));
        asked.push(async move {
            let rows = session.all(q, &[&kind, &limit, ids]).await?;
            Ok::<_, Trouble>(rows.into_iter().map(|row| (row, w.lease_for)).collect::<Vec<_>>())
        });
    }
    Ok(try_join_all(asked).await?.into_iter().flatten().collect())
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
