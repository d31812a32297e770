//! Replicas that entities are read from, one for each node, where the user has asked for that (hole H25).
//!
//! A replica answers of the past, and whoever reads judges by the head in the same answer how far that is.
//! So a connection to one has no history, unlike those of a [link](super::link): it is opened, given up
//! and opened again behind the reads. While there is none, nothing is lost but the relief.

use super::address::client_at;
use super::error;
use super::node::Node;
use super::nodes::Nodes;
use super::reply::Reply;
use super::server::field;
use super::slots::At;
use crate::error::{StoreError, StoreErrorKind};
use crate::random::{random, random_part};
use crate::store::together::together;
use crate::store::{BoxFuture, StoreResult};
use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, ConnectionInfo, Pipeline, Value};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long a replica may take to answer: there is another way.
const ANSWER_LIMIT: Duration = Duration::from_millis(100);
/// How long it may take to connect to one. Nobody waits for that.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// How often primaries are asked which replicas they have.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The replica of one node.
#[derive(Default)]
pub(super) struct Replica(Mutex<Option<(At, MultiplexedConnection)>>);

impl Replica {
    fn known(&self) -> MutexGuard<'_, Option<(At, MultiplexedConnection)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_there(&self) -> bool {
        self.known().is_some()
    }

    /// Gives it up until the next look, if it is still the one at `at`.
    fn drop_if(&self, at: &At) {
        self.known().take_if(|(known, _)| known == at);
    }

    pub(super) async fn send(&self, operation: &'static str, cmd: &Cmd) -> StoreResult<Value> {
        let mut one = Pipeline::with_capacity(1);
        one.add_command(cmd.clone());
        let answer = self.send_many(operation, &one).await?.pop();
        answer.ok_or_else(|| Reply::malformed(operation))
    }

    /// Sends commands as one; an answer for each. One that does not answer, or refuses, is given up: it is
    /// loading, or has lost its primary, or is of another one by now.
    pub(super) async fn send_many(
        &self,
        operation: &'static str,
        commands: &Pipeline,
    ) -> StoreResult<Vec<Value>> {
        let Some((at, mut connection)) = self.known().clone() else {
            return Err(StoreError::new(StoreErrorKind::Busy, operation)
                .with_detail("there is no connection to a replica"));
        };
        let answers = connection.send_packed_commands(commands, 0, commands.len());
        let answers = match timeout(ANSWER_LIMIT, answers).await {
            Ok(Ok(answers)) => answers,
            Ok(Err(failed)) => {
                self.drop_if(&at);
                return Err(error::of_client(operation, &failed));
            }
            Err(_) => {
                self.drop_if(&at);
                return Err(StoreError::new(StoreErrorKind::Timeout, operation));
            }
        };
        if answers
            .iter()
            .any(|answer| matches!(answer, Value::ServerError(_)))
        {
            self.drop_if(&at);
        }
        match answers.len() == commands.len() {
            true => Ok(answers),
            false => Err(Reply::malformed(operation)),
        }
    }

    /// Looks whether the primary still counts on the replica, and finds another one if not.
    async fn look(&self, node: &Node, info: &ConnectionInfo) -> StoreResult<()> {
        const LOOK: &str = "find a replica";
        let mut ask = Cmd::new();
        ask.arg("INFO").arg("replication");
        let answer = timeout(LOOK_EVERY, node.send(LOOK, &ask)).await;
        let answer = answer.map_err(|_| StoreError::new(StoreErrorKind::Timeout, LOOK))??;
        let listed = online(&Reply::new(LOOK, answer)?.text()?);
        let kept = self.known().as_ref().map(|(at, _)| at.clone());
        if let Some(at) = kept {
            if listed.contains(&at) {
                return Ok(());
            }
            self.drop_if(&at);
        }
        if listed.is_empty() {
            return Ok(());
        }
        // Any, so that pods are spread over all.
        let at = listed[random() as usize % listed.len()].clone();
        let connecting = connect(info, &at, !node.is_alone());
        let connected = timeout(CONNECT_LIMIT, connecting).await;
        let connected = connected.map_err(|_| StoreError::new(StoreErrorKind::Timeout, LOOK))??;
        *self.known() = Some((at, connected));
        Ok(())
    }
}

async fn connect(
    info: &ConnectionInfo,
    at: &At,
    sharded: bool,
) -> StoreResult<MultiplexedConnection> {
    let failed = |failed| error::of_client("connect", &failed);
    let client = client_at(info, &at.host, at.port)?;
    let config = super::connection_config(CONNECT_LIMIT);
    let connect = client.get_multiplexed_async_connection_with_config(&config);
    let mut connection = connect.await.map_err(failed)?;
    if sharded {
        // Else it sends every reader to its primary.
        let readonly = ::redis::cmd("READONLY");
        let answer = connection.send_packed_command(&readonly).await;
        Reply::new("connect", answer.map_err(failed)?)?;
    }
    Ok(connection)
}

/// The replicas that a primary is in touch with, from its `INFO replication`.
fn online(replication: &str) -> Vec<At> {
    let replica = |number: usize| {
        let line = field(replication, &format!("slave{number}"))?;
        let part = |name: &str| {
            let mut parts = line.trim_end().split(',');
            parts.find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
        };
        let at = At {
            host: part("ip")?.to_owned(),
            port: part("port")?.parse().ok()?,
        };
        Some((at, part("state")? == "online"))
    };
    let count =
        field(replication, "connected_slaves").and_then(|count| count.trim_end().parse().ok());
    let all = (0..count.unwrap_or(0)).filter_map(replica);
    all.filter(|(_, online)| *online)
        .map(|(at, _)| at)
        .collect()
}

/// Keeps a connection to a replica of each node, as long as what is returned is kept.
pub(super) fn keep(nodes: &Arc<Nodes>, info: ConnectionInfo) -> DropGuard {
    let (nodes, end) = (Arc::clone(nodes), CancellationToken::new());
    let ended = end.clone();
    tokio::spawn(async move {
        let look = async {
            loop {
                let looks = nodes
                    .all()
                    .iter()
                    .map(|node| -> BoxFuture<'_, _> { Box::pin(node.replica.look(node, &info)) });
                for looked in together(looks).await {
                    if let Err(error) = looked {
                        tracing::debug!(%error, "no replica to read from");
                    }
                }
                tokio::time::sleep(LOOK_EVERY.mul_f64(0.9 + 0.2 * random_part())).await;
            }
        };
        tokio::select! {
            () = ended.cancelled() => {}
            () = look => {}
        }
    });
    end.drop_guard()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_names_the_replicas_that_follow_it() {
        let info = "role:master\r\nconnected_slaves:3\r\n\
            slave0:ip=10.0.0.1,port=6380,state=online,offset=1,lag=0\r\n\
            slave1:ip=10.0.0.2,port=6381,state=wait_bgsave,offset=0,lag=0\r\n\
            slave2:ip=::1,port=6382,state=online,offset=1,lag=1\r\n";
        let at = |host: &str, port| At {
            host: host.to_owned(),
            port,
        };
        assert_eq!(online(info), [at("10.0.0.1", 6380), at("::1", 6382)]);
        for rubbish in [
            "",
            "role:slave\r\nconnected_slaves:0\r\n",
            "connected_slaves:1\r\nslave0:ip=h,port=99999,state=online\r\n",
            "connected_slaves:-1\r\nslave0:ip=h,port=1,state=online\r\n",
            "connected_slaves:1\r\nslave0:rubbish\r\n",
        ] {
            assert_eq!(online(rubbish), [], "{rubbish}");
        }
    }
}
