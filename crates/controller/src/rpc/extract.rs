//! How a request is read: whatever is wrong with it is said as a problem.

use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::Rpc;
use super::limits::Why;
use super::problem::Refusal;

/// How long a body may take to arrive.
const ARRIVES: Duration = Duration::from_secs(30);

/// A JSON body.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Rpc> for Body<T> {
    type Rejection = Refusal;
    async fn from_request(req: Request, rpc: &Rpc) -> Result<Self, Refusal> {
        match tokio::time::timeout(ARRIVES, Json::<T>::from_request(req, rpc)).await {
            Ok(Ok(Json(v))) => Ok(Self(v)),
            Ok(Err(e)) => {
                if e.status() == StatusCode::PAYLOAD_TOO_LARGE {
                    rpc.limits.refused(Why::Body);
                    tracing::warn!("a body is too large");
                }
                Err(Refusal::unreadable(e.status(), e.body_text()))
            }
            Err(_) => {
                rpc.limits.refused(Why::Slow);
                tracing::warn!("a body did not arrive in time");
                Err(Refusal::slow(format!("the body did not arrive within {}s", ARRIVES.as_secs())))
            }
        }
    }
}

/// What stands behind the question mark.
pub struct Asked<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Rpc> for Asked<T> {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, rpc: &Rpc) -> Result<Self, Refusal> {
        match Query::<T>::from_request_parts(parts, rpc).await {
            Ok(Query(v)) => Ok(Self(v)),
            Err(e) => Err(Refusal::bad_request(e.body_text())),
        }
    }
}

/// The variable segments of the path.
pub struct Named<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<Rpc> for Named<T> {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, rpc: &Rpc) -> Result<Self, Refusal> {
        match Path::<T>::from_request_parts(parts, rpc).await {
            Ok(Path(v)) => Ok(Self(v)),
            Err(e) => Err(Refusal::bad_request(e.body_text())),
        }
    }
}
