//! Races in the order that hurts, each with its protection on; and where an entity can show it, with
//! the protection off, so that it is known to be this protection which holds.

use crate::bed::{Bed, Numbers, Pod, eventually, poll_once, soon};
use crate::flights::on_board;
use crate::source::Source;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};
use tidings::coherence::{Mechanism, Mechanisms};
use tidings::{Key, KeyBuf};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

fn reader(numbers: &Numbers, key: u64) -> JoinHandle<u64> {
    let numbers = numbers.clone();
    tokio::spawn(async move { *numbers.get(&key).await.unwrap() })
}

/// Waits until this pod has heard `hints` more than `before`, and applied them.
async fn hears(pod: &Pod, before: u64) {
    eventually("the hint", async || pod.cache.health().hints > before).await;
}

impl Bed {
    async fn pod_without(&self, mechanism: Mechanism) -> Pod {
        let mechanisms = Mechanisms::default().without(mechanism);
        self.pod_with(|builder| builder.mechanisms(mechanisms))
            .await
    }
}

/// 1. A load reads version 0. 2. Version 1 is committed, and invalidated. 3. The load ends.
async fn a_fill_that_raced_an_invalidation_is_never_stored(bed: Bed) {
    for by_the_loading_pod in [true, false] {
        let source = Source::new();
        let key = u64::from(by_the_loading_pod);
        let (a, b) = (bed.pod().await, bed.pod().await);
        let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
        source.hold();
        let old = reader(&on_a, key);
        eventually("the load runs", async || source.running() == 1).await;
        source.commit(key, 1);
        let heard = a.cache.health().hints;
        let by = if by_the_loading_pod { &on_a } else { &on_b };
        by.invalidate(&key).await.unwrap();
        hears(&a, heard).await;
        source.let_go();
        assert_eq!(old.await.unwrap(), 0, "who asked before may have it");
        a.done("fill", 1).await;
        assert_eq!(on_a.peek(&key), None);
        assert_eq!(bed.hand().await.look(&a.wire.last_place()).await, None);
        assert_eq!(*on_b.get(&key).await.unwrap(), 1);
        assert_eq!(*on_a.get(&key).await.unwrap(), 1);
    }
}

async fn a_fill_that_raced_a_clear_is_never_served(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    source.hold();
    let old = reader(&on_a, 1);
    eventually("the load runs", async || source.running() == 1).await;
    source.commit(1, 1);
    on_a.clear().await.unwrap();
    source.let_go();
    assert_eq!(old.await.unwrap(), 0);
    a.done("fill", 1).await;
    assert_eq!(on_a.peek(&1), None);
    assert_eq!(*on_b.get(&1).await.unwrap(), 1);
    assert_eq!(*on_a.get(&1).await.unwrap(), 1);
}

/// Clearing the local level alone asks for the same of loads under way.
async fn a_load_that_raced_a_local_clear_is_not_kept_here(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    source.hold();
    let old = reader(&numbers, 1);
    eventually("the load runs", async || source.running() == 1).await;
    numbers.local().clear();
    source.let_go();
    old.await.unwrap();
    assert_eq!(numbers.peek(&1), None);
}

async fn readers_after_the_acknowledgement_do_not_join_the_old_load(bed: Bed) {
    for in_the_invalidating_pod in [true, false] {
        let source = Source::new();
        let key = u64::from(in_the_invalidating_pod);
        let (a, b) = (bed.pod().await, bed.pod().await);
        let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
        source.hold();
        let old = reader(&on_a, key);
        eventually("the load runs", async || source.running() == 1).await;
        source.commit(key, 1);
        let heard = a.cache.health().hints;
        let by = if in_the_invalidating_pod {
            &on_a
        } else {
            &on_b
        };
        by.invalidate(&key).await.unwrap();
        if !in_the_invalidating_pod {
            hears(&a, heard).await;
        }
        let mut new = pin!(on_a.get(&key));
        poll_once(&mut new).await;
        source.let_go();
        assert_eq!(*soon("the new reader", new).await.unwrap(), 1);
        assert_eq!(old.await.unwrap(), 0);
    }
}

