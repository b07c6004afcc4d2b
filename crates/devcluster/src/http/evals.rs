//! `/v1/evaluations` and `/v1/evaluation/:id`.

use axum::response::Response;
use serde_json::{Value, json};

use super::access::Call;
use super::query::{numbered_before, opened, page};
use super::reply;
use crate::ids::is_uuid;
use crate::state::{State, Table};

pub(crate) async fn list(call: &Call) -> Result<Response, Response> {
    let q = &call.query;
    let filter = opened(call, Table::Evals).await?;
    let (prefix, job, status) = (q.get("prefix"), q.get("job"), q.get("status"));
    call.core.read(|s| {
        let all = s.eval_order.iter().filter_map(|(_, id)| s.evals.get(id)).filter(|e| {
            e.id.starts_with(prefix)
                && call.shows(&e.job.0, "read-job")
                && (job.is_empty() || e.job.1 == job)
                && (status.is_empty() || e.status.as_str() == status)
        });
        let page = page(
            q,
            all,
            |e| format!("{}.{}", e.create_index, e.id),
            |e, token| numbered_before(e.create_index, &e.id, token),
            |e| filter.as_ref().map_or(Ok(true), |f| f.accepts(&e.to_json())),
        )?;
        let rows: Vec<Value> = page.items.iter().map(|e| e.to_json()).collect();
        Ok(reply::read_page(&rows, s.table(Table::Evals), &page.next))
    })
}

pub(crate) fn count(call: &Call) -> Response {
    call.core.read(|s| {
        let n = s.evals.values().filter(|e| call.shows(&e.job.0, "read-job")).count();
        reply::read(
            &json!({"Count": n, "Index": s.table(Table::Evals), "KnownLeader": true, "LastContact": 0, "NextToken": ""}),
            s.table(Table::Evals),
        )
    })
}

pub(crate) async fn get(call: Call, id: &str) -> Result<Response, Response> {
    if !is_uuid(id) {
        return Err(reply::text(500, "eval lookup failed: index error: UUID must be 36 characters"));
    }
    let index_of = |s: &State| s.evals.get(id).map_or_else(|| s.table(Table::Evals), |e| e.modify_index);
    call.query.wait(&call.core, index_of).await?;
    call.core.read(|s| {
        let Some(e) = s.evals.get(id) else { return Err(reply::missing("eval not found", s.table(Table::Evals))) };
        call.demand(&e.job.0, &["read-job"])?;
        let mut v = e.to_json();
        if call.query.flag("related", false)
            && let Some(m) = v.as_object_mut()
        {
            let related: Vec<Value> = s.evals_of(&e.job).iter().filter(|o| o.id != e.id).map(|o| o.to_json()).collect();
            m.insert("RelatedEvals".into(), json!(related));
        }
        Ok(reply::read(&v, e.modify_index))
    })
}

pub(crate) async fn allocations(call: Call, id: &str) -> Result<Response, Response> {
    call.query.wait(&call.core, |s| s.table(Table::Allocs)).await?;
    call.core.read(|s| {
        let mut allocs = Vec::new();
        if let Some(e) = s.evals.get(id) {
            call.demand(&e.job.0, &["read-job"])?;
            allocs = s.allocs_of(&e.job);
        }
        let rows: Vec<_> = allocs.iter().filter(|a| a.eval_id == id).map(|a| a.stub(true, false)).collect();
        Ok(reply::read(&rows, s.table(Table::Allocs)))
    })
}
