//! What a loader may know of its load, and what it may say of the outcome.

use super::loader::Loader;
use super::tagging::SaidTags;
use crate::key::Tag;
use crate::ttl::Ttl;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What a load is given beside its key; see [`Loader::load_with`] and
/// [`Cache::entity_with`](crate::Cache::entity_with).
pub struct LoadContext<K, V> {
    pub(super) key: K,
    pub(super) previous: Option<Previous<V>>,
    pub(super) minimum: Option<u64>,
    pub(super) cancellation: Cancellation,
}

impl<K, V> LoadContext<K, V> {
    /// A load of `key` with nothing at hand, as the first one is; for a loader's own tests.
    #[must_use]
    pub fn new(key: K) -> Self {
        Self {
            key,
            previous: None,
            minimum: None,
            cancellation: Cancellation(CancellationToken::new()),
        }
    }

    /// As if `value` was loaded `age` ago.
    #[must_use]
    pub fn with_previous(mut self, value: impl Into<Arc<V>>, age: Duration) -> Self {
        self.previous = Some(Previous::new(value.into(), age));
        self
    }

    /// As if somebody [had said](crate::Entity::invalidate_at) that the source has this version.
    #[must_use]
    pub fn with_minimum_version(mut self, version: u64) -> Self {
        self.minimum = Some(version);
        self
    }

    /// As [`new`](Self::new), for a load whose end `cancelled` tells.
    pub(crate) fn of(key: K, cancelled: &CancellationToken) -> Self {
        Self {
            cancellation: Cancellation::of(cancelled),
            ..Self::new(key)
        }
    }

    /// What is to be loaded.
    #[must_use]
    pub fn key(&self) -> &K {
        &self.key
    }

    /// The value that was loaded before, if this pod has one at hand: stale, expired, or to be
    /// refreshed. It says nothing of the source, for the source may have changed since; it is good for
    /// a conditional request, which names the version or ETag that it holds.
    #[must_use]
    pub fn previous(&self) -> Option<&Previous<V>> {
        self.previous.as_ref()
    }

    /// The version that the source has at least, if somebody [said so](crate::Entity::invalidate_at) lately:
    /// a load that [states](Loaded::version) a lower one is made again until it does not. So a loader that
    /// reads a replica does well to ask the primary when the replica has less, or to wait for it.
    ///
    /// None says nothing of the source. A memo has none.
    #[must_use]
    pub fn minimum_version(&self) -> Option<u64> {
        self.minimum
    }

    /// Tells work that the load hands to others when the load itself was dropped.
    #[must_use]
    pub fn cancellation(&self) -> Cancellation {
        self.cancellation.clone()
    }
}

impl<K: fmt::Debug, V> fmt::Debug for LoadContext<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadContext")
            .field("key", &self.key)
            .field("previous", &self.previous)
            .field("minimum", &self.minimum)
            .finish_non_exhaustive()
    }
}

/// An earlier value of the same key.
pub struct Previous<V> {
    value: Arc<V>,
    age: Duration,
}

impl<V> Previous<V> {
    pub(super) fn new(value: Arc<V>, age: Duration) -> Self {
        Self { value, age }
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> &Arc<V> {
        &self.value
    }

    /// How long ago its load began, as far as this process can tell.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.age
    }

    /// What a loader gives when the source says that nothing has changed: the same value, with a new
    /// life. The value is not copied in this process; the store gets it once more.
    #[must_use]
    pub fn not_modified(&self) -> Loaded<V> {
        Loaded::from(Arc::clone(&self.value))
    }
}

impl<V> Clone for Previous<V> {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.value), self.age)
    }
}

impl<V> fmt::Debug for Previous<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Previous")
            .field("age", &self.age)
            .finish_non_exhaustive()
    }
}

/// A loaded value, with what the loader says of it.
pub struct Loaded<V> {
    pub(crate) value: Arc<V>,
    pub(crate) said: Said,
}

