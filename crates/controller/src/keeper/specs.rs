//! Job specifications as they were when an allocation was placed, so that a stop timeout costs no call.
//!
//! The event stream tells every registration in order, so while it is unbroken the newest specification registered before an
//! allocation was created is that allocation's. After a gap that is not certain any more, and the cache is emptied.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use curfew_core::spec::JobSpec;
use curfew_core::{Allocation, JobKey};
use serde::{Deserialize, Serialize};

use super::shelf::{pack, unpack};

/// Versions kept of one job: Nomad itself keeps six.
const VERSIONS: usize = 6;

/// What a specification does not share with those of other allocations, jobs and versions.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct Registration {
    version: u64,
    job_modify_index: u64,
    stopped: bool,
}

impl Registration {
    pub(super) fn of(spec: &JobSpec) -> Self {
        let JobSpec { version, job_modify_index, stopped, .. } = *spec;
        Self { version, job_modify_index, stopped }
    }

    pub(super) fn spec(self, shape: &[u8]) -> JobSpec {
        let Self { version, job_modify_index, stopped } = self;
        JobSpec { version, job_modify_index, stopped, ..unpack(shape) }
    }
}

/// The rest of specifications, packed. A thousand allocations of one job, and jobs made from one template, have one shape.
#[derive(Default)]
pub(super) struct Shapes {
    kept: HashSet<Arc<[u8]>>,
    /// How many may be kept before those that nobody has any more are dropped.
    most: usize,
}

impl Shapes {
    pub(super) fn of(&mut self, spec: &JobSpec) -> Arc<[u8]> {
        let shape = pack(&JobSpec { version: 0, job_modify_index: 0, stopped: false, ..spec.clone() });
        if let Some(kept) = self.kept.get(&*shape) {
            return kept.clone();
        }
        if self.kept.len() >= self.most {
            self.kept.retain(|shape| Arc::strong_count(shape) > 1);
            self.most = (2 * self.kept.len()).max(64);
        }
        let shape: Arc<[u8]> = shape.into();
        self.kept.insert(shape.clone());
        shape
    }
}

/// Of one job, by `job_modify_index`.
type Versions = Vec<(Registration, Arc<[u8]>)>;

pub struct Specs {
    jobs: HashMap<JobKey, Versions>,
    shapes: Shapes,
    /// Oldest insertion first.
    order: VecDeque<JobKey>,
    capacity: usize,
}

impl Specs {
    pub fn new(capacity: usize) -> Self {
        Self { jobs: HashMap::new(), shapes: Shapes::default(), order: VecDeque::new(), capacity }
    }

    pub fn insert(&mut self, key: &JobKey, spec: &JobSpec) {
        if !self.jobs.contains_key(key) {
            while self.jobs.len() >= self.capacity {
                let Some(oldest) = self.order.pop_front() else { break };
                self.jobs.remove(&oldest);
            }
            self.order.push_back(key.clone());
        }
        let versions = self.jobs.entry(key.clone()).or_default();
        let new = Registration::of(spec);
        versions.retain(|(v, _)| v.job_modify_index != new.job_modify_index);
        // A Vec would make room for four of the first.
        versions.reserve_exact(1);
        let at = versions.partition_point(|(v, _)| v.job_modify_index < new.job_modify_index);
        versions.insert(at, (new, self.shapes.of(spec)));
        if versions.len() > VERSIONS {
            versions.remove(0);
        }
    }

    /// The specification of an allocation. Its version says which when it is known (not in events).
    pub fn of(&self, alloc: &Allocation) -> Option<JobSpec> {
        let versions = self.jobs.get(&alloc.job_key())?;
        let newest =
            |pred: &dyn Fn(&Registration) -> bool| versions.iter().rev().find(|(v, _)| pred(v)).map(|(v, shape)| v.spec(shape));
        match alloc.job_version {
            // An in-place update gives an older allocation a newer version; a purged job starts again at version 0.
            Some(version) => newest(&|v| v.version == version && v.job_modify_index <= alloc.modify_index),
            None => newest(&|v| !v.stopped && v.job_modify_index <= alloc.create_index),
        }
    }

    /// The newest registration known of a job.
    pub fn newest(&self, key: &JobKey) -> Option<JobSpec> {
        self.jobs.get(key)?.last().map(|(v, shape)| v.spec(shape))
    }

    pub fn forget(&mut self, key: &JobKey) {
        self.jobs.remove(key);
        self.order.retain(|k| k != key);
    }

    pub fn clear(&mut self) {
        self.jobs.clear();
        self.order.clear();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_shape_for_all_that_have_it_and_none_for_nobody() {
        let spec = |name: String, version| {
            JobSpec::from_json(&json!({
                "Type": "batch", "Version": version, "JobModifyIndex": 10 + version, "Stop": version == 2, "TaskGroups": [{ "Name": name }],
            }))
        };
        let mut shapes = Shapes::default();
        let (first, second) = (spec("game".into(), 1), spec("game".into(), 2));
        let shared = shapes.of(&first);
        assert!(Arc::ptr_eq(&shared, &shapes.of(&second)) && !Arc::ptr_eq(&shared, &shapes.of(&spec("other".into(), 1))));
        for s in [first, second] {
            assert_eq!(Registration::of(&s).spec(&shared), s);
        }
        for i in 0..1000 {
            shapes.of(&spec(i.to_string(), 1));
        }
        assert!(shapes.kept.len() <= 64, "{} are kept", shapes.kept.len());
        assert!(Arc::ptr_eq(&shared, &shapes.of(&spec("game".into(), 3))), "somebody has it");
    }
}
