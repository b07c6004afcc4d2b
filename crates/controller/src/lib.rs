//! Observes Nomad, keeps the kill clocks, executes operations, answers the RPC.
