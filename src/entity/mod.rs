//! Entity: a typed two-level cache of one kind of record.
//!
//! A read looks in the local level ([`level`]), then joins or leads a flight ([`read`]) that seeks
//! ([`seek`]) what the store has ([`look`]), or the right to load it ([`asking`]), and loads ([`load`]). The outcome goes into the local level, to
//! everybody on board, and behind their backs into the store. What is found towards the end of its life
//! or past it is loaded anew, mostly behind its readers ([`refresh`]). A list of keys takes the same
//! way, step by step ([`many`], [`seek_many`]). An invalidation is a call of the bus; what it does to an entity is in
//! [`level`].

mod asking;
mod attempts;
mod batch;
mod batch_load;
mod builder;
mod context;
mod course;
mod lease;
mod level;
mod load;
mod loader;
mod look;
mod many;
mod outcome;
mod put;
mod read;
mod refresh;
mod seek;
mod seek_many;
mod strict;
mod tagging;
mod target;
mod usual;
mod version;
mod view;
mod waiting;
mod write;

pub use batch::DEFAULT_MAX_BATCH;
pub(crate) use builder::check_load_timeout;
pub use builder::{
    DEFAULT_CAPACITY, DEFAULT_COMPRESS_ABOVE, DEFAULT_JITTER, DEFAULT_LOAD_TIMEOUT,
    DEFAULT_RETRY_AFTER, DEFAULT_STORE_MAX_BYTES, DEFAULT_TTL, DEFAULT_UNLEASED_LOADS,
    EntityBuilder, MAX_LOAD_TIMEOUT,
};
pub use context::{Cancellation, ContextLoader, LoadContext, Loaded, Previous};
pub use loader::Loader;
pub(crate) use loader::SharedLoader;
pub use outcome::{EarlyRefresh, Freshness, Origin, Refresh, Served, StaleReason};

use crate::bus::{Bus, Invalidation, Stamp};
use crate::cache::Cache;
use crate::coherence::{Call, Lane};
use crate::error::CacheError;
use crate::key::{EntityKeys, HashedKey, Key, Tag};
use crate::telemetry::{EntityStats, spanned};
use attempts::Attempts;
use batch::Batches;
use builder::Options;
use level::Level;
use outcome::Landed;
use read::NoLoader;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::Semaphore;
use usual::{LogGate, UsualLoad, UsualMisses};
pub use view::{EntityView, ReadOptions};

/// A two-level cache of one kind of record: keys `K`, values `V`, loader errors `E`. Cheap to clone.
///
/// Built by [`Cache::entity`]. Values come as `Arc<V>`: everybody who reads a key shares one copy.
pub struct Entity<K, V, E>(Arc<Inner<K, V, E>>);

struct Inner<K, V, E> {
    name: Arc<str>,
    keys: EntityKeys,
    level: Arc<Level<K, V, E>>,
    loader: SharedLoader<K, V, E>,
    batches: Batches<K, V, E>,
    options: Options<K, V, E>,
    /// Loads that no lease coordinates.
    limiter: Semaphore,
    /// Refreshes that nobody waits for.
    refresh_turns: Semaphore,
    usual_load: UsualLoad,
    usual_misses: UsualMisses,
    attempts: Attempts,
    unusable_log: LogGate,
    /// Keeps the bus running.
    cache: Cache,
}

impl<K, V, E> Inner<K, V, E> {
    fn bus(&self) -> &Arc<Bus> {
        &self.cache.0.bus
    }

    #[inline]
    fn hash(&self, key: &K) -> u64
    where
        K: Key,
    {
        key.with_bytes(|bytes| self.keys.hash(bytes).hash)
    }
}

impl<K, V, E> Clone for Entity<K, V, E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[cfg(feature = "postgres")]
impl<K, V, E> Entity<K, V, E> {
    pub(crate) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.0.name)
    }
}

impl<K, V, E> fmt::Debug for Entity<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entity")
            .field("name", &self.0.name)
            .finish_non_exhaustive()
    }
}

