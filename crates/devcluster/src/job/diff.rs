//! `plan`: what a registration would do, and how the specification differs.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{Job, JobSpec};
use crate::scheduler;
use crate::state::{GroupUpdates, State};

/// The answer of `/v1/job/:id/plan`; changes nothing that lasts.
pub(crate) fn dry_run(s: &mut State, value: Value, old: Option<&Arc<Job>>, with_diff: bool) -> Value {
    // A parent is planned as its child would be.
    let spec = JobSpec { periodic: false, parameterized: false, ..JobSpec::read(&value) };
    let key = (spec.namespace.clone(), spec.id.clone());
    let unchanged = old.is_some_and(|o| !o.stop && jobs(Some(&o.value), &value, &Map::new())["Type"] == "None");
    let next = s.index + 1;
    let job = Arc::new(Job {
        spec: Arc::new(spec),
        value: Arc::new(value.clone()),
        version: old.map_or(0, |o| if unchanged { o.version } else { o.version + 1 }),
        stop: false,
        stable: false,
        status: "pending",
        create_index: old.map_or(next, |o| o.create_index),
        modify_index: next,
        job_modify_index: match old {
            Some(o) if unchanged => o.job_modify_index,
            _ => next,
        },
        submit_time: s.now(),
    });
    let eval = s.new_eval(&job, "job-register");
    let plan = scheduler::make_plan(s, Some(&job), &key, &eval);
    let updates: Map<String, Value> = plan.updates.iter().map(|(k, v)| (k.clone(), v.to_json())).collect();
    let failures: Map<String, Value> = plan.failures.iter().map(|(k, v)| (k.clone(), v.to_json())).collect();
    let previous = old.map(|o| {
        let mut before = Value::clone(&o.value);
        before["Stop"] = json!(o.stop);
        before
    });
    let diff = if with_diff { jobs(previous.as_ref(), &value, &annotations(&plan.updates)) } else { Value::Null };
    let launch = crate::server::periodic::next(&value, s.now()).and_then(crate::clock::rfc3339);
    json!({
        "Annotations": {"DesiredTGUpdates": updates, "PreemptedAllocs": null}, "CreatedEvals": null, "Diff": diff,
        "FailedTGAllocs": if failures.is_empty() { Value::Null } else { Value::Object(failures) }, "Index": 0,
        "JobModifyIndex": old.map_or(0, |o| o.job_modify_index), "NextPeriodicLaunch": launch, "Warnings": "",
    })
}

fn annotations(updates: &std::collections::BTreeMap<String, GroupUpdates>) -> Map<String, Value> {
    updates
        .iter()
        .map(|(name, u)| {
            let pairs = [
                ("create", u.place),
                ("destroy", u.stop),
                ("migrate", u.migrate),
                ("in-place update", u.in_place),
                ("create/destroy update", u.destructive),
                ("canary", u.canary),
                ("ignore", u.ignore),
            ];
            let counts: Map<String, Value> =
                pairs.into_iter().filter(|(_, n)| *n > 0).map(|(k, n)| (k.to_owned(), json!(n))).collect();
            (name.clone(), if counts.is_empty() { Value::Null } else { Value::Object(counts) })
        })
        .collect()
}

/// What the server writes itself never counts as a difference.
const OWN: [&str; 14] = [
    "ID",
    "Status",
    "StatusDescription",
    "Version",
    "Stable",
    "CreateIndex",
    "ModifyIndex",
    "JobModifyIndex",
    "SubmitTime",
    "NomadTokenID",
    "VersionTag",
    "Update",
    "Identity",
    "CSIPluginConfig",
];

/// A difference in Nomad's shape, from one specification to the next.
pub(crate) fn jobs(old: Option<&Value>, new: &Value, updates: &Map<String, Value>) -> Value {
    let none = Value::Null;
    let before = old.unwrap_or(&none);
    let (fields, objects) = parts(before, new, &["TaskGroups"], true);
    let groups = named(before.get("TaskGroups"), new.get("TaskGroups"), |o, n| group(o, n, updates));
    let changed = !fields.is_empty() || !objects.is_empty() || groups.iter().any(|g| g["Type"] != "None");
    json!({
        "Fields": or_null(fields), "ID": new.get("ID"), "Objects": or_null(objects),
        "TaskGroups": or_null(groups), "Type": kind(old.is_some(), true, changed),
    })
}

