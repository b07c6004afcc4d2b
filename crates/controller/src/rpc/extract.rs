//! How a request is read: whatever is wrong with it is said as a problem.

use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::Rpc;
use super::problem::Refusal;

/// A JSON body.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Rpc> for Body<T> {
    type Rejection = Refusal;
    async fn from_request(req: Request, rpc: &Rpc) -> Result<Self, Refusal> {
        match Json::<T>::from_request(req, rpc).await {
            Ok(Json(v)) => Ok(Self(v)),
            Err(e) => Err(Refusal::unreadable(e.status(), e.body_text())),
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
