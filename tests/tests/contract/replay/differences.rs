//! `fixtures/differences.toml`: where the embedded cluster is meant to differ, and why.

use std::path::Path;
use std::sync::Mutex;

use super::Diff;

struct Entry {
    /// A recording, or `*`.
    recording: String,
    /// `METHOD template`, or `*`.
    route: String,
    /// A path in the body as `Diff::path` has it; `*` at the end stands for all that follows.
    path: String,
    reason: String,
    /// It depends on the machine's pace: not there every time.
    sometimes: bool,
}

pub struct Wanted {
    entries: Vec<Entry>,
    seen: Mutex<Vec<bool>>,
}

fn matches(pattern: &str, text: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == text, |start| text.starts_with(start))
}

impl Wanted {
    pub fn load(file: &Path) -> Self {
        let text = std::fs::read_to_string(file).unwrap();
        let table: toml::Table = text.parse().unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let list = table.get("difference").and_then(toml::Value::as_array).cloned().unwrap_or_default();
        let entries: Vec<Entry> = list
            .iter()
            .map(|e| {
                let field = |key: &str| e.get(key).and_then(toml::Value::as_str).unwrap_or("*").to_owned();
                Entry {
                    recording: field("recording"),
                    route: field("route"),
                    path: field("path"),
                    reason: field("reason"),
                    sometimes: e.get("sometimes").and_then(toml::Value::as_bool) == Some(true),
                }
            })
            .collect();
        for e in &entries {
            assert!(e.reason.len() > 10, "a wanted difference without a reason: {} {}", e.route, e.path);
        }
        let seen = Mutex::new(vec![false; entries.len()]);
        Self { entries, seen }
    }

    pub fn has(&self, recording: &str, diff: &Diff) -> bool {
        let mut found = false;
        for (i, e) in self.entries.iter().enumerate() {
            if matches(&e.recording, recording) && matches(&e.route, &diff.route) && matches(&e.path, &diff.path) {
                self.seen.lock().unwrap()[i] = true;
                found = true;
            }
        }
        found
    }

    pub fn unseen(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        let entries = self.entries.iter().zip(seen.iter()).filter(|(e, seen)| !**seen && !e.sometimes);
        entries
            .map(|(e, _)| format!("listed as a wanted difference and no longer there: {} {} {}", e.recording, e.route, e.path))
            .collect()
    }
}
