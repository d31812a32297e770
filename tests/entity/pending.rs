//! Invalidations that the store has not acknowledged: how many are kept, how they are repeated, and what
//! a journal keeps of them.

use crate::bed::{Bed, Numbers, Pod, eventually, pending, soon};
use crate::source::Source;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use tidings::{Cache, InvalidateError, JournalDamage, OnStoreAbsent, Origin};

/// Values of version 0 in the store and in the other pod's memory, then version 1 in the source.
async fn fill_then_change(numbers: &Numbers, source: &Source, keys: u64) {
    let keys: Vec<u64> = (0..keys).collect();
    for got in numbers.get_many(&keys).await {
        assert_eq!(*got.unwrap(), 0);
    }
    eventually("they are stored", async || {
        numbers.local().clear();
        let served = numbers.get_with(&keys[keys.len() - 1]).await.unwrap();
        served.origin == Origin::Store
    })
    .await;
    keys.iter().for_each(|&key| source.commit(key, 1));
}

/// Calls that are made for the first time count as well, for as long as that takes.
async fn few_are_pending(pod: &Pod) {
    eventually("no more than may be", async || {
        pod.cache.health().pending <= 64
    })
    .await;
}

/// More keys are invalidated than may be pending: what is kept is coarser, and misses none of them.
async fn at_the_bound_no_invalidation_is_lost(bed: Bed) {
    const KEYS: u64 = 600;
    let source = Source::new();
    let a = bed.pod_with(|builder| builder.max_pending(64)).await;
    let b = bed.pod().await;
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    fill_then_change(&on_b, &source, KEYS).await;
    a.wire.cut(true);
    a.is_down().await;
    let mut waiting = Vec::new();
    for first in (0..KEYS).step_by(10) {
        waiting.push(pending(&on_a, first..first + 10).await);
        few_are_pending(&a).await;
    }
    assert_ne!(a.cache.health().merged_pending, 0);
    assert_eq!(*on_a.get(&(KEYS - 1)).await.unwrap(), 1, "here at once");
    a.wire.cut(false);
    for waiting in waiting {
        soon("each of them", waiting.settled()).await.unwrap();
    }
    assert_eq!(a.cache.health().pending, 0);
    for key in 0..KEYS {
        eventually("the other pod follows", async || {
            *on_b.get(&key).await.unwrap() == 1
        })
        .await;
    }
}

/// Nothing but names of their own, so that no entity has two keys to merge: what is left is the lane.
async fn names_without_number_end_as_lanes(bed: Bed) {
    let source = Source::new();
    let a = bed.pod_with(|builder| builder.max_pending(64)).await;
    let b = bed.pod().await;
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    fill_then_change(&on_b, &source, 50).await;
    a.wire.cut(true);
    a.is_down().await;
    let first = pending(&on_a, 0..50).await;
    for page in 0..100 {
        let names = [format!("page-{page}")];
        let called = soon("the call", a.cache.invalidate(names)).await;
        assert!(matches!(called, Err(InvalidateError::Pending(_))));
        few_are_pending(&a).await;
    }
    a.wire.cut(false);
    soon("the first", first.settled()).await.unwrap();
    eventually("all of them", async || a.cache.health().pending == 0).await;
    for key in 0..50 {
        eventually("the other pod follows", async || {
            *on_b.get(&key).await.unwrap() == 1
        })
        .await;
        assert_eq!(*on_a.get(&key).await.unwrap(), 1);
    }
    on_a.invalidate(&1).await.unwrap();
}

