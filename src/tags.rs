//! Which tags are watched in this process, and how often each was invalidated.
//!
//! A watched tag has [`Cell`]s: counters that only grow. Who depends on tags remembers the counts it
//! started from and compares ([`Dependency`]); who wants to run when they change is woken as well
//! ([`Watch`]). So an invalidation costs the same however much depends on the tag, nothing is queued
//! anywhere, and what comes while somebody runs is one change to it, however often it came.

mod dependency;
mod floors;
mod watch;

pub(crate) use dependency::{Dependency, Standing};
use floors::Floor;
pub(crate) use floors::{Judged, Told};
pub(crate) use watch::Watch;

use crate::bus::{Bus, Listener, Liveness, lock};
use crate::coherence::{Change, Lane};
use crate::key::{KeySpace, Tag, TagHash};
use crate::time::Millis;
use std::collections::HashMap;
use std::mem;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use tokio::sync::Notify;

/// Tags below which nobody looks for those that are watched no more.
const SWEEP_FROM: usize = 256;

/// The tags that are watched in one cache.
pub(crate) struct Registry {
    space: KeySpace,
    liveness: Arc<Liveness>,
    tags: Mutex<Tags>,
    /// Watched tags, those watched no more and not yet swept included.
    watched: AtomicUsize,
    /// Whom to wake once all of an invalidation is counted.
    to_wake: Mutex<Vec<Weak<Notify>>>,
}

#[derive(Default)]
struct Tags {
    names: HashMap<u64, Name>,
    keys: HashMap<u64, Key>,
    sweep_at: usize,
}

/// A bare name, watched itself or by one of its keys.
struct Name {
    /// Invalidations of the name: of all its keys.
    whole: Arc<Cell>,
    /// Invalidations of one of its keys.
    parts: Arc<Cell>,
    /// Gaps in what is known of the whole.
    gaps: Arc<Cell>,
    /// The lane that its floor is on.
    lane: Lane,
    floor: Option<Floor>,
    keys: Vec<u64>,
}

struct Key {
    cell: Arc<Cell>,
    lane: Lane,
    floor: Option<Floor>,
}

/// How often something was invalidated.
#[derive(Debug, Default)]
struct Cell {
    count: AtomicU64,
    watchers: Mutex<Watchers>,
}

#[derive(Debug, Default)]
struct Watchers {
    list: Vec<Weak<Notify>>,
    sweep_at: usize,
}

impl Cell {
    #[inline]
    fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    fn bump(&self, to_wake: &mut Vec<Weak<Notify>>) {
        self.count.fetch_add(1, Ordering::AcqRel);
        to_wake.extend(lock(&self.watchers).list.iter().cloned());
    }

    fn watch(&self, notify: &Arc<Notify>) {
        let mut watchers = lock(&self.watchers);
        // Whenever they have doubled: a constant share of the cost of adding them.
        if watchers.list.len() >= watchers.sweep_at {
            watchers.list.retain(|watcher| watcher.strong_count() > 0);
            watchers.sweep_at = 2 * watchers.list.len() + 8;
        }
        watchers.list.push(Arc::downgrade(notify));
    }

    fn is_unused(cell: &Arc<Self>) -> bool {
        Arc::strong_count(cell) == 1
    }
}

impl Registry {
    pub(crate) fn new(bus: &Arc<Bus>) -> Arc<Self> {
        let registry = Arc::new(Self {
            space: bus.space.clone(),
            liveness: Arc::clone(&bus.liveness),
            tags: Mutex::default(),
            watched: AtomicUsize::new(0),
            to_wake: Mutex::default(),
        });
        let listener: Weak<dyn Listener> = Arc::downgrade(&(Arc::clone(&registry) as _));
        bus.listen(listener);
        registry
    }

    /// What was not invalidated up to now, and is watched from now on.
    pub(crate) fn depend(&self, tags: &[Tag]) -> Dependency {
        let cells = self.cells(tags).into_iter().flatten();
        self.dependency(cells, self.liveness.now())
    }

    fn dependency(&self, cells: impl Iterator<Item = Arc<Cell>>, since: Millis) -> Dependency {
        let counted = cells.map(|cell| (cell.count(), cell));
        Dependency::new(counted, [], since, Arc::clone(&self.liveness))
    }

