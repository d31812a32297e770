//! Building a [`Cache`]: every option is checked in [`CacheBuilder::build`].

use crate::bus::{
    Bus, DEFAULT_MAX_PENDING, Journal, LEASE, LEAST_MAX_PENDING, PendingOptions, Timing,
};
use crate::cache::{Cache, check_name};
use crate::coherence::{Mechanisms, Rules};
use crate::envelope::KeyRing;
use crate::error::{BuildError, StoreError, StoreErrorKind};
use crate::key::KeySpace;
use crate::registration::Migration;
use crate::store::{Memory, Namespace, Store};
use crate::time::Clock;
use std::fmt;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The environment variable that names the store where the program does not.
pub const STORE_VARIABLE: &str = "TIDINGS_STORE";

/// Lanes of a namespace, unless [`CacheBuilder::lanes`] says otherwise: enough that the invalidations of
/// one key seldom wait for those of another, few enough that a poll reads all their heads in one small
/// reply.
pub const DEFAULT_LANES: u16 = 16;

/// The most lanes that [`CacheBuilder::lanes`] takes: each poll of each pod reads 56 bytes for each.
pub const MAX_LANES: u16 = 256;

impl Cache {
    /// Starts building a cache for `namespace`. Pods that share a store and a namespace are peers;
    /// two namespaces on one store do not hear each other.
    ///
    /// The name is 1 to 64 of `A–Z a–z 0–9 . _ -`.
    pub fn builder(namespace: impl Into<String>) -> CacheBuilder {
        CacheBuilder::new(namespace.into())
    }
}

/// The longest that a time limit of the store may be set to: beyond this it is none.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);

/// What to do if the store cannot be reached when the cache is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnStoreAbsent {
    /// [`CacheBuilder::build`] fails. The default: a wrong address shows at once.
    #[default]
    Fail,
    /// The cache starts without it: reads go to the loaders under their concurrency limit, what they
    /// give is kept locally for a second, and everything heals when the store comes. A store that
    /// answers but refuses (wrong password, wrong kind of server) is an error all the same.
    StartDegraded,
}

/// Options of a [`Cache`]; made by [`Cache::builder`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tidings::error::BuildError> {
/// use tidings::{Cache, OnStoreAbsent};
///
/// let cache = Cache::builder("shop")
///     .store_url("memory:shop") // or redis://…; without it, what TIDINGS_STORE says
///     .on_store_absent(OnStoreAbsent::StartDegraded)
///     .build()
///     .await?;
/// # Ok(()) }
/// ```
#[must_use = "a builder does nothing until `build`"]
pub struct CacheBuilder {
    namespace: String,
    store: Option<Arc<dyn Store>>,
    store_url: Option<String>,
    on_store_absent: OnStoreAbsent,
    lanes: u16,
    migration: Option<Migration>,
    keys: Option<KeyRing>,
    timing: Timing,
    max_pending: usize,
    journal: Option<PathBuf>,
    clock: Clock,
    mechanisms: Mechanisms,
}

impl fmt::Debug for CacheBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheBuilder")
            .field("namespace", &self.namespace)
            .field("store", &self.store)
            // It may hold a password.
            .field("store_url", &self.store_url.as_ref().map(|_| "…"))
            .field("on_store_absent", &self.on_store_absent)
            .field("lanes", &self.lanes)
            .field("migration", &self.migration)
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

impl CacheBuilder {
    pub(crate) fn new(namespace: String) -> Self {
        Self {
            namespace,
            store: None,
            store_url: None,
            on_store_absent: OnStoreAbsent::default(),
            lanes: DEFAULT_LANES,
            migration: None,
            keys: None,
            timing: Timing::default(),
            max_pending: DEFAULT_MAX_PENDING,
            journal: None,
            clock: Clock::default(),
            mechanisms: Mechanisms::default(),
        }
    }

    /// Uses this backing store. Takes precedence over a URL. No round trip before [`build`](Self::build).
    pub fn store(mut self, store: impl Store) -> Self {
        self.store = Some(Arc::new(store));
        self
    }

    /// Uses the backing store at this URL:
    ///
    /// - `memory:` or `memory:name`: in this process; the same URL names the same store;
    /// - `redis://user:password@host:port/database`: Redis 7 or later (feature `redis`);
    /// - `redis+sentinel://…/primary-name`, `redis+cluster://…`: the primary that sentinels name, or a
    ///   cluster: see `store::Redis::new`;
    /// - `rediss://…`, `rediss+…`: the same over TLS (feature `tls`).
    ///
    /// Without this and [`store`](Self::store) the URL is taken from the environment variable
    /// `TIDINGS_STORE`, and without that it is `memory:`.
    pub fn store_url(mut self, url: impl Into<String>) -> Self {
        self.store_url = Some(url.into());
        self
    }

