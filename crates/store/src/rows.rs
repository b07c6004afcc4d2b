//! Operations in memory, by the rules: the whole table of the memory store, or what a group of PostgreSQL's loaded. It notes what
//! it changed, so that somebody else can write that down.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;

use curfew_core::audit::AuditEntry;
use curfew_core::operation::{By, Intervention, Kind, Operation};
use curfew_core::{NodeId, OpId, Timestamp};

use crate::{Change, Created, NewOperation, Result, StepResult, StoreError, intervene, rules};

#[derive(Default)]
pub(crate) struct Rows {
    operations: BTreeMap<OpId, Operation>,
    live: HashMap<(Kind, String), OpId>,
    /// What sleeps by its `run_at`, what is leased by the lease's end.
    due: BTreeSet<(Kind, Timestamp, OpId)>,
    held: BTreeSet<(Kind, Timestamp, OpId)>,
    keys: HashMap<String, (String, OpId)>,
    /// Whose a node is.
    claims: BTreeMap<NodeId, OpId>,
    pub(crate) wrote: Wrote,
    /// How far the rows' clock is ahead of the caller's, in microseconds: callers see their own.
    pub(crate) skew: i64,
}

/// What was changed since somebody asked last.
#[derive(Default)]
pub(crate) struct Wrote {
    pub(crate) inserted: BTreeSet<OpId>,
    pub(crate) updated: BTreeSet<OpId>,
    /// Those of `updated` whose request is another, too.
    pub(crate) requests: BTreeSet<OpId>,
    pub(crate) keys: Vec<(String, String, OpId)>,
    /// Whose claims are gone; that comes before the new ones.
    pub(crate) released: BTreeSet<OpId>,
    pub(crate) claimed: Vec<(NodeId, OpId)>,
    pub(crate) audit: Vec<AuditEntry>,
    pub(crate) changes: Vec<Change>,
}

fn joins(op: &Operation) -> Option<(Kind, String)> {
    (op.kind().joins() && !op.state.is_finished()).then(|| (op.kind(), op.request.target().key()))
}

fn shifted(mut op: Operation, micros: i64) -> Operation {
    op.run_at = later(op.run_at, micros);
    op.lease.expires_at = op.lease.expires_at.map(|at| later(at, micros));
    op
}

/// By so many microseconds, which may be negative.
pub(crate) fn later(at: Timestamp, micros: i64) -> Timestamp {
    Timestamp::from_micros(at.as_micros().saturating_add(micros))
}

impl Rows {
    /// A row as it is written down.
    pub(crate) fn load(&mut self, op: Operation) {
        self.forget(op.id);
        self.live.extend(joins(&op).map(|key| (key, op.id)));
        match op.lease.expires_at {
            Some(at) => self.held.insert((op.kind(), at, op.id)),
            None if op.state.sleeps() => self.due.insert((op.kind(), op.run_at, op.id)),
            None => false,
        };
        self.operations.insert(op.id, op);
    }

    pub(crate) fn forget(&mut self, id: OpId) -> Option<Operation> {
        let old = self.operations.remove(&id)?;
        if let Some(key) = joins(&old) {
            self.live.remove(&key);
        }
        self.due.remove(&(old.kind(), old.run_at, id));
        if let Some(at) = old.lease.expires_at {
            self.held.remove(&(old.kind(), at, id));
        }
        Some(old)
    }

    pub(crate) fn load_key(&mut self, key: String, digest: String, id: OpId) {
        self.keys.insert(key, (digest, id));
    }

    pub(crate) fn load_claim(&mut self, node: NodeId, id: OpId) {
        self.claims.insert(node, id);
    }

    pub(crate) fn claims(&self) -> impl Iterator<Item = (&NodeId, &OpId)> {
        self.claims.iter()
    }

    /// Another operation that has one of these.
    fn holder(&self, id: OpId, nodes: &[NodeId]) -> Option<(NodeId, OpId)> {
        nodes.iter().find_map(|n| self.claims.get(n).filter(|by| **by != id).map(|by| (n.clone(), *by)))
    }

    fn free(&self, id: OpId, nodes: &[NodeId]) -> Result<()> {
        self.holder(id, nodes).map_or(Ok(()), |(node, by)| Err(StoreError::Claimed { node, by }))
    }

    fn take(&mut self, id: OpId, nodes: Vec<NodeId>) {
        for node in nodes {
            if self.claims.insert(node.clone(), id) != Some(id) {
                self.wrote.claimed.push((node, id));
            }
        }
    }

    pub(crate) fn claim(&mut self, id: OpId, nodes: Vec<NodeId>) -> Result<()> {
        rules::may_claim(&self.of(id)?)?;
        self.free(id, &nodes)?;
        self.take(id, nodes);
        Ok(())
    }

    /// What follows from an operation's end, if that is what it came to.
    fn ended(&mut self, row: &Operation, now: Timestamp) {
        if !row.state.is_finished() {
            return;
        }
        self.claims.retain(|_, by| *by != row.id);
        self.wrote.claimed.retain(|(_, by)| *by != row.id);
        self.wrote.released.insert(row.id);
        let Some(mut parent) = row.parent.and_then(|id| self.get(id)) else { return };
        if rules::child_ended(&mut parent, now) {
            let id = parent.id;
            self.put(parent);
            self.told(id, true, []);
        }
    }

    pub(crate) fn forget_keys_of(&mut self, gone: &BTreeSet<OpId>) {
        self.keys.retain(|_, (_, id)| !gone.contains(id));
    }

    /// As the caller sees it.
    pub(crate) fn get(&self, id: OpId) -> Option<Operation> {
        self.operations.get(&id).map(|op| shifted(op.clone(), -self.skew))
    }

