//! The link: one multiplexed connection for the commands of each node.

mod call;
mod poll;

use self::poll::poll_commands;
use super::Options;
use super::batch::{Reads, read_command};
use super::groups::{Group, by_lane, groups, run};
use super::keys::{Keys, tag_name};
use super::node::Side;
use super::nodes::Nodes;
use super::numbers::{millis, word, words};
use super::publish::Publisher;
use super::replicas;
use super::reply::Reply;
use super::scripts::{
    CLEAR, FENCE, FILL, GUARD, INVALIDATE, LEASE, PUT, REGISTER, RELEASE, Step, TAGS, TOUCH,
};
use super::watch::Watch;
use crate::coherence::{Epoch, Head, Lane, LogEntry, Nonce};
use crate::store::{
    BoxFuture, Fill, Found, Guarded, LeaseReply, LeaseRequest, Link, Logged, Markers, Opening,
    Place, Polled, Put, RawLink, RoomLink, ServerReport, StoreResult, TagFloor, TagPlace,
};
use ::redis::{Cmd, ConnectionInfo, Pipeline, Value};
use bytes::Bytes;
use std::iter;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::DropGuard;

/// Connections for one namespace. Never reconnects.
pub(crate) struct RedisLink {
    pub(super) nodes: Arc<Nodes>,
    pub(super) keys: Arc<Keys>,
    reads: Reads,
    /// Those of replicas, if they are to be asked, and what finds these.
    replicas: Option<(Reads, DropGuard)>,
    /// What a poll asks of each node.
    polls: Vec<Pipeline>,
    /// Looks whether the servers are still the right ones, where somebody else knows.
    watch: Option<Watch>,
    /// Whether a promotion counts as a loss.
    fences: bool,
    publisher: Publisher,
}

impl RedisLink {
    pub(super) fn new(nodes: Nodes, keys: Arc<Keys>, options: Options) -> Self {
        let nodes = Arc::new(nodes);
        let publisher = Publisher::start(options.publish, &nodes, &keys);
        Self {
            polls: nodes
                .all()
                .iter()
                .map(|node| poll_commands(&keys, node, publisher.relays()))
                .collect(),
            reads: Reads::new(Side::Nodes, Arc::clone(&nodes), Arc::clone(&keys)),
            replicas: None,
            nodes,
            keys,
            watch: None,
            fences: options.fences,
            publisher,
        }
    }

    /// The same, given up as soon as the sentinels mean another server.
    pub(super) fn watched(self, watch: Watch) -> Self {
        let watch = Some(watch);
        Self { watch, ..self }
    }

    /// The same, which reads entities from replicas; `info` says how to connect to one, but for its address.
    pub(super) fn reading_replicas(self, info: ConnectionInfo) -> Self {
        let reads = Reads::new(
            Side::Replicas,
            Arc::clone(&self.nodes),
            Arc::clone(&self.keys),
        );
        let replicas = Some((reads, replicas::keep(&self.nodes, info)));
        Self { replicas, ..self }
    }

    /// The life of the server that has `lane` as last seen, as scripts take it.
    pub(super) fn incarnation(&self, lane: Lane) -> StoreResult<[u8; 8]> {
        let node = self.nodes.of_lane("look up a lane", lane)?;
        Ok(word(node.life().incarnation.0))
    }

    pub(super) async fn run(&self, step: &Step, call: &Cmd) -> StoreResult<Reply> {
        step.run(&self.nodes, call).await
    }

    /// Runs a call that is acknowledged by its answer.
    async fn acknowledge(&self, step: &Step, call: &Cmd) -> StoreResult<Reply> {
        step.acknowledge(&self.nodes, call).await
    }

    /// Runs many calls of `step` at once.
    pub(super) async fn run_many(&self, step: &Step, calls: &Pipeline) -> Vec<StoreResult<Reply>> {
        step.run_many(&self.nodes, calls).await
    }

