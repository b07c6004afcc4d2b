//! What can go wrong between Curfew and Nomad, as classes. No text of Nomad's is matched outside this crate.

use std::fmt;
use std::time::Duration;

use crate::transport::BoxError;

/// What was asked, for errors and logs. Never holds a token or a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub method: http::Method,
    /// The escaped path, without query.
    pub path: String,
    /// Scheme, host and port.
    pub address: String,
    /// Whether Nomad does something when it is done: a parse, plan or validation is a PUT that does not.
    pub changes: bool,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// `Display` is one sentence that does not repeat its source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection: nothing was sent.
    #[error("{sentence}")]
    Unreachable { asked: Box<Asked>, sentence: String, source: Option<BoxError> },
    /// The deadline passed. With `sent`, Nomad may have done it all the same.
    #[error("Nomad at {} did not answer {asked} within {after:?}", asked.address)]
    Timeout { asked: Box<Asked>, after: Duration, sent: bool },
    /// The connection broke midway, or Nomad's own did while it forwarded the call: it may have been done.
    #[error("{asked} was cut off{}", said(detail))]
    Interrupted { asked: Box<Asked>, status: Option<u16>, detail: String, source: Option<BoxError> },
    /// Something answered that does not speak Nomad's API.
    #[error("NOMAD_ADDR {} answered {asked} with status {status}, but not as a Nomad does: {sentence}", asked.address)]
    NotNomad { asked: Box<Asked>, status: u16, sentence: String },
    /// 403.
    #[error("Nomad refused {asked}: {body}. {token}; the call needs: {capability}")]
    PermissionDenied { asked: Box<Asked>, body: String, token: String, capability: &'static str },
    /// 404 in Nomad's own words.
    #[error("Nomad answered {asked}: {body}")]
    NotFound { asked: Box<Asked>, body: String },
    /// Any other refusal, in Nomad's own words.
    #[error("{body}")]
    Refused { asked: Box<Asked>, status: u16, body: String },
    /// The job was changed since it was read (`EnforceIndex`).
    #[error("the job was changed by somebody else in the meantime: {body}")]
    Conflict { asked: Box<Asked>, body: String },
    /// The cluster has no leader at the moment.
    #[error("Nomad cannot serve {asked} at the moment: {body}")]
    NoLeader { asked: Box<Asked>, status: u16, body: String },
    /// The answer is larger than the configured bound.
    #[error("the answer to {asked} is larger than {limit} bytes")]
    TooLarge { asked: Box<Asked>, limit: usize },
    /// Not asked at all: the request cannot be written down.
    #[error("{why}")]
    Unaskable { asked: Box<Asked>, why: String },
}

fn said(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

impl Error {
    pub fn asked(&self) -> &Asked {
        match self {
            Self::Unreachable { asked, .. }
            | Self::Timeout { asked, .. }
            | Self::Interrupted { asked, .. }
            | Self::NotNomad { asked, .. }
            | Self::PermissionDenied { asked, .. }
            | Self::NotFound { asked, .. }
            | Self::Refused { asked, .. }
            | Self::Conflict { asked, .. }
            | Self::NoLeader { asked, .. }
            | Self::TooLarge { asked, .. }
            | Self::Unaskable { asked, .. } => asked,
        }
    }

    /// The class in a word, as metrics name it.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Timeout { .. } => "timeout",
            Self::Interrupted { .. } => "interrupted",
            Self::NotNomad { .. } => "not_nomad",
            Self::PermissionDenied { .. } => "denied",
            Self::NotFound { .. } => "not_found",
            Self::Refused { .. } => "refused",
            Self::Conflict { .. } => "conflict",
            Self::NoLeader { .. } => "no_leader",
            Self::TooLarge { .. } => "too_large",
            Self::Unaskable { .. } => "unaskable",
        }
    }

    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Interrupted { status, .. } => *status,
            Self::NotNomad { status, .. } | Self::Refused { status, .. } | Self::NoLeader { status, .. } => Some(*status),
            Self::PermissionDenied { .. } => Some(403),
            Self::NotFound { .. } => Some(404),
            Self::Conflict { .. } => Some(500),
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::TooLarge { .. } | Self::Unaskable { .. } => None,
        }
    }

    /// Nomad's own words, trimmed.
    pub fn body(&self) -> Option<&str> {
        match self {
            Self::PermissionDenied { body, .. }
            | Self::NotFound { body, .. }
            | Self::Refused { body, .. }
            | Self::Conflict { body, .. }
            | Self::NoLeader { body, .. } => Some(body),
            Self::Interrupted { detail, .. } => Some(detail),
            _ => None,
        }
    }

    /// Whether a call that changes something may have changed it. Read before repeating. Never true for a read.
    pub fn outcome_unknown(&self) -> bool {
        if !self.asked().changes {
            return false;
        }
        match self {
            Self::Timeout { sent, .. } => *sent,
            Self::Interrupted { .. } | Self::TooLarge { .. } => true,
            // A gateway's own error page says nothing about the Nomad behind it.
            Self::NotNomad { status, .. } => !(300..500).contains(status),
            Self::NoLeader { body, .. } => body.contains(LEADERSHIP_LOST),
            Self::Refused { status, .. } => matches!(status, 502..=504),
            _ => false,
        }
    }

    /// Whether a connection was made and no agreement on TLS came of it.
    pub fn is_tls(&self) -> bool {
        let Self::Unreachable { asked, source: Some(source), .. } = self else { return false };
        find::<rustls::Error>(&**source).is_some() || ended_handshake(asked, &**source)
    }

    /// Whether asking again later, unchanged, may work.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Interrupted { .. } | Self::NoLeader { .. } => true,
            Self::NotNomad { status, .. } | Self::Refused { status, .. } => matches!(status, 429 | 502..=504),
            _ => false,
        }
    }
}

