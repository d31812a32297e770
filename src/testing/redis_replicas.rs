//! A primary, its replicas, and the sentinels that watch over them.

use std::thread;
use std::time::{Duration, Instant};

use super::redis_server::{RedisServer, RedisServerBuilder};
use super::server_error::{ServerError, failed};
use crate::random::random;

/// What the sentinels call the primary.
const NAME: &str = "primary";
const SENTINELS: usize = 3;
/// How long sentinels wait for an answer before they take a server for dead: short, for tests; on a
/// loaded machine a server may well be silent for longer, and is then replaced for nothing.
const DOWN_AFTER: Duration = Duration::from_millis(700);
/// How long something that must happen may take.
const DEADLINE: Duration = Duration::from_secs(30);
const GLANCE: Duration = Duration::from_millis(5);

/// A Redis primary with replicas and three sentinels, each a [`RedisServer`] that is killed on drop.
///
/// All methods block.
///
/// # Examples
/// ```
/// # use tidings::testing::{RedisReplicas, RedisServer};
/// # if !RedisServer::available() { return Ok(()); }
/// let mut redis = RedisReplicas::start(1)?;
/// let before = redis.primary();
/// redis.kill(before);
/// let now = redis.wait_for_promotion(before)?;
/// assert_ne!(now, before);
/// # Ok::<(), tidings::testing::ServerError>(())
/// ```
#[derive(Debug)]
pub struct RedisReplicas {
    /// Servers by their number, whatever their role is.
    servers: Vec<RedisServer>,
    sentinels: Vec<RedisServer>,
}

impl RedisReplicas {
    /// Starts a primary, number 0, with `replicas` replicas, and waits until all of them are in step and
    /// the sentinels know one another.
    ///
    /// # Errors
    /// As [`RedisServer::start`]; [`ServerError::Io`] if they do not find together within 30 seconds.
    pub fn start(replicas: usize) -> Result<Self, ServerError> {
        Self::start_with(replicas, |server| server)
    }

