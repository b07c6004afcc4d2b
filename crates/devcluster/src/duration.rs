//! Go's duration texts, which Nomad uses in jobspecs, query parameters and messages.

/// Prints nanoseconds as Go's `time.Duration` does: `24h0m0s`, `1m30s`, `1.5s`, `200ms`, `0s`.
pub(crate) fn go(ns: i64) -> String {
    if ns == 0 {
        return "0s".into();
    }
    let sign = if ns < 0 { "-" } else { "" };
    let u = ns.unsigned_abs();
    if u < 1_000 {
        return format!("{sign}{u}ns");
    }
    if u < 1_000_000 {
        return format!("{sign}{}µs", fraction(u, 1_000));
    }
    if u < 1_000_000_000 {
        return format!("{sign}{}ms", fraction(u, 1_000_000));
    }
    let minutes = u / 60_000_000_000;
    let seconds = fraction(u % 60_000_000_000, 1_000_000_000);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{sign}{seconds}s"),
        (0, m) => format!("{sign}{m}m{seconds}s"),
        (h, m) => format!("{sign}{h}h{m}m{seconds}s"),
    }
}

fn fraction(value: u64, unit: u64) -> String {
    let (whole, rest) = (value / unit, value % unit);
    if rest == 0 {
        return whole.to_string();
    }
    let digits = unit.ilog10() as usize;
    let text = format!("{rest:0digits$}");
    format!("{whole}.{}", text.trim_end_matches('0'))
}

/// Reads Go's syntax (`1h30m`, `250ms`, `-1s`, `0`) into nanoseconds.
pub(crate) fn parse(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(r) => (true, r),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..unit_end] {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3_600e9,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[unit_end..];
    }
    let ns = total as i64;
    Some(if negative { -ns } else { ns })
}

#[cfg(test)]
mod tests {
    use super::{go, parse};

    #[test]
    fn prints_as_go_does() {
        for (ns, text) in [
            (0, "0s"),
            (86_400_000_000_000, "24h0m0s"),
            (90_000_000_000, "1m30s"),
            (17_656_181_372, "17.656181372s"),
            (200_000_000, "200ms"),
            (1_500, "1.5µs"),
            (-1_000_000_000, "-1s"),
        ] {
            assert_eq!(go(ns), text);
        }
    }

    #[test]
    fn reads_what_go_reads() {
        assert_eq!(parse("1h30m"), Some(5_400_000_000_000));
        assert_eq!(parse("250ms"), Some(250_000_000));
        assert_eq!(parse("-1s"), Some(-1_000_000_000));
        assert_eq!(parse("5"), None);
        assert_eq!(parse(""), None);
    }
}
