//! Pods on a real Redis server that is killed, stopped, emptied, filled and cut off, while their reads
//! and writes are recorded and [checked](history) against what is promised:
//!
//! - no read misses an invalidation that was acknowledged longer ago than the bound, or than it claims;
//! - a pod never reads what it has itself invalidated;
//! - no read fails, no invalidation is lost;
//! - in the end every pod agrees with the source;
//! - two seconds after the fault every pod is fully at work again.
#![cfg(feature = "redis")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod fleet;
mod history;
mod options;

mod claims;
mod cluster;
mod control;
mod data;
mod failover;
mod network;
mod outage;
mod publishing;
mod replicated;
mod restarts;
mod rubbish;
mod traps;
mod trouble;
