//! Writing under a guard: from before the commit until after the invalidation, whoever lives to see it.

use crate::bed::{Bed, Numbers, Pod, eventually, poll_once, soon};
use crate::lab::{Lab, MS, SECOND};
use crate::source::Source;
use std::mem::forget;
use std::pin::pin;
use std::time::Duration;
use tidings::error::StoreErrorKind;
use tidings::{BeginWriteError, Finished, MAX_GUARD_TTL, ReadOptions};
use tokio::task::JoinHandle;

const MINUTE: Duration = Duration::from_secs(60);
/// Beyond the bound.
const OVER: Duration = Duration::from_millis(1010);

fn reader(numbers: &Numbers, key: u64) -> JoinHandle<u64> {
    let numbers = numbers.clone();
    tokio::spawn(async move { *numbers.get(&key).await.unwrap() })
}

/// Two pods, and an entity on each.
async fn two(bed: &Bed, source: &Source) -> (Pod, Pod, Numbers, Numbers) {
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(source), b.numbers(source));
    (a, b, on_a, on_b)
}

/// 1. A writer begins. 2. A reader loads the old value. 3. The writer commits. 4. Nobody ever says so.
async fn what_is_loaded_under_a_guard_is_not_stored(bed: Bed) {
    let source = Source::new();
    let (_a, b, on_a, on_b) = two(&bed, &source).await;
    on_b.get(&1).await.unwrap();
    b.done("fill", 1).await;
    let guard = on_a.begin_write(&1).await.unwrap();
    on_b.get_at_least(&1, guard.stamp()).await.unwrap();
    assert_eq!(source.loads(), 2, "the copies are gone");
    let place = b.wire.last_place();
    source.commit(1, 1);
    forget(guard); // the writer dies
    eventually("the new value is read", async || {
        *on_b.get(&1).await.unwrap() == 1
    })
    .await;
    assert_eq!(b.wire.done("fill"), 1, "no other was even tried");
    assert_eq!(bed.hand().await.look(&place).await, None);
    assert_eq!(*on_a.get(&1).await.unwrap(), 1);
}

async fn a_finished_guard_leaves_a_key_as_any_other(bed: Bed) {
    let source = Source::new();
    let (_a, b, on_a, on_b) = two(&bed, &source).await;
    let guard = on_a.begin_write(&1).await.unwrap();
    assert_eq!(*on_b.get(&1).await.unwrap(), 0);
    source.commit(1, 1);
    let finished = guard.finish().await.unwrap();
    assert!(matches!(finished, Finished::Held(_)), "{finished:?}");
    assert_eq!(*on_a.get(&1).await.unwrap(), 1, "at once on this pod");
    assert_eq!(*on_b.get_at_least(&1, finished.stamp()).await.unwrap(), 1);
    eventually("it is stored", async || {
        bed.hand().await.look(&b.wire.last_place()).await.is_some()
    })
    .await;
    assert_eq!(on_b.peek(&1).as_deref(), Some(&1));
}

async fn a_load_that_began_before_the_guard_is_kept_nowhere(bed: Bed) {
    let source = Source::new();
    let (_a, b, on_a, on_b) = two(&bed, &source).await;
    source.hold();
    let old = reader(&on_b, 1);
    eventually("the load runs", async || source.running() == 1).await;
    let heard = b.cache.health().hints;
    let guard = on_a.begin_write(&1).await.unwrap();
    eventually("the hint", async || b.cache.health().hints > heard).await;
    source.commit(1, 1);
    forget(guard);
    source.let_go();
    assert_eq!(old.await.unwrap(), 0, "who asked before may have it");
    b.done("fill", 1).await;
    assert_eq!(on_b.peek(&1), None);
    assert_eq!(bed.hand().await.look(&b.wire.last_place()).await, None);
    assert_eq!(*on_b.get(&1).await.unwrap(), 1);
}

/// A refresh is leased beside the value. 1. The refresh finds the value. 2. A guard removes it. 3. The
/// refresh asks for its lease.
async fn a_refresh_that_raced_a_guard_is_kept_nowhere(bed: Bed) {
    let source = Source::new();
    let (_a, b, on_a, on_b) = two(&bed, &source).await;
    on_b.get(&1).await.unwrap();
    b.done("fill", 1).await;
    let place = b.wire.last_place();
    b.wire.hang("lease");
    let refresh = {
        let on_b = on_b.clone();
        tokio::spawn(async move { on_b.refresh(&1).await.map(|value| *value) })
    };
    eventually("the lease is asked for", async || {
        b.wire.calls("lease") == 2
    })
    .await;
    let guard = on_a.begin_write(&1).await.unwrap();
    b.wire.heal();
    assert_eq!(soon("the refresh", refresh).await.unwrap().unwrap(), 0);
    source.commit(1, 1);
    forget(guard);
    eventually("the new value is read", async || {
        *on_b.get(&1).await.unwrap() == 1
    })
    .await;
    assert_eq!(bed.hand().await.look(&place).await, None);
}

