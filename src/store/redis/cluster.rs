//! A cluster: which nodes have the lanes of a namespace, and a link to all of those.
//!
//! A node that cannot be reached is left out, and with it its lanes: the link serves the others. It is
//! given up for a new one as soon as that could do better, or a lane has moved.

use super::Options;
use super::address::{client_at, described};
use super::error;
use super::hints::{ShardedEar, ShardedHints};
use super::keys::Keys;
use super::link::RedisLink;
use super::nodes::{Elsewhere, Fate, Node, Nodes};
use super::replicated::{Replicated, Wanted};
use super::reply::Reply;
use super::server::{self, Mode};
use super::slots::{At, SlotMap};
use super::watch::Watch;
use crate::coherence::Lane;
use crate::error::{StoreError, StoreErrorKind};
use crate::random::{random, random_part};
use crate::store::together::together;
use crate::store::{BoxFuture, Connected, Namespace, StoreResult};
use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, Pipeline, Value};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// What part of the time for connecting may be spent on one node: the others must not wait for it.
const NODE_PART: f64 = 0.6;
/// How often the cluster is asked whether lanes have moved, or a node that was left out is back.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// A cluster that some nodes of are known.
#[derive(Clone)]
pub(super) struct Cluster(Arc<Inner>);

struct Inner {
    /// The nodes that the address names.
    seeds: Vec<At>,
    /// How to connect to a node, but for its address.
    node: ConnectionInfo,
    /// Nodes that the cluster named when it was last asked: the seeds may be gone by now.
    known: Mutex<Vec<At>>,
}

/// Where the lanes are; those of no node are in slots that nobody has.
type Owners = BTreeMap<At, Vec<Lane>>;

