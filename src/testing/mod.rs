//! Tools to test with: real servers that can be killed, a network that can be broken, and the
//! suite that every backing store must pass.
//!
//! The crate's own tests, examples and benches use them, and so can yours: turn on the `testing`
//! feature in `[dev-dependencies]`.
//!
//! - [`RedisServer`]: a Redis process of your own; kill it, stop it, bring an old dataset back.
//! - [`RedisReplicas`]: a primary with replicas, and sentinels that promote one of them.
//! - [`RedisCluster`]: a cluster whose nodes can be killed and whose slots move.
//! - [`PostgresServer`]: a PostgreSQL process of your own, as the source behind the cache.
//! - [`Proxy`]: a TCP proxy that loses, holds back, delays or cuts what passes through it, and drops
//!   single pub/sub messages.
//! - [`Cache::under_way`](crate::Cache::under_way): what a cache has not ended yet.
//! - [`conformance`]: the contract of the [store port](crate::store), claim by claim.

mod cli;
pub mod conformance;
mod directory;
mod ports;
mod postgres;
mod proxy;
mod pump;
mod redis_cluster;
mod redis_replicas;
mod redis_server;
mod resp;
#[doc(hidden)]
pub mod rubbish;
mod server_error;

pub use crate::bus::UnderWay;
pub use postgres::PostgresServer;
pub use proxy::{Direction, Fault, MessageFault, Proxy};
pub use redis_cluster::RedisCluster;
pub use redis_replicas::RedisReplicas;
pub use redis_server::{RedisServer, RedisServerBuilder, Snapshot};
pub use server_error::ServerError;
