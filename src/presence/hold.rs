//! The members that this pod holds in one room, and what is to be done with them.
//!
//! All changes of a room go through one task ([`keep`]), in order and in batches. The store knows them
//! under the id of a hold, and an id is not used again after a call whose outcome is unknown:
//!
//! 1. Ada joins under hold 1. The call is lost on its way, so `join` fails, and Ada is not here.
//! 2. The pod takes hold 2, brings the members that it has under that one, and lets hold 1 go.
//! 3. Now the store gets the call of step 1. Had it to find hold 1 standing, it is refused; had it to
//!    begin hold 1, Ada appears, but nobody renews hold 1: she is gone within the TTL.
//!
//! In step 2 nobody sees a member go: it is held twice before the first hold ends. The same step heals
//! a hold that the store has lost, or ended because this pod was stopped for longer than the TTL.

use super::keeper::keep;
use super::room::Room;
use crate::bus::lock;
use crate::error::{StoreError, StoreErrorKind};
use crate::store::StoreResult;
use crate::store::rooms::{Hold, MAX_CHANGES};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};

/// Bytes of metas in one call; more wait for the next.
pub(super) const MAX_BATCH: usize = 1 << 18;
/// Holds that are still to be let go. Further ones end with their TTL.
const MAX_LEFTOVERS: usize = 16;

/// A member that this pod holds.
#[derive(Debug)]
pub(super) struct Held {
    meta: Bytes,
    /// Leases of this pod on it.
    pub(super) leases: usize,
}

/// What is to be done for a member.
#[derive(Debug)]
pub(super) enum Task {
    Join(Bytes, oneshot::Sender<StoreResult<Seat>>),
    Update(Bytes, oneshot::Sender<StoreResult<()>>),
    /// One lease on it ends; who gave it up may want to know when the store knows.
    Leave(Option<oneshot::Sender<StoreResult<()>>>),
}

impl Task {
    pub(super) fn meta(&self) -> Option<&Bytes> {
        match self {
            Self::Join(meta, _) | Self::Update(meta, _) => Some(meta),
            Self::Leave(_) => None,
        }
    }
}

pub(super) type Queued = (Arc<str>, Task);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) members: BTreeMap<Arc<str>, Held>,
    /// The hold that the store has them under. Members without one are to be brought again.
    pub(super) id: Option<u64>,
    pub(super) queue: VecDeque<Queued>,
    pub(super) leftovers: Vec<u64>,
    is_kept: bool,
}

/// This pod's part in a room.
#[derive(Debug)]
pub(super) struct Holding {
    ttl: Duration,
    state: Mutex<State>,
    pub(super) wake: Notify,
}

/// One lease on a member. Dropping it leaves.
pub(super) struct Seat {
    room: Arc<Room>,
    member: Arc<str>,
    is_given_up: bool,
}

impl std::fmt::Debug for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Seat").field(&self.member).finish()
    }
}

impl Seat {
    pub(super) fn new(room: Arc<Room>, member: Arc<str>) -> Self {
        Self {
            room,
            member,
            is_given_up: false,
        }
    }

    pub(super) fn member(&self) -> &str {
        &self.member
    }

    pub(super) async fn update(&self, meta: Bytes) -> StoreResult<()> {
        let (reply, answer) = oneshot::channel();
        Holding::queue(
            &self.room,
            [(Arc::clone(&self.member), Task::Update(meta, reply))],
        );
        answer.await.unwrap_or_else(|_| Err(closed("update")))
    }

    pub(super) async fn leave(mut self) -> StoreResult<()> {
        let (reply, answer) = oneshot::channel();
        self.give_up(Some(reply));
        answer.await.unwrap_or_else(|_| Err(closed("leave")))
    }

