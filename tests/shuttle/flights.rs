//! Flights: nobody waits for ever, nobody loads twice, nobody joins what was detached.

use crate::every_schedule;
use crate::flight::{Boarding, Flights, Flown, Guard, Landing, Waiter};
use crate::sync::{Arc, AtomicU64, Ordering};
use shuttle::future::{block_on, spawn, yield_now};
use shuttle::thread;
use tidings::Millis;
use tidings::coherence::{FlightMeta, Rank};

type Key = &'static str;

const KEY: Key = "key";
const META: FlightMeta = FlightMeta {
    rank: Rank(1),
    start: Millis(0),
    uncovered: false,
};

fn board(flights: &Flights<Key, u64>) -> (Option<Guard<Key, u64>>, Waiter<Key, u64>) {
    match flights.board(1, &KEY, META, |_| true) {
        Boarding::Leader(guard, waiter) => (Some(guard), waiter),
        Boarding::Waiter(waiter) => (None, waiter),
    }
}

/// What is loaded, and how many loads run at the same time.
#[derive(Default)]
struct Source {
    value: AtomicU64,
    running: AtomicU64,
    loads: AtomicU64,
}

impl Source {
    async fn load(&self) -> u64 {
        let others = self.running.fetch_add(1, Ordering::SeqCst);
        assert_eq!(others, 0, "two loads of one key at the same time");
        self.loads.fetch_add(1, Ordering::SeqCst);
        let value = self.value.load(Ordering::SeqCst);
        yield_now().await;
        self.running.fetch_sub(1, Ordering::SeqCst);
        value
    }
}

/// A caller who leads if it falls to it; one that is `fickle` drops its first lead.
async fn call(flights: Flights<Key, u64>, source: Arc<Source>, fickle: bool) -> u64 {
    let (mut guard, mut waiter) = board(&flights);
    let mut fickle = fickle;
    loop {
        if let Some(guard) = guard.take() {
            if std::mem::take(&mut fickle) {
                drop(guard);
            } else {
                guard.land(source.load().await);
            }
        }
        match waiter.wait().await {
            Flown::Landed(Landing::Done(value)) => return value,
            Flown::Landed(Landing::Aborted) => panic!("nobody panicked"),
            Flown::Lead(lead) => guard = Some(lead),
        }
    }
}

/// A schedule in which somebody waits for ever is a deadlock, which shuttle reports.
#[test]
fn whoever_drops_the_lead_all_callers_get_an_outcome_and_loads_take_turns() {
    every_schedule(|| {
        let (flights, source) = (Flights::new(), Arc::new(Source::default()));
        let calls = [true, false, true].map(|fickle| {
            let call = call(flights.clone(), Arc::clone(&source), fickle);
            thread::spawn(move || block_on(call))
        });
        for call in calls {
            assert_eq!(call.join().expect("it does not panic"), 0);
        }
    });
}

#[test]
fn a_caller_who_leaves_with_the_lead_leaves_it_to_somebody() {
    every_schedule(|| {
        let (flights, source) = (Flights::new(), Arc::new(Source::default()));
        let leaver = {
            let flights = flights.clone();
            thread::spawn(move || {
                let (guard, waiter) = board(&flights);
                drop(waiter);
                drop(guard);
            })
        };
        let stayer = thread::spawn({
            let call = call(flights.clone(), Arc::clone(&source), false);
            move || block_on(call)
        });
        leaver.join().expect("it does not panic");
        stayer.join().expect("it does not panic");
        // Nothing is left in the map: the next caller leads.
        assert!(board(&flights).0.is_some(), "an empty flight stayed");
    });
}

#[test]
fn who_boards_after_a_flight_was_detached_never_gets_its_outcome() {
    every_schedule(|| {
        let (flights, source) = (Flights::new(), Arc::new(Source::default()));
        let early = {
            let (flights, source) = (flights.clone(), Arc::clone(&source));
            thread::spawn(move || {
                let (guard, waiter) = board(&flights);
                if let Some(guard) = guard {
                    guard.land(source.value.load(Ordering::SeqCst));
                }
                drop(waiter);
            })
        };
        // Another pod's write is heard of: what began before it is detached.
        source.value.store(1, Ordering::SeqCst);
        flights.detach(1, |meta| meta.rank < Rank(2));
        let (guard, mut waiter) = board(&flights);
        let value = match guard {
            Some(guard) => {
                let value = source.value.load(Ordering::SeqCst);
                guard.land(value);
                value
            }
            None => block_on(async {
                match waiter.wait().await {
                    Flown::Landed(Landing::Done(value)) => value,
                    _ => panic!("it lands"),
                }
            }),
        };
        assert_eq!(value, 1, "from before the write");
        early.join().expect("it does not panic");
    });
}

#[test]
fn a_load_that_nobody_waits_for_is_told_so() {
    every_schedule(|| {
        let flights = Flights::new();
        let (guard, waiter) = board(&flights);
        let guard = guard.expect("it is the first");
        let left = thread::spawn(move || drop(waiter));
        let abandoned = guard.abandoned();
        block_on(async move { spawn(abandoned).await.expect("it does not panic") });
        drop(guard);
        left.join().expect("it does not panic");
        assert!(board(&flights).0.is_some(), "an empty flight stayed");
    });
}
