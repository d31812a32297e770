//! What happens, told to whoever asked: bounded, and never in the way of what it tells of.

use crate::StaleReason;
use crate::bus::lock;
use crate::error::StoreError;
use futures_core::Stream;
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Events that wait for one consumer at most: seconds of a busy pod, and some hundred kilobytes.
pub const EVENTS_KEPT: usize = 1024;

/// What happened to a cache; see [`Cache::events`](crate::Cache::events).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// This pod begins an invalidation, or a piece of one: of one lane, and at most 64 keys.
    InvalidationSent {
        /// The entity.
        entity: Arc<str>,
        /// How many keys of it; all of them if 0.
        keys: usize,
    },
    /// The store has acknowledged it.
    InvalidationAcknowledged {
        /// The entity.
        entity: Arc<str>,
        /// How many keys of it; all of them if 0.
        keys: usize,
        /// How long it took from the call.
        after: Duration,
    },
    /// An attempt to have it acknowledged failed; it is repeated.
    InvalidationPending {
        /// The entity.
        entity: Arc<str>,
        /// How many keys of it; all of them if 0.
        keys: usize,
        /// Why.
        reason: StoreError,
    },
    /// An invalidation by another pod was carried out here. One that came out of its turn is told again
    /// as the log is read.
    InvalidationReceived {
        /// How many keys; all of an entity if 0.
        keys: usize,
    },
    /// An invalidation is missing on this lane: hints may yet bring it, or else the log is read.
    Gap {
        /// The lane.
        lane: u16,
    },
    /// The lane's log was read.
    CatchUp {
        /// The lane.
        lane: u16,
        /// How many entries were found.
        entries: usize,
    },
    /// The lane is confirmed: its entries are served from memory. Lanes are looked at four times a
    /// second, so a shorter lapse may go unseen.
    LaneLive {
        /// The lane.
        lane: u16,
    },
    /// The lane has not been confirmed for a second: its entries are not served, but for those that are
    /// younger than the bound.
    LaneLapsed {
        /// The lane.
        lane: u16,
    },
    /// The lane's history was lost, so its entries are dropped.
    LaneFlushed {
        /// The lane.
        lane: u16,
    },
    /// The store is in use.
    LinkUp,
    /// The store is not in use, or an attempt to connect has failed. It is tried again for ever.
    LinkDown {
        /// Why.
        reason: StoreError,
    },
    /// The store gave no answer several times in a row: reads go to the loaders at once.
    CircuitOpened,
    /// It answers again.
    CircuitClosed,
    /// The store refused an outcome that an invalidation or another load had overtaken.
    FillRefused {
        /// The entity.
        entity: Arc<str>,
    },
    /// What the store had could not be used, and was taken for a miss.
    UnusableValue {
        /// The entity.
        entity: Arc<str>,
        /// Why, without any part of the value.
        reason: String,
    },
    /// A load from the source failed.
    LoadFailed {
        /// The entity.
        entity: Arc<str>,
        /// How.
        failure: LoadFailure,
    },
    /// A value past its time to live was served.
    StaleServed {
        /// The entity.
        entity: Arc<str>,
        /// Why.
        reason: StaleReason,
    },
    /// So many events before the next one are gone, because nobody came for them.
    Lost {
        /// How many.
        events: u64,
    },
}

/// How a load failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LoadFailure {
    /// The loader gave an error, whether or not that is cached.
    Error,
    /// The loader panicked.
    Panicked,
    /// It took too long.
    TimedOut,
}

/// A stream of a cache's [events](Event); made by [`Cache::events`](crate::Cache::events).
///
/// It begins with what happens next, keeps 1,024 events ([`EVENTS_KEPT`]) for a consumer who is busy,
/// and then forgets the oldest: [`Event::Lost`] says how many. It ends when the cache is closed, or its
/// last handle is dropped: a stream keeps no cache alive.
#[must_use = "a stream does nothing unless it is polled"]
pub struct Events {
    feed: Arc<Feed>,
    mailbox: Arc<Mailbox>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("waiting", &lock(&self.mailbox.0).waiting.len())
            .finish_non_exhaustive()
    }
}

