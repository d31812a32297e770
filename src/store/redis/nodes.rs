//! The servers behind a link: one, or those nodes of a cluster that have lanes of ours.
//!
//! A command goes to the node that has its first key. Many commands go side by side, those of one node
//! together. While a slot moves key by key, its node sends on to the next one what it has no key of any
//! more (`ASK`), and that is followed: whichever node answers has all keys of the command, so that the
//! answer is what one node would have given. Polls are not sent through here, and stay with the owner.
//!
//! No node is ever connected anew: one that fails stays silent for the rest of the link's life, and its
//! lanes with it, while the others go on.

use super::cluster::Cluster;
use super::keys::Keys;
use super::node::{Node, Side, silent};
use super::reply::Reply;
use super::slots::{At, SlotMap, slot_of};
use crate::coherence::{Incarnation, Lane};
use crate::error::{StoreError, StoreErrorKind};
use crate::store::together::together;
use crate::store::{BoxFuture, StoreResult};
use ::redis::aio::MultiplexedConnection;
use ::redis::{Arg, Cmd, Pipeline, Value};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use xxhash_rust::xxh3::xxh3_64;

/// The servers behind a link.
pub(super) struct Nodes {
    nodes: Vec<Node>,
    /// The node of each lane; none if it could not be reached.
    owners: Vec<Option<usize>>,
    keys: Arc<Keys>,
    /// Where the other slots of a cluster are, for commands of the user.
    elsewhere: Elsewhere,
}

/// The nodes of a link by their addresses, and which slots are where: the newest that is known.
#[derive(Default)]
pub(super) struct Elsewhere {
    pub(super) at: Vec<At>,
    pub(super) slots: Arc<Mutex<SlotMap>>,
    /// None on a server by itself.
    pub(super) cluster: Option<Cluster>,
    /// Connections to nodes that have no lane of ours yet, but some keys of one that is on the move.
    pub(super) next: tokio::sync::Mutex<BTreeMap<At, MultiplexedConnection>>,
}

impl Nodes {
    pub(super) fn new(nodes: Vec<Node>, keys: Arc<Keys>, elsewhere: Elsewhere) -> Self {
        // A server by itself has the lanes of raw data and rooms, too.
        let all = matches!(&nodes[..], [node] if node.alone).then_some(0);
        let mut owners = vec![all; usize::from(keys.all_lanes())];
        for (at, node) in nodes.iter().enumerate() {
            for lane in &node.lanes {
                if let Some(owner) = owners.get_mut(usize::from(lane.0)) {
                    *owner = Some(at);
                }
            }
        }
        Self {
            nodes,
            owners,
            keys,
            elsewhere,
        }
    }

    /// Whether the node of a lane has a replica at the time.
    pub(super) fn has_replica(&self, lane: Lane) -> bool {
        let at = self.at_lane(lane);
        at.is_some_and(|at| self.nodes[at].replica.is_there())
    }

    pub(super) fn all(&self) -> &[Node] {
        &self.nodes
    }

    /// One life of all of them: another one as soon as one node has another.
    pub(super) fn incarnation(&self) -> Incarnation {
        match &self.nodes[..] {
            [node] => node.life().incarnation,
            nodes => {
                let words = nodes
                    .iter()
                    .map(|node| node.life().incarnation.0.to_be_bytes());
                Incarnation(xxh3_64(&words.collect::<Vec<_>>().concat()))
            }
        }
    }

    /// Whether the lane can be touched and polled: its node is connected to, and keeps it.
    pub(super) fn serves(&self, lane: Lane) -> bool {
        let at = self.at_lane(lane);
        at.is_some_and(|at| !self.nodes[at].moving.contains(&lane))
    }

    fn at_lane(&self, lane: Lane) -> Option<usize> {
        self.owners.get(usize::from(lane.0)).copied().flatten()
    }

    /// The node of a lane.
    ///
    /// # Errors
    /// `Busy` if it could not be reached when the link was opened.
    pub(super) fn of_lane(&self, operation: &'static str, lane: Lane) -> StoreResult<&Node> {
        self.keys.data_lane(lane)?; // one of the namespace
        let at = self.at_lane(lane).ok_or_else(|| silent(operation))?;
        Ok(&self.nodes[at])
    }

    /// Whether what is read of a lane may be believed. A node that its cluster has replaced goes on
    /// answering reads for a while, and with `cluster-allow-reads-when-down` for ever; a poll notices within
    /// the bound. A server by itself whose poll fails is given up, link and all.
    ///
    /// # Errors
    /// `Busy` if not.
    pub(super) fn believed(&self, operation: &'static str, lane: Lane) -> StoreResult<()> {
        match self.of_lane(operation, lane)?.is_doubtful() {
            true => Err(StoreError::new(StoreErrorKind::Busy, operation)
                .with_detail("the node that has the key did not prove that it takes writes")),
            false => Ok(()),
        }
    }

