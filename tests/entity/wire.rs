//! What is between one pod and the store: it can be cut, held up and listened to, for this pod alone.

use crate::bed::eventually;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tidings::coherence::{Epoch, Head, Lane, LogEntry, Nonce};
use tidings::error::{StoreError, StoreErrorKind};
use tidings::store::{
    BoxFuture, Connected, Fill, Found, Guarded, Hints, LeaseReply, LeaseRequest, LeaseState, Link,
    Logged, Markers, Namespace, Opening, Place, Polled, Put, RawLink, Replaces, RoomLink,
    ServerReport, Store, StoreResult, TagFloor, TagPlace,
};
use tokio::sync::watch;

#[path = "wire_rooms.rs"]
mod rooms;

/// What may be wrong. Operations are named as in errors: `"read"`, `"lease"`, `"fill"` …
#[derive(Clone, Debug, Default)]
pub(crate) struct Trouble {
    /// Calls and connects fail; hint streams end.
    pub(crate) cut: bool,
    /// No hint arrives.
    pub(crate) deaf: bool,
    /// Hints arrive late: when this is over.
    pub(crate) slow: bool,
    /// Polls are answered, and say of every lane that its node was silent.
    pub(crate) silent: bool,
    /// Invalidations on this lane do not reach the store.
    pub(crate) stuck: Option<Lane>,
    /// These calls do not reach the store.
    pub(crate) hanging: Vec<&'static str>,
    /// These calls reach the store, but their answers stay away.
    pub(crate) unanswered: Vec<&'static str>,
}

/// A store as one pod sees it.
#[derive(Clone, Debug)]
pub(crate) struct Wire(Arc<State>);

#[derive(Debug)]
struct State {
    store: Arc<dyn Store>,
    trouble: watch::Sender<Trouble>,
    calls: Mutex<BTreeMap<&'static str, u64>>,
    done: Mutex<BTreeMap<&'static str, u64>>,
    /// Where the newest read, lease or fill went.
    place: Mutex<Option<OwnedPlace>>,
    links: AtomicU64,
    /// Messages that nobody has sent, to be heard.
    invented: Mutex<Vec<Bytes>>,
    /// What a replica has that follows its primary no more.
    replica: Mutex<Option<(OwnedPlace, Found)>>,
    /// Leases that were asked for and neither refused, nor given back, nor filled.
    leases: Mutex<BTreeSet<u64>>,
}

/// A [`Place`] to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnedPlace {
    lane: Lane,
    hash: u64,
    entity: String,
    key: Vec<u8>,
}

impl OwnedPlace {
    fn of(place: Place<'_>) -> Self {
        Self {
            lane: place.lane,
            hash: place.hash,
            entity: place.entity.to_owned(),
            key: place.key.to_vec(),
        }
    }

    pub(crate) fn place(&self) -> Place<'_> {
        Place {
            lane: self.lane,
            hash: self.hash,
            entity: &self.entity,
            key: &self.key,
        }
    }
}

impl Wire {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self(Arc::new(State {
            store,
            trouble: watch::Sender::default(),
            calls: Mutex::default(),
            done: Mutex::default(),
            place: Mutex::default(),
            links: AtomicU64::new(0),
            invented: Mutex::default(),
            replica: Mutex::default(),
            leases: Mutex::default(),
        }))
    }

    fn change(&self, change: impl FnOnce(&mut Trouble)) {
        self.0.trouble.send_modify(change);
    }

    pub(crate) fn cut(&self, cut: bool) {
        self.change(|now| now.cut = cut);
    }

    pub(crate) fn deafen(&self, deaf: bool) {
        self.change(|now| now.deaf = deaf);
    }

    /// Has the nodes of all lanes fall silent, while the link stays.
    pub(crate) fn silence(&self, silent: bool) {
        self.change(|now| now.silent = silent);
    }

    /// From now on there is a replica, which has this under one key and never anything else.
    pub(crate) fn stand_still(&self, at: &OwnedPlace, found: Found) {
        *self.0.replica.lock().unwrap() = Some((at.clone(), found));
    }

    /// Holds hints up; they arrive when it is over, at the next heartbeat at the latest.
    pub(crate) fn delay_hints(&self, slow: bool) {
        self.change(|now| now.slow = slow);
    }

    /// Has the pod hear `message`, which nobody sent, with the next one or at the next heartbeat.
    pub(crate) fn invent(&self, message: impl Into<Bytes>) {
        self.0.invented.lock().unwrap().push(message.into());
    }

    /// Holds up `operation` on its way to the store.
    pub(crate) fn hang(&self, operation: &'static str) {
        self.change(|now| now.hanging.push(operation));
    }

    /// Holds up invalidations on `lane` on their way to the store.
    pub(crate) fn stick(&self, lane: Lane) {
        self.change(|now| now.stuck = Some(lane));
    }

    /// Holds up the answers to `operation`.
    pub(crate) fn hold_answers(&self, operation: &'static str) {
        self.change(|now| now.unanswered.push(operation));
    }

    /// Nothing is wrong any more.
    pub(crate) fn heal(&self) {
        self.change(|now| *now = Trouble::default());
    }

    /// How often `operation` was called, in vain or not.
    pub(crate) fn calls(&self, operation: &str) -> u64 {
        let calls = self.0.calls.lock().unwrap();
        calls.get(operation).copied().unwrap_or_default()
    }

    /// How often `operation` had its effect on the store, its answer on the way or not.
    pub(crate) fn done(&self, operation: &str) -> u64 {
        let done = self.0.done.lock().unwrap();
        done.get(operation).copied().unwrap_or_default()
    }

    /// Where the newest call for a key went.
    pub(crate) fn last_place(&self) -> OwnedPlace {
        self.0.place.lock().unwrap().clone().unwrap()
    }

    /// Leases that this pod may hold.
    pub(crate) fn leases(&self) -> usize {
        self.0.leases.lock().unwrap().len()
    }

    /// Links that are alive.
    pub(crate) fn links(&self) -> u64 {
        self.0.links.load(SeqCst)
    }
}

