//! A PostgreSQL process of one's own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};

use super::directory::Directory;
use super::ports::free_port;
use super::server_error::{ServerError, failed};

/// Names the directory of `initdb`, `postgres` and `psql`, if it is another than where they are looked for.
const DIRECTORY_VARIABLE: &str = "TIDINGS_POSTGRES_BIN";
/// Where Debian's packages put each version's programs, out of `PATH`; Fedora's and Arch's are in it.
const DEBIAN_DIRECTORY: &str = "/usr/lib/postgresql";
/// How long a server may take until it answers; a loaded machine needs seconds, a broken one never ends.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long a server may take to end after it was told to. It kills its own children within five seconds.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// How often a server that starts or ends is looked at.
const POLL: Duration = Duration::from_millis(5);
/// How many free ports are tried: another program can take one between finding and using it.
const PORT_ATTEMPTS: usize = 5;
/// The superuser and the database that every new server has.
const USER: &str = "postgres";
/// The line of `postmaster.pid` that says whether clients are let in.
const STATUS_LINE: usize = 7;

/// A PostgreSQL server that belongs to this value: set up in a directory of its own and started on a free
/// loopback port, stopped and removed on drop.
///
/// Anybody on this machine may connect as the superuser `postgres`, without a password. Nothing is synced
/// to the disk, so its data outlives [`kill`](Self::kill), but not the crash of the machine. All methods
/// block: setting one up takes a second or so, the rest some milliseconds. They work with and without a
/// Tokio runtime.
///
/// The programs are those in `PATH`, or in Debian's directory of the newest version, or in the directory
/// that `TIDINGS_POSTGRES_BIN` names. PostgreSQL refuses to run as root: for root they run as the user
/// `postgres`, or else `nobody`, who must be able to reach the directory for temporary files.
///
/// # Examples
/// ```
/// # use tidings::testing::PostgresServer;
/// # if !PostgresServer::available() { return Ok(()); }
/// let mut server = PostgresServer::start()?;
/// server.sql("CREATE TABLE users AS SELECT 1 AS id, 'Ada' AS name")?;
/// server.restart()?;
/// assert_eq!(server.sql("SELECT name FROM users")?, "Ada", "what was committed is there");
/// # Ok::<(), tidings::testing::ServerError>(())
/// ```
#[derive(Debug)]
pub struct PostgresServer {
    port: u16,
    dir: Directory,
    programs: PathBuf,
    account: Option<Account>,
    /// Set besides those of every server.
    settings: Vec<String>,
    /// `None` after [`kill`](Self::kill).
    process: Option<Child>,
}

/// Whom a server of root runs as.
#[derive(Clone, Copy, Debug)]
struct Account {
    uid: u32,
    gid: u32,
}

impl PostgresServer {
    /// Sets a server up, starts it and waits until it answers.
    ///
    /// # Errors
    /// [`ServerError::Run`] if there is no PostgreSQL; [`ServerError::Start`] if it cannot be set up, ends, or
    /// does not answer within a minute; [`ServerError::Io`] if it cannot be given a directory, or root has
    /// nobody to run it as.
    pub fn start() -> Result<Self, ServerError> {
        let server = Self::without_data(Vec::new())?;
        server.set_up()?;
        server.launch_on_a_free_port()
    }

    /// Starts a streaming replica of this server and waits until it answers: a server of its own, that can be
    /// read, and that shows each transaction `lag` after its commit, or later.
    ///
    /// What it has when it starts is what this server had. The lag is PostgreSQL's
    /// `recovery_min_apply_delay`: what is committed is on the replica within milliseconds, and waits there. It
    /// goes on, with what it has, when this server is gone.
    ///
    /// # Examples
    /// ```
    /// # use std::time::Duration;
    /// # use tidings::testing::PostgresServer;
    /// # if !PostgresServer::available() { return Ok(()); }
    /// let primary = PostgresServer::start()?;
    /// primary.sql("CREATE TABLE users AS SELECT 1 AS id, 'Ada' AS name")?;
    /// let replica = primary.start_replica(Duration::from_secs(3600))?;
    /// primary.sql("UPDATE users SET name = 'Grace'")?;
    /// assert_eq!(replica.sql("SELECT name FROM users")?, "Ada", "for an hour");
    /// # Ok::<(), tidings::testing::ServerError>(())
    /// ```
    ///
    /// # Errors
    /// As [`start`](Self::start), and [`ServerError::Start`] if this server does not run.
    pub fn start_replica(&self, lag: Duration) -> Result<Self, ServerError> {
        let lag = format!("recovery_min_apply_delay={}ms", lag.as_millis());
        let replica = Self::without_data(vec![lag])?;
        replica.copy(self)?;
        replica.launch_on_a_free_port()
    }

