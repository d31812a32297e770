//! Closing a gap: what hints have not brought within the grace is read from the log, and applied as far
//! as it continues what is applied already.

use super::action::announce;
use super::{Action, LaneState};
use crate::coherence::{LogEntry, Mechanism, Position};
use crate::time::Millis;
use std::time::Duration;

/// A gap, and when to read it from the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Due {
    pub(super) at: Millis,
    /// The newest entry that is known to stand behind the gap.
    pub(super) seq: u64,
}

impl LaneState {
    /// How long a difference may be explained by hints still on their way.
    pub const GRACE: Duration = Duration::from_millis(10);

    /// Has the log read up to `seq` once the grace is over. It counts from when the gap was first noticed:
    /// polls that follow each other faster than the grace would put the read off for ever.
    pub(super) fn catch_up_soon(&mut self, seq: u64, now: Millis) {
        let at = now + Self::GRACE + self.deferral;
        let due = self.due.get_or_insert(Due { at, seq });
        due.seq = due.seq.max(seq);
    }

    /// Forgets the gap once all that was known behind it is applied.
    pub(super) fn close_gap(&mut self, applied: u64) {
        if self.target.is_none() && self.due.is_some_and(|due| due.seq <= applied) {
            self.due = None;
        }
    }

    /// When [`on_timer`](Self::on_timer) wants to be called.
    #[must_use]
    pub fn due(&self) -> Option<Millis> {
        self.due.map(|due| due.at)
    }

    /// Time passed.
    pub fn on_timer(&mut self, now: Millis, out: &mut Vec<Action>) {
        if self.due.is_none_or(|due| now < due.at) {
            return;
        }
        self.due = None;
        if let Some(followed) = self.followed {
            out.push(Action::ReadLog {
                from: followed.at.seq,
            });
        }
    }

    /// The log from `from` on was read, after the newest head given to [`on_head`](Self::on_head).
    pub fn on_log(&mut self, from: u64, entries: &[LogEntry], now: Millis, out: &mut Vec<Action>) {
        if self.followed.is_none() || (self.follow(entries, now, out) && self.target.is_none()) {
            return;
        }
        if let Some(epoch) = self.rewritten(entries) {
            self.target = None;
            self.due = None;
            out.push(Action::Fence { epoch });
            return;
        }
        // There is more than one read gives, or hints have overtaken it: go on from where we are, as
        // long as that gets us anywhere.
        if let Some(followed) = self.followed
            && followed.at.seq > from
            && self
                .target
                .is_none_or(|t| t.head.at.epoch == followed.at.epoch)
        {
            out.push(Action::ReadLog {
                from: followed.at.seq,
            });
            return;
        }
        // Trimmed past what we applied, or another log altogether.
        match self.target.take() {
            Some(target) => self.start_over(target.head, target.sent, now, out),
            None => {
                self.forget(out);
                out.push(Action::Poll);
            }
        }
    }

    /// Applies a piece of the log; false if it does not continue what is applied.
    pub(super) fn follow(
        &mut self,
        entries: &[LogEntry],
        now: Millis,
        out: &mut Vec<Action>,
    ) -> bool {
        let fork = self
            .target
            .filter(|t| !self.is_current(t.head.at.epoch))
            .map(|t| t.head);
        let mut anchored = false;
        for entry in entries {
            let Some(followed) = self.followed else {
                return false;
            };
            if let Some(head) = fork
                && self.is_current(head.prev_epoch)
                && entry.seq == head.fork_seq + 1
            {
                let whole = followed.at.seq > head.fork_seq
                    || (followed.at.seq == head.fork_seq && followed.nonce == entry.prev);
                if !whole || !self.take_fork(&head, entry.prev, now, out) {
                    return false;
                }
                anchored = true;
            } else if entry.seq > followed.at.seq && self.ends_epoch(entry) {
                return false;
            }
            let Some(followed) = self.followed else {
                return false;
            };
            if entry.seq == followed.at.seq {
                anchored |= entry.nonce == followed.nonce;
            }
            if entry.seq <= followed.at.seq {
                continue;
            }
            let chained = anchored || !self.mechanisms.on(Mechanism::NonceChain);
            let at = Position {
                epoch: followed.at.epoch,
                seq: entry.seq,
            };
            match self.rank_of(at) {
                Some(rank) if chained => announce(entry, rank, out),
                _ => return false,
            }
            self.hear(entry, now);
            if !self.advance(entry, now, out) {
                return false;
            }
        }
        anchored || !self.mechanisms.on(Mechanism::NonceChain)
    }
}
