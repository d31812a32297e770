//! Log entries, hints and batches of them, and the bytes they travel as. `docs/wire-format.md` is the
//! specification.

use super::{Epoch, Lane, Nonce, Position};

/// Version byte of log entries and hints.
pub const WIRE_VERSION: u8 = 1;
/// Bytes of a log entry before its hashes.
pub const ENTRY_PREFIX: usize = 18;
/// Bytes of a hint before its hashes.
pub const HINT_PREFIX: usize = 44;
/// The most keys one entry may name; longer lists are split by the sender.
pub const MAX_KEYS: usize = 64;
/// Bytes of a batch before the names of its entities: a hint without hashes, the number of entries, the
/// nonce before them, and the number of entities.
pub const BATCH_PREFIX: usize = HINT_PREFIX + 11;
/// The kind byte of a batch.
const BATCH: u8 = 6;

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

/// A pub/sub message that carries several log entries: those that were logged behind each other on one
/// lane, of one epoch. Only ever hints.
///
/// Its front is that of a [`Hint`] of a kind of its own, with the last entry's number and no nonces. A
/// version that does not know the kind reads from it that there is more than it has applied, and reads
/// the log: without nonces nothing can be taken for the next entry of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Batch {
    /// The lane.
    pub lane: Lane,
    /// The epoch the entries were logged in.
    pub epoch: Epoch,
    /// When they were published: the server's clock, in milliseconds.
    pub server_ms: u64,
    /// The entries: [`Kind::Invalidate`] with keys, or [`Kind::Clear`]; numbers and nonces without a gap.
    pub entries: Vec<LogEntry>,
}

