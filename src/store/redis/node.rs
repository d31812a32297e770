//! One server behind a link: its connections, its lanes, and what is known of its state.

use super::error;
use super::hints::Channels;
use super::keys::Keys;
use super::replicas::Replica;
use super::replicated::Replicated;
use super::reply::Reply;
use super::server::Life;
use crate::coherence::Lane;
use crate::error::{StoreError, StoreErrorKind};
use crate::store::StoreResult;
use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, Pipeline, RedisError, Value};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Those that take writes.
    Nodes,
    /// A replica of each, for reads that are judged by the head among them.
    Replicas,
}

/// One server.
pub(super) struct Node {
    connection: MultiplexedConnection,
    /// Another one, for calls that replicas must have before they count.
    replicated: Option<Replicated>,
    /// Where entities may be read from besides.
    pub(super) replica: Replica,
    /// Where the channels of watched rooms are subscribed to.
    pub(super) channels: Channels,
    /// The life of the server as last seen. It can change under a living connection: the server
    /// draws a new replication id when its first replica attaches.
    life: Mutex<Life>,
    /// The lanes that it has.
    pub(super) lanes: Vec<Lane>,
    /// Those of them that were on the move when the link was opened, and so could not be touched.
    pub(super) moving: Vec<Lane>,
    /// Whether it is a server by itself, rather than a node of a cluster.
    pub(super) alone: bool,
    /// Its last poll was not answered as that of a node which takes writes: what it has may be old.
    doubtful: AtomicBool,
    fate: Fate,
    /// Woken by a poll that found no relay.
    vacancy: Notify,
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
            replica: Replica::default(),
            channels,
            life: Mutex::new(life),
            lanes,
            moving: Vec::new(),
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

    /// The same, with lanes that are on the move.
    pub(super) fn with_moving(self, moving: Vec<Lane>) -> Self {
        Self { moving, ..self }
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

    /// Whether it did not: what it has may be old.
    pub(super) fn is_doubtful(&self) -> bool {
        self.doubtful.load(Ordering::Acquire)
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

    pub(super) async fn send_many_to(
        &self,
        side: Side,
        operation: &'static str,
        commands: &Pipeline,
    ) -> StoreResult<Vec<Value>> {
        match side {
            Side::Nodes => self.send_many(operation, commands).await,
            Side::Replicas => self.replica.send_many(operation, commands).await,
        }
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

/// What has become of a node, for those who look whether another link would be better.
#[derive(Clone, Default)]
pub(super) struct Fate {
    /// Its subscription has ended.
    pub(super) deaf: Arc<AtomicBool>,
    /// Its connection for commands has, or that for calls that replicas must have.
    pub(super) lost: Arc<AtomicBool>,
}

/// Not `Unavailable`, which would say that the whole store is.
pub(super) fn silent(operation: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Busy, operation)
        .with_detail("there is no connection to the node that has the key")
}
