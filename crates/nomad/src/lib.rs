//! The only crate that speaks Nomad's HTTP API.
