//! What cannot be built, and what it says.

use crate::bed::{Bed, PATIENCE};
use crate::source::{Refused, Source};
use std::error::Error;
use std::process::Command;
use std::time::Duration;
use tidings::store::Memory;
use tidings::{BuildError, Cache, MAX_LOAD_TIMEOUT, STORE_VARIABLE};

async fn cache_error(builder: tidings::CacheBuilder) -> BuildError {
    let built = tokio::time::timeout(PATIENCE, builder.build()).await;
    built.expect("an answer").expect_err("it cannot be built")
}

/// All that anybody would print of an error.
fn printed(error: &BuildError) -> String {
    let mut out = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(cause) = source {
        out.push_str(&format!(" {cause} {cause:?}"));
        source = cause.source();
    }
    out
}

#[tokio::test]
async fn a_namespace_is_a_short_plain_name() {
    for name in ["", "a b", "{x}", "ü", "a:b", &"x".repeat(65)] {
        let error = cache_error(Cache::builder(name).store(Memory::new())).await;
        assert_eq!(error.option(), "namespace", "{name}");
    }
    let longest = "aZ09._-".repeat(9) + "x";
    Cache::builder(longest)
        .store(Memory::new())
        .build()
        .await
        .unwrap();
}

#[tokio::test]
async fn time_limits_of_the_store_out_of_range_are_named() {
    for limit in [Duration::ZERO, Duration::from_micros(999), Duration::MAX] {
        let builder = || Cache::builder("limits").store(Memory::new());
        let error = cache_error(builder().read_timeout(limit)).await;
        assert_eq!(error.option(), "read_timeout");
        let error = cache_error(builder().invalidate_timeout(limit)).await;
        assert_eq!(error.option(), "invalidate_timeout");
    }
}

#[tokio::test]
async fn too_few_pending_invalidations_are_named() {
    let builder = |count| Cache::builder("p").store(Memory::new()).max_pending(count);
    assert_eq!(cache_error(builder(63)).await.option(), "max_pending");
    builder(64).build().await.unwrap();
}

#[tokio::test]
async fn options_out_of_range_are_named() {
    let pod = Bed::memory().pod().await;
    let source = Source::new();
    let named = |name: &str| pod.cache.entity(name, source.clone());
    for name in ["", "a b", "a/b", &"x".repeat(65)] {
        assert_eq!(
            named(name).build().unwrap_err().option(),
            "entity",
            "{name}"
        );
    }
    let zero = Duration::ZERO;
    let option =
        |builder: tidings::EntityBuilder<u64, Source>| builder.build().unwrap_err().option();
    assert_eq!(option(named("a").capacity(0)), "capacity");
    assert_eq!(option(named("a").weight_capacity(0, |_, _| 1)), "capacity");
    assert_eq!(option(named("a").local_max_weight(1)), "local_max_weight");
    for limit in [
        zero,
        MAX_LOAD_TIMEOUT + Duration::from_nanos(1),
        Duration::MAX,
    ] {
        assert_eq!(option(named("a").load_timeout(limit)), "load_timeout");
    }
    for bytes in [0, usize::MAX] {
        assert_eq!(option(named("a").store_max_bytes(bytes)), "store_max_bytes");
    }
    assert_eq!(
        option(named("a").max_unleased_loads(0)),
        "max_unleased_loads"
    );
    assert_eq!(
        option(named("a").max_unleased_loads(usize::MAX)),
        "max_unleased_loads"
    );
    assert_eq!(option(named("a").retry_after(zero)), "retry_after");
    let (soft, second) = (Duration::from_millis(50), Duration::from_secs(1));
    let ahead = || named("a").grace(second).refresh(tidings::Refresh::Ahead);
    for (useless, why) in [
        (named("a").soft_timeout(soft), "no grace"),
        (named("a").grace(second).soft_timeout(soft), "never waits"),
        (ahead().soft_timeout(zero), "zero"),
        (
            ahead().load_timeout(second).soft_timeout(second),
            "not below the hard one",
        ),
    ] {
        assert_eq!(option(useless), "soft_timeout", "{why}");
    }
    ahead().soft_timeout(soft).build().unwrap();
    assert_eq!(option(named("a").max_batch(0)), "max_batch");
    for jitter in [1.0, 1.5, -0.1, f64::NAN, f64::INFINITY] {
        assert_eq!(option(named("a").jitter(jitter)), "jitter", "{jitter}");
    }
    named("a").jitter(0.0).build().unwrap();
}

#[tokio::test]
async fn a_name_stands_for_one_type_and_schema_in_a_cache() {
    let pod = Bed::memory().pod().await;
    let source = Source::new();
    pod.numbers(&source);
    pod.numbers(&source);
    let raised = pod.builder(&source).schema(1).build().unwrap_err();
    let load = |key: u64| async move { Ok::<_, Refused>(key.to_string()) };
    let texts = pod.cache.entity("number", load).build().unwrap_err();
    for error in [raised, texts] {
        assert_eq!(error.option(), "entity");
        assert!(error.to_string().contains("number"), "{error}");
    }
}

