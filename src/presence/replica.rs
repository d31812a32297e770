//! What this pod knows of one room: plain data, no I/O.
//!
//! A [`Replica`] follows the room's events by their numbers. When it cannot, a [`Reading`] reads the
//! room anew, page by page, while events go on arriving:
//!
//! 1. The first page is read when the room is at 7, and shows Ada.
//! 2. Ada leaves: event 8. Bob, whose name is on the second page, joins: event 9.
//! 3. The second page is read when the room is at 9, and shows Bob.
//!
//! Event 8 takes Ada away again, and event 9 brings nothing new: Bob was read with version 9. Had event
//! 8 come before the page that shows Ada, it would have been remembered until then.

use crate::coherence::Position;
use crate::store::rooms::{Page, RoomEvent, RoomEventKind};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// Why a member is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LeftReason {
    /// Its last lease was given up.
    Left,
    /// The last pod that held it was not heard of for a TTL.
    Expired,
    /// Nobody heard how: it was there before a gap, and is not there any more.
    Missed,
}

/// One thing to tell whoever watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Delta {
    Joined(Arc<str>, Bytes),
    Updated(Arc<str>, Bytes),
    Left(Arc<str>, LeftReason),
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Followed,
    /// Something is missing before it: the room has to be read.
    Hole,
}

/// A copy of a room.
#[derive(Debug, Default)]
pub(super) struct Replica {
    /// Every event up to here is in; `None` while nobody is there.
    at: Option<Position>,
    members: BTreeMap<Arc<str>, Bytes>,
    /// Members of a room that the store has lost: their pods bring them again, if they live.
    doubted: BTreeMap<Arc<str>, Bytes>,
}

impl Replica {
    /// The meta of a member, as those who watch were told.
    pub(super) fn meta(&self, member: &str) -> Option<&Bytes> {
        let meta = self.members.get(member);
        meta.or_else(|| self.doubted.get(member))
    }

    /// All members, as those who watch were told.
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.members.keys().chain(self.doubted.keys())
    }

    /// Whether the room has moved on to `seen`, or is another.
    pub(super) fn is_behind(&self, seen: Option<Position>) -> bool {
        match (self.at, seen) {
            (_, None) => !self.members.is_empty(),
            (None, Some(_)) => true,
            (Some(at), Some(seen)) => at.epoch != seen.epoch || at.seq < seen.seq,
        }
    }

    pub(super) fn has_doubts(&self) -> bool {
        !self.doubted.is_empty()
    }

    /// Whoever was not brought again by now is gone.
    pub(super) fn end_doubts(&mut self, out: &mut Vec<Delta>) {
        let gone = std::mem::take(&mut self.doubted).into_keys();
        out.extend(gone.map(|member| Delta::Left(member, LeftReason::Missed)));
    }

    pub(super) fn hear(&mut self, event: &RoomEvent, out: &mut Vec<Delta>) -> Heard {
        let follows = match self.at {
            Some(at) if at.epoch == event.at.epoch => {
                if event.at.seq <= at.seq {
                    return Heard::Followed;
                }
                event.at.seq == at.seq + 1
            }
            // The first event of an epoch says that the room was empty before.
            _ => event.at.seq == 1 && self.members.is_empty(),
        };
        if !follows {
            return Heard::Hole;
        }
        self.at = Some(event.at);
        match event.kind {
            RoomEventKind::Joined | RoomEventKind::Updated => {
                let meta = event.meta.clone();
                self.put((&*event.member).into(), meta, true, out);
            }
            RoomEventKind::Left => self.remove(&event.member, LeftReason::Left, out),
            RoomEventKind::Expired => self.remove(&event.member, LeftReason::Expired, out),
            // Whatever it is, the room can be read.
            RoomEventKind::Unknown(_) => return Heard::Hole,
        }
        Heard::Followed
    }

    /// `said`: somebody said so just now, so that it is told even if nothing differs.
    fn put(&mut self, member: Arc<str>, meta: Bytes, said: bool, out: &mut Vec<Delta>) {
        let before = self.members.insert(Arc::clone(&member), meta.clone());
        let said = said && before.is_some();
        let before = before.or_else(|| self.doubted.remove(&member));
        match before {
            None => out.push(Delta::Joined(member, meta)),
            Some(before) if said || before != meta => out.push(Delta::Updated(member, meta)),
            Some(_) => {}
        }
    }

    fn remove(&mut self, member: &str, reason: LeftReason, out: &mut Vec<Delta>) {
        if let Some((member, _)) = self.members.remove_entry(member) {
            out.push(Delta::Left(member, reason));
        }
    }

    /// Takes over what was read, and tells the difference.
    fn take(&mut self, read: Reading, out: &mut Vec<Delta>) {
        let Reading {
            at, members, gone, ..
        } = read;
        let is_another = self.at.map(|at| at.epoch) != at.map(|at| at.epoch);
        for (member, meta) in std::mem::take(&mut self.members) {
            if members.contains_key(&member) {
                self.members.insert(member, meta);
            } else if let Some(&(_, reason)) = gone.get(&member) {
                out.push(Delta::Left(member, reason));
            } else if is_another {
                self.doubted.insert(member, meta);
            } else {
                out.push(Delta::Left(member, LeftReason::Missed));
            }
        }
        for (member, known) in members {
            self.put(member, known.meta, false, out);
        }
        self.at = at;
    }
}

