//! What those who invalidate are given: the call to wait for, and what it comes to.

use super::waiter::CallHandle;
use super::{Bus, Stamp};
use crate::coherence::{Call, Lane};
use crate::error::StoreError;
use crate::store::BoxFuture;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// An invalidation that is about to be made: a future that gives its [`Stamp`] once the store has
/// acknowledged it, made by [`Entity::invalidate`](crate::Entity::invalidate) and its kind. Nothing
/// happens before it is polled, and from then on nothing stops it.
///
/// ```
/// # use std::convert::Infallible;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let cache = tidings::Cache::builder("shop").build().await?;
/// # let users = cache.entity("user", |id: u64| async move { Ok::<_, Infallible>(id) }).build()?;
/// users.invalidate(&42).await?; // logged: other pods follow within the bound
/// users.invalidate(&42).settled().await?; // the bound is over: no pod serves the old value
/// # Ok(()) }
/// ```
#[must_use = "nothing is invalidated before this is polled"]
pub struct Invalidation {
    bus: Arc<Bus>,
    call: BoxFuture<'static, Result<Stamp, InvalidateError>>,
}

impl Invalidation {
    /// `call` begins nothing before it is polled.
    pub(crate) fn new(
        bus: &Arc<Bus>,
        call: impl Future<Output = Result<Stamp, InvalidateError>> + Send + 'static,
    ) -> Self {
        Self {
            bus: Arc::clone(bus),
            call: Box::pin(call),
        }
    }

    pub(crate) fn of(bus: &Arc<Bus>, calls: Vec<(Lane, Call)>) -> Self {
        let this = Arc::clone(bus);
        Self::new(bus, async move { this.announce_all(calls).await })
    }

    /// Invalidates, and waits until no pod can serve the old value any more: for what must not happen
    /// before, such as telling a customer that an account is closed. Makes no further round trip; it
    /// waits for [`Health::bound`](crate::Health::bound) (1.008 s) from the acknowledgement on.
    ///
    /// In a [batch](crate::Reactivity::batch) nothing is logged yet, so there is nothing to wait for:
    /// use [`Stamp::settled`] on what the batch gives.
    ///
    /// # Errors
    /// As the invalidation itself, at once: what is [`Pending`] is not waited for. To do so, wait for
    /// [`Pending::settled`], and then for the [`Stamp::settled`] of what that gives.
    ///
    /// # Cancel safety
    /// Once polled, the invalidation happens whether or not the future is dropped.
    ///
    /// # Consistency
    /// On every pod, whether or not it can reach the store, a read that begins after this returned `Ok`
    /// gives no value that was loaded before the invalidation.
    pub async fn settled(self) -> Result<Stamp, InvalidateError> {
        // Counted from when the answer is here, which is after the store has logged the call.
        let bound = self.bus.bound();
        let stamp = self.call.await?;
        if stamp.positions().next().is_some() {
            tokio::time::sleep(bound).await;
        }
        Ok(stamp)
    }
}

impl Future for Invalidation {
    type Output = Result<Stamp, InvalidateError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.call.as_mut().poll(cx)
    }
}

impl fmt::Debug for Invalidation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Invalidation").field(&self.bus).finish()
    }
}

/// An invalidation was not acknowledged.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum InvalidateError {
    /// The store has not acknowledged it yet. This pod no longer serves the old value; others may,
    /// until it is acknowledged. It is repeated until then.
    Pending(Pending),
    /// The cache was closed before the store could be told.
    Closed,
}

impl fmt::Display for InvalidateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending(_) => "invalidation not acknowledged yet; it is being repeated",
            Self::Closed => "cache closed before the invalidation was acknowledged",
        })
    }
}

impl Error for InvalidateError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Pending(pending) => Some(&pending.reason),
            Self::Closed => None,
        }
    }
}

/// An invalidation that is being repeated until the store acknowledges it.
///
/// Dropping this forgets nothing: it is only a handle to wait on.
#[derive(Clone, Debug)]
pub struct Pending {
    pub(super) handles: Vec<CallHandle>,
    pub(super) reason: StoreError,
}

impl Pending {
    /// Why the store had not acknowledged it when the call returned.
    #[must_use]
    pub fn reason(&self) -> &StoreError {
        &self.reason
    }

    /// Waits until the store has acknowledged it. Other pods follow within the bound from then on; to
    /// wait for that too, see [`Stamp::settled`].
    ///
    /// # Errors
    /// [`InvalidateError::Closed`] if the cache is closed before.
    ///
    /// # Cancel safety
    /// Cancel safe: the invalidation goes on.
    pub async fn settled(&self) -> Result<Stamp, InvalidateError> {
        let mut stamp = Stamp::default();
        for handle in &self.handles {
            let position = handle
                .clone()
                .settled()
                .await
                .ok_or(InvalidateError::Closed)?;
            stamp.positions.push((handle.lane, position));
        }
        Ok(stamp)
    }
}

/// What [`Cache::close`](crate::Cache::close) could not do any more.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CloseReport {
    /// Invalidations of this pod that the store had not acknowledged, the oldest first. Other pods may
    /// serve what they make invalid until its TTL ends, unless the cache has a
    /// [journal](crate::CacheBuilder::journal), from which the next process repeats them.
    pub unacknowledged: Vec<Unacknowledged>,
}

/// An invalidation that the store has not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unacknowledged {
    /// What it makes invalid, as the tag that names it: `user:42`; or `user (lane 3)` and
    /// `everything (lane 3)`, where it is one lane of a name, or of all there is.
    pub what: String,
    /// How long it has waited.
    pub age: Duration,
}

impl Bus {
    pub(super) fn close_report(&self) -> CloseReport {
        let now = self.clock.now();
        let unacknowledged = self.calls.unacknowledged();
        let unacknowledged = unacknowledged
            .into_iter()
            .map(|(item, since)| Unacknowledged {
                what: item.to_string(),
                age: now.since(since),
            });
        CloseReport {
            unacknowledged: unacknowledged.collect(),
        }
    }
}
