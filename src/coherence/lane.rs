//! One pod's view of one lane's log: what is applied, and what follows from each thing learnt.
//!
//! Four things are learnt: a [hint](LaneState::on_hint), a [head](LaneState::on_head) from a poll, a
//! piece of the [log](LaneState::on_log), and the [answer](LaneState::on_ack) to a call of our own.
//! Each turns into [`Action`]s, to be carried out in order before anything else is learnt.
//!
//! The log is the truth and hints are only hints: an invalidation that a hint carries is carried out
//! whatever its place, because removing an entry is always safe, but `applied` moves on only along an
//! unbroken chain of nonces. Liveness comes from polls alone, and counts from when they were *sent*.

mod action;
mod catch_up;
mod epoch;

pub use action::{Ack, Action};

use super::{
    Call, Epoch, Head, Heard, Hint, Kind, LogEntry, Mechanism, Mechanisms, Nonce, Position, Rank,
    Ring, View,
};
use crate::time::Millis;
use action::{announce, announce_without_place};
use catch_up::Due;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Followed {
    ordinal: u16,
    at: Position,
    nonce: Nonce,
}

impl Followed {
    fn rank(&self) -> Rank {
        Rank::new(self.ordinal, self.at.seq)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Target {
    head: Head,
    sent: Millis,
}

/// What one pod knows of one lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LaneState {
    mechanisms: Mechanisms,
    followed: Option<Followed>,
    /// The epoch that the followed one continues, and the last position they share.
    past: Option<Position>,
    /// Epochs known to be over, newest last.
    dead: Vec<Epoch>,
    /// Epochs that were fenced: what they hold is void, newest last.
    fenced: Vec<Epoch>,
    /// A polled head that is not applied yet.
    target: Option<Target>,
    /// When to read the log, if hints have not closed the gap by then.
    due: Option<Due>,
    /// How long an entry may stand in the log before it is published.
    deferral: Duration,
    /// When `followed` last moved.
    moved_at: Millis,
    /// The epoch followed is a fork that is believed only from then on.
    doubted_until: Option<Millis>,
    ring: Ring,
    heard: Heard,
    /// Whoever lives has had the time to log again what the epoch followed lost of its calls.
    origins_are_late: bool,
}

impl LaneState {
    /// A cold lane: nothing known.
    #[must_use]
    pub fn new(mechanisms: Mechanisms) -> Self {
        Self {
            mechanisms,
            ..Self::default()
        }
    }

    /// The same lane of a store that may publish an entry only so long after it was logged.
    #[must_use]
    pub fn deferring(self, deferral: Duration) -> Self {
        Self { deferral, ..self }
    }

    /// What a load that starts now may rely on.
    #[must_use]
    pub fn view(&self) -> Option<View> {
        self.followed.map(|f| View {
            epoch: f.at.epoch,
            applied: f.rank(),
            in_doubt: self.doubted_until.is_some() || self.heard.has_orphans(),
        })
    }

    /// Everything up to here is applied, in this pod's own order.
    #[must_use]
    pub fn applied(&self) -> Option<Position> {
        self.followed.map(|f| f.at)
    }

    /// Whether a head is known that is not applied yet.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.target.is_some()
    }

    /// Whether something is not applied yet that was published before a head was read: its hint is late,
    /// or lost.
    #[must_use]
    pub fn misses_hints(&self) -> bool {
        let published = |head: &Head| head.at.seq.saturating_sub(head.unpublished());
        let missed = |head: &Head, followed: Followed| {
            head.at.epoch != followed.at.epoch || published(head) > followed.at.seq
        };
        match (self.target, self.followed) {
            (Some(target), Some(followed)) => missed(&target.head, followed),
            _ => false,
        }
    }

