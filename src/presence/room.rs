//! One room, as this pod has to do with it: the members that it holds there, and its view of the room.

use super::hold::Holding;
use super::node::{Rooms, interval};
use super::view::View;
use crate::bus::lock;
use crate::coherence::Lane;
use crate::store::rooms::{self, Look};
use crate::store::{BoxFuture, StoreResult};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

pub(super) struct Room {
    pub(super) rooms: Arc<Rooms>,
    lane: Lane,
    name: String,
    pub(super) ttl: Duration,
    pub(super) hold: Holding,
    pub(super) view: View,
    next_beat: Mutex<Instant>,
}

impl Room {
    pub(super) fn new(rooms: &Arc<Rooms>, lane: Lane, name: &str, ttl: Duration) -> Self {
        Self {
            rooms: Arc::clone(rooms),
            lane,
            name: name.to_owned(),
            ttl,
            hold: Holding::new(ttl),
            view: View::default(),
            next_beat: Mutex::new(Instant::now()),
        }
    }

    /// Where the store has it.
    pub(super) fn place(&self) -> rooms::Room<'_> {
        rooms::Room {
            lane: self.lane,
            name: &self.name,
        }
    }

    pub(super) fn interval(&self) -> Duration {
        interval(self.ttl)
    }

    pub(super) fn is_in_use(&self) -> bool {
        self.hold.is_in_use() || self.view.is_in_use()
    }

    pub(super) fn next_beat(&self) -> Instant {
        *lock(&self.next_beat)
    }

    pub(super) fn set_next_beat(&self, at: Instant) {
        *lock(&self.next_beat) = at;
    }

    /// From now on the room needs a heartbeat.
    pub(super) fn used(&self) {
        let mut next = lock(&self.next_beat);
        let now = Instant::now();
        if *next <= now {
            *next = now + self.interval();
        }
        self.rooms.look_by(*next);
    }

    /// Asks the store until it need not be asked again: each time it has removed some members whose
    /// lease had ended.
    pub(super) async fn look<'l, T>(
        &self,
        operation: &'static str,
        ask: impl Fn() -> BoxFuture<'l, StoreResult<Look<T>>>,
    ) -> StoreResult<T> {
        loop {
            if let Look::Seen(seen) = self.rooms.call(operation, ask()).await? {
                return Ok(seen);
            }
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.rooms.forget(&self.name);
    }
}
