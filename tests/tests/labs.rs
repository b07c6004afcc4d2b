//! docs/labs/pollers.md: its commands are run, and what it shows is what they say.
//!
//! In everyday runs with a fifth of the times. `CURFEW_TEST_LAB=whole` takes the author's times; with `CURFEW_WRITE_LAB` set the outputs
//! are written into the page instead of compared.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use curfew_tests::binary;
use curfew_tests::lab::Lab;
use curfew_tests::run::Given;
use curfew_tests::wait::eventually;

const SCALE: u64 = 5;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn whole() -> bool {
    std::env::var("CURFEW_TEST_LAB").is_ok_and(|v| v == "whole")
}

/// A command of the page, and what the page says it prints.
struct Step {
    command: String,
    shown: Vec<String>,
    until: Option<String>,
    /// How it got there is another story each time: only the last line is compared.
    only_end: bool,
    /// The lines of the page that the block takes, fences included.
    lines: std::ops::Range<usize>,
}

fn steps(page: &str) -> Vec<Step> {
    let lines: Vec<&str> = page.lines().collect();
    let marked = |i: &usize| lines[*i].starts_with("<!-- run");
    let one = |i: usize| {
        let end = (i + 2..lines.len()).find(|n| lines[*n] == "```").unwrap();
        let mut block = lines[i + 2..end].iter();
        let command = block.next().and_then(|l| l.strip_prefix("$ ")).unwrap_or_else(|| panic!("line {}: no command", i + 3));
        let until = lines[i].strip_prefix("<!-- run until: ").and_then(|l| l.strip_suffix(" -->"));
        Step {
            command: command.into(),
            shown: block.map(|l| (*l).to_owned()).collect(),
            until: until.map(str::to_owned),
            only_end: until.is_some() || lines[i] == "<!-- run to its end -->",
            lines: i + 1..end + 1,
        }
    };
    (0..lines.len()).filter(marked).map(one).collect()
}

