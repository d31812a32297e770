//! Memo: one async computation per argument, remembered in this process.
//!
//! A call looks in the map ([`level`]), then joins or leads a flight ([`load`]) that computes in a task.
//! The rules are an entity's without its store: no second level, no lease, no codec. Another pod is heard
//! of only through the tags that an outcome depends on.

mod builder;
mod level;
mod load;
mod once;
mod slot;
mod stats;
#[cfg(test)]
mod tests;

pub use builder::MemoBuilder;
pub use once::{MemoOnce, MemoOnceBuilder};
pub use stats::MemoStats;

use crate::cache::Cache;
use crate::entity::SharedLoader;
use crate::error::CacheError;
use crate::local::Engine;
use crate::store::BoxFuture;
use builder::Options;
use level::Level;
use load::Want;
use stats::Counters;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// One async computation per argument, remembered in this process: arguments `K`, values `V`, errors
/// `E`. Cheap to clone.
///
/// Built by [`Cache::memo`]. Each caller gets a clone of the value: where that is not cheap, let the
/// computation give an `Arc`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::convert::Infallible;
/// use tidings::Cache;
///
/// let cache = Cache::builder("shop").build().await?;
/// let squares = cache.memo("square", |n: u64| async move { Ok::<_, Infallible>(n * n) }).build()?;
/// assert_eq!(squares.get(&12).await?, 144);
/// assert_eq!(squares.peek(&12), Some(144));
/// # Ok(()) }
/// ```
pub struct Memo<K, V, E>(Arc<Inner<K, V, E>>);

struct Inner<K, V, E> {
    name: Box<str>,
    level: Level<K, V, E>,
    loader: SharedLoader<K, V, E>,
    options: Options<K, V, E>,
    counters: Counters,
    cache: Cache,
}

impl<K, V, E> Clone for Memo<K, V, E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V, E> fmt::Debug for Memo<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memo")
            .field("name", &self.0.name)
            .finish_non_exhaustive()
    }
}

impl<K, V, E> Memo<K, V, E>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Returns what is remembered for `key`, computing it if nothing is.
    ///
    /// Concurrent calls for one key share one computation, and its outcome. A hit makes no allocation,
    /// takes no lock of ours (the map's own, for reading), and does not yield to the runtime: a loop of
    /// nothing but hits must yield by itself.
    ///
    /// # Errors
    /// [`CacheError::Load`] if the computation failed, now or when its error was remembered;
    /// [`CacheError::LoadAborted`] if it panicked; [`CacheError::Timeout`] after
    /// [`MemoBuilder::load_timeout`]; [`CacheError::Closed`] after [`Cache::close`].
    ///
    /// # Cancel safety
    /// Cancel safe. The computation goes on while any other call waits for it; if none does, it is
    /// dropped, and nothing is remembered.
    ///
    /// # Consistency
    /// On this pod no call that begins after [`invalidate`](Self::invalidate) returned gives a value whose
    /// computation began before; other pods are not told. A memo with [`tags`](MemoBuilder::tags) follows
    /// their invalidations by any pod, within [`Health::bound`](crate::Health::bound).
    #[inline]
    pub fn get<'a>(
        &'a self,
        key: &'a K,
    ) -> impl Future<Output = Result<V, CacheError<E>>> + Send + 'a {
        Get {
            memo: self,
            key,
            miss: None,
        }
    }

    #[inline]
    fn hit(&self, key: &K) -> Option<Result<V, CacheError<E>>> {
        let outcome = self.0.level.hit(key)?;
        if self.0.cache.is_closed() {
            return None;
        }
        self.0.counters.hit();
        Some(outcome.map_err(CacheError::Load))
    }

    /// Boxed and out of line, so that the future of a hit is small and quick.
    #[cold]
    fn miss<'a>(&'a self, key: &'a K) -> BoxFuture<'a, Result<V, CacheError<E>>> {
        self.0.counters.missed();
        Box::pin(self.0.fly(key, Want::Remembered))
    }

    /// Returns the value that is remembered for `key`. Never computes, counts neither as a use nor in
    /// [`stats`](Self::stats). A remembered error is `None`.
    #[must_use]
    pub fn peek(&self, key: &K) -> Option<V> {
        let outcome = self.0.level.peek(key)?;
        outcome.ok().filter(|_| !self.0.cache.is_closed())
    }

    /// Computes anew, and returns the outcome; meanwhile others are served what is remembered.
    ///
    /// A value replaces what is remembered (with a TTL of zero it only removes it), and so does an error
    /// that [`MemoBuilder::error_ttl`] gives a life. After any other error, a timeout or a panic the old
    /// value stays, and the caller is told. If a computation for `key` is under way already, begun by
    /// whomever, its outcome is shared and no second one runs.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    ///
    /// # Cancel safety
    /// As [`get`](Self::get).
    pub async fn refresh(&self, key: &K) -> Result<V, CacheError<E>> {
        self.0.fly(key, Want::Anew).await
    }

    /// Forgets `key`, in this pod alone. A computation that is under way is detached: those who wait get
    /// its outcome, nobody else does, and the next call computes anew.
    pub fn invalidate(&self, key: &K) {
        self.0.level.forget(key);
    }

    /// Forgets everything, as [`invalidate`](Self::invalidate) does one key. Its cost grows with the
    /// number of entries.
    pub fn clear(&self) {
        self.0.level.forget_all();
    }

    /// What was counted so far, and what is kept now. Takes some locks of the map for a moment, so it is
    /// for every second rather than for every call.
    #[must_use]
    pub fn stats(&self) -> MemoStats {
        let (map, counted) = (&self.0.level.map, self.0.counters.read());
        MemoStats {
            evictions: counted.evictions.filter(|_| map.tells_displaced()),
            entries: map.len(),
            weight: map.weight(),
            ..counted
        }
    }

    /// The cache this memo belongs to.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.0.cache
    }
}

/// [`Memo::get`], by hand: an `async fn` keeps its state in a byte, and a hit that is inlined needs none.
#[must_use = "futures do nothing unless polled"]
struct Get<'a, K, V, E> {
    memo: &'a Memo<K, V, E>,
    key: &'a K,
    miss: Option<BoxFuture<'a, Result<V, CacheError<E>>>>,
}

impl<K, V, E> Future for Get<'_, K, V, E>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    type Output = Result<V, CacheError<E>>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if this.miss.is_none()
            && let Some(hit) = this.memo.hit(this.key)
        {
            return Poll::Ready(hit);
        }
        this.poll_miss(cx)
    }
}

impl<K, V, E> Get<'_, K, V, E>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    #[cold]
    fn poll_miss(&mut self, cx: &mut Context<'_>) -> Poll<Result<V, CacheError<E>>> {
        let (memo, key) = (self.memo, self.key);
        let miss = self.miss.get_or_insert_with(|| memo.miss(key));
        miss.as_mut().poll(cx)
    }
}
