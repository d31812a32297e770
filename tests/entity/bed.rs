//! Where the promises are tried: a store, a namespace of the test's own, and pods on it.

use crate::source::{Refused, Source};
use crate::wire::{Hand, Wire};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};
use tidings::store::{Memory, Store};
use tidings::testing::RedisServer;
use tidings::{Cache, CacheBuilder, EntityBuilder};

/// An entity of versions.
pub(crate) type Numbers = tidings::Entity<u64, u64, Refused>;

/// How long something that must happen may take before the promise counts as broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// One store, and one namespace of it that no other test uses.
pub(crate) struct Bed {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) namespace: String,
    _server: Option<Arc<RedisServer>>,
}

/// The server that the tests running at present share; it goes when the last of them ends.
static SERVER: Mutex<Weak<RedisServer>> = Mutex::new(Weak::new());

pub(crate) fn server() -> Arc<RedisServer> {
    let mut shared = SERVER.lock().unwrap();
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(RedisServer::start().unwrap());
        *shared = Arc::downgrade(&server);
        server
    })
}

impl Bed {
    pub(crate) fn on(store: impl Store) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            store: Arc::new(store),
            namespace: format!("bed-{}", NEXT.fetch_add(1, Relaxed)),
            _server: None,
        }
    }

    pub(crate) fn memory() -> Self {
        Self::on(Memory::new())
    }

    #[cfg(feature = "redis")]
    pub(crate) fn redis() -> Self {
        let server = server();
        let store = tidings::store::Redis::new(&server.url()).unwrap();
        Self {
            _server: Some(server),
            ..Self::on(store)
        }
    }

    /// One more pod.
    pub(crate) async fn pod(&self) -> Pod {
        self.pod_with(|builder| builder).await
    }

    pub(crate) async fn pod_with(&self, with: impl FnOnce(CacheBuilder) -> CacheBuilder) -> Pod {
        let wire = Wire::new(Arc::clone(&self.store));
        let builder = Cache::builder(&*self.namespace).store(wire.clone());
        let cache = with(builder).build().await.unwrap();
        Pod { cache, wire }
    }

    pub(crate) async fn hand(&self) -> Hand {
        Hand::on(&self.store, &self.namespace).await
    }
}

/// One cache, as one process of a service has it.
pub(crate) struct Pod {
    pub(crate) cache: Cache,
    pub(crate) wire: Wire,
}

impl Pod {
    pub(crate) fn builder(&self, source: &Source) -> EntityBuilder<u64, Source> {
        self.cache.entity("number", source.clone())
    }

    pub(crate) fn numbers(&self, source: &Source) -> Numbers {
        self.builder(source).build().unwrap()
    }

    /// Waits until what this pod does behind its callers has reached the store `count` times.
    pub(crate) async fn done(&self, operation: &'static str, count: u64) {
        let what = format!("{operation} number {count}");
        eventually(&what, async || self.wire.done(operation) >= count).await;
    }
}

/// Waits until `look` gives true.
pub(crate) async fn eventually(what: &str, mut look: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !look().await {
        assert!(began.elapsed() < PATIENCE, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits for a future that must end.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(PATIENCE, future).await;
    ended.unwrap_or_else(|_| panic!("never ended: {what}"))
}

/// Polls a future that is not ready once: its effects up to its first wait have happened.
pub(crate) async fn poll_once(future: &mut (impl Future + Unpin)) {
    let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx).is_pending()));
    assert!(polled.await, "it waits");
}
