//! Flights: who leads, who waits, and who takes over.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Barrier;
use tokio::task::{JoinSet, yield_now};
use tokio::time::timeout;

use crate::Millis;
use crate::coherence::{FlightMeta, Rank};
use crate::flight::*;

#[path = "tests/stress.rs"]
mod stress;

type Key = &'static str;

/// Long enough for a loaded machine; reached only if a wake-up was lost.
const DEADLINE: Duration = Duration::from_secs(60);

fn meta(rank: u64) -> FlightMeta {
    FlightMeta {
        rank: Rank(rank),
        start: Millis(rank),
        uncovered: false,
    }
}

fn any(_: &FlightMeta) -> bool {
    true
}

fn older_than(rank: u64) -> impl Fn(&FlightMeta) -> bool {
    move |flight| flight.rank < Rank(rank)
}

fn lead<K: Eq + Clone, T>(
    flights: &Flights<K, T>,
    key: K,
    meta: FlightMeta,
) -> (Guard<K, T>, Waiter<K, T>) {
    match flights.board(1, &key, meta, |_| false) {
        Boarding::Leader(guard, waiter) => (guard, waiter),
        Boarding::Waiter(_) => panic!("joined a flight that may not be joined"),
    }
}

fn join<K: Eq + Clone, T>(flights: &Flights<K, T>, key: K) -> Waiter<K, T> {
    match flights.board(1, &key, meta(0), any) {
        Boarding::Leader(..) => panic!("nobody to join"),
        Boarding::Waiter(waiter) => waiter,
    }
}

fn poll<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// What `waiter` gets without waiting.
fn landed<K, T: Clone>(waiter: &mut Waiter<K, T>) -> Option<Landing<T>> {
    match poll(waiter.wait()) {
        Poll::Ready(Flown::Landed(landing)) => Some(landing),
        Poll::Ready(Flown::Lead(_)) | Poll::Pending => None,
    }
}

/// The lead, if it is `waiter`'s to take.
fn taken<K, T: Clone>(waiter: &mut Waiter<K, T>) -> Option<Guard<K, T>> {
    match poll(waiter.wait()) {
        Poll::Ready(Flown::Lead(guard)) => Some(guard),
        Poll::Ready(Flown::Landed(_)) | Poll::Pending => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_concurrent_callers_share_one_load() {
    const CALLERS: usize = 1000;
    let flights = Flights::<Key, usize>::new();
    let (loads, aboard) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(Barrier::new(CALLERS)),
    );
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (flights, loads, aboard) = (flights.clone(), loads.clone(), aboard.clone());
        callers.spawn(async move {
            let (guard, mut waiter) = match flights.board(1, &"k", meta(0), any) {
                Boarding::Leader(guard, waiter) => (Some(guard), waiter),
                Boarding::Waiter(waiter) => (None, waiter),
            };
            aboard.wait().await;
            if let Some(guard) = guard {
                guard.land(7 + loads.fetch_add(1, Ordering::SeqCst));
            }
            match waiter.wait().await {
                Flown::Landed(landing) => landing,
                Flown::Lead(_) => panic!("the lead was not dropped"),
            }
        });
    }
    let outcomes = timeout(DEADLINE, callers.join_all())
        .await
        .expect("nobody waits for ever");
    assert!(outcomes.iter().all(|outcome| *outcome == Landing::Done(7)));
    assert_eq!((loads.load(Ordering::SeqCst), flights.len()), (1, 0));
}

#[tokio::test]
async fn next_waiter_leads_when_the_leader_is_dropped() {
    let flights = Flights::<Key, u32>::new();
    let (guard, waiter) = lead(&flights, "k", meta(0));
    let mut next = join(&flights, "k");
    let next = tokio::spawn(async move {
        match next.wait().await {
            Flown::Lead(guard) => guard.land(2),
            Flown::Landed(_) => panic!("nothing has landed"),
        }
        landed(&mut next)
    });
    yield_now().await;
    drop((guard, waiter));
    let outcome = timeout(DEADLINE, next)
        .await
        .expect("woken")
        .expect("no panic");
    assert_eq!(outcome, Some(Landing::Done(2)));
    assert_eq!(flights.len(), 0);
}

#[test]
fn the_lead_is_handed_to_one_waiter_only() {
    let flights = Flights::<Key, u32>::new();
    let (guard, mut first) = lead(&flights, "k", meta(0));
    let mut second = join(&flights, "k");
    drop(guard);
    let guard = taken(&mut first).expect("vacant");
    assert!(
        poll(first.wait()).is_pending(),
        "it waits for its own guard like for any other"
    );
    assert!(poll(second.wait()).is_pending());
    guard.land(3);
    assert_eq!(landed(&mut second), Some(Landing::Done(3)));
    assert_eq!(landed(&mut second), Some(Landing::Done(3)), "and again");
}

