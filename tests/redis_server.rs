//! The Redis server that tests can kill: what it promises to tests.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use tidings::testing::{RedisServer, ServerError};

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

fn data_dir(server: &RedisServer) -> std::result::Result<String, ServerError> {
    let reply = server.cli(&["CONFIG", "GET", "dir"])?;
    Ok(reply.lines().nth(1).unwrap_or_default().to_owned())
}

#[test]
fn the_server_that_answers_is_our_process() -> Result {
    let server = RedisServer::start()?;
    let info = server.cli(&["INFO", "server"])?;
    let pid = server.pid().ok_or("it runs")?;
    assert!(info.lines().any(|line| line == format!("process_id:{pid}")));
    assert_eq!(server.url(), format!("redis://127.0.0.1:{}", server.port()));
    Ok(())
}

#[test]
fn a_killed_server_is_gone_and_starts_again_empty_on_its_port() -> Result {
    let mut server = RedisServer::start()?;
    let (port, pid) = (server.port(), server.pid());
    server.cli(&["SET", "key", "value"])?;
    server.kill();
    assert_eq!(server.pid(), None);
    assert!(matches!(server.cli(&["PING"]), Err(ServerError::Io { .. })));
    assert!(matches!(server.pause(), Err(ServerError::NotRunning)));
    server.restart()?;
    assert_eq!(server.port(), port);
    assert_ne!(server.pid(), pid);
    assert_eq!(server.cli(&["DBSIZE"])?, "0");
    Ok(())
}

#[test]
fn a_persistent_server_keeps_each_write_through_a_kill() -> Result {
    let mut server = RedisServer::builder().persistent().start()?;
    server.cli(&["SET", "key", "value"])?;
    server.restart()?;
    assert_eq!(server.cli(&["GET", "key"])?, "value");
    server.restart_empty()?;
    assert_eq!(server.cli(&["GET", "key"])?, "");
    Ok(())
}

#[test]
fn an_old_dataset_comes_back_with_its_snapshot() -> Result {
    for builder in [RedisServer::builder(), RedisServer::builder().persistent()] {
        let mut server = builder.start()?;
        server.cli(&["SET", "key", "old"])?;
        let snapshot = server.snapshot()?;
        server.cli(&["SET", "key", "new"])?;
        server.restart_from(&snapshot)?;
        assert_eq!(server.cli(&["GET", "key"])?, "old");
        server.restart()?;
        assert_eq!(
            server.cli(&["GET", "key"])?,
            "old",
            "it is what lies on disk now"
        );
    }
    Ok(())
}

#[test]
fn a_persistent_server_logs_writes_again_after_a_restore() -> Result {
    let mut server = RedisServer::builder().persistent().start()?;
    let snapshot = server.snapshot()?;
    server.restart_from(&snapshot)?;
    server.cli(&["SET", "key", "value"])?;
    server.restart()?;
    assert_eq!(server.cli(&["GET", "key"])?, "value");
    Ok(())
}

#[test]
fn a_paused_server_answers_nothing_until_it_is_resumed() -> Result {
    let server = RedisServer::start()?;
    server.pause()?;
    let mut stream = TcpStream::connect(server.addr())?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    stream.write_all(b"PING\r\n")?;
    let mut reply = [0; 7];
    let error = stream
        .read(&mut reply)
        .expect_err("a stopped process cannot answer");
    assert!(matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut
    ));
    server.resume()?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.read_exact(&mut reply)?;
    assert_eq!(&reply, b"+PONG\r\n");
    Ok(())
}

#[test]
fn nothing_is_left_behind_on_drop_even_of_a_paused_server() -> Result {
    let server = RedisServer::start()?;
    let (addr, dir) = (server.addr(), data_dir(&server)?);
    assert!(Path::new(&dir).exists());
    server.pause()?;
    drop(server);
    assert!(TcpStream::connect(addr).is_err());
    assert!(!Path::new(&dir).exists());
    Ok(())
}

#[test]
fn a_password_is_asked_for_and_is_part_of_the_url() -> Result {
    let mut server = RedisServer::builder().password("p@ss/word").start()?;
    assert_eq!(server.cli(&["PING"])?, "PONG");
    assert_eq!(
        server.url(),
        format!("redis://:p%40ss%2Fword@127.0.0.1:{}", server.port())
    );
    assert!(!format!("{server:?}").contains("p@ss"));
    server.restart()?;
    let mut stream = TcpStream::connect(server.addr())?;
    stream.write_all(b"PING\r\n")?;
    let mut reply = [0; 7];
    stream.read_exact(&mut reply)?;
    assert_eq!(&reply, b"-NOAUTH");
    Ok(())
}

#[test]
fn options_reach_the_server_and_its_refusals_the_caller() -> Result {
    let server = RedisServer::builder().arg("--maxmemory", "10mb").start()?;
    assert_eq!(
        server.cli(&["CONFIG", "GET", "maxmemory"])?,
        "maxmemory\n10485760"
    );
    let refused = server.cli(&["NOSUCHCOMMAND"]);
    assert!(matches!(refused, Err(ServerError::Reply(text)) if text.starts_with("ERR unknown")));
    Ok(())
}

#[test]
fn a_server_that_does_not_start_says_why() {
    let error = RedisServer::builder()
        .arg("--no-such-option", "1")
        .start()
        .expect_err("bad option");
    assert!(error.to_string().contains("no-such-option"), "{error}");
}
