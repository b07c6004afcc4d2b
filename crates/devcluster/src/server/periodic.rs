//! Periodic jobs: children by a cron line (minutes, hours, days, months, weekdays), or forced.

use std::sync::Arc;

use jiff::{Timestamp, ToSpan, Zoned};
use serde_json::{Value, json};

use super::jobs::{Registered, register};
use crate::job::{Job, JobKey};
use crate::state::{State, Timer};

/// Arms the next launch of a periodic job; forgets an earlier one.
pub(crate) fn schedule(s: &mut State, job: &Arc<Job>) {
    let key = job.key();
    s.timers.retain(|(_, t)| !matches!(t, Timer::Periodic(k) if *k == key));
    if !job.spec.periodic || job.stop {
        return;
    }
    if let Some(at) = next(&job.value, s.now()) {
        let at = s.clock.instant_of(at);
        s.timers.insert((at, Timer::Periodic(key)));
    }
}

pub(crate) fn launch_due(s: &mut State, key: &JobKey) {
    let Some(job) = s.job(key) else { return };
    let overlap = job.value.get("Periodic").and_then(|p| p.get("ProhibitOverlap")) == Some(&Value::Bool(true));
    let busy = overlap && s.jobs.values().any(|j| j.current.spec.parent_id == key.1 && j.current.status != "dead");
    if !busy {
        launch(s, &job);
    }
    schedule(s, &job);
}

/// Starts a child now.
pub(crate) fn launch(s: &mut State, parent: &Arc<Job>) -> Registered {
    let seconds = s.now() / 1_000_000_000;
    let id = format!("{}/periodic-{seconds}", parent.spec.id);
    let mut value = Value::clone(&parent.value);
    if let Some(m) = value.as_object_mut() {
        m.insert("ID".into(), json!(id));
        m.insert("Name".into(), json!(id));
        m.insert("ParentID".into(), json!(parent.spec.id));
        m.insert("Periodic".into(), Value::Null);
    }
    register(s, value, "periodic-job")
}

/// The next launch of a job's specification after an instant, both Unix nanoseconds.
pub(crate) fn next(job: &Value, after: i64) -> Option<i64> {
    let p = job.get("Periodic")?;
    let mut lines: Vec<&str> = p.get("Spec").and_then(Value::as_str).filter(|s| !s.is_empty()).into_iter().collect();
    lines.extend(p.get("Specs").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str));
    lines.iter().filter_map(|l| next_of(l, after)).min()
}

fn next_of(line: &str, after: i64) -> Option<i64> {
    let line = match line.trim() {
        "@hourly" => "0 * * * *",
        "@daily" | "@midnight" => "0 0 * * *",
        "@weekly" => "0 0 * * 0",
        "@monthly" => "0 0 1 * *",
        "@yearly" | "@annually" => "0 0 1 1 *",
        other => other,
    };
    let fields: Vec<&str> = line.split_whitespace().collect();
    // Six or seven fields put seconds first; the dev cluster launches at full minutes.
    let fields = match fields.len() {
        5 => &fields[..],
        6 | 7 => &fields[1..6],
        _ => return None,
    };
    let start = Timestamp::from_nanosecond(i128::from(after)).ok()?.to_zoned(jiff::tz::TimeZone::UTC);
    let mut t: Zoned = start.with().second(0).subsec_nanosecond(0).build().ok()?;
    for _ in 0..366 * 24 * 60 {
        t = t.checked_add(1.minute()).ok()?;
        let weekday = i64::from(t.weekday().to_sunday_zero_offset());
        if hit(fields[0], i64::from(t.minute()))
            && hit(fields[1], i64::from(t.hour()))
            && hit(fields[2], i64::from(t.day()))
            && hit(fields[3], i64::from(t.month()))
            && (hit(fields[4], weekday) || (weekday == 0 && hit(fields[4], 7)))
        {
            return i64::try_from(t.timestamp().as_nanosecond()).ok();
        }
    }
    None
}

/// What is wrong with a line, in the words of Nomad's parser where it has them.
pub(crate) fn wrong(line: &str) -> Option<String> {
    if line.trim().starts_with('@') {
        return next_of(line, 0).is_none().then(|| format!("missing field(s): {line}"));
    }
    let fields: Vec<&str> = line.split_whitespace().collect();
    if fields.len() < 5 {
        return Some("missing field(s)".into());
    }
    let names = ["minute", "hour", "day-of-month", "month", "day-of-week"];
    let known = |c: char| c.is_ascii_alphanumeric() || "*/,-?LW#".contains(c);
    let at = if fields.len() > 5 { 1 } else { 0 };
    fields
        .iter()
        .skip(at)
        .zip(names)
        .find(|(f, _)| !f.chars().all(known))
        .map(|(f, name)| format!("syntax error in {name} field: '{f}'"))
}

fn hit(field: &str, value: i64) -> bool {
    field.split(',').any(|part| {
        let (range, step) = match part.split_once('/') {
            Some((r, s)) => (r, s.parse::<i64>().unwrap_or(1).max(1)),
            None => (part, 1),
        };
        let (low, high) = match range {
            "*" | "?" => (0, i64::MAX),
            r => match r.split_once('-') {
                Some((a, b)) => (a.parse().unwrap_or(i64::MAX), b.parse().unwrap_or(-1)),
                None => match r.parse() {
                    Ok(n) if part.contains('/') => (n, i64::MAX),
                    Ok(n) => (n, n),
                    Err(_) => return false,
                },
            },
        };
        value >= low && value <= high && (value - low) % step == 0
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn the_next_quarter_of_an_hour() {
        let job = json!({"Periodic": {"Spec": "*/15 * * * *"}});
        // 2026-11-21T07:03:46Z
        let next = super::next(&job, 1_795_244_626_000_000_000).unwrap();
        assert_eq!(crate::clock::rfc3339(next).unwrap(), "2026-11-21T07:15:00Z");
    }
}
