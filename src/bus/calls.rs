//! This pod's own invalidations: carried out here first, then in the store. What the store does not
//! acknowledge at once is [pending](super::pending), and repeated until it is acknowledged on the timeline
//! that this pod follows.

use super::attempt::Extra;
use super::fences::{Fenced, Fences};
use super::pending::{Item, TURNS, Table};
use super::waiter::{CallHandle, CallState, Waiter};
use super::{Bus, InvalidateError, OwnedPut, Pending, Stamp, lock};
use crate::coherence::wire::MAX_KEYS;
use crate::coherence::{Call, Lane};
use crate::error::{StoreError, StoreErrorKind};
use crate::telemetry::spanned;
use crate::time::Millis;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};
/// A call whose first attempt is under way.
#[derive(Debug)]
struct Running {
    since: Millis,
    lane: Lane,
    call: Arc<Call>,
}

/// The calls of one cache.
#[derive(Debug)]
pub(super) struct Calls {
    /// First attempts under way.
    running: Mutex<BTreeMap<u64, Running>>,
    ids: AtomicU64,
    /// What has to be repeated.
    pub(super) table: Mutex<Table>,
    /// Whose turn it is on each lane.
    pub(super) turns: Box<[Semaphore]>,
    /// Woken whenever something was acknowledged for good.
    ended: Notify,
    pub(super) fences: Fences,
}

impl Calls {
    pub(super) fn new(lanes: u16, max_pending: usize) -> Self {
        Self {
            running: Mutex::default(),
            ids: AtomicU64::new(0),
            table: Mutex::new(Table::new(max_pending)),
            turns: (0..lanes).map(|_| Semaphore::new(TURNS)).collect(),
            ended: Notify::new(),
            fences: Fences::default(),
        }
    }

    fn begin(&self, since: Millis, lane: Lane, call: &Arc<Call>) -> u64 {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let call = Arc::clone(call);
        let running = Running { since, lane, call };
        lock(&self.running).insert(id, running);
        id
    }

    fn end(&self, id: u64) {
        lock(&self.running).remove(&id);
        self.ended();
    }

    pub(super) fn ended(&self) {
        self.ended.notify_waiters();
    }

    /// Lets everybody who waits know that nothing will come.
    pub(super) fn abandon(&self) {
        lock(&self.table).abandon();
    }

    /// How many items and calls are not acknowledged, and since when the oldest waits.
    pub(super) fn pending(&self) -> (usize, Option<Millis>) {
        let running = lock(&self.running);
        let table = lock(&self.table);
        let oldest = running.first_key_value().map(|(_, running)| running.since);
        let since = table.items().map(|(_, since)| since).chain(oldest).min();
        (running.len() + table.len(), since)
    }

    /// What is not acknowledged, and since when: the oldest first.
    pub(super) fn unacknowledged(&self) -> Vec<(Item, Millis)> {
        let running = lock(&self.running);
        let table = lock(&self.table);
        let mut all: Vec<_> = table.items().map(|(item, at)| (item.clone(), at)).collect();
        for Running { since, lane, call } in running.values() {
            all.extend(Item::of(*lane, call).into_iter().map(|item| (item, *since)));
        }
        all.sort_by_key(|(_, since)| *since);
        all
    }

    /// How many items went into coarser ones so far.
    pub(super) fn merged(&self) -> u64 {
        lock(&self.table).merged()
    }
}

impl Bus {
    /// Makes `calls` known to every pod: at once to this one, through the store to the others.
    ///
    /// Returns when the store has acknowledged all of them, or as soon as one attempt has failed.
    pub(crate) async fn announce_all(
        self: &Arc<Self>,
        calls: Vec<(Lane, Call)>,
    ) -> Result<Stamp, InvalidateError> {
        self.announce_with(calls, || Extra::Nothing).await
    }

    /// As [`announce_all`](Self::announce_all), with a value for the key of the first call.
    pub(crate) async fn announce_put(
        self: &Arc<Self>,
        calls: Vec<(Lane, Call)>,
        put: Option<OwnedPut>,
    ) -> Result<Stamp, InvalidateError> {
        let mut first = put.map(Extra::Put);
        let extra = || first.take().unwrap_or_default();
        self.announce_with(calls, extra).await
    }

