//! The read path below the local level: join a flight, or lead one to the store, to the lease, to the
//! loader.

use super::Inner;
use super::load::{LeaseHeld, LoadRun};
use super::outcome::{Landed, Origin, Outcome};
use crate::bus::{Bus, Stripe};
use crate::codec;
use crate::coherence::{FlightMeta, Head, Lane, Rank, Verdict, View};
use crate::envelope::{self, Header, Stored};
use crate::error::CacheError;
use crate::flight::{Boarding, Flown, Guard, Landing, Waiter};
use crate::key::{HashedKey, Key};
use crate::local::Slot;
use crate::store::{Found, LeaseReply, LeaseRequest, LeaseState, Link, Place};
use crate::time::Millis;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// How long a read waits for its lane to learn of an epoch that the store is in.
const SYNC_LIMIT: Duration = Duration::from_millis(100);
/// How often it does so before it goes to the loader.
const SYNCS: usize = 2;
/// Pauses between two looks at a key that another pod is loading: short enough to take over soon,
/// jittered so that pods do not look in step.
const HELD_PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(50));

/// A one-shot loader's type, where there is none.
pub(super) type NoLoader<V, E> = fn() -> std::future::Ready<Result<V, E>>;

/// A key on its way through the store, with everything that is derived from it.
pub(super) struct Target<K> {
    pub(super) key: K,
    pub(super) hash: u64,
    pub(super) lane: Lane,
    /// Canonical bytes.
    bytes: Bytes,
    /// Physical key within the lane.
    pub(super) name: Bytes,
}

impl<K> Target<K> {
    pub(super) fn hashed(&self) -> HashedKey<'_> {
        HashedKey {
            hash: self.hash,
            bytes: &self.bytes,
        }
    }

    pub(super) fn place<'a>(&'a self, entity: &'a str) -> Place<'a> {
        Place {
            lane: self.lane,
            hash: self.hash,
            entity,
            key: &self.name,
        }
    }
}

/// What was known before the store or the source was asked.
#[derive(Clone, Copy)]
pub(super) struct Began {
    pub(super) view: Option<View>,
    pub(super) generation: u32,
    pub(super) start: Millis,
}

impl Began {
    /// The rank of a value that is loaded from the source from here on, whatever the store says.
    ///
    /// The lowest while the lane is not followed: such a value may be served while it is young, and
    /// goes with the flush from which the lane is followed.
    pub(super) fn rank(&self) -> Rank {
        self.view.map(|view| view.applied).unwrap_or_default()
    }
}

/// What the store has under a key.
enum Look<V, E> {
    Found(Landed<V, E>),
    /// Somebody is loading it.
    Held,
    /// Nothing that can be used; the bytes that stand there, if they are what cannot be.
    Absent(Option<Bytes>),
    /// It is ahead of what this pod has followed.
    Sync,
}