    /// What to do if the store cannot be reached at the start; [`OnStoreAbsent::Fail`] by default.
    pub fn on_store_absent(mut self, choice: OnStoreAbsent) -> Self {
        self.on_store_absent = choice;
        self
    }

    /// How many lanes the namespace has: 1 to [`MAX_LANES`], [`DEFAULT_LANES`] by default. Each lane is a
    /// slice of the keys with a log of its own; more of them spread what is invalidated a lot over more
    /// logs, and make each poll longer.
    ///
    /// All pods of a namespace must agree: the first one registers the number in the store, and others
    /// are refused ([`BuildError::mismatch`]). [`migrate_lanes_to`](Self::migrate_lanes_to) changes it.
    /// Raw data and rooms do not depend on it. On a cluster the number is fixed.
    pub fn lanes(mut self, lanes: u16) -> Self {
        self.lanes = lanes;
        self
    }

    /// The first of three rolls that change the number of [lanes](Self::lanes) under a running fleet: this
    /// pod goes on with its own number, and also invalidates where pods with `lanes` lanes read.
    ///
    /// 1. `.lanes(16).migrate_lanes_to(64)` on every pod;
    /// 2. `.lanes(64).migrate_lanes_from(16)` on every pod; those of the first roll go on;
    /// 3. `.lanes(64)` on every pod. From the first of them on, those of the first roll are refused.
    ///
    /// A pod that comes out of turn, or in a roll that was skipped, is refused by `build`; one that is
    /// still running when its turn is over loses the store at its next poll and says so in
    /// [`Health`](crate::Health). The second and third roll begin with a cold store level. Meanwhile an
    /// invalidation is logged twice, and handlers of its tags may run twice.
    ///
    /// # Consistency
    /// Every promise holds throughout.
    pub fn migrate_lanes_to(mut self, lanes: u16) -> Self {
        self.migration = Some(Migration::To(lanes));
        self
    }

    /// The second of three rolls that change the number of lanes; see
    /// [`migrate_lanes_to`](Self::migrate_lanes_to).
    pub fn migrate_lanes_from(mut self, lanes: u16) -> Self {
        self.migration = Some(Migration::From(lanes));
        self
    }

    /// How long a read, a lease or a fill of an entity, or a read of raw data, may take before it goes on
    /// without the store; 250 ms by default ([`DEFAULT_READ_TIMEOUT`](crate::DEFAULT_READ_TIMEOUT)). When
    /// five in a row got no answer in that time, readers wait for the store no longer, but for a probe about
    /// once a second: see [`Health::circuit`](crate::Health::circuit). From 1 ms to 60 s.
    pub fn read_timeout(mut self, limit: Duration) -> Self {
        self.timing.read_timeout = limit;
        self
    }

    /// How long the first attempt of an invalidation may take before its caller gets
    /// [`Pending`](crate::InvalidateError::Pending) and it is repeated, and how long each further attempt
    /// may; 2 s by default ([`DEFAULT_INVALIDATE_TIMEOUT`](crate::DEFAULT_INVALIDATE_TIMEOUT)). Calls of
    /// presence have the same limit. From 1 ms to 60 s.
    pub fn invalidate_timeout(mut self, limit: Duration) -> Self {
        self.timing.invalidate_timeout = limit;
        self
    }

    /// How many invalidations are kept that the store has not acknowledged; 10,000 by default
    /// ([`DEFAULT_MAX_PENDING`]), some 2 KB each, and 64 at least. One key counts once, however often it is
    /// invalidated.
    ///
    /// None is ever dropped. At the bound the entity with the most pending keys on one lane becomes a
    /// single invalidation of all its keys on that lane (a sixteenth of them); and if no entity has two,
    /// everything on one lane becomes one. That costs loads of what was still good;
    /// [`Health::merged_pending`](crate::Health::merged_pending) counts it.
    pub fn max_pending(mut self, count: usize) -> Self {
        self.max_pending = count;
        self
    }

