//! What every local level of one cache shares: the lanes it follows, the locks that order inserts
//! against invalidations, and the link to the store.
//!
//! [`driver`] learns from the store and runs the pure core; [`calls`] runs this pod's own
//! invalidations; entities read. They meet here:
//!
//! - a lane's [`LaneState`] is behind a lock, and the [`Action`]s that touch this process are carried
//!   out under it, so that nobody sees a position that is not applied;
//! - a *stripe* is the lock that one key's insert and eviction share. It holds the newest applied
//!   invalidation of its keys, and which of them this pod is invalidating right now.
//!
//! Locks are taken in the order lane → stripe → member, and never held over an `.await`.

mod breaker;
mod calls;
mod driver;
mod guard;
mod health;
mod invalidation;
mod join;
mod journal;
mod listen;
mod minimum;
mod pace;
mod pending;
mod put;
mod sample;
mod stamp;

pub use breaker::CircuitState;
pub use guard::{
    BeginWrite, BeginWriteError, DEFAULT_GUARD_TTL, Finished, MAX_GUARD_TTL, WriteGuard,
};
pub use health::{Health, StoreState};
pub use invalidation::{CloseReport, InvalidateError, Invalidation, Pending, Unacknowledged};
pub(crate) use journal::Journal;
#[cfg(feature = "testing")]
pub(crate) use journal::read_rubbish;
pub use journal::{JournalDamage, JournalHealth};
pub(crate) use listen::{Listener, Liveness};
pub use minimum::MINIMUM_VERSION_TTL;
pub use pending::DEFAULT_MAX_PENDING;
pub(crate) use pending::LEAST_MAX_PENDING;
pub(crate) use put::OwnedPut;
pub use stamp::{ParseStampError, Stamp};

use crate::coherence::{Action, Epoch, Lane, LaneState, Nonce, Position, Rank, Rules, View};
use crate::error::{StoreError, StoreErrorKind};
use crate::key::KeySpace;
use crate::random::random;
use crate::store::{Link, Namespace, Opening, Store, StoreResult};
use crate::telemetry::{CacheStats, Event, PresenceStats, Telemetry, spanned};
use crate::time::{Clock, Millis};
use bytes::Bytes;
use health::Observed;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Stripes per lane.
const STRIPES: usize = 256;

/// How long a read, lease or fill may take unless [`CacheBuilder::read_timeout`] says otherwise: hundreds
/// of round trips in one data centre, and about as long as a person does not notice.
///
/// [`CacheBuilder::read_timeout`]: crate::CacheBuilder::read_timeout
pub const DEFAULT_READ_TIMEOUT: Duration = Duration::from_millis(250);

/// How long a caller waits for its invalidation unless [`CacheBuilder::invalidate_timeout`] says
/// otherwise: long enough for a link to break, be noticed (0.4 s), and be opened again (0.75 s).
///
/// [`CacheBuilder::invalidate_timeout`]: crate::CacheBuilder::invalidate_timeout
pub const DEFAULT_INVALIDATE_TIMEOUT: Duration = Duration::from_secs(2);

/// The times that the protocol runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    /// Mean time between polls of the heads.
    pub(crate) heartbeat: Duration,
    /// How long a poll may take; then the link is given up.
    pub(crate) poll_timeout: Duration,
    /// How long a read, lease or fill may take; then the load goes on without the store.
    pub(crate) read_timeout: Duration,
    /// How long a caller waits for its invalidation to be acknowledged, and one attempt may take.
    pub(crate) invalidate_timeout: Duration,
    /// How long it may take to make sure of every lane.
    pub(crate) touch_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(250),
            poll_timeout: Duration::from_millis(400),
            read_timeout: DEFAULT_READ_TIMEOUT,
            invalidate_timeout: DEFAULT_INVALIDATE_TIMEOUT,
            touch_timeout: Duration::from_secs(1),
        }
    }
}

/// How invalidations that the store has not acknowledged are kept.
#[derive(Debug)]
pub(crate) struct PendingOptions {
    /// How many at most.
    pub(crate) max: usize,
    pub(crate) journal: Option<Journal>,
}

impl Default for PendingOptions {
    fn default() -> Self {
        Self {
            max: DEFAULT_MAX_PENDING,
            journal: None,
        }
    }
}