/// Whoever comes before the acknowledgement shares the load under way, whoever comes after it the next.
async fn ten_thousand_readers_around_an_invalidation_cost_two_loads(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let limit = Duration::from_secs(30);
    let numbers = pod.builder(&source).load_timeout(limit).build().unwrap();
    source.hold();
    let first = reader(&numbers, 1);
    eventually("the load runs", async || source.running() == 1).await;
    let before = on_board(&numbers, 1, 4_999).await;
    source.commit(1, 1);
    numbers.invalidate(&1).await.unwrap();
    let second = reader(&numbers, 1);
    eventually("the next load runs", async || source.loads() == 2).await;
    let after = on_board(&numbers, 1, 4_999).await;
    source.let_go();
    assert_eq!(second.await.unwrap(), 1);
    for reader in after {
        assert_eq!(*soon("a reader", reader).await.unwrap(), 1);
    }
    assert_eq!(first.await.unwrap(), 0);
    for reader in before {
        assert_eq!(*soon("a reader", reader).await.unwrap(), 0);
    }
    assert_eq!(source.loads(), 2);
}

/// What a reader gets who comes to a load of version 0, in a pod that was cut off when version 1 was
/// acknowledged, longer ago than the bound.
async fn late_reader_of_a_cut_off_pod(bed: &Bed, cut_off: &Pod) -> u64 {
    let source = Source::new();
    let a = bed.pod().await;
    let on_a = a.numbers(&source);
    let limit = Duration::from_secs(20);
    let slow = cut_off
        .builder(&source)
        .load_timeout(limit)
        .build()
        .unwrap();
    source.hold();
    let old = reader(&slow, 1);
    eventually("the load runs", async || source.running() == 1).await;
    cut_off.wire.cut(true);
    source.commit(1, 1);
    on_a.invalidate(&1).await.unwrap();
    let acknowledged = Instant::now();
    let bound = a.cache.health().bound;
    eventually("the bound is over", async || acknowledged.elapsed() > bound).await;
    let mut late = pin!(slow.get(&1));
    poll_once(&mut late).await;
    source.let_go();
    assert_eq!(old.await.unwrap(), 0);
    *late.await.unwrap()
}

async fn a_pod_that_is_cut_off_lets_nobody_join_an_old_load(bed: Bed) {
    let pod = bed.pod().await;
    assert_eq!(late_reader_of_a_cut_off_pod(&bed, &pod).await, 1);
}

async fn without_the_join_rule_a_late_reader_gets_the_old_value(bed: Bed) {
    let pod = bed.pod_without(Mechanism::JoinRule).await;
    assert_eq!(late_reader_of_a_cut_off_pod(&bed, &pod).await, 0);
}

/// What the pod `b` serves after this: 1. Its read of version 0 is answered by the store, but the
/// answer is late. 2. Version 1 is invalidated, and the hint applied. 3. The answer arrives.
async fn served_after_a_late_answer(bed: &Bed, b: &Pod) -> u64 {
    let source = Source::new();
    let a = bed.pod().await;
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    for key in 0.. {
        on_a.get(&key).await.unwrap();
        a.done("fill", key + 1).await;
        let (reads, heard) = (b.wire.done("read"), b.cache.health().hints);
        b.wire.hold_answers("read");
        let old = reader(&on_b, key);
        b.done("read", reads + 1).await;
        source.commit(key, 1);
        on_a.invalidate(&key).await.unwrap();
        hears(b, heard).await;
        b.wire.heal();
        // If all this took longer than a read may take, it is loaded: another try.
        let late = old.await.unwrap() == 0;
        let served = *on_b.get(&key).await.unwrap();
        if late {
            return served;
        }
    }
    unreachable!("there is always another key")
}

async fn an_answer_of_the_store_that_an_invalidation_overtook_is_not_kept(bed: Bed) {
    let pod = bed.pod().await;
    assert_eq!(served_after_a_late_answer(&bed, &pod).await, 1);
}

async fn without_the_insert_stamp_an_overtaken_answer_is_kept(bed: Bed) {
    let pod = bed.pod_without(Mechanism::InsertStamp).await;
    assert_eq!(served_after_a_late_answer(&bed, &pod).await, 0);
}

