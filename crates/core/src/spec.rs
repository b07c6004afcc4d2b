//! A job's specification, reduced to what a kill clock needs. The JSON itself stays the truth on its way to Nomad.

use std::time::Duration;

use litemap::LiteMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{TaskName, duration};

/// Task meta that keeps the author's `kill_timeout` after the submit transform raised Nomad's.
pub const META_STOP_TIMEOUT: &str = "curfew_stop_timeout";
/// Job meta of a job that was submitted through Curfew.
pub const META_MANAGED: &str = "curfew_managed";
/// Job meta: the operation that first submitted this job.
pub const META_OPERATION: &str = "curfew_operation";
/// Group meta that keeps the author's `progress_deadline`.
pub const META_PROGRESS_DEADLINE: &str = "curfew_progress_deadline";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobType {
    Service,
    Batch,
    System,
    SysBatch,
}

impl JobType {
    /// Its allocations are counted by the nodes.
    pub fn on_every_node(self) -> bool {
        matches!(self, Self::System | Self::SysBatch)
    }
}

/// When in an allocation's life a task runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    Main,
    Prestart,
    Poststart,
    Poststop,
    /// A prestart or poststart task that is meant to run beside the main ones.
    Sidecar,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    pub name: TaskName,
    pub driver: String,
    pub role: Role,
    pub leader: bool,
    /// `curfew_stop_timeout` of the task's meta.
    pub stop_timeout: Option<Duration>,
    /// Nomad's own `KillTimeout`.
    pub kill_timeout: Duration,
    pub shutdown_delay: Duration,
    /// The task's own, else its group's.
    pub restart: RestartPolicy,
}

/// The restart policy: how many restarts within an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    pub attempts: u64,
    /// `mode = "fail"`: after the attempts it fails for good; with `delay` it never does.
    pub fail: bool,
    pub interval: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSpec {
    pub tasks: LiteMap<TaskName, TaskSpec>,
    pub count: u64,
    pub shutdown_delay: Duration,
    /// The author's, kept in meta when Nomad's was raised.
    pub progress_deadline: Option<Duration>,
    /// Names or ids of nodes that constraints ask for, the job's, its own and its tasks': a node fits that is each of them.
    pub only_on: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    pub managed: bool,
    pub job_type: JobType,
    pub version: u64,
    pub job_modify_index: u64,
    pub stopped: bool,
    /// Periodic or parameterized: it has no allocations of its own, and stopping it stops none of its children (design fact 14).
    pub parent: bool,
    /// Names and patterns; empty: any.
    pub datacenters: Vec<String>,
    pub node_pool: String,
    pub groups: LiteMap<String, GroupSpec>,
}

