//! Everything tracked, by allocation. What has nothing to do for a while lies packed, in as few bytes as it can be told: a hundred
//! thousand stops wait for hours, and only those whose clock is near are looked at.
//!
//! Packing changes nothing that anybody can see: whoever asks gets the same value, a copy of it while it lies packed. What is asked
//! of all of them again and again is answered by a [`Glance`].

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use curfew_core::clock::{Basis, Cause, ClockKey, ClockRecord};
use curfew_core::spec::JobSpec;
use curfew_core::{AllocId, Allocation, Desired, JobId, JobKey, NodeId, OpId, TaskName, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::book::has_sign;
use super::specs::{Registration, Shapes};

/// Nearer than this to its next look, an allocation stays as it is.
const NEAR: Duration = Duration::from_secs(5);

/// What is known of one allocation.
#[derive(Debug, Default)]
pub(super) struct Tracked {
    /// Absent after a restart until it is read.
    pub(super) alloc: Option<Allocation>,
    pub(super) spec: Option<Arc<JobSpec>>,
    pub(super) records: Vec<ClockRecord>,
    pub(super) unreachable: Vec<TaskName>,
    /// A read or a signal is under way.
    pub(super) busy: bool,
    pub(super) wake: Option<Timestamp>,
    pub(super) next_try: Option<Timestamp>,
    pub(super) unsupported: Vec<ClockKey>,
    /// Signals given out and not answered: their clocks' instants, and how to call them off.
    pub(super) shots: Vec<(ClockKey, Timestamp, CancellationToken)>,
    /// None of its clocks may pass: its read can be made with others', some time ahead.
    pub(super) shared: bool,
    pub(super) seen: Timestamp,
}

impl Tracked {
    /// Its node, when that cannot be reached: for a task that was never told, or for the last SIGKILL.
    pub(super) fn node_away(&self) -> Option<&NodeId> {
        let failing = |r: &&ClockRecord| {
            r.ended_at.is_none() && r.last_error.is_some() && r.unreachable_at.is_some() && r.unreachable_at >= r.last_attempt_at
        };
        let untold = self.alloc.as_ref().filter(|_| !self.unreachable.is_empty()).map(|a| &a.node);
        untold.or_else(|| self.records.iter().find(failing).map(|r| &r.node))
    }

    pub(super) fn open_records(&self) -> impl Iterator<Item = &ClockRecord> {
        self.records.iter().filter(|r| r.ended_at.is_none())
    }

    /// Clocks that run. The clock of a task that was never told, its node being away, starts when that is back.
    pub(super) fn armed(&self) -> impl Iterator<Item = &ClockRecord> {
        self.open_records().filter(|r| !self.unreachable.contains(&r.key.task))
    }

    fn glance(&self) -> Glance {
        // What only waits for its turn on a node that drains is in no list of what was told; the drain itself looks.
        let told = |a: &&Allocation| a.desired != Desired::Run || has_sign(a);
        Glance {
            seen: self.seen,
            due: self.armed().map(|r| r.due).min().unwrap_or(Timestamp::LATEST),
            armed: u32::try_from(self.armed().count()).unwrap_or(u32::MAX),
            open: self.alloc.as_ref().filter(told).is_some_and(|a| a.any_task_lives() || a.may_still_start()),
            away: self.node_away().is_some(),
            busy: self.busy,
            unread: self.alloc.is_none(),
        }
    }
}

/// What is asked of all that is tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Glance {
    pub(super) seen: Timestamp,
    /// Of the earliest clock that runs.
    pub(super) due: Timestamp,
    pub(super) armed: u32,
    /// It was told to end, and a task of it may live.
    pub(super) open: bool,
    /// See [`Tracked::node_away`].
    pub(super) away: bool,
    pub(super) busy: bool,
    /// Nothing of it was read since the restart.
    unread: bool,
}

/// Where it is kept.
enum Place {
    Open(Box<Tracked>),
    /// The specification's shape lies with the others', the rest of it in the bytes.
    Packed {
        bytes: Box<[u8]>,
        shape: Option<Arc<[u8]>>,
        glance: Glance,
    },
}

