//! Rooms as a pure state machine: time is passed in, events come back in a list.

use crate::coherence::{Epoch, Incarnation, Position};
use crate::store::rooms::{
    Beaten, Change, Footing, Hold, MAX_PAGE, Page, Present, ROOM_LIFE, RoomEvent, RoomEventKind,
};
use crate::time::millis;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// The rooms of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Rooms {
    rooms: BTreeMap<String, Room>,
    /// How many rooms there may be before those are looked for that nobody sees any more.
    unswept: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Room {
    at: Position,
    incarnation: Incarnation,
    /// Nobody has seen it for long if it is later.
    lives_until: u64,
    holds: BTreeMap<u64, HoldState>,
    members: BTreeMap<String, Record>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct HoldState {
    until: u64,
    members: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Record {
    version: u64,
    holds: usize,
    meta: Bytes,
}

/// A moment in a life of the server.
#[derive(Clone, Copy)]
pub(super) struct Now {
    pub(super) ms: u64,
    pub(super) incarnation: Incarnation,
}

pub(super) type Events = Vec<RoomEvent>;

impl Rooms {
    pub(super) fn change(
        &mut self,
        name: &str,
        hold: Hold,
        footing: Footing,
        changes: &[Change<'_>],
        now: Now,
        events: &mut Events,
    ) -> bool {
        let stands = |room: &mut Room| room.holds.contains_key(&hold.id);
        let stands = self.living(name, now).is_some_and(stands);
        match footing {
            Footing::Stands if !stands => return false,
            Footing::Begins(epoch) => self.open(name, epoch, now),
            Footing::Stands => {}
        }
        let Some(room) = self.rooms.get_mut(name) else {
            return false;
        };
        let until = now.ms + millis(hold.ttl);
        let state = HoldState {
            until,
            members: BTreeSet::new(),
        };
        room.holds.entry(hold.id).or_insert(state).until = until;
        room.live_on(hold, now.ms);
        for change in changes {
            match *change {
                Change::Put(member, meta) => room.put(name, hold.id, member, meta, false, events),
                Change::Keep(member, meta) => room.put(name, hold.id, member, meta, true, events),
                Change::Remove(member) => {
                    room.remove(name, hold.id, member, RoomEventKind::Left, events);
                }
            }
        }
        room.holds.retain(|_, hold| !hold.members.is_empty());
        self.close_if_empty(name);
        true
    }

    pub(super) fn release(&mut self, name: &str, hold: u64, now: Now, events: &mut Events) {
        if let Some(room) = self.living(name, now) {
            room.end(name, hold, RoomEventKind::Left, events);
            self.close_if_empty(name);
        }
    }

    pub(super) fn beat(
        &mut self,
        name: &str,
        hold: Option<Hold>,
        now: Now,
        events: &mut Events,
    ) -> Beaten {
        let mut stood = false;
        if let (Some(hold), Some(room)) = (hold, self.living(name, now))
            && let Some(state) = room.holds.get_mut(&hold.id)
        {
            // One that is late still stands: nobody has seen that it ended.
            state.until = now.ms + millis(hold.ttl);
            room.live_on(hold, now.ms);
            stood = true;
        }
        Beaten {
            stood,
            at: self.swept(name, now, events).map(|room| room.at),
            again: false,
        }
    }

    pub(super) fn page(
        &mut self,
        name: &str,
        after: Option<&str>,
        limit: usize,
        now: Now,
        events: &mut Events,
    ) -> Page {
        let Some(room) = self.swept(name, now, events) else {
            return Page {
                at: None,
                members: Vec::new(),
                ends: true,
            };
        };
        let limit = limit.clamp(1, MAX_PAGE);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = room.members.range::<str, _>((from, Bound::Unbounded));
        let present = |(member, record): (&String, &Record)| record.present(member);
        let members: Vec<_> = behind.take(limit).map(present).collect();
        Page {
            at: Some(room.at),
            ends: members.len() < limit,
            members,
        }
    }

    pub(super) fn count(&mut self, name: &str, now: Now, events: &mut Events) -> u64 {
        let room = self.swept(name, now, events);
        room.map_or(0, |room| room.members.len() as u64)
    }

    pub(super) fn get(
        &mut self,
        name: &str,
        member: &str,
        now: Now,
        events: &mut Events,
    ) -> Option<Present> {
        let room = self.swept(name, now, events)?;
        Some(room.members.get(member)?.present(member))
    }

    /// For faults.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The room, unless it is of another life of the server.
    fn living(&mut self, name: &str, now: Now) -> Option<&mut Room> {
        let dead = |room: &Room| room.incarnation != now.incarnation || room.lives_until <= now.ms;
        if self.rooms.get(name).is_some_and(dead) {
            self.rooms.remove(name);
        }
        self.rooms.get_mut(name)
    }

    /// The room without what has ended.
    fn swept(&mut self, name: &str, now: Now, events: &mut Events) -> Option<&Room> {
        let room = self.living(name, now)?;
        let ended = |(id, hold): (&u64, &HoldState)| (hold.until <= now.ms).then_some(*id);
        let ended: Vec<_> = room.holds.iter().filter_map(ended).collect();
        for hold in ended {
            room.end(name, hold, RoomEventKind::Expired, events);
        }
        self.close_if_empty(name);
        self.rooms.get(name)
    }

    fn open(&mut self, name: &str, epoch: Epoch, now: Now) {
        if self.rooms.contains_key(name) {
            return;
        }
        if self.rooms.len() >= self.unswept {
            self.rooms.retain(|_, room| room.lives_until > now.ms);
            self.unswept = 2 * self.rooms.len() + 16;
        }
        let room = Room {
            at: Position { epoch, seq: 0 },
            incarnation: now.incarnation,
            lives_until: 0,
            holds: BTreeMap::new(),
            members: BTreeMap::new(),
        };
        self.rooms.insert(name.to_owned(), room);
    }

    fn close_if_empty(&mut self, name: &str) {
        if self
            .rooms
            .get(name)
            .is_some_and(|room| room.holds.is_empty())
        {
            self.rooms.remove(name);
        }
    }
}

impl Room {
    fn live_on(&mut self, hold: Hold, now_ms: u64) {
        let life = millis(hold.ttl.saturating_mul(ROOM_LIFE));
        self.lives_until = self.lives_until.max(now_ms.saturating_add(life));
    }

    fn put(
        &mut self,
        room: &str,
        hold: u64,
        member: &str,
        meta: &[u8],
        keep: bool,
        events: &mut Events,
    ) {
        let hold = self.holds.get_mut(&hold);
        let added = hold.is_some_and(|hold| hold.members.insert(member.to_owned()));
        let found = self.members.get_mut(member);
        let kind = match found {
            None => RoomEventKind::Joined,
            Some(record) => {
                record.holds += usize::from(added);
                if keep || record.meta == meta {
                    return;
                }
                RoomEventKind::Updated
            }
        };
        let meta = Bytes::copy_from_slice(meta);
        self.emit(room, kind, member, meta.clone(), events);
        let version = self.at.seq;
        let record = self.members.entry(member.to_owned());
        let record = record.or_insert(Record {
            version,
            holds: 1,
            meta: Bytes::new(),
        });
        (record.version, record.meta) = (version, meta);
    }

    fn remove(
        &mut self,
        room: &str,
        hold: u64,
        member: &str,
        kind: RoomEventKind,
        events: &mut Events,
    ) {
        let hold = self.holds.get_mut(&hold);
        if !hold.is_some_and(|hold| hold.members.remove(member)) {
            return;
        }
        if let Some(record) = self.members.get_mut(member) {
            record.holds -= 1;
            if record.holds == 0 {
                self.members.remove(member);
                self.emit(room, kind, member, Bytes::new(), events);
            }
        }
    }

    /// Ends a hold, and takes its members with it.
    fn end(&mut self, room: &str, hold: u64, kind: RoomEventKind, events: &mut Events) {
        let members = self.holds.get(&hold).map(|hold| hold.members.clone());
        for member in members.unwrap_or_default() {
            self.remove(room, hold, &member, kind, events);
        }
        self.holds.remove(&hold);
    }

    fn emit(
        &mut self,
        room: &str,
        kind: RoomEventKind,
        member: &str,
        meta: Bytes,
        events: &mut Events,
    ) {
        self.at.seq += 1;
        events.push(RoomEvent {
            room: room.to_owned(),
            kind,
            at: self.at,
            member: member.to_owned(),
            meta,
        });
    }
}

impl Record {
    fn present(&self, member: &str) -> Present {
        Present {
            member: member.to_owned(),
            version: self.version,
            meta: self.meta.clone(),
        }
    }
}
