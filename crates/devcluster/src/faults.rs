//! Faults on request: answers that fail, come late or never, and lost event streams.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::watch;

/// What happens to the answers of some endpoints.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Method, or `*`.
    pub method: String,
    /// A path with `*` for any run of characters, e.g. `/v1/client/allocation/*/signal`.
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
    pub(crate) fn add(&self, fault: Fault) {
        self.list.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(fault);
    }

    pub(crate) fn clear(&self) {
        self.list.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        self.mute.send_replace(false);
    }

    pub(crate) fn all(&self) -> Vec<Fault> {
        self.list.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// The first fault that concerns a call; counts it down.
    pub(crate) fn hit(&self, method: &str, path: &str) -> Option<FaultKind> {
        let mut list = self.list.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
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

fn matches(pattern: &str, path: &str) -> bool {
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