#[tokio::test]
async fn a_url_that_cannot_be_used_is_refused_without_repeating_it() {
    for url in [
        "",
        "redis",
        "localhost:6379",
        "http://u:hunter2@h",
        "u:hunter2@h:1",
        "redis://",
    ] {
        let error = cache_error(Cache::builder("t").store_url(url)).await;
        assert_eq!(error.option(), "store_url", "{url}");
    }
    for url in [
        "postgres://user:hunter2@host/0",
        "hunter2://host",
        "user:hunter2@host",
        "redis://user:hunter2@:x/0",
        "redis://user:hunter2@host:99999/0",
        "redis://user:hunter2@host/hunter2",
    ] {
        let error = cache_error(Cache::builder("t").store_url(url)).await;
        let printed = printed(&error);
        assert!(
            url.starts_with("hunter2") || !printed.contains("hunter2"),
            "{printed}"
        );
    }
}

#[tokio::test]
async fn a_store_that_is_not_there_is_named_without_its_password() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("redis://user:hunter2@{nobody}/0");
    let builder = Cache::builder("t").store_url(url);
    assert!(!format!("{builder:?}").contains("hunter2"), "{builder:?}");
    let error = cache_error(builder).await;
    assert_eq!(error.option(), "store");
    let printed = printed(&error);
    assert!(printed.contains(&nobody.to_string()), "{printed}");
    assert!(!printed.contains("hunter2"), "{printed}");
}

#[tokio::test]
async fn memory_urls_of_one_name_are_one_store() {
    let source = Source::new();
    let mut loads = Vec::new();
    let mut kept = Vec::new();
    for url in ["memory:one", "memory:one", "memory:two"] {
        let cache = Cache::builder("urls").store_url(url).build().await.unwrap();
        let numbers = cache.entity("number", source.clone()).build().unwrap();
        numbers.get(&1).await.unwrap();
        loads.push(source.loads());
        kept.push(numbers);
    }
    assert_eq!(loads, [1, 1, 2]);
}

/// Run by the test below with the variable set: the environment of a process is not to be changed.
#[tokio::test]
#[ignore = "a part of `the_store_may_be_named_by_the_environment`"]
async fn child_that_builds_from_the_environment() {
    match Cache::builder("t").build().await {
        Ok(cache) => println!("built {cache:?}"),
        Err(error) => println!("refused {} {}", error.option(), printed(&error)),
    }
}

#[test]
fn the_store_may_be_named_by_the_environment() {
    let child = |url: Option<&str>| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--ignored", "--exact", "--nocapture"]);
        child.arg("build::child_that_builds_from_the_environment");
        match url {
            Some(url) => child.env(STORE_VARIABLE, url),
            None => child.env_remove(STORE_VARIABLE),
        };
        String::from_utf8(child.output().unwrap().stdout).unwrap()
    };
    assert!(child(None).contains("built") && child(None).contains("memory:"));
    assert!(child(Some("memory:env")).contains("memory:env"));
    let refused = child(Some("mysql://u:hunter2@h"));
    assert!(refused.contains("refused TIDINGS_STORE"), "{refused}");
    assert!(!refused.contains("hunter2"), "{refused}");
}

#[cfg(feature = "redis")]
mod redis {
    use super::{cache_error, printed};
    use crate::bed::server;
    use std::io::{Read, Write};
    use tidings::error::StoreErrorKind;
    use tidings::testing::RedisServer;
    use tidings::{Cache, OnStoreAbsent};

    #[tokio::test]
    async fn a_wrong_password_is_refused_and_not_shown() {
        let server = RedisServer::builder().password("sesame").start().unwrap();
        for user in ["", ":hunter2@", "user:hunter2@"] {
            let url = format!("redis://{user}{}/0", server.addr());
            let builder = Cache::builder("t").store_url(url);
            let builder = builder.on_store_absent(OnStoreAbsent::StartDegraded);
            let error = cache_error(builder).await;
            assert_eq!(error.option(), "store");
            let kind = error.store_error().unwrap().kind();
            assert_eq!(kind, StoreErrorKind::Auth, "{user}");
            assert!(!printed(&error).contains("hunter2"), "{}", printed(&error));
        }
        let cache = Cache::builder("t")
            .store_url(server.url())
            .build()
            .await
            .unwrap();
        assert!(!format!("{cache:?}").contains("sesame"), "{cache:?}");
    }

    #[tokio::test]
    async fn a_database_that_is_not_there_is_refused() {
        let url = format!("{}/999", server().url());
        let error = cache_error(Cache::builder("t").store_url(url)).await;
        assert_eq!(error.option(), "store");
    }

    #[tokio::test]
    async fn what_is_no_redis_is_refused_even_if_a_degraded_start_is_allowed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut open = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut asked = [0; 1024];
                let _ = stream.read(&mut asked);
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
                open.push(stream);
            }
        });
        let builder = Cache::builder("t").store_url(format!("redis://{addr}"));
        let builder = builder.on_store_absent(OnStoreAbsent::StartDegraded);
        let error = cache_error(builder).await;
        assert_eq!(error.option(), "store");
        let kind = error.store_error().unwrap().kind();
        assert!(
            matches!(kind, StoreErrorKind::Protocol | StoreErrorKind::Unsupported),
            "{}",
            printed(&error)
        );
    }
}
