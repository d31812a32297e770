//! Following a room.

use super::replica::{Delta, LeftReason};
use super::told::Tell;
use super::view::View;
use super::{Member, Presence};
use futures_core::Stream;
use serde::de::DeserializeOwned;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

/// What happens in a room.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<M> {
    /// A member came, or was there when the watch began.
    Joined(Member<M>),
    /// Something new was said about a member.
    Updated(Member<M>),
    /// A member is gone.
    Left {
        /// Its name.
        member: String,
        /// Why.
        reason: LeftReason,
    },
    /// Everybody who was there when the watch began has been told.
    Synced,
}

/// A stream of a room's [events](Event); made by [`Presence::watch`].
///
/// Applied in order, the events give the room. None is skipped for good: what is missed while the
/// connection is broken is told as a difference, as soon as there is one again. While the consumer
/// keeps up it is told everything; one with more than 1,024 events before it gets the difference
/// between what it knows and what is, so that memory is bounded by the room's size.
///
/// It ends when the cache is closed. Dropping it ends the subscription of this pod if nobody else
/// watches the room.
#[must_use = "a stream does nothing unless it is polled"]
pub struct Watch<M> {
    presence: Presence<M>,
    consumer: u64,
}

impl<M> fmt::Debug for Watch<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("room", &self.presence.room())
            .finish_non_exhaustive()
    }
}

impl<M> Watch<M> {
    pub(super) fn new(presence: Presence<M>) -> Self {
        let consumer = View::add(&presence.room);
        Self { presence, consumer }
    }
}

impl<M: DeserializeOwned> Watch<M> {
    /// The next event; `None` once the cache is closed.
    ///
    /// # Cancel safety
    /// Cancel safe: no event is lost.
    pub async fn next(&mut self) -> Option<Event<M>> {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event<M>>> {
        let told = self.presence.room.view.poll(self.consumer, cx);
        told.map(|tell| tell.map(Event::of))
    }
}

impl<M: DeserializeOwned> Stream for Watch<M> {
    type Item = Event<M>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll(cx)
    }
}

impl<M> Drop for Watch<M> {
    fn drop(&mut self) {
        self.presence.room.view.remove(self.consumer);
    }
}

impl<M: DeserializeOwned> Event<M> {
    fn of(tell: Tell) -> Self {
        let member = |name: &str, meta: &[u8]| Member::read(name.to_owned(), meta);
        match tell {
            Tell::Change(Delta::Joined(name, meta)) => Self::Joined(member(&name, &meta)),
            Tell::Change(Delta::Updated(name, meta)) => Self::Updated(member(&name, &meta)),
            Tell::Change(Delta::Left(name, reason)) => Self::Left {
                member: (*name).to_owned(),
                reason,
            },
            Tell::Synced => Self::Synced,
        }
    }
}
