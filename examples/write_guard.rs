//! A write guard around a transaction of a real PostgreSQL, and a writer that dies in the worst moment.
//!
//! `cargo run --example write_guard`, with the server of `TIDINGS_POSTGRES` (a `postgresql://` URL), or with
//! one of its own that is removed afterwards. `TIDINGS_STORE` names the store, the embedded one if not set.

use std::error::Error;
use std::mem::forget;
use std::sync::Arc;
use std::time::Duration;

use tidings::testing::PostgresServer;
use tidings::{Cache, Entity, Finished};
use tokio_postgres::{Client, NoTls};

type Users = Entity<i32, String, tokio_postgres::Error>;
type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const ADA: i32 = 1;

async fn connect(url: &str) -> Outcome<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Changes a name under a guard: begun last, so that it stands for the commit alone.
async fn rename(db: &mut Client, users: &Users, id: i32, name: &str) -> Outcome {
    let tx = db.transaction().await?;
    tx.execute(
        "UPDATE guarded_users SET name = $2 WHERE id = $1",
        &[&id, &name],
    )
    .await?;
    let guard = users.begin_write(&id).await?; // an error rolls back
    tx.commit().await?; // an error leaves the guard to its end: perhaps it was committed
    match guard.finish().await? {
        Finished::Held(_) => println!("renamed to {name}, guarded all the way"),
        _ => println!("renamed to {name}; the guard had ended before"),
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome {
    let own = match std::env::var("TIDINGS_POSTGRES") {
        Ok(_) => None,
        Err(_) => Some(PostgresServer::start()?),
    };
    let url = match &own {
        Some(server) => server.url(),
        None => std::env::var("TIDINGS_POSTGRES")?,
    };
    let mut db = connect(&url).await?;
    db.batch_execute(
        "CREATE TABLE IF NOT EXISTS guarded_users (id int PRIMARY KEY, name text NOT NULL);
         INSERT INTO guarded_users VALUES (1, 'Augusta') ON CONFLICT (id) DO UPDATE SET name = 'Augusta'",
    )
    .await?;

    let cache = Cache::builder("write-guard").build().await?;
    let reads = Arc::new(connect(&url).await?);
    let users: Users = cache
        .entity("user", move |id: i32| {
            let reads = Arc::clone(&reads);
            async move {
                let row = reads
                    .query_one("SELECT name FROM guarded_users WHERE id = $1", &[&id])
                    .await?;
                Ok(row.get(0))
            }
        })
        .build()?;

    println!("{} is read, and kept", users.get(&ADA).await?);
    rename(&mut db, &users, ADA, "Ada").await?;
    println!("{} is read", users.get(&ADA).await?);

    // The same by a writer that dies behind its commit.
    let guard = users.begin_write(&ADA).ttl(Duration::from_secs(10)).await?;
    println!("{} is read under the guard", users.get(&ADA).await?);
    db.execute(
        "UPDATE guarded_users SET name = 'Lovelace' WHERE id = $1",
        &[&ADA],
    )
    .await?;
    forget(guard); // what a process does that is killed
    println!("{} is read right after the commit", users.get(&ADA).await?);
    tokio::time::sleep(cache.health().bound).await;
    let name = users.get(&ADA).await?;
    println!("{name} is read when the bound is over, and nobody ever said so");
    assert_eq!(*name, "Lovelace");

    db.batch_execute("DROP TABLE guarded_users").await?;
    cache.close().await;
    Ok(())
}