const LEADERSHIP_LOST: &str = "leadership lost";

/// Texts of a Nomad that has no leader, is electing one, or lost it (structs/errors.go, raft).
fn no_leader(text: &str) -> bool {
    ["No cluster leader", "Not ready to serve consistent reads", LEADERSHIP_LOST, "node is not the leader"]
        .iter()
        .any(|t| text.contains(t))
}

/// Texts of a Nomad whose own connection to another agent broke while it forwarded the call.
pub(crate) fn forwarding_broke(text: &str) -> bool {
    const TEXTS: [&str; 10] = [
        "rpc error: EOF",
        "failed to get conn",
        "connection reset by peer",
        "broken pipe",
        "i/o timeout",
        "session shutdown",
        "session open:",
        "stream closed",
        "set mode:",
        "No path to region",
    ];
    text == "EOF" || text.ends_with(": EOF") || TEXTS.iter().any(|t| text.contains(t))
}

/// The class of an answer whose status is not a success.
pub(crate) fn classify(
    asked: Box<Asked>,
    status: u16,
    content_type: &str,
    body: &[u8],
    token: &str,
    capability: &'static str,
) -> Error {
    let text = String::from_utf8_lossy(body).trim().to_owned();
    if text.contains("HTTP request to an HTTPS server") {
        let sentence = format!("it speaks TLS there; write the address as https://{}", host(&asked.address));
        return Error::NotNomad { asked, status, sentence };
    }
    // Nomad writes errors as plain text; a page is a proxy's or another server's.
    if content_type.starts_with("text/html") || text.starts_with('<') {
        return Error::NotNomad { asked, status, sentence: "it sent a page. Check that the address is a Nomad agent's".into() };
    }
    match status {
        300..=399 => Error::NotNomad { asked, status, sentence: "it points elsewhere. Use the address it points to".into() },
        403 => Error::PermissionDenied { asked, body: text, token: token.to_owned(), capability },
        404 | 405 if !words(&text) => {
            let sentence = "it does not know the path. Check that the address is a Nomad agent's".into();
            Error::NotNomad { asked, status, sentence }
        }
        404 => Error::NotFound { asked, body: text },
        _ if text.contains("Enforcing job modify index") => Error::Conflict { asked, body: text },
        500.. if no_leader(&text) => Error::NoLeader { asked, status, body: text },
        500 if forwarding_broke(&text) => Error::Interrupted { asked, status: Some(status), detail: text, source: None },
        _ => {
            Error::Refused { asked, status, body: if text.is_empty() { format!("status {status} without a word") } else { text } }
        }
    }
}

/// Whether a 404's body is a sentence of Nomad's, not another server's "page not found".
fn words(text: &str) -> bool {
    !text.is_empty() && !text.starts_with('{') && !text.contains("page not found") && text != "Not Found"
}

fn host(address: &str) -> &str {
    address.split_once("://").map_or(address, |(_, rest)| rest)
}

