//! A real Redis cluster of three nodes: the suite that every store must pass, and every mode at work.
#![cfg(feature = "redis")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod modes;
#[path = "../support/moves.rs"]
mod moves;
mod moving;

use std::sync::{Arc, Mutex, PoisonError, Weak};
use tidings::store::{BoxFuture, Connected, Namespace, Redis, Store, StoreResult};
use tidings::testing::RedisCluster;

/// A store on the cluster that these tests share. The cluster ends with the last of them: what a
/// `static` owns is never dropped.
#[derive(Debug)]
struct OnShared {
    store: Redis,
    _cluster: Arc<RedisCluster>,
}

impl Store for OnShared {
    fn connect<'a>(&'a self, namespace: &'a Namespace) -> BoxFuture<'a, StoreResult<Connected>> {
        self.store.connect(namespace)
    }

    fn describe(&self) -> String {
        self.store.describe()
    }
}

pub(crate) fn cluster() -> Arc<RedisCluster> {
    static CLUSTER: Mutex<Weak<RedisCluster>> = Mutex::new(Weak::new());
    let mut shared = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let cluster = Arc::new(RedisCluster::start(3, false).unwrap());
        *shared = Arc::downgrade(&cluster);
        cluster
    })
}

async fn shared() -> Arc<dyn Store> {
    let cluster = cluster();
    let store = Redis::new(&cluster.url()).unwrap();
    Arc::new(OnShared {
        store,
        _cluster: cluster,
    })
}

tidings::store_conformance!(cluster_conforms, shared);
