//! Changing jobs: register, deregister, dispatch, scale, revert.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::job::{Job, JobKey, JobKind, JobSpec, canonical};
use crate::state::{Alloc, Desired, State};

pub(crate) struct Registered {
    pub eval_id: String,
    pub eval_index: u64,
    pub job_modify_index: u64,
    pub index: u64,
}

/// Stores a job in the server's form and has it looked at; `trigger` says why.
pub(crate) fn register(s: &mut State, value: Value, trigger: &'static str) -> Registered {
    let index = s.begin("JobRegistered");
    let (job, registered) = write(s, value, index, trigger);
    s.commit();
    super::periodic::schedule(s, &job);
    registered
}

/// The same within the running transaction.
fn write(s: &mut State, value: Value, index: u64, trigger: &'static str) -> (Arc<Job>, Registered) {
    let job = store(s, value, index, false);
    let (eval_id, eval_index) = evaluate(s, &job, trigger);
    // Of a job that it has already Nomad answers with its other index.
    let job_modify_index = if job.job_modify_index == index { index } else { job.modify_index };
    (job, Registered { eval_id, eval_index, job_modify_index, index })
}

/// `anew` makes a new version of a specification that did not change.
fn store(s: &mut State, mut value: Value, index: u64, anew: bool) -> Arc<Job> {
    let now = s.now();
    let spec = JobSpec::read(&value);
    let key: JobKey = (spec.namespace.clone(), spec.id.clone());
    let old = s.job(&key);
    // What comes back from a read-modify-write must not decide anything.
    if let Some(m) = value.as_object_mut() {
        m.insert("Stop".into(), json!(false));
    }
    let submitted = scrub(&value);
    let unchanged = !anew && old.as_ref().is_some_and(|o| !o.stop && scrub(&o.value) == submitted);
    if unchanged && let Some(old) = old {
        // The same again: a new evaluation, and the job is not touched.
        return old;
    }
    let job = Job {
        spec: Arc::new(spec),
        value: Arc::new(value),
        version: old.as_ref().map_or(0, |o| o.version + 1),
        stop: false,
        stable: false,
        status: "pending",
        create_index: old.as_ref().map_or(index, |o| o.create_index),
        modify_index: index,
        job_modify_index: index,
        submit_time: now,
    };
    let status =
        if job.spec.periodic || job.spec.parameterized || job.spec.kind == JobKind::System { "running" } else { "pending" };
    s.put_job(Job { status, ..job }, true)
}

/// A job without what the server itself writes into it.
fn scrub(value: &Value) -> Value {
    let mut v = value.clone();
    if let Some(m) = v.as_object_mut() {
        for key in [
            "Version",
            "Stop",
            "Stable",
            "Status",
            "StatusDescription",
            "CreateIndex",
            "ModifyIndex",
            "JobModifyIndex",
            "SubmitTime",
            "VersionTag",
            "NomadTokenID",
        ] {
            m.remove(key);
        }
    }
    v
}

fn evaluate(s: &mut State, job: &Arc<Job>, trigger: &'static str) -> (String, u64) {
    if job.spec.periodic || job.spec.parameterized {
        return (String::new(), 0);
    }
    let mut e = s.new_eval(job, trigger);
    e.job_modify_index = job.job_modify_index;
    let id = e.id.clone();
    let index = s.put_eval(e).create_index;
    (id, index)
}

pub(crate) struct Deregistered {
    pub eval_id: String,
    pub index: u64,
}

/// Stops a job, or forgets it with everything it has.
pub(crate) fn deregister(s: &mut State, key: &JobKey, purge: bool, no_shutdown_delay: bool) -> Option<Deregistered> {
    let job = s.job(key)?;
    let index = s.begin("JobDeregistered");
    if no_shutdown_delay {
        for a in s.allocs_of(key).iter().filter(|a| a.desired == Desired::Run) {
            let mut a = Alloc::clone(a);
            a.transition.no_shutdown_delay = Some(true);
            s.put_alloc(a);
        }
    }
    s.timers.retain(|(_, t)| !matches!(t, crate::state::Timer::Periodic(k) if k == key));
    let looked_at = !job.spec.periodic && !job.spec.parameterized;
    let mut e = s.new_eval(&job, "job-deregister");
    e.job_modify_index = index;
    let eval_id = if looked_at || purge { e.id.clone() } else { String::new() };
    if purge {
        s.purge_job(key);
        s.put_eval(e);
    } else {
        let mut stopped = Job::clone(&job);
        stopped.stop = true;
        stopped.stable = false;
        stopped.version += 1;
        stopped.job_modify_index = index;
        stopped.submit_time = s.now();
        s.put_job(stopped, true);
        if looked_at {
            s.put_eval(e);
        }
    }
    s.commit();
    Some(Deregistered { eval_id, index })
}

/// Why a dispatch was refused, in Nomad's words.
#[derive(Debug)]
pub(crate) struct Refused(pub u16, pub String);

