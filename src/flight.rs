//! Single flight: at most one load per key in this process, shared by everybody who asks for it.
//!
//! A caller [boards](Flights::board) the flight of its key and holds a [`Waiter`]; whoever starts the
//! flight also gets the [`Guard`], the lead as a value, and may move it into a task. The guard ends
//! the flight by [landing](Guard::land) an outcome. A guard that is dropped instead leaves the flight
//! *vacant*, and the next waiter to be polled takes the lead; so a cancelled leader needs no code of
//! its own. That idea is quick_cache's (`get_value_or_guard`). What differs here: a load that fails
//! lands its error for all its waiters, where quick_cache retries once per waiter; a panic
//! [aborts](Landing::Aborted) the flight; the lead can learn that [nobody waits](Guard::abandoned)
//! any more; and a flight can be [detached](Flights::detach), so that nobody joins a load that began
//! before an invalidation, while those who asked before it still get its outcome.
//!
//! A hand-over is a state that waiters find, not a message sent to one of them: all are woken, and
//! the first to look takes the lead. A message to one could be lost or delayed:
//!
//! 1. The leader is dropped; waiter A is told that it leads.
//! 2. A's future is dropped before it is polled, or is kept but never polled again.
//! 3. B waits for a load that nobody runs.
//!
//! The price is one wake-up per waiter when a leader is dropped, as for a landing.
//!
//! Two kinds of lock, held for a few instructions and never over an `.await`: a stripe of the map,
//! then the state of one flight, always in that order. A flight is in the map only while somebody
//! holds its guard or waits for it.

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasherDefault, Hasher};

use crate::coherence::FlightMeta;
use crate::sync::{Arc, Mutex, MutexGuard, Notify, PoisonError};

/// How many locks the map is split into; a power of two.
const STRIPES: usize = 32;
/// More often than callers are dropped in a row with the lead, as a rule.
const LOST_OFTEN: u8 = 8;

type Stripe<K, T, M> = HashMap<u64, Arc<Flight<K, T, M>>, BuildHasherDefault<PassThrough>>;

/// The flights under way, by the hash of their key; a cheap handle.
///
/// `M` is what a flight started from, by which a caller judges whether it may join; an entity's is the
/// coherence rules' own.
pub(crate) struct Flights<K, T, M = FlightMeta>(Arc<[Mutex<Stripe<K, T, M>>]>);

/// How a caller came on board.
#[must_use]
pub(crate) enum Boarding<K, T, M = FlightMeta> {
    /// It started the flight: it must run the load, or drop the guard.
    Leader(Guard<K, T, M>, Waiter<K, T, M>),
    /// It joined a flight under way.
    Waiter(Waiter<K, T, M>),
}

/// How a flight ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Landing<T> {
    /// The load ended, well or badly, with this outcome.
    Done(T),
    /// The leader panicked.
    Aborted,
}

/// What a waiter waited for.
#[must_use]
pub(crate) enum Flown<K, T, M = FlightMeta> {
    /// The flight ended.
    Landed(Landing<T>),
    /// The lead was dropped, and this waiter has it now.
    Lead(Guard<K, T, M>),
}

impl<K, T, M> Flights<K, T, M> {
    pub(crate) fn new() -> Self {
        Self((0..STRIPES).map(|_| Mutex::default()).collect())
    }

    /// Joins the flight of `key` if there is one and `may_join` holds; else starts one with `meta`.
    ///
    /// A flight that may not be joined is replaced, and goes on, detached, for those who wait for it.
    /// If the flight in the map is of another key with the same hash, the new one flies solo: outside
    /// the map, detached from the start. `may_join` is called under locks: it must be quick, and must
    /// not come back here.
    pub(crate) fn board(
        &self,
        hash: u64,
        key: &K,
        meta: M,
        may_join: impl FnOnce(&M) -> bool,
    ) -> Boarding<K, T, M>
    where
        K: Eq + Clone,
    {
        let mut stripe = self.stripe(hash);
        let found = stripe.get(&hash);
        let solo = found.is_some_and(|flight| flight.key != *key);
        if let Some(flight) = found.filter(|_| !solo)
            && flight.join(may_join)
        {
            return Boarding::Waiter(Waiter(Arc::clone(flight)));
        }
        let flight = Arc::new(Flight::new(self.clone(), hash, key.clone(), meta, solo));
        let replaced = match solo {
            true => None,
            false => stripe.insert(hash, Arc::clone(&flight)),
        };
        if let Some(replaced) = &replaced {
            replaced.state().detached = true;
        }
        // The stripe before `replaced`: if that is the last handle, a user's `Drop` runs with it.
        drop(stripe);
        Boarding::Leader(Guard(Arc::clone(&flight)), Waiter(flight))
    }

    /// Joins the flight of `key` if there is one and `may_join` holds, as [`board`](Self::board) does.
    pub(crate) fn join(
        &self,
        hash: u64,
        key: &K,
        may_join: impl FnOnce(&M) -> bool,
    ) -> Option<Waiter<K, T, M>>
    where
        K: Eq,
    {
        let stripe = self.stripe(hash);
        let flight = stripe.get(&hash).filter(|flight| flight.key == *key)?;
        let joined = flight.join(may_join);
        joined.then(|| Waiter(Arc::clone(flight)))
    }

