//! What this pod has invalidated and the store has not acknowledged: a table of distinct items, each
//! repeated on its own until it is.
//!
//! A call enters when its first attempt has failed, key by key. The same key again joins what is there.
//! The table is bounded; at the bound it forgets nothing but *which* keys: the fullest entity of a lane
//! becomes one item, all of that entity on that lane, and what is left when even that does not help, all
//! of a lane. Each is more than was asked for, so nothing stale can come of it.

use super::Bus;
use super::Journal;
use super::calls::Waiter;
use super::lock;
use crate::coherence::{Call, Kind, Lane};
use crate::random::random_part;
use crate::store::StoreResult;
use crate::time::Millis;
use bytes::Bytes;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Items pending at most unless [`CacheBuilder::max_pending`] says otherwise: some 20 MB, and well under
/// a second of scripts for the store when it comes back.
///
/// [`CacheBuilder::max_pending`]: crate::CacheBuilder::max_pending
pub const DEFAULT_MAX_PENDING: usize = 10_000;
/// The fewest that can be asked for: some for each of 16 lanes.
pub(crate) const LEAST_MAX_PENDING: usize = 64;
/// Items of one lane that are repeated at the same time: the trouble of one lane holds up no other.
pub(super) const TURNS: usize = 16;
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// How invalidations that the store has not acknowledged are kept.
#[derive(Debug)]
pub(crate) struct PendingOptions {
    /// How many at most.
    pub(crate) max: usize,
    pub(crate) journal: Option<Journal>,
}

impl Default for PendingOptions {
    fn default() -> Self {
        Self {
            max: DEFAULT_MAX_PENDING,
            journal: None,
        }
    }
}

/// An entity or group, by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Name {
    pub(crate) text: Arc<str>,
    pub(crate) hash: u64,
}

/// One thing to be invalidated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Item {
    /// One key: its hash and physical key.
    Key {
        lane: Lane,
        of: Name,
        hash: u64,
        key: Bytes,
    },
    /// Every key of an entity on a lane.
    Entity { lane: Lane, of: Name },
    /// Everything on a lane.
    Lane { lane: Lane },
}

impl Item {
    /// What `call` invalidates.
    pub(super) fn of(lane: Lane, call: &Call) -> Vec<Self> {
        let of = Name {
            text: Arc::clone(&call.entity),
            hash: call.entity_hash(),
        };
        if call.kind == Kind::Clear {
            return vec![Self::Entity { lane, of }];
        }
        let keys = call.key_hashes().iter().zip(&call.keys);
        let item = |(&hash, key): (&u64, &Bytes)| Self::Key {
            lane,
            of: of.clone(),
            hash,
            key: key.clone(),
        };
        keys.map(item).collect()
    }

    /// The call that invalidates it; there is none for a whole lane.
    fn call(&self) -> Option<Call> {
        match self {
            Self::Key { of, hash, key, .. } => {
                let keys = [(*hash, key.clone())];
                Some(Call::invalidate(&of.text, of.hash, &keys))
            }
            Self::Entity { of, .. } => Some(Call::clear(&of.text, of.hash)),
            Self::Lane { .. } => None,
        }
    }

    pub(crate) fn lane(&self) -> Lane {
        let (Self::Key { lane, .. } | Self::Entity { lane, .. } | Self::Lane { lane }) = self;
        *lane
    }

    pub(super) fn fenced(&self) -> Fenced {
        match self {
            Self::Key { lane, hash, .. } => Fenced::Key(*lane, *hash),
            Self::Entity { lane, of } => Fenced::Entity(*lane, of.hash),
            Self::Lane { lane } => Fenced::Lane(*lane),
        }
    }

    /// What is invalid when this is and more, the least first.
    fn covers(&self) -> [Option<Self>; 2] {
        let lane = Self::Lane { lane: self.lane() };
        match self {
            Self::Key { lane: on, of, .. } => {
                let entity = Self::Entity {
                    lane: *on,
                    of: of.clone(),
                };
                [Some(entity), Some(lane)]
            }
            Self::Entity { .. } => [Some(lane), None],
            Self::Lane { .. } => [None, None],
        }
    }
}

/// As the tag that names it, as far as it has one.
impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { key, .. } => f.write_str(&String::from_utf8_lossy(key)),
            Self::Entity { lane, of } => write!(f, "{} (lane {})", of.text, lane.0),
            Self::Lane { lane } => write!(f, "everything (lane {})", lane.0),
        }
    }
}

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

#[derive(Debug)]
struct Entry {
    /// The task that repeats it.
    task: u64,
    since: Millis,
    /// The number of who asked for it last.
    newest: u64,
    waiters: Vec<(u64, Arc<Waiter>)>,
    /// With so many waiters it is time to forget those that nobody listens to.
    sweep_at: usize,
}

impl Entry {
    fn join(&mut self, number: u64, waiter: Arc<Waiter>) {
        self.newest = number;
        if self.waiters.len() >= self.sweep_at {
            self.waiters.retain(|(_, waiter)| waiter.is_awaited());
            self.sweep_at = 2 * self.waiters.len() + 8;
        }
        self.waiters.push((number, waiter));
    }
}

