//! How the keys of a namespace are named. `{ns:xx}` holds a lane together in one slot of a cluster.

use crate::coherence::Lane;
use crate::error::{StoreError, StoreErrorKind};
use crate::store::{Namespace, RawFound, RawPlace, StoreResult};
use ::redis::{RedisWrite, ToRedisArgs};
use std::io::Write;

/// The names of a namespace.
pub(super) struct Keys {
    /// The channel of its hints.
    pub(super) channel: String,
    /// The key that the write of a poll is aimed at; never there.
    pub(super) beacon: String,
    /// `{name:`, which all keys begin with.
    tag: String,
    lanes: Vec<LaneKeys>,
}

/// The names of a lane.
pub(super) struct LaneKeys {
    /// The lane, as the scripts take it.
    pub(super) lane: [u8; 2],
    pub(super) head: String,
    pub(super) log: String,
    value: String,
    floor: String,
    tag: String,
    raw: String,
    room: String,
}

/// The keys of a room, as its scripts take them, and the channel of its events.
pub(super) struct RoomKeys {
    pub(super) keys: [String; 5],
    pub(super) channel: String,
}

impl Keys {
    pub(super) fn new(namespace: &Namespace) -> Self {
        let name = &namespace.name;
        Self {
            channel: format!("{{{name}}}c"),
            beacon: format!("{{{name}:00}}b"),
            tag: format!("{{{name}:"),
            lanes: namespace
                .lanes()
                .map(|lane| LaneKeys::new(name, lane))
                .collect(),
        }
    }

    pub(super) fn lanes(&self) -> &[LaneKeys] {
        &self.lanes
    }

    pub(super) fn lane(&self, lane: Lane) -> StoreResult<&LaneKeys> {
        self.lanes.get(usize::from(lane.0)).ok_or_else(|| {
            StoreError::new(StoreErrorKind::Config, "address")
                .with_detail("the lane is not one of the namespace")
        })
    }

    pub(super) fn raw<'a>(&'a self, place: RawPlace<'a>) -> StoreResult<RawKey<'a>> {
        let lane = &self.lane(place.lane)?.raw;
        Ok(RawKey { lane, place })
    }

    /// A pattern that every raw key under `prefix` matches, and next to nothing else does: neither the
    /// namespace nor the prefix holds a character that patterns give a meaning.
    pub(super) fn raw_pattern(&self, prefix: &str) -> String {
        let digits = self.lanes.last().map_or(2, |last| last.digits().len());
        let lane = if digits == 2 { "??" } else { "*" };
        format!("{}{lane}}}r:{prefix}:*", self.tag)
    }

    /// Reads a physical key; `None` if it is not a raw key under `prefix` on a lane of ours.
    pub(super) fn raw_found(&self, physical: &[u8], prefix: &str) -> Option<RawFound> {
        let rest = physical.strip_prefix(self.tag.as_bytes())?;
        let end = rest.iter().position(|&byte| byte == b'}')?;
        let (digits, rest) = rest.split_at(end);
        let lane = u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        let lanes = self.lanes.get(usize::from(lane))?;
        let key = rest.strip_prefix(b"}r:")?;
        let key = key.strip_prefix(prefix.as_bytes())?.strip_prefix(b":")?;
        // `+a`, `A` and `00a` are numbers too, but no names of lanes.
        (lanes.digits().as_bytes() == digits).then(|| RawFound {
            lane: Lane(lane),
            key: key.to_vec().into(),
        })
    }
}

impl LaneKeys {
    fn new(name: &str, lane: Lane) -> Self {
        let tag = format!("{{{name}:{:02x}}}", lane.0);
        Self {
            lane: lane.0.to_be_bytes(),
            head: format!("{tag}h"),
            log: format!("{tag}s"),
            value: format!("{tag}v:"),
            floor: format!("{tag}f:"),
            tag: format!("{tag}t:"),
            raw: format!("{tag}r:"),
            room: format!("{tag}p:"),
        }
    }

    /// The lane as its names write it.
    fn digits(&self) -> &str {
        let end = self.head.len() - "}h".len();
        self.head[..end].rsplit(':').next().unwrap_or_default()
    }

    pub(super) fn head(&self) -> Key<'_> {
        Key(&self.head, b"")
    }

    pub(super) fn value<'a>(&'a self, key: &'a [u8]) -> Key<'a> {
        Key(&self.value, key)
    }

    pub(super) fn floor<'a>(&'a self, entity: &'a str) -> Key<'a> {
        self.floor_of(entity.as_bytes())
    }

    /// State, leases, records, order and holds.
    pub(super) fn room(&self, name: &str) -> RoomKeys {
        let key = |part| format!("{}{name}:{part}", self.room);
        RoomKeys {
            keys: ["s", "l", "m", "x", "h"].map(key),
            channel: key("c"),
        }
    }

    /// The floor of the tag that is named so.
    pub(super) fn tag<'a>(&'a self, name: &'a TagName) -> Key<'a> {
        Key(&self.tag, name)
    }

    pub(super) fn floor_of<'a>(&'a self, entity: &'a [u8]) -> Key<'a> {
        Key(&self.floor, entity)
    }
}

