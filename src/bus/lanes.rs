//! The lanes that the local levels of a cache share, and how what a lane asks of this process is carried
//! out: the order of inserts and evictions is kept here.

use super::guard::MAX_GUARD_TTL;
use super::{Bus, lock};
use crate::coherence::{Action, Lane, LaneState, Mechanisms, Rank, View};
use crate::telemetry::Event;
use crate::time::Millis;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// Stripes per lane.
const STRIPES: usize = 256;

pub(super) struct LaneCell {
    pub(super) state: Mutex<LaneState>,
    stripes: Box<[Mutex<Stripe>]>,
    /// When it was last flushed: a [`Moment`].
    flushed: AtomicU64,
    /// The lane is live until then; what new members start from.
    pub(super) until: AtomicU64,
    /// Since when, by the clock, every entry of its log was applied.
    followed_since: AtomicU64,
}

impl LaneCell {
    pub(super) fn new(mechanisms: Mechanisms, deferral: Duration, now: Millis) -> Self {
        Self {
            state: Mutex::new(LaneState::new(mechanisms).deferring(deferral)),
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            flushed: AtomicU64::new(0),
            until: AtomicU64::new(0),
            followed_since: AtomicU64::new(now.0),
        }
    }
}

/// What orders the inserts and evictions of one stripe's keys.
#[derive(Debug, Default)]
pub(crate) struct Stripe {
    /// The newest applied invalidation.
    pub(crate) last: Rank,
    /// Keys that this pod is invalidating and that the store has not acknowledged: what the store
    /// holds under them is not to be believed.
    pub(super) poisoned: Vec<u64>,
    /// When this pod last came to know of an invalidation of one of its keys or names.
    pub(super) noticed: Moment,
    /// The same by the clock.
    disturbed: Millis,
}

impl Stripe {
    pub(crate) fn is_poisoned(&self, hash: u64) -> bool {
        self.poisoned.contains(&hash)
    }
}

