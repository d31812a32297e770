//! Loaders that read a replica which lags, and what writers say of the version that the source has.

use crate::bed::{Bed, Numbers, Pod, eventually, soon};
use crate::source::{Refused, Source};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tidings::{
    Cache, CacheError, EntityBuilder, InvalidateError, LoadContext, Loaded, Loader, Origin, Stamp,
};
use tokio::task::JoinHandle;

/// An entity whose values are their own versions, read from `replica`.
fn builder(
    cache: &Cache,
    replica: &Source,
) -> EntityBuilder<u64, impl Loader<u64, Value = u64, Error = Refused> + use<>> {
    let replica = replica.clone();
    let load = move |load: LoadContext<u64, u64>| {
        let replica = replica.clone();
        async move {
            let version = replica.ask(*load.key()).await?;
            Ok::<_, Refused>(Loaded::new(version).version(version))
        }
    };
    let entity = cache.entity_with("number", load);
    entity.load_timeout(Duration::from_secs(20))
}

fn versioned(cache: &Cache, replica: &Source) -> Numbers {
    builder(cache, replica).build().unwrap()
}

/// A writer's pod and a reader's, of which the reader has read what was before.
async fn two(bed: &Bed, replica: &Source) -> (Pod, Pod, Numbers, Numbers) {
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (versioned(&a.cache, replica), versioned(&b.cache, replica));
    on_b.get(&1).await.unwrap();
    b.done("fill", 1).await;
    (a, b, on_a, on_b)
}

fn reader(numbers: &Numbers, stamp: &Stamp) -> JoinHandle<u64> {
    let (numbers, stamp) = (numbers.clone(), stamp.clone());
    tokio::spawn(async move { *numbers.get_at_least(&1, &stamp).await.unwrap() })
}

async fn behind(numbers: &Numbers, times: u64) {
    eventually("the source is asked again", async || {
        numbers.stats().loads_behind >= times
    })
    .await;
}

async fn a_load_from_a_replica_that_lags_is_made_again_until_it_does_not(bed: Bed) {
    let replica = Source::new();
    let (_a, b, on_a, on_b) = two(&bed, &replica).await;
    let stamp = on_a.invalidate_at(&1, 2).await.unwrap();
    let read = reader(&on_b, &stamp);
    behind(&on_b, 2).await;
    replica.commit(1, 1); // on the way
    let so_far = on_b.stats().loads_behind;
    behind(&on_b, so_far + 2).await;
    assert!(!read.is_finished());
    assert_eq!(b.wire.done("fill"), 1, "nothing of it is stored");
    assert_eq!(on_b.peek(&1), None);
    replica.commit(1, 2);
    assert_eq!(soon("the read", read).await.unwrap(), 2);
    // And from then on it is a value as any other.
    b.done("fill", 2).await;
    let served = on_a.get_with(&1).await.unwrap();
    assert_eq!((*served.value, served.origin), (2, Origin::Store));
}

