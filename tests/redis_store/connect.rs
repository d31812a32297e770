//! Connecting: what is accepted, and how everything else is refused.

use super::{Admin, Pod, namespace, refusal};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;
use tidings::coherence::Lane;
use tidings::error::StoreErrorKind;
use tidings::store::{Place, Redis, Store};
use tidings::testing::RedisServer;

#[tokio::test]
async fn a_link_sees_no_head_before_the_first_touch() {
    let pod = Pod::start().await;
    let polled = pod.link.poll().await.unwrap();
    assert_eq!(polled.heads, [None, None]);
    assert!(polled.server_ms > 1_600_000_000_000);
}

#[tokio::test]
async fn a_wrong_password_and_a_missing_one_are_auth_errors() {
    let server = RedisServer::builder().password("s3cret").start().unwrap();
    let without = format!("redis://127.0.0.1:{}", server.port());
    assert_eq!(refusal(&without).await, StoreErrorKind::Auth);
    let wrong = format!("redis://:hunter2@127.0.0.1:{}", server.port());
    let error = match super::connect(&wrong).await {
        Ok(_) => panic!("connected"),
        Err(error) => error,
    };
    assert_eq!(error.kind(), StoreErrorKind::Auth);
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    assert!(super::connect(&server.url()).await.is_ok());
}

#[tokio::test]
async fn a_database_that_does_not_exist_is_a_config_error() {
    let server = RedisServer::start().unwrap();
    let url = format!("redis://127.0.0.1:{}/99", server.port());
    assert_eq!(refusal(&url).await, StoreErrorKind::Config);
}

#[tokio::test]
async fn a_replica_is_refused_as_read_only() {
    let server = RedisServer::start().unwrap();
    server.run("REPLICAOF 127.0.0.1 1");
    assert_eq!(refusal(&server.url()).await, StoreErrorKind::ReadOnly);
}

#[tokio::test]
async fn a_link_notices_that_its_server_became_a_replica() {
    let pod = Pod::open().await;
    pod.server.run("REPLICAOF 127.0.0.1 1");
    // The server may also cut the connection when it changes its role.
    let error = pod.link.poll().await.unwrap_err();
    assert!(
        matches!(
            error.kind(),
            StoreErrorKind::ReadOnly | StoreErrorKind::Unavailable
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_primary_that_has_lost_its_replicas_is_read_and_yet_not_believed() {
    let pod = Pod::open().await;
    let place = Place {
        lane: Lane(0),
        hash: 1,
        entity: "user",
        key: b"user/1",
    };
    assert!(pod.link.read_proven(place).await.is_ok());
    pod.server.run("CONFIG SET min-replicas-to-write 1");
    assert!(pod.link.read(place).await.is_ok());
    let error = pod.link.read_proven(place).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::ReadOnly, "{error}");
    pod.server.run("CONFIG SET min-replicas-to-write 0");
    assert!(pod.link.read_proven(place).await.is_ok());
}

#[tokio::test]
async fn a_primary_that_has_lost_its_replicas_fails_the_poll_even_when_full() {
    let pod = Pod::open().await;
    pod.server.run("CONFIG SET min-replicas-to-write 1");
    let error = pod.link.poll().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::ReadOnly, "{error}");
    pod.server.run("CONFIG SET maxmemory 1");
    let error = pod.link.poll().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::ReadOnly, "{error}");
}

#[tokio::test]
async fn a_cluster_node_is_refused_as_unsupported() {
    let server = RedisServer::builder()
        .arg("--cluster-enabled", "yes")
        .start()
        .unwrap();
    assert_eq!(refusal(&server.url()).await, StoreErrorKind::Unsupported);
}

#[tokio::test]
async fn nobody_listening_is_unavailable() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let url = format!("redis://127.0.0.1:{port}");
    assert_eq!(refusal(&url).await, StoreErrorKind::Unavailable);
}

#[tokio::test]
async fn a_server_of_another_protocol_is_a_protocol_error() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
            let _ = stream.read(&mut [0; 1024]);
        }
    });
    let url = format!("redis://127.0.0.1:{port}");
    assert_eq!(refusal(&url).await, StoreErrorKind::Protocol);
}

#[tokio::test]
async fn a_server_that_never_answers_ends_in_a_timeout() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let store = Redis::new(&url)
        .unwrap()
        .connect_timeout(Duration::from_millis(50));
    let error = store.connect(&namespace()).await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Timeout);
}

#[tokio::test]
async fn hints_end_and_calls_fail_when_the_server_goes() {
    let Pod {
        server,
        link,
        mut hints,
    } = Pod::open().await;
    drop(server);
    let end = std::future::poll_fn(|cx| hints.poll_next(cx));
    let end = tokio::time::timeout(Duration::from_secs(20), end).await;
    assert_eq!(end.expect("the subscription ends"), None);
    let error = link.poll().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
}
