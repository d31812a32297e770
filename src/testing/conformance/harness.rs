//! What the claims are made with.

use crate::coherence::{Epoch, Head, Hint, Lane, LogEntry, Nonce};
use crate::random::random;
use crate::store::memory::layout::{Front, State};
use crate::store::{
    Connected, Fill, Found, Hints, LeaseReply, LeaseRequest, LeaseState, Link, Logged, Namespace,
    Opening, Place, Replaces, Store,
};
use bytes::Bytes;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long something that must happen may take before the claim is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked at meanwhile.
const GLANCE: Duration = Duration::from_millis(2);
/// A lease that outlives every claim.
pub(super) const LONG: Duration = Duration::from_secs(300);

/// The lane that most claims work on.
pub(super) const LANE: Lane = Lane(1);
pub(super) const ENTITY: &str = "user";
pub(super) const ENTITY_HASH: u64 = 0xE;
/// The key that most claims work on.
pub(super) const KEY: Place<'static> = place(b"user/1", 0x51);

pub(super) const fn place(key: &'static [u8], hash: u64) -> Place<'static> {
    Place {
        lane: LANE,
        hash,
        entity: ENTITY,
        key,
    }
}

/// A store under test, and a namespace of it that nobody else uses.
#[derive(Debug)]
pub struct Harness {
    store: Arc<dyn Store>,
    namespace: Namespace,
    names: AtomicU64,
}

impl Harness {
    /// A harness for one claim.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            namespace: fresh_namespace(),
            names: AtomicU64::new(random() >> 1),
        }
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// A harness of the same store with another namespace.
    pub(super) fn elsewhere(&self) -> Self {
        Self::new(Arc::clone(&self.store))
    }

    pub(super) async fn connect(&self) -> (Probe<'_>, Ears) {
        let connected = self.store.connect(&self.namespace).await;
        let (link, hints): Connected = connected.expect("the store connects");
        (Probe { link, names: self }, Ears(hints))
    }

    pub(super) async fn probe(&self) -> Probe<'_> {
        self.connect().await.0
    }

    /// A number that was not used before.
    pub(super) fn name(&self) -> u64 {
        self.names.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn nonce(&self) -> Nonce {
        Nonce(self.name())
    }

    pub(super) fn opening(&self) -> Opening {
        Opening {
            epoch: Epoch(self.name()),
            nonce: self.nonce(),
        }
    }
}

fn fresh_namespace() -> Namespace {
    Namespace {
        name: format!("conformance-{:016x}", random()),
        lanes: 4,
    }
}

/// A link whose calls must succeed, with arguments that no claim cares about filled in.
#[derive(Clone)]
pub(super) struct Probe<'h> {
    pub(super) link: Arc<dyn Link>,
    pub(super) names: &'h Harness,
}

/// The right to fill one key.
#[derive(Clone, Copy)]
pub(super) struct Lease {
    pub(super) token: u64,
    pub(super) head: Head,
}