async fn without_liveness_a_pod_that_is_cut_off_serves_the_old_value_beyond_the_bound(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod_without(Mechanism::Liveness).await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    on_b.get(&1).await.unwrap();
    b.wire.cut(true);
    source.commit(1, 1);
    on_a.invalidate(&1).await.unwrap();
    let acknowledged = Instant::now();
    let bound = 2 * a.cache.health().bound;
    eventually("twice the bound", async || acknowledged.elapsed() > bound).await;
    assert_eq!(*on_b.get(&1).await.unwrap(), 0);
}

/// A key that does something while it is cloned for the `nth` time: a way into the middle of a read.
struct Trap {
    id: u64,
    spring: Arc<Mutex<Spring>>,
}

struct Spring {
    nth: usize,
    action: Option<Box<dyn FnOnce() + Send>>,
}

impl Clone for Trap {
    fn clone(&self) -> Self {
        let action = {
            let mut spring = self.spring.lock().unwrap();
            spring.nth = spring.nth.saturating_sub(1);
            let now = spring.nth == 0;
            now.then(|| spring.action.take()).flatten()
        };
        if let Some(action) = action {
            // Some clones are made under a lock that the action wants too: do not wait for ever.
            let (done, finished) = mpsc::channel();
            std::thread::spawn(move || {
                action();
                done.send(())
            });
            let _ = finished.recv_timeout(Duration::from_millis(100));
        }
        let spring = Arc::clone(&self.spring);
        Self { spring, ..*self }
    }
}

impl PartialEq for Trap {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Trap {}

impl Key for Trap {
    fn encode(&self, out: &mut KeyBuf) {
        self.id.encode(out);
    }
}

/// At whatever moment of a read, from the store or from the loader, the invalidation comes: once it
/// has begun, this pod serves what it found before to nobody who asks after.
async fn an_invalidation_in_the_middle_of_a_read_is_never_missed(bed: Bed) {
    let runtime = Handle::current();
    for (case, nth) in (0..).zip([1, 2, 3, 4, 1, 2, 3, 4]) {
        let from_the_store = case >= 4;
        let source = Source::new();
        let pod = bed.pod().await;
        let load = {
            let source = source.clone();
            move |key: Trap| {
                let source = source.clone();
                async move { source.ask(key.id).await }
            }
        };
        let traps = pod.cache.entity("trap", load).build().unwrap();
        let spring = Spring {
            nth: usize::MAX,
            action: None,
        };
        let trap = Trap {
            id: case,
            spring: Arc::new(Mutex::new(spring)),
        };
        if from_the_store {
            traps.get(&trap).await.unwrap();
            pod.done("fill", 1).await;
            traps.local().clear();
        }
        pod.wire.hang("invalidate");
        let action = {
            let (traps, trap, source) = (traps.clone(), trap.clone(), source.clone());
            let runtime = runtime.clone();
            move || {
                source.commit(trap.id, 1);
                let _context = runtime.enter();
                let mut cx = Context::from_waker(Waker::noop());
                assert!(pin!(traps.invalidate(&trap)).poll(&mut cx).is_pending());
            }
        };
        *trap.spring.lock().unwrap() = Spring {
            nth,
            action: Some(Box::new(action)),
        };
        traps.get(&trap).await.unwrap();
        if pod.wire.calls("invalidate") > 0 || pod.cache.health().pending > 0 {
            assert_ne!(traps.peek(&trap).as_deref(), Some(&0), "case {case}");
            assert_eq!(*traps.get(&trap).await.unwrap(), 1, "case {case}");
        }
        pod.wire.heal();
    }
}

on_both_stores!(
    an_invalidation_in_the_middle_of_a_read_is_never_missed,
    a_fill_that_raced_an_invalidation_is_never_stored,
    a_fill_that_raced_a_clear_is_never_served,
    a_load_that_raced_a_local_clear_is_not_kept_here,
    readers_after_the_acknowledgement_do_not_join_the_old_load,
    ten_thousand_readers_around_an_invalidation_cost_two_loads,
    a_pod_that_is_cut_off_lets_nobody_join_an_old_load,
    without_the_join_rule_a_late_reader_gets_the_old_value,
    an_answer_of_the_store_that_an_invalidation_overtook_is_not_kept,
    without_the_insert_stamp_an_overtaken_answer_is_kept,
    without_liveness_a_pod_that_is_cut_off_serves_the_old_value_beyond_the_bound,
);