/// How long a reader waits for its lane to reach a stamp: a poll, and a read of the log.
const REACH_LIMIT: Duration = Duration::from_millis(500);

/// L, the length of a confirmation: a heartbeat, a poll and some slack.
pub(crate) const LEASE: Duration = Duration::from_secs(1);

/// A local level, as the bus sees it. Called with the lane's lock held, and for `evict` the stripe's.
pub(crate) trait Member: Send + Sync {
    /// The entity's hash, as a clear names it.
    fn entity(&self) -> u64;
    /// Removes what stands under `hash` and ranks below `below`, and detaches such a flight.
    fn evict(&self, hash: u64, below: Rank);
    /// Starts a new generation on `lane` and detaches its flights.
    fn flush(&self, lane: Lane);
    /// As [`flush`](Self::flush), unless a clear of at least this rank was carried out already.
    fn clear(&self, lane: Lane, rank: Rank);
    /// `lane` is live until then.
    fn confirm(&self, lane: Lane, until: Millis);
    /// How many flights a caller could board or join.
    #[cfg(feature = "testing")]
    fn flights(&self) -> usize;
}

/// Who hears the messages of the subscription that are no hints. Called by the driver: must not wait.
pub(crate) trait RoomListener: Send + Sync {
    /// A message that came on the link in use, or on the one that is about to be.
    fn heard(&self, message: Bytes);
    /// What is done there, and was.
    fn stats(&self) -> PresenceStats;
}

/// What a cache has under way; see [`Cache::under_way`](crate::Cache::under_way).
#[cfg(feature = "testing")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnderWay {
    /// Tasks behind its callers: loads, fills, invalidations that are repeated, leases that are given
    /// back; and those that are there for as long as somebody wants them: handlers, queries, rooms.
    pub tasks: usize,
    /// Loads and refreshes of entities that a caller could join.
    pub flights: usize,
    /// Invalidations that the store has not acknowledged.
    pub invalidations: usize,
}

/// What orders the inserts and evictions of one stripe's keys.
#[derive(Debug, Default)]
pub(crate) struct Stripe {
    /// The newest applied invalidation.
    pub(crate) last: Rank,
    /// Keys that this pod is invalidating and that the store has not acknowledged: what the store
    /// holds under them is not to be believed.
    poisoned: Vec<u64>,
    /// When this pod last came to know of an invalidation of one of its keys or names.
    noticed: Moment,
    /// The same by the clock.
    disturbed: Millis,
}

/// A moment in the order in which this pod comes to know of invalidations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Stripe {
    pub(crate) fn is_poisoned(&self, hash: u64) -> bool {
        self.poisoned.contains(&hash)
    }
}

struct LaneCell {
    state: Mutex<LaneState>,
    stripes: Box<[Mutex<Stripe>]>,
    /// When it was last flushed: a [`Moment`].
    flushed: AtomicU64,
    /// The lane is live until then; what new members start from.
    until: AtomicU64,
    /// Since when, by the clock, every entry of its log was applied.
    followed_since: AtomicU64,
}

/// The shared part of one cache.
pub(crate) struct Bus {
    pub(crate) namespace: Namespace,
    pub(crate) space: KeySpace,
    pub(crate) rules: Rules,
    pub(crate) clock: Clock,
    pub(crate) timing: Timing,
    /// Loads, fills and invalidations that outlive the call that began them.
    pub(crate) work: TaskTracker,
    /// Ends loads, and makes new calls fail.
    pub(crate) closing: CancellationToken,
    driver: TaskTracker,
    /// Where its tasks run: a batch may end outside of it.
    runtime: Handle,
    /// Ends the driver and everything else.
    pub(crate) shutdown: CancellationToken,
    store: Arc<dyn Store>,
    lanes: Box<[LaneCell]>,
    members: RwLock<Vec<Weak<dyn Member>>>,
    room_listener: OnceLock<Weak<dyn RoomListener>>,
    link: RwLock<Option<Arc<dyn Link>>>,
    /// Counts links that went up: who waits for the store waits for a change.
    link_up: watch::Sender<u64>,
    /// Changes as links come and go, and with every life of the server behind a link.
    life: watch::Sender<u64>,
    /// Woken whenever a lane took a head or a piece of its log.
    synced: Notify,
    /// Wakes the driver: somebody wants a poll, or a lane set itself a time.
    nudge: Notify,
    fill_waiters: Mutex<HashMap<u64, Arc<Notify>>>,
    calls: calls::Calls,
    hold_offs: guard::HoldOffs,
    minimums: minimum::Minimums,
    breaker: Mutex<breaker::Breaker>,
    observed: Observed,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) liveness: Arc<Liveness>,
    listening: listen::Listening,
    journal: Option<Arc<Journal>>,
    nonce_base: u64,
    nonces: AtomicU64,
    /// The newest [`Moment`].
    moments: AtomicU64,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus")
            .field("namespace", &self.namespace.name)
            .field("store", &self.store.describe())
            .finish_non_exhaustive()
    }
}