    /// Detaches the flight of `hash` if `when` holds, and returns whether it did.
    ///
    /// Later callers do not join it; those on board get its outcome. `when` is called under locks.
    pub(crate) fn detach(&self, hash: u64, when: impl FnOnce(&M) -> bool) -> bool {
        let mut stripe = self.stripe(hash);
        let detach = stripe.get(&hash).is_some_and(|flight| flight.detach(when));
        let detached = if detach { stripe.remove(&hash) } else { None };
        drop(stripe);
        detached.is_some()
    }

    /// Detaches every flight for whose hash `when` holds; visits them all.
    pub(crate) fn detach_all(&self, when: impl Fn(u64) -> bool) {
        for stripe in self.0.iter() {
            let detached: Vec<_> = lock(stripe)
                .extract_if(|&hash, flight| when(hash) && flight.detach(|_| true))
                .collect();
            drop(detached);
        }
    }

    /// How many flights a caller could find, which leaves out detached and solo ones.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|stripe| lock(stripe).len()).sum()
    }

    /// The part of the map that holds `hash`: middle bits, since the table uses both ends.
    fn stripe(&self, hash: u64) -> MutexGuard<'_, Stripe<K, T, M>> {
        lock(&self.0[(hash >> 32) as usize % STRIPES])
    }
}

impl<K, T, M> Clone for Flights<K, T, M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// One load and those who wait for it.
struct Flight<K, T, M> {
    /// A cycle while the flight is in the map; its last guard or waiter takes it out.
    flights: Flights<K, T, M>,
    hash: u64,
    key: K,
    state: Mutex<State<T, M>>,
    /// Told when the flight lands or its lead falls vacant.
    news: Notify,
    /// Told when the last waiter leaves.
    left: Notify,
}

struct State<T, M> {
    phase: Phase<T>,
    meta: M,
    waiters: usize,
    /// How often the lead fell vacant.
    vacancies: u8,
    /// A waiter left the load to run without it.
    unattended: bool,
    detached: bool,
}

enum Phase<T> {
    /// There is exactly one guard.
    Led,
    /// There is none: the first waiter to look takes the lead.
    Vacant,
    /// For good.
    Landed(Landing<T>),
}

