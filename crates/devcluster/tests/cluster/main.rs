//! The dev cluster against what was recorded of a real Nomad. Mock tasks run under paused time; real processes do not.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking, as tests do")]

mod acl;
mod deployments;
mod drains;
mod faults;
mod harness;
mod jobs;
mod lists;
mod processes;
mod repeat;
mod scale;
mod schedule;
mod stream;
mod told;
