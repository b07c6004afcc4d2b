//! An embedded stand-in for a Nomad cluster with real processes and real signals, for tests and demos.