impl<K, T, M> Flight<K, T, M> {
    fn new(flights: Flights<K, T, M>, hash: u64, key: K, meta: M, detached: bool) -> Self {
        let state = State {
            phase: Phase::Led,
            meta,
            waiters: 1,
            vacancies: 0,
            unattended: false,
            detached,
        };
        Self {
            flights,
            hash,
            key,
            state: Mutex::new(state),
            news: Notify::new(),
            left: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T, M>> {
        lock(&self.state)
    }

    /// Counts one more waiter if `may_join` holds; called under the stripe's lock.
    fn join(&self, may_join: impl FnOnce(&M) -> bool) -> bool {
        let mut state = self.state();
        let joined = may_join(&state.meta);
        state.waiters += usize::from(joined);
        joined
    }

    /// Marks the flight detached if `when` holds; called under the stripe's lock.
    fn detach(&self, when: impl FnOnce(&M) -> bool) -> bool {
        let mut state = self.state();
        let detach = when(&state.meta);
        state.detached |= detach;
        detach
    }

    /// Ends the flight, unless its guard has done so already.
    ///
    /// Out of the map first, so that what is found there has never landed.
    fn land(&self, landing: Landing<T>) {
        self.leave_map_if(|_| true);
        let mut state = self.state();
        if matches!(state.phase, Phase::Led) {
            state.phase = Phase::Landed(landing);
            drop(state);
            self.news.notify_waiters();
        }
    }

    /// Whether nobody leads, and the lead was lost often.
    fn was_lost_often(&self) -> bool {
        let state = self.state();
        state.vacancies >= LOST_OFTEN && matches!(state.phase, Phase::Vacant)
    }

    /// Gives up the lead, unless the flight has landed.
    fn vacate(&self) {
        let mut state = self.state();
        if matches!(state.phase, Phase::Led) {
            state.phase = Phase::Vacant;
            state.vacancies = state.vacancies.saturating_add(1);
            drop(state);
            self.news.notify_waiters();
            self.leave_map_if(State::is_deserted);
        }
    }

    /// Counts one waiter less.
    fn leave(&self) {
        let mut state = self.state();
        state.waiters -= 1;
        let deserted = state.is_deserted();
        let last = state.waiters == 0;
        drop(state);
        if last {
            self.left.notify_waiters();
        }
        if deserted {
            self.leave_map_if(State::is_deserted);
        }
    }

    /// Takes the flight out of the map if it is the one there and `gone` holds.
    ///
    /// Callers join under the stripe's lock, so `gone` is asked under it too:
    ///
    /// 1. The last waiter leaves a vacant flight.
    /// 2. A caller finds the flight in the map, joins it, and will take the lead.
    /// 3. Step 1 gets here, and must find the flight in use again.
    fn leave_map_if(&self, gone: impl FnOnce(&State<T, M>) -> bool) {
        let mut stripe = self.flights.stripe(self.hash);
        if stripe
            .get(&self.hash)
            .is_some_and(|there| std::ptr::eq(&**there, self))
            && gone(&self.state())
        {
            stripe.remove(&self.hash);
        }
    }

    /// Resolves once nobody waits, unless a waiter left the load to run.
    async fn abandoned(&self) {
        loop {
            let left = self.left.notified(); // before the look, so that no departure is missed
            if self.state().is_abandoned() {
                return;
            }
            left.await;
        }
    }
}

impl<T, M> State<T, M> {
    /// Nobody runs the load, and nobody is there to take it over.
    fn is_deserted(&self) -> bool {
        self.waiters == 0 && matches!(self.phase, Phase::Vacant)
    }

    fn is_abandoned(&self) -> bool {
        self.waiters == 0 && !self.unattended
    }
}

/// The lead of a flight: there is at most one at a time.
///
/// Dropped without landing, it hands the lead to a waiter; dropped by a panic, it aborts the flight.
#[must_use = "a dropped guard hands the lead to the next waiter"]
pub(crate) struct Guard<K, T, M = FlightMeta>(Arc<Flight<K, T, M>>);

impl<K, T, M> Guard<K, T, M> {
    /// Ends the flight: every waiter gets `outcome`, later callers start anew.
    pub(crate) fn land(self, outcome: T) {
        self.0.land(Landing::Done(outcome));
    }

    /// Ends the flight without an outcome: for a leader whose panic was caught, or who is shutting down.
    pub(crate) fn abort(self) {
        self.0.land(Landing::Aborted);
    }

    /// Whether later callers cannot join, and a later [`Flights::detach`] cannot find, this flight.
    ///
    /// True once it was detached or replaced, and from the start of a solo flight: its outcome must
    /// not be kept on the ground that no invalidation was noticed here.
    pub(crate) fn is_detached(&self) -> bool {
        self.0.state().detached
    }

    /// Changes what the flight counts as having started from, for those who board from now on.
    pub(crate) fn change(&self, change: impl FnOnce(&mut M)) {
        change(&mut self.0.state().meta);
    }

    /// Resolves once every waiter is gone; never after one [left the load
    /// running](Waiter::leave_running).
    ///
    /// A caller may still board between this and the drop of the guard; it then takes the lead. The
    /// future borrows nothing.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) fn abandoned(&self) -> impl Future<Output = ()> + use<K, T, M> {
        let flight = Arc::clone(&self.0);
        async move { flight.abandoned().await }
    }
}

impl<K, T, M> Drop for Guard<K, T, M> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.land(Landing::Aborted);
        } else {
            self.0.vacate();
        }
    }
}

/// A caller's place on a flight; to drop it is to leave.
#[must_use = "a dropped waiter leaves the flight"]
pub(crate) struct Waiter<K, T, M = FlightMeta>(Arc<Flight<K, T, M>>);

impl<K, T: Clone, M> Waiter<K, T, M> {
    /// Waits until the flight lands, or until its lead falls to this waiter.
    ///
    /// Once the lead was lost often, whoever is to take it gives everybody else a turn first. Else a
    /// runtime that is shut down would wait for ever: it drops at once what is spawned, the lead in a
    /// new task with it, and waits for the task that spawns it to return from its poll.
    ///
    /// May be called again: after a landing it returns the same, and after it gave the lead it waits
    /// for that guard like for any other.
    ///
    /// # Cancel safety
    /// Cancel safe. The lead is taken only in the poll that returns it.
    pub(crate) async fn wait(&mut self) -> Flown<K, T, M> {
        if self.0.was_lost_often() {
            tokio::task::yield_now().await;
        }
        loop {
            let news = self.0.news.notified(); // before the look, so that none is missed
            if let Some(flown) = self.look() {
                return flown;
            }
            news.await;
        }
    }

    fn look(&self) -> Option<Flown<K, T, M>> {
        let mut state = self.0.state();
        match &state.phase {
            Phase::Led => None,
            Phase::Landed(landing) => Some(Flown::Landed(landing.clone())),
            Phase::Vacant => {
                state.phase = Phase::Led;
                Some(Flown::Lead(Guard(Arc::clone(&self.0))))
            }
        }
    }
}

impl<K, T, M> Waiter<K, T, M> {
    /// Leaves without ending the load, even if nobody else waits for it.
    pub(crate) fn leave_running(self) {
        self.0.state().unattended = true;
    }
}

impl<K, T, M> Drop for Waiter<K, T, M> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// A hasher for keys that are hashes already.
#[derive(Default)]
struct PassThrough(u64);

impl Hasher for PassThrough {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("the only key is one u64")
    }
}

/// Locks, poisoned or not: a panic in a caller's closure comes before any change it could spoil.
fn lock<S>(mutex: &Mutex<S>) -> MutexGuard<'_, S> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
