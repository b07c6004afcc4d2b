//! Between a request and its handler: what the route needs, and whether the token has it.
//!
//! Handlers take a [`Call`], and the only way from a request to a `Call` states a [`Need`]: a route without one does not compile.

use std::sync::Arc;

use axum::http::Method;
use axum::response::Response;
use bytes::Bytes;

use super::query::Query;
use super::reply;
use crate::acl::Acl;
use crate::acl::tokens::Bad;
use crate::core::Core;

/// What a route asks of a token, as Nomad's own endpoints do.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Need {
    /// Nothing; not even that a token is one.
    Open,
    /// A valid token or none: the handler asks about what it finds, and shows only that.
    Token,
    /// One of these capabilities in the request's namespace.
    Any(&'static [&'static str]),
    NodeRead,
    NodeWrite,
    AgentRead,
    OperatorRead,
    OperatorWrite,
    PluginList,
    Management,
}

pub(crate) const READ_JOB: Need = Need::Any(&["read-job"]);

/// A request taken apart, not yet allowed.
pub(crate) struct Asked {
    pub core: Arc<Core>,
    pub method: Method,
    /// Decoded, without the leading `v1`.
    pub path: Vec<String>,
    pub query: Query,
    pub body: Bytes,
    pub secret: String,
    /// Where Nomad says what is wrong with a token, and what it says first.
    pub says: Option<&'static str>,
}

/// An allowed request.
pub(crate) struct Call {
    pub core: Arc<Core>,
    pub method: Method,
    pub path: Vec<String>,
    pub query: Query,
    pub body: Bytes,
    pub secret: String,
    acl: Acl,
}

impl Asked {
    /// The agent itself resolves the token here, and its error is not turned into `Permission denied`.
    pub(crate) fn saying(self, first: &'static str) -> Self {
        Self { says: Some(first), ..self }
    }

    pub(crate) fn get(self, need: Need) -> Result<Call, Response> {
        if self.method == Method::GET { self.any(need) } else { Err(reply::wrong_method()) }
    }

    pub(crate) fn put(self, need: Need) -> Result<Call, Response> {
        if writes(&self.method) { self.any(need) } else { Err(reply::wrong_method()) }
    }

    /// Whatever the method.
    pub(crate) fn any(self, need: Need) -> Result<Call, Response> {
        let acl =
            if matches!(need, Need::Open) { Acl::default() } else { acl(&self.core, &self.secret).map_err(|b| self.bad(b))? };
        let namespace = self.query.namespace();
        let allowed = match need {
            Need::Open | Need::Token => true,
            Need::Any(capabilities) => acl.may(namespace, capabilities),
            Need::NodeRead => acl.node_read(),
            Need::NodeWrite => acl.node_write(),
            Need::AgentRead => acl.agent_read(),
            Need::OperatorRead => acl.operator_read(),
            Need::OperatorWrite => acl.operator_write(),
            Need::PluginList => acl.plugin_list(),
            Need::Management => acl.management(),
        };
        if !allowed {
            return Err(reply::denied());
        }
        let Self { core, method, path, query, body, secret, .. } = self;
        Ok(Call { core, method, path, query, body, secret, acl })
    }

    fn bad(&self, bad: Bad) -> Response {
        match self.says {
            Some(first) if bad != Bad::Unknown => reply::text(500, &format!("{first}{}", bad.words())),
            _ => reply::denied(),
        }
    }
}

fn writes(method: &Method) -> bool {
    matches!(*method, Method::PUT | Method::POST)
}

/// What the bearer of a secret may do; everything in a cluster without ACLs.
pub(crate) fn acl(core: &Core, secret: &str) -> Result<Acl, Bad> {
    if !core.config.acl {
        return Ok(Acl::everything());
    }
    core.read(|s| Ok(s.acl.acl(s.acl.find(secret, s.now())?)))
}

impl Call {
    pub(crate) fn writes(&self) -> bool {
        writes(&self.method)
    }

    pub(crate) fn acl(&self) -> &Acl {
        &self.acl
    }

    /// For what belongs to a namespace of its own, whatever the request's.
    pub(crate) fn demand(&self, namespace: &str, any_of: &[&str]) -> Result<(), Response> {
        if self.acl.may(namespace, any_of) { Ok(()) } else { Err(reply::denied()) }
    }

    /// Whether a list shows what is in this namespace.
    pub(crate) fn shows(&self, namespace: &str, capability: &str) -> bool {
        self.query.in_namespace(namespace) && self.acl.may(namespace, &[capability])
    }

    pub(crate) fn json(&self) -> Result<serde_json::Value, Response> {
        if self.body.is_empty() {
            return Err(reply::text(400, "Request body is empty"));
        }
        serde_json::from_slice(&self.body).map_err(|e| reply::text(400, &reply::go_json_error(&self.body, &e)))
    }

    /// As `json`, but an empty body is an empty object.
    pub(crate) fn json_or_empty(&self) -> Result<serde_json::Value, Response> {
        if self.body.is_empty() { Ok(serde_json::json!({})) } else { self.json() }
    }
}
