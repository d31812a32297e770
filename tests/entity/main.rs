//! What an entity promises, on the embedded store and on Redis: one test for each promise and store.
//!
//! Each pod is a `Cache` of its own on a shared store, behind a [`wire::Wire`] that can be cut, held up
//! and listened to. The source is a versioned register that can be held up too, so that races happen
//! in the order that a test says.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[macro_use]
#[path = "../support/mod.rs"]
mod support;
#[expect(dead_code, reason = "others need more of it")]
#[path = "../support/servers.rs"]
mod servers;

mod bed;
mod lab;
mod source;
mod wire;

mod build;
mod bytes;
mod cancel;
mod closing;
#[cfg(all(feature = "lz4", feature = "zstd"))]
mod compressed;
mod context;
mod expiry;
mod flights;
mod grace;
mod grace_many;
mod guards;
mod health;
mod invalidation;
mod lengths;
mod levels;
mod lives;
mod many;
mod many_trouble;
mod outcomes;
mod pending;
mod puts;
mod races;
mod reads;
mod refresh;
mod replicas;
#[cfg(all(feature = "lz4", feature = "seal"))]
mod sealed;
mod settled;
mod stamps;
mod strict;
mod surface;
mod tagged;
mod tagged_races;
mod trouble;
mod versions;
mod views;
