//! Reads of one call's own kind: a view of an entity, with options.

use super::course::Skips;
use super::outcome::{Freshness, Landed, Served, StaleReason};
use super::{Entity, Inner};
use crate::error::CacheError;
use crate::key::Key;
use crate::telemetry::spanned;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How reads through a [view](Entity::with) differ from those of the entity itself. Without any option
/// they do not.
///
/// ```
/// use std::time::Duration;
/// use tidings::ReadOptions;
///
/// const QUICK: ReadOptions = ReadOptions::new()
///     .max_stale(Duration::from_secs(60))
///     .deadline(Duration::from_millis(50));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until a view is made of them"]
pub struct ReadOptions {
    skips: Skips,
    max_stale: Option<Duration>,
    deadline: Option<Duration>,
}

impl ReadOptions {
    /// No option.
    pub const fn new() -> Self {
        Self {
            skips: Skips::NONE,
            max_stale: None,
            deadline: None,
        }
    }

    /// Does not look into the local level: the value comes from the store or from the source. What is
    /// found takes its place in the local level as ever.
    ///
    /// A read of the store that is under way in this pod is shared. For a read that began after the call,
    /// and whose server proves that it is not deposed, use [`get_strict`](Entity::get_strict).
    pub const fn skip_local(mut self) -> Self {
        self.skips.local = true;
        self
    }

    /// Leaves the store alone: what the local level does not have is loaded from the source, is kept in
    /// the local level, and is not stored. As while the store is away, at most
    /// [`max_unleased_loads`](crate::EntityBuilder::max_unleased_loads) loads run at the same time, and
    /// no other pod shares them.
    pub const fn skip_store(mut self) -> Self {
        self.skips.store = true;
        self
    }

    /// Serves a value that may not be served otherwise, if its load from the source began at most `age`
    /// ago, as far as this process can tell: what it misses is younger than that. The age of a value that
    /// was [put](Entity::put_versioned) counts from the put.
    ///
    /// It is served at once, and nothing is loaded for it; with [`skip_local`](Self::skip_local) only in
    /// place of an error. Such values are in the local level alone:
    ///
    /// - past their TTL and their grace, until others need their room;
    /// - of a lane that has not been confirmed within the bound, as when the store is away;
    /// - of an entity that was [cleared](Entity::clear), or of a lane whose log was lost.
    ///
    /// An invalidation of a key removes its entry. So what this pod knows to be invalidated is not
    /// there to be served, except for what was cleared. Errors are never served so, and nothing is after
    /// [`Cache::close`](crate::Cache::close). [`EntityView::get_with`] tells such a value, with the reason,
    /// from a fresh one.
    pub const fn max_stale(mut self, age: Duration) -> Self {
        self.max_stale = Some(age);
        self
    }

    /// How long the call waits for its value, if that is less than
    /// [`load_timeout`](crate::EntityBuilder::load_timeout). The read goes on behind a call that gave up,
    /// to the load and the fill, so that a later call finds the value.
    pub const fn deadline(mut self, limit: Duration) -> Self {
        self.deadline = Some(limit);
        self
    }

    pub(super) fn skips(&self) -> Skips {
        self.skips
    }

    pub(super) fn has_deadline(&self) -> bool {
        self.deadline.is_some()
    }

    /// Whether nothing is different once the local level has nothing to serve.
    pub(super) fn reads_as_usual(&self) -> bool {
        self.skips == Skips::NONE && self.deadline.is_none()
    }

    /// How long a call waits that waits for `usual` without options.
    pub(super) fn limit(&self, usual: Duration) -> Duration {
        self.deadline.map_or(usual, |deadline| deadline.min(usual))
    }
}

/// An [`Entity`] with [`ReadOptions`]: a reference and three words, made for one call or kept.
pub struct EntityView<'a, K, V, E> {
    inner: &'a Arc<Inner<K, V, E>>,
    options: ReadOptions,
}

impl<K, V, E> Clone for EntityView<'_, K, V, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V, E> Copy for EntityView<'_, K, V, E> {}

impl<K, V, E> fmt::Debug for EntityView<'_, K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntityView")
            .field("name", &self.inner.name)
            .field("options", &self.options)
            .finish()
    }
}

impl<K, V, E> Entity<K, V, E> {
    /// This entity, read with `options`.
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// # use std::time::Duration;
    /// use tidings::{Cache, ReadOptions};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let cache = Cache::builder("shop").build().await?;
    /// let users = cache
    ///     .entity("user", |id: u64| async move { Ok::<_, Infallible>(format!("user {id}")) })
    ///     .build()?;
    /// let quick = users.with(ReadOptions::new().max_stale(Duration::from_secs(60)));
    /// assert_eq!(*quick.get(&7).await?, "user 7");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with(&self, options: ReadOptions) -> EntityView<'_, K, V, E> {
        EntityView {
            inner: &self.0,
            options,
        }
    }
}

