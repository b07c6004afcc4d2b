//! What the scenarios in `tests/` stand on: clusters, controllers, the `curfew` command, processes, waits.
//!
//! Everything here is seen from outside: a scenario runs the real `curfew` binary against a whole cluster (the embedded one, and
//! a real Nomad when `CURFEW_TEST_NOMAD` names a binary), and asks the kernel's process list who lives. docs/testing.md tells
//! how to run it and how to add to it.
#![expect(clippy::panic, clippy::unwrap_used, reason = "what cannot be set up ends the scenario, with the reason")]
#![expect(clippy::print_stderr, reason = "what was skipped is said aloud")]

pub mod api;
pub mod binary;
pub mod certificates;
pub mod cluster;
pub mod command;
pub mod controller;
pub mod fake;
pub mod jobs;
pub mod lab;
#[path = "../../crates/store/tests/servers/own.rs"]
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod run;
pub mod terminal;
pub mod wait;

use curfew_core::Timestamp;

/// The machine's wall clock, which clients and controllers on it share.
pub fn now() -> Timestamp {
    #[expect(clippy::disallowed_methods, reason = "the scenarios' one reading of the clock")]
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).unwrap().port()
}
