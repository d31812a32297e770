//! The link: one multiplexed connection for the commands of each node.

use super::Options;
use super::batch::{Reads, read_command};
use super::error;
use super::groups::{Group, by_lane, groups, run};
use super::keys::{Key, Keys, LaneKeys, tag_name};
use super::nodes::{Node, Nodes, Side};
use super::publish::Publisher;
use super::replicas;
use super::reply::{self, Reply};
use super::scripts::{
    CLEAR, FENCE, FILL, GUARD, INVALIDATE, LEASE, PUT, REGISTER, RELEASE, Step, TAGS, TOUCH,
};
use super::server::{self, Life};
use super::watch::Watch;
use crate::coherence::{Epoch, Head, Lane, LogEntry, Nonce};
use crate::error::{StoreError, StoreErrorKind};
use crate::store::together::together;
use crate::store::{
    BoxFuture, Fill, Found, Guarded, LeaseReply, LeaseRequest, Link, Logged, Markers, Opening,
    Place, Polled, Put, RawLink, Replaces, RoomLink, ServerReport, StoreResult, TagFloor, TagPlace,
};
use ::redis::{Cmd, ConnectionInfo, Pipeline, Value};
use bytes::Bytes;
use std::iter;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::DropGuard;

/// How long a node of a cluster may take to answer a poll before it counts as silent: less than the
/// driver gives to all of them.
const NODE_LIMIT: Duration = Duration::from_millis(300);

/// What the pace key begins with while there is a relay.
const RELAYED: u8 = b'R';

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

    /// A call of `step`, which may have to open an epoch, up to its own keys.
    ///
    /// Keys and arguments travel in one list, so the step's own keys are written between the two
    /// parts that are common to all steps.
    fn opening_call(
        &self,
        step: &Step,
        lane: Lane,
        own: &[Key<'_>],
        opening: Opening,
    ) -> StoreResult<Cmd> {
        let life = self.nodes.of_lane(step.operation(), lane)?.life();
        self.opening_call_in(life, step, lane, own, opening)
    }

    /// The same for a life of the server that was looked up before.
    fn opening_call_in(
        &self,
        life: Life,
        step: &Step,
        lane: Lane,
        own: &[Key<'_>],
        opening: Opening,
    ) -> StoreResult<Cmd> {
        let keys = self.keys.lane(lane)?;
        let mut call = step.call(3 + own.len());
        call.arg(&keys.head).arg(&keys.log).arg(&keys.pace).arg(own);
        self.common_args(&mut call, keys);
        call.arg(&word(life.incarnation.0));
        call.arg(&word(opening.epoch.0)).arg(&word(opening.nonce.0));
        match self.publisher.pace() {
            Some(pace) => call.arg(pace),
            None => call.arg(""),
        };
        Ok(call)
    }

    /// A call of `step`, which touches one value and opens nothing.
    fn value_call(&self, step: &Step, keys: &LaneKeys, place: Place<'_>) -> Cmd {
        let mut call = step.call(2);
        call.arg(&keys.head).arg(keys.value(place.key));
        self.waking_args(&mut call, keys);
        call.arg(&word(place.hash));
        call
    }

    /// A call that asks for leases of keys of one lane and one entity.
    fn lease_call<'a>(
        &self,
        lane: Lane,
        asked: impl Iterator<Item = &'a (Place<'a>, LeaseRequest<'a>)>,
    ) -> StoreResult<Cmd> {
        let keys = self.keys.lane(lane)?;
        let asked: Vec<_> = asked.collect();
        let (first, request) = asked[0];
        let values = asked.iter().map(|(place, _)| keys.value(place.key));
        let before = [keys.floor(first.entity), keys.markers()];
        let own: Vec<_> = before.into_iter().chain(values).collect();
        let mut call = self.opening_call(&LEASE, lane, &own, request.opening)?;
        for (place, request) in asked {
            call.arg(&word(request.token)).arg(millis(request.ttl));
            // Empty bytes are never taken for a value, and so stand for none.
            call.arg(request.unusable.unwrap_or_default());
            call.arg(&word(place.hash));
        }
        Ok(call)
    }

    /// A call that fills keys of one lane.
    fn fill_call<'a>(
        &self,
        lane: Lane,
        fills: impl Iterator<Item = &'a (Place<'a>, Fill<'a>)>,
    ) -> StoreResult<Cmd> {
        let keys = self.keys.lane(lane)?;
        let fills: Vec<_> = fills.collect();
        let mut call = FILL.call(1 + fills.len());
        call.arg(&keys.head);
        for (place, _) in &fills {
            call.arg(keys.value(place.key));
        }
        self.waking_args(&mut call, keys);
        for (place, fill) in fills {
            call.arg(&word(place.hash)).arg(&word(fill.token));
            call.arg(&word(fill.epoch.0)).arg(fill.envelope);
            call.arg(match fill.replaces {
                Replaces::Lease => "L",
                Replaces::Value => "V",
            });
            match fill.ttl {
                Some(ttl) => call.arg(millis(ttl)),
                None => call.arg(""),
            };
        }
        Ok(call)
    }

    /// A call that asks for the floors of tags of one lane.
    fn tags_call(
        &self,
        lane: Lane,
        tags: impl Iterator<Item = TagPlace>,
        keep: Option<Duration>,
    ) -> StoreResult<Cmd> {
        let keys = self.keys.lane(lane)?;
        let names: Vec<_> = tags
            .flat_map(|tag| [tag_name(tag.name), tag_name(tag.key)])
            .collect();
        let mut call = TAGS.call(1 + names.len());
        call.arg(&keys.head);
        for name in &names {
            call.arg(keys.tag(name));
        }
        self.common_args(&mut call, keys);
        match keep {
            Some(keep) => call.arg(millis(keep)),
            None => call.arg(""),
        };
        Ok(call)
    }

    fn common_args(&self, call: &mut Cmd, keys: &LaneKeys) {
        call.arg(&keys.lane[..]).arg(&keys.channel);
    }

    /// As [`common_args`](Self::common_args), for steps that wake those who wait for a load. With a relay
    /// nobody is sent anything but by that: who waits looks every 5 to 50 ms anyway.
    fn waking_args(&self, call: &mut Cmd, keys: &LaneKeys) {
        let channel = if self.publisher.relays() {
            ""
        } else {
            &keys.channel
        };
        call.arg(&keys.lane[..]).arg(channel);
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

    /// Polls one node; on a cluster `None` if it did not answer, or takes no writes.
    async fn poll_node(&self, node: &Node, poll: &Pipeline) -> StoreResult<Option<NodePolled>> {
        if node.is_lame() {
            let error = StoreError::new(StoreErrorKind::Unavailable, "poll");
            return Err(error.with_detail("the connection for what replicas confirm broke"));
        }
        if !self.keys.is_sharded() {
            let answers = node.send_many("poll", poll).await?;
            return Ok(Some(polled(node, answers, self.publisher.relays())?));
        }
        let Ok(Ok(answers)) = timeout(NODE_LIMIT, node.send_many("poll", poll)).await else {
            node.set_proven(false);
            return Ok(None);
        };
        let moved = |answer: &Value| matches!(answer, Value::ServerError(refused) if ["MOVED", "READONLY"].contains(&refused.code()));
        if node.is_deaf() || answers.iter().any(moved) {
            let error = StoreError::new(StoreErrorKind::Unavailable, "poll");
            return Err(error.with_detail("a lane has moved to another node"));
        }
        let polled = polled(node, answers, self.publisher.relays()).ok();
        node.set_proven(polled.is_some());
        let mut heads = polled.iter().flat_map(|polled| &polled.heads);
        if heads.any(|(lane, _)| node.moving.contains(lane)) {
            let error = StoreError::new(StoreErrorKind::Unavailable, "poll");
            return Err(error.with_detail("a lane that was on the move stays where it is"));
        }
        Ok(polled)
    }
}

