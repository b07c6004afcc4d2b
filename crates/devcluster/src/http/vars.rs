//! Nomad variables: `/v1/vars` and `/v1/var/:path`.

use axum::http::Method;
use axum::response::Response;
use serde_json::{Value, json};

use super::access::Call;
use super::query::page;
use super::reply;
use crate::state::{State, Table, Variable};

fn row(namespace: &str, path: &str, v: &Variable, items: bool) -> Value {
    let mut row = json!({
        "CreateIndex": v.create_index, "CreateTime": v.create_time, "Lock": null, "ModifyIndex": v.modify_index,
        "ModifyTime": v.modify_time, "Namespace": namespace, "Path": path,
    });
    if items && let Some(m) = row.as_object_mut() {
        m.insert("Items".into(), json!(v.items));
    }
    row
}

pub(crate) async fn list(call: Call) -> Result<Response, Response> {
    call.query.wait(&call.core, |s| s.table(Table::Vars)).await?;
    let prefix = call.query.get("prefix");
    call.core.read(|s| {
        let mine = |ns: &str, path: &str| call.query.in_namespace(ns) && call.acl().variable(ns, path, "list");
        let all = s.vars.iter().filter(|((ns, path), _)| path.starts_with(prefix) && mine(ns, path));
        let page = page(&call.query, all, |((_, p), _)| p.clone(), |((_, p), _), token| p.as_str() < token, |_| Ok(true))?;
        let rows: Vec<Value> = page.items.iter().map(|((ns, p), v)| row(ns, p, v, false)).collect();
        Ok(reply::read_page(&rows, s.table(Table::Vars), &page.next))
    })
}

pub(crate) async fn one(call: Call, path: &str) -> Result<Response, Response> {
    let key = (call.query.namespace().to_owned(), path.to_owned());
    let grant = match call.method {
        Method::GET => "read",
        Method::PUT | Method::POST => "write",
        Method::DELETE => "destroy",
        _ => return Err(reply::wrong_method()),
    };
    if !call.acl().variable(&key.0, &key.1, grant) {
        return Err(reply::denied());
    }
    Ok(match call.method {
        Method::GET => {
            let index_of = |s: &State| s.vars.get(&key).map_or_else(|| s.table(Table::Vars), |v| v.modify_index);
            call.query.wait(&call.core, index_of).await?;
            call.core.read(|s| match s.vars.get(&key) {
                Some(v) => reply::read(&row(&key.0, &key.1, v, true), v.modify_index),
                None => reply::missing("variable not found", s.table(Table::Vars)),
            })
        }
        Method::PUT | Method::POST => {
            let body = call.json()?;
            let items = crate::job::spec::strings(&body, "Items");
            if items.is_empty() {
                return Err(reply::text(400, "variable missing required Items object"));
            }
            let cas = call.query.number("cas");
            call.core.write(|s| {
                let old = s.vars.get(&key).cloned();
                let have = old.as_ref().map_or(0, |v| v.modify_index);
                if let Some(want) = cas.filter(|want| *want != have) {
                    return match old {
                        Some(v) => reply::conflict(&row(&key.0, &key.1, &v, true)),
                        None => reply::conflict(&json!({
                            "CreateIndex": 0, "CreateTime": 0, "Items": null, "Lock": null, "ModifyIndex": 0, "ModifyTime": 0,
                            "Namespace": key.0, "Path": key.1, "Wanted": want,
                        })),
                    };
                }
                let index = s.begin("VariablesUpserted");
                let now = s.now();
                let v = Variable {
                    items,
                    create_index: old.as_ref().map_or(index, |v| v.create_index),
                    modify_index: index,
                    create_time: old.as_ref().map_or(now, |v| v.create_time),
                    modify_time: now,
                };
                let out = row(&key.0, &key.1, &v, true);
                s.vars.insert(key, v);
                s.touch(Table::Vars);
                s.commit();
                reply::written(&out, index)
            })
        }
        _ => call.core.write(|s| {
            let index = s.begin("VariablesDeleted");
            s.vars.remove(&key);
            s.touch(Table::Vars);
            s.commit();
            let mut r = reply::done(index);
            *r.status_mut() = axum::http::StatusCode::NO_CONTENT;
            r
        }),
    })
}
