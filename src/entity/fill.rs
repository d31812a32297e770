//! Storing what was loaded: what is written beside an outcome, its bytes, and the fill under its lease.

use super::Inner;
use super::lease::{GrantedLease, LeaseHeld};
use super::load::Timing;
use super::outcome::Outcome;
use super::target::Target;
use crate::codec;
use crate::coherence::Epoch;
use crate::envelope::{self, Header, Lease, TagVersion};
use crate::key::{Carried, Key};
use crate::store::{Fill, Link, Place, Replaces};
use crate::time::millis;
use crate::ttl::Ttl;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// An outcome that was loaded under a lease, to be stored.
pub(super) struct Unfilled<K, V, E> {
    pub(super) target: Arc<Target<K>>,
    pub(super) lease: GrantedLease,
    pub(super) timing: Timing,
    pub(super) ttl: Ttl,
    pub(super) version: Option<u64>,
    pub(super) outcome: Outcome<V, E>,
    pub(super) tags: Arc<[Carried]>,
}

impl<K, V, E> Unfilled<K, V, E> {
    pub(super) fn link(&self) -> &Arc<dyn Link> {
        &self.lease.held.link
    }

    pub(super) fn tags(&self) -> &[Carried] {
        &self.tags
    }
}

/// What is to be stored of an outcome beside the outcome.
pub(super) struct About {
    pub(super) lease: Lease,
    /// When its load began, and what time it is, by the server's clock.
    pub(super) loaded_ms: u64,
    pub(super) now_ms: u64,
    pub(super) took: Duration,
    pub(super) ttl: Ttl,
    pub(super) version: Option<u64>,
    pub(super) tags: Vec<TagVersion>,
}

/// An encoded outcome, and the lease to store it under, or beside the value that it replaces.
pub(super) struct Filling<K> {
    target: Arc<Target<K>>,
    held: LeaseHeld,
    over: Option<u64>,
    epoch: Epoch,
    pub(super) envelope: Vec<u8>,
    ttl: Option<Duration>,
}

impl<K> Filling<K> {
    pub(super) fn link(&self) -> &Arc<dyn Link> {
        &self.held.link
    }

    pub(super) fn fill(&self) -> (Place<'_>, Fill<'_>) {
        let fill = Fill {
            token: self.over.unwrap_or(self.held.token),
            replaces: match self.over {
                Some(_) => Replaces::Value,
                None => Replaces::Lease,
            },
            epoch: self.epoch,
            envelope: &self.envelope,
            ttl: self.ttl,
        };
        (self.target.place(&self.held.entity), fill)
    }

