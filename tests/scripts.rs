//! Commands and scripts of the user, on the connection of the cache.
#![cfg(feature = "redis")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use bytes::Bytes;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tidings::script::{FromReply, Key, Reply, Script, ToArgs};
use tidings::store::Redis;
use tidings::testing::RedisServer;
use tidings::{Cache, RedisCommands, StoreError, StoreErrorKind};

const PATIENCE: Duration = Duration::from_secs(30);
const SECRET: &str = "hunter2";

static INCR_BY: Script<(Key, i64), i64> =
    Script::new("incr_by", "return redis.call('INCRBY', KEYS[1], ARGV[1])");
type Words = Vec<String>;

static ECHO: Script<(Vec<Key>, Words), (Words, Words)> = Script::new("echo", "return {KEYS, ARGV}");
/// Fails as it is told to.
static FAIL: Script<(String, String), ()> = Script::new(
    "fail",
    "if ARGV[1] == 'error' then error(ARGV[2])
     elseif ARGV[1] == 'reply' then return redis.error_reply(ARGV[2])
     elseif ARGV[1] == 'nested' then return {1, redis.error_reply(ARGV[2])}
     else return redis.call(ARGV[1], ARGV[2]) end",
);

struct Bed {
    server: RedisServer,
    cache: Cache,
    redis: RedisCommands,
}

impl Bed {
    async fn new() -> Self {
        let server = RedisServer::start().unwrap();
        let store = Redis::new(&server.url()).unwrap();
        let cache = Cache::builder("shop").store(store).build().await.unwrap();
        let redis = cache.redis().unwrap();
        Self {
            server,
            cache,
            redis,
        }
    }

    async fn refusal(&self, command: &'static str, args: impl ToArgs) -> StoreError {
        self.redis.send::<()>(command, args).await.unwrap_err()
    }

    /// How often the server has run a command, a subcommand by its name with a bar.
    fn calls(&self, command: &str) -> u64 {
        let stats = self.server.cli(&["INFO", "commandstats"]).unwrap();
        let line = stats.lines().find_map(|line| {
            let line = line.strip_prefix("cmdstat_")?.strip_prefix(command)?;
            line.strip_prefix(":calls=")
        });
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    }
}

async fn eventually(what: &str, mut look: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !look().await {
        assert!(began.elapsed() < PATIENCE, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Names what was asked, and says nothing of what was handed over.
fn keeps_the_secret(error: &StoreError, operation: &str) {
    assert_eq!(error.operation(), operation);
    let mut said = format!("{error} {error:?}").to_lowercase();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        said += &format!("{cause} {cause:?}").to_lowercase();
        source = cause.source();
    }
    assert!(!said.contains(SECRET), "{said}");
}

#[tokio::test]
async fn a_script_is_loaded_once_and_run_by_its_hash_by_all_callers() {
    let bed = Bed::new().await;
    let loads = bed.calls("script|load");
    assert_eq!(bed.redis.script(&INCR_BY).run(("n", 5)).await.unwrap(), 5);
    let other = bed.cache.redis().unwrap();
    for n in 1..=20 {
        let key = String::from("n");
        assert_eq!(other.script(&INCR_BY).run((&key, -1)).await.unwrap(), 5 - n);
    }
    assert_eq!(bed.calls("script|load") - loads, 1);
    assert_eq!(bed.calls("eval"), 0);
}

#[tokio::test]
async fn a_script_that_the_server_forgot_is_loaded_again_and_run_once() {
    let bed = Bed::new().await;
    for n in 1..=3 {
        bed.server.cli(&["SCRIPT", "FLUSH"]).unwrap();
        assert_eq!(bed.redis.script(&INCR_BY).run(("n", 1)).await.unwrap(), n);
    }
}

#[tokio::test]
async fn keys_and_arguments_reach_the_script_in_order() {
    let bed = Bed::new().await;
    let words = |words: &[&str]| {
        words
            .iter()
            .map(|&word| word.to_owned())
            .collect::<Vec<_>>()
    };
    let answer = bed
        .redis
        .script(&ECHO)
        .run((["a", "b"], vec!["1", "2", "3"]));
    assert_eq!(
        answer.await.unwrap(),
        (words(&["a", "b"]), words(&["1", "2", "3"]))
    );
    let none: [&str; 0] = [];
    let answer = bed.redis.script(&ECHO).run((none, none)).await.unwrap();
    assert_eq!(answer, (words(&[]), words(&[])));
}

#[tokio::test]
async fn answers_come_as_the_type_that_was_asked_for() {
    let bed = Bed::new().await;
    let redis = &bed.redis;
    assert_eq!(redis.send::<String>("PING", ()).await.unwrap(), "PONG");
    let blob: &[u8] = b"\xff\0\r\n";
    redis
        .send::<()>("SET", ("k", blob, "PX", 60_000))
        .await
        .unwrap();
    let stored: Bytes = redis.send("GET", "k").await.unwrap();
    assert_eq!(stored, blob);
    let stored: Vec<u8> = redis.send("GET", "k").await.unwrap();
    assert_eq!(stored, blob);
    let missing: Option<String> = redis.send("GET", "missing").await.unwrap();
    assert_eq!(missing, None);
    assert!(redis.send::<bool>("EXISTS", "k").await.unwrap());
    assert!(!redis.send::<bool>("SET", ("k", "v", "NX")).await.unwrap());
    assert!(redis.send::<bool>("SET", ("k", "v", "XX")).await.unwrap());
    redis.send::<()>("INCRBYFLOAT", ("f", 0.25)).await.unwrap();
    assert_eq!(redis.send::<f64>("GET", "f").await.unwrap(), 0.25);
    let fields = vec![("a", 1), ("b", 2)];
    assert_eq!(redis.send::<u64>("HSET", ("h", fields)).await.unwrap(), 2);
    let all: HashMap<String, u64> = redis.send("HGETALL", "h").await.unwrap();
    assert_eq!(
        all,
        HashMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)])
    );
    let many: (Option<u64>, Option<u64>) = redis.send("HMGET", ("h", ["a", "x"])).await.unwrap();
    assert_eq!(many, (Some(1), None));
    let time: (u64, u64) = redis.send("TIME", ()).await.unwrap();
    assert!(time.0 > 1_600_000_000);
    let policy: Vec<String> = redis.send("CONFIG GET", "maxmemory-policy").await.unwrap();
    assert_eq!(policy, ["maxmemory-policy", "noeviction"]);
    assert_eq!(
        redis.send::<Reply>("ECHO", 5).await.unwrap(),
        Reply::Bytes("5".into())
    );
}

