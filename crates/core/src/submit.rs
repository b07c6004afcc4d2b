//! The submit transform: what Curfew changes in a job before Nomad sees it, and nothing else.
//!
//! Nomad's `kill_timeout` is raised out of the way and Curfew keeps the clock; the author's own values are kept in meta. The
//! job stays JSON throughout, so that a field unknown here reaches Nomad as it was written.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::config::Config;
use crate::spec::{META_MANAGED, META_OPERATION, META_PROGRESS_DEADLINE, META_STOP_TIMEOUT};
use crate::{JobKey, Namespace, OpId, duration};

type Object = Map<String, Value>;

/// Nomad's own defaults, for fields that the author left out (api/jobs.go, api/tasks.go).
const NOMAD_KILL_TIMEOUT: Duration = Duration::from_secs(5);
const NOMAD_PROGRESS_DEADLINE: Duration = Duration::from_secs(600);
const NOMAD_HEALTHY_DEADLINE: Duration = Duration::from_secs(300);
/// The least `KillTimeout` in a managed job's task without a stop timeout that is taken for ours (see [`Task::written`]).
const OURS: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubmitPolicy {
    /// What Nomad's `kill_timeout` becomes (`KILL_TIMEOUT`).
    pub kill_timeout: Duration,
    /// Curfew's grace for a task whose author wrote none (`JOB_STOP_TIMEOUT`).
    pub job_stop_timeout: Duration,
    /// How far Nomad's `progress_deadline` is set above the longest `kill_timeout` of the group.
    pub progress_margin: Duration,
    /// Drivers that take no signals.
    pub signalless_drivers: Vec<String>,
}

impl From<&Config> for SubmitPolicy {
    fn from(c: &Config) -> Self {
        Self {
            kill_timeout: c.kill_timeout,
            job_stop_timeout: c.job_stop_timeout,
            progress_margin: Duration::from_secs(3600),
            signalless_drivers: c.signalless_drivers.clone(),
        }
    }
}

/// A job ready for Nomad, and what was changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Submission {
    pub job: Value,
    pub key: JobKey,
    pub changes: Vec<Change>,
    pub warnings: Vec<String>,
}

/// One changed value. `changes` is complete: what is not listed reaches Nomad as it was written.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Change {
    /// `group "g" / task "t" / kill_timeout`.
    pub path: String,
    pub from: String,
    pub to: String,
    pub why: String,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SubmitError {
    #[error("the specification is not JSON: {0}")]
    NotJson(String),
    #[error("this is not a job: {0}")]
    NotAJob(String),
    #[error("{place}: {what}")]
    Shape { place: String, what: String },
    #[error("{place}: {field} {why}")]
    Duration { place: String, field: String, why: String },
    /// Nomad reads names in any case. Two spellings of one field in a job would leave it to chance which one counts.
    #[error("{place}: write \"{expected}\" instead of \"{found}\"")]
    Spelling { place: String, found: String, expected: String },
    #[error(
        "{place}: healthy_deadline ({healthy}) must be shorter than progress_deadline ({progress}); Nomad refuses it otherwise, and its default for the one left out counts"
    )]
    HealthyDeadline { place: String, healthy: String, progress: String },
}

/// Reads a job from JSON text in either of Nomad's forms: `{"Job": {…}}`, or the job itself.
pub fn read_spec_json(text: &str) -> Result<Value, SubmitError> {
    unwrap_spec(serde_json::from_str(text).map_err(|e| SubmitError::NotJson(e.to_string()))?)
}

/// The job itself out of either of Nomad's forms, when it looks like one.
pub fn unwrap_spec(spec: Value) -> Result<Value, SubmitError> {
    let job = match spec {
        Value::Object(mut outer) if !outer.contains_key("ID") => match outer.remove("Job") {
            Some(job) => job,
            None => Value::Object(outer),
        },
        other => other,
    };
    check_job(&job)?;
    Ok(job)
}

