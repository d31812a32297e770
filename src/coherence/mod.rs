//! The pure core: what a pod may serve, join and insert, and why that is safe.
//!
//! No I/O, no async and no clock of its own: time is passed in, what should happen comes back as
//! actions. The same code runs in production, in the seeded simulator and in the model checker.

mod position;
pub mod wire;

pub use position::{Epoch, HEAD_LEN, Head, Incarnation, Lane, Nonce, Position, Rank};
pub use wire::{Hint, Kind, LogEntry};
