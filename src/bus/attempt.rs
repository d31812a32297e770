//! One attempt at a call: have the store log it, and make sure that what it was logged in is the timeline
//! that this pod follows.

use super::guard::OwnedMarkers;
use super::pending::Item;
use super::waiter::CallState;
use super::{Bus, OwnedPut};
use crate::coherence::{Ack, Action, Call, Kind, Lane, LogEntry, Nonce, Position};
use crate::error::{StoreError, StoreErrorKind};
use crate::store::{Link, Logged, StoreResult};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often one attempt follows a lane into a new epoch before it counts as failed.
const EPOCHS_PER_ATTEMPT: usize = 4;
/// How long an attempt waits for the lane to learn of an epoch that the store has just named.
const SYNC_LIMIT: Duration = Duration::from_millis(500);
/// A first attempt that takes longer than this is put into the journal, should there be one: well beyond
/// what a healthy store takes, so that no invalidation costs a write to disk as a rule.
const JOURNAL_AFTER: Duration = Duration::from_millis(50);

/// What goes with the first attempt at a call: what is repeated is the invalidation, which is never wrong,
/// with a minimum version if its key [has one](Bus::extra_again).
#[derive(Debug, Default)]
pub(super) enum Extra {
    #[default]
    Nothing,
    /// A value for its only key.
    Put(OwnedPut),
    /// Markers, or a minimum version, for its keys.
    Markers(OwnedMarkers),
}

impl Bus {
    /// The attempt that the caller waits for. If it takes its time, what it is about goes into the journal
    /// meanwhile, and into `noted`, and `state` says so.
    pub(super) async fn first_attempt(
        &self,
        lane: Lane,
        call: &Arc<Call>,
        extra: Extra,
        (noted, state): (&mut Vec<Item>, &watch::Sender<CallState>),
    ) -> StoreResult<Position> {
        let limit = self.timing.invalidate_timeout;
        let attempt = self.attempt(lane, call, &extra);
        let mut attempt = pin!(tokio::time::timeout(limit, attempt));
        let mut done = None;
        if self.has_journal() {
            done = tokio::time::timeout(JOURNAL_AFTER, &mut attempt).await.ok();
            if done.is_none() {
                *noted = Item::of(lane, call);
                for item in &*noted {
                    self.note(item);
                }
                // On disk while the attempt goes on.
                let flush = async {
                    self.flush_journal().await;
                    state.send_replace(CallState::Noted);
                };
                done = Some(tokio::join!(&mut attempt, flush).0);
            }
        }
        let done = match done {
            Some(done) => done,
            None => attempt.await,
        };
        done.unwrap_or_else(|_| Err(StoreError::new(StoreErrorKind::Timeout, "invalidate")))
    }

    /// Has the store log `call`, until that is acknowledged or something fails.
    pub(super) async fn attempt(
        &self,
        lane: Lane,
        call: &Arc<Call>,
        extra: &Extra,
    ) -> StoreResult<Position> {
        for _ in 0..EPOCHS_PER_ATTEMPT {
            let (entry, at) = self.log(lane, call, extra).await?;
            for _ in 0..2 {
                let now = self.clock.now();
                let (ack, actions) = self.step(lane, |state, out| {
                    state.on_ack(call, &entry, at.epoch, now, out)
                });
                if actions.contains(&Action::Poll) {
                    self.ask_for_poll();
                }
                self.settle();
                match ack {
                    Ack::Acknowledged(position) => {
                        self.nudge.notify_one();
                        return Ok(position);
                    }
                    Ack::Unknown(_) => self.sync(SYNC_LIMIT).await,
                    Ack::Lost => break,
                }
            }
        }
        Err(StoreError::new(StoreErrorKind::Busy, "invalidate")
            .with_detail("the lane's epoch keeps changing"))
    }

    async fn log(
        &self,
        lane: Lane,
        call: &Call,
        extra: &Extra,
    ) -> StoreResult<(LogEntry, Position)> {
        let (nonce, logged) = loop {
            let mut link_up = self.link_up.subscribe();
            let (link, nonce) = (self.link()?, self.nonce());
            tokio::select! {
                biased;
                logged = self.log_on(&*link, lane, (call, extra), nonce) => break (nonce, logged?),
                // A half-open connection never answers, and by now there is another one.
                _ = link_up.changed() => {}
            }
        };
        let entry = LogEntry {
            seq: logged.at.seq,
            kind: call.kind,
            prev: logged.prev,
            nonce,
            hashes: call.hashes.clone(),
        };
        Ok((entry, logged.at))
    }

    async fn log_on(
        &self,
        link: &dyn Link,
        lane: Lane,
        (call, extra): (&Call, &Extra),
        nonce: Nonce,
    ) -> StoreResult<Logged> {
        let (limit, opening) = (self.timing.invalidate_timeout, self.opening());
        if let Extra::Put(put) = extra {
            let place = put.place(lane, &call.entity);
            let call = link.put(place, put.put(), &call.hashes, nonce, opening);
            let logged = self.within(limit, "put", call).await;
            // A full server takes no value, but an invalidation.
            if !matches!(&logged, Err(error) if error.kind() == StoreErrorKind::Full) {
                return logged;
            }
        }
        if call.kind == Kind::Clear {
            let call = link.clear(lane, &call.entity, call.entity_hash(), nonce, opening);
            self.within(limit, "clear", call).await
        } else if let Some(markers) = self.markers_for(call, extra) {
            let call = link.guard(lane, &call.keys, &call.hashes, markers, nonce, opening);
            let guarded = self.within(limit, "guard", call).await?;
            if let Extra::Markers(markers) = extra {
                markers.found(guarded.stood);
            }
            Ok(guarded.logged)
        } else {
            let call = link.invalidate(lane, &call.keys, &call.hashes, nonce, opening);
            self.within(limit, "invalidate", call).await
        }
    }

    /// Voids everything on `lane`: a new epoch that continues nothing. What is stored there is dead, and
    /// every pod that learns of it drops what it has.
    pub(super) async fn void(&self, lane: Lane) -> StoreResult<Position> {
        let limit = self.timing.invalidate_timeout;
        let busy = || StoreError::new(StoreErrorKind::Busy, "fence");
        let link = self.link()?;
        let touched = [(lane, self.opening())];
        let heads = self.within(limit, "touch", link.touch(&touched)).await?;
        let head = heads.first().ok_or_else(busy)?;
        let (opening, sent) = (self.opening(), self.clock.now());
        let fence = link.fence(lane, head.at.epoch, opening);
        let fenced = self.within(limit, "fence", fence).await?;
        if fenced.at.epoch != opening.epoch {
            // Another epoch came in between, which may continue the one that was to end.
            return Err(busy());
        }
        // Followed before it is acknowledged: should a successor of the store not know of it, this pod
        // repeats it.
        let now = self.clock.now();
        self.step(lane, |state, out| {
            state.on_head(Some(fenced), sent, now, out)
        });
        self.ask_for_poll();
        if !link.waits_for_replicas() {
            return Ok(fenced.at);
        }
        // An entry that says nothing, behind the fence: who has the one has the other.
        let entry = link.invalidate(lane, &[], &[0], self.nonce(), self.opening());
        let logged = self.within(limit, "fence", entry).await?;
        match logged.at.epoch == fenced.at.epoch {
            true => Ok(logged.at),
            false => Err(busy()),
        }
    }
}
