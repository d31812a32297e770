//! Write guards: a marker in the store for each key from before the commit until after the invalidation.
//!
//! The gap that they close is that between a commit and its invalidation, in which a value that is loaded
//! *before* the commit can still be kept, and in which the writer may die. While a marker stands nothing
//! that is loaded is kept longer than by its own youth, so the commit is what counts, whether or not
//! anybody comes to say so. `docs/decisions/write-guard.md` has the argument.

use super::attempt::Extra;
use super::{Bus, InvalidateError, Stamp};
use crate::coherence::{Call, Lane, Position};
use crate::error::{StoreError, StoreErrorKind};
use crate::random::random;
use crate::store::together::together;
use crate::store::{BoxFuture, Markers, StoreResult};
use std::collections::HashMap;
use std::fmt;
use std::future::IntoFuture;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};

/// How long a guard stands unless [`BeginWrite::ttl`] says otherwise: longer than the end of any
/// transaction that a service would wait for. A longer one costs nothing but loads, and those only if the
/// writer dies.
pub const DEFAULT_GUARD_TTL: Duration = Duration::from_secs(30);

/// The longest that a guard or a [hold-off](crate::EntityBuilder::hold_off) can be asked for: for so long
/// after an invalidation a pod that cannot ask the store must reckon with a guard that it does not know.
pub const MAX_GUARD_TTL: Duration = Duration::from_secs(60);

/// The guard that the markers of hold-offs are of: a key has one of them at most.
const HOLD_OFF: u64 = 0;

/// What a call does to the markers of its keys.
#[derive(Debug)]
pub(super) struct OwnedMarkers {
    markers: Markers,
    /// How many of the keys had one when it was lifted.
    stood: Arc<AtomicUsize>,
}

impl OwnedMarkers {
    pub(super) fn extra(markers: Markers, stood: &Arc<AtomicUsize>) -> Extra {
        let stood = Arc::clone(stood);
        Extra::Markers(Self { markers, stood })
    }

    pub(super) fn found(&self, stood: usize) {
        self.stood.fetch_add(stood, Ordering::AcqRel);
    }
}

/// How long the keys of each entity are held off, by the entity's hash.
#[derive(Debug, Default)]
pub(super) struct HoldOffs(RwLock<HashMap<u64, Duration>>);

impl HoldOffs {
    fn of(&self, entity: u64) -> Option<Duration> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(&entity).copied()
    }
}

impl Bus {
    /// From now on an invalidation of a key of this entity leaves a marker for so long.
    pub(crate) fn hold_off(&self, entity: u64, hold: Duration) {
        let all = &self.hold_offs.0;
        let mut all = all.write().unwrap_or_else(PoisonError::into_inner);
        let longest = all.entry(entity).or_default();
        *longest = hold.max(*longest);
    }

    /// What a call does to markers, if it does anything.
    pub(super) fn markers_for(&self, call: &Call, extra: &Extra) -> Option<Markers> {
        let mut markers = match extra {
            Extra::Markers(owned) => owned.markers,
            _ => Markers::default(),
        };
        if markers.leave.is_none() {
            let hold = self.hold_offs.of(call.entity_hash());
            markers.leave = hold.map(|hold| (HOLD_OFF, hold));
        }
        (markers != Markers::default()).then_some(markers)
    }
}

/// A write guard that is about to be taken: awaited, it gives a [`WriteGuard`]. Made by
/// [`Entity::begin_write`](crate::Entity::begin_write) and
/// [`begin_write_many`](crate::Entity::begin_write_many). Nothing happens before it is awaited.
#[must_use = "nothing is guarded before this is awaited"]
pub struct BeginWrite {
    bus: Arc<Bus>,
    calls: Vec<(Lane, Call)>,
    ttl: Duration,
}

impl BeginWrite {
    pub(crate) fn new(bus: &Arc<Bus>, calls: Vec<(Lane, Call)>) -> Self {
        Self {
            bus: Arc::clone(bus),
            calls,
            ttl: DEFAULT_GUARD_TTL,
        }
    }

