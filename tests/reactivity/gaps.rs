//! What a pod may have missed counts as invalidated.

use crate::Runs;
use crate::bed::{Bed, PATIENCE, eventually, soon};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use tidings::testing::{Direction, Fault, Proxy};
use tidings::{Cache, Entity, StoreState};
use tokio::time::{Instant, sleep, timeout};

async fn a_store_that_lost_its_log_fires_everything(bed: Bed) {
    let pod = bed.pod().await;
    let (row, name, other) = (Runs::default(), Runs::default(), Runs::default());
    let _kept = (
        row.on(&pod, ["user:42"]),
        name.on(&pod, ["user"]),
        other.on(&pod, ["org:7"]),
    );
    bed.empty();
    for runs in [&row, &name, &other] {
        runs.reach(1).await;
    }
}

fn records(cache: &Cache, source: &Arc<Vec<AtomicU64>>) -> Entity<u64, u64, Infallible> {
    let source = Arc::clone(source);
    let load = move |key: u64| {
        let source = Arc::clone(&source);
        async move { Ok(source[key as usize].load(SeqCst)) }
    };
    cache.entity("record", load).build().unwrap()
}

/// A pod reads eight records in a stream, over connections that are cut five times a second, while
/// another changes them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_connections_are_cut_all_the_time_ends_up_with_the_source() {
    const RECORDS: u64 = 8;
    let bed = Bed::redis_alone();
    let proxy = Proxy::start(bed.server().addr()).unwrap();
    let (writer, reader) = (bed.pod().await, bed.pod_behind(&proxy).await);
    let source: Arc<Vec<_>> = Arc::new((0..RECORDS).map(|_| AtomicU64::new(0)).collect());
    let (written, read) = (records(&writer, &source), records(&reader, &source));
    let sum = |records: Entity<u64, u64, Infallible>| async move {
        let mut sum = 0;
        for key in 0..RECORDS {
            sum += *records.get(&key).await.unwrap();
        }
        sum
    };
    let mut stream = reader.reactivity().stream(["record"], || sum(read.clone()));
    // Nobody ever reads this one, so it never runs.
    let unread = Runs::default();
    let _unread = reader.reactivity().stream(["record"], || async {
        unread.more();
    });

    let until = Instant::now() + Duration::from_secs(10);
    let cutting = async {
        while Instant::now() < until {
            sleep(Duration::from_millis(200)).await;
            proxy.cut_all();
        }
    };
    let changing = async {
        let mut key = 0;
        while Instant::now() < until {
            source[key as usize].fetch_add(1, SeqCst);
            written.invalidate(&key).await.unwrap();
            key = (key + 1) % RECORDS;
            sleep(Duration::from_millis(3)).await;
        }
    };
    let mut last = None;
    let reading = async {
        while Instant::now() < until {
            if let Ok(outcome) = timeout(Duration::from_millis(100), stream.next()).await {
                last = outcome;
            }
        }
    };
    tokio::join!(cutting, changing, reading);

    let newest: u64 = source.iter().map(|record| record.load(SeqCst)).sum();
    assert!(
        newest > 100,
        "{newest} changes are too few to show anything"
    );
    let settled = async {
        while last != Some(newest) {
            last = stream.next().await;
        }
    };
    let settled = timeout(PATIENCE, settled).await;
    assert!(settled.is_ok(), "{last:?} is not {newest}");
    assert_eq!(unread.count(), 0);
    let links = reader.health().links;
    assert!(
        links > 5,
        "{links} links in ten seconds are too few to show anything"
    );
    soon("close", reader.close()).await;
}

/// As long as the log reaches back, nothing was missed: what happened meanwhile fires, the rest does
/// not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_was_cut_off_fires_what_it_missed_and_nothing_else() {
    let bed = Bed::redis_alone();
    let proxy = Proxy::start(bed.server().addr()).unwrap();
    let (writer, reader) = (bed.pod().await, bed.pod_behind(&proxy).await);
    let (changed, unchanged) = (Runs::default(), Runs::default());
    let _kept = (
        changed.on(&reader, ["record:1"]),
        unchanged.on(&reader, ["record:2"]),
    );
    proxy.set(Fault::Blackhole {
        direction: Direction::Both,
    });
    let down = async || !matches!(reader.health().store, StoreState::Up);
    eventually("the link is down", down).await;
    writer.invalidate(["record:1"]).await.unwrap();
    assert_eq!(changed.count(), 0);
    proxy.set(Fault::None);
    changed.reach(1).await;
    assert_eq!((changed.count(), unchanged.count()), (1, 0));
}

mod memory {
    use super::Bed;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_store_that_lost_its_log_fires_everything() {
        super::a_store_that_lost_its_log_fires_everything(Bed::memory()).await;
    }
}

mod redis {
    use super::Bed;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_store_that_lost_its_log_fires_everything() {
        super::a_store_that_lost_its_log_fires_everything(Bed::redis_alone()).await;
    }
}
