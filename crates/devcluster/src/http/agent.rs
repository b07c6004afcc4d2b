//! The agent, status, operator and namespaces.

use axum::http::Method;
use axum::response::Response;
use serde_json::{Value, json};

use super::access::{Asked, Call, Need};
use super::{AGENT_SAYS, reply};
use crate::duration;
use crate::ids::is_uuid;
use crate::state::Table;

pub(crate) fn status(call: &Call, what: &str) -> Response {
    if !call.core.has_leader() {
        return reply::text(500, "No cluster leader");
    }
    match what {
        "leader" => reply::plain_json("127.0.0.1:4647"),
        _ => reply::plain_json(&json!(["127.0.0.1:4647"])),
    }
}

pub(crate) fn regions(call: &Call) -> Response {
    reply::plain_json(&json!([call.core.config.region]))
}

pub(crate) fn route(r: Asked, path: &[&str]) -> Result<Response, Response> {
    Ok(match path {
        ["self"] => own(&r.saying(AGENT_SAYS).get(Need::AgentRead)?),
        ["health"] => {
            r.get(Need::Open)?;
            reply::plain_json(&json!({"client": {"message": "ok", "ok": true}, "server": {"message": "ok", "ok": true}}))
        }
        ["members"] => {
            let call = r.get(Need::NodeRead)?;
            let region = &call.core.config.region;
            reply::plain_json(
                &json!({"Members": [member(&call)], "ServerDC": "dc1", "ServerName": format!("dev.{region}"), "ServerRegion": region}),
            )
        }
        ["servers"] => {
            r.get(Need::AgentRead)?;
            reply::plain_json(&json!(["127.0.0.1:4647"]))
        }
        _ => reply::not_found(),
    })
}

fn member(call: &Call) -> Value {
    json!({
        "Addr": "127.0.0.1", "DelegateCur": 4, "DelegateMax": 5, "DelegateMin": 2, "Name": format!("dev.{}", call.core.config.region),
        "Port": 4648, "ProtocolCur": 2, "ProtocolMax": 5, "ProtocolMin": 1, "Status": "alive",
        "Tags": {
            "bootstrap": "1", "build": call.core.config.version, "dc": "dc1", "expect": "1", "id": "00000000-0000-0000-0000-000000000001",
            "port": "4647", "raft_vsn": "3", "region": call.core.config.region, "revision": "", "role": "nomad", "rpc_addr": "127.0.0.1",
            "vsn": "1",
        },
    })
}

/// The agent speaks for the first node, as a dev agent does for its own.
fn own(call: &Call) -> Response {
    let config = &call.core.config;
    let node = config.nodes.first();
    let kill = node.map_or(0, |n| i64::try_from(n.max_kill_timeout.as_nanos()).unwrap_or(i64::MAX));
    let first = call.core.read(|s| s.nodes.values().find(|n| node.is_some_and(|c| c.name == *n.name)).map(|n| n.id.clone()));
    reply::plain_json(&json!({
        "config": {
            "ACL": {
                "Enabled": config.acl, "PolicyTTL": 30_000_000_000_i64, "ReplicationToken": "", "RoleTTL": 30_000_000_000_i64,
                "TokenMaxExpirationTTL": 0, "TokenMinExpirationTTL": 0, "TokenTTL": 30_000_000_000_i64,
            },
            "Client": {
                "Enabled": true, "MaxKillTimeout": duration::go(kill), "Meta": node.map(|n| &n.meta),
                "NodeClass": node.map(|n| n.node_class.as_str()).unwrap_or_default(),
            },
            "Datacenter": node.map(|n| n.datacenter.as_str()).unwrap_or("dc1"), "DevMode": true,
            "NodeName": node.map(|n| n.name.as_str()).unwrap_or("dev"), "Region": config.region, "Server": {"Enabled": true},
            "Version": {"BuildDate": null, "Revision": "", "Version": config.version, "VersionMetadata": "", "VersionPrerelease": ""},
        },
        "member": member(call),
        "stats": {"client": {"node_id": first.unwrap_or_default()}, "nomad": {"leader": "true", "server": "true"}},
    }))
}

/// Of the node that is named; without a name the agent speaks for its own.
pub(crate) fn client_stats(call: &Call) -> Response {
    let id = call.query.get("node_id");
    if !id.is_empty() {
        if !is_uuid(id) {
            return reply::text(500, "node lookup failed: index error: UUID must be 36 characters");
        }
        if !call.core.read(|s| s.nodes.contains_key(id)) {
            return reply::text(404, &format!("Unknown node {id}"));
        }
        if !call.core.client(id).is_some_and(|c| c.reachable()) {
            return reply::text(404, "No path to node");
        }
    }
    let now = call.core.clock.now_ns();
    reply::plain_json(&json!({
        "AllocDirStats": null, "CPU": [], "CPUTicksConsumed": 0.0, "DeviceStats": null, "DiskStats": [],
        "Memory": {"Available": 0, "Free": 0, "Total": 0, "Used": 0}, "Timestamp": now, "Uptime": 1,
    }))
}

