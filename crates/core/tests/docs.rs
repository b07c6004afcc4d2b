//! docs/configuration.md and docs/timeouts.md name every key of the configuration, with the default that the code has.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use curfew_core::config::Config;
use curfew_core::duration;
use curfew_core::kinds::Overrides;
use curfew_core::operation::Kind;
use serde_json::{Map, Value};

fn defaults() -> Map<String, Value> {
    match serde_json::to_value(Config::default()).unwrap() {
        Value::Object(keys) => keys,
        other => panic!("a configuration is not a table: {other}"),
    }
}

/// The section of a page, by its heading.
fn section(page: &str, heading: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(page);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let from = text.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("{page} has no section \"{heading}\"")).1;
    from.split("\n## ").next().unwrap_or_default().to_owned()
}

/// The rows of its tables whose first cell is a key in backticks; the other cells without theirs.
fn rows(section: &str) -> BTreeMap<String, Vec<String>> {
    let mut rows = BTreeMap::new();
    for line in section.lines().filter(|l| l.starts_with("| `")) {
        let mut cells = line.trim_matches('|').split('|').map(|c| c.trim().trim_matches('`').to_owned());
        let key = cells.next().unwrap();
        assert!(rows.insert(key.clone(), cells.collect()).is_none(), "{key} has two rows");
    }
    rows
}

fn is_duration(value: &Value) -> bool {
    value.as_str().is_some_and(|s| duration::parse(s).is_ok())
}

fn as_written(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Array(all) => all.iter().map(as_written).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn same(written: &str, default: &Value) -> bool {
    match duration::parse(&as_written(default)) {
        // `24h` and `1day` are the same.
        Ok(d) if is_duration(default) => duration::parse(written).ok() == Some(d),
        _ => written == as_written(default),
    }
}

#[test]
fn configuration_md_has_every_key_with_its_default_and_its_variable() {
    let (rows, defaults) = (rows(&section("configuration.md", "Keys")), defaults());
    for (key, default) in &defaults {
        let row = rows.get(key).unwrap_or_else(|| panic!("docs/configuration.md has no row for {key}"));
        assert!(same(&row[1], default), "docs/configuration.md: {key} is {default} by default, not {}", row[1]);
        let variable = if default.is_object() { "–".to_owned() } else { format!("CURFEW_{}", key.to_uppercase()) };
        assert_eq!(row[2], variable, "docs/configuration.md: the variable of {key}");
        assert_eq!(row[0] == "duration", is_duration(default), "docs/configuration.md: the type of {key}");
    }
    for key in rows.keys() {
        assert!(defaults.contains_key(key), "docs/configuration.md explains {key}, which is no key of the configuration");
    }
}

/// `[kinds.NAME]` has a table of its own, with what a kind has when nothing is set.
#[test]
fn configuration_md_has_every_key_of_a_kind() {
    let rows = rows(&section("configuration.md", "Kinds"));
    let mut config = Config::default();
    let all = config.kind(Kind::Stop);
    config.kinds.insert(
        Kind::Stop,
        Overrides {
            lease_timeout: Some(all.lease_timeout),
            attempts: Some(1),
            backoff_first: Some(all.backoff.first),
            backoff_longest: Some(all.backoff.longest),
            concurrency: Some(all.concurrency),
        },
    );
    let Value::Object(keys) = serde_json::to_value(&config).unwrap()["kinds"]["stop"].clone() else { panic!("a table") };
    assert_eq!(rows.keys().collect::<BTreeSet<_>>(), keys.keys().collect::<BTreeSet<_>>());
    for key in ["backoff_first", "backoff_longest"] {
        assert!(same(&rows[key][0], &keys[key]), "docs/configuration.md: kinds.NAME.{key} is {}", keys[key]);
    }
}

#[test]
fn timeouts_md_has_every_duration_with_its_default() {
    let (rows, defaults) = (rows(&section("timeouts.md", "Curfew's own")), defaults());
    for (key, default) in defaults.iter().filter(|(_, v)| is_duration(v)) {
        let row = rows.get(key).unwrap_or_else(|| panic!("docs/timeouts.md has no row for {key}"));
        assert!(same(&row[0], default), "docs/timeouts.md: {key} is {default} by default, not {}", row[0]);
    }
    for key in rows.keys() {
        assert!(
            defaults.get(key).is_some_and(is_duration),
            "docs/timeouts.md explains {key}, which is no timeout of the configuration"
        );
    }
}
