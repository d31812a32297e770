//! Calls that are dropped halfway.

use crate::bed::{Bed, Numbers, eventually, soon};
use crate::source::{Refused, Source};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use tidings::{Cache, Origin};

/// Polls a future at most `polls` times, whenever it is woken, and drops it; whether it ended before.
pub(crate) async fn dropped_after(polls: usize, future: impl Future) -> bool {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        match Pin::as_mut(&mut future).poll(cx) {
            Poll::Ready(_) => Poll::Ready(true),
            Poll::Pending if left == 0 => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Drops calls of every sort at every poll, each on a key of its own; afterwards all is as if they had
/// never been, or had ended.
async fn dropping_a_call_at_any_poll_leaves_nothing_stuck(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    let slow = async || {
        tokio::task::yield_now().await;
        Ok::<_, Refused>(0)
    };
    let mut key = 0;
    for sort in 0..4 {
        let mut polls = 0;
        loop {
            let ended = match sort {
                0 => dropped_after(polls, on_a.get(&key)).await,
                1 => dropped_after(polls, on_a.get_or_load(&key, slow)).await,
                2 => dropped_after(polls, on_a.invalidate(&key)).await,
                _ => dropped_after(polls, on_a.clear()).await,
            };
            // Were its flight or lease still there, these would wait for it, or load in vain.
            nothing_stuck(&bed, &on_a, &on_b, key, &a.wire).await;
            key += 1;
            polls += 1;
            if ended {
                break;
            }
        }
    }
    eventually("nothing is pending", async || a.cache.health().pending == 0).await;
}

async fn nothing_stuck(
    bed: &Bed,
    on_a: &Numbers,
    on_b: &Numbers,
    key: u64,
    wire: &crate::wire::Wire,
) {
    soon("the key serves here", on_a.get(&key)).await.unwrap();
    soon("the key serves there", on_b.get(&key)).await.unwrap();
    on_b.invalidate(&key).await.unwrap();
    on_b.get(&key).await.unwrap();
    on_a.local().clear();
    let served = on_a.get_with(&key).await.unwrap();
    assert_eq!(served.origin, Origin::Store, "fills of this key are taken");
    let (hand, at) = (bed.hand().await, wire.last_place());
    eventually("a value stands there", async || {
        hand.look(&at).await.is_some_and(|bytes| bytes.len() > 28)
    })
    .await;
}

async fn an_invalidation_that_was_polled_once_happens(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    on_a.get(&1).await.unwrap();
    on_b.get(&1).await.unwrap();
    source.commit(1, 1);
    dropped_after(1, on_a.invalidate(&1)).await;
    assert_eq!(*on_a.get(&1).await.unwrap(), 1);
    eventually("the other pod follows", async || {
        *on_b.get(&1).await.unwrap() == 1
    })
    .await;
    eventually("it is acknowledged", async || a.cache.health().pending == 0).await;
}

async fn an_invalidation_that_was_never_polled_does_nothing(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    numbers.get(&1).await.unwrap();
    drop(numbers.invalidate(&1));
    assert!(numbers.peek(&1).is_some());
    assert_eq!(pod.wire.calls("invalidate"), 0);
}

async fn a_build_that_is_dropped_leaves_nothing_behind(bed: Bed) {
    for polls in 0..20 {
        let wire = crate::wire::Wire::new(std::sync::Arc::clone(&bed.store));
        let build = Cache::builder(&*bed.namespace).store(wire.clone()).build();
        let ended = dropped_after(polls, build).await;
        eventually("no link is left", async || wire.links() == 0).await;
        if ended {
            return;
        }
    }
    panic!("it never ended");
}

on_both_stores!(
    dropping_a_call_at_any_poll_leaves_nothing_stuck,
    an_invalidation_that_was_polled_once_happens,
    an_invalidation_that_was_never_polled_does_nothing,
    a_build_that_is_dropped_leaves_nothing_behind,
);
