//! Chance: names that nobody else draws, and jitter.

use std::hash::{BuildHasher, Hasher, RandomState};

/// 64 bits that nobody can foresee: the standard library's own keyed hash, keyed afresh each time.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A part of one, from 0 to 1 inclusive.
pub(crate) fn random_part() -> f64 {
    f64::from(random() as u32) / f64::from(u32::MAX)
}
