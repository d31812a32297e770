//! Numbers as scripts take them and stored bytes hold them.

use std::time::Duration;

/// A 64-bit value as scripts and stored bytes hold it.
pub(super) const fn word(value: u64) -> [u8; 8] {
    value.to_be_bytes()
}

/// Values as scripts take them, one behind the other.
pub(super) fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| word(*value)).collect()
}

/// A time to live in milliseconds, rounded up, within what the server takes.
pub(super) fn millis(ttl: Duration) -> u64 {
    const LONGEST: u128 = 1 << 52;
    let millis = ttl.as_nanos().div_ceil(1_000_000).clamp(1, LONGEST);
    u64::try_from(millis).expect("clamped to 52 bits")
}
