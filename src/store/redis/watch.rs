//! Looking, beside a link, whether its servers are still the right ones.

use crate::error::{StoreError, StoreErrorKind};
use crate::store::StoreResult;
use std::future::Future;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Whether the servers of a link are still the right ones; looks as long as it is kept.
pub(super) struct Watch {
    over: CancellationToken,
    reason: &'static str,
    _end: DropGuard,
}

impl Watch {
    /// Runs `look`, which ends when the link should, for the `reason`.
    pub(super) fn start(
        reason: &'static str,
        look: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let (over, end) = (CancellationToken::new(), CancellationToken::new());
        let (tell, ended) = (over.clone(), end.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = ended.cancelled() => {}
                () = look => tell.cancel(),
            }
        });
        Self {
            over,
            reason,
            _end: end.drop_guard(),
        }
    }

    /// # Errors
    /// `Unavailable` once the link should end: what its servers say counts no more.
    pub(super) fn check(&self, operation: &'static str) -> StoreResult<()> {
        match self.over.is_cancelled() {
            true => {
                Err(StoreError::new(StoreErrorKind::Unavailable, operation)
                    .with_detail(self.reason))
            }
            false => Ok(()),
        }
    }
}
