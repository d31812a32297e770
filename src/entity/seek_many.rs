//! The leaders' way through the store for many keys: that of [`seek`](super::seek), each step taken by
//! all keys together.
//!
//! The first step is a read of all keys, or at once the question for their leases, whose answer is what
//! is there where there is something. Which of the two is cheaper depends on how much of the lists the
//! store has, and that is what lists have found lately ([`UsualMisses`](super::usual::UsualMisses)).
//! Either way what is found is judged as any look is, by what the lane had followed before the call. A
//! key that cannot stay with the others goes on alone.

use super::Inner;
use super::asking::{Ask, Asked};
use super::context::Previous;
use super::course::Skips;
use super::lease::LeaseHeld;
use super::load::LoadRun;
use super::look::Look;
use super::many::{Lead, Load};
use super::seek::{Next, Seen, Want};
use crate::error::{StoreError, StoreErrorKind};
use crate::key::Key;
use crate::store::{BoxFuture, Found, LeaseReply, LeaseState, Link, StoreResult};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

type Leads<K, V, E> = Vec<Lead<K, V, E>>;

/// A lead that needs a lease.
struct Wanted<K, V, E> {
    lead: Lead<K, V, E>,
    ask: Ask,
    /// What the outcome is to replace.
    previous: Option<Previous<V>>,
}

/// What was asked for a lease, and what came of it.
type Answered<K, V, E> = (Wanted<K, V, E>, LeaseHeld, StoreResult<LeaseReply>);

/// One search, as its steps leave it.
struct SeekMany<'a, K, V, E> {
    inner: &'a Arc<Inner<K, V, E>>,
    link: Arc<dyn Link>,
    /// Whether a replica may be asked.
    replicas: bool,
    /// What has to be loaded.
    loads: Vec<Load<K, V, E>>,
}

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Lands what the store has of many keys, and gives the rest with the right to load it, as far as it
    /// is to be had. What goes on alone is in neither.
    pub(super) async fn seek_many(
        self: &Arc<Self>,
        sought: Leads<K, V, E>,
        skips: Skips,
    ) -> Vec<Load<K, V, E>> {
        let Ok(link) = self.bus().link_for_reads() else {
            let (refreshed, sought) = self.those_being_refreshed(sought);
            for lead in refreshed {
                self.go_alone(lead, None);
            }
            return sought.into_iter().map(|it| self.uncovered(it)).collect();
        };
        let seek = SeekMany {
            inner: self,
            link,
            // Who skips the local level wants what is newer than it.
            replicas: !skips.local,
            loads: Vec::new(),
        };
        seek.run(sought).await
    }

    fn those_being_refreshed(&self, leads: Leads<K, V, E>) -> (Leads<K, V, E>, Leads<K, V, E>) {
        let is_refreshed = |lead: &Lead<K, V, E>| self.is_being_refreshed(&lead.target);
        leads.into_iter().partition(is_refreshed)
    }

    /// Lets a key go on as a single read, from what was seen of it.
    fn go_alone(self: &Arc<Self>, lead: Lead<K, V, E>, look: Option<Look<V, E>>) {
        let seen = look.map(|look| Seen {
            began: lead.began,
            look: Some(look),
        });
        self.lead_in_task(&lead.target, lead.guard, seen, Skips::NONE);
    }

    /// A load that the store is of no help with.
    pub(super) fn uncovered(&self, lead: Lead<K, V, E>) -> Load<K, V, E> {
        let run = self.uncovered_run(&lead.target);
        lead.load(run)
    }

    /// Asks the store for `count` answers, within the time of one.
    pub(super) async fn ask<'a, T>(
        &self,
        count: usize,
        operation: &'static str,
        call: impl FnOnce() -> BoxFuture<'a, Vec<StoreResult<T>>>,
    ) -> Vec<StoreResult<T>> {
        let mut answers = match count {
            0 => Vec::new(),
            _ => self.bus().ask_many(operation, call()).await,
        };
        let late = || Err(StoreError::new(StoreErrorKind::Timeout, operation));
        answers.resize_with(count, late);
        answers
    }
}

