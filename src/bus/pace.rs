//! The server's clock beside this pod's, over many polls: what tells of a machine that was paused together
//! with its clock (a virtual machine that was suspended, or moved), which nothing inside can see.
//!
//! It is told when it is over. What the pod served meanwhile is bounded by its own time alone: see "What is
//! impossible" in `docs/guarantees.md`. A process that was stopped is no such thing: its clock goes on.

use crate::coherence::Incarnation;
use crate::time::Millis;
use std::time::Duration;

/// For so long the clocks are compared from one poll on. Two that run steadily do not differ by a second in
/// a minute: that would be 1.7 %.
const WINDOW: Duration = Duration::from_secs(60);

/// What the clocks showed when a poll was sent, or a little later.
#[derive(Clone, Copy, Debug)]
struct Reading {
    server: Incarnation,
    server_ms: u64,
    sent: Millis,
}

/// Compares them.
#[derive(Debug, Default)]
pub(super) struct Pace(Option<Reading>);

impl Pace {
    /// A poll was answered. By how much the server's clock has gone on further than this pod's, at least, if
    /// that is more than `bound`.
    ///
    /// Between two readings of the server's clock no more time has passed here than from when the first
    /// poll was sent until the second one was answered. So a slow answer, or a pod that was stopped, makes
    /// for less of a difference, never for more.
    pub(super) fn polled(
        &mut self,
        (server, server_ms): (Incarnation, u64),
        (sent, answered): (Millis, Millis),
        bound: Duration,
    ) -> Option<Duration> {
        let now = Reading {
            server,
            server_ms,
            sent,
        };
        let began = *self.0.get_or_insert(now);
        if began.server != server {
            self.0 = Some(now); // another server, with another clock
            return None;
        }
        let theirs = Duration::from_millis(server_ms.saturating_sub(began.server_ms));
        let ours = answered.since(began.sent);
        let ahead = theirs.saturating_sub(ours);
        let stood_still = ahead > bound;
        if stood_still || ours > WINDOW {
            self.0 = Some(now);
        }
        stood_still.then_some(ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(1);
    const SERVER: Incarnation = Incarnation(7);

    /// Polls of one server: what its clock showed, when each was sent and answered here.
    fn alarms(polls: &[(u64, u64, u64)]) -> Vec<Option<u64>> {
        let mut pace = Pace::default();
        let polled = |&(server_ms, sent, answered): &(u64, u64, u64)| {
            let here = (Millis(sent), Millis(answered));
            let ahead = pace.polled((SERVER, server_ms), here, BOUND)?;
            u64::try_from(ahead.as_millis()).ok()
        };
        polls.iter().map(polled).collect()
    }

    #[test]
    fn a_clock_that_stood_still_is_told_once() {
        let polls = [
            (10_000, 0, 1),
            (10_250, 250, 251),
            // A minute passes outside.
            (70_500, 500, 501),
            (70_750, 750, 751),
        ];
        assert_eq!(alarms(&polls), [None, None, Some(59_999), None]);
    }

    #[test]
    fn a_clock_that_is_slow_is_told_by_many_polls() {
        let polls: Vec<_> = (0..8).map(|n| (n * 250, n * 10, n * 10 + 1)).collect();
        let told = alarms(&polls);
        assert_eq!(told.iter().flatten().count(), 1, "{told:?}");
    }

    #[test]
    fn a_process_that_was_stopped_and_a_slow_answer_are_no_alarm() {
        let polls = [
            (10_000, 0, 1),
            // Stopped for a minute, before the answer was taken, and before the next poll was sent.
            (10_250, 250, 60_250),
            (130_000, 120_000, 120_001),
            (131_000, 120_250, 130_000),
        ];
        assert_eq!(alarms(&polls), [None; 4]);
    }

    #[test]
    fn clocks_that_differ_by_little_or_go_backwards_are_no_alarm() {
        let drifting = (0..10_000).map(|n| (n * 251, n * 250, n * 250 + 1));
        assert!(
            alarms(&drifting.collect::<Vec<_>>())
                .iter()
                .all(Option::is_none)
        );
        assert_eq!(alarms(&[(10_000, 0, 1), (5_000, 250, 251)]), [None; 2]);
    }

    #[test]
    fn another_server_has_another_clock() {
        let mut pace = Pace::default();
        let here = |ms| (Millis(ms), Millis(ms + 1));
        assert_eq!(pace.polled((SERVER, 1000), here(0), BOUND), None);
        assert_eq!(
            pace.polled((Incarnation(8), 99_000), here(250), BOUND),
            None
        );
        let told = pace.polled((Incarnation(8), 102_000), here(500), BOUND);
        assert!(told.is_some(), "and from then on that one counts");
    }
}
