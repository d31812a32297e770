//! The link: one multiplexed connection for commands.

use super::batch::Reads;
use super::error;
use super::groups::{Group, by_lane, groups, run};
use super::keys::{Key, Keys, LaneKeys, tag_name};
use super::reply::{self, Reply};
use super::scripts::{CLEAR, FENCE, FILL, INVALIDATE, LEASE, RELEASE, Step, TAGS, TOUCH};
use super::server;
use crate::coherence::{Epoch, Head, Incarnation, Lane, LogEntry, Nonce};
use crate::store::{
    BoxFuture, Fill, Found, LeaseReply, LeaseRequest, Link, Logged, Opening, Place, Polled,
    RawLink, Replaces, RoomLink, StoreResult, TagFloor, TagPlace,
};
use ::redis::aio::{MultiplexedConnection, PubSubSink};
use ::redis::{Cmd, Pipeline, Value};
use bytes::Bytes;
use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A connection for one namespace. Never reconnects.
pub(crate) struct RedisLink {
    pub(super) connection: MultiplexedConnection,
    /// Where the channels of watched rooms are subscribed to.
    pub(super) sink: PubSubSink,
    pub(super) keys: Arc<Keys>,
    reads: Reads,
    /// The life of the server as last seen. It can change under a living connection: the server
    /// draws a new replication id when its first replica attaches.
    incarnation: AtomicU64,
    poll: Pipeline,
}

impl RedisLink {
    pub(super) fn new(
        connection: MultiplexedConnection,
        sink: PubSubSink,
        keys: Keys,
        incarnation: Incarnation,
    ) -> Self {
        let poll = poll_commands(&keys);
        let keys = Arc::new(keys);
        Self {
            reads: Reads::new(connection.clone(), Arc::clone(&keys)),
            connection,
            sink,
            keys,
            incarnation: AtomicU64::new(incarnation.0),
            poll,
        }
    }

