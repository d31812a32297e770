//! The leader's way through the store: look at the key, ask for the right to load it, wait for whoever
//! has that right, and look again.
//!
//! What keeps its result sound is decided elsewhere and only relied on here:
//!
//! - what the lane has followed is noted *before* each look ([`Began`]), and each look is judged by it
//!   alone, so an invalidation that arrives while the answer is under way makes the value rank below it;
//! - a lease is asked for by name of what the look found, so between the two steps nothing can slip in:
//!
//!   1. the look finds nothing, or the value with the token *t*;
//!   2. another pod fills the key, or it is invalidated and filled again;
//!   3. the lease in the key's place is refused with what stands there now, which is judged like a look;
//!      the lease beside *t* may be granted, but its fill is refused, because *t* is gone.
//!
//! So every turn of the loop starts from nothing, except for what it must not forget: how long it has
//! waited, what it found first, and what may be done without the right to load.

use super::Inner;
use super::asking::Asked;
use super::context::Previous;
use super::load::LoadRun;
use super::look::{Look, Standing};
use super::outcome::Landed;
use super::target::{Began, Target};
use super::waiting::{Waiting, pause};
use crate::key::Key;
use crate::store::Link;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long a read waits for its lane to learn of an epoch that the store is in.
const SYNC_LIMIT: Duration = Duration::from_millis(100);
/// How often it does so before it goes to the loader.
const SYNCS: usize = 2;

/// Why a key is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// To be read: anything will do that may be served.
    Read,
    /// To be refreshed behind readers: unless somebody has done so.
    Renewed,
    /// To be loaded anew, for somebody who said so.
    Anew,
    /// To be read as of now: what the store has, if it proves itself, and is within its time to live.
    Strict,
}

/// What a leader must do.
pub(super) enum Next<V, E> {
    Land(Landed<V, E>),
    Load(LoadRun<V>),
    /// Nothing: another pod is at it. Never for a reader.
    Leave,
}

/// A look at the store, and what was known before it.
pub(super) struct Seen<V, E> {
    pub(super) began: Began,
    /// `None` if the store was of no help.
    pub(super) look: Option<Look<V, E>>,
}

/// What a look leads to.
enum Step<V, E> {
    End(Next<V, E>),
    /// The lane must come to know of where the store is.
    Sync,
    /// The store cannot be followed: load without it.
    GiveUp,
    /// Ask for the right to replace this value.
    Replace(Standing<V, E>),
    /// Ask for the lease in the key's place, which has this holder or these unusable bytes.
    Fill(Option<u64>, Option<Bytes>),
}

/// One search, as its turns leave it.
struct Seek<'a, K, V, E> {
    inner: &'a Arc<Inner<K, V, E>>,
    target: &'a Target<K>,
    link: Arc<dyn Link>,
    want: Want,
    /// How often the lane may still be waited for.
    syncs: usize,
    /// Patience with other pods; from the first question for a lease on.
    waiting: Option<Waiting>,
    /// What the first look found: a value with this token, or none.
    first: Option<Option<u64>>,
    /// The value that is to be replaced.
    previous: Option<Previous<V>>,
    /// What may be done with an outcome although somebody else has the right to load.
    besides: Option<LoadRun<V>>,
}

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// What there is to land for `target`, or the right to load it. What was `seen` already is not
    /// looked at again.
    pub(super) async fn seek(
        self: &Arc<Self>,
        target: &Target<K>,
        seen: Option<Seen<V, E>>,
        want: Want,
    ) -> Next<V, E> {
        match self.bus().link_for_reads() {
            Ok(link) => Seek::new(self, target, link, want).run(seen).await,
            Err(_) => match self.refreshed(target, want).await {
                Some(landed) => Next::Land(landed),
                None => Next::Load(self.uncovered_run(target)),
            },
        }
    }

    /// A load without a lease: its outcome is not for the store.
    pub(super) fn uncovered_run(&self, target: &Target<K>) -> LoadRun<V> {
        let began = self.began(target.lane);
        LoadRun {
            rank: began.rank(),
            generation: began.word.generation(),
            lease: None,
            queued: true,
            previous: None,
            guarded: self.bus().may_be_guarded(target.lane, target.hash),
            minimum: self.bus().minimum(target.hash),
        }
    }

    /// Waits for the fill of a key that another pod is loading to be announced, or a little while.
    pub(super) async fn pause(&self, hash: u64) {
        let filled = self.bus().fill_waiter(hash);
        // Either way the store is asked again.
        let _ = timeout(pause(), filled.notified()).await;
    }
}

