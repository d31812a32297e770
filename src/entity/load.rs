//! Loading from the source, and what becomes of the outcome.

use super::Inner;
use super::context::{Cancellation, LoadContext, Loaded, Previous, Said};
use super::course::Guard;
use super::lease::{GrantedLease, LeaseHeld};
use super::outcome::{EarlyRefresh, Landed, Origin, Outcome, StaleReason};
use super::tagging::Tagged;
use super::target::Target;
use crate::bus::Moment;
use crate::codec;
use crate::coherence::{Epoch, Rank};
use crate::envelope::{self, Header, Lease, TagVersion};
use crate::key::{Carried, Key};
use crate::local::{Life, Slot};
use crate::random::random_part;
use crate::store::{Fill, Link, Place, Replaces};
use crate::telemetry::spanned;
use crate::time::{Millis, millis};
use crate::ttl::Ttl;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Leases are no shorter than this, or a pause of the loading pod would cost it its fill …
const LEASE_MIN: Duration = Duration::from_secs(1);
/// … and no longer than this, or a crash of it would leave the key without filler for too long.
const LEASE_MAX: Duration = Duration::from_secs(30);
/// The first pause before a source is asked again that was behind what it is known to have: what a
/// healthy replica lags …
const BEHIND_PAUSE: Duration = Duration::from_millis(20);
/// … and the longest, after each of which twice as long: a replica that lags for long is in trouble already.
const BEHIND_PAUSE_MAX: Duration = Duration::from_millis(320);
/// Lives shorter than this are not jittered: their loads do not fall together.
const JITTER_FROM: Duration = Duration::from_secs(10);

/// Lives shorter than this are not refreshed early: they are over before it is worth it.
const EARLY_FROM: Duration = Duration::from_secs(1);
/// A refresh is thought of from this many load times before the end of a life on: earlier, one read in
/// half a thousand million would ask for it …
const EARLY_LOADS: u32 = 20;
/// … and in no more than this part of the life, or the outcome of a slow load would hardly be used.
const EARLY_PART: u32 = 5;

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

/// An outcome that was loaded under a lease, to be stored.
pub(super) struct Unfilled<K, V, E> {
    target: Arc<Target<K>>,
    lease: GrantedLease,
    timing: Timing,
    ttl: Ttl,
    version: Option<u64>,
    outcome: Outcome<V, E>,
    tags: Arc<[Carried]>,
}

impl<K, V, E> Unfilled<K, V, E> {
    pub(super) fn link(&self) -> &Arc<dyn Link> {
        &self.lease.held.link
    }

