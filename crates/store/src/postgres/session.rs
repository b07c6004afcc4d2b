//! Connections from the pool, transactions on them, and queries that have names.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use curfew_core::OpId;
use curfew_core::operation::Operation;
use deadpool_postgres::{ClientWrapper, Object, Pool, PoolError};
use futures::future::try_join_all;
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::record::{self, Reader};
use super::trouble::{self, Trouble};
use crate::Change;
use crate::rows::{Rows, Wrote};

pub(super) type Done<T> = Result<T, Trouble>;
pub(super) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// A statement; its name is what errors call it.
pub(super) struct Query {
    pub(super) name: &'static str,
    pub(super) sql: &'static str,
}

const INSERT: Query = Query {
    name: "insert_operations",
    sql: "INSERT INTO operations SELECT * FROM json_populate_recordset(NULL::operations, $1::text::json)",
};
const UPDATE: Query = Query {
    name: "update_operations",
    sql: "UPDATE operations o SET state = r.state, deadline = r.deadline, finished_at = r.finished_at, waiting_for = r.waiting_for, \
          progress = r.progress, outcome = r.outcome, error = r.error, warnings = r.warnings, attempts = r.attempts, \
          run_at = r.run_at, lease_holder = r.lease_holder, lease_expires_at = r.lease_expires_at, lease_epoch = r.lease_epoch, \
          revision = r.revision, cancel = r.cancel, pause = r.pause \
          FROM json_populate_recordset(NULL::operations, $1::text::json) r WHERE o.id = r.id",
};
const REQUESTS: Query = Query {
    name: "update_requests",
    sql: "UPDATE operations o SET request = r.request FROM json_populate_recordset(NULL::operations, $1::text::json) r \
          WHERE o.id = r.id",
};
const KEYS: Query = Query {
    name: "remember_idempotency_keys",
    sql: "INSERT INTO idempotency_keys SELECT * FROM json_populate_recordset(NULL::idempotency_keys, $1::text::json)",
};
const AUDIT: Query = Query {
    name: "append_audit",
    sql: "WITH numbered AS (UPDATE audit_end SET seq = seq + $2 RETURNING seq) \
          INSERT INTO audit SELECT numbered.seq - $2 + r.seq, r.at, r.operation, r.actor, r.action, r.alloc, r.task, r.detail \
          FROM numbered, json_populate_recordset(NULL::audit, $1::text::json) r",
};
/// Somebody else's claim of the same node is found by the next try.
const CLAIM: Query =
    Query { name: "claim", sql: "INSERT INTO claims SELECT * FROM json_populate_recordset(NULL::claims, $1::text::json)" };
const RELEASE: Query = Query {
    name: "release_claims",
    sql: "DELETE FROM claims c USING json_populate_recordset(NULL::claims, $1::text::json) r WHERE c.operation = r.operation",
};
const NOTIFY: Query = Query { name: "notify", sql: "SELECT pg_notify($1, told) FROM unnest($2::text[]) told" };

/// What every connection of one store shares.
#[derive(Clone)]
pub(super) struct Sessions {
    pub(super) pool: Pool,
    pub(super) place: Arc<str>,
    /// On which changes are told; one for each schema.
    pub(super) channel: Arc<str>,
    /// Advisory lock: leases share it, pausing a kind takes it alone.
    pub(super) kinds_lock: i64,
}

impl Sessions {
    /// A connection that goes back to the pool only when its transaction was ended properly.
    pub(super) async fn session(&self) -> Done<Session> {
        let client = self.pool.get().await.map_err(|e| match e {
            PoolError::Backend(e) => trouble::sql(&self.place, "connect", e),
            PoolError::Closed => trouble::closed(&self.place),
            PoolError::Timeout(_) => trouble::late(&self.place, "connect"),
            e => Trouble::said(format!("{}: no connection could be made: {e}", self.place), true),
        })?;
        Ok(Session { client: Some(client), place: Arc::clone(&self.place), clean: true })
    }

