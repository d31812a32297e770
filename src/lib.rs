//! A coherent distributed cache for services that run as many pods.
//!
//! Each pod keeps values in its own memory, all of them share a second level in a backing store
//! (Redis, or embedded), and what neither has is loaded from your source once. When one pod
//! invalidates a key, no pod serves the old value beyond a bound: 1.008 s.
//!
//! ```text
//!                      your code
//!                          │
//!   Cache ── Entity ── get · get_many · get_or_load · invalidate · clear
//!        │                 │
//!        ├── Memo          │  one computation per argument, in this process
//!        ├── Presence      │  who is in a room right now
//!        ├── Reactivity    │  handlers, streams and queries that follow tags
//!        └── Raw, scripts  │  bytes under a prefix; commands of your own
//!                          │
//!     flight               │  one load per key
//!     local level          │  bounded map in this process
//!     telemetry            │  counts, events, metrics, spans
//!     tags                 │  which are watched here, and what was invalidated
//!                          │
//!     bus ─────────────────┤  follows the log: hints, four polls a second, catch-up
//!     coherence            │  decides what may be served; plain data, no I/O
//!                          │
//!     store ── Redis · Memory · yours ── values + leases + log + heads + hints
//! ```
//!
//! # Example
//!
//! Two pods are two caches on one store; here in one process, on the embedded store.
//!
//! ```
//! use std::convert::Infallible;
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU64, Ordering};
//! use tidings::{Cache, Entity, store::Memory};
//!
//! type Source = Arc<AtomicU64>; // stands for your database
//!
//! async fn start_pod(
//!     store: Memory,
//!     source: Source,
//! ) -> Result<Entity<String, u64, Infallible>, tidings::error::BuildError> {
//!     let cache = Cache::builder("shop").store(store).build().await?;
//!     cache
//!         .entity("price", move |_sku: String| {
//!             let source = source.clone();
//!             async move { Ok(source.load(Ordering::SeqCst)) }
//!         })
//!         .build()
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (store, source) = (Memory::new(), Source::new(AtomicU64::new(100)));
//! let a = start_pod(store.clone(), source.clone()).await?;
//! let b = start_pod(store, source.clone()).await?;
//! let tea = "tea".to_owned();
//! assert_eq!((*a.get(&tea).await?, *b.get(&tea).await?), (100, 100)); // loaded once
//!
//! source.store(120, Ordering::SeqCst); // commit first,
//! a.invalidate(&tea).await?; // then invalidate
//! assert_eq!(*a.get(&tea).await?, 120); // at once on this pod,
//! while *b.get(&tea).await? != 120 { // and within the bound on the others
//!     tokio::task::yield_now().await;
//! }
//! # Ok(()) }
//! ```
//!
//! With pods in processes of their own, the store is
//! [`store_url("redis://…")`](CacheBuilder::store_url), or none in the program and
//! `TIDINGS_STORE=redis://…` in the environment.
//!
//! # What is promised
//!
//! - **Bounded staleness.** A read that starts later than [`Health::bound`] after
//!   [`Entity::invalidate`] returned `Ok` gives no value that was loaded before, on any pod; whatever
//!   was lost, stopped or killed in between.
//! - **Read your own writes** on the pod that invalidated, from the moment the call returns.
//! - **One load** for concurrent misses of one key: in a pod by single flight, between pods by a lease.
//! - **A load that an invalidation overtook is never stored.**
//! - **A store that fails is no error of a read.** Memory answers within the bound, then the loader.
//! - **An invalidation is acknowledged or [`Pending`]**, and then repeated while the process lives; with a
//!   [journal](CacheBuilder::journal), by the next one too.
//!
//! Assumed are a loader that sees everything committed before it starts ([`Loader`]), and
//! invalidations that come after the commit.
//!
//! # What is not
//!
//! - Nothing is known of changes that nobody invalidates; those end with the TTL.
//! - Several keys are not invalidated at one instant, and two reads are no snapshot.
//! - A primary that was replaced and still answers some pods is beside the bound for as long as it does;
//!   see `docs/topologies.md`.
//! - The bound is on the moment a read *decides*. A value in your hands ages like any other.
//!
//! # Layout
//!
//! | module or item | what it is |
//! |---|---|
//! | [`Cache`], [`CacheBuilder`] | one namespace on one store; makes entities |
//! | [`Entity`], [`EntityBuilder`], [`Loader`] | the two-level cache of one kind of record |
//! | [`Memo`], [`MemoOnce`] | one computation per argument, remembered in this process |
//! | [`presence`] | who is in a room, and a live feed of it |
//! | `outbox` | invalidations that are part of a PostgreSQL transaction |
//! | [`Reactivity`], [`Tag`] | what runs again when tags are invalidated, by any pod |
//! | [`Raw`], `script` | bytes and hashes under a prefix; commands and scripts on the same connection |
//! | [`Key`], [`KeyBuf`] | what values are kept under |
//! | [`error`] | [`CacheError`] of reads, [`StoreError`] of the store, [`BuildError`] of builders, [`Mismatch`] of pods |
//! | [`Health`], [`Invalidation`], [`Stamp`], [`Pending`], [`CloseReport`] | what operators and writers are told |
//! | [`CacheStats`], [`EntityStats`], [`Events`] | what was counted, and what happens |
//! | [`store`] | the port to the backing store, [`Redis`](store::Redis) and [`Memory`](store::Memory) |
//! | [`coherence`] | the pure core: for authors of stores and of tests |
//! | `testing` | a Redis and a PostgreSQL to kill, a network to break, the suite for stores |
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `redis` | yes | [`store::Redis`], for Redis 7 or later and Valkey 8 or later; `Cache::redis` |
//! | `tls` | | `rediss://` URLs |
//! | `moka` | | `LocalEngine::Moka` |
//! | `lz4` | | `Compression::Lz4`: long values are stored smaller, at next to no cost |
//! | `zstd` | | `Compression::Zstd`: smaller still, for more work (builds C code) |
//! | `seal` | | `KeyRing`: values are encrypted and authenticated in the store |
//! | `postgres` | | the `outbox`: invalidations that commit with the change, in PostgreSQL 14 or later |
//! | `metrics` | | what is counted, given to the `metrics` facade: names, kinds and units in `docs/metrics.md` |
//! | `tracing` | | spans of reads that leave the process, calls of the store, loads, invalidations |
//! | `testing` | | the `testing` module, and switches and faults to test with |
//!
//! Each is additive, and the crate builds with none of them.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod builder;
mod bus;
mod cache;
mod codec;
pub mod coherence;
mod entity;
mod envelope;
pub mod error;
mod fence;
mod flight;
// Not inside it: `tests/shuttle` compiles that file without them.
#[cfg(test)]
#[path = "flight/tests.rs"]
mod flight_tests;
#[cfg(test)]
mod golden;
mod key;
mod local;
mod memo;
#[cfg(feature = "postgres")]
pub mod outbox;
pub mod presence;
mod random;
mod raw;
mod reactivity;
mod registration;
#[cfg(feature = "redis")]
pub mod script;
pub mod store;
mod sync;
mod tags;
mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
mod time;
mod ttl;