impl<'a, K, V, E> Seek<'a, K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    fn new(
        inner: &'a Arc<Inner<K, V, E>>,
        target: &'a Target<K>,
        link: Arc<dyn Link>,
        want: Want,
    ) -> Self {
        Self {
            inner,
            target,
            link,
            want,
            syncs: SYNCS,
            waiting: None,
            first: None,
            previous: None,
            besides: None,
        }
    }

    async fn run(mut self, mut seen: Option<Seen<V, E>>) -> Next<V, E> {
        loop {
            let Seen { began, look } = match seen.take() {
                Some(seen) => seen,
                None => self.look().await,
            };
            let asked = match self.step(look) {
                Step::End(next) => return next,
                Step::GiveUp => break,
                Step::Sync => {
                    self.inner.bus().sync(SYNC_LIMIT).await;
                    continue;
                }
                Step::Replace(found) => self.ask_over(&began, found).await,
                Step::Fill(holder, unusable) => self.ask_for(&began, holder, unusable).await,
            };
            match asked {
                Asked::Next(Next::Load(run)) => return self.load(run),
                Asked::Next(next) => return next,
                Asked::Held(_) if self.want == Want::Renewed => return Next::Leave,
                Asked::Held(besides) => self.besides = besides,
                Asked::NoHelp => break,
            }
            if self.is_over() {
                break;
            }
            self.inner.pause(self.target.hash).await;
        }
        let besides = self.besides.take();
        let run = besides.unwrap_or_else(|| self.inner.uncovered_run(self.target));
        self.load(run)
    }

    async fn look(&self) -> Seen<V, E> {
        let (inner, target, link) = (self.inner, self.target, &*self.link);
        let began = inner.began(target.lane);
        let look = match self.want {
            Want::Strict => inner.ask_proven(link, target, &began).await,
            _ => inner.ask_store(link, target, &began, Duration::MAX).await,
        };
        Seen { began, look }
    }

    /// What to do about what the store has.
    fn step(&mut self, look: Option<Look<V, E>>) -> Step<V, E> {
        match look {
            None => Step::GiveUp,
            Some(Look::Found(found)) => match self.enough(&found) {
                Some(landed) => Step::End(Next::Land(landed)),
                None => Step::Replace(found),
            },
            Some(Look::Sync | Look::Untold(_)) if self.syncs == 0 => Step::GiveUp,
            Some(Look::Sync | Look::Untold(_)) => {
                self.syncs -= 1;
                Step::Sync
            }
            Some(Look::Held(holder)) => Step::Fill(Some(holder), None),
            Some(Look::Absent(unusable)) => Step::Fill(None, unusable),
        }
    }

    /// What to land of a value that was found; `None` if it must be replaced.
    fn enough(&mut self, found: &Standing<V, E>) -> Option<Landed<V, E>> {
        if self.want != Want::Anew {
            return self.inner.suffices(self.target, found, self.want);
        }
        // Another token than at first: somebody else has loaded it since.
        let first = *self.first.get_or_insert(Some(found.token));
        (first != Some(found.token)).then(|| found.landed.clone())
    }

    /// Asks for the right to replace what was found.
    async fn ask_over(&mut self, began: &Began, found: Standing<V, E>) -> Asked<V, E> {
        self.waiting();
        let ask = self.inner.ask_over(self.target, found.token);
        let asked = self
            .inner
            .ask_lease(&self.link, self.target, began, ask, self.want);
        let asked = asked.await;
        self.previous = found.into_previous();
        asked
    }

    /// Asks for the lease in the key's place, unless this pod is refreshing the key, or its `holder` has
    /// been asked for it before.
    async fn ask_for(
        &mut self,
        began: &Began,
        holder: Option<u64>,
        unusable: Option<Bytes>,
    ) -> Asked<V, E> {
        if let Some(landed) = self.inner.refreshed(self.target, self.want).await {
            return Asked::Next(Next::Land(landed));
        }
        // Whatever comes after what is not there now was loaded since.
        self.first.get_or_insert(None);
        if !self.waiting().found(holder) {
            return Asked::Held(None);
        }
        let ask = self.inner.ask_for(self.target, unusable);
        let asked = self
            .inner
            .ask_lease(&self.link, self.target, began, ask, self.want);
        asked.await
    }

    fn waiting(&mut self) -> &mut Waiting {
        let inner = self.inner;
        self.waiting
            .get_or_insert_with(|| Waiting::new(inner.patience()))
    }

    /// Whether to load without the right to, as others have it for too long.
    fn is_over(&mut self) -> bool {
        // Somebody who says so does not wait for the end of a pause that this pod has begun itself.
        let failed = self.want == Want::Anew && self.inner.has_failed(self.target.hash);
        (failed && self.besides.is_some()) || self.waiting().is_over()
    }

    fn load(&mut self, run: LoadRun<V>) -> Next<V, E> {
        let previous = self.previous.take();
        Next::Load(LoadRun { previous, ..run })
    }
}