#[tokio::test]
async fn lead_passes_on_when_the_next_waiters_go_before_they_take_it() {
    let flights = Flights::<Key, u32>::new();
    let (guard, waiter) = lead(&flights, "k", meta(0));
    let (mut woken, mut forgotten, mut last) = (
        join(&flights, "k"),
        join(&flights, "k"),
        join(&flights, "k"),
    );
    let mut woken_wait = Box::pin(woken.wait());
    let mut forgotten_wait = Box::pin(forgotten.wait());
    assert!(poll(woken_wait.as_mut()).is_pending());
    assert!(poll(forgotten_wait.as_mut()).is_pending());
    let last = tokio::spawn(async move { matches!(last.wait().await, Flown::Lead(_)) });
    yield_now().await;

    drop((guard, waiter));
    drop(woken_wait); // notified, and dropped before it was polled
    drop(woken);
    // `forgotten_wait` was notified too, and is never polled again
    assert!(
        timeout(DEADLINE, last)
            .await
            .expect("woken")
            .expect("no panic")
    );

    drop(forgotten_wait);
    let guard = taken(&mut forgotten).expect("the last one dropped the lead in its turn");
    drop(guard);
    assert_eq!(flights.len(), 1);
    drop(forgotten);
    assert_eq!(flights.len(), 0, "nobody is left");
}

#[test]
fn a_caller_who_boards_a_vacant_flight_takes_its_lead() {
    let flights = Flights::<Key, u32>::new();
    let (guard, first) = lead(&flights, "k", meta(0));
    drop(guard);
    let mut late = join(&flights, "k");
    drop(first);
    assert!(taken(&mut late).is_some());
}

#[test]
fn flight_ends_when_the_leader_goes_and_nobody_waits() {
    let flights = Flights::<Key, u32>::new();
    let (guard, waiter) = lead(&flights, "k", meta(0));
    drop(waiter);
    assert_eq!(flights.len(), 1);
    drop(guard);
    assert_eq!(flights.len(), 0);
}

#[tokio::test]
async fn a_panic_of_the_leader_frees_everybody() {
    let flights = Flights::<Key, u32>::new();
    let (guard, mut leader) = lead(&flights, "k", meta(0));
    let mut waiter = join(&flights, "k");
    let load = tokio::spawn(async move {
        let _guard = guard;
        yield_now().await;
        panic!("a loader's panic, part of the test");
    });
    let aboard = async { (leader.wait().await, waiter.wait().await) };
    let flown = timeout(DEADLINE, aboard)
        .await
        .expect("nobody waits for ever");
    assert!(matches!(
        flown,
        (
            Flown::Landed(Landing::Aborted),
            Flown::Landed(Landing::Aborted)
        )
    ));
    assert!(load.await.expect_err("it panicked").is_panic());
    assert_eq!(flights.len(), 0);
}

#[test]
fn a_leader_whose_panic_was_caught_aborts() {
    let flights = Flights::<Key, u32>::new();
    let (guard, mut waiter) = lead(&flights, "k", meta(0));
    guard.abort();
    assert_eq!(landed(&mut waiter), Some(Landing::Aborted));
    assert_eq!(flights.len(), 0);
}

#[test]
fn a_panic_in_a_callers_closure_spoils_nothing() {
    let flights = Flights::<Key, u32>::new();
    let (guard, mut waiter) = lead(&flights, "k", meta(0));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        flights.detach(1, |_| panic!("of the test"))
    }));
    assert!(panicked.is_err());
    let mut joined = join(&flights, "k");
    guard.land(1);
    assert_eq!(landed(&mut waiter), Some(Landing::Done(1)));
    assert_eq!(landed(&mut joined), Some(Landing::Done(1)));
    assert_eq!(flights.len(), 0);
}

#[tokio::test]
async fn load_is_abandoned_only_when_every_caller_is_gone() {
    let flights = Flights::<Key, u32>::new();
    let (guard, first) = lead(&flights, "k", meta(0));
    let second = join(&flights, "k");
    let abandoned = tokio::spawn(guard.abandoned());
    drop(first);
    yield_now().await;
    assert!(poll(guard.abandoned()).is_pending());
    assert!(!abandoned.is_finished());
    drop(second);
    timeout(DEADLINE, abandoned)
        .await
        .expect("woken")
        .expect("no panic");
    drop(guard);
    assert_eq!(flights.len(), 0);
}