    pub(super) async fn read(&self, q: &Query, params: Params<'_>) -> Done<Vec<Row>> {
        let mut tries = Tries::default();
        loop {
            let done = self.within(self.read_once(q, params)).await;
            if !tries.again(&done) {
                return done;
            }
        }
    }

    async fn read_once(&self, q: &Query, params: Params<'_>) -> Done<Vec<Row>> {
        let mut session = self.session().await?;
        // Given back only after its answer: what was asked for last may still be on its way.
        session.clean = false;
        let rows = session.all(q, params).await?;
        session.clean = true;
        Ok(rows)
    }

    /// Beyond the server's own statement timeout: it did not even answer.
    pub(super) async fn within<T>(&self, work: impl Future<Output = Done<T>>) -> Done<T> {
        const DEADLINE: Duration = Duration::from_secs(20);
        tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| Err(trouble::late(&self.place, "transaction")))
    }

    pub(super) async fn read_as<T>(&self, q: &Query, params: Params<'_>, each: impl Fn(&Reader<'_>) -> Done<T>) -> Done<Vec<T>> {
        let rows = self.read(q, params).await?;
        rows.iter().map(|row| each(&Reader { row, query: q.name, place: &self.place })).collect()
    }
}

/// Something is done again while nothing was written: after a broken connection, or when another controller's write came first.
#[derive(Default)]
pub(super) struct Tries(u32);

impl Tries {
    pub(super) fn again<T>(&mut self, done: &Done<T>) -> bool {
        const MOST: u32 = 5;
        self.0 += 1;
        self.0 < MOST && done.as_ref().is_err_and(|t| t.retry)
    }
}

pub(super) struct Session {
    client: Option<Object>,
    pub(super) place: Arc<str>,
    clean: bool,
}

impl Deref for Session {
    type Target = ClientWrapper;
    fn deref(&self) -> &ClientWrapper {
        self.client.as_ref().expect("taken only when dropped")
    }
}

impl Drop for Session {
    /// Somebody gave up in the middle of a transaction: its end is the connection's.
    fn drop(&mut self) {
        if let Some(client) = self.client.take()
            && !self.clean
        {
            drop(Object::take(client));
        }
    }
}

impl Session {
    pub(super) async fn all(&self, q: &Query, params: Params<'_>) -> Done<Vec<Row>> {
        let run = async {
            let statement = self.prepare_cached(q.sql).await?;
            self.query(&statement, params).await
        };
        run.await.map_err(|e| trouble::sql(&self.place, q.name, e))
    }