async fn whoever_cannot_wait_for_the_replica_gets_an_error_and_nothing_old(bed: Bed) {
    let replica = Source::new();
    let (_a, b, on_a, _) = two(&bed, &replica).await;
    let hasty = builder(&b.cache, &replica).load_timeout(Duration::from_millis(300));
    let hasty = hasty.build().unwrap();
    let stamp = on_a.invalidate_at(&1, 1).await.unwrap();
    let read = hasty.get_at_least(&1, &stamp).await;
    assert!(matches!(read, Err(CacheError::Timeout { .. })), "{read:?}");
    assert_eq!(hasty.peek(&1), None);
    replica.commit(1, 1);
    let served = soon("a later read", async {
        loop {
            match hasty.get(&1).await {
                Ok(value) => break *value,
                Err(CacheError::Timeout { .. }) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(served.await, 1);
}

async fn a_loader_that_is_told_the_version_goes_to_the_primary(bed: Bed) {
    let (primary, replica) = (Source::new(), Source::new());
    let (a, b) = (bed.pod().await, bed.pod().await);
    let entity = |pod: &Pod| {
        let (primary, replica) = (primary.clone(), replica.clone());
        let load = move |load: LoadContext<u64, u64>| {
            let (primary, replica) = (primary.clone(), replica.clone());
            async move {
                let mut version = replica.ask(*load.key()).await?;
                if Some(version) < load.minimum_version() {
                    version = primary.ask(*load.key()).await?;
                }
                Ok::<_, Refused>(Loaded::new(version).version(version))
            }
        };
        pod.cache.entity_with("number", load).build().unwrap()
    };
    let (on_a, on_b) = (entity(&a), entity(&b));
    on_b.get(&1).await.unwrap();
    primary.commit(1, 3);
    let stamp = on_a.invalidate_at(&1, 3).await.unwrap();
    assert_eq!(*on_b.get_at_least(&1, &stamp).await.unwrap(), 3);
    assert_eq!((primary.loads(), on_b.stats().loads_behind), (1, 0));
}

/// 1. The load begins. 2. The version is said. 3. The load ends: its lease is gone, whatever it read.
async fn a_load_that_began_before_the_version_was_said_is_not_stored(bed: Bed) {
    let replica = Source::new();
    let (_a, b, on_a, on_b) = two(&bed, &replica).await;
    on_a.invalidate(&1).await.unwrap();
    eventually("the old value is gone", async || on_b.peek(&1).is_none()).await;
    replica.hold();
    let load = {
        let on_b = on_b.clone();
        tokio::spawn(async move { *on_b.get(&1).await.unwrap() })
    };
    eventually("it loads", async || replica.running() == 1).await;
    let heard = b.cache.health().hints;
    let stamp = on_a.invalidate_at(&1, 1).await.unwrap();
    eventually("the hint", async || b.cache.health().hints > heard).await;
    replica.let_go();
    assert_eq!(soon("who asked before", load).await.unwrap(), 0);
    let read = reader(&on_b, &stamp);
    behind(&on_b, 1).await;
    replica.commit(1, 1);
    assert_eq!(soon("the read", read).await.unwrap(), 1);
}

/// A pool of replicas: the value came from one that had caught up, its refresh goes to one that has not.
async fn a_refresh_from_a_replica_that_lags_replaces_nothing(bed: Bed) {
    let replica = Source::new();
    let (_a, b, on_a, on_b) = two(&bed, &replica).await;
    replica.commit(1, 1);
    let stamp = on_a.invalidate_at(&1, 1).await.unwrap();
    assert_eq!(*on_b.get_at_least(&1, &stamp).await.unwrap(), 1);
    b.done("fill", 2).await;
    replica.commit(1, 0); // another replica
    let refresh = {
        let on_b = on_b.clone();
        tokio::spawn(async move { on_b.refresh(&1).await.map(|value| *value) })
    };
    behind(&on_b, 1).await;
    for numbers in [&on_a, &on_b] {
        assert_eq!(*numbers.get(&1).await.unwrap(), 1);
        assert_eq!(*numbers.get_strict(&1).await.unwrap(), 1);
    }
    replica.commit(1, 2);
    assert_eq!(soon("the refresh", refresh).await.unwrap().unwrap(), 2);
}

async fn versions_that_are_said_late_or_twice_do_no_harm(bed: Bed) {
    let replica = Source::new();
    let (_a, _b, on_a, on_b) = two(&bed, &replica).await;
    replica.commit(1, 3);
    on_b.invalidate_at(&1, 3).await.unwrap();
    on_a.invalidate_at(&1, 2).await.unwrap();
    let stamp = on_a.invalidate_at(&1, 2).await.unwrap();
    replica.commit(1, 2);
    let read = reader(&on_b, &stamp);
    behind(&on_b, 1).await; // for the highest counts
    replica.commit(1, 3);
    assert_eq!(soon("the read", read).await.unwrap(), 3);
}

async fn what_states_no_version_is_not_stored_while_one_is_asked_for(bed: Bed) {
    let replica = Source::new();
    let (_a, b, on_a, _) = two(&bed, &replica).await;
    let silent = b.numbers(&replica); // of the same keys
    let stamp = on_a.invalidate_at(&1, 1).await.unwrap();
    assert_eq!(*silent.get_at_least(&1, &stamp).await.unwrap(), 0);
    let once = silent.get_or_load(&2, || async { Ok(7) }).await;
    assert_eq!(*once.unwrap(), 7, "other keys are as ever");
    replica.commit(1, 1);
    eventually("the new value is read", async || {
        *silent.get(&1).await.unwrap() == 1
    })
    .await;
    let served = on_a.get_with(&1).await.unwrap();
    assert_eq!(served.origin, Origin::Loader, "none was stored");
}

async fn keys_that_are_read_together_are_held_each_to_its_version(bed: Bed) {
    let replica = Source::new();
    let (_a, b, on_a, _) = two(&bed, &replica).await;
    let batches = replica.clone();
    let load_many = move |keys: Vec<u64>| {
        let batches = batches.clone();
        async move { Ok::<_, Refused>(batches.ask_many(keys).await) }
    };
    let both = builder(&b.cache, &replica).loader_many(load_many);
    let both = both.build().unwrap();
    on_a.invalidate_at(&1, 5).await.unwrap();
    let stamp = on_a.invalidate(&2).await.unwrap();
    both.get_at_least(&2, &stamp).await.unwrap();
    let read = {
        let both = both.clone();
        tokio::spawn(async move { both.get_many(&[1, 2, 3]).await })
    };
    behind(&both, 1).await;
    replica.commit(1, 5);
    let read = soon("the read", read).await.unwrap();
    let read: Vec<_> = read.into_iter().map(|value| *value.unwrap()).collect();
    assert_eq!(read, [5, 0, 0]);
    let batched = replica.batches().concat();
    assert!(!batched.contains(&1), "{batched:?}");
}

async fn what_is_repeated_says_the_version_again(bed: Bed) {
    let replica = Source::new();
    let (a, _b, on_a, on_b) = two(&bed, &replica).await;
    a.wire.cut(true);
    let pending = match soon("the call", on_a.invalidate_at(&1, 1)).await {
        Err(InvalidateError::Pending(pending)) => pending,
        other => panic!("{other:?}"),
    };
    a.wire.cut(false);
    let stamp = soon("the invalidation", pending.settled()).await.unwrap();
    let read = reader(&on_b, &stamp);
    behind(&on_b, 1).await;
    replica.commit(1, 1);
    assert_eq!(soon("the read", read).await.unwrap(), 1);
}

async fn without_the_store_a_pod_holds_loads_to_the_versions_that_it_knows(bed: Bed) {
    let replica = Source::new();
    let (a, _b, on_a, _) = two(&bed, &replica).await;
    on_a.invalidate_at(&1, 1).await.unwrap();
    a.wire.cut(true);
    let read = {
        let on_a = on_a.clone();
        tokio::spawn(async move { *on_a.get(&1).await.unwrap() })
    };
    behind(&on_a, 1).await;
    replica.commit(1, 1);
    assert_eq!(soon("the read", read).await.unwrap(), 1);
}

/// What the store lost it does not tell any more: then an old value can be stored. A pod that knows the
/// version takes no such value, and puts another in its place.
async fn a_version_that_the_store_lost_is_kept_by_the_pods_that_know_it(bed: Bed) {
    let replica = Source::new();
    let (_a, b, on_a, on_b) = two(&bed, &replica).await;
    let stamp = on_a.invalidate_at(&1, 1).await.unwrap();
    bed.evict_markers();
    let unaware = *on_b.get_at_least(&1, &stamp).await.unwrap();
    assert_eq!(unaware, 0, "nobody told it");
    b.done("fill", 2).await;
    replica.commit(1, 1);
    assert_eq!(*on_a.get(&1).await.unwrap(), 1);
}

on_both_stores!(
    a_load_from_a_replica_that_lags_is_made_again_until_it_does_not,
    whoever_cannot_wait_for_the_replica_gets_an_error_and_nothing_old,
    a_loader_that_is_told_the_version_goes_to_the_primary,
    a_load_that_began_before_the_version_was_said_is_not_stored,
    a_refresh_from_a_replica_that_lags_replaces_nothing,
    versions_that_are_said_late_or_twice_do_no_harm,
    what_states_no_version_is_not_stored_while_one_is_asked_for,
    keys_that_are_read_together_are_held_each_to_its_version,
    what_is_repeated_says_the_version_again,
    without_the_store_a_pod_holds_loads_to_the_versions_that_it_knows,
    a_version_that_the_store_lost_is_kept_by_the_pods_that_know_it,
);

/// How far the replica is behind. `TIDINGS_LAG_MS` for another one.
fn lag() -> Duration {
    let lag = std::env::var("TIDINGS_LAG_MS").ok();
    Duration::from_millis(lag.and_then(|lag| lag.parse().ok()).unwrap_or(2000))
}

/// A database whose replica shows each commit only after its lag, and what was acknowledged of it.
#[derive(Clone, Default)]
struct Lagging {
    commits: Arc<Mutex<Vec<(Instant, u64)>>>,
    acknowledged: Arc<Mutex<Vec<(Instant, u64)>>>,
}

fn newest_at(history: &Mutex<Vec<(Instant, u64)>>, then: Option<Instant>) -> u64 {
    let history = history.lock().unwrap();
    let seen = history.iter().filter(|(at, _)| Some(*at) <= then);
    seen.map(|(_, version)| *version).max().unwrap_or(0)
}

impl Lagging {
    fn commit(&self, version: u64) {
        self.commits.lock().unwrap().push((Instant::now(), version));
    }

    fn acknowledge(&self, version: u64) {
        let mut acknowledged = self.acknowledged.lock().unwrap();
        acknowledged.push((Instant::now(), version));
    }

    fn replica(&self) -> u64 {
        newest_at(&self.commits, Instant::now().checked_sub(lag()))
    }

    fn entity(&self, pod: &Pod, hold_off: Duration) -> Numbers {
        let this = self.clone();
        let load = move |_: LoadContext<u64, u64>| {
            let version = this.replica();
            async move { Ok::<_, Refused>(Loaded::new(version).version(version)) }
        };
        let entity = pod.cache.entity_with("number", load).hold_off(hold_off);
        entity.load_timeout(lag() * 5).build().unwrap()
    }

    /// Reads until the newest version has been there for a while; gives how many reads were older than
    /// what had been acknowledged `bound` before they began, and the last one.
    async fn read(self, numbers: Numbers, bound: Duration, last: u64) -> (usize, u64) {
        let (mut stale, mut got) = (0, 0);
        loop {
            let began = Instant::now();
            let over = newest_at(&self.acknowledged, began.checked_sub(bound + lag())) == last;
            let floor = newest_at(&self.acknowledged, began.checked_sub(bound));
            got = *numbers
                .get(&1)
                .await
                .unwrap_or_else(|error| panic!("{got}: {error:?}"));
            stale += usize::from(got < floor);
            if over {
                return (stale, got);
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Against {
    Nothing,
    Versions,
    HoldOff,
}

/// A writer on one pod, readers on two others; gives the stale reads, and what the readers end with.
async fn read_a_lagging_replica(bed: Bed, against: Against) -> (usize, Vec<u64>) {
    const WRITES: u64 = 3;
    let database = Lagging::default();
    let hold_off = match against {
        Against::HoldOff => lag() + Duration::from_millis(500),
        _ => Duration::ZERO,
    };
    let bound = Duration::from_millis(1008) + hold_off;
    let pods = [bed.pod().await, bed.pod().await, bed.pod().await];
    let [writer, readers @ ..] = pods.each_ref().map(|pod| database.entity(pod, hold_off));
    let reads = readers.map(|numbers| tokio::spawn(database.clone().read(numbers, bound, WRITES)));
    for version in 1..=WRITES {
        tokio::time::sleep(lag() / 4).await; // the readers have the version before
        database.commit(version);
        let said = match against {
            Against::Versions => writer.invalidate_at(&1, version).await,
            _ => writer.invalidate(&1).await,
        };
        said.unwrap();
        database.acknowledge(version);
    }
    let (mut stale, mut last) = (0, Vec::new());
    for read in reads {
        let (some, got) = soon("the reads", read).await.unwrap();
        stale += some;
        last.push(got);
    }
    (stale, last)
}

mod a_replica_that_lags {
    use super::*;

    async fn gives_no_stale_read_with_versions(bed: Bed) {
        let read = read_a_lagging_replica(bed, Against::Versions).await;
        assert_eq!(read, (0, vec![3, 3]));
    }

    async fn gives_no_stale_read_after_a_hold_off(bed: Bed) {
        let read = read_a_lagging_replica(bed, Against::HoldOff).await;
        assert_eq!(read, (0, vec![3, 3]));
    }

    /// What the two above are for.
    async fn gives_stale_reads_for_as_long_as_they_live_without(bed: Bed) {
        let (stale, last) = read_a_lagging_replica(bed, Against::Nothing).await;
        assert!(
            stale > 0 && last.iter().any(|last| *last < 3),
            "{stale} {last:?}"
        );
    }

    on_both_stores!(
        gives_no_stale_read_with_versions,
        gives_no_stale_read_after_a_hold_off,
        gives_stale_reads_for_as_long_as_they_live_without,
    );
}
