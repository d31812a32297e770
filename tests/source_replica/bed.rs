//! Where the promises are tried: PostgreSQL with a replica that lags, a store, and three pods.

use crate::loads::{Databases, Loads};
use crate::support::{PATIENCE, server, soon};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tidings::store::Memory;
use tidings::testing::{PostgresServer, RedisServer};
use tidings::{Cache, CacheBuilder, Entity, LoadContext, Stamp};
use tokio::task::{JoinHandle, block_in_place};
use tokio_postgres::NoTls;

/// Each test takes some.
const ACCOUNTS: i64 = 100;
/// How long a load may take: the lag, and whatever the machine needs.
const LOAD_TIMEOUT: Duration = Duration::from_secs(60);
const READ_EVERY: Duration = Duration::from_millis(3);
/// The last of these writes.
const PODS: usize = 3;
const WRITER: usize = PODS - 1;

pub(crate) fn lag() -> Duration {
    let lag = std::env::var("TIDINGS_LAG_MS").ok();
    Duration::from_millis(lag.map_or(1500, |lag| lag.parse().unwrap()))
}

struct Servers {
    primary: PostgresServer,
    replica: PostgresServer,
}

impl Servers {
    /// Those that the tests running at present share; they go when the last of them ends.
    fn shared() -> Arc<Self> {
        static SERVERS: Mutex<Weak<Servers>> = Mutex::new(Weak::new());
        let mut shared = SERVERS.lock().unwrap();
        shared.upgrade().unwrap_or_else(|| {
            let servers = Arc::new(Self::start());
            *shared = Arc::downgrade(&servers);
            servers
        })
    }

    fn start() -> Self {
        let primary = PostgresServer::start().unwrap();
        let table = format!(
            "CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL, version bigint NOT NULL);
             INSERT INTO accounts SELECT id, 0, 0 FROM generate_series(1, {ACCOUNTS}) AS id"
        );
        primary.sql(&table).unwrap();
        let replica = primary.start_replica(lag()).unwrap();
        Self { primary, replica }
    }

    async fn connect(&self) -> Databases {
        let connect = async |server: &PostgresServer| {
            let connected = tokio_postgres::connect(&server.url(), NoTls).await;
            let (client, connection) = connected.unwrap();
            tokio::spawn(connection);
            Arc::new(client)
        };
        Databases {
            primary: connect(&self.primary).await,
            replica: connect(&self.replica).await,
        }
    }
}

/// A store, and one namespace of it that no other test uses.
pub(crate) struct Bed {
    store: Backing,
    servers: Arc<Servers>,
}

enum Backing {
    Memory(Memory),
    Redis(Arc<RedisServer>),
}

impl Bed {
    pub(crate) fn memory() -> Self {
        Self::on(Backing::Memory(Memory::new()))
    }

    pub(crate) fn redis() -> Self {
        Self::on(Backing::Redis(block_in_place(server)))
    }

    fn on(store: Backing) -> Self {
        let servers = block_in_place(Servers::shared);
        Self { store, servers }
    }

    /// Does something with an account that nobody has used. Again, if a busy machine has cut a pod off
    /// from its store meanwhile: such a pod does not hear which versions others have named.
    pub(crate) async fn with_an_account<T>(
        &self,
        loads: Loads,
        act: impl AsyncFn(Account) -> T,
    ) -> T {
        for _ in 0..8 {
            let account = self.account(loads).await;
            let caches = account.pods.each_ref().map(|pod| pod.cache.clone());
            let outcome = act(account).await;
            if caches.iter().all(|cache| cache.health().links == 1) {
                return outcome;
            }
        }
        panic!("this machine is too busy for a store");
    }

    async fn account(&self, loads: Loads) -> Account {
        static NEXT: AtomicI64 = AtomicI64::new(1);
        let id = NEXT.fetch_add(1, Relaxed);
        assert!(id <= ACCOUNTS);
        let databases = self.servers.connect().await;
        let mut pods = Vec::new();
        for _ in 0..PODS {
            let cache = self.builder(id).build().await.unwrap();
            let databases = databases.clone();
            let load = move |context: LoadContext<i64, Option<i64>>| {
                let databases = databases.clone();
                async move { databases.load(&context, loads).await }
            };
            let balances = cache.entity_with("balance", load);
            let balances = balances.load_timeout(LOAD_TIMEOUT).build().unwrap();
            pods.push(Pod { cache, balances });
        }
        Account {
            id,
            loads,
            databases,
            pods: pods.try_into().ok().unwrap(),
            acknowledged: Arc::default(),
        }
    }

