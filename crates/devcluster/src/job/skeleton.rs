//! The key sets of Nomad's API structs: the parse endpoint prints every field, most of them null.

use serde_json::{Map, Value, json};

/// The API's job with nothing set.
pub(crate) fn job() -> Map<String, Value> {
    nulls(
        &[
            "Affinities",
            "AllAtOnce",
            "Constraints",
            "ConsulNamespace",
            "CreateIndex",
            "Datacenters",
            "DispatchIdempotencyToken",
            "ID",
            "JobModifyIndex",
            "Meta",
            "Migrate",
            "ModifyIndex",
            "Multiregion",
            "Name",
            "Namespace",
            "NodePool",
            "NomadTokenID",
            "ParameterizedJob",
            "ParentID",
            "Payload",
            "Periodic",
            "Priority",
            "Region",
            "Reschedule",
            "Spreads",
            "Stable",
            "Status",
            "StatusDescription",
            "Stop",
            "SubmitTime",
            "TaskGroups",
            "Type",
            "UI",
            "Update",
            "VaultNamespace",
            "Version",
            "VersionTag",
        ],
        &[("Dispatched", json!(false))],
    )
}

pub(crate) fn group() -> Map<String, Value> {
    nulls(
        &[
            "Affinities",
            "Constraints",
            "Consul",
            "Count",
            "Disconnect",
            "EphemeralDisk",
            "MaxClientDisconnect",
            "MaxRunDuration",
            "Meta",
            "Migrate",
            "Name",
            "Networks",
            "PreventRescheduleOnLost",
            "ReschedulePolicy",
            "RestartPolicy",
            "Scaling",
            "Services",
            "ShutdownDelay",
            "Spreads",
            "StopAfterClientDisconnect",
            "Tasks",
            "Update",
            "Volumes",
        ],
        &[],
    )
}

pub(crate) fn task() -> Map<String, Value> {
    nulls(
        &[
            "Actions",
            "Affinities",
            "Artifacts",
            "Config",
            "Constraints",
            "Consul",
            "DispatchPayload",
            "Env",
            "Identities",
            "Identity",
            "KillTimeout",
            "Lifecycle",
            "LogConfig",
            "Meta",
            "Resources",
            "RestartPolicy",
            "ScalingPolicies",
            "Schedule",
            "Secrets",
            "Services",
            "Templates",
            "Vault",
            "VolumeMounts",
        ],
        &[
            ("Name", json!("")),
            ("Driver", json!("")),
            ("KillSignal", json!("")),
            ("Kind", json!("")),
            ("Leader", json!(false)),
            ("ShutdownDelay", json!(0)),
            ("User", json!("")),
        ],
    )
}

pub(crate) fn resources() -> Map<String, Value> {
    nulls(&["CPU", "Cores", "Devices", "DiskMB", "IOPS", "MemoryMB", "MemoryMaxMB", "NUMA", "Networks", "SecretsMB"], &[])
}

pub(crate) fn update() -> Map<String, Value> {
    nulls(
        &[
            "AutoPromote",
            "AutoRevert",
            "Canary",
            "HealthCheck",
            "HealthyDeadline",
            "MaxParallel",
            "MinHealthyTime",
            "ProgressDeadline",
            "Stagger",
        ],
        &[],
    )
}

pub(crate) fn restart() -> Map<String, Value> {
    nulls(&["Attempts", "Delay", "Interval", "Mode", "RenderTemplates"], &[])
}

pub(crate) fn reschedule() -> Map<String, Value> {
    nulls(&["Attempts", "Delay", "DelayFunction", "Interval", "MaxDelay", "Unlimited"], &[])
}

pub(crate) fn migrate() -> Map<String, Value> {
    nulls(&["HealthCheck", "HealthyDeadline", "MaxParallel", "MinHealthyTime"], &[])
}

pub(crate) fn template() -> Map<String, Value> {
    nulls(
        &[
            "ChangeMode",
            "ChangeScript",
            "ChangeSignal",
            "DestPath",
            "EmbeddedTmpl",
            "Envvars",
            "ErrMissingKey",
            "Gid",
            "LeftDelim",
            "Once",
            "Perms",
            "RightDelim",
            "SourcePath",
            "Splay",
            "Uid",
            "VaultGrace",
            "Wait",
        ],
        &[],
    )
}

fn nulls(keys: &[&str], values: &[(&str, Value)]) -> Map<String, Value> {
    let mut map: Map<String, Value> = keys.iter().map(|k| ((*k).to_owned(), Value::Null)).collect();
    for (key, value) in values {
        map.insert((*key).to_owned(), value.clone());
    }
    map
}