    pub(super) fn tags(&self) -> &[Carried] {
        &self.tags
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

/// What is to be stored of an outcome beside the outcome.
pub(super) struct About {
    pub(super) lease: Lease,
    /// When its load began, and what time it is, by the server's clock.
    pub(super) loaded_ms: u64,
    pub(super) now_ms: u64,
    pub(super) took: Duration,
    pub(super) ttl: Ttl,
    pub(super) version: Option<u64>,
    pub(super) tags: Vec<TagVersion>,
}

/// An encoded outcome, and the lease to store it under, or beside the value that it replaces.
pub(super) struct Filling<K> {
    target: Arc<Target<K>>,
    held: LeaseHeld,
    over: Option<u64>,
    epoch: Epoch,
    pub(super) envelope: Vec<u8>,
    ttl: Option<Duration>,
}

impl<K> Filling<K> {
    pub(super) fn link(&self) -> &Arc<dyn Link> {
        &self.held.link
    }

    pub(super) fn fill(&self) -> (Place<'_>, Fill<'_>) {
        let fill = Fill {
            token: self.over.unwrap_or(self.held.token),
            replaces: match self.over {
                Some(_) => Replaces::Value,
                None => Replaces::Lease,
            },
            epoch: self.epoch,
            envelope: &self.envelope,
            ttl: self.ttl,
        };
        (self.target.place(&self.held.entity), fill)
    }

    /// The store has answered. Stored, or refused because the lease is gone: either way there is none
    /// to give back. A lease beside the value is given back, which wakes those who wait for it.
    pub(super) fn answered(self) {
        if self.over.is_none() {
            self.held.forget();
        }
    }
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

    /// How long to keep an outcome; jittered, so that what was loaded together does not expire
    /// together.
    pub(super) fn ttl_of(&self, key: &K, outcome: &Outcome<V, E>, said: Option<Ttl>) -> Ttl {
        let ttl = match outcome {
            Ok(value) => said.unwrap_or_else(|| (self.options.ttl)(key, value)),
            Err(error) => match &self.options.error_codec {
                Some(codec) => (codec.ttl)(error).map_or(Ttl::NONE, Ttl::For),
                None => Ttl::NONE,
            },
        };
        match ttl {
            Ttl::For(life) if life > JITTER_FROM => {
                let random = random_part();
                let factor = 1.0 + self.options.jitter * (2.0 * random - 1.0);
                Ttl::For(Duration::try_from_secs_f64(life.as_secs_f64() * factor).unwrap_or(life))
            }
            ttl => ttl,
        }
    }

    /// The life that an outcome has here from now on.
    ///
    /// What was `guarded` has to go with its youth, lest the lane should bear it out later:
    ///
    /// 1. A writer begins, and the lane has followed it.
    /// 2. A load reads the old value.
    /// 3. The writer commits, and dies. Nothing more is logged.
    fn life_of(
        &self,
        outcome: &Outcome<V, E>,
        ttl: Ttl,
        took: Duration,
        guarded: Option<Millis>,
    ) -> Life {
        let now = self.bus().clock.now();
        let mut local_end = now + self.options.local_ttl;
        if let Some(start) = guarded {
            local_end = local_end.min(start + self.bus().rules.lease);
        }
        let Ttl::For(life) = ttl else {
            return Life::new(Millis::NEVER, Duration::ZERO, local_end);
        };
        let (grace, late) = match outcome {
            Ok(_) => (self.options.grace, self.early_window(life, took)),
            Err(_) => Default::default(),
        };
        Life::new(now + life, late, (now + life + grace).min(local_end))
    }

    /// For how long before its end a life of this length may be ended by a refresh.
    pub(super) fn early_window(&self, life: Duration, took: Duration) -> Duration {
        if life < EARLY_FROM || self.options.early_refresh == EarlyRefresh::Off {
            return Duration::ZERO;
        }
        took.saturating_mul(EARLY_LOADS).min(life / EARLY_PART)
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

    /// Stores an outcome under its lease, or over the value that it refreshes. Whatever fails here costs
    /// another load, nothing else.
    async fn fill(&self, unfilled: Unfilled<K, V, E>) {
        self.learn_for(std::slice::from_ref(&unfilled)).await;
        let Some(filling) = self.encode(unfilled) else {
            return;
        };
        let (place, fill) = filling.fill();
        let filled = filling.link().fill(place, fill);
        let filled = self.bus().ask("fill", filled).await;
        self.level.telemetry.filled(filled.as_ref().ok().copied());
        if filled.is_ok() {
            filling.answered();
        }
    }

    /// Sees to it that tags have floors before what carries them is stored: a floor that is set later
    /// may be too high for it.
    pub(super) async fn learn_for(&self, unfilled: &[Unfilled<K, V, E>]) {
        let Some(first) = unfilled.first() else {
            return;
        };
        let tags = unfilled.iter().flat_map(|one| one.tags());
        let tags: Vec<_> = tags.map(|carried| carried.tag).collect();
        let lives = unfilled.iter().filter(|one| !one.tags().is_empty());
        let lives = lives.map(|one| match one.ttl {
            Ttl::For(life) => Some(life.saturating_add(self.options.grace)),
            Ttl::Forever => None,
        });
        let longest = lives.reduce(|one, other| Some(one?.max(other?)));
        // Without its floors it is not stored, and the next read loads it again.
        let _ = self.learn(&**first.link(), &tags, longest.flatten()).await;
    }

    /// The bytes to store; `None`, and the lease given back, if there are to be none.
    pub(super) fn encode(&self, unfilled: Unfilled<K, V, E>) -> Option<Filling<K>> {
        let Unfilled {
            target,
            lease,
            timing,
            ttl,
            version,
            outcome,
            tags,
        } = unfilled;
        if ttl == Ttl::NONE && lease.over.is_none() {
            return None; // dropping the lease removes it
        }
        let Timing {
            moment,
            start,
            took,
        } = timing;
        let registry = &self.cache.0.tags;
        let tags = match tags.is_empty() || ttl == Ttl::NONE {
            true => Vec::new(),
            false => registry.versions(self.bus(), &tags, moment)?, // likewise
        };
        let GrantedLease {
            held,
            at,
            server_ms,
            granted,
            over,
        } = lease;
        let loaded_ms = server_ms + millis(start.since(granted));
        let now_ms = server_ms + millis(self.bus().clock.now().since(granted));
        let about = About {
            lease: Lease {
                token: held.token,
                began: at,
            },
            loaded_ms,
            now_ms,
            took,
            ttl,
            version,
            tags,
        };
        let stored = self.envelope(&target, &about, &outcome);
        let (envelope, ttl) = match stored {
            None if over.is_some() => self.nothing(&target, about)?,
            stored => stored?,
        };
        Some(Filling {
            target,
            held,
            over,
            epoch: at.epoch,
            envelope,
            ttl,
        })
    }

    /// The bytes to store of an outcome, and for how long; `None` if there are to be none.
    pub(super) fn envelope(
        &self,
        target: &Target<K>,
        about: &About,
        outcome: &Outcome<V, E>,
    ) -> Option<(Vec<u8>, Option<Duration>)> {
        let payload = match (outcome, &self.options.error_codec) {
            (Ok(value), _) => {
                codec::encode(&**value).map(|payload| (envelope::Outcome::Value, payload))
            }
            (Err(error), Some(codec)) => {
                (codec.encode)(error).map(|payload| (envelope::Outcome::Error, payload))
            }
            (Err(_), None) => return None,
        };
        let (header, kept) = self.header(about, outcome.is_ok());
        let encoded = payload.and_then(|(kind, payload)| {
            let packing = &self.options.packing;
            envelope::encode(kind, &header, target.hashed(), &payload, packing)
        });
        match encoded {
            Ok(envelope) if envelope.len() <= self.options.store_max_bytes => {
                Some((envelope, kept))
            }
            Ok(envelope) => {
                self.note_too_long(target, envelope.len());
                None
            }
            Err(error) => {
                tracing::warn!(entity = %self.name, %error, "outcome cannot be encoded; not stored");
                None
            }
        }
    }

    /// What takes the place of a stored value whose successor cannot be stored, for a moment: no outcome.
    fn nothing(&self, target: &Target<K>, about: About) -> Option<(Vec<u8>, Option<Duration>)> {
        let (ttl, tags) = (Ttl::NONE, Vec::new());
        let (header, kept) = self.header(&About { ttl, tags, ..about }, false);
        let (none, packing) = (envelope::Outcome::Error, &self.options.packing);
        let envelope = envelope::encode(none, &header, target.hashed(), &[], packing).ok()?;
        Some((envelope, kept))
    }

    /// The header of what is stored, and how long that is kept.
    fn header(&self, about: &About, is_value: bool) -> (Header, Option<Duration>) {
        // A life of nothing is for the value that stood there: it is over with the next millisecond.
        let life = match about.ttl {
            Ttl::For(life) => Some(life),
            Ttl::Forever => None,
        };
        let grace = match is_value && about.ttl != Ttl::NONE {
            true => self.options.grace,
            false => Duration::ZERO,
        };
        let end = |life: Duration| about.now_ms.saturating_add(millis(life).max(1));
        let kept = life.map(|life| life.saturating_add(grace));
        let header = Header {
            lease: about.lease,
            loaded_ms: about.loaded_ms,
            expires_ms: kept.map_or(0, end),
            soft_expires_ms: life.filter(|_| !grace.is_zero()).map_or(0, end),
            load_us: u32::try_from(about.took.as_micros()).unwrap_or(u32::MAX),
            schema: self.options.schema,
            version: about.version.filter(|_| is_value),
            tags: about.tags.clone(),
        };
        (header, kept)
    }

    /// Logged at most now and then for a key: each pod loads it again and again.
    fn note_too_long(&self, target: &Target<K>, bytes: usize) {
        self.level.telemetry.filled(None);
        if self
            .unusable_log
            .may_log(target.hash, self.bus().clock.now())
        {
            tracing::warn!(entity = %self.name, key = %String::from_utf8_lossy(&target.name), bytes,
                max = self.options.store_max_bytes,
                "outcome is longer than `store_max_bytes`; not stored");
        }
    }

    /// How long a lease lasts: three times what loads of this entity usually take, but at most half of
    /// what a caller waits, so that a caller whose leader died in another pod has time left to load.
    pub(super) fn lease_ttl(&self) -> Duration {
        let longest = (self.options.load_timeout / 2).clamp(LEASE_MIN, LEASE_MAX);
        self.usual_load
            .get()
            .map_or(longest, |usual| (usual * 3).clamp(LEASE_MIN, longest))
    }

    /// How long to wait for another pod's load before loading without it.
    pub(super) fn patience(&self) -> Duration {
        let lease = self.lease_ttl();
        self.usual_load
            .get()
            .map_or(lease, |usual| (usual * 2).max(LEASE_MIN).min(lease))
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