/// The jobspecs, with a fifth of their times.
fn scaled(text: &str) -> String {
    const SCALED: [&str; 5] = ["min_healthy_time", "healthy_deadline", "progress_deadline", "interval", "delay"];
    let line = |line: &str| {
        let key = line.split_whitespace().next().unwrap_or_default();
        if let (true, Some((before, rest))) = (SCALED.contains(&key), line.split_once('"')) {
            let long = curfew_core::duration::parse(rest.trim_end().trim_end_matches('"')).unwrap();
            return format!("{before}\"{}ms\"", long.as_millis() / u128::from(SCALE));
        }
        line.replace("sleep 15 ", &format!("sleep {} ", 15 / SCALE))
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// A line without what is another one each time.
fn plain(line: &str) -> String {
    let hex = |w: &str| w.len() >= 8 && w.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    let node = |w: &str| {
        let letters = w.trim_end_matches(|c: char| c.is_ascii_digit());
        !letters.is_empty() && letters.len() < w.len() && letters.chars().all(|c| c.is_ascii_lowercase())
    };
    // Which trouble came last is a matter of moments.
    let line = ["unhealthy", "passed without progress"]
        .iter()
        .fold(line, |line, cut| line.find(cut).map_or(line, |i| &line[..i + cut.len()]));
    let mut words = vec![];
    let mut after_on = false;
    for word in line.split_whitespace() {
        let bare = word.trim_matches(|c: char| "(),:+".contains(c));
        let (id, task) = bare.split_once('/').map_or((bare, ""), |(id, task)| (id, task));
        let text = if after_on {
            "NODE".to_owned()
        } else if hex(id) {
            format!("ID/{task}")
        } else if node(bare) {
            "NODE".to_owned()
        } else if word.contains('@') {
            "WHO".to_owned()
        } else if bare.starts_with(|c: char| c.is_ascii_digit()) {
            "#".to_owned()
        } else {
            word.to_owned()
        };
        after_on = word == "on";
        // `1m 15s` and `15s` are both a time.
        if text != "#" || words.last().is_none_or(|l| l != "#") {
            words.push(text);
        }
    }
    words.join(" ")
}

async fn run(lab: &Lab, folder: &Path, step: &Step) -> (String, Option<i32>) {
    let bin = binary::curfew();
    let path = format!("{}:{}", bin.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", &format!("{} 2>&1", wrapped(&step.command))]).current_dir(folder).kill_on_drop(true);
    command.env("PATH", path).env("CURFEW_ADDR", lab.curfew.addr()).env("NO_COLOR", "1").env_remove("NOMAD_NAMESPACE");
    let within = Duration::from_secs(240);
    let out = tokio::time::timeout(within, command.output()).await;
    let out = out.unwrap_or_else(|_| panic!("`{}` did not end within {within:?}", step.command)).unwrap();
    (String::from_utf8(out.stdout).unwrap(), out.status.code())
}

/// Of a pipe all that is said counts.
fn wrapped(command: &str) -> String {
    format!("{{ {command}; }}")
}

/// The command until it says what is waited for.
async fn said(lab: &Lab, folder: &Path, step: &Step) -> (String, Option<i32>) {
    let Some(until) = &step.until else { return run(lab, folder, step).await };
    let long = Duration::from_secs(600);
    eventually(long, &format!("`{}` to say {until:?}", step.command), async || {
        let (text, code) = run(lab, folder, step).await;
        if text.contains(until) { Ok((text, code)) } else { Err(text) }
    })
    .await
}

pub async fn pollers(given: Given) {
    let lab = given.own().await;
    let folder = tempfile::TempDir::with_prefix("curfew-lab-").unwrap();
    let jobs = folder.path().join("jobspecs/pollers");
    std::fs::create_dir_all(&jobs).unwrap();
    for entry in std::fs::read_dir(repository().join("jobspecs/pollers")).unwrap().flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap();
        std::fs::write(jobs.join(entry.file_name()), if whole() { text } else { scaled(&text) }).unwrap();
    }
    let page = repository().join("docs/labs/pollers.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let write = std::env::var_os("CURFEW_WRITE_LAB").is_some();
    let mut missing = vec![];
    let mut blocks = vec![];
    for step in steps(&text) {
        let (said, code) = said(&lab, folder.path(), &step).await;
        let mut now: Vec<String> = said.lines().map(|l| l.trim_end().to_owned()).collect();
        if code != Some(0) {
            now.extend(["$ echo $?".to_owned(), code.map_or("?".into(), |c| c.to_string())]);
        }
        if write {
            blocks.push((
                step.lines,
                [vec!["```console".to_owned(), format!("$ {}", step.command)], now, vec!["```".into()]].concat(),
            ));
            continue;
        }
        assert!(!step.shown.is_empty(), "the page shows nothing for `{}`", step.command);
        let produced: BTreeSet<String> = now.iter().map(|l| plain(l)).collect();
        let compared = if step.only_end { step.shown.len() - 1 } else { 0 };
        let lost = step.shown[compared..].iter().filter(|l| !produced.contains(&plain(l)));
        let lost: Vec<String> = lost.map(|l| format!("`{}` no longer says: {l}", step.command)).collect();
        if !lost.is_empty() {
            missing.extend(lost);
            missing.push(format!("it says:\n{said}"));
        }
    }
    for (range, block) in blocks.into_iter().rev() {
        lines.splice(range, block);
    }
    if write {
        std::fs::write(&page, lines.join("\n") + "\n").unwrap();
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

pub async fn a_line_is_compared_without_what_changes(_: Given) {
    let a = "  +12.345s  pollers 0a1b2c3d/poller on dev1 (version 0): restart 1 of 10 in 10m, starts in 11.2s";
    let b = "   +2.345s  pollers ffffffff/poller on c2 (version 1): restart 2 of 10 in 2m 3s, starts in 2s";
    assert_eq!(plain(a), plain(b));
    assert_ne!(plain(a), plain(&a.replace("starts", "ends")));
}