/// What a loader says of a value beside the value.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    pub(crate) ttl: Option<Ttl>,
    pub(crate) version: Option<u64>,
    pub(crate) tags: SaidTags,
}

impl<V> Loaded<V> {
    /// A value that is kept as the entity's options say.
    #[must_use]
    pub fn new(value: V) -> Self {
        Self::from(Arc::new(value))
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> &Arc<V> {
        &self.value
    }

    /// Keeps it for `ttl`, whatever the entity's options say. Spread by the jitter as any other.
    #[must_use]
    pub fn ttl(mut self, ttl: impl Into<Ttl>) -> Self {
        self.said.ttl = Some(ttl.into());
        self
    }

    /// Names the state of the source that it is: a row version, a commit number. A later state has a
    /// greater number, in the order in which the source commits; clocks of services are no such thing.
    /// Needed for [`put_versioned`](crate::Entity::put_versioned), which takes the place only of a value
    /// that has a version, and for [`invalidate_at`](crate::Entity::invalidate_at), which keeps out what
    /// a lagging replica gives.
    #[must_use]
    pub fn version(mut self, version: u64) -> Self {
        self.said.version = Some(version);
        self
    }

    /// Invalidates it with `tags` as well, beside those that
    /// [`EntityBuilder::tags`](crate::EntityBuilder::tags) names. A memo takes no tags from here: what it
    /// depends on is known before it computes.
    #[must_use]
    pub fn tags<T: Into<Tag>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        self.said.tags.hard.extend(tags.into_iter().map(Into::into));
        self
    }

    /// Ends its time to live with `tags`, as those of
    /// [`EntityBuilder::soft_tags`](crate::EntityBuilder::soft_tags) do; without
    /// [grace](crate::EntityBuilder::grace) they are as any other tags.
    #[must_use]
    pub fn soft_tags<T: Into<Tag>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        self.said.tags.soft.extend(tags.into_iter().map(Into::into));
        self
    }
}

impl<V> From<V> for Loaded<V> {
    fn from(value: V) -> Self {
        Self::new(value)
    }
}

impl<V> From<Arc<V>> for Loaded<V> {
    fn from(value: Arc<V>) -> Self {
        let said = Said::default();
        Self { value, said }
    }
}

impl<V> fmt::Debug for Loaded<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded")
            .field("said", &self.said)
            .finish_non_exhaustive()
    }
}

/// Whether a load was dropped: because nobody waits for it any more, because it took too long, or
/// because the cache was closed. Cheap to clone.
///
/// The load's own future needs none of this, for it is dropped. It is for what the load hands to a
/// thread or a task.
#[derive(Clone, Debug)]
pub struct Cancellation(CancellationToken);

impl Cancellation {
    pub(super) fn of(load: &CancellationToken) -> Self {
        Self(load.clone())
    }

    /// Whether the load was dropped.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Resolves when the load is dropped; never if it ends by itself.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn cancelled(&self) {
        self.0.cancelled().await;
    }
}

/// The loader that [`Cache::entity_with`](crate::Cache::entity_with) makes of a closure.
pub struct ContextLoader<F, V, E> {
    load: F,
    outcome: PhantomData<fn() -> (V, E)>,
}

impl<F, V, E> ContextLoader<F, V, E> {
    pub(super) fn new(load: F) -> Self {
        let outcome = PhantomData;
        Self { load, outcome }
    }
}

impl<F, V, E> fmt::Debug for ContextLoader<F, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContextLoader").finish_non_exhaustive()
    }
}

impl<K, V, E, F, Fut> Loader<K> for ContextLoader<F, V, E>
where
    K: Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
    F: Fn(LoadContext<K, V>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Loaded<V>, E>> + Send,
{
    type Value = V;
    type Error = E;

    fn load_with(
        &self,
        context: LoadContext<K, V>,
    ) -> impl Future<Output = Result<Loaded<V>, E>> + Send {
        (self.load)(context)
    }

    async fn load(&self, _key: &K) -> Result<V, E> {
        unreachable!("entities call `load_with` alone")
    }
}
