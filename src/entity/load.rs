//! Loading from the source, and what becomes of the outcome.

use super::Inner;
use super::outcome::{Landed, Origin, Outcome};
use super::target::Target;
use crate::bus::Bus;
use crate::codec;
use crate::coherence::{Epoch, Position, Rank};
use crate::envelope::{self, Header, Lease};
use crate::flight::Guard;
use crate::key::Key;
use crate::local::Slot;
use crate::store::{Fill, Link, Place};
use crate::time::{Millis, millis};
use crate::ttl::Ttl;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Leases are no shorter than this, or a pause of the loading pod would cost it its fill …
const LEASE_MIN: Duration = Duration::from_secs(1);
/// … and no longer than this, or a crash of it would leave the key without filler for too long.
const LEASE_MAX: Duration = Duration::from_secs(30);
/// Lives shorter than this are not jittered: their loads do not fall together.
const JITTER_FROM: Duration = Duration::from_secs(10);

/// What a load may do with its outcome.
pub(super) struct LoadRun {
    /// The lane position that the outcome will reflect, if the lane is followed.
    pub(super) rank: Option<Rank>,
    pub(super) generation: u32,
    pub(super) lease: Option<GrantedLease>,
    /// It waits for its turn among the loads that the entity's limit is for.
    pub(super) queued: bool,
}

/// An outcome that was loaded under a lease, to be stored.
pub(super) struct Unfilled<K, V, E> {
    target: Arc<Target<K>>,
    lease: GrantedLease,
    start: Millis,
    took: Duration,
    ttl: Ttl,
    outcome: Outcome<V, E>,
}

/// An encoded outcome, and the lease to store it under.
pub(super) struct Filling {
    pub(super) held: LeaseHeld,
    epoch: Epoch,
    pub(super) envelope: Vec<u8>,
    ttl: Option<Duration>,
}

impl Filling {
    pub(super) fn fill(&self) -> (Place<'_>, Fill<'_>) {
        let fill = Fill {
            token: self.held.token,
            epoch: self.epoch,
            envelope: &self.envelope,
            ttl: self.ttl,
        };
        (self.held.place(), fill)
    }
}

/// A lease that is asked for or held; dropping it gives it back.
pub(super) struct LeaseHeld {
    bus: Arc<Bus>,
    link: Arc<dyn Link>,
    entity: Arc<str>,
    name: Bytes,
    place: (crate::coherence::Lane, u64),
    token: u64,
    armed: bool,
}

/// A lease that was granted, and when.
pub(super) struct GrantedLease {
    held: LeaseHeld,
    at: Position,
    server_ms: u64,
    granted: Millis,
}

impl LeaseHeld {
    pub(super) fn new<K>(
        bus: &Arc<Bus>,
        link: &Arc<dyn Link>,
        target: &Target<K>,
        entity: &Arc<str>,
        token: u64,
    ) -> Self {
        Self {
            bus: Arc::clone(bus),
            link: Arc::clone(link),
            entity: Arc::clone(entity),
            name: target.name.clone(),
            place: (target.lane, target.hash),
            token,
            armed: true,
        }
    }

    pub(super) fn granted(self, at: Position, server_ms: u64, granted: Millis) -> GrantedLease {
        GrantedLease {
            held: self,
            at,
            server_ms,
            granted,
        }
    }

    /// There is nothing to give back.
    pub(super) fn forget(mut self) {
        self.armed = false;
    }

    pub(super) fn link(&self) -> &Arc<dyn Link> {
        &self.link
    }

