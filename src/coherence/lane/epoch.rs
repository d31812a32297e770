//! How a lane comes into an epoch, and what ends one: a fork that continues it, a fence, a log that is
//! not the one it was, or nothing that could be followed any more.

use super::{Action, Followed, LaneState};
use crate::coherence::{Epoch, Head, Kind, LogEntry, Mechanism, Nonce, Position};
use crate::time::Millis;
use std::time::Duration;

impl LaneState {
    /// How long a fork is followed before it is believed.
    ///
    /// 1. The store acknowledges an invalidation of pod A, and dies before a replica has it.
    /// 2. The replica is promoted. The old value is there again, in a timeline that continues.
    /// 3. Pod B connects, and reads it.
    /// 4. Pod A connects, learns what was lost and logs it again.
    ///
    /// What was stored or kept before the fork counts again once every pod has had the time for step 4:
    /// up to two seconds until all sentinels know the new primary, two to find it and connect.
    pub const DOUBT: Duration = Duration::from_secs(4);

    /// How long after a fork pods wait for what they heard of to be logged again by who made it; what is
    /// missing then voids the lane. The age of a fork is known to two seconds, so that is over by the end
    /// of the doubt.
    pub const PATIENCE: Duration = Duration::from_secs(2);

    /// Takes `head` as it stands: nothing that was known before continues in it.
    pub(super) fn start_over(
        &mut self,
        head: Head,
        sent: Millis,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        self.forget(out);
        if head.fork {
            // Whoever followed it knows that it is over; a fence has to reach it from here, too.
            self.bury(head.prev_epoch);
        }
        self.followed = Some(Followed {
            ordinal: 1,
            at: head.at,
            nonce: head.nonce,
        });
        self.moved_at = now;
        self.reissue_lost(&head, now, out);
        self.fence_again(&head, out);
        self.confirm(sent, out);
    }

    /// Moves on to the epoch that continues the followed one.
    pub(super) fn take_fork(
        &mut self,
        head: &Head,
        nonce: Nonce,
        now: Millis,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(followed) = self.followed else {
            return false;
        };
        let Some(ordinal) = followed.ordinal.checked_add(1) else {
            return false;
        };
        self.reissue_lost(head, now, out);
        self.past = Some(Position {
            epoch: followed.at.epoch,
            seq: head.fork_seq,
        });
        self.bury(followed.at.epoch);
        let at = Position {
            epoch: head.at.epoch,
            seq: head.fork_seq,
        };
        self.followed = Some(Followed { ordinal, at, nonce });
        true
    }

    /// Logs again what a successor does not know, however this pod came to follow it: the way from one
    /// epoch to the next may be lost (a trimmed log, an epoch that came and went) while the calls are
    /// still remembered. If they are not (hole H18), nothing from before the fork may be believed.
    fn reissue_lost(&mut self, head: &Head, now: Millis, out: &mut Vec<Action>) {
        let doubted = head.fork && self.mechanisms.on(Mechanism::DoubtForks);
        self.doubted_until = doubted.then(|| now + Self::DOUBT);
        self.origins_are_late = false;
        self.heard.enter(head, now);
        match self.ring.take_lost(head) {
            Some(lost) if self.mechanisms.on(Mechanism::Reissue) => {
                out.extend(lost.into_iter().map(Action::Reissue));
            }
            Some(_) => {}
            None => out.push(Action::Fence {
                epoch: head.at.epoch,
            }),
        }
    }

    /// Repeats a fence that the store lost:
    ///
    /// 1. Epoch A is fenced, because what it holds is not to be believed. B follows it.
    /// 2. The store dies before a replica has heard of B.
    /// 3. The replica is promoted, and opens C, which continues A.
    ///
    /// Calls of all earlier epochs are forgotten at a fence, and a replica may have slept through more than
    /// one of them; and where the whole store was lost, B does not name A.
    fn fence_again(&mut self, head: &Head, out: &mut Vec<Action>) {
        if !head.fork {
            let over = self.dead.iter().chain([&head.prev_epoch]);
            over.for_each(|&epoch| remember(&mut self.fenced, epoch));
        } else if self.fenced.contains(&head.prev_epoch)
            && self.mechanisms.on(Mechanism::FenceAgain)
        {
            out.push(Action::Fence {
                epoch: head.at.epoch,
            });
        }
    }

