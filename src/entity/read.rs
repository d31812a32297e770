//! The read path below the local level: join a flight, or lead one to the store, to the lease, to the
//! loader.

use super::Inner;
use super::load::{LeaseHeld, LoadRun};
use super::outcome::{Landed, Origin, Outcome};
use super::target::{Began, Target};
use super::waiting::{Waiting, pause};
use crate::bus::Bus;
use crate::codec;
use crate::coherence::{FlightMeta, Head, Lane, Rank, Verdict};
use crate::envelope::{self, Header, Stored};
use crate::error::CacheError;
use crate::flight::{Boarding, Flown, Guard, Landing, Waiter};
use crate::key::Key;
use crate::local::Slot;
use crate::store::{Found, LeaseReply, LeaseRequest, LeaseState, Link};
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
/// A one-shot loader's type, where there is none.
pub(super) type NoLoader<V, E> = fn() -> std::future::Ready<Result<V, E>>;

/// What the store has under a key.
pub(super) enum Look<V, E> {
    Found(Landed<V, E>),
    /// Somebody is loading it, under the lease with this token.
    Held(u64),
    /// Nothing that can be used; the bytes that stand there, if they are what cannot be.
    Absent(Option<Bytes>),
    /// It is ahead of what this pod has followed.
    Sync,
}

/// What a leader's first look gives.
enum Glance<V, E> {
    Land(Landed<V, E>),
    /// What is known so far; no look if the store was of no help.
    Seek(Began, Option<Look<V, E>>),
    NoLink,
}

