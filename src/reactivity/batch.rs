//! Batches: invalidations that are collected and carried out once, at the outermost end.

use super::Reactivity;
use crate::bus::{Bus, InvalidateError, Stamp, lock};
use crate::cache::Cache;
use crate::key::Tag;
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex};

tokio::task_local! {
    /// The batch that the running task is in.
    static CURRENT: Arc<Batch>;
}

struct Batch {
    bus: Arc<Bus>,
    /// `None` once it has ended.
    tags: Mutex<Option<BTreeSet<Tag>>>,
    /// One of another cache, around this one.
    outer: Option<Arc<Self>>,
}

impl Batch {
    /// The batch of this cache that the running task is in.
    fn current(bus: &Arc<Bus>) -> Option<Arc<Self>> {
        let mut batch = CURRENT.try_with(Arc::clone).ok();
        while let Some(found) = &batch
            && !Arc::ptr_eq(&found.bus, bus)
        {
            batch = found.outer.clone();
        }
        batch
    }
}

/// Leaves `tags` to the batch that the caller is in; gives them back if there is none.
pub(super) fn collect(cache: &Cache, tags: BTreeSet<Tag>) -> Result<(), BTreeSet<Tag>> {
    let Some(batch) = Batch::current(&cache.0.bus) else {
        return Err(tags);
    };
    match &mut *lock(&batch.tags) {
        Some(collected) => {
            collected.extend(tags);
            Ok(())
        }
        None => Err(tags),
    }
}

/// A value, and what became of the invalidations that belong to it.
#[derive(Clone, Debug)]
#[must_use = "it says whether the invalidation was acknowledged"]
pub struct Flushed<T> {
    /// What the future gave.
    pub value: T,
    /// As [`Cache::invalidate`] gives it. Inside of a batch the [`Stamp`] is empty: the outermost one
    /// gives what became of all.
    pub invalidated: Result<Stamp, InvalidateError>,
}

impl<T> Flushed<T> {
    /// The value, once every invalidation is acknowledged.
    ///
    /// # Errors
    /// As [`Cache::invalidate`].
    pub fn acknowledged(self) -> Result<T, InvalidateError> {
        self.invalidated.map(|_| self.value)
    }
}

/// Carries out what a batch collected, also if its future is dropped.
struct Flush {
    cache: Cache,
    batch: Arc<Batch>,
}

impl Flush {
    /// Ends the batch: later invalidations go their own way.
    fn take(&self) -> BTreeSet<Tag> {
        lock(&self.batch.tags).take().unwrap_or_default()
    }

    async fn flush(self) -> Result<Stamp, InvalidateError> {
        let tags = self.take();
        self.cache.invalidate_now(tags).await
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        let tags = self.take();
        let bus = &self.cache.0.bus;
        if !tags.is_empty() && !bus.closing.is_cancelled() {
            // Begun, they see themselves through; nobody is left to tell.
            drop(bus.begin_all(self.cache.calls(tags)));
        }
    }
}

impl Reactivity {
    /// Runs `future`, collects the tags that are [invalidated](Cache::invalidate) in it, and invalidates
    /// each of them once when it ends: with a value, with an error, with a panic, or because it was
    /// dropped. A batch within a batch leaves its tags to the outer one.
    ///
    /// The batch is that of the task: what the future spawns is outside of it and invalidates by
    /// itself, as does what is left over when the batch has ended. An
    /// [`Entity::invalidate`](crate::Entity::invalidate) is not collected, for it promises its caller
    /// what a batch would put off.
    ///
    /// # Cancel safety
    /// Dropping the future invalidates what was collected so far.
    pub fn batch<F: Future>(&self, future: F) -> impl Future<Output = Flushed<F::Output>> + use<F> {
        let cache = self.0.clone();
        async move {
            let bus = &cache.0.bus;
            if Batch::current(bus).is_some_and(|batch| lock(&batch.tags).is_some()) {
                return Flushed {
                    value: future.await,
                    invalidated: Ok(Stamp::default()),
                };
            }
            let batch = Arc::new(Batch {
                bus: Arc::clone(bus),
                tags: Mutex::new(Some(BTreeSet::new())),
                outer: CURRENT.try_with(Arc::clone).ok(),
            });
            let flush = Flush {
                cache: cache.clone(),
                batch: Arc::clone(&batch),
            };
            let value = CURRENT.scope(batch, future).await;
            let invalidated = flush.flush().await;
            Flushed { value, invalidated }
        }
    }

    /// Runs `future`, which changes the source, and invalidates `tags` if it succeeds: in the same poll,
    /// so that no cancellation comes between.
    ///
    /// # Errors
    /// That of `future`; then nothing is invalidated.
    ///
    /// # Cancel safety
    /// As safe as `future`. Dropped after it succeeded, the invalidation goes on.
    pub fn mutation<T, E, F, I>(
        &self,
        tags: I,
        future: F,
    ) -> impl Future<Output = Result<Flushed<T>, E>> + use<T, E, F, I>
    where
        F: Future<Output = Result<T, E>>,
        I: IntoIterator<Item: Into<Tag>>,
    {
        let cache = self.0.clone();
        let tags = super::tags(tags);
        async move {
            let value = future.await?;
            let invalidated = cache.invalidate(tags).await;
            Ok(Flushed { value, invalidated })
        }
    }
}
