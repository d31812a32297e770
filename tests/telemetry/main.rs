//! What a cache tells of itself: that it is all of it, and true.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[macro_use]
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/shared.rs"]
mod shared;

mod bed;
mod events;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(feature = "tracing")]
mod spans;
mod stats;
