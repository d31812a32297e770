//! A Redis cluster of one's own.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use super::ports::free_port;
use super::redis_replicas::wait;
use super::redis_server::RedisServer;
use super::server_error::{ServerError, failed};

/// Slots of a cluster.
const SLOTS: u16 = 16384;
/// How long a node waits for another before it takes it for dead: short, for tests; on a loaded machine
/// a node may well be silent for longer, and is then replaced for nothing.
const NODE_TIMEOUT: Duration = Duration::from_millis(1500);

/// A Redis cluster of primaries, each with one replica or none. Every node is a [`RedisServer`] that is
/// killed on drop.
///
/// Primaries have the numbers `0..primaries`, and the replica of primary `n` begins as number
/// `primaries + n`. The slots are divided among the primaries in equal ranges. All methods block.
///
/// # Examples
/// ```
/// # use tidings::testing::{RedisCluster, RedisServer};
/// # if !RedisServer::available() { return Ok(()); }
/// let cluster = RedisCluster::start(3, false)?;
/// assert!(cluster.node(1).cli(&["CLUSTER", "INFO"])?.contains("cluster_state:ok"));
/// # Ok::<(), tidings::testing::ServerError>(())
/// ```
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
    primaries: usize,
}

impl RedisCluster {
    /// Starts a cluster and waits until every node finds it well.
    ///
    /// # Errors
    /// As [`RedisServer::start`]; [`ServerError::Io`] if the nodes do not find together within 30
    /// seconds.
    pub fn start(primaries: usize, replicas: bool) -> Result<Self, ServerError> {
        let count = primaries * (1 + usize::from(replicas));
        let timeout = NODE_TIMEOUT.as_millis().to_string();
        let node = |_| {
            let bus = free_port().map_err(failed("finding a free port"))?;
            let server = RedisServer::builder()
                .arg("--cluster-enabled", "yes")
                .arg("--cluster-port", &bus.to_string())
                .arg("--cluster-node-timeout", &timeout)
                .arg("--cluster-replica-validity-factor", "0")
                .arg("--cluster-allow-replica-migration", "no")
                .arg("--repl-diskless-sync", "yes")
                .arg("--repl-diskless-sync-delay", "0")
                .start()?;
            Ok((server, bus))
        };
        let nodes = (0..count).map(node).collect::<Result<Vec<_>, _>>()?;
        let (nodes, buses): (Vec<_>, Vec<_>) = nodes.into_iter().unzip();
        let cluster = Self { nodes, primaries };
        for at in 0..primaries {
            let (from, to) = (cluster.first_slot(at), cluster.first_slot(at + 1) - 1);
            let range = [from.to_string(), to.to_string()];
            let node = &cluster.nodes[at];
            node.cli(&["CLUSTER", "ADDSLOTSRANGE", &range[0], &range[1]])?;
            // Else two nodes with the same epoch would have to find out who moves.
            let epoch = (at + 1).to_string();
            node.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch])?;
        }
        for (node, bus) in cluster.nodes.iter().zip(&buses).skip(1) {
            let (port, bus) = (node.port().to_string(), bus.to_string());
            cluster.nodes[0].cli(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus])?;
        }
        let known = format!("cluster_known_nodes:{count}");
        cluster.wait_for_all("the nodes know one another", &known)?;
        for at in primaries..count {
            let primary = cluster.id(at - primaries)?;
            cluster.nodes[at].cli(&["CLUSTER", "REPLICATE", &primary])?;
        }
        cluster.wait_for_all("the cluster is well", "cluster_state:ok")?;
        wait("the replicas are in step", || {
            Ok((primaries..count).all(|at| cluster.is_in_step(at)))
        })?;
        // A replica fails over only if a majority knows it as one.
        wait("everybody knows the replicas", || {
            let replicas = count - primaries;
            let knows = |node: &RedisServer| {
                let nodes = node.cli(&["CLUSTER", "NODES"])?;
                let lines = nodes.lines().filter(|line| line.contains("slave"));
                Ok(lines.count() == replicas)
            };
            let known: Result<Vec<bool>, ServerError> = cluster.nodes.iter().map(knows).collect();
            Ok(known?.into_iter().all(|known| known))
        })?;
        Ok(cluster)
    }

    /// The `redis+cluster://` URL: the first three nodes.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts = self.nodes.iter().take(3).map(|n| n.addr().to_string());
        format!("redis+cluster://{}", hosts.collect::<Vec<_>>().join(","))
    }

    /// A node by its number.
    ///
    /// # Panics
    /// If there is none of this number.
    #[must_use]
    pub fn node(&self, at: usize) -> &RedisServer {
        &self.nodes[at]
    }

    /// How many primaries it began with.
    #[must_use]
    pub fn primaries(&self) -> usize {
        self.primaries
    }

    /// Kills a node with SIGKILL.
    ///
    /// # Panics
    /// If there is none of this number.
    pub fn kill(&mut self, at: usize) {
        self.nodes[at].kill();
    }

    /// Starts a node again that was killed, as it is known to the others, and with no data.
    ///
    /// # Errors
    /// As [`RedisServer::restart`].
    ///
    /// # Panics
    /// If there is none of this number.
    pub fn restart(&mut self, at: usize) -> Result<(), ServerError> {
        self.nodes[at].restart()
    }

    /// Waits until node `at` is a primary, and every node that runs finds the cluster well.
    ///
    /// # Errors
    /// [`ServerError::Io`] if that does not happen within 30 seconds.
    pub fn wait_for_promotion(&self, at: usize) -> Result<(), ServerError> {
        wait("the replica is promoted", || {
            let info = self.nodes[at].cli(&["INFO", "replication"])?;
            Ok(info.contains("role:master"))
        })?;
        self.wait_for_all("the cluster is well", "cluster_state:ok")
    }

    /// Moves a slot and what is in it from one primary to another, key by key, as operators do.
    ///
    /// # Errors
    /// As [`RedisServer::cli`].
    pub fn move_slot(&self, slot: u16, from: usize, to: usize) -> Result<(), ServerError> {
        self.begin_move(slot, from, to)?;
        while self.move_keys(slot, from, to, 8)? > 0 {}
        self.end_move(slot, from, to)
    }

    /// The first step of [`move_slot`](Self::move_slot): from now on the slot is on the move.
    ///
    /// # Errors
    /// As [`RedisServer::cli`].
    pub fn begin_move(&self, slot: u16, from: usize, to: usize) -> Result<(), ServerError> {
        let slot = slot.to_string();
        let set = |node: usize, state, other| {
            let other = self.id(other)?;
            self.nodes[node].cli(&["CLUSTER", "SETSLOT", &slot, state, &other])
        };
        set(to, "IMPORTING", from)?;
        set(from, "MIGRATING", to).map(drop)
    }

    /// Moves at most `count` of the keys of a slot that is on the move; gives how many.
    ///
    /// # Errors
    /// As [`RedisServer::cli`].
    pub fn move_keys(
        &self,
        slot: u16,
        from: usize,
        to: usize,
        count: usize,
    ) -> Result<usize, ServerError> {
        let (source, port) = (&self.nodes[from], self.nodes[to].port().to_string());
        let (slot, count) = (slot.to_string(), count.to_string());
        let keys = source.cli(&["CLUSTER", "GETKEYSINSLOT", &slot, &count])?;
        let keys: Vec<_> = keys.lines().filter(|key| !key.is_empty()).collect();
        if !keys.is_empty() {
            let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            migrate.extend(&keys);
            source.cli(&migrate)?;
        }
        Ok(keys.len())
    }

    /// The last step: the slot is the new node's, which has all of its keys.
    ///
    /// # Errors
    /// As [`RedisServer::cli`].
    pub fn end_move(&self, slot: u16, from: usize, to: usize) -> Result<(), ServerError> {
        let (slot, target) = (slot.to_string(), self.id(to)?);
        for node in [to, from] {
            self.nodes[node].cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &target])?;
        }
        Ok(())
    }

    /// Whether the nodes can move a slot [in one step](Self::move_slot_at_once): Valkey 9 and Redis 8.4 can.
    ///
    /// # Errors
    /// As [`RedisServer::cli`].
    pub fn moves_at_once(&self) -> Result<bool, ServerError> {
        Ok(self.mover()?.is_some())
    }

    /// Moves a slot and what is in it from one primary to another in one step: the nodes copy it while
    /// it is in use, and hand it over with all of its keys.
    ///
    /// # Errors
    /// As [`RedisServer::cli`]; [`ServerError::Io`] if the nodes [cannot](Self::moves_at_once), give it up,
    /// or take more than 30 seconds.
    pub fn move_slot_at_once(&self, slot: u16, from: usize, to: usize) -> Result<(), ServerError> {
        let Some(mover) = self.mover()? else {
            return Err(not_moved("these nodes move key by key"));
        };
        let (slot, target) = (slot.to_string(), self.id(to)?);
        // The node that is told, and is then asked how it goes.
        let (node, told, asked, done) = match mover {
            Mover::Valkey => (
                &self.nodes[from],
                vec!["MIGRATESLOTS", "SLOTSRANGE", &slot, &slot, "NODE", &target],
                &["CLUSTER", "GETSLOTMIGRATIONS"][..],
                "success",
            ),
            Mover::Redis => (
                &self.nodes[to],
                vec!["MIGRATION", "IMPORT", &slot, &slot],
                &["CLUSTER", "MIGRATION", "STATUS", "ALL"][..],
                "completed",
            ),
        };
        let before = states(&node.cli(asked)?);
        node.cli(&[&["CLUSTER"][..], &told].concat())?;
        wait("the slot has moved", || {
            let now = states(&node.cli(asked)?);
            let mut new = now.iter().filter(|(job, _)| !before.contains_key(*job));
            match new.next() {
                Some((_, state)) if state == done => Ok(true),
                Some((_, state)) if GAVE_UP.contains(&&**state) => Err(not_moved(state)),
                _ => Ok(false),
            }
        })
    }

    fn mover(&self) -> Result<Option<Mover>, ServerError> {
        let knows = |command| -> Result<bool, ServerError> {
            let known = self.nodes[0].cli(&["COMMAND", "INFO", command])?;
            Ok(known.contains(command))
        };
        if knows("cluster|migrateslots")? {
            return Ok(Some(Mover::Valkey));
        }
        Ok(knows("cluster|migration")?.then_some(Mover::Redis))
    }

    /// Leaves a slot where it is after all; none of its keys must have moved.
    ///
    /// # Errors
    /// As [`RedisServer::cli`].
    pub fn cancel_move(&self, slot: u16, from: usize, to: usize) -> Result<(), ServerError> {
        for node in [from, to] {
            self.nodes[node].cli(&["CLUSTER", "SETSLOT", &slot.to_string(), "STABLE"])?;
        }
        Ok(())
    }

    /// The number of the primary that a slot began at.
    #[must_use]
    pub fn home_of(&self, slot: u16) -> usize {
        let homes = (0..self.primaries).rev();
        let mut homes = homes.filter(|&at| self.first_slot(at) <= slot);
        homes.next().unwrap_or_default()
    }

    fn first_slot(&self, at: usize) -> u16 {
        let slot = usize::from(SLOTS) * at / self.primaries;
        u16::try_from(slot).expect("at most the number of slots")
    }

    fn id(&self, at: usize) -> Result<String, ServerError> {
        self.nodes[at].cli(&["CLUSTER", "MYID"])
    }

    fn is_in_step(&self, at: usize) -> bool {
        let info = self.nodes[at].cli(&["INFO", "replication"]);
        info.is_ok_and(|info| info.contains("master_link_status:up"))
    }

    fn wait_for_all(&self, what: &str, line: &str) -> Result<(), ServerError> {
        wait(what, || {
            for node in self.nodes.iter().filter(|node| node.pid().is_some()) {
                let info = node.cli(&["CLUSTER", "INFO"])?;
                if !info.lines().any(|found| found.trim_end() == line) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }
}

/// Whose command moves slots in one step.
#[derive(Clone, Copy)]
enum Mover {
    Valkey,
    Redis,
}

/// The states of a move that has ended where it began, in the words of either server.
const GAVE_UP: [&str; 3] = ["failed", "cancelled", "canceled"];

/// The state of each move that a node knows of, by its name.
fn states(listed: &str) -> BTreeMap<String, String> {
    let (mut states, mut job) = (BTreeMap::new(), String::new());
    let mut lines = listed.lines();
    while let Some(line) = lines.next() {
        let value = match line {
            "name" | "id" | "state" => lines.next().unwrap_or_default().to_owned(),
            _ => continue,
        };
        if line == "state" {
            states.insert(std::mem::take(&mut job), value);
        } else {
            job = value;
        }
    }
    states
}

fn not_moved(why: &str) -> ServerError {
    failed("moving a slot in one step")(io::Error::other(why.to_owned()))
}
