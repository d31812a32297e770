//! The walk over keys as a stream.

use super::Raw;
use crate::error::StoreError;
use crate::store::{BoxFuture, RawFound, RawPage, StoreResult};
use bytes::Bytes;
use futures_core::Stream;
use std::collections::HashSet;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// The keys of a [`Raw`] store, as [`Raw::scan`] walks them. Nothing is asked before the first is wanted.
pub struct RawKeys {
    raw: Raw,
    /// Found and not given yet.
    found: std::vec::IntoIter<Bytes>,
    walk: Walk,
}

enum Walk {
    /// The next step begins here.
    At(Option<Bytes>),
    Asking(BoxFuture<'static, StoreResult<RawPage<RawFound>>>),
    Ended,
}

impl RawKeys {
    pub(super) fn new(raw: Raw) -> Self {
        Self {
            raw,
            found: Vec::new().into_iter(),
            walk: Walk::At(None),
        }
    }

    /// The next key; `None` at the end.
    ///
    /// # Errors
    /// As those of [`Raw`]; then the walk has ended.
    ///
    /// # Cancel safety
    /// Cancel safe: no key is lost.
    pub async fn next(&mut self) -> Option<Result<Bytes, StoreError>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    fn ask(&self, from: Option<Bytes>) -> BoxFuture<'static, StoreResult<RawPage<RawFound>>> {
        let raw = self.raw.clone();
        Box::pin(async move {
            let link = raw.link("raw scan")?;
            let step = link.raw().scan(raw.0.keys.name(), from.as_deref(), &[]);
            let (_none_removed, page) = raw.read("raw scan", step).await?;
            Ok(page)
        })
    }

    fn take(&mut self, page: RawPage<RawFound>) {
        let mut seen = HashSet::with_capacity(page.items.len());
        let keys = page.items.into_iter().map(|found| found.key);
        let keys: Vec<_> = keys.filter(|key| seen.insert(key.clone())).collect();
        self.found = keys.into_iter();
        self.walk = match page.next {
            Some(next) => Walk::At(Some(next)),
            None => Walk::Ended,
        };
    }
}

impl Stream for RawKeys {
    type Item = Result<Bytes, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(key) = self.found.next() {
                return Poll::Ready(Some(Ok(key)));
            }
            match &mut self.walk {
                Walk::At(from) => {
                    let from = from.take();
                    self.walk = Walk::Asking(self.ask(from));
                }
                Walk::Asking(step) => match ready!(step.as_mut().poll(cx)) {
                    Ok(page) => self.take(page),
                    Err(error) => {
                        self.walk = Walk::Ended;
                        return Poll::Ready(Some(Err(error)));
                    }
                },
                Walk::Ended => return Poll::Ready(None),
            }
        }
    }
}

impl fmt::Debug for RawKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawKeys")
            .field("raw", &self.raw)
            .finish_non_exhaustive()
    }
}
