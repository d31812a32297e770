//! Building an [`Entity`]: every option is checked in [`EntityBuilder::build`].

mod check;

pub(crate) use check::check_load_timeout;

use super::attempts::Attempts;
use super::batch::Batches;
use super::context::{ContextLoader, LoadContext, Loaded};
use super::level::Level;
use super::loader::{Loader, SharedLoader};
use super::options::{
    DEFAULT_CAPACITY, DEFAULT_COMPRESS_ABOVE, DEFAULT_JITTER, DEFAULT_LOAD_TIMEOUT,
    DEFAULT_RETRY_AFTER, DEFAULT_STORE_MAX_BYTES, DEFAULT_TTL, DEFAULT_UNLEASED_LOADS, ErrorCodec,
    Options, WeightOf,
};
use super::outcome::{EarlyRefresh, Kept, Refresh};
use super::usual::{LogGate, UsualLoad, UsualMisses};
use super::{Entity, Inner};
use crate::cache::{Cache, check_name};
use crate::codec;
use crate::envelope::{KeyRing, Packing, Seal};
use crate::error::BuildError;
use crate::key::{Key, Tag};
use crate::local::{Capacity, Local, LocalEngine, Weigher};
use crate::telemetry::EntityTelemetry;
use crate::ttl::Ttl;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::any::TypeId;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
/// What a cached error counts in a level that is bounded by weight.
const ERROR_WEIGHT: u32 = 64;
impl Cache {
    /// Starts building an entity: a two-level cache of one kind of record, read through `loader`.
    ///
    /// `name` is part of every key in the store, so pods that share records use the same name. It is 1
    /// to 64 of `A–Z a–z 0–9 . _ -`. The loader is a closure from an owned key to a future, or any
    /// type that implements [`Loader`].
    pub fn entity<K: Key, L: Loader<K>>(
        &self,
        name: impl Into<String>,
        loader: L,
    ) -> EntityBuilder<K, L> {
        EntityBuilder::new(self.clone(), name.into(), loader)
    }