/// What changes with a new item.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Items that are pending from now on, and the tasks that are to repeat them.
    pub(super) begun: Vec<(Item, u64)>,
    /// Items that went into coarser ones.
    pub(super) merged: Vec<Item>,
}

/// The items that are not acknowledged. Plain data: no I/O, no time of its own.
#[derive(Debug)]
pub(super) struct Table {
    max: usize,
    entries: HashMap<Item, Entry>,
    /// How many keys of each entity and lane are among them.
    keys: HashMap<(Lane, u64), usize>,
    numbers: u64,
    /// How many items went into coarser ones, ever.
    merged: u64,
}

impl Table {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            entries: HashMap::new(),
            keys: HashMap::new(),
            numbers: 0,
            merged: 0,
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Adds an item, or joins what is there and as much.
    pub(super) fn add(&mut self, item: Item, since: Millis, waiter: Arc<Waiter>) -> Changes {
        let mut changes = Changes::default();
        if self.join(&item, &waiter) {
            return changes;
        }
        if self.entries.len() >= self.max {
            self.merge(since, &mut changes);
            if self.join(&item, &waiter) {
                return changes;
            }
        }
        let entry = self.begin(item, since, &mut changes);
        entry.waiters.push((entry.newest, waiter));
        changes
    }

    fn join(&mut self, item: &Item, waiter: &Arc<Waiter>) -> bool {
        let number = self.number();
        let own = [Some(item.clone())];
        for there in own.into_iter().chain(item.covers()).flatten() {
            if let Some(entry) = self.entries.get_mut(&there) {
                entry.join(number, Arc::clone(waiter));
                return true;
            }
        }
        false
    }

    fn begin(&mut self, item: Item, since: Millis, changes: &mut Changes) -> &mut Entry {
        let number = self.number();
        if let Some(group) = group(&item) {
            *self.keys.entry(group).or_default() += 1;
        }
        changes.begun.push((item.clone(), number));
        self.entries.entry(item).or_insert(Entry {
            task: number,
            since,
            newest: number,
            waiters: Vec::new(),
            sweep_at: 8,
        })
    }

    /// Makes room: the entity with the most keys on a lane becomes one item; if none has two, the lane
    /// with the most items does.
    fn merge(&mut self, now: Millis, changes: &mut Changes) {
        let fullest = self.keys.iter().max_by_key(|(_, count)| **count);
        let fullest = fullest.filter(|(_, count)| **count > 1);
        let (coarse, parts): (Item, Vec<Item>) = match fullest {
            Some((&group_of, _)) => {
                let of_group = |item: &&Item| group(item) == Some(group_of);
                let parts: Vec<_> = self.entries.keys().filter(of_group).cloned().collect();
                let [entity, _] = parts[0].covers();
                (entity.unwrap_or_else(|| parts[0].clone()), parts)
            }
            None => {
                let mut counts: HashMap<Lane, usize> = HashMap::new();
                for item in self.entries.keys() {
                    *counts.entry(item.lane()).or_default() += 1;
                }
                let fullest = counts.into_iter().max_by_key(|(_, count)| *count);
                let lane = fullest.map_or(Lane(0), |(lane, _)| lane);
                let of_lane = |item: &&Item| item.lane() == lane;
                let parts = self.entries.keys().filter(of_lane).cloned().collect();
                (Item::Lane { lane }, parts)
            }
        };
        let mut since = now;
        let mut waiters = Vec::new();
        for part in &parts {
            if let Some(entry) = self.remove(part) {
                since = since.min(entry.since);
                waiters.extend(entry.waiters);
            }
        }
        self.merged += parts.len() as u64;
        changes.merged.extend(parts);
        let entry = self.begin(coarse, since, changes);
        // They ask for it from now on: an attempt at their own items that is under way still counts for
        // nothing here.
        let newest = entry.newest;
        let listening = waiters
            .into_iter()
            .filter(|(_, waiter)| waiter.is_awaited());
        entry
            .waiters
            .extend(listening.map(|(_, waiter)| (newest, waiter)));
    }

    fn remove(&mut self, item: &Item) -> Option<Entry> {
        let entry = self.entries.remove(item)?;
        if let Some(group) = group(item)
            && let Some(count) = self.keys.get_mut(&group)
        {
            *count -= 1;
            if *count == 0 {
                self.keys.remove(&group);
            }
        }
        Some(entry)
    }

    /// An attempt at `item` begins. Gives a number that is newer than everybody who asked for it so far;
    /// `None` if the item is no longer there, or another task repeats it.
    pub(super) fn attempt(&mut self, item: &Item, task: u64) -> Option<u64> {
        self.entries.get(item).filter(|entry| entry.task == task)?;
        Some(self.number())
    }

