//! What the outbox promises, on a real PostgreSQL, with the embedded store and with Redis.
#![cfg(all(feature = "postgres", feature = "redis"))]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod bed;

mod controls;
mod delivery;
mod order;
mod processes;
mod rows;
mod trouble;
