//! The lane word, the stripe and the entry: a pod of one key, with the crate's own rules.

use crate::fence::{AtomicWord, look};
use crate::sync::{Arc, AtomicU64, Mutex, Ordering};
use crate::{every_schedule, is_broken_by_some_schedule, lock};
use shuttle::thread;
use std::time::Duration;
use tidings::Millis;
use tidings::coherence::{EntryStamp, Mechanism, Mechanisms, Rank, Rules, Word};

const LEASE: Duration = Duration::from_millis(1000);

#[derive(Clone, Copy)]
struct Entry {
    value: u64,
    stamp: EntryStamp,
}

/// What `entity::Level` and `bus::Bus` are to one key, in the same steps.
struct Pod {
    rules: Rules,
    word: AtomicWord,
    /// The newest applied invalidation, under the lock that orders inserts and evictions.
    stripe: Mutex<Rank>,
    entry: Mutex<Option<Entry>>,
    clock: AtomicU64,
    applied: AtomicU64,
    source: AtomicU64,
}

impl Pod {
    /// With an entry that is old, of a lane that is no longer live.
    fn new(off: Option<Mechanism>) -> Arc<Self> {
        let mechanisms = off.map_or(Mechanisms::default(), |off| {
            Mechanisms::default().without(off)
        });
        let rules = Rules {
            lease: LEASE,
            mechanisms,
        };
        let stamp = EntryStamp {
            rank: Rank(1),
            generation: 0,
            start: Millis(0),
        };
        Arc::new(Self {
            rules,
            word: AtomicWord::default(),
            stripe: Mutex::new(Rank(1)),
            entry: Mutex::new(Some(Entry { value: 1, stamp })),
            clock: AtomicU64::new(10_000),
            applied: AtomicU64::new(1),
            source: AtomicU64::new(1),
        })
    }

    fn read(&self) -> Option<u64> {
        let seen = look(
            &self.rules,
            &self.word,
            || *lock(&self.entry),
            |entry| (entry.stamp, (), Millis(self.clock.load(Ordering::SeqCst))),
        );
        seen.map(|seen| seen.entry.value)
    }

    /// A load: what it reflects, then the source, then the fence.
    fn load(&self) {
        let stamp = EntryStamp {
            generation: self.word.load().generation(),
            rank: Rank(self.applied.load(Ordering::SeqCst)),
            start: Millis(self.clock.load(Ordering::SeqCst)),
        };
        let value = self.source.load(Ordering::SeqCst);
        let stripe = lock(&self.stripe);
        let existing = lock(&self.entry).map(|entry| entry.stamp);
        let word = self.word.load();
        if self.rules.may_insert(word, *stripe, existing, stamp) {
            *lock(&self.entry) = Some(Entry { value, stamp });
        }
    }

    fn evict(&self, rank: Rank) {
        let mut stripe = lock(&self.stripe);
        *stripe = rank.max(*stripe);
        let mut entry = lock(&self.entry);
        *entry = entry.filter(|entry| entry.stamp.rank >= rank);
    }

    /// Commit, log, apply.
    fn write(&self) {
        self.source.store(2, Ordering::SeqCst);
        self.evict(Rank(2));
        self.applied.store(2, Ordering::SeqCst);
    }

    fn confirm(&self) {
        let until = Millis(self.clock.load(Ordering::SeqCst)) + LEASE;
        self.word.update(|word| word.confirmed(until));
    }

    fn flush(&self) {
        self.word.update(Word::flushed);
        *lock(&self.stripe) = Rank::default();
    }
}

fn join<const N: usize>(threads: [thread::JoinHandle<()>; N]) {
    for thread in threads {
        thread.join().expect("it does not panic");
    }
}

/// The bus hears of a write and confirms the lane, while somebody reads.
fn reader_beside_the_bus(off: Option<Mechanism>) {
    let pod = Pod::new(off);
    let bus = {
        let pod = Arc::clone(&pod);
        thread::spawn(move || {
            pod.evict(Rank(2));
            pod.confirm();
        })
    };
    assert_eq!(pod.read(), None, "what was removed is vouched for");
    bus.join().expect("it does not panic");
}

#[test]
fn a_confirmation_never_vouches_for_what_was_removed_before_it() {
    every_schedule(|| reader_beside_the_bus(None));
}

#[test]
fn h11_with_the_entry_first_it_would() {
    assert!(is_broken_by_some_schedule(|| {
        reader_beside_the_bus(Some(Mechanism::CheckOrder));
    }));
}

/// Two loads and a write; whatever is kept in the end is what is at the source.
fn loads_beside_a_write(off: Option<Mechanism>) {
    let pod = Pod::new(off);
    let threads = [Pod::load, Pod::load, Pod::write].map(|step| {
        let pod = Arc::clone(&pod);
        thread::spawn(move || step(&pod))
    });
    join(threads);
    pod.confirm();
    assert!(
        pod.read().is_none_or(|value| value == 2),
        "the old value stays"
    );
}

#[test]
fn a_load_that_a_write_overtook_is_kept_by_no_schedule() {
    every_schedule(|| loads_beside_a_write(None));
}

#[test]
fn h2_without_the_stamp_it_is() {
    assert!(is_broken_by_some_schedule(|| {
        loads_beside_a_write(Some(Mechanism::InsertStamp));
    }));
}

#[test]
fn what_was_loaded_before_a_flush_is_served_by_nobody_after_it() {
    every_schedule(|| {
        let pod = Pod::new(None);
        let loads = {
            let pod = Arc::clone(&pod);
            thread::spawn(move || pod.load())
        };
        let confirms = {
            let pod = Arc::clone(&pod);
            thread::spawn(move || pod.confirm())
        };
        // What was missed is unknown: the source has it, no entry of the log will say so.
        pod.source.store(2, Ordering::SeqCst);
        pod.flush();
        let read = pod.read();
        assert!(read.is_none_or(|value| value == 2), "{read:?}");
        loads.join().expect("it does not panic");
        confirms.join().expect("it does not panic");
        let read = pod.read();
        assert!(read.is_none_or(|value| value == 2), "{read:?}");
    });
}

#[test]
fn flushes_and_confirmations_of_a_word_lose_none_of_each_other() {
    every_schedule(|| {
        let pod = Pod::new(None);
        let threads = [Pod::flush, Pod::confirm, Pod::flush].map(|step| {
            let pod = Arc::clone(&pod);
            thread::spawn(move || step(&pod))
        });
        join(threads);
        let word = pod.word.load();
        assert_eq!((word.generation(), word.until()), (2, Millis(11_000)));
    });
}

/// That this would be noticed.
#[test]
fn a_word_that_is_loaded_and_stored_loses_some() {
    assert!(is_broken_by_some_schedule(|| {
        let word = Arc::new(AtomicU64::new(0));
        let threads = [Word::flushed, Word::flushed].map(|change| {
            let word = Arc::clone(&word);
            thread::spawn(move || {
                let changed = change(Word(word.load(Ordering::SeqCst)));
                word.store(changed.0, Ordering::SeqCst);
            })
        });
        join(threads);
        assert_eq!(Word(word.load(Ordering::SeqCst)).generation(), 2);
    }));
}
