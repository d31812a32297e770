//! Building a [`Memo`]: every option is checked in [`MemoBuilder::build`].

use super::level::Level;
use super::{Inner, Memo};
use crate::cache::{Cache, check_name};
use crate::entity::{
    DEFAULT_CAPACITY, DEFAULT_LOAD_TIMEOUT, DEFAULT_TTL, Loader, SharedLoader, check_load_timeout,
};
use crate::error::BuildError;
use crate::key::Tag;
use crate::local::{Capacity, LocalEngine};
use crate::telemetry::PartCounts;
use crate::ttl::Ttl;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

type TtlOf<K, V> = Box<dyn Fn(&K, &V) -> Ttl + Send + Sync>;
type ErrorTtl<E> = Box<dyn Fn(&E) -> Option<Duration> + Send + Sync>;
type TagsOf<K> = Box<dyn Fn(&K) -> Vec<Tag> + Send + Sync>;
type WeightOf<K, V> = Box<dyn Fn(&K, &V) -> u32 + Send + Sync>;

pub(super) struct Options<K, V, E> {
    pub(super) ttl: TtlOf<K, V>,
    pub(super) error_ttl: ErrorTtl<E>,
    /// None if entries are counted, each as one.
    pub(super) weigh: Option<WeightOf<K, V>>,
    pub(super) load_timeout: Duration,
    /// None if outcomes depend on nothing that anybody tells of.
    pub(super) tags: Option<TagsOf<K>>,
}

impl Cache {
    /// Starts building a memo: one async computation per argument, remembered in this process.
    ///
    /// `name` is for logs and debugging: 1 to 64 of `A–Z a–z 0–9 . _ -`. Two memos of one name share
    /// nothing. The computation is a closure from an owned key to a future, or any type that implements
    /// [`Loader`].
    pub fn memo<K, L: Loader<K>>(
        &self,
        name: impl Into<String>,
        loader: L,
    ) -> MemoBuilder<K, L::Value, L::Error>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        L::Value: Clone,
    {
        MemoBuilder::new(self.clone(), name.into(), Arc::new(loader))
    }
}

/// Options of a [`Memo`]; made by [`Cache::memo`].
#[must_use = "a builder does nothing until `build`"]
pub struct MemoBuilder<K, V, E> {
    cache: Cache,
    name: String,
    loader: SharedLoader<K, V, E>,
    capacity: Option<u64>,
    weight_capacity: Option<u64>,
    engine: LocalEngine,
    options: Options<K, V, E>,
}

