//! The task that keeps the store at what this pod holds in one room.

use super::hold::{MAX_BATCH, Next, Queued, Seat, State, Task, closed};
use super::room::Room;
use crate::coherence::Epoch;
use crate::error::{StoreError, StoreErrorKind};
use crate::random::random;
use crate::store::rooms::{Change, Footing, MAX_CHANGES};
use crate::store::{Link, StoreResult};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, MutexGuard};

/// Keeps the store at what this pod holds, until that is nothing.
pub(super) async fn keep(room: Arc<Room>) {
    let mut keeper = Keeper {
        room: &room,
        link: None,
        failed: None,
    };
    let mut life = room.rooms.bus.life();
    let closing = &room.rooms.bus.closing;
    loop {
        if closing.is_cancelled() {
            return keeper.close().await;
        }
        let next = room.hold.state().next(keeper.failed.is_some());
        match next {
            Next::Bring(members) => keeper.bring(&members).await,
            Next::Change(batch) => keeper.change(batch).await,
            Next::LetGo(id) => keeper.let_go(id).await,
            Next::End => return,
            Next::Rest => {
                let retry = keeper.failed.is_some();
                tokio::select! {
                    () = closing.cancelled() => {}
                    () = room.hold.wake.notified() => {}
                    _ = life.changed() => keeper.refresh(),
                    () = tokio::time::sleep(room.interval()), if retry => keeper.failed = None,
                }
            }
        }
    }
}

struct Keeper<'a> {
    room: &'a Arc<Room>,
    /// The link last used: leaving at the very end needs one, when the cache itself has none any more.
    link: Option<Arc<dyn Link>>,
    /// Why the members could not be brought; tried again when the store is back, or after a while.
    failed: Option<StoreError>,
}

impl Keeper<'_> {
    /// The link is another, or there is none.
    fn refresh(&mut self) {
        self.failed = None;
        if !self.room.rooms.is_closing() {
            self.link = self.room.rooms.bus.link().ok();
        }
    }

    fn link(&mut self) -> StoreResult<Arc<dyn Link>> {
        let link = self.room.rooms.bus.link()?;
        self.link = Some(Arc::clone(&link));
        Ok(link)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.room.hold.state()
    }

    async fn ask(
        &self,
        link: &dyn Link,
        id: u64,
        footing: Footing,
        changes: &[Change<'_>],
    ) -> StoreResult<bool> {
        let (room, hold) = (self.room, self.room.hold.hold(id));
        let call = link.rooms().change(room.place(), hold, footing, changes);
        room.rooms.call("join", call).await
    }

    /// Brings all members under a new hold. Those that are there stay as they are.
    async fn bring(&mut self, members: &[(Arc<str>, Bytes)]) {
        let id = random();
        let brought = match self.link() {
            Ok(link) => {
                let brought = self.bring_under(&*link, id, members).await;
                brought.inspect_err(|_| self.state().abandon(id))
            }
            Err(error) => Err(error),
        };
        match brought {
            Ok(true) => {
                self.state().id = Some(id);
                self.failed = None;
            }
            // The store lost that one as well: once more.
            Ok(false) => {}
            Err(error) => {
                tracing::debug!(%error, "members not brought back yet");
                fail_queued(self.room, self.state(), &error);
                self.failed = Some(error);
            }
        }
    }

    /// Whether the hold stands at the end.
    async fn bring_under(
        &self,
        link: &dyn Link,
        id: u64,
        members: &[(Arc<str>, Bytes)],
    ) -> StoreResult<bool> {
        let mut footing = Footing::Begins(Epoch(random()));
        for members in chunks(members) {
            let members = members.iter();
            let changes: Vec<_> = members
                .map(|(member, meta)| Change::Keep(member, meta))
                .collect();
            if !self.ask(link, id, footing, &changes).await? {
                return Ok(false);
            }
            footing = Footing::Stands;
        }
        Ok(true)
    }

    async fn change(&mut self, batch: Vec<Queued>) {
        let batch = self.end_leases(batch);
        let Some((id, footing)) = self.footing(&batch) else {
            return self.put_back(batch);
        };
        let owned: Vec<_> = batch
            .iter()
            .map(|(member, task)| (Arc::clone(member), task.meta().cloned()))
            .collect();
        let changes = owned.iter().map(|(member, meta)| match meta {
            Some(meta) => Change::Put(member, meta),
            None => Change::Remove(member),
        });
        let changes: Vec<_> = changes.collect();
        if changes.is_empty() {
            return;
        }
        let leaving = owned.iter().all(|(_, meta)| meta.is_none());
        if leaving && footing != Footing::Stands {
            // The store has them under no hold, or under one that is still to be let go.
            let outcome = self.failed.clone().map_or(Ok(()), Err);
            return answer(self.room, batch, &outcome);
        }
        match self.link() {
            Ok(link) => {
                let asked = self.ask(&*link, id, footing, &changes).await;
                self.end(id, footing, batch, asked);
            }
            Err(error) if leaving => self.end(id, footing, batch, Err(error)),
            Err(error) => answer(self.room, batch, &Err(error)),
        }
    }

    /// The hold to make a change under. `None` if the store has lost it, so that those who are here
    /// have to be brought before others join them.
    fn footing(&self, batch: &[Queued]) -> Option<(u64, Footing)> {
        let state = self.state();
        let joining = batch.iter().any(|(_, task)| task.meta().is_some());
        match state.id {
            Some(id) => Some((id, Footing::Stands)),
            None if joining && !state.members.is_empty() => None,
            None => Some((random(), Footing::Begins(Epoch(random())))),
        }
    }

    fn put_back(&self, batch: Vec<Queued>) {
        let mut state = self.state();
        for queued in batch.into_iter().rev() {
            state.queue.push_front(queued);
        }
    }

    /// Ends leases before the store is asked: whatever it says, they are over. Gives what it has to be
    /// asked for.
    fn end_leases(&self, batch: Vec<Queued>) -> Vec<Queued> {
        let mut state = self.state();
        let mut is_last = |(member, task): &Queued| {
            let Some(held) = state.members.get_mut(member) else {
                return true;
            };
            if task.meta().is_none() {
                held.leases -= 1;
                if held.leases > 0 {
                    return false;
                }
                state.members.remove(member);
            }
            true
        };
        let (ask, done) = batch.into_iter().partition(|queued| is_last(queued));
        drop(state);
        // Somebody else in this pod holds these.
        answer(self.room, done, &Ok(()));
        ask
    }

    fn end(&mut self, id: u64, footing: Footing, batch: Vec<Queued>, asked: StoreResult<bool>) {
        let leaving = batch.iter().all(|(_, task)| task.meta().is_none());
        let mut state = self.state();
        let outcome = match asked {
            Ok(true) => {
                for (member, task) in &batch {
                    state.put(member, task);
                }
                match state.members.is_empty() {
                    true => state.id = None,
                    false if footing != Footing::Stands => state.id = Some(id),
                    // A heartbeat may have found meanwhile that the store has lost it.
                    false => {}
                }
                Ok(())
            }
            Ok(false) => {
                state.id = None;
                if !leaving {
                    drop(state);
                    return self.put_back(batch);
                }
                Ok(())
            }
            Err(error) => {
                // What the server refused before it began has changed nothing.
                let is_known = !leaving && is_refusal(error.kind());
                if !is_known {
                    state.abandon(id);
                }
                drop(state);
                self.failed = (!is_known).then(|| error.clone());
                return answer(self.room, batch, &Err(error));
            }
        };
        drop(state);
        answer(self.room, batch, &outcome);
    }

    /// So that its members go at once: a hold that nobody renews would end by itself.
    async fn let_go(&mut self, id: u64) {
        let released = match self.link() {
            Ok(link) => self.release(&*link, id).await,
            Err(error) => Err(error),
        };
        if let Err(error) = released {
            self.failed = Some(error);
            self.state().leftovers.push(id);
        }
    }

    async fn release(&self, link: &dyn Link, id: u64) -> StoreResult<()> {
        let release = || link.rooms().release(self.room.place(), id);
        self.room.look("leave", release).await
    }

    /// Leaves the room for good.
    async fn close(mut self) {
        let state = std::mem::take(&mut *self.state());
        let error = closed("join");
        answer(self.room, state.queue.into(), &Err(error));
        let link = self.link().ok().or(self.link.take());
        if let Some(link) = link {
            for id in state.id.into_iter().chain(state.leftovers) {
                // Best effort: the cache closes either way, and the TTL ends what is left.
                let _ = self.release(&*link, id).await;
            }
        }
    }
}

