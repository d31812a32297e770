//! Many keys at once: the way of a single read, with each step taken by all keys together.
//!
//! Every key is a flight of its own, which single reads join and which joins them; what is shared is
//! the way. Those that this call leads go together to the store, to the leases and to the loader. A
//! key that leaves that way, because another pod loads it or the store is ahead of this one, goes on
//! as a single read does, in a task beside the others.

use super::batch::{Loaded, each_once};
use super::load::{LeaseHeld, LoadRun, Unfilled};
use super::outcome::Landed;
use super::read::{Look, Next, NoLoader};
use super::target::{Began, Target};
use super::{Entity, Inner};
use crate::error::CacheError;
use crate::flight::{Boarding, Flown, Guard, Waiter};
use crate::key::Key;
use crate::store::{BoxFuture, LeaseRequest, Link, StoreResult};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Keys that go to the store at once; more go one such part after another. It is asked within the time
/// that a single read has.
const PART: usize = 1_000;
/// Bytes that are stored at once, unless one value alone has more.
const FILL_BYTES: usize = 1 << 20;

/// What a key of a batch gives.
type Got<V, E> = Result<Arc<V>, CacheError<E>>;

/// A key that the local level does not have.
struct Missed<'k, K> {
    /// Where it was named.
    at: usize,
    key: &'k K,
    hash: u64,
}

/// A key on board of its flight.
struct Aboard<K, V, E> {
    target: Arc<Target<K>>,
    waiter: Waiter<K, Landed<V, E>>,
}

/// A flight that this call leads.
struct Lead<K, V, E> {
    target: Arc<Target<K>>,
    began: Began,
    guard: Guard<K, Landed<V, E>>,
}

/// A lead that has to load.
struct Load<K, V, E> {
    target: Arc<Target<K>>,
    guard: Guard<K, Landed<V, E>>,
    run: LoadRun,
}

impl<K, V, E> Lead<K, V, E> {
    fn load(self, run: LoadRun) -> Load<K, V, E> {
        Load {
            target: self.target,
            guard: self.guard,
            run,
        }
    }
}

