//! A policy's rules: HCL or JSON in, grants out, with Nomad's words for what is wrong.

use serde_json::{Map, Value};

pub(crate) const DENY: &str = "deny";

/// What is granted as a whole, where there are no capabilities. Of several, the greatest; `deny` ends it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Deny,
    #[default]
    None,
    /// Of plugins only.
    List,
    Read,
    Write,
}

impl Level {
    pub(crate) fn and(self, other: Self) -> Self {
        if self == Self::Deny || other == Self::Deny { Self::Deny } else { self.max(other) }
    }

    /// `scale` says something of namespaces only; Nomad takes it everywhere.
    fn of(policy: &str) -> Self {
        match policy {
            "deny" => Self::Deny,
            "list" => Self::List,
            "read" => Self::Read,
            "write" => Self::Write,
            _ => Self::None,
        }
    }
}

const READ: &[&str] = &[
    "list-jobs",
    "parse-job",
    "read-job",
    "csi-list-volume",
    "csi-read-volume",
    "read-job-scaling",
    "list-scaling-policies",
    "read-scaling-policy",
    "host-volume-read",
];

/// What `write` grants beyond `read`.
const WRITE: &[&str] = &[
    "scale-job",
    "submit-job",
    "dispatch-job",
    "read-logs",
    "read-fs",
    "alloc-exec",
    "alloc-lifecycle",
    "csi-mount-volume",
    "csi-write-volume",
    "submit-recommendation",
    "host-volume-create",
];

const SCALE: &[&str] =
    &["list-scaling-policies", "read-scaling-policy", "read-job-scaling", "scale-job", "read-job", "submit-recommendation"];

/// Those that no short hand grants.
const SINGLE: &[&str] = &[
    "deny",
    "alloc-node-exec",
    "sentinel-override",
    "csi-register-plugin",
    "host-volume-register",
    "host-volume-write",
    "host-volume-delete",
    "register-job",
    "revert-job",
    "deregister-job",
    "purge-job",
    "evaluate-job",
    "plan-job",
    "tag-job-version",
    "stable-job",
    "fail-deployment",
    "pause-deployment",
    "promote-deployment",
    "unblock-deployment",
    "cancel-deployment",
    "set-alloc-health-deployment",
    "gc-allocation",
    "pause-allocation",
    "force-periodic-job",
    "delete-service-registration",
];

const OPERATOR: &[&str] = &["deny", "snapshot-save", "license-read", "keyring-rotate", "keyring-read", "keyring-delete"];

fn is_capability(name: &str) -> bool {
    [READ, WRITE, SCALE, SINGLE].iter().any(|list| list.contains(&name))
}

/// What stands between the braces.
type Block = Map<String, Value>;

/// Rules, read and expanded.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub namespaces: Vec<(String, Vec<String>)>,
    /// Namespace and path.
    pub variables: Vec<((String, String), Vec<String>)>,
    pub pools: Vec<(String, Vec<String>)>,
    pub agent: Level,
    pub node: Level,
    pub operator: Level,
    pub plugin: Level,
}

/// Blocks with a label, those without, and those that say nothing here: no volumes, quotas and the like exist.
const LABELLED: [&str; 3] = ["namespace", "node_pool", "host_volume"];
const SINGLES: [&str; 6] = ["agent", "node", "operator", "sentinel", "quota", "plugin"];