/// A moment in the order in which this pod comes to know of invalidations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Bus {
    pub(super) fn cell(&self, lane: Lane) -> &LaneCell {
        &self.lanes[usize::from(lane.0)]
    }

    /// The lane is live before this time.
    pub(crate) fn live_until(&self, lane: Lane) -> Millis {
        Millis(self.cell(lane).until.load(Ordering::Acquire))
    }

    /// What a load on `lane` that starts now may rely on.
    pub(crate) fn view(&self, lane: Lane) -> Option<View> {
        lock(&self.cell(lane).state).view()
    }

    /// The lock that orders inserts and evictions under `hash`.
    pub(crate) fn stripe(&self, lane: Lane, hash: u64) -> MutexGuard<'_, Stripe> {
        // The upper bits chose the lane, so the lower ones spread evenly within it.
        lock(&self.cell(lane).stripes[hash as usize % STRIPES])
    }

    /// Runs one step of a lane and carries out what it asks of this process. Gives back what it asks
    /// of the store.
    pub(super) fn step<T>(
        &self,
        lane: Lane,
        step: impl FnOnce(&mut LaneState, &mut Vec<Action>) -> T,
    ) -> (T, Vec<Action>) {
        let mut actions = Vec::new();
        let mut state = lock(&self.cell(lane).state);
        let was_due = state.due().is_some();
        let result = step(&mut state, &mut actions);
        if !was_due && state.due().is_some() {
            self.telemetry.noticed_gap(lane);
        }
        actions.retain(|action| !self.carry_out(lane, action));
        drop(state);
        (result, actions)
    }

    /// The lane is told of a head, as by a poll.
    #[cfg(test)]
    pub(crate) fn follow(&self, lane: Lane, head: crate::coherence::Head) {
        let now = self.clock.now();
        self.step(lane, |state, out| state.on_head(Some(head), now, now, out));
    }

    /// Carries out an action that concerns only this process; false if it is not one.
    fn carry_out(&self, lane: Lane, action: &Action) -> bool {
        match *action {
            Action::Evict { hash, rank } => self.evict(lane, hash, rank),
            Action::Drop { hash } => {
                let mut stripe = self.stripe(lane, hash);
                stripe.noticed = self.next_moment();
                stripe.disturbed = self.clock.now();
                self.each_member(|member| member.evict(hash, Rank(u64::MAX)));
            }
            Action::Clear { entity, rank } => self.each_member(|member| {
                if member.entity() == entity {
                    member.clear(lane, rank);
                }
            }),
            Action::Tell { nonce, ref change } => self.tell_of(lane, nonce, change),
            Action::Flush => {
                self.flush(lane);
                self.tell_missed(lane);
            }
            Action::Confirm { sent } => self.confirm(lane, sent),
            Action::Filled { hash } => self.wake_fill_waiters(hash),
            Action::ReadLog { .. }
            | Action::Poll
            | Action::Touch
            | Action::Fence { .. }
            | Action::Reissue(_) => return false,
        }
        true
    }

    fn evict(&self, lane: Lane, hash: u64, rank: Rank) {
        let mut stripe = self.stripe(lane, hash);
        self.notice(&mut stripe, rank);
        self.each_member(|member| member.evict(hash, rank));
    }

    /// Takes note of an invalidation, unless it is one that was noticed before, or older than one: then
    /// whoever began since knows of it.
    fn notice(&self, stripe: &mut Stripe, rank: Rank) {
        if stripe.last < rank {
            stripe.last = rank;
            stripe.noticed = self.next_moment();
            stripe.disturbed = self.clock.now();
        }
    }

    /// Takes note that anything on `lane` may have been invalidated.
    pub(super) fn notice_all(&self, lane: Lane) {
        let Moment(now) = self.next_moment();
        self.cell(lane).flushed.fetch_max(now, Ordering::AcqRel);
    }

    pub(super) fn next_moment(&self) -> Moment {
        Moment(1 + self.moments.fetch_add(1, Ordering::AcqRel))
    }

    /// Now, for [`noticed_since`](Self::noticed_since).
    pub(crate) fn moment(&self) -> Moment {
        Moment(self.moments.load(Ordering::Acquire))
    }

    /// Whether this pod may have come to know of an invalidation of `hash`, a key's or a name's, since
    /// `then`. Those that share its stripe are taken for its own.
    pub(crate) fn noticed_since(&self, lane: Lane, hash: u64, then: Moment) -> bool {
        let noticed = self.stripe(lane, hash).noticed;
        let flushed = Moment(self.cell(lane).flushed.load(Ordering::Acquire));
        noticed.max(flushed) > then
    }

    /// Whether a marker may stand for `hash` as far as this pod knows by itself: one that was left longer
    /// ago than any lasts has ended, and one that was left since was logged as an invalidation. To be asked
    /// after a [`view`](Self::view) was taken: what is logged behind that outranks what is loaded by it.
    /// Keys that share a stripe are taken for one.
    pub(crate) fn may_be_guarded(&self, lane: Lane, hash: u64) -> bool {
        let followed_since = Millis(self.cell(lane).followed_since.load(Ordering::Acquire));
        let disturbed = self.stripe(lane, hash).disturbed.max(followed_since);
        self.clock.now() < disturbed + MAX_GUARD_TTL
    }

    /// 1. The generations move on: nothing older is served, or inserted any more.
    /// 2. Only then may ranks start again from nothing.
    pub(super) fn flush(&self, lane: Lane) {
        self.notice_all(lane);
        let now = self.clock.now();
        self.cell(lane)
            .followed_since
            .fetch_max(now.0, Ordering::AcqRel);
        self.each_member(|member| member.flush(lane));
        for stripe in &self.cell(lane).stripes {
            lock(stripe).last = Rank::default();
        }
        self.observed.count_flush();
        self.telemetry.tell(|| Event::LaneFlushed { lane: lane.0 });
    }

    fn confirm(&self, lane: Lane, sent: Millis) {
        let until = sent + self.rules.lease;
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        self.cell(lane).until.fetch_max(until.0, Ordering::AcqRel);
        members
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|member| member.confirm(lane, until));
    }

    /// What was learnt in one go is done: whoever depends on all lanes knows of it, and those who were
    /// told may run. Called under no lock.
    pub(super) fn settle(&self) {
        let untils = self
            .lanes
            .iter()
            .map(|cell| cell.until.load(Ordering::Acquire));
        self.liveness.confirm(untils.min().unwrap_or_default());
        self.wake_told();
    }
}
