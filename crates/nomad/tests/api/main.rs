//! What the crate does with what a Nomad answers, and with what is none.
#![expect(clippy::unwrap_used, reason = "a test")]

mod calls;
mod doctor;
mod fake;
mod sockets;
mod stream;
