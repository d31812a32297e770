//! Sentinels: which server is the primary, and whether it still is.
//!
//! What a sentinel says is advice. A sentinel on the wrong side of a partition names a primary that has
//! been replaced, so all of them are asked and the answer of the highest configuration epoch counts;
//! and whoever is named must itself say that it is a primary.

use super::address::{client_at, described};
use super::error;
use super::reply::{self, Reply};
use super::watch::Watch;
use crate::error::{StoreError, StoreErrorKind};
use crate::random::random_part;
use crate::store::StoreResult;
use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, ConnectionInfo, Value};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

/// How long a sentinel may take to connect and to answer: one that is further away is of no help.
const ANSWER_LIMIT: Duration = Duration::from_millis(400);
/// How long the others are waited for once one sentinel has answered.
const OTHERS_LIMIT: Duration = Duration::from_millis(50);
/// How often the sentinels are asked whether the primary of a link is still the one. A part of the time
/// for which a deposed primary is listened to.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// What asking is called in errors.
const ASK: &str = "ask the sentinels";

/// The sentinels of one primary.
#[derive(Clone)]
pub(super) struct Sentinels(Arc<Inner>);

struct Inner {
    sentinels: Vec<Client>,
    name: String,
    /// How to connect to the primary, but for its address.
    primary: ConnectionInfo,
    warned: AtomicBool,
}

/// A connection to each sentinel, kept between questions by whoever asks, and ending with him. An answer
/// has no history, so a new connection is as good as the last.
#[derive(Clone)]
struct Lines(Arc<[Mutex<Option<MultiplexedConnection>>]>);

/// What a sentinel says of the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    /// Counts the failovers that the sentinel knows of.
    config_epoch: u64,
    host: String,
    port: u16,
}

/// The primary at the time.
pub(super) struct Primary {
    pub(super) client: Client,
    named: Named,
    lines: Lines,
}

impl Sentinels {
    pub(super) fn new(clients: Vec<Client>, name: &str, primary: ConnectionInfo) -> Self {
        Self(Arc::new(Inner {
            sentinels: clients,
            name: name.to_owned(),
            primary,
            warned: AtomicBool::new(false),
        }))
    }