pub(crate) struct Dispatched {
    pub id: String,
    pub eval_id: String,
    pub eval_index: u64,
    pub create_index: u64,
    pub index: u64,
}

pub(crate) fn dispatch(
    s: &mut State,
    key: &JobKey,
    payload: &str,
    meta: &Map<String, Value>,
    token: &str,
    prefix: &str,
) -> Result<Dispatched, Refused> {
    let parent = s.job(key).ok_or_else(|| Refused(500, "parameterized job not found".into()))?;
    if !parent.spec.parameterized {
        return Err(Refused(500, format!("Specified job {:?} is not a parameterized job", key.1)));
    }
    if parent.stop {
        return Err(Refused(500, format!("Specified job {:?} is stopped", key.1)));
    }
    let rules = parent.value.get("ParameterizedJob").cloned().unwrap_or_default();
    check(&rules, payload, meta)?;
    if !token.is_empty()
        // One that has ended stands for its token until it is collected.
        && let Some(child) = s.jobs.values().map(|e| &e.current).find(|j| {
            j.spec.parent_id == key.1 && j.spec.namespace == key.0 && j.spec.dispatch_token == token
        })
    {
        return Ok(Dispatched {
            id: child.spec.id.clone(),
            eval_id: String::new(),
            eval_index: 0,
            create_index: child.create_index,
            index: child.modify_index,
        });
    }
    let seconds = s.now() / 1_000_000_000;
    let suffix = s.ids.short();
    let id = match prefix {
        "" => format!("{}/dispatch-{seconds}-{suffix}", key.1),
        p => format!("{}/dispatch-{p}-{seconds}-{suffix}", key.1),
    };
    let mut value = Value::clone(&parent.value);
    if let Some(m) = value.as_object_mut() {
        let mut all = m.get("Meta").and_then(Value::as_object).cloned().unwrap_or_default();
        all.extend(meta.clone());
        m.insert("ID".into(), json!(id));
        m.insert("Name".into(), json!(id));
        m.insert("ParentID".into(), json!(key.1));
        m.insert("Dispatched".into(), json!(true));
        m.insert("DispatchIdempotencyToken".into(), json!(token));
        m.insert("Meta".into(), if all.is_empty() { Value::Null } else { Value::Object(all) });
        m.insert("Payload".into(), if payload.is_empty() { Value::Null } else { json!(payload) });
    }
    let r = register(s, value, "job-register");
    Ok(Dispatched { id, eval_id: r.eval_id, eval_index: r.eval_index, create_index: r.index, index: r.index })
}

fn check(rules: &Value, payload: &str, meta: &Map<String, Value>) -> Result<(), Refused> {
    let list = |key: &str| -> Vec<String> {
        rules
            .get(key)
            .and_then(Value::as_array)
            .map(|a| a.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect())
            .unwrap_or_default()
    };
    match rules.get("Payload").and_then(Value::as_str).unwrap_or("optional") {
        "required" if payload.is_empty() => {
            return Err(Refused(500, "Payload is not provided but required by parameterized job".into()));
        }
        "forbidden" if !payload.is_empty() => {
            return Err(Refused(500, "Payload provided but forbidden by parameterized job".into()));
        }
        _ => {}
    }
    let (required, optional) = (list("MetaRequired"), list("MetaOptional"));
    let unknown: Vec<&String> = meta.keys().filter(|k| !required.contains(k) && !optional.contains(k)).collect();
    if !unknown.is_empty() {
        return Err(Refused(500, format!("Dispatch request included unpermitted metadata keys: {}", go_list(&unknown))));
    }
    let missing: Vec<&String> = required.iter().filter(|k| !meta.contains_key(*k)).collect();
    if !missing.is_empty() {
        return Err(Refused(500, format!("Dispatch did not provide required meta keys: {}", go_list(&missing))));
    }
    Ok(())
}

fn go_list(items: &[&String]) -> String {
    format!("[{}]", items.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(" "))
}

/// Registers an old version's specification as a new version.
pub(crate) fn revert(s: &mut State, key: &JobKey, version: u64, trigger: &'static str) -> Option<Registered> {
    let entry = s.jobs.get(key)?;
    let old = entry.versions.iter().find(|v| v.version == version)?.clone();
    Some(register(s, Value::clone(&old.value), trigger))
}

/// The same within the transaction that fails a deployment.
pub(crate) fn roll_back(s: &mut State, key: &JobKey, version: u64, index: u64) -> Option<Registered> {
    let old = s.jobs.get(key)?.versions.iter().find(|v| v.version == version)?.clone();
    let (job, registered) = write(s, Value::clone(&old.value), index, "deployment-watcher");
    // It goes back to what was submitted then.
    s.put_job(Job { submit_time: old.submit_time, stable: old.stable, ..Job::clone(&job) }, false);
    Some(registered)
}

