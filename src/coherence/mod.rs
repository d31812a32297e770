//! The pure core: what a pod may serve, join and insert, and why that is safe.
//!
//! No I/O, no async and no clock of its own: time is passed in, what should happen comes back as
//! actions. The same code runs in production, in the seeded simulator and in the model checker.
//!
//! ```text
//! hint ─┐                     ┌─▶ evict, drop, clear, flush, confirm   carried out in this process
//! head ─┼─▶ LaneState ────────┤
//! log  ─┤   one per lane      └─▶ read the log, poll, touch, fence     asked of the store
//! ack  ─┘
//!           Rules: may an entry be served, a flight be joined, a value be inserted, bytes be believed
//! ```
//!
//! # Who needs it
//!
//! Users of a cache do not. Authors of a [store](crate::store) need the words of the port:
//! [`Epoch`], [`Position`], [`Head`], [`Incarnation`], [`Lane`], [`Nonce`], [`LogEntry`], [`Hint`],
//! [`Batch`], [`Kind`], which are as stable as the wire format. The rest ([`LaneState`], [`LinkState`],
//! [`Rules`], [`Ring`], [`Heard`] and what belongs to them) is public for simulators and model checkers,
//! and may change in any minor version.

mod heard;
mod lane;
mod link;
mod mechanism;
mod position;
mod ring;
pub mod rules;
pub mod wire;

pub use heard::Heard;
pub use lane::{Ack, Action, LaneState};
pub use link::{LinkState, Phase};
pub use mechanism::{Mechanism, Mechanisms};
pub use position::{Epoch, HEAD_LEN, Head, Incarnation, Lane, Nonce, Position, Rank};
pub use ring::{Call, Ring};
pub use rules::{EntryStamp, FlightMeta, Rules, Verdict, View, Word};
pub use wire::{Batch, Change, Hint, Kind, LogEntry};