fn strings(v: &Value) -> Vec<String> {
    v.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn array(v: &Value) -> &[Value] {
    v.as_array().map_or(&[], Vec::as_slice)
}

/// With room for exactly what the array has; collected, even one of them would get the room of four.
fn map<K: Ord, V>(v: &Value, entry: impl Fn(&Value) -> (K, V)) -> LiteMap<K, V> {
    let mut map = LiteMap::with_capacity(array(v).len());
    for (key, value) in array(v).iter().map(entry) {
        map.insert(key, value);
    }
    map
}

fn ns(v: &Value) -> Duration {
    Duration::from_nanos(v.as_u64().unwrap_or(0))
}

impl JobSpec {
    /// Reads Nomad's API JSON of a job (as answered by `/v1/job/…`, in events, in an allocation). Fields that are absent get
    /// Nomad's defaults; a `curfew_stop_timeout` that does not parse counts as absent.
    pub fn from_json(job: &Value) -> JobSpec {
        let job_type = match job["Type"].as_str() {
            Some("batch") => JobType::Batch,
            Some("system") => JobType::System,
            Some("sysbatch") => JobType::SysBatch,
            _ => JobType::Service,
        };
        JobSpec {
            managed: job["Meta"][META_MANAGED] == "true",
            job_type,
            version: job["Version"].as_u64().unwrap_or(0),
            job_modify_index: job["JobModifyIndex"].as_u64().unwrap_or(0),
            stopped: job["Stop"].as_bool().unwrap_or(false),
            parent: job["ParentID"].as_str().unwrap_or("").is_empty()
                && (job["Periodic"].is_object() || job["ParameterizedJob"].is_object()),
            datacenters: strings(&job["Datacenters"]),
            node_pool: job["NodePool"].as_str().filter(|p| !p.is_empty()).unwrap_or("default").to_owned(),
            groups: map(&job["TaskGroups"], |g| (g["Name"].as_str().unwrap_or("").to_owned(), group(g, job, job_type))),
        }
    }

    pub fn task(&self, group: &str, task: &TaskName) -> Option<&TaskSpec> {
        self.groups.get(group)?.tasks.get(task)
    }
}

fn group(g: &Value, job: &Value, job_type: JobType) -> GroupSpec {
    // Nomad's default when a job is read before it was canonicalized.
    let batch = matches!(job_type, JobType::Batch | JobType::SysBatch);
    let (attempts, minutes) = if batch { (3, 24 * 60) } else { (2, 30) };
    let interval = Duration::from_secs(minutes * 60);
    let of_group = restart(&g["RestartPolicy"], RestartPolicy { attempts, fail: true, interval });
    let tasks = map(&g["Tasks"], |t| (t["Name"].as_str().unwrap_or("").into(), task(t, of_group)));
    let progress_deadline = g["Meta"][META_PROGRESS_DEADLINE].as_str().and_then(|s| duration::parse(s).ok());
    let only_on = [job, g].into_iter().chain(array(&g["Tasks"])).flat_map(nodes_named).collect();
    GroupSpec {
        tasks,
        count: g["Count"].as_u64().unwrap_or(1),
        shutdown_delay: ns(&g["ShutdownDelay"]),
        progress_deadline,
        only_on,
    }
}

fn nodes_named(of: &Value) -> impl Iterator<Item = String> {
    let all = of["Constraints"].as_array().into_iter().flatten();
    let one = |c: &&Value| matches!(c["LTarget"].as_str(), Some("${node.unique.name}" | "${node.unique.id}"));
    let equal = |c: &&Value| matches!(c["Operand"].as_str(), None | Some("" | "=" | "==" | "is"));
    all.filter(one).filter(equal).filter_map(|c| c["RTarget"].as_str().map(str::to_owned))
}

fn restart(policy: &Value, default: RestartPolicy) -> RestartPolicy {
    RestartPolicy {
        attempts: policy["Attempts"].as_u64().unwrap_or(default.attempts),
        fail: policy["Mode"].as_str().map_or(default.fail, |m| m == "fail"),
        interval: policy["Interval"].as_u64().map_or(default.interval, Duration::from_nanos),
    }
}

fn task(t: &Value, of_group: RestartPolicy) -> TaskSpec {
    let lifecycle = &t["Lifecycle"];
    let sidecar = lifecycle["Sidecar"].as_bool().unwrap_or(false);
    let role = match lifecycle["Hook"].as_str() {
        Some("poststop") => Role::Poststop,
        Some("prestart" | "poststart") if sidecar => Role::Sidecar,
        Some("prestart") => Role::Prestart,
        Some("poststart") => Role::Poststart,
        _ => Role::Main,
    };
    TaskSpec {
        name: t["Name"].as_str().unwrap_or("").into(),
        driver: t["Driver"].as_str().unwrap_or("").to_owned(),
        role,
        leader: t["Leader"].as_bool().unwrap_or(false),
        stop_timeout: t["Meta"][META_STOP_TIMEOUT].as_str().and_then(|s| duration::parse(s).ok()),
        kill_timeout: match &t["KillTimeout"] {
            // Nomad's default.
            Value::Null => Duration::from_secs(5),
            v => ns(v),
        },
        shutdown_delay: ns(&t["ShutdownDelay"]),
        restart: restart(&t["RestartPolicy"], of_group),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_constraints_name() {
        let on = |target: &str, operand: &str, node: &str| serde_json::json!([{ "LTarget": target, "Operand": operand, "RTarget": node }]);
        let job = serde_json::json!({ "ID": "j", "Constraints": on("${node.unique.name}", "=", "n1"), "TaskGroups": [
            { "Name": "a", "Constraints": on("${node.unique.id}", "==", "3f"), "Tasks": [{ "Constraints": on("${node.unique.name}", "is", "n2") }] },
            { "Name": "b", "Constraints": on("${node.unique.name}", "!=", "n3"), "Tasks": [{ "Constraints": on("${node.class}", "=", "n4") }] },
        ] });
        let spec = JobSpec::from_json(&job);
        let only_on = |group: &str| &*spec.groups.get(group).unwrap().only_on;
        assert_eq!((only_on("a"), only_on("b")), (&["n1", "3f", "n2"].map(String::from)[..], &["n1".to_owned()][..]));
    }

    #[test]
    fn a_tasks_own_restart_policy_wins_over_its_groups() {
        let job = serde_json::json!({ "ID": "j", "Type": "service", "TaskGroups": [{
            "Name": "g", "RestartPolicy": { "Attempts": 0, "Mode": "fail" },
            "Tasks": [{ "Name": "own", "RestartPolicy": { "Attempts": 3, "Mode": "delay" } }, { "Name": "groups" }],
        }] });
        let spec = JobSpec::from_json(&job);
        let restart = |task: &str| spec.task("g", &task.into()).unwrap().restart;
        let interval = Duration::from_secs(1800);
        assert_eq!(restart("own"), RestartPolicy { attempts: 3, fail: false, interval });
        assert_eq!(restart("groups"), RestartPolicy { attempts: 0, fail: true, interval });
    }
}
