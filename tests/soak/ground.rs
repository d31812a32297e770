//! What pods stand on, and what is done to it: another server takes over, as planned, because the one
//! before was killed, or because it was stopped and goes on later.

use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tidings::testing::{RedisCluster, RedisReplicas, RedisServer, ServerError};

/// How long something that must happen may take.
const PATIENCE: Duration = Duration::from_secs(60);
const GLANCE: Duration = Duration::from_millis(20);

/// Servers that take over from one another. All methods block.
pub(crate) trait Ground {
    fn url(&self) -> String;

    /// Every server that clients connect to.
    fn servers(&self) -> Vec<SocketAddr>;

    /// Begins the failover number `turn`, and waits until another server is primary.
    fn strike(&mut self, turn: usize) -> Strike;

    /// Brings back what the strike took away, and waits until it follows the new primary.
    fn mend(&mut self, strike: &Strike);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Means {
    Planned,
    Killed,
    Stopped,
}

impl Means {
    fn of(turn: usize) -> Self {
        [Self::Planned, Self::Killed, Self::Stopped][turn % 3]
    }
}

/// A failover that was made.
#[derive(Debug)]
pub(crate) struct Strike {
    pub(crate) means: Means,
    /// The number of the server that was primary, and of the one that is.
    before: usize,
    now: usize,
}

/// Waits until `holds`; a server that gives no answer is waited for as well.
fn until(what: &str, holds: impl Fn() -> Result<bool, ServerError>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let held = holds();
        if matches!(held, Ok(true)) {
            return;
        }
        assert!(Instant::now() < deadline, "never so: {what}: {held:?}");
        std::thread::sleep(GLANCE);
    }
}

fn has(server: &RedisServer, line: &str) -> Result<bool, ServerError> {
    let info = server.cli(&["INFO", "replication"])?;
    Ok(info.lines().any(|found| found.trim_end() == line))
}

fn follows(server: &RedisServer, primary: &RedisServer) -> Result<bool, ServerError> {
    let port = format!("master_port:{}", primary.port());
    Ok(has(server, &port)? && has(server, "master_link_status:up")?)
}

/// A primary and two replicas with three sentinels, set up as the docs say.
pub(crate) struct Sentinels(RedisReplicas);

impl Sentinels {
    const SERVERS: usize = 3;

    pub(crate) fn start() -> Self {
        let redis = RedisReplicas::start_with(Self::SERVERS - 1, |server| {
            let server = server.arg("--min-replicas-to-write", "1");
            server.arg("--min-replicas-max-lag", "2")
        });
        Self(redis.unwrap())
    }
}

impl Ground for Sentinels {
    fn url(&self) -> String {
        self.0.url()
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let all = 0..Self::SERVERS;
        all.map(|at| self.0.server(at).addr()).collect()
    }

    fn strike(&mut self, turn: usize) -> Strike {
        let redis = &mut self.0;
        let before = redis.primary();
        let means = Means::of(turn);
        match means {
            // Refused while the sentinels are still busy with the last one.
            Means::Planned => until("the sentinels agree to fail over", || {
                redis.fail_over().map(|()| true)
            }),
            Means::Killed => redis.kill(before),
            Means::Stopped => redis.server(before).pause().unwrap(),
        }
        until("a replica is promoted", || {
            let now = redis.primary();
            Ok(now != before && has(redis.server(now), "role:master")?)
        });
        let now = redis.primary();
        Strike { means, before, now }
    }

    fn mend(&mut self, strike: &Strike) {
        let redis = &mut self.0;
        match strike.means {
            Means::Planned => {}
            Means::Killed => {
                redis.restart_empty(strike.before).unwrap();
                let port = redis.server(strike.now).port().to_string();
                let again = redis.server(strike.before);
                again.cli(&["REPLICAOF", "127.0.0.1", &port]).unwrap();
            }
            Means::Stopped => redis.server(strike.before).resume().unwrap(),
        }
        until("all servers follow the new primary", || {
            for at in (0..Self::SERVERS).filter(|&at| at != strike.now) {
                if !follows(redis.server(at), redis.server(strike.now))? {
                    return Ok(false);
                }
            }
            Ok(true)
        });
    }
}

/// A cluster of three primaries with a replica each.
pub(crate) struct Shards(RedisCluster);

impl Shards {
    const PRIMARIES: usize = 3;

    pub(crate) fn start() -> Self {
        Self(RedisCluster::start(Self::PRIMARIES, true).unwrap())
    }
}

impl Ground for Shards {
    fn url(&self) -> String {
        self.0.url()
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let all = 0..2 * Self::PRIMARIES;
        all.map(|at| self.0.node(at).addr()).collect()
    }

    fn strike(&mut self, turn: usize) -> Strike {
        let cluster = &mut self.0;
        // Another shard each time; all means come to each in the long run.
        let shard = (turn + turn / 9) % Self::PRIMARIES;
        let pair = [shard, shard + Self::PRIMARIES];
        let is_primary = has(cluster.node(pair[0]), "role:master").unwrap();
        let [before, now] = if is_primary { pair } else { [pair[1], pair[0]] };
        let means = Means::of(turn);
        match means {
            Means::Planned => until("the replica agrees to take over", || {
                let asked = cluster.node(now).cli(&["CLUSTER", "FAILOVER"]);
                asked.map(|_| true)
            }),
            Means::Killed => cluster.kill(before),
            Means::Stopped => cluster.node(before).pause().unwrap(),
        }
        until("the replica is promoted", || {
            has(cluster.node(now), "role:master")
        });
        Strike { means, before, now }
    }

    fn mend(&mut self, strike: &Strike) {
        let cluster = &mut self.0;
        match strike.means {
            Means::Planned => {}
            Means::Killed => cluster.restart(strike.before).unwrap(),
            Means::Stopped => cluster.node(strike.before).resume().unwrap(),
        }
        until("the old primary follows the new one", || {
            follows(cluster.node(strike.before), cluster.node(strike.now))
        });
        until("every node finds the cluster well", || {
            for at in 0..2 * Self::PRIMARIES {
                let info = cluster.node(at).cli(&["CLUSTER", "INFO"])?;
                if !info.contains("cluster_state:ok") {
                    return Ok(false);
                }
            }
            Ok(true)
        });
    }
}
