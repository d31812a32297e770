//! One load for everybody who asks at the same time, whoever drops out.

use crate::bed::{Bed, Numbers, eventually, poll_once, soon};
use crate::source::{Answer, Refused, Source};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tidings::{CacheError, Origin};
use tokio::task::{JoinHandle, JoinSet};

type Got = Result<u64, CacheError<Refused>>;

fn reader(numbers: &Numbers, key: u64) -> JoinHandle<Got> {
    let numbers = numbers.clone();
    tokio::spawn(async move { numbers.get(&key).await.map(|value| *value) })
}

/// Readers that have all joined the load under way.
pub(crate) async fn on_board(
    numbers: &Numbers,
    key: u64,
    readers: usize,
) -> Vec<Pin<Box<dyn Future<Output = Result<Arc<u64>, CacheError<Refused>>> + Send>>> {
    let mut on_board = Vec::new();
    for _ in 0..readers {
        let numbers = numbers.clone();
        let mut reader = Box::pin(async move { numbers.get(&key).await }) as Pin<Box<_>>;
        poll_once(&mut reader).await;
        on_board.push(reader as _);
    }
    on_board
}

async fn a_thousand_readers_of_one_pod_cause_one_load(bed: Bed) {
    let source = Source::new();
    source.commit(1, 11);
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    source.hold();
    let mut readers: Vec<_> = (0..1000).map(|_| reader(&numbers, 1)).collect();
    eventually("the load runs", async || source.running() == 1).await;
    source.let_go();
    for reader in &mut readers {
        assert_eq!(reader.await.unwrap().unwrap(), 11);
    }
    assert_eq!(source.loads(), 1);
}

async fn many_pods_that_meet_a_cold_key_cause_one_load(bed: Bed) {
    let source = Source::new();
    source.commit(1, 11);
    let mut pods = Vec::new();
    for _ in 0..8 {
        let pod = bed.pod().await;
        let numbers = pod.numbers(&source);
        pods.push((pod, numbers));
    }
    for key in 1..=5 {
        source.commit(key, 11);
        let before = source.loads();
        let mut readers = JoinSet::new();
        for (_, numbers) in &pods {
            for _ in 0..50 {
                let numbers = numbers.clone();
                readers.spawn(async move { *numbers.get(&key).await.unwrap() });
            }
        }
        assert!(
            readers
                .join_all()
                .await
                .into_iter()
                .all(|value| value == 11)
        );
        assert_eq!(source.loads() - before, 1);
    }
}

async fn the_load_goes_on_for_the_others_when_its_leader_is_dropped(bed: Bed) {
    let source = Source::new();
    source.commit(1, 11);
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    source.hold();
    let leader = reader(&numbers, 1);
    eventually("the load runs", async || source.running() == 1).await;
    let others = on_board(&numbers, 1, 5).await;
    leader.abort();
    assert!(leader.await.unwrap_err().is_cancelled());
    source.let_go();
    for other in others {
        assert_eq!(*other.await.unwrap(), 11);
    }
    assert_eq!(source.loads(), 1, "it was not started again");
}

async fn a_load_that_nobody_waits_for_is_dropped_and_its_lease_returned(bed: Bed) {
    let source = Source::new();
    source.commit(1, 11);
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    source.hold();
    let readers: Vec<_> = (0..3).map(|_| reader(&on_a, 1)).collect();
    eventually("the load runs", async || source.running() == 1).await;
    readers.iter().for_each(JoinHandle::abort);
    eventually("the load is dropped", async || source.running() == 0).await;
    assert_eq!((source.ended(), a.wire.calls("fill")), (0, 0));
    a.done("release", 1).await;
    source.let_go();
    let at = a.wire.last_place();
    let hand = bed.hand().await;
    eventually("the lease is gone", async || hand.look(&at).await.is_none()).await;
    assert_eq!(on_a.peek(&1), None);
    // Were the lease still there, this would have to outwait it and could not store its outcome.
    assert_eq!(on_b.get_with(&1).await.unwrap().origin, Origin::Loader);
    b.done("fill", 1).await;
    assert_eq!(on_a.get_with(&1).await.unwrap().origin, Origin::Store);
}

