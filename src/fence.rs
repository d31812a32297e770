//! What a reader looks at, and in which order, while other threads invalidate.

use crate::coherence::{EntryStamp, Mechanism, Rules, Word};
use crate::sync::{AtomicU64, Ordering};
use crate::time::Millis;

/// A lane word that readers load and the bus changes.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct AtomicWord(AtomicU64);

impl AtomicWord {
    #[inline]
    pub(crate) fn load(&self) -> Word {
        Word(self.0.load(Ordering::Acquire))
    }

    pub(crate) fn update(&self, change: impl Fn(Word) -> Word) {
        let update = |old| Some(change(Word(old)).0);
        // Never fails: the closure always gives a value.
        let _ = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, update);
    }
}

/// An entry that may be served, and what says so.
pub(crate) struct Seen<S, T> {
    pub(crate) entry: S,
    /// The lane's word as it was *before* the entry was fetched.
    pub(crate) word: Word,
    /// The time after it was fetched, and what else was looked at with the clock.
    pub(crate) now: Millis,
    pub(crate) aside: T,
}

/// What `get` finds, if the coherence rules let it be served now; `judge` looks at the clock.
///
/// The order is the point (hole H11): first the lane's word, then the entry, then the clock. With
/// the entry first:
///
/// 1. a reader fetches the entry and is stopped for ten seconds;
/// 2. the bus removes the entry and confirms the lane;
/// 3. the reader finds the lane live, and serves what was removed.
#[inline]
pub(crate) fn look<S, T>(
    rules: &Rules,
    word: &AtomicWord,
    get: impl FnOnce() -> Option<S>,
    judge: impl FnOnce(&S) -> (EntryStamp, T, Millis),
) -> Option<Seen<S, T>> {
    let before = word.load();
    let entry = get()?;
    let word = match rules.mechanisms.on(Mechanism::CheckOrder) {
        true => before,
        false => word.load(),
    };
    let (stamp, aside, now) = judge(&entry);
    rules.may_serve(word, stamp, now).then_some(Seen {
        entry,
        word,
        now,
        aside,
    })
}
