//! Lives in the store that is there: the clocks of pods move as a test says, that of the server as it
//! likes.

use crate::bed::{Bed, Numbers, Pod, eventually};
use crate::source::{Answer, Source};
use std::time::{Duration, Instant};
use tidings::{
    Clock, EarlyRefresh, Freshness, MAX_LOAD_TIMEOUT, Millis, Origin, ReadOptions, StaleReason, Ttl,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A pod with a clock of its own.
struct Timed {
    pod: Pod,
    clock: Clock,
}

impl Timed {
    async fn on(bed: &Bed) -> Self {
        let clock = Clock::manual(Millis(1_000_000));
        let pod = bed.pod_with(|builder| builder.clock(clock.clone())).await;
        Self { pod, clock }
    }

    /// Moves the time, and waits until the pod knows that it missed nothing.
    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
        eventually("a poll of the new time", async || {
            self.pod.cache.health().confirmed == Some(Duration::ZERO)
        })
        .await;
    }

    fn here(&self, numbers: &Numbers, keys: u64) -> u64 {
        (0..keys).filter(|key| numbers.peek(key).is_some()).count() as u64
    }
}

/// Has `count` keys loaded and stored.
async fn fill(pod: &Pod, numbers: &Numbers, count: u64) {
    for key in 0..count {
        numbers.get(&key).await.unwrap();
    }
    eventually("all are stored", async || numbers.stats().fills == count).await;
    assert_eq!(pod.wire.done("fill"), count);
}

async fn forever_has_no_end_in_the_store_and_one_here(bed: Bed) {
    let source = Source::new();
    let (a, b) = (Timed::on(&bed).await, Timed::on(&bed).await);
    let numbers = |at: &Timed| {
        let numbers = at.pod.builder(&source).ttl(Ttl::Forever);
        numbers.local_ttl(60 * SECOND).build().unwrap()
    };
    let (on_a, on_b) = (numbers(&a), numbers(&b));
    fill(&a.pod, &on_a, 1).await;
    for _ in 0..3 {
        let served = on_b.get_with(&0).await.unwrap();
        assert_eq!(served.origin, Origin::Store);
        b.pass(60 * SECOND - Duration::from_millis(1)).await;
        assert_eq!(b.here(&on_b, 1), 1);
        b.pass(Duration::from_millis(1)).await;
        assert_eq!(b.here(&on_b, 1), 0);
        b.pass(1000 * HOUR).await;
    }
    assert_eq!(source.loads(), 1);
}

/// What lived 20 s when it was stored has 17 s at most three seconds later, wherever it is read; a pod
/// knows the time of the server as of its last poll.
async fn nothing_lives_longer_here_than_what_is_left_of_it_in_the_store(bed: Bed) {
    let source = Source::new();
    let a = bed.pod().await;
    let plain = |pod: &Pod, name: &str, ttl: Duration| {
        let numbers = pod.cache.entity(name, source.clone()).ttl(ttl).jitter(0.0);
        numbers.early_refresh(EarlyRefresh::Off).build().unwrap()
    };
    fill(&a, &plain(&a, "brief", 20 * SECOND), 1).await;
    let filled = Instant::now();
    fill_also(&a, &plain(&a, "long", HOUR)).await;
    eventually("a while", async || filled.elapsed() > 3 * SECOND).await;
    let b = Timed::on(&bed).await;
    let (brief, long) = (plain(&b.pod, "brief", HOUR), plain(&b.pod, "long", HOUR));
    for numbers in [&brief, &long] {
        let served = numbers.get_with(&0).await.unwrap();
        assert_eq!(served.origin, Origin::Store);
        assert_eq!(b.here(numbers, 1), 1);
    }
    b.pass(19 * SECOND).await;
    assert_eq!((b.here(&brief, 1), b.here(&long, 1)), (0, 1));
}

async fn fill_also(pod: &Pod, numbers: &Numbers) {
    let fills = pod.wire.done("fill");
    numbers.get(&0).await.unwrap();
    pod.done("fill", fills + 1).await;
}

/// A tenth either way by default, in the store as well as here. That 64 tosses of a coin fall alike is
/// once in nine million million million times.
async fn long_lives_are_spread_in_the_store_unless_told_otherwise(bed: Bed) {
    const KEYS: u64 = 64;
    let source = Source::new();
    let a = bed.pod().await;
    let hours = |pod: &Pod, name: &str| pod.cache.entity(name, source.clone()).ttl(10 * HOUR);
    let spread = hours(&a, "spread").build().unwrap();
    let exact = hours(&a, "exact").jitter(0.0).build().unwrap();
    for numbers in [&spread, &exact] {
        for key in 0..KEYS {
            numbers.get(&key).await.unwrap();
        }
        eventually("stored", async || numbers.stats().fills == KEYS).await;
    }
    let b = Timed::on(&bed).await;
    let long = |name| {
        let numbers = hours(&b.pod, name).local_ttl(20 * HOUR);
        let numbers = numbers.early_refresh(EarlyRefresh::Off);
        numbers.build().unwrap()
    };
    let (spread, exact) = (long("spread"), long("exact"));
    for key in 0..KEYS {
        for numbers in [&spread, &exact] {
            let served = numbers.get_with(&key).await.unwrap();
            assert_eq!(served.origin, Origin::Store);
        }
    }
    // Some minutes either way for what the test has taken so far.
    let minutes = 300 * SECOND;
    b.pass(9 * HOUR - minutes).await;
    assert_eq!((b.here(&spread, KEYS), b.here(&exact, KEYS)), (KEYS, KEYS));
    b.pass(HOUR).await;
    let half = b.here(&spread, KEYS);
    assert!(0 < half && half < KEYS, "{half}");
    assert_eq!(b.here(&exact, KEYS), KEYS);
    b.pass(2 * minutes).await;
    assert_eq!(b.here(&exact, KEYS), 0);
    b.pass(HOUR).await;
    assert_eq!(b.here(&spread, KEYS), 0);
}

