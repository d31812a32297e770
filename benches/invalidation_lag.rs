//! How long another pod's local level keeps what was invalidated: from the start of
//! `a.invalidate(&key)` until `b.peek(&key)` gives nothing any more, against a bare `PUBLISH` and its
//! arrival at a bare subscriber.
//!
//! Two caches and the bare connections live in one process and talk to one server. Whoever waits looks
//! and yields in turns, on both sides alike: the bare side's subscriber sets a flag that the waiter
//! looks at. The invalidation also removes the value and logs the call before it publishes.
//!
//! `cargo bench --bench invalidation_lag` takes some seconds and starts a Redis server; it is skipped
//! where there is none.

#[expect(dead_code, reason = "each bench uses a part")]
mod common;

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use common::{Ratio, judge, key, median, rotated};
use redis::aio::MultiplexedConnection;
use tidings::{Cache, Entity};
use tokio::task::yield_now;

const CHANNEL: &str = "bench";
/// As long as a hint: an invalidation of one key.
const MESSAGE: [u8; 48] = [7; 48];
const SIDES: [&str; 3] = ["bare publish", "invalidate, other pod", "invalidate, call"];

fn main() {
    let (rounds, calls) = if common::quick() { (3, 20) } else { (41, 100) };
    let Some(server) = common::server() else {
        return;
    };
    let runtime = common::runtime(2);
    runtime.block_on(async {
        let mut bare = Bare::new(&server.url()).await;
        let pods = Pods::new(&server.url()).await;
        let (mut medians, mut all) = ([const { Vec::new() }; 3], [const { Vec::new() }; 3]);
        for round in 0..=rounds {
            for side in rotated(2, round) {
                let mut lags = Vec::new();
                let mut returned = Vec::new();
                for n in 0..calls {
                    if side == 0 {
                        lags.push(bare.lag().await);
                    } else {
                        let (lag, call) = pods.lag(&key(n)).await;
                        lags.push(lag);
                        returned.push(call);
                    }
                }
                if round > 0 {
                    medians[side].push(median(lags.clone()));
                    all[side].extend(lags);
                    all[2].extend(returned);
                }
            }
        }
        println!("\n{:<24}{:>10}{:>10}", "µs", "p50", "p99");
        for (name, lags) in SIDES.iter().zip(&mut all) {
            lags.sort_by(f64::total_cmp);
            let at = |part: usize| lags[(lags.len() - 1) * part / 100];
            println!("{name:<24}{:>10.0}{:>10.0}", at(50), at(99));
        }
        let ratio = Ratio::of(&medians[1], &medians[0]);
        let met = ratio.median <= 2.0;
        judge("p50, invalidate until gone / publish", &ratio, "≤ 2", met);
    });
}

/// A connection that publishes and one that hears it.
struct Bare {
    publisher: MultiplexedConnection,
    heard: Arc<AtomicUsize>,
    sent: usize,
}

impl Bare {
    async fn new(url: &str) -> Self {
        let client = redis::Client::open(url).expect("an address");
        let publisher = client.get_multiplexed_async_connection().await;
        let mut subscriber = client.get_async_pubsub().await.expect("the server runs");
        subscriber.subscribe(CHANNEL).await.expect("it subscribes");
        let heard = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&heard);
        tokio::spawn(async move {
            let mut messages = subscriber.into_on_message();
            while next(&mut messages).await.is_some() {
                count.fetch_add(1, Ordering::Release);
            }
        });
        Self {
            publisher: publisher.expect("the server runs"),
            heard,
            sent: 0,
        }
    }

    /// Microseconds until the message was heard.
    async fn lag(&mut self) -> f64 {
        self.sent += 1;
        let (heard, sent) = (Arc::clone(&self.heard), self.sent);
        let begin = Instant::now();
        let mut publish = redis::cmd("PUBLISH");
        let publish = publish.arg(CHANNEL).arg(&MESSAGE);
        let (published, lag) = tokio::join!(
            publish.exec_async(&mut self.publisher),
            until(begin, || heard.load(Ordering::Acquire) >= sent),
        );
        published.expect("it is published");
        lag
    }
}

/// Two caches with one entity each.
struct Pods {
    a: Entity<String, u64, Infallible>,
    b: Entity<String, u64, Infallible>,
}

impl Pods {
    async fn new(url: &str) -> Self {
        Self {
            a: entity(url).await,
            b: entity(url).await,
        }
    }

    /// Microseconds until the other pod had dropped the entry, and until the call returned.
    async fn lag(&self, key: &String) -> (f64, f64) {
        self.a.get(key).await.expect("it loads");
        while self.b.peek(key).is_none() {
            self.b.get(key).await.expect("it loads");
        }
        let begin = Instant::now();
        let call = async {
            self.a.invalidate(key).await.expect("the server runs");
            micros_since(begin)
        };
        let gone = until(begin, || self.b.peek(key).is_none());
        let (call, lag) = tokio::join!(call, gone);
        (lag, call)
    }
}

async fn entity(url: &str) -> Entity<String, u64, Infallible> {
    let cache = Cache::builder("bench").store_url(url).build().await;
    let load = |_: String| ready(Ok::<_, Infallible>(7));
    let cache = cache.expect("the server runs");
    let entity = cache.entity("customer", load).build();
    entity.expect("the options are in range")
}

async fn until(begin: Instant, happened: impl Fn() -> bool) -> f64 {
    while !happened() {
        yield_now().await;
    }
    micros_since(begin)
}

fn micros_since(begin: Instant) -> f64 {
    begin.elapsed().as_nanos() as f64 / 1000.0
}

async fn next<S: futures_core::Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    std::future::poll_fn(|cx| std::pin::Pin::new(&mut *stream).poll_next(cx)).await
}