    /// Begins a transaction and asks everything in one flight: the answers come in the order of the queries.
    pub(super) async fn begin(&mut self, steps: &[(&Query, Params<'_>)]) -> Done<Vec<Vec<Row>>> {
        self.clean = false;
        let begin = async { self.batch_execute("BEGIN").await.map_err(|e| trouble::sql(&self.place, "begin", e)) };
        tokio::try_join!(begin, self.flight(steps)).map(|((), rows)| rows)
    }

    /// Sends all of them before it waits for the first answer; the server does one after the other.
    pub(super) async fn flight(&self, steps: &[(&Query, Params<'_>)]) -> Done<Vec<Vec<Row>>> {
        // Known statements cost nothing here, and the order of sending is that of `steps`.
        let mut statements = Vec::new();
        for (q, _) in steps {
            statements.push(self.prepare_cached(q.sql).await.map_err(|e| trouble::sql(&self.place, q.name, e))?);
        }
        let asked = steps.iter().zip(&statements).map(async |((q, params), statement)| {
            self.query(statement, params).await.map_err(|e| trouble::sql(&self.place, q.name, e))
        });
        try_join_all(asked).await
    }

    pub(super) async fn commit(mut self) -> Done<()> {
        match self.batch_execute("COMMIT").await {
            Ok(()) => {
                self.clean = true;
                Ok(())
            }
            // The server said no: nothing is written.
            Err(e) if e.as_db_error().is_some() => Err(trouble::sql(&self.place, "commit", e)),
            Err(e) => Err(trouble::unknown(&self.place, e)),
        }
    }

    /// After something failed: the connection is good for others when this works.
    pub(super) async fn rollback(mut self) {
        self.clean = self.batch_execute("ROLLBACK").await.is_ok();
    }

    pub(super) fn reader<'r>(&'r self, row: &'r Row, query: &'static str) -> Reader<'r> {
        Reader { row, query, place: &self.place }
    }

    /// Writes down what the rules made of the rows, after `first`, in one flight. The trail is last: whoever numbers it holds up
    /// every other writer until the commit.
    pub(super) async fn write(&self, first: &[(&Query, Vec<Value>)], rows: &Rows, wrote: &Wrote, channel: &str) -> Done<()> {
        let of = |ids: &BTreeSet<OpId>, f: fn(&Operation) -> Value| -> Vec<Value> {
            ids.iter().filter_map(|id| rows.stored(*id)).map(f).collect()
        };
        let keys = wrote.keys.iter().map(|(key, digest, id)| record::key(key, digest, *id)).collect();
        let released = wrote.released.iter().map(|id| record::claim("", *id)).collect();
        let claimed = wrote.claimed.iter().map(|(node, id)| record::claim(node.as_str(), *id)).collect();
        // What ended makes room for what lives on the same target from now on.
        let is_over = |id: &OpId| rows.stored(*id).is_some_and(|op| op.state.is_finished());
        let (ended, others): (BTreeSet<OpId>, BTreeSet<OpId>) = wrote.updated.iter().copied().partition(is_over);
        let own = [
            (&UPDATE, of(&ended, record::changing)),
            (&UPDATE, of(&others, record::changing)),
            (&INSERT, of(&wrote.inserted, record::whole)),
            (&REQUESTS, of(&wrote.requests, record::request)),
            (&KEYS, keys),
            (&RELEASE, released),
            (&CLAIM, claimed),
        ];
        let all = first.iter().map(|(q, rows)| (*q, rows)).chain(own.iter().map(|(q, rows)| (*q, rows)));
        let texts: Vec<(&Query, String)> =
            all.filter(|(_, rows)| !rows.is_empty()).map(|(q, rows)| (q, Value::from(rows.as_slice()).to_string())).collect();
        let params: Vec<[&(dyn ToSql + Sync); 1]> = texts.iter().map(|(_, text)| [text as &(dyn ToSql + Sync)]).collect();
        let mut steps: Vec<(&Query, Params<'_>)> =
            texts.iter().zip(&params).map(|((q, _), params)| (*q, params.as_slice())).collect();
        let told = payloads(&wrote.changes);
        let notify: [&(dyn ToSql + Sync); 2] = [&channel, &told];
        if !told.is_empty() {
            steps.push((&NOTIFY, &notify));
        }
        let audit: Vec<Value> = wrote.audit.iter().enumerate().map(|(i, e)| record::entry(i + 1, e)).collect();
        let count = audit.len() as i64;
        let audit = Value::Array(audit).to_string();
        let append: [&(dyn ToSql + Sync); 2] = [&audit, &count];
        if count > 0 {
            steps.push((&AUDIT, &append));
        }
        self.flight(&steps).await.map(drop)
    }
}

/// Changes as they are notified: `+id` when an operation is due, `-id` when a step of it ended, `k` for the kinds; as many in one
/// message as fit.
fn payloads(changes: &[Change]) -> Vec<String> {
    const FIT: usize = 200;
    let word = |c: &Change| match c {
        Change::Operation { id, due: true } => format!("+{id}"),
        Change::Operation { id, due: false } => format!("-{id}"),
        Change::Kinds | Change::Missed => "k".to_owned(),
    };
    changes.chunks(FIT).map(|some| some.iter().map(word).collect::<Vec<_>>().join(",")).collect()
}

pub(super) fn parse(payload: &str) -> Vec<Change> {
    let change = |word: &str| match (word.get(..1)?, word.get(1..)?) {
        ("k", "") => Some(Change::Kinds),
        (sign @ ("+" | "-"), id) => Some(Change::Operation { id: id.parse().ok()?, due: sign == "+" }),
        _ => None,
    };
    // What a newer controller says and this one does not know: better look at everything.
    payload.split(',').map(|word| change(word).unwrap_or(Change::Missed)).collect()
}
