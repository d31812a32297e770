//! Rooms: one script for each call, over five keys of one slot for each room.

use super::keys::RoomKeys;
use super::link::RedisLink;
use super::numbers::{millis, word};
use super::reply::{self, Reply};
use super::scripts::{
    ROOM_BEAT, ROOM_CHANGE, ROOM_COUNT, ROOM_GET, ROOM_LEAVE, ROOM_PAGE, ROOM_RELEASE, Step,
};
use crate::coherence::{Epoch, Lane, Position};
use crate::store::rooms::{
    Beat, Beaten, Change, Footing, Hold, Look, MAX_BEATS, MAX_PAGE, Page, Present, ROOM_LIFE, Room,
};
use crate::store::together::together;
use crate::store::{BoxFuture, RoomLink, StoreResult};
use ::redis::{Cmd, Value};
use bytes::Bytes;
use std::collections::BTreeMap;

impl RedisLink {
    fn room_keys(&self, room: Room<'_>) -> StoreResult<RoomKeys> {
        Ok(self.keys.data_lane(room.lane)?.room(room.name))
    }

    /// A call of `step` for one room.
    fn room_call(&self, step: &Step, room: Room<'_>) -> StoreResult<Cmd> {
        let keys = self.room_keys(room)?.keys;
        let mut call = step.call(keys.len());
        call.arg(&keys).arg(&self.incarnation(room.lane)?);
        Ok(call)
    }

    /// Beats of at least one room, all of one lane if the store is a cluster.
    async fn beat_some(&self, beats: &[&Beat<'_>]) -> StoreResult<Vec<Beaten>> {
        let mut call = ROOM_BEAT.call(5 * beats.len());
        for beat in beats {
            call.arg(&self.room_keys(beat.room)?.keys);
        }
        call.arg(&self.incarnation(beats[0].room.lane)?);
        for beat in beats {
            match beat.hold {
                Some(hold) => lease_args(&mut call, hold),
                None => call.arg(b"").arg(0).arg(0),
            };
        }
        let rows = self.run(&ROOM_BEAT, &call).await?.array()?;
        let beaten: Option<Vec<_>> = rows.into_iter().map(beaten).collect();
        beaten
            .filter(|rows| rows.len() == beats.len())
            .ok_or_else(|| Reply::malformed(ROOM_BEAT.operation()))
    }

    /// What a reading step gives: `[1]` to be asked again, or `[0, …]`.
    async fn look<T>(
        &self,
        step: &Step,
        call: &Cmd,
        read: impl FnOnce(&mut std::vec::IntoIter<Value>) -> Option<T>,
    ) -> StoreResult<Look<T>> {
        let mut items = self.run(step, call).await?.array()?.into_iter();
        let look = match items.next().and_then(reply::number) {
            Some(1) => Some(Look::Again),
            Some(0) => read(&mut items).map(Look::Seen),
            _ => None,
        };
        look.ok_or_else(|| Reply::malformed(step.operation()))
    }
}

impl RoomLink for RedisLink {
    fn change<'a>(
        &'a self,
        room: Room<'a>,
        hold: Hold,
        footing: Footing,
        changes: &'a [Change<'a>],
    ) -> BoxFuture<'a, StoreResult<bool>> {
        Box::pin(async move {
            let leaving = |change: &Change<'_>| matches!(change, Change::Remove(_));
            let step = match changes.iter().all(leaving) {
                true => &ROOM_LEAVE,
                false => &ROOM_CHANGE,
            };
            let mut call = self.room_call(step, room)?;
            lease_args(&mut call, hold);
            match footing {
                Footing::Begins(epoch) => call.arg(&word(epoch.0)),
                Footing::Stands => call.arg(b""),
            };
            for change in changes {
                match change {
                    Change::Put(member, meta) => call.arg(b"p").arg(member).arg(meta),
                    Change::Keep(member, meta) => call.arg(b"k").arg(member).arg(meta),
                    Change::Remove(member) => call.arg(b"r").arg(member).arg(b""),
                };
            }
            self.run(step, &call).await?.flag()
        })
    }

    fn release<'a>(&'a self, room: Room<'a>, hold: u64) -> BoxFuture<'a, StoreResult<Look<()>>> {
        Box::pin(async move {
            let mut call = self.room_call(&ROOM_RELEASE, room)?;
            call.arg(&word(hold));
            let again = self.run(&ROOM_RELEASE, &call).await?.flag()?;
            Ok(if again { Look::Again } else { Look::Seen(()) })
        })
    }

    fn beat<'a>(&'a self, beats: &'a [Beat<'a>]) -> BoxFuture<'a, StoreResult<Vec<Beaten>>> {
        Box::pin(async move {
            let groups = groups(beats, self.keys.is_sharded());
            let calls = groups.iter().map(|members| -> BoxFuture<'_, _> {
                let some: Vec<_> = members.iter().map(|&at| &beats[at]).collect();
                Box::pin(async move { self.beat_some(&some).await })
            });
            let mut beaten = vec![None; beats.len()];
            for (members, some) in groups.iter().zip(together(calls).await) {
                for (&at, one) in members.iter().zip(some?) {
                    beaten[at] = Some(one);
                }
            }
            let all: Option<Vec<_>> = beaten.into_iter().collect();
            all.ok_or_else(|| Reply::malformed(ROOM_BEAT.operation()))
        })
    }

    fn page<'a>(
        &'a self,
        room: Room<'a>,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Look<Page>>> {
        Box::pin(async move {
            let mut call = self.room_call(&ROOM_PAGE, room)?;
            match after {
                Some(member) => call.arg(format!("({member}")),
                None => call.arg(b"-"),
            };
            call.arg(limit.clamp(1, MAX_PAGE));
            self.look(&ROOM_PAGE, &call, page).await
        })
    }

    fn count<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, StoreResult<Look<u64>>> {
        Box::pin(async move {
            let call = self.room_call(&ROOM_COUNT, room)?;
            let number = |items: &mut std::vec::IntoIter<Value>| reply::number(items.next()?);
            self.look(&ROOM_COUNT, &call, number).await
        })
    }

    fn get<'a>(
        &'a self,
        room: Room<'a>,
        member: &'a str,
    ) -> BoxFuture<'a, StoreResult<Look<Option<Present>>>> {
        Box::pin(async move {
            let mut call = self.room_call(&ROOM_GET, room)?;
            call.arg(member);
            self.look(&ROOM_GET, &call, |items| match items.next() {
                Some(record) => present(member.to_owned(), record).map(Some),
                None => Some(None),
            })
            .await
        })
    }

    fn watch<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            let channel = self.room_keys(room)?.channel;
            let node = self.nodes.of_lane("watch", room.lane)?;
            node.channels.subscribe(&channel).await
        })
    }

    fn unwatch<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            let channel = self.room_keys(room)?.channel;
            let node = self.nodes.of_lane("unwatch", room.lane)?;
            node.channels.unsubscribe(&channel).await
        })
    }
}

