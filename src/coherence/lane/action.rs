//! What a lane answers to what it learns: what the pod must do, and what a call of its own is worth.

use crate::coherence::wire::Change;
use crate::coherence::{Call, Epoch, Kind, LogEntry, Nonce, Position, Rank};
use crate::time::Millis;
use std::sync::Arc;

/// What the pod must do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Remove what is older than `rank` under `hash`, let nobody join a flight older than it, and
    /// refuse older values from now on.
    Evict {
        /// The key's hash.
        hash: u64,
        /// The position of the invalidation.
        rank: Rank,
    },
    /// Remove whatever stands under `hash` now: an invalidation that has no place in the epoch
    /// followed. Removing is always safe; refusing would need a rank.
    Drop {
        /// The key's hash.
        hash: u64,
    },
    /// Tell those who watch tags. It follows the removals that belong to it. The same entry may be
    /// told more than once, and one that the pod logged itself as well: its nonce says so.
    Tell {
        /// The entry's nonce.
        nonce: Nonce,
        /// What it makes invalid.
        change: Change,
    },
    /// Remove every entry of the entity on this lane that is older than `rank`.
    Clear {
        /// The entity's hash.
        entity: u64,
        /// The position of the clear.
        rank: Rank,
    },
    /// Everything of this lane is of unknown worth: start a new generation.
    Flush,
    /// The lane is live until L after this time.
    Confirm {
        /// When the confirming poll was sent.
        sent: Millis,
    },
    /// Read the log from this sequence number on (inclusive) and give it to
    /// [`LaneState::on_log`](super::LaneState::on_log).
    ReadLog {
        /// The first entry to read.
        from: u64,
    },
    /// Ask for the heads now, rather than at the next heartbeat.
    Poll,
    /// The store has no head for this lane: have one opened, then give it to
    /// [`LaneState::on_head`](super::LaneState::on_head).
    Touch,
    /// The store lost part of what it had logged: have a new epoch opened that continues nothing.
    Fence {
        /// The epoch that must end.
        epoch: Epoch,
    },
    /// A successor of the store lost this call: log it again.
    Reissue(Arc<Call>),
    /// Somebody's fill of this key has landed.
    Filled {
        /// The key's hash.
        hash: u64,
    },
}

/// What the answer to a call of our own is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// It is on the timeline that this pod follows, and applied here.
    Acknowledged(Position),
    /// It is in an epoch that this pod does not know: poll, then give it to
    /// [`LaneState::on_ack`](super::LaneState::on_ack) again.
    Unknown(Position),
    /// It is on a dead timeline (hole H16): run it again.
    Lost,
}

/// What an entry says, as actions.
pub(super) fn announce(entry: &LogEntry, rank: Rank, out: &mut Vec<Action>) {
    let Some(change) = entry.change() else {
        return;
    };
    match entry.kind {
        Kind::Clear => out.push(Action::Clear {
            entity: change.entity,
            rank,
        }),
        _ => out.extend(change.keys.iter().map(|&hash| Action::Evict { hash, rank })),
    }
    out.push(Action::Tell {
        nonce: entry.nonce,
        change,
    });
}

/// What an entry of an epoch that is not followed says. A clear needs a rank; coming to know its epoch
/// covers it.
pub(super) fn announce_without_place(entry: &LogEntry, out: &mut Vec<Action>) {
    if let Some(change) = entry.change() {
        out.extend(change.keys.iter().map(|&hash| Action::Drop { hash }));
        out.push(Action::Tell {
            nonce: entry.nonce,
            change,
        });
    }
}