impl<K, V, E> fmt::Debug for MemoBuilder<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoBuilder")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<K, V, E> MemoBuilder<K, V, E>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    pub(super) fn new(cache: Cache, name: String, loader: SharedLoader<K, V, E>) -> Self {
        Self {
            cache,
            name,
            loader,
            capacity: None,
            weight_capacity: None,
            engine: LocalEngine::default(),
            options: Options {
                ttl: Box::new(|_, _| Ttl::For(DEFAULT_TTL)),
                error_ttl: Box::new(|_| None),
                weigh: None,
                load_timeout: DEFAULT_LOAD_TIMEOUT,
                tags: None,
            },
        }
    }

    /// How long values are remembered: [`DEFAULT_TTL`] if not set. Zero remembers none, which leaves
    /// single flight. The clock counts milliseconds, and an expiry is inclusive.
    pub fn ttl(mut self, ttl: impl Into<Ttl>) -> Self {
        let ttl = ttl.into();
        self.options.ttl = Box::new(move |_, _| ttl);
        self
    }

    /// How long each value is remembered, decided once, when its computation ends.
    pub fn ttl_with(mut self, ttl: impl Fn(&K, &V) -> Ttl + Send + Sync + 'static) -> Self {
        self.options.ttl = Box::new(ttl);
        self
    }

    /// Remembers errors too, each for as long as `ttl` says; `None` and zero are not remembered. By
    /// default no error is.
    pub fn error_ttl(
        mut self,
        ttl: impl Fn(&E) -> Option<Duration> + Send + Sync + 'static,
    ) -> Self {
        self.options.error_ttl = Box::new(ttl);
        self
    }

    /// How many outcomes are remembered at most: [`DEFAULT_CAPACITY`] if neither this nor
    /// [`weight_capacity`](Self::weight_capacity) is set.
    pub fn capacity(mut self, entries: u64) -> Self {
        self.capacity = Some(entries);
        self
    }

    /// Bounds the memo by weight instead of by number: at most `total`, in whatever unit the
    /// [`weigher`](Self::weigher) measures an entry; bytes, usually. The default engine divides it
    /// between shards, of at least 1 MiB each; an entry heavier than its shard is not remembered.
    pub fn weight_capacity(mut self, total: u64) -> Self {
        self.weight_capacity = Some(total);
        self
    }

    /// What a value weighs; asked once for each that is remembered. Errors weigh 64. Needs
    /// [`weight_capacity`](Self::weight_capacity).
    pub fn weigher(mut self, weigh: impl Fn(&K, &V) -> u32 + Send + Sync + 'static) -> Self {
        self.options.weigh = Some(Box::new(weigh));
        self
    }

    /// What the outcome for a key depends on: an invalidation of one of these tags, by any pod, drops it
    /// here too, and a computation that it overtakes is not remembered. While the pod cannot hear of
    /// invalidations, such outcomes are served for a second after their computation began.
    ///
    /// Without tags a memo knows nothing of other pods. A hit costs a few nanoseconds more with them.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::convert::Infallible;
    /// # let cache = tidings::Cache::builder("shop").build().await?;
    /// let menus = cache
    ///     .memo("menu", |org: u64| async move { Ok::<_, Infallible>(format!("menu of {org}")) })
    ///     .tags(|org| [format!("org:{org}"), "dish".to_owned()])
    ///     .build()?;
    /// assert_eq!(menus.get(&7).await?, "menu of 7");
    /// cache.invalidate(["dish:12"]).await?; // one dish is a part of all dishes
    /// assert_eq!(menus.peek(&7), None);
    /// # Ok(()) }
    /// ```
    pub fn tags<I>(mut self, tags: impl Fn(&K) -> I + Send + Sync + 'static) -> Self
    where
        I: IntoIterator<Item: Into<Tag>>,
    {
        let collect = move |key: &K| tags(key).into_iter().map(Into::into).collect();
        self.options.tags = Some(Box::new(collect));
        self
    }

    /// The map that the outcomes are kept in.
    pub fn engine(mut self, engine: LocalEngine) -> Self {
        self.engine = engine;
        self
    }

    /// How long a call waits for its value at most: [`DEFAULT_LOAD_TIMEOUT`] if not set, at most
    /// [`MAX_LOAD_TIMEOUT`](crate::MAX_LOAD_TIMEOUT). The computation goes on for as long again behind a call
    /// that gave up, and may still be remembered.
    pub fn load_timeout(mut self, limit: Duration) -> Self {
        self.options.load_timeout = limit;
        self
    }

    /// Builds the memo. No round trip.
    ///
    /// # Errors
    /// [`BuildError`] naming the option: `memo` if the name cannot be used; `capacity`,
    /// `weight_capacity` or `load_timeout` if out of range; `capacity` if it is given together with
    /// `weight_capacity`; `weight_capacity` without `weigher`, and the reverse.
    pub fn build(self) -> Result<Memo<K, V, E>, BuildError> {
        check_name("memo", &self.name)?;
        let capacity = self.bound()?;
        check_load_timeout(self.options.load_timeout)?;
        let clock = self.cache.0.bus.clock.clone();
        let inner = Arc::new(Inner {
            name: self.name.into(),
            level: Level::new(self.engine, capacity, clock),
            loader: self.loader,
            options: self.options,
            counts: Arc::default(),
            cache: self.cache,
        });
        let telemetry = &inner.cache.0.bus.telemetry;
        let counts = PartCounts::Memo(Arc::clone(&inner.counts));
        telemetry.add(&inner.name, counts, &inner);
        Ok(Memo(inner))
    }

    fn bound(&self) -> Result<Capacity, BuildError> {
        let refuse = |option, reason| Err(BuildError::new(option, reason));
        match (self.capacity, self.weight_capacity, &self.options.weigh) {
            (Some(_), Some(_), _) => refuse("capacity", "given together with `weight_capacity`"),
            (Some(0), ..) => refuse("capacity", "must be at least 1"),
            (_, Some(0), _) => refuse("weight_capacity", "must be at least 1"),
            (_, Some(_), None) => refuse("weight_capacity", "needs a `weigher`"),
            (_, None, Some(_)) => refuse("weigher", "needs a `weight_capacity`"),
            (_, Some(total), Some(_)) => Ok(Capacity::Weight(total)),
            (entries, None, None) => Ok(Capacity::Entries(entries.unwrap_or(DEFAULT_CAPACITY))),
        }
    }
}
