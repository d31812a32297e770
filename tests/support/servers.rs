//! The Redis that tests share: one server, or what `TIDINGS_TEST_STORE` names instead.
//!
//! The tests are the same on each. On a cluster their keys lie on three nodes; behind sentinels there is
//! a replica.

use std::sync::{Arc, Mutex, Weak};
use tidings::testing::{RedisCluster, RedisReplicas, RedisServer, ServerError};

/// `redis` (the default), `sentinel` or `cluster`.
const TOPOLOGY: &str = "TIDINGS_TEST_STORE";
/// After how many milliseconds a server is taken for dead: none of these tests kills one, and on a loaded
/// machine a living one may be silent for long.
const PATIENT: &str = "60000";

/// Whether a topology is named.
pub(crate) fn is_told() -> bool {
    std::env::var_os(TOPOLOGY).is_some()
}

pub(crate) enum Servers {
    One(RedisServer),
    Sentinel(RedisReplicas),
    Cluster(RedisCluster),
}

/// The servers that the tests running at present share; they go when the last of these ends.
pub(crate) fn servers() -> Arc<Servers> {
    static SERVERS: Mutex<Weak<Servers>> = Mutex::new(Weak::new());
    let mut shared = SERVERS.lock().unwrap();
    shared.upgrade().unwrap_or_else(|| {
        let servers = Arc::new(Servers::start().unwrap());
        *shared = Arc::downgrade(&servers);
        servers
    })
}

impl Servers {
    fn start() -> Result<Self, ServerError> {
        let topology = std::env::var(TOPOLOGY).unwrap_or_else(|_| "redis".to_owned());
        match &*topology {
            "redis" => RedisServer::start().map(Self::One),
            "sentinel" => {
                let mut redis = RedisReplicas::start(1)?;
                let set = ["SENTINEL", "SET", "primary", "down-after-milliseconds"];
                for at in 0..3 {
                    redis.sentinel(at).cli(&[&set[..], &[PATIENT]].concat())?;
                }
                Ok(Self::Sentinel(redis))
            }
            "cluster" => {
                let cluster = RedisCluster::start(3, false)?;
                for at in 0..3 {
                    let set = ["CONFIG", "SET", "cluster-node-timeout", PATIENT];
                    cluster.node(at).cli(&set)?;
                }
                Ok(Self::Cluster(cluster))
            }
            other => panic!("{TOPOLOGY} is {other:?}: expected redis, sentinel or cluster"),
        }
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::One(server) => server.url(),
            Self::Sentinel(redis) => redis.url(),
            Self::Cluster(cluster) => cluster.url(),
        }
    }

    /// Those that take writes.
    pub(crate) fn primaries(&self) -> Vec<&RedisServer> {
        match self {
            Self::One(server) => vec![server],
            Self::Sentinel(redis) => vec![redis.server(redis.primary())],
            Self::Cluster(cluster) => {
                let nodes = 0..cluster.primaries();
                nodes.map(|at| cluster.node(at)).collect()
            }
        }
    }
}
