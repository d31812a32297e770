//! This pod's part in all rooms: which of them it has something to do with, their heartbeat, and the
//! events that come for them.

use super::room::Room;
use crate::bus::{Bus, RoomListener, lock};
use crate::error::{StoreError, StoreErrorKind};
use crate::random::random_part;
use crate::store::rooms::{Beat, RoomEvent};
use crate::store::{BoxFuture, Link, StoreResult};
use crate::telemetry::{PresenceStats, RoomCounts};
use bytes::Bytes;
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

/// Heartbeats in a TTL: two of them may be lost.
pub(super) const BEATS_PER_TTL: u32 = 3;
/// The part of a heartbeat's interval by which it may come early, so that pods spread.
const JITTER: f64 = 0.1;

/// The rooms of one cache.
pub(crate) struct Rooms {
    pub(super) bus: Arc<Bus>,
    runtime: Handle,
    rooms: Mutex<HashMap<String, Weak<Room>>>,
    /// When the heart looks at its rooms next; `None` while it has none.
    next_look: Mutex<Option<Instant>>,
    sooner: Notify,
    counts: RoomCounts,
}

impl Rooms {
    pub(super) fn start(bus: &Arc<Bus>, runtime: Handle) -> Arc<Self> {
        let rooms = Arc::new(Self {
            bus: Arc::clone(bus),
            runtime,
            rooms: Mutex::default(),
            next_look: Mutex::new(None),
            sooner: Notify::new(),
            counts: RoomCounts::default(),
        });
        let listener: Weak<dyn RoomListener> =
            Arc::downgrade(&(Arc::clone(&rooms) as Arc<dyn RoomListener>));
        bus.listen_to_rooms(listener);
        rooms.spawn(Arc::clone(&rooms).keep_beating());
        rooms
    }

