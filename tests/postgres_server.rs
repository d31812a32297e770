//! The PostgreSQL server that tests can kill: what it promises to tests.

use std::path::Path;
use std::time::{Duration, Instant};

use tidings::testing::{PostgresServer, ServerError};

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

#[test]
fn what_was_committed_outlives_a_kill_and_what_was_not_does_not() -> Result {
    let mut server = PostgresServer::start()?;
    let (port, pid) = (server.port(), server.pid());
    server.sql("CREATE TABLE users (id int); INSERT INTO users VALUES (1)")?;
    server.kill();
    assert_eq!(server.pid(), None);
    let refused = server.sql("SELECT 1");
    assert!(matches!(refused, Err(ServerError::Reply(_))), "{refused:?}");
    server.restart()?;
    assert_eq!(server.port(), port);
    assert_ne!(server.pid(), pid);
    assert_eq!(server.sql("SELECT id FROM users")?, "1");
    Ok(())
}

#[test]
fn the_server_that_answers_is_ours_and_goes_with_its_files() -> Result {
    let server = PostgresServer::start()?;
    let data = server.sql("SHOW data_directory")?;
    let file = std::fs::read_to_string(Path::new(&data).join("postmaster.pid"))?;
    let pid = server.pid().ok_or("it runs")?.to_string();
    assert_eq!(file.lines().next(), Some(&*pid));
    assert!(server.url().contains(&server.port().to_string()));
    drop(server);
    assert!(!Path::new(&data).exists());
    Ok(())
}

#[test]
fn servers_stand_side_by_side() -> Result {
    let (a, b) = (PostgresServer::start()?, PostgresServer::start()?);
    a.sql("CREATE TABLE mine ()")?;
    assert_ne!(a.port(), b.port());
    assert!(matches!(
        b.sql("SELECT FROM mine"),
        Err(ServerError::Reply(_))
    ));
    Ok(())
}

#[test]
fn a_replica_shows_what_is_committed_after_its_lag_and_not_before() -> Result {
    let primary = PostgresServer::start()?;
    primary.sql("CREATE TABLE users (id int)")?;
    let for_ever = primary.start_replica(Duration::from_secs(3600))?;
    let mut at_once = primary.start_replica(Duration::ZERO)?;
    primary.sql("INSERT INTO users VALUES (1)")?;
    let count = "SELECT count(*) FROM users";
    let catches_up = |replica: &PostgresServer, rows: &str| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while replica.sql(count)? != rows {
            assert!(Instant::now() < deadline, "it never has {rows}");
        }
        Ok::<_, ServerError>(())
    };
    catches_up(&at_once, "1")?;
    assert_eq!(for_ever.sql(count)?, "0");
    let written = at_once.sql("INSERT INTO users VALUES (2)");
    assert!(matches!(written, Err(ServerError::Reply(_))), "{written:?}");

    at_once.kill();
    primary.sql("INSERT INTO users VALUES (2)")?;
    at_once.restart()?;
    catches_up(&at_once, "2")?;
    drop(primary);
    assert_eq!(at_once.sql(count)?, "2", "it goes on alone");
    assert_eq!(for_ever.sql(count)?, "0");
    Ok(())
}
