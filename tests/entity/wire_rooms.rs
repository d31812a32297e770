//! The calls on rooms of a link behind a [`Wire`](super::Wire).

use super::WireLink;
use tidings::store::rooms::{Beat, Beaten, Change, Footing, Hold, Look, Page, Present, Room};
use tidings::store::{BoxFuture, RoomLink, StoreResult};

impl RoomLink for WireLink {
    fn change<'a>(
        &'a self,
        room: Room<'a>,
        hold: Hold,
        footing: Footing,
        changes: &'a [Change<'a>],
    ) -> BoxFuture<'a, StoreResult<bool>> {
        let call = self.link.rooms().change(room, hold, footing, changes);
        Box::pin(self.state.pass("change", call))
    }

    fn release<'a>(&'a self, room: Room<'a>, hold: u64) -> BoxFuture<'a, StoreResult<Look<()>>> {
        let call = self.link.rooms().release(room, hold);
        Box::pin(self.state.pass("release hold", call))
    }

    fn beat<'a>(&'a self, beats: &'a [Beat<'a>]) -> BoxFuture<'a, StoreResult<Vec<Beaten>>> {
        Box::pin(self.state.pass("beat", self.link.rooms().beat(beats)))
    }

    fn page<'a>(
        &'a self,
        room: Room<'a>,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Look<Page>>> {
        let call = self.link.rooms().page(room, after, limit);
        Box::pin(self.state.pass("page", call))
    }

    fn count<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, StoreResult<Look<u64>>> {
        Box::pin(self.state.pass("count", self.link.rooms().count(room)))
    }

    fn get<'a>(
        &'a self,
        room: Room<'a>,
        member: &'a str,
    ) -> BoxFuture<'a, StoreResult<Look<Option<Present>>>> {
        Box::pin(self.state.pass("get", self.link.rooms().get(room, member)))
    }

    fn watch<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.state.pass("watch", self.link.rooms().watch(room)))
    }

    fn unwatch<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.state.pass("unwatch", self.link.rooms().unwatch(room)))
    }
}
