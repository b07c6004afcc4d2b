//! Asks a parsed filter about a record, without rendering the record first.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;

use super::{Expr, Op};
use crate::job::Job;
use crate::state::{Alloc, TaskEvent, TaskState, TaskStates};

/// Something with named fields.
pub(crate) trait Record {
    /// `None` when there is no such field at all.
    fn field(&self, name: &str) -> Option<Item<'_>>;
}

pub(crate) enum Item<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Str(Cow<'a, str>),
    Json(&'a Value),
    Owned(Value),
    Record(&'a dyn Record),
    States(&'a TaskStates),
    Events(&'a [Arc<TaskEvent>]),
}

impl<'a> From<&'a str> for Item<'a> {
    fn from(s: &'a str) -> Self {
        Item::Str(Cow::Borrowed(s))
    }
}

struct Scope<'a> {
    root: &'a dyn Record,
    names: Vec<(&'a str, Item<'a>)>,
}

pub(super) fn holds(expr: &Expr, root: &dyn Record) -> Result<bool, String> {
    check(expr, &mut Scope { root, names: Vec::new() })
}

fn check<'a>(expr: &'a Expr, scope: &mut Scope<'a>) -> Result<bool, String> {
    match expr {
        Expr::And(a, b) => Ok(check(a, scope)? && check(b, scope)?),
        Expr::Or(a, b) => Ok(check(a, scope)? || check(b, scope)?),
        Expr::Not(e) => Ok(!check(e, scope)?),
        Expr::Match { selector, op, value, regex } => {
            let item = find(selector, scope)?;
            compare(item, *op, value, regex.as_ref(), selector)
        }
        Expr::Each { all, selector, names, body } => {
            let parts: Vec<(Item<'a>, Item<'a>)> = match find(selector, scope)? {
                None | Some(Item::Null) => Vec::new(),
                Some(Item::States(s)) => s.iter().map(|(k, v)| (Item::from(k.as_str()), Item::Record(v))).collect(),
                Some(Item::Events(e)) => e.iter().enumerate().map(|(i, v)| (index(i), Item::Record(v.as_ref()))).collect(),
                Some(Item::Json(Value::Array(a))) => a.iter().enumerate().map(|(i, v)| (index(i), Item::Json(v))).collect(),
                Some(Item::Json(Value::Object(m))) => m.iter().map(|(k, v)| (Item::from(k.as_str()), Item::Json(v))).collect(),
                Some(Item::Owned(Value::Array(a))) => {
                    a.into_iter().enumerate().map(|(i, v)| (index(i), Item::Owned(v))).collect()
                }
                Some(Item::Owned(Value::Object(m))) => {
                    m.into_iter().map(|(k, v)| (Item::Str(k.into()), Item::Owned(v))).collect()
                }
                Some(Item::Json(Value::Null) | Item::Owned(Value::Null)) => Vec::new(),
                Some(_) => return Err(format!("{} is not a list or map", selector.join("."))),
            };
            let mut mapped = matches!(parts.first(), Some((Item::Str(_), _)));
            if parts.is_empty() {
                mapped = false;
            }
            for (key, value) in parts {
                let before = scope.names.len();
                match &names.1 {
                    Some(second) => {
                        scope.names.push((&names.0, key));
                        scope.names.push((second, value));
                    }
                    // One name is the key of a map and the value of a list.
                    None if mapped => scope.names.push((&names.0, key)),
                    None => scope.names.push((&names.0, value)),
                }
                let hit = check(body, scope);
                scope.names.truncate(before);
                if hit? != *all {
                    return Ok(!*all);
                }
            }
            Ok(*all)
        }
    }
}

fn index<'a>(i: usize) -> Item<'a> {
    Item::Int(i64::try_from(i).unwrap_or(i64::MAX))
}

/// `Ok(None)` when a map has no such key; an error when a structure has no such field.
fn find<'a>(selector: &'a [String], scope: &Scope<'a>) -> Result<Option<Item<'a>>, String> {
    let (first, rest) = selector.split_first().ok_or("empty selector")?;
    let mut item = match scope.names.iter().rev().find(|(n, _)| n == first && *n != "_") {
        Some((_, item)) => item.again(),
        None => scope.root.field(first).ok_or_else(|| {
            format!(
                "error finding value in datum: /{} at part 0: couldn't find key: struct field with name {first:?}",
                selector.join("/")
            )
        })?,
    };
    for (i, part) in rest.iter().enumerate() {
        let next = match item {
            Item::Record(r) => match r.field(part) {
                Some(next) => Some(next),
                None => {
                    return Err(format!(
                        "error finding value in datum: /{} at part {}: couldn't find key: struct field with name {part:?}",
                        selector.join("/"),
                        i + 1
                    ));
                }
            },
            Item::States(s) => s.get(part).map(|t| Item::Record(t)),
            Item::Json(v) => member(v, part).map(Item::Json),
            Item::Owned(v) => member(&v, part).cloned().map(Item::Owned),
            Item::Events(e) => part.parse::<usize>().ok().and_then(|i| e.get(i)).map(|e| Item::Record(e.as_ref())),
            Item::Null | Item::Bool(_) | Item::Int(_) | Item::Str(_) => None,
        };
        match next {
            Some(next) => item = next,
            None => return Ok(None),
        }
    }
    Ok(Some(item))
}

fn member<'v>(v: &'v Value, key: &str) -> Option<&'v Value> {
    match v {
        Value::Object(m) => m.get(key),
        Value::Array(a) => key.parse::<usize>().ok().and_then(|i| a.get(i)),
        _ => None,
    }
}

