//! Rows of figures: ours, the baseline's, their ratio, the bound.

use std::io::Write;

use serde::Serialize;

#[derive(Serialize)]
pub struct Report {
    pub name: &'static str,
    /// On what it was measured.
    pub on: String,
    pub rounds: usize,
    pub rows: Vec<Row>,
}

#[derive(Serialize)]
pub struct Row {
    pub what: String,
    pub unit: &'static str,
    pub ours: Spread,
    pub baseline: Option<Spread>,
    pub baseline_is: &'static str,
    pub bound: Option<f64>,
}

/// A median over rounds, with the least and the most.
#[derive(Clone, Copy, Serialize)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    pub fn of(rounds: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = rounds.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self { median: percentile(&sorted, 0.5)?, least: *sorted.first()?, most: *sorted.last()? })
    }
}

/// By nearest rank, of values in ascending order.
pub fn percentile(sorted: &[f64], p: f64) -> Option<f64> {
    let rank = (p * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied()
}

impl Row {
    fn verdict(&self) -> &'static str {
        match self.bound {
            None => "",
            Some(b) if self.ours.median <= b => "held",
            Some(b) if self.ours.median <= 2.0 * b => "MISSED",
            Some(_) => "BROKEN",
        }
    }
}

impl Report {
    /// Whether some bound was missed by more than twice.
    pub fn broken(&self) -> bool {
        self.rows.iter().any(|r| r.verdict() == "BROKEN")
    }

    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    pub fn table(&self) -> String {
        let figure = |s: Spread| format!("{:.3} ({:.3} to {:.3})", s.median, s.least, s.most);
        let mut t = comfy_table::Table::new();
        t.load_style(comfy_table::presets::NOTHING);
        t.set_header(["", "UNIT", "CURFEW", "BASELINE", "WHICH IS", "BOUND", ""]);
        for r in &self.rows {
            t.add_row([
                r.what.clone(),
                r.unit.to_owned(),
                figure(r.ours),
                r.baseline.map_or("-".into(), figure),
                r.baseline_is.to_owned(),
                r.bound.map_or("-".into(), |b| format!("{b:.3}")),
                r.verdict().to_owned(),
            ]);
        }
        let rows: Vec<_> = t.to_string().lines().map(|l| l.trim_end().to_owned()).collect();
        format!("{} on {}, median of {} rounds (least to most)\n{}", self.name, self.on, self.rounds, rows.join("\n"))
    }
}

/// Nobody reads: nothing to do about it.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

pub fn error(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "curfew-bench: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_by_nearest_rank() {
        let v: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((percentile(&v, 0.5), percentile(&v, 0.99), percentile(&v, 1.0)), (Some(50.0), Some(99.0), Some(100.0)));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn a_bound_is_broken_beyond_twice_only() {
        let row = |ours| Row {
            what: String::new(),
            unit: "",
            ours: Spread { median: ours, least: ours, most: ours },
            baseline: None,
            baseline_is: "",
            bound: Some(10.0),
        };
        assert_eq!([9.0, 15.0, 21.0].map(|v| row(v).verdict()), ["held", "MISSED", "BROKEN"]);
    }
}
