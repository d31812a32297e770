//! Which slot of a cluster a key is in, and which node has it.

use super::reply::{self, Reply};
use crate::store::StoreResult;
use ::redis::Value;
use std::ops::RangeInclusive;

/// Slots of a cluster.
pub(super) const SLOTS: u16 = 16384;

/// The slot of a key: of what stands in its first braces, if that is something.
pub(super) fn slot_of(key: &[u8]) -> u16 {
    let tag = || {
        let open = key.iter().position(|&byte| byte == b'{')?;
        let rest = &key[open + 1..];
        let end = rest.iter().position(|&byte| byte == b'}')?;
        (end > 0).then(|| &rest[..end])
    };
    crc16(tag().unwrap_or(key)) % SLOTS
}

/// CRC-16/XMODEM, as the [cluster specification][1] has it.
///
/// [1]: <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| {
        (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| {
            let shifted = crc << 1;
            if crc & 0x8000 == 0 {
                shifted
            } else {
                shifted ^ 0x1021
            }
        })
    })
}

/// Where a node is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct At {
    pub(super) host: String,
    pub(super) port: u16,
}

/// Which primary has which slots, as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SlotMap(Vec<(RangeInclusive<u16>, At)>);

impl SlotMap {
    /// Reads the answer to `CLUSTER SLOTS` of the node at `asked`, which may leave its own host out.
    pub(super) fn read(asked: &At, answer: Value) -> StoreResult<Self> {
        const ASK: &str = "read the slots";
        let rows = Reply::new(ASK, answer)?.array()?;
        let row = |row| {
            let Value::Array(row) = row else { return None };
            let mut row = row.into_iter();
            let mut slot = || u16::try_from(reply::number(row.next()?)?).ok();
            let (from, to) = (slot()?, slot()?);
            let Value::Array(primary) = row.next()? else {
                return None;
            };
            let mut primary = primary.into_iter();
            let host = match primary.next()? {
                Value::Nil => String::new(),
                host => String::from_utf8(reply::bytes(host)?).ok()?,
            };
            let port = u16::try_from(reply::number(primary.next()?)?).ok()?;
            let host = match host.as_str() {
                "" | "?" => asked.host.clone(),
                _ => host,
            };
            Some((from..=to, At { host, port }))
        };
        let rows: Option<Vec<_>> = rows.into_iter().map(row).collect();
        rows.map(Self).ok_or_else(|| Reply::malformed(ASK))
    }

    /// The primary that has the slot, if one does.
    pub(super) fn owner(&self, slot: u16) -> Option<&At> {
        let row = self.0.iter().find(|(slots, _)| slots.contains(&slot));
        row.map(|(_, at)| at)
    }

    /// Every primary that has slots.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &At> {
        self.0.iter().map(|(_, at)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"user1000"));
        assert_eq!(slot_of(b"foo{}{bar}"), crc16(b"foo{}{bar}") % SLOTS);
        assert_eq!(slot_of(b"foo{{bar}}zap"), slot_of(b"{bar"));
        assert_eq!(slot_of(b"foo{bar}{zap}"), slot_of(b"bar"));
        assert_eq!(slot_of(b"foo"), 12182);
    }

    #[test]
    fn a_slot_map_names_the_primaries_and_fills_in_the_host_that_was_asked() {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let node = |host, port| Value::Array(vec![host, Value::Int(port), bulk("id")]);
        let row = |from, to, primary| {
            let replica = node(bulk("r"), 1);
            Value::Array(vec![Value::Int(from), Value::Int(to), primary, replica])
        };
        let answer = Value::Array(vec![
            row(0, 99, node(bulk("a"), 7000)),
            row(100, 200, node(Value::Nil, 7001)),
        ]);
        let asked = At {
            host: "b".to_owned(),
            port: 1,
        };
        let slots = SlotMap::read(&asked, answer).expect("well-formed");
        let owner = |slot| slots.owner(slot).map(|at| (at.host.as_str(), at.port));
        assert_eq!(owner(99), Some(("a", 7000)));
        assert_eq!(owner(100), Some(("b", 7001)));
        assert_eq!(owner(201), None);
        for rubbish in [
            Value::Nil,
            Value::Array(vec![Value::Nil]),
            Value::Array(vec![row(0, 70_000, node(bulk("a"), 1))]),
            Value::Array(vec![row(0, 1, Value::Int(1))]),
        ] {
            assert!(SlotMap::read(&asked, rubbish).is_err());
        }
    }
}