fn or_null(list: Vec<Value>) -> Value {
    if list.is_empty() { Value::Null } else { Value::Array(list) }
}

fn kind(had: bool, has: bool, changed: bool) -> &'static str {
    match (had, has) {
        (false, true) => "Added",
        (true, false) => "Deleted",
        _ if changed => "Edited",
        _ => "None",
    }
}

fn named(old: Option<&Value>, new: Option<&Value>, one: impl Fn(Option<&Value>, Option<&Value>) -> Value) -> Vec<Value> {
    let list = |v: Option<&Value>| v.and_then(Value::as_array).cloned().unwrap_or_default();
    let (old, new) = (list(old), list(new));
    let name = |v: &Value| v.get("Name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut names: Vec<String> = old.iter().chain(&new).map(name).collect();
    names.sort();
    names.dedup();
    names.iter().map(|n| one(old.iter().find(|v| name(v) == *n), new.iter().find(|v| name(v) == *n))).collect()
}

fn group(old: Option<&Value>, new: Option<&Value>, updates: &Map<String, Value>) -> Value {
    let none = Value::Null;
    let (o, n) = (old.unwrap_or(&none), new.unwrap_or(&none));
    let (mut fields, objects) = parts(o, n, &["Tasks", "Name"], false);
    for f in &mut fields {
        if f["Name"] == "Count" {
            let grows = f["Old"].as_str().and_then(|x| x.parse::<i64>().ok()).unwrap_or(0)
                < f["New"].as_str().and_then(|x| x.parse::<i64>().ok()).unwrap_or(0);
            f["Annotations"] = json!([if grows { "forces create" } else { "forces destroy" }]);
        }
    }
    let tasks = named(o.get("Tasks"), n.get("Tasks"), task);
    let changed = !fields.is_empty() || !objects.is_empty() || tasks.iter().any(|t| t["Type"] != "None");
    let name = n.get("Name").or_else(|| o.get("Name")).cloned().unwrap_or_default();
    let own = name.as_str().and_then(|n| updates.get(n)).cloned().unwrap_or_default();
    json!({
        "Fields": or_null(fields), "Name": name, "Objects": or_null(objects), "Tasks": or_null(tasks),
        "Type": kind(old.is_some(), new.is_some(), changed), "Updates": own,
    })
}

fn task(old: Option<&Value>, new: Option<&Value>) -> Value {
    let none = Value::Null;
    let (o, n) = (old.unwrap_or(&none), new.unwrap_or(&none));
    let (fields, objects) = parts(o, n, &["Name", "RestartPolicy"], false);
    let changed = !fields.is_empty() || !objects.is_empty();
    let kind = kind(old.is_some(), new.is_some(), changed);
    let harmless = |name: &Value| {
        matches!(name.as_str(), Some("KillTimeout" | "ShutdownDelay" | "RestartPolicy" | "Constraint" | "Affinity"))
    };
    let annotations = match kind {
        "Added" => json!(["forces create"]),
        "Deleted" => json!(["forces destroy"]),
        "Edited" if fields.iter().chain(&objects).all(|f| harmless(&f["Name"])) => json!(["forces in-place update"]),
        "Edited" => json!(["forces create/destroy update"]),
        _ => Value::Null,
    };
    json!({
        "Annotations": annotations, "Fields": or_null(fields), "Name": n.get("Name").or_else(|| o.get("Name")),
        "Objects": or_null(objects), "Type": kind,
    })
}

/// Fields and nested objects that differ.
fn parts(old: &Value, new: &Value, skip: &[&str], job: bool) -> (Vec<Value>, Vec<Value>) {
    let none = Map::new();
    let (o, n) = (old.as_object().unwrap_or(&none), new.as_object().unwrap_or(&none));
    let mut keys: Vec<&String> = o.keys().chain(n.keys()).collect();
    keys.sort();
    keys.dedup();
    let (mut fields, mut objects) = (Vec::new(), Vec::new());
    for key in keys {
        if skip.contains(&key.as_str())
            || OWN.contains(&key.as_str()) && (job || matches!(key.as_str(), "Identity" | "CSIPluginConfig"))
        {
            continue;
        }
        let (a, b) = (o.get(key).unwrap_or(&Value::Null), n.get(key).unwrap_or(&Value::Null));
        if is_flat(a) && is_flat(b) {
            fields.extend(field(key, a, b));
            continue;
        }
        let name = match key.as_str() {
            "Constraints" => "Constraint",
            "Affinities" => "Affinity",
            "Templates" => "Template",
            "Services" => "Service",
            other => other,
        };
        match (a, b) {
            (Value::Array(x), _) | (_, Value::Array(x)) if x.iter().any(Value::is_object) => {
                let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
                let (x, y) = (list(a), list(b));
                for v in x.iter().filter(|v| !y.contains(v)) {
                    objects.extend(object(name, Some(v), None));
                }
                for v in y.iter().filter(|v| !x.contains(v)) {
                    objects.extend(object(name, None, Some(v)));
                }
            }
            (Value::Object(_), Value::Null) => objects.extend(object(name, Some(a), None)),
            (Value::Null, Value::Object(_)) => objects.extend(object(name, None, Some(b))),
            (Value::Array(_), Value::Null) => objects.extend(object(name, Some(a), None)),
            (Value::Null, Value::Array(_)) => objects.extend(object(name, None, Some(b))),
            _ => objects.extend(object(name, Some(a), Some(b))),
        }
    }
    (fields, objects)
}

fn is_flat(v: &Value) -> bool {
    !matches!(v, Value::Object(_) | Value::Array(_))
}

fn print(v: &Value) -> String {
    match v {
        Value::Null => String::new(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

fn field(name: &str, old: &Value, new: &Value) -> Option<Value> {
    let (a, b) = (print(old), print(new));
    if a == b {
        return None;
    }
    let kind = match (a.is_empty(), b.is_empty()) {
        (true, false) => "Added",
        (false, true) => "Deleted",
        _ => "Edited",
    };
    Some(json!({"Annotations": null, "Name": name, "New": b, "Old": a, "Type": kind}))
}

fn object(name: &str, old: Option<&Value>, new: Option<&Value>) -> Option<Value> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    old.iter().for_each(|v| flatten("", name, v, &mut a));
    new.iter().for_each(|v| flatten("", name, v, &mut b));
    let mut keys: Vec<&String> = a.iter().chain(&b).map(|(k, _)| k).collect();
    keys.sort();
    keys.dedup();
    let get =
        |list: &[(String, Value)], key: &str| list.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone()).unwrap_or_default();
    let fields: Vec<Value> = keys.iter().filter_map(|k| field(k, &get(&a, k), &get(&b, k))).collect();
    if fields.is_empty() {
        return None;
    }
    Some(json!({"Fields": fields, "Name": name, "Objects": null, "Type": kind(old.is_some(), new.is_some(), true)}))
}

/// `args[0]`, `Meta.key` and so on, as Nomad flattens maps and lists.
fn flatten(prefix: &str, name: &str, v: &Value, out: &mut Vec<(String, Value)>) {
    match v {
        Value::Object(m) => {
            for (k, v) in m {
                let key = if prefix.is_empty() { k.clone() } else { format!("{prefix}.{k}") };
                flatten(&key, name, v, out);
            }
        }
        Value::Array(a) => {
            for (i, v) in a.iter().enumerate() {
                let key = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}[{i}]") };
                flatten(&key, name, v, out);
            }
        }
        flat => out.push((prefix.to_owned(), flat.clone())),
    }
}
