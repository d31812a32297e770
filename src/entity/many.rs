//! Many keys at once: the way of a single read, with each step taken by all keys together.
//!
//! Every key is a flight of its own, which single reads join and which joins them; what is shared is
//! the way. Those that this call leads go together to the store, to the leases and to the loader. A
//! key that leaves that way, because another pod loads it, this pod refreshes it, or the store is ahead
//! of this one, goes on as a single read does, in a task beside the others. What is stale is served as
//! to a single read, or its replacement asked for among the other leases.

use super::asking::{Ask, Asked};
use super::context::Previous;
use super::load::LoadRun;
use super::look::Look;
use super::outcome::{Landed, StaleReason};
use super::read::NoLoader;
use super::seek::{Next, Seen, Want};
use super::target::{Began, Target};
use super::{Entity, Inner};
use crate::error::CacheError;
use crate::flight::{Boarding, Flown, Guard, Waiter};
use crate::key::Key;
use crate::store::{BoxFuture, Link, StoreResult};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

/// Keys that go to the store at once; more go one such part after another. It is asked within the time
/// that a single read has.
const PART: usize = 1_000;

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
    began: Began,
    waiter: Waiter<K, Landed<V, E>>,
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
struct Lead<K, V, E> {
    target: Arc<Target<K>>,
    began: Began,
    guard: Guard<K, Landed<V, E>>,
}

/// A lead that needs a lease.
struct Wanted<K, V, E> {
    lead: Lead<K, V, E>,
    ask: Ask,
    /// What the outcome is to replace.
    previous: Option<Previous<V>>,
}

/// A lead that has to load.
pub(super) struct Load<K, V, E> {
    pub(super) target: Arc<Target<K>>,
    pub(super) guard: Guard<K, Landed<V, E>>,
    pub(super) run: LoadRun<V>,
}