    /// As [`entity`](Self::entity), with a loader that is given its [`LoadContext`]: the value that was
    /// loaded before, and who waits. It gives a [`Loaded`], which may say how long it is to be kept, or
    /// that nothing has changed.
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// # use std::time::Duration;
    /// use tidings::{Cache, LoadContext, Loaded};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let cache = Cache::builder("shop").build().await?;
    /// let counts = cache
    ///     .entity_with("count", |load: LoadContext<u32, u32>| async move {
    ///         let before = load.previous().map_or(0, |previous| **previous.value());
    ///         Ok::<_, Infallible>(Loaded::new(before + 1).ttl(Duration::from_secs(60)))
    ///     })
    ///     .build()?;
    /// assert_eq!(*counts.get(&7).await?, 1);
    /// assert_eq!(*counts.refresh(&7).await?, 2);
    /// # Ok(()) }
    /// ```
    pub fn entity_with<K, V, E, F, Fut>(
        &self,
        name: impl Into<String>,
        load: F,
    ) -> EntityBuilder<K, ContextLoader<F, V, E>>
    where
        K: Key,
        V: Send + Sync + 'static,
        E: Send + Sync + 'static,
        F: Fn(LoadContext<K, V>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Loaded<V>, E>> + Send,
    {
        self.entity(name, ContextLoader::new(load))
    }
}

/// Options of an [`Entity`]; made by [`Cache::entity`].
#[must_use = "a builder does nothing until `build`"]
pub struct EntityBuilder<K, L: Loader<K>> {
    cache: Cache,
    name: String,
    loader: L,
    capacity: Capacity,
    weigher: Option<WeightOf<K, L::Value>>,
    max_weight: Option<u32>,
    engine: LocalEngine,
    unleased_loads: usize,
    keys: Option<KeyRing>,
    pub(super) batches: Batches<K, L::Value, L::Error>,
    options: Options<K, L::Value, L::Error>,
    #[cfg(feature = "testing")]
    counts_hits: bool,
}

impl<K, L: Loader<K>> fmt::Debug for EntityBuilder<K, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntityBuilder")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<K, T, L> EntityBuilder<K, L>
where
    L: Loader<K, Value = Option<T>>,
    T: 'static,
    K: 'static,
{
    /// How long "there is none" (a loaded `None`) is kept, instead of the TTL of values.
    ///
    /// To be given after [`ttl`](Self::ttl) or [`ttl_with`](Self::ttl_with), which it refines.
    pub fn absent_ttl(mut self, ttl: impl Into<Ttl>) -> Self {
        let (absent, present) = (ttl.into(), self.options.ttl);
        self.options.ttl = Arc::new(move |key, value| match value {
            None => absent,
            Some(_) => present(key, value),
        });
        self
    }
}

impl<K: Key, L: Loader<K>> EntityBuilder<K, L> {
    pub(crate) fn new(cache: Cache, name: String, loader: L) -> Self {
        Self {
            #[cfg(feature = "testing")]
            counts_hits: true,
            keys: cache.0.keys.clone(),
            cache,
            name,
            loader,
            capacity: Capacity::Entries(DEFAULT_CAPACITY),
            weigher: None,
            max_weight: None,
            engine: LocalEngine::default(),
            unleased_loads: DEFAULT_UNLEASED_LOADS,
            batches: Batches::default(),
            options: Options {
                ttl: Arc::new(|_, _| Ttl::For(DEFAULT_TTL)),
                tags: None,
                soft_tags: None,
                error_codec: None,
                local_ttl: Duration::MAX,
                jitter: DEFAULT_JITTER,
                load_timeout: DEFAULT_LOAD_TIMEOUT,
                soft_timeout: None,
                grace: Duration::ZERO,
                refresh: Refresh::default(),
                retry_after: DEFAULT_RETRY_AFTER,
                early_refresh: EarlyRefresh::default(),
                schema: 0,
                hold_off: Duration::ZERO,
                store_max_bytes: DEFAULT_STORE_MAX_BYTES,
                packing: Packing {
                    compress_above: DEFAULT_COMPRESS_ABOVE,
                    ..Packing::default()
                },
            },
        }
    }

    /// Does not count hits: for a bench of what counting costs.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn uncounted(mut self) -> Self {
        self.counts_hits = false;
        self
    }

    /// How long values are kept: [`DEFAULT_TTL`] if not set. Zero keeps them in neither level, which
    /// leaves single flight.
    pub fn ttl(mut self, ttl: impl Into<Ttl>) -> Self {
        let ttl = ttl.into();
        self.options.ttl = Arc::new(move |_, _| ttl);
        self
    }

    /// How long each value is kept, decided once, when its load ends.
    pub fn ttl_with(mut self, ttl: impl Fn(&K, &L::Value) -> Ttl + Send + Sync + 'static) -> Self {
        self.options.ttl = Arc::new(ttl);
        self
    }

