//! Where the promises of a mode are tried: a store, a namespace of the test's own, and pods on it.

pub(crate) use crate::support::{PATIENCE, eventually, soon};

use crate::servers::{Servers, servers};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use tidings::store::Memory;
use tidings::testing::{Proxy, RedisServer};
use tidings::{Cache, CacheBuilder};

/// One store, and one namespace of it that no other test uses.
pub(crate) struct Bed {
    namespace: String,
    store: Backing,
}

enum Backing {
    Memory(Memory),
    Redis(Arc<Servers>),
}

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
        Self::on(Backing::Redis(servers()))
    }

    /// A bed on a server of its own, to be cut off and emptied.
    pub(crate) fn redis_alone() -> Self {
        let server = RedisServer::start().unwrap();
        Self::on(Backing::Redis(Arc::new(Servers::One(server))))
    }

    pub(crate) fn server(&self) -> &RedisServer {
        match &self.store {
            Backing::Redis(servers) => match &servers.primaries()[..] {
                [server] => server,
                _ => panic!("the test is for one server"),
            },
            Backing::Memory(_) => panic!("the test is for Redis"),
        }
    }

    fn builder(&self) -> CacheBuilder {
        let builder = Cache::builder(&*self.namespace);
        match &self.store {
            Backing::Memory(memory) => builder.store(memory.clone()),
            Backing::Redis(servers) => builder.store_url(servers.url()),
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
            Backing::Redis(_) => drop(self.server().cli(&["FLUSHALL"]).unwrap()),
        }
    }
}

/// Polls a future once; its outcome if it is ready.
pub(crate) async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    poll_fn(|cx| match Pin::new(&mut *future).poll(cx) {
        Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}
