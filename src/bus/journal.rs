//! The journal: a file that holds what this pod has invalidated and the store has not acknowledged, so
//! that a process that is killed does not forget it.
//!
//! The file is a header and a sequence of records, each with its length and checksum: *noted*, an item
//! became pending, and *struck*, it is no longer. Records are appended; when most of them are dead the
//! file is written anew beside itself and renamed into place. A second file, the path with `.lock`, is
//! locked while the journal is in use and never replaced.
//!
//! What is appended has been handed to the kernel and not to the disk: it survives the process, not the
//! machine. See `docs/decisions/journal.md`.

mod format;

use super::pending::Item;
use super::{Bus, lock};
use crate::error::BuildError;
use crate::key::KeySpace;
use crate::store::Namespace;
use format::{NOTED, STRUCK, header, push_record, read};
use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
/// Below this size it is not worth writing anew.
const REWRITE_FROM: usize = 64 * 1024;
/// How many times the size of what is pending the file may have.
const REWRITE_FACTOR: usize = 4;
/// How long a caller waits for the disk before it is told that its invalidation is pending.
const DISK_LIMIT: Duration = Duration::from_secs(1);

/// What a journal held that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JournalDamage {
    /// The last record is incomplete: the process was killed while it wrote it. Nobody had been told that
    /// it was there, and nothing else is lost.
    Torn {
        /// Bytes that were dropped.
        bytes: u64,
    },
    /// A record in the middle is not what was written. What came after it is unknown, so everything
    /// that is cached in the namespace is invalidated instead.
    Corrupt {
        /// Where it begins in the file.
        at: u64,
        /// Bytes that were dropped.
        bytes: u64,
    },
}

/// How the journal is doing; see [`Health::journal`](crate::Health::journal).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JournalHealth {
    /// Invalidations that an earlier process left behind, repeated by this one.
    pub replayed: usize,
    /// What of theirs could not be read.
    pub damage: Option<JournalDamage>,
    /// Invalidations that the file holds now.
    pub held: usize,
    /// The size of the file in bytes.
    pub bytes: u64,
    /// Times it could not be written. What is pending is repeated all the same, but would be forgotten
    /// with the process until a write succeeds.
    pub failures: u64,
}

/// A journal in use. It is unlocked when dropped.
#[derive(Debug)]
pub(crate) struct Journal {
    /// What is pending, and records that are not in the file yet. Never held over I/O.
    held: Mutex<Held>,
    /// The file. Taken before `held`, by one writer at a time.
    file: Arc<Mutex<Option<Open>>>,
}

#[derive(Debug, Default)]
struct Held {
    /// How often each item is noted.
    items: HashMap<Item, usize>,
    /// Bytes of their records.
    bytes: usize,
    unwritten: Vec<u8>,
    /// The file is not what it should be: write it anew.
    unsound: bool,
    size: u64,
    replayed: usize,
    damage: Option<JournalDamage>,
    failures: u64,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    header: Vec<u8>,
    file: File,
    _lock: File,
}

