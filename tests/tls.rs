//! A real server that is reached over TLS: what works without it works with it, and what goes wrong says what.
//!
//! Certificates are made by the program `openssl`.
#![cfg(feature = "tls")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[expect(dead_code, unused_macros, reason = "others need more of it")]
#[path = "support/mod.rs"]
mod support;

use std::convert::Infallible;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use support::{PATIENCE, eventually, soon};
use tidings::store::{Redis, Tls};
use tidings::testing::{RedisServer, RedisServerBuilder, ServerError};
use tidings::{BuildError, Cache, Entity, InvalidateError, Origin, StoreErrorKind, StoreState};
use tokio::task::block_in_place;

/// Who signs certificates, in a directory that goes with it.
struct Authority(PathBuf);

impl Authority {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, SeqCst);
        let name = format!("tls-{}-{number}", std::process::id());
        let this = Self(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name));
        fs::create_dir_all(&this.0).unwrap();
        // Not the machine's: it may have its own mind.
        fs::write(
            this.file("openssl.cnf"),
            "[req]\ndistinguished_name=dn\n[dn]\n",
        )
        .unwrap();
        this.write(
            "ca.ext",
            "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign",
        );
        this.request("ca", &format!("authority-{number}"));
        this.openssl("x509 -req -in ca.csr -signkey ca.key -out ca.pem -days 2 -extfile ca.ext");
        this.sign("server", "IP:127.0.0.1,DNS:localhost");
        this
    }

    /// Makes `name.key` and `name.pem`, for what is found at `names`.
    fn sign(&self, name: &str, names: &str) {
        self.write(
            &format!("{name}.ext"),
            &format!("basicConstraints=CA:FALSE\nsubjectAltName={names}"),
        );
        self.request(name, name);
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 2 -extfile {name}.ext"
        ));
    }

    fn request(&self, name: &str, subject: &str) {
        self.openssl(&format!(
            "ecparam -name prime256v1 -genkey -noout -out {name}.key"
        ));
        self.openssl(&format!(
            "req -new -config openssl.cnf -key {name}.key -subj /CN={subject} -out {name}.csr"
        ));
    }

    fn openssl(&self, command: &str) {
        let run = Command::new("openssl")
            .args(command.split(' '))
            .current_dir(&self.0)
            .output();
        let run = run.expect("there is an openssl");
        assert!(
            run.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&run.stderr)
        );
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.file(name), text).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.file(name)).unwrap()
    }

    /// Trusts this one.
    fn tls(&self) -> Tls {
        Tls::new().root_certificates(self.read("ca.pem"))
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server with two ports, of which one speaks TLS.
struct Server {
    redis: RedisServer,
    port: u16,
}

impl Server {
    fn start(authority: &Authority) -> Self {
        Self::start_with(authority, "server", |server| server)
    }

    /// One that shows the certificate `name`.
    fn start_with(
        authority: &Authority,
        name: &str,
        options: impl Fn(RedisServerBuilder) -> RedisServerBuilder,
    ) -> Self {
        // Between the ports of test servers and those that the system hands out.
        static NEXT: AtomicU16 = AtomicU16::new(0);
        for _ in 0..2000 {
            let turn = NEXT.fetch_add(1, SeqCst);
            let first = std::process::id() as u16 % 2000;
            let port = 30_000 + (first + turn * 7) % 2000;
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err() {
                continue;
            }
            let server = RedisServer::builder().arg("--tls-port", &port.to_string());
            let server = server.arg("--tls-ca-cert-file", &authority.file("ca.pem"));
            let server = server.arg("--tls-cert-file", &authority.file(&format!("{name}.pem")));
            let server = server.arg("--tls-key-file", &authority.file(&format!("{name}.key")));
            let server = options(server.arg("--tls-auth-clients", "no"));
            match block_in_place(|| server.start()) {
                Ok(redis) => return Self { redis, port },
                Err(ServerError::Start { log, .. }) if log.contains("in use") => {}
                Err(error) => panic!("{error}"),
            }
        }
        panic!("no port is free");
    }

    fn url(&self) -> String {
        format!("rediss://127.0.0.1:{}", self.port)
    }

    fn store(&self, tls: &Tls) -> Redis {
        Redis::with_tls(&self.url(), tls).unwrap()
    }
}

struct Pod {
    cache: Cache,
    versions: Entity<u64, u64, Infallible>,
}

async fn cache(store: Redis) -> Result<Cache, BuildError> {
    let store = store.connect_timeout(Duration::from_secs(10));
    Cache::builder("secret")
        .store(store)
        .read_timeout(PATIENCE)
        .build()
        .await
}

impl Pod {
    async fn new(store: Redis, source: &Arc<AtomicU64>) -> Self {
        let cache = cache(store).await.unwrap();
        let source = Arc::clone(source);
        let load = move |_: u64| {
            let version = source.load(SeqCst);
            async move { Ok(version) }
        };
        let versions = cache.entity("version", load).build().unwrap();
        Self { cache, versions }
    }

    async fn read(&self) -> (u64, Origin) {
        let read = self.versions.get_with(&1).await.unwrap();
        (*read.value, read.origin)
    }
}

/// One pod loads, another finds it in the store, and one is told what the other invalidates.
async fn do_their_work(here: &Pod, there: &Pod, source: &AtomicU64) {
    let before = here.read().await.0;
    eventually("it is in the store", async || {
        there.versions.local().clear();
        there.read().await == (before, Origin::Store)
    })
    .await;
    source.store(before + 1, SeqCst);
    let heard = there.cache.health().hints;
    let stamp = here.versions.invalidate(&1).await.unwrap();
    eventually("the hint comes", async || {
        there.cache.health().hints > heard
    })
    .await;
    assert_eq!(
        *there.versions.get_at_least(&1, &stamp).await.unwrap(),
        before + 1
    );
    assert_eq!(here.read().await.0, before + 1);
}

async fn kind(store: Redis) -> (StoreErrorKind, String) {
    let error = cache(store).await.expect_err("it cannot work");
    let error = error.store_error().expect("of the store");
    (error.kind(), error.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_work_over_tls_and_go_on_when_their_server_was_killed() {
    let authority = Authority::new();
    let mut server = Server::start(&authority);
    let source = Arc::default();
    let here = Pod::new(server.store(&authority.tls()), &source).await;
    let there = Pod::new(server.store(&authority.tls()), &source).await;
    do_their_work(&here, &there, &source).await;

    block_in_place(|| server.redis.restart()).unwrap();
    for pod in [&here, &there] {
        eventually("it is connected again", async || {
            let health = pod.cache.health();
            health.links == 2 && health.live_lanes == health.lanes
        })
        .await;
    }
    do_their_work(&here, &there, &source).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_trusted_is_not_used_and_the_error_says_why() {
    let (authority, another) = (Authority::new(), Authority::new());
    let server = Server::start(&authority);
    let (found, text) = kind(server.store(&another.tls())).await;
    assert_eq!(found, StoreErrorKind::Tls, "{text}");
    assert!(text.contains("UnknownIssuer"), "{text}");
    // Nor by what the platform trusts.
    let with_password = server.url().replace("://", "://:hunter2@");
    let (found, text) = kind(Redis::new(&with_password).unwrap()).await;
    assert_eq!(found, StoreErrorKind::Tls, "{text}");
    assert!(!text.contains("hunter2"), "{text}");

    authority.sign("elsewhere", "DNS:redis.example");
    let server = Server::start_with(&authority, "elsewhere", |server| server);
    let (found, text) = kind(server.store(&authority.tls())).await;
    assert_eq!(found, StoreErrorKind::Tls, "{text}");
    assert!(text.contains("redis.example"), "{text}");
}

/// A certificate that has ended, or was signed by the wrong authority when it was renewed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_certificate_becomes_bad_is_done_without_until_it_is_good_again() {
    let (authority, another) = (Authority::new(), Authority::new());
    let mut server = Server::start(&authority);
    let source = Arc::default();
    let here = Pod::new(server.store(&authority.tls()), &source).await;
    let there = Pod::new(server.store(&authority.tls()), &source).await;
    do_their_work(&here, &there, &source).await;

    let files = ["server.pem", "server.key"];
    let good = files.map(|file| authority.read(file));
    for file in files {
        fs::write(authority.file(file), another.read(file)).unwrap();
    }
    block_in_place(|| server.redis.restart()).unwrap();
    eventually("the pod says why", async || {
        match here.cache.health().store {
            StoreState::Down { reason } => reason.kind() == StoreErrorKind::Tls,
            _ => false,
        }
    })
    .await;
    source.fetch_add(1, SeqCst);
    let pending = match here.versions.invalidate(&1).await {
        Err(InvalidateError::Pending(pending)) => pending,
        other => panic!("{other:?}"),
    };
    assert_eq!(here.read().await, (source.load(SeqCst), Origin::Loader));

    for (file, good) in files.iter().zip(good) {
        fs::write(authority.file(file), good).unwrap();
    }
    block_in_place(|| server.redis.restart()).unwrap();
    soon("the invalidation", pending.settled()).await.unwrap();
    do_their_work(&here, &there, &source).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_speaks_no_tls_and_who_speaks_none_get_errors() {
    let authority = Authority::new();
    let server = Server::start(&authority);
    let plain = server.redis.url().replace("redis://", "rediss://");
    let plain = Redis::with_tls(&plain, &authority.tls()).unwrap();
    let limit = Duration::from_secs(1);
    let error = Cache::builder("secret")
        .store(plain.connect_timeout(limit))
        .build()
        .await;
    let error = error.expect_err("it cannot work");
    let error = error.store_error().expect("of the store");
    // It waits for the end of a line, which may be among what TLS begins with.
    let found = error.kind();
    assert!(
        matches!(found, StoreErrorKind::Tls | StoreErrorKind::Timeout),
        "{error}"
    );
    assert!(error.to_string().contains("TLS"), "{error}");

    let tls = server.url().replace("rediss://", "redis://");
    let (found, text) = kind(Redis::new(&tls).unwrap()).await;
    assert_eq!(found, StoreErrorKind::Unavailable, "{text}");
    assert!(text.contains("TLS"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_asks_for_certificates_is_shown_one() {
    let authority = Authority::new();
    let server = Server::start_with(&authority, "server", |server| {
        server.arg("--tls-auth-clients", "yes")
    });
    let (found, text) = kind(server.store(&authority.tls())).await;
    assert_eq!(found, StoreErrorKind::Tls, "{text}");
    authority.sign("pod", "DNS:pod");
    let tls = authority.tls();
    let tls = tls.client_certificate(authority.read("pod.pem"), authority.read("pod.key"));
    let source = Arc::default();
    let here = Pod::new(server.store(&tls), &source).await;
    let there = Pod::new(server.store(&tls), &source).await;
    do_their_work(&here, &there, &source).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_read_over_tls() {
    let authority = Authority::new();
    let with_tls = |server: RedisServerBuilder| {
        let server = server.arg("--repl-diskless-sync-delay", "0");
        server.arg("--tls-replication", "yes")
    };
    let primary = Server::start_with(&authority, "server", with_tls);
    let replica = Server::start_with(&authority, "server", with_tls);
    let port = primary.port.to_string();
    replica
        .redis
        .cli(&["REPLICAOF", "127.0.0.1", &port])
        .unwrap();
    eventually("it follows", async || {
        let info = replica.redis.cli(&["INFO", "replication"]).unwrap();
        info.contains("master_link_status:up")
    })
    .await;
    let store = primary.store(&authority.tls()).read_from_replicas();
    let pod = Pod::new(store, &Arc::default()).await;
    eventually("a replica answers", async || {
        pod.versions.local().clear();
        pod.read().await;
        let stats = pod.cache.stats().store;
        let near = stats.get("read a replica");
        near.is_some_and(|near| near.calls > near.failed)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_reached_over_tls() {
    let authority = Authority::new();
    let node = Server::start_with(&authority, "server", |server| {
        let server = server.arg("--cluster-enabled", "yes");
        server.arg("--tls-cluster", "yes")
    });
    node.redis
        .cli(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"])
        .unwrap();
    eventually("it has all slots", async || {
        let info = node.redis.cli(&["CLUSTER", "INFO"]).unwrap();
        info.contains("cluster_state:ok")
    })
    .await;
    let url = format!("rediss+cluster://127.0.0.1:{}", node.port);
    let store = || Redis::with_tls(&url, &authority.tls()).unwrap();
    let source = Arc::default();
    let (here, there) = (
        Pod::new(store(), &source).await,
        Pod::new(store(), &source).await,
    );
    do_their_work(&here, &there, &source).await;
    let untrusted = Redis::with_tls(&url, &Authority::new().tls()).unwrap();
    let (found, text) = kind(untrusted).await;
    assert_eq!(found, StoreErrorKind::Tls, "{text}");
}

#[test]
fn certificates_that_cannot_be_read_are_refused_and_not_shown() {
    let authority = Authority::new();
    let refused = |url: &str, tls: Tls| {
        let error = Redis::with_tls(url, &tls).expect_err("it cannot be used");
        assert_eq!(error.kind(), StoreErrorKind::Config, "{error}");
        assert!(
            !format!("{error:?} {tls:?}").contains("hunter2"),
            "{error:?}"
        );
        error.to_string()
    };
    let url = "rediss://host";
    let roots = Tls::new().root_certificates("hunter2");
    assert!(refused(url, roots).contains("no root certificate"));
    let no_key = |key: &str| {
        authority
            .tls()
            .client_certificate(authority.read("server.pem"), key)
    };
    assert!(refused(url, no_key("hunter2")).contains("cannot be read"));
    let no_chain = authority
        .tls()
        .client_certificate("hunter2", authority.read("server.key"));
    assert!(refused(url, no_chain).contains("no client certificate"));
    assert!(refused("redis://host", authority.tls()).contains("rediss://"));
    for url in ["rediss+sentinel://a,b/main", "rediss+cluster://a,b"] {
        Redis::with_tls(url, &authority.tls()).unwrap();
    }
}

/// The name of this test's own variable, which makes it a pod.
const CHILD: &str = "TIDINGS_TLS_CHILD";

/// Not in this process: its environment is everybody's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_names_what_the_platform_trusts() {
    if let Ok(url) = std::env::var(CHILD) {
        let here = Pod::new(Redis::new(&url).unwrap(), &Arc::default()).await;
        assert_eq!(here.read().await, (0, Origin::Loader));
        return;
    }
    let authority = Authority::new();
    let server = Server::start(&authority);
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "the_environment_names_what_the_platform_trusts"]);
    child
        .env(CHILD, server.url())
        .env("SSL_CERT_FILE", authority.file("ca.pem"));
    let output = block_in_place(|| child.output()).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}
