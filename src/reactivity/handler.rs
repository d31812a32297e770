//! Handlers: code that runs after each invalidation of its tags.

use super::{Reactivity, tags};
use crate::key::Tag;
use crate::tags::Watch;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Keeps a handler registered; dropping it unregisters. A run that has begun comes to its end.
#[must_use = "dropping it unregisters the handler"]
pub struct Registration {
    tags: Arc<[Tag]>,
    _unregister: DropGuard,
}

impl Registration {
    /// What the handler is registered for.
    #[must_use]
    pub fn tags(&self) -> &[Tag] {
        &self.tags
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registration").field(&self.tags).finish()
    }
}

impl Reactivity {
    /// Runs `handler` after each invalidation of one of `watched`, by any pod, until the
    /// [`Registration`] is dropped or the cache is closed. The handler is given those of its tags that
    /// were invalidated since it last ran.
    ///
    /// It runs once for an invalidation of this pod however many of its tags match. Another pod's comes
    /// as one entry of the log for each lane; what comes together is one run, so it may run up to once
    /// for each lane that its tags are on. A handler never runs beside itself: whatever is invalidated
    /// while it runs makes one more run. Nothing is queued, so a slow handler costs no memory and holds up
    /// nobody.
    ///
    /// A handler that panics is reported (`tracing`, level error) and stays registered.
    pub fn on<T, F, Fut>(&self, watched: impl IntoIterator<Item = T>, handler: F) -> Registration
    where
        T: Into<Tag>,
        F: Fn(Vec<Tag>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let bus = &self.0.0.bus;
        let watch = self.0.0.tags.watch(tags(watched));
        let unregistered = CancellationToken::new();
        let registration = Registration {
            tags: watch.tags().into(),
            _unregister: unregistered.clone().drop_guard(),
        };
        let closing = bus.closing.clone();
        let run = run(watch, Arc::new(handler), bus.work.clone());
        bus.spawn(async move {
            tokio::select! {
                biased;
                () = closing.cancelled() => {}
                () = unregistered.cancelled() => {}
                () = run => {}
            }
        });
        registration
    }
}

/// Runs the handler each time in a task of its own, so that its panics end there.
async fn run<F, Fut>(mut watch: Watch, handler: Arc<F>, work: TaskTracker)
where
    F: Fn(Vec<Tag>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    loop {
        let changed = watch.changed().await;
        let handler = Arc::clone(&handler);
        let run = work.spawn(async move { handler(changed).await });
        if let Err(failed) = run.await
            && failed.is_panic()
        {
            tracing::error!(tags = ?watch.tags(), "a handler panicked");
        }
    }
}
