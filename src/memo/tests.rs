//! What cannot be seen from outside.

use super::*;
use crate::store::Memory;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use tokio::task::yield_now;

/// Polls a future at most `polls` times, whenever it is woken; whether it ended.
async fn ends_within(polls: usize, future: impl Future) -> bool {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(_) => Poll::Ready(true),
            Poll::Pending if left == 0 => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[tokio::test]
async fn a_call_dropped_at_any_poll_leaves_no_flight_behind() {
    let cache = Cache::builder("memo").store(Memory::new()).build();
    let cache = cache.await.expect("the embedded store is always there");
    let steps = |_| async {
        yield_now().await;
        Ok::<_, Infallible>(1)
    };
    let memo = cache.memo("slow", steps).build().expect("valid options");
    let mut key = 0;
    for refresh in [false, true] {
        for polls in 0.. {
            key += 1;
            let ended = match refresh {
                false => ends_within(polls, memo.get(&key)).await,
                true => ends_within(polls, memo.refresh(&key)).await,
            };
            while memo.0.level.flights() > 0 {
                yield_now().await; // hangs if a flight is left behind
            }
            assert_eq!(memo.peek(&key).is_some(), ended);
            if ended {
                break;
            }
        }
    }
}
