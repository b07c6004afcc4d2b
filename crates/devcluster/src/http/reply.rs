//! Answers as Nomad writes them: JSON with its headers, errors as plain text.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use serde::Serialize;

fn build(status: u16, body: Body, content_type: Option<&'static str>) -> Response {
    let mut r = Response::new(body);
    *r.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Some(t) = content_type {
        r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(t));
    }
    r.headers_mut().insert("vary", HeaderValue::from_static("Accept-Encoding"));
    r
}

fn json_body<T: Serialize + ?Sized>(value: &T) -> Body {
    match serde_json::to_vec(value) {
        Ok(bytes) => Body::from(bytes),
        Err(_) => Body::from("null"),
    }
}

/// Answers without a body know the queried state all the same.
pub(crate) fn read_headers(mut r: Response, index: u64, next: &str) -> Response {
    let h = r.headers_mut();
    h.insert("x-nomad-index", HeaderValue::from(index.max(1)));
    h.insert("x-nomad-knownleader", HeaderValue::from_static("true"));
    h.insert("x-nomad-lastcontact", HeaderValue::from_static("0"));
    if !next.is_empty()
        && let Ok(v) = HeaderValue::from_str(next)
    {
        h.insert("x-nomad-nexttoken", v);
    }
    r
}

pub(crate) fn read<T: Serialize + ?Sized>(value: &T, index: u64) -> Response {
    read_page(value, index, "")
}

pub(crate) fn read_page<T: Serialize + ?Sized>(value: &T, index: u64, next: &str) -> Response {
    read_headers(build(200, json_body(value), Some("application/json")), index, next)
}

pub(crate) fn missing(text: &str, index: u64) -> Response {
    read_headers(self::text(404, text), index, "")
}

pub(crate) fn written<T: Serialize + ?Sized>(value: &T, index: u64) -> Response {
    let mut r = build(200, json_body(value), Some("application/json"));
    r.headers_mut().insert("x-nomad-index", HeaderValue::from(index));
    r
}

/// A write that answers nothing.
pub(crate) fn done(index: u64) -> Response {
    let mut r = build(200, Body::empty(), None);
    if index > 0 {
        r.headers_mut().insert("x-nomad-index", HeaderValue::from(index));
    }
    r
}

pub(crate) fn plain_json<T: Serialize + ?Sized>(value: &T) -> Response {
    build(200, json_body(value), Some("application/json"))
}

pub(crate) fn text(status: u16, message: &str) -> Response {
    build(status, Body::from(message.to_owned()), Some("text/plain; charset=utf-8"))
}

/// What every refusal says, whatever was missing.
pub(crate) fn denied() -> Response {
    text(403, "Permission denied")
}

pub(crate) fn not_found() -> Response {
    build(404, Body::empty(), None)
}

pub(crate) fn wrong_method() -> Response {
    text(405, "Invalid method")
}

pub(crate) fn stream(body: Body, content_type: &'static str) -> Response {
    build(200, body, Some(content_type))
}

/// Ends the connection without an answer worth the name.
pub(crate) fn broken() -> Response {
    let error = std::io::Error::other("dropped on request");
    let mut r = build(200, Body::from_stream(futures::stream::once(async { Err::<Bytes, _>(error) })), None);
    r.headers_mut().insert("content-length", HeaderValue::from_static("1"));
    r
}

/// The words Go's decoder has for the first wrong byte.
pub(crate) fn go_json_error(body: &[u8], error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected EOF".into();
    }
    let text = String::from_utf8_lossy(body);
    let trimmed = text.trim_start();
    for (word, name) in [("null", "null"), ("true", "true"), ("false", "false")] {
        let first = trimmed.chars().next();
        if first == word.chars().next() {
            for (have, want) in trimmed.chars().zip(word.chars()) {
                if have != want {
                    return format!("invalid character {have:?} in literal {name} (expecting {want:?})");
                }
            }
        }
    }
    match trimmed.chars().next() {
        Some(c) if !matches!(c, '{' | '[' | '"' | '-' | '0'..='9') => {
            format!("invalid character {c:?} looking for beginning of value")
        }
        _ => {
            let line = text.lines().nth(error.line().saturating_sub(1)).unwrap_or_default();
            match line.chars().nth(error.column().saturating_sub(1)) {
                Some(c) => format!("invalid character {c:?} looking for beginning of value"),
                None => "unexpected EOF".into(),
            }
        }
    }
}

/// A check-and-set that lost.
pub(crate) fn conflict<T: Serialize + ?Sized>(value: &T) -> Response {
    build(409, json_body(value), Some("application/json"))
}