/// One that the store does not answer holds up no other.
async fn each_is_repeated_on_its_own(bed: Bed) {
    let source = Source::new();
    let limit = std::time::Duration::from_millis(300);
    let a = bed
        .pod_with(|builder| builder.invalidate_timeout(limit))
        .await;
    let b = bed.pod().await;
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    fill_then_change(&on_b, &source, 100).await;
    let stamp = on_a.invalidate(&100).await.unwrap();
    let (lane, _) = stamp.positions().next().unwrap();
    a.wire.cut(true);
    a.is_down().await;
    let stuck = pending(&on_a, [100]).await;
    let mut others = Vec::new();
    for key in 0..100 {
        others.push(pending(&on_a, [key]).await);
    }
    a.wire.stick(lane);
    a.wire.cut(false);
    eventually("the others are acknowledged", async || {
        // Those of the same lane are stuck as well.
        a.cache.health().pending <= 25
    })
    .await;
    let mut settled = Box::pin(stuck.settled());
    crate::bed::poll_once(&mut settled).await;
    a.wire.heal();
    soon("the stuck one", settled).await.unwrap();
    for other in others {
        soon("the others", other.settled()).await.unwrap();
    }
}

/// A folder of the test's own, removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tidings-pending-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn journal(&self) -> PathBuf {
        self.0.join("journal")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What is told to be pending is in the file by then: a copy of it, as of that moment, is what a process
/// that is killed leaves behind.
async fn what_a_process_leaves_in_its_journal_is_repeated_by_the_next(bed: Bed) {
    let (folder, source) = (Folder::new(), Source::new());
    let b = bed.pod().await;
    let on_b = b.numbers(&source);
    fill_then_change(&on_b, &source, 4).await;
    let killed = folder.0.join("killed");
    {
        let a = bed.pod_with(|it| it.journal(folder.journal())).await;
        let on_a = a.numbers(&source);
        a.wire.cut(true);
        a.is_down().await;
        pending(&on_a, [1, 2]).await;
        pending(&on_a, [2]).await;
        let health = a.cache.health().journal.unwrap();
        assert_eq!((health.held, health.replayed, health.failures), (2, 0, 0));
        std::fs::copy(folder.journal(), &killed).unwrap();
    }
    assert_eq!(*on_b.get(&1).await.unwrap(), 0);
    // The next one starts without the store, too.
    let wire = crate::wire::Wire::new(std::sync::Arc::clone(&bed.store));
    wire.cut(true);
    let builder = Cache::builder(&*bed.namespace).store(wire.clone());
    let builder = builder.on_store_absent(OnStoreAbsent::StartDegraded);
    let cache = builder.journal(&killed).build().await.unwrap();
    let next = Pod { cache, wire };
    assert_eq!(next.cache.health().pending, 2);
    next.wire.cut(false);
    eventually("both are acknowledged", async || {
        next.cache.health().pending == 0
    })
    .await;
    for key in 0..4 {
        let expected = u64::from(key == 1 || key == 2);
        eventually("the other pod follows", async || {
            *on_b.get(&key).await.unwrap() == expected
        })
        .await;
    }
    eventually("the journal is empty", async || {
        let journal = next.cache.health().journal.unwrap();
        (journal.held, journal.replayed, journal.damage) == (0, 2, None)
    })
    .await;
    drop(next);
}

/// An invalidation that is acknowledged at once leaves no trace, and close leaves what it could not do.
async fn a_journal_is_written_only_in_trouble(bed: Bed) {
    let (folder, source) = (Folder::new(), Source::new());
    let pod = bed.pod_with(|it| it.journal(folder.journal())).await;
    let numbers = pod.numbers(&source);
    let empty = std::fs::read(folder.journal()).unwrap();
    for key in 0..100 {
        numbers.invalidate(&key).await.unwrap();
    }
    pod.wire.hang("invalidate");
    let mut slow = Box::pin(numbers.invalidate(&1));
    crate::bed::poll_once(&mut slow).await;
    eventually("the slow one is on file", async || {
        let journal = pod.cache.health().journal.unwrap();
        journal.held == 1 && journal.bytes > empty.len() as u64
    })
    .await;
    pod.wire.heal();
    soon("the slow one", slow).await.unwrap();
    eventually("it is taken out", async || {
        std::fs::read(folder.journal()).unwrap() == empty
    })
    .await;
    pod.wire.cut(true);
    pod.is_down().await;
    numbers.clear().await.unwrap_err();
    let report = soon("closing", pod.cache.close()).await;
    assert_eq!(report.unacknowledged.len(), 16);
    // Closed, it is free, though handles are left.
    let next = bed.pod_with(|it| it.journal(folder.journal())).await;
    assert_eq!(next.cache.health().journal.unwrap().replayed, 16);
    eventually("all is told", async || next.cache.health().pending == 0).await;
}

