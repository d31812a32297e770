//! A Redis process of one's own.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::cli;
use super::directory::Directory;
use super::ports::free_port;
use super::server_error::{ServerError, failed};

/// Names another program than the `redis-server` found in `PATH`.
const BINARY_VARIABLE: &str = "TIDINGS_REDIS_SERVER";
/// How long a server may take until it answers; a loaded machine needs seconds, a broken one never ends.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// How often a starting server is asked whether it is ready.
const START_POLL: Duration = Duration::from_millis(5);
/// How long [`RedisServer::cli`] waits for a reply.
const CLI_TIMEOUT: Duration = Duration::from_secs(10);
/// How many free ports are tried: another program can take one between finding and using it.
const PORT_ATTEMPTS: usize = 5;

/// A Redis server process that belongs to this value: started on a free loopback port with a directory
/// of its own, killed and removed on drop.
///
/// Nothing is kept on disk unless [`persistent`](RedisServerBuilder::persistent) asks for it. All
/// methods block, for a few milliseconds as a rule; they work with and without a Tokio runtime.
///
/// The program is the `redis-server` in `PATH`, or the one that `TIDINGS_REDIS_SERVER` names.
///
/// # Examples
/// ```
/// # use tidings::testing::RedisServer;
/// # if !RedisServer::available() { return Ok(()); }
/// let mut server = RedisServer::start()?;
/// server.cli(&["SET", "user:1", "Ada"])?;
/// server.restart()?;
/// assert_eq!(server.cli(&["GET", "user:1"])?, "", "it kept nothing on disk");
/// # Ok::<(), tidings::testing::ServerError>(())
/// ```
#[derive(Debug)]
pub struct RedisServer {
    settings: RedisServerBuilder,
    port: u16,
    dir: Directory,
    /// `None` after [`kill`](Self::kill).
    process: Option<Child>,
}

/// Options of a [`RedisServer`].
#[derive(Clone, Default)]
pub struct RedisServerBuilder {
    args: Vec<String>,
    password: Option<String>,
    persistence: Persistence,
    /// The configuration of a sentinel, which is what the program then runs as.
    sentinel: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Persistence {
    #[default]
    None,
    EveryWrite,
}

/// The whole dataset of a server at one point in time.
#[derive(Clone)]
pub struct Snapshot(Vec<u8>);

impl RedisServer {
    /// Starts a server with the default options and waits until it answers.
    ///
    /// # Errors
    /// [`ServerError::Run`] if there is no `redis-server`; [`ServerError::Start`] if it ends or does not
    /// answer within 20 seconds; [`ServerError::Io`] if it cannot be given a directory.
    pub fn start() -> Result<Self, ServerError> {
        Self::builder().start()
    }

    /// Starts from options.
    #[must_use]
    pub fn builder() -> RedisServerBuilder {
        RedisServerBuilder::default()
    }

    /// Whether there is a `redis-server` to run. Runs it once, to ask for its version.
    #[must_use]
    pub fn available() -> bool {
        Command::new(program())
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    /// The `redis://` URL of the server, with its password if it has one.
    #[must_use]
    pub fn url(&self) -> String {
        let user = match &self.settings.password {
            Some(password) => format!(":{}@", percent_encoded(password)),
            None => String::new(),
        };
        format!("redis://{user}127.0.0.1:{}", self.port)
    }

    /// The address of the server, as a [`Proxy`](super::Proxy) wants it.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The port of the server; restarts keep it.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id; `None` after [`kill`](Self::kill).
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Kills the process with SIGKILL, as a crash would end it, and waits until it is gone.
    ///
    /// Works on a [paused](Self::pause) server; does nothing if it is already dead.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            reap(process);
        }
    }