pub use builder::{CacheBuilder, DEFAULT_LANES, MAX_LANES, OnStoreAbsent, STORE_VARIABLE};
pub use bus::{
    BeginWrite, BeginWriteError, CircuitState, CloseReport, DEFAULT_GUARD_TTL,
    DEFAULT_INVALIDATE_TIMEOUT, DEFAULT_MAX_PENDING, DEFAULT_READ_TIMEOUT, Finished, Health,
    InvalidateError, Invalidation, JournalDamage, JournalHealth, MAX_GUARD_TTL,
    MINIMUM_VERSION_TTL, ParseStampError, Pending, Stamp, StoreState, Unacknowledged, WriteGuard,
};
pub use cache::Cache;
pub use codec::CodecError;
pub use entity::{
    Cancellation, ContextLoader, DEFAULT_CAPACITY, DEFAULT_COMPRESS_ABOVE, DEFAULT_JITTER,
    DEFAULT_LOAD_TIMEOUT, DEFAULT_MAX_BATCH, DEFAULT_RETRY_AFTER, DEFAULT_STORE_MAX_BYTES,
    DEFAULT_TTL, DEFAULT_UNLEASED_LOADS, EarlyRefresh, Entity, EntityBuilder, EntityView,
    Freshness, LoadContext, Loaded, Loader, LocalView, MAX_LOAD_TIMEOUT, Origin, Previous,
    ReadOptions, Refresh, Served, StaleReason,
};
#[cfg(any(feature = "lz4", feature = "zstd"))]
pub use envelope::Compression;
#[cfg(feature = "seal")]
pub use envelope::KeyRing;
pub use error::{BoxedCacheError, BuildError, CacheError, Mismatch, StoreError, StoreErrorKind};
pub use key::{Key, KeyBuf, Tag};
pub use local::LocalEngine;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub use local::probe;
pub use memo::{Memo, MemoBuilder, MemoOnce, MemoOnceBuilder};
pub use presence::Presence;
pub use raw::{MAX_RAW_BYTES, Raw, RawKeys};
pub use reactivity::{Flushed, Live, Query, Reactivity, Registration};
#[cfg(feature = "redis")]
pub use script::{RedisCommands, Script};
pub use telemetry::{
    CacheStats, EVENTS_KEPT, EntityStats, Event, Events, InvalidationStats, LoadFailure, MemoStats,
    PresenceStats, StoreCallStats,
};
pub use time::{Clock, Millis};
pub use ttl::Ttl;

