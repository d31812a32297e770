//! The life of the connection to one store node: `Down → Connecting → Touching → Up → Down …`.

use super::{Mechanism, Mechanisms};
use std::time::Duration;

/// Where a link is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Phase {
    /// No connection; waiting to try again.
    #[default]
    Down,
    /// Connecting and subscribing.
    Connecting,
    /// Subscribed; making sure that every lane is in an epoch of this life of the server.
    Touching,
    /// In use.
    Up,
}

/// The state of a link, and when to give up on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkState {
    phase: Phase,
    failures: u32,
    heard: bool,
    deaf_polls: u32,
    /// Deaf polls in a row after which the subscription is replaced.
    patience: u32,
}

impl Default for LinkState {
    fn default() -> Self {
        Self {
            phase: Phase::Down,
            failures: 0,
            heard: false,
            deaf_polls: 0,
            patience: DEAF_POLLS,
        }
    }
}

/// Polls in a row that had to read the log although no hint came before the subscription is replaced.
const DEAF_POLLS: u32 = 2;
/// The same where replacing it has not helped: something on the way swallows hints, and polling alone
/// is as coherent.
const DEAF_POLLS_MAX: u32 = 256;

impl LinkState {
    /// The shortest mean wait before another attempt.
    pub const BACKOFF_MIN: Duration = Duration::from_millis(50);
    /// The longest wait before another attempt: a pod is at work again within two seconds of its
    /// store's return, and connecting takes its part of them. There is no limit to the number of
    /// attempts.
    pub const BACKOFF_MAX: Duration = Duration::from_millis(750);

    /// Where the link is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Failed attempts since the link was last up.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// An attempt begins.
    pub fn connecting(&mut self) {
        self.phase = Phase::Connecting;
    }

    /// Connected and subscribed.
    pub fn touching(&mut self) {
        self.phase = Phase::Touching;
    }

    /// Every lane is touched.
    pub fn up(&mut self) {
        *self = Self {
            phase: Phase::Up,
            patience: self.patience,
            ..Self::default()
        };
    }

    /// The attempt failed, or the link broke. Gives how long to wait before the next attempt: full
    /// jitter under a doubling cap. `random` is uniform over `u32`.
    pub fn failed(&mut self, random: u32) -> Duration {
        let cap = Self::BACKOFF_MIN * (1 << self.failures.min(10));
        let cap = cap.min(Self::BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.phase = Phase::Down;
        self.deaf_polls = 0;
        cap.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// A hint came.
    pub fn heard(&mut self) {
        self.heard = true;
        self.deaf_polls = 0;
        self.patience = DEAF_POLLS;
    }

    /// A poll ended; `fell_behind` if its heads had moved on and no hint brought the difference in
    /// time. Gives whether the subscription must be taken for dead (hole H12: a half-open connection
    /// looks like silence).
    #[must_use]
    pub fn polled(&mut self, fell_behind: bool, mechanisms: Mechanisms) -> bool {
        self.deaf_polls = if fell_behind && !self.heard {
            self.deaf_polls + 1
        } else {
            0
        };
        self.heard = false;
        let deaf =
            self.deaf_polls >= self.patience && mechanisms.on(Mechanism::RecycleSubscription);
        if deaf {
            self.patience = (self.patience * 2).min(DEAF_POLLS_MAX);
        }
        deaf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_under_full_jitter_and_is_capped() {
        let mut link = LinkState::default();
        let waits: Vec<_> = (0..12).map(|_| link.failed(u32::MAX).as_millis()).collect();
        assert_eq!(waits[..5], [50, 100, 200, 400, 750]);
        assert!(waits[5..].iter().all(|&wait| wait == 750));
        assert_eq!(link.failed(0), Duration::ZERO);
        link.up();
        assert_eq!(link.failed(u32::MAX), LinkState::BACKOFF_MIN);
    }

    #[test]
    fn a_subscription_that_stays_silent_while_the_log_grows_is_replaced_after_two_polls() {
        let mut link = LinkState::default();
        assert!(!link.polled(true, Mechanisms::default()));
        assert!(link.polled(true, Mechanisms::default()));
        let mut link = LinkState::default();
        assert!(!link.polled(true, Mechanisms::default()));
        link.heard();
        assert!(!link.polled(true, Mechanisms::default()));
        assert!(!link.polled(true, Mechanisms::default()));
        assert!(!link.polled(false, Mechanisms::default()));
        assert!(!link.polled(true, Mechanisms::default()));
    }

    #[test]
    fn a_new_subscription_that_is_deaf_too_is_given_twice_as_long() {
        let mut link = LinkState::default();
        let polls_until_replaced = |link: &mut LinkState| {
            (1..)
                .find(|_| link.polled(true, Mechanisms::default()))
                .expect("endless")
        };
        assert_eq!(polls_until_replaced(&mut link), 2);
        for polls in [4, 8, 16] {
            link.failed(0);
            link.up();
            assert_eq!(polls_until_replaced(&mut link), polls);
        }
        link.heard();
        assert!(
            !link.polled(false, Mechanisms::default()),
            "what was heard counts once"
        );
        assert_eq!(polls_until_replaced(&mut link), 2);
    }
}