fn check_job(job: &Value) -> Result<(&Object, &str), SubmitError> {
    let not = |why: &str| SubmitError::NotAJob(why.to_owned());
    let job = job.as_object().ok_or_else(|| not("it is not a JSON object"))?;
    spelled(job, &["ID", "Namespace", "Type", "Meta", "TaskGroups", "Update"], "the job")?;
    let id = match job.get("ID") {
        Some(Value::String(id)) if !id.is_empty() => id,
        _ => return Err(not("it has no \"ID\"")),
    };
    match job.get("TaskGroups").and_then(Value::as_array) {
        Some(groups) if !groups.is_empty() => Ok((job, id)),
        _ => Err(SubmitError::NotAJob(format!("\"{id}\" has no \"TaskGroups\""))),
    }
}

/// Changes what a managed job needs, and nothing else. Applied to its own result, it changes nothing more.
///
/// `operation` is the operation that submits the job for the first time. When the job is live and managed, pass the one in its
/// meta instead: a job's meta is part of every task's meta, so a new id there would make Nomad restart every allocation of a
/// job that was merely registered again.
pub fn transform(
    mut job: Value,
    policy: &SubmitPolicy,
    operation: OpId,
    default_namespace: &Namespace,
) -> Result<Submission, SubmitError> {
    let (spec, id) = check_job(&job)?;
    let namespace = match spec.get("Namespace").and_then(Value::as_str) {
        Some(ns) if !ns.is_empty() => ns.into(),
        _ => default_namespace.clone(),
    };
    let key = JobKey { namespace, job: id.into() };
    let service = matches!(spec.get("Type").and_then(Value::as_str), None | Some("" | "service"));
    let managed = job["Meta"][META_MANAGED] == "true";
    let job_update = job["Update"].clone();
    if let Value::Object(update) = &job_update {
        spelled(update, UPDATE_FIELDS, "update")?;
    }
    let mut notes = Notes { policy, managed, changes: Vec::new(), warnings: Vec::new() };
    if let Some(groups) = job["TaskGroups"].as_array_mut() {
        for (i, group) in groups.iter_mut().enumerate() {
            let group = object(group, || format!("group {}", i + 1))?;
            let longest = notes.tasks(group, i)?;
            if service && let Some(longest) = longest {
                notes.progress_deadline(group, i, &job_update, longest)?;
            }
        }
    }
    let job_object = object(&mut job, || "the job".into())?;
    let meta = meta(job_object, "the job")?;
    let operation = operation.to_string();
    for (name, value, why) in [
        (META_MANAGED, "true", "Curfew keeps kill clocks for managed jobs"),
        (META_OPERATION, operation.as_str(), "the operation that first submitted this job"),
    ] {
        let from = meta.get(name).and_then(Value::as_str).map(str::to_owned);
        if from.as_deref() != Some(value) {
            meta.insert(name.into(), value.into());
            notes.change(format!("meta {name}"), from.unwrap_or_else(not_set), value.to_owned(), why.to_owned());
        }
    }
    Ok(Submission { job, key, changes: notes.changes, warnings: notes.warnings })
}

struct Notes<'a> {
    policy: &'a SubmitPolicy,
    /// The job came with Curfew's mark: it was transformed before.
    managed: bool,
    changes: Vec<Change>,
    warnings: Vec<String>,
}

