//! Errors of the RPC: RFC 9457 problem details with a stable `type` and a sentence with the way out.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use curfew_core::api::Problem;
use curfew_core::submit::SubmitError;
use curfew_store::StoreError;

use super::limits::Full;
use crate::error::chain;
use crate::nodes::Unfit;

/// In seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

#[derive(Clone, Debug)]
pub struct Refusal {
    status: StatusCode,
    slug: &'static str,
    title: &'static str,
    detail: String,
}

impl Refusal {
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, slug: "bad-request", title: "The request cannot be read", detail: detail.into() }
    }
    /// A body that is too large, of another type, not JSON or not of the request's shape.
    pub fn unreadable(status: StatusCode, detail: String) -> Self {
        Self { status, ..Self::bad_request(detail) }
    }
    pub fn bad_specification(detail: String) -> Self {
        let title = "The specification cannot be used";
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, slug: "bad-specification", title, detail }
    }
    pub fn no_such_job(detail: String) -> Self {
        Self { status: StatusCode::NOT_FOUND, slug: "no-such-job", title: "No such job", detail }
    }
    pub fn changed(detail: String) -> Self {
        Self { status: StatusCode::CONFLICT, slug: "changed", title: "The job was changed by somebody else", detail }
    }
    pub fn no_deployment(detail: String) -> Self {
        Self { status: StatusCode::CONFLICT, slug: "no-deployment", title: "No deployment of the job runs", detail }
    }
    pub fn no_such_version(detail: String) -> Self {
        Self { status: StatusCode::NOT_FOUND, slug: "no-such-version", title: "Nomad has no such version of the job", detail }
    }
    pub fn no_such_node(detail: String) -> Self {
        Self { status: StatusCode::NOT_FOUND, slug: "no-such-node", title: "No such node", detail }
    }
    pub fn ambiguous_node(detail: String) -> Self {
        let title = "That is more than one node";
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, slug: "ambiguous-node", title, detail }
    }
    pub fn timeouts(detail: String) -> Self {
        let title = "The timeouts do not fit together";
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, slug: "timeouts", title, detail }
    }
    pub fn overlap(detail: String) -> Self {
        Self { status: StatusCode::CONFLICT, slug: "overlap", title: "Another drain has one of the nodes", detail }
    }
    pub fn drained_by_other(detail: String) -> Self {
        Self { status: StatusCode::CONFLICT, slug: "drained-by-other", title: "Somebody else drains one of the nodes", detail }
    }
    pub fn token(detail: String) -> Self {
        let title = "Nomad refused Curfew's token";
        Self { status: StatusCode::BAD_GATEWAY, slug: "nomad-permission-denied", title, detail }
    }
    /// With the names of nodes instead of their ids.
    pub fn naming(mut self, nodes: &[(&str, &str)]) -> Self {
        for (id, name) in nodes {
            self.detail = self.detail.replace(id, name);
        }
        self
    }
    pub fn detail(&self) -> &str {
        &self.detail
    }
    pub fn no_such_operation(detail: String) -> Self {
        Self { status: StatusCode::NOT_FOUND, slug: "no-such-operation", title: "No such operation", detail }
    }
    pub fn starting() -> Self {
        let detail = "this controller is still starting: it reads what was under way; ask again in a moment".into();
        Self { status: StatusCode::SERVICE_UNAVAILABLE, slug: "starting", title: "The controller is starting", detail }
    }
    pub fn unsure(detail: String) -> Self {
        Self { status: StatusCode::CONFLICT, slug: "not-sure", title: "Say that you are sure", detail }
    }
    pub fn stopping() -> Self {
        let detail = "this controller is stopping and takes no new requests; ask again when it is back".into();
        Self { status: StatusCode::SERVICE_UNAVAILABLE, slug: "stopping", title: "The controller is stopping", detail }
    }
    pub fn unauthenticated(detail: String) -> Self {
        Self { status: StatusCode::UNAUTHORIZED, slug: "unauthenticated", title: "Say who you are", detail }
    }
    pub fn is_unauthenticated(&self) -> bool {
        self.status == StatusCode::UNAUTHORIZED
    }
    pub fn forbidden(detail: String) -> Self {
        Self { status: StatusCode::FORBIDDEN, slug: "forbidden", title: "That is not yours to do", detail }
    }
    pub fn too_many(detail: String) -> Self {
        Self { status: StatusCode::TOO_MANY_REQUESTS, slug: "too-many-requests", title: "Too many requests", detail }
    }
    pub fn too_many_streams(all: usize, full: Full) -> Self {
        let (most, of, key) = match full {
            Full::All => (all, "", "rpc_streams"),
            Full::Address { most } => (most, " of this address", "rpc_address_share"),
        };
        let detail = format!("{most} event streams and long polls{of} are open already ({key}); ask again in a moment");
        Self { status: StatusCode::SERVICE_UNAVAILABLE, slug: "too-many-streams", title: "Too many streams", detail }
    }
    pub fn bad_token(detail: String) -> Self {
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, slug: "bad-token", title: "There can be no such token", detail }
    }
    pub fn no_random(detail: String) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, ..Self::bad_token(detail) }
    }
    pub fn refused(detail: String) -> Self {
        Self { status: StatusCode::CONFLICT, slug: "refused", title: "It cannot be done now", detail }
    }
    pub fn gc(detail: String) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, slug: "gc", title: "The gc gave no report", detail }
    }
    pub fn slow(detail: String) -> Self {
        Self { status: StatusCode::REQUEST_TIMEOUT, ..Self::bad_request(detail) }
    }
    pub fn method(detail: String) -> Self {
        Self { status: StatusCode::METHOD_NOT_ALLOWED, slug: "method-not-allowed", title: "Another method is needed", detail }
    }
    pub fn not_found(detail: String) -> Self {
        Self { status: StatusCode::NOT_FOUND, slug: "not-found", title: "No such resource", detail }
    }
}

