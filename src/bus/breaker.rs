//! The circuit breaker of reads: whether a reader should wait for the store at all.
//!
//! A store that hangs costs each read, lease and fill its whole time limit before the loader gets its
//! turn. When several in a row got no answer, the breaker opens: reads go to the loader at once, as they
//! do without a link, and one of them now and then is let through to see whether the store answers
//! again. Only reads ask it. Invalidations and polls never do: an invalidation is worth waiting for, and
//! a poll is what confirmations come from. (M. Nygard, *Release It!*, 2007, "Circuit Breaker".)

use super::{Bus, lock};
use crate::error::{StoreError, StoreErrorKind};
use crate::random::random_part;
use crate::store::{BoxFuture, Link, StoreResult};
use crate::time::Millis;
use std::sync::Arc;
use std::time::Duration;

/// Calls in a row without an answer that open it: more than a lost packet explains, and few enough that
/// a store which stops answering costs a reader one time limit, not several.
const FAILURES: u32 = 5;
/// Mean time between two probes. One read in that time pays for a probe; a store that is well again is
/// in use again after it. Polls find a store that is gone in 0.4 s and end the link, so what is left for
/// the breaker are stores that answer slowly or in part: there is no hurry.
const REST: Duration = Duration::from_secs(1);

/// Whether reads ask the store; see [`Health::circuit`](crate::Health::circuit).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CircuitState {
    /// They do.
    Closed,
    /// They do not, because the store gave several of them no answer in time.
    Open,
    /// One of them does, to see whether the store answers again.
    HalfOpen,
}

/// The pure part: what is learnt, and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Breaker {
    /// So many calls in a row got no answer.
    Closed { failures: u32 },
    /// Nobody asks before then.
    Open { until: Millis },
    /// Somebody asks. If nothing is known of it by then (its future was dropped), somebody else may.
    Probing { until: Millis },
}

impl Default for Breaker {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

impl Breaker {
    /// Whether the caller may ask the store now. A probe takes `limit` at most.
    fn admit(&mut self, now: Millis, limit: Duration) -> bool {
        match *self {
            Self::Closed { .. } => true,
            Self::Open { until } | Self::Probing { until } if now < until => false,
            Self::Open { .. } | Self::Probing { .. } => {
                *self = Self::Probing { until: now + limit };
                true
            }
        }
    }

    /// The store answered, be it with an error. Gives whether that closed the breaker.
    fn answered(&mut self) -> bool {
        let was_closed = matches!(self, Self::Closed { .. });
        *self = Self::default();
        !was_closed
    }

    /// It gave no answer. `random` is uniform from 0 to 1. Gives whether that opened the breaker.
    fn failed(&mut self, now: Millis, random: f64) -> bool {
        let failures = match *self {
            Self::Closed { failures } => failures + 1,
            // Calls that were under way when it opened say nothing new.
            Self::Open { .. } => return false,
            Self::Probing { .. } => FAILURES,
        };
        if failures < FAILURES {
            *self = Self::Closed { failures };
            return false;
        }
        let opened = matches!(self, Self::Closed { .. });
        let until = now + REST.mul_f64(0.5 + random);
        *self = Self::Open { until };
        opened
    }

    fn state(&self) -> CircuitState {
        match self {
            Self::Closed { .. } => CircuitState::Closed,
            Self::Open { .. } => CircuitState::Open,
            Self::Probing { .. } => CircuitState::HalfOpen,
        }
    }
}

impl Bus {
    /// The link, for a call that a reader waits for: none while the breaker is open.
    pub(crate) fn link_for_reads(&self) -> StoreResult<Arc<dyn Link>> {
        let link = self.link()?;
        let limit = self.timing.read_timeout;
        match lock(&self.breaker).admit(self.clock.now(), limit) {
            true => Ok(link),
            false => {
                let error = StoreError::new(StoreErrorKind::Unavailable, "read");
                Err(error.with_detail("it gave no answer lately"))
            }
        }
    }

    /// Runs a read, lease or fill within its limit, and learns from it whether the store answers.
    pub(crate) async fn ask<T>(
        &self,
        operation: &'static str,
        call: BoxFuture<'_, StoreResult<T>>,
    ) -> StoreResult<T> {
        let result = Self::within(self.timing.read_timeout, operation, call).await;
        self.note_answer(result.as_ref().err());
        result
    }

    /// As [`ask`](Self::ask) for many answers at once; none if there was no answer in time.
    pub(crate) async fn ask_many<T>(
        &self,
        call: BoxFuture<'_, Vec<StoreResult<T>>>,
    ) -> Vec<StoreResult<T>> {
        let answers = tokio::time::timeout(self.timing.read_timeout, call).await;
        let Ok(answers) = answers else {
            self.note_answer(Some(&StoreError::new(StoreErrorKind::Timeout, "read")));
            return Vec::new();
        };
        let answered = answers.iter().any(|one| !is_silence(one.as_ref().err()));
        let first_error = answers.iter().find_map(|one| one.as_ref().err());
        self.note_answer(first_error.filter(|_| !answered));
        answers
    }

