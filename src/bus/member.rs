//! Whom the bus tells in this process: local levels, and whoever keeps rooms.

use super::Bus;
use crate::coherence::{Lane, Rank};
use crate::telemetry::PresenceStats;
use crate::time::Millis;
use bytes::Bytes;
use std::sync::{Arc, PoisonError, Weak};

/// A local level, as the bus sees it. Called with the lane's lock held, and for `evict` the stripe's.
pub(crate) trait Member: Send + Sync {
    /// The entity's hash, as a clear names it.
    fn entity(&self) -> u64;
    /// Removes what stands under `hash` and ranks below `below`, and detaches such a flight.
    fn evict(&self, hash: u64, below: Rank);
    /// Starts a new generation on `lane` and detaches its flights.
    fn flush(&self, lane: Lane);
    /// As [`flush`](Self::flush), unless a clear of at least this rank was carried out already.
    fn clear(&self, lane: Lane, rank: Rank);
    /// `lane` is live until then.
    fn confirm(&self, lane: Lane, until: Millis);
    /// How many flights a caller could board or join.
    #[cfg(feature = "testing")]
    fn flights(&self) -> usize;
}

/// Who hears the messages of the subscription that are no hints. Called by the driver: must not wait.
pub(crate) trait RoomListener: Send + Sync {
    /// A message that came on the link in use, or on the one that is about to be.
    fn heard(&self, message: Bytes);
    /// What is done there, and was.
    fn stats(&self) -> PresenceStats;
}

impl Bus {
    /// Registers a local level. Its lanes start as live as the cache's are.
    pub(crate) fn register(&self, member: &Arc<impl Member + 'static>) {
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        members.retain(|member| member.strong_count() > 0);
        for lane in self.namespace.lanes() {
            member.confirm(lane, self.live_until(lane));
        }
        let member: Weak<dyn Member> = Arc::downgrade(&(Arc::clone(member) as Arc<dyn Member>));
        members.push(member);
    }

    /// Hands messages that are no hints to `listener`, the first that is given.
    pub(crate) fn listen_to_rooms(&self, listener: Weak<dyn RoomListener>) {
        self.room_listener.get_or_init(|| listener);
    }

    pub(super) fn each_member(&self, mut act: impl FnMut(&dyn Member)) {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        members
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|member| act(&*member));
    }
}
