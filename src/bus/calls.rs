//! This pod's own invalidations: carried out here first, then in the store, repeated until the store
//! has acknowledged them on the timeline that this pod follows.

use super::{Bus, InvalidateError, Pending, Stamp, lock};
use crate::coherence::wire::MAX_KEYS;
use crate::coherence::{Ack, Action, Call, Kind, Lane, LogEntry, Nonce, Position, Rank};
use crate::error::{StoreError, StoreErrorKind};
use crate::random::random_part;
use crate::store::{Link, Logged, StoreResult};
use crate::time::Millis;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// How often one attempt follows a lane into a new epoch before it counts as failed.
const EPOCHS_PER_ATTEMPT: usize = 4;
/// How long an attempt waits for the lane to learn of an epoch that the store has just named.
const SYNC_LIMIT: Duration = Duration::from_millis(500);
/// Invalidations that are repeated at the same time.
const PARALLEL_RETRIES: usize = 128;
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
enum CallState {
    Running,
    Waiting(StoreError),
    Acknowledged(Position),
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
            .wait_for(|state| !matches!(state, CallState::Running))
            .await
            .ok()?;
        match &*state {
            CallState::Acknowledged(position) => Some(Ok(*position)),
            CallState::Waiting(reason) => Some(Err(reason.clone())),
            CallState::Running => None,
        }
    }

    pub(super) async fn settled(mut self) -> Option<Position> {
        let acknowledged = |state: &CallState| matches!(state, CallState::Acknowledged(_));
        match *self.state.wait_for(acknowledged).await.ok()? {
            CallState::Acknowledged(position) => Some(position),
            _ => None,
        }
    }
}

/// Who waits for a call, and its number among those that are not acknowledged.
#[derive(Debug)]
struct Waiting {
    id: u64,
    state: watch::Sender<CallState>,
}

type CallKey = (Lane, Arc<Call>);

/// The calls of one cache.
#[derive(Debug)]
pub(super) struct Calls {
    /// Not acknowledged: when each began.
    begun: Mutex<BTreeMap<u64, Millis>>,
    ids: AtomicU64,
    /// Calls between two attempts. The same call made again meanwhile needs no attempts of its own.
    waiting: Mutex<HashMap<CallKey, Vec<Waiting>>>,
    /// Entities being cleared.
    clearing: Mutex<Vec<(Lane, u64)>>,
    /// Keys and entities under way together: mostly none, which spares readers the locks.
    poisons: AtomicUsize,
    retries: Semaphore,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            begun: Mutex::default(),
            ids: AtomicU64::new(0),
            waiting: Mutex::default(),
            clearing: Mutex::default(),
            poisons: AtomicUsize::new(0),
            retries: Semaphore::new(PARALLEL_RETRIES),
        }
    }
}

impl Calls {
    /// Lets everybody who waits know that nothing will come.
    pub(super) fn abandon(&self) {
        lock(&self.waiting).clear();
    }

    /// How many calls are not acknowledged, and since when the oldest waits.
    pub(super) fn pending(&self) -> (usize, Option<Millis>) {
        let begun = lock(&self.begun);
        (
            begun.len(),
            begun.first_key_value().map(|(_, &since)| since),
        )
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
        if self.closing.is_cancelled() {
            return Err(InvalidateError::Closed);
        }
        let handles = self.begin_all(calls);
        let mut stamp = Stamp::default();
        let limit = tokio::time::Instant::now() + self.timing.invalidate_timeout;
        for mut handle in handles.clone() {
            let reason = match tokio::time::timeout_at(limit, handle.first_attempt()).await {
                Ok(Some(Ok(position))) => {
                    stamp.positions.push((handle.lane, position));
                    continue;
                }
                Ok(Some(Err(reason))) => reason,
                Ok(None) => return Err(InvalidateError::Closed),
                Err(_) => StoreError::new(StoreErrorKind::Timeout, "invalidate"),
            };
            return Err(InvalidateError::Pending(Pending { handles, reason }));
        }
        Ok(stamp)
    }

