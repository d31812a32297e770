//! Where the promises are tried: a store, a table of users in PostgreSQL with an outbox beside it, both of
//! the test's own, and pods.

pub(crate) use crate::support::{eventually, soon};

use crate::support::server;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use tidings::outbox::{Delivery, Outbox};
use tidings::store::Memory;
use tidings::testing::{PostgresServer, RedisServer};
use tidings::{Cache, CacheBuilder, Entity, Registration};
use tokio_postgres::{Client, Config, NoTls};

pub(crate) type Users = Entity<u64, String, tokio_postgres::Error>;

/// The PostgreSQL that the tests running at present share; it goes when the last of them ends.
fn postgres() -> Arc<PostgresServer> {
    static SERVER: Mutex<Weak<PostgresServer>> = Mutex::new(Weak::new());
    let mut shared = SERVER.lock().unwrap();
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(PostgresServer::start().unwrap());
        *shared = Arc::downgrade(&server);
        server
    })
}

pub(crate) struct Bed {
    pub(crate) table: String,
    pub(crate) store: Backing,
    pub(crate) database: String,
    _postgres: Option<Arc<PostgresServer>>,
}

#[derive(Clone)]
pub(crate) enum Backing {
    Memory(Memory),
    Redis(Arc<RedisServer>),
}

impl Bed {
    pub(crate) fn memory() -> Self {
        Self::on(Backing::Memory(Memory::new()))
    }

    pub(crate) fn redis() -> Self {
        Self::on(Backing::Redis(server()))
    }

    pub(crate) fn on(store: Backing) -> Self {
        let postgres = postgres();
        let mut bed = Self::on_both(store, postgres.url());
        bed._postgres = Some(postgres);
        bed
    }

    /// On a database that the test has to itself.
    pub(crate) fn on_both(store: Backing, database: String) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            table: format!("outbox_{}", NEXT.fetch_add(1, Relaxed)),
            store,
            database,
            _postgres: None,
        }
    }

    pub(crate) fn outbox(&self) -> Outbox {
        Outbox::builder(&self.table).build().unwrap()
    }

    pub(crate) fn config(&self) -> Config {
        self.database.parse().unwrap()
    }

    pub(crate) fn deliver(&self, pod: &Pod) -> Delivery {
        self.outbox().deliver(&pod.cache, self.config())
    }

    pub(crate) async fn client(&self) -> Client {
        let (client, connection) = self.config().connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// A connection to a database with the outbox and ten users named `old`.
    pub(crate) async fn set_up(&self) -> Client {
        let client = self.client().await;
        self.outbox().create_table(&client).await.unwrap();
        let users = format!(
            "CREATE TABLE {0}_users (id bigint PRIMARY KEY, name text NOT NULL);
             INSERT INTO {0}_users SELECT id, 'old' FROM generate_series(1, 10) AS id",
            self.table
        );
        client.batch_execute(&users).await.unwrap();
        client
    }

    pub(crate) fn builder(&self) -> CacheBuilder {
        let builder = Cache::builder(&*self.table);
        match &self.store {
            Backing::Memory(memory) => builder.store(memory.clone()),
            Backing::Redis(server) => builder.store_url(server.url()),
        }
    }

    pub(crate) async fn pod(&self) -> Pod {
        self.pod_of(|| self.builder()).await
    }

    /// A pod whose users are those of the database.
    pub(crate) async fn pod_of(&self, builder: impl Fn() -> CacheBuilder) -> Pod {
        let cache = built(builder).await;
        let (client, table) = (Arc::new(self.client().await), self.table.clone());
        let load = move |id: u64| {
            let (client, table) = (Arc::clone(&client), table.clone());
            async move {
                let query = format!("SELECT name FROM {table}_users WHERE id = {id}");
                Ok(client.query_one(&query, &[]).await?.get::<_, String>(0))
            }
        };
        let users = cache.entity("user", load).build().unwrap();
        Pod { cache, users }
    }

    /// Changes a user and writes the row, without the commit.
    pub(crate) async fn rename(
        &self,
        transaction: &tokio_postgres::Transaction<'_>,
        users: &Users,
        id: u64,
    ) {
        let update = format!(
            "UPDATE {}_users SET name = 'new' WHERE id = {id}",
            self.table
        );
        transaction.batch_execute(&update).await.unwrap();
        self.outbox()
            .invalidate(transaction, users, [id])
            .await
            .unwrap();
    }

    /// Writes rows as any program can.
    pub(crate) async fn insert(&self, client: &Client, tags: &[&str]) {
        for tag in tags {
            let insert = format!("INSERT INTO {} (tag) VALUES ($1)", self.table);
            client.execute(&insert, &[tag]).await.unwrap();
        }
    }

    /// Writes 2001 rows, more than are carried out at once, of which the last is `first`, and holds one of
    /// the others: until this ends, the first piece of them cannot be deleted.
    pub(crate) async fn write_many_and_hold_one<'a>(
        &self,
        client: &'a mut Client,
    ) -> tokio_postgres::Transaction<'a> {
        let many = (0..2000).map(|n| format!("org:{n}"));
        let many = many.chain(["first".to_owned()]);
        self.outbox().invalidate_tags(&*client, many).await.unwrap();
        let holding = client.transaction().await.unwrap();
        let hold = format!(
            "SELECT FROM {} WHERE tag = 'org' ORDER BY id LIMIT 1 FOR UPDATE",
            self.table
        );
        assert_eq!(holding.query(&hold, &[]).await.unwrap().len(), 1);
        holding
    }

    /// How many rows fulfil `condition`.
    pub(crate) async fn rows(&self, client: &Client, condition: &str) -> i64 {
        let count = format!("SELECT count(*) FROM {} WHERE {condition}", self.table);
        client.query_one(&count, &[]).await.unwrap().get(0)
    }

    pub(crate) async fn all_delivered(&self, client: &Client) {
        let empty = async || self.rows(client, "refused IS NULL").await == 0;
        eventually("every row is delivered", empty).await;
    }
}

/// On a loaded machine a store may take longer to answer than a pod waits for it.
pub(crate) async fn built(builder: impl Fn() -> CacheBuilder) -> Cache {
    let mut built = None;
    let build = async || {
        built = builder().build().await.ok();
        built.is_some()
    };
    eventually("a pod starts", build).await;
    built.unwrap()
}

pub(crate) struct Pod {
    pub(crate) cache: Cache,
    pub(crate) users: Users,
}

impl Pod {
    pub(crate) async fn name(&self, id: u64) -> String {
        (*self.users.get(&id).await.unwrap()).clone()
    }

    pub(crate) async fn sees(&self, id: u64, name: &str) {
        let seen = async || self.name(id).await == name;
        eventually("the pod sees what was committed", seen).await;
    }
}

/// Notes when tags are invalidated.
#[derive(Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<Vec<String>>>);

impl Heard {
    pub(crate) fn on(&self, cache: &Cache, tag: &str) -> Registration {
        let (heard, name) = (self.clone(), tag.to_owned());
        cache.reactivity().on([tag], move |_| {
            heard.0.lock().unwrap().push(name.clone());
            async {}
        })
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// Each once, in the order of their first time: a store that is slow to answer has rows delivered again.
    pub(crate) fn tags(&self) -> Vec<String> {
        let mut tags = Vec::new();
        for tag in self.all() {
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        tags
    }

    pub(crate) async fn hears(&self, tag: &str) {
        let there = async || self.all().iter().any(|heard| heard == tag);
        eventually("a tag is heard", there).await;
    }
}