    fn without_data(settings: Vec<String>) -> Result<Self, ServerError> {
        let server = Self {
            port: 0,
            dir: Directory::create("postgres")?,
            programs: programs(),
            account: geteuid().is_root().then(unprivileged).transpose()?,
            settings,
            process: None,
        };
        let data = server.dir.data();
        // Others than the owner must not read it, or PostgreSQL does not start.
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700))
            .map_err(failed("closing the directory"))?;
        if let Some(Account { uid, gid }) = server.account {
            chown(&data, Some(uid), Some(gid)).map_err(failed("giving the directory away"))?;
        }
        Ok(server)
    }

    fn launch_on_a_free_port(self) -> Result<Self, ServerError> {
        let mut server = self;
        for attempt in 1.. {
            server.port = free_port().map_err(failed("finding a free port"))?;
            match server.launch() {
                Err(error) if attempt < PORT_ATTEMPTS && is_taken(&error) => {}
                result => return result.map(|()| server),
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Whether there is a PostgreSQL to run. Runs it once, to ask for its version.
    #[must_use]
    pub fn available() -> bool {
        Command::new(programs().join("postgres"))
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    /// The `postgresql://` URL of the database `postgres` as its superuser; clients of libpq and
    /// `tokio_postgres` take it as it is.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of(USER)
    }

    /// The URL of another database of this server.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        format!("postgresql://{USER}@127.0.0.1:{}/{database}", self.port)
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

    /// Ends the server as a crash would: sessions are cut off in the middle, nothing is tidied up, and the
    /// next start recovers from the log. Waits until it is gone; does nothing if it is already.
    pub fn kill(&mut self) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        // Killed outright it would leave its children and its shared memory behind. Told to quit at once
        // it takes them along, and does no more for its data than a process that was killed.
        let _ = kill_process(Pid::from_child(&process), Signal::QUIT);
        let deadline = Instant::now() + STOP_DEADLINE;
        while let Ok(None) = process.try_wait() {
            if Instant::now() >= deadline {
                // Both can only fail if the process was reaped already, which is what we are after.
                let _ = process.kill();
                let _ = process.wait();
                return;
            }
            thread::sleep(POLL);
        }
    }

    /// [Kills](Self::kill) the server and starts it again on the same port, with all that was committed.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn restart(&mut self) -> Result<(), ServerError> {
        self.kill();
        // Clients that keep dialling a dead port can hit upon it as their own source port and hold it
        // for a moment.
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            match self.launch() {
                Err(error) if is_taken(&error) && Instant::now() < deadline => thread::sleep(POLL),
                result => return result,
            }
        }
    }

    /// Runs SQL through `psql` on a connection of its own, several statements in one transaction. Gives the
    /// rows of the last one as lines, their columns separated by `|`.
    ///
    /// # Errors
    /// [`ServerError::Reply`] if a statement fails or nobody answers; [`ServerError::Run`] without a `psql`.
    pub fn sql(&self, statements: &str) -> Result<String, ServerError> {
        let mut command = Command::new(self.programs.join("psql"));
        command.args(["--no-psqlrc", "--no-align", "--tuples-only", "--quiet"]);
        command.args(["--set=ON_ERROR_STOP=1", "--dbname", &self.url()]);
        let output = output(command.args(["--command", statements]))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(ServerError::Reply(text(&output.stderr)))
        }
    }

    fn set_up(&self) -> Result<(), ServerError> {
        let mut command = self.command("initdb");
        command.args(["--username", USER, "--auth=trust", "--no-sync"]);
        command.args(["--encoding=UTF8", "--locale=C", "--pgdata"]);
        fill_with(command.arg(self.dir.data()))
    }

    /// Takes what `primary` has, and the order to follow it.
    fn copy(&self, primary: &Self) -> Result<(), ServerError> {
        let mut command = self.command("pg_basebackup");
        command.args(["--dbname", &primary.url(), "--write-recovery-conf"]);
        command.args(["--checkpoint=fast", "--no-sync", "--pgdata"]);
        fill_with(command.arg(self.dir.data()))
    }

    /// Starts the process and waits until it lets clients in.
    fn launch(&mut self) -> Result<(), ServerError> {
        let log = File::create(self.dir.log()).map_err(failed("creating the log"))?;
        let errors = log.try_clone().map_err(failed("creating the log"))?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.dir.data());
        command.args(["-p", &self.port.to_string()]);
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=off",
            "full_page_writes=off",
            "max_connections=200",
            "shared_buffers=16MB",
            "logging_collector=off",
        ] {
            command.args(["-c", setting]);
        }
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        self.process = Some(command.spawn().map_err(not_run(&command))?);
        let ready = self.wait_until_ready();
        if ready.is_err() {
            self.kill();
        }
        ready
    }

    fn wait_until_ready(&mut self) -> Result<(), ServerError> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let process = self.process.as_mut().ok_or(ServerError::NotRunning)?;
            let ended = process.try_wait().map_err(failed("waiting for postgres"))?;
            if let Some(status) = ended {
                return Err(self.start_error(format!("it ended with {status}")));
            }
            if self.is_ready() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let reason = format!("it was not ready within {START_DEADLINE:?}");
                return Err(self.start_error(reason));
            }
            thread::sleep(POLL);
        }
    }

    /// The file that every server keeps says which process it is and whether clients are let in. One that
    /// cannot have its port never gets so far.
    fn is_ready(&self) -> bool {
        let file = fs::read_to_string(self.dir.data().join("postmaster.pid")).unwrap_or_default();
        let mut lines = file.lines().map(str::trim);
        let pid = lines.next().and_then(|line| line.parse().ok());
        pid.is_some() && pid == self.pid() && lines.nth(STATUS_LINE - 1) == Some("ready")
    }

    fn start_error(&self, reason: String) -> ServerError {
        let log = self.dir.log_tail();
        ServerError::Start { reason, log }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        // Where this process is may be nowhere for them.
        command.current_dir("/");
        if let Some(Account { uid, gid }) = self.account {
            command.uid(uid).gid(gid);
        }
        command
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn is_taken(error: &ServerError) -> bool {
    matches!(error, ServerError::Start { log, .. } if log.contains("Address already in use"))
}

/// Runs what gives a server its data.
fn fill_with(command: &mut Command) -> Result<(), ServerError> {
    let output = output(command)?;
    if output.status.success() {
        return Ok(());
    }
    let program = command.get_program().display();
    Err(ServerError::Start {
        reason: format!("{program} ended with {}", output.status),
        log: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn output(command: &mut Command) -> Result<Output, ServerError> {
    command
        .stdin(Stdio::null())
        .output()
        .map_err(not_run(command))
}

fn not_run(command: &Command) -> impl FnOnce(io::Error) -> ServerError + use<> {
    let program = command.get_program().into();
    |source| ServerError::Run { program, source }
}

/// The directory of the programs; empty if they are to be looked for in `PATH`.
fn programs() -> PathBuf {
    if let Some(named) = std::env::var_os(DIRECTORY_VARIABLE) {
        return named.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join("initdb").is_file()) {
        return PathBuf::new();
    }
    newest_in(Path::new(DEBIAN_DIRECTORY)).unwrap_or_default()
}

fn newest_in(versions: &Path) -> Option<PathBuf> {
    let version = |name: &OsStr| name.to_str()?.parse::<u32>().ok();
    fs::read_dir(versions)
        .ok()?
        .filter_map(|entry| version(&entry.ok()?.file_name()))
        .max()
        .map(|newest| versions.join(newest.to_string()).join("bin"))
}

/// The account of root's servers, from the table of users.
fn unprivileged() -> Result<Account, ServerError> {
    let table = fs::read_to_string("/etc/passwd").map_err(failed("reading the table of users"))?;
    let account = |name: &str| {
        let mut users = table.lines().map(|line| line.split(':'));
        let mut fields = users.find_map(|mut user| (user.next()? == name).then_some(user))?;
        fields.next()?; // the password
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Account { uid, gid })
    };
    [USER, "nobody"]
        .into_iter()
        .find_map(account)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
        .map_err(failed("looking for a user other than root"))
}
