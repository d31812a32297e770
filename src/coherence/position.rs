//! Places in a lane's log, and the head that names the newest one.

use std::fmt;
use std::time::Duration;

/// A slice of the key space with its own ordered log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(pub u16);

/// One timeline of a lane: drawn at random whenever continuity with the past cannot be shown.
///
/// Epochs are identities, not numbers: two of them are equal or different, never smaller or larger.
/// A pod orders the epochs it has seen by its own [`Rank`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

/// Names one call that was logged. Unique, so that it identifies the origin of a log entry and makes
/// a repeated call recognisable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Nonce(pub u64);

/// One life of the server process, as a hash of its replication id: changes with each restart and
/// each promotion.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Incarnation(pub u64);

macro_rules! hex_debug {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:x})"), self.0)
            }
        }
    )*};
}
hex_debug!(Epoch, Nonce, Incarnation);

/// A place in a lane's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// The timeline.
    pub epoch: Epoch,
    /// The entry's number in it; counts from 1 without holes.
    pub seq: u64,
}

/// Length of a stored [`Head`] in bytes.
pub const HEAD_LEN: usize = 56;

/// The newest position of a lane's log as the store keeps it, with what is needed to tell whether
/// it continues the log that a pod has been following.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Head {
    /// The newest position.
    pub at: Position,
    /// The nonce of the entry at that position.
    pub nonce: Nonce,
    /// The server life under which the epoch was opened.
    pub incarnation: Incarnation,
    /// The epoch this one continues, if [`fork`](Self::fork) says so.
    pub prev_epoch: Epoch,
    /// The last sequence number shared with `prev_epoch`.
    pub fork_seq: u64,
    /// When something was last published on the lane: the server's clock, in milliseconds. Or how much of
    /// its log [was not published yet](Self::unpublished), above the highest of its 48 bits.
    pub last_pub_ms: u64,
    /// Whether values and entries of `prev_epoch` up to `fork_seq` are still good: true after a
    /// promotion, false after a fence.
    pub fork: bool,
    /// When a fork was opened: seconds of the server's clock, modulo 2¹⁵ (nine hours).
    pub forked_s: u16,
}

/// From here on it is no time, but a number of entries: the highest of 48 bits.
const UNPUBLISHED: u64 = 1 << 47;
/// Where the seconds of a fork start again from nothing.
const FORKED_MODULUS: u64 = 1 << 15;
/// By how many seconds the server's clock may have been set back since.
const SET_BACK: u64 = 60;

impl Head {
    /// The stored form: big-endian `epoch 8 · seq 8 · nonce 8 · incarnation 8 · prev_epoch 8 ·
    /// fork_seq 8 · last_pub_ms 6 · flags 2`; the flags are the fork's time above the bit that says
    /// whether it is one.
    #[must_use]
    pub fn encode(&self) -> [u8; HEAD_LEN] {
        let mut out = [0; HEAD_LEN];
        out[0..8].copy_from_slice(&self.at.epoch.0.to_be_bytes());
        out[8..16].copy_from_slice(&self.at.seq.to_be_bytes());
        out[16..24].copy_from_slice(&self.nonce.0.to_be_bytes());
        out[24..32].copy_from_slice(&self.incarnation.0.to_be_bytes());
        out[32..40].copy_from_slice(&self.prev_epoch.0.to_be_bytes());
        out[40..48].copy_from_slice(&self.fork_seq.to_be_bytes());
        out[48..54].copy_from_slice(&self.last_pub_ms.to_be_bytes()[2..]);
        out[54..56].copy_from_slice(&(self.forked_s << 1 | u16::from(self.fork)).to_be_bytes());
        out
    }