impl Rules {
    /// The error is what Nomad says after `failed to parse rules: `.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut rules = Self::default();
        if text.is_empty() {
            return Ok(rules);
        }
        let tree = tree(text)?;
        if !tree.keys().any(|k| LABELLED.contains(&k.as_str()) || SINGLES.contains(&k.as_str())) {
            return Err(format!("Invalid policy: {text}"));
        }
        for (name, block) in labelled(&tree, "namespace")? {
            rules.namespace(name, block)?;
        }
        for (name, block) in labelled(&tree, "node_pool")? {
            if !is_name(name, "-_*") {
                return Err(format!("Invalid node pool name '{name}'"));
            }
            let policy = policy(block);
            if !policy.is_empty() && !is_policy(policy) {
                return Err(format!("Invalid node pool policy '{policy}' for '{name}'"));
            }
            let mut grants = list(block, "capabilities");
            if let Some(bad) = grants.iter().find(|g| !["delete", "deny", "read", "write"].contains(&g.as_str())) {
                return Err(format!("Invalid node pool capability '{bad}' for '{name}'"));
            }
            let short: &[&str] = match policy {
                "deny" => &["deny"],
                "read" => &["read"],
                "write" => &["delete", "read", "write"],
                _ => &[],
            };
            grants.extend(short.iter().map(|s| (*s).to_owned()));
            rules.pools.push((name.to_owned(), grants));
        }
        for (name, _) in labelled(&tree, "host_volume")? {
            if !is_name(name, "-*") {
                return Err(format!("Invalid host volume name: &acl.HostVolumePolicy{{Name:{name:?}}}"));
            }
        }
        rules.singles(&tree)?;
        Ok(rules)
    }

    fn namespace(&mut self, name: &str, block: &Block) -> Result<(), String> {
        let (policy, mut grants) = (policy(block), list(block, "capabilities"));
        let shown = || {
            let capabilities: Vec<String> = grants.iter().map(|g| format!("{g:?}")).collect();
            let capabilities =
                if grants.is_empty() { "[]string(nil)".to_owned() } else { format!("[]string{{{}}}", capabilities.join(", ")) };
            let variables = if block.contains_key("variables") { "0x0" } else { "nil" };
            format!(
                "&acl.NamespacePolicy{{Name:{name:?}, Policy:{policy:?}, Capabilities:{capabilities}, \
                 Variables:(*acl.VariablesPolicy)({variables})}}"
            )
        };
        if !is_name(name, "-*") {
            return Err(format!("Invalid namespace name: {}", shown()));
        }
        if !policy.is_empty() && !is_policy(policy) {
            return Err(format!("Invalid namespace policy: {}", shown()));
        }
        if let Some(bad) = grants.iter().find(|g| !is_capability(g)) {
            return Err(format!("Invalid namespace capability '{bad}': {}", shown()));
        }
        let short: &[&[&str]] = match policy {
            "deny" => &[&["deny"]],
            "read" => &[READ],
            "write" => &[READ, WRITE],
            "scale" => &[SCALE],
            _ => &[],
        };
        grants.extend(short.iter().flat_map(|l| l.iter()).map(|s| (*s).to_owned()));
        self.namespaces.push((name.to_owned(), grants));
        if let Some(variables) = block.get("variables") {
            self.variables(name, variables)?;
        }
        Ok(())
    }

    fn variables(&mut self, namespace: &str, block: &Value) -> Result<(), String> {
        let none = Block::new();
        let paths = labelled(block.as_object().unwrap_or(&none), "path")?;
        if paths.is_empty() {
            return Err(format!("Invalid variable policy: no variable paths in namespace {namespace}"));
        }
        for (path, block) in paths {
            if path.is_empty() {
                return Err(format!("Invalid missing variable path in namespace {namespace}"));
            }
            if path.starts_with('/') {
                return Err(format!("Invalid variable path {path:?} in namespace {namespace}: cannot start with a leading '/'`"));
            }
            let mut grants = list(block, "capabilities");
            if let Some(bad) = grants.iter().find(|g| !["list", "read", "write", "destroy", "deny"].contains(&g.as_str())) {
                return Err(format!("Invalid variable capability '{bad}' in namespace {namespace}"));
            }
            if grants.iter().any(|g| g == DENY) {
                grants = vec![DENY.to_owned()];
            } else if grants.iter().any(|g| g == "read") {
                grants.push("list".to_owned());
            }
            self.variables.push(((namespace.to_owned(), path.to_owned()), grants));
        }
        Ok(())
    }

    fn singles(&mut self, tree: &Block) -> Result<(), String> {
        let mut extra: Vec<&str> =
            tree.iter().filter(|(k, v)| SINGLES.contains(&k.as_str()) && v.is_array()).map(|(k, _)| k.as_str()).collect();
        for (key, value) in tree.iter().filter(|(k, _)| !LABELLED.contains(&k.as_str()) && !SINGLES.contains(&k.as_str())) {
            extra.push(key);
            extra.extend(
                value.as_object().into_iter().flat_map(|m| m.iter()).filter(|(_, v)| v.is_object()).map(|(k, _)| k.as_str()),
            );
        }
        if !extra.is_empty() {
            return Err(format!("Invalid or duplicate policy keys: {}", extra.join(", ")));
        }
        for key in SINGLES {
            let Some(value) = tree.get(key) else { continue };
            let Some(block) = value.as_object() else {
                return Err(format!("Failed to parse ACL Policy: root.{key}: not an object type for struct (*ast.LiteralType)"));
            };
            let policy = policy(block);
            let capable = ["operator", "sentinel"].contains(&key);
            let known = is_policy(policy) || (key == "plugin" && policy == "list") || (capable && policy.is_empty());
            if !known || (key == "plugin" && policy == "scale") {
                let mut name = key.to_owned();
                name[..1].make_ascii_uppercase();
                return Err(format!("Invalid {key} policy: &acl.{name}Policy{{Policy:{policy:?}}}"));
            }
            if key == "operator"
                && let Some(bad) = list(block, "capabilities").iter().find(|c| !OPERATOR.contains(&c.as_str()))
            {
                return Err(format!("Invalid operator capability '{bad}'"));
            }
            match key {
                "agent" => self.agent = Level::of(policy),
                "node" => self.node = Level::of(policy),
                "operator" => self.operator = Level::of(policy),
                "plugin" => self.plugin = Level::of(policy),
                _ => {}
            }
        }
        Ok(())
    }
}

