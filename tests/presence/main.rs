//! What presence promises, on the embedded store and on Redis: one test for each promise and store.
//!
//! Each pod is a `Cache` of its own on a shared store, behind a [`wire::Wire`] that can be cut, held up
//! and listened to. Whoever watches checks every event against what was told before.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[macro_use]
#[expect(dead_code, reason = "others need more of it")]
#[path = "../support/mod.rs"]
mod support;
#[expect(dead_code, reason = "others need more of it")]
#[path = "../support/servers.rs"]
mod servers;
#[path = "../support/stalls.rs"]
mod stalls;

mod bed;
#[expect(dead_code, reason = "entities need more of it")]
#[path = "../entity/wire.rs"]
mod wire;

mod build;
mod closing;
#[cfg(feature = "redis")]
mod faults;
mod holding;
#[cfg(feature = "redis")]
mod large;
#[cfg(feature = "redis")]
mod pods;
mod reading;
mod time;
mod trouble;
mod watching;