impl From<curfew_nomad::Error> for Refusal {
    fn from(e: curfew_nomad::Error) -> Self {
        use curfew_nomad::Error as E;
        let detail = chain(&e);
        let (status, slug, title) = match &e {
            E::Refused { .. } | E::Conflict { .. } | E::NotFound { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, "refused-by-nomad", "Nomad refused it")
            }
            E::PermissionDenied { .. } => return Self::token(detail),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "nomad-unavailable", "Nomad does not answer"),
        };
        Self { status, slug, title, detail }
    }
}

impl From<StoreError> for Refusal {
    fn from(e: StoreError) -> Self {
        let detail = chain(&e);
        match e {
            StoreError::IdempotencyConflict { .. } => Self {
                status: StatusCode::CONFLICT,
                slug: "idempotency-conflict",
                title: "The idempotency key was used before",
                detail,
            },
            StoreError::Refused { .. } => {
                Self { status: StatusCode::CONFLICT, slug: "refused", title: "The operation is not in a state for that", detail }
            }
            StoreError::Claimed { .. } => Self::overlap(detail),
            StoreError::NoSuchOperation(_) => Self::no_such_operation(detail),
            _ => Self {
                status: StatusCode::SERVICE_UNAVAILABLE,
                slug: "database",
                title: "The request could not be written down; nothing was done",
                detail,
            },
        }
    }
}

impl From<Unfit> for Refusal {
    fn from(e: Unfit) -> Self {
        match e {
            Unfit::Nomad(e) => e.into(),
            Unfit::Driver { .. } => Self::bad_specification(chain(&e)),
        }
    }
}

impl From<SubmitError> for Refusal {
    fn from(e: SubmitError) -> Self {
        Self::bad_specification(chain(&e))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let problem = Problem {
            kind: format!("urn:curfew:problem:{}", self.slug),
            title: self.title.into(),
            status: self.status.as_u16(),
            detail: self.detail,
        };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}
