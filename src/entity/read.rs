//! The read path below the local level: join a flight, or lead one to the store, to the lease, to the
//! loader.

use super::Inner;
use super::context::Loaded;
use super::course::{Boarding, Course, Guard, Skips, Waiter};
use super::look::Look;
use super::outcome::{Landed, StaleReason};
use super::seek::{Next, Seen, Want};
use super::target::{Began, Target};
use super::view::ReadOptions;
use crate::error::CacheError;
use crate::flight::{Flown, Landing};
use crate::key::Key;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// A one-shot loader's type, where there is none.
pub(super) type NoLoader<V, E> = fn() -> std::future::Ready<Result<V, E>>;

/// What a leader's first look gives.
enum Glance<V, E> {
    Land(Landed<V, E>),
    /// Nothing that can be landed; what was seen, if there is a store to look into.
    Seek(Option<Seen<V, E>>),
}

/// The lead of a flight, and what was seen of its key.
struct Lead<K, V, E> {
    guard: Guard<K, V, E>,
    seen: Option<Seen<V, E>>,
}

/// How the wait for a flight ended.
enum Waited<V, E> {
    Landed(Landed<V, E>),
    /// The soft limit has passed, and there is this to serve.
    Stale(Landed<V, E>),
    /// The hard limit has passed.
    Late,
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
        self.level.telemetry.missed(1);
        let start = Instant::now();
        let target = Arc::new(self.target(key, hash));
        let began = self.began(target.lane);
        let (lead, waiter) = match self.board(&target, &began, Skips::NONE) {
            Boarding::Waiter(waiter) => (None, waiter),
            Boarding::Leader(guard, waiter) => {
                // Most reads end here, with one call of the store that has a time limit of its own: the
                // timer of the hard limit is set for what comes after it.
                match self.glance(&target, began, self.options.load_timeout).await {
                    Glance::Land(landed) => {
                        guard.land(landed.clone());
                        return Ok(landed);
                    }
                    Glance::Seek(seen) => (Some(Lead { guard, seen }), waiter),
                }
            }
        };
        // Boxed, so that the future of those reads fits where allocators are quick (under 1 KiB).
        Box::pin(self.stay_aboard(&target, began, once, lead, waiter, start)).await
    }

    /// As [`read`](Self::read) for a call with options of its own.
    ///
    /// Its leads run in tasks, so that a load that its deadline is too short for comes about all the same:
    /// callers who all give up after 2 ms would never fill a key that takes the store 3 ms to lease.
    pub(super) async fn read_as(
        self: Arc<Self>,
        key: &K,
        hash: u64,
        options: &ReadOptions,
    ) -> Result<Landed<V, E>, CacheError<E>> {
        if options.reads_as_usual() {
            return self.read(key, hash, None::<NoLoader<V, E>>).await;
        }
        if self.bus().closing.is_cancelled() {
            return Err(CacheError::Closed);
        }
        self.level.telemetry.missed(1);
        let (start, limit) = (Instant::now(), options.limit(self.options.load_timeout));
        let target = Arc::new(self.target(key, hash));
        let began = self.began(target.lane);
        let skips = options.skips();
        let mut waiter = match self.board(&target, &began, skips) {
            Boarding::Waiter(waiter) => waiter,
            Boarding::Leader(guard, waiter) => {
                self.lead_in_task(&target, guard, None, skips);
                waiter
            }
        };
        let waited = {
            let flight = pin!(self.follow(&target, began, skips, &mut waiter));
            self.wait_for(&target, flight, start, limit).await
        };
        self.leave(&target, waiter, waited, limit).await
    }

    /// Stays on the key's flight until it lands, or until one of the limits of time; what is stale may be
    /// served instead.
    async fn stay_aboard<F, Fut>(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        began: Began,
        once: Option<F>,
        lead: Option<Lead<K, V, E>>,
        mut waiter: Waiter<K, V, E>,
        start: Instant,
    ) -> Result<Landed<V, E>, CacheError<E>>
    where
        F: FnOnce() -> Fut + Send,
        Fut: Future<Output = Result<V, E>> + Send,
    {
        let limit = self.options.load_timeout;
        let waited = {
            let flight = pin!(self.fly(target, began, once, lead, &mut waiter));
            self.wait_for(target, flight, start, limit).await
        };
        self.leave(target, waiter, waited, limit).await
    }

    /// What a caller takes along who has waited no longer than `limit`.
    async fn leave(
        &self,
        target: &Target<K>,
        waiter: Waiter<K, V, E>,
        waited: Waited<V, E>,
        limit: Duration,
    ) -> Result<Landed<V, E>, CacheError<E>> {
        let reason = match &waited {
            Waited::Landed(landed) if landed.settled => None,
            Waited::Landed(_) => Some(StaleReason::LoadFailed),
            Waited::Stale(_) | Waited::Late => {
                // The caller gives up, the load does not: it may still fill.
                waiter.leave_running();
                matches!(waited, Waited::Late).then_some(StaleReason::LoadTimedOut)
            }
        };
        let instead = match reason {
            Some(reason) => self.stale_instead(target, reason).await,
            None => None,
        };
        match (instead, waited) {
            (Some(landed), _) | (None, Waited::Landed(landed) | Waited::Stale(landed)) => {
                Ok(landed)
            }
            (None, Waited::Late) => Err(CacheError::Timeout { after: limit }),
        }
    }

    /// Waits for a flight within the soft limit and the hard one, from `start` on.
    async fn wait_for(
        self: &Arc<Self>,
        target: &Target<K>,
        mut flight: Pin<&mut impl Future<Output = Landed<V, E>>>,
        start: Instant,
        limit: Duration,
    ) -> Waited<V, E> {
        if let Some(soft) = self.options.soft_timeout.filter(|soft| *soft < limit) {
            if let Ok(landed) = timeout_at(start + soft, &mut flight).await {
                return Waited::Landed(landed);
            }
            if let Some(stale) = self.stale_instead(target, StaleReason::LoadTimedOut).await {
                self.note_failure(target, StaleReason::LoadTimedOut);
                return Waited::Stale(stale);
            }
        }
        match timeout_at(start + limit, flight).await {
            Ok(landed) => Waited::Landed(landed),
            Err(_) => Waited::Late,
        }
    }

    /// Stays on the key's flight, as its leader if need be, until it lands; and on the next one, if that
    /// turns out to have been the wrong one to join. The next one cannot: it begins after this call.
    async fn fly<F, Fut>(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        began: Began,
        mut once: Option<F>,
        mut lead: Option<Lead<K, V, E>>,
        waiter: &mut Waiter<K, V, E>,
    ) -> Landed<V, E>
    where
        F: FnOnce() -> Fut + Send,
        Fut: Future<Output = Result<V, E>> + Send,
    {
        loop {
            if let Some(Lead { guard, seen }) = lead.take() {
                self.lead(target, &mut once, guard, seen, Skips::NONE).await;
            }
            match waiter.wait().await {
                Flown::Landed(landing) => {
                    let landed = self.landed(landing);
                    if !self.is_overtaken(&landed, &began) {
                        return landed;
                    }
                    *waiter = match self.board_anew(target, Skips::NONE) {
                        Boarding::Waiter(waiter) => waiter,
                        Boarding::Leader(guard, waiter) => {
                            lead = Some(Lead { guard, seen: None });
                            waiter
                        }
                    };
                }
                Flown::Lead(guard) if self.bus().closing.is_cancelled() => guard.abort(),
                Flown::Lead(guard) => lead = Some(Lead { guard, seen: None }),
            }
        }
    }

    /// As [`fly`](Self::fly), with leads in tasks.
    async fn follow(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        began: Began,
        skips: Skips,
        waiter: &mut Waiter<K, V, E>,
    ) -> Landed<V, E> {
        loop {
            match waiter.wait().await {
                Flown::Landed(landing) => {
                    let landed = self.landed(landing);
                    if !self.is_overtaken(&landed, &began) {
                        return landed;
                    }
                    *waiter = self.follow_anew(target, skips);
                }
                Flown::Lead(guard) if self.bus().closing.is_cancelled() => guard.abort(),
                Flown::Lead(guard) => self.lead_in_task(target, guard, None, skips),
            }
        }
    }

    /// Boards the flight of a key as of now, and leads it in a task if need be.
    pub(super) fn follow_anew(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        skips: Skips,
    ) -> Waiter<K, V, E> {
        match self.board_anew(target, skips) {
            Boarding::Waiter(waiter) => waiter,
            Boarding::Leader(guard, waiter) => {
                self.lead_in_task(target, guard, None, skips);
                waiter
            }
        }
    }

    /// Leads a flight in a task that goes on while anybody waits for it.
    pub(super) fn lead_in_task(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        guard: Guard<K, V, E>,
        seen: Option<Seen<V, E>>,
        skips: Skips,
    ) {
        let (this, key) = (Arc::clone(self), Arc::clone(target));
        let abandoned = guard.abandoned();
        self.in_task(target, abandoned, async move {
            let mut once = None::<NoLoader<V, E>>;
            this.lead(&key, &mut once, guard, seen, skips).await;
        });
    }

    /// Leads a flight to its landing, or into the task that will land it. Takes `once` if it loads.
    pub(super) async fn lead<F, Fut>(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        once: &mut Option<F>,
        guard: Guard<K, V, E>,
        seen: Option<Seen<V, E>>,
        skips: Skips,
    ) where
        F: FnOnce() -> Fut + Send,
        Fut: Future<Output = Result<V, E>> + Send,
    {
        let look_here = seen.is_none() && !skips.local;
        if look_here && let Some(landed) = self.landed_meanwhile(target) {
            return guard.land(landed);
        }
        let next = match skips.store {
            true => Next::Load(self.uncovered_run(target)),
            false => self.seek(target, seen, Want::Read).await,
        };
        match next {
            Next::Land(landed) => guard.land(landed),
            Next::Load(mut run) => {
                self.level.telemetry.store_missed(1);
                match once.take() {
                    Some(load) => {
                        // It will state no version.
                        run.guarded |= run.minimum.is_some();
                        let load = load();
                        let load = async { load.await.map(Loaded::new) };
                        self.load_here(target, guard, run, load).await;
                    }
                    None => self.load_in_task(target, guard, run),
                }
            }
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

    /// Boards the flight of a key, if it goes by no level that `skips` leaves out; else one that does not
    /// takes its place, and the outcome of the other is not kept in this process.
    pub(super) fn board(
        &self,
        target: &Target<K>,
        began: &Began,
        skips: Skips,
    ) -> Boarding<K, V, E> {
        let course = Course {
            meta: began.meta(),
            skips,
        };
        let may_join = self.may_join(target, began, skips);
        let (hash, key) = (target.hash, &target.key);
        let boarding = self.level.flights.board(hash, key, course, may_join);
        if let Boarding::Waiter(_) = boarding {
            self.level.telemetry.joined();
        }
        boarding
    }

    /// Boards the flight of a key as of now.
    pub(super) fn board_anew(&self, target: &Target<K>, skips: Skips) -> Boarding<K, V, E> {
        self.board(target, &self.began(target.lane), skips)
    }

    pub(super) fn may_join(
        &self,
        target: &Target<K>,
        began: &Began,
        skips: Skips,
    ) -> impl FnOnce(&Course) -> bool + use<K, V, E> {
        let (rules, now) = (self.bus().rules, began.start);
        let live_until = self.bus().live_until(target.lane);
        let lead_ends = self.lead_limit();
        move |course| {
            let flight = &course.meta;
            let in_time = rules.may_join(live_until, flight, now) && now < flight.start + lead_ends;
            in_time && course.skips.cover(skips)
        }
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
        let Ok(link) = self.bus().link_for_reads() else {
            return Glance::Seek(None);
        };
        let look = if let Some(near) = self.ask_near(&*link, target, &began, limit) {
            near.await
        } else {
            self.ask_store(&*link, target, &began, limit).await
        };
        if let Some(Look::Found(found)) = &look
            && let Some(landed) = self.served(target, found)
        {
            return Glance::Land(landed);
        }
        Glance::Seek(Some(Seen { began, look }))
    }

    /// What the flight before ours left, if it landed between our miss and our boarding.
    pub(super) fn landed_meanwhile(&self, target: &Target<K>) -> Option<Landed<V, E>> {
        let hit = self.level.found(target.hash, &target.key)?;
        self.level.telemetry.joined();
        Some(hit.landed(&self.bus().rules))
    }

    /// How long a load may take before its lead ends.
    pub(super) fn lead_limit(&self) -> Duration {
        self.lease_ttl().max(self.options.load_timeout)
    }
}
