//! How the keys of a namespace are named. `{ns:xx}` holds a lane together in one slot of a cluster, where
//! it has a third part that was searched for, `{ns:xx:n}`: lane i of P falls into the i-th of P equal
//! ranges of slots, so that lanes are spread over the nodes as evenly as slots are.

use super::slots::{SLOTS, slot_of};
use crate::coherence::Lane;
use crate::error::{StoreError, StoreErrorKind};
use crate::key::DATA_LANES;
use crate::store::{Namespace, RawFound, RawPlace, StoreResult};
use ::redis::{RedisWrite, ToRedisArgs};
use std::io::Write;

/// The names of a namespace.
pub(super) struct Keys {
    /// The channel of its hints; those of a cluster are one for each lane.
    pub(super) channel: String,
    beacon: String,
    /// The key of the namespace's record; on a cluster in the slot of the first lane.
    pub(super) record: String,
    sharded: bool,
    /// `{name:`, which all keys begin with.
    tag: String,
    /// Those with a log first; raw data and rooms may be on others.
    lanes: Vec<LaneKeys>,
    logs: usize,
}

/// The names of a lane.
pub(super) struct LaneKeys {
    /// The lane, as the scripts take it.
    pub(super) lane: [u8; 2],
    /// What tells it from other lanes in the names of its keys.
    name: String,
    /// The channel of its hints.
    pub(super) channel: String,
    /// What the write of a poll is aimed at on a cluster, in the lane's own slot.
    pub(super) beacon: String,
    pub(super) head: String,
    pub(super) log: String,
    /// Who publishes next, and when: of the lane, or of all lanes of a server by itself.
    pub(super) pace: String,
    /// Which of the lane's keys are being written.
    pub(super) markers: String,
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
        let channel = format!("{{{name}}}c");
        let lanes = (0..namespace.lanes.max(DATA_LANES.get())).map(|lane| {
            let (lane, digits) = (Lane(lane), format!("{lane:02x}"));
            let keys = LaneKeys::new(name, lane, digits, channel.clone());
            // One server sends to each pod once for all lanes.
            let pace = format!("{{{name}:00}}u");
            LaneKeys { pace, ..keys }
        });
        Self {
            lanes: lanes.collect(),
            channel,
            beacon: format!("{{{name}:00}}b"),
            record: format!("{{{name}}}cfg"),
            sharded: false,
            tag: format!("{{{name}:"),
            logs: usize::from(namespace.lanes),
        }
    }

    /// The names on a cluster.
    pub(super) fn sharded(namespace: &Namespace) -> Self {
        let name = &namespace.name;
        let lanes = namespace.lanes().map(|lane| {
            let spread = spread(name, lane, namespace.lanes);
            let channel = format!("{{{name}:{spread}}}c");
            LaneKeys::new(name, lane, spread, channel)
        });
        let first = spread(name, Lane(0), namespace.lanes);
        Self {
            lanes: lanes.collect(),
            record: format!("{{{name}:{first}}}cfg"),
            sharded: true,
            ..Self::new(namespace)
        }
    }

    /// The key that the write of a poll of all lanes is aimed at; never there.
    pub(super) fn common_beacon(&self) -> &str {
        &self.beacon
    }

    /// The same where it is to be on the node that has `lane`.
    pub(super) fn beacon(&self, lane: Lane) -> StoreResult<&str> {
        let lane = self.lane(lane)?;
        Ok(match self.sharded {
            true => &lane.beacon,
            false => &self.beacon,
        })
    }

    pub(super) fn is_sharded(&self) -> bool {
        self.sharded
    }

    /// The slot of a lane.
    pub(super) fn slot(&self, lane: Lane) -> u16 {
        let keys = self.lanes.get(usize::from(lane.0));
        keys.map_or(0, |keys| slot_of(keys.head.as_bytes()))
    }

    /// The lane that a physical key belongs to, if it is one of ours.
    pub(super) fn lane_named(&self, physical: &[u8]) -> Option<Lane> {
        let rest = physical.strip_prefix(self.tag.as_bytes())?;
        let end = rest.iter().position(|&byte| byte == b'}')?;
        self.lane_of_name(&rest[..end])
    }

    fn lane_of_name(&self, name: &[u8]) -> Option<Lane> {
        let digits = name.split(|&byte| byte == b':').next()?;
        let lane = u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        let keys = self.lanes.get(usize::from(lane))?;
        // `+a`, `A` and `00a` are numbers too, but no names of lanes.
        (keys.name.as_bytes() == name).then_some(Lane(lane))
    }

    /// The lanes that have a log.
    pub(super) fn lanes(&self) -> &[LaneKeys] {
        &self.lanes[..self.logs]
    }

    /// A lane with a log.
    pub(super) fn lane(&self, lane: Lane) -> StoreResult<&LaneKeys> {
        Self::among(self.lanes(), lane)
    }

    /// How many lanes raw data and rooms may be on, and those with a log.
    pub(super) fn all_lanes(&self) -> u16 {
        u16::try_from(self.lanes.len()).expect("made from a range of them")
    }

    /// A lane that raw data and rooms may be on: on a cluster one that has a log.
    pub(super) fn data_lane(&self, lane: Lane) -> StoreResult<&LaneKeys> {
        Self::among(&self.lanes, lane)
    }

    fn among(lanes: &[LaneKeys], lane: Lane) -> StoreResult<&LaneKeys> {
        lanes.get(usize::from(lane.0)).ok_or_else(|| {
            StoreError::new(StoreErrorKind::Config, "address")
                .with_detail("the lane is not one of the namespace")
        })
    }

    pub(super) fn raw<'a>(&'a self, place: RawPlace<'a>) -> StoreResult<RawKey<'a>> {
        let lane = &self.data_lane(place.lane)?.raw;
        Ok(RawKey { lane, place })
    }

    /// A pattern that every raw key under `prefix` matches, and next to nothing else does: neither the
    /// namespace nor the prefix holds a character that patterns give a meaning.
    pub(super) fn raw_pattern(&self, prefix: &str) -> String {
        let two = self.lanes.iter().all(|lane| lane.name.len() == 2);
        let lane = if two { "??" } else { "*" };
        format!("{}{lane}}}r:{prefix}:*", self.tag)
    }

    /// Reads a physical key; `None` if it is not a raw key under `prefix` on a lane of ours.
    pub(super) fn raw_found(&self, physical: &[u8], prefix: &str) -> Option<RawFound> {
        let rest = physical.strip_prefix(self.tag.as_bytes())?;
        let end = rest.iter().position(|&byte| byte == b'}')?;
        let (name, rest) = rest.split_at(end);
        let lane = self.lane_of_name(name)?;
        let key = rest.strip_prefix(b"}r:")?;
        let key = key.strip_prefix(prefix.as_bytes())?.strip_prefix(b":")?;
        Some(RawFound {
            lane,
            key: key.to_vec().into(),
        })
    }
}

