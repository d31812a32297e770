//! Log entries and hints, and the bytes they travel as. `docs/wire-format.md` is the specification.

use super::{Epoch, Lane, Nonce, Position};

/// Version byte of log entries and hints.
pub const WIRE_VERSION: u8 = 1;
/// Bytes of a log entry before its hashes.
pub const ENTRY_PREFIX: usize = 18;
/// Bytes of a hint before its hashes.
pub const HINT_PREFIX: usize = 44;
/// The most keys one entry may name; longer lists are split by the sender.
pub const MAX_KEYS: usize = 64;

/// What a log entry or hint announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Some keys of an entity are invalid.
    Invalidate,
    /// Every key of an entity is invalid.
    Clear,
    /// A new epoch that continues the previous one up to its fork point.
    Fork,
    /// A new epoch that continues nothing: every older value is dead.
    Fence,
    /// A fill that somebody waits for has landed. A hint only, never logged.
    Filled,
    /// A kind of a later version: it moves the chain and does nothing else.
    Unknown(u8),
}

impl Kind {
    /// The byte on the wire.
    #[must_use]
    pub fn byte(self) -> u8 {
        match self {
            Self::Invalidate => 1,
            Self::Clear => 2,
            Self::Fork => 3,
            Self::Fence => 4,
            Self::Filled => 5,
            Self::Unknown(byte) => byte,
        }
    }

    fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Invalidate,
            2 => Self::Clear,
            3 => Self::Fork,
            4 => Self::Fence,
            5 => Self::Filled,
            other => Self::Unknown(other),
        }
    }
}

/// One entry of a lane's log. Its sequence number is its place in the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogEntry {
    /// The entry's number.
    pub seq: u64,
    /// What it announces.
    pub kind: Kind,
    /// The nonce of the entry before it.
    pub prev: Nonce,
    /// Its own nonce.
    pub nonce: Nonce,
    /// The hash of the entity's name, then those of the keys concerned; of a key alone in a
    /// [`Kind::Filled`].
    pub hashes: Vec<u64>,
}

/// What an entry makes invalid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    /// The hash of the entity's name.
    pub entity: u64,
    /// Hashes of the keys; all of them if none is named.
    pub keys: Vec<u64>,
}

impl LogEntry {
    /// What the entry makes invalid, if that is what it is about.
    #[must_use]
    pub fn change(&self) -> Option<Change> {
        let (&entity, keys) = self.hashes.split_first()?;
        let keys = match self.kind {
            Kind::Invalidate if !keys.is_empty() => keys.to_vec(),
            Kind::Clear => Vec::new(),
            _ => return None,
        };
        Some(Change { entity, keys })
    }

    /// The hashes of what the entry makes invalid: of keys, or of the entity where it is all of its keys.
    #[must_use]
    pub fn invalidated(&self) -> &[u64] {
        let hashes = match self.kind {
            Kind::Invalidate => self.hashes.get(1..),
            Kind::Clear => self.hashes.get(..1),
            _ => None,
        };
        hashes.unwrap_or_default()
    }

    /// The stored form: `version 1 · kind 1 · prev nonce 8 · nonce 8 · hash 8 × n`. The sequence
    /// number is the id under which the log keeps it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ENTRY_PREFIX + 8 * self.hashes.len());
        out.extend([WIRE_VERSION, self.kind.byte()]);
        out.extend(self.prev.0.to_be_bytes());
        out.extend(self.nonce.0.to_be_bytes());
        out.extend(self.hashes.iter().flat_map(|hash| hash.to_be_bytes()));
        out
    }

    /// Reads the stored form of entry `seq`; `None` if it is not one of ours.
    #[must_use]
    pub fn decode(seq: u64, bytes: &[u8]) -> Option<Self> {
        let mut bytes = Reader(bytes);
        if bytes.u8()? == 0 {
            return None;
        }
        let kind = Kind::from_byte(bytes.u8()?);
        let (prev, nonce) = (Nonce(bytes.u64()?), Nonce(bytes.u64()?));
        Some(Self {
            seq,
            kind,
            prev,
            nonce,
            hashes: bytes.hashes()?,
        })
    }
}

/// A pub/sub message: a log entry as it was written, or that a fill landed. Only ever a hint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hint {
    /// The lane.
    pub lane: Lane,
    /// The epoch the entry was logged in.
    pub epoch: Epoch,
    /// When it was published: the server's clock, in milliseconds.
    pub server_ms: u64,
    /// The entry.
    pub entry: LogEntry,
}

