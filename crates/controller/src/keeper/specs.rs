//! Job specifications as they were when an allocation was placed, so that a stop timeout costs no call.
//!
//! The event stream tells every registration in order, so while it is unbroken the newest specification registered before an
//! allocation was created is that allocation's. After a gap that is not certain any more, and the cache is emptied.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use curfew_core::spec::JobSpec;
use curfew_core::{Allocation, JobKey};

/// Versions kept of one job: Nomad itself keeps six.
const VERSIONS: usize = 6;

pub struct Specs {
    jobs: HashMap<JobKey, Vec<Arc<JobSpec>>>,
    /// Oldest insertion first.
    order: VecDeque<JobKey>,
    capacity: usize,
}

impl Specs {
    pub fn new(capacity: usize) -> Self {
        Self { jobs: HashMap::new(), order: VecDeque::new(), capacity }
    }

    pub fn insert(&mut self, key: &JobKey, spec: JobSpec) -> Arc<JobSpec> {
        let spec = Arc::new(spec);
        if !self.jobs.contains_key(key) {
            while self.jobs.len() >= self.capacity {
                let Some(oldest) = self.order.pop_front() else { break };
                self.jobs.remove(&oldest);
            }
            self.order.push_back(key.clone());
        }
        let versions = self.jobs.entry(key.clone()).or_default();
        versions.retain(|v| v.job_modify_index != spec.job_modify_index);
        versions.push(spec.clone());
        versions.sort_by_key(|v| v.job_modify_index);
        if versions.len() > VERSIONS {
            versions.remove(0);
        }
        spec
    }

    /// The specification of an allocation. Its version says which when it is known (not in events).
    pub fn of(&self, alloc: &Allocation) -> Option<Arc<JobSpec>> {
        let versions = self.jobs.get(&alloc.job_key())?;
        let newest = |pred: &dyn Fn(&JobSpec) -> bool| versions.iter().rev().find(|v| pred(v)).cloned();
        match alloc.job_version {
            // An in-place update gives an older allocation a newer version; a purged job starts again at version 0.
            Some(version) => newest(&|v| v.version == version && v.job_modify_index <= alloc.modify_index),
            None => newest(&|v| !v.stopped && v.job_modify_index <= alloc.create_index),
        }
    }

    /// The newest registration known of a job.
    pub fn newest(&self, key: &JobKey) -> Option<&Arc<JobSpec>> {
        self.jobs.get(key)?.last()
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
