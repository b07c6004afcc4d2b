//! A task's directories, environment and interpolation.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::job::TaskSpec;
use crate::scheduler::feasible;
use crate::state::{Alloc, Node};

#[derive(Debug, Clone)]
pub(crate) struct Dirs {
    pub alloc: PathBuf,
    pub task: PathBuf,
    pub logs: PathBuf,
}

impl Dirs {
    pub(crate) fn of(data_dir: &Path, alloc: &str, task: &str) -> Self {
        let root = data_dir.join(alloc);
        Self { logs: root.join("alloc").join("logs"), alloc: root.join("alloc"), task: root.join(task) }
    }

    pub(crate) fn create(&self) -> std::io::Result<()> {
        for dir in [self.logs.clone(), self.alloc.join("data"), self.alloc.join("tmp")] {
            fs::create_dir_all(dir)?;
        }
        for dir in ["local", "secrets", "tmp"] {
            fs::create_dir_all(self.task.join(dir))?;
        }
        Ok(())
    }

    pub(crate) fn local(&self) -> PathBuf {
        self.task.join("local")
    }

    pub(crate) fn log(&self, task: &str, stream: &str) -> PathBuf {
        self.logs.join(format!("{task}.{stream}.0"))
    }
}

/// The `NOMAD_…` variables, the author's own over them.
pub(crate) fn environment(alloc: &Alloc, task: &TaskSpec, node: &Node, dirs: &Dirs, region: &str) -> BTreeMap<String, String> {
    let group = alloc.spec();
    let spec = &alloc.job.spec;
    let mut env: BTreeMap<String, String> = [
        ("NOMAD_ALLOC_DIR", dirs.alloc.display().to_string()),
        ("NOMAD_ALLOC_ID", alloc.id.clone()),
        ("NOMAD_ALLOC_INDEX", alloc.slot.to_string()),
        ("NOMAD_ALLOC_NAME", alloc.name()),
        ("NOMAD_CPU_LIMIT", task.cpu.to_string()),
        ("NOMAD_DC", node.config.datacenter.clone()),
        ("NOMAD_GROUP_NAME", group.name.clone()),
        ("NOMAD_JOB_ID", spec.id.clone()),
        ("NOMAD_JOB_NAME", spec.name.clone()),
        ("NOMAD_JOB_PARENT_ID", spec.parent_id.clone()),
        ("NOMAD_MEMORY_LIMIT", task.memory_mb.to_string()),
        ("NOMAD_NAMESPACE", spec.namespace.clone()),
        ("NOMAD_REGION", region.to_owned()),
        ("NOMAD_SECRETS_DIR", dirs.task.join("secrets").display().to_string()),
        ("NOMAD_SHORT_ALLOC_ID", alloc.id.chars().take(8).collect()),
        ("NOMAD_TASK_DIR", dirs.local().display().to_string()),
        ("NOMAD_TASK_NAME", task.name.clone()),
    ]
    .map(|(k, v)| (k.to_owned(), v))
    .into();
    env.retain(|_, v| !v.is_empty());
    for meta in [&spec.meta, &group.meta, &task.meta] {
        for (key, value) in meta {
            let clean: String = key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            env.insert(format!("NOMAD_META_{clean}"), value.clone());
            env.insert(format!("NOMAD_META_{}", clean.to_uppercase()), value.clone());
        }
    }
    for (key, value) in &task.env {
        let value = interpolate(value, &env, node);
        env.insert(key.clone(), value);
    }
    env
}

/// Replaces `${…}`: the task's environment, then `node.…`, `attr.…` and `meta.…`; what is unknown stays as it was written.
pub(crate) fn interpolate(text: &str, env: &BTreeMap<String, String>, node: &Node) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        out.push_str(&rest[..at]);
        let Some(end) = rest[at..].find('}') else { break };
        let whole = &rest[at..=at + end];
        let name = &whole[2..whole.len() - 1];
        let value = env
            .get(name)
            .or_else(|| name.strip_prefix("env[\"").and_then(|n| n.strip_suffix("\"]")).and_then(|n| env.get(n)))
            .cloned()
            .or_else(|| if name.contains('.') { feasible::target(whole, node) } else { None });
        match value {
            Some(v) => out.push_str(&v),
            None => out.push_str(whole),
        }
        rest = &rest[at + end + 1..];
    }
    out.push_str(rest);
    out
}

pub(crate) fn strings(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::Array(items)) => items.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect(),
        _ => Vec::new(),
    }
}