async fn many_keys_are_read_under_a_guard_as_each_alone(bed: Bed) {
    let source = Source::new();
    let (_a, b, on_a, on_b) = two(&bed, &source).await;
    let guard = on_a.begin_write_many(&[1, 2]).await.unwrap();
    let read = on_b.get_many(&[1, 2, 3]).await;
    assert!(read.iter().all(|value| **value.as_ref().unwrap() == 0));
    b.done("fill", 1).await;
    source.commit(1, 1);
    source.commit(2, 1);
    forget(guard);
    eventually("the new values are read", async || {
        let read = on_b.get_many(&[1, 2, 3]).await;
        let read: Vec<_> = read.into_iter().map(|value| *value.unwrap()).collect();
        read == [1, 1, 0]
    })
    .await;
}

/// Two writers of one key, and one within the other.
async fn a_key_is_guarded_until_the_last_guard_ends(bed: Bed) {
    let source = Source::new();
    let (a, _b, on_a, on_b) = two(&bed, &source).await;
    let here = on_a.begin_write(&1).await.unwrap();
    let there = on_b.begin_write(&1).await.unwrap();
    let within = on_a.begin_write(&1).await.unwrap();
    assert!(here.finish().await.unwrap().was_held());
    assert!(there.finish().await.unwrap().was_held());
    assert_eq!(*on_a.get(&1).await.unwrap(), 0);
    assert_eq!(a.wire.done("fill"), 0);
    source.commit(1, 1);
    assert!(within.finish().await.unwrap().was_held());
    assert_eq!(*on_a.get(&1).await.unwrap(), 1);
    a.done("fill", 1).await;
}

async fn what_others_invalidate_leaves_a_guard(bed: Bed) {
    let source = Source::new();
    let (_a, b, on_a, on_b) = two(&bed, &source).await;
    let guard = on_a.begin_write(&1).await.unwrap();
    on_b.invalidate(&1).await.unwrap();
    on_b.clear().await.unwrap();
    on_b.put_versioned(&1, 5, 5).await.unwrap();
    b.cache.invalidate(["number:1"]).await.unwrap();
    assert_eq!(*on_b.get(&1).await.unwrap(), 0);
    assert_eq!(b.wire.done("fill"), 0);
    assert!(guard.finish().await.unwrap().was_held());
}

/// A guard whose holder may have committed stands to its end; one that was not to be had does not.
async fn a_dropped_guard_stands_and_an_aborted_one_goes(bed: Bed) {
    let source = Source::new();
    let (a, _b, on_a, on_b) = two(&bed, &source).await;
    let filled = async || {
        on_b.get(&1).await.unwrap();
        on_b.local().clear();
        bed.hand().await.look(&a.wire.last_place()).await.is_some()
    };
    on_a.get(&1).await.unwrap();
    on_a.begin_write(&1).await.unwrap().abort();
    eventually("the aborted guard is gone", filled).await;
    // Its answer never comes, and whoever waited for it goes.
    a.wire.hold_answers("guard");
    let done = a.wire.done("guard");
    let begin = tokio::spawn(on_a.begin_write(&1).into_future());
    eventually("it has reached the store", async || {
        a.wire.done("guard") > done
    })
    .await;
    begin.abort();
    assert!(begin.await.unwrap_err().is_cancelled());
    a.wire.heal();
    eventually("the guard that nobody got is gone", filled).await;

    let guard = on_a.begin_write(&1).ttl(2 * SECOND).await.unwrap();
    let stamp = guard.stamp().clone();
    source.commit(1, 1);
    drop(guard);
    on_b.get_at_least(&1, &stamp).await.unwrap();
    on_b.local().clear();
    let guards = a.wire.calls("guard");
    eventually("its end is made sure of", async || {
        a.wire.calls("guard") > guards
    })
    .await;
    eventually("it is cached again", filled).await;
    assert_eq!(*on_b.get(&1).await.unwrap(), 1);
}

