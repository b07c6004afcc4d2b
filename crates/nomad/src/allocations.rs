//! Allocations: one, by filter, by id.

use curfew_core::spec::JobSpec;
use curfew_core::{AllocId, Allocation, JobKey};

use crate::client::{Call, Nomad, found};
use crate::cursor::Cursor;
use crate::error::Error;
use crate::filter::Filter;
use crate::route::Route;
use crate::wire::{self, AllocationWire, BadAllocation};

#[derive(Clone, Debug, Default)]
pub struct AllocationPage {
    pub allocations: Vec<Allocation>,
    pub bad: Vec<BadAllocation>,
    /// Raft index of the (oldest) read.
    pub index: u64,
}

/// A list, page by page. Each page is a read of its own: an allocation can appear, or miss, when it changes in between.
#[derive(Debug)]
pub struct AllocationPages {
    nomad: Nomad,
    filter: Option<Filter>,
    namespace: String,
    per_page: u32,
    cursor: Cursor,
}

impl AllocationPages {
    /// The next page; `None` after the last. After an error the same page can be asked for again.
    pub async fn next(&mut self) -> Result<Option<AllocationPage>, Error> {
        let mut call = Call::new(Route::Allocations, &[]).query("namespace", &*self.namespace);
        call = call.query("per_page", self.per_page.to_string());
        if let Some(filter) = &self.filter {
            call = call.query("filter", filter.as_str());
        }
        let Some(call) = self.cursor.ask(call) else { return Ok(None) };
        let answer = self.nomad.send(call).await?;
        let (allocations, bad) = wire::allocations(&answer.body).map_err(|why| answer.unlike_nomad(&why))?;
        self.cursor.advance(&answer)?;
        Ok(Some(AllocationPage { allocations, bad, index: answer.index() }))
    }
}

impl Nomad {
    /// A list by filter. `namespace` may be `*`.
    pub fn allocations(&self, filter: Option<Filter>, namespace: &str, per_page: u32) -> AllocationPages {
        AllocationPages {
            nomad: self.clone(),
            filter,
            namespace: namespace.to_owned(),
            per_page: per_page.max(1),
            cursor: Cursor::default(),
        }
    }

    /// Allocations with a live task and a sign of being told to end, in all namespaces.
    pub fn told_to_end(&self) -> AllocationPages {
        self.allocations(Some(Filter::told_to_end()), "*", self.config().per_page)
    }

    /// The index of the newest change of any allocation, in any namespace: as long as it stays, a list would be the same again.
    pub async fn allocations_index(&self) -> Result<u64, Error> {
        let page = self.allocations(None, "*", 1).next().await?;
        Ok(page.map_or(0, |p| p.index))
    }

    /// Reads these again, in all namespaces, 128 a call. One that is missing from the answer is gone from Nomad.
    pub async fn allocations_by_id(&self, ids: &[AllocId]) -> Result<AllocationPage, Error> {
        self.all(Filter::ids(ids)).await
    }

    /// The allocations of these jobs that are not over, 128 jobs a call.
    pub async fn not_over_allocations(&self, jobs: &[JobKey]) -> Result<AllocationPage, Error> {
        self.all(Filter::not_over_of(jobs)).await
    }

    async fn all(&self, filters: Vec<Filter>) -> Result<AllocationPage, Error> {
        let mut all = AllocationPage { index: u64::MAX, ..AllocationPage::default() };
        for filter in filters {
            let mut pages = self.allocations(Some(filter), "*", self.config().per_page);
            while let Some(page) = pages.next().await? {
                all.allocations.extend(page.allocations);
                all.bad.extend(page.bad);
                all.index = all.index.min(page.index);
            }
        }
        if all.index == u64::MAX {
            all.index = 0;
        }
        Ok(all)
    }

    /// One allocation and the job it runs, as of now: a consistent read. `None` only in Nomad's own words.
    pub async fn allocation(&self, id: &AllocId) -> Result<Option<(Allocation, Option<JobSpec>)>, Error> {
        let call = Call::new(Route::Allocation, &[id.as_str()]);
        let Some(answer) = found(self.send(call).await, &["alloc not found"])? else { return Ok(None) };
        let wire: AllocationWire = answer.json()?;
        wire::allocation(wire).map(Some).map_err(|why| answer.unlike_nomad(&why))
    }
}