impl<K, V, E> Entity<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    #[inline]
    fn hash(&self, key: &K) -> u64 {
        self.0.hash(key)
    }

    /// Returns the value for `key`, loading it from the source on a miss.
    ///
    /// Looks in the local level (no round trip, no allocation), then in the store (one round trip),
    /// then loads (one round trip more for the lease, and one behind the caller for the fill).
    /// Concurrent calls for one key share one load in this pod, and pods share one through the lease.
    /// While the store is away, reads go on from the local level within the bound and then from the
    /// loader. A local hit is ready at once and does not yield to the runtime: a loop of nothing but
    /// hits must yield by itself.
    ///
    /// # Errors
    /// [`CacheError::Load`] if the loader failed, now or when its error was cached;
    /// [`CacheError::LoadAborted`] if it panicked; [`CacheError::Timeout`] after
    /// [`EntityBuilder::load_timeout`]; [`CacheError::Closed`] after [`Cache::close`].
    ///
    /// # Cancel safety
    /// Cancel safe. If this call led the load, a waiting call takes over; if none waits, the load is
    /// dropped and nothing is stored.
    ///
    /// # Consistency
    /// The value reflects every invalidation that was acknowledged longer ago than the bound (see
    /// [`Health::bound`](crate::Health::bound)), and every one by this pod that has returned.
    pub async fn get(&self, key: &K) -> Result<Arc<V>, CacheError<E>> {
        let hash = self.hash(key);
        if let Some(hit) = self.0.level.hit(hash, key) {
            return hit.slot.value.map_err(CacheError::Load);
        }
        if let Some((hit, _)) = self.0.late_hit(key, hash) {
            return hit.slot.value.map_err(CacheError::Load);
        }
        self.miss(key, hash).await.and_then(|landed| landed.outcome)
    }

    /// As [`get`](Self::get), and tells how the value was served.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    ///
    /// # Cancel safety
    /// As [`get`](Self::get).
    ///
    /// # Consistency
    /// As [`get`](Self::get); [`Served::bound`] is what holds for this one read, mostly far below the
    /// general bound. It is there for a fresh value alone.
    pub async fn get_with(&self, key: &K) -> Result<Served<V>, CacheError<E>> {
        self.with(ReadOptions::new()).get_with(key).await
    }

    /// As [`get`](Self::get), with a loader for this call only, for what only the caller has at hand:
    /// a transaction, a tenant's connection. It may borrow. If another call is loading the key already,
    /// its outcome is shared and `load` is not run.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    ///
    /// # Cancel safety
    /// Cancel safe. `load` runs inside this call and is dropped with it; a waiting call then leads,
    /// with its own loader.
    ///
    /// # Consistency
    /// As [`get`](Self::get), if `load` sees everything that was committed before it is polled first
    /// (see [`Loader`]).
    pub async fn get_or_load<F, Fut>(&self, key: &K, load: F) -> Result<Arc<V>, CacheError<E>>
    where
        F: FnOnce() -> Fut + Send,
        Fut: Future<Output = Result<V, E>> + Send,
    {
        let hash = self.hash(key);
        if let Some(hit) = self.0.level.hit(hash, key) {
            return hit.slot.value.map_err(CacheError::Load);
        }
        if let Some((hit, _)) = self.0.late_hit(key, hash) {
            return hit.slot.value.map_err(CacheError::Load);
        }
        let read = Box::pin(Arc::clone(&self.0).read(key, hash, Some(load)));
        read.await.and_then(|landed| landed.outcome)
    }

    /// As [`get`](Self::get), of nothing older than `stamp`: for whoever was told of an invalidation by
    /// another pod, and must see it at once, be it of the key or of a tag that its value has. Nothing more
    /// than a `get` where this pod has applied it; else a poll of the store first, and a read of its log if
    /// hints were lost. A stamp that was made up costs a poll, and nothing else.
    ///
    /// # Errors
    /// As [`get`](Self::get); [`CacheError::Store`] if this pod has not applied the invalidation, and the
    /// store cannot be asked.
    ///
    /// # Cancel safety
    /// As [`get`](Self::get).
    ///
    /// # Consistency
    /// The value reflects the invalidation that gave `stamp`.
    pub async fn get_at_least(&self, key: &K, stamp: &Stamp) -> Result<Arc<V>, CacheError<E>> {
        // On whatever lanes: it may be of a tag that the value has.
        let reached = self.0.bus().reach(stamp).await;
        reached.map_err(CacheError::Store)?;
        self.get(key).await
    }

    /// As [`get`](Self::get), of nothing that was invalidated before the call began, by any pod. For the
    /// decision that must not miss what was acknowledged within the last second.
    ///
    /// One round trip, which reads the store and proves that the node still takes writes; what is in the
    /// local level does not spare it. If the store does not have the value, it is loaded as by `get`,
    /// under a lease. If the store cannot be asked, or does not prove itself, it is loaded without one: the
    /// source knows as much. Strict reads share no load within the pod, but wait for the lease.
    ///
    /// # Errors
    /// As [`get`](Self::get). Never a stale value instead, and never an error of the store.
    ///
    /// # Cancel safety
    /// Cancel safe. A load that nobody else waits for is dropped, and nothing is stored.
    ///
    /// # Consistency
    /// The value reflects every invalidation that was acknowledged, to whichever pod, before this was
    /// polled first. An invalidation that a change of the server lost is reflected as soon as a pod that
    /// knows of it has repeated it there.
    pub async fn get_strict(&self, key: &K) -> Result<Arc<V>, CacheError<E>> {
        let hash = self.hash(key);
        let read = Box::pin(self.0.read_strict(key, hash));
        read.await.and_then(|landed| landed.outcome)
    }

    /// Loads `key` from the source although there is a value, which goes on being served until the new
    /// one takes its place. Gives the new one.
    ///
    /// One pod loads: a call while the key is being loaded or refreshed, here or in another pod, shares
    /// the outcome, also that of a load which began a moment before the call. If the load fails, what was
    /// there stays, and the error is the caller's. Costs two round trips before the load and two behind
    /// the caller.
    ///
    /// For a value that is known to have changed, use [`invalidate`](Self::invalidate): a refresh tells
    /// no other pod, and those that have the old value serve it for as long as they would have.
    ///
    /// # Errors
    /// As [`get`](Self::get). Never a stale value instead.
    ///
    /// # Cancel safety
    /// Cancel safe. The load is dropped with the last call that waits for it.
    ///
    /// # Consistency
    /// As [`get`](Self::get). A refresh that an invalidation overtook is given to its callers, who asked
    /// before, and kept in neither level.
    pub async fn refresh(&self, key: &K) -> Result<Arc<V>, CacheError<E>> {
        let hash = self.hash(key);
        let refresh = Box::pin(self.0.refresh_now(key, hash));
        refresh.await.and_then(|landed| landed.outcome)
    }

    async fn miss(&self, key: &K, hash: u64) -> Result<Landed<V, E>, CacheError<E>> {
        let read = Arc::clone(&self.0).read(key, hash, None::<NoLoader<V, E>>);
        let span = spanned!("tidings.read", { cache = %self.0.bus().namespace.name, entity = %self.0.name }, read);
        span.await
    }

    /// Returns the value if the local level may serve it right now. Never loads, makes no round trip,
    /// and does not count as a use. A cached error is `None`.
    ///
    /// # Consistency
    /// As [`get`](Self::get).
    #[must_use]
    pub fn peek(&self, key: &K) -> Option<Arc<V>> {
        self.0.level.peek(self.hash(key), key)?.value.ok()
    }

    /// What this entity did in this process since it was built, and what it holds. No round trip; takes
    /// some locks of the map for a moment, so it is for every second rather than for every read.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::convert::Infallible;
    /// # use tidings::Cache;
    /// # let cache = Cache::builder("shop").build().await?;
    /// let squares = cache.entity("square", |n: u64| async move { Ok::<_, Infallible>(n * n) }).build()?;
    /// squares.get(&12).await?;
    /// squares.get(&12).await?;
    /// let stats = squares.stats();
    /// assert_eq!((stats.hits, stats.misses, stats.loads), (1, 1, 1));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn stats(&self) -> EntityStats {
        self.0.level.telemetry.stats(&*self.0.level)
    }

    /// The local level alone.
    #[must_use]
    pub fn local(&self) -> LocalView<'_, K, V, E> {
        LocalView(&self.0)
    }

    /// Makes every pod forget `key`. Call it after the change was committed. One round trip.
    ///
    /// Takes effect here at once, before the store is asked. When it returns a [`Stamp`], the store has
    /// logged it: no pod serves a value that was loaded before, beyond the bound. To wait until that is
    /// over as well, call [`settled`](Invalidation::settled) on what this gives.
    ///
    /// # Errors
    /// [`InvalidateError::Pending`](crate::InvalidateError::Pending) if the store has not acknowledged it after the first attempt or 2 s:
    /// it is repeated until it has. [`InvalidateError::Closed`](crate::InvalidateError::Closed) after [`Cache::close`].
    ///
    /// # Cancel safety
    /// Once polled, the invalidation happens whether or not the future is dropped.
    ///
    /// # Consistency
    /// On this pod no read that begins after this returned, with either result, gives a value that was
    /// loaded before. On the others none does that begins later than
    /// [`Health::bound`](crate::Health::bound) after this returned a [`Stamp`].
    pub fn invalidate(&self, key: &K) -> Invalidation {
        self.invalidate_many([key])
    }

    /// As [`invalidate`](Self::invalidate) for many keys: one round trip for each lane and 64 keys, all
    /// at the same time. Without keys it does nothing.
    ///
    /// # Errors
    /// As [`invalidate`](Self::invalidate), for all of them together.
    ///
    /// # Cancel safety
    /// As [`invalidate`](Self::invalidate).
    ///
    /// # Consistency
    /// As [`invalidate`](Self::invalidate), key by key: they are not invalidated at one instant.
    pub fn invalidate_many<'k>(&self, keys: impl IntoIterator<Item = &'k K>) -> Invalidation
    where
        K: 'k,
    {
        Invalidation::of(self.0.bus(), self.calls(keys))
    }

    /// The calls that invalidate `keys`.
    fn calls<'k>(&self, keys: impl IntoIterator<Item = &'k K>) -> Vec<(Lane, Call)>
    where
        K: 'k,
    {
        let named = keys.into_iter().map(|key| {
            let hash = self.hash(key);
            let name = key.with_bytes(|bytes| self.0.keys.name(HashedKey { hash, bytes }));
            (hash, name)
        });
        let (bus, entity) = (self.0.bus(), self.0.keys.entity_hash());
        bus.invalidations(&self.0.name, entity, named)
    }

    /// Makes every pod forget every key of this entity. One round trip for each of 16 lanes, all at the
    /// same time, whatever the number of entries: nothing is scanned or deleted.
    ///
    /// # Errors
    /// As [`invalidate`](Self::invalidate).
    ///
    /// # Cancel safety
    /// As [`invalidate`](Self::invalidate).
    ///
    /// # Consistency
    /// As [`invalidate`](Self::invalidate), lane by lane.
    pub fn clear(&self) -> Invalidation {
        let bus = self.0.bus();
        let calls = bus.clears(&self.0.name, self.0.keys.entity_hash());
        Invalidation::of(bus, calls)
    }

    /// The tag of `key`: what a handler, a query or a memo depends on to learn of its invalidation.
    #[must_use]
    pub fn tag(&self, key: &K) -> Tag {
        Tag::of(Arc::clone(&self.0.name), key)
    }

    /// The cache this entity belongs to.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.0.cache
    }
}

/// The local level of one entity; see [`Entity::local`].
pub struct LocalView<'a, K, V, E>(&'a Inner<K, V, E>);

impl<K, V, E> fmt::Debug for LocalView<'_, K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LocalView").field(&self.0.name).finish()
    }
}

impl<K, V, E> LocalView<'_, K, V, E>
where
    K: Key,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// How many entries are kept, those that may not be served any more included.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.level.map.len()
    }

    /// Whether nothing is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the entries weigh together, in the unit of [`EntityBuilder::weight_capacity`]; their number
    /// if the level is bounded by number.
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.0.level.map.weight()
    }

    /// Forgets every local entry of this entity in this pod alone. The store keeps its values, so the
    /// next read of a key finds it there: to get rid of a wrong value, use [`Entity::clear`].
    pub fn clear(&self) {
        self.0.level.clear_all(self.0.bus());
    }
}
