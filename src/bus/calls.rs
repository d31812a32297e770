//! This pod's own invalidations: carried out here first, then in the store. What the store does not
//! acknowledge at once is [pending](super::pending), and repeated until it is acknowledged on the timeline
//! that this pod follows.

use super::guard::OwnedMarkers;
use super::pending::{Fenced, Item, TURNS, Table};
use super::{Bus, InvalidateError, OwnedPut, Pending, Stamp, lock};
use crate::coherence::wire::MAX_KEYS;
use crate::coherence::{Ack, Action, Call, Kind, Lane, LogEntry, Nonce, Position, Rank};
use crate::error::{StoreError, StoreErrorKind};
use crate::store::{Link, Logged, StoreResult};
use crate::telemetry::spanned;
use crate::time::Millis;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};

/// How often one attempt follows a lane into a new epoch before it counts as failed.
const EPOCHS_PER_ATTEMPT: usize = 4;
/// How long an attempt waits for the lane to learn of an epoch that the store has just named.
const SYNC_LIMIT: Duration = Duration::from_millis(500);
/// A first attempt that takes longer than this is put into the journal, should there be one: well beyond
/// what a healthy store takes, so that no invalidation costs a write to disk as a rule.
const JOURNAL_AFTER: Duration = Duration::from_millis(50);

#[derive(Clone, Debug)]
enum CallState {
    /// The first attempt is under way.
    Running,
    /// The same, and the journal has what it is about.
    Noted,
    Waiting(StoreError),
    Acknowledged(Position),
}

/// What goes with the first attempt at a call: what is repeated is the invalidation, which is never wrong,
/// with a minimum version if its key [has one](Bus::extra_again).
#[derive(Debug, Default)]
pub(super) enum Extra {
    #[default]
    Nothing,
    /// A value for its only key.
    Put(OwnedPut),
    /// Markers, or a minimum version, for its keys.
    Markers(OwnedMarkers),
}

/// A call under way.
#[derive(Clone, Debug)]
pub(crate) struct CallHandle {
    pub(super) lane: Lane,
    state: watch::Receiver<CallState>,
}

