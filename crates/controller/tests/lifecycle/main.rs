//! The controller's own life, in this process: how it starts, how it ends, what the service manager hears of it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod callers;
mod duty;
mod flaky;
mod kit;
mod manager;
mod metrics;
mod pages;
mod queue;
mod starting;
mod stopping;
mod unit;
mod whole;
