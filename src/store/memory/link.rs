//! Links to the embedded store. Every answer is ready at once.

use super::{Inside, Room, Shared, Watched, lock};
use crate::coherence::{Epoch, Head, Hint, Lane, LogEntry, Nonce};
use crate::store::{
    BoxFuture, FailoverWindow, Fill, Found, Guarded, Hints, LeaseReply, LeaseRequest, Link, Logged,
    Markers, Opening, Place, Polled, Put, RawLink, RoomLink, ServerReport, StoreResult, TagFloor,
    TagPlace,
};
use bytes::Bytes;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// How many hints may wait for one listener before further ones are lost to it.
pub(super) const HINT_QUEUE: usize = 1_024;

/// What a call does to the store, for faults that befall only one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

#[derive(Debug)]
pub(super) struct MemoryHints(pub(super) mpsc::Receiver<Bytes>);

impl Hints for MemoryHints {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.0.poll_recv(cx)
    }
}

pub(super) struct MemoryLink {
    pub(super) shared: Arc<Shared>,
    pub(super) room: Arc<Room>,
    lanes: u16,
    /// The rooms whose events come with the hints.
    pub(super) watched: Watched,
    /// Which of the store's times of being reachable this link was opened in.
    #[cfg(feature = "testing")]
    reach: u64,
}

impl MemoryLink {
    pub(super) fn new(shared: Arc<Shared>, room: Arc<Room>, lanes: u16, watched: Watched) -> Self {
        Self {
            #[cfg(feature = "testing")]
            reach: shared.trouble.reach(),
            shared,
            room,
            lanes,
            watched,
        }
    }

    /// Does one step under the lock, and publishes what it says before another step can.
    pub(super) fn step<'a, T: 'a>(
        &'a self,
        operation: &'static str,
        access: Access,
        step: impl FnOnce(&mut Inside, u64, &mut Vec<Hint>) -> T + Send + 'a,
    ) -> BoxFuture<'a, StoreResult<T>> {
        Box::pin(async move {
            self.pass(operation, access).await?;
            let mut hints = Vec::new();
            let mut inside = lock(&self.room.0);
            let answer = step(&mut inside, self.shared.now_ms(), &mut hints);
            self.lose_some(&mut hints);
            inside.publish(&hints);
            Ok(answer)
        })
    }
}

#[cfg(feature = "testing")]
impl MemoryLink {
    pub(super) async fn pass(&self, operation: &'static str, access: Access) -> StoreResult<()> {
        self.shared
            .trouble
            .pass(operation, access, self.reach)
            .await
    }

    pub(super) fn lose_some<M>(&self, hints: &mut Vec<M>) {
        self.shared.trouble.lose_some(hints);
    }

    fn corrupt(&self, found: Found) -> Found {
        self.shared.trouble.corrupt(found)
    }
}

/// Without the faults nothing comes between a call and its step.
#[cfg(not(feature = "testing"))]
impl MemoryLink {
    pub(super) async fn pass(&self, _: &'static str, access: Access) -> StoreResult<()> {
        match access {
            Access::Read | Access::Write => Ok(()),
        }
    }

    pub(super) fn lose_some<M>(&self, _: &mut Vec<M>) {}

    fn corrupt(&self, found: Found) -> Found {
        found
    }
}

impl Link for MemoryLink {
    fn rooms(&self) -> &dyn RoomLink {
        self
    }