#[test]
fn a_caller_who_boards_in_time_keeps_the_load_alive() {
    let flights = Flights::<Key, u32>::new();
    let (guard, first) = lead(&flights, "k", meta(0));
    let mut abandoned = Box::pin(guard.abandoned());
    assert!(poll(abandoned.as_mut()).is_pending());
    drop(first);
    let _second = join(&flights, "k");
    assert!(
        poll(abandoned.as_mut()).is_pending(),
        "notified, but no longer true"
    );
}

#[test]
fn load_is_never_abandoned_once_a_caller_left_it_running() {
    let flights = Flights::<Key, u32>::new();
    let (guard, first) = lead(&flights, "k", meta(0));
    let second = join(&flights, "k");
    first.leave_running();
    drop(second);
    assert!(poll(guard.abandoned()).is_pending());
    let mut late = join(&flights, "k");
    guard.land(1);
    assert_eq!(landed(&mut late), Some(Landing::Done(1)));
}

#[test]
fn detached_flight_is_not_joined_and_keeps_its_waiters() {
    let flights = Flights::<Key, u32>::new();
    let (old, mut early) = lead(&flights, "k", meta(5));
    assert!(
        !flights.detach(1, older_than(5)),
        "it began at the invalidation"
    );
    assert!(!flights.detach(2, any), "another key");
    assert!(!old.is_detached());
    assert!(flights.detach(1, older_than(6)));
    assert!(old.is_detached());
    assert!(!flights.detach(1, any), "it is gone from the map");

    let Boarding::Leader(new, mut late) = flights.board(1, &"k", meta(6), any) else {
        panic!("joined a detached flight");
    };
    old.land(1);
    assert_eq!(
        (landed(&mut early), landed(&mut late)),
        (Some(Landing::Done(1)), None)
    );
    new.land(2);
    assert_eq!(landed(&mut late), Some(Landing::Done(2)));
}

#[test]
fn detached_flight_hands_its_lead_over() {
    let flights = Flights::<Key, u32>::new();
    let (guard, mut waiter) = lead(&flights, "k", meta(0));
    flights.detach(1, any);
    drop(guard);
    let guard = taken(&mut waiter).expect("vacant");
    assert!(guard.is_detached());
    guard.land(1);
    assert_eq!(landed(&mut waiter), Some(Landing::Done(1)));
}

#[test]
fn detach_all_takes_out_what_its_condition_names() {
    let flights = Flights::<Key, u32>::new();
    let mut boarded = Vec::new();
    for hash in 0..100 {
        boarded.push(flights.board(hash << 30, &"k", meta(hash), any));
    }
    flights.detach_all(|hash| hash < 60 << 30);
    assert_eq!(flights.len(), 40);
    for (rank, boarding) in (0..).zip(&boarded) {
        let Boarding::Leader(guard, _) = boarding else {
            panic!("keys differ")
        };
        assert_eq!(guard.is_detached(), rank < 60);
    }
    drop(boarded);
    assert_eq!(flights.len(), 0);
}

#[test]
fn replaced_flight_does_not_remove_its_replacement() {
    let flights = Flights::<Key, u32>::new();
    let (old, mut early) = lead(&flights, "k", meta(0));
    let (new, mut late) = lead(&flights, "k", meta(1));
    assert!(old.is_detached(), "no detach can find it any more");
    assert!(!new.is_detached());
    old.land(1);
    assert_eq!(landed(&mut early), Some(Landing::Done(1)));
    assert_eq!(flights.len(), 1);
    let mut later = join(&flights, "k");
    new.land(2);
    assert_eq!(landed(&mut late), Some(Landing::Done(2)));
    assert_eq!(landed(&mut later), Some(Landing::Done(2)));
    assert_eq!(flights.len(), 0);
}

#[test]
fn a_key_with_the_hash_of_another_flies_solo() {
    let flights = Flights::<Key, u32>::new();
    let (guard, mut waiter) = lead(&flights, "k", meta(0));
    let Boarding::Leader(solo, mut alone) = flights.board(1, &"collides", meta(0), any) else {
        panic!("joined the flight of another key");
    };
    assert!(solo.is_detached() && !guard.is_detached());
    solo.land(2);
    assert_eq!(
        (landed(&mut alone), landed(&mut waiter)),
        (Some(Landing::Done(2)), None)
    );
    let mut joined = join(&flights, "k");
    guard.land(1);
    assert_eq!(landed(&mut waiter), Some(Landing::Done(1)));
    assert_eq!(landed(&mut joined), Some(Landing::Done(1)));
}

#[test]
fn lead_and_places_can_move_into_a_task() {
    fn movable<S: Send + 'static>(_: &S) {}
    let flights = Flights::<String, Arc<str>>::new();
    let (guard, mut waiter) = lead(&flights, "k".to_owned(), meta(0));
    movable(&guard.abandoned());
    movable(&guard);
    movable(&waiter);
    movable(&async move { waiter.wait().await });
    movable(&flights);
}
