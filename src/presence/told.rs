//! What one consumer is still to be told: every event, while it keeps up; the difference, if not.

use super::replica::{Delta, LeftReason, Replica};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;

/// How many events wait for a slow consumer before they are folded into a difference.
pub(super) const QUEUE: usize = 1024;

/// What a consumer is told next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tell {
    Change(Delta),
    Synced,
}

/// A member of which the consumer knows something else than the replica.
#[derive(Debug)]
struct Differs {
    /// The consumer thinks that it is there.
    told: bool,
    /// Why it last left, should it not be there.
    left: LeftReason,
}

/// The part of one consumer. Either events wait or differences, never both; memory is bounded by the
/// room's size.
#[derive(Debug, Default)]
pub(super) struct Told {
    events: VecDeque<Delta>,
    differs: BTreeMap<Arc<str>, Differs>,
    synced: bool,
    pub(super) waker: Option<Waker>,
}

impl Told {
    /// A consumer that knows nothing of what is there.
    pub(super) fn nothing(replica: &Replica) -> Self {
        let differs = |member: &Arc<str>| {
            let differs = Differs {
                told: false,
                left: LeftReason::Missed,
            };
            (Arc::clone(member), differs)
        };
        Self {
            differs: replica.names().map(differs).collect(),
            ..Self::default()
        }
    }

    /// A consumer that comes too late to be told anything.
    pub(super) fn all() -> Self {
        Self {
            synced: true,
            ..Self::default()
        }
    }

    /// The replica changed.
    pub(super) fn push(&mut self, delta: Delta) {
        if self.differs.is_empty() {
            if self.events.len() < QUEUE {
                self.events.push_back(delta);
                return;
            }
            for delta in std::mem::take(&mut self.events) {
                self.fold(delta);
            }
        }
        self.fold(delta);
    }

    /// A member without a difference is known as it was before this.
    fn fold(&mut self, delta: Delta) {
        let (member, told, left) = match delta {
            Delta::Joined(member, _) => (member, false, None),
            Delta::Updated(member, _) => (member, true, None),
            Delta::Left(member, reason) => (member, true, Some(reason)),
        };
        let differs = self.differs.entry(Arc::clone(&member)).or_insert(Differs {
            told,
            left: LeftReason::Missed,
        });
        if let Some(reason) = left {
            differs.left = reason;
            if !differs.told {
                self.differs.remove(&member);
            }
        }
    }

    /// The next thing to tell; `synced` if the replica has been read at all.
    pub(super) fn next(&mut self, replica: &Replica, synced: bool) -> Option<Tell> {
        if let Some(delta) = self.events.pop_front() {
            return Some(Tell::Change(delta));
        }
        while let Some((member, Differs { told, left })) = self.differs.pop_first() {
            let delta = match (told, replica.meta(&member).cloned()) {
                (false, Some(meta)) => Delta::Joined(member, meta),
                (true, Some(meta)) => Delta::Updated(member, meta),
                (true, None) => Delta::Left(member, left),
                (false, None) => continue,
            };
            return Some(Tell::Change(delta));
        }
        (synced && !std::mem::replace(&mut self.synced, synced)).then_some(Tell::Synced)
    }
}