    /// An attempt that [began](Self::attempt) with `number` was acknowledged. Gives those it was made
    /// for, and whether that was all: who came later needs another attempt.
    pub(super) fn acknowledge(
        &mut self,
        item: &Item,
        task: u64,
        number: u64,
    ) -> Option<(Vec<Arc<Waiter>>, bool)> {
        let entry = self
            .entries
            .get_mut(item)
            .filter(|entry| entry.task == task)?;
        let all = entry.newest < number;
        let (served, left): (Vec<_>, Vec<_>) = std::mem::take(&mut entry.waiters)
            .into_iter()
            .partition(|(asked, _)| *asked < number);
        entry.waiters = left;
        if all {
            self.remove(item);
        }
        Some((served.into_iter().map(|(_, waiter)| waiter).collect(), all))
    }

    pub(super) fn items(&self) -> impl Iterator<Item = (&Item, Millis)> {
        self.entries.iter().map(|(item, entry)| (item, entry.since))
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn merged(&self) -> u64 {
        self.merged
    }

    /// Lets those who wait know that nothing will come.
    pub(super) fn abandon(&mut self) {
        for entry in self.entries.values_mut() {
            entry.waiters.clear();
        }
    }
}

fn group(item: &Item) -> Option<(Lane, u64)> {
    match item {
        Item::Key { lane, of, .. } => Some((*lane, of.hash)),
        _ => None,
    }
}

impl Bus {
    /// Takes what a call invalidates into the table, and sees to it that it is repeated. The call's own
    /// fences may go once this has returned.
    pub(super) fn enter(self: &Arc<Self>, items: Vec<Item>, since: Millis, waiter: &Arc<Waiter>) {
        let mut begun = Vec::new();
        {
            let mut table = lock(&self.calls.table);
            for item in items {
                let changes = table.add(item, since, Arc::clone(waiter));
                // The new fences before the old ones go, and both before anybody else looks.
                for (item, _) in &changes.begun {
                    self.fence_off(item.fenced());
                    self.note(item);
                }
                for item in &changes.merged {
                    self.heal(item.fenced());
                    self.strike(item);
                }
                begun.retain(|(item, _)| !changes.merged.contains(item));
                if !changes.merged.is_empty() {
                    tracing::warn!(namespace = %self.namespace.name, pending = table.len(),
                        merged = changes.merged.len(), into = %changes.begun[0].0,
                        "too many invalidations are pending: some were merged into coarser ones");
                }
                begun.extend(changes.begun);
            }
        }
        for (item, task) in begun {
            self.spawn_until_shutdown(Arc::clone(self).repeat(item, task));
        }
    }

    /// Repeats an item until the store has acknowledged it, or it has gone into a coarser one.
    async fn repeat(self: Arc<Self>, item: Item, task: u64) {
        let lane = item.lane();
        let mut backoff = BACKOFF_MIN;
        loop {
            self.wait_for_link(jittered(backoff)).await;
            // Never closed.
            let _turn = self.calls.turns[usize::from(lane.0)].acquire().await;
            let Some(number) = lock(&self.calls.table).attempt(&item, task) else {
                return;
            };
            let attempt = match item.call() {
                Some(call) => {
                    let extra = self.extra_again(&call);
                    self.attempt(lane, &Arc::new(call), &extra).await
                }
                None => self.void(lane).await,
            };
            let position = match attempt {
                Ok(position) => position,
                Err(error) => {
                    tracing::debug!(namespace = %self.namespace.name, %item, %error,
                        "invalidation still not acknowledged");
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                    continue;
                }
            };
            let served = {
                let mut table = lock(&self.calls.table);
                let served = table.acknowledge(&item, task, number);
                if let Some((_, true)) = served {
                    self.heal(item.fenced());
                    self.strike(&item);
                }
                served
            };
            let Some((served, all)) = served else {
                return;
            };
            for waiter in served {
                if let Some((call, since)) = waiter.acknowledged(position) {
                    let after = self.clock.now().since(*since);
                    self.telemetry.acknowledged(call, after);
                }
            }
            if all {
                self.calls.ended();
                return self.flush_journal().await;
            }
            backoff = BACKOFF_MIN;
        }
    }

    /// Waits for `pause`, or less if a link goes up meanwhile, or for a link if there is none: an attempt
    /// without one cannot succeed.
    async fn wait_for_link(&self, pause: Duration) {
        let mut link_up = self.link_up.subscribe();
        // A closed channel cannot be, for we hold its sender.
        if self.link().is_err() {
            let _ = link_up.changed().await;
        } else {
            let _ = tokio::time::timeout(pause, link_up.changed()).await;
        }
    }

    /// Voids everything on `lane`: a new epoch that continues nothing. What is stored there is dead, and
    /// every pod that learns of it drops what it has.
    async fn void(&self, lane: Lane) -> StoreResult<crate::coherence::Position> {
        use crate::error::{StoreError, StoreErrorKind};
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

/// Between half of `mean` and one and a half of it.
fn jittered(mean: Duration) -> Duration {
    mean / 2 + mean.mul_f64(random_part())
}

#[cfg(test)]
mod tests;