    /// A pub/sub message arrived.
    pub fn on_hint(&mut self, hint: &Hint, now: Millis, out: &mut Vec<Action>) {
        if hint.entry.kind == Kind::Filled {
            out.extend(
                hint.entry
                    .hashes
                    .iter()
                    .map(|&hash| Action::Filled { hash }),
            );
            return;
        }
        let Some(rank) = self.rank_of(hint.at()) else {
            if !self.dead.contains(&hint.epoch) {
                out.push(Action::Poll);
            }
            announce_without_place(&hint.entry, out);
            return;
        };
        announce(&hint.entry, rank, out);
        if self.is_current(hint.epoch) {
            self.hear(&hint.entry, now);
            if !self.advance(&hint.entry, now, out) {
                self.catch_up_soon(hint.entry.seq, now);
            }
        }
    }

    /// Remembers an entry of the epoch followed.
    fn hear(&mut self, entry: &LogEntry, now: Millis) {
        if self.mechanisms.on(Mechanism::Hearsay) {
            self.heard.push(entry.seq, entry.invalidated(), now);
        }
    }

    /// A poll (or a touch) that was sent at `sent` returned this head.
    pub fn on_head(
        &mut self,
        head: Option<Head>,
        sent: Millis,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        let Some(head) = head else {
            out.push(Action::Touch);
            return;
        };
        let sent = if self.mechanisms.on(Mechanism::SendTime) {
            sent
        } else {
            now
        };
        let Some(followed) = self.followed else {
            self.start_over(head, sent, now, out);
            return;
        };
        if !self.mechanisms.on(Mechanism::PollHeads) {
            self.confirm(sent, out);
        } else if !self.mechanisms.on(Mechanism::NonceChain) {
            self.on_bare_head(followed, head, sent, now, out);
        } else if head.at.epoch == followed.at.epoch {
            self.on_head_of_followed(followed, head, sent, now, out);
        } else if self.is_over(head.at.epoch) {
            self.on_head_of_dead(head, sent, out);
        } else if head.fork && head.prev_epoch == followed.at.epoch {
            self.target = Some(Target { head, sent });
            self.due = None;
            out.push(Action::ReadLog {
                from: followed.at.seq.min(head.fork_seq),
            });
        } else {
            self.start_over(head, sent, now, out);
        }
    }

    fn on_head_of_followed(
        &mut self,
        followed: Followed,
        head: Head,
        sent: Millis,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        let diverged = head.at.seq == followed.at.seq && head.nonce != followed.nonce;
        // The poll was sent after we had applied a position that its answer does not have: the store
        // went back in time without our noticing (a restart behind a proxy, an operator).
        let regressed = head.at.seq < followed.at.seq && sent > self.moved_at;
        if diverged || regressed {
            out.push(Action::Fence {
                epoch: head.at.epoch,
            });
        } else if head.at.seq <= followed.at.seq {
            self.confirm(sent, out);
        } else {
            self.target = Some(Target { head, sent });
            self.catch_up_soon(head.at.seq, now);
        }
    }

    /// The naive reading of a head, for [`Mechanism::NonceChain`] off: numbers only.
    fn on_bare_head(
        &mut self,
        followed: Followed,
        head: Head,
        sent: Millis,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        if head.at.seq <= followed.at.seq {
            self.confirm(sent, out);
            return;
        }
        let head = Head {
            at: Position {
                epoch: followed.at.epoch,
                ..head.at
            },
            ..head
        };
        self.target = Some(Target { head, sent });
        self.catch_up_soon(head.at.seq, now);
    }

    /// The answer to a call of our own arrived.
    pub fn on_ack(
        &mut self,
        call: &Arc<Call>,
        entry: &LogEntry,
        epoch: Epoch,
        now: Millis,
        out: &mut Vec<Action>,
    ) -> Ack {
        let at = Position {
            epoch,
            seq: entry.seq,
        };
        let verdict = self.worth(at);
        match verdict {
            Ack::Acknowledged(_) => {
                if let Some(rank) = self.rank_of(at) {
                    announce(entry, rank, out);
                }
                if self.is_current(epoch) {
                    self.heard.repaired(entry.invalidated());
                    if !self.advance(entry, now, out) {
                        self.catch_up_soon(entry.seq, now);
                    }
                }
                self.ring.push(at, Arc::clone(call), now);
            }
            Ack::Unknown(_) => {
                announce_without_place(entry, out);
                out.push(Action::Poll);
            }
            Ack::Lost => {}
        }
        verdict
    }