impl Journal {
    /// Opens or creates the journal at `path`, and gives what an earlier process left in it. What is left
    /// stays noted until it is struck.
    ///
    /// # Errors
    /// The option `journal`: the file is in use, belongs to another namespace or a later version, is no
    /// journal, or cannot be read or written.
    pub(crate) fn open(
        path: &Path,
        namespace: &Namespace,
        space: &KeySpace,
    ) -> Result<(Self, Vec<Item>), BuildError> {
        let failed = |what: &str, error: &io::Error| {
            let reason = format!("cannot {what} {}: {error}", path.display());
            BuildError::new("journal", reason)
        };
        let guard = lock_beside(path)
            .map_err(|error| failed("lock", &error))?
            .ok_or_else(|| {
                let reason = format!("{} is in use by another cache", path.display());
                BuildError::new("journal", reason)
            })?;
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed("read", &error)),
        };
        let left = read(&bytes, namespace, space)
            .map_err(|why| BuildError::new("journal", format!("{}: {why}", path.display())))?;
        if let Some(damage) = left.damage {
            tracing::warn!(namespace = %namespace.name, journal = %path.display(), ?damage,
                "part of the journal cannot be read");
        }
        let mut held = Held {
            replayed: left.items.len(),
            damage: left.damage,
            ..Held::default()
        };
        for item in &left.items {
            held.note(item);
        }
        let header = header(namespace);
        let file = held
            .rewrite(path, &header)
            .map_err(|error| failed("write", &error))?;
        let open = Open {
            path: path.to_owned(),
            header,
            file,
            _lock: guard,
        };
        let journal = Self {
            held: Mutex::new(held),
            file: Arc::new(Mutex::new(Some(open))),
        };
        Ok((journal, left.items))
    }

    fn health(&self) -> JournalHealth {
        let held = lock(&self.held);
        JournalHealth {
            replayed: held.replayed,
            damage: held.damage,
            held: held.items.len(),
            bytes: held.size,
            failures: held.failures,
        }
    }

    /// Brings the file up to date. Blocks.
    fn write(&self) -> io::Result<()> {
        let mut open = lock(&self.file);
        let Some(open) = &mut *open else {
            return Ok(());
        };
        let (unwritten, anew) = {
            let mut held = lock(&self.held);
            let unwritten = std::mem::take(&mut held.unwritten);
            let size = held.size as usize + unwritten.len();
            let grown = size > REWRITE_FROM.max(REWRITE_FACTOR * held.bytes);
            // An empty journal costs nothing to write anew.
            let done = held.items.is_empty() && size > open.header.len();
            (unwritten, held.unsound || grown || done)
        };
        let written = if anew {
            let mut copy = Held::default();
            {
                let held = lock(&self.held);
                // What is noted from here on is in `unwritten` again, and harmless to repeat.
                copy.items.clone_from(&held.items);
            }
            copy.rewrite(&open.path, &open.header).map(|file| {
                open.file = file;
                copy.size
            })
        } else if unwritten.is_empty() {
            return Ok(());
        } else {
            let before = lock(&self.held).size;
            let written = open.file.write_all(&unwritten);
            written.map(|()| before + unwritten.len() as u64)
        };
        let mut held = lock(&self.held);
        match written {
            Ok(size) => {
                held.size = size;
                held.unsound = false;
                Ok(())
            }
            Err(error) => {
                // Half a record may be in the file: nothing must be appended to it.
                held.unsound = true;
                held.failures += 1;
                Err(error)
            }
        }
    }

    fn is_written(&self) -> bool {
        let held = lock(&self.held);
        held.unwritten.is_empty() && !held.unsound
    }
}

impl Held {
    fn note(&mut self, item: &Item) {
        let count = self.items.entry(item.clone()).or_default();
        *count += 1;
        if *count == 1 {
            let before = self.unwritten.len();
            push_record(NOTED, item, &mut self.unwritten);
            self.bytes += self.unwritten.len() - before;
        }
    }

