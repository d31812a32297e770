//! Polls: the heads of all lanes, and the proof that each node still takes writes.

use super::RedisLink;
use crate::coherence::{Head, Lane};
use crate::error::{StoreError, StoreErrorKind};
use crate::store::redis::error;
use crate::store::redis::keys::Keys;
use crate::store::redis::node::Node;
use crate::store::redis::reply::{self, Reply};
use crate::store::redis::server;
use crate::store::together::together;
use crate::store::{BoxFuture, Polled, StoreResult};
use ::redis::{Pipeline, Value};
use bytes::Bytes;
use std::time::Duration;
use tokio::time::timeout;

/// How long a node of a cluster may take to answer a poll before it counts as silent: less than the
/// driver gives to all of them.
const NODE_LIMIT: Duration = Duration::from_millis(300);

/// What the pace key begins with while there is a relay.
const RELAYED: u8 = b'R';

/// Heads, then the proof that the server still takes writes; who is its relay, if that matters; the record;
/// and its life and clock.
///
/// The write removes a key that is not there. Like every write it is refused by a replica, by a
/// primary that has lost its replicas (`min-replicas-to-write`) and by a server that cannot persist;
/// but unlike a `SET` it needs no memory. A `SET` that a full server refuses would prove nothing: that
/// refusal comes before the others.
pub(super) fn poll_commands(keys: &Keys, node: &Node, relays: bool) -> Pipeline {
    let mut commands = ::redis::pipe();
    if node.is_alone() {
        commands.cmd("MGET");
        for lane in keys.lanes() {
            commands.arg(&lane.head);
        }
        commands.cmd("UNLINK").arg(keys.common_beacon());
    } else {
        // A command can only name keys of one slot; and slots move one by one.
        for lane in node.lanes.iter().filter_map(|&lane| keys.lane(lane).ok()) {
            commands.cmd("GET").arg(&lane.head);
            commands.cmd("UNLINK").arg(&lane.beacon);
        }
    }
    if relays {
        let first = node.lanes.first().and_then(|&lane| keys.lane(lane).ok());
        commands.cmd("GET").arg(first.map(|lane| &lane.pace));
    }
    if node.has_record() {
        commands.cmd("GET").arg(&keys.record);
    }
    if node.life().is_known() {
        commands.cmd("INFO").arg("replication");
    }
    commands.cmd("TIME");
    commands
}

/// What a node answered to a poll.
struct NodePolled {
    /// Without those lanes of which it said that they are on the move.
    heads: Vec<(Lane, Option<Head>)>,
    record: Option<Bytes>,
    server_ms: u64,
}