async fn a_loader_that_panics_frees_everybody_once(bed: Bed) {
    let source = Source::new();
    source.answer(1, Answer::Panic);
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    source.hold();
    let leader = reader(&numbers, 1);
    eventually("the load runs", async || source.running() == 1).await;
    let others = on_board(&numbers, 1, 20).await;
    source.let_go();
    soon("the leader", leader).await.unwrap().unwrap_err();
    for other in others {
        let error = soon("a waiter", other).await.unwrap_err();
        assert!(matches!(error, CacheError::LoadAborted), "{error:?}");
    }
    assert_eq!(source.loads(), 1);
    source.commit(1, 12);
    assert_eq!(*numbers.get(&1).await.unwrap(), 12);
}

async fn a_caller_gives_up_at_the_limit_and_the_load_fills_all_the_same(bed: Bed) {
    let source = Source::new();
    source.commit(1, 11);
    let (a, b) = (bed.pod().await, bed.pod().await);
    let limit = Duration::from_millis(200);
    let on_a = a.builder(&source).load_timeout(limit).build().unwrap();
    let on_b = b.numbers(&source);
    source.hold();
    let error = on_a.get(&1).await.unwrap_err();
    assert!(matches!(error, CacheError::Timeout { after } if after == limit));
    assert_eq!(source.running(), 1, "the load goes on");
    source.let_go();
    eventually("it is kept here", async || on_a.peek(&1).is_some()).await;
    a.done("fill", 1).await;
    assert_eq!(on_b.get_with(&1).await.unwrap().origin, Origin::Store);
    assert_eq!(source.loads(), 1);
}

async fn a_load_that_hangs_does_not_hold_its_key_for_ever(bed: Bed) {
    let source = Source::new();
    source.commit(1, 11);
    let (a, b) = (bed.pod().await, bed.pod().await);
    let limit = Duration::from_millis(100);
    let on_a = a.builder(&source).load_timeout(limit).build().unwrap();
    let on_b = b.numbers(&source);
    source.hold();
    on_a.get(&1).await.unwrap_err();
    // Whoever asks meanwhile waits for that load and no other, until its lead ends.
    eventually("the hung load is given up", async || {
        on_a.get(&1).await.unwrap_err();
        source.loads() > 1
    })
    .await;
    source.let_go();
    eventually("the key serves", async || on_a.get(&1).await.is_ok()).await;
    assert_eq!(*soon("the other pod", on_b.get(&1)).await.unwrap(), 11);
}

/// 1. a pod loads under a lease of half a minute, and takes its time;
/// 2. another pod, whose loads are quick, waits for it as long as it may be worth;
/// 3. then it loads by itself, and leaves the fill to the one with the lease.
async fn who_waits_for_another_pod_loads_by_itself_in_the_end_and_stores_nothing(bed: Bed) {
    let source = Source::new();
    source.commit(1, 11);
    let [a, b, c] = [bed.pod().await, bed.pod().await, bed.pod().await];
    let minutes = Duration::from_secs(600);
    let on_a = a.builder(&source).load_timeout(minutes).build().unwrap();
    let on_b = b.builder(&source).load_timeout(minutes).build().unwrap();
    for key in 100..110 {
        on_b.get(&key).await.unwrap();
    }
    b.done("fill", 10).await;
    source.hold();
    let slow = reader(&on_a, 1);
    eventually("the load runs", async || source.running() == 1).await;
    let own = on_b.get_or_load(&1, async || Ok(22));
    assert_eq!(*soon("the other pod", own).await.unwrap(), 22);
    assert_eq!(b.wire.calls("fill"), 10);
    source.let_go();
    assert_eq!(soon("the first pod", slow).await.unwrap().unwrap(), 11);
    a.done("fill", 1).await;
    let served = c.numbers(&source).get_with(&1).await.unwrap();
    assert_eq!((*served.value, served.origin), (11, Origin::Store));
}

