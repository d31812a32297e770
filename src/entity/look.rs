//! What the store has under a key, and what it is worth.

use super::Inner;
use super::context::Previous;
use super::load::whole_millis;
use super::outcome::{Landed, Origin, Outcome};
use super::tagging::{Tagged, Untold, Worth};
use super::target::{Began, Target};
use crate::codec;
use crate::coherence::rules::rank_of_head;
use crate::coherence::{Epoch, Head, Rank, Verdict};
use crate::envelope::{self, Header, Stored};
use crate::key::Key;
use crate::local::{Life, Phase, Slot};
use crate::store::{BoxFuture, Found, Link, StoreResult};
use crate::tags::{Dependency, Told};
use crate::time::Millis;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// A usable value of the store.
pub(super) struct Standing<V, E> {
    pub(super) landed: Landed<V, E>,
    /// The lease it was filled under.
    pub(super) token: u64,
    pub(super) phase: Phase,
    /// What is left of the plain part of its life.
    pub(super) left: Duration,
    pub(super) load_ms: u32,
}

/// Why a value of the store may be used, and for how long.
struct Evidence<'a> {
    began: &'a Began,
    rank: Rank,
    tied: Option<(Tagged, Dependency)>,
}

/// What the store has under a key.
pub(super) enum Look<V, E> {
    Found(Standing<V, E>),
    /// Somebody is loading it, under the lease with this token.
    Held(u64),
    /// Nothing that can be used; the bytes that stand there, if they are what cannot be.
    Absent(Option<Bytes>),
    /// It is ahead of what this pod has followed.
    Sync,
    /// A value of which only its tags' floors can say whether it may be used.
    Untold(Box<Untold>),
}

impl<V, E> Standing<V, E> {
    /// Whether it is within its time to live.
    pub(super) fn is_fresh(&self) -> bool {
        matches!(self.phase, Phase::Plain | Phase::Late(_))
    }

    /// What a loader may be told of it.
    pub(super) fn into_previous(self) -> Option<Previous<V>> {
        let value = self.landed.outcome.ok()?;
        Some(Previous::new(value, self.landed.age))
    }
}

