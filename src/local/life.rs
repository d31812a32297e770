//! The life of an entry: plain, then late, then stale, then over.

use crate::time::{Millis, millis};
use std::time::Duration;

/// What an entry is at some moment of its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing is to be thought of.
    Plain,
    /// Within its time to live, which ends this far from now: it may be refreshed ahead of that.
    Late(Duration),
    /// Past its time to live for this long.
    Stale(Duration),
    /// Not to be served any more.
    Over,
}

/// When an entry passes from one phase to the next.
///
/// A hit compares the time with the end of the plain phase and with nothing else. The other two moments
/// are kept as distances from it, in half the room: 49 days, and a life that would be longer ends then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    plain_until: Millis,
    /// How much later its time to live ends.
    fresh_for: u32,
    /// How much later all is over.
    kept_for: u32,
}

impl Life {
    /// A life whose time to live ends at `fresh_until`, plain until `late` before that, and over at
    /// `ends`, be that before or after.
    pub(crate) fn new(fresh_until: Millis, late: Duration, ends: Millis) -> Self {
        let plain_until = Millis(fresh_until.0.saturating_sub(millis(late))).min(ends);
        let after = |then: Millis| u32::try_from(then.0 - plain_until.0).unwrap_or(u32::MAX);
        Self {
            plain_until,
            fresh_for: after(fresh_until),
            kept_for: after(ends),
        }
    }

    /// A life that is plain to its end.
    #[cfg_attr(
        not(feature = "testing"),
        expect(dead_code, reason = "only for probes")
    )]
    pub(crate) fn until(ends: Millis) -> Self {
        Self::new(ends, Duration::ZERO, ends)
    }

    /// The same life with its time to live over since `now`. Without a grace all of it is.
    pub(crate) fn expired(self, now: Millis) -> Self {
        let ends = match self.kept_for > self.fresh_for {
            true => self.plain_until + Duration::from_millis(self.kept_for.into()),
            false => now,
        };
        Self::new(self.plain_until.min(now), Duration::ZERO, ends)
    }

    /// Whether there is nothing to think of.
    #[inline]
    pub(crate) fn is_plain(&self, now: Millis) -> bool {
        now < self.plain_until
    }

    /// What is left until there is.
    pub(crate) fn plain_left(&self, now: Millis) -> Duration {
        self.plain_until.since(now)
    }

    /// What is left until all is over.
    pub(crate) fn left(&self, now: Millis) -> Duration {
        let ends = self.plain_until + Duration::from_millis(self.kept_for.into());
        ends.since(now)
    }

    /// How long ago its time to live ended; zero before.
    pub(crate) fn overdue(&self, now: Millis) -> Duration {
        now.since(self.plain_until + Duration::from_millis(self.fresh_for.into()))
    }

    pub(crate) fn phase(&self, now: Millis) -> Phase {
        let past = |span: u32| now.since(self.plain_until + Duration::from_millis(span.into()));
        let fresh_until = self.plain_until + Duration::from_millis(self.fresh_for.into());
        match now {
            _ if self.is_plain(now) => Phase::Plain,
            _ if now.since(self.plain_until) >= Duration::from_millis(self.kept_for.into()) => {
                Phase::Over
            }
            _ if now < fresh_until => Phase::Late(fresh_until.since(now)),
            _ => Phase::Stale(past(self.fresh_for)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn phases<const N: usize>(life: Life, at: [u64; N]) -> [Phase; N] {
        at.map(|at| life.phase(Millis(at)))
    }

    #[test]
    fn each_phase_ends_at_the_millisecond_it_was_given() {
        let life = Life::new(Millis(100), 20 * MS, Millis(150));
        assert!(life.is_plain(Millis(79)) && !life.is_plain(Millis(80)));
        assert_eq!(
            phases(life, [79, 80, 99, 100, 149, 150]),
            [
                Phase::Plain,
                Phase::Late(20 * MS),
                Phase::Late(MS),
                Phase::Stale(Duration::ZERO),
                Phase::Stale(49 * MS),
                Phase::Over,
            ]
        );
    }

    #[test]
    fn a_life_without_late_and_stale_phases_is_plain_to_its_end() {
        let life = Life::until(Millis(100));
        assert_eq!(phases(life, [99, 100]), [Phase::Plain, Phase::Over]);
        let never = Life::until(Millis::NEVER);
        assert!(never.is_plain(Millis(u64::MAX - 1)));
    }

    #[test]
    fn an_end_before_the_time_to_live_ends_all() {
        let in_plain = Life::new(Millis(100), 20 * MS, Millis(50));
        assert_eq!(phases(in_plain, [49, 50]), [Phase::Plain, Phase::Over]);
        let in_late = Life::new(Millis(100), 20 * MS, Millis(90));
        assert_eq!(
            phases(in_late, [79, 89, 90]),
            [Phase::Plain, Phase::Late(11 * MS), Phase::Over]
        );
        let for_ever = Life::new(Millis::NEVER, 20 * MS, Millis(50));
        assert_eq!(phases(for_ever, [49, 50]), [Phase::Plain, Phase::Over]);
    }

    #[test]
    fn an_entry_that_comes_in_stale_is_never_plain() {
        let life = Life::new(Millis(100), Duration::ZERO, Millis(150));
        assert_eq!(life.phase(Millis(120)), Phase::Stale(20 * MS));
    }

    #[test]
    fn what_is_too_long_ends_early_and_never_wraps() {
        let life = Life::new(Millis(100), Duration::ZERO, Millis::NEVER);
        let last = u64::from(u32::MAX) + 100;
        assert!(matches!(life.phase(Millis(last - 1)), Phase::Stale(_)));
        assert_eq!(life.phase(Millis(last)), Phase::Over);
    }
}
