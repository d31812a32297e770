//! Rooms over a link to the embedded store.

use super::link::{Access, MemoryLink};
use super::lock;
use super::rooms::{Events, Now, Rooms};
use crate::store::rooms::{
    Beat, Beaten, Change, Footing, Hold, Look, Page, Present, Room, RoomLink,
};
use crate::store::{BoxFuture, StoreResult};

impl MemoryLink {
    /// Does one step under the lock, and publishes what it says before another step can.
    fn room_step<'a, T: 'a>(
        &'a self,
        operation: &'static str,
        step: impl FnOnce(&mut Rooms, Now, &mut Events) -> T + Send + 'a,
    ) -> BoxFuture<'a, StoreResult<T>> {
        Box::pin(async move {
            // Every look may have to remove somebody.
            self.pass(operation, Access::Write).await?;
            let mut events = Vec::new();
            let mut inside = lock(&self.room.0);
            let (rooms, now) = inside.state.rooms(self.shared.now_ms());
            let answer = step(rooms, now, &mut events);
            self.lose_some(&mut events);
            inside.publish_events(&events);
            Ok(answer)
        })
    }
}

impl RoomLink for MemoryLink {
    fn change<'a>(
        &'a self,
        room: Room<'a>,
        hold: Hold,
        footing: Footing,
        changes: &'a [Change<'a>],
    ) -> BoxFuture<'a, StoreResult<bool>> {
        self.room_step("join", move |rooms, now, events| {
            rooms.change(room.name, hold, footing, changes, now, events)
        })
    }

    fn release<'a>(&'a self, room: Room<'a>, hold: u64) -> BoxFuture<'a, StoreResult<Look<()>>> {
        self.room_step("leave", move |rooms, now, events| {
            rooms.release(room.name, hold, now, events);
            Look::Seen(())
        })
    }

    fn beat<'a>(&'a self, beats: &'a [Beat<'a>]) -> BoxFuture<'a, StoreResult<Vec<Beaten>>> {
        self.room_step("beat", move |rooms, now, events| {
            let beat = |beat: &Beat<'_>| rooms.beat(beat.room.name, beat.hold, now, events);
            beats.iter().map(beat).collect()
        })
    }

    fn page<'a>(
        &'a self,
        room: Room<'a>,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Look<Page>>> {
        self.room_step("page", move |rooms, now, events| {
            Look::Seen(rooms.page(room.name, after, limit, now, events))
        })
    }

    fn count<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, StoreResult<Look<u64>>> {
        self.room_step("count", move |rooms, now, events| {
            Look::Seen(rooms.count(room.name, now, events))
        })
    }

    fn get<'a>(
        &'a self,
        room: Room<'a>,
        member: &'a str,
    ) -> BoxFuture<'a, StoreResult<Look<Option<Present>>>> {
        self.room_step("get", move |rooms, now, events| {
            Look::Seen(rooms.get(room.name, member, now, events))
        })
    }

    fn watch<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, StoreResult<()>> {
        self.room_step("watch", move |_, _, _| {
            lock(&self.watched).insert(room.name.to_owned());
        })
    }

    fn unwatch<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, StoreResult<()>> {
        self.room_step("unwatch", move |_, _, _| {
            lock(&self.watched).remove(room.name);
        })
    }
}
