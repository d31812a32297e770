//! Random cancellation on real threads. The seed is printed, and `TIDINGS_SEED` sets it; a seed fixes
//! what each caller does, not how the threads interleave.

use std::any::Any;
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::panic::resume_unwind;

use super::*;

const KEYS: u64 = 4;
const CALLERS: usize = 4000;

/// A small generator (splitmix64): what matters is that a seed repeats it.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % bound
    }

    async fn pause(&mut self) {
        for _ in 0..self.below(6) {
            yield_now().await;
        }
    }
}

/// What the callers do besides boarding, waiting, and giving up.
#[derive(Clone, Copy, PartialEq)]
enum Mix {
    /// Nothing: there must never be two leads of one key.
    Plain,
    /// They refuse to join, and detach, and panic.
    Rough,
}

/// One world of callers.
#[derive(Clone)]
struct World {
    flights: Flights<u64, u64>,
    /// How many loads of each key run.
    loads: Arc<[AtomicUsize; KEYS as usize]>,
    /// How many loads began while another of their key ran.
    doubled: Arc<AtomicUsize>,
    mix: Mix,
}

impl World {
    /// One caller, who asks once and may lose patience.
    async fn call(self, mut dice: Dice) {
        dice.pause().await;
        let key = dice.below(KEYS);
        let rough = self.mix == Mix::Rough;
        let refuse = rough && dice.below(8) == 0;
        // In the rough mix two keys share a hash.
        let hash = if rough { key / 2 } else { key };
        if rough && dice.below(16) == 0 {
            self.flights.detach(hash, any);
        }
        if rough && dice.below(128) == 0 {
            self.flights.detach_all(|_| true);
        }
        let mut waiter = match self.flights.board(hash, &key, meta(0), |_| !refuse) {
            Boarding::Leader(guard, waiter) => {
                self.lead(key, guard, &mut dice).await;
                waiter
            }
            Boarding::Waiter(waiter) => waiter,
        };
        while let Some(flown) = impatient(&mut waiter, &mut dice).await {
            match flown {
                Flown::Lead(guard) => self.lead(key, guard, &mut dice).await,
                Flown::Landed(Landing::Done(outcome)) => return assert_eq!(outcome, key),
                Flown::Landed(Landing::Aborted) => return assert!(rough),
            }
        }
        if dice.below(8) == 0 {
            waiter.leave_running();
        }
    }

    /// Runs the load here or in a task, which a dropped caller does not end.
    async fn lead(&self, key: u64, guard: Guard<u64, u64>, dice: &mut Dice) {
        let load = self.clone().load(key, guard, Dice(dice.below(u64::MAX)));
        match dice.below(3) {
            0 => load.await,
            _ => drop(tokio::spawn(load)),
        }
    }

    async fn load(self, key: u64, guard: Guard<u64, u64>, mut dice: Dice) {
        let running = Running::start(&self, key);
        let unwanted = tokio::select! {
            biased;
            () = guard.abandoned() => true,
            () = dice.pause() => false,
        };
        drop(running);
        match dice.below(8) {
            _ if unwanted => drop(guard),
            0 | 1 => drop(guard),
            2 if self.mix == Mix::Rough => guard.abort(),
            3 if self.mix == Mix::Rough => resume_unwind(Box::new(Planned)),
            _ => guard.land(key),
        }
    }
}

/// A load that runs, until it is dropped: before its guard is.
struct Running<'a>(&'a AtomicUsize);

impl<'a> Running<'a> {
    fn start(world: &'a World, key: u64) -> Self {
        let running = &world.loads[key as usize];
        if running.fetch_add(1, Ordering::SeqCst) > 0 {
            world.doubled.fetch_add(1, Ordering::SeqCst);
        }
        Self(running)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a loader panics with in the rough mix.
struct Planned;

/// Waits, but half of the time only for a few turns.
async fn impatient(waiter: &mut Waiter<u64, u64>, dice: &mut Dice) -> Option<Flown<u64, u64>> {
    if dice.below(2) == 0 {
        return Some(waiter.wait().await);
    }
    tokio::select! {
        biased;
        () = dice.pause() => None,
        flown = waiter.wait() => Some(flown),
    }
}

async fn run(mix: Mix) {
    let seed = match std::env::var("TIDINGS_SEED") {
        Ok(seed) => seed.parse().expect("TIDINGS_SEED is a number"),
        Err(_) => RandomState::new().hash_one(0),
    };
    println!("TIDINGS_SEED={seed}");
    let mut dice = Dice(seed);
    let world = World {
        flights: Flights::new(),
        loads: Arc::default(),
        doubled: Arc::default(),
        mix,
    };
    let mut callers = JoinSet::new();
    let mut recent = VecDeque::new();
    for _ in 0..CALLERS {
        recent.push_back(callers.spawn(world.clone().call(Dice(dice.below(u64::MAX)))));
        if recent.len() > 64 {
            recent.pop_front();
        }
        match dice.below(16) {
            0..4 => recent[dice.below(recent.len() as u64) as usize].abort(),
            4 => yield_now().await,
            _ => {}
        }
    }
    let calls = async {
        while let Some(call) = callers.join_next().await {
            match call {
                Err(error) if error.is_panic() => forgive(error.into_panic(), mix),
                _ => {}
            }
        }
        // Loads that callers left running end by themselves.
        while world.flights.len() > 0 {
            yield_now().await;
        }
    };
    timeout(DEADLINE, calls)
        .await
        .expect("no caller hangs, and the map ends empty");
    assert!(mix == Mix::Rough || world.doubled.load(Ordering::SeqCst) == 0);
}

/// Lets the panics through that are part of the mix.
fn forgive(panic: Box<dyn Any + Send>, mix: Mix) {
    if mix == Mix::Plain || !panic.is::<Planned>() {
        resume_unwind(panic);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_cancellation_leaves_nobody_waiting_and_never_two_loads() {
    run(Mix::Plain).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_detaching_collisions_and_panics_leave_nobody_waiting() {
    run(Mix::Rough).await;
}
