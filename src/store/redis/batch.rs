//! Reads that are under way at the same time share commands.
//!
//! One command per read costs as much in the client, the kernel and the server's loop as the read
//! itself. So a read that comes while another is under way boards a *carrier*, a task of its own that
//! gives its neighbours in the scheduler one turn to come along (as a DataLoader [1] does, without a
//! timer) and then asks for all of them in one `MGET`, with each lane's head and each entity's floor
//! once. The more there is to do, the longer a turn and the larger the batches. A read that comes alone
//! goes alone, in its caller's future, and waits for nothing. `docs/decisions/read-batching.md` has the
//! figures.
//!
//! One `MGET` is one atomic step, so every read of it still gets value, head and floor of one moment;
//! and a read joins only a command that is not sent yet, so whatever its caller knew beforehand was
//! known before the server was asked.
//!
//! [1]: <https://github.com/graphql/dataloader>

use super::keys::{Key, Keys};
use super::node::Side;
use super::nodes::Nodes;
use super::reply::{self, Reply};
use crate::coherence::Lane;
use crate::error::{StoreError, StoreErrorKind};
use crate::store::{Found, Place, StoreResult};
use ::redis::{Cmd, Pipeline, Value};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Commands under way at the same time. With a server far away this many spread over one round trip,
/// so that a read waits for a small part of one until the next carrier leaves. At least two: see
/// [`Alone`].
const COMMANDS: usize = 8;
/// Reads of one command at most: the server answers nothing else meanwhile.
const BATCH: usize = 128;

/// What of a link reads; carriers end with it.
pub(super) struct Reads {
    shared: Arc<Shared>,
    ended: CancellationToken,
    _end: DropGuard,
}

struct Shared {
    nodes: Arc<Nodes>,
    side: Side,
    keys: Arc<Keys>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    /// There is a carrier that has not left yet: what waits will go with it.
    boarding: bool,
    /// Commands that were sent and not answered.
    under_way: usize,
}

/// A read that waits for a carrier.
struct Waiting {
    lane: Lane,
    /// The key, then the entity: one allocation.
    names: Box<[u8]>,
    key_len: usize,
    answer: oneshot::Sender<StoreResult<Found>>,
}

/// What a read asks for.
trait Asked {
    fn lane(&self) -> Lane;
    fn key(&self) -> &[u8];
    fn entity(&self) -> &[u8];
}

impl Asked for Waiting {
    fn lane(&self) -> Lane {
        self.lane
    }

    fn key(&self) -> &[u8] {
        &self.names[..self.key_len]
    }

    fn entity(&self) -> &[u8] {
        &self.names[self.key_len..]
    }
}

impl Asked for Place<'_> {
    fn lane(&self) -> Lane {
        self.lane
    }

    fn key(&self) -> &[u8] {
        self.key
    }

    fn entity(&self) -> &[u8] {
        self.entity.as_bytes()
    }
}

/// How a read goes.
enum Way {
    Alone(Alone),
    Shared(oneshot::Receiver<StoreResult<Found>>, Option<Carrier>),
}

impl Reads {
    pub(super) fn new(side: Side, nodes: Arc<Nodes>, keys: Arc<Keys>) -> Self {
        let ended = CancellationToken::new();
        Self {
            shared: Arc::new(Shared {
                nodes,
                side,
                keys,
                queue: Mutex::default(),
            }),
            _end: ended.clone().drop_guard(),
            ended,
        }
    }

    /// Cancel safe: a read that nobody waits for any more is left out, or answered in vain.
    pub(super) async fn read(&self, place: Place<'_>) -> StoreResult<Found> {
        self.shared.keys.lane(place.lane)?; // or it would fail those that it goes with
        let (answer, carrier) = match self.shared.way(place) {
            Way::Alone(_alone) => return self.shared.ask_for_one(place).await,
            Way::Shared(answer, carrier) => (answer, carrier),
        };
        if let Some(carrier) = carrier {
            let ended = self.ended.clone();
            // Not part of this caller's future, which may be dropped, or never polled again.
            tokio::spawn(async move {
                tokio::select! {
                    () = ended.cancelled() => {}
                    () = carrier.run() => {}
                }
            });
        }
        answer.await.unwrap_or_else(|_| {
            Err(StoreError::new(StoreErrorKind::Unavailable, "read")
                .with_detail("the connection was given up"))
        })
    }