    fn place(&self) -> Place<'_> {
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
        bus.work.spawn(async move {
            let place = Place {
                lane,
                hash,
                entity: &entity,
                key: &name,
            };
            // If this fails too, the lease ends by itself.
            let _ = Bus::within(limit, "release", link.release(place, token)).await;
        });
    }
}

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Loads by the entity's loader, in a task that goes on while anybody waits for it.
    pub(super) fn load_in_task(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        guard: Guard<K, Landed<V, E>>,
        run: LoadRun,
    ) {
        let (this, target) = (Arc::clone(self), Arc::clone(target));
        let (abandoned, limit) = (guard.abandoned(), self.lead_limit());
        let closing = self.bus().closing.clone();
        self.bus().work.spawn(async move {
            let loader = Arc::clone(&this.loader);
            tokio::select! {
                biased;
                () = this.load_here(&target, guard, run, loader.load(&target.key)) => {}
                () = closing.cancelled() => {}
                () = abandoned => {}
                // A hung load must not hold the key for ever: whoever still waits leads another one.
                () = sleep(limit) => {}
            }
        });
    }

    /// Runs `load`, lands its outcome, and lets it be stored behind the caller.
    pub(super) async fn load_here(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        guard: Guard<K, Landed<V, E>>,
        mut run: LoadRun,
        load: impl Future<Output = Result<V, E>>,
    ) {
        let _permit = match run.queued {
            false => None,
            true => {
                let permit = self.limiter.acquire().await;
                self.date_anew(target, &mut run);
                Some(permit)
            }
        };
        let (start, precise) = (self.bus().clock.now(), Instant::now());
        let outcome: Outcome<V, E> = load.await.map(Arc::new).map_err(Arc::new);
        let took = precise.elapsed();
        self.usual_load.add(took);
        if let Some(unfilled) = self.land_loaded(target, guard, run, (start, took), outcome) {
            let this = Arc::clone(self);
            self.bus()
                .work
                .spawn(async move { this.fill(unfilled).await });
        }
    }

    /// What was known before a load had to wait would date it too early, which is safe but wasteful.
    /// Under a lease the store says what it reflects, however long ago.
    pub(super) fn date_anew(&self, target: &Target<K>, run: &mut LoadRun) {
        if run.lease.is_none() {
            let began = self.began(target.lane);
            (run.rank, run.generation) = (began.rank(), began.generation);
        }
    }

    /// Keeps an outcome here and tells all who wait for it; gives what is left to do if it is also for
    /// the store. `start` and `took` are the load's.
    pub(super) fn land_loaded(
        &self,
        target: &Arc<Target<K>>,
        guard: Guard<K, Landed<V, E>>,
        run: LoadRun,
        (start, took): (Millis, Duration),
        outcome: Outcome<V, E>,
    ) -> Option<Unfilled<K, V, E>> {
        let ttl = self.ttl_of(&target.key, &outcome);
        self.keep_loaded(target, &guard, &run, start, ttl, &outcome);
        let landed = Landed::new(&outcome, Origin::Loader, took, start);
        guard.land(landed);
        run.lease.map(|lease| Unfilled {
            target: Arc::clone(target),
            lease,
            start,
            took,
            ttl,
            outcome,
        })
    }

    /// How long to keep an outcome; jittered, so that what was loaded together does not expire
    /// together.
    fn ttl_of(&self, key: &K, outcome: &Outcome<V, E>) -> Ttl {
        let ttl = match outcome {
            Ok(value) => (self.options.ttl)(key, value),
            Err(error) => match &self.options.error_codec {
                Some(codec) => (codec.ttl)(error).map_or(Ttl::NONE, Ttl::For),
                None => Ttl::NONE,
            },
        };
        match ttl {
            Ttl::For(life) if life > JITTER_FROM => {
                let random = crate::random::random_part();
                let factor = 1.0 + self.options.jitter * (2.0 * random - 1.0);
                Ttl::For(Duration::try_from_secs_f64(life.as_secs_f64() * factor).unwrap_or(life))
            }
            ttl => ttl,
        }
    }

    fn keep_loaded(
        &self,
        target: &Target<K>,
        guard: &Guard<K, Landed<V, E>>,
        run: &LoadRun,
        start: Millis,
        ttl: Ttl,
        outcome: &Outcome<V, E>,
    ) {
        let life = match ttl {
            Ttl::For(life) => life.min(self.options.local_ttl),
            Ttl::Forever => self.options.local_ttl,
        };
        if life.is_zero() {
            return;
        }
        let slot = Slot {
            value: outcome.clone(),
            // Without a lane to follow it ranks below everything: any invalidation removes it, and the
            // flush with which a lane begins. Until then its own youth is what it is served by.
            rank: run.rank.unwrap_or_default(),
            generation: run.generation,
            load_start: start,
            loaded: start,
            expires: self.bus().clock.now() + life,
        };
        self.level
            .insert(self.bus(), target.hash, target.key.clone(), slot, |_| {
                // Detached: an invalidation came after the load began, possibly one without a position
                // yet.
                !guard.is_detached()
            });
    }

    /// Stores an outcome under its lease. Whatever fails here costs another load, nothing else.
    async fn fill(&self, unfilled: Unfilled<K, V, E>) {
        let Some(filling) = self.encode(unfilled) else {
            return;
        };
        let (place, fill) = filling.fill();
        let filled = filling.held.link().fill(place, fill);
        if Bus::within(self.bus().timing.read_timeout, "fill", filled)
            .await
            .is_ok()
        {
            // Stored, or refused because the lease is gone: either way there is none to give back.
            filling.held.forget();
        }
    }

    /// The bytes to store; `None`, and the lease given back, if there are to be none.
    pub(super) fn encode(&self, unfilled: Unfilled<K, V, E>) -> Option<Filling> {
        let Unfilled {
            target,
            lease,
            start,
            took,
            ttl,
            outcome,
        } = unfilled;
        if ttl == Ttl::NONE {
            return None; // dropping the lease removes it
        }
        let payload = match (&outcome, &self.options.error_codec) {
            (Ok(value), _) => {
                codec::encode(&**value).map(|payload| (envelope::Outcome::Value, payload))
            }
            (Err(error), Some(codec)) => {
                (codec.encode)(error).map(|payload| (envelope::Outcome::Error, payload))
            }
            (Err(_), None) => return None,
        };
        let GrantedLease {
            held,
            at,
            server_ms,
            granted,
        } = lease;
        let loaded_ms = server_ms + millis(start.since(granted));
        let now_ms = server_ms + millis(self.bus().clock.now().since(granted));
        let life = match ttl {
            Ttl::For(life) => Some(life),
            Ttl::Forever => None,
        };
        let header = Header {
            lease: Lease {
                token: held.token,
                began: at,
            },
            loaded_ms,
            expires_ms: life.map_or(0, |life| now_ms.saturating_add(millis(life).max(1))),
            soft_expires_ms: 0,
            load_us: u32::try_from(took.as_micros()).unwrap_or(u32::MAX),
            schema: self.options.schema,
            tags: Vec::new(),
        };
        let packing = &self.options.packing;
        let encoded = payload.and_then(|(kind, payload)| {
            envelope::encode(kind, &header, target.hashed(), &payload, packing)
        });
        let envelope = match encoded {
            Ok(envelope) => envelope,
            Err(error) => {
                tracing::warn!(entity = %self.name, %error, "outcome cannot be encoded; not stored");
                return None;
            }
        };
        Some(Filling {
            held,
            epoch: at.epoch,
            envelope,
            ttl: life,
        })
    }

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