    /// Watches `tags` from now on.
    pub(crate) fn watch(self: &Arc<Self>, tags: Vec<Tag>) -> Watch {
        let notify = Arc::new(Notify::new());
        let cells = self.cells(&tags);
        for cell in cells.iter().flatten() {
            cell.watch(&notify);
        }
        let seen = cells
            .iter()
            .map(|two| two.each_ref().map(|cell| cell.count()));
        Watch {
            registry: Arc::clone(self),
            seen: seen.collect(),
            cells,
            tags,
            notify,
        }
    }

    /// The two cells of each tag: of a key its own and that of its whole name, of a name that of the
    /// whole and that of its parts.
    fn cells(&self, tags: &[Tag]) -> Vec<[Arc<Cell>; 2]> {
        let hashed: Vec<_> = tags.iter().map(|tag| self.space.hash_tag(tag)).collect();
        self.with_table(|table| {
            let cells = |tag| table.cells(tag, &self.space);
            hashed.into_iter().map(cells).collect()
        })
    }

    /// Looks up what may not be there yet.
    fn with_table<T>(&self, look_up: impl FnOnce(&mut Tags) -> T) -> T {
        let mut table = lock(&self.tags);
        let found = look_up(&mut table);
        table.sweep_sometimes();
        self.watched.store(table.len(), Ordering::Release);
        found
    }
}

impl Tags {
    fn cells(&mut self, tag: TagHash, space: &KeySpace) -> [Arc<Cell>; 2] {
        match self.look_up(tag, space) {
            (name, None) => [&name.whole, &name.parts].map(Arc::clone),
            (name, Some(key)) => [&key.cell, &name.whole].map(Arc::clone),
        }
    }

    /// The cells of what carries a tag, which goes with the tag and with its whole name, but not with
    /// parts of it; and what is known of its floor.
    fn ties(&mut self, tag: TagHash, space: &KeySpace) -> ([Arc<Cell>; 2], &mut Option<Floor>) {
        match self.look_up(tag, space) {
            (name, None) => {
                let cells = [&name.whole, &name.gaps].map(Arc::clone);
                (cells, &mut name.floor)
            }
            (name, Some(key)) => {
                let cells = [&key.cell, &name.whole].map(Arc::clone);
                (cells, &mut key.floor)
            }
        }
    }

    fn look_up(&mut self, tag: TagHash, space: &KeySpace) -> (&mut Name, Option<&mut Key>) {
        let name = self.names.entry(tag.name).or_insert_with(|| Name {
            whole: Arc::default(),
            parts: Arc::default(),
            gaps: Arc::default(),
            lane: space.lane_of(tag.name),
            floor: None,
            keys: Vec::new(),
        });
        if tag.is_bare() {
            return (name, None);
        }
        let key = self.keys.entry(tag.key).or_insert_with(|| {
            name.keys.push(tag.key);
            Key {
                cell: Arc::default(),
                lane: space.lane_of(tag.key),
                floor: None,
            }
        });
        (name, Some(key))
    }

    /// Counts an invalidation, if anybody watches what it is of.
    fn count(&self, change: &Change, to_wake: &mut Vec<Weak<Notify>>) {
        let Some(name) = self.names.get(&change.entity) else {
            return;
        };
        if change.keys.is_empty() {
            name.whole.bump(to_wake);
            return;
        }
        name.parts.bump(to_wake);
        for key in change.keys.iter().filter_map(|key| self.keys.get(key)) {
            key.cell.bump(to_wake);
        }
    }

    fn len(&self) -> usize {
        self.names.len() + self.keys.len()
    }

    /// Forgets what nobody watches any more, whenever the table has doubled since it last did: a
    /// constant share of the cost of growing it.
    fn sweep_sometimes(&mut self) {
        if self.len() < self.sweep_at.max(SWEEP_FROM) {
            return;
        }
        let keys = &mut self.keys;
        keys.retain(|_, key| !Cell::is_unused(&key.cell));
        self.names.retain(|_, name| {
            name.keys.retain(|key| keys.contains_key(key));
            let cells = [&name.whole, &name.parts, &name.gaps];
            let unused = cells.into_iter().all(Cell::is_unused);
            !unused || !name.keys.is_empty()
        });
        self.sweep_at = 2 * self.len();
    }
}