    /// As [`announce_all`](Self::announce_all), with something for each call.
    pub(super) async fn announce_with(
        self: &Arc<Self>,
        calls: Vec<(Lane, Call)>,
        extra: impl FnMut() -> Extra,
    ) -> Result<Stamp, InvalidateError> {
        if self.closing.is_cancelled() {
            return Err(InvalidateError::Closed);
        }
        let handles = self.begin_with(calls, extra);
        let mut stamp = Stamp::default();
        for mut handle in handles.clone() {
            // No limit here: a first attempt has its own, and all of them are under way.
            match handle.first_attempt().await {
                Some(Ok(position)) => stamp.positions.push((handle.lane, position)),
                Some(Err(reason)) => {
                    if self.has_journal() {
                        for mut handle in handles.clone() {
                            handle.noted().await;
                        }
                    }
                    return Err(InvalidateError::Pending(Pending { handles, reason }));
                }
                None => return Err(InvalidateError::Closed),
            }
        }
        Ok(stamp)
    }

    /// Voids everything on every lane: at once in this pod, and in the store as what is pending is, so
    /// within some 20 ms when nothing is wrong.
    ///
    /// Returns when the store has acknowledged all lanes, or when that has taken as long as an
    /// invalidation may.
    pub(crate) async fn void_all(self: &Arc<Self>) -> Result<Stamp, InvalidateError> {
        if self.closing.is_cancelled() {
            return Err(InvalidateError::Closed);
        }
        let since = self.clock.now();
        let begin = |lane| {
            let (state, receiver) = watch::channel(CallState::Running);
            let waiter = Waiter::new(1, state, None);
            self.enter(vec![Item::Lane { lane }], since, &waiter);
            CallHandle {
                lane,
                state: receiver,
            }
        };
        let handles: Vec<_> = self.namespace.lanes().map(begin).collect();
        let limit = tokio::time::Instant::now() + self.timing.invalidate_timeout;
        let mut stamp = Stamp::default();
        for handle in handles.clone() {
            let lane = handle.lane;
            match tokio::time::timeout_at(limit, handle.settled()).await {
                Ok(Some(position)) => stamp.positions.push((lane, position)),
                Ok(None) => return Err(InvalidateError::Closed),
                Err(_) => {
                    self.flush_journal().await;
                    let reason = StoreError::new(StoreErrorKind::Timeout, "fence");
                    return Err(InvalidateError::Pending(Pending { handles, reason }));
                }
            }
        }
        Ok(stamp)
    }

    /// Begins `calls`, and tells those who watch in this process once all of them are carried out here.
    pub(crate) fn begin_all(self: &Arc<Self>, calls: Vec<(Lane, Call)>) -> Vec<CallHandle> {
        self.begin_with(calls, || Extra::Nothing)
    }

    pub(super) fn begin_with(
        self: &Arc<Self>,
        calls: Vec<(Lane, Call)>,
        mut extra: impl FnMut() -> Extra,
    ) -> Vec<CallHandle> {
        let shared = calls.into_iter().map(|(lane, call)| (lane, Arc::new(call)));
        let calls: Vec<_> = shared.collect();
        let announce =
            |(lane, call): &(Lane, Arc<Call>)| self.announce(*lane, Arc::clone(call), extra());
        let handles = calls.iter().map(announce).collect();
        self.tell_own(calls.iter().map(|(_, call)| call.change()));
        handles
    }

    /// The calls that invalidate `keys` of one entity: hash and physical key of each.
    pub(crate) fn invalidations(
        &self,
        entity: &Arc<str>,
        hash: u64,
        keys: impl IntoIterator<Item = (u64, Bytes)>,
    ) -> Vec<(Lane, Call)> {
        let mut lanes: BTreeMap<Lane, Vec<(u64, Bytes)>> = BTreeMap::new();
        for (key, name) in keys {
            for lane in self.space.lanes_to_tell(key) {
                lanes.entry(lane).or_default().push((key, name.clone()));
            }
        }
        let mut calls = Vec::new();
        for (lane, mut keys) in lanes {
            keys.sort_unstable();
            keys.dedup();
            let call = |keys: &[_]| (lane, Call::invalidate(entity, hash, keys));
            calls.extend(keys.chunks(MAX_KEYS).map(call));
        }
        calls
    }

