//! Identifiers from a seeded random source, so that a mock cluster under paused time is the same on every run.

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

#[derive(Debug)]
pub(crate) struct Ids(StdRng);

impl Ids {
    pub(crate) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// Shaped like a UUID; Nomad's are random bytes without version bits too.
    pub(crate) fn uuid(&mut self) -> String {
        let mut b = [0u8; 16];
        self.0.fill_bytes(&mut b);
        let h = hex(&b);
        format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
    }

    pub(crate) fn short(&mut self) -> String {
        let mut b = [0u8; 4];
        self.0.fill_bytes(&mut b);
        hex(&b)
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut s = String::with_capacity(bytes.len() * 2);
    for b in bytes {
        let _ = write!(s, "{b:02x}");
    }
    s
}

/// An id as a number that sorts as its text does: short keys for big indexes.
pub(crate) fn number(id: &str) -> u128 {
    id.bytes().filter_map(|b| char::from(b).to_digit(16)).fold(0, |n, d| (n << 4) | u128::from(d))
}

/// Nomad's check of an exact id: 36 characters with hexadecimal digits and hyphens.
pub(crate) fn is_uuid(s: &str) -> bool {
    s.len() == 36
        && s.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}
