//! How long something is kept.

use std::time::Duration;

/// How long a value is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// For this long. [`Duration::ZERO`] keeps it nowhere, and removes what stood in its place.
    For(Duration),
    /// Until it is invalidated or removed. An entity's local level still evicts it for room or by its
    /// own TTL.
    Forever,
}

impl Ttl {
    /// Kept nowhere.
    pub const NONE: Self = Self::For(Duration::ZERO);
}

impl From<Duration> for Ttl {
    fn from(duration: Duration) -> Self {
        Self::For(duration)
    }
}