    fn inspect(&self) -> BoxFuture<'_, StoreResult<ServerReport>> {
        self.step("inspect", Access::Read, |_, _, _| {
            ServerReport {
                // It is gone with this process.
                failover_window: FailoverWindow::None,
                ..ServerReport::default()
            }
        })
    }

    fn register<'a>(
        &'a self,
        expected: Option<&'a [u8]>,
        record: &'a [u8],
    ) -> BoxFuture<'a, StoreResult<Option<Bytes>>> {
        self.step("register", Access::Write, move |inside, _, _| {
            inside.state.register(expected, record)
        })
    }

    fn touch<'a>(&'a self, lanes: &'a [(Lane, Opening)]) -> BoxFuture<'a, StoreResult<Vec<Head>>> {
        self.step("touch", Access::Write, |inside, now, hints| {
            inside.state.touch(lanes, now, hints)
        })
    }

    fn poll(&self) -> BoxFuture<'_, StoreResult<Polled>> {
        // A write as far as faults go: it is what a poll has to prove.
        self.step("poll", Access::Write, |inside, now, _| {
            inside.state.poll(self.lanes, now)
        })
    }

    fn log_since(
        &self,
        lane: Lane,
        from: u64,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<LogEntry>>> {
        self.step("log_since", Access::Read, move |inside, _, _| {
            inside.state.log_since(lane, from, limit)
        })
    }

    fn read<'a>(&'a self, place: Place<'a>) -> BoxFuture<'a, StoreResult<Found>> {
        self.step("read", Access::Read, move |inside, now, _| {
            self.corrupt(inside.state.read(place, now))
        })
    }

    fn read_proven<'a>(&'a self, place: Place<'a>) -> BoxFuture<'a, StoreResult<Found>> {
        // A write as far as faults go: it is what this has to prove.
        self.step("read", Access::Write, move |inside, now, _| {
            self.corrupt(inside.state.read(place, now))
        })
    }

    fn lease<'a>(
        &'a self,
        place: Place<'a>,
        request: LeaseRequest<'a>,
    ) -> BoxFuture<'a, StoreResult<LeaseReply>> {
        self.step("lease", Access::Write, move |inside, now, hints| {
            inside.state.lease(place, request, now, hints)
        })
    }

    fn fill<'a>(&'a self, place: Place<'a>, fill: Fill<'a>) -> BoxFuture<'a, StoreResult<bool>> {
        self.step("fill", Access::Write, move |inside, now, hints| {
            inside.state.fill(place, fill, now, hints)
        })
    }

    fn tag_floors<'a>(
        &'a self,
        tags: &'a [TagPlace],
        keep: Option<Duration>,
    ) -> BoxFuture<'a, StoreResult<Vec<Option<TagFloor>>>> {
        self.step("tag_floors", Access::Write, move |inside, now, _| {
            inside.state.tag_floors(tags, keep, now)
        })
    }

    fn release<'a>(&'a self, place: Place<'a>, token: u64) -> BoxFuture<'a, StoreResult<()>> {
        self.step("release", Access::Write, move |inside, now, hints| {
            inside.state.release(place, token, now, hints);
        })
    }

    fn invalidate<'a>(
        &'a self,
        lane: Lane,
        keys: &'a [Bytes],
        hashes: &'a [u64],
        nonce: Nonce,
        opening: Opening,
    ) -> BoxFuture<'a, StoreResult<Logged>> {
        self.step("invalidate", Access::Write, move |inside, now, hints| {
            let state = &mut inside.state;
            state.invalidate(lane, keys, hashes, nonce, opening, now, hints)
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
        self.step("guard", Access::Write, move |inside, now, hints| {
            let state = &mut inside.state;
            state.guard(lane, keys, hashes, markers, nonce, opening, now, hints)
        })
    }

    fn put<'a>(
        &'a self,
        place: Place<'a>,
        put: Put<'a>,
        hashes: &'a [u64],
        nonce: Nonce,
        opening: Opening,
    ) -> BoxFuture<'a, StoreResult<Logged>> {
        self.step("put", Access::Write, move |inside, now, hints| {
            let state = &mut inside.state;
            state.put(place, put, hashes, nonce, opening, now, hints)
        })
    }

    fn clear<'a>(
        &'a self,
        lane: Lane,
        entity: &'a str,
        hash: u64,
        nonce: Nonce,
        opening: Opening,
    ) -> BoxFuture<'a, StoreResult<Logged>> {
        self.step("clear", Access::Write, move |inside, now, hints| {
            let state = &mut inside.state;
            state.clear(lane, entity, hash, nonce, opening, now, hints)
        })
    }

    fn fence(
        &self,
        lane: Lane,
        expected: Epoch,
        opening: Opening,
    ) -> BoxFuture<'_, StoreResult<Head>> {
        self.step("fence", Access::Write, move |inside, now, hints| {
            inside.state.fence(lane, expected, opening, now, hints)
        })
    }

    fn raw(&self) -> &dyn RawLink {
        self
    }
}