impl Notes<'_> {
    fn change(&mut self, path: String, from: String, to: String, why: String) {
        self.changes.push(Change { path, from, to, why });
    }

    /// The longest `kill_timeout` that was raised in this group; `None` when Nomad keeps enforcing all of them.
    fn tasks(&mut self, group: &mut Object, index: usize) -> Result<Option<Duration>, SubmitError> {
        let group_place = place("group", group, index);
        spelled(group, &["Name", "Meta", "Update", "Tasks"], &group_place)?;
        let mut longest = None;
        let tasks = match group.get_mut("Tasks") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Array(tasks)) => tasks,
            Some(_) => return Err(SubmitError::Shape { place: group_place, what: "\"Tasks\" is not a list".into() }),
        };
        for (i, task) in tasks.iter_mut().enumerate() {
            let task = object(task, || format!("{group_place} / task {}", i + 1))?;
            let place = format!("{group_place} / {}", place("task", task, i));
            longest = longest.max(self.task(task, &place)?);
        }
        Ok(longest)
    }

    fn task(&mut self, task: &mut Object, place: &str) -> Result<Option<Duration>, SubmitError> {
        spelled(task, &["Name", "Driver", "Meta", "KillTimeout", "KillSignal"], place)?;
        let written = nomad_duration(task, "KillTimeout", "kill_timeout", place)?;
        let in_meta = meta_duration(task, META_STOP_TIMEOUT, place)?;
        let driver = task.get("Driver").and_then(Value::as_str).unwrap_or("").to_owned();
        if self.policy.signalless_drivers.contains(&driver) {
            let grace = duration::format(written.unwrap_or(NOMAD_KILL_TIMEOUT));
            self.warnings.push(format!(
                "{place}: the driver {driver} takes no signals, so its kill_timeout ({grace}) stays as it is and Nomad enforces it, in drains too"
            ));
            return Ok(None);
        }
        // Of a job that was transformed before, a raised value without a stop timeout is not the author's: the author wrote none.
        let ours = |w: &Duration| self.managed && in_meta.is_none() && *w >= self.policy.kill_timeout.min(OURS);
        let authors = written.filter(|w| !ours(w));
        let own = in_meta.or(authors);
        if in_meta.is_none()
            && let Some(own) = own
        {
            meta(task, place)?.insert(META_STOP_TIMEOUT.into(), duration::format(own).into());
            let why = "the author's kill_timeout, kept as the task's stop timeout";
            self.change(format!("{place} / meta {META_STOP_TIMEOUT}"), not_set(), duration::format(own), why.into());
        }
        let target = self.policy.kill_timeout.max(written.unwrap_or_default()).max(own.unwrap_or_default());
        if target > self.policy.kill_timeout && own.is_some_and(|own| own == target) {
            self.warnings.push(format!(
                "{place}: the stop timeout ({}) is longer than KILL_TIMEOUT ({}), so Nomad's kill_timeout is as long",
                duration::format(target),
                duration::format(self.policy.kill_timeout)
            ));
        }
        if task.get("KillTimeout").and_then(Value::as_u64) != Some(nanos(target)) {
            task.insert("KillTimeout".into(), nanos(target).into());
            let from = written
                .map_or_else(|| format!("{} ({} by default)", not_set(), duration::format(NOMAD_KILL_TIMEOUT)), duration::format);
            let grace = match own {
                Some(own) => format!("its stop timeout is {}", duration::format(own)),
                None => format!(
                    "it has no stop timeout of its own, so JOB_STOP_TIMEOUT ({}) applies",
                    duration::format(self.policy.job_stop_timeout)
                ),
            };
            self.change(
                format!("{place} / kill_timeout"),
                from,
                duration::format(target),
                format!("Curfew keeps the clock; {grace}"),
            );
        }
        self.kill_signal(task, &driver, place)?;
        Ok(Some(target))
    }

    fn kill_signal(&mut self, task: &mut Object, driver: &str, place: &str) -> Result<(), SubmitError> {
        match task.get("KillSignal") {
            None | Some(Value::Null) => {}
            Some(Value::String(s)) if s.is_empty() => {}
            Some(Value::String(_)) => return Ok(()),
            Some(_) => return Err(SubmitError::Shape { place: place.into(), what: "\"KillSignal\" is not a string".into() }),
        }
        task.insert("KillSignal".into(), "SIGTERM".into());
        let why = "a stop begins with SIGTERM; exec, raw_exec and java would send SIGINT";
        self.change(format!("{place} / kill_signal"), not_set(), "SIGTERM".into(), why.into());
        if matches!(driver, "docker" | "podman") {
            self.warnings.push(format!(
                "{place}: SIGTERM takes the place of a STOPSIGNAL that its image may name; to keep that one, write it as kill_signal"
            ));
        }
        Ok(())
    }

    /// Nomad refuses a service job whose `kill_timeout` exceeds its `progress_deadline` (design fact 2).
    ///
    /// The group's `update` is where it takes effect: it wins over the job's field by field, and over Nomad's default block,
    /// so a block with this field alone changes no other. Zero keeps its own meaning and is accepted beside any `kill_timeout`.
    fn progress_deadline(&mut self, group: &mut Object, index: usize, job: &Value, longest: Duration) -> Result<(), SubmitError> {
        let place = place("group", group, index);
        let kept = meta_duration(group, META_PROGRESS_DEADLINE, &place)?;
        let own = match group.get("Update") {
            None | Some(Value::Null) => None,
            Some(Value::Object(update)) => Some(update.clone()),
            Some(_) => return Err(SubmitError::Shape { place, what: "\"Update\" is not an object".into() }),
        };
        if let Some(update) = &own {
            spelled(update, UPDATE_FIELDS, &place)?;
        }
        if own.is_none() && is_switched_off(job) {
            return Ok(());
        }
        let from_job = job.as_object().cloned().unwrap_or_default();
        let merged = |field: &str, name: &str| -> Result<Option<Duration>, SubmitError> {
            match nomad_duration(own.as_ref().unwrap_or(&Object::new()), field, name, &place)? {
                Some(d) => Ok(Some(d)),
                None => nomad_duration(&from_job, field, name, &place),
            }
        };
        let progress = merged("ProgressDeadline", "progress_deadline")?.unwrap_or(NOMAD_PROGRESS_DEADLINE);
        if progress.is_zero() || progress >= longest {
            return Ok(());
        }
        let healthy = merged("HealthyDeadline", "healthy_deadline")?.unwrap_or(NOMAD_HEALTHY_DEADLINE);
        if healthy >= progress {
            return Err(SubmitError::HealthyDeadline {
                place,
                healthy: duration::format(healthy),
                progress: duration::format(progress),
            });
        }
        let parallel = |update: Option<&Object>| update.and_then(|u| u.get("MaxParallel")).and_then(Value::as_i64);
        // `max_parallel = 0` means no deployments: there is nothing whose progress could be watched.
        let deployments = parallel(own.as_ref()).or_else(|| parallel(job.as_object())).unwrap_or(1) != 0;
        if deployments && kept.is_none() {
            meta(group, &place)?.insert(META_PROGRESS_DEADLINE.into(), duration::format(progress).into());
            let why = "the author's progress_deadline: Curfew fails the deployment when it passes without progress";
            self.change(format!("{place} / meta {META_PROGRESS_DEADLINE}"), not_set(), duration::format(progress), why.into());
        }
        let target = longest + self.policy.progress_margin;
        child(group, "Update", &place)?.insert("ProgressDeadline".into(), nanos(target).into());
        let why = "Nomad refuses a service job whose kill_timeout is longer".to_owned();
        self.change(format!("{place} / update / progress_deadline"), duration::format(progress), duration::format(target), why);
        Ok(())
    }
}

