//! The raw store, as its users see it, on both stores.
#![cfg(feature = "redis")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod clearing;
mod hashes;
mod prefixes;
mod trouble;
mod values;

use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tidings::store::{Memory, Redis, Store};
use tidings::testing::RedisServer;
use tidings::{Cache, Raw, RawKeys};

/// How long something that must happen may take before the promise counts as broken.
const PATIENCE: Duration = Duration::from_secs(30);
/// Long enough that a slow machine changes what it has just stored before it ends.
const SHORT: Duration = Duration::from_secs(1);

/// The server that the tests running at present share; it goes when the last of them ends.
static SERVER: Mutex<Weak<RedisServer>> = Mutex::new(Weak::new());

/// A store with a namespace that no other test uses.
struct Bed {
    store: Arc<dyn Store>,
    namespace: String,
    _server: Option<Arc<RedisServer>>,
}

impl Bed {
    fn on(store: impl Store, server: Option<Arc<RedisServer>>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            store: Arc::new(store),
            namespace: format!("bed-{}", NEXT.fetch_add(1, Relaxed)),
            _server: server,
        }
    }

    fn memory() -> Self {
        Self::on(Memory::new(), None)
    }

    fn redis() -> Self {
        let mut shared = SERVER.lock().unwrap();
        let server = shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(RedisServer::start().unwrap());
            *shared = Arc::downgrade(&server);
            server
        });
        Self::on(Redis::new(&server.url()).unwrap(), Some(server))
    }

    async fn cache(&self) -> Cache {
        let builder = Cache::builder(&*self.namespace).store(Shared(Arc::clone(&self.store)));
        builder.build().await.unwrap()
    }

    async fn raw(&self, prefix: &str) -> Raw {
        self.cache().await.raw(prefix).unwrap()
    }
}

/// One store behind several caches.
#[derive(Debug)]
struct Shared(Arc<dyn Store>);

impl Store for Shared {
    fn connect<'a>(
        &'a self,
        namespace: &'a tidings::store::Namespace,
    ) -> tidings::store::BoxFuture<'a, tidings::store::StoreResult<tidings::store::Connected>> {
        self.0.connect(namespace)
    }

    fn describe(&self) -> String {
        self.0.describe()
    }
}

/// Waits until `look` gives true.
async fn eventually(what: &str, mut look: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !look().await {
        assert!(began.elapsed() < PATIENCE, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn all(mut keys: RawKeys) -> BTreeSet<Bytes> {
    let mut all = BTreeSet::new();
    while let Some(key) = keys.next().await {
        all.insert(key.unwrap());
    }
    all
}

fn bytes(text: &'static str) -> Option<Bytes> {
    Some(Bytes::from_static(text.as_bytes()))
}

/// One test for each claim and store.
macro_rules! on_both_stores {
    ($($claim:ident)*) => {
        mod memory {
            $(#[tokio::test]
            async fn $claim() {
                super::$claim(crate::Bed::memory()).await;
            })*
        }

        mod redis {
            $(#[tokio::test]
            async fn $claim() {
                super::$claim(crate::Bed::redis()).await;
            })*
        }
    };
}

use on_both_stores;