    /// The node that a command is for.
    fn at(&self, operation: &'static str, cmd: &Cmd) -> StoreResult<usize> {
        if !self.keys.is_sharded() {
            return Ok(0);
        }
        let Some(key) = first_key(cmd) else {
            return Ok(0);
        };
        if let Some(lane) = self.keys.lane_named(key) {
            return self.at_lane(lane).ok_or_else(|| silent(operation));
        }
        let Elsewhere { at, slots, .. } = &self.elsewhere;
        let slots = slots.lock().unwrap_or_else(PoisonError::into_inner);
        let owner = slots.owner(slot_of(key));
        let place = owner.and_then(|owner| at.iter().position(|at| at == owner));
        place.ok_or_else(|| silent(operation))
    }

    pub(super) fn of(&self, operation: &'static str, cmd: &Cmd) -> StoreResult<&Node> {
        self.at(operation, cmd).map(|at| &self.nodes[at])
    }

    pub(super) async fn send(&self, operation: &'static str, cmd: &Cmd) -> StoreResult<Value> {
        self.send_behind(operation, None, cmd).await
    }

    /// Sends a command behind `first`, if there is one, to whichever node it goes.
    pub(super) async fn send_behind(
        &self,
        operation: &'static str,
        first: Option<&Cmd>,
        cmd: &Cmd,
    ) -> StoreResult<Value> {
        let at = self.at(operation, cmd)?;
        if let Some(first) = first {
            Reply::new(operation, self.nodes[at].send(operation, first).await?)?;
        }
        let answer = self.nodes[at].send(operation, cmd).await?;
        self.followed(operation, at, answer, first, cmd).await
    }

    /// The answer of node `at` to a command, or that of the node which it says has the keys by now.
    async fn followed(
        &self,
        operation: &'static str,
        at: usize,
        answer: Value,
        first: Option<&Cmd>,
        cmd: &Cmd,
    ) -> StoreResult<Value> {
        let Elsewhere {
            at: places,
            cluster: Some(cluster),
            next,
            ..
        } = &self.elsewhere
        else {
            return Ok(answer);
        };
        let Some(target) = asked_elsewhere(&answer, &places[at]) else {
            return Ok(answer);
        };
        let lost = |error: StoreError| match error.kind() {
            // As with a node of ours: it is not the store.
            StoreErrorKind::Unavailable => silent(operation),
            _ => error,
        };
        let mut commands = Pipeline::with_capacity(3);
        if let Some(first) = first {
            commands.add_command(first.clone());
        }
        // It counts for the next command on the connection: the three are written as one.
        commands.cmd("ASKING");
        commands.add_command(cmd.clone());
        let answers = match places.iter().position(|place| *place == target) {
            Some(known) => self.nodes[known].send_many(operation, &commands).await?,
            None => {
                let asked = cluster.ask(next, &target, operation, &commands).await;
                asked.map_err(lost)?
            }
        };
        let last = answers.into_iter().next_back();
        last.ok_or_else(|| Reply::malformed(operation))
    }

    /// Sends a command to a replica of the node that has its first key.
    pub(super) async fn ask_replica(
        &self,
        operation: &'static str,
        cmd: &Cmd,
    ) -> StoreResult<Value> {
        self.of(operation, cmd)?.replica.send(operation, cmd).await
    }

    /// Sends many commands; an answer for each, in their order. `first`, if there is one, goes to every
    /// node before what is for it.
    pub(super) async fn send_many(
        &self,
        operation: &'static str,
        first: Option<&Cmd>,
        commands: &Pipeline,
    ) -> Vec<StoreResult<Value>> {
        self.send_many_to(Side::Nodes, operation, first, commands)
            .await
    }