fn namespace_row(name: &str) -> Value {
    let description = if name == "default" { "Default shared namespace" } else { "" };
    json!({
        "Capabilities": null, "CreateIndex": 1, "Description": description, "Meta": null, "ModifyIndex": 1, "Name": name,
        "NodePoolConfiguration": null, "Quota": "",
    })
}

pub(crate) fn namespaces(call: &Call) -> Response {
    let known = |n: &&String| call.acl().knows(n);
    let rows: Vec<Value> = call.core.read(|s| s.namespaces.iter().filter(known).map(|n| namespace_row(n)).collect());
    reply::read(&rows, 1)
}

pub(crate) fn namespace(r: Asked, name: &str) -> Result<Response, Response> {
    match r.method {
        Method::GET => {
            let call = r.any(Need::Token)?;
            if !call.acl().knows(name) {
                return Err(reply::denied());
            }
            if call.core.read(|s| s.namespaces.contains(name)) {
                Ok(reply::read(&namespace_row(name), 1))
            } else {
                Err(reply::missing("Namespace not found", 1))
            }
        }
        Method::PUT | Method::POST => {
            let call = r.any(Need::Management)?;
            let wanted = call.json()?.get("Name").and_then(Value::as_str).unwrap_or(name).to_owned();
            Ok(call.core.write(|s| {
                let index = s.begin("NamespaceUpserted");
                s.namespaces.insert(wanted);
                s.commit();
                reply::done(index)
            }))
        }
        Method::DELETE => r.any(Need::Management)?.core.write(|s| {
            if name == "default" {
                return Err(reply::text(500, "default namespace can not be deleted"));
            }
            if !s.namespaces.contains(name) {
                return Err(reply::text(500, &format!("namespace not found: {name}")));
            }
            let index = s.begin("NamespaceDeleted");
            s.namespaces.remove(name);
            s.commit();
            Ok(reply::done(index))
        }),
        _ => Err(reply::wrong_method()),
    }
}

pub(crate) fn gc(call: &Call, collect: bool) -> Response {
    if collect {
        call.core.write(crate::server::collect_garbage);
    }
    reply::done(0)
}

pub(crate) fn operator(r: Asked, path: &[&str]) -> Result<Response, Response> {
    Ok(match path {
        ["scheduler", "configuration"] if r.method == Method::GET => {
            let call = r.any(Need::OperatorRead)?;
            let (config, index) = call.core.read(|s| (s.scheduler_config.clone(), s.table(Table::Jobs)));
            let config = if config.is_null() {
                json!({
                    "CreateIndex": 5, "MemoryOversubscriptionEnabled": false, "ModifyIndex": 5, "PauseEvalBroker": false,
                    "PreemptionConfig": {
                        "BatchSchedulerEnabled": false, "ServiceSchedulerEnabled": false, "SysBatchSchedulerEnabled": false,
                        "SystemSchedulerEnabled": true,
                    },
                    "RejectJobRegistration": false, "SchedulerAlgorithm": "binpack",
                })
            } else {
                config
            };
            reply::read(
                &json!({"Index": index, "KnownLeader": true, "LastContact": 0, "NextToken": "", "SchedulerConfig": config}),
                index,
            )
        }
        ["scheduler", "configuration"] => {
            let call = r.put(Need::OperatorWrite)?;
            let body = call.json()?;
            call.core.write(|s| {
                let index = s.begin("SchedulerConfig");
                s.scheduler_config = body;
                s.commit();
                reply::written(&json!({"Index": index, "Updated": true}), index)
            })
        }
        ["raft", "configuration"] => {
            r.any(Need::OperatorRead)?;
            reply::plain_json(&json!({
                "Index": 1,
                "Servers": [{"Address": "127.0.0.1:4647", "ID": "00000000-0000-0000-0000-000000000001", "Leader": true, "Node": "dev", "RaftProtocol": "3", "Voter": true}],
            }))
        }
        ["autopilot", "health"] => {
            r.any(Need::OperatorRead)?;
            reply::plain_json(
                &json!({"FailureTolerance": 0, "Healthy": true, "Servers": [], "Leader": "127.0.0.1:4647", "Voters": []}),
            )
        }
        _ => reply::not_found(),
    })
}
