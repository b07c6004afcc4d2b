//! A store without a database, for tests: gone with its last reference, by the same rules, and it never waits, so that paused time
//! and a seed give the same run again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use curfew_core::access::Token;
use curfew_core::audit::{AuditEntry, AuditRow};
use curfew_core::clock::{ClockKey, ClockRecord};
use curfew_core::operation::{By, Intervention, Kind, Operation, State};
use curfew_core::{NodeId, OpId, Timestamp};
use tokio::sync::broadcast;

use crate::rows::Rows;
use crate::{
    AuditFilter, CHANGES, Change, Created, DEFAULT_AUDIT, DEFAULT_OPERATIONS, Duty, Held, KindRow, NewOperation, OperationFilter,
    Pruned, QueueCount, QueueStatus, Result, StepResult, Store, StoreError, Wanted, rules,
};

pub struct MemoryStore {
    tables: Mutex<Tables>,
    changes: broadcast::Sender<Change>,
}

struct Tables {
    rows: Rows,
    kinds: BTreeMap<Kind, KindRow>,
    clocks: BTreeMap<ClockKey, ClockRecord>,
    tokens: BTreeMap<String, Token>,
    audit: BTreeMap<u64, AuditEntry>,
    last_seq: u64,
    closed: bool,
}

impl MemoryStore {
    pub fn new() -> Arc<MemoryStore> {
        let kinds = Kind::ALL.map(|k| (k, rules::kind(k))).into();
        let tables = Tables {
            rows: Rows::default(),
            kinds,
            clocks: BTreeMap::new(),
            tokens: BTreeMap::new(),
            audit: BTreeMap::new(),
            last_seq: 0,
            closed: false,
        };
        Arc::new(MemoryStore { tables: Mutex::new(tables), changes: broadcast::channel(CHANGES).0 })
    }

    /// What the mutex guards is consistent between any two calls.
    fn tables(&self) -> Result<MutexGuard<'_, Tables>> {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if tables.closed {
            let what = "the database in memory was closed: this controller is stopping".to_owned();
            return Err(StoreError::Database { what, transient: false, source: None });
        }
        Ok(tables)
    }

    fn write<T>(&self, work: impl FnOnce(&mut Tables) -> Result<T>) -> Result<T> {
        let mut tables = self.tables()?;
        let done = work(&mut tables);
        // Each rule decides before it changes anything: what failed wrote nothing.
        let wrote = tables.rows.take_wrote();
        tables.append(wrote.audit);
        for change in wrote.changes {
            // Nobody listens, perhaps.
            let _ = self.changes.send(change);
        }
        done
    }
}

impl Tables {
    fn append(&mut self, audit: Vec<AuditEntry>) {
        for entry in audit {
            self.last_seq += 1;
            self.audit.insert(self.last_seq, entry);
        }
    }

    fn paused(&self, kind: Kind) -> bool {
        self.kinds.get(&kind).is_some_and(|k| k.pause.is_some())
    }

    fn kind<T>(&mut self, kind: Kind, decide: impl FnOnce(&mut KindRow) -> (T, Option<AuditEntry>)) -> T {
        let (answer, told) = decide(self.kinds.entry(kind).or_insert_with(|| rules::kind(kind)));
        if let Some(told) = told {
            self.rows.wrote.audit.push(told);
            self.rows.wrote.changes.push(Change::Kinds);
        }
        answer
    }

    fn lease(&mut self, holder: &str, wanted: &[Wanted], ids: &[OpId], limit: usize, now: Timestamp) -> Vec<Operation> {
        let mut wanted: Vec<Wanted> = wanted.iter().filter(|w| !self.paused(w.kind)).copied().collect();
        let mut taken = Vec::new();
        for group in 0..3 {
            let mut found = Vec::new();
            for w in &wanted {
                let room = w.limit.min(limit - taken.len());
                let sleeps = |id: &OpId| self.rows.stored(*id).is_some_and(|op| op.kind() == w.kind && op.state.sleeps());
                let mut ids: Vec<OpId> = match group {
                    0 => ids.iter().filter(|id| sleeps(id)).copied().collect(),
                    1 => self.rows.due(w.kind, now).take(room).collect(),
                    _ => self.rows.expired(w.kind, now).collect(),
                };
                ids.sort_by_key(|id| self.rows.stored(*id).map(|op| (op.run_at, op.id)));
                ids.dedup();
                found.extend(ids.into_iter().take(room).map(|id| (id, w.lease_for)));
            }
            found.sort_by_key(|(id, _)| self.rows.stored(*id).map(|op| (op.run_at, op.id)));
            found.truncate(limit - taken.len());
            for (id, lease_for) in found {
                if let Some(op) = self.rows.lease(id, holder, lease_for, now) {
                    wanted.iter_mut().filter(|w| w.kind == op.kind()).for_each(|w| w.limit -= 1);
                    taken.push(op);
                }
            }
        }
        taken
    }

