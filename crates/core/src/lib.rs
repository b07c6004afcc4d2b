//! Curfew's decisions: kill clocks, the submit transform, operations.
//!
//! Nothing here does I/O, waits, or asks for the time: `now` is an argument. What Nomad shows goes in, what to do comes out.

pub mod access;
pub mod alloc;
pub mod api;
pub mod audit;
pub mod clock;
pub mod config;
pub mod deployment;
pub mod doctor;
pub mod drain;
pub mod duration;
pub mod error;
pub mod gc;
mod ids;
pub mod kinds;
pub mod operation;
pub mod outcome;
pub mod restarts;
pub mod rollout;
pub mod spec;
pub mod submit;
mod time;

pub use alloc::{Allocation, ClientStatus, Desired, EventKind, Task, TaskEvent, TaskState};
pub use ids::{AllocId, Datacenter, EvalId, JobId, JobKey, Namespace, NodeId, OpId, TaskName};
pub use time::{Clock, Timestamp};