impl Store for Wire {
    fn connect<'a>(&'a self, namespace: &'a Namespace) -> BoxFuture<'a, StoreResult<Connected>> {
        Box::pin(async move {
            let connect = self.0.pass("connect", self.0.store.connect(namespace));
            let (link, hints) = connect.await?;
            self.0.links.fetch_add(1, SeqCst);
            let link = WireLink {
                link,
                state: Arc::clone(&self.0),
            };
            let hints = WireHints {
                hints,
                state: Arc::clone(&self.0),
            };
            Ok((Arc::new(link) as _, Box::new(hints) as _))
        })
    }

    fn describe(&self) -> String {
        self.0.store.describe()
    }
}

impl State {
    fn asks(&self, token: u64) {
        self.leases.lock().unwrap().insert(token);
    }

    fn granted(&self, token: u64, reply: &StoreResult<LeaseReply>) {
        let granted = matches!(reply, Ok(reply) if reply.state == LeaseState::Granted);
        if !granted {
            self.gone(token);
        }
    }

    fn gone(&self, token: u64) {
        self.leases.lock().unwrap().remove(&token);
    }

    async fn pass<T>(
        &self,
        operation: &'static str,
        call: BoxFuture<'_, StoreResult<T>>,
    ) -> StoreResult<T> {
        *self.calls.lock().unwrap().entry(operation).or_default() += 1;
        self.wait(operation, |now| &now.hanging).await?;
        let answer = call.await;
        *self.done.lock().unwrap().entry(operation).or_default() += 1;
        self.wait(operation, |now| &now.unanswered).await?;
        answer
    }

    async fn wait(
        &self,
        operation: &'static str,
        held: impl Fn(&Trouble) -> &Vec<&'static str>,
    ) -> StoreResult<()> {
        let mut trouble = self.trouble.subscribe();
        let now = trouble
            .wait_for(|now| now.cut || !held(now).contains(&operation))
            .await
            .unwrap();
        match now.cut {
            true => Err(StoreError::new(StoreErrorKind::Unavailable, operation)),
            false => Ok(()),
        }
    }
}

struct WireHints {
    hints: Box<dyn Hints>,
    state: Arc<State>,
}

impl Hints for WireHints {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            let (cut, deaf, slow) = {
                let now = self.state.trouble.borrow();
                (now.cut, now.deaf, now.slow)
            };
            if cut {
                return Poll::Ready(None);
            }
            if slow {
                return Poll::Pending;
            }
            if let Some(message) = self.state.invented.lock().unwrap().pop() {
                return Poll::Ready(Some(message));
            }
            match self.hints.poll_next(cx) {
                Poll::Ready(Some(_)) if deaf => {}
                hint => return hint,
            }
        }
    }
}

struct WireLink {
    link: Arc<dyn Link>,
    state: Arc<State>,
}

impl Drop for WireLink {
    fn drop(&mut self) {
        self.state.links.fetch_sub(1, SeqCst);
    }
}

impl WireLink {
    fn at<'a, T: Send + 'a>(
        &'a self,
        operation: &'static str,
        place: Place<'a>,
        call: BoxFuture<'a, StoreResult<T>>,
    ) -> BoxFuture<'a, StoreResult<T>> {
        *self.state.place.lock().unwrap() = Some(OwnedPlace::of(place));
        Box::pin(self.state.pass(operation, call))
    }
}

