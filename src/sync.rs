//! What flights and fences are made of.
//!
//! Apart, because `tests/shuttle` compiles the same two files over the primitives of a scheduler that
//! chooses which thread goes on at each of them.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
pub(crate) use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
pub(crate) use tokio::sync::Notify;
