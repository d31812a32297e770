//! What all pods of a namespace must agree on, and the record of it in the store (hole H24).
//!
//! A key is kept, and its invalidations are logged, at a place that follows from the number of lanes,
//! the seed of the hashes and the encoding of keys. Pods that disagree on one of these do not hear each
//! other, and neither would notice. So the first pod writes down what it goes by, every other one
//! compares before it does anything else, and every poll compares again.
//!
//! ```text
//! 1 lanes=16 seed=f3fbbc384d518cd9 keys=1 envelope=1
//! ```
//!
//! The number of lanes can be changed under a running fleet, in three rolls. Two pods may live side by
//! side if each invalidates where the other reads:
//!
//! | roll | pods read at | and invalidate also at | the record, which welcomes this row and the one above |
//! |---|---|---|---|
//! | | 16 | | `lanes=16` |
//! | 1 | 16 | 64 | `lanes=16 next=64` |
//! | 2 | 64 | 16 | `lanes=64 from=16` |
//! | 3 | 64 | | `lanes=64` |
//!
//! A pod whose row comes next moves the record on. From then on pods of the row that is no longer
//! welcome are refused: at their next poll, and before the next invalidation of theirs is acknowledged.
//! The second holds because all lanes are brought to a new epoch ([`Verdict::Settle`]) before anybody
//! goes by a new record: an acknowledgement in an epoch that a pod does not follow takes a poll, and a
//! poll reads the record. The same covers a record that was lost and is written anew.

use crate::coherence::Epoch;
use bytes::Bytes;
use std::error::Error;
use std::fmt;

/// The form of the record itself.
const RECORD_VERSION: &str = "1";
/// How canonical bytes, hashes, lanes and physical keys are made, as `docs/wire-format.md` has it.
const KEY_ENCODING: u8 = 1;

/// What one pod goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The number of lanes that it reads and fills at.
    pub(crate) lanes: u16,
    /// Another number of lanes, at which it invalidates as well.
    pub(crate) migration: Option<Migration>,
    pub(crate) seed: u64,
    /// The version of the envelopes that it writes.
    pub(crate) envelope: u8,
}

/// The way from one number of lanes to another, as one pod sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Migration {
    /// Pods will read there.
    To(u16),
    /// Pods may still read there.
    From(u16),
}

impl Migration {
    /// The other number of lanes.
    pub(crate) fn other(self) -> u16 {
        match self {
            Self::To(lanes) | Self::From(lanes) => lanes,
        }
    }
}

/// What the store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    lanes: u16,
    stage: Stage,
    seed: u64,
    keys: u8,
    envelope: u8,
    /// The epoch that every lane has to be brought to before anybody goes by this record.
    opening: Option<Epoch>,
}

/// Where a change of the number of lanes stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// There is none.
    Settled,
    /// Pods begin to invalidate there as well.
    Next(u16),
    /// Pods begin to read at the new number; those before invalidate there already.
    From(u16),
}

/// What a pod has to do about a record.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// Nothing: it may go by it.
    Join,
    /// Put this record in the place of the one that was judged, and look again.
    Propose(Bytes),
    /// Bring every lane to this epoch, then put the record in the place of the one that was judged.
    Settle(Epoch, Bytes),
    /// Keep out.
    Refuse(Mismatch),
}

impl Settings {
    /// What to do about what the store holds. `opening` is the epoch that a record of ours would have
    /// all lanes brought to.
    pub(crate) fn judge(&self, found: Option<&[u8]>, opening: Epoch) -> Verdict {
        let Some(found) = found else {
            return Verdict::Propose(self.first_record(opening).encode());
        };
        let Some(record) = Record::decode(found) else {
            return Verdict::Refuse(mismatch("record", shown(found), self.described()));
        };
        if let Some(mismatch) = self.misfit(&record) {
            return Verdict::Refuse(mismatch);
        }
        if self.is_welcome(&record) {
            return record.settle();
        }
        match self.next_record(&record, opening) {
            Some(next) => Verdict::Propose(next.encode()),
            None => {
                let (theirs, ours) = (record.lanes_described(), self.lanes_described());
                Verdict::Refuse(mismatch("lanes", theirs, ours))
            }
        }
    }

    /// Whether a poll that found this record is worth anything: not if we have to write it first.
    ///
    /// # Errors
    /// What we disagree on.
    pub(crate) fn may_go_by(&self, found: Option<&[u8]>) -> Result<bool, Mismatch> {
        match self.judge(found, Epoch(0)) {
            Verdict::Join | Verdict::Settle(..) => Ok(true),
            Verdict::Propose(_) => Ok(false),
            Verdict::Refuse(mismatch) => Err(mismatch),
        }
    }

    /// Whether pods like us and every pod that the record welcomes invalidate where the others read.
    fn is_welcome(&self, record: &Record) -> bool {
        use Migration::{From, To};
        let here = self.lanes == record.lanes;
        match (record.stage, self.migration) {
            (Stage::Settled, None | Some(From(_))) | (Stage::Next(_), None) => here,
            (Stage::Next(next), Some(To(other))) => here && other == next,
            (Stage::From(old), Some(From(other))) => here && other == old,
            (Stage::From(old), Some(To(other))) => (self.lanes, other) == (old, record.lanes),
            _ => false,
        }
    }

    /// The record that follows, if it is our turn to write it.
    fn next_record(&self, record: &Record, opening: Epoch) -> Option<Record> {
        use Migration::{From, To};
        let here = self.lanes == record.lanes;
        let (stage, opening) = match (record.stage, self.migration) {
            // Who is welcome stays so: nothing has to be fenced off.
            (Stage::Settled, Some(To(next))) if here => (Stage::Next(next), record.opening),
            (Stage::Next(next), Some(From(old))) if (self.lanes, old) == (next, record.lanes) => {
                (Stage::From(old), Some(opening))
            }
            (Stage::From(_), None) if here => (Stage::Settled, Some(opening)),
            _ => return None,
        };
        Some(Record {
            lanes: self.lanes,
            stage,
            opening,
            ..*record
        })
    }