    /// A call of `step`, which may have to open an epoch, up to its own keys.
    ///
    /// Keys and arguments travel in one list, so the step's own keys are written between the two
    /// parts that are common to all steps.
    fn opening_call(&self, step: &Step, keys: &LaneKeys, own: &[Key<'_>], opening: Opening) -> Cmd {
        let mut call = step.call(2 + own.len());
        call.arg(&keys.head).arg(&keys.log).arg(own);
        self.common_args(&mut call, keys);
        call.arg(&self.incarnation());
        call.arg(&word(opening.epoch.0)).arg(&word(opening.nonce.0));
        call
    }

    /// A call of `step`, which touches one value and opens nothing.
    fn value_call(&self, step: &Step, keys: &LaneKeys, place: Place<'_>) -> Cmd {
        let mut call = step.call(2);
        call.arg(&keys.head).arg(keys.value(place.key));
        self.common_args(&mut call, keys);
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
        let own: Vec<_> = iter::once(keys.floor(first.entity)).chain(values).collect();
        let mut call = self.opening_call(&LEASE, keys, &own, request.opening);
        for (_, request) in asked {
            call.arg(&word(request.token)).arg(millis(request.ttl));
            // Empty bytes are never taken for a value, and so stand for none.
            call.arg(request.unusable.unwrap_or_default());
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
        self.common_args(&mut call, keys);
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
        call.arg(&keys.lane[..]).arg(&self.keys.channel);
    }

    /// The life of the server as last seen, as scripts take it.
    pub(super) fn incarnation(&self) -> [u8; 8] {
        word(self.incarnation.load(Ordering::Relaxed))
    }

    pub(super) async fn run(&self, step: &Step, call: &Cmd) -> StoreResult<Reply> {
        step.run(&mut self.connection.clone(), call).await
    }

    /// Runs many calls of `step` at once.
    pub(super) async fn run_many(
        &self,
        step: &Step,
        calls: &Pipeline,
    ) -> StoreResult<Vec<StoreResult<Reply>>> {
        step.run_many(&mut self.connection.clone(), calls).await
    }

    pub(super) async fn pipeline(
        &self,
        operation: &'static str,
        commands: &Pipeline,
    ) -> StoreResult<Vec<Value>> {
        let mut connection = self.connection.clone();
        let answers = connection.send_packed_commands(commands, 0, commands.len());
        let answers = answers.await;
        answers.map_err(|failed| error::of_client(operation, &failed))
    }
}

impl Link for RedisLink {
    fn rooms(&self) -> &dyn RoomLink {
        self
    }

    fn touch<'a>(&'a self, lanes: &'a [(Lane, Opening)]) -> BoxFuture<'a, StoreResult<Vec<Head>>> {
        Box::pin(async move {
            // A pipeline cannot repeat what the server did not know, so it brings the script along.
            let mut commands = ::redis::pipe();
            commands.add_command(TOUCH.load());
            for &(lane, opening) in lanes {
                let keys = self.keys.lane(lane)?;
                commands.add_command(self.opening_call(&TOUCH, keys, &[], opening));
            }
            let operation = TOUCH.operation();
            let answers = self.pipeline(operation, &commands).await?;
            let mut replies = answers
                .into_iter()
                .map(|answer| Reply::new(operation, answer));
            let _loaded = replies.next().transpose()?;
            let heads = replies.map(|head| head?.head());
            heads.collect()
        })
    }

    fn poll(&self) -> BoxFuture<'_, StoreResult<Polled>> {
        Box::pin(async move {
            let answers = self.pipeline("poll", &self.poll).await?;
            let [heads, replication, time, _written] = Reply::pipeline("poll", answers)?;
            let incarnation = server::incarnation("poll", &replication.text()?)?;
            self.incarnation.store(incarnation.0, Ordering::Relaxed);
            Ok(Polled {
                heads: heads.array()?.into_iter().map(reply::head).collect(),
                incarnation,
                server_ms: time.time()?,
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
            match self.connection.clone().send_packed_command(&cmd).await {
                // Something else stands where the log should be: nothing of the log is there.
                Ok(Value::ServerError(refused)) if refused.code() == "WRONGTYPE" => Ok(Vec::new()),
                Ok(answer) => Reply::new("read the log", answer)?.entries(),
                Err(failed) => Err(error::of_client("read the log", &failed)),
            }
        })
    }

    fn read<'a>(&'a self, place: Place<'a>) -> BoxFuture<'a, StoreResult<Found>> {
        Box::pin(self.reads.read(place))
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
        Box::pin(async move {
            match self.reads.read_many(places).await {
                Ok(found) => found.into_iter().map(Ok).collect(),
                Err(failed) => places.iter().map(|_| Err(failed.clone())).collect(),
            }
        })
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
            let mut call = self.opening_call(&INVALIDATE, names, &own, opening);
            call.arg(&word(nonce.0));
            call.arg(
                hashes
                    .iter()
                    .flat_map(|hash| word(*hash))
                    .collect::<Vec<u8>>(),
            );
            self.run(&INVALIDATE, &call).await?.logged()
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
            let mut call = self.opening_call(&CLEAR, keys, &own, opening);
            call.arg(&word(nonce.0)).arg(&word(hash));
            self.run(&CLEAR, &call).await?.logged()
        })
    }

    fn fence(
        &self,
        lane: Lane,
        expected: Epoch,
        opening: Opening,
    ) -> BoxFuture<'_, StoreResult<Head>> {
        Box::pin(async move {
            let keys = self.keys.lane(lane)?;
            let mut call = self.opening_call(&FENCE, keys, &[], opening);
            call.arg(&word(expected.0));
            self.run(&FENCE, &call).await?.head()
        })
    }

    fn raw(&self) -> &dyn RawLink {
        self
    }
}

/// Heads, life and clock of the server, then the proof that it still takes writes.
///
/// The write removes a key that is not there. Like every write it is refused by a replica, by a
/// primary that has lost its replicas (`min-replicas-to-write`) and by a server that cannot persist;
/// but unlike a `SET` it needs no memory. A `SET` that a full server refuses would prove nothing: that
/// refusal comes before the others.
fn poll_commands(keys: &Keys) -> Pipeline {
    let mut commands = ::redis::pipe();
    commands.cmd("MGET");
    for lane in keys.lanes() {
        commands.arg(&lane.head);
    }
    commands.cmd("INFO").arg("replication");
    commands.cmd("TIME");
    commands.cmd("UNLINK").arg(&keys.beacon);
    commands
}

/// The part of the only key.
fn alone<T>(parts: Vec<T>) -> StoreResult<T> {
    let part = parts.into_iter().next();
    part.ok_or_else(|| Reply::malformed("run a step"))
}

/// A 64-bit value as scripts and stored bytes hold it.
pub(super) fn word(value: u64) -> [u8; 8] {
    value.to_be_bytes()
}

/// A time to live in milliseconds, rounded up, within what the server takes.
pub(super) fn millis(ttl: Duration) -> u64 {
    const LONGEST: u128 = 1 << 52;
    let millis = ttl.as_nanos().div_ceil(1_000_000).clamp(1, LONGEST);
    u64::try_from(millis).expect("clamped to 52 bits")
}
