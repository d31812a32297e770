//! What a memo promises: one test for each promise. A memo never asks the store, but hears of tags through
//! it; that is the embedded one, or Redis if `TIDINGS_TEST_STORE` says so.
//!
//! What is computed is a versioned register that can be held up, so that races happen in the order that
//! a test says. Expiry is by a manual clock, time limits by paused Tokio time.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "../support/dropped.rs"]
mod dropped;
#[cfg(feature = "redis")]
#[expect(dead_code, reason = "others need more of it")]
#[path = "../support/servers.rs"]
mod servers;

mod bed;

mod build;
mod cancel;
mod closing;
mod flights;
mod invalidation;
mod once;
mod outcomes;
mod refresh;
mod size;
mod stats;
mod tags;
mod trouble;
