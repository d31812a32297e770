//! Telling the cache which version the source has of a key: see `docs/versions.md`.

use super::Entity;
use crate::bus::Invalidation;
use crate::key::Key;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

impl<K, V, E> Entity<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// As [`invalidate`](Self::invalidate), and says that the source has `version` of the key by now, or a
    /// later one: for loaders that read a replica, which may give an older one still. Call it after the
    /// change was committed. One round trip.
    ///
    /// For a minute ([`MINIMUM_VERSION_TTL`](crate::MINIMUM_VERSION_TTL)) the store remembers it, and tells
    /// every pod that loads the key. A load that [states](crate::Loaded::version) a lower version is made
    /// again, after a pause that grows, until it does not: it is served to nobody and kept nowhere. A loader
    /// that asks for [the version that it must have](crate::LoadContext::minimum_version) can go to the
    /// primary instead. If the source does not catch up within
    /// [`load_timeout`](crate::EntityBuilder::load_timeout), callers get
    /// [`CacheError::Timeout`](crate::CacheError::Timeout).
    ///
    /// An outcome that states no version, as that of a one-shot loader, of a batch loader or an error, is
    /// for those who wait for it, and kept in memory for the rest of its first second, as one that is
    /// loaded [under a write guard](crate::WriteGuard) is.
    ///
    /// Versions must grow in the order in which the source commits. Of several the highest counts, so calls
    /// that come late, or twice, do no harm.
    ///
    /// # Errors
    /// As [`invalidate`](Self::invalidate). What is repeated says the version again.
    ///
    /// # Cancel safety
    /// As [`invalidate`](Self::invalidate).
    ///
    /// # Consistency
    /// As [`invalidate`](Self::invalidate); and what is loaded later is not older than `version`, whatever
    /// the source answers, as long as the store remembers.
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// # use tidings::{Cache, LoadContext, Loaded};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let cache = Cache::builder("shop").build().await?;
    /// # async fn from_replica(id: u64) -> Result<(String, u64), Infallible> { Ok((format!("user {id}"), 8)) }
    /// # async fn rename(_id: u64, _name: &str) -> Result<u64, Infallible> { Ok(8) }
    /// let users = cache
    ///     .entity_with("user", |load: LoadContext<u64, String>| async move {
    ///         let (name, version) = from_replica(*load.key()).await?;
    ///         Ok::<_, Infallible>(Loaded::new(name).version(version))
    ///     })
    ///     .build()?;
    ///
    /// let version = rename(42, "Ada").await?; // UPDATE … SET version = version + 1 RETURNING version
    /// users.invalidate_at(&42, version).await?;
    /// users.get(&42).await?; // waits for the replica, if need be
    /// # Ok(()) }
    /// ```
    pub fn invalidate_at(&self, key: &K, version: u64) -> Invalidation {
        let (bus, calls) = (Arc::clone(self.0.bus()), self.calls([key]));
        Invalidation::new(self.0.bus(), async move {
            bus.announce_minimum(calls, version).await
        })
    }
}