    fn note_answer(&self, error: Option<&StoreError>) {
        let mut breaker = lock(&self.breaker);
        if !is_silence(error) {
            if breaker.answered() {
                tracing::info!(namespace = %self.namespace.name, "the store answers reads again");
            }
        } else if breaker.failed(self.clock.now(), random_part()) {
            self.observed.count_opening();
            tracing::warn!(namespace = %self.namespace.name, failures = FAILURES,
                "the store does not answer: reads go to the loaders");
        }
    }

    /// Another link has proved that it answers.
    pub(super) fn close_circuit(&self) {
        *lock(&self.breaker) = Breaker::default();
    }

    pub(super) fn circuit(&self) -> CircuitState {
        lock(&self.breaker).state()
    }
}

/// Whether there was no answer. A refusal is one: the store is there, and refuses at once.
fn is_silence(error: Option<&StoreError>) -> bool {
    use StoreErrorKind::{Timeout, Unavailable};
    error.is_some_and(|error| matches!(error.kind(), Timeout | Unavailable))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Clock;

    const LIMIT: Duration = Duration::from_millis(250);

    /// A breaker, and the time it is judged by.
    struct Bench {
        breaker: Breaker,
        clock: Clock,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                breaker: Breaker::default(),
                clock: Clock::manual(Millis(1000)),
            }
        }

        /// One that has just opened, for as long as `random` says.
        fn open(random: f64) -> Self {
            let mut bench = Self::new();
            let opened: Vec<_> = (0..FAILURES).map(|_| bench.fail(random)).collect();
            assert_eq!(opened, [false, false, false, false, true]);
            bench
        }

        fn fail(&mut self, random: f64) -> bool {
            self.breaker.failed(self.clock.now(), random)
        }

        fn admit(&mut self) -> bool {
            self.breaker.admit(self.clock.now(), LIMIT)
        }

        fn wait(&self, millis: u64) {
            self.clock.advance(Duration::from_millis(millis));
        }
    }

    #[test]
    fn five_calls_in_a_row_without_an_answer_open_it_and_fewer_do_not() {
        let mut bench = Bench::new();
        for _ in 0..100 {
            for _ in 1..FAILURES {
                assert!(!bench.fail(0.5));
                assert!(bench.admit());
            }
            assert!(!bench.breaker.answered(), "it was closed");
        }
        assert!(!Bench::open(0.5).admit());
    }

    #[test]
    fn while_it_is_open_nobody_asks_until_its_time_is_over() {
        for (random, millis) in [(0.0, 500), (0.5, 1000), (1.0, 1500)] {
            let mut bench = Bench::open(random);
            bench.wait(millis - 1);
            assert!(!bench.admit());
            bench.wait(1);
            assert!(bench.admit(), "after {millis} ms");
        }
    }

    #[test]
    fn one_probe_at_a_time_and_the_next_if_nothing_is_heard_of_it() {
        let mut bench = Bench::open(0.0);
        bench.wait(500);
        assert!(bench.admit());
        assert_eq!(bench.breaker.state(), CircuitState::HalfOpen);
        assert!(!bench.admit());
        bench.wait(249);
        assert!(!bench.admit());
        bench.wait(1);
        assert!(bench.admit(), "the first was dropped");
    }

    #[test]
    fn a_probe_that_fails_opens_it_again_and_one_that_is_answered_closes_it() {
        let mut bench = Bench::open(0.0);
        bench.wait(500);
        assert!(bench.admit());
        assert!(!bench.fail(0.0), "that is no further opening");
        assert!(!bench.admit());
        bench.wait(500);
        assert!(bench.admit());
        assert!(bench.breaker.answered());
        assert!(bench.admit());
        assert!(!bench.fail(0.0), "it takes five again");
        assert!(bench.admit());
    }

    #[test]
    fn calls_that_were_under_way_when_it_opened_keep_it_open_no_longer() {
        let mut bench = Bench::open(0.0);
        bench.wait(400);
        assert!(!bench.fail(1.0));
        bench.wait(100);
        assert!(bench.admit());
    }

    #[test]
    fn a_refusal_is_an_answer() {
        use StoreErrorKind::{Busy, Full, ReadOnly, Timeout, Unavailable};
        for (kind, silence) in [
            (Timeout, true),
            (Unavailable, true),
            (Busy, false),
            (Full, false),
            (ReadOnly, false),
        ] {
            let error = StoreError::new(kind, "read");
            assert_eq!(is_silence(Some(&error)), silence, "{kind:?}");
        }
        assert!(!is_silence(None));
    }
}
