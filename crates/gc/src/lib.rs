//! The gc: the last line. When a controller crashed, a database was lost or somebody used Nomad directly, it finds what lives too
//! long and what was left lying, says so, and ends what it may.
//!
//! ```text
//!   look:  nodes, told allocations, odd jobs, leases ──▶ core::gc ──▶ candidates, each with its evidence
//!   act:   cap ──▶ read the candidate anew ──▶ the same verdict? ──▶ one call ──▶ read what came of it
//! ```
//!
//! It signals only with a [`curfew_core::clock::KillOrder`] and purges only with a [`curfew_core::gc::PurgeOrder`]. Both are made by
//! `core` from a read of the same moment, so a stale list can name nothing that is then touched.

mod act;
mod candidate;
mod jobs;
mod known;
mod look;
mod memory;
mod report;
mod told;
mod turn;

use std::sync::{Arc, Mutex, PoisonError};

use curfew_core::Clock;
use curfew_core::gc::{Settings, Sightings};
use curfew_nomad::Nomad;

pub use candidate::{Candidate, Outcome, Subject};
pub use known::Known;
pub use look::Found;
pub use memory::{Memory, StateError};
pub use report::{Report, Tally};
pub use turn::{Turn, TurnError};

/// A question whose answer could not be had. Nothing follows from it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Nomad(#[from] curfew_nomad::Error),
    #[error(transparent)]
    Store(#[from] curfew_store::StoreError),
    #[error(transparent)]
    Client(#[from] curfew_client::Error),
    #[error("{0}")]
    Unreadable(String),
}

/// What a gc is made of.
pub struct Parts {
    pub nomad: Nomad,
    pub known: Known,
    pub clock: Arc<dyn Clock>,
    pub settings: Settings,
    /// `host:pid`, for the audit trail and the controller's.
    pub who: String,
    pub memory: Memory,
}

/// A gc: [`Gc::look`], then [`Gc::act`].
pub struct Gc {
    nomad: Nomad,
    known: Known,
    clock: Arc<dyn Clock>,
    settings: Settings,
    who: String,
    memory: Mutex<Memory>,
}

impl Gc {
    pub fn new(parts: Parts) -> Self {
        let Parts { nomad, known, clock, settings, who, memory } = parts;
        Self { nomad, known, clock, settings, who, memory: Mutex::new(memory) }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn sightings<T>(&self, with: impl FnOnce(&mut Sightings) -> T) -> T {
        with(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner).sightings)
    }

    fn remembers(&self) -> bool {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).lasts
    }
}
