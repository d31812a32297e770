//! Asking the store for the right to load: a lease in the place of a key, or beside the value that is to
//! be replaced.

use super::Inner;
use super::load::{LeaseHeld, LoadRun};
use super::read::{Look, Next, Want};
use super::target::{Began, Target};
use crate::bus::Bus;
use crate::coherence::rules::rank_of_head;
use crate::key::Key;
use crate::random::random;
use crate::store::{Found, LeaseReply, LeaseRequest, LeaseState, Link};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// What comes of asking for a lease: what to do, or that somebody else has it, and what a load may do
/// with its outcome all the same.
pub(super) type Asked<V, E> = Result<Next<V, E>, Option<LoadRun<V>>>;

/// A lease that is asked for.
struct Ask<'a> {
    name: Bytes,
    ttl: Duration,
    unusable: Option<&'a [u8]>,
    /// The token of the value that is to be replaced.
    over: Option<u64>,
}

enum Answer<V> {
    Granted(LoadRun<V>),
    /// Somebody else has it. A load without it is of use only where the fill proves itself.
    Held(LoadRun<V>),
    Present(Found),
}

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Asks for the lease. `Some(Err(_))` if somebody else has it; `None` if the store is of no help.
    pub(super) async fn ask_lease(
        self: &Arc<Self>,
        link: &Arc<dyn Link>,
        target: &Target<K>,
        began: &Began,
        unusable: Option<&[u8]>,
        want: Want,
    ) -> Option<Asked<V, E>> {
        let ask = Ask {
            name: target.name.clone(),
            ttl: self.lease_ttl(),
            unusable,
            over: None,
        };
        match self.ask(link, target, began, ask).await? {
            Answer::Granted(run) => Some(Ok(Next::Load(run))),
            Answer::Held(_) => Some(Err(None)),
            Answer::Present(found) => match self.judge(target, began, found) {
                Look::Found(found) if want == Want::Anew => Some(Ok(Next::Land(found.landed))),
                Look::Found(found) => match self.suffices(target, &found, want) {
                    Some(landed) => Some(Ok(Next::Land(landed))),
                    None => Some(Err(None)), // looked at once more
                },
                _ => None,
            },
        }
    }

    /// Asks for the right to replace the value with the token `over`, by a lease that stands beside it:
    /// the value stays, and is served. As [`ask_lease`](Self::ask_lease) otherwise.
    ///
    /// The lease only keeps others from doing the same. What keeps an overtaken outcome out is that a
    /// fill must find the very value. So a lease that is lost, or evicted, costs a second load and
    /// nothing else; and it may last as long as a key is left alone after a failure, of this pod's loader
    /// or of this pod.
    pub(super) async fn ask_to_replace(
        &self,
        link: &Arc<dyn Link>,
        target: &Target<K>,
        began: &Began,
        over: u64,
    ) -> Option<Asked<V, E>> {
        let ask = Ask {
            name: target.name_beside(over),
            ttl: self.lease_ttl().max(self.options.retry_after),
            unusable: None,
            over: Some(over),
        };
        match self.ask(link, target, began, ask).await? {
            Answer::Granted(run) => Some(Ok(Next::Load(run))),
            Answer::Held(run) => Some(Err(Some(run))),
            Answer::Present(_) => None, // not ours
        }
    }

    async fn ask(
        &self,
        link: &Arc<dyn Link>,
        target: &Target<K>,
        began: &Began,
        ask: Ask<'_>,
    ) -> Option<Answer<V>> {
        let token = random();
        let request = LeaseRequest {
            token,
            ttl: ask.ttl,
            unusable: ask.unusable,
            opening: self.bus().opening(),
        };
        // In place before the call: if this future is dropped, a lease that it was granted is freed.
        let held = LeaseHeld::new(self.bus(), link, target, ask.name, &self.name, token);
        let lease = link.lease(held.place(), request);
        let reply = Bus::within(self.bus().timing.read_timeout, "lease", lease).await;
        let LeaseReply {
            head,
            floor,
            server_ms,
            state,
        } = match reply {
            Ok(reply) => reply,
            Err(_) => return None,
        };
        let rank = rank_of_head(began.view, &head);
        let run = |held: LeaseHeld| LoadRun {
            rank,
            generation: began.generation,
            lease: Some(held.granted(head.at, server_ms, self.bus().clock.now(), ask.over)),
            previous: None,
        };
        match state {
            LeaseState::Granted => {
                if rank.is_none() {
                    self.bus().ask_for_poll();
                }
                Some(Answer::Granted(run(held)))
            }
            LeaseState::Held => Some(Answer::Held(run(held.disarmed()))),
            LeaseState::Present(bytes) => {
                held.forget();
                Some(Answer::Present(Found {
                    head: Some(head),
                    value: Some(bytes),
                    floor: Some(floor),
                }))
            }
        }
    }
}