/// A sentence for "no connection", by its cause, with what to check.
pub(crate) fn unreachable(asked: Box<Asked>, source: BoxError) -> Error {
    let addr = &asked.address;
    let text = chain(&*source);
    let tls = find::<rustls::Error>(&*source);
    let io = find::<std::io::Error>(&*source).map(std::io::Error::kind);
    let sentence = if let Some(tls) = tls {
        match tls {
            rustls::Error::InvalidMessage(_) => {
                format!("Nomad at {addr} does not speak TLS: is it http:// rather than https://?")
            }
            rustls::Error::InvalidCertificate(
                rustls::CertificateError::NotValidForName | rustls::CertificateError::NotValidForNameContext { .. },
            ) => {
                format!("the certificate of Nomad at {addr} is for another name: set NOMAD_TLS_SERVER_NAME (server.REGION.nomad)")
            }
            rustls::Error::InvalidCertificate(_) => {
                format!("the certificate of Nomad at {addr} is not trusted: is NOMAD_CACERT the CA that signed it?")
            }
            rustls::Error::AlertReceived(_) => wants_certificate(addr),
            _ => format!("no TLS connection to Nomad at {addr}: check NOMAD_CACERT, NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY"),
        }
    } else if ended_handshake(&asked, &*source) {
        wants_certificate(addr)
    } else if io == Some(std::io::ErrorKind::ConnectionRefused) {
        format!("NOMAD_ADDR {addr} refused the connection: is a Nomad agent listening there?")
    } else if io == Some(std::io::ErrorKind::NotFound) && addr.starts_with("unix:") {
        format!("NOMAD_ADDR {addr}: no such socket; is the agent running?")
    } else if text.contains("dns error") {
        format!("the host of NOMAD_ADDR {addr} has no address: check its name and the resolver")
    } else {
        format!("no connection to NOMAD_ADDR {addr}: check the address, the network and the firewall")
    };
    Error::Unreachable { asked, sentence, source: Some(source) }
}

/// TLS 1.3 servers refuse a missing client certificate only after the handshake, on the first read.
pub(crate) fn broken(asked: Box<Asked>, source: BoxError) -> Error {
    if matches!(find::<rustls::Error>(&*source), Some(rustls::Error::AlertReceived(_))) {
        return unreachable(asked, source);
    }
    Error::Interrupted { asked, status: None, detail: String::new(), source: Some(source) }
}

/// Whether the connection was given up before it took the request, which was therefore not sent.
pub(crate) fn never_taken(e: &(dyn std::error::Error + 'static)) -> bool {
    find::<hyper::Error>(e).is_some_and(hyper::Error::is_canceled)
}

/// The same refusal as in [`broken`], read before the request was written: its alert is not in the error then.
fn ended_handshake(asked: &Asked, source: &(dyn std::error::Error + 'static)) -> bool {
    asked.address.starts_with("https://") && never_taken(source)
}

fn wants_certificate(addr: &str) -> String {
    format!("Nomad at {addr} ended the TLS handshake: does it want NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY?")
}

fn chain(e: &(dyn std::error::Error + 'static)) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(e) = next {
        text.push_str(": ");
        text.push_str(&e.to_string());
        next = e.source();
    }
    text
}

/// The first error of a type in the chain. An `io::Error` hides its inner error from `source`, so it is opened here.
fn find<'a, T: std::error::Error + 'static>(e: &'a (dyn std::error::Error + 'static)) -> Option<&'a T> {
    if let Some(found) = e.downcast_ref::<T>() {
        return Some(found);
    }
    if let Some(inner) = e.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref)
        && let Some(found) = find::<T>(inner)
    {
        return Some(found);
    }
    find(e.source()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the pool's client meets it when the server's refusal is read before the request is written.
    async fn given_up() -> hyper::Error {
        let (ours, theirs) = tokio::io::duplex(64);
        drop(theirs);
        let io = hyper_util::rt::TokioIo::new(ours);
        let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, String>(io).await.unwrap();
        drop(connection);
        sender.send_request(http::Request::new(String::new())).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_request_that_no_connection_took_was_not_sent() {
        let asked = |address: &str| {
            Box::new(Asked { method: http::Method::DELETE, path: "/v1/job/a".into(), address: address.into(), changes: true })
        };
        assert!(never_taken(&given_up().await));
        let tls = unreachable(asked("https://nomad:4646"), given_up().await.into());
        assert!(tls.is_tls() && !tls.outcome_unknown() && tls.to_string().contains("NOMAD_CLIENT_CERT"), "{tls}");
        let plain = unreachable(asked("http://nomad:4646"), given_up().await.into());
        assert!(!plain.is_tls() && !plain.outcome_unknown() && plain.to_string().contains("no connection"), "{plain}");
    }
}
