//! The protections of the delivery, each with a test-only off switch.
//!
//! As those of the protocol ([`Mechanism`](crate::coherence::Mechanism)): with the `testing` feature each can
//! be switched off, and something must then be lost, late or out of order. Without it they are always on.

/// One protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protection {
    /// A row is deleted when the store has acknowledged; off: before it is carried out.
    AckFirst,
    /// All that is visible is carried out; off: what has a greater id than anything before it.
    AllVisible,
    /// The table is looked at now and then; off: when a notification comes.
    Poll,
    /// One session delivers, by a lock; off: every pod does.
    Lock,
    /// The server ends the session of a pod that is silent; off: it stands as long as its connection.
    Lease,
    /// Rows that name nothing are set aside; off: they are a failure.
    SetAside,
}

/// Which protections are on: all of them, unless a test says otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Protections {
    #[cfg(feature = "testing")]
    pub(super) off: Option<Protection>,
}

impl Protections {
    #[cfg(feature = "testing")]
    pub(super) fn on(self, protection: Protection) -> bool {
        self.off != Some(protection)
    }

    #[cfg(not(feature = "testing"))]
    pub(super) fn on(self, _protection: Protection) -> bool {
        true
    }
}
