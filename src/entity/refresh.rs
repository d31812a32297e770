//! Loading anew what is still there: behind readers, ahead of the end of a life, or because somebody
//! said so.
//!
//! The value stays in both levels until the new outcome takes its place, and is served meanwhile as the
//! rules for any hit allow. What the invalidations of both levels do to a load they do to a refresh: it
//! is a flight with a rank, which they detach, and its fill needs the very value that it found, which
//! they remove. `docs/decisions/refresh.md` has the reasons.

use super::Inner;
use super::course::{Boarding, Course, Guard, Skips, Waiter};
use super::level::Hit;
use super::look::{Look, Standing};
use super::outcome::{Landed, Refresh, Stale, StaleReason};
use super::seek::{Next, Want};
use super::target::{Began, Target};
use crate::error::CacheError;
use crate::flight::{Flown, Landing};
use crate::key::Key;
use crate::local::Phase;
use crate::random::random_part;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How long a key is left alone that another pod is refreshing: some round trips, so that its outcome is
/// found soon, and a hot key costs ten calls a second in each pod.
const ELSEWHERE_PAUSE: Duration = Duration::from_millis(100);

/// What is left of a life that was renewed at least. Local and store level do not end a life at quite the
/// same moment: clocks go in ticks, and messages take their time.
const RENEWED_LEFT: Duration = Duration::from_millis(10);