impl Place {
    fn view(&self, id: &AllocId) -> View<'_> {
        match self {
            Place::Open(t) => View::Open(t),
            Place::Packed { bytes, shape, glance } => {
                View::Copy(Box::new(Flat::unpack(bytes, shape.as_deref(), id, glance.seen)))
            }
        }
    }

    fn glance(&self) -> Glance {
        match self {
            Place::Open(t) => t.glance(),
            Place::Packed { glance, .. } => *glance,
        }
    }
}

/// One allocation to look at: as it lies there, or a copy of what lies packed.
pub(super) enum View<'a> {
    Open(&'a Tracked),
    Copy(Box<Tracked>),
}

impl Deref for View<'_> {
    type Target = Tracked;
    fn deref(&self) -> &Tracked {
        match self {
            View::Open(t) => t,
            View::Copy(t) => t,
        }
    }
}

#[derive(Default)]
pub(super) struct Shelf {
    places: HashMap<AllocId, Place>,
    shapes: Shapes,
}

impl Shelf {
    pub(super) fn get(&self, id: &AllocId) -> Option<View<'_>> {
        self.places.get_key_value(id).map(|(id, place)| place.view(id))
    }

    /// To change it. It lies open until [`Shelf::rest`].
    pub(super) fn get_mut(&mut self, id: &AllocId) -> Option<&mut Tracked> {
        let place = self.places.get_mut(id)?;
        if let View::Copy(t) = place.view(id) {
            *place = Place::Open(t);
        }
        let Place::Open(t) = place else { return None };
        Some(t)
    }

    /// Begins to track it, when it is not yet.
    pub(super) fn add(&mut self, id: &AllocId) {
        if !self.places.contains_key(id) {
            self.places.insert(id.clone(), Place::Open(Box::default()));
        }
    }

    pub(super) fn remove(&mut self, id: &AllocId) -> Option<Tracked> {
        self.places.remove(id).map(|place| match place {
            Place::Open(t) => *t,
            Place::Packed { bytes, shape, glance } => Flat::unpack(&bytes, shape.as_deref(), id, glance.seen),
        })
    }

    /// Packs it when it has nothing to do for a while.
    pub(super) fn rest(&mut self, id: &AllocId, now: Timestamp) {
        let Some(place) = self.places.get_mut(id) else { return };
        let Place::Open(t) = place else { return };
        let glance = t.glance();
        if t.busy || !t.shots.is_empty() || t.wake.unwrap_or(Timestamp::LATEST).min(glance.due) < now + NEAR {
            return;
        }
        let shape = t.spec.as_ref().map(|spec| self.shapes.of(spec));
        let bytes = pack(&Flat::of(t));
        let same = || format!("{t:?}") == format!("{:?}", Flat::unpack(&bytes, shape.as_deref(), id, glance.seen));
        debug_assert!(same(), "{t:?} is another when it is unpacked");
        *place = Place::Packed { bytes, shape, glance };
    }

    /// The id as it is kept here: whoever keeps this one needs no room for another.
    pub(super) fn id(&self, id: &AllocId) -> Option<&AllocId> {
        self.places.get_key_value(id).map(|(id, _)| id)
    }

    pub(super) fn glance(&self, id: &AllocId) -> Option<Glance> {
        self.places.get(id).map(Place::glance)
    }

    /// It rests since a restart: there is nothing to derive a clock from.
    pub(super) fn is_unread(&self, id: &AllocId) -> bool {
        matches!(self.places.get(id), Some(Place::Packed { glance: Glance { unread: true, .. }, .. }))
    }

    pub(super) fn glances(&self) -> impl Iterator<Item = (&AllocId, Glance)> {
        self.places.iter().map(|(id, place)| (id, place.glance()))
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// How many do not lie packed.
    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        self.places.values().filter(|place| matches!(place, Place::Open(_))).count()
    }
}

pub(super) fn pack(value: &impl Serialize) -> Box<[u8]> {
    // No larger than it is.
    postcard::to_allocvec(value).expect("it is written into memory, and knows its own lengths").into_boxed_slice()
}

pub(super) fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> T {
    postcard::from_bytes(bytes).expect("it was packed by `pack`, in this process")
}

