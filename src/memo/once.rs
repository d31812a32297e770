//! The memo without arguments: one value.
//!
//! A [`Memo`] whose only key is `()`, so that there is one set of rules.

use super::{Memo, MemoBuilder};
use crate::cache::Cache;
use crate::error::{BuildError, CacheError};
use crate::key::Tag;
use crate::telemetry::MemoStats;
use crate::ttl::Ttl;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

impl Cache {
    /// Starts building a memo of one value: as [`memo`](Self::memo), of a computation without argument.
    pub fn memo_once<F, Fut, V, E>(&self, name: impl Into<String>, f: F) -> MemoOnceBuilder<V, E>
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<V, E>> + Send,
        V: Clone + Send + Sync + 'static,
        E: Send + Sync + 'static,
    {
        let loader = Arc::new(move |()| f());
        MemoOnceBuilder(MemoBuilder::new(self.clone(), name.into(), loader).capacity(1))
    }
}

/// Options of a [`MemoOnce`]; made by [`Cache::memo_once`].
#[must_use = "a builder does nothing until `build`"]
pub struct MemoOnceBuilder<V, E>(MemoBuilder<(), V, E>);

impl<V, E> fmt::Debug for MemoOnceBuilder<V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemoOnceBuilder").field(&self.0).finish()
    }
}

impl<V, E> MemoOnceBuilder<V, E>
where
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// As [`MemoBuilder::ttl`].
    pub fn ttl(self, ttl: impl Into<Ttl>) -> Self {
        Self(self.0.ttl(ttl))
    }

    /// As [`MemoBuilder::ttl_with`].
    pub fn ttl_with(self, ttl: impl Fn(&V) -> Ttl + Send + Sync + 'static) -> Self {
        Self(self.0.ttl_with(move |(), value| ttl(value)))
    }

    /// As [`MemoBuilder::error_ttl`].
    pub fn error_ttl(self, ttl: impl Fn(&E) -> Option<Duration> + Send + Sync + 'static) -> Self {
        Self(self.0.error_ttl(ttl))
    }

    /// As [`MemoBuilder::tags`].
    pub fn tags<T: Into<Tag>>(self, tags: impl IntoIterator<Item = T>) -> Self {
        let tags: Vec<Tag> = tags.into_iter().map(Into::into).collect();
        Self(self.0.tags(move |()| tags.clone()))
    }

    /// As [`MemoBuilder::load_timeout`].
    pub fn load_timeout(self, limit: Duration) -> Self {
        Self(self.0.load_timeout(limit))
    }

    /// Builds the memo. No round trip.
    ///
    /// # Errors
    /// [`BuildError`] naming the option: `memo` if the name cannot be used; `load_timeout` if zero.
    pub fn build(self) -> Result<MemoOnce<V, E>, BuildError> {
        self.0.build().map(MemoOnce)
    }
}

/// One async computation without argument, remembered in this process. Cheap to clone.
///
/// Built by [`Cache::memo_once`]; everything is as with a [`Memo`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::convert::Infallible;
/// use tidings::Cache;
///
/// let cache = Cache::builder("shop").build().await?;
/// let rates = cache.memo_once("rates", || async { Ok::<_, Infallible>(vec![("EUR", 1.17)]) }).build()?;
/// assert_eq!(rates.get().await?[0].0, "EUR");
/// # Ok(()) }
/// ```
pub struct MemoOnce<V, E>(Memo<(), V, E>);

impl<V, E> Clone for MemoOnce<V, E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<V, E> fmt::Debug for MemoOnce<V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemoOnce").field(&self.0.0.name).finish()
    }
}

impl<V, E> MemoOnce<V, E>
where
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// As [`Memo::get`].
    ///
    /// # Errors
    /// As [`Memo::get`].
    ///
    /// # Cancel safety
    /// As [`Memo::get`].
    ///
    /// # Consistency
    /// As [`Memo::get`].
    pub async fn get(&self) -> Result<V, CacheError<E>> {
        self.0.get(&()).await
    }

    /// As [`Memo::peek`].
    #[must_use]
    pub fn peek(&self) -> Option<V> {
        self.0.peek(&())
    }

    /// As [`Memo::refresh`].
    ///
    /// # Errors
    /// As [`Memo::get`].
    ///
    /// # Cancel safety
    /// As [`Memo::get`].
    pub async fn refresh(&self) -> Result<V, CacheError<E>> {
        self.0.refresh(&()).await
    }

    /// As [`Memo::invalidate`].
    pub fn invalidate(&self) {
        self.0.invalidate(&());
    }

    /// As [`Memo::stats`].
    #[must_use]
    pub fn stats(&self) -> MemoStats {
        self.0.stats()
    }

    /// The cache this memo belongs to.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        self.0.cache()
    }
}
