//! The part of the port that presence stands on: rooms, and who is in them.
//!
//! A pod's part in a room is one *hold*: an id that nobody else has, a lease by the store's clock, and
//! the members that the pod brought. So a heartbeat costs one lease per room and pod, whatever the
//! number of members. A member is there while at least one hold has it.
//!
//! Nothing here relies on a message that arrives: whoever follows a room numbers what it hears, and
//! reads the room again when a number is missing. What no longer stands under its lease is removed by
//! whoever looks next, at most [`MAX_SWEPT`] members in one call: [`Look::Again`] asks for another.

use super::{BoxFuture, StoreResult};
use crate::coherence::{Epoch, Lane, Position};
use bytes::Bytes;
use std::time::Duration;

/// The most changes that one [`RoomLink::change`] takes.
pub const MAX_CHANGES: usize = 64;
/// The most members that one [`RoomLink::page`] gives.
pub const MAX_PAGE: usize = 256;
/// The most rooms that one [`RoomLink::beat`] takes to the store in one round trip.
pub const MAX_BEATS: usize = 64;
/// The most members that one call removes because the lease of their hold has ended.
pub const MAX_SWEPT: usize = 128;
/// What is known of a room lives this many TTLs after the last heartbeat of any hold.
pub const ROOM_LIFE: u32 = 10;

/// Where one room lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Room<'a> {
    /// The lane of its name.
    pub lane: Lane,
    /// Its name: printable ASCII without `:`, unique in the namespace.
    pub name: &'a str,
}

/// One pod's part in one room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hold {
    /// Random, and never used again once it has ended.
    pub id: u64,
    /// How long it stands without a heartbeat.
    pub ttl: Duration,
}

/// Whether a [change](RoomLink::change) may begin a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Footing {
    /// The hold begins; a room that is not there opens with this epoch.
    Begins(Epoch),
    /// The hold must stand, else nothing is changed.
    Stands,
}

/// One change of a hold's members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change<'a> {
    /// The hold has this member, with this meta from now on.
    Put(&'a str, &'a [u8]),
    /// The hold has this member; its meta stays as it is if it is there already.
    Keep(&'a str, &'a [u8]),
    /// The hold no longer has this member.
    Remove(&'a str),
}

/// What a heartbeat says of one room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Beat<'a> {
    /// The room.
    pub room: Room<'a>,
    /// The hold to renew; `None` where the pod only looks.
    pub hold: Option<Hold>,
}

/// What a heartbeat learns of one room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Beaten {
    /// The hold stood, and stands for another TTL.
    pub stood: bool,
    /// Where the room's events are; `None` if nobody is there.
    pub at: Option<Position>,
    /// Members remain to be removed: beat again.
    pub again: bool,
}

/// What was found by looking into a room.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Look<T> {
    /// So many members had to be removed that this call did nothing else: look again.
    Again,
    /// What was found; nobody in it whose lease has ended.
    Seen(T),
}

/// A member as the store has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Present {
    /// Its name.
    pub member: String,
    /// The number of the event that brought it or changed its meta.
    pub version: u64,
    /// What was last said about it.
    pub meta: Bytes,
}

/// A part of a room in the order of its members' bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Page {
    /// Where the room's events were; `None` if nobody is there.
    pub at: Option<Position>,
    /// The members. Fewer than asked for does not mean that none follow: see `ends`.
    pub members: Vec<Present>,
    /// Nobody follows.
    pub ends: bool,
}

/// What happened to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RoomEventKind {
    /// Its first hold came.
    Joined,
    /// Its meta changed.
    Updated,
    /// Its last hold let it go.
    Left,
    /// The lease of its last hold ended.
    Expired,
    /// Something of a later version.
    Unknown(u8),
}

impl RoomEventKind {
    fn byte(self) -> u8 {
        match self {
            Self::Joined => 1,
            Self::Updated => 2,
            Self::Left => 3,
            Self::Expired => 4,
            Self::Unknown(byte) => byte,
        }
    }

    fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Joined,
            2 => Self::Updated,
            3 => Self::Left,
            4 => Self::Expired,
            other => Self::Unknown(other),
        }
    }
}

/// A change of a room, as it is told to those who [watch](RoomLink::watch) it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RoomEvent {
    /// The room's name.
    pub room: String,
    /// What happened.
    pub kind: RoomEventKind,
    /// Its number. The numbers of an epoch have no holes, and the first is 1: before it, the room was
    /// empty.
    pub at: Position,
    /// To whom.
    pub member: String,
    /// The member's meta; empty if it went.
    pub meta: Bytes,
}

/// First byte of an event. Hints begin with their version, which never becomes this.
const EVENT_MAGIC: u8 = 0x50;
const EVENT_VERSION: u8 = 1;

impl RoomEvent {
    /// Whether a message of the subscription is one of these, rather than a
    /// [hint](crate::coherence::Hint).
    #[must_use]
    pub fn is_one(message: &[u8]) -> bool {
        message.first() == Some(&EVENT_MAGIC)
    }

