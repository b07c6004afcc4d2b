//! Which arguments and blocks a jobspec knows, and where they go in the API's JSON.

use serde_json::{Map, Value, json};

use crate::job::skeleton;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attr {
    Str,
    Int,
    Bool,
    /// Go's duration text or nanoseconds.
    Duration,
    Strings,
    /// A map of texts.
    Map,
}

#[derive(Clone, Copy)]
pub(super) enum Shape {
    Groups,
    Tasks,
    LoneTask,
    One(&'static Schema, fn() -> Map<String, Value>),
    Many(&'static Schema, fn() -> Map<String, Value>),
    Constraints,
    Strings,
    Free,
    /// Names turned from snake case into the API's: for blocks the cluster keeps without understanding them.
    Guess,
    GuessMany,
    GuessNamed,
    Network,
}

pub(super) struct Schema {
    attrs: &'static [(&'static str, &'static str, Attr)],
    blocks: &'static [(&'static str, &'static str, Shape)],
}

impl Schema {
    pub(super) fn attr(&self, name: &str) -> Option<(&'static str, Attr)> {
        self.attrs.iter().find(|(n, _, _)| *n == name).map(|(_, key, kind)| (*key, *kind))
    }

    pub(super) fn block(&self, name: &str) -> Option<(&'static str, Shape)> {
        self.blocks.iter().find(|(n, _, _)| *n == name).map(|(_, key, shape)| (*key, *shape))
    }
}

fn empty() -> Map<String, Value> {
    Map::new()
}

fn periodic() -> Map<String, Value> {
    nulls(&["Enabled", "Spec", "Specs", "SpecType", "ProhibitOverlap", "TimeZone"])
}

fn parameterized() -> Map<String, Value> {
    let mut m = nulls(&["MetaOptional", "MetaRequired"]);
    m.insert("Payload".into(), json!(""));
    m
}

fn lifecycle() -> Map<String, Value> {
    [("Hook".to_owned(), json!("")), ("Sidecar".to_owned(), json!(false))].into_iter().collect()
}

fn disconnect() -> Map<String, Value> {
    nulls(&["LostAfter", "Reconcile", "Replace", "StopOnClientAfter"])
}

fn nulls(keys: &[&str]) -> Map<String, Value> {
    keys.iter().map(|k| ((*k).to_owned(), Value::Null)).collect()
}

pub(super) const JOB: &Schema = &Schema {
    attrs: &[
        ("id", "ID", Attr::Str),
        ("name", "Name", Attr::Str),
        ("region", "Region", Attr::Str),
        ("namespace", "Namespace", Attr::Str),
        ("type", "Type", Attr::Str),
        ("priority", "Priority", Attr::Int),
        ("all_at_once", "AllAtOnce", Attr::Bool),
        ("datacenters", "Datacenters", Attr::Strings),
        ("node_pool", "NodePool", Attr::Str),
        ("consul_namespace", "ConsulNamespace", Attr::Str),
        ("vault_namespace", "VaultNamespace", Attr::Str),
        ("consul_token", "ConsulToken", Attr::Str),
        ("vault_token", "VaultToken", Attr::Str),
        ("meta", "Meta", Attr::Map),
    ],
    blocks: &[
        ("group", "TaskGroups", Shape::Groups),
        ("task", "TaskGroups", Shape::LoneTask),
        ("update", "Update", Shape::One(UPDATE, skeleton::update)),
        ("migrate", "Migrate", Shape::One(MIGRATE, skeleton::migrate)),
        ("reschedule", "Reschedule", Shape::One(RESCHEDULE, skeleton::reschedule)),
        ("periodic", "Periodic", Shape::One(PERIODIC, periodic)),
        ("parameterized", "ParameterizedJob", Shape::One(PARAMETERIZED, parameterized)),
        ("constraint", "Constraints", Shape::Constraints),
        ("affinity", "Affinities", Shape::Many(AFFINITY, affinity)),
        ("spread", "Spreads", Shape::GuessMany),
        ("meta", "Meta", Shape::Strings),
        ("multiregion", "Multiregion", Shape::Guess),
        ("ui", "UI", Shape::Guess),
    ],
};

fn affinity() -> Map<String, Value> {
    [("LTarget", json!("")), ("RTarget", json!("")), ("Operand", json!("=")), ("Weight", Value::Null)]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v))
        .collect()
}

const AFFINITY: &Schema = &Schema {
    attrs: &[
        ("attribute", "LTarget", Attr::Str),
        ("value", "RTarget", Attr::Str),
        ("operator", "Operand", Attr::Str),
        ("weight", "Weight", Attr::Int),
    ],
    blocks: &[],
};

