//! A tour of Tidings in one process, with nothing to install: `cargo run --example tour`.
//!
//! Two caches on one embedded store are two pods. What is printed is also asserted, so the tour fails
//! where its text would be wrong.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tidings::store::Memory;
use tidings::{Cache, CacheError, Entity, InvalidateError, Origin, StoreState};

/// The record that is cached. Anything that serde can write and read will do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct User {
    name: String,
}

/// How the database fails. It is serde's too, because "not found" is worth remembering.
#[derive(Debug, Serialize, Deserialize)]
enum DbError {
    NotFound(u64),
}

impl fmt::Display for DbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::NotFound(id) = self;
        write!(f, "no user {id}")
    }
}

impl Error for DbError {}

/// Stands for your database: 20 ms a query, and it counts them.
#[derive(Clone, Default)]
struct Db {
    rows: Arc<Mutex<HashMap<u64, User>>>,
    queries: Arc<AtomicUsize>,
}

impl Db {
    async fn find(&self, id: u64) -> Result<User, DbError> {
        self.queries.fetch_add(1, Ordering::SeqCst);
        let row = self.rows.lock().expect("not poisoned").get(&id).cloned();
        tokio::time::sleep(Duration::from_millis(20)).await;
        row.ok_or(DbError::NotFound(id))
    }

    fn rename(&self, id: u64, name: &str) {
        let name = name.to_owned();
        self.rows
            .lock()
            .expect("not poisoned")
            .insert(id, User { name });
    }

    fn queries(&self) -> usize {
        self.queries.load(Ordering::SeqCst)
    }
}

type Users = Entity<u64, User, DbError>;

/// What each of your pods does when it starts.
async fn start_pod(store: &Memory, db: &Db) -> Result<(Cache, Users), Box<dyn Error>> {
    let cache = Cache::builder("tour").store(store.clone()).build().await?;
    let db = db.clone();
    let users = cache
        .entity("user", move |id: u64| {
            let db = db.clone();
            async move { db.find(id).await }
        })
        .ttl(Duration::from_secs(600))
        .error_ttl(|DbError::NotFound(_)| Some(Duration::from_secs(30)))
        .build()?;
    Ok((cache, users))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (store, db) = (Memory::new(), Db::default());
    db.rename(42, "Ada");
    let (cache_a, a) = start_pod(&store, &db).await?;
    let (cache_b, b) = start_pod(&store, &db).await?;

    three_places(&a, &b, &db).await?;
    a_change(&a, &b, &db, cache_a.health().bound).await?;
    one_load_for_many(&a, &b, &db).await?;
    errors_are_remembered(&a, &b, &db).await?;
    the_store_goes_away(&store, &cache_a, &a, &b, &db).await?;

    cache_a.close().await;
    cache_b.close().await;
    println!("\nDone: everything said above was checked as it was printed.");
    Ok(())
}

async fn three_places(a: &Users, b: &Users, db: &Db) -> Result<(), Box<dyn Error>> {
    title("A value is found in one of three places");
    for (pod, users, origin, meaning) in [
        ("A", a, Origin::Loader, "nobody has it: A asks the database"),
        ("A", a, Origin::Local, "A has kept it in memory"),
        ("B", b, Origin::Store, "B finds what A left in the store"),
        ("B", b, Origin::Local, "and has kept it in memory too"),
    ] {
        let started = Instant::now();
        let served = users.get_with(&42).await?;
        let took = started.elapsed();
        assert_eq!((served.origin, &*served.value.name), (origin, "Ada"));
        say(format!(
            "{pod} reads {:?} in {took:.1?}: {meaning}",
            served.value.name
        ));
    }
    assert_eq!(db.queries(), 1);
    say("The database answered 1 query for 4 reads.");
    Ok(())
}

