//! Writes that come together share a transaction: a hundred callers cost one flush of the disk, and one turn at the lock that
//! every NOTIFY takes, not a hundred. A group locks and loads the rows that its requests are about, decides each in memory by the
//! same rules as every other backend, and writes down what came of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use curfew_core::access::Token;
use curfew_core::clock::{ClockKey, ClockRecord};
use curfew_core::operation::Kind;
use curfew_core::{NodeId, OpId, Timestamp};
use serde_json::Value;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use uuid::Uuid;

use super::record;
use super::session::{Done, Params, Query, Session, Sessions, Tries};
use super::trouble::{self, Trouble};
use crate::rows::Rows;
use crate::{Change, KindRow, Result, StoreError};

/// How many requests may wait; more wait for room.
const ROOM: usize = 4096;
/// How many requests share a commit.
const GROUP: usize = 256;
/// Callers that were answered together often come again together; for so long the next group waits for as many. Else the first to come
/// would have a commit of its own, and the others wait for that.
const GATHER: Duration = Duration::from_millis(1);

pub(super) const NOW: Query = Query { name: "now", sql: "SELECT curfew_now() AS now" };
pub(super) const LOCKED: Query =
    Query { name: "lock_operations", sql: "SELECT * FROM operations WHERE id = ANY($1) ORDER BY id FOR UPDATE" };
/// The live operations that new requests join.
const LIVE_ON: Query = Query {
    name: "live_on_target",
    sql: "SELECT o.id FROM unnest($1::text[], $2::text[]) AS w (target, kind) JOIN operations o ON o.target = w.target \
          AND o.kind = w.kind WHERE o.kind <> 'submit' AND o.finished_at IS NULL",
};
/// Those that stand in the way of trying these again.
const RIVALS: Query = Query {
    name: "rivals",
    sql: "SELECT o.id FROM operations w JOIN operations o ON o.target = w.target AND o.kind = w.kind \
          WHERE w.id = ANY($1) AND o.kind <> 'submit' AND o.finished_at IS NULL",
};
/// Whose life hangs together with these: live children, and parents.
const FAMILY: Query = Query {
    name: "family",
    sql: "SELECT o.id FROM operations o WHERE (o.parent = ANY($1) AND o.finished_at IS NULL) \
          OR o.id IN (SELECT parent FROM operations WHERE id = ANY($1) AND parent IS NOT NULL)",
};
const HOLDERS: Query = Query { name: "claim_holders", sql: "SELECT node, operation FROM claims WHERE node = ANY($1)" };
const KEYS: Query =
    Query { name: "idempotency_keys", sql: "SELECT key, digest, operation FROM idempotency_keys WHERE key = ANY($1)" };
const KINDS: Query = Query { name: "lock_kinds", sql: "SELECT * FROM kinds ORDER BY kind FOR UPDATE" };
const LOCK_KINDS: Query = Query { name: "pause_lock", sql: "SELECT pg_advisory_xact_lock($1)" };
const PUT_KINDS: Query = Query {
    name: "update_kinds",
    sql: "UPDATE kinds k SET pause = r.pause, duty_holder = r.duty_holder, duty_expires_at = r.duty_expires_at, \
          duty_epoch = r.duty_epoch FROM json_populate_recordset(NULL::kinds, $1::text::json) r WHERE k.kind = r.kind",
};
const PUT_CLOCKS: Query = Query {
    name: "put_clocks",
    sql: "INSERT INTO clocks SELECT * FROM json_populate_recordset(NULL::clocks, $1::text::json) \
          ON CONFLICT (alloc, task, incarnation) DO UPDATE SET record = excluded.record",
};
const REMOVE_CLOCKS: Query = Query {
    name: "remove_clocks",
    sql: "DELETE FROM clocks c USING json_populate_recordset(NULL::clocks, $1::text::json) r \
          WHERE c.alloc = r.alloc AND c.task = r.task AND c.incarnation = r.incarnation",
};