    fn prune(&mut self, finished_before: Timestamp, audit_before: Timestamp, limit: usize) -> Pruned {
        let busy: BTreeSet<OpId> = self.rows.all().filter(|op| !op.state.is_finished()).filter_map(|op| op.parent).collect();
        let old = |op: &&Operation| op.finished_at.is_some_and(|at| at < finished_before);
        let mut roots: Vec<(Option<Timestamp>, OpId)> = self
            .rows
            .all()
            .filter(old)
            .filter(|op| op.parent.is_none() && !busy.contains(&op.id))
            .map(|op| (op.finished_at, op.id))
            .collect();
        roots.sort();
        let roots: BTreeSet<OpId> = roots.into_iter().take(limit).map(|(_, id)| id).collect();
        let family = |op: &&Operation| roots.contains(&op.id) || op.parent.is_some_and(|p| roots.contains(&p));
        let gone: BTreeSet<OpId> = self.rows.all().filter(family).map(|op| op.id).collect();
        for id in &gone {
            self.rows.forget(*id);
        }
        self.rows.forget_keys_of(&gone);
        let live = |id: OpId| self.rows.stored(id).is_some_and(|op| !op.state.is_finished());
        let mut told: Vec<(Timestamp, u64)> = self
            .audit
            .iter()
            .filter(|(_, e)| e.at < audit_before && !e.operation.is_some_and(live))
            .map(|(seq, e)| (e.at, *seq))
            .collect();
        told.sort();
        told.truncate(limit);
        for (_, seq) in &told {
            self.audit.remove(seq);
        }
        Pruned { operations: gone.len() as u64, audit: told.len() as u64 }
    }
}

fn matches(op: &Operation, filter: &OperationFilter, target: Option<&String>) -> bool {
    (filter.kinds.is_empty() || filter.kinds.contains(&op.kind()))
        && (filter.states.is_empty() || filter.states.contains(&op.state))
        && target.is_none_or(|t| op.request.target().key() == *t)
        && filter.parent.is_none_or(|p| op.parent == Some(p))
        && filter.before.is_none_or(|b| op.id < b)
}

#[async_trait]
impl Store for MemoryStore {
    async fn create(&self, new: NewOperation) -> Result<Created> {
        self.write(|t| t.rows.create(new))
    }

    async fn lease(&self, holder: &str, wanted: &[Wanted], ids: &[OpId], limit: usize, now: Timestamp) -> Result<Vec<Operation>> {
        self.write(|t| Ok(t.lease(holder, wanted, ids, limit, now)))
    }

    async fn renew(&self, id: OpId, epoch: u64, lease_for: Duration, now: Timestamp) -> Result<()> {
        self.write(|t| t.rows.renew(id, epoch, now + lease_for))
    }

    async fn finish_step(
        &self,
        leased: &Operation,
        result: StepResult,
        audit: Vec<AuditEntry>,
        now: Timestamp,
    ) -> Result<Operation> {
        self.write(|t| t.rows.finish(leased, result, audit, now))
    }

    async fn intervene(&self, id: OpId, what: Intervention, by: By) -> Result<Operation> {
        self.write(|t| t.rows.intervene(id, what, &by))
    }

    async fn claim(&self, id: OpId, nodes: Vec<NodeId>) -> Result<()> {
        self.write(|t| t.rows.claim(id, nodes))
    }

    async fn claims(&self) -> Result<Vec<(NodeId, OpId)>> {
        Ok(self.tables()?.rows.claims().map(|(node, id)| (node.clone(), *id)).collect())
    }

    async fn operation(&self, id: OpId) -> Result<Option<Operation>> {
        Ok(self.tables()?.rows.get(id))
    }

    async fn operations(&self, filter: OperationFilter) -> Result<Vec<Operation>> {
        let limit = if filter.limit == 0 { DEFAULT_OPERATIONS } else { filter.limit };
        let target = filter.target.as_ref().map(|t| t.key());
        let tables = self.tables()?;
        Ok(tables.rows.all().rev().filter(|op| matches(op, &filter, target.as_ref())).take(limit).cloned().collect())
    }

    async fn live_after(&self, kind: Kind, after: OpId, limit: usize) -> Result<Vec<Operation>> {
        let tables = self.tables()?;
        let mut live: Vec<_> =
            tables.rows.all().filter(|op| op.kind() == kind && !op.state.is_finished() && op.id > after).cloned().collect();
        live.sort_by_key(|op| op.id);
        live.truncate(limit);
        Ok(live)
    }

    async fn next_due(&self, kinds: &[Kind], _now: Timestamp) -> Result<Option<Timestamp>> {
        let tables = self.tables()?;
        Ok(kinds.iter().filter(|k| !tables.paused(**k)).filter_map(|k| tables.rows.next(*k)).min())
    }