impl Listener for Registry {
    fn is_idle(&self) -> bool {
        self.watched.load(Ordering::Acquire) == 0
    }

    fn changed(&self, changes: &mut dyn Iterator<Item = Change>) {
        let (tags, mut to_wake) = (lock(&self.tags), lock(&self.to_wake));
        for change in changes {
            tags.count(&change, &mut to_wake);
        }
    }

    fn missed(&self, lane: Lane) {
        let (tags, mut to_wake) = (lock(&self.tags), lock(&self.to_wake));
        // A clear would have been heard on the other lanes, as far as it concerns their keys.
        for name in tags.names.values() {
            name.parts.bump(&mut to_wake);
            if name.lane == lane {
                name.gaps.bump(&mut to_wake);
            }
        }
        for key in tags.keys.values().filter(|key| key.lane == lane) {
            key.cell.bump(&mut to_wake);
        }
    }

    fn wake(&self) {
        let to_wake = mem::take(&mut *lock(&self.to_wake));
        for notify in to_wake.iter().filter_map(Weak::upgrade) {
            notify.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coherence::{Mechanisms, Rules};
    use crate::store::{Memory, Namespace};
    use std::num::NonZero;

    pub(super) fn registry() -> (Arc<Bus>, Arc<Registry>) {
        let namespace = Namespace {
            name: "tags".to_owned(),
            lanes: 16,
        };
        let space = KeySpace::new(&namespace.name, NonZero::new(16).expect("not zero"), None);
        let rules = Rules {
            lease: crate::bus::LEASE,
            mechanisms: Mechanisms::default(),
        };
        let (timing, clock) = (crate::bus::Timing::default(), crate::time::Clock::default());
        let bus = Bus::new(
            Arc::new(Memory::new()),
            namespace,
            space,
            rules,
            timing,
            clock,
            crate::bus::PendingOptions::default(),
        );
        let registry = Registry::new(&bus);
        (bus, registry)
    }

    /// See there for why.
    #[test]
    fn what_an_entry_with_one_tag_keeps_of_it_fits_a_line() {
        const COUNTS_OF_AN_ARC: usize = 16;
        assert_eq!(size_of::<Dependency>() + COUNTS_OF_AN_ARC, 64);
    }

    /// Streams that come and go leave nothing behind for good.
    #[tokio::test]
    async fn tags_and_watchers_that_are_gone_are_forgotten() {
        let (_bus, registry) = registry();
        let kept = registry.watch(vec![Tag::from("kept:1")]);
        for n in 0..100_000_u64 {
            drop(registry.watch(vec![Tag::of("page", &n), Tag::from("kept:1")]));
            drop(registry.depend(&[Tag::of(format!("name-{n}"), &n)]));
        }
        let tags = lock(&registry.tags);
        assert!(tags.len() <= 4 * SWEEP_FROM, "{} tags", tags.len());
        let listed = lock(&kept.cells[0][0].watchers).list.len();
        assert!(listed < 20, "{listed} watchers");
    }

    /// The key of a name that is watched no more must not be lost with it, nor the other way round.
    #[tokio::test]
    async fn what_is_watched_survives_every_sweep() {
        let (_bus, registry) = registry();
        let mut key = registry.watch(vec![Tag::from("user:42")]);
        let mut name = registry.watch(vec![Tag::from("org")]);
        for n in 0..10_000_u64 {
            drop(registry.depend(&[Tag::of("page", &n)]));
        }
        let change = |tag: &str| {
            let hashed = registry.space.hash_tag(&Tag::from(tag));
            Change {
                entity: hashed.name,
                keys: (!hashed.is_bare())
                    .then_some(hashed.key)
                    .into_iter()
                    .collect(),
            }
        };
        registry.changed(&mut [change("user"), change("org:7")].into_iter());
        assert_eq!(key.take_changed(), [Tag::from("user:42")]);
        assert_eq!(name.take_changed(), [Tag::from("org")]);
    }
}
