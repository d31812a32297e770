//! Random schedules of a whole deployment: all promises are kept with every protection on, and some
//! promise is broken with any one of them off.
//!
//! `TIDINGS_SEED` sets the first seed, `TIDINGS_SIM_SCHEDULES` the number of schedules.

#[path = "../coherence_world/mod.rs"]
#[expect(dead_code, reason = "the model checker asks a little more of it")]
mod coherence_world;
mod controls;
mod schedule;

use coherence_world::{Budget, Config, ENDLESS, Event as E};
use schedule::{Schedule, replay, shrink, trace};
use std::fmt::Display;
use std::str::FromStr;
use tidings::store::memory::Continuity;

const SCHEDULES: u64 = 100_000;

fn from_env<T: FromStr + Display>(name: &str, default: T) -> T {
    let given = std::env::var(name).ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn first_seed() -> u64 {
    from_env("TIDINGS_SEED", 0x5EED)
}

/// Runs one schedule; a readable account of what it broke.
fn verdict(seed: u64, schedule: Schedule) -> Result<(), String> {
    let config = schedule.config.clone();
    let (events, red) = schedule.run();
    let Some(red) = red else {
        return Ok(());
    };
    let events = shrink(&config, events);
    let trace = trace(&config, &events);
    Err(format!("seed {seed}: {red:?}\n{trace}"))
}

/// Runs the schedules of all seeds, half of them on another thread.
fn all_green(count: u64, schedule: fn(u64) -> Schedule) {
    let first = first_seed();
    println!("TIDINGS_SEED={first}, {count} schedules");
    let half = move |rest: u64| {
        let mut seeds = (first..first + count).filter(|seed| seed % 2 == rest);
        seeds.try_for_each(|seed| verdict(seed, schedule(seed)))
    };
    let other = std::thread::spawn(move || half(1));
    let mine = half(0);
    let other = other.join().expect("the other half does not panic");
    for verdict in [mine, other] {
        if let Err(account) = verdict {
            panic!("{account}");
        }
    }
}

#[test]
fn a_hundred_thousand_schedules_keep_every_promise() {
    all_green(from_env("TIDINGS_SIM_SCHEDULES", SCHEDULES), Schedule::of);
}

#[test]
fn what_a_promoted_server_lacks_is_logged_again_in_every_schedule() {
    let count = from_env("TIDINGS_SIM_SCHEDULES", SCHEDULES) / 10;
    all_green(count, Schedule::lossy);
}

/// A deployment in which anything may happen, for schedules that once broke a promise.
fn anything() -> Config {
    Config {
        pods: 3,
        budget: Budget {
            writes: 9,
            flights: 9,
            refreshes: 9,
            polls: ENDLESS,
            connects: ENDLESS,
            attempts: ENDLESS,
            losses: 9,
            disconnects: 9,
            restarts: 9,
            snapshots: 9,
            flushes: 9,
            ..Budget::default()
        },
        ..Config::default()
    }
}

/// The pod was told of an entry, the server lost it, and the log it read had the opening of the next
/// epoch in its place.
#[test]
fn an_epoch_that_opens_in_place_of_a_promised_entry_confirms_nothing() {
    let events = [
        E::Commit(2, 0),
        E::Invalidation(2, 0),
        E::Invalidation(2, 0),
        E::Invalidation(2, 0),
        E::Advance(14),
        E::Poll(0),
        E::AtStore(0, 0),
        E::Advance(40),
        E::Answer(0, 0),
        E::Restart,
        E::Connect(0),
        E::AtStore(0, 0),
        E::Advance(50),
        E::Timer(0),
        E::AtStore(0, 1),
        E::Answer(0, 1),
    ];
    assert_eq!(replay(&anything(), &events), None);
}

/// Two answers overtook each other, and the newer epoch was taken for over.
#[test]
fn a_lane_recovers_from_answers_that_overtook_each_other() {
    let config = anything();
    let events = [
        E::FlushAll,
        E::Poll(2),
        E::AtStore(2, 0),
        E::Answer(2, 0),
        E::AtStore(2, 0),
        E::FlushAll,
        E::Poll(2),
        E::AtStore(2, 1),
        E::Answer(2, 1),
        E::AtStore(2, 1),
        E::Answer(2, 1),
        E::Answer(2, 0),
    ];
    assert_eq!(replay(&config, &events), None);
}

/// The lane had lost its way before it learnt of the fork, but not the calls that the fork lost.
#[test]
fn a_call_is_logged_again_though_the_way_to_the_fork_is_lost() {
    let config = Config {
        keys: 2,
        continuity: Continuity::Fork,
        lossy: true,
        ..anything()
    };
    let events = [
        E::Commit(0, 1),
        E::Commit(0, 0),
        E::Invalidation(0, 0),
        E::Invalidation(0, 0),
        E::Invalidation(0, 1),
        E::Invalidation(0, 1),
        E::Invalidation(0, 1),
        E::Advance(40),
        E::Restart,
        E::Connect(0),
        E::AtStore(0, 0),
        E::Timer(0),
    ];
    assert_eq!(replay(&config, &events), None);
}
