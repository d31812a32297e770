//! What these tests ask of a [`RedisServer`] beyond what it offers, and the suite on one of them.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use tidings::store::{BoxFuture, Connected, Namespace, Redis, Store, StoreResult};
use tidings::testing::RedisServer;

/// A view from outside the store: bytes that are no text, and many commands on one connection.
pub(crate) trait Admin {
    /// A connection that is not the store's.
    fn admin(&self) -> redis::Connection;

    fn query<T: redis::FromRedisValue>(&self, command: &[&[u8]]) -> T {
        let mut cmd = redis::Cmd::new();
        for word in command {
            cmd.arg(*word);
        }
        cmd.query(&mut self.admin()).unwrap()
    }

    fn run(&self, command: &str) {
        let words: Vec<_> = command.split(' ').map(str::as_bytes).collect();
        let _: redis::Value = self.query(&words);
    }
}

impl Admin for RedisServer {
    fn admin(&self) -> redis::Connection {
        let client = redis::Client::open(self.url()).unwrap();
        client.get_connection().unwrap()
    }
}

/// A store on the server that the claims of the suite share. The server ends with the last of them:
/// what a `static` owns is never dropped.
#[derive(Debug)]
struct OnShared {
    store: Redis,
    _server: Arc<RedisServer>,
}

impl Store for OnShared {
    fn connect<'a>(&'a self, namespace: &'a Namespace) -> BoxFuture<'a, StoreResult<Connected>> {
        self.store.connect(namespace)
    }

    fn describe(&self) -> String {
        self.store.describe()
    }
}

async fn shared() -> Arc<dyn Store> {
    static SERVER: Mutex<Weak<RedisServer>> = Mutex::new(Weak::new());
    let mut shared = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    let server = shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(RedisServer::start().unwrap());
        *shared = Arc::downgrade(&server);
        server
    });
    Arc::new(OnShared {
        store: Redis::new(&server.url()).unwrap(),
        _server: server,
    })
}

tidings::store_conformance!(redis_conforms, shared);