pub(super) const GROUP: &Schema = &Schema {
    attrs: &[
        ("count", "Count", Attr::Int),
        ("shutdown_delay", "ShutdownDelay", Attr::Duration),
        ("stop_after_client_disconnect", "StopAfterClientDisconnect", Attr::Duration),
        ("max_client_disconnect", "MaxClientDisconnect", Attr::Duration),
        ("max_run_duration", "MaxRunDuration", Attr::Duration),
        ("prevent_reschedule_on_lost", "PreventRescheduleOnLost", Attr::Bool),
        ("meta", "Meta", Attr::Map),
    ],
    blocks: &[
        ("task", "Tasks", Shape::Tasks),
        ("update", "Update", Shape::One(UPDATE, skeleton::update)),
        ("migrate", "Migrate", Shape::One(MIGRATE, skeleton::migrate)),
        ("restart", "RestartPolicy", Shape::One(RESTART, skeleton::restart)),
        ("reschedule", "ReschedulePolicy", Shape::One(RESCHEDULE, skeleton::reschedule)),
        ("disconnect", "Disconnect", Shape::One(DISCONNECT, disconnect)),
        ("ephemeral_disk", "EphemeralDisk", Shape::One(DISK, disk)),
        ("constraint", "Constraints", Shape::Constraints),
        ("affinity", "Affinities", Shape::Many(AFFINITY, affinity)),
        ("spread", "Spreads", Shape::GuessMany),
        ("meta", "Meta", Shape::Strings),
        ("network", "Networks", Shape::Network),
        ("service", "Services", Shape::GuessMany),
        ("volume", "Volumes", Shape::GuessNamed),
        ("scaling", "Scaling", Shape::Guess),
        ("consul", "Consul", Shape::Guess),
        ("vault", "Vault", Shape::Guess),
    ],
};

fn disk() -> Map<String, Value> {
    nulls(&["Migrate", "SizeMB", "Sticky"])
}

const DISK: &Schema = &Schema {
    attrs: &[("migrate", "Migrate", Attr::Bool), ("size", "SizeMB", Attr::Int), ("sticky", "Sticky", Attr::Bool)],
    blocks: &[],
};

pub(super) const TASK: &Schema = &Schema {
    attrs: &[
        ("driver", "Driver", Attr::Str),
        ("user", "User", Attr::Str),
        ("kind", "Kind", Attr::Str),
        ("kill_timeout", "KillTimeout", Attr::Duration),
        ("kill_signal", "KillSignal", Attr::Str),
        ("leader", "Leader", Attr::Bool),
        ("shutdown_delay", "ShutdownDelay", Attr::Duration),
        ("env", "Env", Attr::Map),
        ("meta", "Meta", Attr::Map),
    ],
    blocks: &[
        ("config", "Config", Shape::Free),
        ("env", "Env", Shape::Strings),
        ("meta", "Meta", Shape::Strings),
        ("resources", "Resources", Shape::One(RESOURCES, skeleton::resources)),
        ("restart", "RestartPolicy", Shape::One(RESTART, skeleton::restart)),
        ("template", "Templates", Shape::Many(TEMPLATE, template)),
        ("lifecycle", "Lifecycle", Shape::One(LIFECYCLE, lifecycle)),
        ("dispatch_payload", "DispatchPayload", Shape::One(PAYLOAD, empty)),
        ("logs", "LogConfig", Shape::One(LOGS, logs)),
        ("constraint", "Constraints", Shape::Constraints),
        ("affinity", "Affinities", Shape::Many(AFFINITY, affinity)),
        ("artifact", "Artifacts", Shape::GuessMany),
        ("identity", "Identity", Shape::Guess),
        ("vault", "Vault", Shape::Guess),
        ("consul", "Consul", Shape::Guess),
        ("service", "Services", Shape::GuessMany),
        ("volume_mount", "VolumeMounts", Shape::GuessMany),
        ("scaling", "ScalingPolicies", Shape::GuessMany),
        ("action", "Actions", Shape::GuessMany),
        ("schedule", "Schedule", Shape::Guess),
        ("secret", "Secrets", Shape::GuessMany),
        ("csi_plugin", "CSIPluginConfig", Shape::Guess),
    ],
};

fn logs() -> Map<String, Value> {
    nulls(&["Disabled", "Enabled", "MaxFileSizeMB", "MaxFiles"])
}

const LOGS: &Schema = &Schema {
    attrs: &[
        ("max_files", "MaxFiles", Attr::Int),
        ("max_file_size", "MaxFileSizeMB", Attr::Int),
        ("disabled", "Disabled", Attr::Bool),
        ("enabled", "Enabled", Attr::Bool),
    ],
    blocks: &[],
};

const LIFECYCLE: &Schema = &Schema { attrs: &[("hook", "Hook", Attr::Str), ("sidecar", "Sidecar", Attr::Bool)], blocks: &[] };

const PAYLOAD: &Schema = &Schema { attrs: &[("file", "File", Attr::Str)], blocks: &[] };

