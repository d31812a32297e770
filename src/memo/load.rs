//! Computing what is not remembered, and what becomes of the outcome.

use super::Inner;
use super::level::{Guard, Landed, Waiter};
use super::slot::Slot;
use crate::entity::{LoadContext, Loaded};
use crate::error::CacheError;
use crate::flight::{Boarding, Flown, Landing};
use crate::tags::Dependency;
use crate::time::Millis;
use crate::ttl::Ttl;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// A computation is dropped after so many load timeouts: the first caller gives up after one, and what
/// takes a little longer than that must come to its end, or it would be begun again and again. Who
/// comes between the two waits for it, so a hung one holds its key no longer than this.
const LEAD: u32 = 2;
/// The shortest life of what is kept at all: the clock counts whole milliseconds.
const SHORTEST: Duration = Duration::from_millis(1);

/// What a remembered error counts in a memo that is bounded by weight: its entry, and little more.
const ERROR_WEIGHT: u32 = 64;

/// What a call asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// What is remembered, or else a computation.
    Remembered,
    /// A computation, whatever is remembered.
    Anew,
}

impl<K, V, E> Inner<K, V, E>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Joins or leads a computation, and waits for it within the limit.
    pub(super) async fn fly(self: &Arc<Self>, key: &K, want: Want) -> Result<V, CacheError<E>> {
        if self.cache.is_closed() {
            return Err(CacheError::Closed);
        }
        let limit = self.options.load_timeout;
        let hash = self.level.hash(key);
        let (lead, mut waiter) =
            match self
                .level
                .board(hash, key, self.lead_limit(), self.dependency(key))
            {
                Boarding::Leader(guard, waiter) => (Some(guard), waiter),
                Boarding::Waiter(waiter) => {
                    self.counts.joins.add(1);
                    (None, waiter)
                }
            };
        match timeout(limit, self.wait(key, hash, want, lead, &mut waiter)).await {
            Ok(landed) => Arc::unwrap_or_clone(landed),
            Err(_) => {
                // The caller gives up, the computation does not: its outcome may still be kept.
                waiter.leave_running();
                Err(CacheError::Timeout { after: limit })
            }
        }
    }

    /// Stays on the flight, as its leader if need be, until it lands.
    async fn wait(
        self: &Arc<Self>,
        key: &K,
        hash: u64,
        want: Want,
        mut lead: Option<Guard<K, V, E>>,
        waiter: &mut Waiter<K, V, E>,
    ) -> Landed<V, E> {
        loop {
            if let Some(guard) = lead.take() {
                self.lead(key, hash, want, guard);
            }
            match waiter.wait().await {
                Flown::Landed(Landing::Done(landed)) => return landed,
                Flown::Landed(Landing::Aborted) if self.cache.is_closed() => {
                    return Arc::new(Err(CacheError::Closed));
                }
                Flown::Landed(Landing::Aborted) => return Arc::new(Err(CacheError::LoadAborted)),
                Flown::Lead(guard) if self.cache.is_closed() => guard.abort(),
                Flown::Lead(guard) => lead = Some(guard),
            }
        }
    }

    /// Lands what the flight before this one left, if it landed between our miss and our boarding; else
    /// computes.
    fn lead(self: &Arc<Self>, key: &K, hash: u64, want: Want, guard: Guard<K, V, E>) {
        let remembered = match want {
            Want::Remembered => self.level.hit(key),
            Want::Anew => None,
        };
        match remembered {
            Some(outcome) => guard.land(Arc::new(outcome.map_err(CacheError::Load))),
            None => self.compute_in_task(key.clone(), hash, guard),
        }
    }

    /// Computes in a task that goes on while anybody waits for it.
    fn compute_in_task(self: &Arc<Self>, key: K, hash: u64, guard: Guard<K, V, E>) {
        let this = Arc::clone(self);
        let (abandoned, limit) = (guard.abandoned(), self.lead_limit());
        let bus = &self.cache.0.bus;
        let closing = bus.closing.clone();
        bus.work.spawn(async move {
            tokio::select! {
                biased;
                () = this.compute(key, hash, guard) => {}
                () = closing.cancelled() => {}
                () = abandoned => {}
                // Whoever still waits leads another one.
                () = sleep(limit) => {}
            }
        });
    }

    async fn compute(&self, key: K, hash: u64, guard: Guard<K, V, E>) {
        let (began, dependency) = (Instant::now(), self.dependency(&key));
        let cancelled = CancellationToken::new();
        let dropped = cancelled.clone().drop_guard();
        let context = LoadContext::of(key.clone(), &cancelled);
        let (outcome, said) = match self.loader.load(context).await {
            Ok(Loaded { value, said }) => (Ok(Arc::unwrap_or_clone(value)), said.ttl),
            Err(error) => (Err(Arc::new(error)), None),
        };
        dropped.disarm();
        self.counts.loaded(began.elapsed(), outcome.is_err());
        self.remember((key, hash), &guard, dependency, &outcome, said);
        guard.land(Arc::new(outcome.map_err(CacheError::Load)));
    }

    /// What a computation for `key` that begins now depends on.
    fn dependency(&self, key: &K) -> Option<Dependency> {
        let tags = self.options.tags.as_ref()?;
        Some(self.cache.0.tags.depend(&tags(key)))
    }

    fn remember(
        &self,
        (key, hash): (K, u64),
        guard: &Guard<K, V, E>,
        dependency: Option<Dependency>,
        outcome: &Result<V, Arc<E>>,
        said: Option<Ttl>,
    ) {
        let ttl = match outcome {
            Ok(value) => said.unwrap_or_else(|| (self.options.ttl)(&key, value)),
            Err(error) => match (self.options.error_ttl)(error) {
                Some(life) if !life.is_zero() => Ttl::For(life),
                _ => return, // what is remembered is better than an error that is not
            },
        };
        let expires = match ttl {
            Ttl::NONE => return self.level.supersede(guard, hash, &key),
            Ttl::For(life) => self.level.clock.now() + life.max(SHORTEST),
            Ttl::Forever => Millis::NEVER,
        };
        let weight = match (&self.options.weigh, outcome) {
            (None, _) => 1,
            (Some(weigh), Ok(value)) => weigh(&key, value).max(1),
            (Some(_), Err(_)) => ERROR_WEIGHT,
        };
        let slot = Slot::new(outcome.clone(), expires, weight, dependency);
        let evicted = self.level.keep(guard, hash, key, slot);
        if evicted > 0 {
            self.counts.evicted.add(evicted as u64);
        }
    }

    fn lead_limit(&self) -> Duration {
        self.options.load_timeout.saturating_mul(LEAD)
    }
}