/// A [`Tracked`] as it is packed: without what lies beside it, and nothing twice.
#[derive(Serialize, Deserialize)]
struct Flat<'a> {
    /// Without its id and name.
    alloc: Option<(Allocation, Name<'a>)>,
    spec: Option<Registration>,
    records: Vec<FlatRecord>,
    unreachable: Cow<'a, [TaskName]>,
    wake: Option<Timestamp>,
    next_try: Option<Timestamp>,
    unsupported: Cow<'a, [ClockKey]>,
    shared: bool,
}

#[derive(Serialize, Deserialize)]
enum Name<'a> {
    /// `job.group[index]`, as Nomad makes them.
    Index(u32),
    Text(Cow<'a, str>),
}

impl<'a> Name<'a> {
    fn of(alloc: &'a Allocation) -> Self {
        let index = alloc.name.strip_suffix(']').and_then(|name| name.rsplit_once('[')?.1.parse().ok());
        let index = index.filter(|i| Name::Index(*i).of_job(&alloc.job, &alloc.group) == alloc.name);
        index.map_or(Name::Text(Cow::Borrowed(&alloc.name)), Name::Index)
    }

    fn of_job(self, job: &JobId, group: &str) -> String {
        match self {
            Name::Index(index) => format!("{job}.{group}[{index}]"),
            Name::Text(name) => name.into_owned(),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct FlatRecord {
    task: TaskName,
    /// Where it is not the allocation's.
    incarnation: Option<Timestamp>,
    /// Job, node and its name, where they are not the allocation's.
    of: Option<(JobKey, NodeId, String)>,
    operation: Option<OpId>,
    cause: Cause,
    start: Timestamp,
    basis: Basis,
    seen_at: Timestamp,
    unreachable_at: Option<Timestamp>,
    due: Timestamp,
    attempts: u32,
    last_attempt_at: Option<Timestamp>,
    last_error: Option<String>,
    signalled_at: Option<Timestamp>,
    ended_at: Option<Timestamp>,
}

impl<'a> Flat<'a> {
    fn of(tracked: &'a Tracked) -> Self {
        // All of it by name, so that a field that is new does not get lost.
        let Tracked { alloc, spec, records, unreachable, wake, next_try, unsupported, shared, busy: _, shots: _, seen: _ } =
            tracked;
        Self {
            alloc: alloc.as_ref().map(|a| (Allocation { id: "".into(), name: String::new(), ..a.clone() }, Name::of(a))),
            spec: spec.as_deref().map(Registration::of),
            records: records.iter().map(|r| FlatRecord::of(r, alloc.as_ref())).collect(),
            unreachable: Cow::Borrowed(unreachable),
            wake: *wake,
            next_try: *next_try,
            unsupported: Cow::Borrowed(unsupported),
            shared: *shared,
        }
    }

    fn unpack(bytes: &[u8], shape: Option<&[u8]>, id: &AllocId, seen: Timestamp) -> Tracked {
        let Flat { alloc, spec, records, unreachable, wake, next_try, unsupported, shared } = unpack::<Flat<'static>>(bytes);
        // With the one id that all of them share.
        let alloc = alloc.map(|(a, name)| Allocation { id: id.clone(), name: name.of_job(&a.job, &a.group), ..a });
        Tracked {
            records: records.into_iter().map(|r| r.record(id, alloc.as_ref())).collect(),
            alloc,
            spec: spec.zip(shape).map(|(r, shape)| Arc::new(r.spec(shape))),
            unreachable: unreachable.into_owned(),
            next_try,
            unsupported: unsupported.into_owned(),
            shared,
            busy: false,
            wake,
            shots: vec![],
            seen,
        }
    }
}

fn incarnation_of(task: &TaskName, alloc: Option<&Allocation>) -> Option<Timestamp> {
    alloc?.tasks.get(task)?.incarnation()
}

impl FlatRecord {
    fn of(record: &ClockRecord, alloc: Option<&Allocation>) -> Self {
        let ClockRecord {
            key: ClockKey { alloc: _, task, incarnation },
            job,
            node,
            node_name,
            operation,
            cause,
            start,
            basis,
            seen_at,
            unreachable_at,
            due,
            attempts,
            last_attempt_at,
            last_error,
            signalled_at,
            ended_at,
        } = record.clone();
        let allocs = alloc.is_some_and(|a| a.job_key() == job && a.node == node && a.node_name == node_name);
        let incarnation = Some(incarnation).filter(|i| incarnation_of(&task, alloc) != Some(*i));
        Self {
            task,
            incarnation,
            of: (!allocs).then_some((job, node, node_name)),
            operation,
            cause,
            start,
            basis,
            seen_at,
            unreachable_at,
            due,
            attempts,
            last_attempt_at,
            last_error,
            signalled_at,
            ended_at,
        }
    }

    fn record(self, id: &AllocId, alloc: Option<&Allocation>) -> ClockRecord {
        let allocs = || alloc.map(|a| (a.job_key(), a.node.clone(), a.node_name.clone()));
        const LEFT_OUT: &str = "left out only where the allocation has it";
        let (job, node, node_name) = self.of.or_else(allocs).expect(LEFT_OUT);
        let incarnation = self.incarnation.or_else(|| incarnation_of(&self.task, alloc)).expect(LEFT_OUT);
        ClockRecord {
            key: ClockKey { alloc: id.clone(), task: self.task, incarnation },
            job,
            node,
            node_name,
            operation: self.operation,
            cause: self.cause,
            start: self.start,
            basis: self.basis,
            seen_at: self.seen_at,
            unreachable_at: self.unreachable_at,
            due: self.due,
            attempts: self.attempts,
            last_attempt_at: self.last_attempt_at,
            last_error: self.last_error,
            signalled_at: self.signalled_at,
            ended_at: self.ended_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use curfew_core::{ClientStatus, EventKind, Task, TaskEvent, TaskState};
    use serde_json::json;

    use super::*;

    const ID: &str = "5355e9cc-8203-6163-e9fa-86ea80c11132";
    const NODE: &str = "29b13a0a-9e4c-4d7e-b6a2-1f6f1a3cbb7e";
    /// 2027, in microseconds.
    const NOW: i64 = 1_800_000_000_000_000;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_micros(NOW + s * 1_000_000 + 123_456)
    }

    /// A task that was told to end and ignores it, with a clock in twenty hours.
    fn stopped() -> Tracked {
        let event = |kind, s| TaskEvent { kind, at: at(s), exit_code: 0, signal: 0, kill_timeout: None, delay: None, text: None };
        let killing = TaskEvent { kill_timeout: Some(Duration::from_secs(86_400)), ..event(EventKind::Killing, 60) };
        let events = vec![event(EventKind::Received, -2), event(EventKind::Other, -1), event(EventKind::Started, 0), killing];
        let task =
            Task { state: TaskState::Running, failed: false, restarts: 0, started_at: Some(at(0)), finished_at: None, events };
        let alloc = Allocation {
            id: ID.into(),
            namespace: "default".into(),
            job: "match-48213".into(),
            job_version: Some(0),
            group: "game".into(),
            name: "match-48213.game[0]".into(),
            node: NODE.into(),
            node_name: "worker-117".into(),
            desired: Desired::Stop,
            client_status: ClientStatus::Running,
            migrate: false,
            no_shutdown_delay: false,
            create_index: 1_000_000,
            modify_index: 1_000_010,
            modified_at: Some(at(60)),
            tasks: [("server".into(), task)].into_iter().collect(),
        };
        let spec = JobSpec::from_json(&json!({
            "ID": "match-48213", "Type": "batch", "JobModifyIndex": 1_000_000, "Datacenters": ["dc1"], "Meta": { "curfew_managed": "true" },
            "TaskGroups": [{ "Name": "game", "Tasks": [{ "Name": "server", "Driver": "exec", "KillTimeout": 86_400_000_000_000u64 }] }],
        }));
        let record = ClockRecord {
            key: ClockKey { alloc: ID.into(), task: "server".into(), incarnation: at(0) },
            job: alloc.job_key(),
            node: NODE.into(),
            node_name: "worker-117".into(),
            operation: Some(OpId::new(at(59))),
            cause: Cause::Stopped,
            start: at(60),
            basis: Basis::Event,
            seen_at: at(61),
            unreachable_at: None,
            due: at(72_060),
            attempts: 0,
            last_attempt_at: None,
            last_error: None,
            signalled_at: None,
            ended_at: None,
        };
        let (records, wake) = (vec![record], Some(at(72_059)));
        Tracked {
            alloc: Some(alloc),
            spec: Some(Arc::new(spec)),
            records,
            wake,
            seen: at(61),
            shared: true,
            ..Tracked::default()
        }
    }

    fn shelf(t: Tracked) -> Shelf {
        Shelf { places: [(AllocId::from(ID), Place::Open(Box::new(t)))].into_iter().collect(), ..Shelf::default() }
    }

    fn packed(s: &Shelf) -> Option<usize> {
        s.places.values().find_map(|place| match place {
            Place::Packed { bytes, .. } => Some(bytes.len()),
            Place::Open(_) => None,
        })
    }

    #[test]
    fn a_stop_that_waits_takes_a_few_hundred_bytes() {
        let mut s = shelf(stopped());
        s.rest(&ID.into(), at(100));
        let bytes = packed(&s).unwrap();
        assert!(bytes <= 240, "{bytes} bytes; many more of these are kept than of anything else");
        assert!(size_of::<Place>() <= 64, "{}", size_of::<Place>());
    }

    #[test]
    fn whoever_asks_gets_what_was_packed() {
        let mut t = stopped();
        t.unreachable = vec!["server".into()];
        t.next_try = Some(at(20));
        t.unsupported = vec![t.records[0].key.clone()];
        t.alloc.as_mut().unwrap().name = "match-48213.game[01]".into();
        // Of another job and node, as far as the records know, and with everything that one can have.
        let mut other = t.records[0].clone();
        (other.job, other.node, other.node_name) = (JobKey::new("games", "other"), "not a uuid".into(), "elsewhere".into());
        (other.unreachable_at, other.last_attempt_at, other.signalled_at) = (Some(at(1)), Some(at(2)), Some(at(3)));
        (other.last_error, other.ended_at, other.attempts) = (Some("no path to node".into()), Some(at(4)), 7);
        other.key.incarnation = at(-9);
        (other.cause, other.basis, other.operation) = (Cause::SiblingEnded, Basis::Seen, None);
        t.records.push(other);
        let before = (format!("{t:?}"), t.glance());
        let mut s = shelf(t);
        s.rest(&ID.into(), at(100));
        assert!(packed(&s).is_some());
        let glance = |s: &Shelf| s.glances().next().map(|(_, g)| g).unwrap();
        assert_eq!((format!("{:?}", *s.get(&ID.into()).unwrap()), glance(&s)), before);
        assert_eq!((format!("{:?}", s.get_mut(&ID.into()).unwrap()), packed(&s), glance(&s)), (before.0.clone(), None, before.1));
        s.rest(&ID.into(), at(100));
        assert_eq!(format!("{:?}", s.remove(&ID.into()).unwrap()), before.0);
        // After a restart, before anything of it was read.
        let (records, wake) = (stopped().records, Some(at(72_059)));
        let t = Tracked { records, wake, ..Tracked::default() };
        let before = format!("{t:?}");
        let mut s = shelf(t);
        s.rest(&ID.into(), at(100));
        assert_eq!((packed(&s).is_some(), format!("{:?}", *s.get(&ID.into()).unwrap())), (true, before));
    }

    #[test]
    fn what_is_near_or_under_way_stays_open() {
        let rests = |change: fn(&mut Tracked), now| {
            let mut t = stopped();
            change(&mut t);
            let mut s = shelf(t);
            s.rest(&ID.into(), now);
            packed(&s).is_some()
        };
        assert!(rests(|_| (), at(100)));
        assert!(rests(|_| (), at(72_054)) && !rests(|_| (), at(72_055)), "{NEAR:?} before its next look");
        assert!(!rests(|t| t.wake = None, at(72_056)), "its clock is near, whenever it is looked at");
        assert!(!rests(|t| t.busy = true, at(100)));
        assert!(!rests(|t| t.shots = vec![(t.records[0].key.clone(), at(90), CancellationToken::new())], at(100)));
    }
}
