//! Those who wait for a call: how it stands, and what they are told.

use super::lock;
use crate::coherence::{Call, Lane, Position};
use crate::error::StoreError;
use crate::store::StoreResult;
use crate::time::Millis;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

#[derive(Clone, Debug)]
pub(super) enum CallState {
    /// The first attempt is under way.
    Running,
    /// The same, and the journal has what it is about.
    Noted,
    Waiting(StoreError),
    Acknowledged(Position),
}

/// A call under way.
#[derive(Clone, Debug)]
pub(crate) struct CallHandle {
    pub(super) lane: Lane,
    pub(super) state: watch::Receiver<CallState>,
}

impl CallHandle {
    /// The position, or why the first attempt failed; `None` if the cache was closed.
    pub(super) async fn first_attempt(&mut self) -> Option<StoreResult<Position>> {
        let state = self
            .state
            .wait_for(|state| !matches!(state, CallState::Running | CallState::Noted))
            .await
            .ok()?;
        match &*state {
            CallState::Acknowledged(position) => Some(Ok(*position)),
            CallState::Waiting(reason) => Some(Err(reason.clone())),
            CallState::Running | CallState::Noted => None,
        }
    }

    /// Waits until the end of the process cannot make it forgotten: the journal has it, or the store.
    pub(super) async fn noted(&mut self) {
        let kept = |state: &CallState| !matches!(state, CallState::Running);
        // An error is the end of the cache.
        let _ = self.state.wait_for(kept).await;
    }

    pub(super) async fn settled(mut self) -> Option<Position> {
        let acknowledged = |state: &CallState| matches!(state, CallState::Acknowledged(_));
        match *self.state.wait_for(acknowledged).await.ok()? {
            CallState::Acknowledged(position) => Some(position),
            _ => None,
        }
    }
}

/// Who waits for a call. It is acknowledged when each of its items is.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) state: watch::Sender<CallState>,
    /// Items that are not acknowledged, and the newest position of those that are.
    left: Mutex<(usize, Option<Position>)>,
    /// What was called, and when; nothing of what an earlier process has left.
    called: Option<(Arc<Call>, Millis)>,
}

impl Waiter {
    pub(super) fn new(
        items: usize,
        state: watch::Sender<CallState>,
        called: Option<(Arc<Call>, Millis)>,
    ) -> Arc<Self> {
        let left = Mutex::new((items, None));
        Arc::new(Self {
            state,
            left,
            called,
        })
    }

    /// For `items` that nobody waits for.
    pub(super) fn nobody(items: usize) -> Arc<Self> {
        Self::new(items, watch::Sender::new(CallState::Running), None)
    }

    /// Whether anybody still listens.
    pub(super) fn is_awaited(&self) -> bool {
        self.state.receiver_count() > 0
    }

    #[cfg(test)]
    pub(super) fn position(&self) -> Option<Position> {
        match *self.state.borrow() {
            CallState::Acknowledged(position) => Some(position),
            _ => None,
        }
    }

    /// One of its items stands at `position`. Gives what was called, and when, if that was the last.
    pub(super) fn acknowledged(&self, position: Position) -> Option<&(Arc<Call>, Millis)> {
        let mut left = lock(&self.left);
        let (items, newest) = &mut *left;
        *items = items.saturating_sub(1);
        // Of two epochs the later one is that of the later acknowledgement.
        let newer = newest.is_none_or(|at| at.epoch != position.epoch || at.seq < position.seq);
        if newer {
            *newest = Some(position);
        }
        let (0, Some(at)) = (*items, *newest) else {
            return None;
        };
        self.state.send_replace(CallState::Acknowledged(at));
        self.called.as_ref()
    }
}
