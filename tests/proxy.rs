//! The proxy that breaks the network: what it promises to tests.

use std::error::Error;
use std::time::Duration;

use tidings::testing::{Direction, Fault, MessageFault, Proxy, RedisServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// Longer than anything takes that does happen.
const DEADLINE: Duration = Duration::from_secs(20);
/// How long we watch that nothing happens.
const SILENCE: Duration = Duration::from_millis(50);

const FREEZE: Fault = Fault::Freeze {
    direction: Direction::Both,
};

/// A client that speaks just enough.
struct Client(TcpStream);

impl Client {
    async fn connect(proxy: &Proxy) -> Result<Self> {
        Ok(Self(TcpStream::connect(proxy.addr()).await?))
    }

    async fn send(&mut self, line: &str) -> Result {
        Ok(self.0.write_all(format!("{line}\r\n").as_bytes()).await?)
    }

    async fn expect(&mut self, text: &str) -> Result {
        let mut got = vec![0; text.len()];
        timeout(DEADLINE, self.0.read_exact(&mut got)).await??;
        assert_eq!(String::from_utf8_lossy(&got), text);
        Ok(())
    }

    async fn expect_silence(&mut self) {
        let read = timeout(SILENCE, self.0.read_u8()).await;
        assert!(read.is_err(), "nothing was to arrive, but {read:?}");
    }

    /// Waits for the end of the connection and returns what came before it.
    async fn expect_end(&mut self) -> Result<String> {
        let mut got = Vec::new();
        // A reset is an end too.
        let _ = timeout(DEADLINE, self.0.read_to_end(&mut got)).await?;
        Ok(String::from_utf8(got)?)
    }

    async fn ping(&mut self) -> Result {
        self.send("PING").await?;
        self.expect("+PONG\r\n").await
    }

    async fn subscribe(proxy: &Proxy) -> Result<Self> {
        let mut client = Self::connect(proxy).await?;
        client.send("SUBSCRIBE news").await?;
        client
            .expect("*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n")
            .await?;
        Ok(client)
    }

    async fn expect_messages(&mut self, numbers: &[u32]) -> Result {
        for number in numbers {
            self.expect(&format!(
                "*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$1\r\n{number}\r\n"
            ))
            .await?;
        }
        Ok(())
    }
}

fn publish(server: &RedisServer, numbers: std::ops::RangeInclusive<u32>) -> Result {
    for number in numbers {
        assert_eq!(server.cli(&["PUBLISH", "news", &number.to_string()])?, "1");
    }
    Ok(())
}

/// Waits until the proxy has seen so many messages.
async fn seen(proxy: &Proxy, messages: u64) {
    let deadline = Instant::now() + DEADLINE;
    while proxy.messages_seen() < messages {
        assert!(
            Instant::now() < deadline,
            "{proxy:?} did not see {messages} messages"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn bytes_pass_unchanged_without_a_fault() -> Result {
    let server = RedisServer::start()?;
    let proxy = Proxy::start(server.addr())?;
    let mut client = Client::connect(&proxy).await?;
    let value = "x".repeat(1 << 20);
    client
        .send(&format!(
            "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1048576\r\n{value}"
        ))
        .await?;
    client.expect("+OK\r\n").await?;
    client.send("GET k").await?;
    client.expect(&format!("$1048576\r\n{value}\r\n")).await?;
    client.send("QUIT").await?;
    assert_eq!(client.expect_end().await?, "+OK\r\n");
    assert_eq!(proxy.connections(), 1);
    Ok(())
}

#[tokio::test]
async fn foreign_protocols_pass_unchanged() -> Result {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let proxy = Proxy::start(listener.local_addr()?)?;
    let mut client = Client::connect(&proxy).await?;
    let (mut server, _) = listener.accept().await?;
    server.write_all(b"*1\r\n\x16not redis").await?;
    client.expect("*1\r\n\x16not redis").await?;
    server.write_all(b"and more").await?;
    client.expect("and more").await
}

#[tokio::test]
async fn half_a_reply_passes_when_the_server_ends_in_it() -> Result {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let proxy = Proxy::start(listener.local_addr()?)?;
    let mut client = Client::connect(&proxy).await?;
    let (mut server, _) = listener.accept().await?;
    server.write_all(b"+OK\r\n$9\r\nhalf").await?;
    drop(server);
    assert_eq!(client.expect_end().await?, "+OK\r\n$9\r\nhalf");
    Ok(())
}

#[tokio::test]
async fn frozen_bytes_arrive_when_the_fault_is_lifted() -> Result {
    let server = RedisServer::start()?;
    let proxy = Proxy::start(server.addr())?;
    let mut client = Client::connect(&proxy).await?;
    client.ping().await?;
    proxy.set(FREEZE);
    let mut late = Client::connect(&proxy).await?;
    for client in [&mut client, &mut late] {
        client.send("PING").await?;
        client.expect_silence().await;
    }
    proxy.set(Fault::None);
    client.expect("+PONG\r\n").await?;
    late.expect("+PONG\r\n").await
}

#[tokio::test]
async fn a_fault_in_one_direction_leaves_the_other_alone() -> Result {
    let server = RedisServer::start()?;
    let proxy = Proxy::start(server.addr())?;
    let mut client = Client::connect(&proxy).await?;
    client.ping().await?;
    proxy.set(Fault::Freeze {
        direction: Direction::ToClient,
    });
    client.send("SET key value").await?;
    client.expect_silence().await;
    assert_eq!(
        server.cli(&["GET", "key"])?,
        "value",
        "the command arrived, its reply did not"
    );
    proxy.set(Fault::Freeze {
        direction: Direction::ToServer,
    });
    client.expect("+OK\r\n").await?;
    client.send("SET key other").await?;
    client.expect_silence().await;
    assert_eq!(server.cli(&["GET", "key"])?, "value");
    Ok(())
}

#[tokio::test]
async fn a_connection_that_lost_bytes_stays_open_and_silent() -> Result {
    let server = RedisServer::start()?;
    let proxy = Proxy::start(server.addr())?;
    let mut client = Client::connect(&proxy).await?;
    let mut idle = Client::connect(&proxy).await?;
    client.ping().await?;
    idle.ping().await?;
    proxy.set(Fault::Blackhole {
        direction: Direction::Both,
    });
    let mut late = Client::connect(&proxy).await?;
    client.send("SET key value").await?;
    late.send("SET key value").await?;
    client.expect_silence().await;
    late.expect_silence().await;
    proxy.set(Fault::None);
    client.send("PING").await?;
    client.expect_silence().await;
    idle.ping().await?;
    Client::connect(&proxy).await?.ping().await?;
    assert_eq!(
        server.cli(&["GET", "key"])?,
        "",
        "what was swallowed never arrived"
    );
    proxy.cut_all();
    assert_eq!(client.expect_end().await?, "");
    Ok(())
}

#[tokio::test]
async fn delayed_bytes_arrive_in_order_and_not_too_early() -> Result {
    let server = RedisServer::start()?;
    let proxy = Proxy::start(server.addr())?;
    let mut client = Client::connect(&proxy).await?;
    client.ping().await?;
    proxy.set(Fault::Delay {
        direction: Direction::ToClient,
        delay: SILENCE,
    });
    let sent = Instant::now();
    for word in ["one", "two", "six"] {
        client.send(&format!("ECHO {word}")).await?;
    }
    client
        .expect("$3\r\none\r\n$3\r\ntwo\r\n$3\r\nsix\r\n")
        .await?;
    assert!(sent.elapsed() >= SILENCE);
    Ok(())
}

#[tokio::test]
async fn refused_clients_are_cut_and_served_again_when_the_fault_is_lifted() -> Result {
    let server = RedisServer::start()?;
    let proxy = Proxy::start(server.addr())?;
    let mut client = Client::connect(&proxy).await?;
    client.ping().await?;
    proxy.set(Fault::Refuse);
    assert_eq!(client.expect_end().await?, "");
    assert_eq!(Client::connect(&proxy).await?.expect_end().await?, "");
    proxy.set(Fault::None);
    Client::connect(&proxy).await?.ping().await
}

#[tokio::test]
async fn cutting_spares_the_connections_that_come_after() -> Result {
    let server = RedisServer::start()?;
    let proxy = Proxy::start(server.addr())?;
    let mut client = Client::connect(&proxy).await?;
    client.ping().await?;
    proxy.cut_all();
    assert_eq!(client.expect_end().await?, "");
    Client::connect(&proxy).await?.ping().await
}

#[tokio::test]
async fn a_truncated_reply_ends_in_its_middle() -> Result {
    let server = RedisServer::start()?;
    let proxy = Proxy::start(server.addr())?;
    let mut client = Client::connect(&proxy).await?;
    client.ping().await?;
    proxy.set(Fault::Truncate {
        direction: Direction::ToClient,
        after_bytes: 10,
    });
    client.ping().await?;
    client.send("PING").await?;
    assert_eq!(client.expect_end().await?, "+PO");
    Ok(())
}

#[tokio::test]
async fn the_clients_of_a_dead_server_are_cut() -> Result {
    let mut server = RedisServer::start()?;
    let proxy = Proxy::start(server.addr())?;
    let mut client = Client::connect(&proxy).await?;
    client.ping().await?;
    server.kill();
    assert_eq!(client.expect_end().await?, "");
    assert_eq!(Client::connect(&proxy).await?.expect_end().await?, "");
    server.restart()?;
    Client::connect(&proxy).await?.ping().await
}

#[tokio::test]
async fn messages_are_dropped_one_by_one_and_replies_never() -> Result {
    let server = RedisServer::start()?;
    let proxy = Proxy::start(server.addr())?;
    let mut client = Client::subscribe(&proxy).await?;
    proxy.set_messages(MessageFault::DropEvery(3));
    publish(&server, 1..=7)?;
    client.expect_messages(&[1, 2, 4, 5, 7]).await?;
    proxy.set_messages(MessageFault::DropAll);
    publish(&server, 8..=9)?;
    seen(&proxy, 9).await;
    client.send("PING").await?;
    client.expect("*2\r\n$4\r\npong\r\n$0\r\n\r\n").await?;
    assert_eq!((proxy.messages_seen(), proxy.messages_dropped()), (9, 4));
    Ok(())
}

#[tokio::test]
async fn messages_are_swapped_and_doubled_whole() -> Result {
    let server = RedisServer::start()?;
    let proxy = Proxy::start(server.addr())?;
    let mut client = Client::subscribe(&proxy).await?;
    proxy.set_messages(MessageFault::Swap);
    publish(&server, 1..=5)?;
    client.expect_messages(&[2, 1, 4, 3]).await?;
    seen(&proxy, 5).await;
    proxy.set_messages(MessageFault::Duplicate);
    client.expect_messages(&[5]).await?;
    publish(&server, 6..=7)?;
    client.expect_messages(&[6, 6, 7, 7]).await
}

#[tokio::test]
async fn dropping_the_proxy_ends_its_connections() -> Result {
    let server = RedisServer::start()?;
    let proxy = Proxy::start(server.addr())?;
    let mut client = Client::connect(&proxy).await?;
    client.ping().await?;
    let addr = proxy.addr();
    drop(proxy);
    assert_eq!(client.expect_end().await?, "");
    let deadline = Instant::now() + DEADLINE;
    while TcpStream::connect(addr).await.is_ok() {
        assert!(Instant::now() < deadline, "the proxy still listens");
        tokio::task::yield_now().await;
    }
    Ok(())
}
