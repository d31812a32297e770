//! One pod's view of one lane's log: what is applied, and what follows from each thing learnt.
//!
//! Four things are learnt: a [hint](LaneState::on_hint), a [head](LaneState::on_head) from a poll, a
//! piece of the [log](LaneState::on_log), and the [answer](LaneState::on_ack) to a call of our own.
//! Each turns into [`Action`]s, to be carried out in order before anything else is learnt.
//!
//! The log is the truth and hints are only hints: an invalidation that a hint carries is carried out
//! whatever its place, because removing an entry is always safe, but `applied` moves on only along an
//! unbroken chain of nonces. Liveness comes from polls alone, and counts from when they were *sent*.

use super::wire::Change;
use super::{
    Call, Epoch, Head, Heard, Hint, Kind, LogEntry, Mechanism, Mechanisms, Nonce, Position, Rank,
    Ring, View,
};
use crate::time::Millis;
use std::sync::Arc;
use std::time::Duration;

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
    /// Read the log from this sequence number on (inclusive) and give it to [`LaneState::on_log`].
    ReadLog {
        /// The first entry to read.
        from: u64,
    },
    /// Ask for the heads now, rather than at the next heartbeat.
    Poll,
    /// The store has no head for this lane: have one opened, then give it to [`LaneState::on_head`].
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
    /// [`LaneState::on_ack`] again.
    Unknown(Position),
    /// It is on a dead timeline (hole H16): run it again.
    Lost,
}

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

/// A gap, and when to read it from the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Due {
    at: Millis,
    /// The newest entry that is known to stand behind the gap.
    seq: u64,
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
    /// How long a difference may be explained by hints still on their way.
    pub const GRACE: Duration = Duration::from_millis(10);
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

    /// When [`on_timer`](Self::on_timer) wants to be called.
    #[must_use]
    pub fn due(&self) -> Option<Millis> {
        self.due.map(|due| due.at)
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

    /// Has the log read up to `seq` once the grace is over. It counts from when the gap was first noticed:
    /// polls that follow each other faster than the grace would put the read off for ever.
    fn catch_up_soon(&mut self, seq: u64, now: Millis) {
        let at = now + Self::GRACE + self.deferral;
        let due = self.due.get_or_insert(Due { at, seq });
        due.seq = due.seq.max(seq);
    }

    /// Forgets the gap once all that was known behind it is applied.
    fn close_gap(&mut self, applied: u64) {
        if self.target.is_none() && self.due.is_some_and(|due| due.seq <= applied) {
            self.due = None;
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
    fn on_head_of_dead(&self, head: Head, sent: Millis, out: &mut Vec<Action>) {
        if sent > self.moved_at {
            out.push(Action::Fence {
                epoch: head.at.epoch,
            });
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

    /// The epoch followed, if its log has another entry at our place than the one we applied. The store
    /// went back in time and has grown past the place since, so its numbers alone show nothing; but
    /// what was invalidated in between is there again, in an epoch that would be believed.
    fn rewritten(&self, entries: &[LogEntry]) -> Option<Epoch> {
        let followed = self.followed?;
        let same_epoch = self
            .target
            .is_none_or(|t| t.head.at.epoch == followed.at.epoch);
        let ours = |e: &LogEntry| e.seq != followed.at.seq || e.nonce == followed.nonce;
        let rewritten = same_epoch && !entries.iter().all(ours);
        (rewritten && self.mechanisms.on(Mechanism::NonceChain)).then_some(followed.at.epoch)
    }

    /// Applies a piece of the log; false if it does not continue what is applied.
    fn follow(&mut self, entries: &[LogEntry], now: Millis, out: &mut Vec<Action>) -> bool {
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

    /// Moves on to the epoch that continues the followed one.
    fn take_fork(&mut self, head: &Head, nonce: Nonce, now: Millis, out: &mut Vec<Action>) -> bool {
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

    /// Whether `entry` opens another epoch than the one followed, which its number alone does not say:
    ///
    /// 1. A poll answers that entry 6 is the newest; the pod has applied 5.
    /// 2. The server restarts with a log up to 5, and a touch opens a new epoch in it as entry 6.
    /// 3. The pod reads the log. Entry 6 chains on to 5, but the 6 it was promised is lost.
    fn ends_epoch(&self, entry: &LogEntry) -> bool {
        matches!(entry.kind, Kind::Fork | Kind::Fence) && self.mechanisms.on(Mechanism::NonceChain)
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

    /// Takes `head` as it stands: nothing that was known before continues in it.
    fn start_over(&mut self, head: Head, sent: Millis, now: Millis, out: &mut Vec<Action>) {
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

    /// Back to cold. The ranks start again from nothing, which is safe because the flush voids
    /// everything that carries one.
    fn forget(&mut self, out: &mut Vec<Action>) {
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

    fn is_current(&self, epoch: Epoch) -> bool {
        self.followed.is_some_and(|f| f.at.epoch == epoch)
            || !self.mechanisms.on(Mechanism::NonceChain)
    }

    fn is_over(&self, epoch: Epoch) -> bool {
        self.dead.contains(&epoch) && !self.is_current(epoch)
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

/// Puts `epoch` last in a list of the newest few.
fn remember(epochs: &mut Vec<Epoch>, epoch: Epoch) {
    const KEPT: usize = 8;
    epochs.retain(|&known| known != epoch);
    if epochs.len() == KEPT {
        epochs.remove(0);
    }
    epochs.push(epoch);
}

/// What an entry says, as actions.
fn announce(entry: &LogEntry, rank: Rank, out: &mut Vec<Action>) {
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
fn announce_without_place(entry: &LogEntry, out: &mut Vec<Action>) {
    if let Some(change) = entry.change() {
        out.extend(change.keys.iter().map(|&hash| Action::Drop { hash }));
        out.push(Action::Tell {
            nonce: entry.nonce,
            change,
        });
    }
}

#[cfg(test)]
mod tests;
