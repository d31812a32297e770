//! Telling those who watch tags what was invalidated, by whichever pod.

use super::{Bus, lock};
use crate::coherence::{Change, Lane, Nonce};
use crate::time::{Clock, Millis};
use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, Weak};
use std::time::Duration;

/// Entries remembered as met. One comes again within the time that a hint and a read of the log are
/// apart; should more than this come in between, some are told and counted twice.
const REMEMBERED: usize = 4096;

/// Who watches tags, as the bus sees it. Called with a lane's lock held.
pub(crate) trait Listener: Send + Sync {
    /// Whether nobody watches anything, so that nothing needs to be told.
    fn is_idle(&self) -> bool;
    /// All of this was invalidated at once.
    fn changed(&self, changes: &mut dyn Iterator<Item = Change>);
    /// Anything on `lane` may have been.
    fn missed(&self, lane: Lane);
    /// That was all for the moment: those who were told may run. Called under no lock.
    fn wake(&self);
}

/// Until when this pod knows of every invalidation, whatever its tag.
#[derive(Debug)]
pub(crate) struct Liveness {
    /// All lanes are live until then.
    until: AtomicU64,
    clock: Clock,
    lease: Duration,
}

impl Liveness {
    pub(super) fn new(clock: Clock, lease: Duration) -> Self {
        let until = AtomicU64::new(0);
        Self {
            until,
            clock,
            lease,
        }
    }

    pub(super) fn confirm(&self, until: u64) {
        self.until.fetch_max(until, Ordering::AcqRel);
    }

    pub(crate) fn now(&self) -> Millis {
        self.clock.now()
    }

    #[inline]
    pub(crate) fn until(&self) -> Millis {
        Millis(self.until.load(Ordering::Acquire))
    }

    /// When the confirmation began that is standing for all lanes.
    pub(crate) fn confirmed_at(&self) -> Millis {
        self.confirmed_by(self.until())
    }

    /// When the confirmation began that lasts until `until`.
    pub(crate) fn confirmed_by(&self, until: Millis) -> Millis {
        Millis(until.0.saturating_sub(crate::time::millis(self.lease)))
    }

    /// Whether a reader who loaded `until` before anything else may use what began at `since`. Either
    /// kind of evidence ends before L is over, as in [`Rules::may_serve`](crate::coherence::Rules::may_serve).
    #[inline]
    pub(crate) fn vouches(&self, until: Millis, since: Millis) -> bool {
        self.vouches_at(self.clock.now(), until, since)
    }

    #[inline]
    pub(crate) fn vouches_at(&self, now: Millis, until: Millis, since: Millis) -> bool {
        now < until || now < since + self.lease
    }
}

/// The listener, and which entries it was told of.
#[derive(Default)]
pub(super) struct Listening {
    listener: OnceLock<Weak<dyn Listener>>,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    nonces: HashSet<Nonce>,
    order: VecDeque<Nonce>,
}

impl Told {
    /// Notes the entry down; false if it was there.
    fn note(&mut self, nonce: Nonce) -> bool {
        if !self.nonces.insert(nonce) {
            return false;
        }
        self.order.push_back(nonce);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.nonces.remove(&oldest);
        }
        true
    }
}

impl Bus {
    /// Makes `listener` the one that is told.
    pub(crate) fn listen(&self, listener: Weak<dyn Listener>) {
        // There is one a cache, registered as the cache is made.
        let _ = self.listening.listener.set(listener);
    }

    fn with_listener(&self, tell: impl FnOnce(&dyn Listener)) {
        if let Some(listener) = self.listening.listener.get().and_then(Weak::upgrade)
            && !listener.is_idle()
        {
            tell(&*listener);
        }
    }

    /// Tells of an entry of the log, the first time it is met. Our own were told before they were
    /// logged.
    pub(super) fn tell_of(&self, lane: Lane, nonce: Nonce, change: &Change) {
        let drawn = self.nonces.load(Ordering::Acquire);
        if nonce.0.wrapping_sub(self.nonce_base) < drawn {
            return;
        }
        // One that came out of its turn is met again as the log is read.
        let is_new = lock(&self.listening.told).note(nonce);
        if is_new {
            self.telemetry.received(change);
        }
        if change.keys.is_empty() {
            // Keys were noticed as they were evicted; a name is in nobody's way but a tag's.
            self.stripe(lane, change.entity).noticed = self.next_moment();
        }
        if is_new {
            self.with_listener(|listener| {
                listener.changed(&mut std::iter::once(change.clone()));
            });
        }
    }

    /// Tells of this pod's own invalidation, all of it at once.
    pub(super) fn tell_own(&self, mut changes: impl Iterator<Item = Change>) {
        self.with_listener(|listener| {
            listener.changed(&mut changes);
            listener.wake();
        });
    }

    /// A lane was flushed: what was invalidated on it is not known.
    pub(super) fn tell_missed(&self, lane: Lane) {
        self.with_listener(|listener| listener.missed(lane));
    }

    /// Lets those who were told run.
    pub(super) fn wake_told(&self) {
        self.with_listener(|listener| listener.wake());
    }
}
