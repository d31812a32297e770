//! The embedded backend: a store that lives in this process.
//!
//! For tests, for tools, and for services of one pod: several caches of one process share it and
//! hear each other as pods do. It ends with the process, and with the last handle or link to it.

#[cfg(feature = "testing")]
mod faults;
pub(crate) mod layout;
mod link;
mod markers;
mod raw;
mod room_link;
mod rooms;
mod state;
mod step;
mod values;

#[cfg(feature = "testing")]
pub use faults::Faults;
pub use state::{Continuity, DEFAULT_RETENTION, MemoryState};

use super::rooms::RoomEvent;
use super::{BoxFuture, Connected, Namespace, Store, StoreResult};
use crate::Clock;
use crate::coherence::{Hint, Incarnation};
use bytes::Bytes;
use link::{HINT_QUEUE, MemoryHints, MemoryLink};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;
use tokio::sync::mpsc;

/// How many values one namespace keeps unless told otherwise: the process must not grow without
/// end, and a million entries are more than an embedded store is for.
pub const DEFAULT_MAX_ENTRIES: u64 = 1_000_000;

/// The stores with a name that are alive in this process.
static NAMED: Mutex<BTreeMap<String, Weak<Shared>>> = Mutex::new(BTreeMap::new());

/// A store that lives in this process; clones are handles to the same store.
///
/// It keeps [`DEFAULT_MAX_ENTRIES`] values for each namespace unless
/// [`max_entries`](Self::max_entries) says otherwise. What has expired is removed as other values are
/// written; a full lane evicts an arbitrary value for each new one. Raw data is not bounded.
#[derive(Clone, Default)]
pub struct Memory {
    shared: Arc<Shared>,
}

struct Shared {
    name: Option<String>,
    incarnation: Incarnation,
    settings: Mutex<Settings>,
    rooms: Mutex<BTreeMap<String, Arc<Room>>>,
    #[cfg(feature = "testing")]
    trouble: faults::Troubles,
}

#[derive(Clone, Debug)]
struct Settings {
    /// `None` is the system's clock.
    clock: Option<Clock>,
    max_entries: u64,
}

/// One namespace, and who listens to it. Both are changed under one lock, so that hints leave in
/// the order of the log.
#[derive(Debug)]
struct Room(Mutex<Inside>);

#[derive(Debug)]
struct Inside {
    state: MemoryState,
    raw: raw::RawState,
    listeners: Vec<Listener>,
}

/// A link that hears, and the rooms that it watches.
#[derive(Debug)]
struct Listener {
    sender: mpsc::Sender<Bytes>,
    rooms: Watched,
}

type Watched = Arc<Mutex<HashSet<String>>>;

impl Memory {
    /// An empty store that only its own clones share.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The store called `name` in this process, shared by everybody who asks for that name; a new
    /// one if no handle or link to it is left.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let mut named = lock(&NAMED);
        if let Some(shared) = named.get(name).and_then(Weak::upgrade) {
            return Self { shared };
        }
        named.retain(|_, shared| shared.strong_count() > 0);
        let shared = Arc::new(Shared {
            name: Some(name.to_owned()),
            ..Shared::default()
        });
        named.insert(name.to_owned(), Arc::downgrade(&shared));
        Self { shared }
    }

    /// Takes the time from `clock` instead of the system's clock, for all handles to this store. Its
    /// milliseconds stand for those since the Unix epoch.
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Self {
        lock(&self.shared.settings).clock = Some(clock);
        self
    }

    /// Bounds how many values each namespace keeps; default [`DEFAULT_MAX_ENTRIES`].
    ///
    /// Each lane gets an equal share, at least one. Holds for namespaces that are first connected to
    /// afterwards, through any handle to this store.
    #[must_use]
    pub fn max_entries(self, entries: u64) -> Self {
        lock(&self.shared.settings).max_entries = entries;
        self
    }

    /// The handle by which a test makes this store misbehave.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn faults(&self) -> Faults {
        Faults::new(Arc::clone(&self.shared))
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Memory").field(&self.describe()).finish()
    }
}

impl Store for Memory {
    fn connect<'a>(&'a self, namespace: &'a Namespace) -> BoxFuture<'a, StoreResult<Connected>> {
        Box::pin(async move {
            #[cfg(feature = "testing")]
            self.shared.trouble.connecting().await?;
            let (link, hints) = self.shared.open(namespace);
            Ok((Arc::new(link) as _, Box::new(hints) as _))
        })
    }

    fn describe(&self) -> String {
        format!("memory:{}", self.shared.name.as_deref().unwrap_or(""))
    }
}

impl Shared {
    fn open(self: &Arc<Self>, namespace: &Namespace) -> (MemoryLink, MemoryHints) {
        let room = self.room(namespace);
        let (sender, hints) = mpsc::channel(HINT_QUEUE);
        let rooms = Watched::default();
        {
            let mut inside = lock(&room.0);
            let rooms = Arc::clone(&rooms);
            inside
                .listeners
                .retain(|listener| !listener.sender.is_closed());
            inside.listeners.push(Listener { sender, rooms });
        }
        let link = MemoryLink::new(Arc::clone(self), room, namespace.lanes, rooms);
        (link, MemoryHints(hints))
    }

    fn room(&self, namespace: &Namespace) -> Arc<Room> {
        let room = || {
            let share = lock(&self.settings)
                .max_entries
                .div_ceil(u64::from(namespace.lanes.max(1)));
            let share = usize::try_from(share).unwrap_or(usize::MAX);
            Arc::new(Room(Mutex::new(Inside {
                state: MemoryState::new(self.incarnation).with_lane_capacity(share),
                raw: raw::RawState::default(),
                listeners: Vec::new(),
            })))
        };
        let mut rooms = lock(&self.rooms);
        Arc::clone(rooms.entry(namespace.name.clone()).or_insert_with(room))
    }

    fn now_ms(&self) -> u64 {
        match &lock(&self.settings).clock {
            Some(clock) => clock.now().0,
            // A clock before 1970 is a clock that was never set.
            None => SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| {
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            }),
        }
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            name: None,
            incarnation: Incarnation(crate::random::random()),
            settings: Mutex::new(Settings {
                clock: None,
                max_entries: DEFAULT_MAX_ENTRIES,
            }),
            rooms: Mutex::default(),
            #[cfg(feature = "testing")]
            trouble: faults::Troubles::default(),
        }
    }
}

impl Inside {
    /// Sends to whoever still listens.
    fn publish(&mut self, hints: &[Hint]) {
        for hint in hints {
            self.send(|| hint.encode(), |_| true);
        }
    }

    /// Sends to whoever watches the room.
    fn publish_events(&mut self, events: &[RoomEvent]) {
        for event in events {
            let watches = |listener: &Listener| lock(&listener.rooms).contains(&event.room);
            self.send(|| event.encode(), watches);
        }
    }

    /// A listener that does not keep up misses messages, which are only hints; it never holds up the
    /// others.
    fn send(&mut self, encode: impl Fn() -> Vec<u8>, to: impl Fn(&Listener) -> bool) {
        if self.listeners.is_empty() {
            return;
        }
        let bytes = Bytes::from(encode());
        self.listeners.retain(|listener| {
            use mpsc::error::TrySendError::Closed;
            !to(listener) || !matches!(listener.sender.try_send(bytes.clone()), Err(Closed(_)))
        });
    }
}

/// Takes a lock whose holders never leave half a change behind: a step that panics is a bug of its
/// own, and must not take every other cache of the process with it.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