impl Events {
    pub(super) fn of(feed: &Arc<Feed>) -> Self {
        let mailbox = Arc::<Mailbox>::default();
        let mut mailboxes = lock(&feed.mailboxes);
        lock(&mailbox.0).closed = feed.closed.load(Ordering::Acquire);
        mailboxes.push(Arc::clone(&mailbox));
        feed.followed.store(true, Ordering::Release);
        drop(mailboxes);
        Self {
            feed: Arc::clone(feed),
            mailbox,
        }
    }

    /// The next event; `None` once the cache is closed and all that happened before is told.
    ///
    /// # Cancel safety
    /// Cancel safe: no event is lost by it.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|cx| self.mailbox.poll(cx)).await
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.mailbox.poll(cx)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut mailboxes = lock(&self.feed.mailboxes);
        mailboxes.retain(|mailbox| !Arc::ptr_eq(mailbox, &self.mailbox));
        let followed = !mailboxes.is_empty();
        self.feed.followed.store(followed, Ordering::Release);
    }
}

/// Everybody who follows the events of one cache.
#[derive(Debug, Default)]
pub(super) struct Feed {
    /// Whether anybody does: what is asked before an event is made.
    followed: AtomicBool,
    closed: AtomicBool,
    mailboxes: Mutex<Vec<Arc<Mailbox>>>,
    lost: AtomicU64,
}

impl Feed {
    #[inline]
    pub(super) fn tell(&self, event: impl FnOnce() -> Event) {
        if self.followed.load(Ordering::Relaxed) {
            self.deliver(event());
        }
    }

    #[cold]
    fn deliver(&self, event: Event) {
        for mailbox in &*lock(&self.mailboxes) {
            let (forgotten, waker) = mailbox.put(event.clone());
            if forgotten.is_some() {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    pub(super) fn close(&self) {
        let mailboxes = lock(&self.mailboxes);
        self.closed.store(true, Ordering::Release);
        for mailbox in &*mailboxes {
            let waker = {
                let mut inbox = lock(&mailbox.0);
                inbox.closed = true;
                inbox.waker.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct Mailbox(Mutex<Inbox>);

#[derive(Debug, Default)]
struct Inbox {
    waiting: VecDeque<Event>,
    /// Forgotten since the consumer was told.
    lost: u64,
    closed: bool,
    waker: Option<Waker>,
}

impl Mailbox {
    /// Adds an event; gives the one that had to make room, and who is to be woken.
    fn put(&self, event: Event) -> (Option<Event>, Option<Waker>) {
        let mut inbox = lock(&self.0);
        let full = inbox.waiting.len() >= EVENTS_KEPT;
        let forgotten = full.then(|| inbox.waiting.pop_front()).flatten();
        inbox.lost += u64::from(forgotten.is_some());
        inbox.waiting.push_back(event);
        (forgotten, inbox.waker.take())
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut inbox = lock(&self.0);
        if inbox.lost > 0 {
            let events = std::mem::take(&mut inbox.lost);
            return Poll::Ready(Some(Event::Lost { events }));
        }
        match inbox.waiting.pop_front() {
            Some(event) => Poll::Ready(Some(event)),
            None if inbox.closed => Poll::Ready(None),
            None => {
                inbox.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(lane: u16) -> Event {
        Event::Gap { lane }
    }

    #[tokio::test]
    async fn a_consumer_who_is_late_learns_how_many_events_it_lost() {
        let feed = Arc::<Feed>::default();
        let mut events = Events::of(&feed);
        for lane in 0..EVENTS_KEPT as u16 + 3 {
            feed.tell(|| gap(lane));
        }
        assert!(matches!(
            events.next().await,
            Some(Event::Lost { events: 3 })
        ));
        assert!(matches!(events.next().await, Some(Event::Gap { lane: 3 })));
        assert_eq!(feed.lost(), 3);
    }

    #[tokio::test]
    async fn a_stream_ends_after_what_happened_before_the_close() {
        let feed = Arc::<Feed>::default();
        let mut events = Events::of(&feed);
        feed.tell(|| gap(1));
        feed.close();
        assert!(matches!(events.next().await, Some(Event::Gap { lane: 1 })));
        assert!(events.next().await.is_none());
        assert!(Events::of(&feed).next().await.is_none(), "begun after it");
    }

    #[test]
    fn an_event_that_nobody_follows_is_not_made() {
        let feed = Arc::<Feed>::default();
        feed.tell(|| unreachable!("nobody asked"));
        drop(Events::of(&feed));
        feed.tell(|| unreachable!("nobody asks any more"));
    }
}