impl Cluster {
    /// A cluster whose nodes are found at those addresses.
    pub(super) fn new(seeds: &[ConnectionInfo]) -> Option<Self> {
        let at = |info: &ConnectionInfo| match info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                Some(At {
                    host: host.clone(),
                    port: *port,
                })
            }
            _ => None,
        };
        Some(Self(Arc::new(Inner {
            seeds: seeds.iter().map(at).collect::<Option<_>>()?,
            node: seeds.first()?.clone(),
            known: Mutex::default(),
        })))
    }

    pub(super) fn describe(&self) -> String {
        let hosts = self.0.seeds.iter().map(|at| {
            let addr = ConnectionAddr::Tcp(at.host.clone(), at.port);
            let text = described(&addr, 0);
            text["redis://".len()..text.len() - "/0".len()].to_owned()
        });
        let scheme = described(self.0.node.addr(), 0);
        let scheme = scheme.split(':').next().unwrap_or_default();
        format!("{scheme}+cluster://{}", hosts.collect::<Vec<_>>().join(","))
    }

    pub(super) async fn open(
        &self,
        namespace: &Namespace,
        options: Options,
    ) -> StoreResult<Connected> {
        let keys = Arc::new(Keys::sharded(namespace));
        let limit = options.connect_timeout.mul_f64(NODE_PART);
        let slots = self.slots(limit / 2).await?;
        let owners = owners(&keys, &slots);
        let (hints, ear) = ShardedHints::new();
        let opened = owners.iter().map(|(at, lanes)| -> BoxFuture<'_, _> {
            let (ear, keys) = (ear.clone(), &keys);
            Box::pin(async move {
                let wanted = options.wanted();
                let opening = self.open_node(at, lanes, keys, (ear, wanted), limit);
                let timed_out = || Err(StoreError::new(StoreErrorKind::Timeout, "connect"));
                timeout(limit, opening)
                    .await
                    .unwrap_or_else(|_| timed_out())
            })
        });
        let (mut nodes, mut failure) = (Vec::new(), None);
        let mut elsewhere = Elsewhere {
            slots: Arc::new(Mutex::new(slots)),
            cluster: Some(self.clone()),
            ..Elsewhere::default()
        };
        let mut lost = Vec::new();
        for (opened, at) in together(opened).await.into_iter().zip(owners.keys()) {
            match opened {
                Ok((node, fate)) => {
                    nodes.push(node);
                    elsewhere.at.push(at.clone());
                    lost.push((at.clone(), fate.lost));
                }
                // What only an operator can mend is not for one node alone, but that its certificate has ended.
                Err(error) if !error.is_transient() && error.kind() != StoreErrorKind::Tls => {
                    return Err(error);
                }
                Err(error) => {
                    lost.push((at.clone(), Arc::new(AtomicBool::new(true))));
                    failure = Some(error);
                }
            }
        }
        if nodes.is_empty() {
            return Err(failure.unwrap_or_else(|| {
                StoreError::new(StoreErrorKind::Unavailable, "connect")
                    .with_detail("no node has slots")
            }));
        }
        let (cluster, known, slots) = (
            self.clone(),
            Arc::clone(&keys),
            Arc::clone(&elsewhere.slots),
        );
        let watch = Watch::start("the nodes of the lanes are others now", async move {
            cluster.until_changed(&known, &owners, &slots, &lost).await;
        });
        let nodes = Nodes::new(nodes, Arc::clone(&keys), elsewhere);
        let mut link = RedisLink::new(nodes, keys, options).watched(watch);
        if options.replicas {
            link = link.reading_replicas(self.0.node.clone());
        }
        Ok((Arc::new(link), Box::new(hints)))
    }

    async fn open_node(
        &self,
        at: &At,
        lanes: &[Lane],
        keys: &Keys,
        (ear, wanted): (ShardedEar, Option<Wanted>),
        limit: Duration,
    ) -> StoreResult<(Node, Fate)> {
        let client = client_at(&self.0.node, &at.host, at.port)?;
        let config = super::connection_config(limit);
        let connect = client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = connect
            .await
            .map_err(|failed| error::of_client("connect", &failed))?;
        let life = server::identify(&mut connection, Mode::Cluster).await?;
        let fate = Fate::default();
        let channels = lanes.iter().filter_map(|&lane| keys.lane(lane).ok());
        let channels = channels.map(|lane| lane.channel.as_str());
        let deaf = Arc::clone(&fate.deaf);
        let channels = ear.open(&client, channels, limit, deaf).await?;
        let replicated = match wanted {
            Some(wanted) => {
                let (found, lost) = ((Mode::Cluster, life), Arc::clone(&fate.lost));
                Some(Replicated::open(&client, &config, found, wanted, lost).await?)
            }
            None => None,
        };
        let node = Node::new(connection, channels, life, lanes.to_vec(), fate.clone());
        let moving = moving(&node, keys).await?;
        let node = node.replicating(replicated, fate.clone());
        Ok((node.with_moving(moving), fate))
    }

    /// Sends commands to a node that is none of a link's, over a connection that is `known` the next
    /// time.
    pub(super) async fn ask(
        &self,
        known: &tokio::sync::Mutex<BTreeMap<At, MultiplexedConnection>>,
        at: &At,
        operation: &'static str,
        commands: &Pipeline,
    ) -> StoreResult<Vec<Value>> {
        let failed = |failed| error::of_client(operation, &failed);
        let mut kept = known.lock().await;
        let mut connection = match kept.get(at) {
            Some(connection) => connection.clone(),
            None => {
                let client = client_at(&self.0.node, &at.host, at.port)?;
                let config = super::connection_config(WATCH_EVERY);
                let connect = client.get_multiplexed_async_connection_with_config(&config);
                let connection = connect.await.map_err(failed)?;
                kept.insert(at.clone(), connection.clone());
                connection
            }
        };
        drop(kept);
        let answers = connection.send_packed_commands(commands, 0, commands.len());
        let answers = answers.await;
        if answers.is_err() {
            known.lock().await.remove(at);
        }
        answers.map_err(failed)
    }

    /// Ends when another link would be better: a lane is elsewhere, or a node that was lost is back.
    ///
    /// Where `all` slots are is noted down meanwhile.
    async fn until_changed(
        &self,
        keys: &Keys,
        before: &Owners,
        all: &Mutex<SlotMap>,
        nodes: &[(At, Arc<AtomicBool>)],
    ) {
        loop {
            tokio::time::sleep(WATCH_EVERY.mul_f64(0.9 + 0.2 * random_part())).await;
            let Ok(slots) = self.slots(WATCH_EVERY).await else {
                continue;
            };
            if owners(keys, &slots) != *before {
                return;
            }
            *all.lock().unwrap_or_else(PoisonError::into_inner) = slots;
            let lost = nodes
                .iter()
                .filter(|(_, lost)| lost.load(Ordering::Acquire));
            for (at, _) in lost {
                if matches!(
                    timeout(WATCH_EVERY, self.slots_of(at, WATCH_EVERY)).await,
                    Ok(Ok(_))
                ) {
                    return;
                }
            }
        }
    }

    /// Where the slots are, by whichever node answers first; each is given `limit`.
    async fn slots(&self, limit: Duration) -> StoreResult<SlotMap> {
        let mut nodes = self.known().clone();
        nodes.extend(self.0.seeds.iter().cloned());
        let turn = random() as usize % nodes.len().max(1);
        nodes.rotate_left(turn);
        nodes.dedup();
        let (answer, mut answers) = tokio::sync::mpsc::unbounded_channel();
        for at in nodes {
            let (cluster, answer) = (self.clone(), answer.clone());
            tokio::spawn(async move {
                let slots = timeout(limit, cluster.slots_of(&at, limit)).await;
                let timed_out =
                    || Err(StoreError::new(StoreErrorKind::Timeout, "find the cluster"));
                // Somebody else may have been faster.
                let _ = answer.send(slots.unwrap_or_else(|_| timed_out()));
            });
        }
        drop(answer);
        let mut failure = None;
        while let Some(answer) = answers.recv().await {
            match answer {
                Ok(slots) => {
                    let mut known: Vec<_> = slots.nodes().cloned().collect();
                    known.sort_unstable();
                    known.dedup();
                    *self.known() = known;
                    return Ok(slots);
                }
                Err(error) => failure = Some(error),
            }
        }
        Err(failure
            .unwrap_or_else(|| StoreError::new(StoreErrorKind::Unavailable, "find the cluster")))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Vec<At>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn slots_of(&self, at: &At, limit: Duration) -> StoreResult<SlotMap> {
        const ASK: &str = "find the cluster";
        let client = client_at(&self.0.node, &at.host, at.port)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(limit))
            .set_response_timeout(None);
        let failed = |failed| error::of_client(ASK, &failed);
        let connect = client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = connect.await.map_err(failed)?;
        let mut questions = ::redis::pipe();
        questions.cmd("CLUSTER").arg("INFO");
        questions.cmd("CLUSTER").arg("SLOTS");
        let answers = connection.send_packed_commands(&questions, 0, questions.len());
        let [info, slots] = answers
            .await
            .map_err(failed)?
            .try_into()
            .map_err(|_| Reply::malformed(ASK))?;
        let info = Reply::new(ASK, info).map_err(|refused| match refused.kind() {
            // What a server answers that is no node.
            StoreErrorKind::Protocol => StoreError::new(StoreErrorKind::Unsupported, ASK)
                .with_detail("the server is no node of a cluster"),
            _ => refused,
        })?;
        // A node that has lost the others knows nothing new.
        if !info.text()?.contains("cluster_state:ok") {
            return Err(StoreError::new(StoreErrorKind::Unavailable, ASK)
                .with_detail("the cluster is down"));
        }
        SlotMap::read(at, slots)
    }
}

/// Which lanes of a node are on the move: it sends on a write to a key that is not there.
async fn moving(node: &Node, keys: &Keys) -> StoreResult<Vec<Lane>> {
    let mut writes = ::redis::pipe();
    for &lane in &node.lanes {
        writes.cmd("UNLINK").arg(keys.beacon(lane)?);
    }
    let answers = node.send_many("connect", &writes).await?;
    let asks =
        |answer: &Value| matches!(answer, Value::ServerError(refused) if refused.code() == "ASK");
    let lanes = node.lanes.iter().zip(&answers);
    let moving = lanes.filter(|(_, answer)| asks(answer));
    Ok(moving.map(|(&lane, _)| lane).collect())
}

/// The node of each lane.
fn owners(keys: &Keys, slots: &SlotMap) -> Owners {
    let mut owners = Owners::new();
    for lane in (0..).take(keys.lanes().len()).map(Lane) {
        if let Some(at) = slots.owner(keys.slot(lane)) {
            owners.entry(at.clone()).or_default().push(lane);
        }
    }
    owners
}