impl Batch {
    /// The wire form: `version 1 · kind 1 · lane 2 · epoch 8 · last seq 8 · 0 16 · server ms 6 · 0 2 ·
    /// entries 2 · prev nonce 8 · entities 1 · entity 8 × entities`, then for each entry `entity's place 1 ·
    /// keys 1 · nonce 8 · key 8 × keys`. An entry without keys is a clear.
    ///
    /// What has no such form is left out with all that follows it: an entry of another kind, of a gap, or
    /// with more than 255 keys; one beyond 255 entities or 65,535 entries.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (mut names, mut parts) = (Vec::new(), Vec::new());
        let mut packed: Vec<&LogEntry> = Vec::new();
        for entry in &self.entries {
            let follows = packed.last().is_none_or(|last| {
                entry.prev == last.nonce && Some(entry.seq) == last.seq.checked_add(1)
            });
            let whole = entry.kind != Kind::Clear || entry.hashes.len() == 1;
            let Some(change) = entry.change().filter(|_| follows && whole) else {
                break;
            };
            let known = names.iter().position(|&name| name == change.entity);
            let place = known.unwrap_or(names.len());
            let (Ok(at), Ok(keys)) = (u8::try_from(place), u8::try_from(change.keys.len())) else {
                break;
            };
            if at == u8::MAX || packed.len() == usize::from(u16::MAX) {
                break;
            }
            if known.is_none() {
                names.push(change.entity);
            }
            parts.extend([at, keys]);
            parts.extend(entry.nonce.0.to_be_bytes());
            parts.extend(change.keys.iter().flat_map(|key| key.to_be_bytes()));
            packed.push(entry);
        }
        let front = Hint {
            lane: self.lane,
            epoch: self.epoch,
            server_ms: self.server_ms,
            entry: LogEntry {
                seq: packed.last().map_or(0, |last| last.seq),
                kind: Kind::Unknown(BATCH),
                prev: Nonce(0),
                nonce: Nonce(0),
                hashes: Vec::new(),
            },
        };
        let mut out = front.encode();
        out.extend((packed.len() as u16).to_be_bytes());
        let before = packed.first().map_or(0, |first| first.prev.0);
        out.extend(before.to_be_bytes());
        out.push(names.len() as u8);
        out.extend(names.iter().flat_map(|name| name.to_be_bytes()));
        out.extend(parts);
        out
    }

    /// Reads the wire form; `None` if it is not one of ours. Bytes behind the entries are of a later
    /// version, and ignored.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let front = Hint::decode(bytes).filter(|front| front.entry.kind == Kind::Unknown(BATCH))?;
        let mut bytes = Reader(bytes.get(HINT_PREFIX + 8 * front.entry.hashes.len()..)?);
        let count = u64::from(bytes.u16()?);
        let mut prev = Nonce(bytes.u64()?);
        let names = usize::from(bytes.u8()?);
        let names = Reader(bytes.take(8 * names)?).hashes()?;
        let before = front.entry.seq.checked_sub(count)?;
        let mut entries = Vec::new();
        for seq in before..front.entry.seq {
            let name = *names.get(usize::from(bytes.u8()?))?;
            let keys = usize::from(bytes.u8()?);
            let nonce = Nonce(bytes.u64()?);
            let mut hashes = vec![name];
            hashes.extend(Reader(bytes.take(8 * keys)?).hashes()?);
            let kind = match keys {
                0 => Kind::Clear,
                _ => Kind::Invalidate,
            };
            entries.push(LogEntry {
                seq: seq + 1,
                kind,
                prev: std::mem::replace(&mut prev, nonce),
                nonce,
                hashes,
            });
        }
        Some(Self {
            lane: front.lane,
            epoch: front.epoch,
            server_ms: front.server_ms,
            entries,
        })
    }

    /// The same as hints, one for each entry.
    pub fn into_hints(self) -> impl Iterator<Item = Hint> {
        let Self {
            lane,
            epoch,
            server_ms,
            entries,
        } = self;
        entries.into_iter().map(move |entry| Hint {
            lane,
            epoch,
            server_ms,
            entry,
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

    fn batch() -> Batch {
        let entry = |seq, kind, hashes| LogEntry {
            seq,
            kind,
            prev: Nonce(seq + 99),
            nonce: Nonce(seq + 100),
            hashes,
        };
        Batch {
            lane: Lane(3),
            epoch: Epoch(0xE0),
            server_ms: 0x0102_0304_0506,
            entries: vec![
                entry(12, Kind::Invalidate, vec![7, 8]),
                entry(13, Kind::Clear, vec![9]),
                entry(14, Kind::Invalidate, vec![7, 1, 2]),
            ],
        }
    }

    #[test]
    fn a_batch_survives_the_wire_and_costs_18_bytes_a_key() {
        let bytes = batch().encode();
        assert_eq!(bytes.len(), BATCH_PREFIX + 2 * 8 + 3 * 10 + 3 * 8);
        assert_eq!(Batch::decode(&bytes), Some(batch()));
        let mut longer = bytes.clone();
        longer.extend([1, 2, 3]);
        assert_eq!(Batch::decode(&longer), Some(batch()), "of a later version");
        for len in 0..bytes.len() {
            assert_eq!(Batch::decode(&bytes[..len]), None, "prefix of {len} bytes");
        }
        assert_eq!(Batch::decode(&hint().encode()), None);
    }

    #[test]
    fn what_a_batch_has_no_form_for_ends_it() {
        let whole = batch();
        for spoil in [
            |entry: &mut LogEntry| entry.kind = Kind::Fork,
            |entry: &mut LogEntry| entry.seq = 99,
            |entry: &mut LogEntry| entry.prev = Nonce(1),
            |entry: &mut LogEntry| entry.hashes = vec![3; 257],
            |entry: &mut LogEntry| entry.hashes = vec![],
        ] {
            let mut batch = whole.clone();
            spoil(&mut batch.entries[1]);
            let read = Batch::decode(&batch.encode()).expect("a batch");
            assert_eq!(read.entries, whole.entries[..1]);
        }
    }

    /// What a version that knows no batches makes of one: no step of a chain, whatever it has applied.
    #[test]
    fn the_front_of_a_batch_is_a_hint_without_nonces() {
        let front = Hint::decode(&batch().encode()).expect("a hint");
        assert_eq!(front.entry.kind, Kind::Unknown(6));
        assert_eq!(front.entry.seq, 14);
        assert_eq!((front.entry.prev, front.entry.nonce), (Nonce(0), Nonce(0)));
        assert_eq!(front.entry.change(), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, seq: u64) {
            if let Some(hint) = Hint::decode(&bytes) {
                let again = hint.encode();
                // What was read is what was there: all but a later version's surplus.
                prop_assert_eq!(&again[1..], &bytes[1..again.len()]);
            }
            if let Some(batch) = Batch::decode(&bytes) {
                prop_assert_eq!(Batch::decode(&batch.encode()), Some(batch));
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