    fn worth(&self, at: Position) -> Ack {
        let shared = self
            .past
            .is_some_and(|past| at.epoch == past.epoch && at.seq <= past.seq);
        let late = !self.mechanisms.on(Mechanism::LateAcks);
        if shared || self.is_current(at.epoch) || (late && self.is_over(at.epoch)) {
            Ack::Acknowledged(at)
        } else if self.is_over(at.epoch) {
            Ack::Lost
        } else {
            Ack::Unknown(at)
        }
    }

    /// Moves `applied` on to `entry` if it is the next one. True if the entry needs nothing more:
    /// it was applied now or before.
    fn advance(&mut self, entry: &LogEntry, now: Millis, out: &mut Vec<Action>) -> bool {
        let Some(followed) = self.followed.as_mut() else {
            return false;
        };
        if entry.seq <= followed.at.seq {
            return true;
        }
        let chained = entry.prev == followed.nonce || !self.mechanisms.on(Mechanism::NonceChain);
        if entry.seq != followed.at.seq + 1 || !chained {
            return false;
        }
        followed.at.seq = entry.seq;
        followed.nonce = entry.nonce;
        self.moved_at = now;
        self.reach_target(out);
        self.close_gap(entry.seq);
        self.followed.is_some()
    }

    /// Confirms the poll that waited for what is applied now.
    fn reach_target(&mut self, out: &mut Vec<Action>) {
        let (Some(target), Some(followed)) = (self.target, self.followed) else {
            return;
        };
        if target.head.at.epoch != followed.at.epoch || target.head.at.seq > followed.at.seq {
            return;
        }
        let kept = target.head.nonce == followed.nonce || target.head.at.seq < followed.at.seq;
        if kept || !self.mechanisms.on(Mechanism::NonceChain) {
            self.target = None;
            self.confirm(target.sent, out);
            return;
        }
        // Another entry stands where the poll saw one: the store lost it without our noticing.
        out.push(Action::Fence {
            epoch: followed.at.epoch,
        });
        self.forget(out);
        out.push(Action::Poll);
    }

    /// Everything that was logged before `sent` is applied. What is not there by now and should be:
    ///
    /// 1. The store acknowledges an invalidation of pod A; pod B hears of it.
    /// 2. The store and pod A die before a replica has it. The replica is promoted.
    /// 3. Nobody who could log it again is left; B knows only hashes. So it voids the lane.
    ///
    /// It asks until that has happened: one pod's fence is every pod's, and a link may break meanwhile.
    fn confirm(&mut self, sent: Millis, out: &mut Vec<Action>) {
        let in_doubt = self.doubted_until.is_some_and(|end| sent < end);
        if let Some(followed) = self.followed.filter(|_| self.heard.has_orphans()) {
            if self.origins_are_late || !in_doubt {
                out.push(Action::Fence {
                    epoch: followed.at.epoch,
                });
            }
            return;
        }
        if in_doubt {
            return;
        }
        self.doubted_until = None;
        out.push(Action::Confirm { sent });
    }

    fn rank_of(&self, at: Position) -> Option<Rank> {
        let followed = self.followed?;
        if self.is_current(at.epoch) {
            return Some(Rank::new(followed.ordinal, at.seq));
        }
        let past = self
            .past
            .filter(|past| past.epoch == at.epoch && at.seq <= past.seq)?;
        Some(Rank::new(followed.ordinal - 1, at.seq.min(past.seq)))
    }
}

#[cfg(test)]
mod tests;
