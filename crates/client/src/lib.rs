//! The Rust client of Curfew's RPC.
