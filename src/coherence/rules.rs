//! What may be served, joined, inserted and believed. Plain functions over plain data.

use super::{Epoch, Head, Mechanism, Mechanisms, Position, Rank};
use crate::time::Millis;
use std::time::Duration;

/// The state of one lane as a reader sees it, in one atomic word: which generation of entries counts,
/// and until when the lane is live.
///
/// 24 bits of generation above 40 bits of milliseconds: 34 years of uptime, and a generation comes
/// round again only after 16 million flushes, long after the last entry of its namesake has gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Word(pub u64);

impl Word {
    const UNTIL_BITS: u32 = 40;
    const UNTIL_MASK: u64 = (1 << Self::UNTIL_BITS) - 1;

    /// The generation whose entries may be served.
    #[inline]
    #[must_use]
    pub fn generation(self) -> u32 {
        (self.0 >> Self::UNTIL_BITS) as u32
    }

    /// The lane is live before this time.
    #[inline]
    #[must_use]
    pub fn until(self) -> Millis {
        Millis(self.0 & Self::UNTIL_MASK)
    }

    /// When the confirmation began that is standing, if confirmations last for `lease`.
    #[must_use]
    pub fn confirmed_at(self, lease: Duration) -> Millis {
        let lease = crate::time::millis(lease);
        Millis(self.until().0.saturating_sub(lease))
    }

    /// The word after a confirmation. Liveness never moves back.
    #[must_use]
    pub fn confirmed(self, until: Millis) -> Self {
        let until = until.0.min(Self::UNTIL_MASK).max(self.until().0);
        Self(self.0 & !Self::UNTIL_MASK | until)
    }

    /// The word after a flush: every entry of the generation so far is dead.
    #[must_use]
    pub fn flushed(self) -> Self {
        Self(self.0.wrapping_add(1 << Self::UNTIL_BITS))
    }
}

/// What the rules need to know of an entry of the local level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryStamp {
    /// The lane position that the value is known to reflect.
    pub rank: Rank,
    /// The generation it was inserted in.
    pub generation: u32,
    /// When its load (or its read from the store) began.
    pub start: Millis,
}

/// What a flight started from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlightMeta {
    /// The lane position the load reflects at least.
    pub rank: Rank,
    /// When it started.
    pub start: Millis,
    /// It runs without the store's cover (made under a pending write, or without a lane position):
    /// only its own age counts (hole H28).
    pub uncovered: bool,
}

/// What a pod has followed of a lane, as far as judging a value of the store needs it.
///
/// To be taken *before* the store is asked: a position that was applied while the answer was on its
/// way proves nothing about the answer's age, one that was applied before the question does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// The epoch followed.
    pub epoch: Epoch,
    /// Everything up to here is applied.
    pub applied: Rank,
    /// The epoch continues another one, and invalidations that its store lost may not have been logged
    /// again yet: what was stored before it is not to be believed.
    pub in_doubt: bool,
}

impl View {
    /// The position up to which everything is applied.
    #[must_use]
    pub fn position(&self) -> Position {
        Position {
            epoch: self.epoch,
            seq: self.applied.seq(),
        }
    }
}

/// Whether bytes of the store may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes, and the value reflects at least this position.
    Usable(Rank),
    /// No: of a dead epoch, cleared, or not covered. The same as if there were nothing.
    Absent,
    /// No, though it looks usable to the store: of an epoch that is continued, too soon after.
    Doubtful,
    /// The store is in an epoch or at a position that this pod has not come to know yet: sync first.
    Sync,
}

/// The rules, for one bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    /// L: how long a confirmation lasts, and how long a value may be served by its own age alone.
    pub lease: Duration,
    /// The protections that are on.
    pub mechanisms: Mechanisms,
}

impl Rules {
    /// **Hit.** Whether an entry may be served by a reader that loaded `word` *before* it fetched the
    /// entry (hole H11) and reads the clock after both.
    ///
    /// Two kinds of evidence suffice. Either the lane is live: everything logged up to some moment
    /// within the last L was applied here and did not remove the entry. Or the entry itself is young:
    /// its load began within the last L, so whatever it misses is younger still. The second keeps a
    /// local level useful while the store is away (hole H13).
    ///
    /// Both end *before* L is over: times are whole milliseconds, cut off, so "at L" may be a
    /// millisecond later.
    #[inline]
    #[must_use]
    pub fn may_serve(&self, word: Word, entry: EntryStamp, now: Millis) -> bool {
        entry.generation == word.generation()
            && (now < word.until() || self.is_young(entry.start, now) || !self.requires_liveness())
    }