    /// The same, to the nodes or to their replicas.
    pub(super) async fn send_many_to(
        &self,
        side: Side,
        operation: &'static str,
        first: Option<&Cmd>,
        commands: &Pipeline,
    ) -> Vec<StoreResult<Value>> {
        if let ([node], None) = (&self.nodes[..], first)
            && node.alone
        {
            // As it is: what is divided is copied.
            return match node.send_many_to(side, operation, commands).await {
                Ok(answers) => answers.into_iter().map(Ok).collect(),
                Err(failed) => commands.cmd_iter().map(|_| Err(failed.clone())).collect(),
            };
        }
        let mut answers: Vec<_> = commands
            .cmd_iter()
            .map(|_| Err(silent(operation)))
            .collect();
        let parts = self.divide(operation, first, commands, &mut answers);
        let some = |at: &usize| !parts[*at].0.is_empty();
        let nodes_asked: Vec<_> = (0..self.nodes.len()).filter(some).collect();
        let sent = nodes_asked.iter().map(|&at| -> BoxFuture<'_, _> {
            let (node, (places, part)) = (&self.nodes[at], &parts[at]);
            Box::pin(async move { (places, node.send_many_to(side, operation, part).await) })
        });
        let mut asked = Vec::new();
        for ((places, part), at) in together(sent).await.into_iter().zip(nodes_asked) {
            match part {
                Ok(part) => {
                    let mut part = part.into_iter();
                    let refused = first.and_then(|_| Reply::new(operation, part.next()?).err());
                    if let Some(refused) = refused {
                        for &place in places {
                            answers[place] = Err(refused.clone());
                        }
                        continue;
                    }
                    for (&place, answer) in places.iter().zip(part) {
                        if is_asked_elsewhere(&answer) {
                            asked.push((place, at));
                        }
                        answers[place] = Ok(answer);
                    }
                }
                Err(failed) => {
                    for &place in places {
                        answers[place] = Err(failed.clone());
                    }
                }
            }
        }
        self.follow_all(operation, first, commands, asked, &mut answers)
            .await;
        answers
    }

    /// The commands of each node, and their places among all. Those that have no node are answered.
    fn divide(
        &self,
        operation: &'static str,
        first: Option<&Cmd>,
        commands: &Pipeline,
        answers: &mut [StoreResult<Value>],
    ) -> Vec<(Vec<usize>, Pipeline)> {
        let mut parts: Vec<(Vec<usize>, Pipeline)> = Vec::new();
        parts.resize_with(self.nodes.len(), Default::default);
        for (place, cmd) in commands.cmd_iter().enumerate() {
            match self.at(operation, cmd) {
                Ok(at) => {
                    let (places, part) = &mut parts[at];
                    if let Some(first) = first.filter(|_| places.is_empty()) {
                        part.add_command(first.clone());
                    }
                    places.push(place);
                    part.add_command(cmd.clone());
                }
                Err(error) => answers[place] = Err(error),
            }
        }
        parts
    }

    /// Puts what other nodes answer in the place of answers that say to ask there. Side by side: these are
    /// few, or the slot of all of them is on the move.
    async fn follow_all(
        &self,
        operation: &'static str,
        first: Option<&Cmd>,
        commands: &Pipeline,
        asked: Vec<(usize, usize)>,
        answers: &mut [StoreResult<Value>],
    ) {
        let calls = asked.iter().filter_map(|&(place, at)| {
            let cmd = commands.cmd_iter().nth(place)?;
            let answer = answers[place].clone().ok()?;
            let follow = self.followed(operation, at, answer, first, cmd);
            Some(Box::pin(async move { (place, follow.await) }) as BoxFuture<'_, _>)
        });
        let followed = together(calls.collect::<Vec<_>>().into_iter()).await;
        for (place, answer) in followed {
            answers[place] = answer;
        }
    }
}

fn is_asked_elsewhere(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(refused) if refused.code() == "ASK")
}

/// The node that has the keys, where the answer of the node at `asked` says to ask there this once.
fn asked_elsewhere(answer: &Value, asked: &At) -> Option<At> {
    let Value::ServerError(refused) = answer else {
        return None;
    };
    if !is_asked_elsewhere(answer) {
        return None;
    }
    let (host, port) = refused.details()?.split_once(' ')?.1.rsplit_once(':')?;
    let host = match host {
        "" | "?" => &asked.host,
        host => host,
    };
    Some(At {
        host: host.to_owned(),
        port: port.trim().parse().ok()?,
    })
}

/// The first key of a command, or what stands in its place in one without keys.
fn first_key(cmd: &Cmd) -> Option<&[u8]> {
    let mut words = cmd.args_iter().map(|word| match word {
        Arg::Simple(bytes) => bytes,
        _ => b"",
    });
    let name = words.next()?.to_ascii_uppercase();
    let before = match &name[..] {
        b"EVALSHA" | b"EVAL" | b"EVALSHA_RO" | b"EVAL_RO" | b"FCALL" | b"FCALL_RO" => 2,
        b"OBJECT" | b"MEMORY" | b"XINFO" | b"XGROUP" => 1,
        _ => 0,
    };
    words.nth(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_says_to_ask_elsewhere_names_the_node() {
        let asked = At {
            host: "a".to_owned(),
            port: 1,
        };
        for (line, found) in [
            ("-ASK 3999 127.0.0.1:6381", Some(("127.0.0.1", 6381))),
            ("-ASK 3999 ::1:6381", Some(("::1", 6381))),
            ("-ASK 3999 :6381", Some(("a", 6381))),
            ("-MOVED 3999 127.0.0.1:6381", None),
            ("-ASK", None),
            ("-ASK 3999", None),
            ("-ASK 3999 h", None),
            ("-ASK 3999 h:99999", None),
            ("+ASK 3999 h:1", None),
        ] {
            let line = format!("{line}\r\n");
            let answer = ::redis::parse_redis_value(line.as_bytes()).expect("an answer");
            let target = asked_elsewhere(&answer, &asked);
            let target = target.as_ref().map(|at| (at.host.as_str(), at.port));
            assert_eq!(target, found, "{line}");
        }
    }

    #[test]
    fn the_first_key_of_a_command_is_found_where_the_command_has_it() {
        for (words, key) in [
            ("GET k", Some("k")),
            ("evalsha 00ff 2 k l", Some("k")),
            ("FCALL name 1 k", Some("k")),
            ("XINFO STREAM k", Some("k")),
            ("EVALSHA 00ff 0", None),
            ("DBSIZE", None),
        ] {
            let mut cmd = Cmd::new();
            for word in words.split(' ') {
                cmd.arg(word);
            }
            let found = first_key(&cmd).map(|key| String::from_utf8_lossy(key).into_owned());
            assert_eq!(found.as_deref(), key, "{words}");
        }
    }
}
