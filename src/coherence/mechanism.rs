//! The protections of the protocol, each with a test-only off switch.
//!
//! A check that never failed proves nothing. With the `testing` feature every mechanism below can be
//! switched off, and the suites must then go red. Without the feature the switches do not exist: `on`
//! is the constant `true`.

/// One protection. The names of the holes (H1 …) are those of `docs/decisions/coherence.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mechanism {
    /// H1: a fill needs the lease that its load was granted; off: any fill is stored.
    LeaseFence,
    /// H2: a value enters the local level only with a stamp that no applied invalidation outranks.
    InsertStamp,
    /// H3: a load in flight is joined only while the lane is live or the load is young.
    JoinRule,
    /// H7: liveness counts from when the poll was sent; off: from when its answer was processed.
    SendTime,
    /// H9: a poll confirms only if its heads are applied; off: an answer alone confirms.
    PollHeads,
    /// H10: each read asks the kernel for the time; off: a time that a ticker published.
    KernelClock,
    /// H11: a read loads the lane word before the entry; off: after it.
    CheckOrder,
    /// H12: a subscription that twice stayed silent while the log grew is replaced.
    RecycleSubscription,
    /// H13: an entry may be served until its own load start plus the bound, live lane or not.
    OwnAge,
    /// H14, H22: entries are followed by their nonces; off: by bare sequence numbers.
    NonceChain,
    /// H18: a new life of the server opens a new epoch; off: its data is believed.
    FenceOnRestart,
    /// H15: a pod logs again what a promoted replica lacks of its calls.
    Reissue,
    /// H15: what a promoted replica lacks and nobody logs again voids the lane, if somebody heard of it.
    Hearsay,
    /// H15: a fork is believed only after every pod had the time to log again what it lost; off: at once.
    DoubtForks,
    /// H16: an answer whose epoch is over acknowledges nothing; off: every answer acknowledges.
    LateAcks,
    /// A fence that a promoted replica lacks is repeated.
    FenceAgain,
    /// H19: epochs are random; off: a lane without a head starts again in epoch 1.
    RandomEpoch,
    /// The local level is served only while the lane is live; off: a classic pub/sub cache.
    Liveness,
}

/// Which mechanisms are on: all of them, unless a test says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mechanisms {
    #[cfg(feature = "testing")]
    off: u32,
}

impl Mechanisms {
    /// All but `mechanism`.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn without(mut self, mechanism: Mechanism) -> Self {
        self.off |= 1 << mechanism as u32;
        self
    }

    /// Whether `mechanism` is on.
    #[cfg(feature = "testing")]
    #[inline]
    #[must_use]
    pub fn on(self, mechanism: Mechanism) -> bool {
        self.off & (1 << mechanism as u32) == 0
    }

    /// Whether `mechanism` is on.
    #[cfg(not(feature = "testing"))]
    #[inline]
    #[must_use]
    pub fn on(self, _mechanism: Mechanism) -> bool {
        true
    }
}