    async fn queue_status(&self) -> Result<QueueStatus> {
        let tables = self.tables()?;
        let mut counts: BTreeMap<(&str, &str), QueueCount> = BTreeMap::new();
        let mut running = Vec::new();
        for op in tables.rows.all().filter(|op| !op.state.is_finished()) {
            let (kind, state) = (op.kind(), op.state);
            let c = counts.entry((kind.as_str(), state.as_str())).or_insert(QueueCount {
                kind,
                state,
                count: 0,
                oldest_requested_at: op.requested_at,
                oldest_run_at: op.run_at,
            });
            c.count += 1;
            c.oldest_requested_at = c.oldest_requested_at.min(op.requested_at);
            c.oldest_run_at = c.oldest_run_at.min(op.run_at);
            if state == State::Running {
                running.push(Held { id: op.id, kind, lease: op.lease.clone() });
            }
        }
        running.sort_by_key(|h| (h.lease.expires_at, h.id));
        Ok(QueueStatus { counts: counts.into_values().collect(), running })
    }

    async fn kinds(&self) -> Result<Vec<KindRow>> {
        let tables = self.tables()?;
        Ok(Kind::ALL.map(|k| tables.kinds.get(&k).cloned().unwrap_or_else(|| rules::kind(k))).into())
    }

    async fn pause_kind(&self, kind: Kind, by: By) -> Result<KindRow> {
        self.write(|t| {
            Ok(t.kind(kind, |row| {
                let told = rules::pause_kind(row, &by, true);
                (row.clone(), told)
            }))
        })
    }

    async fn resume_kind(&self, kind: Kind, by: By) -> Result<KindRow> {
        self.write(|t| {
            Ok(t.kind(kind, |row| {
                let told = rules::pause_kind(row, &by, false);
                (row.clone(), told)
            }))
        })
    }

    async fn take_duty(&self, holder: &str, lease_for: Duration, now: Timestamp) -> Result<Option<Duty>> {
        self.write(|t| {
            Ok(t.kind(Kind::Kill, |row| {
                let told = rules::take_duty(&mut row.duty, holder, Some(lease_for), now);
                (told.is_some().then_some(Duty { epoch: row.duty.epoch, expires_at: row.duty.expires_at }), told)
            }))
        })
    }

    async fn renew_duty(&self, epoch: u64, lease_for: Duration, now: Timestamp) -> Result<Duty> {
        self.write(|t| t.kind(Kind::Kill, |row| (rules::renew_duty(&mut row.duty, epoch, lease_for, now), None)))
    }

    async fn give_up_duty(&self, epoch: u64, now: Timestamp) -> Result<()> {
        self.write(|t| {
            t.kind(Kind::Kill, |row| ((), rules::give_up_duty(&mut row.duty, epoch, now)));
            Ok(())
        })
    }

    fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    async fn prune(&self, finished_before: Timestamp, audit_before: Timestamp, limit: usize) -> Result<Pruned> {
        self.write(|t| Ok(t.prune(finished_before, audit_before, limit)))
    }

    async fn put_clocks(&self, clocks: Vec<ClockRecord>, audit: Vec<AuditEntry>) -> Result<()> {
        self.write(|t| {
            t.clocks.extend(clocks.into_iter().map(|c| (c.key.clone(), c)));
            t.append(audit);
            Ok(())
        })
    }

    async fn remove_clocks(&self, keys: Vec<ClockKey>, audit: Vec<AuditEntry>) -> Result<()> {
        self.write(|t| {
            keys.iter().for_each(|k| drop(t.clocks.remove(k)));
            t.append(audit);
            Ok(())
        })
    }

    async fn clocks_after(&self, after: Option<ClockKey>, limit: usize) -> Result<Vec<ClockRecord>> {
        let later = after.map_or(Bound::Unbounded, Bound::Excluded);
        Ok(self.tables()?.clocks.range((later, Bound::Unbounded)).take(limit).map(|(_, c)| c.clone()).collect())
    }

    async fn put_token(&self, token: Token, audit: Vec<AuditEntry>) -> Result<()> {
        self.write(|t| {
            t.tokens.insert(token.id.clone(), token);
            t.append(audit);
            Ok(())
        })
    }

    async fn token(&self, id: &str) -> Result<Option<Token>> {
        Ok(self.tables()?.tokens.get(id).cloned())
    }

    async fn tokens(&self) -> Result<Vec<Token>> {
        Ok(self.tables()?.tokens.values().cloned().collect())
    }

    async fn append_audit(&self, audit: Vec<AuditEntry>) -> Result<()> {
        self.write(|t| {
            t.append(audit);
            Ok(())
        })
    }

    async fn audit(&self, filter: AuditFilter) -> Result<Vec<AuditRow>> {
        let limit = if filter.limit == 0 { DEFAULT_AUDIT } else { filter.limit };
        let wanted = |e: &AuditEntry| {
            filter.operation.is_none_or(|id| e.operation == Some(id)) && filter.since.is_none_or(|since| e.at >= since)
        };
        let tables = self.tables()?;
        let after = tables.audit.range(filter.after_seq.saturating_add(1)..);
        Ok(after.filter(|(_, e)| wanted(e)).take(limit).map(|(seq, e)| AuditRow { seq: *seq, entry: e.clone() }).collect())
    }

    async fn check(&self) -> Result<()> {
        self.tables().map(drop)
    }

    async fn close(&self) -> Result<()> {
        if let Ok(mut tables) = self.tables() {
            tables.closed = true;
        }
        Ok(())
    }
}
