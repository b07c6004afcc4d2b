//! Who may do what: an [`Acl`] is what the policies of one token amount to, and decides without knowing anything else. Tokens and
//! policies themselves are in [`tokens`], the language of their rules in [`rules`].

pub(crate) mod rules;
pub(crate) mod tokens;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use rules::{DENY, Level, Rules};

/// Every namespace at once, in a request.
pub(crate) const ALL: &str = "*";

type Grants = BTreeSet<String>;

/// Grants by name or by a pattern with `*` in it.
#[derive(Debug, Default)]
struct Scope(BTreeMap<String, Grants>);

impl Scope {
    /// What several policies grant adds up, except that one `deny` is the end of it.
    fn add(&mut self, name: &str, grants: &[String]) {
        let held = self.0.entry(name.to_owned()).or_default();
        if held.contains(DENY) {
            return;
        }
        if grants.iter().any(|g| g == DENY) {
            held.clear();
            held.insert(DENY.to_owned());
        } else {
            held.extend(grants.iter().cloned());
        }
    }

    /// What is said of exactly this name, else by the pattern that is nearest to it.
    fn of(&self, name: &str) -> Option<&Grants> {
        let literal = |pattern: &str| pattern.chars().filter(|c| *c != '*').count();
        self.0.get(name).filter(|_| !name.contains('*')).or_else(|| {
            let fitting = self.0.iter().filter(|(pattern, _)| pattern.contains('*') && crate::faults::matches(pattern, name));
            fitting.max_by_key(|(pattern, _)| literal(pattern)).map(|(_, grants)| grants)
        })
    }

    fn allows(&self, name: &str, grant: &str) -> bool {
        self.of(name).is_some_and(|g| g.contains(grant))
    }

    fn any(&self, grant: &str) -> bool {
        self.0.values().any(|g| g.contains(grant))
    }
}

fn grants_something(grants: &Grants) -> bool {
    !grants.is_empty() && !grants.contains(DENY)
}

/// What one token may do.
#[derive(Debug, Default)]
pub(crate) struct Acl {
    /// A management token, or a cluster without ACLs.
    everything: bool,
    namespaces: Scope,
    /// By namespace and path, with a NUL between them.
    variables: Scope,
    pools: Scope,
    agent: Level,
    node: Level,
    operator: Level,
    plugin: Level,
}

impl Acl {
    pub(crate) fn everything() -> Self {
        Self { everything: true, ..Self::default() }
    }

    pub(crate) fn of<'a>(policies: impl IntoIterator<Item = &'a Rules>) -> Self {
        let mut acl = Self::default();
        for p in policies {
            for (name, grants) in &p.namespaces {
                acl.namespaces.add(name, grants);
            }
            for ((namespace, path), grants) in &p.variables {
                // Here a `deny` is a grant among others, and none of those that are asked for.
                acl.variables.0.entry(format!("{namespace}\0{path}")).or_default().extend(grants.iter().cloned());
            }
            for (name, grants) in &p.pools {
                acl.pools.add(name, grants);
            }
            acl.agent = acl.agent.and(p.agent);
            acl.node = acl.node.and(p.node);
            acl.operator = acl.operator.and(p.operator);
            acl.plugin = acl.plugin.and(p.plugin);
        }
        acl
    }

    /// Whether any of these capabilities is granted in the namespace; in `*`, whether any namespace grants one.
    pub(crate) fn may(&self, namespace: &str, any_of: &[&str]) -> bool {
        let has = |c: &&str| (namespace == ALL && self.namespaces.any(c)) || self.namespaces.allows(namespace, c);
        self.everything || any_of.iter().any(has)
    }

    /// Whether anything at all is granted in the namespace.
    pub(crate) fn knows(&self, namespace: &str) -> bool {
        self.everything
            || (namespace == ALL && self.namespaces.0.values().any(grants_something))
            || self.namespaces.of(namespace).is_some_and(grants_something)
    }

    pub(crate) fn variable(&self, namespace: &str, path: &str, grant: &str) -> bool {
        self.everything || self.variables.allows(&format!("{namespace}\0{path}"), grant)
    }

    /// Whether any variable of the namespace is granted in any way.
    pub(crate) fn any_variable(&self, namespace: &str) -> bool {
        self.everything || self.variables.0.keys().any(|k| namespace == ALL || k.starts_with(namespace))
    }

    pub(crate) fn pool(&self, name: &str, grant: &str) -> bool {
        self.everything || self.pools.allows(name, grant)
    }

    pub(crate) fn node_read(&self) -> bool {
        self.everything || self.node >= Level::Read
    }

    pub(crate) fn node_write(&self) -> bool {
        self.everything || self.node >= Level::Write
    }

    pub(crate) fn agent_read(&self) -> bool {
        self.everything || self.agent >= Level::Read
    }

    pub(crate) fn operator_read(&self) -> bool {
        self.everything || self.operator >= Level::Read
    }

    pub(crate) fn operator_write(&self) -> bool {
        self.everything || self.operator >= Level::Write
    }

    /// `write` does not list, as in Nomad.
    pub(crate) fn plugin_list(&self) -> bool {
        self.everything || matches!(self.plugin, Level::List | Level::Read)
    }

    pub(crate) fn management(&self) -> bool {
        self.everything
    }
}
