//! Tools to test with: a real Redis server that can be killed, and a network that can be broken.
//!
//! The crate's own tests, examples and benches use them, and so can yours: turn on the `testing`
//! feature in `[dev-dependencies]`.
//!
//! - [`RedisServer`]: a Redis process of your own; kill it, stop it, bring an old dataset back.
//! - [`Proxy`]: a TCP proxy that loses, holds back, delays or cuts what passes through it, and drops
//!   single pub/sub messages.

mod cli;
mod directory;
mod proxy;
mod pump;
mod redis_server;
mod resp;
mod server_error;

pub use proxy::{Direction, Fault, MessageFault, Proxy};
pub use redis_server::{RedisServer, RedisServerBuilder, Snapshot};
pub use server_error::ServerError;
//! Tools for testing what is built on this crate, and backing stores for it.

pub mod conformance;