async fn a_change(a: &Users, b: &Users, db: &Db, bound: Duration) -> Result<(), Box<dyn Error>> {
    title("A change on one pod reaches the others");
    db.rename(42, "Grace"); // commit first …
    a.invalidate(&42).await?; // … then invalidate
    let acknowledged = Instant::now();
    say("A commits \"Grace\" and invalidates the key. The store has acknowledged it.");

    let mut old_reads = 0;
    let asked = loop {
        let asked = acknowledged.elapsed();
        if b.get(&42).await?.name == "Grace" {
            break asked;
        }
        assert!(
            asked <= bound,
            "B read the old value {asked:?} after the acknowledgement"
        );
        old_reads += 1;
        tokio::task::yield_now().await;
    };
    say(format!(
        "B asks {asked:.1?} later and gets \"Grace\", after {old_reads} reads of \"Ada\"."
    ));
    say(format!(
        "The bound for that is {bound:?}, whatever happens to the network."
    ));

    assert_eq!(a.get(&42).await?.name, "Grace");
    say("A gets \"Grace\" too: the pod that invalidates never sees the old value again.");
    Ok(())
}

async fn one_load_for_many(a: &Users, b: &Users, db: &Db) -> Result<(), Box<dyn Error>> {
    title("A thousand callers, one query");
    db.rename(7, "Edsger");
    let before = db.queries();
    let calls: Vec<_> = (0..1000)
        .map(|i| {
            let users = if i % 2 == 0 { a.clone() } else { b.clone() };
            tokio::spawn(async move { users.get(&7).await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await??.name, "Edsger");
    }
    assert_eq!(db.queries() - before, 1);
    say("1,000 calls at once, half of them on each pod, made 1 query: callers of one pod share");
    say("a load, and pods share it through a lease in the store.");
    Ok(())
}

async fn errors_are_remembered(a: &Users, b: &Users, db: &Db) -> Result<(), Box<dyn Error>> {
    title("\"There is none\" is an answer too");
    let before = db.queries();
    for users in [a, a, b] {
        match users.get(&404).await {
            Err(CacheError::Load(error)) => assert!(matches!(*error, DbError::NotFound(404))),
            other => panic!("expected the loader's own error, got {other:?}"),
        }
    }
    assert_eq!(db.queries() - before, 1);
    say("User 404 does not exist. 3 reads on both pods made 1 query, because `error_ttl` keeps");
    say("NotFound for 30 s. The error keeps its type: `CacheError::Load(DbError::NotFound(404))`.");
    Ok(())
}

async fn the_store_goes_away(
    store: &Memory,
    cache_a: &Cache,
    a: &Users,
    b: &Users,
    db: &Db,
) -> Result<(), Box<dyn Error>> {
    title("The store goes away, and comes back");
    // Only for tests and demonstrations: `faults` needs the feature `testing`. Your own program meets
    // this when somebody restarts Redis.
    let faults = store.faults();
    faults.set_down(true);
    while matches!(cache_a.health().store, StoreState::Up) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let gone = Instant::now();
    say("The store is down, and `cache.health()` says so.");

    let mut local = 0;
    loop {
        let served = a.get_with(&42).await?;
        assert_eq!(served.value.name, "Grace");
        if served.origin == Origin::Loader {
            break;
        }
        local += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    say(format!(
        "A goes on: {local} reads from memory while the bound allows it, then ({:.1?} later) one from",
        gone.elapsed()
    ));
    assert_eq!(a.get_with(&42).await?.origin, Origin::Local);
    say("the database. From now on memory answers for one second after each load.");

    db.rename(42, "Barbara");
    let Err(InvalidateError::Pending(pending)) = b.invalidate(&42).await else {
        panic!("the store is down and cannot acknowledge");
    };
    say(
        "B commits \"Barbara\" and invalidates. Nobody can acknowledge that now, and the call says",
    );
    say(format!(
        "so: Pending ({}). Tidings goes on trying.",
        pending.reason()
    ));
    assert_eq!(b.get(&42).await?.name, "Barbara");

    faults.set_down(false);
    pending.settled().await?;
    let acknowledged = Instant::now();
    say("The store is back, and the invalidation is acknowledged.");
    loop {
        let asked = acknowledged.elapsed();
        if a.get(&42).await?.name == "Barbara" {
            break;
        }
        assert!(asked <= cache_a.health().bound, "stale beyond the bound");
        tokio::task::yield_now().await;
    }
    say(format!(
        "A reads \"Barbara\" {:.1?} later.",
        acknowledged.elapsed()
    ));
    Ok(())
}

fn title(text: &str) {
    println!("\n{text}");
}

fn say(text: impl fmt::Display) {
    println!("  {text}");
}
