//! What people and scripts read.

use std::io::{BufRead, IsTerminal, Write};

use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

use crate::args::{Log, LogFormat};
use crate::traces::Traces;

pub fn start_logging(log: &Log, default: &str, traces: Option<&Traces>) {
    let filter = log.filter.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|e| {
        error(&format!("--log \"{filter}\" is not a filter ({e}); logging at {default}"));
        EnvFilter::new(default)
    });
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let lines = match log.log_format {
        LogFormat::Text => lines.with_ansi(colour(&std::io::stderr())).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let registry = tracing_subscriber::registry().with(traces.map(Traces::layer)).with(lines.with_filter(filter));
    // Another part of the process may have set one up (in tests).
    let _ = registry.try_init();
}

/// Whether this stream is read by somebody who sees colours.
pub fn colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// A line on standard output. A reader that went away ends the command, not the operation.
pub fn line(text: &str) {
    if writeln!(std::io::stdout().lock(), "{text}").is_err() {
        std::process::exit(0);
    }
}

/// A line for people while something is under way.
pub fn note(text: &str) {
    // Nobody reads: nothing to do about it.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

pub fn error(text: &str) {
    note(&format!("curfew: {text}"));
}

pub fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// One JSON value a line, for what does not end.
pub fn json_line(value: &impl serde::Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string(value)?);
    Ok(())
}

/// Whether somebody is there to answer a question.
pub fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks; no answer is a no.
pub fn confirm(question: &str) -> anyhow::Result<bool> {
    let mut stderr = std::io::stderr().lock();
    write!(stderr, "{question} [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// The columns of standard output, when it is a terminal.
pub fn width() -> Option<usize> {
    console::Term::stdout().size_checked().map(|(_, columns)| columns.into())
}

/// An error and its causes in one line, nothing said twice.
pub fn chain(e: &anyhow::Error) -> String {
    curfew_controller::error::chain(e.as_ref())
}

pub fn table<const N: usize>(header: [&str; N], rows: Vec<[String; N]>) -> String {
    fitted(None, header, rows)
}

/// Not wider than that: the widest column is broken into lines, and nothing is left out.
pub fn fitted<const N: usize>(width: Option<usize>, header: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut t = comfy_table::Table::new();
    t.load_style(comfy_table::presets::NOTHING);
    t.set_header(header);
    for r in rows {
        t.add_row(r);
    }
    if let Some(width) = width.and_then(|w| u16::try_from(w).ok()) {
        t.set_content_arrangement(comfy_table::ContentArrangement::Dynamic).set_width(width);
        let widths = t.column_max_content_widths();
        let widest = (0..widths.len()).max_by_key(|i| widths[*i]).unwrap_or(0);
        let others: u16 = widths.iter().enumerate().filter(|(i, _)| *i != widest).map(|(_, w)| w + PADDING).sum();
        // Where that would leave it next to nothing they all give way.
        if others + READABLE <= width {
            for (_, column) in t.column_iter_mut().enumerate().filter(|(i, _)| *i != widest) {
                column.set_constraint(comfy_table::ColumnConstraint::ContentWidth);
            }
        }
    }
    t.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// A column's own, left and right.
const PADDING: u16 = 2;
const READABLE: u16 = 14;