/// A member, as a page or an event shows it.
#[derive(Debug)]
struct Known {
    version: u64,
    meta: Bytes,
}

/// A room that is being read.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// Every event up to here is in.
    at: Option<Position>,
    /// The newest event that a page may hold the result of.
    target: u64,
    members: BTreeMap<Arc<str>, Known>,
    /// Who left meanwhile: with which event, and why.
    gone: HashMap<Arc<str>, (u64, LeftReason)>,
    /// Events that came before the first page.
    early: VecDeque<RoomEvent>,
    last: Option<String>,
    began: bool,
    ended: bool,
    holed: bool,
}

/// The room became another while it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Another;

impl Reading {
    /// The member behind which the next page begins.
    pub(super) fn last(&self) -> Option<&str> {
        self.last.as_deref()
    }

    /// Every page was read.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Every page was read, and every event that is in one was heard.
    pub(super) fn is_whole(&self) -> bool {
        self.ended && !self.holed && self.at.is_none_or(|at| at.seq >= self.target)
    }

    pub(super) fn page(&mut self, page: Page) -> Result<(), Another> {
        if self.began && page.at.map(|at| at.epoch) != self.at.map(|at| at.epoch) {
            return Err(Another);
        }
        if !self.began {
            self.at = page.at;
            self.began = true;
        }
        self.target = page.at.map_or(0, |at| at.seq);
        self.ended = page.ends;
        self.last = page.members.last().map(|present| present.member.clone());
        for present in page.members {
            let (version, meta) = (present.version, present.meta);
            self.put(present.member.into(), Known { version, meta });
        }
        for event in std::mem::take(&mut self.early) {
            self.hear(event)?;
        }
        Ok(())
    }

    pub(super) fn hear(&mut self, event: RoomEvent) -> Result<(), Another> {
        if !self.began {
            self.early.push_back(event);
            return Ok(());
        }
        let Some(at) = &mut self.at else {
            return Err(Another);
        };
        if at.epoch != event.at.epoch {
            // One from before the first page is none of this epoch; another begins with its first.
            return if event.at.seq == 1 {
                Err(Another)
            } else {
                Ok(())
            };
        }
        if event.at.seq <= at.seq {
            return Ok(());
        }
        match event.at.seq == at.seq + 1 && !self.holed {
            true => at.seq += 1,
            false => self.holed = true,
        }
        let version = event.at.seq;
        let member: Arc<str> = event.member.into();
        let reason = match event.kind {
            RoomEventKind::Joined | RoomEventKind::Updated => {
                let meta = event.meta;
                self.put(member, Known { version, meta });
                return Ok(());
            }
            RoomEventKind::Left => LeftReason::Left,
            RoomEventKind::Expired => LeftReason::Expired,
            RoomEventKind::Unknown(_) => {
                self.holed = true;
                return Ok(());
            }
        };
        if self
            .members
            .get(&member)
            .is_some_and(|known| known.version < version)
        {
            self.members.remove(&member);
        }
        self.gone.insert(member, (version, reason));
        Ok(())
    }

    fn put(&mut self, member: Arc<str>, known: Known) {
        let is_older = |than: u64| known.version < than;
        let gone = self
            .gone
            .get(&member)
            .is_some_and(|&(left, _)| is_older(left));
        let known_better = self
            .members
            .get(&member)
            .is_some_and(|has| is_older(has.version));
        if !gone && !known_better {
            self.gone.remove(&member);
            self.members.insert(member, known);
        }
    }

    /// Ends the reading. What it tells is not the whole truth if it [is not whole](Self::is_whole);
    /// then the replica hears no event before the room is read again.
    pub(super) fn finish(self, replica: &mut Replica, out: &mut Vec<Delta>) {
        replica.take(self, out);
    }
}

#[cfg(test)]
#[path = "replica_tests.rs"]
mod tests;
