//! What pods did, and whether the promises allow it.
//!
//! A history is checked after the fact. All pods of a test run on one host, so all its times are of one
//! clock. The checks reduce to one question, asked per key: *since when could this read have known
//! better?* A read of version `v` misses an invalidation of `w > v` from the moment that `w` was
//! acknowledged; the earliest such moment is what every bound is measured against.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};
use tidings::Origin;

/// By how much the coarse clock may make a claimed bound too small.
pub(crate) const CLAIM_SLACK: Duration = Duration::from_millis(9);

/// One read that gave a value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    pub(crate) pod: usize,
    pub(crate) key: u64,
    pub(crate) start: Instant,
    /// How long its caller waited.
    pub(crate) took: Duration,
    pub(crate) version: u64,
    /// Which does not show in a read of a list.
    pub(crate) origin: Option<Origin>,
    /// What the read itself claimed, if it did.
    pub(crate) bound: Option<Duration>,
}

/// One version that was committed at the source, then invalidated through `pod`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    pub(crate) pod: usize,
    pub(crate) key: u64,
    pub(crate) version: u64,
    /// When `invalidate` returned, acknowledged or pending.
    pub(crate) returned: Instant,
    /// When it was known to be acknowledged.
    pub(crate) acked: Option<Instant>,
}

#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) reads: Vec<Read>,
    pub(crate) writes: Vec<Write>,
    /// Reads that failed, and what was wrong.
    pub(crate) failures: Vec<String>,
}

/// A broken promise.
pub(crate) enum Violation {
    /// Missed an invalidation that was acknowledged longer ago than the bound.
    Stale { read: Read, missed_for: Duration },
    /// Missed one that had returned in the same pod.
    OwnWrite { read: Read, missed_for: Duration },
    /// Missed one that was acknowledged longer ago than the read itself claimed.
    Claim { read: Read, missed_for: Duration },
    /// Went back behind what the pod had given before, and what was acknowledged when it gave that. (What
    /// was not may be known from the source and unknown to the store.)
    Backwards { read: Read, before: u64 },
    /// Gave what was never committed.
    Invented { read: Read },
    /// Never acknowledged.
    Lost { write: Write },
    /// Failed though nothing was wrong with the loader.
    Failed { error: String },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stale { read, missed_for } => write!(f, "stale by {missed_for:?}: {read:?}"),
            Self::OwnWrite { read, missed_for } => {
                write!(f, "own write of {missed_for:?} ago missed: {read:?}")
            }
            Self::Claim { read, missed_for } => {
                write!(f, "missed for {missed_for:?}, more than claimed: {read:?}")
            }
            Self::Backwards { read, before } => write!(f, "version {before} came before {read:?}"),
            Self::Invented { read } => write!(f, "never committed: {read:?}"),
            Self::Lost { write } => write!(f, "never acknowledged: {write:?}"),
            Self::Failed { error } => f.write_str(error),
        }
    }
}

/// For each version, the earliest moment at which a newer one was known.
#[derive(Default)]
struct Missed(BTreeMap<u64, Instant>);

impl Missed {
    fn new(known: impl Iterator<Item = (u64, Instant)>) -> Self {
        let mut earliest: BTreeMap<u64, Instant> = BTreeMap::new();
        for (version, at) in known {
            let first = earliest.entry(version).or_insert(at);
            *first = at.min(*first);
        }
        let mut next = None;
        for at in earliest.values_mut().rev() {
            *at = next.map_or(*at, |next| (*at).min(next));
            next = Some(*at);
        }
        Self(earliest)
    }

    /// For how long, at `now`, a reader of `version` has missed something; zero if it has not.
    fn missed_for(&self, version: u64, now: Instant) -> Duration {
        let since = self.0.range(version + 1..).next();
        since.map_or(Duration::ZERO, |(_, since)| {
            now.saturating_duration_since(*since)
        })
    }

    /// The newest version that a reader of `version` at `now` had, and that was known by then.
    fn known_of(&self, version: u64, now: Instant) -> u64 {
        let mut had = self.0.range(..=version).rev();
        had.find(|(_, since)| **since <= now)
            .map_or(0, |(&version, _)| version)
    }
}