    #[inline]
    fn requires_liveness(&self) -> bool {
        self.mechanisms.on(Mechanism::Liveness)
    }

    #[inline]
    fn is_young(&self, start: Millis, now: Millis) -> bool {
        self.mechanisms.on(Mechanism::OwnAge) && now < start + self.lease
    }

    /// **Join.** Whether a reader may wait for a load that others started, which no applied
    /// invalidation has detached: the same evidence as for a hit, with the flight in the entry's place.
    #[must_use]
    pub fn may_join(&self, live_until: Millis, flight: &FlightMeta, now: Millis) -> bool {
        !self.mechanisms.on(Mechanism::JoinRule)
            || now < flight.start + self.lease
            || (!flight.uncovered && now < live_until)
    }

    /// **Insert.** Whether a value may enter the local level. To be asked under the stripe's lock, with
    /// the stripe's newest applied invalidation and the entry that stands there.
    ///
    /// 1. a flush since the load began: what it missed is unknown, so no;
    /// 2. an applied invalidation that the value may not reflect (hole H2): no;
    /// 3. an entry that reflects a later position: keep that one.
    #[must_use]
    pub fn may_insert(
        &self,
        current: Word,
        last_invalidation: Rank,
        existing: Option<EntryStamp>,
        new: EntryStamp,
    ) -> bool {
        if !self.mechanisms.on(Mechanism::InsertStamp) {
            return true;
        }
        new.generation == current.generation()
            && new.rank >= last_invalidation
            && existing.is_none_or(|old| old.generation != new.generation || new.rank >= old.rank)
    }

    /// **Believe.** Whether a value that the store returned with `head` and `floor` may be used.
    #[must_use]
    pub fn judge(
        &self,
        view: Option<View>,
        head: Option<&Head>,
        value: Option<(Epoch, u64)>,
        floor: Option<u64>,
    ) -> Verdict {
        let Some(head) = head else {
            return Verdict::Absent;
        };
        let Some(rank) = rank_of_head(view, head) else {
            return Verdict::Sync;
        };
        let Some((epoch, seq)) = value else {
            return Verdict::Absent;
        };
        let continued = epoch == head.at.epoch || (head.fork && epoch == head.prev_epoch);
        match floor {
            Some(floor) if continued && seq >= floor => {
                let before_fork = epoch != head.at.epoch;
                match before_fork && view.is_some_and(|view| view.in_doubt) {
                    true => Verdict::Doubtful,
                    false => Verdict::Usable(rank),
                }
            }
            _ => Verdict::Absent,
        }
    }
}