    /// How long the guard stands if nobody finishes it: [`DEFAULT_GUARD_TTL`] if not set, at most
    /// [`MAX_GUARD_TTL`]. Must be longer than the commit can take from here on; what is committed later is
    /// not guarded, and [`finish`](WriteGuard::finish) says so.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    async fn begin(self) -> Result<WriteGuard, BeginWriteError> {
        let Self { bus, calls, ttl } = self;
        if ttl.is_zero() || ttl > MAX_GUARD_TTL {
            return Err(BeginWriteError::Ttl);
        }
        if bus.closing.is_cancelled() {
            return Err(BeginWriteError::Closed);
        }
        // In place before the store is asked: if this is dropped, what it has left there is lifted.
        let mut guard = WriteGuard {
            held: Some(Held {
                id: random().max(HOLD_OFF + 1),
                ends: None,
                bus,
                calls,
            }),
            stamp: Stamp::default(),
        };
        if let Some(held) = &guard.held {
            guard.stamp = held.mark(ttl).await?;
        }
        if let Some(held) = &mut guard.held {
            held.ends = Some(Instant::now() + ttl);
        }
        Ok(guard)
    }
}

impl IntoFuture for BeginWrite {
    type Output = Result<WriteGuard, BeginWriteError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.begin())
    }
}

impl fmt::Debug for BeginWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("BeginWrite");
        out.field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

/// A write guard was not taken: its keys are not guarded. Whoever goes on all the same, and invalidates
/// after the commit, has what [`invalidate`](crate::Entity::invalidate) promises, and no more.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum BeginWriteError {
    /// The store did not take it.
    Store(StoreError),
    /// The TTL is zero, or longer than [`MAX_GUARD_TTL`].
    Ttl,
    /// The cache was closed.
    Closed,
}

impl fmt::Display for BeginWriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(_) => f.write_str("store did not take the write guard"),
            Self::Ttl => write!(f, "write guard's ttl is zero or above {MAX_GUARD_TTL:?}"),
            Self::Closed => f.write_str("cache closed"),
        }
    }
}

impl std::error::Error for BeginWriteError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

impl From<StoreError> for BeginWriteError {
    fn from(error: StoreError) -> Self {
        match error.kind() {
            StoreErrorKind::Closed => Self::Closed,
            _ => Self::Store(error),
        }
    }
}

/// Some keys that are being written: nothing that is loaded of them is kept, beyond the bound, until this
/// is finished or its TTL ends.
///
/// Dropped, it stands until its TTL ends, for whoever holds it may have committed: a future that is
/// dropped during the commit leaves nobody who knows. This process then invalidates the keys at the end of
/// the TTL, for good measure. What costs is loads: each pod loads such a key about once a second.
#[must_use = "a guard that is dropped stands until its ttl ends"]
pub struct WriteGuard {
    /// None once it is finished.
    held: Option<Held>,
    stamp: Stamp,
}

/// What a guard has left in the store.
struct Held {
    bus: Arc<Bus>,
    calls: Vec<(Lane, Call)>,
    id: u64,
    /// Not before the markers end; none while nobody has the guard who could commit under it.
    ends: Option<Instant>,
}

impl WriteGuard {
    /// Where its beginning was logged. Any pod that has applied it holds nothing that was loaded before.
    #[must_use]
    pub fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// Invalidates the keys, and ends the guard. Call it after the commit. One round trip for each lane and
    /// 64 keys, all at the same time.
    ///
    /// Should the guard have ended before, because the commit took longer than its TTL, or because the
    /// store lost it, then this says so ([`Finished::Lapsed`]), and has invalidated the keys all the same.
    ///
    /// # Errors
    /// As [`Entity::invalidate`](crate::Entity::invalidate). [`Pending`](crate::InvalidateError::Pending):
    /// the invalidation is repeated, and the guard stands until its TTL ends, if the store has it.
    ///
    /// # Cancel safety
    /// Once polled, the invalidation happens whether or not the future is dropped. Before that, a dropped
    /// future is a dropped guard.
    ///
    /// # Consistency
    /// As [`Entity::invalidate`](crate::Entity::invalidate); on other pods, if it was
    /// [`Held`](Finished::Held), counted from the commit, not from here.
    pub async fn finish(mut self) -> Result<Finished, InvalidateError> {
        match self.held.take() {
            Some(held) => held.finish().await,
            None => Err(InvalidateError::Closed), // nobody has a guard without
        }
    }

    /// Ends the guard of a transaction that was rolled back: for certain, for without a guard a commit
    /// that lands later is as if there had been none. In doubt, drop the guard. Happens behind the caller;
    /// the keys are invalidated with it, which costs a load and keeps a wrong call from doing harm to what
    /// was committed before it.
    pub fn abort(mut self) {
        if let Some(held) = self.held.take() {
            held.lift_behind();
        }
    }
}

