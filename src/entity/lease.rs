//! Leases: the right to load, given back when it is dropped.

use super::Inner;
use super::target::Target;
use crate::bus::Bus;
use crate::coherence::{Lane, Position};
use crate::key::Key;
use crate::store::{Link, Place};
use crate::time::Millis;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// Leases are no shorter than this, or a pause of the loading pod would cost it its fill …
const LEASE_MIN: Duration = Duration::from_secs(1);
/// … and no longer than this, or a crash of it would leave the key without filler for too long.
const LEASE_MAX: Duration = Duration::from_secs(30);

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

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// How long a lease lasts: three times what loads of this entity usually take, but at most half of
    /// what a caller waits, so that a caller whose leader died in another pod has time left to load.
    pub(super) fn lease_ttl(&self) -> Duration {
        let longest = (self.options.load_timeout / 2).clamp(LEASE_MIN, LEASE_MAX);
        self.usual_load
            .get()
            .map_or(longest, |usual| (usual * 3).clamp(LEASE_MIN, longest))
    }

    /// How long to wait for another pod's load before loading without it.
    pub(super) fn patience(&self) -> Duration {
        let lease = self.lease_ttl();
        self.usual_load
            .get()
            .map_or(lease, |usual| (usual * 2).max(LEASE_MIN).min(lease))
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