fn load_ms(header: &Header) -> u32 {
    whole_millis(Duration::from_micros(header.load_us.into()))
}

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// One read of the store, no longer than `limit`; `None` if it is of no help.
    pub(super) async fn ask_store(
        &self,
        link: &dyn Link,
        target: &Target<K>,
        began: &Began,
        limit: Duration,
    ) -> Option<Look<V, E>> {
        if self.is_poisoned(target) {
            return None;
        }
        let read = link.read(target.place(&self.name));
        let asked = self.bus().ask("read", read);
        let found = match limit < self.bus().timing.read_timeout {
            true => timeout(limit, asked).await.ok()?,
            false => asked.await,
        };
        self.told(link, target, began, found.ok()?).await
    }

    /// As [`ask_store`](Self::ask_store), unless a read of a replica is as good; `None` if there is no
    /// replica to ask. Boxed, so that the future of a read without one stays small.
    pub(super) fn ask_near<'a>(
        &'a self,
        link: &'a dyn Link,
        target: &'a Target<K>,
        began: &'a Began,
        limit: Duration,
    ) -> Option<BoxFuture<'a, Option<Look<V, E>>>> {
        let read = link.read_replica(target.place(&self.name))?;
        Some(Box::pin(async move {
            match self.ask_replica(target, began, limit, read).await {
                Some(look) => Some(look),
                None => self.ask_store(link, target, began, limit).await,
            }
        }))
    }

    async fn ask_replica(
        &self,
        target: &Target<K>,
        began: &Began,
        limit: Duration,
        read: BoxFuture<'_, StoreResult<Found>>,
    ) -> Option<Look<V, E>> {
        if self.is_poisoned(target) {
            return None;
        }
        let limit = limit.min(self.bus().timing.read_timeout);
        let found = self.bus().within(limit, "read a replica", read).await;
        self.judge_replica(target, began, found.ok()?)
    }

    /// Makes of a replica's bytes what they are worth; `None` if the store itself has to be asked.
    ///
    /// A value that the replica has counts if its head is not behind anything that this pod knows of that
    /// may concern the key, and if the lane is still live: whatever was acknowledged more than a lease ago
    /// is applied, and so is in the replica's answer.
    ///
    /// 1. The primary is cut off. Polls fail; a replica of its goes on answering.
    /// 2. Another one is promoted, and acknowledges an invalidation.
    /// 3. The replica's head is not behind what we know: we know nothing any more.
    pub(super) fn judge_replica(
        &self,
        target: &Target<K>,
        began: &Began,
        found: Found,
    ) -> Option<Look<V, E>> {
        let bus = self.bus();
        let rank = rank_of_head(began.view, found.head.as_ref()?)?;
        if rank < self.level.last_change(bus, target.hash) {
            return None;
        }
        let began_there = began.at_replica(bus.rules.lease);
        // What is known of tags is of more lanes than this one, which is all that the head vouches for: a
        // value with tags is never found here.
        let look = self.judge_by(target, &began_there, found, Some(&Told::default()));
        let helps = match &look {
            Look::Found(standing) => standing.is_fresh(),
            // It needs the right to load, for which the store is asked anyway.
            Look::Absent(None) => true,
            _ => false,
        };
        // Last, as for a hit.
        (helps && bus.clock.now() < began.word.until()).then_some(look)
    }

    /// As [`ask_store`](Self::ask_store), of no help either if the node does not prove that it has not
    /// been deposed.
    pub(super) async fn ask_proven(
        &self,
        link: &dyn Link,
        target: &Target<K>,
        began: &Began,
    ) -> Option<Look<V, E>> {
        if self.is_poisoned(target) {
            return None;
        }
        let read = link.read_proven(target.place(&self.name));
        let found = self.bus().ask("read", read).await;
        self.told_anew(link, target, began, found.ok()?).await
    }

    pub(super) fn is_poisoned(&self, target: &Target<K>) -> bool {
        self.bus()
            .is_poisoned(target.lane, target.hash, self.keys.entity_hash())
    }

    /// Makes of stored bytes what they are worth, and keeps them here if they are worth keeping.
    pub(super) fn judge(&self, target: &Target<K>, began: &Began, found: Found) -> Look<V, E> {
        self.judge_by(target, began, found, None)
    }

    /// As [`judge`](Self::judge), by no floors of tags but those that were `told`, if that is said.
    pub(super) fn judge_by(
        &self,
        target: &Target<K>,
        began: &Began,
        found: Found,
        told: Option<&Told>,
    ) -> Look<V, E> {
        let Some(bytes) = found.value.clone() else {
            return match self.verdict(began, found.head.as_ref(), None, found.floor) {
                Verdict::Sync => Look::Sync,
                _ => Look::Absent(None),
            };
        };
        let options = &self.options;
        let stored = envelope::decode(&bytes, target.hashed(), options.schema, &options.packing);
        let stored = match stored {
            Ok(stored) => stored,
            Err(reason) => {
                self.note_unusable(target, &reason);
                return Look::Absent(Some(bytes));
            }
        };
        let lease = match &stored {
            Stored::Outcome(_, header, _) => header.lease,
            Stored::Lease(lease) => *lease,
        };
        let position = Some((lease.began.epoch, lease.began.seq));
        let rank = match self.verdict(began, found.head.as_ref(), position, found.floor) {
            Verdict::Usable(rank) => rank,
            Verdict::Absent => return Look::Absent(None),
            Verdict::Doubtful => return Look::Absent(Some(bytes)),
            Verdict::Sync => return Look::Sync,
        };
        let Stored::Outcome(kind, header, payload) = stored else {
            return Look::Held(lease.token);
        };
        // Stored when the store had lost the minimum that this pod still knows.
        if header.version.is_some() && header.version < self.bus().minimum(target.hash) {
            return Look::Absent(Some(bytes));
        }
        let now = self.bus().clock.now();
        let Some(life) = self.life_left(&header, now) else {
            return Look::Absent(Some(bytes));
        };
        let mut over = false;
        let tied = match self.worth(began, &header.tags, told) {
            Worth::Free => None,
            Worth::Tied(tagged, dependency, expired) => {
                over = expired;
                Some((tagged, dependency))
            }
            Worth::Dead => return Look::Absent(Some(bytes)),
            Worth::Unknown(tags) => {
                let left = (header.expires_ms != 0).then(|| life(Duration::MAX).left(now));
                return Look::Untold(Untold::boxed(found, tags, left));
            }
        };
        let life = |at_most| match over {
            false => life(at_most),
            true => life(at_most).expired(now),
        };
        let evidence = Evidence { began, rank, tied };
        match self.decode(kind, &payload) {
            Ok(outcome) if !self.is_poisoned(target) => Look::Found(Standing {
                landed: self.keep_found(target, evidence, &header, life, outcome),
                token: header.lease.token,
                phase: life(Duration::MAX).phase(now),
                left: life(Duration::MAX).plain_left(now),
                load_ms: load_ms(&header),
            }),
            Ok(_) => Look::Absent(None),
            Err(reason) => {
                self.note_unusable(target, &reason);
                Look::Absent(Some(bytes))
            }
        }
    }

    fn verdict(
        &self,
        began: &Began,
        head: Option<&Head>,
        value: Option<(Epoch, u64)>,
        floor: Option<u64>,
    ) -> Verdict {
        self.bus().rules.judge(began.view, head, value, floor)
    }

    fn decode(
        &self,
        kind: envelope::Outcome,
        payload: &[u8],
    ) -> Result<Outcome<V, E>, codec::CodecError> {
        match (kind, &self.options.error_codec) {
            (envelope::Outcome::Value, _) => {
                codec::decode(payload).map(|value| Ok(Arc::new(value)))
            }
            (envelope::Outcome::Error, Some(codec)) => {
                (codec.decode)(payload).map(|error| Err(Arc::new(error)))
            }
            // Another pod caches errors, this one does not: for us there is nothing.
            (envelope::Outcome::Error, None) => Err(codec::CodecError::unreadable("error")),
        }
    }

    /// What is left of a stored outcome's life, here for so long at most; `None` if nothing is.
    fn life_left(&self, header: &Header, now: Millis) -> Option<impl Fn(Duration) -> Life + Copy> {
        let (fresh_until, ends, late) = if header.expires_ms == 0 {
            (Millis::NEVER, Millis::NEVER, Duration::ZERO)
        } else {
            let server_now = self.bus().server_now()?;
            let here = |then: u64| Millis(now.0.saturating_add(then).saturating_sub(server_now));
            let fresh_ms = match header.soft_expires_ms {
                0 => header.expires_ms,
                soft => soft.min(header.expires_ms),
            };
            let life = Duration::from_millis(fresh_ms.saturating_sub(header.loaded_ms));
            let took = Duration::from_millis(load_ms(header).into());
            let fresh_until = here(fresh_ms);
            let ends = here(header.expires_ms);
            if ends <= now {
                return None;
            }
            // The grace of the pod that stored it, or this pod's, if that is less: then there is
            // something that others may serve, and this pod may not.
            let ends = ends.min(fresh_until + self.options.grace);
            (fresh_until, ends, self.early_window(life, took))
        };
        Some(move |at_most: Duration| Life::new(fresh_until, late, ends.min(now + at_most)))
    }

    fn keep_found(
        &self,
        target: &Target<K>,
        Evidence { began, rank, tied }: Evidence<'_>,
        header: &Header,
        life: impl FnOnce(Duration) -> Life,
        outcome: Outcome<V, E>,
    ) -> Landed<V, E> {
        let now = self.bus().clock.now();
        let age_ms = self
            .bus()
            .server_now()
            .map_or(0, |at| at.saturating_sub(header.loaded_ms));
        let age = Duration::from_millis(age_ms);
        let mut landed = Landed::new(&outcome, Origin::Store, age, began.start);
        let tied = tied.map(|(tagged, dependency)| {
            landed.as_of = landed.as_of.min(dependency.as_of());
            landed.tagged = Some(tagged);
            landed.tied = true;
            Arc::new(dependency)
        });
        if !self.options.local_ttl.is_zero() {
            let slot = Slot {
                value: outcome,
                rank,
                generation: began.word.generation(),
                load_start: began.start,
                loaded: Millis(now.0.saturating_sub(age_ms)),
                load_ms: load_ms(header),
                life: life(self.options.local_ttl),
                tied,
            };
            self.level.insert(
                self.bus(),
                target.hash,
                target.key.clone(),
                slot,
                |stripe| !stripe.is_poisoned(target.hash),
            );
        }
        landed
    }

    /// Logged at most now and then for one entity: rubbish comes in heaps.
    fn note_unusable(&self, target: &Target<K>, reason: &dyn std::error::Error) {
        self.bus().count_unusable();
        self.level.telemetry.unusable(reason);
        let now = self.bus().clock.now();
        if self.unusable_log.may_log(target.hash, now) {
            tracing::warn!(entity = %self.name, key = %String::from_utf8_lossy(&target.name),
                %reason, "stored value cannot be used; loading it again");
        }
    }
}