impl CallHandle {
    /// The position, or why the first attempt failed; `None` if the cache was closed.
    async fn first_attempt(&mut self) -> Option<StoreResult<Position>> {
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
    async fn noted(&mut self) {
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
    state: watch::Sender<CallState>,
    /// Items that are not acknowledged, and the newest position of those that are.
    left: Mutex<(usize, Option<Position>)>,
    /// What was called, and when; nothing of what an earlier process has left.
    called: Option<(Arc<Call>, Millis)>,
}

impl Waiter {
    fn new(
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
    /// Entities and lanes that are fenced off.
    fenced: Mutex<Vec<Fenced>>,
    /// Fences in all: mostly none, which spares readers the locks.
    fences: AtomicUsize,
}

impl Calls {
    pub(super) fn new(lanes: u16, max_pending: usize) -> Self {
        Self {
            running: Mutex::default(),
            ids: AtomicU64::new(0),
            table: Mutex::new(Table::new(max_pending)),
            turns: (0..lanes).map(|_| Semaphore::new(TURNS)).collect(),
            ended: Notify::new(),
            fenced: Mutex::default(),
            fences: AtomicUsize::new(0),
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

    /// The attempt that the caller waits for. If it takes its time, what it is about goes into the journal
    /// meanwhile, and into `noted`, and `state` says so.
    async fn first_attempt(
        &self,
        lane: Lane,
        call: &Arc<Call>,
        extra: Extra,
        (noted, state): (&mut Vec<Item>, &watch::Sender<CallState>),
    ) -> StoreResult<Position> {
        let limit = self.timing.invalidate_timeout;
        let attempt = self.attempt(lane, call, &extra);
        let mut attempt = pin!(tokio::time::timeout(limit, attempt));
        let mut done = None;
        if self.has_journal() {
            done = tokio::time::timeout(JOURNAL_AFTER, &mut attempt).await.ok();
            if done.is_none() {
                *noted = Item::of(lane, call);
                for item in &*noted {
                    self.note(item);
                }
                // On disk while the attempt goes on.
                let flush = async {
                    self.flush_journal().await;
                    state.send_replace(CallState::Noted);
                };
                done = Some(tokio::join!(&mut attempt, flush).0);
            }
        }
        let done = match done {
            Some(done) => done,
            None => attempt.await,
        };
        done.unwrap_or_else(|_| Err(StoreError::new(StoreErrorKind::Timeout, "invalidate")))
    }

    /// Has the store log `call`, until that is acknowledged or something fails.
    pub(super) async fn attempt(
        &self,
        lane: Lane,
        call: &Arc<Call>,
        extra: &Extra,
    ) -> StoreResult<Position> {
        for _ in 0..EPOCHS_PER_ATTEMPT {
            let (entry, at) = self.log(lane, call, extra).await?;
            for _ in 0..2 {
                let now = self.clock.now();
                let (ack, actions) = self.step(lane, |state, out| {
                    state.on_ack(call, &entry, at.epoch, now, out)
                });
                if actions.contains(&Action::Poll) {
                    self.ask_for_poll();
                }
                self.settle();
                match ack {
                    Ack::Acknowledged(position) => {
                        self.nudge.notify_one();
                        return Ok(position);
                    }
                    Ack::Unknown(_) => self.sync(SYNC_LIMIT).await,
                    Ack::Lost => break,
                }
            }
        }
        Err(StoreError::new(StoreErrorKind::Busy, "invalidate")
            .with_detail("the lane's epoch keeps changing"))
    }

    async fn log(
        &self,
        lane: Lane,
        call: &Call,
        extra: &Extra,
    ) -> StoreResult<(LogEntry, Position)> {
        let (nonce, logged) = loop {
            let mut link_up = self.link_up.subscribe();
            let (link, nonce) = (self.link()?, self.nonce());
            tokio::select! {
                biased;
                logged = self.log_on(&*link, lane, (call, extra), nonce) => break (nonce, logged?),
                // A half-open connection never answers, and by now there is another one.
                _ = link_up.changed() => {}
            }
        };
        let entry = LogEntry {
            seq: logged.at.seq,
            kind: call.kind,
            prev: logged.prev,
            nonce,
            hashes: call.hashes.clone(),
        };
        Ok((entry, logged.at))
    }

    async fn log_on(
        &self,
        link: &dyn Link,
        lane: Lane,
        (call, extra): (&Call, &Extra),
        nonce: Nonce,
    ) -> StoreResult<Logged> {
        let (limit, opening) = (self.timing.invalidate_timeout, self.opening());
        if let Extra::Put(put) = extra {
            let place = put.place(lane, &call.entity);
            let call = link.put(place, put.put(), &call.hashes, nonce, opening);
            let logged = self.within(limit, "put", call).await;
            // A full server takes no value, but an invalidation.
            if !matches!(&logged, Err(error) if error.kind() == StoreErrorKind::Full) {
                return logged;
            }
        }
        if call.kind == Kind::Clear {
            let call = link.clear(lane, &call.entity, call.entity_hash(), nonce, opening);
            self.within(limit, "clear", call).await
        } else if let Some(markers) = self.markers_for(call, extra) {
            let call = link.guard(lane, &call.keys, &call.hashes, markers, nonce, opening);
            let guarded = self.within(limit, "guard", call).await?;
            if let Extra::Markers(markers) = extra {
                markers.found(guarded.stood);
            }
            Ok(guarded.logged)
        } else {
            let call = link.invalidate(lane, &call.keys, &call.hashes, nonce, opening);
            self.within(limit, "invalidate", call).await
        }
    }

    /// Fences something off locally: nothing that was loaded before is served or kept, and what the
    /// store holds is not believed until it has acknowledged.
    pub(super) fn fence_off(&self, fenced: Fenced) {
        self.calls.fences.fetch_add(1, Ordering::AcqRel);
        match fenced {
            Fenced::Key(lane, hash) => {
                let mut stripe = self.stripe(lane, hash);
                stripe.poisoned.push(hash);
                stripe.noticed = self.next_moment();
                self.each_member(|member| member.evict(hash, Rank(u64::MAX)));
            }
            Fenced::Entity(lane, entity) => {
                lock(&self.calls.fenced).push(fenced);
                self.stripe(lane, entity).noticed = self.next_moment();
                self.each_member(|member| {
                    if member.entity() == entity {
                        member.flush(lane);
                    }
                });
            }
            Fenced::Lane(lane) => {
                lock(&self.calls.fenced).push(fenced);
                self.notice_all(lane);
                self.each_member(|member| member.flush(lane));
                self.tell_missed(lane);
            }
        }
    }

    pub(super) fn heal(&self, fenced: Fenced) {
        match fenced {
            Fenced::Key(lane, hash) => remove_one(&mut self.stripe(lane, hash).poisoned, &hash),
            _ => remove_one(&mut lock(&self.calls.fenced), &fenced),
        }
        self.calls.fences.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether this pod has an invalidation of the key under way, so that what the store holds is not
    /// to be believed.
    pub(crate) fn is_poisoned(&self, lane: Lane, hash: u64, entity: u64) -> bool {
        if self.calls.fences.load(Ordering::Acquire) == 0 {
            return false;
        }
        let coarse = |fenced: &Fenced| {
            *fenced == Fenced::Entity(lane, entity) || *fenced == Fenced::Lane(lane)
        };
        lock(&self.calls.fenced).iter().any(coarse) || self.stripe(lane, hash).is_poisoned(hash)
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

fn remove_one<T: PartialEq>(list: &mut Vec<T>, item: &T) {
    if let Some(at) = list.iter().position(|other| other == item) {
        list.swap_remove(at);
    }
}
