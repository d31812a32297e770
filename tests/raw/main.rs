//! The raw store, as its users see it, on both stores.
#![cfg(feature = "redis")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[macro_use]
#[expect(dead_code, reason = "others need more of it")]
#[path = "../support/mod.rs"]
mod support;
#[expect(dead_code, reason = "others need more of it")]
#[path = "../support/servers.rs"]
mod servers;
#[path = "../support/stalls.rs"]
mod stalls;

mod bed {
    pub(crate) use super::Bed;
}
mod clearing;
mod hashes;
mod prefixes;
mod trouble;
mod values;

use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use support::eventually;
use tidings::store::{Memory, Redis, Store};
use tidings::{Cache, Raw, RawKeys};

/// Long enough that a slow machine changes what it has just stored before it ends.
const SHORT: Duration = Duration::from_secs(1);

/// A store with a namespace that no other test uses.
struct Bed {
    store: Arc<dyn Store>,
    namespace: String,
    _servers: Option<Arc<servers::Servers>>,
}

impl Bed {
    fn on(store: impl Store, servers: Option<Arc<servers::Servers>>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            store: Arc::new(store),
            namespace: format!("bed-{}", NEXT.fetch_add(1, Relaxed)),
            _servers: servers,
        }
    }

    fn memory() -> Self {
        Self::on(Memory::new(), None)
    }

    fn redis() -> Self {
        let servers = servers::servers();
        Self::on(Redis::new(&servers.url()).unwrap(), Some(servers))
    }

    async fn cache(&self) -> Cache {
        let builder = Cache::builder(&*self.namespace).store(Shared(Arc::clone(&self.store)));
        builder.build().await.unwrap()
    }

    /// One that gives a long value the time that it takes on a busy machine.
    async fn patient_cache(&self) -> Cache {
        let builder = Cache::builder(&*self.namespace).store(Shared(Arc::clone(&self.store)));
        let builder = builder.read_timeout(Duration::from_secs(30));
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