const RESOURCES: &Schema = &Schema {
    attrs: &[
        ("cpu", "CPU", Attr::Int),
        ("cores", "Cores", Attr::Int),
        ("memory", "MemoryMB", Attr::Int),
        ("memory_max", "MemoryMaxMB", Attr::Int),
        ("disk", "DiskMB", Attr::Int),
        ("iops", "IOPS", Attr::Int),
        ("secrets", "SecretsMB", Attr::Int),
    ],
    blocks: &[("network", "Networks", Shape::Network), ("device", "Devices", Shape::GuessMany), ("numa", "NUMA", Shape::Guess)],
};

const RESTART: &Schema = &Schema {
    attrs: &[
        ("attempts", "Attempts", Attr::Int),
        ("interval", "Interval", Attr::Duration),
        ("delay", "Delay", Attr::Duration),
        ("mode", "Mode", Attr::Str),
        ("render_templates", "RenderTemplates", Attr::Bool),
    ],
    blocks: &[],
};

const RESCHEDULE: &Schema = &Schema {
    attrs: &[
        ("attempts", "Attempts", Attr::Int),
        ("interval", "Interval", Attr::Duration),
        ("delay", "Delay", Attr::Duration),
        ("delay_function", "DelayFunction", Attr::Str),
        ("max_delay", "MaxDelay", Attr::Duration),
        ("unlimited", "Unlimited", Attr::Bool),
    ],
    blocks: &[],
};

const UPDATE: &Schema = &Schema {
    attrs: &[
        ("max_parallel", "MaxParallel", Attr::Int),
        ("health_check", "HealthCheck", Attr::Str),
        ("min_healthy_time", "MinHealthyTime", Attr::Duration),
        ("healthy_deadline", "HealthyDeadline", Attr::Duration),
        ("progress_deadline", "ProgressDeadline", Attr::Duration),
        ("auto_revert", "AutoRevert", Attr::Bool),
        ("auto_promote", "AutoPromote", Attr::Bool),
        ("canary", "Canary", Attr::Int),
        ("stagger", "Stagger", Attr::Duration),
    ],
    blocks: &[],
};

const MIGRATE: &Schema = &Schema {
    attrs: &[
        ("max_parallel", "MaxParallel", Attr::Int),
        ("health_check", "HealthCheck", Attr::Str),
        ("min_healthy_time", "MinHealthyTime", Attr::Duration),
        ("healthy_deadline", "HealthyDeadline", Attr::Duration),
    ],
    blocks: &[],
};

const DISCONNECT: &Schema = &Schema {
    attrs: &[
        ("lost_after", "LostAfter", Attr::Duration),
        ("stop_on_client_after", "StopOnClientAfter", Attr::Duration),
        ("replace", "Replace", Attr::Bool),
        ("reconcile", "Reconcile", Attr::Str),
    ],
    blocks: &[],
};

const PERIODIC: &Schema = &Schema {
    attrs: &[
        ("cron", "Spec", Attr::Str),
        ("crons", "Specs", Attr::Strings),
        ("enabled", "Enabled", Attr::Bool),
        ("prohibit_overlap", "ProhibitOverlap", Attr::Bool),
        ("time_zone", "TimeZone", Attr::Str),
    ],
    blocks: &[],
};

const PARAMETERIZED: &Schema = &Schema {
    attrs: &[
        ("payload", "Payload", Attr::Str),
        ("meta_required", "MetaRequired", Attr::Strings),
        ("meta_optional", "MetaOptional", Attr::Strings),
    ],
    blocks: &[],
};

/// The parser fills these in, not the canonical form.
fn template() -> Map<String, Value> {
    let mut m = skeleton::template();
    m.insert("ErrMissingKey".into(), json!(false));
    m.insert("Perms".into(), json!("0644"));
    m.insert("Splay".into(), json!(5_000_000_000_i64));
    m
}

const TEMPLATE: &Schema = &Schema {
    attrs: &[
        ("data", "EmbeddedTmpl", Attr::Str),
        ("source", "SourcePath", Attr::Str),
        ("destination", "DestPath", Attr::Str),
        ("change_mode", "ChangeMode", Attr::Str),
        ("change_signal", "ChangeSignal", Attr::Str),
        ("env", "Envvars", Attr::Bool),
        ("error_on_missing_key", "ErrMissingKey", Attr::Bool),
        ("left_delimiter", "LeftDelim", Attr::Str),
        ("right_delimiter", "RightDelim", Attr::Str),
        ("once", "Once", Attr::Bool),
        ("perms", "Perms", Attr::Str),
        ("splay", "Splay", Attr::Duration),
        ("uid", "Uid", Attr::Int),
        ("gid", "Gid", Attr::Int),
        ("vault_grace", "VaultGrace", Attr::Duration),
    ],
    blocks: &[("wait", "Wait", Shape::Guess), ("change_script", "ChangeScript", Shape::Guess)],
};
