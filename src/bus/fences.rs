//! What this pod has fenced off: invalidated here, and not acknowledged by the store yet. Nothing that was
//! loaded before is served or kept, and what the store holds is not believed.

use super::{Bus, lock};
use crate::coherence::{Call, Kind, Lane, Rank};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is fenced off in this pod while the store has not acknowledged it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fenced {
    Key(Lane, u64),
    Entity(Lane, u64),
    Lane(Lane),
}

impl Fenced {
    /// What `call` fences off.
    pub(super) fn by(lane: Lane, call: &Call) -> impl Iterator<Item = Self> + '_ {
        let clear = (call.kind == Kind::Clear).then(|| Self::Entity(lane, call.entity_hash()));
        let keys = call.key_hashes().iter();
        clear
            .into_iter()
            .chain(keys.map(move |&hash| Self::Key(lane, hash)))
    }
}

/// The fences of one cache; those of single keys stand in their [stripes](super::Stripe).
#[derive(Debug, Default)]
pub(super) struct Fences {
    /// Entities and lanes.
    coarse: Mutex<Vec<Fenced>>,
    /// All of them: mostly none, which spares readers the locks.
    count: AtomicUsize,
}

impl Bus {
    /// Fences something off locally: nothing that was loaded before is served or kept, and what the
    /// store holds is not believed until it has acknowledged.
    pub(super) fn fence_off(&self, fenced: Fenced) {
        self.calls.fences.count.fetch_add(1, Ordering::AcqRel);
        match fenced {
            Fenced::Key(lane, hash) => {
                let mut stripe = self.stripe(lane, hash);
                stripe.poisoned.push(hash);
                stripe.noticed = self.next_moment();
                self.each_member(|member| member.evict(hash, Rank(u64::MAX)));
            }
            Fenced::Entity(lane, entity) => {
                lock(&self.calls.fences.coarse).push(fenced);
                self.stripe(lane, entity).noticed = self.next_moment();
                self.each_member(|member| {
                    if member.entity() == entity {
                        member.flush(lane);
                    }
                });
            }
            Fenced::Lane(lane) => {
                lock(&self.calls.fences.coarse).push(fenced);
                self.notice_all(lane);
                self.each_member(|member| member.flush(lane));
                self.tell_missed(lane);
            }
        }
    }

    pub(super) fn heal(&self, fenced: Fenced) {
        match fenced {
            Fenced::Key(lane, hash) => remove_one(&mut self.stripe(lane, hash).poisoned, &hash),
            _ => remove_one(&mut lock(&self.calls.fences.coarse), &fenced),
        }
        self.calls.fences.count.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether this pod has an invalidation of the key under way, so that what the store holds is not
    /// to be believed.
    pub(crate) fn is_poisoned(&self, lane: Lane, hash: u64, entity: u64) -> bool {
        if self.calls.fences.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let coarse = |fenced: &Fenced| {
            *fenced == Fenced::Entity(lane, entity) || *fenced == Fenced::Lane(lane)
        };
        lock(&self.calls.fences.coarse).iter().any(coarse)
            || self.stripe(lane, hash).is_poisoned(hash)
    }
}

fn remove_one<T: PartialEq>(list: &mut Vec<T>, item: &T) {
    if let Some(at) = list.iter().position(|other| other == item) {
        list.swap_remove(at);
    }
}