const PUT_TOKENS: Query = Query {
    name: "put_tokens",
    sql: "INSERT INTO tokens SELECT * FROM json_populate_recordset(NULL::tokens, $1::text::json) \
          ON CONFLICT (id) DO UPDATE SET record = excluded.record",
};

/// What a request must find loaded and locked.
#[derive(Clone, Default)]
pub(super) struct Needs {
    pub(super) ids: Vec<OpId>,
    /// Of these also whatever else lives on the same target.
    pub(super) rivals: Vec<OpId>,
    /// Of these also their live children and their parents.
    pub(super) family: Vec<OpId>,
    /// Whose these nodes are.
    pub(super) nodes: Vec<NodeId>,
    pub(super) joins: Option<(String, Kind)>,
    pub(super) key: Option<String>,
    pub(super) kinds: bool,
    /// No lease is given out between this and the commit.
    pub(super) pauses: bool,
}

/// What a group has loaded; requests change it, and that is written down.
pub(super) struct Loaded {
    pub(super) rows: Rows,
    pub(super) kinds: BTreeMap<Kind, KindRow>,
    /// `None`: removed.
    pub(super) clocks: BTreeMap<ClockKey, Option<ClockRecord>>,
    pub(super) tokens: BTreeMap<String, Token>,
    /// The database's.
    pub(super) now: Timestamp,
}

impl Loaded {
    /// From here on rows are seen by the clock of a caller for whom it is `now`.
    pub(super) fn seen_at(&mut self, now: Timestamp) -> &mut Rows {
        self.rows.skew = self.now.as_micros().saturating_sub(now.as_micros());
        &mut self.rows
    }
}

trait Job: Send + Sync {
    fn needs(&self) -> &Needs;
    fn decide(&mut self, loaded: &mut Loaded);
    fn answer(self: Box<Self>, group: std::result::Result<&(), &Trouble>);
}

struct Request<T, F> {
    needs: Needs,
    work: F,
    done: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
    _room: OwnedSemaphorePermit,
}

impl<T, F> Job for Request<T, F>
where
    T: Send + Sync,
    F: Fn(&mut Loaded) -> Result<T> + Send + Sync,
{
    fn needs(&self) -> &Needs {
        &self.needs
    }
    fn decide(&mut self, loaded: &mut Loaded) {
        self.done = Some((self.work)(loaded));
    }
    fn answer(self: Box<Self>, group: std::result::Result<&(), &Trouble>) {
        let answer = match (self.done, group) {
            // A refusal wrote nothing, whatever became of the others.
            (Some(Err(e)), _) => Err(e),
            (Some(done), Ok(())) => done,
            (_, Err(trouble)) => Err(trouble.error()),
            (None, Ok(())) => return,
        };
        // The caller may have gone; the write stands nevertheless.
        let _ = self.reply.send(answer);
    }
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Box<dyn Job>>,
    attended: bool,
}

pub(super) struct Writer {
    sessions: Sessions,
    queue: Mutex<Queue>,
    came: Notify,
    room: Arc<Semaphore>,
}

impl Writer {
    pub(super) fn new(sessions: Sessions) -> Arc<Self> {
        Arc::new(Self { sessions, queue: Mutex::default(), came: Notify::new(), room: Arc::new(Semaphore::new(ROOM)) })
    }

    /// Decides in a transaction and returns when that is durable. `work` may run more than once. A caller that goes away does not
    /// undo it.
    pub(super) async fn run<T, F>(self: &Arc<Self>, needs: Needs, work: F) -> Result<T>
    where
        T: Send + Sync + 'static,
        F: Fn(&mut Loaded) -> Result<T> + Send + Sync + 'static,
    {
        let place = &self.sessions.place;
        let room = Arc::clone(&self.room).acquire_owned().await.map_err(|_| trouble::closed(place).error())?;
        let (reply, answer) = oneshot::channel();
        let unattended = {
            let mut queue = self.queue();
            queue.waiting.push_back(Box::new(Request { needs, work, done: None, reply, _room: room }));
            !std::mem::replace(&mut queue.attended, true)
        };
        match unattended {
            true => drop(tokio::spawn(Arc::clone(self).serve())),
            false => self.came.notify_one(),
        }
        answer.await.unwrap_or_else(|_| Err(lost(place)))
    }