/// The beats that go in one call each: as many as are bounded work, and on a cluster those of one slot.
fn groups(beats: &[Beat<'_>], sharded: bool) -> Vec<Vec<usize>> {
    let mut lanes: BTreeMap<Option<Lane>, Vec<usize>> = BTreeMap::new();
    for (at, beat) in beats.iter().enumerate() {
        let group = sharded.then_some(beat.room.lane);
        lanes.entry(group).or_default().push(at);
    }
    let groups = lanes.values().flat_map(|members| members.chunks(MAX_BEATS));
    groups.map(<[usize]>::to_vec).collect()
}

/// Id, TTL, and how long the room then lives.
fn lease_args(call: &mut Cmd, hold: Hold) -> &mut Cmd {
    let life = hold.ttl.saturating_mul(ROOM_LIFE);
    call.arg(&word(hold.id))
        .arg(millis(hold.ttl))
        .arg(millis(life))
}

/// `[stood, again, position]`.
fn beaten(row: Value) -> Option<Beaten> {
    let Value::Array(row) = row else { return None };
    let [stood, again, at] = <[Value; 3]>::try_from(row).ok()?;
    Some(Beaten {
        stood: reply::number(stood)? == 1,
        at: position(at)?,
        again: reply::number(again)? == 1,
    })
}

/// `epoch 8 · seq 8`, or nothing.
fn position(value: Value) -> Option<Option<Position>> {
    let bytes = reply::bytes(value)?;
    if bytes.is_empty() {
        return Some(None);
    }
    let (epoch, seq) = bytes.split_first_chunk::<8>()?;
    Some(Some(Position {
        epoch: Epoch(u64::from_be_bytes(*epoch)),
        seq: u64::from_be_bytes(seq.try_into().ok()?),
    }))
}

/// `position, ends, then member and record …`.
fn page(items: &mut std::vec::IntoIter<Value>) -> Option<Page> {
    let at = position(items.next()?)?;
    let ends = reply::number(items.next()?)? == 1;
    let mut members = Vec::with_capacity(items.len() / 2);
    while let Some(member) = items.next() {
        let member = String::from_utf8(reply::bytes(member)?).ok()?;
        members.push(present(member, items.next()?)?);
    }
    Some(Page { at, members, ends })
}

/// A record: `version 8 · number of holds 4 · meta`.
fn present(member: String, record: Value) -> Option<Present> {
    let mut record = Bytes::from(reply::bytes(record)?);
    if record.len() < 12 {
        return None;
    }
    let meta = record.split_off(12);
    let version: [u8; 8] = record[..8].try_into().ok()?;
    Some(Present {
        member,
        version: u64::from_be_bytes(version),
        meta,
    })
}
