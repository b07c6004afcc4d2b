//! What the dispatcher knows between two looks at the database: who was nudged, what runs, what there is room for.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use curfew_core::OpId;
use curfew_core::config::Config;
use curfew_core::operation::{Kind, Operation};
use curfew_store::Wanted;
use tokio::sync::Notify;

#[derive(Default)]
pub struct Agenda {
    nudged: HashSet<OpId>,
    running: HashMap<OpId, (Kind, Arc<Notify>)>,
    /// Whether this controller keeps the clocks.
    pub keeps_clocks: bool,
}

impl Agenda {
    /// Something happened that this operation may wait for.
    pub fn nudge(&mut self, id: OpId) {
        self.nudged.insert(id);
    }

    /// Somebody changed its row. A step of it that runs here looks whether it still may.
    pub fn changed(&mut self, id: OpId) {
        if let Some((_, look)) = self.running.get(&id) {
            look.notify_one();
        }
        self.nudged.insert(id);
    }

    /// Changes were missed: any step's row may be another one's now.
    pub fn missed(&self) {
        self.running.values().for_each(|(_, look)| look.notify_one());
    }

    /// Its step runs; the answer is woken when its row changes.
    pub fn began(&mut self, op: &Operation) -> Arc<Notify> {
        self.nudged.remove(&op.id);
        let look = Arc::new(Notify::new());
        self.running.insert(op.id, (op.kind(), look.clone()));
        look
    }

    pub fn ended(&mut self, id: OpId) {
        self.running.remove(&id);
    }

    /// Those that were nudged and do not run; they count as looked at from here on.
    pub fn take(&mut self, limit: usize) -> Vec<OpId> {
        let ids: Vec<OpId> = self.nudged.iter().filter(|id| !self.running.contains_key(id)).copied().take(limit).collect();
        for id in &ids {
            self.nudged.remove(id);
        }
        ids
    }

    pub fn has_nudged(&self) -> bool {
        self.nudged.iter().any(|id| !self.running.contains_key(id))
    }

    /// The kinds there is room for. What reports on the clocks runs where they are kept.
    pub fn wanted(&self, config: &Config) -> Vec<Wanted> {
        let here = Kind::OPERATIONS.into_iter().filter(|k| self.keeps_clocks || !k.reports_clocks());
        let room = here.map(|kind| {
            let limits = config.kind(kind);
            let limit = limits.concurrency.saturating_sub(self.running.values().filter(|(k, _)| *k == kind).count());
            Wanted { kind, lease_for: limits.lease_timeout, limit }
        });
        room.filter(|w| w.limit > 0).collect()
    }

    /// Whether some kind that runs here has no room: what was nudged and not leased may be of it.
    pub fn is_full(&self, config: &Config) -> bool {
        let here = Kind::OPERATIONS.into_iter().filter(|k| self.keeps_clocks || !k.reports_clocks()).count();
        self.wanted(config).len() < here
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use curfew_core::kinds::Overrides;
    use curfew_core::operation::{Lease, Progress, Request, State};
    use curfew_core::{JobKey, Timestamp};

    use super::*;

    fn op(n: i64) -> Operation {
        let at = Timestamp::from_millis(n);
        Operation {
            id: OpId::new(at),
            parent: None,
            state: State::Running,
            request: Request::Stop { target: JobKey::new("default", "j"), demands: vec![] },
            actor: "a".into(),
            reason: None,
            requested_at: at,
            deadline: None,
            finished_at: None,
            waiting_for: None,
            progress: Progress::default(),
            outcome: None,
            error: None,
            warnings: vec![],
            attempts: 0,
            run_at: at,
            lease: Lease::default(),
            revision: 0,
            cancel: None,
            pause: None,
        }
    }

    #[test]
    fn a_kind_has_its_room_and_what_reports_on_clocks_stays_where_they_are() {
        let two = Overrides { concurrency: Some(2), ..Overrides::default() };
        let config = Config { kinds: BTreeMap::from([(Kind::Stop, two)]), ..Config::default() };
        let mut agenda = Agenda::default();
        let wanted = |a: &Agenda| a.wanted(&config).iter().map(|w| (w.kind, w.limit)).collect::<Vec<_>>();
        let of = |kinds: &[(Kind, usize)]| {
            let after = [Kind::DrainDatacenter, Kind::Undrain, Kind::Rollout, Kind::Deployment].map(|k| (k, 64));
            [&[(Kind::Submit, 64)], kinds, &after].concat()
        };
        assert_eq!(wanted(&agenda), of(&[]), "standing by");
        assert!(!agenda.is_full(&config));
        agenda.keeps_clocks = true;
        assert_eq!(wanted(&agenda), of(&[(Kind::Stop, 2), (Kind::DrainNode, 64)]));
        let (first, second) = (op(1), op(2));
        agenda.began(&first);
        assert_eq!(wanted(&agenda), of(&[(Kind::Stop, 1), (Kind::DrainNode, 64)]));
        agenda.began(&second);
        assert_eq!(wanted(&agenda), of(&[(Kind::DrainNode, 64)]));
        assert!(agenda.is_full(&config));
        agenda.ended(first.id);
        assert_eq!(wanted(&agenda), of(&[(Kind::Stop, 1), (Kind::DrainNode, 64)]));
    }

    #[test]
    fn a_nudge_waits_for_the_step_that_runs() {
        let mut agenda = Agenda::default();
        let op = op(1);
        agenda.nudge(op.id);
        assert_eq!(agenda.take(9), [op.id]);
        assert_eq!(agenda.take(9), []);
        agenda.began(&op);
        agenda.changed(op.id);
        assert!(!agenda.has_nudged());
        assert_eq!(agenda.take(9), []);
        agenda.ended(op.id);
        assert!(agenda.has_nudged());
        assert_eq!(agenda.take(9), [op.id]);
    }
}
