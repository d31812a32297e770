//! How large a world is, what may befall it, and which protections are off.

use super::{GuardPart, TagPart, VersionPart};
use std::time::Duration;
use tidings::coherence::{Mechanism, Mechanisms, Rules};
use tidings::store::memory::Continuity;

/// A budget that is never used up.
pub(crate) const ENDLESS: u8 = u8::MAX;

/// How often each thing may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub writes: u8,
    pub clears: u8,
    /// Writes under a guard.
    pub guards: u8,
    /// Writes whose value is put.
    pub puts: u8,
    /// Writes of what every entry is made of.
    pub tags: u8,
    pub flights: u8,
    pub refreshes: u8,
    /// How often somebody who waits for another's load looks again.
    pub retries: u8,
    /// How often a call is repeated whose epoch nobody has come to know.
    pub attempts: u8,
    pub looks: u8,
    pub polls: u8,
    pub connects: u8,
    pub losses: u8,
    pub repeats: u8,
    pub disconnects: u8,
    pub pauses: u8,
    /// Machines that stand still with their clocks, and clocks that jump ahead.
    pub freezes: u8,
    pub jumps: u8,
    pub evictions: u8,
    pub snapshots: u8,
    pub restarts: u8,
    pub empty_restarts: u8,
    pub replications: u8,
    /// Promotions whose old primary is dead, and those that it survives for a while.
    pub promotions: u8,
    pub splits: u8,
    /// Pods that end, and are started again.
    pub kills: u8,
    /// Pods that reach no server for a while.
    pub cuts: u8,
    pub flushes: u8,
    pub trims: u8,
    pub heads_lost: u8,
    pub floors_lost: u8,
    pub minimums_lost: u8,
    pub tag_floors_lost: u8,
    /// Failovers of the node that the tag is on alone.
    pub tag_promotions: u8,
}

/// What is left of a [`Budget`].
pub(crate) type Left = Budget;

impl Budget {
    pub(super) fn new(config: &Config) -> Self {
        config.budget
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub pods: u8,
    pub keys: u8,
    /// L.
    pub lease_ms: u64,
    /// How long a right to fill lasts.
    pub fill_ttl_ms: u64,
    /// How long a guard lasts, and a minimum version.
    pub guard_ms: u64,
    /// The steps in which time passes.
    pub ticks: Vec<u16>,
    /// How far the copy is behind that loads read; 0 if they read the source itself. Where there is one,
    /// invalidations name versions.
    pub lag_ms: u64,
    /// Every entry carries a tag, whose lane is another one.
    pub tags: bool,
    /// How much time passes at most.
    pub until: u64,
    pub budget: Budget,
    /// Start with every pod connected, live and holding version 0.
    pub warm: bool,
    /// Loads may go without the store although it is there.
    pub bypass: bool,
    /// Hints may overtake each other.
    pub reorder: bool,
    /// How many readers of a pod may be between two steps.
    pub readers: u8,
    /// Which pods write: bit mask.
    pub writers: u8,
    /// Which pods load: bit mask.
    pub loaders: u8,
    /// Which pods poll before the end: bit mask.
    pub pollers: u8,
    pub replicas: u8,
    /// Whether a promoted replica continues, or is fenced.
    pub continuity: Continuity,
    pub off: Option<Mechanism>,
    /// What of guards is off.
    pub guard_off: Option<GuardPart>,
    /// What of versions is off.
    pub version_off: Option<VersionPart>,
    /// What of tags is off.
    pub tag_off: Option<TagPart>,
    /// Promises are measured by the true time also where a pod's clock stood still: more than is promised.
    pub true_time: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            pods: 2,
            keys: 1,
            lease_ms: 100,
            fill_ttl_ms: 300,
            guard_ms: 400,
            lag_ms: 0,
            tags: false,
            ticks: vec![1, 4, 10, 40, 120],
            until: u64::MAX,
            budget: Budget::default(),
            warm: true,
            bypass: false,
            reorder: false,
            readers: 0,
            writers: u8::MAX,
            loaders: u8::MAX,
            pollers: u8::MAX,
            replicas: 0,
            continuity: Continuity::Fork,
            off: None,
            guard_off: None,
            version_off: None,
            tag_off: None,
            true_time: false,
        }
    }
}

impl Config {
    pub(crate) fn mechanisms(&self) -> Mechanisms {
        self.off.map_or_else(Mechanisms::default, |off| {
            Mechanisms::default().without(off)
        })
    }

    pub(crate) fn on(&self, mechanism: Mechanism) -> bool {
        self.off != Some(mechanism)
    }

    pub(super) fn guards(&self, part: GuardPart) -> bool {
        self.guard_off != Some(part)
    }

    pub(super) fn versions(&self, part: VersionPart) -> bool {
        self.version_off != Some(part)
    }

    pub(super) fn tagged(&self, part: TagPart) -> bool {
        self.tag_off != Some(part)
    }

    pub(super) fn lanes(&self) -> u16 {
        1 + u16::from(self.tags)
    }

    pub(super) fn lag(&self) -> Duration {
        Duration::from_millis(self.lag_ms)
    }

    /// Whether loads may have to be kept for their youth alone.
    pub(super) fn reckons(&self) -> bool {
        self.budget.guards > 0 || self.lag_ms > 0
    }

    pub(super) fn guard(&self) -> Duration {
        Duration::from_millis(self.guard_ms)
    }

    pub(crate) fn without(self, off: Mechanism) -> Self {
        Self {
            off: Some(off),
            ..self
        }
    }

    pub(crate) fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    pub(crate) fn rules(&self) -> Rules {
        Rules {
            lease: self.lease(),
            mechanisms: self.mechanisms(),
        }
    }
}
