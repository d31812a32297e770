//! One pod: reads every record in a loop, and reports what it saw on standard output.

use super::source::{ask, now_us};
use super::{RECORDS, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tidings::{Cache, Entity, InvalidateError, Origin};
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, interval, sleep};

/// Where the source listens.
pub(crate) const SOURCE_VARIABLE: &str = "TIDINGS_EXAMPLE_SOURCE";
/// Where the pod is to show its metrics, if it is to: a port of loopback.
pub(crate) const METRICS_VARIABLE: &str = "TIDINGS_EXAMPLE_METRICS";
/// The bounds of histograms, in seconds: a round trip is a fraction of a millisecond, a load may take
/// seconds.
#[cfg(feature = "metrics")]
const BUCKETS: [f64; 12] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.25, 1.0, 5.0,
];

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u64,
    committed_us: u64,
}

/// Keys carry the run, so that what an earlier run left in your Redis is not read.
type Records = Entity<(String, u64), Record, std::io::Error>;

#[derive(Default)]
struct Seen {
    /// By record and version: when the newest read that gave it was asked. New ones only.
    newest: BTreeMap<(u64, u64), u64>,
    version: BTreeMap<u64, u64>,
    origins: [u64; 3],
    /// Microseconds from commit to the first read here that gave it.
    lags_us: Vec<u64>,
}

/// Runs until standard input ends.
pub(crate) async fn run(index: usize) -> Result<()> {
    let source = std::env::var(SOURCE_VARIABLE)?;
    if let Ok(port) = std::env::var(METRICS_VARIABLE) {
        show_metrics(port.parse()?)?;
    }
    let cache = Cache::builder("tidings-example").build().await?;
    let load_from = source.clone();
    let records: Records = cache
        .entity("record", move |(_, key): (String, u64)| {
            let source = load_from.clone();
            async move {
                let (version, committed_us) = ask(&source, "get", key).await?;
                Ok(Record {
                    version,
                    committed_us,
                })
            }
        })
        .ttl(Duration::from_secs(60))
        .build()?;
    println!("bound {}", cache.health().bound.as_micros());
    if index == 0 {
        tokio::spawn(write(records.clone(), source.clone()));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    tokio::spawn(async move {
        // However it ends: there is nobody left to report to.
        let _ = tokio::io::stdin().read(&mut [0]).await;
        stopped.store(true, Ordering::SeqCst);
    });
    read(&cache, &records, &source, &stop).await?;
    cache.close().await;
    Ok(())
}

/// Shows what is measured to whoever asks on this port: a Prometheus.
#[cfg(feature = "metrics")]
fn show_metrics(port: u16) -> Result<()> {
    metrics_exporter_prometheus::PrometheusBuilder::new()
        .with_recommended_naming(true)
        .set_buckets(&BUCKETS)?
        .with_http_listener(([127, 0, 0, 1], port))
        .install()?;
    Ok(())
}

#[cfg(not(feature = "metrics"))]
fn show_metrics(_port: u16) -> Result<()> {
    Err("metrics need `--features metrics`".into())
}

/// Computed once per record, on each pod for itself.
async fn describe(record: u64) -> Result<String, Infallible> {
    Ok(format!("the record number {record}"))
}

async fn read(cache: &Cache, records: &Records, source: &str, stop: &AtomicBool) -> Result<()> {
    let mut seen = Seen::default();
    let descriptions = cache.memo("description", describe).build()?;
    let mut report = Instant::now();
    while !stop.load(Ordering::SeqCst) {
        for key in 0..RECORDS {
            descriptions.get(&key).await?;
            let asked = now_us();
            let served = records.get_with(&(source.to_owned(), key)).await?;
            let Record {
                version,
                committed_us,
            } = *served.value;
            seen.newest.insert((key, version), asked);
            seen.origins[match served.origin {
                Origin::Local => 0,
                Origin::Store => 1,
                Origin::Loader => 2,
            }] += 1;
            let newest = seen.version.entry(key).or_insert(version);
            if version > *newest {
                *newest = version;
                seen.lags_us.push(now_us().saturating_sub(committed_us));
            }
        }
        if report.elapsed() >= Duration::from_millis(100) {
            report = Instant::now();
            seen.report(cache);
        }
        sleep(Duration::from_millis(1)).await;
    }
    seen.report(cache);
    Ok(())
}

impl Seen {
    fn report(&mut self, cache: &Cache) {
        for ((key, version), asked) in std::mem::take(&mut self.newest) {
            println!("read {key} {version} {asked}");
        }
        for lag in self.lags_us.drain(..) {
            println!("lag {lag}");
        }
        let [local, store, loader] = std::mem::take(&mut self.origins);
        let health = cache.health();
        println!("origins {local} {store} {loader} {}", health.live_lanes);
    }
}

/// Commits, then invalidates, record after record; reports when each was acknowledged.
async fn write(records: Records, source: String) {
    let mut pace = interval(Duration::from_millis(20));
    for key in (0..RECORDS).cycle() {
        pace.tick().await;
        let Ok((version, _)) = ask(&source, "commit", key).await else {
            continue;
        };
        let acknowledged = move |version| println!("acked {key} {version} {}", now_us());
        match records.invalidate(&(source.clone(), key)).await {
            Ok(_) => acknowledged(version),
            Err(InvalidateError::Pending(pending)) => {
                // The store is away. The invalidation is repeated until it has been taken.
                tokio::spawn(async move {
                    if pending.settled().await.is_ok() {
                        acknowledged(version);
                    }
                });
            }
            Err(_) => return,
        }
    }
}
