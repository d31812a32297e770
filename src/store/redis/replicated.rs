//! Calls that count only once replicas have them.
//!
//! `WAIT` waits for everything that its own connection has written, and holds that connection up meanwhile.
//! So these calls have a connection of their own to each node, and go in batches: what comes while a `WAIT`
//! is under way is sent behind it, with one `WAIT` for all.

use super::error;
use super::numbers::millis;
use super::reply::Reply;
use super::server::{self, Life, Mode};
use crate::error::{StoreError, StoreErrorKind};
use crate::store::StoreResult;
use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, Cmd, Pipeline, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// How long replicas may take unless [`Redis::replication_timeout`](super::Redis::replication_timeout) says
/// otherwise: hundreds of round trips between servers of one data centre, and a quarter of what a caller
/// waits, so that it learns why.
pub(super) const REPLICATION_TIMEOUT: Duration = Duration::from_millis(500);
/// How much longer than that an answer may take before the connection is given up.
const GRACE: Duration = Duration::from_secs(1);
/// How many calls go with one `WAIT`: some four milliseconds of the server's time.
const BATCH: usize = 256;

/// Whose having an invalidation makes it acknowledged; see [`Redis::acknowledge`](super::Redis::acknowledge).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Acknowledge {
    /// That of the server which carried it out.
    #[default]
    Primary,
    /// That of so many of its replicas besides. None is as [`Primary`](Self::Primary).
    Replicated(u8),
}

/// How many replicas must confirm a call, and in what time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) replicas: u8,
    pub(super) timeout: Duration,
}

/// The connection to one node for calls that replicas must have.
pub(super) struct Replicated {
    /// How many replicas must have a call.
    pub(super) replicas: u8,
    calls: mpsc::Sender<Asked>,
}

struct Asked {
    call: Cmd,
    answer: oneshot::Sender<StoreResult<Value>>,
}

impl Replicated {
    /// Opens it to the server that was found to be in `life`. `lost` is set when it breaks.
    pub(super) async fn open(
        client: &Client,
        config: &AsyncConnectionConfig,
        (mode, life): (Mode, Life),
        wanted: Wanted,
        lost: Arc<AtomicBool>,
    ) -> StoreResult<Self> {
        let failed = |failed| error::of_client("connect", &failed);
        let connect = client.get_multiplexed_async_connection_with_config(config);
        let mut connection = connect.await.map_err(failed)?;
        let found = server::identify(&mut connection, mode).await?;
        if found.incarnation != life.incarnation {
            // Calls would be logged where nobody reads them.
            let error = StoreError::new(StoreErrorKind::Unavailable, "connect");
            return Err(error.with_detail("two servers answered at one address"));
        }
        // Asks for nothing, but shows whether this user may ask.
        let mut ask = ::redis::cmd("WAIT");
        let answer = connection.send_packed_command(ask.arg(0).arg(0)).await;
        Reply::new("wait", answer.map_err(failed)?)?;
        let (calls, queue) = mpsc::channel(BATCH);
        tokio::spawn(serve(connection, queue, wanted, lost));
        let replicas = wanted.replicas;
        Ok(Self { replicas, calls })
    }

    /// Sends a call; its answer, once enough replicas have what it did.
    ///
    /// # Errors
    /// `Unreplicated` if they did not confirm that in time: it may happen, or have happened, all the same.
    pub(super) async fn send(&self, operation: &'static str, call: &Cmd) -> StoreResult<Value> {
        let (answer, answered) = oneshot::channel();
        let call = call.clone();
        let asked = Asked { call, answer };
        let broken = || StoreError::new(StoreErrorKind::Unavailable, operation);
        self.calls.send(asked).await.map_err(|_| broken())?;
        answered.await.unwrap_or_else(|_| Err(broken()))
    }
}

/// Sends what is asked for, until nobody asks any more or the connection breaks.
async fn serve(
    mut connection: MultiplexedConnection,
    mut queue: mpsc::Receiver<Asked>,
    wanted: Wanted,
    lost: Arc<AtomicBool>,
) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        // Who has gone repeats it if need be.
        batch.retain(|asked: &Asked| !asked.answer.is_closed());
        let mut commands = Pipeline::with_capacity(batch.len() + 1);
        for asked in &batch {
            commands.add_command(asked.call.clone());
        }
        let wait = commands.cmd("WAIT").arg(wanted.replicas);
        wait.arg(millis(wanted.timeout));
        let answers = connection.send_packed_commands(&commands, 0, commands.len());
        let failed = match timeout(wanted.timeout + GRACE, answers).await {
            Ok(Ok(answers)) if answers.len() == batch.len() + 1 => {
                hand_out(batch.drain(..), answers, wanted.replicas);
                continue;
            }
            Ok(Ok(_)) => Reply::malformed("wait"),
            Ok(Err(failed)) => error::of_client("wait", &failed),
            Err(_) => StoreError::new(StoreErrorKind::Timeout, "wait"),
        };
        lost.store(true, Ordering::Release);
        for asked in batch {
            // Who has gone needs no answer.
            let _ = asked.answer.send(Err(failed.clone()));
        }
        return;
    }
}

/// Gives each call its answer; `answers` has that of the `WAIT` last.
fn hand_out(batch: impl Iterator<Item = Asked>, mut answers: Vec<Value>, replicas: u8) {
    let unconfirmed = match answers.pop() {
        Some(Value::Int(confirmed)) if confirmed >= i64::from(replicas) => None,
        Some(Value::Int(confirmed)) => {
            let detail = format!("{confirmed} of {replicas} replicas confirmed it in time");
            Some(StoreError::new(StoreErrorKind::Unreplicated, "wait").with_detail(detail))
        }
        Some(Value::ServerError(refused)) => Some(error::of_server("wait", &refused)),
        _ => Some(Reply::malformed("wait")),
    };
    for (asked, answer) in batch.zip(answers) {
        // What was refused was not done.
        let answer = match (&unconfirmed, answer) {
            (_, Value::ServerError(refused)) => Ok(Value::ServerError(refused)),
            (None, answer) => Ok(answer),
            (Some(unconfirmed), _) => Err(unconfirmed.clone()),
        };
        // Who has gone needs no answer.
        let _ = asked.answer.send(answer);
    }
}