impl<K, V, E> SeekMany<'_, K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    async fn run(mut self, sought: Leads<K, V, E>) -> Vec<Load<K, V, E>> {
        // The store may still have what this pod knows to be void.
        let (poisoned, sought): (Vec<_>, Vec<_>) = sought
            .into_iter()
            .partition(|lead| self.inner.is_poisoned(&lead.target));
        poisoned.into_iter().for_each(|lead| self.uncovered(lead));
        let wanted = match self.inner.usual_misses.are_most() {
            true => self.lease_at_once(sought).await,
            false => self.read(sought).await,
        };
        for (wanted, held, reply) in self.ask_leases(wanted).await {
            self.conclude(wanted, held, reply);
        }
        self.loads
    }

    /// Reads all keys. Gives those that need a lease.
    async fn read(&mut self, sought: Leads<K, V, E>) -> Vec<Wanted<K, V, E>> {
        let (mut wanted, sought) = self.read_replicas(sought).await;
        if sought.is_empty() {
            return wanted;
        }
        let places: Vec<_> = sought
            .iter()
            .map(|lead| lead.target.place(&self.inner.name))
            .collect();
        let found = self
            .inner
            .ask(places.len(), "read", || self.link.read_many(&places));
        let found = found.await;
        let (mut answers, mut missing) = (0, 0);
        let found = sought.iter().zip(found);
        let found = found.map(|(lead, found)| (&*lead.target, &lead.began, found.ok()));
        let looks = self.inner.told_many(&*self.link, found).await;
        for (lead, look) in sought.into_iter().zip(looks) {
            answers += usize::from(look.is_some());
            missing += usize::from(matches!(look, Some(Look::Absent(_) | Look::Held(_))));
            match look {
                Some(look) => wanted.extend(self.make_of_look(lead, look)),
                None => self.uncovered(lead),
            }
        }
        self.inner.usual_misses.add(missing, answers);
        wanted
    }

    /// Reads all keys of replicas, if there are some. Gives those that need a lease, and those that the store
    /// itself has to be asked for.
    async fn read_replicas(
        &mut self,
        sought: Leads<K, V, E>,
    ) -> (Vec<Wanted<K, V, E>>, Leads<K, V, E>) {
        let inner = self.inner;
        let name = &inner.name;
        let places: Vec<_> = sought.iter().map(|lead| lead.target.place(name)).collect();
        let call = self.replicas.then(|| self.link.read_replica_many(&places));
        let Some(call) = call.flatten() else {
            return (Vec::new(), sought);
        };
        let limit = inner.bus().timing.read_timeout;
        let call = async { Ok(call.await) };
        let found = inner.bus().within(limit, "read a replica", call).await;
        let mut found = found.unwrap_or_default().into_iter();
        let (mut wanted, mut rest, mut missing) = (Vec::new(), Vec::new(), 0);
        let all = sought.len();
        for lead in sought {
            let look = found.next().and_then(Result::ok);
            let look = look.and_then(|found| inner.judge_replica(&lead.target, &lead.began, found));
            match look {
                Some(look) => {
                    missing += usize::from(matches!(look, Look::Absent(_)));
                    wanted.extend(self.make_of_look(lead, look));
                }
                None => rest.push(lead),
            }
        }
        inner.usual_misses.add(missing, all - rest.len());
        (wanted, rest)
    }

    /// Asks for the leases of all keys without a look at them, and takes what is there for one. Gives
    /// those that need a lease of another kind.
    async fn lease_at_once(&mut self, sought: Leads<K, V, E>) -> Vec<Wanted<K, V, E>> {
        // They would wait for their own pod's lease.
        let (refreshed, sought) = self.inner.those_being_refreshed(sought);
        for lead in refreshed {
            self.inner.go_alone(lead, None);
        }
        let asked = sought.into_iter().map(|lead| Wanted {
            ask: self.inner.ask_for(&lead.target, None),
            previous: None,
            lead,
        });
        let asked = asked.collect();
        let (mut wanted, mut refused) = (Vec::new(), Vec::new());
        let (mut answers, mut missing) = (0, 0);
        let (mut present, mut leads) = (Vec::new(), Vec::new());
        for (asked, held, reply) in self.ask_leases(asked).await {
            match reply {
                Ok(LeaseReply {
                    head,
                    floor,
                    state: LeaseState::Present(bytes),
                    ..
                }) => {
                    held.forget();
                    answers += 1;
                    let found = Found {
                        head: Some(head),
                        value: Some(bytes),
                        floor: Some(floor),
                    };
                    present.push(found);
                    leads.push(asked.lead);
                }
                Err(failed) if is_refusal(failed.kind()) => {
                    held.forget();
                    refused.push(asked.lead);
                }
                reply => {
                    let answered = usize::from(reply.is_ok());
                    (answers, missing) = (answers + answered, missing + answered);
                    self.conclude(asked, held, reply);
                }
            }
        }
        self.inner.usual_misses.add(missing, answers);
        let found = leads.iter().zip(present);
        let found = found.map(|(lead, found)| (&*lead.target, &lead.began, Some(found)));
        let looks = self.inner.told_many(&*self.link, found).await;
        for (lead, look) in leads.into_iter().zip(looks) {
            match look {
                Some(look) => wanted.extend(self.make_of_look(lead, look)),
                None => self.uncovered(lead),
            }
        }
        self.read_only(refused).await;
        wanted
    }

    /// Reads what the store gives no leases of: one that is full, or takes no writes, still has what it
    /// had.
    async fn read_only(&mut self, refused: Leads<K, V, E>) {
        for Wanted { lead, previous, .. } in self.read(refused).await {
            let run = self.inner.uncovered_run(&lead.target);
            self.loads.push(lead.load(LoadRun { previous, ..run }));
        }
    }

    /// Lands what may be served; gives what needs a lease, and lets go what cannot stay.
    fn make_of_look(&mut self, lead: Lead<K, V, E>, look: Look<V, E>) -> Option<Wanted<K, V, E>> {
        let target = &lead.target;
        let (ask, previous) = match look {
            Look::Found(found) => match self.inner.served(target, &found) {
                Some(landed) => {
                    lead.guard.land(landed);
                    return None;
                }
                None => {
                    let ask = self.inner.ask_over(target, found.token);
                    (ask, found.into_previous())
                }
            },
            Look::Sync | Look::Untold(_) => {
                self.inner.go_alone(lead, Some(Look::Sync));
                return None;
            }
            look if self.inner.is_being_refreshed(target) => {
                self.inner.go_alone(lead, Some(look));
                return None;
            }
            Look::Absent(unusable) => (self.inner.ask_for(target, unusable), None),
            // Its holder must learn that somebody waits.
            Look::Held(_) => (self.inner.ask_for(target, None), None),
        };
        Some(Wanted {
            lead,
            ask,
            previous,
        })
    }

    async fn ask_leases(&self, wanted: Vec<Wanted<K, V, E>>) -> Vec<Answered<K, V, E>> {
        // In place before the call: if this future is dropped, leases that it was granted are freed.
        let held = wanted
            .iter()
            .map(|Wanted { lead, ask, .. }| self.inner.to_be_held(&self.link, &lead.target, ask));
        let held: Vec<_> = held.collect();
        let opening = self.inner.bus().opening();
        let asked = held
            .iter()
            .zip(&wanted)
            .map(|(held, wanted)| (held.place(), wanted.ask.request(opening)));
        let asked: Vec<_> = asked.collect();
        let replies = self
            .inner
            .ask(asked.len(), "lease", || self.link.lease_many(&asked));
        let replies = replies.await;
        drop(asked);
        let answered = wanted.into_iter().zip(held).zip(replies);
        answered
            .map(|((wanted, held), reply)| (wanted, held, reply))
            .collect()
    }

    /// What becomes of a key for which a lease was asked.
    fn conclude(
        &mut self,
        wanted: Wanted<K, V, E>,
        held: LeaseHeld,
        reply: StoreResult<LeaseReply>,
    ) {
        let Wanted {
            lead,
            ask,
            previous,
        } = wanted;
        let seen = (&*lead.target, &lead.began);
        let asked = match reply {
            Ok(reply) => self
                .inner
                .make_of_lease(seen, &ask, held, reply, Want::Read),
            Err(_) => Asked::NoHelp,
        };
        match asked {
            Asked::Next(Next::Land(landed)) => lead.guard.land(landed),
            Asked::Next(Next::Load(run)) => {
                self.loads.push(lead.load(LoadRun { previous, ..run }));
            }
            Asked::Next(Next::Leave) | Asked::Held(_) => {
                let (inner, abandoned) = (Arc::clone(self.inner), lead.guard.abandoned());
                let target = Arc::clone(&lead.target);
                self.inner.in_task(&target, abandoned, async move {
                    inner.pause(lead.target.hash).await;
                    inner.go_alone(lead, None);
                });
            }
            Asked::NoHelp => self.uncovered(lead),
        }
    }

    fn uncovered(&mut self, lead: Lead<K, V, E>) {
        self.loads.push(self.inner.uncovered(lead));
    }
}

/// Whether the store has answered, and granted nothing.
fn is_refusal(kind: StoreErrorKind) -> bool {
    use StoreErrorKind::{Closed, Timeout, Unavailable};
    !matches!(kind, Unavailable | Timeout | Closed)
}