    /// The wire form: `50 · version 1 · kind 1 · epoch 8 · seq 8 · length 2 · room · length 2 ·
    /// member · meta`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let names = self.room.len() + self.member.len();
        let mut out = Vec::with_capacity(23 + names + self.meta.len());
        out.extend([EVENT_MAGIC, EVENT_VERSION, self.kind.byte()]);
        out.extend(self.at.epoch.0.to_be_bytes());
        out.extend(self.at.seq.to_be_bytes());
        for name in [&self.room, &self.member] {
            // Names are far shorter than this; one that is not is cut, and refused by its reader.
            out.extend(u16::try_from(name.len()).unwrap_or(u16::MAX).to_be_bytes());
            out.extend(name.as_bytes());
        }
        out.extend(&self.meta[..]);
        out
    }

    /// Reads the wire form; `None` if it is not one of ours, or of a later version.
    #[must_use]
    pub fn decode(message: &Bytes) -> Option<Self> {
        let mut rest = message.clone();
        let [magic, version, kind] = take(&mut rest, 3)?[..] else {
            return None;
        };
        let epoch = Epoch(word(&mut rest)?);
        let seq = word(&mut rest)?;
        let (room, member) = (name(&mut rest)?, name(&mut rest)?);
        (magic == EVENT_MAGIC && version == EVENT_VERSION).then_some(Self {
            room,
            kind: RoomEventKind::from_byte(kind),
            at: Position { epoch, seq },
            member,
            meta: rest,
        })
    }
}

fn take(bytes: &mut Bytes, n: usize) -> Option<Bytes> {
    (bytes.len() >= n).then(|| bytes.split_to(n))
}

fn word(bytes: &mut Bytes) -> Option<u64> {
    let word: [u8; 8] = take(bytes, 8)?[..].try_into().ok()?;
    Some(u64::from_be_bytes(word))
}

fn name(bytes: &mut Bytes) -> Option<String> {
    let len: [u8; 2] = take(bytes, 2)?[..].try_into().ok()?;
    let name = take(bytes, usize::from(u16::from_be_bytes(len)))?;
    String::from_utf8(name.to_vec()).ok()
}

/// Rooms over a [link](super::Link). Each method is one round trip and one atomic step for each room.
///
/// # Errors
/// As those of [`Link`](super::Link): a change that failed may have been made, in part or as a whole.
/// Its hold is not used again, which makes that harmless.
///
/// # Cancel safety
/// As that of [`Link`](super::Link): a call that is dropped may or may not have had its effect.
pub trait RoomLink: Send + Sync {
    /// Makes `changes` (at most [`MAX_CHANGES`]) for `hold` in order, renews its lease and publishes
    /// each event; whether the hold stood or begins. If it did not, nothing was done. A hold whose
    /// last member is removed ends.
    fn change<'a>(
        &'a self,
        room: Room<'a>,
        hold: Hold,
        footing: Footing,
        changes: &'a [Change<'a>],
    ) -> BoxFuture<'a, StoreResult<bool>>;

    /// Ends a hold: all of its members leave. A hold that does not stand is none.
    fn release<'a>(&'a self, room: Room<'a>, hold: u64) -> BoxFuture<'a, StoreResult<Look<()>>>;

    /// Renews holds that stand, and tells how each room is. Works without free memory.
    fn beat<'a>(&'a self, beats: &'a [Beat<'a>]) -> BoxFuture<'a, StoreResult<Vec<Beaten>>>;

    /// The members behind `after`, at most `limit` and [`MAX_PAGE`].
    fn page<'a>(
        &'a self,
        room: Room<'a>,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Look<Page>>>;

    /// How many members there are.
    fn count<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, StoreResult<Look<u64>>>;

    /// One member.
    fn get<'a>(
        &'a self,
        room: Room<'a>,
        member: &'a str,
    ) -> BoxFuture<'a, StoreResult<Look<Option<Present>>>>;

    /// Has the room's [events](RoomEvent) come with this link's [hints](super::Hints). What is
    /// published after this returns is not missed by design.
    fn watch<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, StoreResult<()>>;

    /// Ends [`watch`](Self::watch).
    fn unwatch<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, StoreResult<()>>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event() -> RoomEvent {
        RoomEvent {
            room: "room%3A1".into(),
            kind: RoomEventKind::Updated,
            at: Position {
                epoch: Epoch(0x0102_0304_0506_0708),
                seq: 9,
            },
            member: "ada".into(),
            meta: Bytes::from_static(&[0x81, 0xA1]),
        }
    }

    /// `docs/wire-format.md` lists the same form.
    #[test]
    fn an_event_is_wire_stable_and_is_no_hint() {
        let bytes = event().encode();
        let written = b"\x50\x01\x02\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\0\x09\
            \0\x08room%3A1\0\x03ada\x81\xA1";
        assert_eq!(bytes, written);
        assert!(RoomEvent::is_one(&bytes));
        let hint = crate::coherence::wire::WIRE_VERSION;
        assert!(!RoomEvent::is_one(&[hint]));
        assert_eq!(RoomEvent::decode(&bytes.into()), Some(event()));
    }

    #[test]
    fn another_version_is_refused_and_an_unknown_kind_is_kept_apart() {
        let mut bytes = event().encode();
        bytes[2] = 77;
        let read = RoomEvent::decode(&bytes.clone().into()).expect("it is read");
        assert_eq!(read.kind, RoomEventKind::Unknown(77));
        bytes[1] = 2;
        assert_eq!(RoomEvent::decode(&bytes.into()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_as_what_they_are_or_refused(bytes: Vec<u8>, prefix in 0..40_usize) {
            let whole = event().encode();
            let prefix = prefix.min(whole.len());
            for bytes in [bytes.clone(), [&whole[..prefix], &bytes[..]].concat()] {
                let bytes = Bytes::from(bytes);
                if let Some(event) = RoomEvent::decode(&bytes) {
                    prop_assert_eq!(Bytes::from(event.encode()), bytes);
                }
            }
        }
    }
}
