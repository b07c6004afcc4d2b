//! The controller: observes Nomad, keeps the kill clocks, executes operations, answers the RPC.
//!
//! It takes its Nomad, its store and its clock as arguments, so that several of them can run in one process.

mod clock;
mod deployments;
mod dispatch;
pub mod doctor;
pub mod error;
mod keeper;
mod lifecycle;
mod nodes;
mod observer;
mod retention;
mod rpc;
mod start;
mod steps;

pub use clock::SystemClock;
pub use lifecycle::{Ending, Phase};
pub use start::{Controller, Parts, StartError, hostname, start};