    /// Kills the process and starts it again on the same port, with what it had on disk.
    ///
    /// That is every write for a [persistent](RedisServerBuilder::persistent) server. For others it
    /// is the last [`snapshot`](Self::snapshot) that was taken or restored, or nothing at all.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn restart(&mut self) -> Result<(), ServerError> {
        self.restart_with(self.settings.persistence)
    }

    /// Kills the process and starts it again on the same port, with nothing in it.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn restart_empty(&mut self) -> Result<(), ServerError> {
        self.kill();
        self.dir.clear_data()?;
        self.restart()
    }

    /// Kills the process and starts it again on the same port, with an old dataset: the failover to a
    /// replica that lagged, or the restore of a backup.
    ///
    /// The snapshot can come from another server.
    ///
    /// # Errors
    /// As [`start`](Self::start); [`ServerError::Io`] if the snapshot cannot be written.
    pub fn restart_from(&mut self, snapshot: &Snapshot) -> Result<(), ServerError> {
        self.kill();
        self.dir.clear_data()?;
        fs::write(self.dir.snapshot(), &snapshot.0).map_err(failed("writing the snapshot"))?;
        // A server that logs each write reads that log alone, and would start empty without one: let
        // it read the snapshot first and begin its log afterwards.
        self.restart_with(Persistence::None)?;
        if self.settings.persistence == Persistence::EveryWrite {
            self.cli(&["CONFIG", "SET", "appendonly", "yes"])?;
            self.wait_for_append_log()?;
        }
        Ok(())
    }

    /// Takes a copy of the whole dataset. The server also keeps it on disk.
    ///
    /// # Errors
    /// [`ServerError::Reply`] or [`ServerError::Io`] if the server cannot save; [`ServerError::Io`] if the file
    /// cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot, ServerError> {
        self.cli(&["SAVE"])?;
        fs::read(self.dir.snapshot())
            .map(Snapshot)
            .map_err(failed("reading the snapshot"))
    }

    /// Stops the process with SIGSTOP: connections stay open, the kernel still accepts bytes and new
    /// connections, nothing is answered. Returns when it has stopped.
    ///
    /// # Errors
    /// [`ServerError::NotRunning`] after [`kill`](Self::kill); [`ServerError::Io`] if the signal fails.
    pub fn pause(&self) -> Result<(), ServerError> {
        let pid = self.signal(Signal::STOP)?;
        // The signal takes effect a moment later. Wait for it, and leave the exit status of a process
        // that ended instead to whoever reaps it.
        let stopped = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(pid), stopped)
            .map_err(io::Error::from)
            .map_err(failed("stopping"))?;
        Ok(())
    }

    /// Lets a [paused](Self::pause) process go on. What arrived meanwhile is answered now.
    ///
    /// # Errors
    /// As [`pause`](Self::pause).
    pub fn resume(&self) -> Result<(), ServerError> {
        self.signal(Signal::CONT).map(drop)
    }

    /// Runs one command on a connection of its own and returns the reply as text: nil is empty, the
    /// values of an array are lines. Waits up to 10 seconds for the reply.
    ///
    /// # Errors
    /// [`ServerError::Reply`] if the server refuses the command; [`ServerError::Io`] if it does not answer.
    pub fn cli(&self, args: &[&str]) -> Result<String, ServerError> {
        self.ask(args, CLI_TIMEOUT)
    }

    fn ask(&self, args: &[&str], timeout: Duration) -> Result<String, ServerError> {
        cli::ask(
            self.addr(),
            self.settings.password.as_deref(),
            args,
            timeout,
        )
    }

    fn signal(&self, signal: Signal) -> Result<Pid, ServerError> {
        let pid = Pid::from_child(self.process.as_ref().ok_or(ServerError::NotRunning)?);
        kill_process(pid, signal)
            .map_err(io::Error::from)
            .map_err(failed("sending a signal"))?;
        Ok(pid)
    }

    fn restart_with(&mut self, persistence: Persistence) -> Result<(), ServerError> {
        self.kill();
        // Clients that keep dialling a dead port can hit upon it as their own source port and hold it
        // for a moment.
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            match self.launch(persistence) {
                Err(Launch::PortTaken(_)) if Instant::now() < deadline => thread::sleep(START_POLL),
                result => return result.map_err(Launch::into_error),
            }
        }
    }

    /// Starts the process and waits until it, and no other, answers on the port.
    fn launch(&mut self, persistence: Persistence) -> Result<(), Launch> {
        self.process = Some(self.spawn(persistence)?);
        let ready = self.wait_until_ready();
        if ready.is_err() {
            self.kill();
        }
        ready
    }

    fn spawn(&self, persistence: Persistence) -> Result<Child, ServerError> {
        let log = File::create(self.dir.log()).map_err(failed("creating the log"))?;
        let errors = log.try_clone().map_err(failed("creating the log"))?;
        let program = program();
        let mut command = Command::new(&program);
        match &self.settings.sentinel {
            Some(config) => self.sentinel_args(config, &mut command)?,
            None => self.server_args(persistence, &mut command),
        }
        command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|source| ServerError::Run {
                program: program.into(),
                source,
            })
    }

    /// A sentinel keeps what it learns in its configuration, so that it starts again where it was.
    fn sentinel_args(&self, config: &str, command: &mut Command) -> Result<(), ServerError> {
        let (file, dir) = (self.dir.data().join("sentinel.conf"), self.dir.data());
        let own = format!("port {}", self.port);
        let known = fs::read_to_string(&file).unwrap_or_default();
        if !known.lines().any(|line| line == own) {
            let dir = dir.display();
            let config = format!("{own}\nbind 127.0.0.1\ndir \"{dir}\"\n{config}\n");
            fs::write(&file, config).map_err(failed("writing the configuration"))?;
        }
        command.arg(file).arg("--sentinel");
        Ok(())
    }

    fn server_args(&self, persistence: Persistence, command: &mut Command) {
        command.args(["--bind", "127.0.0.1", "--daemonize", "no", "--save", ""]);
        command
            .args(["--port", &self.port.to_string()])
            .arg("--dir")
            .arg(self.dir.data());
        match persistence {
            Persistence::None => command.args(["--appendonly", "no"]),
            // Without fsync: the log is then written before each reply, which outlives the process. Only
            // the crash of the machine would lose it.
            Persistence::EveryWrite => command.args(["--appendonly", "yes", "--appendfsync", "no"]),
        };
        if let Some(password) = &self.settings.password {
            command.args(["--requirepass", password]);
        }
        command.args(&self.settings.args);
    }

    fn wait_until_ready(&mut self) -> Result<(), Launch> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let process = self.process.as_mut().ok_or(ServerError::NotRunning)?;
            if let Some(status) = process
                .try_wait()
                .map_err(failed("waiting for redis-server"))?
            {
                let error = self.start_error(format!("it ended with {status}"));
                let clash = error.to_string().contains("Address already in use");
                return Err(if clash {
                    Launch::PortTaken(error)
                } else {
                    Launch::Failed(error)
                });
            }
            let reason = match self.is_ready(deadline) {
                Ok(Answer::Ours) => return Ok(()),
                Ok(Answer::Foreign) => {
                    let error = self.start_error("another server answers on its port".into());
                    return Err(Launch::PortTaken(error));
                }
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                let reason = format!("no answer within {START_DEADLINE:?} ({reason})");
                return Err(Launch::Failed(self.start_error(reason)));
            }
            thread::sleep(START_POLL);
        }
    }

    fn is_ready(&self, deadline: Instant) -> Result<Answer, ServerError> {
        // At least a millisecond: a timeout of zero is refused.
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        let info = self.ask(&["INFO", "server"], left)?;
        let answering = info
            .lines()
            .find_map(|line| line.strip_prefix("process_id:"));
        if answering.map(str::trim) != self.pid().map(|pid| pid.to_string()).as_deref() {
            return Ok(Answer::Foreign);
        }
        // Refused while the dataset is being read.
        self.ask(&["PING"], left)?;
        Ok(Answer::Ours)
    }

    /// Waits until the log that was just turned on holds the dataset.
    fn wait_for_append_log(&self) -> Result<(), ServerError> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let info = self.cli(&["INFO", "persistence"])?;
            let is = |field: &str| info.lines().any(|line| line.trim_end() == field);
            if is("aof_rewrite_in_progress:0") && is("aof_rewrite_scheduled:0") {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.start_error("its log was not rewritten in time".into()));
            }
            thread::sleep(START_POLL);
        }
    }

    fn start_error(&self, reason: String) -> ServerError {
        let log = self.dir.log_tail();
        ServerError::Start { reason, log }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

impl RedisServerBuilder {
    /// Adds an option as the command line takes it: `arg("--maxmemory", "10mb")`. Later ones win, over the
    /// defaults too.
    #[must_use]
    pub fn arg(mut self, name: &str, value: &str) -> Self {
        self.args.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// Asks clients for this password. Default: none.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// Runs a sentinel with this configuration instead of a server.
    pub(super) fn sentinel(mut self, config: String) -> Self {
        self.sentinel = Some(config);
        self
    }

    /// Keeps every acknowledged write on disk, so that it survives [`RedisServer::kill`]. Default: nothing
    /// is kept.
    #[must_use]
    pub fn persistent(mut self) -> Self {
        self.persistence = Persistence::EveryWrite;
        self
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    /// As [`RedisServer::start`].
    pub fn start(self) -> Result<RedisServer, ServerError> {
        let persistence = self.persistence;
        let mut server = RedisServer {
            settings: self,
            port: 0,
            dir: Directory::create("redis")?,
            process: None,
        };
        for attempt in 1.. {
            server.port = free_port().map_err(failed("finding a free port"))?;
            match server.launch(persistence) {
                Err(Launch::PortTaken(_)) if attempt < PORT_ATTEMPTS => {}
                result => return result.map(|()| server).map_err(Launch::into_error),
            }
        }
        unreachable!("the last attempt returns")
    }
}

impl fmt::Debug for RedisServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisServerBuilder")
            .field("args", &self.args)
            .field("password", &self.password.as_ref().map(|_| "…"))
            .field("persistence", &self.persistence)
            .finish()
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Snapshot({} bytes)", self.0.len())
    }
}

/// Who answers on the port.
enum Answer {
    Ours,
    Foreign,
}

/// Why a process is not up.
enum Launch {
    /// Worth another try.
    PortTaken(ServerError),
    Failed(ServerError),
}

impl Launch {
    fn into_error(self) -> ServerError {
        match self {
            Self::PortTaken(error) | Self::Failed(error) => error,
        }
    }
}

impl From<ServerError> for Launch {
    fn from(error: ServerError) -> Self {
        Self::Failed(error)
    }
}

fn program() -> OsString {
    std::env::var_os(BINARY_VARIABLE).unwrap_or_else(|| "redis-server".into())
}

fn reap(mut process: Child) {
    // Both can only fail if the process was reaped already, which is what we are after.
    let _ = process.kill();
    let _ = process.wait();
}

fn percent_encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