    fn give_up(&mut self, reply: Option<oneshot::Sender<StoreResult<()>>>) {
        if !std::mem::replace(&mut self.is_given_up, true) {
            Holding::queue(&self.room, [(Arc::clone(&self.member), Task::Leave(reply))]);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.give_up(None);
    }
}

impl Holding {
    pub(super) fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            state: Mutex::default(),
            wake: Notify::new(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn is_in_use(&self) -> bool {
        self.state().is_kept
    }

    /// How many members this pod holds.
    pub(super) fn members(&self) -> usize {
        self.state().members.len()
    }

    /// The hold that a heartbeat renews.
    pub(super) fn standing(&self) -> Option<Hold> {
        self.state().id.map(|id| self.hold(id))
    }

    /// The store does not have this hold any more.
    pub(super) fn lost(&self, id: u64) {
        let mut state = self.state();
        if state.id == Some(id) {
            state.id = None;
            self.wake.notify_one();
        }
    }

    /// Brings members in; each gets its lease in order.
    pub(super) async fn join(
        room: &Arc<Room>,
        members: Vec<(Arc<str>, Bytes)>,
    ) -> StoreResult<Vec<Seat>> {
        let mut answers = Vec::with_capacity(members.len());
        let tasks = members.into_iter().map(|(member, meta)| {
            let (reply, answer) = oneshot::channel();
            answers.push(answer);
            (member, Task::Join(meta, reply))
        });
        let tasks: Vec<_> = tasks.collect();
        Self::queue(room, tasks);
        let mut seats = Vec::with_capacity(answers.len());
        for answer in answers {
            // If one fails, the others leave again as they are dropped.
            seats.push(answer.await.unwrap_or_else(|_| Err(closed("join")))?);
        }
        Ok(seats)
    }

    fn queue(room: &Arc<Room>, tasks: impl IntoIterator<Item = Queued>) {
        if room.rooms.is_closing() {
            return; // whoever waits sees that nobody will answer
        }
        let mut state = room.hold.state();
        state.queue.extend(tasks);
        let is_new = !std::mem::replace(&mut state.is_kept, true);
        drop(state);
        room.hold.wake.notify_one();
        if is_new {
            room.rooms.spawn(keep(Arc::clone(room)));
            room.used();
        }
    }

    pub(super) fn hold(&self, id: u64) -> Hold {
        Hold { id, ttl: self.ttl }
    }
}

/// What the task does next.
pub(super) enum Next {
    Bring(Vec<(Arc<str>, Bytes)>),
    Change(Vec<Queued>),
    LetGo(u64),
    Rest,
    End,
}

impl State {
    /// `failed`: the store could not be told what it has to be told before anything new.
    pub(super) fn next(&mut self, failed: bool) -> Next {
        let next_leaves = self.queue.front().map(|(_, task)| task.meta().is_none());
        let is_homeless = self.id.is_none() && !self.members.is_empty();
        match next_leaves {
            Some(true) => return Next::Change(self.batch()),
            // Whoever joins has the others brought first, and learns if that fails.
            Some(false) if !is_homeless => return Next::Change(self.batch()),
            None if failed => return Next::Rest,
            _ if is_homeless => {
                let members = self.members.iter();
                let bring = members.map(|(member, held)| (Arc::clone(member), held.meta.clone()));
                return Next::Bring(bring.collect());
            }
            _ => {}
        }
        match self.leftovers.pop() {
            Some(id) => Next::LetGo(id),
            None if self.members.is_empty() => {
                self.is_kept = false;
                Next::End
            }
            None => Next::Rest,
        }
    }

    /// The front of the queue, as far as it goes in one call: either all come or all leave, because
    /// leaving must work on a full server, and no member twice.
    fn batch(&mut self) -> Vec<Queued> {
        let (mut seen, mut bytes) = (BTreeSet::new(), 0);
        let mut fits = |(member, task): &Queued, leaving: bool| {
            bytes += task.meta().map_or(0, Bytes::len);
            task.meta().is_none() == leaving
                && (bytes <= MAX_BATCH || seen.is_empty())
                && seen.insert(Arc::clone(member))
        };
        let leaving = self
            .queue
            .front()
            .is_some_and(|(_, task)| task.meta().is_none());
        let batch = self.queue.iter().take(MAX_CHANGES);
        let len = batch.take_while(|queued| fits(queued, leaving)).count();
        self.queue.drain(..len).collect()
    }

    /// Gives the hold up: some call of it has an outcome that nobody knows.
    pub(super) fn abandon(&mut self, id: u64) {
        if self.id == Some(id) {
            self.id = None;
        }
        if self.leftovers.len() < MAX_LEFTOVERS {
            self.leftovers.push(id);
        }
    }

    pub(super) fn put(&mut self, member: &Arc<str>, task: &Task) {
        let Some(meta) = task.meta() else { return };
        let joins = matches!(task, Task::Join(..));
        match self.members.get_mut(member) {
            Some(held) => {
                held.meta = meta.clone();
                held.leases += usize::from(joins);
            }
            None if joins => {
                let (meta, leases) = (meta.clone(), 1);
                self.members
                    .insert(Arc::clone(member), Held { meta, leases });
            }
            None => {}
        }
    }
}

pub(super) fn closed(operation: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Closed, operation)
}
