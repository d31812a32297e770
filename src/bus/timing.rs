//! The times that the protocol runs on.

use std::time::Duration;

/// How long a read, lease or fill may take unless [`CacheBuilder::read_timeout`] says otherwise: hundreds
/// of round trips in one data centre, and about as long as a person does not notice.
///
/// [`CacheBuilder::read_timeout`]: crate::CacheBuilder::read_timeout
pub const DEFAULT_READ_TIMEOUT: Duration = Duration::from_millis(250);

/// How long a caller waits for its invalidation unless [`CacheBuilder::invalidate_timeout`] says
/// otherwise: long enough for a link to break, be noticed (0.4 s), and be opened again (0.75 s).
///
/// [`CacheBuilder::invalidate_timeout`]: crate::CacheBuilder::invalidate_timeout
pub const DEFAULT_INVALIDATE_TIMEOUT: Duration = Duration::from_secs(2);

/// L, the length of a confirmation: a heartbeat, a poll and some slack.
pub(crate) const LEASE: Duration = Duration::from_secs(1);

/// The times that the protocol runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    /// Mean time between polls of the heads.
    pub(crate) heartbeat: Duration,
    /// How long a poll may take; then the link is given up.
    pub(crate) poll_timeout: Duration,
    /// How long a read, lease or fill may take; then the load goes on without the store.
    pub(crate) read_timeout: Duration,
    /// How long a caller waits for its invalidation to be acknowledged, and one attempt may take.
    pub(crate) invalidate_timeout: Duration,
    /// How long it may take to make sure of every lane.
    pub(crate) touch_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(250),
            poll_timeout: Duration::from_millis(400),
            read_timeout: DEFAULT_READ_TIMEOUT,
            invalidate_timeout: DEFAULT_INVALIDATE_TIMEOUT,
            touch_timeout: Duration::from_secs(1),
        }
    }
}