const UPDATE_FIELDS: &[&str] = &["MaxParallel", "ProgressDeadline", "HealthyDeadline"];

/// A job-level `update` that Nomad does not hand to groups: every field zero. A field left out gets a default that is not zero.
fn is_switched_off(update: &Value) -> bool {
    const MUST_BE_ZERO: [&str; 6] =
        ["Stagger", "MaxParallel", "HealthCheck", "MinHealthyTime", "HealthyDeadline", "ProgressDeadline"];
    const ZERO_BY_DEFAULT: [&str; 3] = ["AutoRevert", "AutoPromote", "Canary"];
    let zero = |v: &Value| v == 0 || v == "" || v == false;
    update.is_object()
        && MUST_BE_ZERO.iter().all(|f| zero(&update[f]))
        && ZERO_BY_DEFAULT.iter().all(|f| update[f].is_null() || zero(&update[f]))
}

fn not_set() -> String {
    "not set".into()
}

fn place(kind: &str, object: &Object, index: usize) -> String {
    match object.get("Name").and_then(Value::as_str) {
        Some(name) if !name.is_empty() => format!("{kind} \"{name}\""),
        _ => format!("{kind} {}", index + 1),
    }
}

fn object(value: &mut Value, place: impl Fn() -> String) -> Result<&mut Object, SubmitError> {
    value.as_object_mut().ok_or_else(|| SubmitError::Shape { place: place(), what: "it is not an object".into() })
}

