//! What every local level of one cache shares: the lanes it follows, the locks that order inserts
//! against invalidations, and the link to the store.
//!
//! [`driver`] learns from the store and runs the pure core; [`calls`] runs this pod's own
//! invalidations, and what it does not get acknowledged at once is [`pending`]; entities read. They meet at
//! the [`lanes`]:
//!
//! - a lane's [`LaneState`](crate::coherence::LaneState) is behind a lock, and the
//!   [`Action`](crate::coherence::Action)s that touch this process are carried out under it, so that nobody
//!   sees a position that is not applied;
//! - a *stripe* is the lock that one key's insert and eviction share. It holds the newest applied
//!   invalidation of its keys, and which of them this pod is invalidating right now.
//!
//! Locks are taken in the order lane → stripe → member, and never held over an `.await`.

mod attempt;
mod breaker;
mod calls;
mod driver;
mod fences;
mod guard;
mod health;
mod invalidation;
mod join;
mod journal;
mod lanes;
mod listen;
mod member;
mod minimum;
mod pace;
mod pending;
mod put;
mod sample;
mod stamp;
mod timing;
mod wait;
mod waiter;

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
pub(crate) use lanes::{Moment, Stripe};
pub(crate) use listen::{Listener, Liveness};
pub(crate) use member::{Member, RoomListener};
pub use minimum::MINIMUM_VERSION_TTL;
pub use pending::DEFAULT_MAX_PENDING;
pub(crate) use pending::{LEAST_MAX_PENDING, PendingOptions};
pub(crate) use put::OwnedPut;
pub use stamp::{ParseStampError, Stamp};
pub use timing::{DEFAULT_INVALIDATE_TIMEOUT, DEFAULT_READ_TIMEOUT};
pub(crate) use timing::{LEASE, Timing};

use crate::coherence::{Epoch, Nonce, Rules};
use crate::error::{StoreError, StoreErrorKind};
use crate::key::KeySpace;
use crate::random::random;
use crate::store::{Link, Namespace, Opening, Store, StoreResult};
use crate::telemetry::{CacheStats, PresenceStats, Telemetry, spanned};
use crate::time::Clock;
use health::Observed;
use lanes::LaneCell;
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
        let lane = || LaneCell::new(rules.mechanisms, deferral, clock.now());
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
}

/// Locks, whatever became of the thread that held it last: all states these locks guard are sound
/// between any two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
