//! `/v1/acl`: the bootstrap, policies and tokens.

use axum::http::Method;
use axum::response::Response;
use serde_json::{Value, json};

use super::access::{Asked, Call, Need};
use super::reply;
use crate::acl::rules::{Rules, is_name};
use crate::acl::tokens::{Known, Policy, Token};
use crate::duration;
use crate::ids::is_uuid;
use crate::job::spec::{flag, text};
use crate::state::{State, Table};

/// Bounds of a token's life that are Nomad's defaults.
const MIN_TTL: i64 = 60 * 1_000_000_000;
const MAX_TTL: i64 = 24 * 3600 * 1_000_000_000;

pub(crate) fn route(r: Asked, path: &[&str]) -> Result<Response, Response> {
    if !matches!(path, ["bootstrap" | "policies" | "tokens" | "policy" | "token" | "roles" | "role", ..]) {
        return Err(reply::not_found());
    }
    if !r.core.config.acl {
        return Err(reply::text(400, "ACL support disabled"));
    }
    match path {
        ["bootstrap"] => first(&r.put(Need::Open)?),
        ["policies"] | ["policy", "self"] => policies(&r.get(Need::Token)?),
        ["policy"] | ["policy", ""] => Err(reply::text(400, "Missing Policy Name")),
        ["policy", name] => match r.method {
            Method::GET => policy(&r.any(Need::Token)?, name),
            Method::PUT | Method::POST => put_policy(&r.any(Need::Management)?, name),
            Method::DELETE => Ok(delete_policy(&r.any(Need::Management)?, name)),
            _ => Err(reply::wrong_method()),
        },
        ["tokens"] => Ok(tokens(&r.get(Need::Management)?)),
        ["token"] => put_token(&r.put(Need::Management)?, None),
        ["token", "self"] => own(&r.saying("").get(Need::Token)?),
        ["token", accessor] => match r.method {
            Method::GET => token(&r.saying("").any(Need::Token)?, accessor),
            Method::PUT | Method::POST => put_token(&r.any(Need::Management)?, Some(accessor)),
            Method::DELETE => delete_token(&r.any(Need::Management)?, accessor),
            _ => Err(reply::wrong_method()),
        },
        ["roles"] => {
            r.get(Need::Token)?;
            Ok(reply::read(&json!([]), 1))
        }
        _ => Err(reply::not_found()),
    }
}

/// The first management token. The error is the index of the one there is.
pub(crate) fn bootstrap(s: &mut State, secret: Option<String>) -> Result<Token, u64> {
    if s.acl.bootstrapped != 0 {
        return Err(s.acl.bootstrapped);
    }
    let index = s.begin("ACLTokenBootstrap");
    let token = Token {
        accessor: s.ids.uuid(),
        secret: secret.unwrap_or_else(|| s.ids.uuid()),
        name: "Bootstrap Token".into(),
        management: true,
        policies: vec![],
        global: true,
        created: s.now(),
        ttl: 0,
        create_index: index,
        modify_index: index,
    };
    s.acl.bootstrapped = index;
    s.acl.tokens.insert(token.accessor.clone(), token.clone());
    s.touch(Table::AclTokens);
    s.commit();
    Ok(token)
}

fn first(call: &Call) -> Result<Response, Response> {
    let secret = Some(text(&call.json_or_empty()?, "BootstrapSecret")).filter(|s| !s.is_empty());
    call.core.write(|s| {
        if s.acl.bootstrapped == 0 && secret.as_deref().is_some_and(|s| !is_uuid(s)) {
            return Err(reply::text(400, "invalid acl token"));
        }
        match bootstrap(s, secret) {
            Ok(token) => Ok(reply::written(&token.to_json(), token.modify_index)),
            Err(index) => Err(reply::text(400, &format!("ACL bootstrap already done (reset index: {index})"))),
        }
    })
}

/// Whose the request is. Its secret has been found good.
fn bearer<'a>(call: &Call, s: &'a State) -> Known<'a> {
    s.acl.find(&call.secret, s.now()).unwrap_or(Known::Nobody)
}

/// Whether the bearer may see a policy: a management token all, others their own.
fn sees(call: &Call, s: &State, name: &str) -> bool {
    call.acl().management() || bearer(call, s).policies().iter().any(|p| p == name)
}

