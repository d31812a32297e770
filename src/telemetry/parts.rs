//! The entities and memos of one cache, as their counts.

use super::counts::{EntityCounts, MemoCounts};
use super::stats::{EntityStats, MemoStats};
use crate::bus::lock;
use std::fmt;
use std::sync::{Arc, Mutex, Weak};

/// What keeps entries, and tells how many.
pub(crate) trait Kept: Send + Sync {
    fn entries(&self) -> u64;
    fn weight(&self) -> u64;
    /// Whether the engine tells what it evicts.
    fn tells_evicted(&self) -> bool;
}

/// The counts of one part of a cache.
#[derive(Clone, Debug)]
pub(crate) enum PartCounts {
    Entity(Arc<EntityCounts>),
    Memo(Arc<MemoCounts>),
}

/// What a part has counted, and holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum PartStats {
    Entity(EntityStats),
    Memo(MemoStats),
}

impl PartCounts {
    /// What was counted, and what is kept now; nothing is once the part is gone.
    fn stats(&self, kept: Option<&dyn Kept>) -> PartStats {
        match (self, kept) {
            (Self::Entity(counts), Some(kept)) => PartStats::Entity(counts.stats(kept)),
            (Self::Entity(counts), None) => PartStats::Entity(counts.read()),
            (Self::Memo(counts), Some(kept)) => PartStats::Memo(counts.stats(kept)),
            (Self::Memo(counts), None) => PartStats::Memo(counts.read()),
        }
    }
}

/// One entity or memo.
pub(super) struct Part {
    pub(super) name: Arc<str>,
    counts: PartCounts,
    kept: Weak<dyn Kept>,
    /// What has been exported of its counts, in their order.
    #[cfg(feature = "metrics")]
    pub(super) exported: Mutex<Vec<u64>>,
}

impl Part {
    /// Not to be asked under a lock: what is kept may go with the asking.
    pub(super) fn stats(&self) -> PartStats {
        self.counts.stats(self.kept.upgrade().as_deref())
    }

    /// Whether it will count no more.
    pub(super) fn is_gone(&self) -> bool {
        self.kept.strong_count() == 0
    }
}

/// All parts that live, and the sums of those that are gone.
#[derive(Default)]
pub(super) struct Parts(Mutex<Roll>);

#[derive(Default)]
struct Roll {
    living: Vec<Arc<Part>>,
    gone: (EntityStats, MemoStats),
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let living = self.living();
        let names = living.iter().map(|part| &part.name);
        f.debug_list().entries(names).finish()
    }
}

impl Parts {
    pub(super) fn add(&self, name: Arc<str>, counts: PartCounts, kept: Weak<dyn Kept>) {
        lock(&self.0).living.push(Arc::new(Part {
            name,
            counts,
            kept,
            #[cfg(feature = "metrics")]
            exported: Mutex::default(),
        }));
    }

    pub(super) fn living(&self) -> Vec<Arc<Part>> {
        lock(&self.0).living.clone()
    }

    /// Adds a part that is gone to the sums.
    pub(super) fn bury(&self, part: &Arc<Part>) {
        let last = part.stats();
        let mut roll = lock(&self.0);
        let before = roll.living.len();
        roll.living.retain(|living| !Arc::ptr_eq(living, part));
        if roll.living.len() < before {
            add(&mut roll.gone, last);
        }
    }

    pub(super) fn totals(&self) -> (EntityStats, MemoStats) {
        let (living, mut sums) = {
            let roll = lock(&self.0);
            (roll.living.clone(), roll.gone)
        };
        living.iter().for_each(|part| add(&mut sums, part.stats()));
        sums
    }
}

fn add(sums: &mut (EntityStats, MemoStats), stats: PartStats) {
    match stats {
        PartStats::Entity(stats) => sums.0 += stats,
        PartStats::Memo(stats) => sums.1 += stats,
    }
}