/// XFetch [1]: whether a value whose load took `load_ms` and whose life ends in `left` is to be loaded
/// anew now, with β = 1.
///
/// Each read tosses for itself, so a key that is read often is refreshed early enough, and one that is
/// hardly read not at all.
///
/// [1]: Vattani, Chierichetti, Lowenstein, "Optimal probabilistic cache stampede prevention", VLDB 2015.
fn is_due(load_ms: u32, left: Duration, chance: f64) -> bool {
    f64::from(load_ms) * -chance.ln() >= left.as_secs_f64() * 1e3
}

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// What the local level has of a key towards the end of its life or past it; `None` if the reader
    /// must go on.
    #[cold]
    pub(super) fn late_hit(
        self: &Arc<Self>,
        key: &K,
        hash: u64,
    ) -> Option<(Hit<V, E>, Option<Stale>)> {
        let (hit, phase) = self.level.late(hash, key)?;
        let stale = match phase {
            Phase::Plain => None, // as of a moment ago
            Phase::Late(left) => {
                if is_due(hit.slot.load_ms, left, random_part()) {
                    self.refresh_behind(key, hash);
                }
                None
            }
            Phase::Stale(overdue) => {
                let reason = self.stale_reason(key, hash)?;
                Some(Stale { overdue, reason })
            }
            Phase::Over => return None,
        };
        self.level.telemetry.hit();
        if let Some(Stale { reason, .. }) = stale {
            self.level.telemetry.served_stale(reason);
        }
        Some((hit, stale))
    }

    /// What a reader is served of a value of the store; `None` if it must be replaced first.
    pub(super) fn served(
        self: &Arc<Self>,
        target: &Target<K>,
        found: &Standing<V, E>,
    ) -> Option<Landed<V, E>> {
        let landed = || {
            self.level.telemetry.store_hit();
            found.landed.clone()
        };
        match found.phase {
            Phase::Plain => Some(landed()),
            Phase::Late(left) => {
                if is_due(found.load_ms, left, random_part()) {
                    self.refresh_behind(&target.key, target.hash);
                }
                Some(landed())
            }
            Phase::Stale(overdue) => {
                let reason = self.stale_reason(&target.key, target.hash)?;
                self.level.telemetry.served_stale(reason);
                Some(landed().into_stale(overdue, reason))
            }
            Phase::Over => None,
        }
    }

    /// As [`served`](Self::served), for whoever wants it; a refresh wants what is not due to one.
    pub(super) fn suffices(
        self: &Arc<Self>,
        target: &Target<K>,
        found: &Standing<V, E>,
        want: Want,
    ) -> Option<Landed<V, E>> {
        let renewed = found.phase == Phase::Plain && found.left >= RENEWED_LEFT;
        match want {
            Want::Read => self.served(target, found),
            Want::Renewed => renewed.then(|| found.landed.clone()),
            Want::Strict => found.is_fresh().then(|| found.landed.clone()),
            Want::Anew => None,
        }
    }

    /// Why a stale value of `key` is served at once; `None` if a load is to be waited for first.
    fn stale_reason(self: &Arc<Self>, key: &K, hash: u64) -> Option<StaleReason> {
        match self.options.refresh {
            Refresh::Behind => Some(self.refresh_behind(key, hash)),
            Refresh::Ahead => self.attempts.resting(hash, self.bus().clock.now()),
        }
    }

    /// What may be served of a key whose load failed, or takes too long. Found out at this moment, by the
    /// rules for any other hit: an invalidation since the load began has removed it.
    pub(super) async fn stale_instead(
        &self,
        target: &Target<K>,
        reason: StaleReason,
    ) -> Option<Landed<V, E>> {
        if !self.may_serve_instead() {
            return None;
        }
        // Boxed for the same reason as a flight: reads that end well need no room for it.
        let stale = Box::pin(self.still_served(target, reason)).await?;
        self.note_stale(&stale);
        Some(stale)
    }

    /// Counts what is served instead, if it is stale.
    pub(super) fn note_stale(&self, landed: &Landed<V, E>) {
        if let Some(stale) = &landed.stale {
            self.level.telemetry.served_stale(stale.reason);
        }
    }

    /// Whether there may be something to serve where a load gave nothing.
    pub(super) fn may_serve_instead(&self) -> bool {
        // With `Behind` it would have been served before.
        let ahead = self.options.refresh == Refresh::Ahead && !self.options.grace.is_zero();
        ahead && !self.bus().closing.is_cancelled()
    }

    async fn still_served(&self, target: &Target<K>, reason: StaleReason) -> Option<Landed<V, E>> {
        if let Some(landed) = self.still_here(target, reason) {
            return Some(landed);
        }
        let link = self.bus().link_for_reads().ok()?;
        let began = self.began(target.lane);
        let look = self.ask_store(&*link, target, &began, Duration::MAX).await;
        Self::still_stored(look?, reason)
    }

    /// What the local level has to serve instead.
    pub(super) fn still_here(
        &self,
        target: &Target<K>,
        reason: StaleReason,
    ) -> Option<Landed<V, E>> {
        let (hit, phase) = self.level.late(target.hash, &target.key)?;
        let Phase::Stale(overdue) = phase else {
            return None;
        };
        Some(hit.landed(&self.bus().rules).into_stale(overdue, reason))
    }

    /// What of the store may be served instead.
    pub(super) fn still_stored(look: Look<V, E>, reason: StaleReason) -> Option<Landed<V, E>> {
        let Look::Found(found) = look else {
            return None;
        };
        match found.phase {
            Phase::Stale(overdue) => Some(found.landed.into_stale(overdue, reason)),
            Phase::Plain | Phase::Late(_) => Some(found.landed),
            Phase::Over => None,
        }
    }

    /// Whether this pod has failed to load the key lately.
    pub(super) fn has_failed(&self, hash: u64) -> bool {
        let reason = self.attempts.resting(hash, self.bus().clock.now());
        reason.is_some_and(|reason| reason != StaleReason::Refreshing)
    }

    /// Begins to refresh `key`, unless that is being done, or failed lately.
    fn refresh_behind(self: &Arc<Self>, key: &K, hash: u64) -> StaleReason {
        let now = self.bus().clock.now();
        if let Err(reason) = self.attempts.begin(hash, now, now + self.lead_limit()) {
            return reason;
        }
        let target = Arc::new(self.target(key, hash));
        let began = self.began(target.lane);
        if let Boarding::Leader(guard, waiter) = self.board_refresh(&target, &began) {
            waiter.leave_running();
            self.refresh_in_task(&target, guard, Want::Renewed);
        }
        StaleReason::Refreshing
    }

    /// Loads `key` anew, or joins whoever is doing so.
    pub(super) async fn refresh_now(
        self: &Arc<Self>,
        key: &K,
        hash: u64,
    ) -> Result<Landed<V, E>, CacheError<E>> {
        if self.bus().closing.is_cancelled() {
            return Err(CacheError::Closed);
        }
        let target = Arc::new(self.target(key, hash));
        let began = self.began(target.lane);
        let mut waiter = match self.board_refresh(&target, &began) {
            Boarding::Leader(guard, waiter) => {
                self.refresh_in_task(&target, guard, Want::Anew);
                waiter
            }
            Boarding::Waiter(waiter) => waiter,
        };
        let limit = self.options.load_timeout;
        let landing = async {
            loop {
                match waiter.wait().await {
                    Flown::Landed(Landing::Done(landed)) if self.is_overtaken(&landed, &began) => {
                        let anew = self.began(target.lane);
                        waiter = match self.board_refresh(&target, &anew) {
                            Boarding::Leader(guard, waiter) => {
                                self.refresh_in_task(&target, guard, Want::Anew);
                                waiter
                            }
                            Boarding::Waiter(waiter) => waiter,
                        };
                    }
                    Flown::Landed(landing) => return landing,
                    Flown::Lead(guard) if self.bus().closing.is_cancelled() => guard.abort(),
                    // Whoever had it left it to another pod, or was too slow.
                    Flown::Lead(guard) => self.refresh_in_task(&target, guard, Want::Anew),
                }
            }
        };
        match timeout(limit, landing).await {
            Ok(Landing::Done(landed)) => Ok(landed),
            Ok(Landing::Aborted) if self.bus().closing.is_cancelled() => Err(CacheError::Closed),
            Ok(Landing::Aborted) => Err(CacheError::LoadAborted),
            Err(_) => {
                waiter.leave_running();
                Err(CacheError::Timeout { after: limit })
            }
        }
    }

    /// What a refresh in this pod gives to a reader who has found nothing to serve; `None` if there is
    /// none, or it gives nothing.
    pub(super) async fn refreshed(&self, target: &Target<K>, want: Want) -> Option<Landed<V, E>> {
        if want != Want::Read {
            return None;
        }
        let began = self.began(target.lane);
        let mut waiter = self.join_refresh(target)?;
        match waiter.wait().await {
            Flown::Landed(Landing::Done(landed)) => {
                let will_do = landed.settled && !self.is_overtaken(&landed, &began);
                will_do.then_some(landed)
            }
            Flown::Landed(Landing::Aborted) | Flown::Lead(_) => None,
        }
    }

    /// Whether a refresh in this pod may give something to a reader.
    pub(super) fn is_being_refreshed(&self, target: &Target<K>) -> bool {
        self.join_refresh(target).is_some()
    }

    fn join_refresh(&self, target: &Target<K>) -> Option<Waiter<K, V, E>> {
        let began = self.began(target.lane);
        let may_join = self.may_join(target, &began, Skips::NONE);
        let (hash, key) = (target.hash, &target.key);
        self.level.refreshes.join(hash, key, may_join)
    }

    fn board_refresh(&self, target: &Target<K>, began: &Began) -> Boarding<K, V, E> {
        let course = Course {
            meta: began.meta(),
            skips: Skips::NONE,
        };
        let may_join = self.may_join(target, began, Skips::NONE);
        let (hash, key) = (target.hash, &target.key);
        self.level.refreshes.board(hash, key, course, may_join)
    }

    /// Runs a refresh until it ends, nobody wants it, or it has taken too long.
    fn refresh_in_task(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        guard: Guard<K, V, E>,
        want: Want,
    ) {
        let (this, target) = (Arc::clone(self), Arc::clone(target));
        let (abandoned, limit) = (guard.abandoned(), self.lead_limit());
        let closing = self.bus().closing.clone();
        let run = async move {
            // Nobody waits for it, so it takes its turn: a list of stale keys is no flood of loads. Its time
            // and its lease begin after that.
            let _turn = match want {
                Want::Renewed => this.refresh_turns.acquire().await.ok(),
                _ => None,
            };
            tokio::select! {
                biased;
                () = this.lead_refresh(&target, guard, want) => {}
                () = abandoned => this.attempts.clear(target.hash),
                () = sleep(limit) => {
                    this.level.telemetry.load_timed_out();
                    this.note_failure(&target, StaleReason::LoadTimedOut);
                }
            }
        };
        self.bus().spawn(async move {
            tokio::select! {
                biased;
                () = run => {}
                () = closing.cancelled() => {}
            }
        });
    }

    async fn lead_refresh(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        guard: Guard<K, V, E>,
        want: Want,
    ) {
        match self.seek(target, None, want).await {
            Next::Land(landed) => {
                self.attempts.clear(target.hash);
                guard.land(landed);
            }
            Next::Load(run) => self.load_by_loader(target, guard, run).await,
            Next::Leave => {
                let now = self.bus().clock.now();
                let (until, reason) = (now + ELSEWHERE_PAUSE, StaleReason::Refreshing);
                self.attempts.rest(target.hash, now, until, reason);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The chance of a refresh at `left` before the end is e^(-left / load).
    #[test]
    fn a_refresh_is_the_more_likely_the_closer_the_end_and_the_longer_the_load() {
        assert!(is_due(10, 10 * MS, 0.36) && !is_due(10, 10 * MS, 0.37));
        assert!(is_due(10, 30 * MS, 0.049) && !is_due(10, 30 * MS, 0.051));
        assert!(is_due(30, 30 * MS, 0.36) && !is_due(30, 30 * MS, 0.37));
        assert!(!is_due(10, MS, 1.0), "the least of chances never is");
        assert!(is_due(10, Duration::from_secs(9), 0.0), "the best always");
        assert!(is_due(10, Duration::ZERO, 1.0), "the end is");
    }
}
