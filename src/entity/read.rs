//! The read path below the local level: join a flight, or lead one to the store, to the lease, to the
//! loader.

use super::Inner;
use super::context::{Loaded, Previous};
use super::load::{LoadRun, whole_millis};
use super::outcome::{Landed, Origin, Outcome, StaleReason};
use super::target::{Began, Target};
use super::waiting::{Waiting, pause};
use crate::bus::Bus;
use crate::codec;
use crate::coherence::{FlightMeta, Head, Lane, Rank, Verdict};
use crate::envelope::{self, Header, Stored};
use crate::error::CacheError;
use crate::flight::{Boarding, Flown, Guard, Landing, Waiter};
use crate::key::Key;
use crate::local::{Life, Phase, Slot};
use crate::store::{Found, Link};
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

/// Why a key is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// To be read: anything will do that may be served.
    Read,
    /// To be refreshed behind readers: unless somebody has done so.
    Renewed,
    /// To be loaded anew, for somebody who said so.
    Anew,
}

/// A usable value of the store.
pub(super) struct Standing<V, E> {
    pub(super) landed: Landed<V, E>,
    /// The lease it was filled under.
    pub(super) token: u64,
    pub(super) phase: Phase,
    /// What is left of the plain part of its life.
    pub(super) left: Duration,
    pub(super) load_ms: u32,
}

/// What the store has under a key.
pub(super) enum Look<V, E> {
    Found(Standing<V, E>),
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
    Load(LoadRun<V>),
    /// Nothing: another pod is at it. Never for a reader.
    Leave,
}

impl<V, E> Standing<V, E> {
    /// What a loader may be told of it.
    pub(super) fn into_previous(self) -> Option<Previous<V>> {
        let value = self.landed.outcome.ok()?;
        Some(Previous::new(value, self.landed.age))
    }
}