fn policies(call: &Call) -> Result<Response, Response> {
    let prefix = call.query.get("prefix");
    call.core.read(|s| {
        let mine = s.acl.policies.values().filter(|p| p.name.starts_with(prefix) && sees(call, s, &p.name));
        Ok(reply::read(&mine.map(Policy::stub).collect::<Vec<_>>(), s.table(Table::AclPolicies)))
    })
}

fn policy(call: &Call, name: &str) -> Result<Response, Response> {
    call.core.read(|s| {
        if name != "anonymous" && !sees(call, s, name) {
            return Err(reply::denied());
        }
        match s.acl.policies.get(name) {
            Some(p) => Ok(reply::read(&p.to_json(), p.modify_index)),
            None => Err(reply::missing("ACL policy not found", s.table(Table::AclPolicies))),
        }
    })
}

/// As Go's multierror prints them.
fn errors(list: &[String]) -> String {
    let head = if list.len() == 1 { "1 error occurred:".to_owned() } else { format!("{} errors occurred:", list.len()) };
    let lines: String = list.iter().map(|e| format!("\n\t* {e}")).collect();
    format!("{head}{lines}\n\n")
}

fn put_policy(call: &Call, name: &str) -> Result<Response, Response> {
    if call.body.is_empty() {
        return Err(reply::text(400, "Request body is empty"));
    }
    let body = call.json()?;
    if text(&body, "Name") != name {
        return Err(reply::text(400, "ACL policy name does not match request path"));
    }
    let (rules, description) = (text(&body, "Rules"), text(&body, "Description"));
    let mut wrong = vec![];
    if !is_name(name, "-") {
        wrong.push(format!("invalid name '{name}'"));
    }
    let parsed = Rules::parse(&rules).unwrap_or_else(|e| {
        wrong.push(format!("failed to parse rules: {e}"));
        Rules::default()
    });
    if description.len() > 256 {
        wrong.push("description longer than 256".to_owned());
    }
    if !wrong.is_empty() {
        return Err(reply::text(400, &format!("policy 0 invalid: {}", errors(&wrong))));
    }
    Ok(call.core.write(|s| {
        let index = s.begin("ACLPolicyUpserted");
        let create_index = s.acl.policies.get(name).map_or(index, |p| p.create_index);
        let policy = Policy { name: name.to_owned(), description, text: rules, rules: parsed, create_index, modify_index: index };
        s.acl.policies.insert(name.to_owned(), policy);
        s.touch(Table::AclPolicies);
        s.commit();
        reply::done(index)
    }))
}

fn delete_policy(call: &Call, name: &str) -> Response {
    call.core.write(|s| {
        let index = s.begin("ACLPolicyDeleted");
        s.acl.policies.remove(name);
        s.touch(Table::AclPolicies);
        s.commit();
        reply::done(index)
    })
}

fn tokens(call: &Call) -> Response {
    let prefix = call.query.get("prefix");
    call.core.read(|s| {
        let mut all: Vec<&Token> = s.acl.tokens.values().filter(|t| t.accessor.starts_with(prefix)).collect();
        all.sort_by_key(|t| t.create_index);
        reply::read(&all.iter().map(|t| t.stub()).collect::<Vec<_>>(), s.table(Table::AclTokens))
    })
}

fn own(call: &Call) -> Result<Response, Response> {
    call.core.read(|s| {
        let (token, index) = bearer(call, s).to_json();
        Ok(reply::read(&token, index))
    })
}

fn token(call: &Call, accessor: &str) -> Result<Response, Response> {
    if !is_uuid(accessor) {
        return Err(reply::text(500, "acl token lookup failed: index error: UUID must be 36 characters"));
    }
    call.core.read(|s| match s.acl.tokens.get(accessor) {
        Some(t) if call.acl().management() || t.secret == call.secret => Ok(reply::read(&t.to_json(), t.modify_index)),
        None if call.acl().management() => Err(reply::missing("ACL token not found", s.table(Table::AclTokens))),
        _ => Err(reply::denied()),
    })
}

/// Nanoseconds, as text (`1h`) or as a number.
fn ttl(body: &Value) -> Result<i64, Response> {
    match body.get("ExpirationTTL") {
        Some(Value::String(t)) if !t.is_empty() => {
            duration::parse(t).ok_or_else(|| reply::text(400, &format!("time: invalid duration {t:?}")))
        }
        Some(Value::Number(n)) => Ok(n.as_i64().unwrap_or(0)),
        _ => Ok(0),
    }
}