async fn a_loader_of_the_call_may_borrow(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    let transaction = String::from("17");
    let load = async || transaction.parse().map_err(|_| Refused(1));
    assert_eq!(*numbers.get_or_load(&1, load).await.unwrap(), 17);
    let never = async || -> Result<u64, Refused> { panic!("it is cached") };
    assert_eq!(*numbers.get_or_load(&1, never).await.unwrap(), 17);
    assert_eq!(source.loads(), 0);
}

async fn a_call_with_its_own_loader_shares_the_flight(bed: Bed) {
    let source = Source::new();
    source.commit(1, 11);
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    source.hold();
    let first = reader(&numbers, 1);
    eventually("the load runs", async || source.running() == 1).await;
    let own = AtomicUsize::new(0);
    let mut second = pin!(numbers.get_or_load(&1, async || {
        own.fetch_add(1, SeqCst);
        Ok(99)
    }));
    poll_once(&mut second).await;
    source.let_go();
    let second = second.await;
    assert_eq!((*second.unwrap(), own.load(SeqCst)), (11, 0));
    assert_eq!(first.await.unwrap().unwrap(), 11);
}

async fn the_next_caller_leads_with_its_own_loader_when_a_leading_call_is_dropped(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    let begun = Arc::new(AtomicUsize::new(0));
    let leader = tokio::spawn({
        let (on_a, begun) = (on_a.clone(), begun.clone());
        async move {
            let hang = async || {
                begun.fetch_add(1, SeqCst);
                std::future::pending().await
            };
            on_a.get_or_load(&1, hang).await.map(drop)
        }
    });
    eventually("the first loader runs", async || begun.load(SeqCst) == 1).await;
    let mut next = pin!(on_a.get_or_load(&1, async || Ok(22)));
    poll_once(&mut next).await;
    leader.abort();
    assert_eq!(*soon("the next caller", next).await.unwrap(), 22);
    assert_eq!(begun.load(SeqCst), 1);
    assert_eq!(*soon("the other pod", on_b.get(&1)).await.unwrap(), 22);
    assert_eq!(source.loads(), 0);
}

async fn a_dropped_call_with_its_own_loader_returns_its_lease(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    let begun = AtomicUsize::new(0);
    {
        let hang = async || {
            begun.fetch_add(1, SeqCst);
            std::future::pending().await
        };
        let call = on_a.get_or_load(&1, hang);
        tokio::select! {
            _ = call => panic!("it hangs"),
            () = eventually("it loads", async || begun.load(SeqCst) == 1) => {}
        }
    }
    a.done("release", 1).await;
    let hand = bed.hand().await;
    let at = a.wire.last_place();
    eventually("the lease is gone", async || hand.look(&at).await.is_none()).await;
    assert_eq!(on_b.get_with(&1).await.unwrap().origin, Origin::Loader);
    b.done("fill", 1).await;
}

on_both_stores!(
    who_waits_for_another_pod_loads_by_itself_in_the_end_and_stores_nothing,
    a_thousand_readers_of_one_pod_cause_one_load,
    many_pods_that_meet_a_cold_key_cause_one_load,
    the_load_goes_on_for_the_others_when_its_leader_is_dropped,
    a_load_that_nobody_waits_for_is_dropped_and_its_lease_returned,
    a_loader_that_panics_frees_everybody_once,
    a_caller_gives_up_at_the_limit_and_the_load_fills_all_the_same,
    a_load_that_hangs_does_not_hold_its_key_for_ever,
    a_loader_of_the_call_may_borrow,
    a_call_with_its_own_loader_shares_the_flight,
    the_next_caller_leads_with_its_own_loader_when_a_leading_call_is_dropped,
    a_dropped_call_with_its_own_loader_returns_its_lease,
);