    fn strike(&mut self, item: &Item) {
        let Some(count) = self.items.get_mut(item) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            self.items.remove(item);
            let before = self.unwritten.len();
            push_record(STRUCK, item, &mut self.unwritten);
            let length = self.unwritten.len() - before;
            self.bytes = self.bytes.saturating_sub(length);
        }
    }

    /// Writes the file anew: whole and on disk before it takes the place of the old one.
    fn rewrite(&mut self, path: &Path, header: &[u8]) -> io::Result<File> {
        let mut bytes = header.to_vec();
        for item in self.items.keys() {
            push_record(NOTED, item, &mut bytes);
        }
        let beside = beside(path, ".new");
        let mut file = File::create(&beside)?;
        file.write_all(&bytes)?;
        if bytes.len() > header.len() {
            file.sync_data()?;
        }
        std::fs::rename(&beside, path)?;
        self.size = bytes.len() as u64;
        self.unwritten.clear();
        // The place to append at moves with the handle.
        Ok(file)
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Locks the file beside `path`; `None` if somebody else has.
fn lock_beside(path: &Path) -> io::Result<Option<File>> {
    let lock = beside(path, ".lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(lock)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Reads any bytes, as a journal and as one of its records.
#[cfg(feature = "testing")]
pub(crate) fn read_rubbish(bytes: &[u8]) {
    let namespace = Namespace {
        name: "rubbish".to_owned(),
        lanes: 1,
    };
    let space = KeySpace::new(&namespace.name, std::num::NonZeroU16::MIN, None);
    let _ = read(bytes, &namespace, &space);
    let _ = format::take_record(bytes::Bytes::copy_from_slice(bytes), &space);
}

impl Bus {
    pub(super) fn has_journal(&self) -> bool {
        self.journal.is_some()
    }

    /// Notes that `item` is pending. In the file once it is [flushed](Self::flush_journal).
    pub(super) fn note(&self, item: &Item) {
        if let Some(journal) = &self.journal {
            lock(&journal.held).note(item);
        }
    }

    /// Takes one note back.
    pub(super) fn strike(&self, item: &Item) {
        if let Some(journal) = &self.journal {
            lock(&journal.held).strike(item);
        }
    }

    /// Waits until what was noted so far is in the file, or could not be written.
    pub(super) async fn flush_journal(&self) {
        let Some(journal) = self.journal.as_ref().filter(|it| !it.is_written()) else {
            return;
        };
        let writing = Arc::clone(journal);
        let written = tokio::task::spawn_blocking(move || writing.write());
        match tokio::time::timeout(DISK_LIMIT, written).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => {
                tracing::error!(namespace = %self.namespace.name, %error, "the journal cannot be written");
            }
            // The runtime ends, and the process with it; or the disk hangs.
            Ok(Err(_)) | Err(_) => {}
        }
    }

    /// Repeats what an earlier process left behind.
    pub(crate) fn replay(self: &Arc<Self>, left: Vec<Item>) {
        if left.is_empty() {
            return;
        }
        tracing::info!(namespace = %self.namespace.name, count = left.len(),
            "repeating invalidations that an earlier process left in the journal");
        let waiter = super::waiter::Waiter::nobody(left.len());
        self.enter(self.where_read(&left), self.clock.now(), &waiter);
        // The table has noted them for itself.
        for item in &left {
            self.strike(item);
        }
    }

    /// The items at every place where pods may read them now: the process before may have gone by another
    /// number of lanes.
    fn where_read(&self, items: &[Item]) -> Vec<Item> {
        let mut all = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Item::Key { of, hash, key, .. } => {
                    all.extend(self.space.lanes_to_tell(*hash).map(|lane| Item::Key {
                        lane,
                        of: of.clone(),
                        hash: *hash,
                        key: key.clone(),
                    }));
                }
                Item::Entity { .. } | Item::Lane { .. } => all.push(item.clone()),
            }
        }
        // A key that was noted for two places is there twice now.
        let mut seen = HashSet::new();
        all.retain(|item| seen.insert(item.clone()));
        all
    }

    /// Brings the journal up to date and gives it free for another cache. What is still pending stays in
    /// it.
    pub(crate) async fn close_journal(&self) {
        self.flush_journal().await;
        if let Some(journal) = &self.journal {
            // Whoever still writes has it for a moment; the lock goes with the last.
            let file = Arc::clone(&journal.file);
            let _ = tokio::task::spawn_blocking(move || drop(lock(&file).take())).await;
        }
    }

    pub(super) fn journal_health(&self) -> Option<JournalHealth> {
        self.journal.as_ref().map(|journal| journal.health())
    }
}

#[cfg(test)]
mod tests;
