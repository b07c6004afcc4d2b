//! PostgreSQL: several controllers on one database. Its clock decides who holds a lease or the duty and what is due; whoever calls
//! sees instants by their own clock.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use curfew_core::access::Token;
use curfew_core::audit::{AuditEntry, AuditRow};
use curfew_core::clock::{ClockKey, ClockRecord};
use curfew_core::operation::{By, Intervention, Kind, Operation};
use curfew_core::{NodeId, OpId, Timestamp};
use tokio::sync::broadcast;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

mod connect;
mod group;
mod lease;
mod listen;
mod record;
mod schema;
mod session;
mod trouble;

pub(crate) use connect::Address;
use group::{Loaded, Needs, Writer, tell_kind};
use listen::Listener;
use session::{Query, Sessions, Tries};

use crate::{
    AuditFilter, CHANGES, Change, Created, DEFAULT_AUDIT, DEFAULT_OPERATIONS, Duty, Held, KindRow, NewOperation, OperationFilter,
    Pruned, QueueCount, QueueStatus, Result, StepResult, Store, Wanted, rules,
};

const BY_ID: Query = Query { name: "operation", sql: "SELECT * FROM operations WHERE id = $1" };
/// Absent conditions are NULL; the newest first.
const LIST: Query = Query {
    name: "operations",
    sql: "SELECT * FROM operations WHERE (cardinality($1::text[]) = 0 OR kind = ANY($1)) \
          AND (cardinality($2::text[]) = 0 OR state = ANY($2)) AND ($3::text IS NULL OR target = $3) \
          AND ($4::uuid IS NULL OR parent = $4) AND ($5::uuid IS NULL OR id < $5) AND (NOT $6::bool OR finished_at IS NULL) \
          ORDER BY id DESC LIMIT $7",
};
const LIVE: Query = Query {
    name: "live",
    sql: "SELECT * FROM operations WHERE kind = $1 AND finished_at IS NULL AND id > $2 ORDER BY id LIMIT $3",
};
const QUEUE: Query = Query {
    name: "queue_status",
    sql: "SELECT kind, state, count(*) AS count, min(requested_at) AS requested_at, min(run_at) AS run_at FROM operations \
          WHERE finished_at IS NULL GROUP BY kind, state ORDER BY kind COLLATE \"C\", state COLLATE \"C\"",
};
const RUNNING: Query = Query {
    name: "queue_running",
    sql: "SELECT id, kind, lease_holder, lease_expires_at, lease_epoch FROM operations WHERE state = 'running' \
          ORDER BY lease_expires_at, id",
};
const KINDS: Query = Query { name: "kinds", sql: "SELECT * FROM kinds" };
const CLAIMS: Query = Query { name: "claims", sql: "SELECT node, operation FROM claims ORDER BY node" };
const CLOCKS: Query = Query {
    name: "clocks",
    sql: "SELECT record FROM clocks WHERE (alloc, task, incarnation) > ($1, $2, $3) ORDER BY alloc, task, incarnation LIMIT $4",
};
const TOKEN: Query = Query { name: "token", sql: "SELECT record FROM tokens WHERE id = $1" };
const TOKENS: Query = Query { name: "tokens", sql: "SELECT record FROM tokens ORDER BY id COLLATE \"C\"" };
const AUDIT: Query = Query {
    name: "audit",
    sql: "SELECT * FROM audit WHERE seq > $1 AND ($2::uuid IS NULL OR operation = $2) AND ($3::bigint IS NULL OR at >= $3) \
          ORDER BY seq LIMIT $4",
};
/// Children go with their parents.
const PRUNE: Query = Query {
    name: "prune",
    sql: "WITH root AS (SELECT id FROM operations o WHERE finished_at < $1 AND parent IS NULL AND NOT EXISTS \
            (SELECT 1 FROM operations c WHERE c.parent = o.id AND c.finished_at IS NULL) \
            ORDER BY finished_at LIMIT $2 FOR UPDATE SKIP LOCKED), \
          children AS (DELETE FROM operations WHERE parent IN (SELECT id FROM root) RETURNING 1), \
          parents AS (DELETE FROM operations WHERE id IN (SELECT id FROM root) RETURNING 1) \
          SELECT (SELECT count(*) FROM children) + (SELECT count(*) FROM parents) AS count",
};
const PRUNE_AUDIT: Query = Query {
    name: "prune_audit",
    sql: "WITH gone AS (DELETE FROM audit WHERE seq IN (SELECT seq FROM audit a WHERE at < $1 AND NOT EXISTS \
            (SELECT 1 FROM operations o WHERE o.id = a.operation AND o.finished_at IS NULL) ORDER BY at LIMIT $2) RETURNING 1) \
          SELECT count(*) AS count FROM gone",
};
const CHECK: Query = Query { name: "check", sql: "UPDATE checks SET count = count + 1" };