    /// Reads that come together go together: in as few commands as [`BATCH`] allows, sent as one.
    pub(super) async fn read_many(&self, places: &[Place<'_>]) -> Vec<StoreResult<Found>> {
        self.shared.ask_for_all(places).await
    }
}

/// One command for all of `names`.
fn mget(names: &[Key<'_>]) -> Cmd {
    let len = names.iter().map(Key::len).sum::<usize>();
    let mut cmd = Cmd::with_capacity(1 + names.len(), "MGET".len() + len);
    cmd.arg("MGET").arg(names);
    cmd
}

/// The command of one read.
pub(super) fn read_command(keys: &Keys, place: Place<'_>) -> StoreResult<Cmd> {
    let keys = keys.lane(place.lane)?;
    let names = [keys.value(place.key), keys.head(), keys.floor(place.entity)];
    Ok(mget(&names))
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn way(self: &Arc<Self>, place: Place<'_>) -> Way {
        let mut queue = self.queue();
        if !queue.boarding && queue.under_way == 0 {
            queue.under_way = 1;
            return Way::Alone(Alone(Arc::clone(self)));
        }
        let (sender, answer) = oneshot::channel();
        queue.waiting.push(Waiting {
            lane: place.lane,
            names: [place.key, place.entity.as_bytes()].concat().into(),
            key_len: place.key.len(),
            answer: sender,
        });
        let carrier = (!queue.boarding && queue.under_way < COMMANDS).then(|| {
            queue.boarding = true;
            Carrier {
                shared: Arc::clone(self),
                stage: Stage::Boarding,
            }
        });
        Way::Shared(answer, carrier)
    }

    async fn ask_for_one(&self, place: Place<'_>) -> StoreResult<Found> {
        let found = self.get(&read_command(&self.keys, place)?).await?.found()?;
        self.nodes.believed("read", place.lane)?;
        Ok(found)
    }

    async fn ask_for_all<A: Asked>(&self, batch: &[A]) -> Vec<StoreResult<Found>> {
        let plans = match plans(&self.keys, batch) {
            Ok(plans) => plans,
            Err(error) => return batch.iter().map(|_| Err(error.clone())).collect(),
        };
        let mut commands = Pipeline::with_capacity(plans.len());
        for (_, plan) in &plans {
            commands.add_command(mget(&plan.names));
        }
        let answers = self
            .nodes
            .send_many_to(self.side, "read", None, &commands)
            .await;
        let malformed = |_| Err(Reply::malformed("read"));
        let mut found: Vec<_> = batch.iter().map(malformed).collect();
        for ((members, plan), answer) in plans.iter().zip(answers) {
            let values = answer.and_then(|answer| {
                // Of one node where it matters.
                self.nodes.believed("read", batch[members[0]].lane())?;
                Reply::new("read", answer)?.array()
            });
            match values.and_then(|mut values| plan.hand_out(&mut values)) {
                Ok(parts) => {
                    for (&at, part) in members.iter().zip(parts) {
                        found[at] = Ok(part);
                    }
                }
                Err(failed) => {
                    for &at in members {
                        found[at] = Err(failed.clone());
                    }
                }
            }
        }
        found
    }

    async fn get(&self, command: &Cmd) -> StoreResult<Reply> {
        let answer = match self.side {
            Side::Nodes => self.nodes.send("read", command).await?,
            Side::Replicas => self.nodes.ask_replica("read", command).await?,
        };
        Reply::new("read", answer)
    }
}

/// Divides reads into commands of at most [`BATCH`]. On a cluster each is for one lane, because a command
/// can only name keys of one slot.
fn plans<'a, A: Asked>(keys: &'a Keys, batch: &'a [A]) -> StoreResult<Vec<(Vec<usize>, Plan<'a>)>> {
    let mut groups: BTreeMap<Option<Lane>, Vec<usize>> = BTreeMap::new();
    for (at, read) in batch.iter().enumerate() {
        let group = keys.is_sharded().then(|| read.lane());
        groups.entry(group).or_default().push(at);
    }
    let parts = groups.values().flat_map(|members| members.chunks(BATCH));
    let plan = |members: &[usize]| {
        let reads: Vec<_> = members.iter().map(|&at| &batch[at]).collect();
        Ok((members.to_vec(), Plan::new(keys, &reads)?))
    };
    parts.map(plan).collect()
}

/// The command of a read that goes alone; to drop it is to give it up.
///
/// It need not look at what waits: that is only left waiting while all commands are under way, and so
/// those of carriers.
struct Alone(Arc<Shared>);

impl Drop for Alone {
    fn drop(&mut self) {
        self.0.queue().under_way -= 1;
    }
}

/// Asks for what waits, until nothing does or another carrier boards.
struct Carrier {
    shared: Arc<Shared>,
    stage: Stage,
}

#[derive(PartialEq)]
enum Stage {
    Boarding,
    UnderWay,
    Ended,
}

impl Carrier {
    async fn run(mut self) {
        while self.stage == Stage::Boarding {
            // Whoever was woken by the same news as our first read has his own ready in a moment.
            yield_now().await;
            let batch = self.leave();
            if batch.is_empty() {
                return;
            }
            let found = self.shared.ask_for_all(&batch).await;
            for (read, found) in batch.into_iter().zip(found) {
                // Nobody waits any more: nothing is lost.
                let _ = read.answer.send(found);
            }
            self.arrive();
        }
    }

