//! The table of what is pending. Plain data: no I/O, no time of its own.

use super::Item;
use crate::bus::waiter::Waiter;
use crate::coherence::Lane;
use crate::time::Millis;
use std::collections::HashMap;
use std::sync::Arc;

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
pub(in crate::bus) struct Changes {
    /// Items that are pending from now on, and the tasks that are to repeat them.
    pub(in crate::bus) begun: Vec<(Item, u64)>,
    /// Items that went into coarser ones.
    pub(in crate::bus) merged: Vec<Item>,
}

/// The items that are not acknowledged. Plain data: no I/O, no time of its own.
#[derive(Debug)]
pub(in crate::bus) struct Table {
    max: usize,
    entries: HashMap<Item, Entry>,
    /// How many keys of each entity and lane are among them.
    keys: HashMap<(Lane, u64), usize>,
    numbers: u64,
    /// How many items went into coarser ones, ever.
    merged: u64,
}

impl Table {
    pub(in crate::bus) fn new(max: usize) -> Self {
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
    pub(in crate::bus) fn add(
        &mut self,
        item: Item,
        since: Millis,
        waiter: Arc<Waiter>,
    ) -> Changes {
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
    pub(in crate::bus) fn attempt(&mut self, item: &Item, task: u64) -> Option<u64> {
        self.entries.get(item).filter(|entry| entry.task == task)?;
        Some(self.number())
    }

    /// An attempt that [began](Self::attempt) with `number` was acknowledged. Gives those it was made
    /// for, and whether that was all: who came later needs another attempt.
    pub(in crate::bus) fn acknowledge(
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

    pub(in crate::bus) fn items(&self) -> impl Iterator<Item = (&Item, Millis)> {
        self.entries.iter().map(|(item, entry)| (item, entry.since))
    }

    pub(in crate::bus) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(in crate::bus) fn merged(&self) -> u64 {
        self.merged
    }

    /// Lets those who wait know that nothing will come.
    pub(in crate::bus) fn abandon(&mut self) {
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

#[cfg(test)]
mod tests;
