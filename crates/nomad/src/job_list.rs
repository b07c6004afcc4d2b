//! The list of jobs, page by page.

use std::collections::BTreeMap;

use curfew_core::JobKey;
use curfew_core::gc::{JobStatus, JobStub};
use curfew_core::spec::{JobType, META_MANAGED, META_OPERATION};
use serde::Deserialize;

use crate::client::{Call, Nomad};
use crate::cursor::Cursor;
use crate::error::Error;
use crate::filter::JobFilter;
use crate::route::Route;
use crate::wire::moment;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct JobWire {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "ParentID", default)]
    parent_id: String,
    namespace: String,
    #[serde(rename = "Type")]
    kind: String,
    status: String,
    #[serde(default)]
    stop: bool,
    #[serde(default)]
    periodic: bool,
    #[serde(default)]
    parameterized_job: bool,
    #[serde(default)]
    submit_time: i64,
    #[serde(default)]
    job_modify_index: u64,
    meta: Option<BTreeMap<String, String>>,
    job_summary: Option<SummaryWire>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct SummaryWire {
    summary: Option<BTreeMap<String, BTreeMap<String, u64>>>,
    children: Option<BTreeMap<String, u64>>,
}

impl JobWire {
    fn stub(self) -> Result<JobStub, String> {
        let job_type = match self.kind.as_str() {
            "service" => JobType::Service,
            "batch" => JobType::Batch,
            "system" => JobType::System,
            "sysbatch" => JobType::SysBatch,
            other => return Err(format!("job \"{}\": Type \"{other}\" is not known", self.id)),
        };
        let status = match self.status.as_str() {
            "pending" => JobStatus::Pending,
            "running" => JobStatus::Running,
            "dead" => JobStatus::Dead,
            other => return Err(format!("job \"{}\": Status \"{other}\" is not known", self.id)),
        };
        let summary = self.job_summary.unwrap_or_default();
        let (mut queued, mut placed) = (0, 0);
        for (name, count) in summary.summary.into_iter().flatten().flat_map(|(_, counts)| counts) {
            *(if name == "Queued" { &mut queued } else { &mut placed }) += count;
        }
        let children = summary.children.unwrap_or_default();
        let meta = self.meta.unwrap_or_default();
        Ok(JobStub {
            key: JobKey::new(self.namespace, self.id),
            parent: (!self.parent_id.is_empty()).then(|| self.parent_id.into()),
            job_type,
            status,
            stopped: self.stop,
            has_children: self.periodic || self.parameterized_job,
            submitted_at: moment(self.submit_time),
            job_modify_index: self.job_modify_index,
            managed: meta.get(META_MANAGED).is_some_and(|m| m == "true"),
            operation: meta.get(META_OPERATION).cloned(),
            queued,
            placed,
            live_children: children.iter().filter(|(name, _)| *name != "Dead").map(|(_, n)| n).sum(),
        })
    }
}

/// A list of jobs, page by page. Each page is a read of its own.
#[derive(Debug)]
pub struct JobPages {
    nomad: Nomad,
    filter: JobFilter,
    namespace: String,
    prefix: Option<String>,
    per_page: u32,
    cursor: Cursor,
}

impl JobPages {
    /// Only jobs whose ids begin so.
    pub fn prefix(mut self, prefix: Option<String>) -> Self {
        self.prefix = prefix.filter(|p| !p.is_empty());
        self
    }

    /// Begins at this job, or where it would be.
    pub fn from(mut self, key: &JobKey) -> Self {
        self.cursor = Cursor::Next(format!("{}.{}", key.namespace, key.job));
        self
    }

    /// Pages of at most so many.
    pub fn of(mut self, per_page: usize) -> Self {
        self.per_page = self.per_page.min(u32::try_from(per_page).unwrap_or(u32::MAX)).max(1);
        self
    }

    /// The next page; `None` after the last. One job that cannot be read fails the page: nothing follows from half a list.
    pub async fn next(&mut self) -> Result<Option<Vec<JobStub>>, Error> {
        let mut call = Call::new(Route::Jobs, &[]).query("namespace", &*self.namespace).query("meta", "true");
        call = call.query("per_page", self.per_page.to_string());
        let filter = match &self.cursor {
            Cursor::Next(token) if self.namespace == "*" => self.filter.from(token),
            _ => self.filter.clone(),
        };
        if !filter.as_str().is_empty() {
            call = call.query("filter", filter.as_str());
        }
        if let Some(prefix) = &self.prefix {
            call = call.query("prefix", prefix.as_str());
        }
        let Some(call) = self.cursor.ask(call) else { return Ok(None) };
        let answer = self.nomad.send(call).await?;
        let page: Option<Vec<JobWire>> = answer.json()?;
        let page: Result<Vec<_>, String> = page.unwrap_or_default().into_iter().map(JobWire::stub).collect();
        let page = page.map_err(|why| answer.unlike_nomad(&why))?;
        self.cursor.advance(&answer)?;
        Ok(Some(page))
    }
}

impl Nomad {
    /// A list by filter, by namespace and id. `namespace` may be `*`.
    pub fn jobs(&self, filter: JobFilter, namespace: &str) -> JobPages {
        let (namespace, per_page) = (namespace.to_owned(), self.config().per_page.max(1));
        JobPages { nomad: self.clone(), filter, namespace, prefix: None, per_page, cursor: Cursor::default() }
    }

    /// One job as the list shows it, read now. `None` when the list does not hold it.
    pub async fn job_stub(&self, key: &JobKey) -> Result<Option<JobStub>, Error> {
        // The prefix keeps Nomad from going through every job; the filter leaves the one.
        let mut pages = self.jobs(JobFilter::one(key), key.namespace.as_str()).prefix(Some(key.job.to_string()));
        while let Some(page) = pages.next().await? {
            if let Some(stub) = page.into_iter().find(|j| j.key == *key) {
                return Ok(Some(stub));
            }
        }
        Ok(None)
    }
}
