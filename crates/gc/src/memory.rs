//! What a gc remembers from one pass to the next: sightings, in the process or in a small file.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use curfew_core::gc::Sightings;
use serde::{Deserialize, Serialize};

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("the state file {} cannot be read", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not a gc's state file; name another --state, or remove it to begin anew", path.display())]
    Nonsense { path: PathBuf, source: serde_json::Error },
    #[error("the state file {} cannot be written", path.display())]
    Write { path: PathBuf, source: std::io::Error },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    curfew_gc_state: u32,
    sightings: Sightings,
}

const VERSION: u32 = 1;

pub struct Memory {
    pub(crate) sightings: Sightings,
    path: Option<PathBuf>,
    /// Whether the next pass will know it.
    pub(crate) lasts: bool,
}

impl Memory {
    /// For a single pass: the next one begins anew.
    pub fn none() -> Self {
        Self { sightings: Sightings::default(), path: None, lasts: false }
    }

    /// For as long as the process lives.
    pub fn in_process() -> Self {
        Self { lasts: true, ..Self::none() }
    }

    /// In a file, which need not be there yet.
    pub fn in_file(path: &Path) -> Result<Self, StateError> {
        let sightings = match fs::read(path) {
            Ok(bytes) => {
                let nonsense = |source| StateError::Nonsense { path: path.into(), source };
                let state: State = serde_json::from_slice(&bytes).map_err(nonsense)?;
                if state.curfew_gc_state != VERSION {
                    return Err(nonsense(serde::de::Error::custom(format!("version {}", state.curfew_gc_state))));
                }
                state.sightings
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Sightings::default(),
            Err(source) => return Err(StateError::Read { path: path.into(), source }),
        };
        Ok(Self { sightings, path: Some(path.into()), lasts: true })
    }

    /// Writes the file anew beside the old one and puts it in its place.
    pub(crate) fn save(&self) -> Result<(), StateError> {
        let Some(path) = &self.path else { return Ok(()) };
        let failed = |source| StateError::Write { path: path.clone(), source };
        let state = State { curfew_gc_state: VERSION, sightings: self.sightings.clone() };
        let bytes = serde_json::to_vec(&state).map_err(|e| failed(e.into()))?;
        let mut beside = path.as_os_str().to_owned();
        beside.push("-new");
        let write = || {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&beside, path)
        };
        write().map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use curfew_core::Timestamp;

    use super::*;

    #[test]
    fn a_file_that_is_not_ours_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gc.json");
        Memory::in_file(&path).unwrap().save().unwrap();
        let mut memory = Memory::in_file(&path).unwrap();
        memory.sightings.forget_before(Timestamp::from_millis(0));
        memory.save().unwrap();
        for text in ["", "{}", r#"{"curfew_gc_state":2,"sightings":{}}"#] {
            fs::write(&path, text).unwrap();
            let e = Memory::in_file(&path).err().unwrap().to_string();
            assert!(e.contains("gc.json") && e.contains("--state"), "{e}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
