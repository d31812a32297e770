//! The handle: one namespace on one store. Each mode adds its own constructor to it.

use crate::bus::{Bus, CloseReport, Health, Invalidation};
use crate::envelope::KeyRing;
use crate::error::BuildError;
use crate::presence::Rooms;
use crate::tags::Registry;
use crate::telemetry::{CacheStats, Events};
use std::any::TypeId;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio_util::sync::DropGuard;

/// How long [`Cache::close`] waits for pending invalidations and background work.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// One namespace on one backing store, shared with every pod that uses the same: the factory of
/// everything cached. Cheap to clone.
///
/// A cache keeps one connection for commands, one for the bus, and one background task. They end with
/// [`close`](Self::close), or when the last handle is dropped (entities hold one).
///
/// It lives in the Tokio runtime it was built in. Its futures may be polled in another, if that has
/// timers (`enable_time`): limits are kept by them, and Tokio panics where there are none.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::convert::Infallible;
/// use tidings::Cache;
///
/// let cache = Cache::builder("shop").build().await?; // embedded store: nothing to install
/// let squares = cache.entity("square", |n: u64| async move { Ok::<_, Infallible>(n * n) }).build()?;
/// assert_eq!(*squares.get(&12).await?, 144);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Cache(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) bus: Arc<Bus>,
    /// The tags that are watched in this pod.
    pub(crate) tags: Arc<Registry>,
    /// What entities seal with, if they say nothing else.
    pub(crate) keys: Option<KeyRing>,
    /// What each entity name stands for.
    entities: Mutex<HashMap<String, (TypeId, u32)>>,
    /// Set when closing begins: what a memo asks on every hit, since nothing flushes it.
    closed: AtomicBool,
    /// This pod's part in rooms, from the first use on.
    pub(crate) rooms: OnceLock<Arc<Rooms>>,
    // In this order: who is told that the cache closes may still have a word for the store.
    _closing: DropGuard,
    _shutdown: DropGuard,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cache").field(&self.0.bus).finish()
    }
}

impl Cache {
    pub(crate) fn new(bus: Arc<Bus>, keys: Option<KeyRing>) -> Self {
        let (shutdown, closing) = (bus.shutdown.clone(), bus.closing.clone());
        Self(Arc::new(Inner {
            tags: Registry::new(&bus),
            bus,
            keys,
            entities: Mutex::default(),
            closed: AtomicBool::new(false),
            rooms: OnceLock::new(),
            _closing: closing.drop_guard(),
            _shutdown: shutdown.drop_guard(),
        }))
    }

    /// Takes `name` for values of type `value` with `schema`.
    pub(crate) fn claim(&self, name: &str, value: TypeId, schema: u32) -> Result<(), BuildError> {
        let mut entities = crate::bus::lock(&self.0.entities);
        let claimed = *entities.entry(name.to_owned()).or_insert((value, schema));
        if claimed == (value, schema) {
            return Ok(());
        }
        let reason = format!("`{name}` is taken by an entity with another value type or schema");
        Err(BuildError::new("entity", reason))
    }

    /// How the cache is doing: store, lanes, bound, pending invalidations. No round trip; takes a few
    /// locks for a moment, so it is for every second rather than for every read.
    #[must_use]
    pub fn health(&self) -> Health {
        self.0.bus.health()
    }

    /// What was counted in this process since the cache was built. No round trip; takes a few locks for a
    /// moment, so it is for every second rather than for every read.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.0.bus.stats()
    }

    /// What happens to the cache from now on: invalidations, gaps and their healing, lanes, the link, loads
    /// that failed, stale values served. For hooks of your own; the stream keeps no cache alive.
    ///
    /// Whoever is too slow for it loses the oldest events and is told how many; nothing waits for a
    /// consumer. Without one, no event is made.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tidings::{Cache, Event};
    ///
    /// let cache = Cache::builder("shop").build().await?;
    /// let mut events = cache.events();
    /// cache.invalidate(["user:42"]).await?;
    /// while let Some(event) = events.next().await {
    ///     if let Event::InvalidationAcknowledged { entity, after, .. } = event {
    ///         println!("{entity}: {after:?}");
    ///         break;
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub fn events(&self) -> Events {
        self.0.bus.telemetry.follow()
    }

    /// What is under way in this process: for tests that a call which was dropped leaves nothing behind.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn under_way(&self) -> crate::testing::UnderWay {
        self.0.bus.under_way()
    }

    /// Makes every pod forget everything that is cached in this namespace: all entities, and memos with
    /// tags; handlers, queries and streams run. For when a schema or a source was replaced as a whole.
    /// Raw data, rooms and what else is no cache stays.
    ///
    /// Nothing is scanned or deleted: each lane of the log begins anew, and what was stored before counts
    /// no more and expires. Two round trips for each of 16 lanes, side by side, some 20 ms after the call.
    ///
    /// # Errors
    /// [`InvalidateError::Pending`](crate::InvalidateError::Pending) if the store has not taken it within
    /// [`CacheBuilder::invalidate_timeout`](crate::CacheBuilder::invalidate_timeout): it is repeated.
    /// [`InvalidateError::Closed`](crate::InvalidateError::Closed) after [`close`](Self::close).
    ///
    /// # Cancel safety
    /// Once polled, it happens whether or not the future is dropped.
    ///
    /// # Consistency
    /// As [`Entity::clear`](crate::Entity::clear).
    pub fn clear(&self) -> Invalidation {
        let bus = Arc::clone(&self.0.bus);
        Invalidation::new(&self.0.bus, async move { bus.void_all().await })
    }

    /// Closes the cache for every handle: waits (at most 2 s) for pending invalidations to be
    /// acknowledged, gives leases back, leaves every room, ends the background tasks and both connections.
    /// Later calls give `Closed`. Closing twice is harmless. Gives the invalidations that were not
    /// acknowledged: log them if nobody will repeat them.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the cache half closed: call it again, or drop every handle.
    pub async fn close(&self) -> CloseReport {
        self.0.closed.store(true, Ordering::Release);
        self.0.bus.close(CLOSE_LIMIT).await
    }

    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }
}

/// Names appear in keys, channels and logs.
pub(crate) fn check_name(option: &'static str, name: &str) -> Result<(), BuildError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=64).contains(&name.len()) && name.chars().all(allowed) {
        return Ok(());
    }
    let reason = format!("{name:?} is not 1 to 64 of A–Z a–z 0–9 . _ -");
    Err(BuildError::new(option, reason))
}
