//! What this pod heard of lately, so that somebody notices if a failover loses an invalidation together
//! with the pod that made it.
//!
//! A log names keys by their hashes, from which no pod can make the call again. It need not: what is missing
//! for good voids the lane, whatever it was.

use super::{Epoch, Head, Ring};
use crate::time::Millis;
use std::collections::{BTreeSet, VecDeque};

/// One key that was invalidated, or an entity that was cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Item {
    seq: u64,
    /// The key's hash, or the entity's.
    hash: u64,
    /// When: in [`Ring::RETENTION`]s.
    period: u32,
}

/// What the log of one lane was heard to make invalid, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Heard {
    /// The epoch whose log it is.
    epoch: Option<Epoch>,
    items: VecDeque<Item>,
    /// The highest number of an entry that is not remembered any more.
    forgotten: u64,
    /// What the store lost, and nobody has logged again so far.
    orphans: BTreeSet<u64>,
    /// The store lost more than is remembered.
    beyond: bool,
}

impl Heard {
    /// How many keys a lane remembers at most: 96 KiB.
    pub const CAPACITY: usize = 4096;

    /// Entry `seq` of the log makes all under these hashes invalid; if it is there again, so much the better.
    pub fn push(&mut self, seq: u64, hashes: &[u64], now: Millis) {
        self.repaired(hashes);
        let period = period(now);
        for &hash in hashes {
            while let Some(oldest) = self.items.front() {
                if self.items.len() < Self::CAPACITY && oldest.period + 1 >= period {
                    break;
                }
                self.forgotten = self.forgotten.max(oldest.seq);
                self.items.pop_front();
            }
            self.items.push_back(Item { seq, hash, period });
        }
    }

    /// All under these hashes was made invalid in the epoch followed.
    pub fn repaired(&mut self, hashes: &[u64]) {
        if !self.orphans.is_empty() {
            hashes.iter().for_each(|hash| {
                self.orphans.remove(hash);
            });
        }
    }

    /// The log goes on in the epoch of `head`.
    pub fn enter(&mut self, head: &Head, now: Millis) {
        let before = self.epoch.replace(head.at.epoch);
        if before == Some(head.at.epoch) {
            return;
        }
        if !head.fork {
            // Nothing that was stored before counts any more.
            self.items.clear();
            self.orphans.clear();
            (self.forgotten, self.beyond) = (0, false);
            return;
        }
        let known = before == Some(head.prev_epoch);
        // An epoch that continues another one than that shares nothing with it for certain. What is older
        // than any failover takes was replicated all the same.
        let shared = if known { head.fork_seq } else { 0 };
        let recent = |item: &Item| item.period + 1 >= period(now);
        self.beyond |= known && self.forgotten > shared;
        self.forgotten = self.forgotten.min(shared);
        let orphans = &mut self.orphans;
        self.items.retain(|item| {
            let kept = item.seq <= shared;
            if !kept && (known || recent(item)) {
                orphans.insert(item.hash);
            }
            kept
        });
    }

    /// Whether the store lost something that nobody has logged again.
    #[must_use]
    pub fn has_orphans(&self) -> bool {
        self.beyond || !self.orphans.is_empty()
    }
}

fn period(now: Millis) -> u32 {
    u32::try_from(u128::from(now.0) / Ring::RETENTION.as_millis()).unwrap_or(u32::MAX - 1)
}
