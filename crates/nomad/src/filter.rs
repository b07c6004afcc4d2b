//! Prepared filters in Nomad's filter language (go-bexpr), built from typed inputs only.

use curfew_core::{AllocId, JobKey, Namespace};

/// A filter for the list of allocations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(String);

/// Ids in one filter at most.
const MAX_IDS: usize = 128;
/// And bytes of them, so that the URL stays far below what HTTP libraries take (64 KiB), escaped as it will be.
const MAX_BYTES: usize = 8 * 1024;

impl Filter {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Allocations with a live task and a sign of being told to end (design facts 9 and 13): a superset of what has a kill
    /// clock, small beside the healthy ones.
    pub fn told_to_end() -> Self {
        Self(
            r#"(any TaskStates as _, s { s.State != "dead" }) and (DesiredStatus != "run" or (any TaskStates as _, s { any s.Events as _, e { e.Type == "Killing" or e.Type == "Restart Signaled" or e.Type == "Terminated" } }))"#.into(),
        )
    }

    pub fn running() -> Self {
        Self(r#"ClientStatus == "running""#.into())
    }

    /// These allocations, in as many filters as it takes.
    pub fn ids(ids: &[AllocId]) -> Vec<Self> {
        batches(ids.iter().map(|id| regex_escape(id.as_str())))
            .map(|b| Self(format!("ID matches {}", quote(&one_of(&b)))))
            .collect()
    }

    /// The allocations of these jobs that are not over: by their status, or because a task is not dead (design fact 7).
    pub fn not_over_of(jobs: &[JobKey]) -> Vec<Self> {
        const NOT_OVER: &str = r#"(ClientStatus == "pending" or ClientStatus == "running" or ClientStatus == "unknown" or (any TaskStates as _, s { s.State != "dead" }))"#;
        let mut by_namespace: std::collections::BTreeMap<&Namespace, Vec<&JobKey>> = std::collections::BTreeMap::new();
        for key in jobs {
            by_namespace.entry(&key.namespace).or_default().push(key);
        }
        let mut filters = Vec::new();
        for (namespace, keys) in by_namespace {
            for batch in batches(keys.iter().map(|k| regex_escape(k.job.as_str()))) {
                let (ns, ids) = (quote(namespace.as_str()), quote(&one_of(&batch)));
                filters.push(Self(format!("Namespace == {ns} and JobID matches {ids} and {NOT_OVER}")));
            }
        }
        filters
    }
}

/// A filter for the list of jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobFilter(String);

impl JobFilter {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whatever there is.
    pub fn any() -> Self {
        Self(String::new())
    }

    /// Jobs submitted through Curfew.
    pub fn managed() -> Self {
        Self(r#"Meta.curfew_managed == "true""#.into())
    }

    /// Those of them that can be left over whatever the operations are: dead, waiting, or somebody's child.
    pub fn managed_and_odd() -> Self {
        Self(r#"Meta.curfew_managed == "true" and (Status != "running" or ParentID != "")"#.into())
    }

    /// For the page of a list of all namespaces that begins at `token` (`NAMESPACE.ID`). Nomad goes through namespaces by name, but seeks
    /// the beginning by comparing tokens as text, where "games.a" comes after "games-eu.b" though its namespace comes first. So of a
    /// token in "games-eu" the namespace "games" is left out, which was gone through already; else its jobs come again, without end.
    pub(crate) fn from(&self, token: &str) -> Self {
        let namespace = token.split_once('.').map_or("", |(namespace, _)| namespace);
        let before = namespace.match_indices('-').map(|(at, _)| format!("Namespace != {}", quote(&namespace[..at])));
        let own = (!self.0.is_empty()).then(|| format!("({})", self.0));
        Self(own.into_iter().chain(before).collect::<Vec<_>>().join(" and "))
    }

    pub(crate) fn one(key: &JobKey) -> Self {
        Self(format!("ID == {}", quote(key.job.as_str())))
    }
}

fn one_of(escaped: &[String]) -> String {
    format!("^({})$", escaped.join("|"))
}

fn batches(escaped: impl Iterator<Item = String>) -> impl Iterator<Item = Vec<String>> {
    let mut all: Vec<Vec<String>> = Vec::new();
    let mut bytes = 0;
    for id in escaped {
        match all.last_mut() {
            Some(batch) if batch.len() < MAX_IDS && bytes + id.len() < MAX_BYTES => {
                bytes += id.len() + 1;
                batch.push(id);
            }
            _ => {
                bytes = id.len() + 1;
                all.push(vec![id]);
            }
        }
    }
    all.into_iter()
}

/// Go's `regexp.QuoteMeta`.
fn regex_escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// A string literal. The grammar ends a literal at the first `"` whatever stands before it, then reads it with Go's
/// `strconv.Unquote`: so a quote must be written as `\x22`, a backslash as `\\`, control characters as escapes.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str(r"\x22"),
            '\\' => out.push_str(r"\\"),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_escaped_twice_regex_then_string() {
        let jobs = [JobKey::new("default", "a.b/dispatch-1"), JobKey::new("default", "é\"x\\`y"), JobKey::new("g", "z")];
        let filters = Filter::not_over_of(&jobs);
        assert_eq!(filters.len(), 2);
        let expected = r#"Namespace == "default" and JobID matches "^(a\\.b/dispatch-1|é\x22x\\\\`y)$" and "#;
        assert!(filters[0].as_str().starts_with(expected), "{}", filters[0].as_str());
        assert_eq!(quote("a\nb"), r#""a\u000ab""#);
    }

    #[test]
    fn a_page_of_all_namespaces_leaves_out_those_that_its_token_seems_to_come_before() {
        let one = JobFilter("A == 1 or B == 2".into());
        let seeking = r#"(A == 1 or B == 2) and Namespace != "a" and Namespace != "a-b""#;
        assert_eq!(one.from("a-b-c.job-1.x").as_str(), seeking);
        assert_eq!(one.from("a.job-1").as_str(), "(A == 1 or B == 2)");
        assert_eq!(JobFilter::any().from("a.job-1").as_str(), "");
        assert_eq!(JobFilter::any().from("a-b.c").as_str(), r#"Namespace != "a""#);
    }

    #[test]
    fn batches_are_bounded_by_count_and_by_bytes() {
        let ids: Vec<AllocId> = (0..300).map(|i| AllocId::from(format!("{i:036}"))).collect();
        let sizes: Vec<usize> = Filter::ids(&ids).iter().map(|f| f.as_str().matches('|').count() + 1).collect();
        assert_eq!(sizes, [128, 128, 44]);
        let long: Vec<JobKey> = (0..10).map(|i| JobKey::new("default", format!("{i}{}", "x".repeat(3000)))).collect();
        assert_eq!(Filter::not_over_of(&long).len(), 5);
        assert!(Filter::ids(&[]).is_empty());
    }
}
