//! Where the promises of a mode are tried: a store, a namespace of the test's own, and pods on it.
//!
//! [`on_both_stores!`] declares each promise as a test on the embedded store, and one on Redis.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};
use tidings::store::Memory;
use tidings::testing::{Proxy, RedisServer};
use tidings::{Cache, CacheBuilder};

/// Declares each promise, an `async fn(Bed)`, as one test for each store.
macro_rules! on_both_stores {
    ($($promise:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise($crate::bed::Bed::memory()).await;
            })*
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise($crate::bed::Bed::redis()).await;
            })*
        }
    };
}

/// How long something that must happen may take before the promise counts as broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// One store, and one namespace of it that no other test uses.
pub(crate) struct Bed {
    namespace: String,
    store: Backing,
}

enum Backing {
    Memory(Memory),
    Redis(Arc<RedisServer>),
}

/// The server that the tests running at present share; it goes when the last of them ends.
static SERVER: Mutex<Weak<RedisServer>> = Mutex::new(Weak::new());

impl Bed {
    fn on(store: Backing) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let namespace = format!("bed-{}", NEXT.fetch_add(1, Relaxed));
        Self { namespace, store }
    }

    pub(crate) fn memory() -> Self {
        Self::on(Backing::Memory(Memory::new()))
    }

    pub(crate) fn redis() -> Self {
        let mut shared = SERVER.lock().unwrap();
        let server = shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(RedisServer::start().unwrap());
            *shared = Arc::downgrade(&server);
            server
        });
        Self::on(Backing::Redis(server))
    }

    /// A bed on a server of its own, to be cut off and emptied.
    pub(crate) fn redis_alone() -> Self {
        let server = RedisServer::start().unwrap();
        Self::on(Backing::Redis(Arc::new(server)))
    }

    pub(crate) fn server(&self) -> &RedisServer {
        match &self.store {
            Backing::Redis(server) => server,
            Backing::Memory(_) => panic!("the test is for Redis"),
        }
    }

    fn builder(&self) -> CacheBuilder {
        let builder = Cache::builder(&*self.namespace);
        match &self.store {
            Backing::Memory(memory) => builder.store(memory.clone()),
            Backing::Redis(server) => builder.store_url(server.url()),
        }
    }

    /// One more pod.
    pub(crate) async fn pod(&self) -> Cache {
        self.builder().build().await.unwrap()
    }

    /// One more pod, whose connections go through `proxy`.
    pub(crate) async fn pod_behind(&self, proxy: &Proxy) -> Cache {
        let builder = self.builder().store_url(proxy.url());
        builder.build().await.unwrap()
    }

    /// Takes away everything that the store holds.
    pub(crate) fn empty(&self) {
        match &self.store {
            Backing::Memory(memory) => memory.faults().with_state(|state| state.flush_all()),
            Backing::Redis(server) => drop(server.cli(&["FLUSHALL"]).unwrap()),
        }
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

/// Polls a future once; its outcome if it is ready.
pub(crate) async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    poll_fn(|cx| match Pin::new(&mut *future).poll(cx) {
        Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}