    /// Warns, once, of a primary that acknowledges writes which no replica gets.
    pub(super) fn warn_of_lone_writes(&self) {
        if !self.0.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(store = %self.describe(),
                "min-replicas-to-write is 0: a primary that is cut off from its sentinels goes on \
                 taking writes, and pods beside it do not learn of invalidations");
        }
    }

    pub(super) fn describe(&self) -> String {
        let hosts = self.0.sentinels.iter().map(|sentinel| {
            let info = sentinel.get_connection_info();
            let text = described(info.addr(), 0);
            let host = text.split_once("://").map_or("", |(_, rest)| rest);
            host.trim_end_matches("/0").to_owned()
        });
        let hosts = hosts.collect::<Vec<_>>().join(",");
        let primary = &self.0.primary;
        let scheme = described(primary.addr(), 0);
        let scheme = scheme.split(':').next().unwrap_or_default();
        let db = primary.redis_settings().db();
        format!("{scheme}+sentinel://{hosts}/{}/{db}", self.0.name)
    }

    /// Which server is the primary.
    pub(super) async fn primary(&self) -> StoreResult<Primary> {
        let lines = Lines(self.0.sentinels.iter().map(|_| Mutex::default()).collect());
        let named = self.ask_all(&lines).await?;
        let client = client_at(&self.0.primary, &named.host, named.port)?;
        Ok(Primary {
            client,
            named,
            lines,
        })
    }

    /// Looks after the primary of a link, as long as what is returned is kept.
    pub(super) fn watch(&self, primary: &Primary) -> Watch {
        let sentinels = self.clone();
        let (named, lines) = (primary.named.clone(), primary.lines.clone());
        Watch::start("the sentinels name another primary", async move {
            sentinels.until_replaced(&named, &lines).await;
        })
    }

    /// Ends when a sentinel that knows of as many failovers, or more, names another server.
    async fn until_replaced(&self, primary: &Named, lines: &Lines) {
        loop {
            tokio::time::sleep(WATCH_EVERY.mul_f64(0.9 + 0.2 * random_part())).await;
            // Sentinels that do not answer say nothing about the primary.
            let Ok(named) = self.ask_all(lines).await else {
                continue;
            };
            let same = (&named.host, named.port) == (&primary.host, primary.port);
            if !same && named.config_epoch >= primary.config_epoch {
                return;
            }
        }
    }

    /// The answer of whoever knows of the most failovers.
    async fn ask_all(&self, lines: &Lines) -> StoreResult<Named> {
        let (answer, mut answers) = mpsc::unbounded_channel();
        for at in 0..self.0.sentinels.len() {
            let (all, lines, answer) = (self.clone(), lines.clone(), answer.clone());
            tokio::spawn(async move {
                // Whoever asked may have enough answers by now.
                let _ = answer.send(all.ask(at, &lines).await);
            });
        }
        drop(answer);
        let mut best: Option<Named> = None;
        let mut failure = None;
        let mut end = Instant::now() + 2 * ANSWER_LIMIT;
        while let Ok(Some(answer)) = timeout_at(end, answers.recv()).await {
            match answer {
                Ok(named) => {
                    end = end.min(Instant::now() + OTHERS_LIMIT);
                    if best
                        .as_ref()
                        .is_none_or(|best| best.config_epoch < named.config_epoch)
                    {
                        best = Some(named);
                    }
                }
                Err(error) => failure = Some(error),
            }
        }
        best.ok_or_else(|| failure.unwrap_or_else(|| StoreError::new(StoreErrorKind::Timeout, ASK)))
    }

    async fn ask(&self, at: usize, lines: &Lines) -> StoreResult<Named> {
        let named = timeout(ANSWER_LIMIT, self.ask_on(at, lines)).await;
        let timed_out = || Err(StoreError::new(StoreErrorKind::Timeout, ASK));
        let named = named.unwrap_or_else(|_| timed_out());
        if named.is_err() {
            *lines.to(at) = None;
        }
        named
    }

    async fn ask_on(&self, at: usize, lines: &Lines) -> StoreResult<Named> {
        let (name, failed) = (&self.0.name, |failed| error::of_client(ASK, &failed));
        let known = lines.to(at).clone();
        let mut connection = match known {
            Some(connection) => connection,
            None => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(ANSWER_LIMIT))
                    .set_response_timeout(None);
                let client = &self.0.sentinels[at];
                let connect = client.get_multiplexed_async_connection_with_config(&config);
                let connection = connect.await.map_err(failed)?;
                *lines.to(at) = Some(connection.clone());
                connection
            }
        };
        let mut questions = ::redis::pipe();
        // During a failover this one names the successor as soon as it is promoted.
        questions
            .cmd("SENTINEL")
            .arg("GET-MASTER-ADDR-BY-NAME")
            .arg(name);
        questions.cmd("SENTINEL").arg("MASTER").arg(name);
        let answers = connection.send_packed_commands(&questions, 0, questions.len());
        let mut answers = answers.await.map_err(failed)?;
        if let [Value::Nil, _] = answers[..] {
            let error = StoreError::new(StoreErrorKind::Config, ASK);
            return Err(error.with_detail("they know no primary of this name"));
        }
        let master = answers.pop().ok_or_else(|| Reply::malformed(ASK))?;
        let address = answers.pop().ok_or_else(|| Reply::malformed(ASK))?;
        let master = Reply::new(ASK, master)?.array()?;
        let [host, port] = Reply::new(ASK, address)?.items()?;
        read(master, host, port).ok_or_else(|| Reply::malformed(ASK))
    }
}

impl Lines {
    fn to(&self, at: usize) -> MutexGuard<'_, Option<MultiplexedConnection>> {
        self.0[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(master: Vec<Value>, host: Value, port: Value) -> Option<Named> {
    let mut fields = HashMap::new();
    let mut items = master.into_iter();
    while let (Some(name), Some(value)) = (items.next(), items.next()) {
        fields.insert(reply::bytes(name)?, value);
    }
    Some(Named {
        config_epoch: reply::number_of(fields.get(&b"config-epoch"[..])?)?,
        host: String::from_utf8(reply::bytes(host)?).ok()?,
        port: u16::try_from(reply::number(port)?).ok()?,
    })
}
