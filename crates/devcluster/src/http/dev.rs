//! `/dev/v1`: faults on request, where no Nomad has anything. docs/dev-cluster.md tells how to use it.

use std::sync::Arc;

use axum::http::Method;
use axum::response::Response;
use serde_json::{Value, json};

use super::access::Call;
use super::reply;
use crate::client::Agent;
use crate::core::Core;
use crate::faults::Wire;

const CALLS: &str = "\
GET    /dev/v1/status
PUT    /dev/v1/node/NAME/down, …/cut, …/up
PUT    /dev/v1/node/NAME/join    {\"Datacenter\": \"dc1\"}
GET    /dev/v1/faults
PUT    /dev/v1/faults            {\"Path\": \"/v1/job*\", \"Kind\": \"delay\", \"Delay\": \"2s\", \"Times\": 1}
DELETE /dev/v1/faults
PUT    /dev/v1/events/lose, …/deliver, …/close
PUT    /dev/v1/leader/lose, …/elect
PUT    /dev/v1/heal
";

pub(crate) async fn route(call: Call) -> Response {
    let path: Vec<&str> = call.path.iter().map(String::as_str).collect();
    let core = &call.core;
    let get = call.method == Method::GET;
    let done = || reply::done(0);
    match path.as_slice() {
        ["v1", "status"] if get => reply::plain_json(&status(core)),
        ["v1", "faults"] if get => reply::plain_json(&core.faults.all().iter().map(Wire::of).collect::<Vec<_>>()),
        ["v1", "faults"] if call.method == Method::DELETE => {
            core.faults.clear();
            done()
        }
        ["v1", "faults"] if call.writes() => match add(&call) {
            Ok(()) => done(),
            Err(why) => reply::text(400, &format!("this is no fault: {why}\n")),
        },
        ["v1", "node", name, action @ ("down" | "cut" | "up")] if call.writes() => {
            let agent = match *action {
                "down" => Agent::Dead,
                "cut" => Agent::Cut,
                _ => Agent::Up,
            };
            if crate::set_agent(core, name, agent) { done() } else { no_node(core, name) }
        }
        ["v1", "node", name, "join"] if call.writes() => {
            let body: Value = serde_json::from_slice(&call.body).unwrap_or_default();
            match crate::join(core, name, body["Datacenter"].as_str()) {
                true => done(),
                false => reply::text(400, &format!("a node is called {name:?} already, or that is no name\n")),
            }
        }
        ["v1", "events", what @ ("lose" | "deliver")] if call.writes() => {
            core.faults.lose_events(*what == "lose");
            done()
        }
        ["v1", "events", "close"] if call.writes() => {
            core.faults.close_streams();
            done()
        }
        ["v1", "leader", what @ ("lose" | "elect")] if call.writes() => {
            core.set_leader(*what == "elect");
            done()
        }
        ["v1", "heal"] if call.writes() => {
            crate::heal(core);
            done()
        }
        _ => reply::text(
            404,
            &format!("{} /dev/{} is no call of the dev cluster; these are:\n{CALLS}", call.method, path.join("/")),
        ),
    }
}

fn no_node(core: &Core, name: &str) -> Response {
    let names = core.read(|s| s.nodes.values().map(|n| n.name.to_string()).take(10).collect::<Vec<_>>().join(", "));
    reply::text(404, &format!("no node is called {name:?}; there are {names}\n"))
}

fn status(core: &Arc<Core>) -> Value {
    let nodes: Vec<Value> = core.read(|s| s.nodes.values().cloned().collect::<Vec<_>>()).iter().map(|n| node(core, n)).collect();
    json!({
        "Events": if *core.faults.mute.borrow() { "lost" } else { "delivered" },
        "Faults": core.faults.all().iter().map(Wire::of).collect::<Vec<_>>(), "Index": core.read(|s| s.index),
        "Leader": core.has_leader(), "Nodes": nodes, "Processes": core.processes.len(), "Version": core.config.version,
    })
}

fn node(core: &Core, n: &crate::state::Node) -> Value {
    let agent = match core.client(&n.id).map(|c| c.agent()) {
        Some(Agent::Up) => "up",
        Some(Agent::Cut) => "cut",
        Some(Agent::Dead) | None => "down",
    };
    json!({"Agent": agent, "Datacenter": n.config.datacenter, "ID": n.id, "Name": n.name, "Status": n.status.as_str()})
}

fn add(call: &Call) -> Result<(), String> {
    let wire: Wire = serde_json::from_slice(&call.body).map_err(|e| e.to_string())?;
    call.core.faults.add(wire.fault()?);
    Ok(())
}
