//! Templates, as far as a cluster for trials needs them: literal text, `env`, and Nomad variables.
//!
//! Understood: `{{ env "NAME" }}`, `{{ with nomadVar "path" }}…{{ .key }}…{{ end }}`, `{{ (nomadVar "path").key }}`.
//! Anything else is an error of the task, with the text that was not understood.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::env::{self, Dirs};
use super::runner::AllocRunner;
use super::task::TaskRunner;
use crate::core::Core;
use crate::job::{TaskSpec, Template};
use crate::state::{Alloc, Node, TaskEvent};

/// A path below `root`, whatever the author wrote.
pub(crate) fn inside(root: &Path, path: &str) -> Option<PathBuf> {
    let mut out = root.to_path_buf();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(p) => out.push(p),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(out)
}

pub(crate) fn render_all(
    core: &Core,
    alloc: &Alloc,
    task: &TaskSpec,
    dirs: &Dirs,
    env: &BTreeMap<String, String>,
    node: &Node,
) -> Result<BTreeMap<String, String>, String> {
    let mut more = BTreeMap::new();
    for t in &task.templates {
        let text = render(core, &alloc.job.spec.namespace, &t.text, env)?;
        let destination = env::interpolate(&t.destination, env, node);
        let local = destination
            .strip_prefix(&dirs.task.display().to_string())
            .map_or(destination.as_str(), |d| d.trim_start_matches('/'));
        let path = inside(&dirs.task, local).ok_or_else(|| format!("template destination escapes the task: {destination}"))?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| format!("failed to write template {destination}: {e}"))?;
        }
        std::fs::write(&path, &text).map_err(|e| format!("failed to write template {destination}: {e}"))?;
        if t.env {
            for line in text.lines() {
                if let Some((k, v)) = line.trim().split_once('=').filter(|(k, _)| !k.starts_with('#')) {
                    more.insert(k.trim().to_owned(), v.trim().trim_matches('"').to_owned());
                }
            }
        }
    }
    Ok(more)
}

/// Waits for a variable a template reads to change, then does what the template says. Never returns.
pub(crate) async fn watch(ar: &Arc<AllocRunner>, task: &TaskRunner) {
    let live: Vec<&Template> =
        task.spec().templates.iter().filter(|t| t.change_mode != "noop" && t.text.contains("nomadVar")).collect();
    let Some(core) = ar.node.core().filter(|_| !live.is_empty()) else {
        return std::future::pending().await;
    };
    let namespace = ar.alloc().job.spec.namespace.clone();
    let none = BTreeMap::new();
    let rendered = || -> Vec<Option<String>> { live.iter().map(|t| render(&core, &namespace, &t.text, &none).ok()).collect() };
    let mut before = rendered();
    let mut changes = core.changed.subscribe();
    loop {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
        let now = rendered();
        let changed: Vec<usize> = (0..live.len()).filter(|i| now[*i].is_some() && now[*i] != before[*i]).collect();
        if changed.is_empty() {
            continue;
        }
        before = now;
        ar.node.alive().await;
        if changed.iter().any(|i| live[*i].change_mode == "restart") {
            // The answer comes when the old process is gone; the task's own loop sees that first.
            let _ = task.restart_with(ar, TaskEvent::template_restart(ar.now())).await;
            continue;
        }
        for i in changed {
            let t = live[i];
            let dirs = Dirs::of(&core.config.data_dir.join("alloc"), &ar.id, task.name());
            if let (Some(path), Some(text)) = (inside(&dirs.task, &t.destination), &before[i]) {
                let _ = std::fs::write(path, text);
            }
            task.emit(ar, TaskEvent::template_signal(ar.now(), &t.change_signal));
            task.interrupt(&t.change_signal);
        }
    }
}

fn render(core: &Core, namespace: &str, text: &str, env: &BTreeMap<String, String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    // The variable of the enclosing `with`, when there is one; an absent one hides its block.
    let mut scope: Vec<Option<BTreeMap<String, String>>> = Vec::new();
    while let Some(at) = rest.find("{{") {
        if scope.iter().all(Option::is_some) {
            out.push_str(&rest[..at]);
        }
        let Some(end) = rest[at..].find("}}") else { return Err(format!("unclosed action in template: {rest}")) };
        let action = rest[at + 2..at + end].trim_matches(|c: char| c == '-' || c.is_whitespace());
        rest = &rest[at + end + 2..];
        let visible = scope.iter().all(Option::is_some);
        if let Some(arg) = action.strip_prefix("with nomadVar ") {
            scope.push(variable(core, namespace, quoted(arg)?));
        } else if action == "end" {
            scope.pop();
        } else if let Some(name) = action.strip_prefix("env ") {
            if visible {
                out.push_str(env.get(quoted(name)?).map_or("", String::as_str));
            }
        } else if let Some(key) = action.strip_prefix('.') {
            if visible {
                out.push_str(scope.last().and_then(Option::as_ref).and_then(|m| m.get(key)).map_or("", String::as_str));
            }
        } else if let Some((path, key)) = action.strip_prefix("(nomadVar ").and_then(|a| a.split_once(").")) {
            let found = variable(core, namespace, quoted(path)?);
            out.push_str(found.as_ref().and_then(|m| m.get(key)).map_or("", String::as_str));
        } else {
            return Err(format!("the dev cluster's templates do not know {{{{ {action} }}}}"));
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn quoted(text: &str) -> Result<&str, String> {
    text.trim()
        .strip_prefix('"')
        .and_then(|t| t.strip_suffix('"'))
        .ok_or_else(|| format!("not a quoted text in template: {text}"))
}

fn variable(core: &Core, namespace: &str, path: &str) -> Option<BTreeMap<String, String>> {
    core.read(|s| s.vars.get(&(namespace.to_owned(), path.to_owned())).map(|v| v.items.clone()))
}
