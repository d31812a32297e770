//! Whether what was acknowledged is in the log in the end. A failover may lose the end of a log; what was
//! there must then be logged again.

use std::collections::HashMap;
use std::time::Duration;
use tidings::coherence::{Epoch, Head, Kind, Lane, LogEntry, Position};
use tidings::store::{Connected, Namespace, Redis, Store, StoreResult};
use tidings::{Stamp, Tag};
use tokio::time::timeout;
use xxhash_rust::xxh3::xxh3_64_with_seed;

const LANES: u16 = 16;
/// More than a log keeps.
const WHOLE_LOG: usize = 20_000;
const PATIENCE: Duration = Duration::from_secs(3);

/// What became of an invalidation that was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is in the log, or so is a fence that came after it.
    Kept,
    /// A failover lost it, and it was logged again, or its tag was invalidated anew.
    LoggedAgain,
    /// A failover lost it.
    Lost,
    /// It was logged in an epoch that nobody saw.
    Unknown,
}

/// Every epoch that a lane has had.
#[derive(Debug)]
pub(crate) struct Timelines {
    redis: Redis,
    namespace: Namespace,
    /// By lane: what each epoch continues.
    epochs: Vec<HashMap<u64, Head>>,
    /// The newest heads, and the logs that end there.
    ends: Vec<Option<(Epoch, Vec<LogEntry>)>>,
}

impl Timelines {
    pub(crate) fn new(url: &str, namespace: &str) -> Self {
        Self {
            redis: Redis::new(url).unwrap(),
            namespace: Namespace {
                name: namespace.to_owned(),
                lanes: LANES,
            },
            epochs: vec![HashMap::new(); usize::from(LANES)],
            ends: vec![None; usize::from(LANES)],
        }
    }

    async fn connect(&self) -> StoreResult<Connected> {
        self.redis.connect(&self.namespace).await
    }

    /// Takes note of the epochs of the moment; nothing if the store is away.
    pub(crate) async fn look(&mut self) {
        let heads = async {
            let (link, _hints) = self.connect().await.ok()?;
            Some(link.poll().await.ok()?.heads)
        };
        if let Ok(Some(heads)) = timeout(PATIENCE, heads).await {
            self.note(&heads);
        }
    }

    fn note(&mut self, heads: &[Option<Head>]) {
        for (epochs, head) in self.epochs.iter_mut().zip(heads) {
            if let Some(head) = head {
                epochs.insert(head.at.epoch.0, *head);
            }
        }
    }

    /// Reads the whole log of every lane.
    pub(crate) async fn read_logs(&mut self) {
        let (link, _hints) = self.connect().await.unwrap();
        let heads = link.poll().await.unwrap().heads;
        self.note(&heads);
        for (at, head) in heads.iter().enumerate() {
            let lane = Lane(u16::try_from(at).unwrap());
            let log = link.log_since(lane, 1, WHOLE_LOG).await.unwrap();
            self.ends[at] = head.map(|head| (head.at.epoch, log));
        }
    }

    /// How many epochs were opened after the first ones.
    pub(crate) fn forks(&self) -> usize {
        let opened: usize = self.epochs.iter().map(HashMap::len).sum();
        opened - self.epochs.len()
    }

    /// What became of the invalidation of a tag.
    pub(crate) fn fate(&self, tag: &Tag, stamp: &Stamp) -> Fate {
        let hashes = Hashes::of(&self.namespace.name, tag);
        let place = stamp.positions().find(|(lane, _)| *lane == hashes.lane);
        let Some((lane, at)) = place else {
            return Fate::Unknown;
        };
        let lane = usize::from(lane.0);
        let Some((end, log)) = &self.ends[lane] else {
            return Fate::Lost;
        };
        let shared = match shared(&self.epochs[lane], *end, at) {
            Shared::UpTo(seq) => seq,
            Shared::Fenced => return Fate::Kept,
            Shared::Unknown => return Fate::Unknown,
        };
        if at.seq <= shared {
            return Fate::Kept;
        }
        let again = |entry: &LogEntry| entry.seq > shared && hashes.are_named_by(entry);
        match log.iter().any(again) {
            true => Fate::LoggedAgain,
            false => Fate::Lost,
        }
    }
}

