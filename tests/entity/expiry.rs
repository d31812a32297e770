//! When lives end, to the millisecond: on the embedded store, with one clock that the test moves.

use crate::bed::{Numbers, Pod};
use crate::lab::{Lab, MS, SECOND};
use tidings::{EarlyRefresh, Origin, Ttl};

async fn origin(numbers: &Numbers, key: u64) -> Origin {
    numbers.get_with(&key).await.unwrap().origin
}

#[tokio::test(start_paused = true)]
async fn a_life_ends_in_both_levels_at_the_millisecond_it_was_given() {
    let lab = Lab::new();
    let (a, b) = (lab.pod().await, lab.pod().await);
    // A load that a busy machine stretches to milliseconds would be repeated just before the end.
    let numbers = |pod: &Pod| {
        let numbers = pod.builder(&lab.source).ttl(5 * SECOND);
        numbers.early_refresh(EarlyRefresh::Off).build().unwrap()
    };
    let (on_a, on_b) = (numbers(&a), numbers(&b));
    on_a.get(&1).await.unwrap();
    a.done("fill", 1).await;
    lab.pass(5 * SECOND - MS, &[&a, &b]).await;
    assert_eq!(origin(&on_a, 1).await, Origin::Local);
    assert_eq!(origin(&on_b, 1).await, Origin::Store);
    assert_eq!(origin(&on_b, 1).await, Origin::Local);
    lab.pass(MS, &[&a, &b]).await;
    assert_eq!((on_a.peek(&1), on_b.peek(&1)), (None, None));
    assert_eq!(origin(&on_b, 1).await, Origin::Loader);
}

#[tokio::test(start_paused = true)]
async fn a_value_lives_here_no_longer_than_what_is_left_of_it_in_the_store() {
    let lab = Lab::new();
    let (a, b) = (lab.pod().await, lab.pod().await);
    let on_a = a.builder(&lab.source).ttl(5 * SECOND).build().unwrap();
    // As above: it is read just before its end.
    let on_b = b.builder(&lab.source).early_refresh(EarlyRefresh::Off);
    let on_b = on_b.local_ttl(3 * SECOND).build().unwrap();
    on_a.get(&1).await.unwrap();
    a.done("fill", 1).await;
    lab.pass(4 * SECOND, &[&a, &b]).await;
    let served = on_b.get_with(&1).await.unwrap();
    assert_eq!((served.origin, served.age), (Origin::Store, 4 * SECOND));
    lab.pass(SECOND - MS, &[&a, &b]).await;
    assert_eq!(on_b.get_with(&1).await.unwrap().age, 5 * SECOND - MS);
    lab.pass(MS, &[&a, &b]).await;
    assert_eq!(on_b.peek(&1), None);
}

#[tokio::test(start_paused = true)]
async fn the_local_life_ends_first_where_it_is_shorter() {
    let lab = Lab::new();
    let pod = lab.pod().await;
    let numbers = pod
        .builder(&lab.source)
        .ttl(10 * SECOND)
        .local_ttl(2 * SECOND);
    let numbers = numbers.build().unwrap();
    numbers.get(&1).await.unwrap();
    pod.done("fill", 1).await;
    lab.pass(2 * SECOND - MS, &[&pod]).await;
    assert_eq!(origin(&numbers, 1).await, Origin::Local);
    lab.pass(MS, &[&pod]).await;
    assert_eq!(origin(&numbers, 1).await, Origin::Store);
}

#[tokio::test(start_paused = true)]
async fn forever_is_for_ever_in_the_store_and_bounded_here() {
    let lab = Lab::new();
    let (a, b) = (lab.pod().await, lab.pod().await);
    let numbers = |pod: &Pod| {
        let numbers = pod.builder(&lab.source).ttl(Ttl::Forever);
        numbers.local_ttl(60 * SECOND).build().unwrap()
    };
    let (on_a, on_b) = (numbers(&a), numbers(&b));
    on_a.get(&1).await.unwrap();
    a.done("fill", 1).await;
    lab.pass(60 * SECOND, &[&a, &b]).await;
    assert_eq!(on_a.peek(&1), None);
    lab.pass(10 * 365 * 86_400 * SECOND, &[&a, &b]).await;
    assert_eq!(origin(&on_b, 1).await, Origin::Store);
    lab.pass(60 * SECOND - MS, &[&a, &b]).await;
    assert_eq!(origin(&on_b, 1).await, Origin::Local);
}

#[tokio::test(start_paused = true)]
async fn a_life_below_a_millisecond_rounds_up_in_the_store() {
    let lab = Lab::new();
    let (a, b) = (lab.pod().await, lab.pod().await);
    let on_a = a.builder(&lab.source).ttl(MS / 10).build().unwrap();
    on_a.get(&1).await.unwrap();
    a.done("fill", 1).await;
    assert_eq!(origin(&b.numbers(&lab.source), 1).await, Origin::Store);
    lab.pass(MS, &[&a, &b]).await;
    assert_eq!(origin(&b.numbers(&lab.source), 1).await, Origin::Loader);
}

#[tokio::test(start_paused = true)]
async fn long_lives_are_spread_by_the_jitter_and_no_further() {
    const KEYS: u64 = 400;
    let lab = Lab::new();
    let pod = lab.pod().await;
    let numbers = pod.builder(&lab.source).ttl(100 * SECOND).jitter(0.2);
    let numbers = numbers.build().unwrap();
    let exact = pod
        .cache
        .entity("exact", lab.source.clone())
        .ttl(100 * SECOND)
        .jitter(0.0);
    let exact = exact.build().unwrap();
    let short = pod
        .cache
        .entity("short", lab.source.clone())
        .ttl(10 * SECOND)
        .jitter(0.9);
    let short = short.build().unwrap();
    for key in 0..KEYS {
        numbers.get(&key).await.unwrap();
        exact.get(&key).await.unwrap();
        short.get(&key).await.unwrap();
    }
    let alive = |numbers: &Numbers| (0..KEYS).filter(|key| numbers.peek(key).is_some()).count();
    lab.pass(10 * SECOND - MS, &[&pod]).await;
    assert_eq!(alive(&short), 400, "lives up to ten seconds are exact");
    lab.pass(MS, &[&pod]).await;
    assert_eq!(alive(&short), 0);
    lab.pass(70 * SECOND - MS, &[&pod]).await;
    assert_eq!(alive(&numbers), 400);
    lab.pass(20 * SECOND, &[&pod]).await;
    assert_eq!(alive(&exact), 400);
    let half = alive(&numbers);
    // 400 tosses of a coin: eight standard deviations either way.
    assert!((120..=280).contains(&half), "{half} of 400");
    lab.pass(MS, &[&pod]).await;
    assert_eq!(alive(&exact), 0);
    lab.pass(20 * SECOND, &[&pod]).await;
    assert_eq!(alive(&numbers), 0);
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_no_poll_confirms_is_served_for_the_bound_and_not_a_millisecond_longer() {
    let lab = Lab::new();
    let pod = lab.pod().await;
    let numbers = pod.numbers(&lab.source);
    numbers.get(&1).await.unwrap();
    pod.wire.cut(true);
    lab.clock.advance(SECOND - MS);
    assert_eq!(numbers.peek(&1).as_deref(), Some(&0));
    lab.clock.advance(MS);
    assert_eq!(numbers.peek(&1), None);
    pod.wire.cut(false);
    lab.pass(MS, &[&pod]).await;
    assert!(numbers.peek(&1).is_some(), "nothing was missed meanwhile");
}