fn load_ms(header: &Header) -> u32 {
    whole_millis(Duration::from_micros(header.load_us.into()))
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
        let mut flight = Box::pin(self.fly(&target, once, lead, glance, &mut waiter));
        let mut landed = None;
        if let Some(soft) = self.options.soft_timeout {
            let soft_end = end - (limit - soft);
            landed = timeout_at(soft_end, &mut flight).await.ok();
            if landed.is_none()
                && let Some(stale) = self.stale_instead(&target, StaleReason::LoadTimedOut).await
            {
                self.note_failure(&target, StaleReason::LoadTimedOut);
                drop(flight);
                waiter.leave_running();
                return Ok(stale);
            }
        }
        if landed.is_none() {
            landed = timeout_at(end, &mut flight).await.ok();
        }
        drop(flight);
        match landed {
            Some(landed) if landed.settled => Ok(landed),
            Some(failed) => {
                let stale = self.stale_instead(&target, StaleReason::LoadFailed).await;
                Ok(stale.unwrap_or(failed))
            }
            None => {
                // The caller gives up, the load does not: it may still fill.
                waiter.leave_running();
                let stale = self.stale_instead(&target, StaleReason::LoadTimedOut).await;
                stale.ok_or(CacheError::Timeout { after: limit })
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
                self.lead(target, &mut once, guard, glance.take()).await;
            }
            match waiter.wait().await {
                Flown::Landed(landing) => return self.landed(landing),
                Flown::Lead(guard) if self.bus().closing.is_cancelled() => guard.abort(),
                Flown::Lead(guard) => lead = Some(guard),
            }
        }
    }

    /// Leads a flight to its landing, or into the task that will land it. Takes `once` if it loads.
    pub(super) async fn lead<F, Fut>(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        once: &mut Option<F>,
        guard: Guard<K, Landed<V, E>>,
        glance: Option<(Began, Option<Look<V, E>>)>,
    ) where
        F: FnOnce() -> Fut + Send,
        Fut: Future<Output = Result<V, E>> + Send,
    {
        match self.seek(target, glance, Want::Read).await {
            Next::Land(landed) => guard.land(landed),
            Next::Load(run) => match once.take() {
                Some(load) => {
                    let load = load();
                    let load = async { load.await.map(Loaded::new) };
                    self.load_here(target, guard, run, load).await;
                }
                None => self.load_in_task(target, guard, run),
            },
            Next::Leave => {}
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
        let (hash, key, meta) = (target.hash, &target.key, began.meta());
        let may_join = self.may_join(target, began);
        self.level.flights.board(hash, key, meta, may_join)
    }

    pub(super) fn may_join(
        &self,
        target: &Target<K>,
        began: &Began,
    ) -> impl FnOnce(&FlightMeta) -> bool + use<K, V, E> {
        let (rules, now) = (self.bus().rules, began.start);
        let live_until = self.bus().live_until(target.lane);
        let lead_ends = self.lead_limit();
        move |flight| rules.may_join(live_until, flight, now) && now < flight.start + lead_ends
    }

    /// A leader's first look: the local level again, then the store, once.
    async fn glance(
        self: &Arc<Self>,
        target: &Target<K>,
        began: Began,
        limit: Duration,
    ) -> Glance<V, E> {
        if let Some(landed) = self.landed_meanwhile(target) {
            return Glance::Land(landed);
        }
        let Ok(link) = self.bus().link() else {
            return Glance::NoLink;
        };
        match self.ask_store(&*link, target, &began, limit).await {
            Some(Look::Found(found)) => match self.served(target, &found) {
                Some(landed) => Glance::Land(landed),
                None => Glance::Seek(began, Some(Look::Found(found))),
            },
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
    pub(super) async fn seek(
        self: &Arc<Self>,
        target: &Target<K>,
        mut glance: Option<(Began, Option<Look<V, E>>)>,
        want: Want,
    ) -> Next<V, E> {
        if glance.is_none()
            && want == Want::Read
            && let Some(landed) = self.landed_meanwhile(target)
        {
            return Next::Land(landed);
        }
        let Ok(link) = self.bus().link() else {
            return match self.refreshed(target, want).await {
                Some(landed) => Next::Land(landed),
                None => Next::Load(self.uncovered_run(target.lane)),
            };
        };
        let mut syncs = 0;
        let mut waiting = None;
        // What is to be replaced: the token of what was found first, and the value.
        let mut first = None;
        let mut previous = None;
        // What may be done with an outcome although somebody else has the right to load.
        let mut besides = None;
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
            let asked = match look {
                Look::Found(found) if want == Want::Anew => {
                    let (first, token) = (*first.get_or_insert(Some(found.token)), found.token);
                    if first != Some(token) {
                        return Next::Land(found.landed); // somebody else has loaded it since
                    }
                    Ok(found)
                }
                Look::Found(found) => match self.suffices(target, &found, want) {
                    Some(landed) => return Next::Land(landed),
                    None => Ok(found),
                },
                Look::Sync if syncs < SYNCS => {
                    syncs += 1;
                    self.bus().sync(SYNC_LIMIT).await;
                    continue;
                }
                Look::Sync => break,
                Look::Held(holder) => Err((Some(holder), None)),
                Look::Absent(unusable) => Err((None, unusable)),
            };
            let waiting = waiting.get_or_insert_with(|| Waiting::new(self.patience()));
            let granted = match asked {
                Ok(found) => {
                    let ask = self.ask_over(target, found.token);
                    let granted = self.ask_lease(&link, target, &began, ask, want).await;
                    previous = found.into_previous();
                    granted
                }
                Err((holder, unusable)) => {
                    if let Some(landed) = self.refreshed(target, want).await {
                        return Next::Land(landed);
                    }
                    // Whatever comes after what is not there now was loaded since.
                    first.get_or_insert(None);
                    let asks = waiting.found(holder);
                    match asks {
                        true => {
                            let ask = self.ask_for(target, unusable);
                            self.ask_lease(&link, target, &began, ask, want).await
                        }
                        false => Some(Err(None)),
                    }
                }
            };
            match granted {
                Some(Ok(Next::Load(run))) => return Next::Load(LoadRun { previous, ..run }),
                Some(Ok(next)) => return next,
                Some(Err(_)) if want == Want::Renewed => return Next::Leave,
                Some(Err(run)) => besides = run,
                None => break,
            }
            // Somebody who says so does not wait for the end of a pause that this pod has begun itself.
            let failed = want == Want::Anew && self.has_failed(target.hash);
            if waiting.is_over() || (failed && besides.is_some()) {
                break;
            }
            self.pause(target.hash).await;
        }
        let run = besides.unwrap_or_else(|| self.uncovered_run(target.lane));
        Next::Load(LoadRun { previous, ..run })
    }

    /// A load without a lease: its outcome is not for the store.
    pub(super) fn uncovered_run(&self, lane: Lane) -> LoadRun<V> {
        let began = self.began(lane);
        LoadRun {
            rank: began.rank(),
            generation: began.generation,
            lease: None,
            queued: true,
            previous: None,
        }
    }

    /// Waits for the fill of a key that another pod is loading to be announced, or a little while.
    pub(super) async fn pause(&self, hash: u64) {
        let filled = self.bus().fill_waiter(hash);
        // Either way the store is asked again.
        let _ = timeout(pause(), filled.notified()).await;
    }

    /// One read of the store, no longer than `limit`; `None` if it is of no help.
    pub(super) async fn ask_store(
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
            Verdict::Doubtful => return Look::Absent(Some(bytes)),
            Verdict::Sync => return Look::Sync,
        };
        let Stored::Outcome(kind, header, payload) = stored else {
            return Look::Held(lease.token);
        };
        let now = self.bus().clock.now();
        let Some(life) = self.life_left(&header, now) else {
            return Look::Absent(Some(bytes));
        };
        match self.decode(kind, &payload) {
            Ok(outcome) if !self.is_poisoned(target) => Look::Found(Standing {
                landed: self.keep_found(target, began, rank, &header, life, outcome),
                token: header.lease.token,
                phase: life(Duration::MAX).phase(now),
                left: life(Duration::MAX).plain_left(now),
                load_ms: load_ms(&header),
            }),
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

    /// What is left of a stored outcome's life, here for so long at most; `None` if nothing is.
    fn life_left(&self, header: &Header, now: Millis) -> Option<impl Fn(Duration) -> Life + Copy> {
        let (fresh_until, ends, late) = if header.expires_ms == 0 {
            (Millis::NEVER, Millis::NEVER, Duration::ZERO)
        } else {
            let server_now = self.bus().server_now()?;
            let here = |then: u64| Millis((now.0 + then).saturating_sub(server_now));
            let fresh_ms = match header.soft_expires_ms {
                0 => header.expires_ms,
                soft => soft.min(header.expires_ms),
            };
            let life = Duration::from_millis(fresh_ms.saturating_sub(header.loaded_ms));
            let took = Duration::from_millis(load_ms(header).into());
            let fresh_until = here(fresh_ms);
            let ends = here(header.expires_ms);
            if ends <= now {
                return None;
            }
            // The grace of the pod that stored it, or this pod's, if that is less: then there is
            // something that others may serve, and this pod may not.
            let ends = ends.min(fresh_until + self.options.grace);
            (fresh_until, ends, self.early_window(life, took))
        };
        Some(move |at_most: Duration| Life::new(fresh_until, late, ends.min(now + at_most)))
    }

    fn keep_found(
        &self,
        target: &Target<K>,
        began: &Began,
        rank: Rank,
        header: &Header,
        life: impl FnOnce(Duration) -> Life,
        outcome: Outcome<V, E>,
    ) -> Landed<V, E> {
        let now = self.bus().clock.now();
        let age_ms = self
            .bus()
            .server_now()
            .map_or(0, |at| at.saturating_sub(header.loaded_ms));
        let age = Duration::from_millis(age_ms);
        let landed = Landed::new(&outcome, Origin::Store, age, began.start);
        if !self.options.local_ttl.is_zero() {
            let slot = Slot {
                value: outcome,
                rank,
                generation: began.generation,
                load_start: began.start,
                loaded: Millis(now.0.saturating_sub(age_ms)),
                load_ms: load_ms(header),
                life: life(self.options.local_ttl),
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
