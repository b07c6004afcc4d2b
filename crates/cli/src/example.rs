//! A configuration file with every key: the defaults are the code's, the words those of docs/configuration.md.

use std::collections::BTreeMap;

use anyhow::Context;
use curfew_core::config::Config;
use toml::{Table, Value};

const PAGE: &str = include_str!("../../../docs/configuration.md");
const WIDTH: usize = 100;

pub fn text() -> anyhow::Result<String> {
    let mut defaults = Table::try_from(Config::default()).context("the default configuration cannot be written down")?;
    let meanings = meanings();
    let mut text = "# Curfew's configuration: every key with its default. docs/configuration.md has the rest.\n".to_owned();
    let mut tables = String::new();
    // In the page's order; a key that it does not have would come last.
    let mut keys: Vec<String> = defaults.keys().cloned().collect();
    keys.sort_by_key(|k| meanings.get(k.as_str()).map_or(usize::MAX, |(place, _)| *place));
    for key in keys {
        let Some(value) = defaults.remove(&key) else { continue };
        let words = meanings.get(key.as_str()).map_or(String::new(), |(_, words)| comment(words));
        match value {
            // A table takes every key that follows it: they come last.
            Value::Table(inner) if inner.is_empty() => tables.push_str(&format!("\n{words}# [{key}.NAME]\n")),
            Value::Table(inner) => tables.push_str(&format!("\n{words}[{key}]\n{inner}")),
            value => text.push_str(&format!("\n{words}{key} = {value}\n")),
        }
    }
    Ok(text + &tables)
}

/// The last cell of each row under "Keys", with its place, as plain text.
fn meanings() -> BTreeMap<&'static str, (usize, String)> {
    let section = PAGE.split_once("\n## Keys\n").map_or("", |(_, rest)| rest.split("\n## ").next().unwrap_or_default());
    let rows = section.lines().filter(|l| l.starts_with("| `")).enumerate();
    rows.filter_map(|(place, row)| {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        Some((cells.first()?.trim_matches('`'), (place, without_links(cells.last()?))))
    })
    .collect()
}

/// `[word](where)` is the word.
fn without_links(words: &str) -> String {
    let mut plain = String::new();
    let mut rest = words;
    while let Some((before, after)) = rest.split_once('[') {
        plain.push_str(before);
        let link = after.split_once(']').and_then(|(word, rest)| Some((word, rest.strip_prefix('(')?.split_once(')')?.1)));
        match link {
            Some((word, after)) => {
                plain.push_str(word);
                rest = after;
            }
            None => {
                plain.push('[');
                rest = after;
            }
        }
    }
    plain + rest
}

fn comment(words: &str) -> String {
    let mut lines = vec![String::from("#")];
    for word in words.split_whitespace() {
        if lines.last().is_some_and(|l| l.len() + word.len() >= WIDTH) {
            lines.push("#".into());
        }
        if let Some(line) = lines.last_mut() {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_copy_is_this_one_and_gives_the_defaults() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/curfew.toml");
        let text = text().unwrap();
        if std::env::var_os("CURFEW_WRITE_EXAMPLE").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap();
        assert!(
            kept == text,
            "deploy/curfew.toml is not what the code says; write it anew: curfew config default > deploy/curfew.toml"
        );
        let read: Config = toml::from_str(&text).unwrap();
        assert_eq!(read, Config::default());
        let table: Table = text.parse().unwrap();
        for (key, value) in Table::try_from(Config::default()).unwrap() {
            let there = table.contains_key(&key)
                || value.as_table().is_some_and(|t| t.is_empty() && text.contains(&format!("# [{key}.NAME]")));
            assert!(there, "{key}");
        }
    }

    #[test]
    fn links_are_their_words() {
        assert_eq!(without_links("a [gc](gc.md) with [kinds.NAME] and `[x](y)`"), "a gc with [kinds.NAME] and `x`");
    }
}
