//! A coherent distributed cache for services that run as many pods.
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
mod flight;
#[cfg(test)]
mod golden;
mod key;
mod local;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod time;

pub use builder::{CacheBuilder, OnStoreAbsent, STORE_VARIABLE};
pub use bus::{Health, InvalidateError, Pending, Stamp, StoreState};
pub use cache::Cache;
pub use codec::CodecError;
pub use entity::{
    DEFAULT_CAPACITY, DEFAULT_JITTER, DEFAULT_LOAD_TIMEOUT, DEFAULT_TTL, DEFAULT_UNLEASED_LOADS,
    Entity, EntityBuilder, Loader, LocalView, Origin, Served, Ttl,
};
pub use error::{BuildError, CacheError, StoreError, StoreErrorKind};
pub use key::{Key, KeyBuf};
pub use local::LocalEngine;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub use local::probe;
pub use time::{COARSE_CLOCK_SLACK, Clock, Millis};