    /// Begins `calls`, and tells those who watch in this process once all of them are carried out here.
    pub(crate) fn begin_all(self: &Arc<Self>, calls: Vec<(Lane, Call)>) -> Vec<CallHandle> {
        let shared = calls.into_iter().map(|(lane, call)| (lane, Arc::new(call)));
        let calls: Vec<_> = shared.collect();
        let announce = |(lane, call): &(Lane, Arc<Call>)| self.announce(*lane, Arc::clone(call));
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
            let lane = self.space.lane_of(key);
            lanes.entry(lane).or_default().push((key, name));
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
    pub(super) fn announce(self: &Arc<Self>, lane: Lane, call: Arc<Call>) -> CallHandle {
        let id = self.calls.ids.fetch_add(1, Ordering::Relaxed);
        lock(&self.calls.begun).insert(id, self.clock.now());
        self.poison(lane, &call);
        let (state, receiver) = watch::channel(CallState::Running);
        let bus = Arc::clone(self);
        let task = async move { bus.see_through(lane, call, Waiting { id, state }).await };
        let shutdown = self.shutdown.clone();
        let until_shutdown = async move {
            tokio::select! {
                () = task => {}
                () = shutdown.cancelled() => {}
            }
        };
        self.work.spawn_on(until_shutdown, &self.runtime);
        CallHandle {
            lane,
            state: receiver,
        }
    }

    async fn see_through(self: Arc<Self>, lane: Lane, call: Arc<Call>, first: Waiting) {
        let key = (lane, call);
        let mut waiting = vec![first];
        let mut backoff = BACKOFF_MIN;
        loop {
            let attempt = self.attempt(lane, &key.1).await;
            match attempt {
                Ok(position) => return self.acknowledged(&key, waiting, position),
                Err(reason) => {
                    tracing::debug!(namespace = %self.namespace.name, lane = lane.0, error = %reason,
                        "invalidation not acknowledged");
                    for waiter in &waiting {
                        waiter
                            .state
                            .send_replace(CallState::Waiting(reason.clone()));
                    }
                }
            }
            {
                let mut others = lock(&self.calls.waiting);
                if let Some(others) = others.get_mut(&key) {
                    // The same call waits already, and its next attempt comes after this one began.
                    others.append(&mut waiting);
                    return;
                }
                others.insert(key.clone(), waiting);
            }
            let mut link_up = self.link_up.subscribe();
            // Either is a reason to try again; a closed channel cannot be, for we hold its sender.
            let _ = tokio::time::timeout(jittered(backoff), link_up.changed()).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
            let _permit = self.calls.retries.acquire().await;
            waiting = lock(&self.calls.waiting).remove(&key).unwrap_or_default();
        }
    }

    /// Has the store log `call`, until that is acknowledged or something fails.
    async fn attempt(&self, lane: Lane, call: &Arc<Call>) -> StoreResult<Position> {
        for _ in 0..EPOCHS_PER_ATTEMPT {
            let (entry, at) = self.log(lane, call).await?;
            for _ in 0..2 {
                let now = self.clock.now();
                let (ack, actions) = self.step(lane, |state, out| {
                    state.on_ack(call, &entry, at.epoch, now, out)
                });
                if actions.contains(&Action::Poll) {
                    self.ask_for_poll();
                }
                self.wake_told();
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

    async fn log(&self, lane: Lane, call: &Call) -> StoreResult<(LogEntry, Position)> {
        let (nonce, logged) = loop {
            let mut link_up = self.link_up.subscribe();
            let (link, nonce) = (self.link()?, self.nonce());
            tokio::select! {
                biased;
                logged = self.log_on(&*link, lane, call, nonce) => break (nonce, logged?),
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
        call: &Call,
        nonce: Nonce,
    ) -> StoreResult<Logged> {
        let (limit, opening) = (self.timing.invalidate_timeout, self.opening());
        if call.kind == Kind::Clear {
            let call = link.clear(lane, &call.entity, call.entity_hash(), nonce, opening);
            Self::within(limit, "clear", call).await
        } else {
            let call = link.invalidate(lane, &call.keys, &call.hashes, nonce, opening);
            Self::within(limit, "invalidate", call).await
        }
    }

    /// Fences the call off locally: nothing that was loaded before is served or kept, and what the
    /// store holds is not believed until it has acknowledged.
    fn poison(&self, lane: Lane, call: &Call) {
        self.calls
            .poisons
            .fetch_add(poisons(call), Ordering::AcqRel);
        if call.kind == Kind::Clear {
            let entity = call.entity_hash();
            lock(&self.calls.clearing).push((lane, entity));
            self.stripe(lane, entity).noticed = self.next_moment();
            self.each_member(|member| {
                if member.entity() == entity {
                    member.flush(lane);
                }
            });
        }
        for &hash in call.key_hashes() {
            let mut stripe = self.stripe(lane, hash);
            stripe.poisoned.push(hash);
            stripe.noticed = self.next_moment();
            self.each_member(|member| member.evict(hash, Rank(u64::MAX)));
        }
    }

    fn heal(&self, lane: Lane, call: &Call) {
        if call.kind == Kind::Clear {
            let cleared = (lane, call.entity_hash());
            remove_one(&mut lock(&self.calls.clearing), &cleared);
        }
        for &hash in call.key_hashes() {
            remove_one(&mut self.stripe(lane, hash).poisoned, &hash);
        }
        self.calls
            .poisons
            .fetch_sub(poisons(call), Ordering::AcqRel);
    }

    /// Whether this pod has an invalidation of the key under way, so that what the store holds is not
    /// to be believed.
    pub(crate) fn is_poisoned(&self, lane: Lane, hash: u64, entity: u64) -> bool {
        self.calls.poisons.load(Ordering::Acquire) > 0
            && (lock(&self.calls.clearing).contains(&(lane, entity))
                || self.stripe(lane, hash).is_poisoned(hash))
    }

    fn acknowledged(&self, key: &CallKey, waiting: Vec<Waiting>, position: Position) {
        for waiter in waiting {
            self.heal(key.0, &key.1);
            lock(&self.calls.begun).remove(&waiter.id);
            waiter.state.send_replace(CallState::Acknowledged(position));
        }
    }

    /// Waits until no call is pending, or `limit` has passed.
    pub(crate) async fn drained(&self, limit: Duration) {
        let receivers: Vec<_> = {
            let waiting = lock(&self.calls.waiting);
            waiting
                .values()
                .flatten()
                .map(|waiter| waiter.state.subscribe())
                .collect()
        };
        let all = async {
            for state in receivers {
                let _ = CallHandle {
                    lane: Lane(0),
                    state,
                }
                .settled()
                .await;
            }
        };
        // What is not acknowledged by then is reported as pending by `health` and lost with us.
        let _ = tokio::time::timeout(limit, all).await;
    }
}

/// How much of the call readers have to look out for.
fn poisons(call: &Call) -> usize {
    match call.kind {
        Kind::Clear => 1,
        _ => call.key_hashes().len(),
    }
}

fn remove_one<T: PartialEq>(list: &mut Vec<T>, item: &T) {
    if let Some(at) = list.iter().position(|other| other == item) {
        list.swap_remove(at);
    }
}

/// Between half of `mean` and one and a half of it.
fn jittered(mean: Duration) -> Duration {
    mean / 2 + mean.mul_f64(random_part())
}
