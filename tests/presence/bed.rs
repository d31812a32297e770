//! Where the promises are tried: a store, a namespace of the test's own, and pods on it.

pub(crate) use crate::support::{PATIENCE, eventually, soon};

use crate::servers::{Servers, servers};
use crate::wire::Wire;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tidings::Cache;
use tidings::presence::{Event, LeftReason, Presence, Watch};
use tidings::store::{Memory, Store};

/// The shortest there is.
pub(crate) const TTL: Duration = Duration::from_secs(1);

/// One store, and one namespace of it that no other test uses.
pub(crate) struct Bed {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) namespace: String,
    _servers: Option<Arc<Servers>>,
}

impl Bed {
    pub(crate) fn on(store: impl Store) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            store: Arc::new(store),
            namespace: format!("bed-{}", NEXT.fetch_add(1, Relaxed)),
            _servers: None,
        }
    }

    pub(crate) fn memory() -> Self {
        Self::on(Memory::new())
    }

    #[cfg(feature = "redis")]
    pub(crate) fn redis() -> Self {
        let servers = servers();
        let store = tidings::store::Redis::new(&servers.url()).unwrap();
        Self {
            _servers: Some(servers),
            ..Self::on(store)
        }
    }

    /// One more pod.
    pub(crate) async fn pod(&self) -> Pod {
        let wire = Wire::new(Arc::clone(&self.store));
        let cache = Cache::builder(&*self.namespace).store(wire.clone());
        let cache = cache.build().await.unwrap();
        Pod { cache, wire }
    }

    pub(crate) async fn pods<const N: usize>(&self) -> [Pod; N] {
        let mut pods = Vec::new();
        for _ in 0..N {
            pods.push(self.pod().await);
        }
        pods.try_into().ok().unwrap()
    }
}

/// One cache, as one process of a service has it.
pub(crate) struct Pod {
    pub(crate) cache: Cache,
    pub(crate) wire: Wire,
}

impl Pod {
    /// The room that most tests are in.
    pub(crate) fn room(&self) -> Presence<String> {
        self.room_called("room")
    }

    pub(crate) fn room_called(&self, name: &str) -> Presence<String> {
        self.cache.presence(name).ttl(TTL).build().unwrap()
    }
}

/// The names of all members.
pub(crate) async fn names(room: &Presence<String>) -> Vec<String> {
    let members = room.list().await.unwrap();
    members.into_iter().map(|member| member.name).collect()
}

/// For so long the members are these and no others.
pub(crate) async fn nobody_comes_or_goes(
    room: &Presence<String>,
    span: Duration,
    members: &[&str],
) {
    let began = Instant::now();
    while began.elapsed() < span {
        assert_eq!(names(room).await, members);
        tokio::time::sleep(TTL / 20).await;
    }
}

/// All members with what is said about them.
pub(crate) async fn listed(room: &Presence<String>) -> BTreeMap<String, String> {
    let members = room.list().await.unwrap().into_iter();
    members
        .map(|member| (member.name, member.meta.unwrap()))
        .collect()
}

/// Somebody who watches and keeps account.
pub(crate) struct Account {
    watch: Watch<String>,
    /// Who is there, after all that was told.
    pub(crate) members: BTreeMap<String, String>,
    /// Every event, in short: `+ada`, `~ada`, `-ada Left`, `=`.
    pub(crate) told: Vec<String>,
    pub(crate) synced: bool,
}

impl Account {
    pub(crate) fn of(room: &Presence<String>) -> Self {
        Self {
            watch: room.watch(),
            members: BTreeMap::new(),
            told: Vec::new(),
            synced: false,
        }
    }

    /// One who has been told who is there.
    pub(crate) async fn synced(room: &Presence<String>) -> Self {
        let mut account = Self::of(room);
        account.until("synced", |account| account.synced).await;
        account
    }

    /// Takes the next event, which must make sense after those before it.
    pub(crate) async fn take(&mut self) -> bool {
        let told = match self.watch.next().await {
            None => return false,
            Some(Event::Joined(member)) => {
                let before = self
                    .members
                    .insert(member.name.clone(), member.meta.unwrap());
                assert_eq!(
                    before, None,
                    "{} joined twice: {:?}",
                    member.name, self.told
                );
                format!("+{}", member.name)
            }
            Some(Event::Updated(member)) => {
                let before = self
                    .members
                    .insert(member.name.clone(), member.meta.unwrap());
                assert!(
                    before.is_some(),
                    "{} was not there: {:?}",
                    member.name,
                    self.told
                );
                format!("~{}", member.name)
            }
            Some(Event::Left { member, reason }) => {
                let before = self.members.remove(&member);
                assert!(before.is_some(), "{member} was not there: {:?}", self.told);
                format!("-{member} {reason:?}")
            }
            Some(Event::Synced) => {
                assert!(!self.synced, "synced twice");
                self.synced = true;
                "=".to_owned()
            }
            Some(other) => panic!("unknown event {other:?}"),
        };
        self.told.push(told);
        true
    }

    pub(crate) async fn until(&mut self, what: &str, mut seen: impl FnMut(&Self) -> bool) {
        let began = Instant::now();
        while !seen(self) {
            let taken = tokio::time::timeout(PATIENCE, self.take()).await;
            let goes_on = taken.unwrap_or_else(|_| panic!("never: {what}; told {:?}", self.told));
            assert!(goes_on, "the stream ended before: {what}");
            assert!(
                began.elapsed() < PATIENCE,
                "never: {what}; told {:?}",
                self.told
            );
        }
    }

    /// Waits until exactly these are there.
    pub(crate) async fn sees(&mut self, names: &[&str]) {
        let what = format!("to see {names:?}");
        self.until(&what, |account| {
            account.synced && account.members.keys().eq(names)
        })
        .await;
    }

    /// What was told since the last call.
    pub(crate) fn news(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told)
    }

    /// How often it was told that somebody left, by reason.
    pub(crate) fn left(&self, reason: LeftReason) -> usize {
        let end = format!(" {reason:?}");
        self.told.iter().filter(|told| told.ends_with(&end)).count()
    }
}