impl WireLink {
    fn many<'a, T: Send + 'a>(
        &'a self,
        operation: &'static str,
        count: usize,
        call: BoxFuture<'a, Vec<StoreResult<T>>>,
    ) -> BoxFuture<'a, Vec<StoreResult<T>>> {
        let call = Box::pin(async move { Ok(call.await) });
        Box::pin(async move {
            let answers = self.state.pass(operation, call).await;
            answers.unwrap_or_else(|failed| (0..count).map(|_| Err(failed.clone())).collect())
        })
    }
}

impl Link for WireLink {
    fn rooms(&self) -> &dyn RoomLink {
        self
    }

    fn inspect(&self) -> BoxFuture<'_, StoreResult<ServerReport>> {
        Box::pin(self.state.pass("inspect", self.link.inspect()))
    }

    fn register<'a>(
        &'a self,
        expected: Option<&'a [u8]>,
        record: &'a [u8],
    ) -> BoxFuture<'a, StoreResult<Option<Bytes>>> {
        let register = self.link.register(expected, record);
        Box::pin(self.state.pass("register", register))
    }

    fn touch<'a>(&'a self, lanes: &'a [(Lane, Opening)]) -> BoxFuture<'a, StoreResult<Vec<Head>>> {
        Box::pin(self.state.pass("touch", self.link.touch(lanes)))
    }

    fn poll(&self) -> BoxFuture<'_, StoreResult<Polled>> {
        Box::pin(async move {
            let mut polled = self.state.pass("poll", self.link.poll()).await?;
            if self.state.trouble.borrow().silent {
                polled.silent = (0..).map(Lane).take(polled.heads.len()).collect();
            }
            Ok(polled)
        })
    }

    fn log_since(
        &self,
        lane: Lane,
        from: u64,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<LogEntry>>> {
        Box::pin(
            self.state
                .pass("log", self.link.log_since(lane, from, limit)),
        )
    }

    fn read<'a>(&'a self, place: Place<'a>) -> BoxFuture<'a, StoreResult<Found>> {
        self.at("read", place, self.link.read(place))
    }

    fn read_replica<'a>(&'a self, place: Place<'a>) -> Option<BoxFuture<'a, StoreResult<Found>>> {
        let there = self.state.replica.lock().unwrap().clone();
        let found = there.filter(|(at, _)| at.place() == place)?.1;
        let read = self
            .state
            .pass("read_replica", Box::pin(async { Ok(found) }));
        Some(Box::pin(read))
    }

    fn read_proven<'a>(&'a self, place: Place<'a>) -> BoxFuture<'a, StoreResult<Found>> {
        self.at("read_proven", place, self.link.read_proven(place))
    }

    fn lease<'a>(
        &'a self,
        place: Place<'a>,
        request: LeaseRequest<'a>,
    ) -> BoxFuture<'a, StoreResult<LeaseReply>> {
        self.state.asks(request.token);
        let call = self.link.lease(place, request);
        let call = Box::pin(async move {
            let reply = call.await;
            self.state.granted(request.token, &reply);
            reply
        });
        self.at("lease", place, call)
    }

    fn fill<'a>(&'a self, place: Place<'a>, fill: Fill<'a>) -> BoxFuture<'a, StoreResult<bool>> {
        let call = self.link.fill(place, fill);
        let call = Box::pin(async move {
            let stored = call.await;
            self.state.gone(fill.token);
            stored
        });
        self.at("fill", place, call)
    }

    fn read_many<'a>(&'a self, places: &'a [Place<'a>]) -> BoxFuture<'a, Vec<StoreResult<Found>>> {
        self.many("read_many", places.len(), self.link.read_many(places))
    }

    fn lease_many<'a>(
        &'a self,
        asked: &'a [(Place<'a>, LeaseRequest<'a>)],
    ) -> BoxFuture<'a, Vec<StoreResult<LeaseReply>>> {
        asked
            .iter()
            .for_each(|(_, request)| self.state.asks(request.token));
        let call = self.link.lease_many(asked);
        let call = Box::pin(async move {
            let replies = call.await;
            for ((_, request), reply) in asked.iter().zip(&replies) {
                self.state.granted(request.token, reply);
            }
            replies
        });
        self.many("lease_many", asked.len(), call)
    }

    fn fill_many<'a>(
        &'a self,
        fills: &'a [(Place<'a>, Fill<'a>)],
    ) -> BoxFuture<'a, Vec<StoreResult<bool>>> {
        let call = self.link.fill_many(fills);
        let call = Box::pin(async move {
            let stored = call.await;
            fills
                .iter()
                .for_each(|(_, fill)| self.state.gone(fill.token));
            stored
        });
        self.many("fill_many", fills.len(), call)
    }

    fn release<'a>(&'a self, place: Place<'a>, token: u64) -> BoxFuture<'a, StoreResult<()>> {
        let call = self.link.release(place, token);
        let call = Box::pin(async move {
            let released = call.await;
            self.state.gone(token);
            released
        });
        self.at("release", place, call)
    }

    fn tag_floors<'a>(
        &'a self,
        tags: &'a [TagPlace],
        keep: Option<Duration>,
    ) -> BoxFuture<'a, StoreResult<Vec<Option<TagFloor>>>> {
        let call = self.link.tag_floors(tags, keep);
        Box::pin(self.state.pass("tags", call))
    }

    fn invalidate<'a>(
        &'a self,
        lane: Lane,
        keys: &'a [Bytes],
        hashes: &'a [u64],
        nonce: Nonce,
        opening: Opening,
    ) -> BoxFuture<'a, StoreResult<Logged>> {
        let call = self.link.invalidate(lane, keys, hashes, nonce, opening);
        Box::pin(async move {
            let mut trouble = self.state.trouble.subscribe();
            let free = trouble.wait_for(|now| now.stuck != Some(lane)).await;
            drop(free.unwrap());
            self.state.pass("invalidate", call).await
        })
    }

    fn guard<'a>(
        &'a self,
        lane: Lane,
        keys: &'a [Bytes],
        hashes: &'a [u64],
        markers: Markers,
        nonce: Nonce,
        opening: Opening,
    ) -> BoxFuture<'a, StoreResult<Guarded>> {
        let guard = self.link.guard(lane, keys, hashes, markers, nonce, opening);
        Box::pin(self.state.pass("guard", guard))
    }

    fn put<'a>(
        &'a self,
        place: Place<'a>,
        put: Put<'a>,
        hashes: &'a [u64],
        nonce: Nonce,
        opening: Opening,
    ) -> BoxFuture<'a, StoreResult<Logged>> {
        self.at(
            "put",
            place,
            self.link.put(place, put, hashes, nonce, opening),
        )
    }

    fn clear<'a>(
        &'a self,
        lane: Lane,
        entity: &'a str,
        hash: u64,
        nonce: Nonce,
        opening: Opening,
    ) -> BoxFuture<'a, StoreResult<Logged>> {
        let call = self.link.clear(lane, entity, hash, nonce, opening);
        Box::pin(self.state.pass("clear", call))
    }

    fn fence(
        &self,
        lane: Lane,
        expected: Epoch,
        opening: Opening,
    ) -> BoxFuture<'_, StoreResult<Head>> {
        Box::pin(
            self.state
                .pass("fence", self.link.fence(lane, expected, opening)),
        )
    }

    fn raw(&self) -> &dyn RawLink {
        self.link.raw()
    }
}