    /// The store's clock shows this. A fork that was opened long ago need not be doubted, however late
    /// this pod learns of it.
    pub fn on_clock(&mut self, head: &Head, server_ms: u64) {
        if !self.is_current(head.at.epoch) {
            return;
        }
        let age = head.fork_age(server_ms);
        self.origins_are_late |= age >= Self::PATIENCE;
        if age > Self::DOUBT {
            self.doubted_until = None;
        }
    }

    /// An answer that was overtaken is of no interest. One that was asked for after we had moved on
    /// says that the store is in an epoch that we took for over:
    ///
    /// 1. Two answers are on their way: of epoch A, and of its successor B.
    /// 2. B's is taken first, then A's, which nothing marks as the older one. B is taken for over.
    /// 3. From now on every poll answers B.
    ///
    /// Or else the store went back in time. The two look alike, so the lane is fenced.
    pub(super) fn on_head_of_dead(&self, head: Head, sent: Millis, out: &mut Vec<Action>) {
        if sent > self.moved_at {
            out.push(Action::Fence {
                epoch: head.at.epoch,
            });
        }
    }

    /// The epoch followed, if its log has another entry at our place than the one we applied. The store
    /// went back in time and has grown past the place since, so its numbers alone show nothing; but
    /// what was invalidated in between is there again, in an epoch that would be believed.
    pub(super) fn rewritten(&self, entries: &[LogEntry]) -> Option<Epoch> {
        let followed = self.followed?;
        let same_epoch = self
            .target
            .is_none_or(|t| t.head.at.epoch == followed.at.epoch);
        let ours = |e: &LogEntry| e.seq != followed.at.seq || e.nonce == followed.nonce;
        let rewritten = same_epoch && !entries.iter().all(ours);
        (rewritten && self.mechanisms.on(Mechanism::NonceChain)).then_some(followed.at.epoch)
    }

    /// Whether `entry` opens another epoch than the one followed, which its number alone does not say:
    ///
    /// 1. A poll answers that entry 6 is the newest; the pod has applied 5.
    /// 2. The server restarts with a log up to 5, and a touch opens a new epoch in it as entry 6.
    /// 3. The pod reads the log. Entry 6 chains on to 5, but the 6 it was promised is lost.
    pub(super) fn ends_epoch(&self, entry: &LogEntry) -> bool {
        matches!(entry.kind, Kind::Fork | Kind::Fence) && self.mechanisms.on(Mechanism::NonceChain)
    }

    /// Back to cold. The ranks start again from nothing, which is safe because the flush voids
    /// everything that carries one.
    pub(super) fn forget(&mut self, out: &mut Vec<Action>) {
        if let Some(followed) = self.followed.take() {
            self.bury(followed.at.epoch);
        }
        self.past = None;
        self.target = None;
        self.due = None;
        self.doubted_until = None;
        out.push(Action::Flush);
    }

    fn bury(&mut self, epoch: Epoch) {
        remember(&mut self.dead, epoch);
    }

    pub(super) fn is_over(&self, epoch: Epoch) -> bool {
        self.dead.contains(&epoch) && !self.is_current(epoch)
    }

    pub(super) fn is_current(&self, epoch: Epoch) -> bool {
        self.followed.is_some_and(|f| f.at.epoch == epoch)
            || !self.mechanisms.on(Mechanism::NonceChain)
    }
}

/// Puts `epoch` last in a list of the newest few.
fn remember(epochs: &mut Vec<Epoch>, epoch: Epoch) {
    const KEPT: usize = 8;
    epochs.retain(|&known| known != epoch);
    if epochs.len() == KEPT {
        epochs.remove(0);
    }
    epochs.push(epoch);
}
