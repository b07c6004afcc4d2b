//! The digest of a job: what scheduler and clients read, parsed once at registration.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobKind {
    Service,
    Batch,
    System,
    SysBatch,
}

impl JobKind {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "service" => Self::Service,
            "batch" => Self::Batch,
            "system" => Self::System,
            "sysbatch" => Self::SysBatch,
            _ => return None,
        })
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Batch => "batch",
            Self::System => "system",
            Self::SysBatch => "sysbatch",
        }
    }

    /// Ends by itself when its tasks do.
    pub(crate) fn is_batch(self) -> bool {
        matches!(self, Self::Batch | Self::SysBatch)
    }

    pub(crate) fn is_system(self) -> bool {
        matches!(self, Self::System | Self::SysBatch)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct JobSpec {
    pub id: String,
    pub name: String,
    pub namespace: String,
    pub parent_id: String,
    pub kind: JobKind,
    pub priority: i64,
    pub datacenters: Vec<String>,
    pub node_pool: String,
    pub meta: BTreeMap<String, String>,
    pub constraints: Vec<Constraint>,
    pub groups: Vec<Arc<GroupSpec>>,
    pub periodic: bool,
    pub parameterized: bool,
    pub dispatch_token: String,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Constraint {
    pub left: String,
    pub right: String,
    pub operand: String,
}

#[derive(Debug, Clone)]
pub(crate) struct GroupSpec {
    pub name: String,
    pub count: usize,
    pub tasks: Vec<Arc<TaskSpec>>,
    pub constraints: Vec<Constraint>,
    pub reschedule: ReschedulePolicy,
    pub update: Option<UpdateSpec>,
    pub migrate: MigrateSpec,
    /// From the `disconnect` block or `max_client_disconnect`: how long a lost client may come back.
    pub lost_after: Option<Duration>,
    /// Whether a disconnected allocation is replaced meanwhile.
    pub replace_disconnected: bool,
    pub prevent_reschedule_on_lost: bool,
    pub shutdown_delay: Duration,
    pub max_run_duration: Option<Duration>,
    pub meta: BTreeMap<String, String>,
    pub disk_mb: i64,
    pub cpu: i64,
    pub memory_mb: i64,
    /// What decides between an in-place and a destructive update.
    pub fingerprint: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Prestart,
    Main,
    Poststart,
    Poststop,
}

#[derive(Debug, Clone)]
pub(crate) struct TaskSpec {
    pub name: String,
    pub driver: String,
    pub config: Value,
    pub env: BTreeMap<String, String>,
    pub meta: BTreeMap<String, String>,
    pub kill_timeout: i64,
    pub kill_signal: String,
    pub leader: bool,
    pub hook: Hook,
    pub sidecar: bool,
    pub restart: RestartPolicy,
    pub shutdown_delay: i64,
    pub templates: Vec<Template>,
    pub constraints: Vec<Constraint>,
    pub cpu: i64,
    pub memory_mb: i64,
    pub dispatch_payload: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RestartPolicy {
    pub attempts: i64,
    pub interval: i64,
    pub delay: i64,
    pub mode_fail: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Template {
    pub text: String,
    pub destination: String,
    pub change_mode: String,
    pub change_signal: String,
    pub env: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ReschedulePolicy {
    pub attempts: i64,
    pub interval: i64,
    pub delay: i64,
    pub function: String,
    pub max_delay: i64,
    pub unlimited: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct UpdateSpec {
    pub max_parallel: usize,
    pub health_check: String,
    pub min_healthy_time: i64,
    pub healthy_deadline: i64,
    pub progress_deadline: i64,
    pub auto_revert: bool,
    pub auto_promote: bool,
    pub canary: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MigrateSpec {
    pub max_parallel: usize,
    pub health_check: String,
    pub min_healthy_time: i64,
    pub healthy_deadline: i64,
}

impl JobSpec {
    /// Reads the server's form of a job; what is missing or of another type takes Nomad's default.
    pub(crate) fn read(job: &Value) -> Self {
        let kind = JobKind::parse(&text(job, "Type")).unwrap_or(JobKind::Service);
        Self {
            id: text(job, "ID"),
            name: text(job, "Name"),
            namespace: text(job, "Namespace"),
            parent_id: text(job, "ParentID"),
            kind,
            priority: int(job, "Priority").unwrap_or(50),
            datacenters: texts(job, "Datacenters"),
            node_pool: text(job, "NodePool"),
            meta: strings(job, "Meta"),
            constraints: constraints(job),
            groups: items(job, "TaskGroups").map(|g| Arc::new(GroupSpec::read(g, kind))).collect(),
            periodic: job.get("Periodic").is_some_and(|p| p.is_object() && p.get("Enabled") != Some(&Value::Bool(false))),
            parameterized: job.get("ParameterizedJob").is_some_and(Value::is_object) && !flag(job, "Dispatched"),
            dispatch_token: text(job, "DispatchIdempotencyToken"),
        }
    }

    pub(crate) fn group_index(&self, name: &str) -> Option<usize> {
        self.groups.iter().position(|g| g.name == name)
    }
}

impl GroupSpec {
    fn read(group: &Value, kind: JobKind) -> Self {
        let tasks: Vec<Arc<TaskSpec>> = items(group, "Tasks").map(|t| Arc::new(TaskSpec::read(t, kind))).collect();
        let disconnect = group.get("Disconnect").filter(|d| d.is_object());
        let lost_after = disconnect
            .and_then(|d| int(d, "LostAfter"))
            .or_else(|| int(group, "MaxClientDisconnect"))
            .filter(|&ns| ns > 0)
            .map(nanos);
        let update = group.get("Update").filter(|u| u.is_object()).map(UpdateSpec::read);
        Self {
            name: text(group, "Name"),
            count: int(group, "Count").and_then(|c| usize::try_from(c).ok()).unwrap_or(1),
            cpu: tasks.iter().map(|t| t.cpu).sum(),
            memory_mb: tasks.iter().map(|t| t.memory_mb).sum(),
            tasks,
            constraints: constraints(group),
            reschedule: ReschedulePolicy::read(group.get("ReschedulePolicy").unwrap_or(&Value::Null), kind),
            update: update.filter(|u| u.max_parallel > 0 && matches!(kind, JobKind::Service | JobKind::System)),
            migrate: MigrateSpec::read(group.get("Migrate").unwrap_or(&Value::Null)),
            lost_after,
            replace_disconnected: disconnect.and_then(|d| d.get("Replace")).and_then(Value::as_bool).unwrap_or(true),
            prevent_reschedule_on_lost: flag(group, "PreventRescheduleOnLost"),
            shutdown_delay: nanos(int(group, "ShutdownDelay").unwrap_or(0)),
            max_run_duration: int(group, "MaxRunDuration").filter(|&ns| ns > 0).map(nanos),
            meta: strings(group, "Meta"),
            disk_mb: group.get("EphemeralDisk").and_then(|d| int(d, "SizeMB")).unwrap_or(300),
            fingerprint: fingerprint(group),
        }
    }
}

/// Everything of a group whose change needs a new allocation; counts and policies are updated in place.
fn fingerprint(group: &Value) -> Value {
    let mut g = group.clone();
    if let Some(map) = g.as_object_mut() {
        for key in [
            "Count",
            "Update",
            "RestartPolicy",
            "ReschedulePolicy",
            "Migrate",
            "Scaling",
            "Constraints",
            "Affinities",
            "Spreads",
            "Disconnect",
        ] {
            map.remove(key);
        }
        if let Some(Value::Array(tasks)) = map.get_mut("Tasks") {
            for task in tasks.iter_mut().filter_map(Value::as_object_mut) {
                for key in
                    ["RestartPolicy", "KillTimeout", "Constraints", "Affinities", "ScalingPolicies", "ShutdownDelay", "Services"]
                {
                    task.remove(key);
                }
            }
        }
    }
    g
}

impl TaskSpec {
    fn read(task: &Value, kind: JobKind) -> Self {
        let lifecycle = task.get("Lifecycle").filter(|l| l.is_object());
        let resources = task.get("Resources").unwrap_or(&Value::Null);
        Self {
            name: text(task, "Name"),
            driver: text(task, "Driver"),
            config: task.get("Config").cloned().unwrap_or(Value::Null),
            env: strings(task, "Env"),
            meta: strings(task, "Meta"),
            kill_timeout: int(task, "KillTimeout").unwrap_or(5_000_000_000),
            kill_signal: text(task, "KillSignal"),
            leader: flag(task, "Leader"),
            hook: match lifecycle.map(|l| text(l, "Hook")).as_deref() {
                Some("prestart") => Hook::Prestart,
                Some("poststart") => Hook::Poststart,
                Some("poststop") => Hook::Poststop,
                _ => Hook::Main,
            },
            sidecar: lifecycle.is_some_and(|l| flag(l, "Sidecar")),
            restart: RestartPolicy::read(task.get("RestartPolicy").unwrap_or(&Value::Null), kind),
            shutdown_delay: int(task, "ShutdownDelay").unwrap_or(0),
            templates: items(task, "Templates").map(Template::read).collect(),
            constraints: constraints(task),
            cpu: int(resources, "CPU").unwrap_or(100),
            memory_mb: int(resources, "MemoryMB").unwrap_or(300),
            dispatch_payload: task.get("DispatchPayload").filter(|d| d.is_object()).map(|d| text(d, "File")),
        }
    }
}

impl RestartPolicy {
    fn read(v: &Value, kind: JobKind) -> Self {
        let (attempts, interval) = if kind.is_batch() { (3, 86_400_000_000_000) } else { (2, 1_800_000_000_000) };
        Self {
            attempts: int(v, "Attempts").unwrap_or(attempts),
            interval: int(v, "Interval").unwrap_or(interval),
            delay: int(v, "Delay").unwrap_or(15_000_000_000),
            mode_fail: text(v, "Mode") != "delay",
        }
    }
}

impl Template {
    fn read(v: &Value) -> Self {
        Self {
            text: text(v, "EmbeddedTmpl"),
            destination: text(v, "DestPath"),
            change_mode: Some(text(v, "ChangeMode")).filter(|m| !m.is_empty()).unwrap_or_else(|| "restart".into()),
            change_signal: text(v, "ChangeSignal"),
            env: flag(v, "Envvars"),
        }
    }
}

impl ReschedulePolicy {
    fn read(v: &Value, kind: JobKind) -> Self {
        let service = kind == JobKind::Service;
        Self {
            attempts: int(v, "Attempts").unwrap_or(i64::from(kind == JobKind::Batch)),
            interval: int(v, "Interval").unwrap_or(if service { 0 } else { 86_400_000_000_000 }),
            delay: int(v, "Delay").unwrap_or(if service { 30_000_000_000 } else { 5_000_000_000 }),
            function: Some(text(v, "DelayFunction"))
                .filter(|f| !f.is_empty())
                .unwrap_or_else(|| if service { "exponential" } else { "constant" }.into()),
            max_delay: int(v, "MaxDelay").unwrap_or(if service { 3_600_000_000_000 } else { 0 }),
            unlimited: v.get("Unlimited").and_then(Value::as_bool).unwrap_or(service),
        }
    }
}

impl UpdateSpec {
    fn read(v: &Value) -> Self {
        let count = |key| int(v, key).and_then(|n| usize::try_from(n).ok());
        Self {
            max_parallel: count("MaxParallel").unwrap_or(1),
            health_check: text(v, "HealthCheck"),
            min_healthy_time: int(v, "MinHealthyTime").unwrap_or(10_000_000_000),
            healthy_deadline: int(v, "HealthyDeadline").unwrap_or(300_000_000_000),
            progress_deadline: int(v, "ProgressDeadline").unwrap_or(600_000_000_000),
            auto_revert: flag(v, "AutoRevert"),
            auto_promote: flag(v, "AutoPromote"),
            canary: count("Canary").unwrap_or(0),
        }
    }
}

impl MigrateSpec {
    fn read(v: &Value) -> Self {
        Self {
            max_parallel: int(v, "MaxParallel").and_then(|n| usize::try_from(n).ok()).unwrap_or(1).max(1),
            health_check: text(v, "HealthCheck"),
            min_healthy_time: int(v, "MinHealthyTime").unwrap_or(10_000_000_000),
            healthy_deadline: int(v, "HealthyDeadline").unwrap_or(300_000_000_000),
        }
    }
}

pub(crate) fn nanos(ns: i64) -> Duration {
    Duration::from_nanos(u64::try_from(ns).unwrap_or(0))
}

pub(crate) fn text(v: &Value, key: &str) -> String {
    v.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

pub(crate) fn int(v: &Value, key: &str) -> Option<i64> {
    v.get(key).and_then(|x| x.as_i64().or_else(|| x.as_f64().map(|f| f as i64)))
}

pub(crate) fn flag(v: &Value, key: &str) -> bool {
    v.get(key).and_then(Value::as_bool).unwrap_or(false)
}

pub(crate) fn items<'a>(v: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    v.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn texts(v: &Value, key: &str) -> Vec<String> {
    items(v, key).filter_map(|x| x.as_str().map(str::to_owned)).collect()
}

pub(crate) fn strings(v: &Value, key: &str) -> BTreeMap<String, String> {
    let Some(map) = v.get(key).and_then(Value::as_object) else { return BTreeMap::new() };
    map.iter().map(|(k, x)| (k.clone(), x.as_str().map_or_else(|| x.to_string(), str::to_owned))).collect()
}

fn constraints(v: &Value) -> Vec<Constraint> {
    items(v, "Constraints")
        .map(|c| Constraint { left: text(c, "LTarget"), right: text(c, "RTarget"), operand: text(c, "Operand") })
        .collect()
}