    /// The tags of each value, decided once, when its load ends: whoever
    /// [invalidates](Cache::invalidate) one of them invalidates the value, whatever its key. None if not
    /// set, beside the two that every entry has by itself: its entity's name (`user`) and that with its
    /// key (`user:42`).
    ///
    /// A value with the tag `org:7` goes when `org:7` is invalidated, and when `org` is as a whole; one
    /// with the bare name `org` goes with the whole alone, not with its parts. An invalidation during the
    /// load wins: the outcome is given to those who asked before it, and kept nowhere. It costs the same
    /// however many values carry the tag, and a local hit makes no round trip for tags; the first value
    /// that a pod reads or stores with a tag costs one more. An error that is cached has no tags.
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// # use serde::{Deserialize, Serialize};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let cache = tidings::Cache::builder("shop").build().await?;
    /// # #[derive(Serialize, Deserialize)] struct User { org: u32 }
    /// let users = cache
    ///     .entity("user", |id: u64| async move { Ok::<_, Infallible>(User { org: 7 }) })
    ///     .tags(|_id, user: &User| [format!("org:{}", user.org)])
    ///     .build()?;
    /// users.get(&42).await?;
    /// cache.invalidate(["org:7"]).await?; // every user of the org, in every pod
    /// assert!(users.peek(&42).is_none());
    /// # Ok(()) }
    /// ```
    pub fn tags<I>(mut self, tags: impl Fn(&K, &L::Value) -> I + Send + Sync + 'static) -> Self
    where
        I: IntoIterator<Item: Into<Tag>>,
    {
        self.options.tags = Some(Arc::new(move |key, value| {
            tags(key, value).into_iter().map(Into::into).collect()
        }));
        self
    }

    /// As [`tags`](Self::tags), for tags whose invalidation ends the time to live of the value, and not the
    /// value: in [`grace`](Self::grace), without which there are none of these, it is served as
    /// [stale](crate::Freshness::Stale) until it was loaded anew.
    ///
    /// It is the entry that says what a tag means to it: whoever invalidates `org:7` need not know that a
    /// permission must go at once, while a list may be shown as it was for the moment of a load. A tag
    /// that is named here and there is not soft.
    pub fn soft_tags<I>(mut self, tags: impl Fn(&K, &L::Value) -> I + Send + Sync + 'static) -> Self
    where
        I: IntoIterator<Item: Into<Tag>>,
    {
        self.options.soft_tags = Some(Arc::new(move |key, value| {
            tags(key, value).into_iter().map(Into::into).collect()
        }));
        self
    }

    /// Keeps the loader's errors too, each for as long as `ttl` says; `None` is not kept. By default no
    /// error is.
    pub fn error_ttl(
        mut self,
        ttl: impl Fn(&L::Error) -> Option<Duration> + Send + Sync + 'static,
    ) -> Self
    where
        L::Error: Serialize + DeserializeOwned,
    {
        self.options.error_codec = Some(ErrorCodec {
            ttl: Box::new(ttl),
            encode: codec::encode,
            decode: codec::decode,
        });
        self
    }

    /// The longest that an entry is kept in the local level; by default as long as in the store. The
    /// local level never outlives the store level.
    pub fn local_ttl(mut self, ttl: Duration) -> Self {
        self.options.local_ttl = ttl;
        self
    }

    /// How many entries the local level keeps at most: [`DEFAULT_CAPACITY`] if not set.
    pub fn capacity(mut self, entries: u64) -> Self {
        self.capacity = Capacity::Entries(entries);
        self.weigher = None;
        self
    }

    /// Bounds the local level by weight instead of by number: at most `total`, in whatever unit `weigh`
    /// measures an entry; bytes, usually. `weigh` runs once for each entry that is kept.
    pub fn weight_capacity(
        mut self,
        total: u64,
        weigh: impl Fn(&K, &L::Value) -> u32 + Send + Sync + 'static,
    ) -> Self {
        self.capacity = Capacity::Weight(total);
        self.weigher = Some(Arc::new(weigh));
        self
    }

    /// Keeps values that weigh more than this in the store alone, where each read of them costs a round
    /// trip, rather than let one of them displace many others. In the unit of
    /// [`weight_capacity`](Self::weight_capacity), without which it is refused. By default nothing is too
    /// heavy but what is heavier than a [shard](LocalEngine::Quick).
    pub fn local_max_weight(mut self, weight: u32) -> Self {
        self.max_weight = Some(weight);
        self
    }

    /// Keeps what takes more bytes than this in the store, with its header and compressed if so asked, in
    /// the local level alone: [`DEFAULT_STORE_MAX_BYTES`] if not set, at most 256 MiB. Each pod then loads
    /// such a value by itself, it counts as [`fills_failed`](crate::EntityStats::fills_failed), and the log
    /// names it once a minute; what stood in its place is removed.
    ///
    /// A pod has one connection to each server, and what is behind a long value there waits for it: raise
    /// this together with [`CacheBuilder::read_timeout`](crate::CacheBuilder::read_timeout), or better, cache
    /// something smaller.
    pub fn store_max_bytes(mut self, bytes: usize) -> Self {
        self.options.store_max_bytes = bytes;
        self
    }

    /// The map that the local level is built on.
    pub fn local_engine(mut self, engine: LocalEngine) -> Self {
        self.engine = engine;
        self
    }

    /// How far lives over ten seconds are spread at random, as a part of the TTL: 0.1 (±10 %) if not
    /// set, 0 for exact ones. Must be at least 0 and below 1.
    pub fn jitter(mut self, part: f64) -> Self {
        self.options.jitter = part;
        self
    }

    /// How long a call waits for its value at most: [`DEFAULT_LOAD_TIMEOUT`] if not set, at most
    /// [`MAX_LOAD_TIMEOUT`](crate::MAX_LOAD_TIMEOUT). The load itself goes on behind a call that gave up, and
    /// may still be kept.
    pub fn load_timeout(mut self, limit: Duration) -> Self {
        self.options.load_timeout = limit;
        self
    }

    /// How long past its TTL a value may still be served, as [stale](crate::Freshness::Stale), while
    /// it is loaded anew or cannot be: none if not set. Only values, and never one that was invalidated:
    /// grace is for what expired. The store keeps them for so much longer.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.options.grace = grace;
        self
    }

    /// When a stale value is loaded anew: behind the callers, who get it at once, if not set.
    pub fn refresh(mut self, refresh: Refresh) -> Self {
        self.options.refresh = refresh;
        self
    }

    /// How long a call waits for a load while there is a stale value, which it is given then; as long
    /// as [`load_timeout`](Self::load_timeout) if not set. The load goes on, and later calls are given
    /// the stale value at once until it ends or [`retry_after`](Self::retry_after) is over. Only with
    /// [`grace`](Self::grace) and [`Refresh::Ahead`].
    pub fn soft_timeout(mut self, limit: Duration) -> Self {
        self.options.soft_timeout = Some(limit);
        self
    }

    /// How long a key is left alone after a load failed while there was a value to serve:
    /// [`DEFAULT_RETRY_AFTER`] if not set.
    pub fn retry_after(mut self, pause: Duration) -> Self {
        self.options.retry_after = pause;
        self
    }

    /// Whether a value that is read often is loaded anew shortly before its TTL ends, so that nobody
    /// waits when it does: on if not set. Costs a load that is made a few load times earlier. Never for
    /// a TTL under a second, nor in more than the last fifth of one.
    pub fn early_refresh(mut self, early: EarlyRefresh) -> Self {
        self.options.early_refresh = early;
        self
    }

    /// How many loads run at the same time while the store cannot coordinate them between pods:
    /// [`DEFAULT_UNLEASED_LOADS`] if not set. Protects the source while the store is away. As many
    /// refreshes that nobody waits for run at the same time, too.
    pub fn max_unleased_loads(mut self, loads: usize) -> Self {
        self.unleased_loads = loads;
        self
    }

    /// Keeps a key from being cached for so long after its invalidation: not at all if not set, at most
    /// [`MAX_GUARD_TTL`](crate::MAX_GUARD_TTL). For loaders that read from a replica which may lag behind
    /// the primary by less than this; each read in that time goes to the loader, about once a second in
    /// each pod.
    ///
    /// With it, what is loaded longer than that after an invalidation of its key is what is kept. It holds
    /// for invalidations of keys by pods that have this option, not for those of tags or of the whole
    /// entity, and [`put_versioned`](crate::Entity::put_versioned) only invalidates. No round trip.
    pub fn hold_off(mut self, hold: Duration) -> Self {
        self.options.hold_off = hold;
        self
    }

    /// A number for the shape of the value: raise it when stored values of the old shape must not be
    /// read any more. Values of another schema are a miss.
    pub fn schema(mut self, schema: u32) -> Self {
        self.options.schema = schema;
        self
    }

    /// Compresses what is stored of each value or error, if it is longer than
    /// [`compress_above`](Self::compress_above) and becomes smaller. Not set, nothing is compressed.
    ///
    /// The local level keeps values as they are. Compressing happens behind the caller who loaded,
    /// expanding in the read that finds the value in the store. Every pod whose build has the feature
    /// reads what others compressed, with this option or without; for one whose build has not, it is a
    /// miss.
    #[cfg(any(feature = "lz4", feature = "zstd"))]
    pub fn compress(mut self, how: crate::envelope::Compression) -> Self {
        self.options.packing.compression = Some(how);
        self
    }

    /// The longest encoded value, in bytes, that is not compressed: [`DEFAULT_COMPRESS_ABOVE`] if not
    /// set. Does nothing without [`compress`](Self::compress).
    #[cfg(any(feature = "lz4", feature = "zstd"))]
    pub fn compress_above(mut self, bytes: usize) -> Self {
        self.options.packing.compress_above = bytes;
        self
    }

    /// Seals what is stored of each value or error with `keys`, instead of those of the
    /// [cache](crate::CacheBuilder::seal). What is not sealed with one of them is a miss then.
    #[cfg(feature = "seal")]
    pub fn seal(mut self, keys: KeyRing) -> Self {
        self.keys = Some(keys);
        self
    }

    /// Stores values readable for everybody who can read the store, though the
    /// [cache](crate::CacheBuilder::seal) seals. What is sealed is a miss then.
    #[cfg(feature = "seal")]
    pub fn unsealed(mut self) -> Self {
        self.keys = None;
        self
    }

    /// Builds the entity. No round trip.
    ///
    /// # Errors
    /// [`BuildError`] naming the option: `entity` if the name cannot be used or stands for another type
    /// or schema already; `capacity`, `local_max_weight`, `store_max_bytes`, `jitter`, `load_timeout`,
    /// `soft_timeout`, `retry_after`, `max_unleased_loads`, `max_batch`, `hold_off`, `soft_tags` or the
    /// level of `compress` if out of range, or of no use with the others; `seal` if a key id stands for two
    /// keys.
    pub fn build(mut self) -> Result<Entity<K, L::Value, L::Error>, BuildError>
    where
        L::Value: Serialize + DeserializeOwned,
    {
        check_name("entity", &self.name)?;
        self.check()?;
        self.cache.claim(
            &self.name,
            TypeId::of::<(K, L::Value)>(),
            self.options.schema,
        )?;
        let bus = &self.cache.0.bus;
        let keys = bus.space.entity(&self.name);
        self.options.packing.seal = self
            .keys
            .map(|ring| Seal::new(ring, &bus.namespace.name, &self.name));
        let weigher = self.weigher;
        let slot_weigher: Weigher<K, Kept<L::Value, L::Error>> =
            Arc::new(move |key, slot| match (&weigher, &slot.value) {
                (Some(weigh), Ok(value)) => weigh(key, value),
                _ => ERROR_WEIGHT,
            });
        let map = Local::new(self.engine, self.capacity, slot_weigher)
            .up_to(self.max_weight.unwrap_or(u32::MAX));
        let name: Arc<str> = self.name.into();
        let telemetry = EntityTelemetry::new(&bus.telemetry, &name);
        #[cfg(feature = "testing")]
        let telemetry = telemetry.counting(self.counts_hits);
        let level = Arc::new(Level::new(bus, keys.entity_hash(), map, telemetry));
        level.telemetry.begin(&level);
        bus.register(&level);
        if !self.options.hold_off.is_zero() {
            bus.hold_off(keys.entity_hash(), self.options.hold_off);
        }
        let loader: SharedLoader<K, L::Value, L::Error> = Arc::new(self.loader);
        Ok(Entity(Arc::new(Inner {
            name,
            keys,
            level,
            loader,
            batches: self.batches,
            options: self.options,
            limiter: Semaphore::new(self.unleased_loads),
            refresh_turns: Semaphore::new(self.unleased_loads),
            usual_load: UsualLoad::default(),
            usual_misses: UsualMisses::default(),
            attempts: Attempts::default(),
            unusable_log: LogGate::default(),
            cache: self.cache,
        })))
    }
}
