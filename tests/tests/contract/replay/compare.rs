//! Two answers side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

/// Where the embedded cluster answers otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diff {
    /// `METHOD template`, or what was watched.
    pub route: String,
    /// `status`, `header NAME`, `text`, `+A.B` for a key too many, `-A.B` for a missing one, `A.B` for another type or value.
    pub path: String,
    pub detail: String,
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} | {} | {}", self.route, self.path, self.detail)
    }
}

impl Diff {
    pub fn new(route: &str, path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { route: route.into(), path: path.into(), detail: detail.into() }
    }
}

/// Keys whose value is compared, wherever they stand.
const VALUES: &[&str] = &[
    "ClientDescription",
    "ClientStatus",
    "DesiredDescription",
    "DesiredStatus",
    "DisplayMessage",
    "Error",
    "ExitCode",
    "Failed",
    "FailedSibling",
    "FailsTask",
    "JobVersion",
    "KillReason",
    "KillTimeout",
    "Migrate",
    "Restarts",
    "SchedulingEligibility",
    "Signal",
    "State",
    "Status",
    "StatusDescription",
    "Stop",
    "TriggeredBy",
    "Type",
    "Version",
    "Warnings",
];

/// Maps whose keys are data: their values share one shape.
const MAPS: &[&str] = &[
    "TaskStates",
    "Tasks",
    "TaskLifecycles",
    "TaskResources",
    "Drivers",
    "TaskGroups",
    "Summary",
    "DesiredTGUpdates",
    "Details",
];

/// Maps of text whose keys and values are the machine's own.
const OPAQUE: &[&str] =
    &["Attributes", "Meta", "Links", "Config", "Env", "stats", "Tags", "NodesEvaluated", "NodesAvailable", "ClassFiltered"];

pub fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.char_indices().all(|(i, c)| if [8, 13, 18, 23].contains(&i) { c == '-' } else { c.is_ascii_hexdigit() })
}

/// Without ids and numbers.
pub fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if rest.get(..36).is_some_and(is_uuid) {
            out.push_str("<id>");
            rest = &rest[36..];
        } else if c.is_ascii_digit() {
            out.push('0');
            rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

fn kind(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}

type Shape = BTreeMap<String, BTreeSet<&'static str>>;

fn shape(v: &Value, path: &str, key: &str, into: &mut Shape) {
    into.entry(path.to_owned()).or_default().insert(kind(v));
    if OPAQUE.contains(&key) {
        return;
    }
    match v {
        Value::Array(items) => items.iter().for_each(|i| shape(i, &format!("{path}[]"), "", into)),
        Value::Object(fields) => fields.iter().for_each(|(k, v)| {
            let name = if MAPS.contains(&key) { "*" } else { k };
            let below = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            shape(v, &below, k, into);
        }),
        _ => {}
    }
}

/// Keys and types. What was null or empty in the recording says nothing about what would be in it.
pub fn shapes(route: &str, recorded: &Value, here: &Value) -> Vec<Diff> {
    let (mut then, mut now) = (Shape::new(), Shape::new());
    shape(recorded, "", "", &mut then);
    shape(here, "", "", &mut now);
    let mut out = vec![];
    // Only the topmost of what is missing or too much.
    let parent = |path: &str| path.strip_suffix("[]").or_else(|| path.rsplit_once('.').map(|p| p.0)).unwrap_or("").to_owned();
    let has_kids = |s: &Shape, path: &str| s.get(path).is_some_and(|k| k.contains("object") || k.contains("list"));
    for (path, kinds) in &then {
        match now.get(path) {
            Some(have) => {
                let other: Vec<_> = have.difference(kinds).filter(|k| **k != "null").collect();
                let nulls = have.contains("null") && !kinds.contains("null") && have.len() == 1;
                if (!other.is_empty() && !kinds.iter().all(|k| *k == "null")) || nulls {
                    out.push(Diff::new(route, path.clone(), format!("recorded {kinds:?}, here {have:?}")));
                }
            }
            None if path.ends_with("[]") => {}
            None if now.contains_key(&parent(path)) && (has_kids(&now, &parent(path))) => {
                out.push(Diff::new(route, format!("-{path}"), "not here"));
            }
            None => {}
        }
    }
    for path in now.keys() {
        let above = parent(path);
        if !then.contains_key(path) && !path.ends_with("[]") && then.get(&above).is_some_and(|k| k.contains("object")) {
            out.push(Diff::new(route, format!("+{path}"), "not recorded"));
        }
    }
    out
}

fn order(v: &Value) -> (String, String, u64, u64) {
    let text = |k: &str| v[k].as_str().filter(|t| !is_uuid(t)).map(plain_dispatch).unwrap_or_default();
    let number = |k: &str| v[k].as_u64().unwrap_or(u64::MAX);
    (
        text("JobID") + &text("ID"),
        v["Name"].as_str().unwrap_or_default().to_owned(),
        number("JobVersion").min(number("Version")),
        number("CreateIndex"),
    )
}

fn plain_dispatch(text: &str) -> String {
    text.split_once("/").map_or(text, |p| p.0).to_owned()
}

/// Elements that belong together: events in their order, everything else by what it is called.
pub fn pairs<'a>(a: &'a [Value], b: &'a [Value]) -> Vec<(&'a Value, &'a Value)> {
    let (mut a, mut b): (Vec<&Value>, Vec<&Value>) = (a.iter().collect(), b.iter().collect());
    if a.iter().chain(&b).all(|v| v.get("CreateIndex").is_some()) {
        a.sort_by_key(|v| order(v));
        b.sort_by_key(|v| order(v));
    } else if a.iter().chain(&b).all(|v| v["Name"].is_string() && v.get("Type").is_some()) {
        // Parts of a plan's diff.
        a.sort_by_key(|v| v["Name"].to_string());
        b.sort_by_key(|v| v["Name"].to_string());
    }
    a.into_iter().zip(b).collect()
}

/// The values that tell a state. `whole`: lists must be equally long.
pub fn values(route: &str, recorded: &Value, here: &Value, path: &str, whole: bool, out: &mut Vec<Diff>) {
    match (recorded, here) {
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            pairs(a, b).into_iter().for_each(|(a, b)| values(route, a, b, &format!("{path}[]"), whole, out));
        }
        (Value::Array(a), Value::Array(b)) if whole || path.ends_with("Events") => {
            let what =
                |l: &[Value]| l.iter().map(|e| e["Type"].as_str().unwrap_or("…").to_owned()).collect::<Vec<_>>().join(", ");
            out.push(Diff::new(route, path, format!("recorded {} [{}], here {} [{}]", a.len(), what(a), b.len(), what(b))));
        }
        (Value::Object(a), Value::Object(b)) => {
            for (key, a) in a {
                let Some(b) = b.get(key) else { continue };
                let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let leaf = !a.is_object() && !a.is_array() && !b.is_object() && !b.is_array();
                if leaf && VALUES.contains(&key.as_str()) && text_of(a) != text_of(b) {
                    out.push(Diff::new(route, below, format!("recorded {a}, here {b}")));
                } else {
                    values(route, a, b, &below, whole, out);
                }
            }
        }
        _ => {}
    }
}

fn text_of(v: &Value) -> String {
    match v {
        Value::String(s) => plain(s),
        other => other.to_string(),
    }
}
