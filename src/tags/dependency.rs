//! What a kept value depends on, and whether that has changed since.

use super::Cell;
use crate::bus::Liveness;
use crate::time::{Clock, Millis};
use std::sync::Arc;

/// What becomes of an entry by its tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It may be served.
    Current,
    /// A soft tag was invalidated: its time to live is over.
    Expired,
    /// A tag was invalidated, or may have been.
    Gone,
}

/// That some tags were not invalidated since a moment.
///
/// A hit on an entry with tags fetches this from a place of its own, which is most of what tags cost it:
/// so that of one tag, or of one and its name, is 48 bytes, and with the counts of its `Arc` one line of
/// a core's cache.
#[derive(Clone, Debug)]
pub(crate) struct Dependency {
    /// The sum of the counts of `first` when it began.
    sum: u64,
    /// The cells of the first tag.
    first: Option<[Arc<Cell>; 2]>,
    more: Option<Box<More>>,
    since: Millis,
    liveness: Arc<Liveness>,
}

/// What few entries have.
#[derive(Clone, Debug)]
struct More {
    /// Those of other tags.
    hard: Counts,
    soft: Counts,
}

impl Dependency {
    pub(super) fn new(
        hard: impl IntoIterator<Item = (u64, Arc<Cell>)>,
        soft: impl IntoIterator<Item = (u64, Arc<Cell>)>,
        since: Millis,
        liveness: Arc<Liveness>,
    ) -> Self {
        let mut hard = hard.into_iter();
        let (sum, first, rest) = match (hard.next(), hard.next()) {
            (Some((count, cell)), Some((other_count, other))) => {
                let sum = count.wrapping_add(other_count);
                (sum, Some([cell, other]), None)
            }
            (one, _) => (0, None, one),
        };
        let (hard, soft): (Counts, Counts) = (
            rest.into_iter().chain(hard).collect(),
            soft.into_iter().collect(),
        );
        let is_all = hard.cells.is_empty() && soft.cells.is_empty();
        Self {
            sum,
            first,
            more: (!is_all).then(|| Box::new(More { hard, soft })),
            since,
            liveness,
        }
    }

    /// Whether what began when this was made, and depends on nothing but the tags, may be used: none of
    /// them was invalidated as far as this pod knows, and what it knows, or else the beginning, is
    /// younger than L. Once a tag was invalidated it may never be used again.
    ///
    /// The order is that of a hit in the local level of an entity, for the same reason (hole H11): until
    /// when the lanes are live, then the counts, then the clock.
    #[inline]
    pub(crate) fn is_current(&self) -> bool {
        let until = self.liveness.until();
        self.is_unchanged() && self.liveness.vouches(until, self.since)
    }

    /// As [`is_current`](Self::is_current), soft tags included, for a reader who looks at the `clock`
    /// anyway. Gives the time as well.
    #[inline]
    pub(crate) fn standing(&self, clock: &Clock) -> (Standing, Millis) {
        let until = self.liveness.until();
        let (unchanged, softened) = (self.is_unchanged(), self.is_softened());
        let now = clock.now();
        let standing = match unchanged && self.liveness.vouches_at(now, until, self.since) {
            false => Standing::Gone,
            true if softened => Standing::Expired,
            true => Standing::Current,
        };
        (standing, now)
    }

    /// Whether this pod knows of no invalidation of one of the tags, other than soft ones.
    #[inline]
    pub(crate) fn is_unchanged(&self) -> bool {
        let first = self.first.as_ref().map_or(0, |cells| sum(cells));
        let more = self.more.as_ref();
        first == self.sum && more.is_none_or(|more| more.hard.are_unchanged())
    }

    #[inline]
    fn is_softened(&self) -> bool {
        let more = self.more.as_ref();
        more.is_some_and(|more| !more.soft.are_unchanged())
    }

    /// What it is said of reflects every invalidation of the tags that was acknowledged before this.
    pub(crate) fn as_of(&self) -> Millis {
        self.liveness.confirmed_at().max(self.since)
    }
}

/// Cells, and the sum of their counts when it began. Counts only grow: the sum is the same as long as each
/// of them is.
#[derive(Clone, Debug, Default)]
struct Counts {
    sum: u64,
    cells: Box<[Arc<Cell>]>,
}

impl Counts {
    #[inline]
    fn are_unchanged(&self) -> bool {
        sum(&self.cells) == self.sum
    }
}

impl FromIterator<(u64, Arc<Cell>)> for Counts {
    fn from_iter<T: IntoIterator<Item = (u64, Arc<Cell>)>>(counted: T) -> Self {
        let mut sum = 0_u64;
        let counted = counted.into_iter().map(|(count, cell)| {
            sum = sum.wrapping_add(count);
            cell
        });
        let cells = counted.collect();
        Self { sum, cells }
    }
}

#[inline]
fn sum(cells: &[Arc<Cell>]) -> u64 {
    let counts = cells.iter().map(|cell| cell.count());
    counts.fold(0, u64::wrapping_add)
}