    /// What the mutex guards is consistent between any two calls.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for what is under way; everything later is refused.
    pub(super) async fn close(&self) {
        if let Ok(all) = self.room.acquire_many(u32::try_from(ROOM).unwrap_or(u32::MAX)).await {
            self.room.close();
            drop(all);
        }
    }

    /// Attends the queue until it is empty.
    async fn serve(self: Arc<Self>) {
        loop {
            let group: Vec<Box<dyn Job>> = {
                let mut queue = self.queue();
                let n = queue.waiting.len().min(GROUP);
                if n == 0 {
                    queue.attended = false;
                    return;
                }
                queue.waiting.drain(..n).collect()
            };
            let answered = group.len();
            self.commit(group).await;
            if answered > 1 {
                // As many, or those that have come till then.
                let _ = tokio::time::timeout(GATHER, self.gathered(answered)).await;
            }
        }
    }

    async fn gathered(&self, most: usize) {
        while self.queue().waiting.len() < most {
            self.came.notified().await;
        }
    }

    async fn commit(&self, mut group: Vec<Box<dyn Job>>) {
        let mut done = self.try_commit(&mut group).await;
        if matches!(&done, Err(t) if !t.transient) && group.len() > 1 {
            // One of them asks for what the database cannot do: it fails alone.
            for job in group {
                let mut alone = vec![job];
                let done = self.try_commit(&mut alone).await;
                answer(alone, &done);
            }
            return;
        }
        if let Err(trouble) = &mut done {
            tracing::warn!(requests = group.len(), error = %trouble.what, "a group of writes failed");
        }
        answer(group, &done);
    }

    async fn try_commit(&self, group: &mut [Box<dyn Job>]) -> Done<()> {
        let mut tries = Tries::default();
        loop {
            let done = self.sessions.within(self.transaction(group)).await;
            if !tries.again(&done) {
                return done;
            }
        }
    }

    async fn transaction(&self, group: &mut [Box<dyn Job>]) -> Done<()> {
        let mut session = self.sessions.session().await?;
        match self.decide_and_write(&mut session, group).await {
            Ok(()) => session.commit().await,
            Err(trouble) => {
                if !trouble.broke_connection() {
                    session.rollback().await;
                }
                Err(trouble)
            }
        }
    }

    async fn decide_and_write(&self, session: &mut Session, group: &mut [Box<dyn Job>]) -> Done<()> {
        let mut loaded = self.load(session, group).await?;
        let kinds = loaded.kinds.clone();
        for job in group {
            job.decide(&mut loaded);
        }
        let wrote = loaded.rows.take_wrote();
        let changed: Vec<Value> =
            loaded.kinds.values().filter(|row| kinds.get(&row.kind) != Some(row)).map(record::kind).collect();
        let (mut put, mut removed) = (Vec::new(), Vec::new());
        for (key, record) in &loaded.clocks {
            let to = if record.is_some() { &mut put } else { &mut removed };
            to.push(record::clock(key, record.as_ref()));
        }
        let tokens = loaded.tokens.values().map(record::token).collect();
        let first = [(&PUT_KINDS, changed), (&PUT_CLOCKS, put), (&REMOVE_CLOCKS, removed), (&PUT_TOKENS, tokens)];
        session.write(&first, &loaded.rows, &wrote, &self.sessions.channel).await
    }