/// The store in a PostgreSQL database. Needs a tokio runtime.
pub struct PostgresStore {
    sessions: Sessions,
    writer: Arc<Writer>,
    changes: broadcast::Sender<Change>,
    listener: Mutex<Option<Listener>>,
}

impl PostgresStore {
    /// Connects, brings the schema up to date under a lock, and listens for changes.
    ///
    /// `url` is as PostgreSQL's own programs have it. `sslmode` is `disable`, `prefer` (the default) or `require`; a certificate is
    /// always checked, by the system's roots or by those in `sslrootcert`. Each error says what to do, and none holds the password.
    pub async fn open(url: &str) -> Result<Arc<PostgresStore>> {
        Self::connect(Address::parse(url)?).await
    }

    pub(crate) async fn connect(address: Address) -> Result<Arc<PostgresStore>> {
        let (client, connection) = address.connect().await?;
        let driving = tokio::spawn(connection);
        let settled = schema::migrate(&client, &address.place).await;
        drop(client);
        // Ends with its client.
        let _ = driving.await;
        let settled = settled?;
        let (changes, _) = broadcast::channel(CHANGES);
        let sessions = Sessions {
            pool: address.pool()?,
            place: address.place.as_str().into(),
            channel: settled.channel.as_str().into(),
            kinds_lock: settled.kinds_lock,
        };
        let listener = Listener::start(address, settled.channel, changes.clone()).await?;
        let writer = Writer::new(sessions.clone());
        Ok(Arc::new(PostgresStore { sessions, writer, changes, listener: Mutex::new(Some(listener)) }))
    }

    async fn decide<T: Send + Sync + 'static>(
        &self,
        needs: Needs,
        work: impl Fn(&mut Loaded) -> Result<T> + Send + Sync + 'static,
    ) -> Result<T> {
        self.writer.run(needs, work).await
    }

    /// Changes the row of one kind.
    async fn kind<T: Send + Sync + 'static>(
        &self,
        kind: Kind,
        pauses: bool,
        work: impl Fn(&mut KindRow, Timestamp) -> (Result<T>, Option<AuditEntry>) + Send + Sync + 'static,
    ) -> Result<T> {
        let needs = Needs { kinds: true, pauses, ..Needs::default() };
        self.decide(needs, move |loaded| {
            let now = loaded.now;
            let row = loaded.kinds.entry(kind).or_insert_with(|| rules::kind(kind));
            let (answer, told) = work(row, now);
            tell_kind(loaded, told);
            answer
        })
        .await
    }

    async fn put(&self, clocks: Vec<(ClockKey, Option<ClockRecord>)>, audit: Vec<AuditEntry>) -> Result<()> {
        self.decide(Needs::default(), move |loaded| {
            loaded.clocks.extend(clocks.iter().cloned());
            loaded.rows.wrote.audit.extend(audit.iter().cloned());
            Ok(())
        })
        .await
    }

    /// How many rows it removed.
    async fn remove(&self, q: &Query, before: Timestamp, limit: i64) -> Result<u64> {
        let counted = self.sessions.read_as(q, &[&before.as_micros(), &limit], |r| r.count("count")).await?;
        Ok(counted.first().copied().unwrap_or(0))
    }

    async fn list(&self, q: &Query, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Operation>> {
        Ok(self.sessions.read_as(q, params, |r| r.operation()).await?)
    }
}

fn limit(asked: usize, default: usize) -> i64 {
    rows(if asked == 0 { default } else { asked })
}