impl Probe<'_> {
    pub(super) fn opening(&self) -> Opening {
        self.names.opening()
    }

    pub(super) async fn touch(&self, lane: Lane) -> Head {
        let lanes = [(lane, self.names.opening())];
        let heads = self.link.touch(&lanes).await.expect("touch");
        heads[0]
    }

    pub(super) async fn invalidate(&self, places: &[Place<'_>]) -> Logged {
        let keys: Vec<_> = places
            .iter()
            .map(|p| Bytes::copy_from_slice(p.key))
            .collect();
        let hashes = places.iter().map(|p| p.hash);
        let hashes: Vec<_> = [ENTITY_HASH].into_iter().chain(hashes).collect();
        let (nonce, opening) = (self.names.nonce(), self.names.opening());
        let logged = self.link.invalidate(LANE, &keys, &hashes, nonce, opening);
        logged.await.expect("invalidate")
    }

    pub(super) async fn clear(&self) -> Logged {
        let (nonce, opening) = (self.names.nonce(), self.names.opening());
        let logged = self
            .link
            .clear(LANE, ENTITY, ENTITY_HASH, nonce, opening)
            .await;
        logged.expect("clear")
    }

    pub(super) async fn fence(&self, expected: Epoch) -> Head {
        let head = self.link.fence(LANE, expected, self.names.opening()).await;
        head.expect("fence")
    }

    pub(super) async fn log(&self) -> Vec<LogEntry> {
        self.link
            .log_since(LANE, 0, usize::MAX >> 1)
            .await
            .expect("log_since")
    }

    pub(super) async fn read(&self, place: Place<'_>) -> Found {
        self.link.read(place).await.expect("read")
    }

    pub(super) async fn request(
        &self,
        place: Place<'_>,
        token: u64,
        ttl: Duration,
        unusable: Option<&[u8]>,
    ) -> LeaseReply {
        let request = LeaseRequest {
            token,
            ttl,
            unusable,
            opening: self.names.opening(),
        };
        self.link.lease(place, request).await.expect("lease")
    }

    /// Asks for a long lease with a fresh token.
    pub(super) async fn ask(&self, place: Place<'_>) -> LeaseReply {
        self.request(place, self.names.name(), LONG, None).await
    }

    /// Takes a lease that must be free.
    pub(super) async fn lease(&self, place: Place<'_>) -> Lease {
        let token = self.names.name();
        let reply = self.request(place, token, LONG, None).await;
        assert_eq!(reply.state, LeaseState::Granted);
        Lease {
            token,
            head: reply.head,
        }
    }

    pub(super) async fn fill(&self, place: Place<'_>, lease: Lease, bytes: &[u8]) -> bool {
        self.fill_for(place, lease, bytes, Some(LONG)).await
    }

    pub(super) async fn fill_for(
        &self,
        place: Place<'_>,
        lease: Lease,
        envelope: &[u8],
        ttl: Option<Duration>,
    ) -> bool {
        let fill = Fill {
            token: lease.token,
            replaces: Replaces::Lease,
            epoch: lease.head.at.epoch,
            envelope,
            ttl,
        };
        self.link.fill(place, fill).await.expect("fill")
    }

    /// Stores what was loaded as `new` over the value with the token `old`.
    pub(super) async fn refresh(&self, place: Place<'_>, old: u64, new: Lease) -> bool {
        let fill = Fill {
            token: old,
            replaces: Replaces::Value,
            epoch: new.head.at.epoch,
            envelope: &value(new),
            ttl: Some(LONG),
        };
        self.link.fill(place, fill).await.expect("fill")
    }

    /// What a load that begins now without a lease of `place` would be stored as.
    pub(super) async fn load(&self, lane: Lane) -> Lease {
        Lease {
            token: self.names.name(),
            head: self.touch(lane).await,
        }
    }

    /// Leases and fills; gives what was stored.
    pub(super) async fn put(&self, place: Place<'_>) -> Bytes {
        let lease = self.lease(place).await;
        let bytes = value(lease);
        assert!(self.fill(place, lease, &bytes).await, "fill was refused");
        bytes
    }

    pub(super) async fn release(&self, place: Place<'_>, token: u64) {
        self.link.release(place, token).await.expect("release");
    }
}

/// A usable value that was loaded under `lease`.
pub(super) fn value(lease: Lease) -> Bytes {
    let front = Front {
        state: State::Value,
        token: lease.token,
        epoch: lease.head.at.epoch,
        seq: lease.head.at.seq,
    };
    [&front.write()[..], b"payload"].concat().into()
}

/// The hints of a link.
pub(super) struct Ears(Box<dyn Hints>);

impl Ears {
    /// The next message.
    pub(super) async fn hear(&mut self) -> Bytes {
        let next = poll_fn(|cx| self.0.poll_next(cx));
        let heard = tokio::time::timeout(PATIENCE, next).await;
        heard
            .expect("a hint arrives")
            .expect("the subscription lasts")
    }

    /// The next message, read.
    pub(super) async fn hint(&mut self) -> Hint {
        let bytes = self.hear().await;
        Hint::decode(&bytes).unwrap_or_else(|| panic!("not a hint: {bytes:?}"))
    }
}

/// Waits until `look` gives something.
pub(super) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(started.elapsed() < PATIENCE, "never happened: {what}");
        tokio::time::sleep(GLANCE).await;
    }
}
