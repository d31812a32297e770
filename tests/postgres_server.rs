//! The PostgreSQL server that tests can kill: what it promises to tests.

use std::path::Path;

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
