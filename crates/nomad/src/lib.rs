//! The only crate that speaks Nomad's HTTP API: transport, typed calls, error classes, lists, events.
//!
//! One [`Transport`] of ours carries every call, so that each has a deadline, a bounded answer and one place that counts it.
//! Answers are read into small structs of ours that name only the fields a decision needs, and a job stays a
//! [`serde_json::Value`] on its way from parse to register: the models of `nomad-client-rs` lose the fields they do not know
//! when a job is read and registered again, know neither signals nor the event stream's index, and so would pay no rent here.
//!
//! Nanoseconds exist only in this crate; what leaves it are [`curfew_core::Timestamp`] and [`std::time::Duration`].
//! One call purges a job, and takes a [`curfew_core::gc::PurgeOrder`] for it (design fact 6).

mod agent;
mod allocations;
mod calls;
mod client;
mod config;
mod cursor;
mod deployments;
mod error;
mod evaluations;
mod events;
mod filter;
mod job_list;
mod jobs;
mod nodes;
mod rights;
mod route;
mod signal;
mod tls;
mod token;
mod transport;
mod wire;

pub use agent::{AgentSelf, Server};
pub use allocations::{AllocationPage, AllocationPages};
pub use client::Nomad;
pub use config::{ConfigError, NomadConfig};
pub use error::{Asked, Error};
pub use evaluations::{EvalState, EvalStatus};
pub use events::{Event, EventFrame, EventStream, StreamEnd};
pub use filter::{Filter, JobFilter};
pub use job_list::JobPages;
pub use jobs::{Deregistration, Registration, Validation};
pub use nodes::{DrainDeadline, LastDrain, Node, NodeStatus, NodeStub};
pub use rights::{May, Right};
pub use signal::SignalOutcome;
pub use transport::{Body, Transport, TransportError};
pub use wire::BadAllocation;

/// Every call that this crate can make, as `METHOD path-template`: what a stand-in for Nomad has to answer.
pub fn routes() -> impl Iterator<Item = &'static str> {
    route::Route::ALL.iter().map(|r| r.label())
}