/// What a node answered to a poll.
struct NodePolled {
    /// Without those lanes of which it said that they are on the move.
    heads: Vec<(Lane, Option<Head>)>,
    record: Option<Bytes>,
    server_ms: u64,
}

/// Takes the answers to [`poll_commands`] apart.
fn polled(node: &Node, mut answers: Vec<Value>, relays: bool) -> StoreResult<NodePolled> {
    let malformed = || Reply::malformed("poll");
    let mut last = || Reply::new("poll", answers.pop().ok_or_else(malformed)?);
    let time = last()?;
    let life = match node.life() {
        known if known.is_known() => server::life("poll", &last()?.text()?)?,
        unknown => unknown,
    };
    let record = match node.has_record() {
        true => Some(last().and_then(Reply::stored)),
        false => None,
    };
    if relays {
        match last().and_then(Reply::stored) {
            Ok(Some(pace)) if pace.first() == Some(&RELAYED) => {}
            Ok(_) => node.has_no_relay(),
            // It stands beside a lane that is on the move, or is no string.
            Err(_) => {}
        }
    }
    let lanes = node.lanes.iter().copied();
    let mut heads: Vec<_> = match node.is_alone() {
        true => {
            let [heads, _written] = Reply::pipeline("poll", answers)?;
            let heads = heads.array()?.into_iter().map(reply::head);
            lanes.zip(heads).collect()
        }
        false => {
            let mut heads = Vec::with_capacity(node.lanes.len());
            let (pairs, rest) = answers.as_chunks::<2>();
            if pairs.len() != node.lanes.len() || !rest.is_empty() {
                return Err(malformed());
            }
            for (lane, [head, written]) in lanes.zip(pairs) {
                match written {
                    Value::ServerError(refused)
                        if ["ASK", "TRYAGAIN"].contains(&refused.code()) => {}
                    Value::ServerError(refused) => return Err(error::of_server("poll", refused)),
                    _ if matches!(head, Value::ServerError(_)) => {}
                    _ => heads.push((lane, reply::head_of(head))),
                }
            }
            heads
        }
    };
    node.set_life(life);
    let record = match record.transpose() {
        Ok(record) => record.flatten(),
        Err(error) if node.is_alone() => return Err(error),
        // As with the lane that it stands beside: it is on the move.
        Err(_) => {
            heads.retain(|(lane, _)| *lane != Node::OF_RECORD);
            None
        }
    };
    Ok(NodePolled {
        heads,
        record,
        server_ms: time.time()?,
    })
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
        Box::pin(async move {
            let nodes = self.nodes.all().iter().zip(&self.polls);
            let polls = nodes
                .map(|(node, poll)| -> BoxFuture<'_, _> { Box::pin(self.poll_node(node, poll)) });
            let answers = together(polls).await;
            let watch = self.watch.as_ref();
            watch.map_or(Ok(()), |watch| watch.check("poll"))?;
            let count = self.keys.lanes().len();
            let (mut heads, mut heard) = (vec![None; count], vec![false; count]);
            let (mut server_ms, mut record) = (None, None);
            // Those of silent lanes are of no interest.
            let mut clocks = vec![0; if self.keys.is_sharded() { count } else { 0 }];
            for answer in answers {
                let Some(answer) = answer? else { continue };
                // Where the clocks of nodes differ, the latest is the safe one for ends of lives.
                server_ms = server_ms.max(Some(answer.server_ms));
                record = record.or(answer.record);
                for (lane, head) in answer.heads {
                    let at = usize::from(lane.0);
                    (heads[at], heard[at]) = (head, true);
                    if let Some(clock) = clocks.get_mut(at) {
                        *clock = answer.server_ms;
                    }
                }
            }
            let nobody = || StoreError::new(StoreErrorKind::Unavailable, "poll");
            let lanes = (0..).map(Lane).zip(heard);
            Ok(Polled {
                heads,
                silent: lanes
                    .filter(|(_, heard)| !heard)
                    .map(|(lane, _)| lane)
                    .collect(),
                incarnation: self.nodes.incarnation(),
                server_ms: server_ms.ok_or_else(nobody)?,
                clocks,
                record,
            })
        })
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

/// Heads, then the proof that the server still takes writes; who is its relay, if that matters; the record;
/// and its life and clock.
///
/// The write removes a key that is not there. Like every write it is refused by a replica, by a
/// primary that has lost its replicas (`min-replicas-to-write`) and by a server that cannot persist;
/// but unlike a `SET` it needs no memory. A `SET` that a full server refuses would prove nothing: that
/// refusal comes before the others.
fn poll_commands(keys: &Keys, node: &Node, relays: bool) -> Pipeline {
    let mut commands = ::redis::pipe();
    if node.is_alone() {
        commands.cmd("MGET");
        for lane in keys.lanes() {
            commands.arg(&lane.head);
        }
        commands.cmd("UNLINK").arg(keys.common_beacon());
    } else {
        // A command can only name keys of one slot; and slots move one by one.
        for lane in node.lanes.iter().filter_map(|&lane| keys.lane(lane).ok()) {
            commands.cmd("GET").arg(&lane.head);
            commands.cmd("UNLINK").arg(&lane.beacon);
        }
    }
    if relays {
        let first = node.lanes.first().and_then(|&lane| keys.lane(lane).ok());
        commands.cmd("GET").arg(first.map(|lane| &lane.pace));
    }
    if node.has_record() {
        commands.cmd("GET").arg(&keys.record);
    }
    if node.life().is_known() {
        commands.cmd("INFO").arg("replication");
    }
    commands.cmd("TIME");
    commands
}

/// The part of the only key.
fn alone<T>(parts: Vec<T>) -> StoreResult<T> {
    let part = parts.into_iter().next();
    part.ok_or_else(|| Reply::malformed("run a step"))
}

/// A 64-bit value as scripts and stored bytes hold it.
pub(super) const fn word(value: u64) -> [u8; 8] {
    value.to_be_bytes()
}

/// Values as scripts take them, one behind the other.
fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| word(*value)).collect()
}

/// A time to live in milliseconds, rounded up, within what the server takes.
pub(super) fn millis(ttl: Duration) -> u64 {
    const LONGEST: u128 = 1 << 52;
    let millis = ttl.as_nanos().div_ceil(1_000_000).clamp(1, LONGEST);
    u64::try_from(millis).expect("clamped to 52 bits")
}
