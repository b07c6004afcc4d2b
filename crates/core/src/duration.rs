//! Durations as people write them: `90s`, `1h 30m`. A number without a unit is refused, because nobody agrees on its unit.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Object, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("\"{text}\" is not a duration: {why}; write a number with a unit, as in 30s, 5m or 1h 30m")]
pub struct BadDuration {
    text: String,
    why: String,
}

/// Parses `90s`, `1h 30m`, `500ms` and Nomad's own spelling `1h30m0s`.
pub fn parse(text: &str) -> Result<Duration, BadDuration> {
    let bad = |why: String| BadDuration { text: text.to_owned(), why };
    let t = text.trim();
    if t == "0" {
        return Ok(Duration::ZERO);
    }
    if t.starts_with('-') {
        return Err(bad("it is negative".into()));
    }
    if !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err(bad("it has no unit".into()));
    }
    humantime::parse_duration(t).map_err(|e| bad(e.to_string()))
}

/// `24h`, `1h 30m`, `1m 30s`, `250ms`: hours at most, as Nomad's users write them. [`parse`] reads it back.
pub fn format(d: Duration) -> String {
    let (secs, sub) = (d.as_secs(), d.subsec_nanos());
    let parts = [
        (secs / 3600, "h"),
        (secs / 60 % 60, "m"),
        (secs % 60, "s"),
        (u64::from(sub / 1_000_000), "ms"),
        (u64::from(sub / 1000 % 1000), "us"),
        (u64::from(sub % 1000), "ns"),
    ];
    let text: Vec<String> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| std::format!("{n}{unit}")).collect();
    if text.is_empty() { "0s".into() } else { text.join(" ") }
}

/// Whole seconds and tenths for people: `4.2s`, `12m 3s`.
pub fn human(d: Duration) -> String {
    if d < Duration::from_secs(60) {
        format!("{:.1}s", d.as_secs_f64())
    } else {
        format(Duration::from_secs(d.as_secs_f64().round() as u64))
    }
}

/// A duration as the RPC's description has it.
pub struct Text;

impl PartialSchema for Text {
    fn schema() -> RefOr<Schema> {
        Object::builder()
            .schema_type(Type::String)
            .pattern(Some("^[0-9]{1,8}(ns|us|ms|s|m|h|d)( ?[0-9]{1,8}(ns|us|ms|s|m|h|d))*$"))
            .examples([serde_json::json!("1h 30m")])
            .description(Some("A duration with units, as in `30s` or `1h 30m`."))
            .into()
    }
}
impl ToSchema for Text {
    fn name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }
}

/// For `#[serde(with = "duration::text")]`.
pub mod text {
    use super::*;
    pub fn serialize<S: Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&format(*d))
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

/// For `#[serde(default, with = "duration::text_opt")]`.
pub mod text_opt {
    use super::*;
    pub fn serialize<S: Serializer>(d: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
        match d {
            Some(d) => s.serialize_some(&format(*d)),
            None => s.serialize_none(),
        }
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
        Option::<String>::deserialize(d)?.map(|t| parse(&t).map_err(serde::de::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_without_a_unit_is_refused_with_the_way_out() {
        let e = parse("5").unwrap_err().to_string();
        assert_eq!(e, "\"5\" is not a duration: it has no unit; write a number with a unit, as in 30s, 5m or 1h 30m");
        assert!(parse("-5s").unwrap_err().to_string().contains("negative"));
        assert!(parse("").is_err() && parse("soon").is_err());
    }

    #[test]
    fn nomads_spelling_and_ours_read_back() {
        assert_eq!(parse("24h0m0s").unwrap(), Duration::from_secs(86_400));
        for d in [0, 1, 90, 5400, 86_400].map(Duration::from_secs) {
            assert_eq!(parse(&format(d)).unwrap(), d);
        }
    }
}
