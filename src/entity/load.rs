//! Loading from the source, and what becomes of the outcome.

use super::Inner;
use super::context::{Cancellation, LoadContext, Loaded, Previous, Said};
use super::course::Guard;
use super::fill::Unfilled;
use super::lease::GrantedLease;
use super::outcome::{EarlyRefresh, Landed, Origin, Outcome, StaleReason};
use super::tagging::Tagged;
use super::target::Target;
use crate::bus::Moment;
use crate::coherence::Rank;
use crate::key::{Carried, Key};
use crate::local::Slot;
use crate::random::random_part;
use crate::telemetry::spanned;
use crate::time::Millis;
use crate::ttl::Ttl;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
/// The first pause before a source is asked again that was behind what it is known to have: what a
/// healthy replica lags …
const BEHIND_PAUSE: Duration = Duration::from_millis(20);
/// … and the longest, after each of which twice as long: a replica that lags for long is in trouble already.
const BEHIND_PAUSE_MAX: Duration = Duration::from_millis(320);

/// What a load may do with its outcome.
pub(super) struct LoadRun<V> {
    /// The lane position that the outcome will reflect, if the lane is followed.
    pub(super) rank: Option<Rank>,
    pub(super) generation: u32,
    pub(super) lease: Option<GrantedLease>,
    /// It waits for its turn among the loads that the entity's limit is for.
    pub(super) queued: bool,
    /// What was found that is to be replaced.
    pub(super) previous: Option<Previous<V>>,
    /// The key is being written, or may be: whatever the lane says, the outcome is served by its youth
    /// alone.
    pub(super) guarded: bool,
    /// The version that the source has at least.
    pub(super) minimum: Option<u64>,
}

impl<V> LoadRun<V> {
    /// Keeps readers from joining on the lane's word what is to be served by its youth (hole H28). To be
    /// called before the load begins: those who joined before that asked before.
    pub(super) fn tell_flight<K, E>(&self, guard: &Guard<K, V, E>) {
        if self.guarded {
            guard.change(|course| course.meta.uncovered = true);
        }
    }

    /// Whether an outcome of this version, or of none, may reflect less than the source is known to have.
    fn may_be_behind(&self, version: Option<u64>) -> bool {
        self.minimum.is_some() && version < self.minimum
    }
}