/// What a leader must do.
pub(super) enum Next<V, E> {
    Land(Landed<V, E>),
    Load(LoadRun),
}

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
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
        let limit = self.options.load_timeout;
        let end = Instant::now() + limit;
        let target = Arc::new(self.target(key, hash));
        let began = self.began(target.lane);
        let (mut lead, mut waiter) = match self.board(&target, &began) {
            Boarding::Leader(guard, waiter) => (Some(guard), waiter),
            Boarding::Waiter(waiter) => (None, waiter),
        };
        let mut glance = None;
        if let Some(guard) = lead.take() {
            // Most reads end here, with one call of the store that has a time limit of its own: the
            // timer of the hard limit is set for what comes after it.
            match self.glance(&target, began, limit).await {
                Glance::Land(landed) => {
                    guard.land(landed.clone());
                    return Ok(landed);
                }
                Glance::Seek(began, look) => glance = Some((began, look)),
                Glance::NoLink => {}
            }
            lead = Some(guard);
        }
        // Boxed, so that the future of those reads fits where allocators are quick (under 1 KiB).
        let flight = Box::pin(self.fly(&target, once, lead, glance, &mut waiter));
        match timeout_at(end, flight).await {
            Ok(landed) => Ok(landed),
            Err(_) => {
                // The caller gives up, the load does not: it may still fill.
                waiter.leave_running();
                Err(CacheError::Timeout { after: limit })
            }
        }
    }

    /// Stays on the key's flight, as its leader if need be, until it lands.
    async fn fly<F, Fut>(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        mut once: Option<F>,
        mut lead: Option<Guard<K, Landed<V, E>>>,
        mut glance: Option<(Began, Option<Look<V, E>>)>,
        waiter: &mut Waiter<K, Landed<V, E>>,
    ) -> Landed<V, E>
    where
        F: FnOnce() -> Fut + Send,
        Fut: Future<Output = Result<V, E>> + Send,
    {
        loop {
            if let Some(guard) = lead.take() {
                self.lead(target, once.take(), guard, glance.take()).await;
            }
            match waiter.wait().await {
                Flown::Landed(landing) => return self.landed(landing),
                Flown::Lead(guard) if self.bus().closing.is_cancelled() => guard.abort(),
                Flown::Lead(guard) => lead = Some(guard),
            }
        }
    }

    /// Leads a flight to its landing, or into the task that will land it.
    pub(super) async fn lead<F, Fut>(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        once: Option<F>,
        guard: Guard<K, Landed<V, E>>,
        glance: Option<(Began, Option<Look<V, E>>)>,
    ) where
        F: FnOnce() -> Fut + Send,
        Fut: Future<Output = Result<V, E>> + Send,
    {
        match self.seek(target, glance).await {
            Next::Land(landed) => guard.land(landed),
            Next::Load(run) => match once {
                Some(load) => self.load_here(target, guard, run, load()).await,
                None => self.load_in_task(target, guard, run),
            },
        }
    }

    /// What a landing is to those on board.
    pub(super) fn landed(&self, landing: Landing<Landed<V, E>>) -> Landed<V, E> {
        match landing {
            Landing::Done(landed) => landed,
            Landing::Aborted if self.bus().closing.is_cancelled() => {
                Landed::failed(CacheError::Closed)
            }
            Landing::Aborted => Landed::failed(CacheError::LoadAborted),
        }
    }

    pub(super) fn board(&self, target: &Target<K>, began: &Began) -> Boarding<K, Landed<V, E>> {
        let bus = self.bus();
        let meta = FlightMeta {
            rank: began.rank().unwrap_or_default(),
            start: began.start,
            uncovered: began.view.is_none(),
        };
        let live_until = bus.live_until(target.lane);
        let lead_ends = self.lead_limit();
        self.level
            .flights
            .board(target.hash, &target.key, meta, |flight| {
                bus.rules.may_join(live_until, flight, began.start)
                    && began.start < flight.start + lead_ends
            })
    }

    /// A leader's first look: the local level again, then the store, once.
    async fn glance(&self, target: &Target<K>, began: Began, limit: Duration) -> Glance<V, E> {
        if let Some(landed) = self.landed_meanwhile(target) {
            return Glance::Land(landed);
        }
        let Ok(link) = self.bus().link() else {
            return Glance::NoLink;
        };
        match self.ask_store(&*link, target, &began, limit).await {
            Some(Look::Found(landed)) => Glance::Land(landed),
            look => Glance::Seek(began, look),
        }
    }

    /// What the flight before ours left, if it landed between our miss and our boarding.
    pub(super) fn landed_meanwhile(&self, target: &Target<K>) -> Option<Landed<V, E>> {
        let hit = self.level.hit(target.hash, &target.key)?;
        let (slot, as_of) = (&hit.slot, hit.as_of(&self.bus().rules));
        let age = hit.now.since(slot.loaded);
        Some(Landed::new(&slot.value, Origin::Local, age, as_of))
    }

    /// The leader's way: the local level again, then the store, then the right to load. What a glance
    /// has seen of the first two is not looked at again.
    async fn seek(
        &self,
        target: &Target<K>,
        mut glance: Option<(Began, Option<Look<V, E>>)>,
    ) -> Next<V, E> {
        if glance.is_none()
            && let Some(landed) = self.landed_meanwhile(target)
        {
            return Next::Land(landed);
        }
        let Ok(link) = self.bus().link() else {
            return Next::Load(self.uncovered_run(target.lane));
        };
        let mut syncs = 0;
        let mut waiting = None;
        loop {
            let (began, look) = match glance.take() {
                Some(seen) => seen,
                None => {
                    let began = self.began(target.lane);
                    let look = self.ask_store(&*link, target, &began, Duration::MAX).await;
                    (began, look)
                }
            };
            let Some(look) = look else {
                break;
            };
            let (holder, unusable) = match look {
                Look::Found(landed) => return Next::Land(landed),
                Look::Sync if syncs < SYNCS => {
                    syncs += 1;
                    self.bus().sync(SYNC_LIMIT).await;
                    continue;
                }
                Look::Sync => break,
                Look::Held(holder) => (Some(holder), None),
                Look::Absent(unusable) => (None, unusable),
            };
            let waiting = waiting.get_or_insert_with(|| Waiting::new(self.patience()));
            if waiting.found(holder) {
                let unusable = unusable.as_deref();
                match self.ask_lease(&link, target, &began, unusable).await {
                    Some(Ok(next)) => return next,
                    Some(Err(())) => {}
                    None => break,
                }
            }
            if waiting.is_over() {
                break;
            }
            self.pause(target.hash).await;
        }
        Next::Load(self.uncovered_run(target.lane))
    }

    /// A load without a lease: its outcome is not for the store.
    pub(super) fn uncovered_run(&self, lane: Lane) -> LoadRun {
        let began = self.began(lane);
        LoadRun {
            rank: began.rank(),
            generation: began.generation,
            lease: None,
            queued: true,
        }
    }

    /// Waits for the fill of a key that another pod is loading to be announced, or a little while.
    pub(super) async fn pause(&self, hash: u64) {
        let filled = self.bus().fill_waiter(hash);
        // Either way the store is asked again.
        let _ = timeout(pause(), filled.notified()).await;
    }

    /// One read of the store, no longer than `limit`; `None` if it is of no help.
    async fn ask_store(
        &self,
        link: &dyn Link,
        target: &Target<K>,
        began: &Began,
        limit: Duration,
    ) -> Option<Look<V, E>> {
        if self.is_poisoned(target) {
            return None;
        }
        let limit = self.bus().timing.read_timeout.min(limit);
        let read = link.read(target.place(&self.name));
        let found = Bus::within(limit, "read", read).await.ok()?;
        Some(self.judge(target, began, found))
    }

    pub(super) fn is_poisoned(&self, target: &Target<K>) -> bool {
        self.bus()
            .is_poisoned(target.lane, target.hash, self.keys.entity_hash())
    }

    /// Makes of stored bytes what they are worth, and keeps them here if they are worth keeping.
    pub(super) fn judge(&self, target: &Target<K>, began: &Began, found: Found) -> Look<V, E> {
        let Some(bytes) = found.value else {
            return match self.verdict(began, found.head.as_ref(), None, found.floor) {
                Verdict::Sync => Look::Sync,
                _ => Look::Absent(None),
            };
        };
        let options = &self.options;
        let stored = envelope::decode(&bytes, target.hashed(), options.schema, &options.packing);
        let stored = match stored {
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
            return Look::Held(lease.token);
        };
        let Some(left) = self.left_of(&header) else {
            return Look::Absent(Some(bytes));
        };
        match self.decode(kind, &payload) {
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
            self.level.insert(
                self.bus(),
                target.hash,
                target.key.clone(),
                slot,
                |stripe| !stripe.is_poisoned(target.hash),
            );
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
        let token = crate::random::random();
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
        self.make_of_lease(target, began, held, reply.ok()?)
    }

    /// What an answer to the question for a lease means; as [`ask_lease`](Self::ask_lease).
    pub(super) fn make_of_lease(
        &self,
        target: &Target<K>,
        began: &Began,
        held: LeaseHeld,
        reply: LeaseReply,
    ) -> Option<Result<Next<V, E>, ()>> {
        let LeaseReply {
            head,
            floor,
            server_ms,
            state,
        } = reply;
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
                    queued: false,
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