#[tokio::test]
async fn another_answer_than_asked_for_is_a_protocol_error_that_names_the_command() {
    async fn asked<R: FromReply>(bed: &Bed, command: &'static str, args: impl ToArgs) {
        let Err(error) = bed.redis.send::<R>(command, args).await else {
            panic!("{command} was taken")
        };
        assert_eq!(error.kind(), StoreErrorKind::Protocol, "{error}");
        keeps_the_secret(&error, command);
    }
    let bed = Bed::new().await;
    bed.redis.send::<()>("SET", ("k", SECRET)).await.unwrap();
    asked::<i64>(&bed, "GET", "k").await;
    asked::<String>(&bed, "GET", "missing").await;
    asked::<Vec<String>>(&bed, "GET", "k").await;
    asked::<bool>(&bed, "GET", "k").await;
    asked::<(String, String)>(&bed, "MGET", "k").await;
    asked::<HashMap<String, String>>(&bed, "MGET", "k").await;
    static TEXT: Script<Key, u64> = Script::new("text", "return redis.call('GET', KEYS[1])");
    let error = bed.redis.script(&TEXT).run("k").await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Protocol);
    assert!(error.to_string().contains("a string, not u64"), "{error}");
    keeps_the_secret(&error, "text");
}

#[tokio::test]
async fn errors_name_the_command_and_its_kind_and_never_an_argument() {
    let bed = Bed::new().await;
    bed.redis
        .send::<()>("HSET", (SECRET, "f", SECRET))
        .await
        .unwrap();
    let error = bed.refusal("GET", SECRET).await;
    assert_eq!(error.kind(), StoreErrorKind::WrongType);
    assert!(error.to_string().contains("WRONGTYPE"), "{error}");
    keeps_the_secret(&error, "GET");

    let error = bed
        .redis
        .script(&INCR_BY)
        .run((SECRET, 1))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::WrongType);
    assert!(
        error
            .to_string()
            .contains("incr_by: EVALSHA answered WRONGTYPE"),
        "{error}"
    );
    keeps_the_secret(&error, "incr_by");

    for how in ["error", "reply", "nested", "LLEN hunter2", SECRET] {
        for secret in [SECRET, "HUNTER2", "ERR hunter2", "-HUNTER2 x"] {
            let error = bed
                .redis
                .script(&FAIL)
                .run((how, secret))
                .await
                .unwrap_err();
            keeps_the_secret(&error, "fail");
        }
    }
    let error = bed
        .redis
        .script(&FAIL)
        .run(("reply", "LIMIT reached"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Protocol);
    keeps_the_secret(&bed.refusal("NOSUCHCOMMAND", SECRET).await, "NOSUCHCOMMAND");
    keeps_the_secret(&bed.refusal("BLPOP", (SECRET, 0)).await, "BLPOP");
    let broken: Script<String, ()> = Script::new("broken", "this is no Lua");
    let error = bed.redis.script(&broken).run(SECRET).await.unwrap_err();
    keeps_the_secret(&error, "broken");

    bed.server
        .cli(&["ACL", "SETUSER", "default", "-get"])
        .unwrap();
    let error = bed.refusal("GET", SECRET).await;
    assert_eq!(error.kind(), StoreErrorKind::Denied);
    keeps_the_secret(&error, "GET");
}

