//! The Redis backend against a real server: what the port promises, call by call.
#![cfg(feature = "redis")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod server;

mod batches;
mod connect;
mod leases;
mod lives;
mod logs;
mod many;
mod trouble;

use server::Admin;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use tidings::coherence::{Epoch, Head, Hint, Lane, Nonce};
use tidings::error::StoreErrorKind;
use tidings::store::{
    Fill, Hints, LeaseReply, LeaseRequest, LeaseState, Link, Logged, Namespace, Opening, Place,
    Redis, Replaces, Store, StoreResult,
};
use tidings::testing::RedisServer;

pub(crate) const LANE: Lane = Lane(0);
pub(crate) const LEASE_TTL: Duration = Duration::from_secs(60);
pub(crate) const OPENING: Opening = Opening {
    epoch: Epoch(0xE001_FFFF_FFFF_FFFF),
    nonce: Nonce(0xA001),
};
pub(crate) const OTHER_OPENING: Opening = Opening {
    epoch: Epoch(0xE002_0000_0000_0001),
    nonce: Nonce(0xA002),
};

pub(crate) fn namespace() -> Namespace {
    Namespace {
        name: "ns".to_owned(),
        lanes: 2,
    }
}

/// A server, a link to it and its hints.
pub(crate) struct Pod {
    pub(crate) server: RedisServer,
    pub(crate) link: Arc<dyn Link>,
    pub(crate) hints: Box<dyn Hints>,
}

impl Pod {
    pub(crate) async fn start() -> Self {
        Self::on(RedisServer::start().unwrap()).await
    }

    pub(crate) async fn on(server: RedisServer) -> Self {
        let (link, hints) = connect(&server.url()).await.unwrap();
        Self {
            server,
            link,
            hints,
        }
    }

    /// With an epoch opened on every lane, and the hints of that taken.
    pub(crate) async fn open() -> Self {
        let mut pod = Self::start().await;
        pod.touch().await;
        for _ in 0..2 {
            pod.hint().await;
        }
        pod
    }

    pub(crate) async fn touch(&self) -> Vec<Head> {
        let lanes = [(Lane(0), OPENING), (Lane(1), OPENING)];
        self.link.touch(&lanes).await.unwrap()
    }

    pub(crate) async fn head(&self) -> Option<Head> {
        self.link.poll().await.unwrap().heads[0]
    }

    pub(crate) async fn hint(&mut self) -> Hint {
        let message = tokio::time::timeout(
            Duration::from_secs(20),
            poll_fn(|cx| self.hints.poll_next(cx)),
        );
        let message = message
            .await
            .expect("a hint arrives")
            .expect("still subscribed");
        Hint::decode(&message).expect("a hint of ours")
    }

    pub(crate) async fn lease(&self, key: &str, token: u64) -> LeaseReply {
        self.lease_over(key, token, None).await.unwrap()
    }

    pub(crate) async fn lease_over(
        &self,
        key: &str,
        token: u64,
        unusable: Option<&[u8]>,
    ) -> StoreResult<LeaseReply> {
        let request = LeaseRequest {
            token,
            ttl: LEASE_TTL,
            unusable,
            opening: OTHER_OPENING,
        };
        self.link.lease(place(key), request).await
    }

    pub(crate) async fn fill(&self, key: &str, token: u64, epoch: Epoch, envelope: &[u8]) -> bool {
        self.try_fill(key, token, epoch, envelope).await.unwrap()
    }

    pub(crate) async fn try_fill(
        &self,
        key: &str,
        token: u64,
        epoch: Epoch,
        envelope: &[u8],
    ) -> StoreResult<bool> {
        let fill = Fill {
            token,
            replaces: Replaces::Lease,
            epoch,
            envelope,
            ttl: Some(Duration::from_secs(60)),
        };
        self.link.fill(place(key), fill).await
    }

    /// Leases and fills `key` with a value of the standing epoch; gives the envelope.
    pub(crate) async fn store(&self, key: &str) -> Vec<u8> {
        let lease = self.lease(key, 77).await;
        assert_eq!(lease.state, LeaseState::Granted);
        let envelope = envelope(lease.head.at.epoch, lease.head.at.seq);
        assert!(self.fill(key, 77, lease.head.at.epoch, &envelope).await);
        envelope
    }

    pub(crate) async fn invalidate(&self, key: &str, nonce: u64) -> StoreResult<Logged> {
        let keys = [bytes::Bytes::copy_from_slice(key.as_bytes())];
        let hashes = [place(key).hash];
        self.link
            .invalidate(LANE, &keys, &hashes, Nonce(nonce), OTHER_OPENING)
            .await
    }

    pub(crate) async fn clear(&self, nonce: u64) -> StoreResult<Logged> {
        self.link
            .clear(LANE, "users", 0xEE, Nonce(nonce), OTHER_OPENING)
            .await
    }
}

pub(crate) async fn connect(url: &str) -> StoreResult<(Arc<dyn Link>, Box<dyn Hints>)> {
    Redis::new(url)?.connect(&namespace()).await
}

/// The kind of error that connecting to `url` gives.
pub(crate) async fn refusal(url: &str) -> StoreErrorKind {
    match connect(url).await {
        Ok(_) => panic!("connected"),
        Err(error) => error.kind(),
    }
}

pub(crate) fn place(key: &str) -> Place<'_> {
    Place {
        lane: LANE,
        hash: 0xFFFF_0000_0000_0000 | u64::from(key.as_bytes()[0]),
        entity: "users",
        key: key.as_bytes(),
    }
}

/// A value's envelope as far as the store looks into it, then every byte there is.
pub(crate) fn envelope(epoch: Epoch, seq: u64) -> Vec<u8> {
    let mut out = vec![0xD7, 1, 1, 0];
    out.extend([0; 8]);
    out.extend(epoch.0.to_be_bytes());
    out.extend(seq.to_be_bytes());
    out.extend(0..=255);
    out
}
