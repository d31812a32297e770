//! How values come from their source.

use super::context::{LoadContext, Loaded};
use crate::store::BoxFuture;
use std::future::Future;
use std::sync::Arc;

/// Reads one value from the source.
///
/// Closures from an owned key to a future are loaders; so is any type of yours that implements this.
/// A load must see everything that was committed before it starts: it reads the primary (or a replica
/// that is not behind) and does not run in a transaction that was opened earlier.
///
/// ```
/// # use tidings::Loader;
/// struct Names { greeting: String }
///
/// impl Loader<u32> for Names {
///     type Value = String;
///     type Error = std::io::Error;
///
///     async fn load(&self, key: &u32) -> Result<String, std::io::Error> {
///         Ok(format!("{} number {key}", self.greeting))
///     }
/// }
/// ```
pub trait Loader<K>: Send + Sync + 'static {
    /// What is loaded.
    type Value: Send + Sync + 'static;
    /// How a load fails.
    type Error: Send + Sync + 'static;

    /// Reads the value of `key`.
    ///
    /// # Errors
    /// Whatever the source says; callers get it as [`CacheError::Load`](crate::CacheError::Load).
    ///
    /// # Cancel safety
    /// Must be cancel safe. It runs in a task of its own, and is dropped when every caller that waits
    /// for it is gone, when it takes longer than the load timeout (or its lease), and when the cache is
    /// closed. Nothing is stored then.
    fn load(&self, key: &K) -> impl Future<Output = Result<Self::Value, Self::Error>> + Send;

    /// As [`load`](Self::load), for a loader that wants to know more of its load, or to say more of the
    /// outcome: its time to live, or that nothing has changed. Entities call this one, and memos, which
    /// have no value before; by default it calls `load`.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    ///
    /// # Cancel safety
    /// As [`load`](Self::load).
    fn load_with(
        &self,
        context: LoadContext<K, Self::Value>,
    ) -> impl Future<Output = Result<Loaded<Self::Value>, Self::Error>> + Send
    where
        K: Send + Sync,
    {
        async move { self.load(context.key()).await.map(Loaded::new) }
    }
}

impl<K, V, E, F, Fut> Loader<K> for F
where
    K: Clone,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
    F: Fn(K) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<V, E>> + Send,
{
    type Value = V;
    type Error = E;

    fn load(&self, key: &K) -> impl Future<Output = Result<V, E>> + Send {
        self(key.clone())
    }
}

/// A loader whose type is forgotten.
pub(crate) trait AnyLoader<K, V, E>: Send + Sync {
    fn load(&self, context: LoadContext<K, V>) -> BoxFuture<'_, Result<Loaded<V>, E>>;
}

impl<K, L> AnyLoader<K, L::Value, L::Error> for L
where
    K: Send + Sync + 'static,
    L: Loader<K>,
{
    fn load(
        &self,
        context: LoadContext<K, L::Value>,
    ) -> BoxFuture<'_, Result<Loaded<L::Value>, L::Error>> {
        Box::pin(self.load_with(context))
    }
}

/// A loader behind a handle.
pub(crate) type SharedLoader<K, V, E> = Arc<dyn AnyLoader<K, V, E>>;
