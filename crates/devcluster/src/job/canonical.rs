//! Fills in what the author left out: first as Nomad's API client does, then as its server stores it.

use serde_json::{Map, Value, json};

use super::skeleton;

/// Sets each missing or null key.
fn fill(map: &mut Map<String, Value>, defaults: &[(&str, Value)]) {
    for (key, value) in defaults {
        let slot = map.entry((*key).to_owned()).or_insert(Value::Null);
        if slot.is_null() {
            *slot = value.clone();
        }
    }
}

/// Adds the keys of a skeleton that are missing.
fn complete(map: &mut Map<String, Value>, skeleton: Map<String, Value>) {
    for (key, value) in skeleton {
        map.entry(key).or_insert(value);
    }
}

fn str_of<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn object(value: Option<&Value>) -> Option<Map<String, Value>> {
    value.and_then(Value::as_object).cloned()
}

fn each(map: &mut Map<String, Value>, key: &str, mut f: impl FnMut(&mut Map<String, Value>)) {
    if let Some(Value::Array(items)) = map.get_mut(key) {
        items.iter_mut().filter_map(Value::as_object_mut).for_each(&mut f);
    }
}

/// The API client's canonical form, as `/v1/jobs/parse` prints it with `Canonicalize`.
pub(crate) fn api(job: &mut Value) {
    let Some(job) = job.as_object_mut() else { return };
    complete(job, skeleton::job());
    let id = job.get("ID").cloned().unwrap_or(Value::Null);
    fill(
        job,
        &[
            ("Name", id),
            ("Type", json!("service")),
            ("AllAtOnce", json!(false)),
            ("ConsulNamespace", json!("")),
            ("VaultNamespace", json!("")),
            ("CreateIndex", json!(0)),
            ("ModifyIndex", json!(0)),
            ("JobModifyIndex", json!(0)),
            ("Namespace", json!("default")),
            ("NodePool", json!("")),
            ("NomadTokenID", json!("")),
            ("ParentID", json!("")),
            ("Priority", json!(50)),
            ("Region", json!("global")),
            ("Stable", json!(false)),
            ("Status", json!("")),
            ("StatusDescription", json!("")),
            ("Stop", json!(false)),
            ("Version", json!(0)),
        ],
    );
    for key in ["ID", "Name"] {
        if job.get(key).is_none_or(Value::is_null) {
            job.insert(key.into(), json!(""));
        }
    }
    if str_of(job, "Namespace").is_empty() {
        job.insert("Namespace".into(), json!("default"));
    }
    if str_of(job, "Region").is_empty() {
        job.insert("Region".into(), json!("global"));
    }
    let kind = str_of(job, "Type").to_owned();
    if let Some(Value::Object(p)) = job.get_mut("Periodic") {
        fill(
            p,
            &[
                ("Enabled", json!(true)),
                ("Spec", json!("")),
                ("Specs", Value::Null),
                ("SpecType", json!("cron")),
                ("ProhibitOverlap", json!(false)),
                ("TimeZone", json!("UTC")),
            ],
        );
    }
    if let Some(Value::Object(p)) = job.get_mut("ParameterizedJob") {
        fill(p, &[("Payload", json!("optional")), ("MetaOptional", Value::Null), ("MetaRequired", Value::Null)]);
        if str_of(p, "Payload").is_empty() {
            p.insert("Payload".into(), json!("optional"));
        }
    }
    // A job's own blocks are defaults for its groups.
    let job_update = object(job.get("Update"));
    let update = job_update.clone().map(|mut u| {
        fill(&mut u, &update_defaults());
        Value::Object(u)
    });
    if let Some(u) = &update {
        job.insert("Update".into(), u.clone());
    } else if kind == "service" || kind == "system" {
        job.insert("Update".into(), Value::Object(update_defaults().map(|(k, v)| (k.to_owned(), v)).into_iter().collect()));
    }
    let job_reschedule = object(job.get("Reschedule"));
    let job_migrate = object(job.get("Migrate"));
    each(job, "TaskGroups", |g| group(g, &kind, job_update.as_ref(), job_reschedule.as_ref(), job_migrate.as_ref()));
}