impl History {
    /// Everything that the promises forbid, with the bound `delta`.
    pub(crate) fn violations(&self, delta: Duration) -> Vec<Violation> {
        let mut found: Vec<_> = self
            .failures
            .iter()
            .map(|error| Violation::Failed {
                error: error.clone(),
            })
            .collect();
        let lost = self.writes.iter().filter(|write| write.acked.is_none());
        found.extend(lost.map(|&write| Violation::Lost { write }));

        let mut of_key: BTreeMap<u64, Vec<&Write>> = BTreeMap::new();
        for write in &self.writes {
            of_key.entry(write.key).or_default().push(write);
        }
        let committed: BTreeMap<u64, u64> = of_key
            .iter()
            .filter_map(|(&key, writes)| Some((key, writes.iter().map(|w| w.version).max()?)))
            .collect();
        let acked = self.acked();
        let mut own: BTreeMap<(usize, u64), Missed> = BTreeMap::new();
        let nothing = Missed::default();
        for &read in &self.reads {
            let writes = of_key.get(&read.key).map_or(&[][..], Vec::as_slice);
            if read.version > committed.get(&read.key).copied().unwrap_or_default() {
                found.push(Violation::Invented { read });
            }
            let missed = acked.get(&read.key).unwrap_or(&nothing);
            let missed_for = missed.missed_for(read.version, read.start);
            if missed_for > delta {
                found.push(Violation::Stale { read, missed_for });
            }
            if read
                .bound
                .is_some_and(|bound| missed_for > bound + CLAIM_SLACK)
            {
                found.push(Violation::Claim { read, missed_for });
            }
            let own = own.entry((read.pod, read.key)).or_insert_with(|| {
                let here = writes.iter().filter(|write| write.pod == read.pod);
                Missed::new(here.map(|write| (write.version, write.returned)))
            });
            let missed_for = own.missed_for(read.version, read.start);
            if missed_for > Duration::ZERO {
                found.push(Violation::OwnWrite { read, missed_for });
            }
        }
        let known_of = |read: &Read| {
            let acked = acked.get(&read.key).unwrap_or(&nothing);
            acked.known_of(read.version, read.start)
        };
        let back = self.steps_back(known_of).into_iter();
        found.extend(back.map(|(read, before)| Violation::Backwards { read, before }));
        found
    }

    /// Reads that began after one of the same pod and key had ended whose `worth` is a newer version.
    pub(crate) fn steps_back(&self, worth: impl Fn(&Read) -> u64) -> Vec<(Read, u64)> {
        let mut of_pod: BTreeMap<(usize, u64), Vec<Read>> = BTreeMap::new();
        for &read in &self.reads {
            of_pod.entry((read.pod, read.key)).or_default().push(read);
        }
        let mut found = Vec::new();
        for mut reads in of_pod.into_values() {
            let mut ended: Vec<_> = reads
                .iter()
                .map(|read| (read.start + read.took, worth(read)))
                .collect();
            ended.sort_unstable();
            reads.sort_unstable_by_key(|read| read.start);
            let (mut ended, mut newest) = (ended.into_iter().peekable(), 0);
            for read in reads {
                while let Some((_, version)) = ended.next_if(|&(end, _)| end <= read.start) {
                    newest = newest.max(version);
                }
                if read.version < newest {
                    found.push((read, newest));
                }
            }
        }
        found
    }

    /// For each key, since when a reader of a version missed an acknowledged one.
    fn acked(&self) -> BTreeMap<u64, Missed> {
        let mut acked: BTreeMap<u64, Vec<(u64, Instant)>> = BTreeMap::new();
        for write in &self.writes {
            let known = write.acked.map(|at| (write.version, at));
            acked.entry(write.key).or_default().extend(known);
        }
        let keys = acked.into_iter();
        keys.map(|(key, known)| (key, Missed::new(known.into_iter())))
            .collect()
    }

    /// Panics if something was found.
    pub(crate) fn refuse(&self, found: &[Violation]) {
        let first: Vec<_> = found.iter().take(8).map(Violation::to_string).collect();
        assert!(
            found.is_empty(),
            "{} violations in {}\n{}",
            found.len(),
            self.summary(),
            first.join("\n")
        );
    }

    /// The longest that a read missed something which was acknowledged, of those reads that count.
    pub(crate) fn worst(&self, counts: impl Fn(&Read) -> bool) -> Duration {
        let acked = self.acked();
        let missed = |read: &Read| {
            let missed = acked.get(&read.key);
            missed.map(|missed| missed.missed_for(read.version, read.start))
        };
        let reads = self.reads.iter().filter(|read| counts(read));
        reads.filter_map(missed).max().unwrap_or_default()
    }

