//! `tokio::sync::Notify` for threads that shuttle schedules: the part that flights use.

use crate::lock;
use shuttle::sync::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

#[derive(Default)]
pub(crate) struct Notify(Mutex<State>);

#[derive(Default)]
struct State {
    told: u64,
    waiting: Vec<Waker>,
}

impl Notify {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// As Tokio's: it is ready after any [`notify_waiters`](Self::notify_waiters) since *this call*, be it
    /// polled before or not.
    pub(crate) fn notified(&self) -> Notified<'_> {
        let since = lock(&self.0).told;
        Notified {
            notify: self,
            since,
        }
    }

    pub(crate) fn notify_waiters(&self) {
        let waiting = {
            let mut state = lock(&self.0);
            state.told += 1;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

pub(crate) struct Notified<'a> {
    notify: &'a Notify,
    since: u64,
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = lock(&self.notify.0);
        if state.told > self.since {
            return Poll::Ready(());
        }
        state.waiting.push(cx.waker().clone());
        Poll::Pending
    }
}
