//! Commands and scripts of your own, on the connection that the cache has to Redis anyway.
//!
//! [`Script`] is a Lua script with typed keys, arguments and answer; [`RedisCommands`] runs scripts and
//! single commands. See [`Cache::redis`].

mod args;
mod refused;
mod reply;

pub use args::{Args, ArgsFor, Key, ToArgs};
#[cfg(feature = "testing")]
pub(crate) use reply::read_rubbish;
pub use reply::{FromReply, Reply};

use crate::cache::Cache;
use crate::error::{StoreError, StoreErrorKind};
use crate::store::redis::RedisLink;
use crate::store::{Link, Redis, StoreResult};
use ::redis::{Cmd, Value};
use std::any::{Any, type_name};
use std::fmt;
use std::marker::PhantomData;
use std::sync::OnceLock;
use std::time::Duration;

/// How long a command may take: as long as a write of the cache itself.
const LIMIT: Duration = Duration::from_secs(2);

/// A Lua script with typed keys and arguments `A` ([`ArgsFor`] lists what stands for what) and a typed
/// answer `R` ([`FromReply`]).
///
/// Make it a `static`: the server is sent the source once in its life, and its hash from then on.
///
/// ```
/// use tidings::script::{Key, Script};
///
/// /// Adds to a counter, up to a limit; `None` where that would go beyond.
/// static TAKE: Script<(Key, i64, i64), Option<i64>> = Script::new(
///     "take",
///     "local used = tonumber(redis.call('GET', KEYS[1]) or 0)
///      if used + ARGV[1] > tonumber(ARGV[2]) then return nil end
///      return redis.call('INCRBY', KEYS[1], ARGV[1])",
/// );
/// ```
pub struct Script<A, R> {
    name: &'static str,
    source: &'static str,
    hash: OnceLock<String>,
    types: PhantomData<fn(A) -> R>,
}

impl<A, R> Script<A, R> {
    /// A script called `name` in errors, with its Lua `source`. Nothing is checked before it runs.
    #[must_use]
    pub const fn new(name: &'static str, source: &'static str) -> Self {
        Self {
            name,
            source,
            hash: OnceLock::new(),
            types: PhantomData,
        }
    }

    /// What it is called in errors.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    fn hash(&self) -> &str {
        let hash = || ::redis::Script::new(self.source).get_hash().to_owned();
        self.hash.get_or_init(hash)
    }

    fn call(&self, args: &Args) -> Cmd {
        let mut cmd = ::redis::cmd("EVALSHA");
        cmd.arg(self.hash()).arg(args.keys.len());
        for word in args.keys.iter().chain(args.args.iter()) {
            cmd.arg(word);
        }
        cmd
    }

    fn load(&self) -> Cmd {
        let mut cmd = ::redis::cmd("SCRIPT");
        cmd.arg("LOAD").arg(self.source);
        cmd
    }
}

impl<A, R> fmt::Debug for Script<A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Script").field(&self.name).finish()
    }
}

/// Runs commands and scripts on the connection of a [`Cache`]; from [`Cache::redis`].
///
/// Keys are taken as they are: nothing of the cache's namespace is added. A command takes at most 2 s
/// unless [`deadline`](Self::deadline) says otherwise, and is one round trip. It is never repeated: after
/// `Timeout` or `Unavailable` it may or may not have happened. When the connection breaks, calls fail
/// until the cache has a new one, and then use that. Cheap to clone.
#[derive(Clone)]
pub struct RedisCommands {
    cache: Cache,
    limit: Duration,
}

impl Cache {
    /// Commands and scripts of your own, if the store of this cache is [`Redis`]. Does no I/O.
    #[must_use]
    pub fn redis(&self) -> Option<RedisCommands> {
        let store: &dyn Any = self.0.bus.store();
        store.is::<Redis>().then(|| RedisCommands {
            cache: self.clone(),
            limit: LIMIT,
        })
    }
}

impl RedisCommands {
    /// The same with another limit on how long a call may take. Default: 2 s.
    ///
    /// What is sent goes on behind a call that gave up, and holds up what the cache sends after it: a
    /// long limit is no leave to run what takes long.
    #[must_use]
    pub fn deadline(&self, limit: Duration) -> Self {
        Self {
            cache: self.cache.clone(),
            limit,
        }
    }