/// A wish to change a group's count, or only a message about it.
pub(crate) struct Scaling {
    pub group: String,
    pub count: Option<i64>,
    pub message: String,
    pub error: bool,
    pub meta: Value,
    pub job_modify_index: u64,
}

/// Changes one group's count, as a new version even when the count stays; remembers what was wished.
pub(crate) fn scale(s: &mut State, key: &JobKey, wanted: Scaling) -> Result<Registered, Refused> {
    let refused = |text: &str| Refused(400, text.to_owned());
    if wanted.group.is_empty() {
        return Err(refused("missing task group name for scaling action"));
    }
    if wanted.count.is_some_and(|n| n < 0) {
        return Err(refused("scaling action count can't be negative"));
    }
    if wanted.count.is_some() && wanted.error {
        return Err(refused("scaling action should not contain count if error is true"));
    }
    let job = s.job(key).ok_or_else(|| Refused(404, format!("job {:?} not found", key.1)))?;
    if job.spec.kind == JobKind::System && wanted.count.is_some_and(|n| n > 1) {
        return Err(refused("jobs of type \"system\" can only be scaled between 0 and 1"));
    }
    let Some(at) = job.spec.group_index(&wanted.group) else {
        return Err(Refused(400, format!("task group {:?} specified for scaling does not exist in job", wanted.group)));
    };
    let previous = job.spec.groups[at].count;
    let mut done = Registered { eval_id: String::new(), eval_index: 0, job_modify_index: job.modify_index, index: 0 };
    if let Some(count) = wanted.count {
        let policy = job.value["TaskGroups"][at].get("Scaling").filter(|p| p.is_object());
        let bound = |name: &str| policy.and_then(|p| p.get(name)).and_then(Value::as_i64);
        if let Some(min) = bound("Min").filter(|min| count < *min) {
            return Err(Refused(400, format!("group count was less than scaling policy minimum: {count} < {min}")));
        }
        if let Some(max) = bound("Max").filter(|max| count > *max) {
            return Err(Refused(400, format!("group count was greater than scaling policy maximum: {count} > {max}")));
        }
        if s.latest_deployment(key).is_some_and(|d| d.status.is_active() && d.job_create_index == job.create_index) {
            return Err(refused("job scaling blocked due to active deployment"));
        }
        if wanted.job_modify_index > 0 && wanted.job_modify_index != job.job_modify_index {
            let why = format!("job exists with conflicting job modify index: {}", job.job_modify_index);
            return Err(Refused(500, format!("Enforcing job modify index {}: {why}", wanted.job_modify_index)));
        }
        let mut value = Value::clone(&job.value);
        value["TaskGroups"][at]["Count"] = json!(count);
        canonical::server(&mut value);
        let index = s.begin("JobRegistered");
        let job = store(s, value, index, true);
        let (eval_id, eval_index) = evaluate(s, &job, "job-scaling");
        s.commit();
        done = Registered { eval_id, eval_index, job_modify_index: job.job_modify_index, index };
    }
    done.index = s.begin("ScalingEventRegistered");
    let eval = if done.eval_id.is_empty() { Value::Null } else { json!(done.eval_id) };
    let event = json!({
        "Count": wanted.count, "CreateIndex": done.index, "Error": wanted.error, "EvalID": eval, "Message": wanted.message,
        "Meta": wanted.meta, "PreviousCount": previous, "Time": s.now(),
    });
    s.note_scaling(key, &wanted.group, event);
    s.commit();
    Ok(done)
}

/// A new look at a job, for `evaluate` calls.
pub(crate) fn force_evaluate(s: &mut State, key: &JobKey, force_reschedule: bool) -> Option<(String, u64, u64)> {
    let job = s.job(key)?;
    let index = s.begin("EvaluationUpdated");
    if force_reschedule {
        for a in s.allocs_of(key).iter().filter(|a| a.client == crate::state::ClientStatus::Failed && a.desired == Desired::Run) {
            let mut a = Alloc::clone(a);
            a.transition.force_reschedule = Some(true);
            s.put_alloc(a);
        }
    }
    let (id, _) = evaluate(s, &job, "job-register");
    s.commit();
    Some((id, index, job.job_modify_index))
}

/// Stops one allocation and places another.
pub(crate) fn stop_alloc(s: &mut State, id: &str, no_shutdown_delay: bool) -> Option<(String, u64)> {
    let a = s.allocs.get(id)?.clone();
    let index = s.begin("AllocationUpdateDesiredStatus");
    let mut a = Alloc::clone(&a);
    a.transition.migrate = Some(true);
    a.transition.no_shutdown_delay = Some(no_shutdown_delay);
    a.transition.reschedule = Some(false);
    let key = a.job_key();
    let job = s.job(&key).unwrap_or_else(|| a.job.clone());
    s.put_alloc(a);
    let e = s.new_eval(&job, "alloc-stop");
    let eval_id = e.id.clone();
    s.put_eval(e);
    s.commit();
    Some((eval_id, index))
}
