//! The servers behind a link: one, or those nodes of a cluster that have lanes of ours.
//!
//! A command goes to the node that has its first key. Many commands go side by side, those of one node
//! together. No node is ever connected anew: one that fails stays silent for the rest of the link's
//! life, and its lanes with it, while the others go on.

use super::error;
use super::hints::Channels;
use super::keys::Keys;
use super::replicated::Replicated;
use super::reply::Reply;
use super::server::Life;
use super::slots::{At, SlotMap, slot_of};
use crate::coherence::{Incarnation, Lane};
use crate::error::{StoreError, StoreErrorKind};
use crate::store::together::together;
use crate::store::{BoxFuture, StoreResult};
use ::redis::aio::MultiplexedConnection;
use ::redis::{Arg, Cmd, Pipeline, RedisError, Value};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;
use xxhash_rust::xxh3::xxh3_64;

/// The servers behind a link.
pub(super) struct Nodes {
    nodes: Vec<Node>,
    /// The node of each lane; none if it could not be reached.
    owners: Vec<Option<usize>>,
    keys: Arc<Keys>,
    /// Where the other slots of a cluster are, for commands of the user.
    elsewhere: Elsewhere,
}

/// The nodes of a link by their addresses, and which slots are where: the newest that is known.
#[derive(Default)]
pub(super) struct Elsewhere {
    pub(super) at: Vec<At>,
    pub(super) slots: Arc<Mutex<SlotMap>>,
}

/// One server.
pub(super) struct Node {
    connection: MultiplexedConnection,
    /// Another one, for calls that replicas must have before they count.
    replicated: Option<Replicated>,
    /// Where the channels of watched rooms are subscribed to.
    pub(super) channels: Channels,
    /// The life of the server as last seen. It can change under a living connection: the server
    /// draws a new replication id when its first replica attaches.
    life: Mutex<Life>,
    /// The lanes that it has.
    pub(super) lanes: Vec<Lane>,
    /// Whether it is a server by itself, rather than a node of a cluster.
    alone: bool,
    /// Its last poll was not answered as that of a node which takes writes: what it has may be old.
    doubtful: AtomicBool,
    fate: Fate,
    /// Woken by a poll that found no relay.
    vacancy: Notify,
}

/// What has become of a node, for those who look whether another link would be better.
#[derive(Clone, Default)]
pub(super) struct Fate {
    /// Its subscription has ended.
    pub(super) deaf: Arc<AtomicBool>,
    /// Its connection for commands has, or that for calls that replicas must have.
    pub(super) lost: Arc<AtomicBool>,
}

impl Node {
    /// A server by itself, which has all lanes.
    pub(super) fn alone(
        connection: MultiplexedConnection,
        channels: Channels,
        life: Life,
        keys: &Keys,
    ) -> Self {
        let lanes = (0..).take(keys.lanes().len()).map(Lane).collect();
        Self {
            alone: true,
            ..Self::new(connection, channels, life, lanes, Fate::default())
        }
    }

    /// A node of a cluster, which has `lanes`.
    pub(super) fn new(
        connection: MultiplexedConnection,
        channels: Channels,
        life: Life,
        lanes: Vec<Lane>,
        fate: Fate,
    ) -> Self {
        Self {
            connection,
            replicated: None,
            channels,
            life: Mutex::new(life),
            lanes,
            alone: false,
            doubtful: AtomicBool::new(false),
            fate,
            vacancy: Notify::new(),
        }
    }

    /// The same, with a connection for calls that replicas must have, which sets `fate` when it breaks.
    pub(super) fn replicating(self, replicated: Option<Replicated>, fate: Fate) -> Self {
        Self {
            replicated,
            fate,
            ..self
        }
    }

    /// How many replicas must have a call before it counts, if any.
    pub(super) fn replicas_asked(&self) -> Option<u8> {
        let replicated = self.replicated.as_ref();
        replicated.map(|replicated| replicated.replicas)
    }

    /// The lane beside which the namespace's record stands on a cluster.
    pub(super) const OF_RECORD: Lane = Lane(0);

    /// Whether it has the namespace's record.
    pub(super) fn has_record(&self) -> bool {
        self.alone || self.lanes.contains(&Self::OF_RECORD)
    }

    pub(super) fn is_alone(&self) -> bool {
        self.alone
    }

