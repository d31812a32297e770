//! Leases: the right to load, given back when it is dropped.

use super::target::Target;
use crate::bus::Bus;
use crate::coherence::{Lane, Position};
use crate::store::{Link, Place};
use crate::time::Millis;
use bytes::Bytes;
use std::sync::Arc;

/// A lease that is asked for or held; dropping it gives it back.
pub(super) struct LeaseHeld {
    bus: Arc<Bus>,
    pub(super) link: Arc<dyn Link>,
    pub(super) entity: Arc<str>,
    name: Bytes,
    place: (Lane, u64),
    pub(super) token: u64,
    armed: bool,
}

/// A lease that was granted, and when.
pub(super) struct GrantedLease {
    pub(super) held: LeaseHeld,
    pub(super) at: Position,
    pub(super) server_ms: u64,
    pub(super) granted: Millis,
    /// The token of the value that the outcome is to take the place of. The lease is beside it then.
    pub(super) over: Option<u64>,
}

impl LeaseHeld {
    /// `name` is the physical key of the lease: that of the target, or one beside it.
    pub(super) fn new<K>(
        bus: &Arc<Bus>,
        link: &Arc<dyn Link>,
        target: &Target<K>,
        name: Bytes,
        entity: &Arc<str>,
        token: u64,
    ) -> Self {
        Self {
            bus: Arc::clone(bus),
            link: Arc::clone(link),
            entity: Arc::clone(entity),
            name,
            place: (target.lane, target.hash),
            token,
            armed: true,
        }
    }

    pub(super) fn granted(
        self,
        at: Position,
        server_ms: u64,
        granted: Millis,
        over: Option<u64>,
    ) -> GrantedLease {
        GrantedLease {
            held: self,
            at,
            server_ms,
            granted,
            over,
        }
    }

    /// There is nothing to give back.
    pub(super) fn forget(self) {
        self.disarmed();
    }

    /// Somebody else has it.
    pub(super) fn disarmed(mut self) -> Self {
        self.armed = false;
        self
    }

    pub(super) fn place(&self) -> Place<'_> {
        let (lane, hash) = self.place;
        Place {
            lane,
            hash,
            entity: &self.entity,
            key: &self.name,
        }
    }
}

impl Drop for LeaseHeld {
    fn drop(&mut self) {
        if !self.armed || tokio::runtime::Handle::try_current().is_err() {
            return; // it ends by itself
        }
        let (bus, link) = (Arc::clone(&self.bus), Arc::clone(&self.link));
        let (lane, hash) = self.place;
        let (entity, name, token) = (Arc::clone(&self.entity), self.name.clone(), self.token);
        let limit = bus.timing.read_timeout;
        self.bus.work.spawn(async move {
            let place = Place {
                lane,
                hash,
                entity: &entity,
                key: &name,
            };
            // If this fails too, the lease ends by itself.
            let release = link.release(place, token);
            let _ = bus.within(limit, "release", release).await;
        });
    }
}
