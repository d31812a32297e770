//! Many keys at once: the way of a single read, with each step taken by all keys together.
//!
//! Every key is a flight of its own, which single reads join and which joins them; what is shared is
//! the way. Those that this call leads go together to the store, to the leases and to the loader. A
//! key that leaves that way, because another pod loads it, this pod refreshes it, or the store is ahead
//! of this one, goes on as a single read does, in a task beside the others. What is stale is served as
//! to a single read, or its replacement asked for among the other leases.

use super::course::{Boarding, Guard, Skips, Waiter};
use super::load::LoadRun;
use super::outcome::{Landed, StaleReason};
use super::target::{Began, Target};
use super::view::ReadOptions;
use super::{Entity, Inner};
use crate::error::CacheError;
use crate::flight::Flown;
use crate::key::Key;
use crate::telemetry::spanned;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio::time::{Instant, timeout_at};

/// Keys that go to the store at once; more go one such part after another. It is asked within the time
/// that a single read has.
const PART: usize = 1_000;

/// What a key of a batch gives.
type Got<V, E> = Result<Landed<V, E>, CacheError<E>>;

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
    began: Began,
    waiter: Waiter<K, V, E>,
    /// What it gave, once it has, or what is served instead.
    landed: Option<Landed<V, E>>,
}

impl<K, V, E> Aboard<K, V, E> {
    /// Why something stale would be better than what there is; `None` if it would not.
    fn lacks(&self) -> Option<StaleReason> {
        match &self.landed {
            None => Some(StaleReason::LoadTimedOut),
            Some(landed) => (!landed.settled).then_some(StaleReason::LoadFailed),
        }
    }
}

/// A flight that this call leads.
pub(super) struct Lead<K, V, E> {
    pub(super) target: Arc<Target<K>>,
    pub(super) began: Began,
    pub(super) guard: Guard<K, V, E>,
}

/// A lead that has to load.
pub(super) struct Load<K, V, E> {
    pub(super) target: Arc<Target<K>>,
    pub(super) guard: Guard<K, V, E>,
    pub(super) run: LoadRun<V>,
}

