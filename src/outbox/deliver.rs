//! The task that takes rows out and carries them out.

use super::health::{DeliveryHealth, DeliveryState, Progress};
use super::protection::Protection;
use super::row::Waiting;
use super::session::{Connect, Session};
use super::{Outbox, OutboxError};
use crate::bus::{InvalidateError, Pending};
use crate::cache::Cache;
use crate::random::random_part;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Rows that are carried out at the same time and deleted together: what is delivered again, at most, by
/// the pod that follows one which died.
const PIECE: usize = 512;
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// A database that comes back waits for its pods no longer than this.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// A pod's part in delivering an [`Outbox`]. It ends when this is dropped, or the cache is closed.
#[must_use = "dropped, it delivers nothing"]
pub struct Delivery {
    progress: Arc<Progress>,
    stop: DropGuard,
    task: JoinHandle<()>,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Delivery").field(&self.health()).finish()
    }
}

impl Delivery {
    pub(super) fn begin(outbox: &Outbox, cache: &Cache, connect: Connect) -> Self {
        let (progress, stop) = (
            Arc::new(Progress::new(&cache.0.bus.telemetry.outbox)),
            CancellationToken::new(),
        );
        let deliverer = Deliverer {
            outbox: outbox.clone(),
            cache: cache.clone(),
            connect,
            progress: Arc::clone(&progress),
            stop: stop.clone(),
        };
        Self {
            progress,
            stop: stop.drop_guard(),
            task: tokio::spawn(deliverer.run()),
        }
    }

    /// How it is doing. No round trip.
    #[must_use]
    pub fn health(&self) -> DeliveryHealth {
        self.progress.health()
    }

    /// Ends it: what is being carried out is acknowledged and deleted first, and nothing else is begun.
    /// Another pod takes over within its poll. Waits some seconds at most, as a rule a round trip.
    ///
    /// # Cancel safety
    /// Dropped, it ends all the same.
    pub async fn stop(self) {
        drop(self.stop);
        // It neither panics nor is it aborted; and if it were, it has ended.
        let _ = self.task.await;
    }
}

struct Deliverer {
    outbox: Outbox,
    cache: Cache,
    connect: Connect,
    progress: Arc<Progress>,
    stop: CancellationToken,
}

/// Why a session ends.
enum End {
    /// Nobody wants it any more.
    Over,
    Failed(OutboxError),
    /// The store has not acknowledged this.
    StoreAway(Pending),
}

impl From<OutboxError> for End {
    fn from(error: OutboxError) -> Self {
        Self::Failed(error)
    }
}

impl Deliverer {
    async fn run(self) {
        let mut backoff = BACKOFF_MIN;
        loop {
            self.progress.enter(DeliveryState::Connecting);
            let Err(end) = self.session(&mut backoff).await;
            let wait = match end {
                End::Over => break,
                End::Failed(error) => self.after_failure(error, &mut backoff).await,
                End::StoreAway(pending) => self.until_acknowledged(pending).await,
            };
            if wait.is_err() {
                break;
            }
        }
        self.progress.enter(DeliveryState::Ended);
    }

    async fn after_failure(&self, error: OutboxError, backoff: &mut Duration) -> Result<(), End> {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "outbox: delivery interrupted"
        );
        self.progress.failed(error);
        let wait = backoff.mul_f64(0.5 + random_part() / 2.0);
        *backoff = (2 * *backoff).min(BACKOFF_MAX);
        self.unless_over(sleep(wait)).await
    }

    /// The bus repeats by itself what was not acknowledged. This pod has let go of the table meanwhile:
    /// another one may reach the store, and whoever cannot has nothing to do there.
    async fn until_acknowledged(&self, pending: Pending) -> Result<(), End> {
        self.progress.enter(DeliveryState::StoreAway);
        let reason = pending.reason().clone();
        self.progress.failed(OutboxError::Store(reason));
        match self.unless_over(pending.settled()).await? {
            Ok(_) => Ok(()),
            Err(_) => Err(End::Over),
        }
    }

    /// Connects, waits for its turn, and delivers until something fails.
    async fn session(&self, backoff: &mut Duration) -> Result<std::convert::Infallible, End> {
        let session = Session::open(&self.connect, &self.outbox);
        let session = self.unless_over(session).await??;
        while self.is_on(Protection::Lock) && !self.unless_over(session.lock()).await?? {
            *backoff = BACKOFF_MIN;
            self.progress.enter(DeliveryState::Standby);
            // Not all at the same time.
            let wait = self.outbox.poll.mul_f64(0.5 + random_part() / 2.0);
            self.unless_over(sleep(wait)).await?;
        }
        // Before the first look, so that what is committed after it is told.
        session.listen().await?;
        self.progress.enter(DeliveryState::Delivering);
        let mut greatest = i64::MIN;
        loop {
            let mut rows = self.unless_over(session.look()).await??;
            if !self.is_on(Protection::AllVisible) {
                rows.retain(|row| row.id > greatest);
                greatest = rows.last().map_or(greatest, |row| row.id);
            }
            *backoff = BACKOFF_MIN;
            self.progress.looked(&rows);
            for piece in rows.chunks(PIECE) {
                self.unless_over(async {}).await?;
                self.deliver(&session, piece).await?;
            }
            if rows.is_empty() {
                self.unless_over(self.rest(&session)).await?;
            }
        }
    }

    /// Until somebody says that there is something, or it is time to look.
    async fn rest(&self, session: &Session) {
        tokio::select! {
            () = session.wake.notified() => {}
            () = sleep(self.outbox.poll), if self.is_on(Protection::Poll) => {}
        }
    }

    fn is_on(&self, protection: Protection) -> bool {
        self.outbox.protections.on(protection)
    }

    /// A row is deleted after its invalidation was acknowledged. Of what can end this pod in between,
    /// nothing can do worse than have it delivered twice.
    async fn deliver(&self, session: &Session, piece: &[Waiting]) -> Result<(), End> {
        let (mut ids, mut tags, mut rubbish) = (Vec::new(), Vec::new(), Vec::new());
        for row in piece {
            match &row.tag {
                Ok(tag) => {
                    ids.push(row.id);
                    tags.push(tag);
                }
                Err(reason) => rubbish.push((row.id, *reason)),
            }
        }
        if let Some((_, reason)) = rubbish.first()
            && !self.is_on(Protection::SetAside)
        {
            return Err(End::Failed(OutboxError::Tag { reason }));
        }
        if !rubbish.is_empty() {
            session.refuse(&rubbish).await?;
            self.progress.done(0, rubbish.len());
            tracing::error!(rows = ?rubbish, "outbox: rows that name nothing were set aside");
        }
        if !tags.is_empty() {
            if !self.is_on(Protection::AckFirst) {
                session.delete(&ids).await?;
            }
            match self.cache.invalidate(tags).await {
                Ok(_) => {}
                Err(InvalidateError::Pending(pending)) => return Err(End::StoreAway(pending)),
                Err(InvalidateError::Closed) => return Err(End::Over),
            }
            session.delete(&ids).await?;
            self.progress.done(ids.len(), 0);
        }
        Ok(())
    }

    /// Gives up waiting when the delivery is stopped, or its cache closed.
    async fn unless_over<T>(&self, future: impl Future<Output = T>) -> Result<T, End> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(End::Over),
            () = self.cache.0.bus.closing.cancelled() => Err(End::Over),
            done = future => Ok(done),
        }
    }
}
