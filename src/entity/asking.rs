//! Asking the store for the right to load: a lease in the place of a key, or beside the value that is to
//! be replaced.

use super::Inner;
use super::lease::LeaseHeld;
use super::load::LoadRun;
use super::look::Look;
use super::seek::{Next, Want};
use super::target::{Began, Target};
use crate::coherence::rules::rank_of_head;
use crate::key::Key;
use crate::random::random;
use crate::store::{Found, LeaseReply, LeaseRequest, LeaseState, Link, Opening};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// What comes of asking for a lease.
pub(super) enum Asked<V, E> {
    /// What to do.
    Next(Next<V, E>),
    /// Somebody else has it. What a load may do with its outcome all the same.
    Held(Option<LoadRun<V>>),
    /// The store is of no help.
    NoHelp,
}

/// A lease that is asked for.
pub(super) struct Ask {
    token: u64,
    name: Bytes,
    ttl: Duration,
    unusable: Option<Bytes>,
    /// The token of the value that is to be replaced.
    over: Option<u64>,
}

impl Ask {
    pub(super) fn request(&self, opening: Opening) -> LeaseRequest<'_> {
        LeaseRequest {
            token: self.token,
            ttl: self.ttl,
            unusable: self.unusable.as_deref(),
            opening,
        }
    }
}

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// The lease in the place of a key, where nothing usable stands.
    pub(super) fn ask_for(&self, target: &Target<K>, unusable: Option<Bytes>) -> Ask {
        Ask {
            token: random(),
            name: target.name.clone(),
            ttl: self.lease_ttl(),
            unusable,
            over: None,
        }
    }

    /// The right to replace the value with the token `over`: a lease that stands beside it, while the
    /// value stays and is served.
    ///
    /// The lease only keeps others from doing the same. What keeps an overtaken outcome out is that a
    /// fill must find the very value. So a lease that is lost, or evicted, costs a second load and
    /// nothing else; and it may last as long as a key is left alone after a failure, of this pod's loader
    /// or of this pod.
    pub(super) fn ask_over(&self, target: &Target<K>, over: u64) -> Ask {
        Ask {
            token: random(),
            name: target.name_beside(over),
            ttl: self.lease_ttl().max(self.options.retry_after),
            unusable: None,
            over: Some(over),
        }
    }

    /// To be in place before the call: if that is dropped, a lease that it was granted is freed.
    pub(super) fn to_be_held(
        &self,
        link: &Arc<dyn Link>,
        target: &Target<K>,
        ask: &Ask,
    ) -> LeaseHeld {
        let name = ask.name.clone();
        LeaseHeld::new(self.bus(), link, target, name, &self.name, ask.token)
    }

    /// Asks for a lease.
    pub(super) async fn ask_lease(
        self: &Arc<Self>,
        link: &Arc<dyn Link>,
        target: &Target<K>,
        began: &Began,
        ask: Ask,
        want: Want,
    ) -> Asked<V, E> {
        let held = self.to_be_held(link, target, &ask);
        let lease = link.lease(held.place(), ask.request(self.bus().opening()));
        match self.bus().ask("lease", lease).await {
            Ok(reply) => self.make_of_lease((target, began), &ask, held, reply, want),
            Err(_) => Asked::NoHelp,
        }
    }

    /// What an answer to the question for a lease means.
    pub(super) fn make_of_lease(
        self: &Arc<Self>,
        (target, began): (&Target<K>, &Began),
        ask: &Ask,
        held: LeaseHeld,
        reply: LeaseReply,
        want: Want,
    ) -> Asked<V, E> {
        let LeaseReply {
            head,
            floor,
            server_ms,
            state,
            minimum,
        } = reply;
        if let Some(version) = minimum {
            self.bus().note_minimum(target.hash, version);
        }
        let rank = rank_of_head(began.view, &head);
        let granted =
            |held: LeaseHeld| held.granted(head.at, server_ms, self.bus().clock.now(), ask.over);
        let run = |lease| LoadRun {
            rank,
            generation: began.word.generation(),
            lease,
            queued: false,
            previous: None,
            guarded: false,
            minimum: minimum.max(self.bus().minimum(target.hash)),
        };
        match state {
            LeaseState::Granted => {
                if rank.is_none() {
                    self.bus().ask_for_poll();
                }
                Asked::Next(Next::Load(run(Some(granted(held)))))
            }
            LeaseState::Held => {
                // A load without the lease is of use only where the fill proves itself.
                let run = run(Some(granted(held.disarmed())));
                Asked::Held(ask.over.map(|_| run))
            }
            LeaseState::Guarded => {
                held.forget();
                Asked::Next(match want {
                    Want::Renewed => Next::Leave, // there is nothing to be renewed any more
                    _ => Next::Load(LoadRun {
                        queued: true,
                        guarded: true,
                        ..run(None)
                    }),
                })
            }
            LeaseState::Present(_) if ask.over.is_some() => {
                held.forget();
                Asked::NoHelp // not ours
            }
            LeaseState::Present(bytes) => {
                held.forget();
                let found = Found {
                    head: Some(head),
                    value: Some(bytes),
                    floor: Some(floor),
                };
                self.make_of_value((target, began), found, want)
            }
        }
    }

    /// What it means that a value stood where a lease was asked for.
    fn make_of_value(
        self: &Arc<Self>,
        (target, began): (&Target<K>, &Began),
        found: Found,
        want: Want,
    ) -> Asked<V, E> {
        if want == Want::Strict {
            return Asked::Held(None); // looked at once more: this answer proves nothing
        }
        match self.judge(target, began, found) {
            Look::Found(found) if want == Want::Anew => Asked::Next(Next::Land(found.landed)),
            Look::Found(found) => match self.suffices(target, &found, want) {
                Some(landed) => Asked::Next(Next::Land(landed)),
                None => Asked::Held(None), // looked at once more
            },
            Look::Untold(_) => Asked::Held(None), // likewise
            _ => Asked::NoHelp,
        }
    }
}