impl<K, V, E> Lead<K, V, E> {
    pub(super) fn load(self, run: LoadRun<V>) -> Load<K, V, E> {
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
    /// For up to 1,000 keys that are not in the local level: one round trip to the store, one call of the
    /// [batch loader](super::EntityBuilder::loader_many) for what it does not have, and one round trip
    /// behind the caller to store what was loaded. Lists of which the store has most are read before
    /// anything is leased, which costs it a quarter; then what is missing is a round trip more. More keys
    /// go in parts of that size, one after another; the loads of a part run beside the next. Without a
    /// batch loader each key is a load of its own, at most
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
        let read = self.0.read_list(keys, ReadOptions::new()).await;
        read.into_iter().map(|read| read?.outcome).collect()
    }
}

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Reads each of `keys`, in their order.
    pub(super) async fn read_list<'k>(
        self: &Arc<Self>,
        keys: impl IntoIterator<Item = &'k K>,
        options: ReadOptions,
    ) -> Vec<Got<V, E>>
    where
        K: 'k,
    {
        let (mut got, mut missed) = (Vec::new(), Vec::new());
        for (at, key) in keys.into_iter().enumerate() {
            let hash = self.hash(key);
            got.push(match self.here(key, hash, &options) {
                Some(landed) => Ok(landed),
                None => {
                    missed.push(Missed { at, key, hash });
                    Err(CacheError::LoadAborted) // replaced below
                }
            });
        }
        if !missed.is_empty() {
            let read = self.read_many(&missed, &options);
            let read = spanned!("tidings.read", { cache = %self.bus().namespace.name, entity = %self.name }, read);
            let read = Box::pin(read).await;
            for (missed, read) in missed.iter().zip(read) {
                got[missed.at] = self.or_kept(missed.key, missed.hash, read, &options);
            }
        }
        got
    }

    /// Everything after the local misses, within the limit.
    async fn read_many(
        self: &Arc<Self>,
        missed: &[Missed<'_, K>],
        options: &ReadOptions,
    ) -> Vec<Got<V, E>> {
        if self.bus().closing.is_cancelled() {
            return missed.iter().map(|_| Err(CacheError::Closed)).collect();
        }
        self.level.telemetry.missed(missed.len());
        let (start, limit) = (Instant::now(), options.limit(self.options.load_timeout));
        let (end, skips) = (start + limit, options.skips());
        let mut aboard = Vec::with_capacity(missed.len());
        for part in missed.chunks(self.part()) {
            let mut leads = Vec::new();
            let embarked = part.iter().map(|one| self.embark(one, skips, &mut leads));
            aboard.extend(embarked);
            if options.has_deadline() {
                self.set_off_in_task(leads, skips);
            } else {
                // Leads that are dropped here fall to whoever else waits.
                let _ = timeout_at(end, self.set_off(leads, skips)).await;
            }
        }
        if let Some(soft) = self.options.soft_timeout.filter(|soft| *soft < limit) {
            self.arrive(&mut aboard, start + soft, skips).await;
            let note_late = |target: &Target<K>| {
                self.note_failure(target, StaleReason::LoadTimedOut);
            };
            self.serve_instead(&mut aboard, note_late).await;
        }
        self.arrive(&mut aboard, end, skips).await;
        self.serve_instead(&mut aboard, |_| {}).await;
        let got = aboard.into_iter().map(|one| {
            // The caller gives up what has not landed, the load does not: it may still fill.
            one.waiter.leave_running();
            one.landed.ok_or(CacheError::Timeout { after: limit })
        });
        got.collect()
    }

    /// A multiple of the batches, so that no part ends with a small one.
    fn part(&self) -> usize {
        let batch = self.batches.max;
        batch.saturating_mul(PART.div_ceil(batch))
    }

    /// Joins the flight of a key, or starts it and gets its lead.
    fn embark(
        &self,
        missed: &Missed<'_, K>,
        skips: Skips,
        leads: &mut Vec<Lead<K, V, E>>,
    ) -> Aboard<K, V, E> {
        let target = Arc::new(self.target(missed.key, missed.hash));
        let began = self.began(target.lane);
        let waiter = match self.board(&target, &began, skips) {
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
        Aboard {
            target,
            began,
            waiter,
            landed: None,
        }
    }

    /// Waits for all flights to land, and sees to it that they do if their leads fall to this call.
    async fn arrive(
        self: &Arc<Self>,
        aboard: &mut [Aboard<K, V, E>],
        until: Instant,
        skips: Skips,
    ) {
        // One after another: each flight goes on by itself, so the last to be looked at has landed when
        // the slowest has.
        for one in aboard {
            while one.landed.is_none() {
                match timeout_at(until, one.waiter.wait()).await {
                    Ok(Flown::Landed(landing)) => {
                        let landed = self.landed(landing);
                        match self.is_overtaken(&landed, &one.began) {
                            false => one.landed = Some(landed),
                            true => one.waiter = self.follow_anew(&one.target, skips),
                        }
                    }
                    Ok(Flown::Lead(guard)) if self.bus().closing.is_cancelled() => guard.abort(),
                    Ok(Flown::Lead(guard)) => self.lead_in_task(&one.target, guard, None, skips),
                    Err(_) => break,
                }
            }
        }
    }

    /// Serves what is stale where a load failed or takes too long, if that is allowed; those that take
    /// too long are told to `late`.
    async fn serve_instead(&self, aboard: &mut [Aboard<K, V, E>], late: impl Fn(&Target<K>)) {
        if !self.may_serve_instead() {
            return;
        }
        let serve = |one: &mut Aboard<K, V, E>, stale| {
            self.note_stale(&stale);
            if one.landed.is_none() {
                late(&one.target);
            }
            one.landed = Some(stale);
        };
        let mut without = Vec::new();
        for one in aboard {
            let Some(reason) = one.lacks() else {
                continue;
            };
            match self.still_here(&one.target, reason) {
                Some(stale) => serve(one, stale),
                None => without.push((one, reason)),
            }
        }
        let Ok(link) = self.bus().link_for_reads() else {
            return;
        };
        for part in without.chunks_mut(self.part()) {
            let targets: Vec<_> = part
                .iter()
                .map(|(one, _)| Arc::clone(&one.target))
                .collect();
            let places: Vec<_> = targets.iter().map(|it| it.place(&self.name)).collect();
            let began: Vec<_> = targets.iter().map(|it| self.began(it.lane)).collect();
            let found = self.ask(places.len(), "read", || link.read_many(&places));
            let found = found.await.into_iter().map(Result::ok);
            let found = targets.iter().zip(&began).zip(found);
            let found = found.map(|((target, began), found)| (&**target, began, found));
            let looks = self.told_many(&*link, found).await;
            for ((one, reason), look) in part.iter_mut().zip(looks) {
                let stale = look.and_then(|look| Self::still_stored(look, *reason));
                if let Some(stale) = stale {
                    serve(one, stale);
                }
            }
        }
    }

    /// Lets leads go their way whatever becomes of the caller.
    fn set_off_in_task(self: &Arc<Self>, leads: Vec<Lead<K, V, E>>, skips: Skips) {
        let (this, closing) = (Arc::clone(self), self.bus().closing.clone());
        self.bus().work.spawn(async move {
            tokio::select! {
                biased;
                () = this.set_off(leads, skips) => {}
                () = closing.cancelled() => {}
            }
        });
    }

    /// The leaders' way: the local level again, the store with the right to load, and then, behind this,
    /// the loads.
    async fn set_off(self: &Arc<Self>, leads: Vec<Lead<K, V, E>>, skips: Skips) {
        let mut sought = Vec::with_capacity(leads.len());
        for lead in leads {
            let here = match skips.local {
                true => None,
                false => self.landed_meanwhile(&lead.target),
            };
            match here {
                Some(landed) => lead.guard.land(landed),
                None => sought.push(lead),
            }
        }
        if skips.store {
            let loads = sought.into_iter().map(|lead| self.uncovered(lead));
            return self.load_many(loads.collect());
        }
        let loads = self.seek_many(sought, skips).await;
        self.level.telemetry.store_missed(loads.len());
        self.load_many(loads);
    }
}
