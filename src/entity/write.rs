//! Writing under a guard: see [`WriteGuard`](crate::WriteGuard).

use super::Entity;
use crate::bus::BeginWrite;
use crate::key::Key;
use serde::Serialize;
use serde::de::DeserializeOwned;

impl<K, V, E> Entity<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Announces that `key` is about to change: a write guard, to be taken before the change is committed,
    /// and [finished](crate::WriteGuard::finish) after it. Closes the gap between the commit and the
    /// invalidation, also for a writer that dies in it. One round trip.
    ///
    /// From here on every pod forgets the key, and until the guard is finished, or its
    /// [TTL](crate::BeginWrite::ttl) ends, what is loaded of it is kept in no store, and in no pod for
    /// longer than the bound. Begin it as late as you can, best right before the commit: what was loaded
    /// before is forgotten either way. Guards of one key may overlap, in one pod or many; the key is cached
    /// again when the last has ended.
    ///
    /// # Errors
    /// [`BeginWriteError::Store`](crate::BeginWriteError::Store) if the store did not take it: abort the
    /// transaction, or go on without, and [`invalidate`](Self::invalidate) after it.
    /// [`BeginWriteError::Ttl`](crate::BeginWriteError::Ttl) if the TTL is out of range;
    /// [`BeginWriteError::Closed`](crate::BeginWriteError::Closed) after
    /// [`Cache::close`](crate::Cache::close).
    ///
    /// # Cancel safety
    /// Cancel safe. What it has left in the store is removed behind the caller, or ends with its TTL.
    ///
    /// # Consistency
    /// No read on any pod that begins later than [`Health::bound`](crate::Health::bound) after a *commit*
    /// under the guard gives what was there before, whether the writer lives or not. See
    /// `docs/write-guard.md` for what the store must not lose meanwhile.
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// # struct Tx; impl Tx { async fn commit(self) -> Result<(), Infallible> { Ok(()) } }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let cache = tidings::Cache::builder("shop").build().await?;
    /// # let users = cache.entity("user", |id: u64| async move { Ok::<_, Infallible>(id) }).build()?;
    /// # let tx = Tx;
    /// // … the statements of the transaction …
    /// let guard = users.begin_write(&42).await?;
    /// tx.commit().await?;
    /// let finished = guard.finish().await?;
    /// assert!(finished.was_held());
    /// # Ok(()) }
    /// ```
    pub fn begin_write(&self, key: &K) -> BeginWrite {
        self.begin_write_many([key])
    }

    /// As [`begin_write`](Self::begin_write) for many keys under one guard: one round trip for each lane
    /// and 64 keys, all at the same time. Without keys it does nothing.
    ///
    /// # Errors
    /// As [`begin_write`](Self::begin_write): all of them are guarded, or none.
    ///
    /// # Cancel safety
    /// As [`begin_write`](Self::begin_write).
    ///
    /// # Consistency
    /// As [`begin_write`](Self::begin_write), key by key.
    pub fn begin_write_many<'k>(&self, keys: impl IntoIterator<Item = &'k K>) -> BeginWrite
    where
        K: 'k,
    {
        BeginWrite::new(self.0.bus(), self.calls(keys))
    }
}
