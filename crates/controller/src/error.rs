//! Errors for people: a chain in one line.

pub use curfew_core::error::chain;
