//! One computation for everybody who asks at the same time, whoever drops out.

use crate::bed::{Answer, Bed, eventually, getter, on_board, soon};
use std::time::Duration;
use tidings::CacheError;
use tokio::task::JoinHandle;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_callers_of_a_cold_key_cause_one_computation() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    bed.source.commit(1, 11);
    bed.source.hold();
    let calls: Vec<_> = (0..10_000).map(|_| getter(&numbers, 1)).collect();
    eventually("all have come", async || {
        let stats = numbers.stats();
        stats.misses == 10_000 && stats.joins == 9_999
    })
    .await;
    bed.source.let_go();
    for call in calls {
        assert_eq!(soon("a call", call).await.unwrap().unwrap(), 11);
    }
    assert_eq!((bed.source.begun(), numbers.stats().loads), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_are_not_held_up_cause_one_computation_too() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    for key in 0..100 {
        let calls: Vec<_> = (0..100).map(|_| getter(&numbers, key)).collect();
        for call in calls {
            call.await.unwrap().unwrap();
        }
    }
    assert_eq!(bed.source.begun(), 100);
}

#[tokio::test]
async fn computations_of_different_keys_run_at_the_same_time() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    bed.source.hold();
    let calls: Vec<_> = (0..50).map(|key| getter(&numbers, key)).collect();
    bed.source.runs(50).await;
    bed.source.let_go();
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn the_computation_goes_on_for_the_others_when_its_leader_is_dropped() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    bed.source.commit(1, 11);
    bed.source.hold();
    let leader = getter(&numbers, 1);
    bed.source.runs(1).await;
    let others = on_board(&numbers, 1, 5).await;
    leader.abort();
    assert!(leader.await.unwrap_err().is_cancelled());
    bed.source.let_go();
    for other in others {
        assert_eq!(other.await.unwrap(), 11);
    }
    assert_eq!(bed.source.begun(), 1, "it was not started again");
}

#[tokio::test]
async fn a_computation_that_nobody_waits_for_is_dropped_and_nothing_is_kept() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    bed.source.hold();
    let calls: Vec<_> = (0..3).map(|_| getter(&numbers, 1)).collect();
    eventually("all have come", async || numbers.stats().misses == 3).await;
    calls[..2].iter().for_each(JoinHandle::abort);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(bed.source.running(), 1, "one still waits");
    calls[2].abort();
    bed.source.runs(0).await;
    bed.source.let_go();
    assert_eq!((numbers.peek(&1), numbers.stats().loads), (None, 0));
    bed.source.commit(1, 12);
    assert_eq!(soon("the next call", numbers.get(&1)).await.unwrap(), 12);
}

#[tokio::test]
async fn a_panic_frees_everybody_and_the_next_call_computes_again() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    bed.source.answer(1, Answer::Panic);
    bed.source.hold();
    let leader = getter(&numbers, 1);
    bed.source.runs(1).await;
    let others = on_board(&numbers, 1, 20).await;
    bed.source.let_go();
    let error = soon("the leader", leader).await.unwrap().unwrap_err();
    assert!(matches!(error, CacheError::LoadAborted), "{error:?}");
    for other in others {
        let error = soon("a waiter", other).await.unwrap_err();
        assert!(matches!(error, CacheError::LoadAborted), "{error:?}");
    }
    assert_eq!(bed.source.begun(), 1);
    bed.source.commit(1, 12);
    assert_eq!(numbers.get(&1).await.unwrap(), 12);
}

#[tokio::test]
async fn everybody_on_board_gets_the_error_of_the_one_computation() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    bed.source.answer(1, Answer::Refusal(3));
    bed.source.hold();
    let calls = on_board(&numbers, 1, 20).await;
    bed.source.let_go();
    for call in calls {
        let error = call.await.unwrap_err();
        assert!(matches!(error, CacheError::Load(error) if error.0 == 3));
    }
    assert_eq!(bed.source.begun(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_gives_up_at_the_limit_and_the_outcome_is_kept_all_the_same() {
    let bed = Bed::embedded().await;
    let limit = Duration::from_secs(3);
    let numbers = bed.builder().load_timeout(limit).build().unwrap();
    bed.source.commit(1, 11);
    bed.source.hold();
    let error = numbers.get(&1).await.unwrap_err();
    assert!(matches!(error, CacheError::Timeout { after } if after == limit));
    tokio::time::sleep(limit / 2).await;
    assert_eq!(bed.source.running(), 1, "the computation goes on");
    bed.source.let_go();
    eventually("it is kept", async || numbers.peek(&1) == Some(11)).await;
    assert_eq!(bed.source.begun(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_computation_that_hangs_is_given_up_and_whoever_waits_computes_anew() {
    let bed = Bed::embedded().await;
    let limit = Duration::from_secs(3);
    let numbers = bed.builder().load_timeout(limit).build().unwrap();
    bed.source.hold();
    numbers.get(&1).await.unwrap_err();
    tokio::time::sleep(limit / 2).await;
    let late = getter(&numbers, 1);
    eventually("it joins", async || numbers.stats().joins == 1).await;
    assert_eq!(bed.source.begun(), 1);
    tokio::time::sleep(limit * 2 / 3).await; // twice the limit is over, the late call's is not
    eventually("another one began", async || bed.source.begun() == 2).await;
    assert_eq!(bed.source.running(), 1, "the hung one was dropped");
    bed.source.let_go();
    late.await.unwrap().unwrap();
    assert!(numbers.peek(&1).is_some());
}

/// Its timer cannot end it, because its task does not come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_computation_that_blocks_its_thread_does_not_hold_its_key() {
    use std::sync::{Arc, Mutex, mpsc};
    let bed = Bed::new().await;
    let (release, blocked) = mpsc::channel::<()>();
    let blocked = Arc::new(Mutex::new(Some(blocked)));
    let first_blocks = move |_: u64| {
        let first = blocked.lock().unwrap().take();
        async move {
            let answer = if first.is_some() { 1 } else { 2 };
            first.map(|blocked| blocked.recv());
            Ok::<_, std::convert::Infallible>(answer)
        }
    };
    let numbers = bed.cache.memo("blocking", first_blocks);
    let numbers = numbers.load_timeout(Duration::from_millis(50)).build();
    let numbers = numbers.unwrap();
    assert!(matches!(
        numbers.get(&1).await,
        Err(CacheError::Timeout { .. })
    ));
    bed.pass(100);
    assert_eq!(soon("the key", numbers.get(&1)).await.unwrap(), 2);
    release.send(()).unwrap();
    eventually("the blocked one ends", async || numbers.stats().loads == 2).await;
    assert_eq!(
        numbers.peek(&1),
        Some(2),
        "a late outcome replaces no newer one"
    );
}