    /// The calls that invalidate all keys of an entity.
    pub(crate) fn clears(&self, entity: &Arc<str>, hash: u64) -> Vec<(Lane, Call)> {
        let lanes = self.namespace.lanes();
        lanes
            .map(|lane| (lane, Call::clear(entity, hash)))
            .collect()
    }

    /// Carries `call` out in this process, and sees to it that the store learns of it. From here on
    /// nobody needs to wait for it to happen.
    pub(super) fn announce(
        self: &Arc<Self>,
        lane: Lane,
        call: Arc<Call>,
        extra: Extra,
    ) -> CallHandle {
        let id = self.calls.begin(self.clock.now(), lane, &call);
        self.telemetry.invalidating(&call);
        for fenced in Fenced::by(lane, &call) {
            self.fence_off(fenced);
        }
        let (state, receiver) = watch::channel(CallState::Running);
        let bus = Arc::clone(self);
        #[cfg(feature = "tracing")]
        let entity = Arc::clone(&call.entity);
        let task = async move { bus.see_through(lane, call, extra, (id, state)).await };
        let task = spanned!("tidings.invalidate", { cache = %self.namespace.name, %entity }, task);
        self.spawn_until_shutdown(task);
        CallHandle {
            lane,
            state: receiver,
        }
    }

    pub(super) fn spawn_until_shutdown(&self, task: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        let until_shutdown = async move {
            tokio::select! {
                () = task => {}
                () = shutdown.cancelled() => {}
            }
        };
        self.work.spawn_on(until_shutdown, &self.runtime);
    }

    async fn see_through(
        self: Arc<Self>,
        lane: Lane,
        call: Arc<Call>,
        extra: Extra,
        (id, state): (u64, watch::Sender<CallState>),
    ) {
        let since = self.clock.now();
        let mut noted = Vec::new();
        match self
            .first_attempt(lane, &call, extra, (&mut noted, &state))
            .await
        {
            Ok(position) => {
                for fenced in Fenced::by(lane, &call) {
                    self.heal(fenced);
                }
                self.calls.end(id);
                self.telemetry
                    .acknowledged(&call, self.clock.now().since(since));
                state.send_replace(CallState::Acknowledged(position));
            }
            Err(reason) => {
                tracing::debug!(namespace = %self.namespace.name, lane = lane.0, error = %reason,
                    "invalidation not acknowledged");
                self.telemetry.not_acknowledged(&call, &reason);
                let items = Item::of(lane, &call);
                let called = (Arc::clone(&call), since);
                let waiter = Waiter::new(items.len(), state, Some(called));
                // The table's fences stand before the call's own go, and it counts as pending twice for a
                // moment rather than not at all.
                self.enter(items, since, &waiter);
                for fenced in Fenced::by(lane, &call) {
                    self.heal(fenced);
                }
                self.calls.end(id);
                // Nobody is told that it is pending before it is in the journal.
                self.flush_journal().await;
                waiter.state.send_if_modified(|state| {
                    let waits = matches!(state, CallState::Running | CallState::Noted);
                    if waits {
                        *state = CallState::Waiting(reason);
                    }
                    waits
                });
            }
        }
        for item in &noted {
            self.strike(item);
        }
        if !noted.is_empty() {
            self.flush_journal().await;
        }
    }

    /// Waits until nothing is pending, or `limit` has passed.
    pub(crate) async fn drained(&self, limit: Duration) {
        let all = async {
            loop {
                let mut ended = pin!(self.calls.ended.notified());
                // From here on no end is missed.
                ended.as_mut().enable();
                if self.calls.pending().0 == 0 {
                    return;
                }
                ended.await;
            }
        };
        // What is not acknowledged by then is reported by `close`.
        let _ = tokio::time::timeout(limit, all).await;
    }
}