/// The rank of a head that the store returned, if it is of the epoch followed and not behind what is
/// applied (hole H25).
#[must_use]
pub fn rank_of_head(view: Option<View>, head: &Head) -> Option<Rank> {
    let view = view.filter(|view| view.epoch == head.at.epoch)?;
    let rank = Rank::new(view.applied.ordinal(), head.at.seq);
    (rank >= view.applied).then_some(rank)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coherence::{Incarnation, Nonce};

    const L: Duration = Duration::from_millis(1000);

    fn rules() -> Rules {
        Rules {
            lease: L,
            mechanisms: Mechanisms::default(),
        }
    }

    fn entry(generation: u32, start: u64) -> EntryStamp {
        EntryStamp {
            rank: Rank::new(1, 5),
            generation,
            start: Millis(start),
        }
    }

    #[test]
    fn word_keeps_generation_and_liveness_apart() {
        let word = Word::default().flushed().confirmed(Millis(500)).flushed();
        assert_eq!((word.generation(), word.until()), (2, Millis(500)));
        assert_eq!(
            word.confirmed(Millis(400)).until(),
            Millis(500),
            "liveness never moves back"
        );
        let last = Word(u64::MAX);
        assert_eq!(
            (last.flushed().generation(), last.flushed().until()),
            (0, last.until())
        );
    }

    #[test]
    fn an_entry_is_served_while_its_lane_is_live_or_itself_young_and_not_a_moment_longer() {
        let word = Word::default().confirmed(Millis(5000));
        assert!(rules().may_serve(word, entry(0, 0), Millis(4999)));
        assert!(!rules().may_serve(word, entry(0, 0), Millis(5000)));
        assert!(rules().may_serve(word, entry(0, 5500), Millis(6499)));
        assert!(!rules().may_serve(word, entry(0, 5500), Millis(6500)));
        assert!(
            !rules().may_serve(word.flushed(), entry(0, 4900), Millis(4950)),
            "flushed"
        );
    }

    #[test]
    fn a_fill_that_raced_an_applied_invalidation_is_not_inserted() {
        let word = Word::default();
        let new = entry(0, 0);
        assert!(rules().may_insert(word, Rank::new(1, 5), None, new));
        assert!(!rules().may_insert(word, Rank::new(1, 6), None, new));
        assert!(!rules().may_insert(word.flushed(), Rank::default(), None, new));
        let newer = EntryStamp {
            rank: Rank::new(1, 6),
            ..new
        };
        assert!(!rules().may_insert(word, Rank::default(), Some(newer), new));
        let dead = EntryStamp {
            generation: 7,
            ..newer
        };
        assert!(rules().may_insert(word, Rank::default(), Some(dead), new));
    }

    #[test]
    fn an_old_flight_is_joined_only_while_the_lane_is_live() {
        let old = FlightMeta {
            rank: Rank::default(),
            start: Millis(0),
            uncovered: false,
        };
        assert!(rules().may_join(Millis(3000), &old, Millis(2999)));
        assert!(!rules().may_join(Millis(3000), &old, Millis(3000)));
        assert!(
            rules().may_join(Millis(0), &old, Millis(999)),
            "young enough by itself"
        );
        let uncovered = FlightMeta {
            uncovered: true,
            ..old
        };
        assert!(!rules().may_join(Millis(3000), &uncovered, Millis(1000)));
    }

    #[test]
    fn a_store_value_is_believed_only_in_the_epoch_followed_and_above_the_floor() {
        let at = |epoch, seq| Position {
            epoch: Epoch(epoch),
            seq,
        };
        let head = Head {
            at: at(9, 20),
            nonce: Nonce(1),
            incarnation: Incarnation(1),
            prev_epoch: Epoch(8),
            fork_seq: 15,
            last_pub_ms: 0,
            fork: true,
            forked_s: 0,
        };
        let view = Some(View {
            epoch: Epoch(9),
            applied: Rank::new(2, 18),
            in_doubt: false,
        });
        let judge = |head: &Head, value, floor| rules().judge(view, Some(head), value, floor);
        let usable = Verdict::Usable(Rank::new(2, 20));
        assert_eq!(judge(&head, Some((Epoch(9), 16)), Some(3)), usable);
        assert_eq!(
            judge(&head, Some((Epoch(8), 12)), Some(3)),
            usable,
            "before a fork"
        );
        let in_doubt = view.map(|view| View {
            in_doubt: true,
            ..view
        });
        for (epoch, verdict) in [(8, Verdict::Doubtful), (9, usable)] {
            let value = Some((Epoch(epoch), 16));
            let seen = rules().judge(in_doubt, Some(&head), value, Some(3));
            assert_eq!(seen, verdict, "soon after a fork");
        }
        assert_eq!(
            judge(&head, Some((Epoch(7), 12)), Some(3)),
            Verdict::Absent,
            "dead epoch"
        );
        let fenced = Head {
            fork: false,
            ..head
        };
        assert_eq!(
            judge(&fenced, Some((Epoch(8), 12)), Some(3)),
            Verdict::Absent,
            "fenced"
        );
        assert_eq!(
            judge(&head, Some((Epoch(9), 16)), Some(17)),
            Verdict::Absent,
            "cleared"
        );
        assert_eq!(
            judge(&head, Some((Epoch(9), 16)), None),
            Verdict::Absent,
            "floor evicted"
        );
        assert_eq!(
            rules().judge(view, None, Some((Epoch(9), 16)), Some(3)),
            Verdict::Absent
        );
        let behind = Head {
            at: at(9, 17),
            ..head
        };
        assert_eq!(
            judge(&behind, Some((Epoch(9), 16)), Some(3)),
            Verdict::Sync,
            "regressed"
        );
        let unknown = Head {
            at: at(10, 30),
            ..head
        };
        assert_eq!(
            judge(&unknown, Some((Epoch(10), 16)), Some(3)),
            Verdict::Sync
        );
        assert_eq!(
            rules().judge(None, Some(&head), None, None),
            Verdict::Sync,
            "cold lane"
        );
    }
}
