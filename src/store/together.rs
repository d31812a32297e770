//! Calls side by side, for stores that have nothing better for many keys.

use super::BoxFuture;
use std::future::poll_fn;
use std::task::Poll;

/// Runs all calls at the same time; their answers in the order of the calls.
pub(crate) fn together<'a, T: Send + 'a>(
    calls: impl Iterator<Item = BoxFuture<'a, T>>,
) -> BoxFuture<'a, Vec<T>> {
    let mut calls: Vec<Call<'a, T>> = calls.map(Call::UnderWay).collect();
    Box::pin(async move {
        poll_fn(|cx| {
            let mut all = true;
            for call in &mut calls {
                if let Call::UnderWay(future) = call {
                    match future.as_mut().poll(cx) {
                        Poll::Ready(answer) => *call = Call::Answered(answer),
                        Poll::Pending => all = false,
                    }
                }
            }
            if all { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        calls.into_iter().filter_map(Call::answer).collect()
    })
}

enum Call<'a, T> {
    UnderWay(BoxFuture<'a, T>),
    Answered(T),
}

impl<T> Call<'_, T> {
    fn answer(self) -> Option<T> {
        match self {
            Self::Answered(answer) => Some(answer),
            Self::UnderWay(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;
    use tokio::task::yield_now;

    #[tokio::test]
    async fn answers_come_in_the_order_of_the_calls_whoever_ends_first() {
        let (told, hears) = oneshot::channel();
        let first: BoxFuture<'_, u8> = Box::pin(async { hears.await.expect("it is told") });
        let second: BoxFuture<'_, u8> = Box::pin(async {
            yield_now().await;
            told.send(1).expect("somebody hears");
            2
        });
        assert_eq!(together([first, second].into_iter()).await, [1, 2]);
        let none = together(std::iter::empty::<BoxFuture<'_, u8>>()).await;
        assert!(none.is_empty());
    }
}