/// How much of an epoch's log is in the one that counts now.
#[derive(Debug, PartialEq, Eq)]
enum Shared {
    UpTo(u64),
    /// The present one began anew since.
    Fenced,
    Unknown,
}

/// Goes back from the epoch `end` to that of `at`, or to the place where the two parted.
fn shared(epochs: &HashMap<u64, Head>, end: Epoch, at: Position) -> Shared {
    // From the epoch of `at` back: what it shares with each of those that it continues.
    let mut ancestors = HashMap::from([(at.epoch.0, u64::MAX)]);
    let (mut epoch, mut upto) = (at.epoch, u64::MAX);
    while let Some(head) = epochs.get(&epoch.0).filter(|head| head.fork) {
        (epoch, upto) = (head.prev_epoch, upto.min(head.fork_seq));
        if ancestors.insert(epoch.0, upto).is_some() {
            break;
        }
    }
    let (mut epoch, mut upto) = (end, u64::MAX);
    for _ in 0..=epochs.len() {
        if let Some(&common) = ancestors.get(&epoch.0) {
            return Shared::UpTo(upto.min(common));
        }
        match epochs.get(&epoch.0) {
            Some(head) if head.fork => {
                (epoch, upto) = (head.prev_epoch, upto.min(head.fork_seq));
            }
            Some(_) => return Shared::Fenced,
            None => return Shared::Unknown,
        }
    }
    Shared::Unknown
}

/// A tag as the log names it; `docs/wire-format.md` is the specification.
struct Hashes {
    name: u64,
    key: u64,
    lane: Lane,
}

impl Hashes {
    fn of(namespace: &str, tag: &Tag) -> Self {
        let seed = xxh3_64_with_seed(namespace.as_bytes(), 0);
        let name = xxh3_64_with_seed(tag.name().as_bytes(), seed);
        let key = xxh3_64_with_seed(tag.key().expect("no bare names here"), name);
        let lane = ((key >> 32) * u64::from(LANES)) >> 32;
        Self {
            name,
            key,
            lane: Lane(u16::try_from(lane).unwrap()),
        }
    }

    fn are_named_by(&self, entry: &LogEntry) -> bool {
        let names = entry.change().is_some_and(|change| {
            let key = change.keys.is_empty() || change.keys.contains(&self.key);
            change.entity == self.name && key
        });
        names || entry.kind == Kind::Fence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epochs(forks: &[(u64, u64, u64, bool)]) -> HashMap<u64, Head> {
        let head = |&(epoch, prev, fork_seq, fork): &(u64, u64, u64, bool)| {
            let mut head = Head::decode(&[0; 56]).unwrap();
            head.at.epoch = Epoch(epoch);
            head.prev_epoch = Epoch(prev);
            (head.fork_seq, head.fork) = (fork_seq, fork);
            (epoch, head)
        };
        forks.iter().map(head).collect()
    }

    #[test]
    fn what_a_failover_cut_off_is_told_from_what_it_kept() {
        let epochs = epochs(&[(1, 0, 0, false), (2, 1, 50, true), (3, 2, 80, true)]);
        let shared = |epoch, seq| {
            let at = Position {
                epoch: Epoch(epoch),
                seq,
            };
            shared(&epochs, Epoch(3), at)
        };
        assert_eq!(shared(3, 90), Shared::UpTo(u64::MAX));
        assert_eq!(shared(2, 90), Shared::UpTo(80));
        assert_eq!(shared(1, 60), Shared::UpTo(50));
    }

    #[test]
    fn two_epochs_that_continue_one_share_it() {
        let epochs = epochs(&[(1, 0, 0, false), (2, 1, 50, true), (3, 1, 40, true)]);
        let at = Position {
            epoch: Epoch(2),
            seq: 55,
        };
        assert_eq!(shared(&epochs, Epoch(3), at), Shared::UpTo(40));
    }

    #[test]
    fn a_fence_ends_everything_before_it() {
        let epochs = epochs(&[(1, 0, 0, false), (2, 1, 50, false)]);
        let at = Position {
            epoch: Epoch(1),
            seq: 7,
        };
        assert_eq!(shared(&epochs, Epoch(2), at), Shared::Fenced);
    }
}