    /// Where there is none, others may go by another all the same: it may have been evicted.
    fn first_record(&self, opening: Epoch) -> Record {
        Record {
            lanes: self.lanes,
            stage: match self.migration {
                None => Stage::Settled,
                Some(Migration::To(next)) => Stage::Next(next),
                Some(Migration::From(old)) => Stage::From(old),
            },
            seed: self.seed,
            keys: KEY_ENCODING,
            envelope: self.envelope,
            opening: Some(opening),
        }
    }

    /// What nobody can change under a running fleet.
    fn misfit(&self, record: &Record) -> Option<Mismatch> {
        let number = |setting, theirs: u8, ours: u8| {
            (theirs != ours).then(|| mismatch(setting, theirs.to_string(), ours.to_string()))
        };
        let seed = (record.seed != self.seed).then(|| {
            let hex = |seed: u64| format!("{seed:016x}");
            mismatch("seed", hex(record.seed), hex(self.seed))
        });
        seed.or_else(|| number("keys", record.keys, KEY_ENCODING))
            .or_else(|| number("envelope", record.envelope, self.envelope))
    }

    fn lanes_described(&self) -> String {
        self.first_record(Epoch(0)).lanes_described()
    }

    fn described(&self) -> String {
        let record = self.first_record(Epoch(0));
        let record = Record {
            opening: None,
            ..record
        };
        String::from_utf8_lossy(&record.encode()).into_owned()
    }
}

impl Record {
    /// What somebody who is welcome has to do.
    fn settle(self) -> Verdict {
        let settled = Self {
            opening: None,
            ..self
        };
        match self.opening {
            None => Verdict::Join,
            Some(epoch) => Verdict::Settle(epoch, settled.encode()),
        }
    }

    fn encode(&self) -> Bytes {
        let Self {
            lanes,
            seed,
            keys,
            envelope,
            ..
        } = self;
        let mut text = format!(
            "{RECORD_VERSION} lanes={lanes} seed={seed:016x} keys={keys} envelope={envelope}"
        );
        match self.stage {
            Stage::Settled => {}
            Stage::Next(next) => text.push_str(&format!(" next={next}")),
            Stage::From(from) => text.push_str(&format!(" from={from}")),
        }
        if let Some(Epoch(epoch)) = self.opening {
            text.push_str(&format!(" opening={epoch:016x}"));
        }
        text.into()
    }

    /// `None` for what this version does not understand in every word: it may say something that must
    /// be heeded.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(bytes).ok()?.split(' ').peekable();
        if words.next()? != RECORD_VERSION {
            return None;
        }
        let mut record = Self {
            lanes: field(words.next()?, "lanes")?.parse().ok()?,
            seed: u64::from_str_radix(field(words.next()?, "seed")?, 16).ok()?,
            keys: field(words.next()?, "keys")?.parse().ok()?,
            envelope: field(words.next()?, "envelope")?.parse().ok()?,
            stage: Stage::Settled,
            opening: None,
        };
        if let Some(next) = words.peek().and_then(|word| field(word, "next")) {
            record.stage = Stage::Next(next.parse().ok()?);
            words.next();
        } else if let Some(from) = words.peek().and_then(|word| field(word, "from")) {
            record.stage = Stage::From(from.parse().ok()?);
            words.next();
        }
        if let Some(epoch) = words.peek().and_then(|word| field(word, "opening")) {
            record.opening = Some(Epoch(u64::from_str_radix(epoch, 16).ok()?));
            words.next();
        }
        words.next().is_none().then_some(record)
    }

    fn lanes_described(&self) -> String {
        match self.stage {
            Stage::Settled => self.lanes.to_string(),
            Stage::Next(next) => format!("{} (migrating to {next})", self.lanes),
            Stage::From(from) => format!("{} (migrating from {from})", self.lanes),
        }
    }
}

fn mismatch(setting: &'static str, registered: String, ours: String) -> Mismatch {
    Mismatch {
        setting,
        registered,
        ours,
    }
}

fn field<'a>(word: &'a str, name: &str) -> Option<&'a str> {
    word.strip_prefix(name)?.strip_prefix('=')
}

/// A record that cannot be read, as far as it may be shown: somebody else's bytes.
fn shown(bytes: &[u8]) -> String {
    const SHOWN: usize = 64;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]);
    text.escape_debug().to_string()
}

/// This pod and its namespace's record in the store disagree: their invalidations would not reach each
/// other. See [`BuildError::mismatch`](crate::BuildError::mismatch).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    setting: &'static str,
    registered: String,
    ours: String,
}

impl Mismatch {
    /// What they disagree on: `lanes` (an option of [`CacheBuilder`](crate::CacheBuilder)), `seed`,
    /// `keys` or `envelope` (which belong to the version of this crate), or `record` if the record
    /// itself cannot be read.
    #[must_use]
    pub fn setting(&self) -> &'static str {
        self.setting
    }

    /// What the store says.
    #[must_use]
    pub fn registered(&self) -> &str {
        &self.registered
    }

    /// What this pod was built with.
    #[must_use]
    pub fn ours(&self) -> &str {
        &self.ours
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            setting,
            registered,
            ours,
        } = self;
        write!(
            f,
            "the namespace is registered with {setting} {registered}, this pod has {ours}"
        )
    }
}

impl Error for Mismatch {}

#[cfg(test)]
mod tests;