/// Bytes straight into and out of the store, as somebody else's program would have it.
pub(crate) struct Hand {
    link: Arc<dyn Link>,
}

impl Hand {
    pub(crate) async fn on(store: &Arc<dyn Store>, namespace: &str) -> Self {
        let namespace = Namespace {
            name: namespace.to_owned(),
            lanes: 16,
        };
        let (link, _) = store.connect(&namespace).await.unwrap();
        Self { link }
    }

    /// What stands under a key.
    pub(crate) async fn look(&self, at: &OwnedPlace) -> Option<Bytes> {
        self.link.read(at.place()).await.unwrap().value
    }

    /// The same with its lane's head and its entity's floor.
    pub(crate) async fn found(&self, at: &OwnedPlace) -> Found {
        self.link.read(at.place()).await.unwrap()
    }

    /// Replaces whatever stands under a key, behind the protocol's back.
    pub(crate) async fn put(&self, at: &OwnedPlace, bytes: &[u8]) {
        // A fill that is still on its way may come in between.
        eventually("the bytes are in", async || self.try_put(at, bytes).await).await;
    }

    async fn try_put(&self, at: &OwnedPlace, bytes: &[u8]) -> bool {
        // A lease that stands there, or what looks like one, is given back in its holder's name.
        let found = self.look(at).await;
        if let Some(token) = found.as_deref().and_then(|found| found.get(4..12)) {
            let token = u64::from_be_bytes(token.try_into().unwrap());
            self.link.release(at.place(), token).await.unwrap();
        }
        let request = LeaseRequest {
            token: 77,
            ttl: Duration::from_secs(60),
            unusable: found.as_deref(),
            opening: Opening {
                epoch: Epoch(1),
                nonce: Nonce(1),
            },
        };
        let reply = self.link.lease(at.place(), request).await.unwrap();
        let fill = Fill {
            token: 77,
            replaces: Replaces::Lease,
            epoch: reply.head.at.epoch,
            envelope: bytes,
            ttl: Some(Duration::from_secs(60)),
        };
        self.link.fill(at.place(), fill).await.unwrap()
    }
}