fn update_defaults() -> [(&'static str, Value); 9] {
    [
        ("AutoPromote", json!(false)),
        ("AutoRevert", json!(false)),
        ("Canary", json!(0)),
        ("HealthCheck", json!("checks")),
        ("HealthyDeadline", json!(300_000_000_000_i64)),
        ("MaxParallel", json!(1)),
        ("MinHealthyTime", json!(10_000_000_000_i64)),
        ("ProgressDeadline", json!(600_000_000_000_i64)),
        ("Stagger", json!(30_000_000_000_i64)),
    ]
}

fn group(
    g: &mut Map<String, Value>,
    kind: &str,
    job_update: Option<&Map<String, Value>>,
    job_reschedule: Option<&Map<String, Value>>,
    job_migrate: Option<&Map<String, Value>>,
) {
    complete(g, skeleton::group());
    fill(g, &[("Name", json!("")), ("Count", json!(1))]);
    let batch = matches!(kind, "batch" | "sysbatch");
    let mut disk = object(g.get("EphemeralDisk")).unwrap_or_default();
    fill(&mut disk, &[("Migrate", json!(false)), ("SizeMB", json!(300)), ("Sticky", json!(false))]);
    g.insert("EphemeralDisk".into(), Value::Object(disk));

    let mut restart = object(g.get("RestartPolicy")).unwrap_or_default();
    let (attempts, interval) = if batch { (3, 86_400_000_000_000_i64) } else { (2, 1_800_000_000_000) };
    fill(
        &mut restart,
        &[
            ("Attempts", json!(attempts)),
            ("Interval", json!(interval)),
            ("Delay", json!(15_000_000_000_i64)),
            ("Mode", json!("fail")),
            ("RenderTemplates", json!(false)),
        ],
    );
    g.insert("RestartPolicy".into(), Value::Object(restart.clone()));

    if !matches!(kind, "system" | "sysbatch") {
        let mut r = merged(job_reschedule, object(g.get("ReschedulePolicy")));
        if kind == "batch" {
            fill(
                &mut r,
                &[
                    ("Attempts", json!(1)),
                    ("Interval", json!(86_400_000_000_000_i64)),
                    ("Delay", json!(5_000_000_000_i64)),
                    ("DelayFunction", json!("constant")),
                    ("MaxDelay", json!(0)),
                    ("Unlimited", json!(false)),
                ],
            );
        } else {
            fill(
                &mut r,
                &[
                    ("Attempts", json!(0)),
                    ("Interval", json!(0)),
                    ("Delay", json!(30_000_000_000_i64)),
                    ("DelayFunction", json!("exponential")),
                    ("MaxDelay", json!(3_600_000_000_000_i64)),
                    ("Unlimited", json!(true)),
                ],
            );
        }
        g.insert("ReschedulePolicy".into(), Value::Object(r));
    }
    if kind == "service" {
        let mut m = merged(job_migrate, object(g.get("Migrate")));
        fill(
            &mut m,
            &[
                ("HealthCheck", json!("checks")),
                ("HealthyDeadline", json!(300_000_000_000_i64)),
                ("MaxParallel", json!(1)),
                ("MinHealthyTime", json!(10_000_000_000_i64)),
            ],
        );
        g.insert("Migrate".into(), Value::Object(m));
        if let Some(Value::Object(d)) = g.get_mut("Disconnect") {
            let null = Value::Null;
            fill(
                d,
                &[
                    ("LostAfter", json!(0)),
                    ("StopOnClientAfter", null),
                    ("Replace", json!(true)),
                    ("Reconcile", json!("best_score")),
                ],
            );
        }
    }
    if kind == "service" || kind == "system" {
        let mut u = merged(job_update, object(g.get("Update")));
        fill(&mut u, &update_defaults());
        g.insert("Update".into(), Value::Object(u));
    }
    each(g, "Tasks", |t| task(t, &restart));
}

fn merged(base: Option<&Map<String, Value>>, own: Option<Map<String, Value>>) -> Map<String, Value> {
    let mut map = base.cloned().unwrap_or_default();
    for (key, value) in own.unwrap_or_default() {
        if !value.is_null() {
            map.insert(key, value);
        }
    }
    map
}

fn task(t: &mut Map<String, Value>, restart: &Map<String, Value>) {
    complete(t, skeleton::task());
    fill(t, &[("KillTimeout", json!(5_000_000_000_i64)), ("KillSignal", json!(""))]);
    let mut r = object(t.get("Resources")).unwrap_or_default();
    complete(&mut r, skeleton::resources());
    let cores = r.get("Cores").and_then(Value::as_i64).unwrap_or(0);
    fill(&mut r, &[("Cores", json!(0)), ("MemoryMB", json!(300)), ("CPU", json!(if cores > 0 { 0 } else { 100 }))]);
    t.insert("Resources".into(), Value::Object(r));
    let mut log = object(t.get("LogConfig")).unwrap_or_default();
    fill(
        &mut log,
        &[("Disabled", json!(false)), ("Enabled", Value::Null), ("MaxFileSizeMB", json!(10)), ("MaxFiles", json!(10))],
    );
    t.insert("LogConfig".into(), Value::Object(log));
    let mut own = object(t.get("RestartPolicy")).unwrap_or_default();
    for (key, value) in restart {
        if own.get(key).is_none_or(Value::is_null) {
            own.insert(key.clone(), value.clone());
        }
    }
    t.insert("RestartPolicy".into(), Value::Object(own));
    each(t, "Templates", |tmpl| {
        complete(tmpl, skeleton::template());
        fill(
            tmpl,
            &[
                ("ChangeMode", json!("restart")),
                ("ChangeSignal", json!("")),
                ("DestPath", json!("")),
                ("EmbeddedTmpl", json!("")),
                ("Envvars", json!(false)),
                ("ErrMissingKey", json!(false)),
                ("LeftDelim", json!("{{")),
                ("RightDelim", json!("}}")),
                ("Perms", json!("0644")),
                ("SourcePath", json!("")),
                ("Splay", json!(5_000_000_000_i64)),
                ("VaultGrace", json!(0)),
                ("Once", json!(false)),
            ],
        );
    });
}

/// The server's form: what the API keeps optional has a value, and implied constraints are written down.
pub(crate) fn server(job: &mut Value) {
    api(job);
    let Some(job) = job.as_object_mut() else { return };
    let has_update = matches!(str_of(job, "Type"), "service" | "system");
    for key in ["Migrate", "Reschedule"] {
        job.remove(key);
    }
    fill(job, &[("DispatchIdempotencyToken", json!("")), ("SubmitTime", json!(0))]);
    if str_of(job, "NodePool").is_empty() {
        job.insert("NodePool".into(), json!("default"));
    }
    if job.get("Datacenters").is_none_or(|d| d.as_array().is_none_or(Vec::is_empty)) {
        job.insert("Datacenters".into(), json!(["*"]));
    }
    // The server keeps only these two of a job's own update block; the groups hold the rest.
    let update = object(job.get("Update")).unwrap_or_default();
    let keep = |key: &str| if has_update { update.get(key).cloned().unwrap_or(json!(0)) } else { json!(0) };
    job.insert(
        "Update".into(),
        json!({
            "AutoPromote": false, "AutoRevert": false, "Canary": 0, "HealthCheck": "", "HealthyDeadline": 0,
            "MaxParallel": keep("MaxParallel"), "MinHealthyTime": 0, "ProgressDeadline": 0, "Stagger": keep("Stagger"),
        }),
    );
    each(job, "TaskGroups", |g| {
        fill(g, &[("PreventRescheduleOnLost", json!(false))]);
        let mut signals: Vec<String> = Vec::new();
        each(g, "Tasks", |t| {
            server_task(t);
            let mut want = vec![str_of(t, "KillSignal").to_owned()];
            each(t, "Templates", |tmpl| want.push(str_of(tmpl, "ChangeSignal").to_owned()));
            signals.extend(want.into_iter().filter(|s| !s.is_empty()));
        });
        signals.sort();
        signals.dedup();
        if !signals.is_empty() {
            let wanted = json!({"LTarget": "${attr.os.signals}", "Operand": "set_contains", "RTarget": signals.join(",")});
            let slot = g.entry("Constraints").or_insert(Value::Null);
            if !slot.is_array() {
                *slot = json!([]);
            }
            if let Value::Array(list) = slot
                && !list.contains(&wanted)
            {
                list.push(wanted);
            }
        }
    });
}

fn server_task(t: &mut Map<String, Value>) {
    fill(
        t,
        &[
            ("CSIPluginConfig", Value::Null),
            (
                "Identity",
                json!({
                    "Audience": ["nomadproject.io"], "ChangeMode": "", "ChangeSignal": "", "Env": false, "ExtraClaims": null,
                    "File": false, "Filepath": "", "Name": "default", "ServiceName": "", "TTL": 0,
                }),
            ),
        ],
    );
    if let Some(Value::Object(r)) = t.get_mut("Resources") {
        fill(r, &[("DiskMB", json!(0)), ("IOPS", json!(0)), ("MemoryMaxMB", json!(0)), ("SecretsMB", json!(0))]);
    }
    if let Some(Value::Object(log)) = t.get_mut("LogConfig") {
        log.remove("Enabled");
    }
    if let Some(Value::Object(l)) = t.get_mut("Lifecycle") {
        fill(l, &[("Hook", json!("")), ("Sidecar", json!(false))]);
    }
}