impl<'a> Item<'a> {
    fn again(&self) -> Item<'a> {
        match self {
            Self::Null => Item::Null,
            Self::Bool(b) => Item::Bool(*b),
            Self::Int(i) => Item::Int(*i),
            Self::Str(s) => Item::Str(s.clone()),
            Self::Json(v) => Item::Json(v),
            Self::Owned(v) => Item::Owned(v.clone()),
            Self::Record(r) => Item::Record(*r),
            Self::States(s) => Item::States(s),
            Self::Events(e) => Item::Events(e),
        }
    }
}

fn compare(
    item: Option<Item<'_>>,
    op: Op,
    value: &str,
    regex: Option<&regex::Regex>,
    selector: &[String],
) -> Result<bool, String> {
    let Some(item) = item else {
        // What is not there equals nothing and is empty.
        return Ok(matches!(op, Op::NotEqual | Op::NotIn | Op::NotMatches | Op::Empty));
    };
    Ok(match op {
        Op::Equal => equal(&item, value, selector)?,
        Op::NotEqual => !equal(&item, value, selector)?,
        Op::In => holds_value(&item, value, selector)?,
        Op::NotIn => !holds_value(&item, value, selector)?,
        Op::Matches => matched(&item, regex),
        Op::NotMatches => !matched(&item, regex),
        Op::Empty => empty(&item),
        Op::NotEmpty => !empty(&item),
    })
}

fn equal(item: &Item<'_>, value: &str, selector: &[String]) -> Result<bool, String> {
    let wrong = |kind: &str| {
        format!("error getting match value in expression: failed to convert {value:?} to {kind} for {}", selector.join("."))
    };
    let boolean = |b: bool| value.parse::<bool>().map(|v| v == b).map_err(|_| wrong("bool"));
    match item {
        Item::Null => Ok(false),
        Item::Bool(b) => boolean(*b),
        Item::Int(i) => value.parse::<i64>().map(|v| v == *i).map_err(|_| wrong("int")),
        Item::Str(s) => Ok(s == value),
        Item::Json(v) => json_equal(v, value, &wrong),
        Item::Owned(v) => json_equal(v, value, &wrong),
        Item::Record(_) | Item::States(_) | Item::Events(_) => Err(format!("cannot compare {} with a text", selector.join("."))),
    }
}

fn json_equal(v: &Value, value: &str, wrong: &dyn Fn(&str) -> String) -> Result<bool, String> {
    match v {
        Value::String(s) => Ok(s == value),
        Value::Bool(b) => value.parse::<bool>().map(|x| x == *b).map_err(|_| wrong("bool")),
        Value::Number(n) => value.parse::<f64>().map(|x| n.as_f64() == Some(x)).map_err(|_| wrong("number")),
        Value::Null | Value::Array(_) | Value::Object(_) => Ok(false),
    }
}

fn holds_value(item: &Item<'_>, value: &str, selector: &[String]) -> Result<bool, String> {
    let of = |v: &Value| match v {
        Value::Array(a) => a.iter().any(|x| x.as_str() == Some(value)),
        Value::Object(m) => m.contains_key(value),
        Value::String(s) => s.contains(value),
        _ => false,
    };
    match item {
        Item::Str(s) => Ok(s.contains(value)),
        Item::Json(v) => Ok(of(v)),
        Item::Owned(v) => Ok(of(v)),
        Item::States(s) => Ok(s.contains_key(value)),
        Item::Null => Ok(false),
        _ => Err(format!("cannot perform in/contains operations on {}", selector.join("."))),
    }
}

fn matched(item: &Item<'_>, regex: Option<&regex::Regex>) -> bool {
    let Some(regex) = regex else { return false };
    match item {
        Item::Str(s) => regex.is_match(s),
        Item::Json(Value::String(s)) => regex.is_match(s),
        Item::Owned(Value::String(s)) => regex.is_match(s),
        _ => false,
    }
}