    async fn load(&self, session: &mut Session, group: &[Box<dyn Job>]) -> Done<Loaded> {
        let all = || group.iter().map(|job| job.needs());
        let (targets, kinds): (Vec<&str>, Vec<&str>) =
            all().filter_map(|n| n.joins.as_ref()).map(|(target, kind)| (target.as_str(), kind.as_str())).unzip();
        let keys: Vec<&str> = all().filter_map(|n| n.key.as_deref()).collect();
        let rivals: Vec<Uuid> = all().flat_map(|n| &n.rivals).map(|id| id.uuid()).collect();
        let family: Vec<Uuid> = all().flat_map(|n| &n.family).map(|id| id.uuid()).collect();
        let again: Vec<OpId> = all().flat_map(|n| &n.rivals).copied().collect();
        let (live, known, rival, kin): (Params<'_>, Params<'_>, Params<'_>, Params<'_>) =
            (&[&targets, &kinds], &[&keys], &[&rivals], &[&family]);
        let lock: Params<'_> = &[&self.sessions.kinds_lock];
        let mut steps: Vec<(&Query, Params<'_>)> = Vec::new();
        if all().any(|n| n.pauses) {
            steps.push((&LOCK_KINDS, lock));
        }
        steps.push((&NOW, &[]));
        for (wanted, step) in [
            (!targets.is_empty(), (&LIVE_ON, live)),
            (!keys.is_empty(), (&KEYS, known)),
            (!rivals.is_empty(), (&RIVALS, rival)),
            (!family.is_empty(), (&FAMILY, kin)),
        ] {
            if wanted {
                steps.push(step);
            }
        }
        if all().any(|n| n.kinds) {
            steps.push((&KINDS, &[]));
        }
        let names: Vec<&str> = steps.iter().map(|(q, _)| q.name).collect();
        let answers = session.begin(&steps).await?;
        let answer = |q: &Query| {
            names.iter().zip(&answers).find(|(name, _)| **name == q.name).map(|(_, rows)| rows.as_slice()).unwrap_or_default()
        };
        let (now, live, keys, rivals, kinds) = (answer(&NOW), answer(&LIVE_ON), answer(&KEYS), answer(&RIVALS), answer(&KINDS));
        let mut ids: Vec<Uuid> = all().flat_map(|n| &n.ids).map(|id| id.uuid()).collect();
        for row in live.iter().chain(rivals).chain(answer(&FAMILY)) {
            ids.push(session.reader(row, "id").get("id")?);
        }
        let mut rows = Rows::default();
        for row in keys {
            let r = session.reader(row, KEYS.name);
            let id: OpId = r.id("operation")?;
            ids.push(id.uuid());
            rows.load_key(r.get("key")?, r.get("digest")?, id);
        }
        ids.sort();
        ids.dedup();
        if !ids.is_empty() {
            for row in session.all(&LOCKED, &[&ids]).await? {
                rows.load(session.reader(&row, LOCKED.name).operation()?);
            }
        }
        // What is tried again needs its nodes again.
        let theirs = again.iter().filter_map(|id| rows.stored(*id)).flat_map(|op| op.claims());
        let nodes: Vec<String> = all().flat_map(|n| n.nodes.clone()).chain(theirs).map(String::from).collect();
        if !nodes.is_empty() {
            for row in session.all(&HOLDERS, &[&nodes]).await? {
                let r = session.reader(&row, HOLDERS.name);
                rows.load_claim(r.get::<String>("node")?.into(), r.id("operation")?);
            }
        }
        let kinds = kinds.iter().map(|row| session.reader(row, KINDS.name).kind().map(|k| (k.kind, k)));
        let kinds = kinds.collect::<Done<BTreeMap<Kind, KindRow>>>()?;
        let now = match now.first() {
            Some(row) => session.reader(row, NOW.name).instant("now")?,
            None => Timestamp::default(),
        };
        Ok(Loaded { rows, kinds, clocks: BTreeMap::new(), tokens: BTreeMap::new(), now })
    }
}

fn answer(group: Vec<Box<dyn Job>>, done: &Done<()>) {
    for job in group {
        job.answer(done.as_ref());
    }
}

fn lost(place: &str) -> StoreError {
    let what = format!(
        "a request to {place} was given up before its answer, because the program is stopping or failed; whether it was written is \
         unknown"
    );
    Trouble::said(what, true).error()
}

/// A kind that changed is told, with its row in the trail.
pub(super) fn tell_kind(loaded: &mut Loaded, told: Option<curfew_core::audit::AuditEntry>) {
    if let Some(told) = told {
        loaded.rows.wrote.audit.push(told);
        loaded.rows.wrote.changes.push(Change::Kinds);
    }
}