    /// The store has answered. Stored, or refused because the lease is gone: either way there is none
    /// to give back. A lease beside the value is given back, which wakes those who wait for it.
    pub(super) fn answered(self) {
        if self.over.is_none() {
            self.held.forget();
        }
    }
}

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Stores an outcome under its lease, or over the value that it refreshes. Whatever fails here costs
    /// another load, nothing else.
    pub(super) async fn fill(&self, unfilled: Unfilled<K, V, E>) {
        self.learn_for(std::slice::from_ref(&unfilled)).await;
        let Some(filling) = self.encode(unfilled) else {
            return;
        };
        let (place, fill) = filling.fill();
        let filled = filling.link().fill(place, fill);
        let filled = self.bus().ask("fill", filled).await;
        self.level.telemetry.filled(filled.as_ref().ok().copied());
        if filled.is_ok() {
            filling.answered();
        }
    }

    /// Sees to it that tags have floors before what carries them is stored: a floor that is set later
    /// may be too high for it.
    pub(super) async fn learn_for(&self, unfilled: &[Unfilled<K, V, E>]) {
        let Some(first) = unfilled.first() else {
            return;
        };
        let tags = unfilled.iter().flat_map(|one| one.tags());
        let tags: Vec<_> = tags.map(|carried| carried.tag).collect();
        let lives = unfilled.iter().filter(|one| !one.tags().is_empty());
        let lives = lives.map(|one| match one.ttl {
            Ttl::For(life) => Some(life.saturating_add(self.options.grace)),
            Ttl::Forever => None,
        });
        let longest = lives.reduce(|one, other| Some(one?.max(other?)));
        // Without its floors it is not stored, and the next read loads it again.
        let _ = self.learn(&**first.link(), &tags, longest.flatten()).await;
    }

    /// The bytes to store; `None`, and the lease given back, if there are to be none.
    pub(super) fn encode(&self, unfilled: Unfilled<K, V, E>) -> Option<Filling<K>> {
        let Unfilled {
            target,
            lease,
            timing,
            ttl,
            version,
            outcome,
            tags,
        } = unfilled;
        if ttl == Ttl::NONE && lease.over.is_none() {
            return None; // dropping the lease removes it
        }
        let Timing {
            moment,
            start,
            took,
        } = timing;
        let registry = &self.cache.0.tags;
        let tags = match tags.is_empty() || ttl == Ttl::NONE {
            true => Vec::new(),
            false => registry.versions(self.bus(), &tags, moment)?, // likewise
        };
        let GrantedLease {
            held,
            at,
            server_ms,
            granted,
            over,
        } = lease;
        let loaded_ms = server_ms + millis(start.since(granted));
        let now_ms = server_ms + millis(self.bus().clock.now().since(granted));
        let about = About {
            lease: Lease {
                token: held.token,
                began: at,
            },
            loaded_ms,
            now_ms,
            took,
            ttl,
            version,
            tags,
        };
        let stored = self.envelope(&target, &about, &outcome);
        let (envelope, ttl) = match stored {
            None if over.is_some() => self.nothing(&target, about)?,
            stored => stored?,
        };
        Some(Filling {
            target,
            held,
            over,
            epoch: at.epoch,
            envelope,
            ttl,
        })
    }

    /// The bytes to store of an outcome, and for how long; `None` if there are to be none.
    pub(super) fn envelope(
        &self,
        target: &Target<K>,
        about: &About,
        outcome: &Outcome<V, E>,
    ) -> Option<(Vec<u8>, Option<Duration>)> {
        let payload = match (outcome, &self.options.error_codec) {
            (Ok(value), _) => {
                codec::encode(&**value).map(|payload| (envelope::Outcome::Value, payload))
            }
            (Err(error), Some(codec)) => {
                (codec.encode)(error).map(|payload| (envelope::Outcome::Error, payload))
            }
            (Err(_), None) => return None,
        };
        let (header, kept) = self.header(about, outcome.is_ok());
        let encoded = payload.and_then(|(kind, payload)| {
            let packing = &self.options.packing;
            envelope::encode(kind, &header, target.hashed(), &payload, packing)
        });
        match encoded {
            Ok(envelope) if envelope.len() <= self.options.store_max_bytes => {
                Some((envelope, kept))
            }
            Ok(envelope) => {
                self.note_too_long(target, envelope.len());
                None
            }
            Err(error) => {
                tracing::warn!(entity = %self.name, %error, "outcome cannot be encoded; not stored");
                None
            }
        }
    }

    /// What takes the place of a stored value whose successor cannot be stored, for a moment: no outcome.
    fn nothing(&self, target: &Target<K>, about: About) -> Option<(Vec<u8>, Option<Duration>)> {
        let (ttl, tags) = (Ttl::NONE, Vec::new());
        let (header, kept) = self.header(&About { ttl, tags, ..about }, false);
        let (none, packing) = (envelope::Outcome::Error, &self.options.packing);
        let envelope = envelope::encode(none, &header, target.hashed(), &[], packing).ok()?;
        Some((envelope, kept))
    }

    /// The header of what is stored, and how long that is kept.
    fn header(&self, about: &About, is_value: bool) -> (Header, Option<Duration>) {
        // A life of nothing is for the value that stood there: it is over with the next millisecond.
        let life = match about.ttl {
            Ttl::For(life) => Some(life),
            Ttl::Forever => None,
        };
        let grace = match is_value && about.ttl != Ttl::NONE {
            true => self.options.grace,
            false => Duration::ZERO,
        };
        let end = |life: Duration| about.now_ms.saturating_add(millis(life).max(1));
        let kept = life.map(|life| life.saturating_add(grace));
        let header = Header {
            lease: about.lease,
            loaded_ms: about.loaded_ms,
            expires_ms: kept.map_or(0, end),
            soft_expires_ms: life.filter(|_| !grace.is_zero()).map_or(0, end),
            load_us: u32::try_from(about.took.as_micros()).unwrap_or(u32::MAX),
            schema: self.options.schema,
            version: about.version.filter(|_| is_value),
            tags: about.tags.clone(),
        };
        (header, kept)
    }

    /// Logged at most now and then for a key: each pod loads it again and again.
    fn note_too_long(&self, target: &Target<K>, bytes: usize) {
        self.level.telemetry.filled(None);
        if self
            .unusable_log
            .may_log(target.hash, self.bus().clock.now())
        {
            tracing::warn!(entity = %self.name, key = %String::from_utf8_lossy(&target.name), bytes,
                max = self.options.store_max_bytes,
                "outcome is longer than `store_max_bytes`; not stored");
        }
    }
}
