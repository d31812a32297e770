//! What may go wrong with a store, on demand.

use super::link::Access;
use super::{MemoryState, Shared, lock};
use crate::error::{StoreError, StoreErrorKind};
use crate::store::{Found, StoreResult};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;

/// Makes an embedded store misbehave, for all who share it; see [`Memory::faults`](super::Memory::faults).
///
/// Each fault lasts until it is taken back. They add up.
#[derive(Clone)]
pub struct Faults(Arc<Shared>);

impl Faults {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// While the store is down every call and every connect fails as
    /// [`Unavailable`](StoreErrorKind::Unavailable). Going down ends all hint streams and breaks all
    /// links for good, as a server's connections break with it; what the store holds stays.
    pub fn set_down(&self, down: bool) {
        self.0.trouble.change(|now| {
            now.reach += u64::from(down && !now.down);
            now.down = down;
        });
        if down {
            for room in lock(&self.0.rooms).values() {
                lock(&room.0).listeners.clear();
            }
        }
    }

    /// While set, every write fails with `kind` and does nothing. A poll is a write.
    pub fn set_error(&self, kind: Option<StoreErrorKind>) {
        self.0.trouble.change(|now| now.write_error = kind);
    }

    /// While the store hangs no call and no connect ends, nor has any effect, unless it is also
    /// down. What hung goes on when this is lifted.
    pub fn hang(&self, hanging: bool) {
        self.0.trouble.change(|now| now.hanging = hanging);
    }

    /// While set, nothing is published.
    pub fn drop_hints(&self, dropping: bool) {
        self.0.trouble.change(|now| now.dropping_hints = dropping);
    }

    /// Inverts the last byte of the next value that is read. What is stored stays as it is.
    pub fn corrupt_next_read(&self) {
        self.0.trouble.corrupting.store(true, Ordering::SeqCst);
    }

    /// Looks at or changes the state of each namespace, as one atomic step and without a hint:
    /// restarts, evictions, lost logs.
    pub fn with_state(&self, mut change: impl FnMut(&mut MemoryState)) {
        for room in lock(&self.0.rooms).values() {
            change(&mut lock(&room.0).state);
        }
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let now = self.0.trouble.now.borrow();
        f.debug_tuple("Faults").field(&*now).finish()
    }
}

/// The faults of one store.
#[derive(Default)]
pub(super) struct Troubles {
    now: watch::Sender<Trouble>,
    corrupting: AtomicBool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Trouble {
    down: bool,
    hanging: bool,
    dropping_hints: bool,
    write_error: Option<StoreErrorKind>,
    /// Counts how often the store went down; a link belongs to one such number.
    reach: u64,
}

impl Troubles {
    fn change(&self, change: impl FnOnce(&mut Trouble)) {
        self.now.send_modify(change);
    }

    pub(super) fn reach(&self) -> u64 {
        self.now.borrow().reach
    }

    pub(super) async fn connecting(&self) -> StoreResult<()> {
        match self.settled().await.down {
            true => Err(StoreError::new(StoreErrorKind::Unavailable, "connect")),
            false => Ok(()),
        }
    }

    /// Holds up or fails a call of a link that was opened in `reach`.
    pub(super) async fn pass(
        &self,
        operation: &'static str,
        access: Access,
        reach: u64,
    ) -> StoreResult<()> {
        let now = self.settled().await;
        let error = match now.write_error {
            _ if now.down || now.reach != reach => Some(StoreErrorKind::Unavailable),
            Some(kind) if access == Access::Write => Some(kind),
            _ => None,
        };
        error.map_or(Ok(()), |kind| Err(StoreError::new(kind, operation)))
    }

    /// The faults as soon as the store answers at all.
    async fn settled(&self) -> Trouble {
        let now = *self.now.borrow();
        if !now.hanging || now.down {
            return now;
        }
        let mut changes = self.now.subscribe();
        let answers = changes.wait_for(|now| !now.hanging || now.down).await;
        *answers.expect("the sender is borrowed for as long as this waits")
    }

    pub(super) fn lose_some<M>(&self, hints: &mut Vec<M>) {
        if self.now.borrow().dropping_hints {
            hints.clear();
        }
    }

    pub(super) fn corrupt(&self, found: Found) -> Found {
        let damage = |value: bytes::Bytes| {
            let mut value = value.to_vec();
            value.last_mut().into_iter().for_each(|byte| *byte = !*byte);
            value.into()
        };
        match found.value {
            Some(value) if self.corrupting.swap(false, Ordering::SeqCst) => Found {
                value: Some(damage(value)),
                ..found
            },
            _ => found,
        }
    }
}
