//! What a store says about its own settings: what weakens a promise, or will cost an outage.

use std::fmt;
use std::time::Duration;

/// What the server behind a store was found to be; see [`Health::server`](crate::Health::server).
///
/// A snapshot from when the link in use was opened: it is not asked again before the next one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerReport {
    /// Its version, if it says: a Valkey's own, not that of the Redis which it is compatible with.
    pub version: Option<String>,
    /// How long a primary that was deposed may go on taking writes.
    pub failover_window: FailoverWindow,
    /// What should be set otherwise. Empty if nothing was found, or nothing could be asked.
    pub findings: Vec<Finding>,
}

impl ServerReport {
    /// What two servers are together.
    #[cfg(feature = "redis")]
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.failover_window = self.failover_window.and(other.failover_window);
        let new = other.findings.into_iter();
        let new: Vec<_> = new
            .filter(|finding| !self.findings.contains(finding))
            .collect();
        self.findings.extend(new);
        self
    }
}

/// G: for how long after its successor takes writes a primary that was deposed may acknowledge
/// invalidations, and confirm what pods serve. What is promised within Δ holds within Δ + G then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailoverWindow {
    /// There is nothing to fail over to.
    None,
    /// It stops by itself after this long: `min-replicas-max-lag` and a second, or
    /// `cluster-node-timeout`, whichever is shorter.
    AtMost(Duration),
    /// It goes on for as long as somebody reaches it.
    Unbounded,
    /// The server does not let this user ask.
    #[default]
    Unknown,
}

impl FailoverWindow {
    /// The worse of two.
    #[cfg(feature = "redis")]
    fn and(self, other: Self) -> Self {
        match (self.bound(), other.bound()) {
            (Some(ours), Some(theirs)) if ours < theirs => other,
            (Some(_), Some(_)) => self,
            (Some(_), None) => other,
            (None, _) if other == Self::Unbounded => other,
            (None, _) => self,
        }
    }

    /// How long, if that is known and bounded.
    #[must_use]
    pub fn bound(self) -> Option<Duration> {
        match self {
            Self::None => Some(Duration::ZERO),
            Self::AtMost(window) => Some(window),
            Self::Unbounded | Self::Unknown => None,
        }
    }
}

/// Something about the server that an operator should know. Nothing here keeps a cache from starting.
///
/// Its `Display` says what it weakens, and what to set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Finding {
    /// It has replicas, and writes on without them.
    UnguardedReplicas {
        /// How many are attached.
        replicas: u64,
    },
    /// Its `maxmemory-policy` may evict keys without an expiry.
    EvictsLogs {
        /// The policy.
        policy: String,
    },
    /// It is a node of a cluster that stops as a whole when one node dies without a replica.
    StopsWithOneNode,
    /// Fewer replicas are attached than must confirm each invalidation.
    TooFewReplicas {
        /// How many [`Acknowledge`](crate::store::Acknowledge) asks for.
        asked: u8,
        /// How many there are.
        attached: u64,
    },
    /// It stops taking writes when it cannot save.
    StopsWithItsDisk,
    /// Its limit for subscribers cuts them off early.
    SmallSubscriptionBuffer {
        /// The hard limit in bytes.
        bytes: u64,
    },
    /// It has no limit for subscribers.
    UnboundedSubscriptionBuffer,
    /// This user may not ask which life of the server it is (`INFO`).
    LifeUnknown,
    /// This user may not ask for its settings (`CONFIG GET`).
    SettingsUnknown,
    /// This user lacks what a mode needs; its calls will fail.
    MissingPermissions {
        /// The mode.
        mode: &'static str,
        /// As rules of an ACL name them.
        commands: Vec<&'static str>,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnguardedReplicas { replicas } => write!(
                f,
                "{replicas} replicas, and min-replicas-to-write is 0: after a failover the old primary \
                 acknowledges invalidations that nobody hears, for as long as a pod reaches it; set \
                 min-replicas-to-write 1 and min-replicas-max-lag 2"
            ),
            Self::EvictsLogs { policy } => write!(
                f,
                "maxmemory-policy {policy} evicts heads and logs too: each time a lane begins cold, \
                 presence and raw data may be lost; set volatile-lru"
            ),
            Self::StopsWithOneNode => f.write_str(
                "cluster-require-full-coverage is yes: a node that dies without a replica takes the lanes \
                 of all others along; set cluster-require-full-coverage no",
            ),
            Self::TooFewReplicas { asked, attached } => write!(
                f,
                "{attached} replicas, and invalidations wait for {asked}: none is acknowledged; attach \
                 more, or set Acknowledge to what there is"
            ),
            Self::StopsWithItsDisk => f.write_str(
                "it saves to disk and takes no writes when that fails: then nothing is cached and no \
                 invalidation is acknowledged; set save \"\" and appendonly no, or \
                 stop-writes-on-bgsave-error no",
            ),
            Self::SmallSubscriptionBuffer { bytes } => write!(
                f,
                "client-output-buffer-limit pubsub {bytes}: a burst cuts pods off, which then connect \
                 again; set 32mb 8mb 60"
            ),
            Self::UnboundedSubscriptionBuffer => f.write_str(
                "client-output-buffer-limit pubsub has no limit: a pod that stalls fills the server's \
                 memory; set 32mb 8mb 60",
            ),
            Self::LifeUnknown => f.write_str(
                "this user may not use INFO: a server that lost writes over a restart is noticed only by \
                 pods that had seen them; add +info",
            ),
            Self::SettingsUnknown => f.write_str(
                "this user may not ask for settings, so they were not looked at; add +config|get",
            ),
            Self::MissingPermissions { mode, commands } => {
                write!(f, "{mode} will fail: this user lacks")?;
                commands.iter().try_for_each(|command| write!(f, " +{command}"))
            }
        }
    }
}
