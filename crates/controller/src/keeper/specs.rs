//! Job specifications as they were when an allocation was placed, so that a stop timeout costs no call.
//!
//! The event stream tells every registration in order, so while it is unbroken the newest specification registered before an
//! allocation was created is that allocation's. After a gap that is not certain any more, and the cache is emptied.

use std::collections::{HashMap, VecDeque};

use curfew_core::spec::JobSpec;
use curfew_core::{Allocation, JobKey};

use super::shelf::{pack, unpack};

/// Versions kept of one job: Nomad itself keeps six.
const VERSIONS: usize = 6;

/// One registration: what it is looked up by, and the whole of it packed.
struct Version {
    version: u64,
    job_modify_index: u64,
    stopped: bool,
    spec: Box<[u8]>,
}

pub struct Specs {
    jobs: HashMap<JobKey, Vec<Version>>,
    /// Oldest insertion first.
    order: VecDeque<JobKey>,
    capacity: usize,
}

impl Specs {
    pub fn new(capacity: usize) -> Self {
        Self { jobs: HashMap::new(), order: VecDeque::new(), capacity }
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
        let JobSpec { version, job_modify_index, stopped, .. } = *spec;
        versions.retain(|v| v.job_modify_index != job_modify_index);
        // A Vec would make room for four of the first.
        versions.reserve_exact(1);
        let at = versions.partition_point(|v| v.job_modify_index < job_modify_index);
        versions.insert(at, Version { version, job_modify_index, stopped, spec: pack(spec) });
        if versions.len() > VERSIONS {
            versions.remove(0);
        }
    }

    /// The specification of an allocation. Its version says which when it is known (not in events).
    pub fn of(&self, alloc: &Allocation) -> Option<JobSpec> {
        let versions = self.jobs.get(&alloc.job_key())?;
        let newest = |pred: &dyn Fn(&Version) -> bool| versions.iter().rev().find(|v| pred(v)).map(|v| unpack(&v.spec));
        match alloc.job_version {
            // An in-place update gives an older allocation a newer version; a purged job starts again at version 0.
            Some(version) => newest(&|v| v.version == version && v.job_modify_index <= alloc.modify_index),
            None => newest(&|v| !v.stopped && v.job_modify_index <= alloc.create_index),
        }
    }

    /// The newest registration known of a job.
    pub fn newest(&self, key: &JobKey) -> Option<JobSpec> {
        self.jobs.get(key)?.last().map(|v| unpack(&v.spec))
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
