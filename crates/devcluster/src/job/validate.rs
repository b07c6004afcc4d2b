//! Nomad's validation of a registered job, with its texts (a nested list of errors, one a line).

use serde_json::Value;

use super::spec::{int, items, text};
use crate::duration;

/// A list of errors as Go's multierror prints it.
#[derive(Debug, Default)]
pub(crate) struct Errors(Vec<String>);

impl Errors {
    fn push(&mut self, message: impl Into<String>) {
        self.0.push(message.into());
    }

    fn nest(&mut self, prefix: &str, inner: Self) {
        if !inner.0.is_empty() {
            self.0.push(format!("{prefix}: {}", inner.print()));
        }
    }

    /// A list within the list, without a word before it.
    fn inline(&mut self, inner: Self) {
        if !inner.0.is_empty() {
            self.0.push(inner.print());
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn messages(&self) -> &[String] {
        &self.0
    }

    pub(crate) fn print(&self) -> String {
        let head = if self.0.len() == 1 { "1 error occurred:".to_owned() } else { format!("{} errors occurred:", self.0.len()) };
        let body: String = self.0.iter().map(|m| format!("\n\t* {m}")).collect();
        format!("{head}{body}\n\n")
    }
}

/// Checks the server's form of a job. `raw` is what was sent: some rules look at what the author wrote.
pub(crate) fn job(job: &Value, raw: &Value, namespaces: &[String], pools: &[String]) -> Errors {
    let mut e = Errors::default();
    let id = text(job, "ID");
    if id.is_empty() {
        e.push("Missing job ID");
    } else if id.contains(' ') {
        e.push("Job ID contains a space");
    } else if id.contains('\0') {
        e.push("Job ID contains a null character");
    }
    if text(job, "Name").contains('\0') {
        e.push("Job Name contains a null character");
    }
    let kind = text(job, "Type");
    if kind.is_empty() {
        e.push("Missing job type");
    } else if super::JobKind::parse(&kind).is_none() {
        e.push(format!("Invalid job type: {kind:?}"));
    }
    let priority = int(job, "Priority").unwrap_or(50);
    if !(1..=100).contains(&priority) {
        e.push("job priority must be between [1, 100]");
    }
    for dc in items(raw, "Datacenters") {
        if dc.as_str() == Some("") {
            e.push("Job datacenter must be non-empty string");
        }
    }
    let namespace = text(job, "Namespace");
    if !namespaces.contains(&namespace) {
        e.push(format!("job {id:?} is in nonexistent namespace {namespace:?}"));
    }
    let pool = text(job, "NodePool");
    if pool != "all" && !pools.contains(&pool) {
        e.push(format!("job {id:?} is in nonexistent node pool {pool:?}"));
    }
    let groups: Vec<&Value> = items(job, "TaskGroups").collect();
    if groups.is_empty() {
        e.push("Missing job task groups");
    }
    let mut names: Vec<String> = Vec::new();
    for (i, g) in groups.iter().enumerate() {
        let name = text(g, "Name");
        if name.is_empty() {
            e.push(format!("Job task group {} missing name", i + 1));
        } else if let Some(at) = names.iter().position(|n| *n == name) {
            e.push(format!("Job task group {} redefines '{name}' from group {}", i + 1, at + 1));
        }
        if kind == "system" && int(g, "Count").unwrap_or(1) > 1 {
            e.push(format!(
                "Job task group {name} has count {}. Count cannot exceed 1 with system scheduler",
                int(g, "Count").unwrap_or(1)
            ));
        }
        names.push(name.clone());
        let written = |v: &Value| v.get("Update").is_some_and(Value::is_object);
        let updates = written(raw) || items(raw, "TaskGroups").nth(i).is_some_and(written);
        e.nest(&format!("Task group {name} validation failed"), group(g, &kind, updates));
    }
    if let Some(p) = job.get("Periodic").filter(|p| p.is_object()) {
        e.inline(periodic(p));
    }
    if let Some(p) = job.get("ParameterizedJob").filter(|p| p.is_object()) {
        e.inline(parameterized(p));
    }
    if job.get("Periodic").is_some_and(Value::is_object) && !matches!(kind.as_str(), "batch" | "sysbatch") {
        e.push("Periodic can only be used with \"batch\" or \"sysbatch\" scheduler");
    }
    if job.get("ParameterizedJob").is_some_and(Value::is_object) && !matches!(kind.as_str(), "batch" | "sysbatch") {
        e.push("Parameterized job can only be used with \"batch\" or \"sysbatch\" scheduler");
    }
    e
}

fn periodic(p: &Value) -> Errors {
    let mut e = Errors::default();
    if p.get("Enabled") == Some(&Value::Bool(false)) {
        return e;
    }
    let (spec, specs): (String, Vec<&str>) = (text(p, "Spec"), items(p, "Specs").filter_map(Value::as_str).collect());
    if !spec.is_empty() && !specs.is_empty() {
        e.push("Only cron or crons may be used");
    }
    if spec.is_empty() && specs.is_empty() {
        e.push("Must specify a spec");
    }
    let zone = text(p, "TimeZone");
    // A machine without a time zone database knows none of them.
    let unknown = || !jiff::tz::db().is_definitively_empty() && jiff::tz::TimeZone::get(&zone).is_err();
    if !matches!(zone.as_str(), "" | "UTC" | "Local") && unknown() {
        e.push(format!("Invalid time zone {zone:?}: unknown time zone {zone}"));
    }
    match text(p, "SpecType").as_str() {
        "cron" => {
            for line in std::iter::once(spec.as_str()).filter(|s| !s.is_empty()).chain(specs) {
                if let Some(why) = crate::server::periodic::wrong(line) {
                    e.push(format!("Invalid cron spec {line:?}: {why}"));
                }
            }
        }
        other => e.push(format!("Unknown periodic specification type {other:?}")),
    }
    e
}

fn parameterized(p: &Value) -> Errors {
    let mut e = Errors::default();
    let payload = text(p, "Payload");
    if !matches!(payload.as_str(), "optional" | "required" | "forbidden") {
        e.push(format!("Unknown payload requirement: {payload:?}"));
    }
    let both: Vec<&str> =
        items(p, "MetaRequired").filter(|m| items(p, "MetaOptional").any(|o| o == *m)).filter_map(Value::as_str).collect();
    if !both.is_empty() {
        let both = both.join(" ");
        e.push(format!("Required and optional meta keys should be disjoint. Following keys exist in both: [{both}]"));
    }
    e
}

fn group(g: &Value, kind: &str, updates: bool) -> Errors {
    let mut e = Errors::default();
    if int(g, "Count").unwrap_or(1) < 0 {
        e.push("Task group count can't be negative");
    }
    let tasks: Vec<&Value> = items(g, "Tasks").collect();
    if tasks.is_empty() {
        e.push("Missing tasks for task group");
    }
    if let Some(r) = g.get("RestartPolicy").filter(|r| r.is_object()) {
        let mode = text(r, "Mode");
        if mode != "fail" && mode != "delay" {
            e.push(format!("Unsupported restart mode: {mode:?}"));
        }
    }
    let update = g.get("Update").filter(|u| u.is_object());
    if updates && !matches!(kind, "service" | "system") {
        e.push(format!("Job type {kind:?} does not allow update block"));
    }
    if let Some(u) = update {
        e.0.extend(update_rules(u).0);
    }
    let progress_deadline = update.and_then(|u| int(u, "ProgressDeadline")).unwrap_or(0);
    let leaders = tasks.iter().filter(|t| t.get("Leader") == Some(&Value::Bool(true))).count();
    if leaders > 1 {
        e.push("Only one task may be marked as leader");
    }
    let mains = tasks.iter().filter(|t| t.get("Lifecycle").is_none_or(Value::is_null)).count();
    if mains == 0 && !tasks.is_empty() {
        e.push(format!("Task group {} must have at least one main task", text(g, "Name")));
    }
    let mut names: Vec<String> = Vec::new();
    for (i, t) in tasks.iter().enumerate() {
        let name = text(t, "Name");
        if name.is_empty() {
            e.push(format!("Task {} missing name", i + 1));
        } else if let Some(at) = names.iter().position(|n| *n == name) {
            e.push(format!("Task {} redefines '{name}' from task {}", i + 1, at + 1));
        }
        names.push(name.clone());
        e.nest(&format!("Task {name} validation failed"), task(t, kind, progress_deadline));
    }
    e
}

fn update_rules(u: &Value) -> Errors {
    let mut e = Errors::default();
    let ns = |key| int(u, key).unwrap_or(0);
    if ns("MaxParallel") < 0 {
        e.push(format!("Max parallel can not be less than zero: {} < 0", ns("MaxParallel")));
    }
    if ns("Canary") < 0 {
        e.push(format!("Canary count can not be less than zero: {} < 0", ns("Canary")));
    }
    if ns("Canary") == 0 && u.get("AutoPromote") == Some(&Value::Bool(true)) {
        e.push("Auto Promote requires a Canary count greater than zero");
    }
    if ns("MinHealthyTime") < 0 {
        e.push(format!("Minimum healthy time may not be less than zero: {}", duration::go(ns("MinHealthyTime"))));
    }
    if ns("HealthyDeadline") <= 0 {
        e.push(format!("Healthy deadline must be greater than zero: {}", duration::go(ns("HealthyDeadline"))));
    }
    if ns("ProgressDeadline") < 0 {
        e.push(format!("Progress deadline must be zero or greater: {}", duration::go(ns("ProgressDeadline"))));
    }
    if ns("MinHealthyTime") >= ns("HealthyDeadline") {
        e.push(format!(
            "Minimum healthy time must be less than healthy deadline: {} > {}",
            duration::go(ns("MinHealthyTime")),
            duration::go(ns("HealthyDeadline"))
        ));
    }
    if ns("ProgressDeadline") != 0 && ns("HealthyDeadline") >= ns("ProgressDeadline") {
        e.push(format!(
            "Healthy deadline must be less than progress deadline: {} > {}",
            duration::go(ns("HealthyDeadline")),
            duration::go(ns("ProgressDeadline"))
        ));
    }
    e
}

fn task(t: &Value, kind: &str, progress_deadline: i64) -> Errors {
    let mut e = Errors::default();
    let name = text(t, "Name");
    if name.contains('/') || name.contains('\\') {
        e.push("Task name cannot include slashes");
    }
    if text(t, "Driver").is_empty() {
        e.push("Missing task driver");
    }
    let kill_timeout = int(t, "KillTimeout").unwrap_or(0);
    if kill_timeout < 0 {
        e.push("KillTimeout must be a positive value");
    } else if kind == "service" && progress_deadline > 0 && kill_timeout > progress_deadline {
        e.push(format!(
            "KillTimout ({}) longer than the group's ProgressDeadline ({})",
            duration::go(kill_timeout),
            duration::go(progress_deadline)
        ));
    }
    if int(t, "ShutdownDelay").unwrap_or(0) < 0 {
        e.push("ShutdownDelay must be a positive value");
    }
    if let Some(l) = t.get("Lifecycle").filter(|l| l.is_object()) {
        match text(l, "Hook").as_str() {
            "prestart" | "poststart" | "poststop" => {}
            "" => e.push("no lifecycle hook provided"),
            other => e.push(format!("invalid hook: {other}")),
        }
    }
    for (i, tmpl) in items(t, "Templates").enumerate() {
        if text(tmpl, "DestPath").is_empty() {
            e.push(format!("Template {} validation failed: Must specify a destination for the template", i + 1));
        }
        if text(tmpl, "ChangeMode") == "signal" && text(tmpl, "ChangeSignal").is_empty() {
            e.push(format!("Template {} validation failed: Must specify signal value when change mode is signal", i + 1));
        }
    }
    e
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn the_kill_timeout_text_is_nomads() {
        let raw = json!({"ID": "pd", "Type": "service", "TaskGroups": [{"Name": "g", "Tasks": [
            {"Name": "t", "Driver": "raw_exec", "KillTimeout": 86_400_000_000_000_i64}]}]});
        let mut job = raw.clone();
        crate::job::canonical::server(&mut job);
        let text = super::job(&job, &raw, &["default".into()], &["default".into()]).print();
        assert_eq!(
            text,
            "1 error occurred:\n\t* Task group g validation failed: 1 error occurred:\n\t* Task t validation failed: \
             1 error occurred:\n\t* KillTimout (24h0m0s) longer than the group's ProgressDeadline (10m0s)\n\n\n\n\n\n"
        );
    }
}