    /// Reads the stored form; `None` if the length is wrong. A head that cannot be read is treated
    /// like a missing one: a new epoch is opened.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEAD_LEN] = bytes.try_into().ok()?;
        let word = |at: usize| {
            let mut out = [0; 8];
            out.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(out)
        };
        Some(Self {
            at: Position {
                epoch: Epoch(word(0)),
                seq: word(8),
            },
            nonce: Nonce(word(16)),
            incarnation: Incarnation(word(24)),
            prev_epoch: Epoch(word(32)),
            fork_seq: word(40),
            last_pub_ms: word(48) >> 16,
            fork: bytes[55] & 1 == 1,
            forked_s: u16::from_be_bytes([bytes[54], bytes[55]]) >> 1,
        })
    }

    /// How many of the newest entries are logged and not published yet: a store may publish those of some
    /// milliseconds together.
    #[must_use]
    pub fn unpublished(&self) -> u64 {
        self.last_pub_ms.saturating_sub(UNPUBLISHED)
    }

    /// The time of a fork that is opened now, as a head keeps it.
    #[must_use]
    pub fn fork_time(server_ms: u64) -> u16 {
        (server_ms / 1000 % FORKED_MODULUS) as u16
    }

    /// How long ago the fork was opened, by the clock of the server that opened it: never more than it
    /// is, and every nine hours it counts from nothing again.
    #[must_use]
    pub fn fork_age(&self, server_ms: u64) -> Duration {
        let seconds = server_ms / 1000 + FORKED_MODULUS - u64::from(self.forked_s);
        let seconds = seconds % FORKED_MODULUS;
        if seconds >= FORKED_MODULUS - SET_BACK {
            return Duration::ZERO;
        }
        // Both were cut off to whole seconds.
        Duration::from_secs(seconds.saturating_sub(1))
    }
}

/// A position in this pod's own order of everything it has followed on one lane.
///
/// Positions of one epoch compare by sequence number; positions of different epochs cannot be
/// compared by themselves. Each pod numbers the epochs of a lane in the order in which it came to
/// know them, and packs that ordinal (16 bits) above the sequence number (48 bits), so that "was
/// this loaded before that invalidation" is one integer comparison.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Rank(pub u64);

impl Rank {
    const SEQ_BITS: u32 = 48;
    const SEQ_MASK: u64 = (1 << Self::SEQ_BITS) - 1;

    /// The rank of sequence number `seq` in the pod's `ordinal`-th epoch of the lane.
    #[must_use]
    pub fn new(ordinal: u16, seq: u64) -> Self {
        Self(u64::from(ordinal) << Self::SEQ_BITS | seq.min(Self::SEQ_MASK))
    }

    /// The sequence number part.
    #[must_use]
    pub fn seq(self) -> u64 {
        self.0 & Self::SEQ_MASK
    }

    /// The pod's ordinal of the epoch.
    #[must_use]
    pub fn ordinal(self) -> u16 {
        (self.0 >> Self::SEQ_BITS) as u16
    }
}

impl fmt::Debug for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rank({}:{})", self.ordinal(), self.seq())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_survives_its_stored_form() {
        let head = Head {
            at: Position {
                epoch: Epoch(0x0102_0304_0506_0708),
                seq: 77,
            },
            nonce: Nonce(9),
            incarnation: Incarnation(u64::MAX),
            prev_epoch: Epoch(3),
            fork_seq: 70,
            last_pub_ms: (1 << 48) - 1,
            fork: true,
            forked_s: (1 << 15) - 1,
        };
        assert_eq!(Head::decode(&head.encode()), Some(head));
        assert_eq!(Head::decode(&head.encode()[..55]), None);
    }

    #[test]
    fn the_age_of_a_fork_is_never_too_high_and_survives_the_turn_of_its_clock() {
        let turn = FORKED_MODULUS * 1000;
        for opened in [0, 1_999, turn - 1, turn + 500, 7 * turn - 1_500] {
            for age in [0, 400, 1_000, 5_000, 600_000] {
                let head = Head {
                    fork: true,
                    forked_s: Head::fork_time(opened),
                    ..Head::decode(&[0; HEAD_LEN]).expect("the right length")
                };
                let seen = head.fork_age(opened + age);
                let age = Duration::from_millis(age);
                assert!(
                    seen <= age && age < seen + Duration::from_secs(2),
                    "{opened} {age:?}"
                );
            }
        }
    }

    #[test]
    fn a_later_epoch_outranks_every_position_of_an_earlier_one() {
        assert!(Rank::new(2, 1) > Rank::new(1, u64::MAX));
        assert!(Rank::new(2, 5) > Rank::new(2, 4));
        assert_eq!((Rank::new(3, 9).ordinal(), Rank::new(3, 9).seq()), (3, 9));
    }
}