    /// Keeps what the store has not acknowledged in this file too, so that a process which is killed does
    /// not forget it: the next one with the same journal repeats it. By default there is none.
    ///
    /// Nothing is written while the store answers: an invalidation goes into the file when its first
    /// attempt has taken 50 ms or has failed, before its caller is told that it is
    /// [`Pending`](crate::InvalidateError::Pending). What is written survives the process, not a machine
    /// that loses power. The folder must exist and outlive the process; a cache has its journal for itself
    /// (`build` fails while another one uses it), so give each pod of a machine its own. A second file
    /// beside it, with `.lock` after its name, is the lock. See `docs/pending.md`.
    pub fn journal(mut self, path: impl Into<PathBuf>) -> Self {
        self.journal = Some(path.into());
        self
    }

    /// Seals what entities keep in the store: nobody without a key of the ring can read values and typed
    /// errors there, nor change them, nor pass one off for another. What is not sealed with one of the
    /// keys is a miss. By default nothing is sealed.
    ///
    /// Entities may [differ](crate::EntityBuilder::unsealed). The names of keys stay readable; what else
    /// is not protected is in `docs/seal.md`. To change keys, give the new one to every pod as the
    /// second, then put it first, and drop the old one when its values have expired.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tidings::error::BuildError> {
    /// # let (new, old) = ([7; 32], [8; 32]);
    /// use tidings::{Cache, KeyRing};
    ///
    /// let cache = Cache::builder("shop").seal(KeyRing::new(2, &new).and(1, &old)).build().await?;
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "seal")]
    pub fn seal(mut self, keys: KeyRing) -> Self {
        self.keys = Some(keys);
        self
    }

    /// Judges time by `clock` instead of the kernel's.
    #[cfg(feature = "testing")]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Switches protections off, so that a test can show what each of them is for.
    #[cfg(feature = "testing")]
    pub fn mechanisms(mut self, mechanisms: Mechanisms) -> Self {
        self.mechanisms = mechanisms;
        self
    }

    /// Builds the cache: connects, subscribes, looks at the server, joins the namespace and syncs, which
    /// takes eight to ten round trips to Redis.
    ///
    /// # Errors
    /// [`BuildError`] naming the option: `namespace` if the name cannot be used; `read_timeout`,
    /// `invalidate_timeout` or `max_pending` if it is out of its range; `journal` if the file is in use, is
    /// none of this namespace, or cannot be read or written; `runtime` if there is
    /// no Tokio runtime (it needs time and I/O enabled); `store_url` (or `TIDINGS_STORE`) if the URL cannot;
    /// `lanes` and `migrate_lanes` if the number is out of range, or if pods of the namespace that run
    /// already go by another one ([`BuildError::mismatch`]); `namespace` too if they go by something else
    /// that versions of this crate may differ in; `seal` if a key id stands for two keys; `store` if the store
    /// cannot be reached (see [`on_store_absent`](Self::on_store_absent)), refuses the credentials, or is of
    /// the wrong kind.
    ///
    /// # Cancel safety
    /// Cancel safe: the background task and its connections end with the future.
    pub async fn build(self) -> Result<Cache, BuildError> {
        let (lanes, migration) = self.check()?;
        let store = match self.store {
            Some(store) => store,
            None => resolve(self.store_url)?,
        };
        if store.fixes_lanes() && (self.lanes != DEFAULT_LANES || migration.is_some()) {
            let reason = format!("a cluster has {DEFAULT_LANES} lanes, as yet");
            return Err(BuildError::new("lanes", reason));
        }
        let named = store.describe();
        let rules = Rules {
            lease: LEASE,
            mechanisms: self.mechanisms,
        };
        let space = KeySpace::new(&self.namespace, lanes, migration);
        let namespace = Namespace {
            name: self.namespace,
            lanes: space.logs(),
        };
        let (journal, left) = match self.journal {
            Some(path) => {
                let (journal, left) = Journal::open(&path, &namespace, &space)?;
                (Some(journal), left)
            }
            None => (None, Vec::new()),
        };
        let max = self.max_pending;
        let pending = PendingOptions { max, journal };
        let bus = Bus::new(
            store,
            namespace,
            space,
            rules,
            self.timing,
            self.clock,
            pending,
        );
        let cache = Cache::new(Arc::clone(&bus), self.keys);
        // Before anything can be read: what they make invalid must not be believed.
        bus.replay(left);
        match bus.start().await {
            Ok(()) => Ok(cache),
            Err(error)
                if self.on_store_absent == OnStoreAbsent::StartDegraded && is_absence(&error) =>
            {
                Ok(cache)
            }
            Err(error) => {
                // Whoever tries again finds it free.
                bus.close_journal().await;
                Err(BuildError::start(&named, error))
            }
        }
    }

    /// Checks every option by itself. Gives the lanes as they are used.
    fn check(&self) -> Result<(NonZeroU16, Option<Migration>), BuildError> {
        check_name("namespace", &self.namespace)?;
        let lanes = check_lanes(self.lanes, self.migration)?;
        self.keys.as_ref().map_or(Ok(()), KeyRing::check)?;
        check_timeout("read_timeout", self.timing.read_timeout)?;
        check_timeout("invalidate_timeout", self.timing.invalidate_timeout)?;
        if self.max_pending < LEAST_MAX_PENDING {
            let reason = format!("{} is less than {LEAST_MAX_PENDING}", self.max_pending);
            return Err(BuildError::new("max_pending", reason));
        }
        if tokio::runtime::Handle::try_current().is_err() {
            let reason = "a cache is built inside a Tokio runtime";
            return Err(BuildError::new("runtime", reason));
        }
        Ok(lanes)
    }
}