/// What a leader must do.
enum Next<V, E> {
    Land(Landed<V, E>),
    Load(LoadRun),
}

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    pub(super) fn target(&self, key: &K, hash: u64) -> Target<K> {
        let bytes = key.with_bytes(Bytes::copy_from_slice);
        let mut name = String::new();
        self.keys.push_name(
            HashedKey {
                hash,
                bytes: &bytes,
            },
            &mut name,
        );
        let lane = self.bus().space.lane_of(hash);
        Target {
            key: key.clone(),
            hash,
            lane,
            bytes,
            name: Bytes::from(name),
        }
    }

    pub(super) fn began(&self, lane: Lane) -> Began {
        // The generation first: a flush between the two must show.
        let generation = self.level.word(lane).generation();
        Began {
            view: self.bus().view(lane),
            generation,
            start: self.bus().clock.now(),
        }
    }

    /// Everything after a local miss, within the hard limit.
    pub(super) async fn read<F, Fut>(
        self: Arc<Self>,
        key: &K,
        hash: u64,
        once: Option<F>,
    ) -> Result<Landed<V, E>, CacheError<E>>
    where
        F: FnOnce() -> Fut + Send,
        Fut: Future<Output = Result<V, E>> + Send,
    {
        if self.bus().closing.is_cancelled() {
            return Err(CacheError::Closed);
        }
        let target = Arc::new(self.target(key, hash));
        let mut seat = None;
        let limit = self.options.load_timeout;
        match timeout_at(Instant::now() + limit, self.fly(&target, once, &mut seat)).await {
            Ok(landed) => Ok(landed),
            Err(_) => {
                // The caller gives up, the load does not: it may still fill.
                if let Some(seat) = seat {
                    Waiter::leave_running(seat);
                }
                Err(CacheError::Timeout { after: limit })
            }
        }
    }

    /// Boards the key's flight and stays on it, as its leader if need be, until it lands.
    async fn fly<F, Fut>(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        mut once: Option<F>,
        seat: &mut Option<Waiter<K, Landed<V, E>>>,
    ) -> Landed<V, E>
    where
        F: FnOnce() -> Fut + Send,
        Fut: Future<Output = Result<V, E>> + Send,
    {
        let (mut lead, waiter, confirmed) = match self.board(target) {
            (Boarding::Leader(guard, waiter), _) => (Some(guard), waiter, Millis::default()),
            (Boarding::Waiter(waiter), confirmed) => (None, waiter, confirmed),
        };
        let waiter = seat.insert(waiter);
        loop {
            if let Some(guard) = lead.take() {
                match self.seek(target).await {
                    Next::Land(landed) => guard.land(landed),
                    Next::Load(run) => match once.take() {
                        Some(load) => self.load_here(target, guard, run, load()).await,
                        None => self.load_in_task(target, guard, run),
                    },
                }
            }
            match waiter.wait().await {
                Flown::Landed(Landing::Done(landed)) => {
                    let as_of = landed.as_of.max(confirmed);
                    return Landed { as_of, ..landed };
                }
                Flown::Landed(Landing::Aborted) => {
                    return Landed::failed(if self.bus().closing.is_cancelled() {
                        CacheError::Closed
                    } else {
                        CacheError::LoadAborted
                    });
                }
                Flown::Lead(guard) if self.bus().closing.is_cancelled() => guard.abort(),
                Flown::Lead(guard) => lead = Some(guard),
            }
        }
    }

    /// Boards the key's flight. Also gives what the lane proves of a flight that was joined: had an
    /// invalidation that was acknowledged before this hit it, it would be detached.
    fn board(&self, target: &Target<K>) -> (Boarding<K, Landed<V, E>>, Millis) {
        let (bus, began) = (self.bus(), self.began(target.lane));
        let meta = FlightMeta {
            rank: began.rank(),
            start: began.start,
            uncovered: began.view.is_none(),
        };
        let live_until = bus.live_until(target.lane);
        let lead_ends = self.lead_limit();
        let mut confirmed = bus.confirmed(target.lane);
        let flights = &self.level.flights;
        let boarding = flights.board(target.hash, &target.key, meta, |flight| {
            if flight.uncovered {
                confirmed = Millis::default();
            }
            bus.rules.may_join(live_until, flight, began.start)
                && began.start < flight.start + lead_ends
        });
        (boarding, confirmed)
    }

    /// The leader's way: the local level again, then the store, then the right to load.
    async fn seek(&self, target: &Target<K>) -> Next<V, E> {
        let confirmed = self.bus().confirmed(target.lane);
        if let Some((slot, now)) = self.level.hit(target.hash, &target.key) {
            // The flight before this one landed between our miss and our boarding.
            let (age, as_of) = (now.since(slot.loaded), confirmed.max(slot.load_start));
            return Next::Land(Landed::new(&slot.value, Origin::Local, age, as_of));
        }
        let Ok(link) = self.bus().link() else {
            return Next::Load(self.uncovered_run(target.lane));
        };
        let mut syncs = 0;
        let mut waited: Option<Instant> = None;
        let mut flagged = false;
        loop {
            let began = self.began(target.lane);
            let look = match self.ask_store(&*link, target, &began).await {
                Some(look) => look,
                None => break,
            };
            match look {
                Look::Found(landed) => return Next::Land(landed),
                Look::Sync if syncs < SYNCS => {
                    syncs += 1;
                    self.bus().sync(SYNC_LIMIT).await;
                    continue;
                }
                Look::Sync => break,
                Look::Held if flagged => {}
                Look::Held | Look::Absent(_) => {
                    let unusable = match &look {
                        Look::Absent(bytes) => bytes.as_deref(),
                        _ => None,
                    };
                    match self.ask_lease(&link, target, &began, unusable).await {
                        Some(Ok(next)) => return next,
                        Some(Err(())) => flagged = true,
                        None => break,
                    }
                }
            }
            let since = *waited.get_or_insert_with(Instant::now);
            if since.elapsed() >= self.patience() {
                break;
            }
            self.pause(target.hash).await;
        }
        Next::Load(self.uncovered_run(target.lane))
    }

    /// A load without a lease: its outcome is not for the store.
    fn uncovered_run(&self, lane: Lane) -> LoadRun {
        let began = self.began(lane);
        LoadRun {
            rank: Some(began.rank()),
            generation: began.generation,
            lease: None,
        }
    }

    /// Waits for the fill of a key that another pod is loading to be announced, or a little while.
    async fn pause(&self, hash: u64) {
        let filled = self.bus().fill_waiter(hash);
        let (shortest, longest) = HELD_PAUSE;
        let part = f64::from(crate::bus::random() as u32) / f64::from(u32::MAX);
        let pause = shortest + (longest - shortest).mul_f64(part);
        // Either way the store is asked again.
        let _ = timeout(pause, filled.notified()).await;
    }

    /// One read of the store; `None` if it is of no help.
    async fn ask_store(
        &self,
        link: &dyn Link,
        target: &Target<K>,
        began: &Began,
    ) -> Option<Look<V, E>> {
        if self.is_poisoned(target) {
            return None;
        }
        let read = link.read(target.place(&self.name));
        let found = Bus::within(self.bus().timing.read_timeout, "read", read)
            .await
            .ok()?;
        Some(self.judge(target, began, found))
    }

    fn is_poisoned(&self, target: &Target<K>) -> bool {
        self.bus()
            .is_poisoned(target.lane, target.hash, self.keys.entity_hash())
    }

    /// Makes of stored bytes what they are worth, and keeps them here if they are worth keeping.
    fn judge(&self, target: &Target<K>, began: &Began, found: Found) -> Look<V, E> {
        let Some(bytes) = found.value else {
            return match self.verdict(began, found.head.as_ref(), None, found.floor) {
                Verdict::Sync => Look::Sync,
                _ => Look::Absent(None),
            };
        };
        let stored = match envelope::decode(&bytes, target.hashed(), self.options.schema) {
            Ok(stored) => stored,
            Err(reason) => {
                self.note_unusable(target, &reason);
                return Look::Absent(Some(bytes));
            }
        };
        let lease = match &stored {
            Stored::Outcome(_, header, _) => header.lease,
            Stored::Lease(lease) => *lease,
        };
        let position = Some((lease.began.epoch, lease.began.seq));
        let rank = match self.verdict(began, found.head.as_ref(), position, found.floor) {
            Verdict::Usable(rank) => rank,
            Verdict::Absent => return Look::Absent(None),
            Verdict::Sync => return Look::Sync,
        };
        let Stored::Outcome(kind, header, payload) = stored else {
            return Look::Held;
        };
        let Some(left) = self.left_of(&header) else {
            return Look::Absent(Some(bytes));
        };
        match self.decode(kind, payload) {
            Ok(outcome) if !self.is_poisoned(target) => {
                Look::Found(self.keep_found(target, began, rank, &header, left, outcome))
            }
            Ok(_) => Look::Absent(None),
            Err(reason) => {
                self.note_unusable(target, &reason);
                Look::Absent(Some(bytes))
            }
        }
    }

    fn verdict(
        &self,
        began: &Began,
        head: Option<&Head>,
        value: Option<(crate::coherence::Epoch, u64)>,
        floor: Option<u64>,
    ) -> Verdict {
        self.bus().rules.judge(began.view, head, value, floor)
    }

    fn decode(
        &self,
        kind: envelope::Outcome,
        payload: &[u8],
    ) -> Result<Outcome<V, E>, codec::CodecError> {
        match (kind, &self.options.error_codec) {
            (envelope::Outcome::Value, _) => {
                codec::decode(payload).map(|value| Ok(Arc::new(value)))
            }
            (envelope::Outcome::Error, Some(codec)) => {
                (codec.decode)(payload).map(|error| Err(Arc::new(error)))
            }
            // Another pod caches errors, this one does not: for us there is nothing.
            (envelope::Outcome::Error, None) => Err(codec::CodecError::unreadable("error")),
        }
    }

    /// What is left of a stored outcome's life; `None` if nothing is.
    fn left_of(&self, header: &Header) -> Option<Duration> {
        if header.expires_ms == 0 {
            return Some(Duration::MAX);
        }
        let now = self.bus().server_now()?;
        let left = header
            .expires_ms
            .checked_sub(now)
            .filter(|&left| left > 0)?;
        Some(Duration::from_millis(left))
    }

    fn keep_found(
        &self,
        target: &Target<K>,
        began: &Began,
        rank: Rank,
        header: &Header,
        left: Duration,
        outcome: Outcome<V, E>,
    ) -> Landed<V, E> {
        let now = self.bus().clock.now();
        let age_ms = self
            .bus()
            .server_now()
            .map_or(0, |at| at.saturating_sub(header.loaded_ms));
        let age = Duration::from_millis(age_ms);
        let landed = Landed::new(&outcome, Origin::Store, age, began.start);
        let life = left.min(self.options.local_ttl);
        if !life.is_zero() {
            let slot = Slot {
                value: outcome,
                rank,
                generation: began.generation,
                load_start: began.start,
                loaded: Millis(now.0.saturating_sub(age_ms)),
                expires: now + life,
            };
            // Not if this pod began to invalidate it: the store may have answered before it knew.
            let untouched = |stripe: &Stripe| !stripe.is_poisoned(target.hash);
            let (hash, key) = (target.hash, target.key.clone());
            self.level.insert(self.bus(), hash, key, slot, untouched);
        }
        landed
    }

    /// Asks for the lease. `Some(Err(()))` if somebody else has it; `None` if the store is of no help.
    async fn ask_lease(
        &self,
        link: &Arc<dyn Link>,
        target: &Target<K>,
        began: &Began,
        unusable: Option<&[u8]>,
    ) -> Option<Result<Next<V, E>, ()>> {
        let token = crate::bus::random();
        let request = LeaseRequest {
            token,
            ttl: self.lease_ttl(),
            unusable,
            opening: self.bus().opening(),
        };
        // In place before the call: if this future is dropped, a lease that it was granted is freed.
        let held = LeaseHeld::new(self.bus(), link, target, &self.name, token);
        let lease = link.lease(target.place(&self.name), request);
        let reply = Bus::within(self.bus().timing.read_timeout, "lease", lease).await;
        let LeaseReply {
            head,
            floor,
            server_ms,
            state,
        } = match reply {
            Ok(reply) => reply,
            Err(_) => return None,
        };
        let rank = crate::coherence::rules::rank_of_head(began.view, &head);
        match state {
            LeaseState::Granted => {
                let lease = Some(held.granted(head.at, server_ms, self.bus().clock.now()));
                if rank.is_none() {
                    self.bus().ask_for_poll();
                }
                Some(Ok(Next::Load(LoadRun {
                    rank,
                    generation: began.generation,
                    lease,
                })))
            }
            LeaseState::Held => {
                held.forget();
                Some(Err(()))
            }
            LeaseState::Present(bytes) => {
                held.forget();
                let found = Found {
                    head: Some(head),
                    value: Some(bytes),
                    floor: Some(floor),
                };
                match self.judge(target, began, found) {
                    Look::Found(landed) => Some(Ok(Next::Land(landed))),
                    _ => None,
                }
            }
        }
    }

    /// How long a load may take before its lead ends.
    pub(super) fn lead_limit(&self) -> Duration {
        self.lease_ttl().max(self.options.load_timeout)
    }

    /// Logged at most now and then for one entity: rubbish comes in heaps.
    fn note_unusable(&self, target: &Target<K>, reason: &dyn std::error::Error) {
        self.bus().count_unusable();
        let now = self.bus().clock.now();
        if self.unusable_log.may_log(target.hash, now) {
            tracing::warn!(entity = %self.name, key = %String::from_utf8_lossy(&target.name),
                %reason, "stored value cannot be used; loading it again");
        }
    }
}
