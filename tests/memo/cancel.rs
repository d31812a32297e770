//! Calls that are dropped halfway.

use crate::bed::{Bed, eventually, soon};
use crate::dropped::dropped_after;
use std::convert::Infallible;

/// Calls of every sort, dropped at every poll, each on a key of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_a_call_at_any_poll_leaves_nothing_stuck() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    let mut key = 0;
    for sort in 0..3 {
        for polls in 0.. {
            key += 1;
            if sort == 2 {
                numbers.get(&key).await.unwrap();
            }
            let ended = match sort {
                0 => dropped_after(polls, numbers.get(&key)).await,
                _ => dropped_after(polls, numbers.refresh(&key)).await,
            };
            bed.source.runs(0).await;
            // Were its flight still there, these would wait for it.
            soon("the key serves", numbers.get(&key)).await.unwrap();
            soon("it is refreshed", numbers.refresh(&key))
                .await
                .unwrap();
            numbers.invalidate(&key);
            soon("it serves again", numbers.get(&key)).await.unwrap();
            if ended {
                break;
            }
        }
    }
}

/// The computation itself is dropped at each of its steps.
#[tokio::test]
async fn a_computation_dropped_at_any_step_keeps_nothing() {
    let bed = Bed::new().await;
    let steps = |_: u64| async {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        Ok::<_, Infallible>(1)
    };
    let slow = bed.cache.memo("slow", steps).build().unwrap();
    let mut key = 0;
    for turns in 0..30 {
        key += 1;
        let mut call = Box::pin(slow.get(&key));
        crate::bed::poll_once(&mut call).await;
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        let ended = slow.peek(&key).is_some();
        drop(call);
        if !ended {
            assert_eq!(soon("the key serves", slow.get(&key)).await.unwrap(), 1);
        }
    }
    eventually("no call is left", async || slow.peek(&key).is_some()).await;
}

#[tokio::test]
async fn a_call_that_was_never_polled_does_nothing() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    drop(numbers.get(&1));
    drop(numbers.refresh(&1));
    let stats = numbers.stats();
    assert_eq!((stats.misses, bed.source.begun()), (0, 0));
}