impl Hint {
    /// The position of the entry.
    #[must_use]
    pub fn at(&self) -> Position {
        Position {
            epoch: self.epoch,
            seq: self.entry.seq,
        }
    }

    /// The wire form: `version 1 · kind 1 · lane 2 · epoch 8 · seq 8 · prev nonce 8 · nonce 8 ·
    /// server ms 6 · count 2 · hash 8 × n`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let entry = &self.entry;
        let mut out = Vec::with_capacity(HINT_PREFIX + 8 * entry.hashes.len());
        out.extend([WIRE_VERSION, entry.kind.byte()]);
        out.extend(self.lane.0.to_be_bytes());
        for word in [self.epoch.0, entry.seq, entry.prev.0, entry.nonce.0] {
            out.extend(word.to_be_bytes());
        }
        out.extend(&self.server_ms.to_be_bytes()[2..]);
        out.extend((entry.hashes.len() as u16).to_be_bytes());
        out.extend(entry.hashes.iter().flat_map(|hash| hash.to_be_bytes()));
        out
    }

    /// Reads the wire form; `None` if it is not one of ours. A message of a later version is read as
    /// far as this version understands it.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut bytes = Reader(bytes);
        let version = bytes.u8()?;
        let kind = Kind::from_byte(bytes.u8()?);
        let lane = Lane(bytes.u16()?);
        let epoch = Epoch(bytes.u64()?);
        let seq = bytes.u64()?;
        let (prev, nonce) = (Nonce(bytes.u64()?), Nonce(bytes.u64()?));
        let server_ms = (u64::from(bytes.u16()?) << 32) | u64::from(bytes.u32()?);
        let count = usize::from(bytes.u16()?);
        if version == 0 {
            return None;
        }
        let hashes = Reader(bytes.take(count.checked_mul(8)?)?).hashes()?;
        Some(Self {
            lane,
            epoch,
            server_ms,
            entry: LogEntry {
                seq,
                kind,
                prev,
                nonce,
                hashes,
            },
        })
    }
}

/// Reads big-endian numbers off the front of a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    fn hashes(&mut self) -> Option<Vec<u64>> {
        if !self.0.len().is_multiple_of(8) {
            return None;
        }
        std::iter::from_fn(|| (!self.0.is_empty()).then(|| self.u64())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hint() -> Hint {
        Hint {
            lane: Lane(3),
            epoch: Epoch(0xE0),
            server_ms: 0x0102_0304_0506,
            entry: LogEntry {
                seq: 12,
                kind: Kind::Invalidate,
                prev: Nonce(1),
                nonce: Nonce(2),
                hashes: vec![7, 8, 9],
            },
        }
    }

    #[test]
    fn hint_and_entry_survive_the_wire() {
        let hint = hint();
        assert_eq!(hint.encode().len(), HINT_PREFIX + 24);
        assert_eq!(Hint::decode(&hint.encode()), Some(hint.clone()));
        let bytes = hint.entry.encode();
        assert_eq!(bytes.len(), ENTRY_PREFIX + 24);
        assert_eq!(LogEntry::decode(12, &bytes), Some(hint.entry));
    }

    #[test]
    fn every_proper_prefix_of_a_hint_is_refused() {
        let bytes = hint().encode();
        for len in 0..bytes.len() {
            assert_eq!(Hint::decode(&bytes[..len]), None, "prefix of {len} bytes");
        }
    }

    #[test]
    fn a_kind_of_a_later_version_is_read_and_kept_apart() {
        let mut bytes = hint().encode();
        bytes[0] = 9;
        bytes[1] = 200;
        bytes.extend([1, 2, 3]);
        assert_eq!(
            Hint::decode(&bytes).map(|h| h.entry.kind),
            Some(Kind::Unknown(200))
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, seq: u64) {
            if let Some(hint) = Hint::decode(&bytes) {
                let again = hint.encode();
                // What was read is what was there: all but a later version's surplus.
                prop_assert_eq!(&again[1..], &bytes[1..again.len()]);
            }
            if let Some(entry) = LogEntry::decode(seq, &bytes) {
                prop_assert_eq!(&entry.encode()[1..], &bytes[1..]);
            }
        }

        #[test]
        fn a_hint_with_any_change_is_never_read_as_the_same_hint(at in 0..HINT_PREFIX + 24, to: u8) {
            let mut bytes = hint().encode();
            prop_assume!(at > 0 && bytes[at] != to);
            bytes[at] = to;
            prop_assert_ne!(Hint::decode(&bytes), Some(hint()));
        }
    }
}