/// An inner object, made when it is absent.
fn child<'a>(outer: &'a mut Object, name: &str, place: &str) -> Result<&'a mut Object, SubmitError> {
    let value = outer.entry(name).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Object::new());
    }
    value.as_object_mut().ok_or_else(|| SubmitError::Shape { place: place.into(), what: format!("\"{name}\" is not an object") })
}

fn meta<'a>(outer: &'a mut Object, place: &str) -> Result<&'a mut Object, SubmitError> {
    child(outer, "Meta", place)
}

fn spelled(object: &Object, names: &[&str], place: &str) -> Result<(), SubmitError> {
    for found in object.keys() {
        if let Some(expected) = names.iter().find(|n| n.eq_ignore_ascii_case(found) && **n != found) {
            return Err(SubmitError::Spelling { place: place.into(), found: found.clone(), expected: (*expected).into() });
        }
    }
    Ok(())
}

/// A duration in meta, in Curfew's own notation.
fn meta_duration(object: &Object, name: &str, place: &str) -> Result<Option<Duration>, SubmitError> {
    let bad = |why: String| SubmitError::Duration { place: place.into(), field: format!("meta {name}"), why };
    match object.get("Meta").and_then(|m| m.get(name)) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => duration::parse(text).map(Some).map_err(|e| bad(e.to_string())),
        Some(_) => Err(bad("is not a string; write it as in \"30s\"".into())),
    }
}

/// A duration as Nomad's JSON has it: nanoseconds, or text in Go's notation. Absent and null are `None`.
fn nomad_duration(object: &Object, field: &str, name: &str, place: &str) -> Result<Option<Duration>, SubmitError> {
    let bad = |why: String| SubmitError::Duration { place: place.into(), field: name.into(), why };
    match object.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(n)) => match (n.as_u64().filter(|n| *n <= MAX_NANOS), n.as_i64()) {
            (Some(ns), _) => Ok(Some(Duration::from_nanos(ns))),
            (None, Some(_)) => Err(bad(format!("is {n}, but must not be negative"))),
            (None, None) => Err(bad(format!("is {n}, which is not a whole number of nanoseconds"))),
        },
        Some(Value::String(text)) => {
            go_duration(text).map(Some).ok_or_else(|| bad(format!("is \"{text}\", which is not a duration")))
        }
        Some(_) => Err(bad("is neither a number of nanoseconds nor text like \"30s\"".into())),
    }
}

/// Nomad counts nanoseconds in a signed 64-bit number.
const MAX_NANOS: u64 = i64::MAX as u64;

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).map_or(MAX_NANOS, |n| n.min(MAX_NANOS))
}

/// Go's notation, fractions included: `1h30m`, `1.5h`, `300ms`, `0`. `None` for anything else, negative ones too.
fn go_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 8] =
        [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number = &rest[..digits];
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit() || c == '.').map_or(rest.len(), |n| digits + n);
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == &rest[digits..unit_end])?;
        let ns = match number.parse::<u64>() {
            // Whole numbers exactly; floating point would round long durations in nanoseconds.
            Ok(whole) => whole.checked_mul(*unit as u64)?,
            Err(_) => (number.parse::<f64>().ok()? * unit) as u64,
        };
        total = total.checked_add(ns).filter(|t| *t <= MAX_NANOS)?;
        rest = &rest[unit_end..];
    }
    Some(Duration::from_nanos(total))
}
