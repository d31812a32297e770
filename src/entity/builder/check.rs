//! Whether the options of an entity are in range, and of use with each other.

use super::EntityBuilder;
use crate::bus::MAX_GUARD_TTL;
use crate::entity::loader::Loader;
use crate::entity::options::{MAX_LOAD_TIMEOUT, MAX_STORE_BYTES};
use crate::entity::outcome::Refresh;
use crate::envelope::{Compression, KeyRing};
use crate::error::BuildError;
use crate::key::Key;
use crate::local::Capacity;
use std::time::Duration;
use tokio::sync::Semaphore;

impl<K: Key, L: Loader<K>> EntityBuilder<K, L> {
    pub(super) fn check(&self) -> Result<(), BuildError> {
        let refuse = |option, reason| Err(BuildError::new(option, reason));
        match self.capacity {
            Capacity::Entries(0) | Capacity::Weight(0) => {
                return refuse("capacity", "must be at least 1");
            }
            _ => {}
        }
        if self.max_weight.is_some() && self.weigher.is_none() {
            return refuse("local_max_weight", "is for `weight_capacity` alone");
        }
        if !(0.0..1.0).contains(&self.options.jitter) {
            return refuse(
                "jitter",
                "must be at least 0 and below 1, or a TTL could fall below zero",
            );
        }
        check_load_timeout(self.options.load_timeout)?;
        if let Some(soft) = self.options.soft_timeout {
            let never_waits = self.options.refresh == Refresh::Behind;
            if self.options.grace.is_zero() || never_waits {
                return refuse("soft_timeout", "is for `grace` with `Refresh::Ahead` alone");
            }
            if soft.is_zero() || soft >= self.options.load_timeout {
                return refuse(
                    "soft_timeout",
                    "must be above zero and below `load_timeout`",
                );
            }
        }
        if self.options.soft_tags.is_some() && self.options.grace.is_zero() {
            return refuse("soft_tags", "are for entries with `grace` alone");
        }
        if self.options.retry_after.is_zero() {
            return refuse(
                "retry_after",
                "must be above zero, or a source that is down is asked all the time",
            );
        }
        if self.unleased_loads == 0 || self.unleased_loads > Semaphore::MAX_PERMITS {
            return refuse(
                "max_unleased_loads",
                "must be at least 1, and no more than Tokio's semaphores hold",
            );
        }
        if !(1..=MAX_STORE_BYTES).contains(&self.options.store_max_bytes) {
            return refuse("store_max_bytes", "must be from 1 byte to 256 MiB");
        }
        if self.options.hold_off > MAX_GUARD_TTL {
            return refuse("hold_off", "must be at most a minute");
        }
        if self.batches.max == 0 {
            return refuse("max_batch", "must be at least 1");
        }
        self.options
            .packing
            .compression
            .map_or(Ok(()), Compression::check)?;
        self.keys.as_ref().map_or(Ok(()), KeyRing::check)
    }
}

/// Of an entity or a memo.
pub(crate) fn check_load_timeout(limit: Duration) -> Result<(), BuildError> {
    if !limit.is_zero() && limit <= MAX_LOAD_TIMEOUT {
        return Ok(());
    }
    let reason = format!("{limit:?} is not above zero and at most {MAX_LOAD_TIMEOUT:?}");
    Err(BuildError::new("load_timeout", reason))
}