impl Bus {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        namespace: Namespace,
        space: KeySpace,
        rules: Rules,
        timing: Timing,
        clock: Clock,
        pending: PendingOptions,
    ) -> Arc<Self> {
        let deferral = store.publishes_within();
        let lane = || LaneCell {
            state: Mutex::new(LaneState::new(rules.mechanisms).deferring(deferral)),
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            flushed: AtomicU64::new(0),
            until: AtomicU64::new(0),
            followed_since: AtomicU64::new(clock.now().0),
        };
        Arc::new(Self {
            lanes: namespace.lanes().map(|_| lane()).collect(),
            telemetry: Arc::new(Telemetry::new(&namespace.name)),
            calls: calls::Calls::new(namespace.lanes, pending.max),
            hold_offs: guard::HoldOffs::default(),
            minimums: minimum::Minimums::default(),
            namespace,
            space,
            rules,
            liveness: Arc::new(Liveness::new(clock.clone(), rules.lease)),
            clock,
            timing,
            work: TaskTracker::new(),
            closing: CancellationToken::new(),
            driver: TaskTracker::new(),
            runtime: Handle::current(),
            shutdown: CancellationToken::new(),
            store,
            members: RwLock::default(),
            room_listener: OnceLock::new(),
            link: RwLock::default(),
            link_up: watch::Sender::new(0),
            life: watch::Sender::new(0),
            synced: Notify::new(),
            nudge: Notify::new(),
            fill_waiters: Mutex::default(),
            breaker: Mutex::default(),
            observed: Observed::default(),
            listening: listen::Listening::default(),
            journal: pending.journal.map(Arc::new),
            nonce_base: random(),
            nonces: AtomicU64::new(0),
            moments: AtomicU64::new(0),
        })
    }

    /// What is under way: see [`Cache::under_way`](crate::Cache::under_way).
    #[cfg(feature = "testing")]
    pub(crate) fn under_way(&self) -> UnderWay {
        let mut flights = 0;
        self.each_member(|member| flights += member.flights());
        UnderWay {
            tasks: self.work.len(),
            flights,
            invalidations: self.health().pending,
        }
    }

    /// Registers a local level. Its lanes start as live as the cache's are.
    pub(crate) fn register(&self, member: &Arc<impl Member + 'static>) {
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        members.retain(|member| member.strong_count() > 0);
        for lane in self.namespace.lanes() {
            member.confirm(lane, self.live_until(lane));
        }
        let member: Weak<dyn Member> = Arc::downgrade(&(Arc::clone(member) as Arc<dyn Member>));
        members.push(member);
    }

    /// Hands messages that are no hints to `listener`, the first that is given.
    pub(crate) fn listen_to_rooms(&self, listener: Weak<dyn RoomListener>) {
        self.room_listener.get_or_init(|| listener);
    }

    /// What was counted so far.
    pub(crate) fn stats(&self) -> CacheStats {
        self.telemetry.stats(self.presence())
    }

    fn presence(&self) -> PresenceStats {
        let listener = self.room_listener.get().and_then(Weak::upgrade);
        listener.map_or_else(PresenceStats::default, |rooms| rooms.stats())
    }

    /// Changes as links come and go, and with every life of the server behind a link: whoever keeps
    /// something in the store has to look whether it is still there.
    pub(crate) fn life(&self) -> watch::Receiver<u64> {
        self.life.subscribe()
    }

    fn each_member(&self, mut act: impl FnMut(&dyn Member)) {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        members
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|member| act(&*member));
    }

    fn cell(&self, lane: Lane) -> &LaneCell {
        &self.lanes[usize::from(lane.0)]
    }

    /// The lane is live before this time.
    pub(crate) fn live_until(&self, lane: Lane) -> Millis {
        Millis(self.cell(lane).until.load(Ordering::Acquire))
    }

    /// What a load on `lane` that starts now may rely on.
    pub(crate) fn view(&self, lane: Lane) -> Option<View> {
        lock(&self.cell(lane).state).view()
    }

    /// The lock that orders inserts and evictions under `hash`.
    pub(crate) fn stripe(&self, lane: Lane, hash: u64) -> MutexGuard<'_, Stripe> {
        // The upper bits chose the lane, so the lower ones spread evenly within it.
        lock(&self.cell(lane).stripes[hash as usize % STRIPES])
    }

    /// The link in use, if there is one.
    pub(crate) fn link(&self) -> StoreResult<Arc<dyn Link>> {
        let link = self.link.read().unwrap_or_else(PoisonError::into_inner);
        link.clone().ok_or_else(|| {
            if self.shutdown.is_cancelled() {
                StoreError::new(StoreErrorKind::Closed, "use")
            } else {
                self.observed.why_down()
            }
        })
    }

    /// The link for a call that concerns this cache alone and that nobody repeats: raw data, commands.
    /// Without a link nothing was sent, whatever the trouble is.
    pub(crate) fn link_now(&self, operation: &'static str) -> StoreResult<Arc<dyn Link>> {
        if self.closing.is_cancelled() {
            return Err(StoreError::new(StoreErrorKind::Closed, operation));
        }
        self.link().map_err(|why| match why.kind() {
            StoreErrorKind::Closed => StoreError::new(StoreErrorKind::Closed, operation),
            _ => StoreError::new(StoreErrorKind::Unavailable, operation).with_source(why),
        })
    }

    /// The address of the store.
    #[cfg(feature = "redis")]
    pub(crate) fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Runs one store call under a time limit.
    pub(crate) async fn within<T>(
        &self,
        limit: Duration,
        operation: &'static str,
        call: impl Future<Output = StoreResult<T>>,
    ) -> StoreResult<T> {
        let began = Instant::now();
        let call = spanned!("tidings.store", { cache = %self.namespace.name, operation }, call);
        let result = match tokio::time::timeout(limit, call).await {
            Ok(result) => result,
            Err(_) => Err(StoreError::new(StoreErrorKind::Timeout, operation)),
        };
        let telemetry = &self.telemetry;
        telemetry.store_called(operation, began.elapsed(), result.is_err());
        result
    }

    /// The latest that the server's clock can show by now: Unix milliseconds. `None` before the
    /// first poll.
    pub(crate) fn server_now(&self) -> Option<u64> {
        self.observed.server_now(self.clock.now())
    }

    /// Runs `task` behind the caller, who need not be in the runtime.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.work.spawn_on(task, &self.runtime);
    }

    /// A number that no other call has.
    pub(crate) fn nonce(&self) -> Nonce {
        let count = self.nonces.fetch_add(1, Ordering::Relaxed);
        Nonce(self.nonce_base.wrapping_add(count))
    }

    /// What a new epoch would be made of.
    pub(crate) fn opening(&self) -> Opening {
        let random_epoch = self
            .rules
            .mechanisms
            .on(crate::coherence::Mechanism::RandomEpoch);
        let epoch = if random_epoch {
            Epoch(random())
        } else {
            Epoch(1)
        };
        Opening {
            epoch,
            nonce: self.nonce(),
        }
    }

    /// Runs one step of a lane and carries out what it asks of this process. Gives back what it asks
    /// of the store.
    fn step<T>(
        &self,
        lane: Lane,
        step: impl FnOnce(&mut LaneState, &mut Vec<Action>) -> T,
    ) -> (T, Vec<Action>) {
        let mut actions = Vec::new();
        let mut state = lock(&self.cell(lane).state);
        let was_due = state.due().is_some();
        let result = step(&mut state, &mut actions);
        if !was_due && state.due().is_some() {
            self.telemetry.noticed_gap(lane);
        }
        actions.retain(|action| !self.carry_out(lane, action));
        drop(state);
        (result, actions)
    }

    /// The lane is told of a head, as by a poll.
    #[cfg(test)]
    pub(crate) fn follow(&self, lane: Lane, head: crate::coherence::Head) {
        let now = self.clock.now();
        self.step(lane, |state, out| state.on_head(Some(head), now, now, out));
    }

    /// Carries out an action that concerns only this process; false if it is not one.
    fn carry_out(&self, lane: Lane, action: &Action) -> bool {
        match *action {
            Action::Evict { hash, rank } => self.evict(lane, hash, rank),
            Action::Drop { hash } => {
                let mut stripe = self.stripe(lane, hash);
                stripe.noticed = self.next_moment();
                stripe.disturbed = self.clock.now();
                self.each_member(|member| member.evict(hash, Rank(u64::MAX)));
            }
            Action::Clear { entity, rank } => self.each_member(|member| {
                if member.entity() == entity {
                    member.clear(lane, rank);
                }
            }),
            Action::Tell { nonce, ref change } => self.tell_of(lane, nonce, change),
            Action::Flush => {
                self.flush(lane);
                self.tell_missed(lane);
            }
            Action::Confirm { sent } => self.confirm(lane, sent),
            Action::Filled { hash } => self.wake_fill_waiters(hash),
            Action::ReadLog { .. }
            | Action::Poll
            | Action::Touch
            | Action::Fence { .. }
            | Action::Reissue(_) => return false,
        }
        true
    }

    fn evict(&self, lane: Lane, hash: u64, rank: Rank) {
        let mut stripe = self.stripe(lane, hash);
        self.notice(&mut stripe, rank);
        self.each_member(|member| member.evict(hash, rank));
    }

    /// Takes note of an invalidation, unless it is one that was noticed before, or older than one: then
    /// whoever began since knows of it.
    fn notice(&self, stripe: &mut Stripe, rank: Rank) {
        if stripe.last < rank {
            stripe.last = rank;
            stripe.noticed = self.next_moment();
            stripe.disturbed = self.clock.now();
        }
    }

    /// Takes note that anything on `lane` may have been invalidated.
    fn notice_all(&self, lane: Lane) {
        let Moment(now) = self.next_moment();
        self.cell(lane).flushed.fetch_max(now, Ordering::AcqRel);
    }

    fn next_moment(&self) -> Moment {
        Moment(1 + self.moments.fetch_add(1, Ordering::AcqRel))
    }

    /// Now, for [`noticed_since`](Self::noticed_since).
    pub(crate) fn moment(&self) -> Moment {
        Moment(self.moments.load(Ordering::Acquire))
    }

    /// Whether this pod may have come to know of an invalidation of `hash`, a key's or a name's, since
    /// `then`. Those that share its stripe are taken for its own.
    pub(crate) fn noticed_since(&self, lane: Lane, hash: u64, then: Moment) -> bool {
        let noticed = self.stripe(lane, hash).noticed;
        let flushed = Moment(self.cell(lane).flushed.load(Ordering::Acquire));
        noticed.max(flushed) > then
    }

    /// Whether a marker may stand for `hash` as far as this pod knows by itself: one that was left longer
    /// ago than any lasts has ended, and one that was left since was logged as an invalidation. To be asked
    /// after a [`view`](Self::view) was taken: what is logged behind that outranks what is loaded by it.
    /// Keys that share a stripe are taken for one.
    pub(crate) fn may_be_guarded(&self, lane: Lane, hash: u64) -> bool {
        let followed_since = Millis(self.cell(lane).followed_since.load(Ordering::Acquire));
        let disturbed = self.stripe(lane, hash).disturbed.max(followed_since);
        self.clock.now() < disturbed + MAX_GUARD_TTL
    }

    /// 1. The generations move on: nothing older is served, or inserted any more.
    /// 2. Only then may ranks start again from nothing.
    fn flush(&self, lane: Lane) {
        self.notice_all(lane);
        let now = self.clock.now();
        self.cell(lane)
            .followed_since
            .fetch_max(now.0, Ordering::AcqRel);
        self.each_member(|member| member.flush(lane));
        for stripe in &self.cell(lane).stripes {
            lock(stripe).last = Rank::default();
        }
        self.observed.count_flush();
        self.telemetry.tell(|| Event::LaneFlushed { lane: lane.0 });
    }

    fn confirm(&self, lane: Lane, sent: Millis) {
        let until = sent + self.rules.lease;
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        self.cell(lane).until.fetch_max(until.0, Ordering::AcqRel);
        members
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|member| member.confirm(lane, until));
    }

    /// What was learnt in one go is done: whoever depends on all lanes knows of it, and those who were
    /// told may run. Called under no lock.
    fn settle(&self) {
        let untils = self
            .lanes
            .iter()
            .map(|cell| cell.until.load(Ordering::Acquire));
        self.liveness.confirm(untils.min().unwrap_or_default());
        self.wake_told();
    }

    /// Waits until everything up to `stamp` is applied.
    ///
    /// Epochs cannot be compared, and a stamp may be forged. But what a poll confirms that was sent after
    /// we were asked contains everything that was acknowledged before, whatever the stamp says.
    ///
    /// # Errors
    /// `Unavailable` if the store does not confirm anything in time.
    pub(crate) async fn reach(&self, stamp: &Stamp) -> StoreResult<()> {
        let asked = self.clock.now();
        let end = Instant::now() + REACH_LIMIT;
        let reached = |(lane, at): (Lane, Position)| {
            let view = self.view(lane).filter(|view| view.epoch == at.epoch);
            let applied = view.is_some_and(|view| view.applied.seq() >= at.seq);
            applied || self.live_until(lane) > asked + self.rules.lease
        };
        while Instant::now() < end {
            // Nothing is ever logged on a lane that the namespace has not.
            let mut ours = stamp
                .positions()
                .filter(|(lane, _)| lane.0 < self.namespace.lanes);
            if ours.all(reached) {
                return Ok(());
            }
            self.sync(REACH_LIMIT / 5).await;
        }
        let detail = "the lanes of the stamp were not confirmed in time";
        Err(StoreError::new(StoreErrorKind::Unavailable, "reach a stamp").with_detail(detail))
    }

    /// Asks the driver for a poll now, and waits until `lane` has learnt something or `limit` passed.
    pub(crate) async fn sync(&self, limit: Duration) {
        let learnt = self.synced.notified();
        self.ask_for_poll();
        // Out of time is as good as synced: whoever waits looks at the lane again either way.
        let _ = tokio::time::timeout(limit, learnt).await;
    }

    pub(crate) fn ask_for_poll(&self) {
        self.observed.ask_for_poll();
        self.nudge.notify_one();
    }

    /// Woken when a fill of `hash` is announced. Keep the handle while waiting.
    pub(crate) fn fill_waiter(&self, hash: u64) -> Arc<Notify> {
        let mut waiters = lock(&self.fill_waiters);
        waiters.retain(|_, waiter| Arc::strong_count(waiter) > 1);
        Arc::clone(waiters.entry(hash).or_default())
    }

    /// Ends everything in the order that loses least: no new calls, invalidations first, then loads
    /// give their leases back, then the link goes. Takes `limit` at most. Gives what was not acknowledged.
    pub(crate) async fn close(&self, limit: Duration) -> CloseReport {
        let half = limit / 2;
        self.drained(half).await;
        self.closing.cancel();
        for lane in self.namespace.lanes() {
            let _state = lock(&self.cell(lane).state);
            self.flush(lane);
        }
        self.work.close();
        // What is not done by then ends with the driver.
        let _ = tokio::time::timeout(half, self.work.wait()).await;
        self.shutdown.cancel();
        self.driver.close();
        self.driver.wait().await;
        self.calls.abandon();
        self.close_journal().await;
        self.close_report()
    }

    fn wake_fill_waiters(&self, hash: u64) {
        if let Some(waiter) = lock(&self.fill_waiters).get(&hash) {
            waiter.notify_waiters();
        }
    }
}

/// Locks, whatever became of the thread that held it last: all states these locks guard are sound
/// between any two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
