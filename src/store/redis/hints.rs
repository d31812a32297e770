//! The subscription: sockets of their own, because a stalled stream of hints must not hold up commands.
//!
//! A server by itself has one channel for all hints of a namespace. On a cluster each lane has a
//! sharded channel in its own slot, so that a message travels no further than the node it was
//! published on; those are subscribed to one by one, because one command for channels of two slots is
//! refused.

use super::error;
use super::reply::Reply;
use crate::store::{Hints, StoreResult};
use ::redis::aio::{MultiplexedConnection, PubSubSink, PubSubStream, SendError};
use ::redis::{AsyncConnectionConfig, Client, ProtocolVersion, PushInfo, PushKind, Value};
use bytes::Bytes;
use futures_core::Stream;
use std::collections::HashSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// The messages of the channels subscribed to, until the connection ends.
pub(super) struct Subscription(PubSubStream);

/// Where further channels are subscribed to.
#[derive(Clone)]
pub(super) enum Channels {
    Plain(PubSubSink),
    Sharded(MultiplexedConnection, Leaving),
}

/// Sharded channels that are being unsubscribed from: what the node says of these is no surprise.
type Leaving = Arc<Mutex<HashSet<Vec<u8>>>>;

impl Subscription {
    /// Subscribes to `channel` and waits until the server has acknowledged it.
    pub(super) async fn open(client: &Client, channel: &str) -> StoreResult<(Self, Channels)> {
        let failed = |failed| error::of_client("subscribe", &failed);
        let mut pubsub = client.get_async_pubsub().await.map_err(failed)?;
        pubsub.subscribe(channel).await.map_err(failed)?;
        let (sink, messages) = pubsub.split();
        Ok((Self(messages), Channels::Plain(sink)))
    }
}

impl Hints for Subscription {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let message = ready!(Pin::new(&mut self.0).poll_next(cx));
        Poll::Ready(message.map(|message| Bytes::copy_from_slice(message.get_payload_bytes())))
    }
}

/// The messages of the nodes of a cluster. It ends with the link: a node whose subscription ends is
/// marked as deaf, and the others go on.
pub(super) struct ShardedHints(UnboundedReceiver<Bytes>);

/// What subscriptions of nodes write to.
#[derive(Clone)]
pub(super) struct ShardedEar(UnboundedSender<Bytes>);

impl ShardedHints {
    pub(super) fn new() -> (Self, ShardedEar) {
        let (sender, receiver) = unbounded_channel();
        (Self(receiver), ShardedEar(sender))
    }
}

impl Hints for ShardedHints {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.0.poll_recv(cx)
    }
}

impl ShardedEar {
    /// Subscribes to `channels` of one node, and waits until the node has acknowledged each.
    pub(super) async fn open(
        self,
        client: &Client,
        channels: impl Iterator<Item = &str>,
        limit: Duration,
        deaf: Arc<AtomicBool>,
    ) -> StoreResult<Channels> {
        let info = client.get_connection_info().clone();
        // As RESP3 has it: messages come between the answers to commands, marked as such.
        let redis = info
            .redis_settings()
            .clone()
            .set_protocol(ProtocolVersion::RESP3);
        let failed = |failed| error::of_client("subscribe", &failed);
        let client = Client::open(info.set_redis_settings(redis)).map_err(failed)?;
        let leaving = Leaving::default();
        let left = Arc::clone(&leaving);
        let hear = move |push: PushInfo| self.hear(push, &deaf, &left);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(limit))
            .set_response_timeout(None)
            .set_push_sender(hear);
        let connect = client.get_multiplexed_async_connection_with_config(&config);
        let opened = Channels::Sharded(connect.await.map_err(failed)?, leaving);
        for channel in channels {
            opened.subscribe(channel).await?;
        }
        Ok(opened)
    }

    fn hear(&self, push: PushInfo, deaf: &AtomicBool, left: &Leaving) -> Result<(), SendError> {
        let mut data = push.data.into_iter();
        match (push.kind, data.next(), data.next()) {
            (PushKind::SMessage, _, Some(Value::BulkString(payload))) => {
                self.0.send(payload.into()).map_err(|_| SendError)?;
            }
            (PushKind::SUnsubscribe, Some(Value::BulkString(channel)), _)
                if lock(left).remove(&channel) => {}
            // The second is what a node says of channels whose slot has moved away.
            (PushKind::Disconnection | PushKind::SUnsubscribe, ..) => {
                deaf.store(true, Ordering::Release);
            }
            _ => {}
        }
        Ok(())
    }
}

impl Channels {
    pub(super) async fn subscribe(&self, channel: &str) -> StoreResult<()> {
        match self {
            Self::Plain(sink) => {
                let subscribed = sink.clone().subscribe(channel).await;
                subscribed.map_err(|failed| error::of_client("subscribe", &failed))
            }
            Self::Sharded(connection, _) => ask(connection, "SSUBSCRIBE", channel).await,
        }
    }

    pub(super) async fn unsubscribe(&self, channel: &str) -> StoreResult<()> {
        match self {
            Self::Plain(sink) => {
                let unsubscribed = sink.clone().unsubscribe(channel).await;
                unsubscribed.map_err(|failed| error::of_client("unsubscribe", &failed))
            }
            Self::Sharded(connection, leaving) => {
                lock(leaving).insert(channel.into());
                ask(connection, "SUNSUBSCRIBE", channel).await
            }
        }
    }
}

fn lock(leaving: &Leaving) -> MutexGuard<'_, HashSet<Vec<u8>>> {
    leaving.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn ask(
    connection: &MultiplexedConnection,
    command: &'static str,
    channel: &str,
) -> StoreResult<()> {
    let mut cmd = ::redis::cmd(command);
    cmd.arg(channel);
    let answer = connection.clone().send_packed_command(&cmd).await;
    let answer = answer.map_err(|failed| error::of_client("subscribe", &failed))?;
    Reply::new("subscribe", answer).map(drop)
}
