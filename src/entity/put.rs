//! A value that its writer has at hand: an invalidation that may leave it in the store.
//!
//! What may be left there is argued in `docs/decisions/no-put.md`, in short: a usable value with a lower
//! version stands under the key. It reflects every invalidation that was logged, and the source says that
//! the new one is of a later state. So the new one reflects them too. Without such a value there is
//! nothing to argue from, and the key is invalidated, no more. Nor is there while a fork is in doubt:
//!
//! 1. Version 8 is acknowledged, and a replica is promoted that lacks the invalidation. Version 6 stands there
//!    again, and nobody believes it before the doubt is over.
//! 2. Version 7, which was committed before, is put in its place. Its position is of the new epoch, which
//!    everybody believes.

use super::fill::About;
use super::tagging::SaidTags;
use super::target::Target;
use super::{Entity, Inner};
use crate::bus::{Invalidation, OwnedPut};
use crate::envelope::Lease;
use crate::key::Key;
use crate::random::random;
use crate::ttl::Ttl;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::iter;
use std::sync::Arc;
use std::time::Duration;

impl<K, V, E> Entity<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// As [`invalidate`](Self::invalidate), and leaves `value` in the store for the next readers, if it is
    /// newer than what stands there. Call it after the change was committed. One round trip.
    ///
    /// `version` is what the source calls this state: a row version, a commit number. It must grow in the
    /// order in which the source commits, and stand for everything that is in the value. The store
    /// compares it with the [version](crate::Loaded::version) of the value that it has, in one atomic step:
    ///
    /// - that is lower: `value` takes its place, with the TTL that the entity's options give it;
    /// - it is the same or higher: it stays, for it is newer than `value`;
    /// - there is none, because the key was invalidated, evicted, never loaded, or loaded without a
    ///   version, or it is from before a failover of the last seconds: the key is invalidated, and the next
    ///   reader loads.
    ///
    /// A value that has [tags](crate::EntityBuilder::tags), or is
    /// [too long](crate::EntityBuilder::store_max_bytes), is never left there: the key is invalidated.
    ///
    /// So puts in the wrong order, late or repeated, never bring an older value back. For the first of a
    /// key somebody must have read it, by a loader that [gives versions](crate::Loaded::version).
    ///
    /// # Errors
    /// As [`invalidate`](Self::invalidate). What is repeated is the invalidation alone.
    ///
    /// # Cancel safety
    /// As [`invalidate`](Self::invalidate).
    ///
    /// # Consistency
    /// As [`invalidate`](Self::invalidate): no pod serves what was loaded before, beyond the bound.
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// # use tidings::{Cache, LoadContext, Loaded};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let cache = Cache::builder("shop").build().await?;
    /// # async fn select(id: u64) -> Result<(String, u64), Infallible> { Ok((format!("user {id}"), 7)) }
    /// # async fn rename(_id: u64, _name: &str) -> Result<u64, Infallible> { Ok(8) }
    /// let users = cache
    ///     .entity_with("user", |load: LoadContext<u64, String>| async move {
    ///         let (name, version) = select(*load.key()).await?;
    ///         Ok::<_, Infallible>(Loaded::new(name).version(version))
    ///     })
    ///     .build()?;
    /// users.get(&42).await?;
    ///
    /// let version = rename(42, "Ada").await?; // UPDATE … SET version = version + 1 RETURNING version
    /// users.put_versioned(&42, "Ada".to_owned(), version).await?;
    /// # Ok(()) }
    /// ```
    pub fn put_versioned(&self, key: &K, value: impl Into<Arc<V>>, version: u64) -> Invalidation {
        let (inner, key, value) = (Arc::clone(&self.0), key.clone(), value.into());
        Invalidation::new(self.0.bus(), async move {
            let target = inner.target(&key, inner.hash(&key));
            let named = iter::once((target.hash, target.name.clone()));
            let bus = inner.bus();
            let calls = bus.invalidations(&inner.name, inner.keys.entity_hash(), named);
            // In a migration others read it elsewhere, and there is one value to leave: it is invalidated.
            // Nor is anything left of what is to be held off.
            let put = match calls.len() {
                1 if inner.options.hold_off.is_zero() => inner.put(&target, value, version),
                _ => None,
            };
            bus.announce_put(calls, put).await
        })
    }
}

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// What to leave in the store; `None` if that is nothing.
    fn put(&self, target: &Target<K>, value: Arc<V>, version: u64) -> Option<OwnedPut> {
        let view = self.bus().view(target.lane);
        let (view, now_ms) = (
            view.filter(|view| !view.in_doubt)?,
            self.bus().server_now()?,
        );
        let outcome = Ok(value);
        let ttl = self.ttl_of(&target.key, &outcome, None);
        if ttl == Ttl::NONE {
            return None;
        }
        // The store leaves no value with tags standing: the one with a lower version says nothing of what
        // was invalidated with the tags of this one.
        if !self
            .tags_of(target, &outcome, SaidTags::default())
            .is_empty()
        {
            return None;
        }
        let about = About {
            lease: Lease {
                token: random(),
                began: view.position(),
            },
            loaded_ms: now_ms,
            now_ms,
            took: Duration::ZERO,
            ttl,
            version: Some(version),
            tags: Vec::new(),
        };
        let (envelope, ttl) = self.envelope(target, &about, &outcome)?;
        Some(OwnedPut {
            hash: target.hash,
            key: target.name.clone(),
            version,
            epoch: view.epoch,
            envelope,
            ttl,
        })
    }
}