/// The pages beside the code, so that their examples are compiled and run.
#[cfg(all(doctest, feature = "redis"))]
mod pages {
    #[doc = include_str!("../README.md")]
    mod readme {}
    #[cfg(feature = "lz4")]
    #[doc = include_str!("../docs/compression.md")]
    mod compression {}
    #[doc = include_str!("../docs/entity.md")]
    mod entity {}
    #[doc = include_str!("../docs/grace.md")]
    mod grace {}
    #[doc = include_str!("../docs/coming-from.md")]
    mod coming_from {}
    #[doc = include_str!("../docs/from-moka-and-redis.md")]
    mod from_moka_and_redis {}
    #[doc = include_str!("../docs/semantics.md")]
    mod semantics {}
    #[doc = include_str!("../docs/guarantees.md")]
    mod guarantees {}
    #[doc = include_str!("../docs/reads.md")]
    mod reads {}
    #[doc = include_str!("../docs/memo.md")]
    mod memo {}
    #[doc = include_str!("../docs/observability.md")]
    mod observability {}
    #[doc = include_str!("../docs/operations.md")]
    mod operations {}
    #[doc = include_str!("../docs/reactivity.md")]
    mod reactivity {}
    #[doc = include_str!("../docs/raw.md")]
    mod raw {}
    #[doc = include_str!("../docs/scripts.md")]
    mod scripts {}
    #[cfg(feature = "seal")]
    #[doc = include_str!("../docs/seal.md")]
    mod seal {}
    #[doc = include_str!("../docs/pending.md")]
    mod pending {}
    #[cfg(feature = "postgres")]
    #[doc = include_str!("../docs/outbox.md")]
    mod outbox {}
    #[doc = include_str!("../docs/presence.md")]
    mod presence {}
    #[doc = include_str!("../docs/stores.md")]
    mod stores {}
    #[doc = include_str!("../docs/tags.md")]
    mod tags {}
    #[doc = include_str!("../docs/testing.md")]
    mod testing {}
    #[doc = include_str!("../docs/topologies.md")]
    mod topologies {}
    #[doc = include_str!("../docs/versions.md")]
    mod versions {}
    #[doc = include_str!("../docs/write-guard.md")]
    mod write_guard {}
}