async fn after_a_failed_refresh_a_key_is_left_alone_for_as_long_as_was_said(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let brief = |name: &str, pause: Duration| {
        let numbers = pod.cache.entity(name, source.clone());
        let numbers = numbers.ttl(Duration::from_millis(20)).grace(HOUR);
        numbers.retry_after(pause).build().unwrap()
    };
    let (patient, eager) = (brief("patient", HOUR), brief("eager", SECOND / 100));
    for numbers in [&patient, &eager] {
        numbers.get(&0).await.unwrap();
        eventually("stored", async || numbers.stats().fills == 1).await;
    }
    source.answer(0, Answer::Refusal(7));
    let failed = async |numbers: &Numbers| {
        let served = numbers.get_with(&0).await.unwrap();
        let reason = StaleReason::LoadFailed;
        matches!(served.freshness, Freshness::Stale { reason: r, .. } if r == reason)
    };
    for numbers in [&patient, &eager] {
        eventually("a refresh fails", async || failed(numbers).await).await;
    }
    let before = eager.stats().loads;
    eventually("it is tried again and again", async || {
        assert!(failed(&patient).await);
        eager.get(&0).await.unwrap();
        eager.stats().loads > before + 5
    })
    .await;
    assert_eq!(patient.stats().loads, 2, "the other is not");
}

/// Read all the time, it is never found expired, once it is renewed in time.
async fn what_is_read_often_is_renewed_before_it_expires(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let slow = {
        let source = source.clone();
        move |key: u64| {
            let source = source.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(30)).await;
                source.ask(key).await
            }
        }
    };
    let numbers = pod.cache.entity("number", slow).ttl(2 * SECOND);
    let numbers = numbers.build().unwrap();
    numbers.get(&1).await.unwrap();
    eventually("a renewal that nobody had to wait for", async || {
        let before = numbers.stats();
        numbers.get(&1).await.unwrap();
        let now = numbers.stats();
        // A machine that stands still for the last fifth of a life makes for a miss, and another try.
        now.misses == before.misses && source.loads() as u64 > now.misses
    })
    .await;
}

async fn a_life_of_any_length_is_one_in_every_call(bed: Bed) {
    let century = 876_600 * HOUR;
    for (key, life) in [century, Duration::from_millis(u64::MAX - 1), Duration::MAX]
        .into_iter()
        .enumerate()
    {
        let (a, b) = (bed.pod().await, bed.pod().await);
        let key = key as u64;
        let source = Source::new();
        let numbers = |pod: &Pod| {
            let numbers = pod.builder(&source).ttl(life).grace(life).local_ttl(life);
            let numbers = numbers.retry_after(life).load_timeout(MAX_LOAD_TIMEOUT);
            numbers.build().unwrap()
        };
        let (on_a, on_b) = (numbers(&a), numbers(&b));
        on_a.get(&key).await.unwrap();
        eventually("it is stored", async || on_a.stats().fills == 1).await;
        let served = on_b.get_with(&key).await.unwrap();
        assert_eq!(served.origin, Origin::Store);
        assert!(matches!(served.freshness, Freshness::Fresh { .. }));
        assert!(on_b.peek(&key).is_some(), "{life:?}");
        let loads = source.loads();
        on_b.refresh(&key).await.unwrap();
        on_b.get_strict(&key).await.unwrap();
        on_b.get_many(&[key]).await.remove(0).unwrap();
        let limits = ReadOptions::new().deadline(life).max_stale(life);
        on_b.with(limits).get(&key).await.unwrap();
        assert!(source.loads() > loads, "it was refreshed");
        on_b.invalidate(&key).await.unwrap();
    }
}

on_both_stores!(
    a_life_of_any_length_is_one_in_every_call,
    forever_has_no_end_in_the_store_and_one_here,
    nothing_lives_longer_here_than_what_is_left_of_it_in_the_store,
    long_lives_are_spread_in_the_store_unless_told_otherwise,
    after_a_failed_refresh_a_key_is_left_alone_for_as_long_as_was_said,
    what_is_read_often_is_renewed_before_it_expires,
);