    pub(super) fn life(&self) -> Life {
        *self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_life(&self, life: Life) {
        *self.life.lock().unwrap_or_else(PoisonError::into_inner) = life;
    }

    /// Whether a server by itself has lost one of its two connections for commands; the other would go on.
    pub(super) fn is_lame(&self) -> bool {
        self.alone && self.fate.lost.load(Ordering::Acquire)
    }

    /// Whether its last poll proved that it takes writes.
    pub(super) fn set_proven(&self, proven: bool) {
        self.doubtful.store(!proven, Ordering::Release);
    }

    /// A poll found that nobody is the relay.
    pub(super) fn has_no_relay(&self) {
        self.vacancy.notify_one();
    }

    /// Waits until the node has no relay. For one at a time.
    pub(super) async fn vacancy(&self) {
        self.vacancy.notified().await;
    }

    pub(super) fn is_deaf(&self) -> bool {
        self.fate.deaf.load(Ordering::Acquire)
    }

    pub(super) async fn send(&self, operation: &'static str, cmd: &Cmd) -> StoreResult<Value> {
        let answer = self.connection.clone().send_packed_command(cmd).await;
        answer.map_err(|failed| self.failed(operation, &failed))
    }

    /// Sends a call that is acknowledged by its answer: once as many replicas have it as were asked for.
    pub(super) async fn acknowledge(
        &self,
        operation: &'static str,
        call: &Cmd,
    ) -> StoreResult<Value> {
        match &self.replicated {
            Some(replicated) => {
                let answer = replicated.send(operation, call).await;
                answer.map_err(|error| self.unless_lost(operation, error))
            }
            None => self.send(operation, call).await,
        }
    }

    fn failed(&self, operation: &'static str, error: &RedisError) -> StoreError {
        self.unless_lost(operation, error::of_client(operation, error))
    }

    /// A node of a cluster that is lost is not the store.
    fn unless_lost(&self, operation: &'static str, error: StoreError) -> StoreError {
        if self.alone || error.kind() != StoreErrorKind::Unavailable {
            return error;
        }
        self.fate.lost.store(true, Ordering::Release);
        silent(operation)
    }

    /// Sends commands as one; an answer for each.
    pub(super) async fn send_many(
        &self,
        operation: &'static str,
        commands: &Pipeline,
    ) -> StoreResult<Vec<Value>> {
        let mut connection = self.connection.clone();
        let answers = connection.send_packed_commands(commands, 0, commands.len());
        let answers = answers
            .await
            .map_err(|failed| self.failed(operation, &failed))?;
        match answers.len() == commands.len() {
            true => Ok(answers),
            false => Err(Reply::malformed(operation)),
        }
    }
}

impl Nodes {
    pub(super) fn new(nodes: Vec<Node>, keys: Arc<Keys>, elsewhere: Elsewhere) -> Self {
        // A server by itself has the lanes of raw data and rooms, too.
        let all = matches!(&nodes[..], [node] if node.alone).then_some(0);
        let mut owners = vec![all; usize::from(keys.all_lanes())];
        for (at, node) in nodes.iter().enumerate() {
            for lane in &node.lanes {
                if let Some(owner) = owners.get_mut(usize::from(lane.0)) {
                    *owner = Some(at);
                }
            }
        }
        Self {
            nodes,
            owners,
            keys,
            elsewhere,
        }
    }

    pub(super) fn all(&self) -> &[Node] {
        &self.nodes
    }

    /// One life of all of them: another one as soon as one node has another.
    pub(super) fn incarnation(&self) -> Incarnation {
        match &self.nodes[..] {
            [node] => node.life().incarnation,
            nodes => {
                let words = nodes
                    .iter()
                    .map(|node| node.life().incarnation.0.to_be_bytes());
                Incarnation(xxh3_64(&words.collect::<Vec<_>>().concat()))
            }
        }
    }

    pub(super) fn serves(&self, lane: Lane) -> bool {
        self.at_lane(lane).is_some()
    }

    fn at_lane(&self, lane: Lane) -> Option<usize> {
        self.owners.get(usize::from(lane.0)).copied().flatten()
    }

    /// The node of a lane.
    ///
    /// # Errors
    /// `Busy` if it could not be reached when the link was opened.
    pub(super) fn of_lane(&self, operation: &'static str, lane: Lane) -> StoreResult<&Node> {
        self.keys.data_lane(lane)?; // one of the namespace
        let at = self.at_lane(lane).ok_or_else(|| silent(operation))?;
        Ok(&self.nodes[at])
    }

    /// Whether what is read of a lane may be believed. A node that its cluster has replaced goes on
    /// answering reads for a while, and with `cluster-allow-reads-when-down` for ever; a poll notices within
    /// the bound. A server by itself whose poll fails is given up, link and all.
    ///
    /// # Errors
    /// `Busy` if not.
    pub(super) fn believed(&self, operation: &'static str, lane: Lane) -> StoreResult<()> {
        match self
            .of_lane(operation, lane)?
            .doubtful
            .load(Ordering::Acquire)
        {
            true => Err(StoreError::new(StoreErrorKind::Busy, operation)
                .with_detail("the node that has the key did not prove that it takes writes")),
            false => Ok(()),
        }
    }