    /// The same, with options for the servers.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(
        replicas: usize,
        options: impl Fn(RedisServerBuilder) -> RedisServerBuilder,
    ) -> Result<Self, ServerError> {
        // A replica connects at once, and the stream to it begins without a pause.
        let server = || {
            let server = RedisServer::builder().arg("--repl-diskless-sync-delay", "0");
            options(server.arg("--repl-diskless-sync", "yes")).start()
        };
        let primary = server()?;
        let port = primary.port();
        let mut redis = Self {
            servers: vec![primary],
            sentinels: Vec::new(),
        };
        for _ in 0..replicas {
            let replica = server()?;
            replica.cli(&["REPLICAOF", "127.0.0.1", &port.to_string()])?;
            redis.servers.push(replica);
        }
        redis.wait("the replicas are in step", |redis| {
            Ok((1..=replicas).all(|at| redis.has(at, "master_link_status:up")))
        })?;
        redis.start_sentinels()?;
        Ok(redis)
    }

    /// Sentinels find one another through the primary, a hello every two seconds; that is shortened by
    /// telling each of the others.
    fn start_sentinels(&mut self) -> Result<(), ServerError> {
        let port = self.servers[0].port();
        let mut known: Vec<(u16, String)> = Vec::new();
        let down_after = DOWN_AFTER.as_millis();
        for _ in 0..SENTINELS {
            let id: String = (0..3).map(|_| format!("{:016x}", random())).collect();
            let id = id[..40].to_owned();
            let mut config = format!(
                "sentinel myid {id}\nsentinel monitor {NAME} 127.0.0.1 {port} 2\n\
                 sentinel down-after-milliseconds {NAME} {down_after}\n\
                 sentinel failover-timeout {NAME} 6000\n"
            );
            for (port, id) in &known {
                config += &format!("sentinel known-sentinel {NAME} 127.0.0.1 {port} {id}\n");
            }
            let sentinel = RedisServer::builder().sentinel(config).start()?;
            known.push((sentinel.port(), id));
            self.sentinels.push(sentinel);
        }
        let (others, replicas) = (SENTINELS - 1, self.servers.len() - 1);
        self.wait("the sentinels know everybody", |redis| {
            let all = [
                format!("num-other-sentinels\n{others}"),
                format!("num-slaves\n{replicas}"),
                "flags\nmaster\n".to_owned(),
            ];
            for sentinel in &redis.sentinels {
                let seen = sentinel.cli(&["SENTINEL", "MASTER", NAME])?;
                let replicas = sentinel.cli(&["SENTINEL", "REPLICAS", NAME])?;
                let linked = !replicas.contains("disconnected");
                if !linked || !all.iter().all(|part| seen.contains(part)) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// The `redis+sentinel://` URL.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts = self.sentinels.iter().map(|s| s.addr().to_string());
        let hosts = hosts.collect::<Vec<_>>().join(",");
        format!("redis+sentinel://{hosts}/{NAME}")
    }

    /// A server by its number.
    ///
    /// # Panics
    /// If there is none of this number.
    #[must_use]
    pub fn server(&self, at: usize) -> &RedisServer {
        &self.servers[at]
    }

    /// A sentinel by its number, 0 to 2.
    ///
    /// # Panics
    /// If there is none of this number.
    pub fn sentinel(&mut self, at: usize) -> &mut RedisServer {
        &mut self.sentinels[at]
    }

    /// The number of the server that the first sentinel which answers names as the primary, or of the
    /// last one if it names none of them.
    #[must_use]
    pub fn primary(&self) -> usize {
        let ask = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME];
        let named = self.sentinels.iter().find_map(|s| s.cli(&ask).ok());
        let named = named.unwrap_or_default();
        let is_named = |server: &RedisServer| named.ends_with(&format!("\n{}", server.port()));
        let at = self.servers.iter().position(is_named);
        at.unwrap_or(self.servers.len() - 1)
    }

    /// Kills a server with SIGKILL.
    ///
    /// # Panics
    /// If there is none of this number.
    pub fn kill(&mut self, at: usize) {
        self.servers[at].kill();
    }

    /// Starts a server again that was killed, with nothing in it.
    ///
    /// # Errors
    /// As [`RedisServer::restart_empty`].
    ///
    /// # Panics
    /// If there is none of this number.
    pub fn restart_empty(&mut self, at: usize) -> Result<(), ServerError> {
        self.servers[at].restart_empty()
    }

    /// Stops what the primary writes from reaching any replica, until
    /// [`resume_replicas`](Self::resume_replicas): they are paused, and their connections cut, so that
    /// nothing waits for them on the way.
    ///
    /// # Errors
    /// As [`RedisServer::pause`] and [`RedisServer::cli`].
    pub fn hold_replicas(&self, primary: usize) -> Result<(), ServerError> {
        for (at, server) in self.servers.iter().enumerate() {
            if at != primary {
                server.pause()?;
            }
        }
        self.servers[primary]
            .cli(&["CLIENT", "KILL", "TYPE", "replica"])
            .map(drop)
    }

    /// Lets paused servers go on.
    ///
    /// # Errors
    /// As [`RedisServer::resume`].
    pub fn resume_replicas(&self) -> Result<(), ServerError> {
        let mut running = self.servers.iter().filter(|server| server.pid().is_some());
        running.try_for_each(RedisServer::resume)
    }

    /// Has the sentinels put a replica in the place of the primary, though that is well.
    ///
    /// # Errors
    /// As [`RedisServer::cli`].
    pub fn fail_over(&self) -> Result<(), ServerError> {
        self.sentinels[0]
            .cli(&["SENTINEL", "FAILOVER", NAME])
            .map(drop)
    }

    /// Waits until a server other than `before` says that it is a primary and a sentinel names it; gives
    /// its number.
    ///
    /// # Errors
    /// [`ServerError::Io`] if that does not happen within 30 seconds.
    pub fn wait_for_promotion(&self, before: usize) -> Result<usize, ServerError> {
        self.wait("another server is promoted", |redis| {
            let now = redis.primary();
            Ok(now != before && redis.has(now, "role:master"))
        })?;
        Ok(self.primary())
    }

    /// Whether the server answers with this among its lines about replication.
    fn has(&self, at: usize, line: &str) -> bool {
        let info = self.servers[at].cli(&["INFO", "replication"]);
        info.is_ok_and(|info| info.lines().any(|found| found.trim_end() == line))
    }

    fn wait(
        &self,
        what: &str,
        holds: impl Fn(&Self) -> Result<bool, ServerError>,
    ) -> Result<(), ServerError> {
        wait(what, || holds(self))
    }
}

/// Waits until `holds` gives true.
pub(super) fn wait(
    what: &str,
    holds: impl Fn() -> Result<bool, ServerError>,
) -> Result<(), ServerError> {
    let deadline = Instant::now() + DEADLINE;
    while !holds()? {
        if Instant::now() >= deadline {
            return Err(failed("waiting")(std::io::Error::other(format!(
                "never so: {what}"
            ))));
        }
        thread::sleep(GLANCE);
    }
    Ok(())
}