impl<K, V, E> Entity<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Returns the value for each of `keys`, in their order, loading together what is not found.
    ///
    /// For up to 1,000 keys that are not in the local level: one round trip to read them all from the
    /// store, one for the leases of those it does not have, one call of the
    /// [batch loader](super::EntityBuilder::loader_many), and one round trip behind the caller to store
    /// what was loaded. More keys go in parts of that size, one after another; the loads of a part run
    /// beside the next. Without a batch loader each key is a load of its own, at most
    /// [`max_unleased_loads`](super::EntityBuilder::max_unleased_loads) at a time.
    ///
    /// Each key is read as [`get`](Self::get) reads it: it shares a load that is under way in this pod,
    /// waits for one in another, and is shared by single reads. A key may be named more than once.
    ///
    /// # Errors
    /// Those of [`get`](Self::get), each key its own; one that fails does not keep the others from
    /// their values. A [batch loader](super::EntityBuilder::loader_many) that panics is
    /// [`CacheError::LoadAborted`] for the keys of that call of it.
    ///
    /// # Cancel safety
    /// Cancel safe. What nobody else waits for is given up, and nothing of it is stored; a load that
    /// somebody waits for goes on, for all keys that it is for.
    ///
    /// # Consistency
    /// As [`get`](Self::get), key by key: together they are no snapshot.
    pub async fn get_many<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k K>,
    ) -> Vec<Result<Arc<V>, CacheError<E>>>
    where
        K: 'k,
    {
        let (mut got, mut missed) = (Vec::new(), Vec::new());
        for (at, key) in keys.into_iter().enumerate() {
            let hash = self.hash(key);
            got.push(match self.0.level.hit(hash, key) {
                Some(hit) => hit.slot.value.map_err(CacheError::Load),
                None => {
                    missed.push(Missed { at, key, hash });
                    Err(CacheError::LoadAborted) // replaced below
                }
            });
        }
        if !missed.is_empty() {
            let read = Box::pin(Arc::clone(&self.0).read_many(&missed)).await;
            for (missed, read) in missed.iter().zip(read) {
                got[missed.at] = read;
            }
        }
        got
    }
}

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Everything after the local misses, within the hard limit.
    async fn read_many(self: Arc<Self>, missed: &[Missed<'_, K>]) -> Vec<Got<V, E>> {
        if self.bus().closing.is_cancelled() {
            return missed.iter().map(|_| Err(CacheError::Closed)).collect();
        }
        let end = Instant::now() + self.options.load_timeout;
        // What goes on alone ends with this call, as a single read does.
        let mut alone = JoinSet::new();
        let mut aboard = Vec::with_capacity(missed.len());
        for part in missed.chunks(self.part()) {
            let mut leads = Vec::new();
            aboard.extend(part.iter().map(|missed| self.embark(missed, &mut leads)));
            // Leads that are dropped here fall to whoever else waits.
            let _ = timeout_at(end, self.set_off(leads, &mut alone)).await;
        }
        let mut got = Vec::with_capacity(aboard.len());
        // One after another: each flight goes on by itself, so the last to be looked at has landed when
        // the slowest has.
        for one in aboard {
            got.push(self.arrive(one, end, &mut alone).await);
        }
        got
    }

    /// A multiple of the batches, so that no part ends with a small one.
    fn part(&self) -> usize {
        let batch = self.batches.max;
        batch.saturating_mul(PART.div_ceil(batch))
    }

    /// Joins the flight of a key, or starts it and gets its lead.
    fn embark(&self, missed: &Missed<'_, K>, leads: &mut Vec<Lead<K, V, E>>) -> Aboard<K, V, E> {
        let target = Arc::new(self.target(missed.key, missed.hash));
        let began = self.began(target.lane);
        let waiter = match self.board(&target, &began) {
            Boarding::Waiter(waiter) => waiter,
            Boarding::Leader(guard, waiter) => {
                let target = Arc::clone(&target);
                leads.push(Lead {
                    target,
                    began,
                    guard,
                });
                waiter
            }
        };
        Aboard { target, waiter }
    }

    /// Waits for a flight to land, and sees to it that it does if its lead falls to this call.
    async fn arrive(
        self: &Arc<Self>,
        Aboard { target, mut waiter }: Aboard<K, V, E>,
        end: Instant,
        alone: &mut JoinSet<()>,
    ) -> Got<V, E> {
        loop {
            match timeout_at(end, waiter.wait()).await {
                Ok(Flown::Landed(landing)) => return self.landed(landing).outcome,
                Ok(Flown::Lead(guard)) if self.bus().closing.is_cancelled() => guard.abort(),
                Ok(Flown::Lead(guard)) => {
                    let (this, target) = (Arc::clone(self), Arc::clone(&target));
                    alone.spawn(async move { this.lead_alone(&target, guard, None).await });
                }
                Err(_) => {
                    // The caller gives up, the load does not: it may still fill.
                    waiter.leave_running();
                    let after = self.options.load_timeout;
                    return Err(CacheError::Timeout { after });
                }
            }
        }
    }

    async fn lead_alone(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        guard: Guard<K, Landed<V, E>>,
        glance: Option<(Began, Option<Look<V, E>>)>,
    ) {
        self.lead(target, None::<NoLoader<V, E>>, guard, glance)
            .await;
    }

    /// The leader's way for many: the local level again, the store, the right to load; and then, behind
    /// this, the loads.
    async fn set_off(self: &Arc<Self>, leads: Vec<Lead<K, V, E>>, alone: &mut JoinSet<()>) {
        let mut sought = Vec::with_capacity(leads.len());
        for lead in leads {
            match self.landed_meanwhile(&lead.target) {
                Some(landed) => lead.guard.land(landed),
                None => sought.push(lead),
            }
        }
        let mut loads = Vec::new();
        if let Ok(link) = self.bus().link() {
            let wanted = self.look_for(&*link, sought, &mut loads, alone).await;
            self.ask_leases(&link, wanted, &mut loads, alone).await;
        } else {
            loads.extend(sought.into_iter().map(|lead| self.uncovered(lead)));
        }
        self.load_many(loads);
    }

    /// A load that the store is of no help with.
    fn uncovered(&self, lead: Lead<K, V, E>) -> Load<K, V, E> {
        let run = self.uncovered_run(lead.target.lane);
        lead.load(run)
    }

    /// Reads all keys from the store. Gives those that need a lease, with unusable bytes that stand
    /// there.
    async fn look_for(
        self: &Arc<Self>,
        link: &dyn Link,
        sought: Vec<Lead<K, V, E>>,
        loads: &mut Vec<Load<K, V, E>>,
        alone: &mut JoinSet<()>,
    ) -> Vec<(Lead<K, V, E>, Option<Bytes>)> {
        let (poisoned, sought): (Vec<_>, Vec<_>) = sought
            .into_iter()
            .partition(|lead| self.is_poisoned(&lead.target));
        loads.extend(poisoned.into_iter().map(|lead| self.uncovered(lead)));
        let places: Vec<_> = sought
            .iter()
            .map(|lead| lead.target.place(&self.name))
            .collect();
        let found = self.ask(places.len(), || link.read_many(&places)).await;
        let mut wanted = Vec::new();
        for (lead, found) in sought.into_iter().zip(found) {
            let look = found.map(|found| self.judge(&lead.target, &lead.began, found));
            match look {
                Some(Look::Found(landed)) => lead.guard.land(landed),
                Some(Look::Absent(unusable)) => wanted.push((lead, unusable)),
                // Its holder must learn that somebody waits.
                Some(Look::Held(_)) => wanted.push((lead, None)),
                Some(Look::Sync) => {
                    let this = Arc::clone(self);
                    alone.spawn(async move {
                        let glance = Some((lead.began, Some(Look::Sync)));
                        this.lead_alone(&lead.target, lead.guard, glance).await;
                    });
                }
                None => loads.push(self.uncovered(lead)),
            }
        }
        wanted
    }

    /// Asks for the leases of all keys.
    async fn ask_leases(
        self: &Arc<Self>,
        link: &Arc<dyn Link>,
        wanted: Vec<(Lead<K, V, E>, Option<Bytes>)>,
        loads: &mut Vec<Load<K, V, E>>,
        alone: &mut JoinSet<()>,
    ) {
        let ttl = self.lease_ttl();
        let token = |_| crate::random::random();
        let tokens: Vec<u64> = wanted.iter().map(token).collect();
        // In place before the call: if this future is dropped, leases that it was granted are freed.
        let held = wanted.iter().zip(&tokens).map(|((lead, _), token)| {
            LeaseHeld::new(self.bus(), link, &lead.target, &self.name, *token)
        });
        let held: Vec<_> = held.collect();
        let asked = wanted.iter().zip(&tokens).map(|((lead, unusable), token)| {
            let request = LeaseRequest {
                token: *token,
                ttl,
                unusable: unusable.as_deref(),
                opening: self.bus().opening(),
            };
            (lead.target.place(&self.name), request)
        });
        let asked: Vec<_> = asked.collect();
        let replies = self.ask(asked.len(), || link.lease_many(&asked)).await;
        for (((lead, _), held), reply) in wanted.into_iter().zip(held).zip(replies) {
            let next =
                reply.and_then(|reply| self.make_of_lease(&lead.target, &lead.began, held, reply));
            match next {
                Some(Ok(Next::Land(landed))) => lead.guard.land(landed),
                Some(Ok(Next::Load(run))) => loads.push(lead.load(run)),
                Some(Err(())) => {
                    let this = Arc::clone(self);
                    alone.spawn(async move {
                        this.pause(lead.target.hash).await;
                        this.lead_alone(&lead.target, lead.guard, None).await;
                    });
                }
                None => loads.push(self.uncovered(lead)),
            }
        }
    }

    /// Asks the store for `count` answers, within the time of one; `None` where it is of no help.
    async fn ask<'a, T>(
        &self,
        count: usize,
        call: impl FnOnce() -> BoxFuture<'a, Vec<StoreResult<T>>>,
    ) -> Vec<Option<T>> {
        let answers = match count {
            0 => Vec::new(),
            _ => timeout(self.bus().timing.read_timeout, call())
                .await
                .unwrap_or_default(),
        };
        let mut answers: Vec<_> = answers.into_iter().map(Result::ok).collect();
        answers.resize_with(count, || None);
        answers
    }

    /// Loads, in tasks that go on while anybody waits for one of their keys.
    fn load_many(self: &Arc<Self>, loads: Vec<Load<K, V, E>>) {
        if self.batches.load.is_none() {
            for Load { target, guard, run } in loads {
                // The source is asked no faster than it would be by callers without the store.
                let run = LoadRun {
                    queued: true,
                    ..run
                };
                self.load_in_task(&target, guard, run);
            }
            return;
        }
        let mut loads = loads.into_iter().peekable();
        while loads.peek().is_some() {
            let batch = loads.by_ref().take(self.batches.max).collect();
            self.load_batch_in_task(batch);
        }
    }

    fn load_batch_in_task(self: &Arc<Self>, batch: Vec<Load<K, V, E>>) {
        let waited_for: Vec<_> = batch.iter().map(|load| load.guard.abandoned()).collect();
        // One after another. A key that somebody asks for again after its turn is loaded again, if it
        // comes to that: whoever waits for a lead that is dropped gets it.
        let abandoned = async {
            for flight in waited_for {
                flight.await;
            }
        };
        let (this, limit) = (Arc::clone(self), self.lead_limit());
        let closing = self.bus().closing.clone();
        self.bus().work.spawn(async move {
            tokio::select! {
                biased;
                () = this.load_batch(batch) => {}
                () = closing.cancelled() => {}
                () = abandoned => {}
                // A hung load must not hold its keys for ever: whoever still waits leads another one.
                () = sleep(limit) => {}
            }
        });
    }

    /// One call of the batch loader: lands its outcomes, and lets them be stored behind the callers.
    async fn load_batch(self: &Arc<Self>, mut batch: Vec<Load<K, V, E>>) {
        let Some(load) = &self.batches.load else {
            return;
        };
        let _permit = match batch.iter().any(|load| load.run.queued) {
            false => None,
            true => {
                let permit = self.limiter.acquire().await;
                for load in &mut batch {
                    self.date_anew(&load.target, &mut load.run);
                }
                Some(permit)
            }
        };
        let keys = each_once(
            batch
                .iter()
                .map(|load| (load.target.hash, &load.target.key)),
        );
        let (start, precise) = (self.bus().clock.now(), std::time::Instant::now());
        let answers = load(keys).await;
        let took = precise.elapsed();
        self.usual_load.add(took);

        let loaded = Loaded::new(answers, |key| {
            key.with_bytes(|bytes| self.keys.hash(bytes).hash)
        });
        let mut unfilled = Vec::new();
        let mut forgotten = 0;
        for Load { target, guard, run } in batch {
            match loaded.of(target.hash, &target.key) {
                Some(outcome) => {
                    unfilled.extend(self.land_loaded(&target, guard, run, (start, took), outcome));
                }
                None => {
                    forgotten += 1;
                    guard.abort();
                }
            }
        }
        if forgotten > 0 {
            tracing::warn!(entity = %self.name, forgotten, "the batch loader has no answer for some keys");
        }
        if !unfilled.is_empty() {
            let this = Arc::clone(self);
            self.bus()
                .work
                .spawn(async move { this.fill_many(unfilled).await });
        }
    }

    /// Stores outcomes under their leases. Whatever fails here costs other loads, nothing else.
    async fn fill_many(&self, unfilled: Vec<Unfilled<K, V, E>>) {
        let mut fillings = unfilled
            .into_iter()
            .filter_map(|unfilled| self.encode(unfilled))
            .peekable();
        while let Some(first) = fillings.next() {
            let link = Arc::clone(first.held.link());
            let mut bytes = first.envelope.len();
            let mut some = vec![first];
            while let Some(next) = fillings.next_if(|next| {
                bytes + next.envelope.len() <= FILL_BYTES && Arc::ptr_eq(&link, next.held.link())
            }) {
                bytes += next.envelope.len();
                some.push(next);
            }
            let fills: Vec<_> = some.iter().map(|filling| filling.fill()).collect();
            let stored = self.ask(fills.len(), || link.fill_many(&fills)).await;
            for (filling, stored) in some.into_iter().zip(stored) {
                if stored.is_some() {
                    // Stored, or refused because the lease is gone: none is left to give back.
                    filling.held.forget();
                }
            }
        }
    }
}
