//! What the tests of every mode share: waiting for what must happen, and a server for all of them.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tidings::testing::RedisServer;

/// Declares each promise, an `async fn(Bed)`, as one test on the embedded store and one on Redis, which
/// is a cluster or stands behind sentinels if `servers.rs` is told so. The crate of the tests has a
/// `bed::Bed` with `memory()` and `redis()`.
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

/// The server that the tests running at present share; it goes when the last of them ends.
pub(crate) fn server() -> Arc<RedisServer> {
    static SERVER: Mutex<Weak<RedisServer>> = Mutex::new(Weak::new());
    let mut shared = SERVER.lock().unwrap();
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(RedisServer::start().unwrap());
        *shared = Arc::downgrade(&server);
        server
    })
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