/// What a lane is called on a cluster: its digits, and the first number that puts it into its range of
/// slots.
fn spread(namespace: &str, lane: Lane, lanes: u16) -> String {
    let share = |lane: u16| u32::from(SLOTS) * u32::from(lane) / u32::from(lanes);
    let range = share(lane.0)..share(lane.0 + 1);
    let name = |number: u32| format!("{:02x}:{number:x}", lane.0);
    let is_there = |name: &String| {
        let slot = slot_of(format!("{namespace}:{name}").as_bytes());
        range.contains(&u32::from(slot))
    };
    // One try in `lanes` hits. More lanes than slots never do, and then any name is as good.
    let mut tries = (0..u32::from(lanes) * 64).map(name);
    tries.find(is_there).unwrap_or_else(|| name(0))
}

impl LaneKeys {
    fn new(namespace: &str, lane: Lane, name: String, channel: String) -> Self {
        let tag = format!("{{{namespace}:{name}}}");
        Self {
            lane: lane.0.to_be_bytes(),
            name,
            channel,
            beacon: format!("{tag}b"),
            head: format!("{tag}h"),
            log: format!("{tag}s"),
            pace: format!("{tag}u"),
            markers: format!("{tag}g"),
            value: format!("{tag}v:"),
            floor: format!("{tag}f:"),
            tag: format!("{tag}t:"),
            raw: format!("{tag}r:"),
            room: format!("{tag}p:"),
        }
    }

    pub(super) fn head(&self) -> Key<'_> {
        Key(&self.head, b"")
    }

    pub(super) fn markers(&self) -> Key<'_> {
        Key(&self.markers, b"")
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
        assert_eq!(
            (&*keys.channel, keys.common_beacon()),
            ("{shop}c", "{shop:00}b")
        );
        assert_eq!(keys.record, "{shop}cfg");
        assert_eq!((&*lane.head, &*lane.log), ("{shop:0a}h", "{shop:0a}s"));
        assert_eq!(
            lane.value(b"user:42").to_redis_args(),
            [b"{shop:0a}v:user:42"]
        );
        assert_eq!(lane.floor("user").to_redis_args(), [b"{shop:0a}f:user"]);
        assert_eq!(lane.markers().to_redis_args(), [b"{shop:0a}g"]);
        assert_eq!(lane.pace, "{shop:00}u");
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
    fn lanes_of_a_cluster_are_spread_over_the_slots_in_their_order() {
        for lanes in [1, 4, 16, 64] {
            let name = "shop".to_owned();
            let keys = Keys::sharded(&Namespace { name, lanes });
            for lane in (0..lanes).map(Lane) {
                let part = keys.slot(lane) / (SLOTS / lanes);
                assert_eq!(part, lane.0, "of {lanes}");
                let names = keys.lane(lane).expect("one of them");
                for key in [&names.channel, &names.beacon, &names.log, &names.pace] {
                    assert_eq!(slot_of(key.as_bytes()), keys.slot(lane));
                    assert_eq!(keys.lane_named(key.as_bytes()), Some(lane));
                }
            }
        }
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
