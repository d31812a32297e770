//! Queries and streams: a computation that runs again after each invalidation of its tags.

use super::{Reactivity, tags};
use crate::key::Tag;
use crate::tags::Watch;
use futures_core::Stream;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

type Waiting = Pin<Box<dyn Future<Output = Option<Watch>> + Send>>;

/// A computation that runs again when one of its tags is invalidated, driven by whoever reads it.
///
/// A [`Stream`] of its outcomes. It runs only while it is polled: first at once, then after each
/// invalidation, never beside itself. However much is invalidated between two polls makes one more run,
/// so a reader who is slow, or never comes back, costs nothing but the last outcome. It ends when the
/// cache is closed; dropping it unregisters.
#[must_use = "a stream does nothing unless it is polled"]
pub struct Live<F, Fut> {
    compute: F,
    closing: CancellationToken,
    state: State<Fut>,
}

enum State<Fut> {
    /// To be computed.
    Due(Watch),
    Running(Watch, Pin<Box<Fut>>),
    Waiting(Waiting),
    Ended,
}

impl<F, Fut> fmt::Debug for Live<F, Fut> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").finish_non_exhaustive()
    }
}

// Nothing in it is pinned in place: what has to be is in boxes.
impl<F, Fut> Unpin for Live<F, Fut> {}

impl<F: FnMut() -> Fut, Fut: Future> Live<F, Fut> {
    /// The next outcome; `None` once the cache is closed.
    ///
    /// # Cancel safety
    /// Cancel safe: a run that has begun goes on with the next call.
    pub async fn next(&mut self) -> Option<Fut::Output> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    fn wait(&self, mut watch: Watch) -> Waiting {
        let closing = self.closing.clone();
        Box::pin(async move {
            tokio::select! {
                biased;
                () = closing.cancelled() => None,
                _ = watch.changed() => Some(watch),
            }
        })
    }
}

impl<F: FnMut() -> Fut, Fut: Future> Stream for Live<F, Fut> {
    type Item = Fut::Output;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            match std::mem::replace(&mut this.state, State::Ended) {
                State::Due(_) if this.closing.is_cancelled() => return Poll::Ready(None),
                State::Due(watch) => {
                    this.state = State::Running(watch, Box::pin((this.compute)()));
                }
                State::Running(watch, mut running) => match running.as_mut().poll(cx) {
                    Poll::Ready(outcome) => {
                        this.state = State::Waiting(this.wait(watch));
                        return Poll::Ready(Some(outcome));
                    }
                    Poll::Pending => {
                        this.state = State::Running(watch, running);
                        return Poll::Pending;
                    }
                },
                State::Waiting(mut waiting) => match waiting.as_mut().poll(cx) {
                    Poll::Ready(Some(watch)) => this.state = State::Due(watch),
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Pending => {
                        this.state = State::Waiting(waiting);
                        return Poll::Pending;
                    }
                },
                State::Ended => return Poll::Ready(None),
            }
        }
    }
}

impl Reactivity {
    /// A [stream](Live) of what `compute` gives: now, and again after each invalidation of one of
    /// `watched`, by any pod. No task, no round trip of its own; `compute` may borrow.
    pub fn stream<T, F, Fut>(
        &self,
        watched: impl IntoIterator<Item = T>,
        compute: F,
    ) -> Live<F, Fut>
    where
        T: Into<Tag>,
        F: FnMut() -> Fut,
        Fut: Future,
    {
        // Watched before the first run, so that nothing falls between.
        Live {
            compute,
            closing: self.0.0.bus.closing.clone(),
            state: State::Due(self.0.0.tags.watch(tags(watched))),
        }
    }

    /// A [`Query`]: as [`stream`](Self::stream), but computed once for any number of readers, in a
    /// task of its own that goes on while somebody holds the query.
    pub fn query<T, O, F, Fut>(&self, watched: impl IntoIterator<Item = T>, compute: F) -> Query<O>
    where
        T: Into<Tag>,
        O: Clone + Send + Sync + 'static,
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = O> + Send + 'static,
    {
        let watched = tags(watched);
        let watch = self.0.0.tags.watch(watched);
        let (latest, readers) = watch::channel(None);
        let bus = &self.0.0.bus;
        let closing = bus.closing.clone();
        bus.spawn(async move {
            tokio::select! {
                biased;
                () = closing.cancelled() => {}
                () = latest.closed() => {}
                () = run(watch, Arc::new(compute), &latest) => {}
            }
        });
        Query {
            latest: readers,
            waiting: None,
        }
    }
}

async fn run<O, F, Fut>(mut watch: Watch, compute: Arc<F>, latest: &watch::Sender<Option<O>>)
where
    O: Send + Sync + 'static,
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = O> + Send + 'static,
{
    loop {
        let compute = Arc::clone(&compute);
        // In a task of its own, so that its panics end there; it ends with us.
        let mut run = tokio::task::JoinSet::new();
        run.spawn(async move { compute().await });
        match run.join_next().await {
            Some(Ok(outcome)) => {
                latest.send_replace(Some(outcome));
            }
            _ => tracing::error!(tags = ?watch.tags(), "a query panicked"),
        }
        watch.changed().await;
    }
}

/// The latest outcome of a computation that runs again when one of its tags is invalidated.
///
/// Cheap to clone: all clones share one computation. A reader who is slow skips outcomes, never the
/// latest. A run that panics is reported (`tracing`, level error), and the outcome before it stays.
///
/// As a [`Stream`] it gives the outcome there is, if there is one yet, and each newer one; it ends when
/// the cache is closed. When the last clone is dropped, the computation ends.
pub struct Query<O> {
    latest: watch::Receiver<Option<O>>,
    waiting: Option<Newer<O>>,
}

/// Gives the receiver back once there is something new; `None` if nothing will come.
type Newer<O> = Pin<Box<dyn Future<Output = Option<watch::Receiver<Option<O>>>> + Send>>;

impl<O> fmt::Debug for Query<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Query").finish_non_exhaustive()
    }
}

impl<O> Clone for Query<O> {
    /// Another reader, who has seen nothing yet.
    fn clone(&self) -> Self {
        let mut latest = self.latest.clone();
        if latest.borrow().is_some() {
            latest.mark_changed();
        }
        Self {
            latest,
            waiting: None,
        }
    }
}

impl<O: Clone + Send + Sync + 'static> Query<O> {
    /// The latest outcome; `None` before the first.
    #[must_use]
    pub fn latest(&self) -> Option<O> {
        self.latest.borrow().clone()
    }

    /// Waits for an outcome that this reader has not seen; `None` once the cache is closed.
    ///
    /// # Cancel safety
    /// Cancel safe: no outcome is lost.
    pub async fn next(&mut self) -> Option<O> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl<O: Clone + Send + Sync + 'static> Stream for Query<O> {
    type Item = O;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<O>> {
        let this = self.get_mut();
        let mut latest = this.latest.clone();
        let waiting = this.waiting.get_or_insert_with(|| {
            Box::pin(async move { latest.changed().await.ok().map(|()| latest) })
        });
        let newer = ready!(waiting.as_mut().poll(cx));
        this.waiting = None;
        let Some(newer) = newer else {
            return Poll::Ready(None);
        };
        this.latest = newer;
        Poll::Ready(this.latest.borrow_and_update().clone())
    }
}
