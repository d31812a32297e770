//! The atomic steps: one Lua file each, behind the shared parts that it needs.
//!
//! Invalidations must work on a server that is out of memory (hole H20 of the protocol), so most steps
//! carry `allow-oom`. [`LEASE`], [`FILL`], [`PUT`] and [`TAGS`] do not: what only makes the cache warmer
//! must not push a full server any further. Nor does [`ROOM_CHANGE`], which brings members into a room;
//! whoever leaves one can do so always, by [`ROOM_LEAVE`].

use super::node::Node;
use super::nodes::Nodes;
use super::reply::Reply;
use crate::random::random_part;
use crate::store::StoreResult;
use ::redis::{Cmd, Pipeline, Script, ServerErrorKind, Value};
use std::future::Future;
use std::sync::LazyLock;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// For how long a call is repeated whose keys are on the move: most slots hold little and have moved by
/// then. Shorter than what callers wait for.
const MOVE_BUDGET: Duration = Duration::from_millis(200);
/// The first pause between two attempts; each is about twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

macro_rules! steps {
    ($($name:ident = $word:literal, $first_line:literal $(+ $part:literal)*;)*) => {$(
        pub(super) static $name: LazyLock<Step> = LazyLock::new(|| {
            Step::new($word, concat!($first_line, "\n" $(, include_str!(concat!("lua/", $part)))*))
        });
    )*};
}

steps! {
    PERMISSIONS = "inspect", "#!lua flags=allow-oom" + "permissions.lua";
    REGISTER = "register", "#!lua flags=allow-oom" + "register.lua";
    TOUCH = "touch", "#!lua flags=allow-oom" + "numbers.lua" + "wire.lua" + "publish.lua" + "open.lua" + "touch.lua";
    FENCE = "fence", "#!lua flags=allow-oom" + "numbers.lua" + "wire.lua" + "publish.lua" + "open.lua" + "fence.lua";
    FLUSH = "flush", "#!lua flags=allow-oom" + "numbers.lua" + "wire.lua" + "publish.lua" + "flush.lua";
    INVALIDATE = "invalidate", "#!lua flags=allow-oom" + "numbers.lua" + "wire.lua" + "publish.lua" + "open.lua" + "raise.lua" + "invalidate.lua";
    GUARD = "guard", "#!lua flags=allow-oom" + "numbers.lua" + "wire.lua" + "publish.lua" + "open.lua" + "raise.lua" + "markers.lua" + "guard.lua";
    PUT = "put", "#!lua" + "numbers.lua" + "wire.lua" + "publish.lua" + "open.lua" + "raise.lua" + "put.lua";
    CLEAR = "clear", "#!lua flags=allow-oom" + "numbers.lua" + "wire.lua" + "publish.lua" + "open.lua" + "raise.lua" + "clear.lua";
    LEASE = "lease", "#!lua" + "numbers.lua" + "wire.lua" + "publish.lua" + "open.lua" + "markers.lua" + "lease.lua";
    FILL = "fill", "#!lua" + "numbers.lua" + "wire.lua" + "fill.lua";
    TAGS = "read tags", "#!lua" + "numbers.lua" + "wire.lua" + "tags.lua";
    RELEASE = "release", "#!lua flags=allow-oom" + "numbers.lua" + "wire.lua" + "release.lua";
    ROOM_CHANGE = "join", "#!lua" + "numbers.lua" + "room.lua" + "room_change.lua";
    ROOM_LEAVE = "leave", "#!lua flags=allow-oom" + "numbers.lua" + "room.lua" + "room_change.lua";
    ROOM_RELEASE = "leave", "#!lua flags=allow-oom" + "numbers.lua" + "room.lua" + "room_release.lua";
    ROOM_BEAT = "beat", "#!lua flags=allow-oom" + "numbers.lua" + "room.lua" + "room_beat.lua";
    ROOM_PAGE = "page", "#!lua flags=allow-oom" + "numbers.lua" + "room.lua" + "room_page.lua";
    ROOM_COUNT = "count", "#!lua flags=allow-oom" + "numbers.lua" + "room.lua" + "room_count.lua";
    ROOM_GET = "get", "#!lua flags=allow-oom" + "numbers.lua" + "room.lua" + "room_get.lua";
}

/// One script: a step of the protocol that the server runs without anything in between.
pub(super) struct Step {
    operation: &'static str,
    source: &'static str,
    script: Script,
}