fn put_token(call: &Call, accessor: Option<&str>) -> Result<Response, Response> {
    if call.body.is_empty() {
        return Err(reply::text(400, "Request body is empty"));
    }
    let body = call.json()?;
    let named = text(&body, "AccessorID");
    if accessor.is_some_and(|a| a != named) {
        return Err(reply::text(400, "ACL token accessor does not match request path"));
    }
    let policies: Vec<String> = body
        .get("Policies")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|p| p.as_str().map(str::to_owned))
        .collect();
    let (ttl, kind) = (ttl(&body)?, text(&body, "Type"));
    let secret = text(&body, "SecretID");
    if !named.is_empty() && !is_uuid(&named) {
        return Err(reply::text(500, "token lookup failed: acl token lookup failed: index error: UUID must be 36 characters"));
    }
    if let Some(role) = body.get("Roles").and_then(Value::as_array).and_then(|r| r.first()) {
        let (id, name) = (text(role, "ID"), text(role, "Name"));
        return Err(reply::text(400, &format!("cannot find role {}", if id.is_empty() { name } else { id })));
    }
    call.core.write(|s| {
        let old = s.acl.tokens.get(&named).cloned();
        if !named.is_empty() && old.is_none() && (!is_uuid(&secret) || kind == "management") {
            return Err(reply::text(400, &format!("cannot find token {named}")));
        }
        let (name, global) = (text(&body, "Name"), flag(&body, "Global"));
        let wrong = wrong_with(&name, &kind, &policies, ttl, global, old.as_ref());
        if !wrong.is_empty() {
            return Err(reply::text(400, &format!("token 0 invalid: {}", errors(&wrong))));
        }
        let index = s.begin("ACLTokenUpserted");
        let fresh = |s: &mut State, given: &str| if given.is_empty() { s.ids.uuid() } else { given.to_owned() };
        let token = Token {
            accessor: fresh(s, &named),
            secret: match &old {
                Some(t) => t.secret.clone(),
                None => fresh(s, if named.is_empty() { "" } else { &secret }),
            },
            name,
            management: kind == "management",
            policies,
            global,
            created: old.as_ref().map_or_else(|| s.now(), |t| t.created),
            ttl: old.as_ref().map_or(ttl, |t| t.ttl),
            create_index: old.as_ref().map_or(index, |t| t.create_index),
            modify_index: index,
        };
        s.acl.tokens.insert(token.accessor.clone(), token.clone());
        s.touch(Table::AclTokens);
        s.commit();
        Ok(reply::written(&token.to_json(), index))
    })
}

fn wrong_with(name: &str, kind: &str, policies: &[String], ttl: i64, global: bool, old: Option<&Token>) -> Vec<String> {
    let mut wrong = vec![];
    let mut say = |text: &str| wrong.push(text.to_owned());
    if name.len() > 256 {
        say("token name too long");
    }
    match (kind, policies.is_empty()) {
        ("client", true) => say("client token missing policies or roles"),
        ("management", false) => say("management token cannot be associated with policies or roles"),
        ("client" | "management", _) => {}
        _ => say("token type must be client or management"),
    }
    match old {
        None if ttl != 0 => {
            let shown = duration::go(ttl);
            if ttl < 0 {
                say(&format!("token expiration TTL '{shown}' should not be negative"));
                say("expiration time cannot be before create time");
            }
            let bound = |which: &str, limit: i64| {
                format!("expiration time cannot be {which} than {} in the future (was {shown})", duration::go(limit))
            };
            if ttl > MAX_TTL {
                say(&bound("more", MAX_TTL));
            } else if ttl < MIN_TTL {
                say(&bound("less", MIN_TTL));
            }
        }
        None => {}
        Some(old) => {
            if old.global != global {
                say("cannot toggle global mode");
            }
            if old.ttl != ttl {
                say("cannot update expiration TTL");
            }
        }
    }
    wrong
}

fn delete_token(call: &Call, accessor: &str) -> Result<Response, Response> {
    call.core.write(|s| {
        if !s.acl.tokens.contains_key(accessor) {
            return Err(reply::text(400, &format!("Cannot delete nonexistent tokens: {accessor}")));
        }
        let index = s.begin("ACLTokenDeleted");
        s.acl.tokens.remove(accessor);
        s.touch(Table::AclTokens);
        s.commit();
        Ok(reply::done(index))
    })
}
