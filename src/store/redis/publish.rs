//! When entries of a log are published: each at once, or those of some milliseconds together.
//!
//! What a message costs a server is the write to each subscriber's socket, whatever the message holds. So
//! a script may only log ([`Publish`]), and whoever is to publish runs [`FLUSH`] later: the pod that was the
//! first to be deferred, or the relay. Both may die. The log has the entry, the invalidation is acknowledged
//! for that, and every pod's next poll finds it.

use super::keys::{Keys, LaneKeys};
use super::node::Node;
use super::nodes::Nodes;
use super::numbers::{millis, word};
use super::reply::Reply;
use super::scripts::FLUSH;
use crate::coherence::Lane;
use crate::error::{StoreError, StoreErrorKind};
use crate::random::random;
use crate::store::StoreResult;
use ::redis::{Cmd, Pipeline};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The times between two publishings that can be chosen. Beyond it a confirmation (1 s) would not outlast
/// a poll that has to wait for hints.
const PACES: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_millis(100);
/// How long a relay stays one without a sign of life. Until then nobody publishes, and pods learn of
/// entries by their polls, four times a second.
const RELAY_LEASE: Duration = Duration::from_millis(500);
/// How long a flush may take.
const FLUSH_LIMIT: Duration = Duration::from_millis(300);

/// When the hints of invalidations are published. It changes when other pods learn of an invalidation as
/// a rule, and never by when they do: that is the bound, with any of these.
///
/// A server writes to the socket of each subscriber for each message, some 5 µs: a lone message to a
/// thousand pods holds it up for 5 ms. Messages of the same moment share that write. `docs/operations.md`
/// says which to choose. Pods of a namespace may differ, while they are rolled out and for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Publish {
    /// Each with its invalidation. The default, and best while pods times invalidations a second stay
    /// below some 30,000.
    #[default]
    Immediate,
    /// At once if nothing was published for this long; otherwise together with what else is logged until
    /// then. As Nagle's algorithm does it (RFC 896), but by the clock. The pod that is deferred first
    /// publishes for all, one more round trip of its own. From 1 to 100 ms.
    Adaptive {
        /// The time between two publishings.
        within: Duration,
    },
    /// Always together: one pod, which a lease in the store elects, publishes all that was logged on a
    /// node this often. While there is none, as [`Adaptive`](Self::Adaptive). Fills are not announced to
    /// those who wait for them in other pods: they look every 5 to 50 ms. From 1 to 100 ms.
    Relay {
        /// The time between two publishings.
        every: Duration,
    },
}

impl Publish {
    /// The time between two publishings; zero if each entry is published at once.
    pub(super) fn pace(self) -> Duration {
        match self {
            Self::Immediate => Duration::ZERO,
            Self::Adaptive { within: pace } | Self::Relay { every: pace } => pace,
        }
    }

    /// # Errors
    /// `Config` if the time is out of range.
    pub(super) fn check(self) -> StoreResult<()> {
        if self == Self::Immediate || PACES.contains(&self.pace()) {
            return Ok(());
        }
        let (shortest, longest) = PACES.into_inner();
        let detail = format!(
            "publish: {:?} is not from {shortest:?} to {longest:?}",
            self.pace()
        );
        Err(StoreError::new(StoreErrorKind::Config, "connect").with_detail(detail))
    }
}

/// Publishes what waits, for as long as a link lives.
pub(super) struct Publisher {
    flusher: Arc<Flusher>,
    publish: Publish,
    _end: DropGuard,
}

impl Publisher {
    pub(super) fn start(publish: Publish, nodes: &Arc<Nodes>, keys: &Arc<Keys>) -> Self {
        let flusher = Arc::new(Flusher {
            nodes: Arc::clone(nodes),
            keys: Arc::clone(keys),
            pace: publish.pace(),
        });
        let end = CancellationToken::new();
        if matches!(publish, Publish::Relay { .. }) {
            for at in 0..nodes.all().len() {
                let (flusher, ended) = (Arc::clone(&flusher), end.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = ended.cancelled() => {}
                        () = flusher.relay(at) => {}
                    }
                });
            }
        }
        Self {
            flusher,
            publish,
            _end: end.drop_guard(),
        }
    }

    /// Whether pods of this link are candidates for a relay.
    pub(super) fn relays(&self) -> bool {
        matches!(self.publish, Publish::Relay { .. })
    }

    /// The milliseconds between two publishings, as scripts take them.
    pub(super) fn pace(&self) -> Option<u64> {
        (self.publish != Publish::Immediate).then(|| millis(self.publish.pace()))
    }

    /// An entry was logged on `lane` and is to be published by us after so long. Nobody waits for it: if
    /// it fails, the polls find what waits.
    pub(super) fn deferred(&self, lane: Lane, after: Option<Duration>) {
        let Some(after) = after else { return };
        let flusher = Arc::clone(&self.flusher);
        tokio::spawn(async move {
            sleep(after.min(*PACES.end())).await;
            let flushed = timeout(FLUSH_LIMIT, flusher.flush_for(lane)).await;
            if let Ok(Err(error)) = flushed {
                tracing::debug!(%error, "what was deferred is left to the polls");
            }
        });
    }
}