    fn builder(&self, id: i64) -> CacheBuilder {
        let builder = Cache::builder(format!("account-{id}"));
        let builder = match &self.store {
            Backing::Memory(memory) => builder.store(memory.clone()),
            Backing::Redis(server) => builder.store_url(server.url()),
        };
        builder.read_timeout(PATIENCE).invalidate_timeout(PATIENCE)
    }
}

struct Pod {
    cache: Cache,
    balances: Entity<i64, Option<i64>, tokio_postgres::Error>,
}

/// One row, the pods that read it, and what was acknowledged to the one that writes it.
pub(crate) struct Account {
    id: i64,
    loads: Loads,
    databases: Databases,
    pods: [Pod; PODS],
    acknowledged: Arc<Mutex<Vec<(Instant, i64)>>>,
}

impl Account {
    /// Commits on the primary, and says so.
    pub(crate) async fn write(&self, balance: i64) {
        let written = self.databases.write(self.id, balance, self.loads.versions);
        let version = written.await;
        let balances = &self.pods[WRITER].balances;
        let stamp = match version {
            Some(version) => balances.invalidate_at(&self.id, version).await,
            None => balances.invalidate(&self.id).await,
        };
        stamp.unwrap();
        let mut acknowledged = self.acknowledged.lock().unwrap();
        acknowledged.push((Instant::now(), balance));
    }

    pub(crate) async fn delete(&self) -> Stamp {
        let version = self.databases.delete(self.id).await;
        let balances = &self.pods[WRITER].balances;
        balances.invalidate_at(&self.id, version).await.unwrap()
    }

    pub(crate) async fn read(&self, pod: usize) -> Option<i64> {
        *self.pods[pod].balances.get(&self.id).await.unwrap()
    }

    pub(crate) async fn read_at_least(&self, pod: usize, stamp: &Stamp) -> Option<i64> {
        let balances = &self.pods[pod].balances;
        *balances.get_at_least(&self.id, stamp).await.unwrap()
    }

    /// Reads on each pod, until the replica has shown `last` and what others were told of it is over.
    pub(crate) fn read_everywhere(&self, last: i64) -> Vec<JoinHandle<Seen>> {
        let reader = |at: usize| {
            let bound = match at {
                WRITER => Duration::ZERO,
                _ => self.pods[at].cache.health().bound,
            };
            tokio::spawn(read_until(Reader {
                id: self.id,
                balances: self.pods[at].balances.clone(),
                databases: self.databases.clone(),
                acknowledged: Arc::clone(&self.acknowledged),
                bound,
                last,
            }))
        };
        (0..PODS).map(reader).collect()
    }
}

struct Reader {
    id: i64,
    balances: Entity<i64, Option<i64>, tokio_postgres::Error>,
    databases: Databases,
    acknowledged: Arc<Mutex<Vec<(Instant, i64)>>>,
    /// How long after its acknowledgement a write must be seen.
    bound: Duration,
    last: i64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    stale: usize,
    last: Option<i64>,
}

async fn read_until(reader: Reader) -> Seen {
    let mut stale = 0;
    loop {
        let began = Instant::now();
        let floor = {
            let acknowledged = reader.acknowledged.lock().unwrap();
            let due = |at: &Instant| *at + reader.bound <= began;
            let due = acknowledged.iter().rev().find(|(at, _)| due(at));
            due.map(|(_, balance)| *balance)
        };
        let is_last = floor == Some(reader.last)
            && reader.databases.replicated(reader.id).await == Some(reader.last);
        let last = *reader.balances.get(&reader.id).await.unwrap();
        stale += usize::from(last < floor);
        if is_last {
            return Seen { stale, last };
        }
        tokio::time::sleep(READ_EVERY).await;
    }
}

/// What all readers saw.
#[derive(Debug)]
pub(crate) struct Reads {
    /// How many reads were older than they may be.
    pub(crate) stale: usize,
    /// What each read last.
    pub(crate) last: Vec<Option<i64>>,
}

impl Reads {
    pub(crate) async fn of(readers: Vec<JoinHandle<Seen>>) -> Self {
        let (mut stale, mut last) = (0, Vec::new());
        for reader in readers {
            let seen = soon("the reads", reader).await.unwrap();
            stale += seen.stale;
            last.push(seen.last);
        }
        Self { stale, last }
    }
}