    /// Takes what waits; if nothing does any more, this carrier ends.
    fn leave(&mut self) -> Vec<Waiting> {
        let mut queue = self.shared.queue();
        queue.waiting.retain(|read| !read.answer.is_closed());
        queue.boarding = false;
        if queue.waiting.is_empty() {
            self.stage = Stage::Ended;
            return Vec::new();
        }
        queue.under_way += 1;
        self.stage = Stage::UnderWay;
        let full = queue.waiting.len().min(BATCH);
        let rest = queue.waiting.split_off(full);
        std::mem::replace(&mut queue.waiting, rest)
    }

    /// Ends, or boards again if reads wait that nobody else will take. Under one lock:
    ///
    /// 1. a carrier finds nothing to take, and is about to end;
    /// 2. a read finds all commands under way, this carrier's among them, and waits;
    /// 3. the carrier ends, and the read waits for ever.
    fn arrive(&mut self) {
        let mut queue = self.shared.queue();
        queue.under_way -= 1;
        self.stage = Stage::Ended;
        if !queue.boarding && !queue.waiting.is_empty() {
            queue.boarding = true;
            self.stage = Stage::Boarding;
        }
    }
}

impl Drop for Carrier {
    /// Dropped before its end, with the link or the runtime: what waits must not wait for ever.
    fn drop(&mut self) {
        let mut queue = self.shared.queue();
        match self.stage {
            Stage::Boarding => queue.boarding = false,
            Stage::UnderWay => queue.under_way -= 1,
            Stage::Ended => return,
        }
        let abandoned = std::mem::take(&mut queue.waiting);
        drop(queue);
        drop(abandoned);
    }
}

/// One command for many reads: their values, then the heads of their lanes, then the floors.
struct Plan<'a> {
    names: Vec<Key<'a>>,
    /// For each read, where its head and its floor are.
    places: Vec<(usize, usize)>,
}

impl<'a> Plan<'a> {
    fn new<A: Asked>(keys: &'a Keys, batch: &[&'a A]) -> StoreResult<Self> {
        let mut names = Vec::with_capacity(batch.len() + 2 * batch.len().min(keys.lanes().len()));
        for &read in batch {
            names.push(keys.lane(read.lane())?.value(read.key()));
        }
        let mut heads: Vec<Option<usize>> = vec![None; keys.lanes().len()];
        let mut floors: Vec<(&A, usize)> = Vec::new();
        let mut places = Vec::with_capacity(batch.len());
        for &read in batch {
            let lane = keys.lane(read.lane())?;
            let head = *heads[usize::from(read.lane().0)].get_or_insert_with(|| {
                names.push(lane.head());
                names.len() - 1
            });
            let same = |other: &A| other.lane() == read.lane() && other.entity() == read.entity();
            let known = floors.iter().find(|(other, _)| same(other));
            let floor = known.map(|&(_, at)| at).unwrap_or_else(|| {
                names.push(lane.floor_of(read.entity()));
                floors.push((read, names.len() - 1));
                names.len() - 1
            });
            places.push((head, floor));
        }
        Ok(Self { names, places })
    }

    /// What each read found, in the order of the batch.
    fn hand_out(&self, answers: &mut [Value]) -> StoreResult<Vec<Found>> {
        if answers.len() != self.names.len() {
            return Err(Reply::malformed("read"));
        }
        let (values, shared) = answers.split_at_mut(self.places.len());
        let first = values.len();
        let found = values.iter_mut().zip(&self.places).map(|(value, places)| {
            let (head, floor) = places;
            Found {
                value: reply::stored(std::mem::replace(value, Value::Nil)),
                head: reply::head_of(&shared[head - first]),
                floor: reply::number_of(&shared[floor - first]),
            }
        });
        Ok(found.collect())
    }
}