impl fmt::Debug for WriteGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("WriteGuard");
        out.field("stamp", &self.stamp).finish_non_exhaustive()
    }
}

impl Drop for WriteGuard {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else {
            return;
        };
        if held.bus.closing.is_cancelled() {
            return; // the markers end by themselves
        }
        match held.ends {
            None => held.lift_behind(),
            Some(ends) => held.end_behind(ends),
        }
    }
}

impl Held {
    /// Leaves the markers; gives where that was logged.
    async fn mark(&self, ttl: Duration) -> Result<Stamp, BeginWriteError> {
        let markers = Markers {
            leave: Some((self.id, ttl)),
            ..Markers::default()
        };
        let marked = self.attempt(markers, &Arc::default()).await;
        let positions = marked.into_iter().collect::<StoreResult<_>>()?;
        Ok(Stamp { positions })
    }

    /// Has every call logged, side by side, each by one attempt.
    fn attempt<'a>(
        &'a self,
        markers: Markers,
        stood: &Arc<AtomicUsize>,
    ) -> BoxFuture<'a, Vec<StoreResult<(Lane, Position)>>> {
        let limit = self.bus.timing.invalidate_timeout;
        let attempt = |(lane, call): &'a (Lane, Call)| -> BoxFuture<'a, StoreResult<_>> {
            let (lane, call) = (*lane, Arc::new(call.clone()));
            let extra = OwnedMarkers::extra(markers, stood);
            Box::pin(async move {
                let attempt = self.bus.attempt(lane, &call, &extra);
                let position = timeout(limit, attempt).await;
                let late = |_| Err(StoreError::new(StoreErrorKind::Timeout, "guard"));
                Ok((lane, position.unwrap_or_else(late)?))
            })
        };
        together(self.calls.iter().map(attempt))
    }

    fn lifting(&self) -> Markers {
        Markers {
            lift: Some(self.id),
            ..Markers::default()
        }
    }

    /// Lifts the markers behind the caller, if the store can be reached: nothing was committed.
    fn lift_behind(self) {
        let bus = Arc::clone(&self.bus);
        bus.spawn_until_shutdown(async move {
            // What fails here ends by itself.
            self.attempt(self.lifting(), &Arc::default()).await;
        });
    }

    /// Invalidates the keys at the end of the guard, under which something may have been committed. While
    /// the markers stand, there is nothing to invalidate.
    fn end_behind(self, ends: Instant) {
        let bus = Arc::clone(&self.bus);
        let closing = bus.closing.clone();
        bus.spawn_until_shutdown(async move {
            tokio::select! {
                () = sleep_until(ends) => {
                    let (calls, stood) = (self.calls.clone(), Arc::default());
                    let extra = || OwnedMarkers::extra(self.lifting(), &stood);
                    drop(self.bus.begin_with(calls, extra));
                }
                // What the end of the markers does, it does without us.
                () = closing.cancelled() => {}
            }
        });
    }

    async fn finish(self) -> Result<Finished, InvalidateError> {
        let keys: usize = self.calls.iter().map(|(_, call)| call.keys.len()).sum();
        let (calls, stood) = (self.calls.clone(), Arc::default());
        let extra = || OwnedMarkers::extra(self.lifting(), &stood);
        let stamp = self.bus.announce_with(calls, extra).await?;
        if stood.load(Ordering::Acquire) >= keys {
            return Ok(Finished::Held(stamp));
        }
        self.bus.count_lapsed_guard();
        tracing::warn!(namespace = %self.bus.namespace.name,
            "a write guard had ended before it was finished; its ttl may be shorter than a commit takes");
        Ok(Finished::Lapsed(stamp))
    }
}

/// What came of a write guard, with where its invalidation was logged.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finished {
    /// It stood until now, for every key: no read that began later than the bound after the commit gave
    /// anything older.
    Held(Stamp),
    /// It had ended for some key before: its TTL was shorter than the commit took, or the store lost it. If
    /// that was before the commit, the old value may have been loaded and served until now, as without a
    /// guard. Also given if the store was asked twice, because a connection broke in between.
    Lapsed(Stamp),
}

impl Finished {
    /// Where the invalidation was logged.
    #[must_use]
    pub fn stamp(&self) -> &Stamp {
        let (Self::Held(stamp) | Self::Lapsed(stamp)) = self;
        stamp
    }

    /// Whether the guard stood until it was finished.
    #[must_use]
    pub fn was_held(&self) -> bool {
        matches!(self, Self::Held(_))
    }
}
