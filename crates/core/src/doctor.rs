//! What `curfew doctor` finds, and when a finding breaks a promise.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Timestamp, duration};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Ok,
    /// Worth mending; every promise can be kept.
    Warning,
    /// A promise cannot be kept.
    Failed,
    /// It could not be asked; `found` says why.
    NotChecked,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    pub name: String,
    pub verdict: Verdict,
    pub found: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    fn new(name: &str, verdict: Verdict, found: impl Into<String>, remedy: Option<String>) -> Self {
        Self { name: name.into(), verdict, found: found.into(), remedy }
    }
    pub fn ok(name: &str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, found, None)
    }
    pub fn warning(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(name, Verdict::Warning, found, Some(remedy.into()))
    }
    pub fn failed(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(name, Verdict::Failed, found, Some(remedy.into()))
    }
    pub fn not_checked(name: &str, why: impl Into<String>) -> Self {
        Self::new(name, Verdict::NotChecked, why, None)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Counts {
    pub ok: usize,
    pub warning: usize,
    pub failed: usize,
    pub not_checked: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Report {
    pub at: Timestamp,
    /// The address that was asked.
    pub nomad: String,
    pub counts: Counts,
    pub checks: Vec<Check>,
}

impl Report {
    pub fn new(at: Timestamp, nomad: &str, checks: Vec<Check>) -> Self {
        let count = |v: Verdict| checks.iter().filter(|c| c.verdict == v).count();
        let counts = Counts {
            ok: count(Verdict::Ok),
            warning: count(Verdict::Warning),
            failed: count(Verdict::Failed),
            not_checked: count(Verdict::NotChecked),
        };
        Self { at, nomad: nomad.into(), counts, checks }
    }
}

/// Names that a line has room for.
const NAMED: usize = 5;

/// `c1, c2 and 7 more`, in order.
pub fn names(mut all: Vec<String>) -> String {
    all.sort();
    let more = all.len().saturating_sub(NAMED);
    all.truncate(NAMED);
    let named = all.join(", ");
    if more > 0 { format!("{named} and {more} more") } else { named }
}

/// `node c1`, `nodes c1, c2`.
pub fn nodes(all: Vec<String>) -> String {
    let what = if all.len() == 1 { "node" } else { "nodes" };
    format!("{what} {}", names(all))
}

const OLDEST: (u64, u64) = (1, 8);
const NEWEST: (u64, u64) = (2, 0);

/// The agents' versions, by name, against what Curfew was tried on.
pub fn versions(name: &str, what: &str, agents: &[(String, String)]) -> Check {
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut old, mut new, mut odd) = (vec![], vec![], vec![]);
    for (agent, version) in agents {
        *count.entry(version).or_default() += 1;
        let shown = format!("{agent} ({version})");
        match minor(version) {
            None => odd.push(shown),
            Some(v) if v < OLDEST => old.push(shown),
            Some(v) if v > NEWEST => new.push(shown),
            Some(_) => {}
        }
    }
    let range = format!("Curfew supports Nomad {}.{} to {}.{}", OLDEST.0, OLDEST.1, NEWEST.0, NEWEST.1);
    if !old.is_empty() {
        return Check::failed(name, format!("too old: {}", names(old)), format!("{range}: upgrade them"));
    }
    if !new.is_empty() {
        let remedy = format!("{range}; a newer one was not tried. See whether there is a newer Curfew");
        return Check::warning(name, format!("newer than Curfew knows: {}", names(new)), remedy);
    }
    if !odd.is_empty() {
        return Check::warning(name, format!("no version that can be read: {}", names(odd)), range);
    }
    let shown: Vec<String> = count.iter().map(|(v, n)| format!("{v} on {}", counted(*n, what))).collect();
    Check::ok(name, if shown.is_empty() { format!("no {what}s") } else { shown.join(", ") })
}

/// `1 node`, `3 nodes`.
pub fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// `1.10.5+ent` → (1, 10).
pub fn minor(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Another machine's clock less ours, in microseconds: not below `least`, not above `most`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skew {
    least: i64,
    most: i64,
}

/// From here on it is worth a word.
const NOTICED: Duration = Duration::from_secs(1);

impl Skew {
    /// From what a clock showed in an answer that was asked for at `sent` and there at `received`. What it showed may have been true
    /// up to `age` before it was sent.
    pub fn of(shown: Timestamp, age: Duration, sent: Timestamp, received: Timestamp) -> Self {
        Self { least: shown.as_micros() - received.as_micros(), most: (shown + age).as_micros() - sent.as_micros() }
    }

    /// What of it is sure, in seconds; negative when the other clock is behind.
    pub fn sure(self) -> f64 {
        let sure = if self.least > 0 { self.least } else { self.most.min(0) };
        sure as f64 / 1e6
    }

    pub fn verdict(self, shortest_grace: Duration) -> Verdict {
        let off = self.sure().abs();
        if off >= shortest_grace.as_secs_f64() {
            Verdict::Failed
        } else if off > NOTICED.as_secs_f64() {
            Verdict::Warning
        } else {
            Verdict::Ok
        }
    }
}

/// `2.5s ahead`.
pub fn ahead_or_behind(seconds: f64) -> String {
    let off = duration::human(Duration::from_secs_f64(seconds.abs()));
    format!("{off} {}", if seconds < 0.0 { "behind" } else { "ahead" })
}

/// What each node cuts `kill_timeout` to (`None`: it cannot be read), against what Curfew raises it to.
pub fn max_kill_timeout(name: &str, limits: &[(String, Option<Duration>)], kill: Duration, stop: Duration) -> Check {
    let below: Vec<_> = limits.iter().filter_map(|(n, l)| l.filter(|l| *l < kill).map(|l| (n, l))).collect();
    let wanted = duration::format(kill);
    if let Some(least) = below.iter().map(|(_, l)| *l).min() {
        let shown = below.iter().map(|(n, l)| format!("{n} ({})", duration::format(*l))).collect();
        let breaks = if least < stop {
            format!("even a job_stop_timeout of {} is cut short there", duration::format(stop))
        } else {
            format!("no longer time than {} holds there", duration::format(least))
        };
        let found = format!("below kill_timeout ({wanted}) on {}: {breaks}", nodes(shown));
        let remedy = format!("in the client block of their configuration: max_kill_timeout = \"{}\"", nomads(kill));
        return Check::failed(name, found, format!("{remedy}, then restart the agent"));
    }
    let unknown: Vec<String> = limits.iter().filter(|(_, l)| l.is_none()).map(|(n, _)| n.clone()).collect();
    if !unknown.is_empty() {
        let remedy = format!(
            "in the client block of their configuration, beside max_kill_timeout itself: meta {{ max_kill_timeout = \"{}\" }}",
            nomads(kill)
        );
        return Check::warning(name, format!("cannot be read of {}; it must be at least {wanted}", nodes(unknown)), remedy);
    }
    match limits.iter().filter_map(|(_, l)| *l).min() {
        None => Check::ok(name, "no nodes"),
        Some(least) => Check::ok(name, format!("at least {} on every node, kill_timeout is {wanted}", duration::format(least))),
    }
}

/// As Nomad reads it: without spaces.
fn nomads(d: Duration) -> String {
    duration::format(d).replace(' ', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agents(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect()
    }
    fn s(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn versions_from_1_8_to_2_0() {
        let of = |v: &str| versions("servers", "server", &agents(&[("a", "2.0.5"), ("b", v)])).verdict;
        for v in ["1.8.0", "1.10.5+ent", "2.0.99-dev", "v1.9.1"] {
            assert_eq!(of(v), Verdict::Ok, "{v}");
        }
        assert_eq!(
            (of("1.7.7"), of("0.12.0"), of("2.1.0"), of("3.0.0")),
            (Verdict::Failed, Verdict::Failed, Verdict::Warning, Verdict::Warning)
        );
        assert_eq!((of(""), of("next")), (Verdict::Warning, Verdict::Warning));
        let both = versions("servers", "server", &agents(&[("old", "1.7.7"), ("new", "2.1.0"), ("good", "2.0.5")]));
        assert_eq!((both.verdict, both.found.as_str()), (Verdict::Failed, "too old: old (1.7.7)"));
        let good = versions("servers", "server", &agents(&[("a", "2.0.5"), ("b", "1.8.4"), ("c", "2.0.5")]));
        assert_eq!(good.found, "1.8.4 on 1 server, 2.0.5 on 2 servers");
    }

    #[test]
    fn a_skew_counts_only_as_far_as_it_is_sure() {
        let t = |ms: i64| Timestamp::from_millis(1_000_000 + ms);
        // Cut to the second, 0.2 s on the way: in step anywhere between.
        for shown in [0, -700, 100] {
            let skew = Skew::of(t(shown), s(1), t(0), t(200));
            assert_eq!((skew.sure(), skew.verdict(s(30))), (0.0, Verdict::Ok), "{shown}");
        }
        // Ahead by 1.9 s to 3.1 s, and behind by 4 to 5.2 s.
        let ahead = Skew::of(t(2_100), s(1), t(0), t(200));
        assert_eq!((ahead.sure(), ahead.verdict(s(30))), (1.9, Verdict::Warning));
        let behind = Skew::of(t(-5_000), s(1), t(0), t(200));
        assert_eq!((behind.sure(), behind.verdict(s(30)), behind.verdict(s(4))), (-4.0, Verdict::Warning, Verdict::Failed));
        // One second is still quiet, and a slow answer proves less.
        assert_eq!(Skew::of(t(1_000), s(0), t(0), t(0)).verdict(s(30)), Verdict::Ok);
        assert_eq!(Skew::of(t(-60_000), s(0), t(0), t(61_000)).verdict(s(30)), Verdict::Failed);
        assert_eq!(Skew::of(t(60_000), s(0), t(0), t(61_000)).verdict(s(30)), Verdict::Ok);
        assert_eq!(ahead_or_behind(-4.0), "4.0s behind");
    }

    #[test]
    fn a_node_below_kill_timeout_breaks_a_promise() {
        let day = s(86_400);
        let check = |l: &[Option<u64>]| {
            let limits: Vec<_> = l.iter().enumerate().map(|(i, l)| (format!("c{i}"), l.map(s))).collect();
            max_kill_timeout("max_kill_timeout", &limits, day, s(30))
        };
        assert_eq!(check(&[Some(86_400), Some(90_000)]).verdict, Verdict::Ok);
        assert_eq!(check(&[]).verdict, Verdict::Ok);
        let unknown = check(&[Some(86_400), None]);
        assert!(unknown.verdict == Verdict::Warning && unknown.found.contains("node c1"), "{unknown:?}");
        assert!(unknown.remedy.unwrap().contains("meta { max_kill_timeout = \"24h\" }"));
        let short = check(&[Some(29), Some(86_399), None]);
        assert_eq!(short.verdict, Verdict::Failed);
        assert!(short.found.contains("nodes c0 (29s), c1 (23h 59m 59s)") && short.found.contains("cut short"), "{short:?}");
        let longer = check(&[Some(3600)]);
        assert!(longer.verdict == Verdict::Failed && longer.found.contains("no longer time than 1h holds"), "{longer:?}");
    }

    #[test]
    fn many_names_are_a_few() {
        let many: Vec<String> = (0..8).map(|i| format!("c{i}")).rev().collect();
        assert_eq!(nodes(many), "nodes c0, c1, c2, c3, c4 and 3 more");
        assert_eq!(nodes(vec!["c1".into()]), "node c1");
    }
}