/// Who flushes as a relay.
#[derive(Clone, Copy)]
struct Claim {
    relay: u64,
    /// Whether another relay has to go.
    takes_over: bool,
}

struct Flusher {
    nodes: Arc<Nodes>,
    keys: Arc<Keys>,
    pace: Duration,
}

impl Flusher {
    /// A call that publishes what waits on `lanes`, which have one pace.
    fn call(&self, lanes: &[LaneKeys], claim: Option<Claim>) -> Option<Cmd> {
        let first = lanes.first()?;
        let mut call = FLUSH.call(1 + 2 * lanes.len());
        call.arg(&first.pace);
        for lane in lanes {
            call.arg(&lane.head).arg(&lane.log);
        }
        let numbers: Vec<u8> = lanes.iter().flat_map(|lane| lane.lane).collect();
        call.arg(numbers).arg(&first.channel);
        call.arg(millis(self.pace));
        match claim {
            Some(claim) => call.arg(&word(claim.relay)),
            None => call.arg(""),
        };
        call.arg(millis(RELAY_LEASE));
        call.arg(if claim.is_some_and(|claim| claim.takes_over) {
            "1"
        } else {
            ""
        });
        Some(call)
    }

    /// Publishes what waits on `lane`, and on every other that shares its pace.
    async fn flush_for(&self, lane: Lane) -> StoreResult<()> {
        let alone = std::slice::from_ref(self.keys.lane(lane)?);
        let lanes = match self.keys.is_sharded() {
            true => alone,
            false => self.keys.lanes(),
        };
        match self.call(lanes, None) {
            Some(call) => FLUSH.run(&self.nodes, &call).await?.flushed().map(drop),
            None => Ok(()),
        }
    }

    /// Is the relay of a node whenever that has none.
    async fn relay(&self, at: usize) {
        let node = &self.nodes.all()[at];
        let relay = random();
        loop {
            node.vacancy().await;
            let mut ticks = interval(self.pace);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks.tick().await;
            let mut elected = self.tick(node, relay, false).await;
            while elected {
                ticks.tick().await;
                elected = self.tick(node, relay, true).await;
            }
        }
    }

    /// Publishes what waits on a node, as its relay. Whether it is that, as far as it knows.
    ///
    /// Lanes of a cluster have a pace each. Who has that of the first has the node, and takes the others;
    /// so of two that have some each, one has all after its next tick.
    async fn tick(&self, node: &Node, relay: u64, whole: bool) -> bool {
        let calls = || -> Option<Pipeline> {
            let mut calls = Pipeline::new();
            if !self.keys.is_sharded() {
                let takes_over = false;
                calls.add_command(self.call(self.keys.lanes(), Some(Claim { relay, takes_over }))?);
                return Some(calls);
            }
            let lanes = if whole { node.lanes.len() } else { 1 };
            for (at, &lane) in node.lanes.iter().take(lanes).enumerate() {
                let lane = std::slice::from_ref(self.keys.lane(lane).ok()?);
                let takes_over = at > 0;
                calls.add_command(self.call(lane, Some(Claim { relay, takes_over }))?);
            }
            Some(calls)
        };
        let Some(calls) = calls() else { return false };
        let answers = timeout(FLUSH_LIMIT, FLUSH.run_many(&self.nodes, &calls)).await;
        let first = answers.ok().and_then(|answers| answers.into_iter().next());
        let first = first.map(|first| first.and_then(Reply::flushed));
        matches!(first, Some(Ok(Some(_))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_out_of_range_is_refused_by_name() {
        let millis = Duration::from_millis;
        for (publish, fits) in [
            (Publish::Immediate, true),
            (Publish::Adaptive { within: millis(1) }, true),
            (Publish::Relay { every: millis(100) }, true),
            (Publish::Adaptive { within: millis(0) }, false),
            (Publish::Relay { every: millis(101) }, false),
        ] {
            let error = publish.check().err();
            assert_eq!(error.is_none(), fits, "{publish:?}");
            if let Some(error) = error {
                assert_eq!(error.kind(), StoreErrorKind::Config);
                assert!(error.to_string().contains("publish"), "{error}");
            }
        }
    }
}
