//! Nomad's token: as it was given, or out of a file that somebody may replace (Nomad itself, for a workload identity).

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use crate::config::{ConfigError, NomadConfig};

/// How old what was read from the file may be.
const FRESH: Duration = Duration::from_secs(3);

pub(crate) enum Token {
    Given(Option<HeaderValue>),
    File { path: PathBuf, read: Mutex<Read> },
}

pub(crate) struct Read {
    at: Instant,
    value: HeaderValue,
    failing: bool,
}

impl Token {
    pub(crate) fn new(config: &NomadConfig) -> Result<Self, ConfigError> {
        match (&config.token, &config.token_file) {
            (None, Some(path)) => {
                let read = Read { at: Instant::now(), value: read(path)?, failing: false };
                Ok(Self::File { path: path.clone(), read: Mutex::new(read) })
            }
            (token, _) => Ok(Self::Given(token.as_deref().map(header).transpose()?)),
        }
    }

    /// A file that cannot be read now leaves the token as it was.
    pub(crate) fn value(&self) -> Option<HeaderValue> {
        let (path, held) = match self {
            Self::Given(value) => return value.clone(),
            Self::File { path, read } => (path, read),
        };
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.at.elapsed() >= FRESH {
            held.at = Instant::now();
            match read(path) {
                Ok(value) => (held.value, held.failing) = (value, false),
                Err(e) => {
                    if !std::mem::replace(&mut held.failing, true) {
                        tracing::error!(error = %e, "the token cannot be read anew; the old one stays");
                    }
                }
            }
        }
        Some(held.value.clone())
    }
}

fn read(path: &PathBuf) -> Result<HeaderValue, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::TokenFile { path: path.clone(), source })?;
    header(text.trim())
}

fn header(token: &str) -> Result<HeaderValue, ConfigError> {
    let mut value = HeaderValue::from_str(token).map_err(|_| ConfigError::Token)?;
    value.set_sensitive(true);
    Ok(value)
}