#[tokio::test]
async fn an_error_code_of_the_script_itself_is_given() {
    let bed = Bed::new().await;
    static LIMITED: Script<(), ()> =
        Script::new("limited", "return redis.error_reply('LIMIT 5 per second')");
    let error = bed.redis.script(&LIMITED).run(()).await.unwrap_err();
    assert!(
        error.to_string().ends_with("EVALSHA answered LIMIT"),
        "{error}"
    );
}

#[tokio::test]
async fn commands_that_would_harm_the_shared_connection_are_refused_unsent() {
    let bed = Bed::new().await;
    for (command, args) in [
        ("BLPOP", &["q", "0"][..]),
        ("subscribe", &["c"]),
        ("MULTI", &[]),
        ("SELECT", &["1"]),
        ("CLIENT", &["REPLY", "OFF"]),
        ("XREAD", &["BLOCK", "0", "STREAMS", "s", "$"]),
        ("", &[]),
    ] {
        let error = bed.refusal(command, args).await;
        assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
        assert!(!error.is_transient());
        assert_eq!(error.operation(), command);
    }
    assert_eq!(bed.calls("blpop") + bed.calls("multi"), 0);
    bed.redis.send::<()>("PING", ()).await.unwrap();
}

#[tokio::test]
async fn a_server_that_does_not_answer_ends_calls_at_their_deadline() {
    let bed = Bed::new().await;
    bed.server.pause().unwrap();
    let hasty = bed.redis.deadline(Duration::from_millis(20));
    let error = hasty.send::<String>("PING", ()).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Timeout);
    keeps_the_secret(&error, "PING");
    bed.server.resume().unwrap();
    eventually("it answers again", async || {
        bed.redis.send::<String>("PING", ()).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_killed_server_is_unavailable_and_used_again_when_it_is_back() {
    let mut bed = Bed::new().await;
    bed.redis.script(&INCR_BY).run(("n", 1)).await.unwrap();
    bed.server.kill();
    let error = bed
        .redis
        .script(&INCR_BY)
        .run((SECRET, 1))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error:?}");
    keeps_the_secret(&error, "incr_by");
    eventually("the cache has noticed", async || {
        !matches!(bed.cache.health().store, tidings::StoreState::Up)
    })
    .await;
    let error = bed.redis.send::<()>("GET", SECRET).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error:?}");
    keeps_the_secret(&error, "GET");
    bed.server.restart().unwrap();
    // The new server knows no script, and the new connection is another one.
    eventually("it works again", async || {
        bed.redis.script(&INCR_BY).run(("n", 1)).await.is_ok()
    })
    .await;
    let n: i64 = bed.redis.send("GET", "n").await.unwrap();
    assert_eq!(n, 1);
}

#[tokio::test]
async fn after_close_every_call_says_so() {
    let bed = Bed::new().await;
    bed.cache.close().await;
    let error = bed.redis.script(&INCR_BY).run(("n", 1)).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.operation()),
        (StoreErrorKind::Closed, "incr_by")
    );
    assert_eq!(bed.refusal("PING", ()).await.kind(), StoreErrorKind::Closed);
}

#[tokio::test]
async fn everything_goes_over_the_one_connection_that_the_cache_has() {
    let bed = Bed::new().await;
    let clients = || bed.server.cli(&["CLIENT", "LIST"]).unwrap().lines().count();
    let before = clients();
    let calls = (0..100).map(|_| {
        let redis = bed.redis.clone();
        tokio::spawn(async move { redis.script(&INCR_BY).run(("n", 1)).await })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
    assert_eq!(clients(), before);
    assert_eq!(bed.redis.send::<i64>("GET", "n").await.unwrap(), 100);
}

#[tokio::test]
async fn a_cache_on_another_store_has_no_redis() {
    let cache = Cache::builder("shop").store(tidings::store::Memory::new());
    assert!(cache.build().await.unwrap().redis().is_none());
}