/// When a load began, and how long it took.
#[derive(Clone, Copy)]
pub(super) struct Timing {
    /// Taken before the load began, and before the clock was read.
    pub(super) moment: Moment,
    pub(super) start: Millis,
    pub(super) took: Duration,
}

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Loads by the entity's loader, in a task that goes on while anybody waits for it.
    pub(super) fn load_in_task(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        guard: Guard<K, V, E>,
        run: LoadRun<V>,
    ) {
        let (this, key) = (Arc::clone(self), Arc::clone(target));
        let abandoned = guard.abandoned();
        self.in_task(target, abandoned, async move {
            this.load_by_loader(&key, guard, run).await;
        });
    }

    /// Runs what leads a flight of `target` until it ends, or until nobody waits for the flight any more.
    pub(super) fn in_task(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        abandoned: impl Future<Output = ()> + Send + 'static,
        lead: impl Future<Output = ()> + Send + 'static,
    ) {
        let (this, target) = (Arc::clone(self), Arc::clone(target));
        let (closing, limit) = (self.bus().closing.clone(), self.lead_limit());
        self.bus().work.spawn(async move {
            tokio::select! {
                biased;
                () = lead => {}
                () = closing.cancelled() => {}
                () = abandoned => {}
                // A hung load must not hold the key for ever: whoever still waits leads another one.
                () = sleep(limit) => {
                    this.level.telemetry.load_timed_out();
                    this.note_failure(&target, StaleReason::LoadTimedOut);
                }
            }
        });
    }

    /// Loads by the entity's loader, which is told if this is dropped.
    pub(super) async fn load_by_loader(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        guard: Guard<K, V, E>,
        mut run: LoadRun<V>,
    ) {
        let previous = run.previous.take().or_else(|| self.previous(target));
        let cancelled = CancellationToken::new();
        let dropped = cancelled.clone().drop_guard();
        let (hash, told) = (target.hash, run.minimum);
        let context = || LoadContext {
            key: target.key.clone(),
            previous: previous.clone(),
            minimum: told.max(self.bus().minimum(hash)),
            cancellation: Cancellation::of(&cancelled),
        };
        let load = async {
            let _panic = OnPanic(|| {
                self.level.telemetry.load_aborted();
                self.note_failure(target, StaleReason::LoadFailed);
            });
            let loaded = self.load_up_to_date(context).await;
            dropped.disarm();
            loaded
        };
        self.load_here(target, guard, run, load).await;
    }

    /// Loads until the source states a version that is not below the minimum that the context names; as
    /// long as the lead lasts, which whoever runs it ends. What states no version is taken as it is.
    async fn load_up_to_date(
        &self,
        context: impl Fn() -> LoadContext<K, V>,
    ) -> Result<Loaded<V>, E> {
        let mut pause = BEHIND_PAUSE;
        loop {
            let context = context();
            let minimum = context.minimum;
            let loaded = self.loader.load(context).await?;
            let (Some(version), Some(minimum)) = (loaded.said.version, minimum) else {
                return Ok(loaded);
            };
            if version >= minimum {
                return Ok(loaded);
            }
            self.level.telemetry.load_behind();
            tracing::debug!(entity = %self.name, version, minimum, "the source is behind; loading again");
            sleep(pause.mul_f64(0.5 + random_part())).await;
            pause = (pause * 2).min(BEHIND_PAUSE_MAX);
        }
    }

    /// The value that this pod has kept of a key, whether or not it may be served.
    fn previous(&self, target: &Target<K>) -> Option<Previous<V>> {
        let slot = self.level.remembered(target.hash, &target.key)?;
        let age = self.bus().clock.now().since(slot.loaded);
        Some(Previous::new(slot.value.ok()?, age))
    }

    /// Lets nobody load anew for a while what can be served without.
    pub(super) fn note_failure(&self, target: &Target<K>, reason: StaleReason) {
        if self.options.grace.is_zero() && self.options.early_refresh == EarlyRefresh::Off {
            return;
        }
        let now = self.bus().clock.now();
        let until = now + self.options.retry_after;
        self.attempts.rest(target.hash, now, until, reason);
    }

    /// Runs `load`, lands its outcome, and lets it be stored behind the caller.
    pub(super) async fn load_here(
        self: &Arc<Self>,
        target: &Arc<Target<K>>,
        guard: Guard<K, V, E>,
        mut run: LoadRun<V>,
        load: impl Future<Output = Result<Loaded<V>, E>>,
    ) {
        let _permit = match run.queued {
            false => None,
            true => {
                let permit = self.limiter.acquire().await;
                self.date_anew(target, &mut run);
                Some(permit)
            }
        };
        run.tell_flight(&guard);
        let moment = self.bus().moment();
        let (start, precise) = (self.bus().clock.now(), Instant::now());
        let load = spanned!("tidings.load", { cache = %self.bus().namespace.name, entity = %self.name }, load);
        let (outcome, said) = match load.await {
            Ok(loaded) => (Ok(loaded.value), loaded.said),
            Err(error) => (Err(Arc::new(error)), Said::default()),
        };
        let took = precise.elapsed();
        self.usual_load.add(took);
        self.level.telemetry.load_took(took);
        self.level.telemetry.loaded(outcome.is_err());
        let timing = Timing {
            moment,
            start,
            took,
        };
        if let Some(unfilled) = self.land_loaded(target, guard, run, timing, outcome, said) {
            let this = Arc::clone(self);
            self.bus()
                .work
                .spawn(async move { this.fill(unfilled).await });
        }
    }

    /// What was known before a load had to wait would date it too early, which is safe but wasteful.
    /// Under a lease the store says what it reflects, however long ago.
    pub(super) fn date_anew(&self, target: &Target<K>, run: &mut LoadRun<V>) {
        if run.lease.is_none() {
            let began = self.began(target.lane);
            (run.rank, run.generation) = (began.rank(), began.word.generation());
            run.guarded |= self.bus().may_be_guarded(target.lane, target.hash);
            run.minimum = run.minimum.max(self.bus().minimum(target.hash));
        }
    }

    /// Keeps an outcome here and tells all who wait for it; gives what is left to do if it is also for
    /// the store. `said` is what its loader said of it.
    pub(super) fn land_loaded(
        &self,
        target: &Arc<Target<K>>,
        guard: Guard<K, V, E>,
        mut run: LoadRun<V>,
        timing: Timing,
        outcome: Outcome<V, E>,
        said: Said,
    ) -> Option<Unfilled<K, V, E>> {
        let mut ttl = self.ttl_of(&target.key, &outcome, said.ttl);
        if run.may_be_behind(said.version) {
            // Dropping the lease gives it back.
            (run.lease, run.guarded) = (None, true);
            if said.version.is_some() {
                ttl = Ttl::NONE; // it is behind
            }
        }
        let tags = self.tags_of(target, &outcome, said.tags);
        let mut landed = Landed::new(&outcome, Origin::Loader, timing.took, timing.start);
        landed.tagged = (!tags.is_empty()).then(|| Tagged {
            tags: Arc::clone(&tags),
            then: timing.moment,
        });
        landed.tied = !tags.is_empty();
        landed.settled = outcome.is_ok() || ttl != Ttl::NONE;
        if landed.settled {
            self.attempts.clear(target.hash);
            self.keep_loaded(target, &guard, &run, timing, ttl, (&outcome, &tags));
        } else {
            self.note_failure(target, StaleReason::LoadFailed);
        }
        let settled = landed.settled;
        guard.land(landed);
        let lease = run.lease?;
        if !settled {
            if lease.over.is_some() {
                // What could not be refreshed is left alone by other pods too, until this ends.
                lease.held.forget();
            }
            return None;
        }
        Some(Unfilled {
            target: Arc::clone(target),
            lease,
            timing,
            ttl,
            version: said.version,
            outcome,
            tags,
        })
    }

    fn keep_loaded(
        &self,
        target: &Target<K>,
        guard: &Guard<K, V, E>,
        run: &LoadRun<V>,
        Timing {
            moment,
            start,
            took,
        }: Timing,
        ttl: Ttl,
        (outcome, tags): (&Outcome<V, E>, &[Carried]),
    ) {
        if ttl == Ttl::NONE || self.options.local_ttl.is_zero() {
            let rank = run.rank.unwrap_or_default();
            return self.level.forget(self.bus(), target.hash, rank);
        }
        let tied = match tags.is_empty() {
            true => None,
            false => match self.cache.0.tags.tie(self.bus(), tags, start, moment) {
                Some(dependency) => Some(Arc::new(dependency)),
                None => return, // for those alone who asked before
            },
        };
        let slot = Slot {
            value: outcome.clone(),
            tied,
            // Without a lane to follow it ranks below everything: any invalidation removes it, and the
            // flush with which a lane begins. Until then its own youth is what it is served by.
            rank: run.rank.unwrap_or_default(),
            generation: run.generation,
            load_start: start,
            loaded: start,
            load_ms: whole_millis(took),
            life: self.life_of(outcome, ttl, took, run.guarded.then_some(start)),
        };
        self.level
            .insert(self.bus(), target.hash, target.key.clone(), slot, |_| {
                // Detached: an invalidation came after the load began, possibly one without a position
                // yet.
                !guard.is_detached()
            });
    }
}

/// Does something if it is dropped by a panic.
pub(super) struct OnPanic<F: Fn()>(pub(super) F);

impl<F: Fn()> Drop for OnPanic<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0)();
        }
    }
}

/// Whole milliseconds, saturating. What takes less than one is not worth a refresh ahead of its time.
pub(super) fn whole_millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