impl<K, V, E> EntityView<'_, K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// As [`Entity::get`], with the view's options.
    ///
    /// # Errors
    /// As [`Entity::get`]; [`CacheError::Timeout`] after the [deadline](ReadOptions::deadline), if there
    /// is one.
    ///
    /// # Cancel safety
    /// As [`Entity::get`].
    ///
    /// # Consistency
    /// As [`Entity::get`], except that with [`max_stale`](ReadOptions::max_stale) the value may miss
    /// anything that is younger than that.
    pub async fn get(&self, key: &K) -> Result<Arc<V>, CacheError<E>> {
        let hash = self.inner.hash(key);
        self.read(key, hash).await?.outcome
    }

    /// As [`Entity::get_with`], with the view's options.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    ///
    /// # Cancel safety
    /// As [`get`](Self::get).
    ///
    /// # Consistency
    /// As [`get`](Self::get). A value that only [`max_stale`](ReadOptions::max_stale) allows is
    /// [stale](Freshness::Stale), and not older than that.
    pub async fn get_with(&self, key: &K) -> Result<Served<V>, CacheError<E>> {
        let (bus, hash) = (self.inner.bus(), self.inner.hash(key));
        // A flight that we join may have begun long before us. What was applied here before we did so
        // has not detached it.
        let word = self.inner.level.word(bus.space.lane_of(hash));
        let (lane, tags) = (
            word.confirmed_at(bus.rules.lease),
            bus.liveness.confirmed_at(),
        );
        let landed = self.read(key, hash).await?;
        let confirmed = match landed.tied {
            false => lane,
            true => lane.min(tags),
        };
        let as_of = landed.as_of.max(confirmed);
        Ok(Served {
            value: landed.outcome?,
            origin: landed.origin,
            age: landed.age,
            freshness: Freshness::of(landed.stale, bus.clock.now().since(as_of)),
        })
    }

    /// As [`Entity::get_many`], with the view's options; a [deadline](ReadOptions::deadline) is for all
    /// keys together.
    ///
    /// # Errors
    /// As [`get`](Self::get), each key its own.
    ///
    /// # Cancel safety
    /// As [`Entity::get_many`].
    ///
    /// # Consistency
    /// As [`get`](Self::get), key by key.
    pub async fn get_many<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k K>,
    ) -> Vec<Result<Arc<V>, CacheError<E>>>
    where
        K: 'k,
    {
        let read = self.inner.read_list(keys, self.options).await;
        read.into_iter().map(|read| read?.outcome).collect()
    }

    async fn read(&self, key: &K, hash: u64) -> Result<Landed<V, E>, CacheError<E>> {
        if let Some(landed) = self.inner.here(key, hash, &self.options) {
            return Ok(landed);
        }
        let read = Arc::clone(self.inner).read_as(key, hash, &self.options);
        let read = spanned!("tidings.read", { cache = %self.inner.bus().namespace.name, entity = %self.inner.name }, read);
        let read = Box::pin(read).await;
        self.inner.or_kept(key, hash, read, &self.options)
    }
}

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// What the local level has to serve at once.
    pub(super) fn here(
        self: &Arc<Self>,
        key: &K,
        hash: u64,
        options: &ReadOptions,
    ) -> Option<Landed<V, E>> {
        if options.skips.local {
            return None;
        }
        let hit = self.level.hit(hash, key).map(|hit| (hit, None));
        if let Some((hit, stale)) = hit.or_else(|| self.late_hit(key, hash)) {
            let landed = hit.landed(&self.bus().rules);
            return Some(Landed { stale, ..landed });
        }
        let kept = self.kept(key, hash, options.max_stale?)?;
        self.level.telemetry.hit();
        self.note_stale(&kept);
        Some(kept)
    }

    /// What was read, or what is kept in place of a failure, if `options` allow it.
    pub(super) fn or_kept(
        &self,
        key: &K,
        hash: u64,
        read: Result<Landed<V, E>, CacheError<E>>,
        options: &ReadOptions,
    ) -> Result<Landed<V, E>, CacheError<E>> {
        let reason = match &read {
            Ok(landed) if landed.settled => return read,
            Err(CacheError::Timeout { .. }) => StaleReason::LoadTimedOut,
            Ok(_) | Err(_) => StaleReason::LoadFailed,
        };
        let kept = options.max_stale.and_then(|age| self.kept(key, hash, age));
        let Some(landed) = kept else {
            return read;
        };
        let overdue = landed.stale.map_or(Duration::ZERO, |stale| stale.overdue);
        let landed = landed.into_stale(overdue, reason);
        self.note_stale(&landed);
        Ok(landed)
    }

    fn kept(&self, key: &K, hash: u64, age: Duration) -> Option<Landed<V, E>> {
        if self.bus().closing.is_cancelled() {
            return None;
        }
        self.level.kept(hash, key, age)
    }
}
