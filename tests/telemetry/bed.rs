//! A store, a namespace of the test's own, pods on it, and a source that does as it is told.

pub(crate) use crate::support::{eventually, server, soon};

use crate::shared::Shared;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use tidings::store::{Memory, Redis, Store};
use tidings::testing::RedisServer;
use tidings::{Cache, CacheBuilder, Entity, EntityBuilder, Event, Events};
use tokio::sync::watch;

/// One store, and one namespace of it that no other test uses.
pub(crate) struct Bed {
    store: Arc<dyn Store>,
    pub(crate) namespace: String,
    _server: Option<Arc<RedisServer>>,
}

impl Bed {
    pub(crate) fn on(store: impl Store) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            store: Arc::new(store),
            namespace: format!("bed-{}", NEXT.fetch_add(1, SeqCst)),
            _server: None,
        }
    }

    pub(crate) fn memory() -> Self {
        Self::on(Memory::new())
    }

    pub(crate) fn redis() -> Self {
        let server = server();
        let store = Redis::new(&server.url()).unwrap();
        Self {
            _server: Some(server),
            ..Self::on(store)
        }
    }

    /// One more pod.
    pub(crate) async fn pod(&self) -> Cache {
        self.pod_with(|builder| builder).await
    }

    pub(crate) async fn pod_with(&self, with: impl FnOnce(CacheBuilder) -> CacheBuilder) -> Cache {
        let builder = Cache::builder(&*self.namespace);
        let builder = builder.store(Shared(Arc::clone(&self.store)));
        with(builder).build().await.unwrap()
    }
}

pub(crate) type Numbers = Entity<u64, u64, String>;

/// Gives the last commit for every key, or an error; holds loads up if told to.
#[derive(Clone)]
pub(crate) struct Source {
    answer: Arc<std::sync::Mutex<Result<u64, String>>>,
    held: watch::Sender<bool>,
    started: Arc<AtomicU64>,
}

impl Source {
    pub(crate) fn of(value: u64) -> Self {
        Self {
            answer: Arc::new(std::sync::Mutex::new(Ok(value))),
            held: watch::Sender::new(false),
            started: Arc::default(),
        }
    }

    pub(crate) fn set(&self, answer: Result<u64, &str>) {
        *self.answer.lock().unwrap() = answer.map_err(str::to_owned);
    }

    pub(crate) fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    pub(crate) async fn started(&self, loads: u64) {
        eventually("loads begin", async || self.started.load(SeqCst) >= loads).await;
    }

    pub(crate) fn entity(
        &self,
        cache: &Cache,
    ) -> EntityBuilder<u64, impl tidings::Loader<u64, Value = u64, Error = String> + use<>> {
        let this = self.clone();
        cache.entity("number", move |_| {
            let this = this.clone();
            async move {
                let answer = this.answer.lock().unwrap().clone();
                this.started.fetch_add(1, SeqCst);
                let _ = this.held.subscribe().wait_for(|held| !held).await;
                answer
            }
        })
    }

    pub(crate) fn numbers(&self, cache: &Cache) -> Numbers {
        self.entity(cache)
            .ttl(Duration::from_secs(600))
            .build()
            .unwrap()
    }
}

/// Waits for an event that must come.
pub(crate) async fn comes(
    events: &mut Events,
    what: &str,
    wanted: impl Fn(&Event) -> bool,
) -> Event {
    let found = async {
        loop {
            let event = events.next().await.expect("the cache is open");
            if wanted(&event) {
                return event;
            }
        }
    };
    soon(what, found).await
}