/// HCL and JSON alike as nested objects; a block that occurs twice is a list.
fn tree(text: &str) -> Result<Block, String> {
    let failed = |e: &dyn std::fmt::Display| format!("Failed to parse ACL Policy: {e}");
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|e| failed(&e));
    }
    crate::job::hcl::shallow(text).map_err(|e| failed(&e))?;
    hcl::from_str(&spread(text)).map_err(|e| failed(&e))
}

/// Policies are HCL 1, where a line may hold several attributes and blocks; HCL 2 wants a line for each.
fn spread(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let mut chars = text.chars().peekable();
    let (mut in_list, mut is_value) = (0_usize, false);
    while let Some(c) = chars.next() {
        match c {
            '#' => {
                while chars.next_if(|c| *c != '\n').is_some() {}
                continue;
            }
            '/' if chars.peek() == Some(&'/') => {
                while chars.next_if(|c| *c != '\n').is_some() {}
                continue;
            }
            '}' => out.push('\n'),
            _ => {}
        }
        out.push(c);
        match c {
            '=' => is_value = true,
            '[' => in_list += 1,
            ']' => in_list = in_list.saturating_sub(1),
            '"' => {
                let mut escaped = false;
                for c in chars.by_ref() {
                    out.push(c);
                    if c == '"' && !escaped {
                        break;
                    }
                    escaped = c == '\\' && !escaped;
                }
            }
            _ => {}
        }
        let ends_value = is_value && in_list == 0 && matches!(c, '"' | ']');
        if ends_value || matches!(c, '{' | '}') {
            out.push('\n');
            is_value = false;
        }
    }
    out
}

/// The blocks of a kind by their labels, however often it occurs. Without a label the name is empty.
fn labelled<'a>(tree: &'a Block, kind: &str) -> Result<Vec<(&'a str, &'a Block)>, String> {
    let mut out = Vec::new();
    let Some(all) = tree.get(kind) else { return Ok(out) };
    let each = |v: &'a Value| match v {
        Value::Array(list) => list.iter().collect::<Vec<_>>(),
        one => vec![one],
    };
    for group in each(all) {
        let Some(group) = group.as_object() else {
            return Err(format!("Failed to parse ACL Policy: root.{kind}: not an object type for struct (*ast.LiteralType)"));
        };
        if group.is_empty() || group.values().any(|v| !v.is_object() && !v.is_array()) || group.contains_key("capabilities") {
            out.push(("", group));
            continue;
        }
        for (label, blocks) in group {
            out.extend(each(blocks).into_iter().filter_map(|b| Some((label.as_str(), b.as_object()?))));
        }
    }
    Ok(out)
}

fn policy(block: &Block) -> &str {
    block.get("policy").and_then(Value::as_str).unwrap_or_default()
}

fn list(block: &Block, key: &str) -> Vec<String> {
    block.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn is_policy(text: &str) -> bool {
    ["deny", "read", "write", "scale"].contains(&text)
}

/// Up to 128 letters, digits and what else is allowed.
pub(crate) fn is_name(text: &str, also: &str) -> bool {
    (1..=128).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c))
}
