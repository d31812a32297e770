//! What a memo promises: one test for each promise. On the embedded store, which a memo never asks.
//!
//! What is computed is a versioned register that can be held up, so that races happen in the order that
//! a test says. Expiry is by a manual clock, time limits by paused Tokio time.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

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