    /// As it is written down.
    pub(crate) fn stored(&self, id: OpId) -> Option<&Operation> {
        self.operations.get(&id)
    }

    pub(crate) fn all(&self) -> impl DoubleEndedIterator<Item = &Operation> {
        self.operations.values()
    }

    pub(crate) fn of(&self, id: OpId) -> Result<Operation> {
        self.get(id).ok_or(StoreError::NoSuchOperation(id))
    }

    fn put(&mut self, op: Operation) {
        let op = shifted(op, self.skew);
        match self.operations.get(&op.id) {
            None => {
                self.wrote.inserted.insert(op.id);
            }
            Some(_) if self.wrote.inserted.contains(&op.id) => {}
            Some(old) => {
                self.wrote.updated.insert(op.id);
                if old.request != op.request {
                    self.wrote.requests.insert(op.id);
                }
            }
        }
        self.load(op);
    }

    fn told(&mut self, id: OpId, due: bool, audit: impl IntoIterator<Item = AuditEntry>) {
        self.wrote.audit.extend(audit);
        self.wrote.changes.push(Change::Operation { id, due });
    }

    pub(crate) fn create(&mut self, new: NewOperation) -> Result<Created> {
        if let Some((key, digest)) = &new.idempotency
            && let Some((theirs, id)) = self.keys.get(key)
        {
            return match theirs == digest {
                true => Ok(Created::Replayed(self.of(*id)?)),
                false => Err(StoreError::IdempotencyConflict { key: key.clone(), id: *id }),
            };
        }
        let key = new.idempotency.clone();
        let live = self.live.get(&(new.request.kind(), new.request.target().key())).and_then(|id| self.get(*id));
        let (told, created) = match live {
            Some(mut op) => (rules::take_in(&mut op, new), Created::Joined(op)),
            None => {
                let told = rules::requested(&new);
                let op = rules::fresh(new);
                self.free(op.id, &op.claims())?;
                (told, Created::New(op))
            }
        };
        let id = created.operation().id;
        self.put(created.operation().clone());
        if let Created::New(op) = &created {
            self.take(id, op.claims());
        }
        if let Some((key, digest)) = key {
            self.wrote.keys.push((key.clone(), digest.clone(), id));
            self.load_key(key, digest, id);
        }
        self.told(id, true, [told]);
        Ok(created)
    }

    /// `None`: it is not there any more, or somebody holds it now.
    pub(crate) fn lease(&mut self, id: OpId, holder: &str, lease_for: std::time::Duration, now: Timestamp) -> Option<Operation> {
        let mut op = self.get(id)?;
        self.wrote.audit.extend(rules::lease(&mut op, holder, lease_for, now));
        self.put(op.clone());
        Some(op)
    }

    pub(crate) fn renew(&mut self, id: OpId, epoch: u64, expires_at: Timestamp) -> Result<()> {
        let mut op = self.of(id)?;
        rules::held(&op, epoch)?;
        op.lease.expires_at = Some(expires_at);
        self.put(op);
        Ok(())
    }

    pub(crate) fn finish(
        &mut self,
        leased: &Operation,
        result: StepResult,
        audit: Vec<AuditEntry>,
        now: Timestamp,
    ) -> Result<Operation> {
        let mut row = self.of(leased.id)?;
        let audit = rules::finish(&mut row, leased, result, audit, now)?;
        self.put(row.clone());
        self.told(row.id, false, audit);
        self.ended(&row, now);
        Ok(row)
    }

    pub(crate) fn intervene(&mut self, id: OpId, what: Intervention, by: &By) -> Result<Operation> {
        let mut row = self.of(id)?;
        let rival = self.live.get(&(row.kind(), row.request.target().key())).copied().filter(|rival| *rival != id);
        let rival = rival.or(self.holder(id, &row.claims()).map(|(_, by)| by));
        if let Some(told) = intervene::intervene(&mut row, what, by, rival)? {
            self.put(row.clone());
            self.told(id, true, [told]);
            if what == Intervention::Retry {
                self.take(id, row.claims());
            }
            self.ended(&row, by.at);
            if let Some(what) = intervene::for_children(&row, what) {
                let mine = |c: &&Operation| c.parent == Some(id) && !c.state.is_finished();
                let children: Vec<OpId> = self.all().filter(mine).map(|c| c.id).collect();
                for child in children {
                    self.intervene(child, what, by)?;
                }
            }
        }
        Ok(row)
    }

    /// The earliest instant for one kind.
    pub(crate) fn next(&self, kind: Kind) -> Option<Timestamp> {
        let first = |set: &BTreeSet<(Kind, Timestamp, OpId)>| {
            set.range((kind, Timestamp::from_micros(i64::MIN), OpId::MIN)..).next().filter(|e| e.0 == kind).map(|e| e.1)
        };
        first(&self.due).into_iter().chain(first(&self.held)).min()
    }

    pub(crate) fn due(&self, kind: Kind, now: Timestamp) -> impl Iterator<Item = OpId> {
        until(&self.due, kind, now)
    }

    pub(crate) fn expired(&self, kind: Kind, now: Timestamp) -> impl Iterator<Item = OpId> {
        until(&self.held, kind, now)
    }

    pub(crate) fn take_wrote(&mut self) -> Wrote {
        mem::take(&mut self.wrote)
    }
}

fn until(set: &BTreeSet<(Kind, Timestamp, OpId)>, kind: Kind, now: Timestamp) -> impl Iterator<Item = OpId> {
    set.range((kind, Timestamp::from_micros(i64::MIN), OpId::MIN)..=(kind, now, OpId::MAX)).map(|(_, _, id)| *id)
}
