//! Where the promises are tried: a store, a namespace of the test's own, and pods on it.

pub(crate) use crate::support::{PATIENCE, eventually, server, soon};

use crate::servers::{Servers, servers};

use crate::source::{Refused, Source};
use crate::wire::{Hand, Wire};
use std::any::Any;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use tidings::coherence::Lane;
use tidings::store::memory::MemoryState;
use tidings::store::{Memory, Store};
use tidings::testing::RedisServer;
use tidings::{Cache, CacheBuilder, EntityBuilder, InvalidateError, Pending, StoreState};

/// An entity of versions.
pub(crate) type Numbers = tidings::Entity<u64, u64, Refused>;

/// One store, and one namespace of it that no other test uses.
pub(crate) struct Bed {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) namespace: String,
    servers: Option<Arc<Servers>>,
}

impl Bed {
    pub(crate) fn on(store: impl Store) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            store: Arc::new(store),
            namespace: format!("bed-{}", NEXT.fetch_add(1, Relaxed)),
            servers: None,
        }
    }

    pub(crate) fn memory() -> Self {
        Self::on(Memory::new())
    }

    #[cfg(feature = "redis")]
    pub(crate) fn redis() -> Self {
        let servers = servers();
        let store = tidings::store::Redis::new(&servers.url()).unwrap();
        Self {
            servers: Some(servers),
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

    /// The server evicts the floors of all tags.
    pub(crate) fn evict_tag_floors(&self) {
        match self.embedded() {
            Some(memory) => memory.faults().with_state(MemoryState::drop_tag_floors),
            None => self.delete("{NAMESPACE:*}t:*"),
        }
    }

    /// The server evicts the markers of all guards.
    pub(crate) fn evict_markers(&self) {
        match self.embedded() {
            Some(memory) => memory.faults().with_state(|state| {
                (0..tidings::DEFAULT_LANES).for_each(|lane| state.drop_markers(Lane(lane)));
            }),
            None => self.delete("{NAMESPACE:*}g"),
        }
    }

    /// Somebody deletes everything.
    pub(crate) fn flush(&self) {
        match self.embedded() {
            Some(memory) => memory.faults().with_state(MemoryState::flush_all),
            None => self.delete("{NAMESPACE:*"),
        }
    }

    fn embedded(&self) -> Option<&Memory> {
        let store: &dyn Any = &*self.store;
        store.downcast_ref()
    }

    fn delete(&self, pattern: &str) {
        let pattern = pattern.replace("NAMESPACE", &self.namespace);
        let script = "local found = redis.call('KEYS', ARGV[1]) \
            for _, key in ipairs(found) do redis.call('DEL', key) end return #found";
        let delete = |server: &RedisServer| -> u64 {
            let deleted = server.cli(&["EVAL", script, "0", &pattern]).unwrap();
            deleted.parse().unwrap()
        };
        let servers = self.servers.as_ref().unwrap().primaries();
        assert!(servers.into_iter().map(delete).sum::<u64>() > 0);
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

    /// Waits until this pod knows that the store is away.
    pub(crate) async fn is_down(&self) {
        eventually("the link is down", async || {
            matches!(self.cache.health().store, StoreState::Down { .. })
        })
        .await;
    }

    /// Waits until what this pod does behind its callers has reached the store `count` times.
    pub(crate) async fn done(&self, operation: &'static str, count: u64) {
        let what = format!("{operation} number {count}");
        eventually(&what, async || self.wire.done(operation) >= count).await;
    }
}

/// Invalidates keys while the store is away.
pub(crate) async fn pending(numbers: &Numbers, keys: impl IntoIterator<Item = u64>) -> Pending {
    let keys: Vec<u64> = keys.into_iter().collect();
    match soon("the call", numbers.invalidate_many(&keys)).await {
        Err(InvalidateError::Pending(pending)) => pending,
        other => panic!("{other:?}"),
    }
}

/// Polls a future that is not ready once: its effects up to its first wait have happened.
pub(crate) async fn poll_once(future: &mut (impl Future + Unpin)) {
    let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx).is_pending()));
    assert!(polled.await, "it waits");
}
