//! Tokens: made, listed, revoked. Only their digests are kept.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use curfew_core::access::{Grant, NewToken, RANDOM, Token};
use curfew_core::api::{CreatedToken, InterveneRequest, TokenRequest, TokenView};
use curfew_core::audit::{Action, AuditEntry};
use curfew_core::operation::By;
use curfew_store::Store;
use serde_json::json;

use super::access::Caller;
use super::problem::Refusal;
use super::{Body, Named, Rpc};

/// Why there is no new token, or no such token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error(transparent)]
    Bad(#[from] curfew_core::access::BadToken),
    #[error("the system gave no random numbers")]
    Random,
    #[error("there is no token {0}; curfew token list shows their ids")]
    Unknown(String),
    #[error(transparent)]
    Store(#[from] curfew_store::StoreError),
}

/// Makes a token and writes it down. Its text is nowhere but in the answer.
pub async fn create(store: &dyn Store, new: NewToken, reason: Option<String>) -> Result<(Token, String), TokenError> {
    let mut random = [0; RANDOM];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.secure_random.fill(&mut random).map_err(|_| TokenError::Random)?;
    let by = By { actor: new.by.clone(), reason, at: new.at };
    let (token, text) = Token::mint(new, &random)?;
    store.put_token(token.clone(), vec![row(&token, Action::TokenCreated, &by)]).await?;
    Ok((token, text))
}

/// From now on it proves nothing. Revoking it again changes nothing.
pub async fn revoke(store: &dyn Store, id: &str, by: By) -> Result<Token, TokenError> {
    let mut token = store.token(id).await?.ok_or_else(|| TokenError::Unknown(id.to_owned()))?;
    if token.revoked.is_none() {
        let told = row(&token, Action::TokenRevoked, &by);
        token.revoked = Some(by);
        store.put_token(token.clone(), vec![told]).await?;
    }
    Ok(token)
}

fn row(token: &Token, action: Action, by: &By) -> AuditEntry {
    let Token { id, name, grant, expires_at, .. } = token;
    let mut detail =
        json!({ "token": id, "name": name, "scopes": grant.scopes, "namespaces": grant.namespaces, "expires_at": expires_at });
    if let Some(reason) = &by.reason {
        detail["reason"] = json!(reason);
    }
    AuditEntry { at: by.at, operation: None, actor: by.actor.clone(), action, alloc: None, task: None, detail }
}

impl From<TokenError> for Refusal {
    fn from(e: TokenError) -> Self {
        let detail = crate::error::chain(&e);
        match e {
            TokenError::Bad(_) => Self::bad_token(detail),
            TokenError::Unknown(_) => Self::not_found(detail),
            TokenError::Store(e) => e.into(),
            TokenError::Random => Self::no_random(detail),
        }
    }
}

/// Every token, those that ended too. Their secrets are not kept.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", responses((status = 200, description = "All of them.", body = Vec<TokenView>)))]
pub async fn list(State(rpc): State<Rpc>) -> Result<Json<Vec<TokenView>>, Refusal> {
    Ok(Json(rpc.store.tokens().await?.into_iter().map(TokenView::from).collect()))
}

/// A new token. Its text is in this answer and nowhere else.
#[utoipa::path(
    post, path = "/v1/tokens", tag = "tokens", request_body = TokenRequest,
    responses((status = 201, description = "The token.", body = CreatedToken))
)]
pub async fn make(State(rpc): State<Rpc>, caller: Caller, Body(request): Body<TokenRequest>) -> Result<Response, Refusal> {
    rpc.accepting()?;
    let at = rpc.clock.now();
    let TokenRequest { name, scopes, namespaces, expires_in, who } = request;
    let by = caller.by(who, at);
    let grant = Grant { scopes: scopes.into_iter().collect(), namespaces: namespaces.into_iter().collect() };
    let new = NewToken { name, grant, by: by.actor, at, expires_at: expires_in.map(|d| at + d) };
    let (token, text) = create(&*rpc.store, new, by.reason).await?;
    Ok((StatusCode::CREATED, Json(CreatedToken { view: token.into(), token: text.into() })).into_response())
}

/// From now on it proves nothing.
#[utoipa::path(
    post, path = "/v1/tokens/{token}/revoke", tag = "tokens", params(("token" = String, Path, description = "The token's id.")),
    request_body = InterveneRequest, responses((status = 200, description = "The token as it is then.", body = TokenView))
)]
pub async fn end(
    State(rpc): State<Rpc>,
    caller: Caller,
    Named(id): Named<String>,
    Body(request): Body<InterveneRequest>,
) -> Result<Json<TokenView>, Refusal> {
    rpc.accepting()?;
    Ok(Json(revoke(&*rpc.store, &id, caller.by(request.who, rpc.clock.now())).await?.into()))
}