fn rows(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

#[async_trait]
impl Store for PostgresStore {
    async fn create(&self, new: NewOperation) -> Result<Created> {
        let kind = new.request.kind();
        let needs = Needs {
            joins: kind.joins().then(|| (new.request.target().key(), kind)),
            key: new.idempotency.as_ref().map(|(key, _)| key.clone()),
            nodes: rules::fresh(new.clone()).claims(),
            ..Needs::default()
        };
        self.decide(needs, move |loaded| loaded.seen_at(new.at).create(new.clone())).await
    }

    async fn lease(&self, holder: &str, wanted: &[Wanted], ids: &[OpId], limit: usize, now: Timestamp) -> Result<Vec<Operation>> {
        let call = lease::Call { holder, wanted, ids, limit, now };
        let mut tries = Tries::default();
        loop {
            let done = self.sessions.within(lease::lease(&self.sessions, &call)).await;
            if !tries.again(&done) {
                return Ok(done?);
            }
        }
    }

    async fn renew(&self, id: OpId, epoch: u64, lease_for: Duration, now: Timestamp) -> Result<()> {
        let needs = Needs { ids: vec![id], ..Needs::default() };
        self.decide(needs, move |loaded| loaded.seen_at(now).renew(id, epoch, now + lease_for)).await
    }

    async fn finish_step(
        &self,
        leased: &Operation,
        result: StepResult,
        audit: Vec<AuditEntry>,
        now: Timestamp,
    ) -> Result<Operation> {
        let leased = leased.clone();
        // Its parent hears of its end.
        let parent = leased.parent.filter(|_| result.state.is_finished());
        let needs = Needs { ids: [leased.id].into_iter().chain(parent).collect(), ..Needs::default() };
        self.decide(needs, move |loaded| loaded.seen_at(now).finish(&leased, result.clone(), audit.clone(), now)).await
    }

    async fn intervene(&self, id: OpId, what: Intervention, by: By) -> Result<Operation> {
        let rivals = if what == Intervention::Retry { vec![id] } else { vec![] };
        let needs = Needs { ids: vec![id], rivals, family: vec![id], ..Needs::default() };
        self.decide(needs, move |loaded| loaded.seen_at(by.at).intervene(id, what, &by)).await
    }

    async fn claim(&self, id: OpId, nodes: Vec<NodeId>) -> Result<()> {
        let needs = Needs { ids: vec![id], nodes: nodes.clone(), ..Needs::default() };
        self.decide(needs, move |loaded| loaded.rows.claim(id, nodes.clone())).await
    }

    async fn claims(&self) -> Result<Vec<(NodeId, OpId)>> {
        Ok(self.sessions.read_as(&CLAIMS, &[], |r| Ok((r.get::<String>("node")?.into(), r.id("operation")?))).await?)
    }

    async fn operation(&self, id: OpId) -> Result<Option<Operation>> {
        Ok(self.list(&BY_ID, &[&id.uuid()]).await?.pop())
    }

    async fn operations(&self, filter: OperationFilter) -> Result<Vec<Operation>> {
        let kinds = record::words(filter.kinds.iter().copied());
        let states: Vec<&str> = filter.states.iter().map(|s| s.as_str()).collect();
        let live = !filter.states.is_empty() && filter.states.iter().all(|s| !s.is_finished());
        let target = filter.target.map(|t| t.key());
        let (parent, before): (Option<Uuid>, Option<Uuid>) = (filter.parent.map(|p| p.uuid()), filter.before.map(|b| b.uuid()));
        let limit = limit(filter.limit, DEFAULT_OPERATIONS);
        self.list(&LIST, &[&kinds, &states, &target, &parent, &before, &live, &limit]).await
    }

    async fn live_after(&self, kind: Kind, after: OpId, limit: usize) -> Result<Vec<Operation>> {
        self.list(&LIVE, &[&kind.as_str(), &after.uuid(), &rows(limit)]).await
    }

    async fn next_due(&self, kinds: &[Kind], now: Timestamp) -> Result<Option<Timestamp>> {
        Ok(lease::next_due(&self.sessions, kinds, now).await?)
    }

    async fn queue_status(&self) -> Result<QueueStatus> {
        let counts = self.sessions.read_as(&QUEUE, &[], |r| {
            Ok(QueueCount {
                kind: r.word("kind")?,
                state: r.word("state")?,
                count: r.count("count")?,
                oldest_requested_at: r.instant("requested_at")?,
                oldest_run_at: r.instant("run_at")?,
            })
        });
        let counts = counts.await?;
        let running = self.sessions.read_as(&RUNNING, &[], |r| {
            let lease = r.lease("lease_holder", "lease_expires_at", "lease_epoch")?;
            Ok(Held { id: r.id("id")?, kind: r.word("kind")?, lease })
        });
        Ok(QueueStatus { counts, running: running.await? })
    }

    async fn kinds(&self) -> Result<Vec<KindRow>> {
        let found = self.sessions.read_as(&KINDS, &[], |r| r.kind()).await?;
        let row = |kind| found.iter().find(|r| r.kind == kind).cloned().unwrap_or_else(|| rules::kind(kind));
        Ok(Kind::ALL.map(row).into())
    }

    async fn pause_kind(&self, kind: Kind, by: By) -> Result<KindRow> {
        self.kind(kind, true, move |row, _| {
            let told = rules::pause_kind(row, &by, true);
            (Ok(row.clone()), told)
        })
        .await
    }

    async fn resume_kind(&self, kind: Kind, by: By) -> Result<KindRow> {
        self.kind(kind, false, move |row, _| {
            let told = rules::pause_kind(row, &by, false);
            (Ok(row.clone()), told)
        })
        .await
    }

    async fn take_duty(&self, holder: &str, lease_for: Duration, _now: Timestamp) -> Result<Option<Duty>> {
        let holder = holder.to_owned();
        self.kind(Kind::Kill, false, move |row, now| {
            let told = rules::take_duty(&mut row.duty, &holder, Some(lease_for), now);
            let duty = told.is_some().then_some(Duty { epoch: row.duty.epoch, expires_at: row.duty.expires_at });
            (Ok(duty), told)
        })
        .await
    }

    async fn renew_duty(&self, epoch: u64, lease_for: Duration, _now: Timestamp) -> Result<Duty> {
        self.kind(Kind::Kill, false, move |row, now| (rules::renew_duty(&mut row.duty, epoch, lease_for, now), None)).await
    }

    async fn give_up_duty(&self, epoch: u64, now: Timestamp) -> Result<()> {
        self.kind(Kind::Kill, false, move |row, _| (Ok(()), rules::give_up_duty(&mut row.duty, epoch, now))).await
    }

    fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    async fn prune(&self, finished_before: Timestamp, audit_before: Timestamp, limit: usize) -> Result<Pruned> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let (operations, audit) =
            (self.remove(&PRUNE, finished_before, limit).await?, self.remove(&PRUNE_AUDIT, audit_before, limit).await?);
        Ok(Pruned { operations, audit })
    }

    async fn put_clocks(&self, clocks: Vec<ClockRecord>, audit: Vec<AuditEntry>) -> Result<()> {
        self.put(clocks.into_iter().map(|c| (c.key.clone(), Some(c))).collect(), audit).await
    }

    async fn remove_clocks(&self, keys: Vec<ClockKey>, audit: Vec<AuditEntry>) -> Result<()> {
        self.put(keys.into_iter().map(|key| (key, None)).collect(), audit).await
    }

    async fn clocks_after(&self, after: Option<ClockKey>, limit: usize) -> Result<Vec<ClockRecord>> {
        let (alloc, task, incarnation) =
            after.as_ref().map_or(("", "", 0), |k| (k.alloc.as_str(), k.task.as_str(), k.incarnation.as_micros()));
        Ok(self.sessions.read_as(&CLOCKS, &[&alloc, &task, &incarnation, &rows(limit)], |r| r.clock()).await?)
    }

    async fn put_token(&self, token: Token, audit: Vec<AuditEntry>) -> Result<()> {
        self.decide(Needs::default(), move |loaded| {
            loaded.tokens.insert(token.id.clone(), token.clone());
            loaded.rows.wrote.audit.extend(audit.iter().cloned());
            Ok(())
        })
        .await
    }

    async fn token(&self, id: &str) -> Result<Option<Token>> {
        Ok(self.sessions.read_as(&TOKEN, &[&id], |r| r.token()).await?.pop())
    }

    async fn tokens(&self) -> Result<Vec<Token>> {
        Ok(self.sessions.read_as(&TOKENS, &[], |r| r.token()).await?)
    }

    async fn append_audit(&self, audit: Vec<AuditEntry>) -> Result<()> {
        self.put(vec![], audit).await
    }

    async fn audit(&self, filter: AuditFilter) -> Result<Vec<AuditRow>> {
        let after = i64::try_from(filter.after_seq).unwrap_or(i64::MAX);
        let operation: Option<Uuid> = filter.operation.map(|id| id.uuid());
        let since = filter.since.map(Timestamp::as_micros);
        let limit = limit(filter.limit, DEFAULT_AUDIT);
        Ok(self.sessions.read_as(&AUDIT, &[&after, &operation, &since, &limit], |r| r.audit()).await?)
    }

    async fn check(&self) -> Result<()> {
        Ok(self.sessions.read(&CHECK, &[]).await.map(drop)?)
    }

    async fn close(&self) -> Result<()> {
        self.writer.close().await;
        drop(self.listener.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.sessions.pool.close();
        Ok(())
    }
}