    /// The node that a command is for.
    fn at(&self, operation: &'static str, cmd: &Cmd) -> StoreResult<usize> {
        if !self.keys.is_sharded() {
            return Ok(0);
        }
        let Some(key) = first_key(cmd) else {
            return Ok(0);
        };
        if let Some(lane) = self.keys.lane_named(key) {
            return self.at_lane(lane).ok_or_else(|| silent(operation));
        }
        let Elsewhere { at, slots } = &self.elsewhere;
        let slots = slots.lock().unwrap_or_else(PoisonError::into_inner);
        let owner = slots.owner(slot_of(key));
        let place = owner.and_then(|owner| at.iter().position(|at| at == owner));
        place.ok_or_else(|| silent(operation))
    }

    pub(super) fn of(&self, operation: &'static str, cmd: &Cmd) -> StoreResult<&Node> {
        self.at(operation, cmd).map(|at| &self.nodes[at])
    }

    pub(super) async fn send(&self, operation: &'static str, cmd: &Cmd) -> StoreResult<Value> {
        self.of(operation, cmd)?.send(operation, cmd).await
    }

    /// Sends many commands; an answer for each, in their order. `first`, if there is one, goes to every
    /// node before what is for it.
    pub(super) async fn send_many(
        &self,
        operation: &'static str,
        first: Option<&Cmd>,
        commands: &Pipeline,
    ) -> Vec<StoreResult<Value>> {
        if let ([node], None) = (&self.nodes[..], first)
            && node.alone
        {
            // As it is: what is divided is copied.
            return match node.send_many(operation, commands).await {
                Ok(answers) => answers.into_iter().map(Ok).collect(),
                Err(failed) => commands.cmd_iter().map(|_| Err(failed.clone())).collect(),
            };
        }
        let mut answers: Vec<_> = commands
            .cmd_iter()
            .map(|_| Err(silent(operation)))
            .collect();
        let mut parts: Vec<(Vec<usize>, Pipeline)> = Vec::new();
        parts.resize_with(self.nodes.len(), Default::default);
        for (place, cmd) in commands.cmd_iter().enumerate() {
            match self.at(operation, cmd) {
                Ok(at) => {
                    let (places, part) = &mut parts[at];
                    if let Some(first) = first.filter(|_| places.is_empty()) {
                        part.add_command(first.clone());
                    }
                    places.push(place);
                    part.add_command(cmd.clone());
                }
                Err(error) => answers[place] = Err(error),
            }
        }
        let asked = self.nodes.iter().zip(&parts);
        let asked = asked.filter(|(_, (places, _))| !places.is_empty());
        let sent = asked.map(|(node, (places, part))| -> BoxFuture<'_, _> {
            Box::pin(async move { (places, node.send_many(operation, part).await) })
        });
        for (places, part) in together(sent).await {
            match part {
                Ok(part) => {
                    let mut part = part.into_iter();
                    let refused = first.and_then(|_| Reply::new(operation, part.next()?).err());
                    if let Some(refused) = refused {
                        for &place in places {
                            answers[place] = Err(refused.clone());
                        }
                        continue;
                    }
                    for (&place, answer) in places.iter().zip(part) {
                        answers[place] = Ok(answer);
                    }
                }
                Err(failed) => {
                    for &place in places {
                        answers[place] = Err(failed.clone());
                    }
                }
            }
        }
        answers
    }
}

/// Not `Unavailable`, which would say that the whole store is.
fn silent(operation: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Busy, operation)
        .with_detail("there is no connection to the node that has the key")
}

/// The first key of a command, or what stands in its place in one without keys.
fn first_key(cmd: &Cmd) -> Option<&[u8]> {
    let mut words = cmd.args_iter().map(|word| match word {
        Arg::Simple(bytes) => bytes,
        _ => b"",
    });
    let name = words.next()?.to_ascii_uppercase();
    let before = match &name[..] {
        b"EVALSHA" | b"EVAL" | b"EVALSHA_RO" | b"EVAL_RO" | b"FCALL" | b"FCALL_RO" => 2,
        b"OBJECT" | b"MEMORY" | b"XINFO" | b"XGROUP" => 1,
        _ => 0,
    };
    words.nth(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_key_of_a_command_is_found_where_the_command_has_it() {
        for (words, key) in [
            ("GET k", Some("k")),
            ("evalsha 00ff 2 k l", Some("k")),
            ("FCALL name 1 k", Some("k")),
            ("XINFO STREAM k", Some("k")),
            ("EVALSHA 00ff 0", None),
            ("DBSIZE", None),
        ] {
            let mut cmd = Cmd::new();
            for word in words.split(' ') {
                cmd.arg(word);
            }
            let found = first_key(&cmd).map(|key| String::from_utf8_lossy(key).into_owned());
            assert_eq!(found.as_deref(), key, "{words}");
        }
    }
}
