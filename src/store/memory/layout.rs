//! The front of stored bytes, as far as the store itself looks at it.
//!
//! Big-endian `magic 1 · version 1 · state 1 · waited 1 · token 8 · epoch 8 · seq 8`. A lease is these
//! 28 bytes alone; a value goes on behind them in a way that no store reads.

use crate::coherence::{Epoch, Position};
use crate::envelope::{LEASE_LEN, Lease};
use bytes::Bytes;

/// Length of the front.
pub(crate) const FRONT_LEN: usize = LEASE_LEN;
/// First byte of everything this crate stores under a key.
const MAGIC: u8 = 0xD7;
const STATE_AT: usize = 2;
const WAITED_AT: usize = 3;
/// The states of a value: a success, and an error that is remembered.
const VALUE_STATES: [u8; 2] = [1, 2];
const LEASE_STATE: u8 = 3;

/// What stands under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Value,
    Lease { waited: bool },
}

/// The front of stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Front {
    pub(crate) state: State,
    pub(crate) token: u64,
    pub(crate) epoch: Epoch,
    pub(crate) seq: u64,
}

impl Front {
    /// Reads the front; `None` if the bytes are too short or not of ours.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let front: &[u8; FRONT_LEN] = bytes.first_chunk()?;
        let word = |at: usize| {
            front[at..at + 8]
                .iter()
                .fold(0, |n, b| n << 8 | u64::from(*b))
        };
        let state = match front[STATE_AT] {
            LEASE_STATE => State::Lease {
                waited: front[WAITED_AT] == 1,
            },
            state if VALUE_STATES.contains(&state) => State::Value,
            _ => return None,
        };
        (front[0] == MAGIC).then_some(Self {
            state,
            token: word(4),
            epoch: Epoch(word(12)),
            seq: word(20),
        })
    }

    /// The stored form.
    pub(crate) fn write(&self) -> [u8; FRONT_LEN] {
        let began = Position {
            epoch: self.epoch,
            seq: self.seq,
        };
        let mut out = Lease {
            token: self.token,
            began,
        }
        .encode();
        (out[STATE_AT], out[WAITED_AT]) = match self.state {
            State::Value => (VALUE_STATES[0], 0),
            State::Lease { waited } => (LEASE_STATE, u8::from(waited)),
        };
        out
    }
}

/// A lease with the mark that somebody waits for it; whatever else it holds is kept.
pub(super) fn mark_waited(lease: &[u8]) -> Bytes {
    let mut lease = lease.to_vec();
    lease[WAITED_AT] = 1;
    lease.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn front_survives_its_stored_form_and_strangers_are_refused() {
        for state in [State::Value, State::Lease { waited: true }] {
            let front = Front {
                state,
                token: 7,
                epoch: Epoch(u64::MAX - 1),
                seq: 0x0102_0304,
            };
            let mut bytes = front.write();
            assert_eq!(Front::read(&bytes), Some(front));
            assert_eq!(Front::read(&bytes[..FRONT_LEN - 1]), None);
            bytes[0] = 0;
            assert_eq!(Front::read(&bytes), None);
            assert_eq!(Front::read(&[MAGIC, 1, 9, 0]), None);
        }
    }
}
