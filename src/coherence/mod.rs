//! The pure core: what a pod may serve, join and insert, and why that is safe.
//!
//! No I/O, no async and no clock of its own: time is passed in, what should happen comes back as
//! actions. The same code runs in production, in the seeded simulator and in the model checker.

mod lane;
mod link;
mod mechanism;
mod position;
mod ring;
pub mod rules;
pub mod wire;

pub use lane::{Ack, Action, LaneState};
pub use link::{LinkState, Phase};
pub use mechanism::{Mechanism, Mechanisms};
pub use position::{Epoch, HEAD_LEN, Head, Incarnation, Lane, Nonce, Position, Rank};
pub use ring::{Call, Ring};
pub use rules::{EntryStamp, FlightMeta, Rules, Verdict, View, Word};
pub use wire::{Hint, Kind, LogEntry};