impl<K, V, E> Lead<K, V, E> {
    fn load(self, run: LoadRun<V>) -> Load<K, V, E> {
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
            let hit = self.0.level.hit(hash, key);
            let hit = hit.or_else(|| self.0.late_hit(key, hash).map(|(hit, _)| hit));
            got.push(match hit {
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
        let start = Instant::now();
        let end = start + self.options.load_timeout;
        // What goes on alone ends with this call, as a single read does.
        let mut alone = JoinSet::new();
        let mut aboard = Vec::with_capacity(missed.len());
        for part in missed.chunks(self.part()) {
            let mut leads = Vec::new();
            aboard.extend(part.iter().map(|missed| self.embark(missed, &mut leads)));
            // Leads that are dropped here fall to whoever else waits.
            let _ = timeout_at(end, self.set_off(leads, &mut alone)).await;
        }
        if let Some(soft) = self.options.soft_timeout {
            self.arrive(&mut aboard, start + soft, &mut alone).await;
            let note_late = |target: &Target<K>| {
                self.note_failure(target, StaleReason::LoadTimedOut);
            };
            self.serve_instead(&mut aboard, note_late).await;
        }
        self.arrive(&mut aboard, end, &mut alone).await;
        self.serve_instead(&mut aboard, |_| {}).await;
        let after = self.options.load_timeout;
        let got = aboard.into_iter().map(|one| {
            // The caller gives up what has not landed, the load does not: it may still fill.
            one.waiter.leave_running();
            let landed = one.landed.ok_or(CacheError::Timeout { after })?;
            landed.outcome
        });
        got.collect()
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
        alone: &mut JoinSet<()>,
    ) {
        // One after another: each flight goes on by itself, so the last to be looked at has landed when
        // the slowest has.
        for one in aboard {
            while one.landed.is_none() {
                match timeout_at(until, one.waiter.wait()).await {
                    Ok(Flown::Landed(landing)) => {
                        let landed = self.landed(landing);
                        if !self.is_overtaken(&landed, &one.began) {
                            one.landed = Some(landed);
                            continue;
                        }
                        one.waiter = match self.board_anew(&one.target) {
                            Boarding::Waiter(waiter) => waiter,
                            Boarding::Leader(guard, waiter) => {
                                self.lead_beside(&one.target, guard, alone);
                                waiter
                            }
                        };
                    }
                    Ok(Flown::Lead(guard)) if self.bus().closing.is_cancelled() => guard.abort(),
                    Ok(Flown::Lead(guard)) => self.lead_beside(&one.target, guard, alone),
                    Err(_) => break,
                }
            }
        }
    }

    /// Goes on with one key in a task beside the others.
    fn lead_beside(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        guard: Guard<K, Landed<V, E>>,
        alone: &mut JoinSet<()>,
    ) {
        let (this, target) = (Arc::clone(self), Arc::clone(target));
        alone.spawn(async move { this.lead_alone(&target, guard, None).await });
    }

    /// Serves what is stale where a load failed or takes too long, if that is allowed; those that take
    /// too long are told to `late`.
    async fn serve_instead(&self, aboard: &mut [Aboard<K, V, E>], late: impl Fn(&Target<K>)) {
        if !self.may_serve_instead() {
            return;
        }
        let serve = |one: &mut Aboard<K, V, E>, stale| {
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
        let Ok(link) = self.bus().link() else {
            return;
        };
        for part in without.chunks_mut(self.part()) {
            let targets: Vec<_> = part
                .iter()
                .map(|(one, _)| Arc::clone(&one.target))
                .collect();
            let places: Vec<_> = targets.iter().map(|it| it.place(&self.name)).collect();
            let began: Vec<_> = targets.iter().map(|it| self.began(it.lane)).collect();
            let found = self.ask(places.len(), || link.read_many(&places)).await;
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

    async fn lead_alone(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        guard: Guard<K, Landed<V, E>>,
        seen: Option<Seen<V, E>>,
    ) {
        self.lead(target, &mut None::<NoLoader<V, E>>, guard, seen)
            .await;
    }

    /// Lets a key go on as a single read, from what was seen of it.
    fn go_alone(
        self: &Arc<Self>,
        lead: Lead<K, V, E>,
        look: Option<Look<V, E>>,
        alone: &mut JoinSet<()>,
    ) {
        let this = Arc::clone(self);
        alone.spawn(async move {
            let seen = look.map(|look| Seen {
                began: lead.began,
                look: Some(look),
            });
            this.lead_alone(&lead.target, lead.guard, seen).await;
        });
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
            for lead in sought {
                match self.is_being_refreshed(&lead.target) {
                    true => self.go_alone(lead, None, alone),
                    false => loads.push(self.uncovered(lead)),
                }
            }
        }
        self.load_many(loads);
    }

    /// A load that the store is of no help with.
    fn uncovered(&self, lead: Lead<K, V, E>) -> Load<K, V, E> {
        let run = self.uncovered_run(lead.target.lane);
        lead.load(run)
    }

    /// Reads all keys from the store. Gives those that need a lease.
    async fn look_for(
        self: &Arc<Self>,
        link: &dyn Link,
        sought: Vec<Lead<K, V, E>>,
        loads: &mut Vec<Load<K, V, E>>,
        alone: &mut JoinSet<()>,
    ) -> Vec<Wanted<K, V, E>> {
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
        let found = sought.iter().zip(found);
        let found = found.map(|(lead, found)| (&*lead.target, &lead.began, found));
        let looks = self.told_many(link, found).await;
        for (lead, look) in sought.into_iter().zip(looks) {
            let target = &lead.target;
            let (ask, previous) = match look {
                None => {
                    loads.push(self.uncovered(lead));
                    continue;
                }
                Some(Look::Found(found)) => match self.served(target, &found) {
                    Some(landed) => {
                        lead.guard.land(landed);
                        continue;
                    }
                    None => (self.ask_over(target, found.token), found.into_previous()),
                },
                Some(Look::Sync | Look::Untold(_)) => {
                    self.go_alone(lead, Some(Look::Sync), alone);
                    continue;
                }
                Some(look) if self.is_being_refreshed(target) => {
                    self.go_alone(lead, Some(look), alone);
                    continue;
                }
                Some(Look::Absent(unusable)) => (self.ask_for(target, unusable), None),
                // Its holder must learn that somebody waits.
                Some(Look::Held(_)) => (self.ask_for(target, None), None),
            };
            wanted.push(Wanted {
                lead,
                ask,
                previous,
            });
        }
        wanted
    }

    /// Asks for the leases of all keys.
    async fn ask_leases(
        self: &Arc<Self>,
        link: &Arc<dyn Link>,
        wanted: Vec<Wanted<K, V, E>>,
        loads: &mut Vec<Load<K, V, E>>,
        alone: &mut JoinSet<()>,
    ) {
        // In place before the call: if this future is dropped, leases that it was granted are freed.
        let held = wanted
            .iter()
            .map(|Wanted { lead, ask, .. }| self.to_be_held(link, &lead.target, ask));
        let held: Vec<_> = held.collect();
        let asked = held.iter().zip(&wanted).map(|(held, wanted)| {
            let request = wanted.ask.request(self.bus().opening());
            (held.place(), request)
        });
        let asked: Vec<_> = asked.collect();
        let replies = self.ask(asked.len(), || link.lease_many(&asked)).await;
        for ((wanted, held), reply) in wanted.into_iter().zip(held).zip(replies) {
            let Wanted {
                lead,
                ask,
                previous,
            } = wanted;
            let seen = (&*lead.target, &lead.began);
            let asked = match reply {
                Some(reply) => self.make_of_lease(seen, &ask, held, reply, Want::Read),
                None => Asked::NoHelp,
            };
            match asked {
                Asked::Next(Next::Land(landed)) => lead.guard.land(landed),
                Asked::Next(Next::Load(run)) => loads.push(lead.load(LoadRun { previous, ..run })),
                Asked::Next(Next::Leave) | Asked::Held(_) => {
                    let this = Arc::clone(self);
                    alone.spawn(async move {
                        this.pause(lead.target.hash).await;
                        this.lead_alone(&lead.target, lead.guard, None).await;
                    });
                }
                Asked::NoHelp => loads.push(self.uncovered(lead)),
            }
        }
    }

    /// Asks the store for `count` answers, within the time of one; `None` where it is of no help.
    pub(super) async fn ask<'a, T>(
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
}
