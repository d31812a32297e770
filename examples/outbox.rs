//! Invalidations that commit with the change: an outbox in PostgreSQL.
//!
//! Starts a PostgreSQL of its own (see `tidings::testing`) and two pods on one embedded store. One pod
//! delivers; a statement of plain SQL, as a colleague would type it, reaches both.
//!
//! `cargo run --example outbox --all-features`

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidings::outbox::Outbox;
use tidings::store::Memory;
use tidings::testing::PostgresServer;
use tidings::{Cache, Entity};
use tokio_postgres::{Client, Config, NoTls};

type Users = Entity<u64, String, tokio_postgres::Error>;
type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Result {
    if !PostgresServer::available() {
        println!("There is no PostgreSQL to run: nothing to show.");
        return Ok(());
    }
    let postgres = PostgresServer::start()?;
    let config: Config = postgres.url().parse()?;
    let mut client = connect(&config).await?;

    // Once, as a migration.
    let outbox = Outbox::default();
    outbox.create_table(&client).await?;
    client.batch_execute(MIGRATION).await?;

    let store = Memory::new(); // in production, Redis
    let (a, users_of_a) = start_pod(&store, &config).await?;
    let (b, users_of_b) = start_pod(&store, &config).await?;
    // Any number of pods may; one at a time does.
    let (delivery, standby) = (
        outbox.deliver(&a, config.clone()),
        outbox.deliver(&b, config),
    );
    println!(
        "both pods read: {}, {}",
        users_of_a.get(&1).await?,
        users_of_b.get(&1).await?
    );

    // The row of the invalidation is part of the transaction.
    let transaction = client.transaction().await?;
    transaction
        .execute("UPDATE users SET name = 'Ada Lovelace' WHERE id = 1", &[])
        .await?;
    outbox.invalidate(&transaction, &users_of_a, [1]).await?;
    transaction.rollback().await?;
    println!("rolled back: {}", users_of_b.get(&1).await?);

    let transaction = client.transaction().await?;
    transaction
        .execute("UPDATE users SET name = 'Ada King' WHERE id = 1", &[])
        .await?;
    outbox.invalidate(&transaction, &users_of_a, [1]).await?;
    transaction.commit().await?;
    wait_for(&users_of_b, "Ada King").await?;

    // Who goes around the library is heard too: a trigger writes the row.
    client
        .batch_execute("UPDATE users SET name = 'Countess of Lovelace' WHERE id = 1")
        .await?;
    wait_for(&users_of_a, "Countess of Lovelace").await?;
    wait_for(&users_of_b, "Countess of Lovelace").await?;

    // Pods come and go.
    delivery.stop().await;
    client
        .batch_execute("UPDATE users SET name = 'A.A.L.' WHERE id = 1")
        .await?;
    wait_for(&users_of_a, "A.A.L.").await?;
    println!("the other pod has taken over: {:?}", standby.health().state);
    standby.stop().await;
    Ok(())
}

/// A row for each change, by whatever program.
const MIGRATION: &str = "
    CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL);
    INSERT INTO users VALUES (1, 'Ada');
    CREATE FUNCTION users_changed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO tidings_outbox (tag) VALUES ('user:' || OLD.id);
        RETURN NULL;
    END $$;
    CREATE TRIGGER users_changed AFTER UPDATE OR DELETE ON users
        FOR EACH ROW EXECUTE FUNCTION users_changed();
";

async fn start_pod(store: &Memory, config: &Config) -> Result<(Cache, Users)> {
    let cache = Cache::builder("shop").store(store.clone()).build().await?;
    let source = Arc::new(connect(config).await?);
    let users = cache
        .entity("user", move |id: u64| {
            let source = Arc::clone(&source);
            async move {
                let query = format!("SELECT name FROM users WHERE id = {id}");
                Ok(source.query_one(&query, &[]).await?.get::<_, String>(0))
            }
        })
        .build()?;
    Ok((cache, users))
}

async fn wait_for(users: &Users, name: &str) -> Result {
    let since = Instant::now();
    while **users.get(&1).await? != *name {
        if since.elapsed() > Duration::from_secs(30) {
            return Err("the invalidation did not come".into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    println!("{name}, after {} ms", since.elapsed().as_millis());
    Ok(())
}

async fn connect(config: &Config) -> Result<Client> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
