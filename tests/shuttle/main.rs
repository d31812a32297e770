//! Flights and fences under a scheduler that chooses, at each lock, atomic and wake-up, which thread goes
//! on. The simulator and the model take each step of a pod for one event; here the steps themselves are
//! torn apart.
//!
//! The two files are the crate's own, compiled over shuttle's primitives instead of the standard
//! library's and Tokio's (see `src/sync.rs`). `TIDINGS_SHUTTLE` sets how many schedules each test runs.
//! A failure prints a schedule; `shuttle::replay` runs it again. Shuttle's memory is sequentially
//! consistent: it tears steps apart, and does not reorder loads and stores.

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[expect(dead_code, reason = "readers are told more than is asked here")]
#[path = "../../src/fence.rs"]
mod fence;
#[expect(dead_code, reason = "not every call of a flight is made here")]
#[path = "../../src/flight.rs"]
mod flight;

mod fences;
mod flights;
mod notify;

mod coherence {
    pub(crate) use tidings::coherence::*;
}

mod time {
    pub(crate) use tidings::Millis;
}

mod sync {
    pub(crate) use crate::notify::Notify;
    pub(crate) use shuttle::sync::atomic::{AtomicU64, Ordering};
    pub(crate) use shuttle::sync::{Arc, Mutex, MutexGuard};
    pub(crate) use std::sync::PoisonError;
}

const SCHEDULES: usize = 2_000;
/// How often the scheduler with a few chosen points of change interrupts a thread.
const DEPTH: usize = 3;

fn lock<T>(mutex: &sync::Mutex<T>) -> sync::MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics under it")
}

/// Runs `world` under schedules at random, then under such as find what needs few, well chosen changes
/// of thread.
fn every_schedule(world: impl Fn() + Copy + Send + Sync + 'static) {
    let schedules = env::var("TIDINGS_SHUTTLE").ok();
    let schedules = schedules.and_then(|n| n.parse().ok()).unwrap_or(SCHEDULES);
    shuttle::check_random(world, schedules);
    shuttle::check_pct(world, schedules, DEPTH);
}

/// Whether a schedule breaks what `world` asserts. Prints what it is told, for that is the point.
fn is_broken_by_some_schedule(world: impl Fn() + Copy + Send + Sync + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| every_schedule(world))).is_err()
}
