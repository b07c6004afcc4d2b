//! The controller: observes Nomad, keeps the kill clocks, executes operations, answers the RPC.
//!
//! It takes its Nomad, its store and its clock as arguments, so that several of them can run in one process.

mod agenda;
mod clock;
mod crashes;
mod deployments;
mod dispatch;
pub mod doctor;
mod duty;
pub mod error;
mod keeper;
mod lifecycle;
mod metrics;
mod nodes;
mod observer;
mod pulse;
mod retention;
mod rpc;
mod shutdown;
mod start;
mod steps;
pub mod systemd;
mod trace;

pub use clock::SystemClock;
pub use crashes::Crashes;
pub use lifecycle::{Controller, Counts, Ending, Phase};
pub use metrics::{GcPass, GcVerdict, Metrics};
pub use pulse::Loop;
pub use rpc::{Reaper, TlsError, description as openapi, tokens};
pub use shutdown::{CLEAN_UP, LONGEST_END};
pub use start::{Opening, Parts, StartError, hostname, random, start};
pub use steps::Random;