fn empty(item: &Item<'_>) -> bool {
    let of = |v: &Value| match v {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(m) => m.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    };
    match item {
        Item::Null => true,
        Item::Str(s) => s.is_empty(),
        Item::Json(v) => of(v),
        Item::Owned(v) => of(v),
        Item::States(s) => s.is_empty(),
        Item::Events(e) => e.is_empty(),
        Item::Bool(_) | Item::Int(_) | Item::Record(_) => false,
    }
}

fn whole<'a>(n: u64) -> Item<'a> {
    Item::Int(i64::try_from(n).unwrap_or(i64::MAX))
}

impl Record for Value {
    fn field(&self, name: &str) -> Option<Item<'_>> {
        self.get(name).map(Item::Json)
    }
}

impl Record for Alloc {
    fn field(&self, name: &str) -> Option<Item<'_>> {
        Some(match name {
            "ID" => self.id.as_str().into(),
            "EvalID" => self.eval_id.as_str().into(),
            "Name" => Item::Str(self.name().into()),
            "Namespace" => self.job.spec.namespace.as_str().into(),
            "NodeID" => self.node_id.as_str().into(),
            "NodeName" => self.node_name.as_ref().into(),
            "JobID" => self.job.spec.id.as_str().into(),
            "Job" => Item::Record(self.job.as_ref()),
            "JobVersion" => whole(self.job.version),
            "JobType" => self.job.spec.kind.as_str().into(),
            "TaskGroup" => self.spec().name.as_str().into(),
            "DesiredStatus" => self.desired.as_str().into(),
            "DesiredDescription" => self.desired_description.into(),
            "ClientStatus" => self.client.as_str().into(),
            "ClientDescription" => self.client_description.as_ref().into(),
            "TaskStates" => Item::States(&self.tasks),
            "DeploymentID" => self.deployment_id.as_str().into(),
            "FollowupEvalID" => self.followup_eval.as_str().into(),
            "NextAllocation" => self.next_alloc.as_str().into(),
            "PreviousAllocation" => self.prev_alloc.as_str().into(),
            "CreateIndex" => whole(self.create_index),
            "ModifyIndex" => whole(self.modify_index),
            "AllocModifyIndex" => whole(self.alloc_modify_index),
            "CreateTime" => Item::Int(self.create_time),
            "ModifyTime" => Item::Int(self.modify_time),
            "DesiredTransition" | "DeploymentStatus" | "RescheduleTracker" | "AllocatedResources" | "Metrics" => {
                match self.to_json(false) {
                    Value::Object(mut m) => m.remove(name).map_or(Item::Null, Item::Owned),
                    _ => Item::Null,
                }
            }
            _ => return None,
        })
    }
}

impl Record for TaskState {
    fn field(&self, name: &str) -> Option<Item<'_>> {
        Some(match name {
            "State" => self.phase.as_str().into(),
            "Failed" => Item::Bool(self.failed),
            "Restarts" => whole(self.restarts),
            "Events" => Item::Events(&self.events),
            "StartedAt" | "FinishedAt" | "LastRestart" | "Paused" => {
                let text = match name {
                    "StartedAt" => crate::clock::rfc3339(self.started_at),
                    "FinishedAt" => crate::clock::rfc3339(self.finished_at),
                    "LastRestart" => crate::clock::rfc3339(self.last_restart),
                    _ => Some(String::new()),
                };
                text.map_or(Item::Null, |t| Item::Str(t.into()))
            }
            _ => return None,
        })
    }
}

impl Record for TaskEvent {
    fn field(&self, name: &str) -> Option<Item<'_>> {
        Some(match name {
            "Type" => self.kind.into(),
            "Time" => Item::Int(self.time),
            "DisplayMessage" => self.display.as_ref().into(),
            "Message" => self.message.as_ref().into(),
            "FailsTask" => Item::Bool(self.fails_task),
            "RestartReason" => self.restart_reason.as_ref().into(),
            "DriverError" => self.driver_error.as_str().into(),
            "ExitCode" => Item::Int(self.exit_code),
            "Signal" => Item::Int(self.signal),
            "KillTimeout" => Item::Int(self.kill_timeout),
            "StartDelay" => Item::Int(self.start_delay),
            "FailedSibling" => self.failed_sibling.as_str().into(),
            _ => match serde_json::to_value(self) {
                Ok(Value::Object(mut m)) => Item::Owned(m.remove(name)?),
                _ => return None,
            },
        })
    }
}

impl Record for Job {
    fn field(&self, name: &str) -> Option<Item<'_>> {
        Some(match name {
            "ID" => self.spec.id.as_str().into(),
            "Version" => whole(self.version),
            "Stop" => Item::Bool(self.stop),
            "Stable" => Item::Bool(self.stable),
            "Status" => self.status.into(),
            "CreateIndex" => whole(self.create_index),
            "ModifyIndex" => whole(self.modify_index),
            "JobModifyIndex" => whole(self.job_modify_index),
            "SubmitTime" => Item::Int(self.submit_time),
            other => Item::Json(self.value.get(other)?),
        })
    }
}
