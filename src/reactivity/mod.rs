//! Reactivity: what depends on tags runs again when any pod invalidates one of them.
//!
//! The bus tells the registry of [watched tags](crate::tags) of every invalidation, in the order in which
//! the local levels learn of it, and after them: whoever runs because of an invalidation no longer finds
//! in this pod what it made invalid. [`Registration`]s, [`Query`]s and [`Live`] streams are ways to wait
//! for the registry's counters.

mod batch;
mod handler;
mod query;

pub use batch::Flushed;
pub use handler::Registration;
pub use query::{Live, Query};

use crate::bus::{InvalidateError, Invalidation, Stamp};
use crate::cache::Cache;
use crate::coherence::{Call, Lane};
use crate::key::Tag;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

impl Cache {
    /// Makes everything that depends on one of `tags` invalid, in every pod: entries of entities, memos,
    /// queries; and has handlers run. Call it after the change was committed.
    ///
    /// `user:42` is the key `42` of the entity `user`, as in
    /// [`Entity::invalidate`](crate::Entity::invalidate); `user` is all of them, as in
    /// [`Entity::clear`](crate::Entity::clear); see [`Tag`]. Inside a [`Reactivity::batch`] the tags are
    /// collected, and nothing happens before its end. Else it costs one round trip for each lane, name
    /// and 64 keys, all at the same time; a bare name is on all of 16 lanes.
    ///
    /// # Errors
    /// [`InvalidateError::Pending`] if the store has not acknowledged it after the first attempt or 2 s:
    /// it is repeated until it has. [`InvalidateError::Closed`] after [`Cache::close`].
    ///
    /// # Cancel safety
    /// Once polled, the invalidation happens whether or not the future is dropped.
    ///
    /// # Consistency
    /// As [`Entity::invalidate`](crate::Entity::invalidate), tag by tag. In this pod everything is told
    /// before the store is asked. In a batch the [`Stamp`] is empty: nothing was logged yet.
    pub fn invalidate<T: Into<Tag>>(&self, tags: impl IntoIterator<Item = T>) -> Invalidation {
        let cache = self.clone();
        let tags = tags.into_iter().map(Into::into).collect();
        Invalidation::new(&self.0.bus, async move {
            match batch::collect(&cache, tags) {
                Ok(()) => Ok(Stamp::default()),
                Err(tags) => cache.invalidate_now(tags).await,
            }
        })
    }

    async fn invalidate_now(&self, tags: BTreeSet<Tag>) -> Result<Stamp, InvalidateError> {
        let calls = self.calls(tags);
        self.0.bus.announce_all(calls).await
    }

    /// The calls that invalidate `tags`.
    fn calls(&self, tags: BTreeSet<Tag>) -> Vec<(Lane, Call)> {
        let bus = &self.0.bus;
        let mut calls = Vec::new();
        let mut named: BTreeMap<Arc<str>, Vec<(u64, Bytes)>> = BTreeMap::new();
        for tag in tags {
            let keys = bus.space.entity(tag.name());
            match tag.key() {
                Some(bytes) => {
                    let key = keys.hash(bytes);
                    let named = named.entry(Arc::clone(tag.shared_name())).or_default();
                    named.push((key.hash, keys.name(key)));
                }
                None => calls.extend(bus.clears(tag.shared_name(), keys.entity_hash())),
            }
        }
        for (name, keys) in named {
            calls.extend(bus.invalidations(&name, bus.space.tag_hash(&name), keys));
        }
        calls
    }

    /// Handlers, queries and streams that run again when a tag is invalidated.
    #[must_use]
    pub fn reactivity(&self) -> Reactivity {
        Reactivity(self.clone())
    }
}

/// Runs things again when tags are invalidated, by this pod or any other. Made by
/// [`Cache::reactivity`]; cheap to clone.
///
/// What runs is told of an invalidation after the local levels of its pod were: an entity that it reads
/// gives no older value. What a pod may have missed, because its store lost part of the log or the pod
/// was away for longer than the log reaches back, counts as invalidated.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use tidings::Cache;
///
/// let cache = Cache::builder("shop").build().await?;
/// let price = Arc::new(AtomicU32::new(100)); // stands for your database
///
/// let shown = price.clone();
/// let mut page = cache.reactivity().stream(["price:tea"], move || {
///     let price = shown.load(Ordering::SeqCst);
///     async move { format!("tea: {price}") }
/// });
/// assert_eq!(page.next().await.as_deref(), Some("tea: 100"));
///
/// price.store(120, Ordering::SeqCst); // commit first,
/// cache.invalidate(["price:tea"]).await?; // then invalidate: from any pod
/// assert_eq!(page.next().await.as_deref(), Some("tea: 120"));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Reactivity(Cache);

impl fmt::Debug for Reactivity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reactivity").field(&self.0).finish()
    }
}

impl Reactivity {
    /// As [`Cache::invalidate`].
    ///
    /// # Errors
    /// As [`Cache::invalidate`].
    ///
    /// # Cancel safety
    /// As [`Cache::invalidate`].
    pub fn invalidate<T: Into<Tag>>(&self, tags: impl IntoIterator<Item = T>) -> Invalidation {
        self.0.invalidate(tags)
    }
}

fn tags<T: Into<Tag>>(tags: impl IntoIterator<Item = T>) -> Vec<Tag> {
    let unique: BTreeSet<Tag> = tags.into_iter().map(Into::into).collect();
    unique.into_iter().collect()
}
