//! Waiting for the load of another pod.

use crate::random::random_part;
use std::time::Duration;
use tokio::time::Instant;

/// Pauses between two looks at a key that another pod is loading: short enough to take over soon,
/// jittered so that pods do not look in step.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(50));

/// How long to wait until the next look, unless the fill is announced before.
pub(super) fn pause() -> Duration {
    let (shortest, longest) = PAUSE;
    let part = random_part();
    shortest + (longest - shortest).mul_f64(part)
}

/// A reader's patience with those who hold the lease of its key.
///
/// A holder that dies leaves the lease to the pod that looks first after its end, which is about when
/// everybody else's patience ends as well. So a successor is waited for anew: half as long, and once,
/// which leaves a caller time to load by itself if that one dies, too.
pub(super) struct Waiting {
    limit: Duration,
    until: Instant,
    extended: bool,
    /// What the last look found: a lease with this token, or nothing.
    last: Option<Option<u64>>,
}

impl Waiting {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            // At least one look after the end of the lease.
            until: Instant::now() + limit + PAUSE.1,
            extended: false,
            last: None,
        }
    }

    /// Takes note of what was found, and gives whether to ask for the lease: to be granted it, or for
    /// its holder to learn that somebody waits.
    pub(super) fn found(&mut self, holder: Option<u64>) -> bool {
        let last = self.last.replace(holder);
        if last.is_some_and(|last| last != holder) && !self.extended {
            let until = Instant::now() + self.limit / 2;
            self.extended = until > self.until;
            self.until = self.until.max(until);
        }
        match (last, holder) {
            (_, None) | (None, _) => true,
            // It was asked for when there was none, and somebody else was faster.
            (Some(None), Some(_)) => false,
            (Some(Some(before)), Some(now)) => before != now,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const LIMIT: Duration = Duration::from_secs(2);

    #[tokio::test(start_paused = true)]
    async fn each_holder_is_asked_once_and_a_free_lease_always() {
        let mut waiting = Waiting::new(LIMIT);
        let asked = [
            Some(1),
            Some(1),
            Some(2),
            Some(2),
            None,
            None,
            Some(3),
            Some(3),
        ];
        let asked = asked.map(|holder| waiting.found(holder));
        assert_eq!(asked, [true, false, true, false, true, true, false, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn patience_outlasts_the_lease_of_a_holder_and_then_half_of_its_successors() {
        let mut waiting = Waiting::new(LIMIT);
        waiting.found(Some(1));
        advance(LIMIT).await;
        assert!(!waiting.is_over(), "one more look");
        waiting.found(Some(2));
        advance(LIMIT / 2 - Duration::from_millis(1)).await;
        assert!(!waiting.is_over());
        waiting.found(None);
        waiting.found(Some(3));
        advance(Duration::from_millis(1)).await;
        assert!(waiting.is_over());
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_holders_at_the_beginning_leaves_the_extension_for_later() {
        let mut waiting = Waiting::new(LIMIT);
        waiting.found(None);
        waiting.found(Some(1));
        advance(LIMIT).await;
        waiting.found(Some(2));
        advance(LIMIT / 4).await;
        assert!(!waiting.is_over());
    }
}