    /// How much was done, so that a green run can be told from an idle one.
    pub(crate) fn summary(&self) -> String {
        let of = |origin| self.reads.iter().filter(|r| r.origin == origin).count();
        let from = |origin| of(Some(origin));
        format!(
            "{} reads ({} local, {} store, {} loader, {} in lists), {} writes, stale by at most {:?}",
            self.reads.len(),
            from(Origin::Local),
            from(Origin::Store),
            from(Origin::Loader),
            of(None),
            self.writes.len(),
            self.worst(|_| true),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELTA: Duration = Duration::from_millis(1000);

    struct Told {
        zero: Instant,
        history: History,
    }

    impl Told {
        fn new() -> Self {
            Self {
                zero: Instant::now(),
                history: History::default(),
            }
        }

        fn at(&self, ms: u64) -> Instant {
            self.zero + Duration::from_millis(ms)
        }

        /// Acknowledged 10 ms after it returned.
        fn write(mut self, pod: usize, version: u64, returned: u64) -> Self {
            let write = Write {
                pod,
                key: 1,
                version,
                returned: self.at(returned),
                acked: Some(self.at(returned + 10)),
            };
            self.history.writes.push(write);
            self
        }

        fn read(mut self, pod: usize, version: u64, start: u64, bound: u64) -> Self {
            let read = Read {
                pod,
                key: 1,
                start: self.at(start),
                took: Duration::ZERO,
                version,
                origin: Some(Origin::Local),
                bound: Some(Duration::from_millis(bound)),
            };
            self.history.reads.push(read);
            self
        }

        fn seen(&self) -> Vec<&'static str> {
            let found = self.history.violations(DELTA);
            let names = found.iter().map(|violation| match violation {
                Violation::Stale { .. } => "stale",
                Violation::OwnWrite { .. } => "own write",
                Violation::Claim { .. } => "claim",
                Violation::Backwards { .. } => "backwards",
                Violation::Invented { .. } => "invented",
                Violation::Lost { .. } => "lost",
                Violation::Failed { .. } => "failed",
            });
            names.collect()
        }
    }

    #[test]
    fn reads_within_the_bound_are_allowed() {
        let told = Told::new().write(0, 1, 0).write(0, 2, 100);
        let told = told.read(1, 1, 1110, 1000).read(1, 2, 5000, 0);
        assert_eq!(told.seen(), [""; 0]);
    }

    #[test]
    fn a_read_beyond_the_bound_is_stale() {
        let told = Told::new().write(0, 1, 0).write(0, 2, 100);
        assert_eq!(told.read(1, 1, 1111, 1004).seen(), ["stale"]);
    }

    #[test]
    fn staleness_counts_from_the_first_newer_version_that_was_missed() {
        let told = Told::new().write(0, 1, 0).write(0, 3, 100).write(0, 2, 900);
        assert_eq!(told.read(1, 1, 1200, 2000).seen(), ["stale"]);
        // Version 3 was acknowledged before version 2: it counts for version 2 as well.
        let told = Told::new().write(0, 1, 0).write(0, 3, 100).write(0, 2, 900);
        assert_eq!(told.read(1, 2, 1200, 2000).seen(), ["stale"]);
        let told = Told::new().write(0, 1, 0).write(0, 2, 100).write(0, 3, 900);
        assert_eq!(told.read(1, 2, 1200, 2000).seen(), [""; 0]);
    }

    #[test]
    fn a_pod_sees_its_own_writes_at_once() {
        let told = Told::new().write(0, 1, 0).write(1, 2, 100);
        let told = told.read(0, 1, 150, 100);
        assert_eq!(told.seen(), [""; 0], "another pod may be late");
        assert_eq!(told.read(1, 1, 101, 1000).seen(), ["own write"]);
    }

    #[test]
    fn a_pod_goes_back_only_behind_what_it_gave_before_it_was_acknowledged() {
        let told = Told::new().write(0, 1, 0).write(0, 2, 100);
        let told = told.read(1, 2, 50, 0).read(1, 1, 105, 1000);
        assert_eq!(told.seen(), [""; 0], "version 2 was not acknowledged yet");
        let told = told.read(1, 1, 115, 1000);
        assert_eq!(told.seen(), [""; 0], "nor had this pod heard that it was");
        let told = told.read(1, 2, 150, 0).read(2, 1, 200, 1000);
        assert_eq!(told.seen(), [""; 0], "another pod had not seen it");
        assert_eq!(told.read(1, 1, 200, 1000).seen(), ["backwards"]);
    }

    #[test]
    fn a_read_that_claims_too_much_is_found_within_the_bound_too() {
        let told = Told::new().write(0, 1, 0).write(0, 2, 100);
        assert_eq!(told.read(1, 1, 400, 280).seen(), ["claim"]);
    }

    #[test]
    fn what_was_never_written_or_never_acknowledged_is_found() {
        let mut told = Told::new().write(0, 1, 0).read(1, 7, 10, 0);
        told.history.writes[0].acked = None;
        told.history.failures.push("timeout".into());
        assert_eq!(told.seen(), ["failed", "lost", "invented"]);
    }
}