/// A tag's hash as keys hold it: hexadecimal digits.
pub(super) type TagName = [u8; 16];

pub(super) fn tag_name(hash: u64) -> TagName {
    let digit = |at: usize| {
        let nibble = (hash >> (60 - 4 * at)) as usize & 15;
        b"0123456789abcdef"[nibble]
    };
    std::array::from_fn(digit)
}

/// A key in two parts, joined where the command is written: no allocation of its own.
#[derive(Clone, Copy)]
pub(super) struct Key<'a>(&'a str, &'a [u8]);

impl Key<'_> {
    pub(super) fn len(&self) -> usize {
        self.0.len() + self.1.len()
    }
}

impl ToRedisArgs for Key<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        let mut arg = out.writer_for_next_arg();
        arg.write_all(self.0.as_bytes())
            .and_then(|()| arg.write_all(self.1))
            .expect("commands are written into memory, which does not fail");
    }
}

/// The key of raw data, joined where the command is written.
#[derive(Clone, Copy)]
pub(super) struct RawKey<'a> {
    lane: &'a str,
    place: RawPlace<'a>,
}

impl ToRedisArgs for RawKey<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        let mut arg = out.writer_for_next_arg();
        let parts = [
            self.lane.as_bytes(),
            self.place.prefix.as_bytes(),
            b":",
            self.place.key,
        ];
        for part in parts {
            arg.write_all(part)
                .expect("commands are written into memory, which does not fail");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `docs/wire-format.md` lists the same names.
    #[test]
    fn physical_keys_are_wire_stable() {
        let keys = Keys::new(&Namespace {
            name: "shop".into(),
            lanes: 16,
        });
        let lane = keys.lane(Lane(10)).expect("one of sixteen");
        assert_eq!((&*keys.channel, &*keys.beacon), ("{shop}c", "{shop:00}b"));
        assert_eq!((&*lane.head, &*lane.log), ("{shop:0a}h", "{shop:0a}s"));
        assert_eq!(
            lane.value(b"user:42").to_redis_args(),
            [b"{shop:0a}v:user:42"]
        );
        assert_eq!(lane.floor("user").to_redis_args(), [b"{shop:0a}f:user"]);
        let tag = tag_name(0x0123_4567_89ab_cdef);
        assert_eq!(
            lane.tag(&tag).to_redis_args(),
            [b"{shop:0a}t:0123456789abcdef"]
        );
        let place = RawPlace {
            lane: Lane(10),
            prefix: "s%3A",
            key: b"\xff:1",
        };
        let raw = keys.raw(place).expect("one of sixteen");
        assert_eq!(raw.to_redis_args(), [b"{shop:0a}r:s%3A:\xff:1"]);
        assert_eq!(keys.raw_pattern("s%3A"), "{shop:??}r:s%3A:*");
        let room = lane.room("doc%3A7");
        assert_eq!(room.channel, "{shop:0a}p:doc%3A7:c");
        let parts = ["s", "l", "m", "x", "h"].map(|part| format!("{{shop:0a}}p:doc%3A7:{part}"));
        assert_eq!(room.keys, parts);
        assert_eq!(
            keys.lane(Lane(16)).map(|_| ()).unwrap_err().kind(),
            StoreErrorKind::Config
        );
    }

    #[test]
    fn only_raw_keys_of_the_prefix_on_lanes_of_ours_are_read() {
        for (lanes, last) in [(16, "0f"), (512, "1ff")] {
            let name = "shop".to_owned();
            let keys = Keys::new(&Namespace { name, lanes });
            let found = |physical: &[u8]| keys.raw_found(physical, "p");
            let physical = format!("{{shop:{last}}}r:p:}}r:p:k");
            let ours = RawFound {
                lane: Lane(lanes - 1),
                key: "}r:p:k".into(),
            };
            assert_eq!(found(physical.as_bytes()), Some(ours));
            for strange in [
                "{shop:0f}v:p:k",
                "{shop:0f}r:p",
                "{shop:0f}r:pp:k",
                "{shop:0F}r:p:k",
                "{shop:00f}r:p:k",
                "{shop:+f}r:p:k",
                "{shop:200}r:p:k",
                "{shop:}r:p:k",
                "{shop:0f",
                "{chop:0f}r:p:k",
            ] {
                assert_eq!(found(strange.as_bytes()), None, "{strange}");
            }
        }
    }
}