impl Step {
    fn new(operation: &'static str, source: &'static str) -> Self {
        let script = Script::new(source);
        Self {
            operation,
            source,
            script,
        }
    }

    /// What the step is called in errors.
    pub(super) fn operation(&self) -> &'static str {
        self.operation
    }

    /// Starts a call with `keys` keys. The keys follow as arguments, then the arguments.
    pub(super) fn call(&self, keys: usize) -> Cmd {
        let mut cmd = Cmd::new();
        cmd.arg("EVALSHA").arg(self.script.get_hash()).arg(keys);
        cmd
    }

    /// The command that makes the server know the script.
    pub(super) fn load(&self) -> Cmd {
        let mut cmd = Cmd::new();
        cmd.arg("SCRIPT").arg("LOAD").arg(self.source);
        cmd
    }

    /// Runs a call; loads the script and repeats it if the server does not know it.
    ///
    /// A slot that is on the move takes a call only while all keys that it names are on one side: one that
    /// is refused, and so has done nothing, is repeated for [`MOVE_BUDGET`].
    pub(super) async fn run(&self, nodes: &Nodes, call: &Cmd) -> StoreResult<Reply> {
        self.untorn(|| self.run_once(nodes, call)).await
    }

    /// The same for a call that is acknowledged by its answer.
    pub(super) async fn acknowledge(&self, nodes: &Nodes, call: &Cmd) -> StoreResult<Reply> {
        let node = nodes.of(self.operation, call)?;
        match node.replicas_asked() {
            None => self.run(nodes, call).await,
            // Not followed to where its slot moves: it is this node's replicas that are waited for.
            Some(_) => self.untorn(|| self.acknowledge_once(node, call)).await,
        }
    }

    async fn untorn<F>(&self, send: impl Fn() -> F) -> StoreResult<Reply>
    where
        F: Future<Output = StoreResult<Value>>,
    {
        let (began, mut pause) = (Instant::now(), FIRST_PAUSE);
        let mut answer = send().await?;
        while is_torn(&answer) && began.elapsed() + pause < MOVE_BUDGET {
            sleep(pause.mul_f64(0.5 + random_part())).await;
            pause *= 2;
            answer = send().await?;
        }
        Reply::new(self.operation, answer)
    }

    async fn acknowledge_once(&self, node: &Node, call: &Cmd) -> StoreResult<Value> {
        let mut answer = node.acknowledge(self.operation, call).await?;
        if is_unknown(&answer) {
            let loaded = node.send(self.operation, &self.load()).await?;
            Reply::new(self.operation, loaded)?;
            answer = node.acknowledge(self.operation, call).await?;
        }
        Ok(answer)
    }

    async fn run_once(&self, nodes: &Nodes, call: &Cmd) -> StoreResult<Value> {
        let mut answer = nodes.send(self.operation, call).await?;
        if is_unknown(&answer) {
            let load = self.load();
            answer = nodes.send_behind(self.operation, Some(&load), call).await?;
        }
        Ok(answer)
    }

    /// Runs calls as one; an answer for each, in their order.
    ///
    /// The server goes on behind a call whose script it does not know. So those calls, and only those,
    /// are repeated, behind the script.
    pub(super) async fn run_many(
        &self,
        nodes: &Nodes,
        calls: &Pipeline,
    ) -> Vec<StoreResult<Reply>> {
        let mut answers = nodes.send_many(self.operation, None, calls).await;
        let is_unknown = |answer: &StoreResult<Value>| answer.as_ref().is_ok_and(is_unknown);
        let unknown = |(at, answer)| is_unknown(answer).then_some(at);
        let unknown: Vec<usize> = answers.iter().enumerate().filter_map(unknown).collect();
        if !unknown.is_empty() {
            let mut again = Pipeline::with_capacity(unknown.len());
            for (at, call) in calls.cmd_iter().enumerate() {
                if unknown.binary_search(&at).is_ok() {
                    again.add_command(call.clone());
                }
            }
            let load = self.load();
            let repeated = nodes.send_many(self.operation, Some(&load), &again).await;
            for (at, answer) in unknown.into_iter().zip(repeated) {
                answers[at] = answer;
            }
        }
        let reply = |answer: StoreResult<Value>| Reply::new(self.operation, answer?);
        answers.into_iter().map(reply).collect()
    }
}

/// Whether some of a call's keys, and not all, were where it came to.
fn is_torn(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(refused) if refused.code() == "TRYAGAIN")
}

fn is_unknown(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(refused) if refused.kind() == Some(ServerErrorKind::NoScript))
}