    /// Starts something that ends soon after the cache is closed.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.bus.work.spawn_on(task, &self.runtime);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.bus.closing.is_cancelled()
    }

    /// The room of this name, made by `make` if nothing in this pod has to do with it.
    pub(super) fn room(&self, name: &str, make: impl FnOnce() -> Room) -> Arc<Room> {
        let mut rooms = lock(&self.rooms);
        if let Some(room) = rooms.get(name).and_then(Weak::upgrade) {
            return room;
        }
        let room = Arc::new(make());
        rooms.insert(name.to_owned(), Arc::downgrade(&room));
        room
    }

    /// Forgets a room that is gone, unless there is a new one of the same name.
    pub(super) fn forget(&self, name: &str) {
        let mut rooms = lock(&self.rooms);
        if rooms.get(name).is_some_and(|room| room.strong_count() == 0) {
            rooms.remove(name);
        }
    }

    /// Makes sure that the heart looks by `at`.
    pub(super) fn look_by(&self, at: Instant) {
        let mut next = lock(&self.next_look);
        if next.is_none_or(|next| at < next) {
            *next = Some(at);
            self.sooner.notify_one();
        }
    }

    /// A call that may take until the usual limit, the link's end, or the end of the server's life.
    pub(super) async fn call<T>(
        &self,
        operation: &'static str,
        call: BoxFuture<'_, StoreResult<T>>,
    ) -> StoreResult<T> {
        let mut life = self.bus.life();
        tokio::select! {
            biased;
            answer = self.bus.within(self.bus.timing.invalidate_timeout, operation, call) => answer,
            // A half-open connection never answers, and by now there is another one.
            // At the very end there will be no other.
            _ = life.changed(), if !self.is_closing() => Err(StoreError::new(StoreErrorKind::Unavailable, operation)),
        }
    }

    /// Renews every hold, until the cache is closed. The rooms of a pod soon beat together: whoever
    /// is due within half of its interval comes along.
    async fn keep_beating(self: Arc<Self>) {
        let mut life = self.bus.life();
        loop {
            let next = *lock(&self.next_look);
            let is_new = tokio::select! {
                biased;
                () = self.bus.closing.cancelled() => return,
                _ = life.changed() => true,
                () = sleep_until_some(next) => false,
                () = self.sooner.notified() => continue,
            };
            let now = Instant::now();
            let factor = 1.0 - JITTER * random_part();
            let (mut due, mut next) = (Vec::new(), None::<Instant>);
            for room in self.in_use() {
                let interval = room.interval();
                let mut at = room.next_beat();
                if is_new || at <= now + interval / 2 {
                    at = now + interval.mul_f64(factor);
                    room.set_next_beat(at);
                    due.push(Arc::clone(&room));
                }
                next = Some(next.map_or(at, |next| next.min(at)));
            }
            *lock(&self.next_look) = next;
            if !due.is_empty() {
                tokio::select! {
                    () = self.bus.closing.cancelled() => return,
                    () = self.beat(due) => {}
                }
            }
        }
    }

    fn in_use(&self) -> Vec<Arc<Room>> {
        // Let go of after the lock: the last to let go of a room takes it off the list.
        let rooms: Vec<_> = {
            let rooms = lock(&self.rooms);
            rooms.values().filter_map(Weak::upgrade).collect()
        };
        let in_use = rooms.into_iter().filter(|room| room.is_in_use());
        in_use.collect()
    }

    /// Beats until nothing is left to be removed in these rooms.
    async fn beat(&self, mut rooms: Vec<Arc<Room>>) {
        let shortest = rooms.iter().map(|room| room.interval()).min();
        let limit = Instant::now() + shortest.unwrap_or_default();
        while !rooms.is_empty() {
            let Ok(link) = self.bus.link() else {
                return; // the next link begins with a beat
            };
            let beaten = timeout_at(limit, self.beat_once(&*link, &rooms)).await;
            self.counts.beats.add(1);
            match beaten {
                Ok(Ok(again)) => {
                    self.counts.sweeps.add(again.len() as u64);
                    rooms = again;
                }
                Ok(Err(error)) => {
                    tracing::debug!(namespace = %self.bus.namespace.name, %error, "heartbeat lost");
                    return self.retry(&rooms);
                }
                Err(_late) => return self.retry(&rooms),
            }
        }
    }

    /// Gives the rooms in which members remain to be removed.
    async fn beat_once(&self, link: &dyn Link, rooms: &[Arc<Room>]) -> StoreResult<Vec<Arc<Room>>> {
        let beat = |room: &Arc<Room>| (Arc::clone(room), room.hold.standing());
        let asked: Vec<_> = rooms.iter().map(beat).collect();
        let beats: Vec<_> = asked
            .iter()
            .map(|(room, hold)| Beat {
                room: room.place(),
                hold: *hold,
            })
            .collect();
        let beaten = self.call("beat", link.rooms().beat(&beats)).await?;
        let mut again = Vec::new();
        for ((room, hold), beaten) in asked.iter().zip(beaten) {
            if let Some(hold) = hold
                && !beaten.stood
            {
                self.counts.losses.add(1);
                room.hold.lost(hold.id);
            }
            room.view.seen(beaten.at);
            if beaten.again {
                again.push(Arc::clone(room));
            }
        }
        Ok(again)
    }

    /// Beats again soon: a quarter of the interval is far from the end of the lease.
    fn retry(&self, rooms: &[Arc<Room>]) {
        self.counts.lost.add(1);
        for room in rooms {
            let soon = Instant::now() + room.interval() / 4;
            room.set_next_beat(soon);
            self.look_by(soon);
        }
    }
}

impl RoomListener for Rooms {
    fn stats(&self) -> PresenceStats {
        let rooms = self.in_use();
        let members = rooms.iter().map(|room| room.hold.members()).sum();
        self.counts.stats(rooms.len(), members)
    }

    fn heard(&self, message: Bytes) {
        if let Some(event) = RoomEvent::decode(&message) {
            let room = lock(&self.rooms).get(&event.room).and_then(Weak::upgrade);
            if let Some(room) = room {
                room.view.heard(event);
            }
        }
    }
}

async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// How long a heartbeat may be away from the next.
pub(super) fn interval(ttl: Duration) -> Duration {
    ttl / BEATS_PER_TTL
}