async fn a_guard_that_the_store_does_not_take_is_an_error(bed: Bed) {
    let source = Source::new();
    let (a, b, on_a, on_b) = two(&bed, &source).await;
    for ttl in [Duration::ZERO, MAX_GUARD_TTL + MS] {
        let refused = on_a.begin_write(&1).ttl(ttl).await;
        assert!(matches!(refused, Err(BeginWriteError::Ttl)), "{refused:?}");
    }
    assert_eq!(a.wire.calls("guard"), 0);
    a.wire.cut(true);
    let refused = soon("the refusal", on_a.begin_write(&1).into_future()).await;
    let Err(BeginWriteError::Store(reason)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(reason.kind(), StoreErrorKind::Unavailable);
    assert_eq!(a.cache.health().pending, 0, "nothing is repeated");
    a.wire.heal();
    // Without one there is still the invalidation.
    on_b.get(&1).await.unwrap();
    source.commit(1, 1);
    eventually("the pod is back", async || {
        on_a.invalidate(&1).await.is_ok()
    })
    .await;
    eventually("it is heard", async || *on_b.get(&1).await.unwrap() == 1).await;
    a.cache.close().await;
    let refused = on_a.begin_write(&1).await;
    assert!(matches!(refused, Err(BeginWriteError::Closed)));
    drop(b);
}

/// The store evicts what no reader can miss; the writer can, and says so.
async fn a_guard_that_the_store_lost_is_reported_and_invalidates(bed: Bed) {
    let source = Source::new();
    let (a, b, on_a, on_b) = two(&bed, &source).await;
    let guard = on_a.begin_write(&1).await.unwrap();
    on_b.get_at_least(&1, guard.stamp()).await.unwrap();
    bed.evict_markers();
    on_b.local().clear();
    assert_eq!(*on_b.get(&1).await.unwrap(), 0);
    b.done("fill", 1).await;
    source.commit(1, 1);
    let finished = guard.finish().await.unwrap();
    assert!(matches!(finished, Finished::Lapsed(_)), "{finished:?}");
    assert_eq!(a.cache.health().lapsed_guards, 1);
    assert_eq!(*on_b.get_at_least(&1, finished.stamp()).await.unwrap(), 1);
}

/// Scenario 33: the marker ends by the store's clock, and a load that comes before the commit is kept.
async fn a_guard_that_ends_before_its_commit_is_told_and_counted(bed: Bed) {
    let source = Source::new();
    let (a, b, on_a, on_b) = two(&bed, &source).await;
    let guard = on_a.begin_write(&1).ttl(100 * MS).await.unwrap();
    eventually("the guard ends, and the old value is stored", async || {
        on_b.local().clear();
        on_b.get(&1).await.unwrap();
        b.wire.done("fill") > 0
    })
    .await;
    source.commit(1, 1);
    let finished = guard.finish().await.unwrap();
    assert!(matches!(finished, Finished::Lapsed(_)), "{finished:?}");
    assert_eq!(a.cache.health().lapsed_guards, 1);
    // And from here on nothing is stale.
    assert_eq!(*on_a.get(&1).await.unwrap(), 1);
    assert_eq!(*on_b.get_at_least(&1, finished.stamp()).await.unwrap(), 1);
    let kept = on_a.begin_write(&1).ttl(MINUTE).await.unwrap();
    assert!(kept.finish().await.unwrap().was_held());
    assert_eq!(a.cache.health().lapsed_guards, 1, "one that held is none");
}

/// What is pending is the invalidation; the marker goes by itself.
async fn a_finish_that_the_store_does_not_acknowledge_is_repeated(bed: Bed) {
    let source = Source::new();
    let (a, _b, on_a, on_b) = two(&bed, &source).await;
    let guard = on_a.begin_write(&1).await.unwrap();
    source.commit(1, 1);
    a.wire.cut(true);
    let finished = soon("the first attempt", guard.finish()).await;
    let Err(tidings::InvalidateError::Pending(pending)) = finished else {
        panic!("{finished:?}");
    };
    assert_eq!(*on_a.get(&1).await.unwrap(), 1);
    a.wire.heal();
    let stamp = soon("the repetition", pending.settled()).await.unwrap();
    assert_eq!(*on_b.get_at_least(&1, &stamp).await.unwrap(), 1);
}

async fn a_key_that_is_held_off_is_not_kept_after_its_invalidation(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let held = pod.builder(&source).hold_off(MINUTE).build().unwrap();
    held.get(&1).await.unwrap();
    pod.done("fill", 1).await;
    // The primary has version 1, and the replica that is read has not.
    held.invalidate(&1).await.unwrap();
    assert_eq!(*held.get(&1).await.unwrap(), 0);
    source.commit(1, 1);
    eventually("the replica has it", async || {
        *held.get(&1).await.unwrap() == 1
    })
    .await;
    held.put_versioned(&1, 7, 7).await.unwrap();
    assert_eq!(*held.get(&1).await.unwrap(), 1, "it is held off too");
    assert_eq!(pod.wire.done("fill"), 1);
    held.get(&2).await.unwrap();
    pod.done("fill", 2).await;
}

on_both_stores! {
    what_is_loaded_under_a_guard_is_not_stored,
    a_finished_guard_leaves_a_key_as_any_other,
    a_load_that_began_before_the_guard_is_kept_nowhere,
    a_refresh_that_raced_a_guard_is_kept_nowhere,
    many_keys_are_read_under_a_guard_as_each_alone,
    a_key_is_guarded_until_the_last_guard_ends,
    what_others_invalidate_leaves_a_guard,
    a_dropped_guard_stands_and_an_aborted_one_goes,
    a_guard_that_the_store_does_not_take_is_an_error,
    a_guard_that_the_store_lost_is_reported_and_invalidates,
    a_guard_that_ends_before_its_commit_is_told_and_counted,
    a_finish_that_the_store_does_not_acknowledge_is_repeated,
    a_key_that_is_held_off_is_not_kept_after_its_invalidation,
}

/// The writer dies between commit and finish; the commit counts as if it had been acknowledged.
#[tokio::test]
async fn the_bound_counts_from_the_commit_of_a_writer_that_dies() {
    let lab = Lab::new();
    let (a, b) = (lab.pod().await, lab.pod().await);
    let (on_a, on_b) = (a.numbers(&lab.source), b.numbers(&lab.source));
    let guard = on_a.begin_write(&1).await.unwrap();
    on_b.get_at_least(&1, guard.stamp()).await.unwrap();
    on_b.local().clear();
    assert_eq!(*on_b.get(&1).await.unwrap(), 0);
    assert_eq!(on_b.peek(&1).as_deref(), Some(&0), "for its youth");
    lab.source.commit(1, 1);
    forget(guard);
    assert_eq!(*on_b.get(&1).await.unwrap(), 0, "within the bound");
    lab.pass(OVER, &[&a, &b]).await;
    assert_eq!(
        on_b.peek(&1),
        None,
        "the lane is live, and does not bear it out"
    );
    assert_eq!(*on_b.get(&1).await.unwrap(), 1);
    assert_eq!(b.wire.done("fill"), 0);
    lab.pass(30 * SECOND, &[&a, &b]).await;
    assert_eq!(*on_b.get(&1).await.unwrap(), 1);
    b.done("fill", 1).await;
}

/// The negative control: the same without a guard serves the old value for as long as it lives.
#[tokio::test]
async fn without_a_guard_a_writer_that_dies_leaves_the_old_value() {
    let lab = Lab::new();
    let b = lab.pod().await;
    let on_b = b.numbers(&lab.source);
    assert_eq!(*on_b.get(&1).await.unwrap(), 0);
    lab.source.commit(1, 1);
    for _ in 0..10 {
        lab.pass(OVER, &[&b]).await;
        assert_eq!(*on_b.get(&1).await.unwrap(), 0);
    }
}

/// Scenario 33: the TTL was too short for the commit.
#[tokio::test]
async fn a_guard_that_ends_before_its_commit_is_counted_and_invalidates() {
    let lab = Lab::new();
    let (a, b) = (lab.pod().await, lab.pod().await);
    let (on_a, on_b) = (a.numbers(&lab.source), b.numbers(&lab.source));
    let guard = on_a.begin_write(&1).ttl(5 * SECOND).await.unwrap();
    lab.pass(5 * SECOND, &[&a, &b]).await;
    assert_eq!(*on_b.get(&1).await.unwrap(), 0);
    b.done("fill", 1).await;
    lab.source.commit(1, 1);
    lab.pass(OVER, &[&a, &b]).await;
    assert_eq!(*on_b.get(&1).await.unwrap(), 0, "it was not guarded");
    let finished = guard.finish().await.unwrap();
    assert!(!finished.was_held());
    assert_eq!(a.cache.health().lapsed_guards, 1);
    assert_eq!(*on_b.get_at_least(&1, finished.stamp()).await.unwrap(), 1);
    let guard = on_a.begin_write(&1).ttl(5 * SECOND).await.unwrap();
    lab.pass(4 * SECOND, &[&a, &b]).await;
    assert!(guard.finish().await.unwrap().was_held());
    assert_eq!(a.cache.health().lapsed_guards, 1);
}

/// Hole H28: 1. A load under a guard reads the old value. 2. The commit. 3. The bound passes while the
/// lane is live. 4. A reader comes, and the load is still under way.
#[tokio::test]
async fn a_load_under_a_guard_is_not_joined_when_it_is_old() {
    let lab = Lab::new();
    let (a, b) = (lab.pod().await, lab.pod().await);
    let (on_a, on_b) = (a.numbers(&lab.source), b.numbers(&lab.source));
    let guard = on_a.begin_write(&1).await.unwrap();
    on_b.get_at_least(&1, guard.stamp()).await.unwrap();
    on_b.local().clear();
    lab.source.hold();
    let loads = lab.source.loads();
    let old = reader(&on_b, 1);
    eventually("the load runs", async || lab.source.loads() > loads).await;
    lab.source.commit(1, 1);
    forget(guard);
    let mut joins = pin!(on_b.get(&1));
    poll_once(&mut joins).await;
    lab.pass(OVER, &[&a, &b]).await;
    let late = reader(&on_b, 1);
    eventually("a load of its own", async || {
        lab.source.loads() == loads + 2
    })
    .await;
    lab.source.let_go();
    assert_eq!(soon("the late reader", late).await.unwrap(), 1);
    assert_eq!(soon("the first reader", old).await.unwrap(), 0);
    assert_eq!(*soon("who came in time", joins).await.unwrap(), 0);
}

/// 1. A guard begins, and the lane has followed it. 2. A load that does not ask the store reads the old
/// value. 3. The commit, and the death of the writer: nothing more is logged.
#[tokio::test]
async fn what_is_loaded_without_asking_for_guards_goes_with_its_youth() {
    let lab = Lab::new();
    let (a, b) = (lab.pod().await, lab.pod().await);
    let (on_a, on_b) = (a.numbers(&lab.source), b.numbers(&lab.source));
    lab.pass(2 * MINUTE, &[&a, &b]).await;
    let past_the_store = ReadOptions::new().skip_store();
    for (guarded, kept) in [(true, 1), (false, 0)] {
        let key = u64::from(guarded);
        if guarded {
            let guard = on_a.begin_write(&key).await.unwrap();
            on_b.get_at_least(&key, guard.stamp()).await.unwrap();
            on_b.local().clear();
            forget(guard);
        }
        assert_eq!(*on_b.with(past_the_store).get(&key).await.unwrap(), 0);
        lab.source.commit(key, 1);
        lab.pass(OVER, &[&a, &b]).await;
        assert_eq!(*on_b.with(past_the_store).get(&key).await.unwrap(), kept);
    }
}

/// Scenario 34: a loader on a replica that lags for less than the hold-off, and nothing stale is kept.
#[tokio::test]
async fn a_lagging_replica_leaves_nothing_behind_a_hold_off() {
    for hold in [Duration::ZERO, 3 * SECOND] {
        let lab = Lab::new();
        let (a, b) = (lab.pod().await, lab.pod().await);
        let build = |pod: &Pod| pod.builder(&lab.source).hold_off(hold).build().unwrap();
        let (on_a, on_b) = (build(&a), build(&b));
        // The primary commits; the replica will have it in two seconds.
        let stamp = on_a.invalidate(&1).await.unwrap();
        assert_eq!(*on_b.get_at_least(&1, &stamp).await.unwrap(), 0);
        lab.pass(2 * SECOND - MS, &[&a, &b]).await;
        on_b.get(&1).await.unwrap();
        lab.source.commit(1, 1);
        lab.pass(OVER, &[&a, &b]).await;
        let held = !hold.is_zero();
        assert_eq!(
            *on_b.get(&1).await.unwrap() == 1,
            held,
            "the control is stale"
        );
        lab.pass(SECOND, &[&a, &b]).await;
        assert_eq!(*on_b.get(&1).await.unwrap() == 1, held);
        if held {
            b.done("fill", 1).await;
        }
    }
}

#[tokio::test]
async fn a_hold_off_longer_than_a_guard_is_refused() {
    let pod = Bed::memory().pod().await;
    let refused = pod.builder(&Source::new()).hold_off(MAX_GUARD_TTL + MS);
    assert_eq!(refused.build().unwrap_err().option(), "hold_off");
}
