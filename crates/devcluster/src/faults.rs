//! Faults on request: answers that fail, come late or never, and lost event streams.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::duration;

/// What happens to the answers of some endpoints.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Method, or `*`.
    pub method: String,
    /// A path with `*` for any run of characters: `/v1/client/allocation/*/signal`, `/v1/job*`.
    pub path: String,
    pub kind: FaultKind,
    /// How many calls it concerns; `None` until it is cleared.
    pub times: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultKind {
    /// The answer is this, and nothing is done.
    Fail { status: u16, body: String },
    /// The call is carried out, then the connection ends without an answer.
    DropAnswer,
    /// Nothing is done and the connection ends.
    DropRequest,
    /// The call is carried out after this long.
    Delay(Duration),
    /// The call is carried out at once, its answer comes after this long.
    DelayAnswer(Duration),
}

#[derive(Debug)]
pub(crate) struct Faults {
    list: Mutex<Vec<Fault>>,
    /// Changes when every event stream is to end.
    pub streams: watch::Sender<u64>,
    /// While true, frames are produced but not delivered.
    pub mute: watch::Sender<bool>,
}

impl Default for Faults {
    fn default() -> Self {
        Self { list: Mutex::default(), streams: watch::Sender::new(0), mute: watch::Sender::new(false) }
    }
}

impl Faults {
    fn lock(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, fault: Fault) {
        self.lock().push(fault);
    }

    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    pub(crate) fn all(&self) -> Vec<Fault> {
        self.lock().clone()
    }

    pub(crate) fn close_streams(&self) {
        self.streams.send_modify(|n| *n += 1);
    }

    pub(crate) fn lose_events(&self, lose: bool) {
        self.mute.send_replace(lose);
    }

    /// The first fault that concerns a call; counts it down.
    pub(crate) fn hit(&self, method: &str, path: &str) -> Option<FaultKind> {
        let mut list = self.lock();
        let at =
            list.iter().position(|f| (f.method == "*" || f.method.eq_ignore_ascii_case(method)) && matches(&f.path, path))?;
        let kind = list[at].kind.clone();
        if let Some(n) = &mut list[at].times {
            *n = n.saturating_sub(1);
            if *n == 0 {
                list.remove(at);
            }
        }
        Some(kind)
    }
}

/// A fault as the control interface reads and shows it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Wire {
    #[serde(default = "any")]
    method: String,
    path: String,
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay: Option<String>,
    times: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Fail,
    DropRequest,
    DropAnswer,
    Delay,
    DelayAnswer,
}

fn any() -> String {
    "*".into()
}

impl Wire {
    pub(crate) fn of(f: &Fault) -> Self {
        let time = |d: Duration| Some(duration::go(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)));
        let (kind, status, body, delay) = match &f.kind {
            FaultKind::Fail { status, body } => (Kind::Fail, Some(*status), Some(body.clone()), None),
            FaultKind::DropRequest => (Kind::DropRequest, None, None, None),
            FaultKind::DropAnswer => (Kind::DropAnswer, None, None, None),
            FaultKind::Delay(d) => (Kind::Delay, None, None, time(*d)),
            FaultKind::DelayAnswer(d) => (Kind::DelayAnswer, None, None, time(*d)),
        };
        Self { method: f.method.clone(), path: f.path.clone(), kind, status, body, delay, times: f.times }
    }

    /// The fault, or what is wrong with it and how it would be right.
    pub(crate) fn fault(self) -> Result<Fault, String> {
        if !["*", "GET", "PUT", "POST", "DELETE"].contains(&self.method.to_ascii_uppercase().as_str()) {
            return Err(format!("Method {:?} is none of GET, PUT, POST, DELETE and *", self.method));
        }
        if !self.path.starts_with("/v1/") && !self.path.starts_with('*') {
            return Err(format!("Path {:?} begins with neither /v1/ nor *; a * stands for anything, as in /v1/job*", self.path));
        }
        if self.times == Some(0) {
            return Err("Times is 0: leave it out for every call until the faults are cleared".into());
        }
        let late = matches!(self.kind, Kind::Delay | Kind::DelayAnswer);
        if !late && self.delay.is_some() {
            return Err("Delay belongs to the kinds delay and delay-answer".into());
        }
        if self.kind != Kind::Fail && (self.status.is_some() || self.body.is_some()) {
            return Err("Status and Body belong to the kind fail".into());
        }
        let delay = || match self.delay.as_deref().map(|d| (d, duration::parse(d))) {
            Some((_, Some(ns))) if ns > 0 => Ok(crate::job::spec::nanos(ns)),
            Some((d, _)) => Err(format!("Delay {d:?} is no duration such as 500ms or 2s")),
            None => Err("this kind needs a Delay such as 500ms or 2s".to_owned()),
        };
        let kind = match self.kind {
            Kind::Fail => {
                let status = self.status.unwrap_or(500);
                if !(200..=599).contains(&status) {
                    return Err(format!("Status {status} is no HTTP status of an answer (200 to 599)"));
                }
                FaultKind::Fail { status, body: self.body.clone().unwrap_or_default() }
            }
            Kind::DropRequest => FaultKind::DropRequest,
            Kind::DropAnswer => FaultKind::DropAnswer,
            Kind::Delay => FaultKind::Delay(delay()?),
            Kind::DelayAnswer => FaultKind::DelayAnswer(delay()?),
        };
        Ok(Fault { method: self.method, path: self.path, kind, times: self.times })
    }
}

pub(crate) fn matches(pattern: &str, path: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(first) = parts.next() else { return true };
    let Some(mut rest) = path.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns() {
        assert!(matches("/v1/client/allocation/*/signal", "/v1/client/allocation/abc/signal"));
        assert!(matches("/v1/*", "/v1/jobs"));
        assert!(matches("/v1/jobs", "/v1/jobs"));
        assert!(!matches("/v1/jobs", "/v1/jobs/parse"));
        assert!(!matches("/v1/client/*/signal", "/v1/client/allocation/abc/restart"));
    }
}