#[tokio::test]
async fn a_journal_that_cannot_be_used_fails_the_build() {
    let (bed, folder) = (Bed::memory(), Folder::new());
    let pod = bed.pod_with(|it| it.journal(folder.journal())).await;
    let build = async |namespace: &str| {
        let builder = Cache::builder(namespace).store_url("memory:journals");
        let error = builder.journal(folder.journal()).build().await.unwrap_err();
        assert_eq!(error.option(), "journal");
        error.to_string()
    };
    assert!(build(&bed.namespace).await.contains("in use"));
    soon("closing", pod.cache.close()).await;
    assert!(build("another").await.contains("another namespace"));
    std::fs::write(folder.journal(), "notes").unwrap();
    assert!(build(&bed.namespace).await.contains("not a journal"));
}

/// A build that fails for another reason leaves the journal free.
#[tokio::test]
async fn a_build_that_failed_can_be_tried_again() {
    let (folder, store) = (Folder::new(), tidings::store::Memory::new());
    let builder = || {
        let builder = Cache::builder("again").store(store.clone());
        builder.journal(folder.journal())
    };
    store.faults().set_down(true);
    for _ in 0..3 {
        let error = builder().build().await.unwrap_err();
        assert_eq!(error.option(), "store");
    }
    store.faults().set_down(false);
    builder().build().await.unwrap();
}

async fn a_corrupt_journal_voids_everything_and_a_torn_one_nothing(bed: Bed) {
    let (folder, source) = (Folder::new(), Source::new());
    let b = bed.pod().await;
    let on_b = b.numbers(&source);
    fill_then_change(&on_b, &source, 20).await;
    let a = bed.pod_with(|it| it.journal(folder.journal())).await;
    a.wire.cut(true);
    a.is_down().await;
    pending(&a.numbers(&source), [1, 2]).await;
    let whole = std::fs::read(folder.journal()).unwrap();
    soon("closing", a.cache.close()).await;

    std::fs::write(folder.journal(), &whole[..whole.len() - 3]).unwrap();
    let torn = bed.pod_with(|it| it.journal(folder.journal())).await;
    let journal = torn.cache.health().journal.unwrap();
    assert!(matches!(journal.damage, Some(JournalDamage::Torn { .. })));
    assert_eq!(journal.replayed, 1);
    eventually("it is told", async || torn.cache.health().pending == 0).await;
    assert_eq!(*on_b.get(&5).await.unwrap(), 0);
    soon("closing", torn.cache.close()).await;

    let mut corrupt = whole.clone();
    let last = corrupt.len() - 1;
    corrupt[last] ^= 1;
    std::fs::write(folder.journal(), &corrupt).unwrap();
    let next = bed.pod_with(|it| it.journal(folder.journal())).await;
    let journal = next.cache.health().journal.unwrap();
    assert!(matches!(
        journal.damage,
        Some(JournalDamage::Corrupt { .. })
    ));
    eventually("it is told", async || next.cache.health().pending == 0).await;
    for key in 0..20 {
        eventually("everybody loads anew", async || {
            *on_b.get(&key).await.unwrap() == 1
        })
        .await;
    }
}

on_both_stores!(
    at_the_bound_no_invalidation_is_lost,
    names_without_number_end_as_lanes,
    each_is_repeated_on_its_own,
    what_a_process_leaves_in_its_journal_is_repeated_by_the_next,
    a_journal_is_written_only_in_trouble,
    a_corrupt_journal_voids_everything_and_a_torn_one_nothing,
);