    pub(super) async fn pipeline(
        &self,
        operation: &'static str,
        commands: &Pipeline,
    ) -> StoreResult<Vec<Value>> {
        let answers = self.nodes.send_many(operation, None, commands).await;
        answers.into_iter().collect()
    }
}

impl Link for RedisLink {
    fn rooms(&self) -> &dyn RoomLink {
        self
    }

    fn inspect(&self) -> BoxFuture<'_, StoreResult<ServerReport>> {
        Box::pin(super::inspect::inspect(self))
    }

    fn register<'a>(
        &'a self,
        expected: Option<&'a [u8]>,
        record: &'a [u8],
    ) -> BoxFuture<'a, StoreResult<Option<Bytes>>> {
        Box::pin(async move {
            let mut call = REGISTER.call(1);
            call.arg(&self.keys.record);
            // An empty record is never written, and so stands for none.
            call.arg(expected.unwrap_or_default()).arg(record);
            self.run(&REGISTER, &call).await?.stored()
        })
    }

    fn serves(&self, lane: Lane) -> bool {
        self.nodes.serves(lane)
    }

    fn touch<'a>(&'a self, lanes: &'a [(Lane, Opening)]) -> BoxFuture<'a, StoreResult<Vec<Head>>> {
        Box::pin(async move {
            let operation = TOUCH.operation();
            let mut calls = Pipeline::with_capacity(lanes.len());
            for &(lane, opening) in lanes {
                let life = self.nodes.of_lane(operation, lane)?.life();
                let mut call = self.opening_call_in(life, &TOUCH, lane, &[], opening)?;
                match life.continues.filter(|_| !self.fences) {
                    Some(before) => call.arg(&word(before.0)),
                    None => call.arg(b""),
                };
                calls.add_command(call);
            }
            // It is called once for each link, and the server may be new: the script comes along.
            let load = TOUCH.load();
            let answers = self.nodes.send_many(operation, Some(&load), &calls).await;
            let heads = answers
                .into_iter()
                .map(|answer| Reply::new(operation, answer?)?.head());
            heads.collect()
        })
    }

    fn poll(&self) -> BoxFuture<'_, StoreResult<Polled>> {
        Box::pin(self.poll_nodes())
    }

    fn log_since(
        &self,
        lane: Lane,
        from: u64,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<LogEntry>>> {
        Box::pin(async move {
            let keys = self.keys.lane(lane)?;
            if limit == 0 {
                return Ok(Vec::new());
            }
            let mut cmd = ::redis::cmd("XRANGE");
            cmd.arg(&keys.log).arg(format!("{from}-0")).arg("+");
            cmd.arg("COUNT")
                .arg(u32::try_from(limit).unwrap_or(u32::MAX));
            match self.nodes.send("read the log", &cmd).await {
                // Something else stands where the log should be: nothing of the log is there.
                Ok(Value::ServerError(refused)) if refused.code() == "WRONGTYPE" => Ok(Vec::new()),
                Ok(answer) => Reply::new("read the log", answer)?.entries(),
                Err(failed) => Err(failed),
            }
        })
    }

    fn read<'a>(&'a self, place: Place<'a>) -> BoxFuture<'a, StoreResult<Found>> {
        Box::pin(self.reads.read(place))
    }

    fn read_replica<'a>(&'a self, place: Place<'a>) -> Option<BoxFuture<'a, StoreResult<Found>>> {
        let (reads, _) = self.replicas.as_ref()?;
        let there = self.nodes.has_replica(place.lane);
        there.then(|| -> BoxFuture<'a, _> { Box::pin(reads.read(place)) })
    }

    fn read_replica_many<'a>(
        &'a self,
        places: &'a [Place<'a>],
    ) -> Option<BoxFuture<'a, Vec<StoreResult<Found>>>> {
        let (reads, _) = self.replicas.as_ref()?;
        let mut places_there = places.iter().map(|place| place.lane);
        let there = places_there.any(|lane| self.nodes.has_replica(lane));
        there.then(|| -> BoxFuture<'a, _> { Box::pin(reads.read_many(places)) })
    }

    fn read_proven<'a>(&'a self, place: Place<'a>) -> BoxFuture<'a, StoreResult<Found>> {
        Box::pin(async move {
            let mut commands = ::redis::pipe();
            commands.add_command(read_command(&self.keys, place)?);
            let beacon = self.keys.beacon(place.lane)?;
            commands.cmd("UNLINK").arg(beacon); // as in a poll
            // At one node: the write proves nothing of another.
            let node = self.nodes.of_lane("read", place.lane)?;
            let answers = node.send_many("read", &commands).await?;
            let [found, _written] = Reply::pipeline("read", answers)?;
            found.found()
        })
    }

    fn lease<'a>(
        &'a self,
        place: Place<'a>,
        request: LeaseRequest<'a>,
    ) -> BoxFuture<'a, StoreResult<LeaseReply>> {
        Box::pin(async move {
            let call = self.lease_call(place.lane, [(place, request)].iter())?;
            alone(self.run(&LEASE, &call).await?.leases(1)?)
        })
    }

    fn fill<'a>(&'a self, place: Place<'a>, fill: Fill<'a>) -> BoxFuture<'a, StoreResult<bool>> {
        Box::pin(async move {
            let call = self.fill_call(place.lane, [(place, fill)].iter())?;
            alone(self.run(&FILL, &call).await?.flags(1)?)
        })
    }

    fn read_many<'a>(&'a self, places: &'a [Place<'a>]) -> BoxFuture<'a, Vec<StoreResult<Found>>> {
        Box::pin(self.reads.read_many(places))
    }

    fn lease_many<'a>(
        &'a self,
        asked: &'a [(Place<'a>, LeaseRequest<'a>)],
    ) -> BoxFuture<'a, Vec<StoreResult<LeaseReply>>> {
        let groups = groups(asked.iter().map(|(place, _)| *place));
        let call = |group: &Group| {
            let members = group.members.iter().map(|&at| &asked[at]);
            self.lease_call(group.lane, members)
        };
        Box::pin(run(self, &LEASE, groups, call, Reply::leases))
    }

    fn fill_many<'a>(
        &'a self,
        fills: &'a [(Place<'a>, Fill<'a>)],
    ) -> BoxFuture<'a, Vec<StoreResult<bool>>> {
        let groups = groups(fills.iter().map(|(place, _)| *place));
        let call = |group: &Group| {
            let members = group.members.iter().map(|&at| &fills[at]);
            self.fill_call(group.lane, members)
        };
        Box::pin(run(self, &FILL, groups, call, Reply::flags))
    }

    fn tag_floors<'a>(
        &'a self,
        tags: &'a [TagPlace],
        keep: Option<Duration>,
    ) -> BoxFuture<'a, StoreResult<Vec<Option<TagFloor>>>> {
        Box::pin(async move {
            let groups = by_lane(tags.iter().map(|tag| tag.lane));
            let call = |group: &Group| {
                let members = group.members.iter().map(|&at| tags[at]);
                self.tags_call(group.lane, members, keep)
            };
            let floors = run(self, &TAGS, groups, call, Reply::tag_floors).await;
            floors.into_iter().collect()
        })
    }

    fn release<'a>(&'a self, place: Place<'a>, token: u64) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            let keys = self.keys.lane(place.lane)?;
            let mut call = self.value_call(&RELEASE, keys, place);
            call.arg(&word(token));
            self.run(&RELEASE, &call).await?.flag().map(|_was_there| ())
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
        Box::pin(async move {
            let names = self.keys.lane(lane)?;
            let tags: Vec<_> = hashes.iter().skip(1).map(|&hash| tag_name(hash)).collect();
            let values = keys.iter().map(|key| names.value(key));
            let own: Vec<_> = values
                .chain(tags.iter().map(|tag| names.tag(tag)))
                .collect();
            let mut call = self.opening_call(&INVALIDATE, lane, &own, opening)?;
            call.arg(&word(nonce.0)).arg(words(hashes));
            let (logged, flush) = self.acknowledge(&INVALIDATE, &call).await?.logged()?;
            self.publisher.deferred(lane, flush);
            Ok(logged)
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
        Box::pin(async move {
            let names = self.keys.lane(lane)?;
            let tags: Vec<_> = hashes.iter().skip(1).map(|&hash| tag_name(hash)).collect();
            let values = keys.iter().map(|key| names.value(key));
            let own: Vec<_> = iter::once(names.markers())
                .chain(values)
                .chain(tags.iter().map(|tag| names.tag(tag)))
                .collect();
            let mut call = self.opening_call(&GUARD, lane, &own, opening)?;
            call.arg(&word(nonce.0)).arg(words(hashes));
            match markers.lift {
                Some(guard) => call.arg(&word(guard)),
                None => call.arg(""),
            };
            match markers.leave {
                Some((guard, ttl)) => call.arg(&word(guard)).arg(millis(ttl)),
                None => call.arg("").arg(""),
            };
            match markers.minimum {
                Some((version, ttl)) => call.arg(&word(version)).arg(millis(ttl)),
                None => call.arg("").arg(""),
            };
            let (guarded, flush) = self.acknowledge(&GUARD, &call).await?.guarded()?;
            self.publisher.deferred(lane, flush);
            Ok(guarded)
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
        Box::pin(async move {
            let keys = self.keys.lane(place.lane)?;
            let tags: Vec<_> = hashes.iter().skip(1).map(|&hash| tag_name(hash)).collect();
            let own = [keys.floor(place.entity), keys.value(place.key)];
            let own: Vec<_> = own
                .into_iter()
                .chain(tags.iter().map(|tag| keys.tag(tag)))
                .collect();
            let mut call = self.opening_call(&PUT, place.lane, &own, opening)?;
            call.arg(&word(nonce.0)).arg(words(hashes));
            call.arg(&word(put.version)).arg(&word(put.epoch.0));
            call.arg(put.envelope);
            match put.ttl {
                Some(ttl) => call.arg(millis(ttl)),
                None => call.arg(""),
            };
            let (logged, flush) = self.acknowledge(&PUT, &call).await?.logged()?;
            self.publisher.deferred(place.lane, flush);
            Ok(logged)
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
        Box::pin(async move {
            let keys = self.keys.lane(lane)?;
            let tag = tag_name(hash);
            let own = [keys.floor(entity), keys.tag(&tag)];
            let mut call = self.opening_call(&CLEAR, lane, &own, opening)?;
            call.arg(&word(nonce.0)).arg(&word(hash));
            let (logged, flush) = self.acknowledge(&CLEAR, &call).await?.logged()?;
            self.publisher.deferred(lane, flush);
            Ok(logged)
        })
    }

    fn fence(
        &self,
        lane: Lane,
        expected: Epoch,
        opening: Opening,
    ) -> BoxFuture<'_, StoreResult<Head>> {
        Box::pin(async move {
            let mut call = self.opening_call(&FENCE, lane, &[], opening)?;
            call.arg(&word(expected.0));
            self.run(&FENCE, &call).await?.head()
        })
    }

    fn waits_for_replicas(&self) -> bool {
        let mut nodes = self.nodes.all().iter();
        nodes.any(|node| node.replicas_asked().is_some())
    }

    fn raw(&self) -> &dyn RawLink {
        self
    }
}

/// The part of the only key.
fn alone<T>(parts: Vec<T>) -> StoreResult<T> {
    let part = parts.into_iter().next();
    part.ok_or_else(|| Reply::malformed("run a step"))
}
