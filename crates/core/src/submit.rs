//! The submit transform.