impl RedisLink {
    /// Polls all nodes side by side.
    pub(super) async fn poll_nodes(&self) -> StoreResult<Polled> {
        let nodes = self.nodes.all().iter().zip(&self.polls);
        let polls =
            nodes.map(|(node, poll)| -> BoxFuture<'_, _> { Box::pin(self.poll_node(node, poll)) });
        let answers = together(polls).await;
        let watch = self.watch.as_ref();
        watch.map_or(Ok(()), |watch| watch.check("poll"))?;
        let count = self.keys.lanes().len();
        let (mut heads, mut heard) = (vec![None; count], vec![false; count]);
        let (mut server_ms, mut record) = (None, None);
        // Those of silent lanes are of no interest.
        let mut clocks = vec![0; if self.keys.is_sharded() { count } else { 0 }];
        for answer in answers {
            let Some(answer) = answer? else { continue };
            // Where the clocks of nodes differ, the latest is the safe one for ends of lives.
            server_ms = server_ms.max(Some(answer.server_ms));
            record = record.or(answer.record);
            for (lane, head) in answer.heads {
                let at = usize::from(lane.0);
                (heads[at], heard[at]) = (head, true);
                if let Some(clock) = clocks.get_mut(at) {
                    *clock = answer.server_ms;
                }
            }
        }
        let nobody = || StoreError::new(StoreErrorKind::Unavailable, "poll");
        let lanes = (0..).map(Lane).zip(heard);
        Ok(Polled {
            heads,
            silent: lanes
                .filter(|(_, heard)| !heard)
                .map(|(lane, _)| lane)
                .collect(),
            incarnation: self.nodes.incarnation(),
            server_ms: server_ms.ok_or_else(nobody)?,
            clocks,
            record,
        })
    }

    /// Polls one node; on a cluster `None` if it did not answer, or takes no writes.
    async fn poll_node(&self, node: &Node, poll: &Pipeline) -> StoreResult<Option<NodePolled>> {
        if node.is_lame() {
            let error = StoreError::new(StoreErrorKind::Unavailable, "poll");
            return Err(error.with_detail("the connection for what replicas confirm broke"));
        }
        if !self.keys.is_sharded() {
            let answers = node.send_many("poll", poll).await?;
            return Ok(Some(polled(node, answers, self.publisher.relays())?));
        }
        let Ok(Ok(answers)) = timeout(NODE_LIMIT, node.send_many("poll", poll)).await else {
            node.set_proven(false);
            return Ok(None);
        };
        let moved = |answer: &Value| matches!(answer, Value::ServerError(refused) if ["MOVED", "READONLY"].contains(&refused.code()));
        if node.is_deaf() || answers.iter().any(moved) {
            let error = StoreError::new(StoreErrorKind::Unavailable, "poll");
            return Err(error.with_detail("a lane has moved to another node"));
        }
        let polled = polled(node, answers, self.publisher.relays()).ok();
        node.set_proven(polled.is_some());
        let mut heads = polled.iter().flat_map(|polled| &polled.heads);
        if heads.any(|(lane, _)| node.moving.contains(lane)) {
            let error = StoreError::new(StoreErrorKind::Unavailable, "poll");
            return Err(error.with_detail("a lane that was on the move stays where it is"));
        }
        Ok(polled)
    }
}

/// Takes the answers to [`poll_commands`] apart.
fn polled(node: &Node, mut answers: Vec<Value>, relays: bool) -> StoreResult<NodePolled> {
    let malformed = || Reply::malformed("poll");
    let mut last = || Reply::new("poll", answers.pop().ok_or_else(malformed)?);
    let time = last()?;
    let life = match node.life() {
        known if known.is_known() => server::life("poll", &last()?.text()?)?,
        unknown => unknown,
    };
    let record = match node.has_record() {
        true => Some(last().and_then(Reply::stored)),
        false => None,
    };
    if relays {
        match last().and_then(Reply::stored) {
            Ok(Some(pace)) if pace.first() == Some(&RELAYED) => {}
            Ok(_) => node.has_no_relay(),
            // It stands beside a lane that is on the move, or is no string.
            Err(_) => {}
        }
    }
    let mut heads = match node.is_alone() {
        true => heads_together(&node.lanes, answers)?,
        false => heads_one_by_one(&node.lanes, &answers)?,
    };
    node.set_life(life);
    let record = match record.transpose() {
        Ok(record) => record.flatten(),
        Err(error) if node.is_alone() => return Err(error),
        // As with the lane that it stands beside: it is on the move.
        Err(_) => {
            heads.retain(|(lane, _)| *lane != Node::OF_RECORD);
            None
        }
    };
    Ok(NodePolled {
        heads,
        record,
        server_ms: time.time()?,
    })
}

/// The heads of a server by itself, which were asked for in one command.
fn heads_together(lanes: &[Lane], answers: Vec<Value>) -> StoreResult<Vec<(Lane, Option<Head>)>> {
    let [heads, _written] = Reply::pipeline("poll", answers)?;
    let heads = heads.array()?.into_iter().map(reply::head);
    Ok(lanes.iter().copied().zip(heads).collect())
}

/// The heads of a node of a cluster, without those of lanes that are on the move.
fn heads_one_by_one(lanes: &[Lane], answers: &[Value]) -> StoreResult<Vec<(Lane, Option<Head>)>> {
    let (pairs, rest) = answers.as_chunks::<2>();
    if pairs.len() != lanes.len() || !rest.is_empty() {
        return Err(Reply::malformed("poll"));
    }
    let mut heads = Vec::with_capacity(lanes.len());
    for (&lane, [head, written]) in lanes.iter().zip(pairs) {
        match written {
            Value::ServerError(refused) if ["ASK", "TRYAGAIN"].contains(&refused.code()) => {}
            Value::ServerError(refused) => return Err(error::of_server("poll", refused)),
            _ if matches!(head, Value::ServerError(_)) => {}
            _ => heads.push((lane, reply::head_of(head))),
        }
    }
    Ok(heads)
}