    /// A script, ready to [run](Call::run). No round trip.
    pub fn script<'a, A, R>(&'a self, script: &'a Script<A, R>) -> Call<'a, A, R> {
        Call {
            redis: self,
            script,
        }
    }

    /// Sends one command. Words of `command` after the first are arguments: `"CONFIG GET"`.
    ///
    /// # Errors
    /// As [`Call::run`], naming the command; [`Refused`](StoreErrorKind::Refused) without sending it
    /// for a command that blocks (`BLPOP`, `WAIT`, `XREAD BLOCK` …) or changes what the connection is
    /// (`SUBSCRIBE`, `MULTI`, `SELECT` …), as everything else of the cache goes over it.
    ///
    /// # Cancel safety
    /// The command may or may not run.
    pub async fn send<R: FromReply>(
        &self,
        command: &'static str,
        args: impl ToArgs,
    ) -> Result<R, StoreError> {
        let mut given = Args::default();
        for word in command.split_ascii_whitespace() {
            given.arg(word.as_bytes());
        }
        args.write(&mut given);
        if let Some(why) = refused::why(&given.args) {
            return Err(StoreError::new(StoreErrorKind::Refused, command).with_detail(why));
        }
        let mut cmd = Cmd::new();
        for word in given.args.iter() {
            cmd.arg(word);
        }
        let link = self.cache.0.bus.link_now(command)?;
        let answer = redis(&*link, command)?.command(command, &cmd);
        read(command, self.within(command, answer).await?)
    }

    async fn within(
        &self,
        operation: &'static str,
        answer: impl Future<Output = StoreResult<Value>>,
    ) -> StoreResult<Value> {
        self.cache.0.bus.within(self.limit, operation, answer).await
    }
}

/// A [`Script`] on the connection of a cache; from [`RedisCommands::script`].
#[derive(Clone, Copy, Debug)]
#[must_use = "a script does nothing until it is run"]
pub struct Call<'a, A, R> {
    redis: &'a RedisCommands,
    script: &'a Script<A, R>,
}

impl<A, R: FromReply> Call<'_, A, R> {
    /// Runs the script. One round trip; three if the server does not know the script yet.
    ///
    /// # Errors
    /// Name the script and the kind of trouble, never what was handed over:
    /// [`Unavailable`](StoreErrorKind::Unavailable) without a connection,
    /// [`Timeout`](StoreErrorKind::Timeout) after the limit,
    /// [`Protocol`](StoreErrorKind::Protocol) if the answer is no `R` or the script failed,
    /// [`WrongType`](StoreErrorKind::WrongType), [`Denied`](StoreErrorKind::Denied) and others as the
    /// server has them, [`Closed`](StoreErrorKind::Closed) after [`Cache::close`].
    ///
    /// # Cancel safety
    /// The script may or may not run.
    pub async fn run(self, args: impl ArgsFor<A>) -> Result<R, StoreError> {
        let Self { redis: on, script } = self;
        let mut given = Args::default();
        args.write_for(&mut given);
        let call = script.call(&given);
        let link = on.cache.0.bus.link_now(script.name)?;
        let answer = redis(&*link, script.name)?.evaluate(script.name, &call, || script.load());
        read(script.name, on.within(script.name, answer).await?)
    }
}

fn redis<'a>(link: &'a dyn Link, operation: &'static str) -> StoreResult<&'a RedisLink> {
    // Links of a `Redis` are of this kind; but nothing in the types says so.
    RedisLink::of(link).ok_or_else(|| StoreError::new(StoreErrorKind::Unsupported, operation))
}

impl fmt::Debug for RedisCommands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCommands")
            .field("cache", &self.cache)
            .field("deadline", &self.limit)
            .finish()
    }
}

fn read<R: FromReply>(operation: &'static str, answer: Value) -> StoreResult<R> {
    let unexpected = |found: &str| {
        let detail = format!("answered {found}, not {}", type_name::<R>());
        StoreError::new(StoreErrorKind::Protocol, operation).with_detail(detail)
    };
    let reply = Reply::of(answer).ok_or_else(|| unexpected("what RESP2 has no form for"))?;
    let kind = reply.kind();
    R::from_reply(reply).ok_or_else(|| unexpected(&kind))
}
