//! Where lives are timed to the millisecond: the embedded store, and one clock that the test moves.

use crate::bed::{Bed, Pod, eventually};
use crate::source::Source;
use std::time::Duration;
use tidings::store::Memory;
use tidings::{Clock, Millis};

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// Pods and store on one manual clock.
pub(crate) struct Lab {
    pub(crate) bed: Bed,
    pub(crate) clock: Clock,
    pub(crate) source: Source,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let clock = Clock::manual(Millis(1_000_000));
        Self {
            bed: Bed::on(Memory::new().with_clock(clock.clone())),
            clock,
            source: Source::new(),
        }
    }

    pub(crate) async fn pod(&self) -> Pod {
        self.bed
            .pod_with(|builder| builder.clock(self.clock.clone()))
            .await
    }

    /// Moves the time, and waits until the pods know that they missed nothing.
    pub(crate) async fn pass(&self, time: Duration, pods: &[&Pod]) {
        self.clock.advance(time);
        for pod in pods {
            eventually("a poll of the new time", async || {
                pod.cache.health().confirmed == Some(Duration::ZERO)
            })
            .await;
        }
    }
}