fn check_lanes(
    lanes: u16,
    migration: Option<Migration>,
) -> Result<(NonZeroU16, Option<Migration>), BuildError> {
    let in_range = |lanes| (1..=MAX_LANES).contains(&lanes);
    let other = migration.map(Migration::other);
    if let (true, Some(checked)) = (in_range(lanes), NonZeroU16::new(lanes)) {
        return match other {
            Some(other) if !in_range(other) || other == lanes => {
                let reason = format!("{other} is not another number from 1 to {MAX_LANES}");
                Err(BuildError::new("migrate_lanes", reason))
            }
            _ => Ok((checked, migration)),
        };
    }
    let reason = format!("{lanes} is not from 1 to {MAX_LANES}");
    Err(BuildError::new("lanes", reason))
}

fn check_timeout(option: &'static str, limit: Duration) -> Result<(), BuildError> {
    if (Duration::from_millis(1)..=LONGEST_TIMEOUT).contains(&limit) {
        return Ok(());
    }
    let reason = format!("{limit:?} is not from 1 ms to {LONGEST_TIMEOUT:?}");
    Err(BuildError::new(option, reason))
}

/// Whether the store may yet come, rather than be something else or refuse. A server that has never
/// spoken the protocol is taken for another kind of server.
fn is_absence(error: &StoreError) -> bool {
    error.is_transient() && error.kind() != StoreErrorKind::Protocol
}

/// The store that the URL names, or else the environment, or else the embedded one.
fn resolve(url: Option<String>) -> Result<Arc<dyn Store>, BuildError> {
    if let Some(url) = url {
        return open("store_url", &url);
    }
    match std::env::var(STORE_VARIABLE) {
        Ok(url) => open(STORE_VARIABLE, &url),
        Err(std::env::VarError::NotPresent) => open("store_url", "memory:"),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(BuildError::new(STORE_VARIABLE, "not valid Unicode"))
        }
    }
}

fn open(option: &'static str, url: &str) -> Result<Arc<dyn Store>, BuildError> {
    match url.split_once(':') {
        Some(("memory", name)) => Ok(Arc::new(Memory::named(name))),
        #[cfg(feature = "redis")]
        Some((
            "redis" | "rediss" | "redis+sentinel" | "rediss+sentinel" | "redis+cluster"
            | "rediss+cluster",
            _,
        )) => match crate::store::Redis::new(url) {
            Ok(redis) => Ok(Arc::new(redis)),
            Err(error) => Err(BuildError::store(option, "this URL", error)),
        },
        #[cfg(not(feature = "redis"))]
        Some((
            "redis" | "rediss" | "redis+sentinel" | "rediss+sentinel" | "redis+cluster"
            | "rediss+cluster",
            _,
        )) => Err(BuildError::new(option, "Redis needs the feature `redis`")),
        // The URL may hold a password, so it is not repeated.
        Some((scheme, _))
            if scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '+') =>
        {
            let known =
                "`memory:`, `redis://`, `rediss://`, `redis+sentinel://`, `redis+cluster://`";
            Err(BuildError::new(
                option,
                format!("unknown scheme `{scheme}:`; known are {known}"),
            ))
        }
        _ => Err(BuildError::new(
            option,
            "not a URL: expected `memory:` or `redis://…`",
        )),
    }
}
