//! The subscription: a socket of its own, because a stalled stream of hints must not hold up commands.

use super::error;
use crate::store::{Hints, StoreResult};
use ::redis::Client;
use ::redis::aio::{PubSubSink, PubSubStream};
use bytes::Bytes;
use futures_core::Stream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// The messages of the channels subscribed to, until the connection ends.
pub(super) struct Subscription(PubSubStream);

impl Subscription {
    /// Subscribes to `channel` and waits until the server has acknowledged it. Further channels are
    /// subscribed to through the sink.
    pub(super) async fn open(client: &Client, channel: &str) -> StoreResult<(Self, PubSubSink)> {
        let failed = |failed| error::of_client("subscribe", &failed);
        let mut pubsub = client.get_async_pubsub().await.map_err(failed)?;
        pubsub.subscribe(channel).await.map_err(failed)?;
        let (sink, messages) = pubsub.split();
        Ok((Self(messages), sink))
    }
}

impl Hints for Subscription {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let message = ready!(Pin::new(&mut self.0).poll_next(cx));
        Poll::Ready(message.map(|message| Bytes::copy_from_slice(message.get_payload_bytes())))
    }
}