/// Ends the queued joins and updates: the store cannot be told.
fn fail_queued(room: &Arc<Room>, mut state: MutexGuard<'_, State>, error: &StoreError) {
    let queue = std::mem::take(&mut state.queue);
    let leaves = |(_, task): &Queued| task.meta().is_none();
    let (leaving, failed): (VecDeque<_>, VecDeque<_>) = queue.into_iter().partition(leaves);
    state.queue = leaving;
    drop(state);
    answer(room, failed.into(), &Err(error.clone()));
}

/// Tells those who wait. Never under the lock: a lease that nobody takes leaves at once.
fn answer(room: &Arc<Room>, batch: Vec<Queued>, outcome: &StoreResult<()>) {
    for (member, task) in batch {
        let outcome = outcome.clone();
        match task {
            Task::Join(_, reply) => {
                let seat = outcome.map(|()| Seat::new(Arc::clone(room), member));
                drop(reply.send(seat));
            }
            Task::Update(_, reply) => drop(reply.send(outcome)),
            Task::Leave(Some(reply)) => drop(reply.send(outcome)),
            Task::Leave(None) => {}
        }
    }
}

/// As many members as go in one call.
fn chunks(members: &[(Arc<str>, Bytes)]) -> impl Iterator<Item = &[(Arc<str>, Bytes)]> {
    let mut rest = members;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take(MAX_CHANGES).take_while(|(_, meta)| {
            let is_first = bytes == 0;
            bytes += meta.len().max(1);
            is_first || bytes <= MAX_BATCH
        });
        let (chunk, behind) = rest.split_at(fits.count());
        rest = behind;
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// Whether the server says this of a call that it has not begun.
fn is_refusal(kind: StoreErrorKind) -> bool {
    use StoreErrorKind::{Auth, Busy, Full, ReadOnly};
    matches!(kind, Auth | Busy | Full | ReadOnly)
}
