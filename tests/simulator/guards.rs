//! Writers under a guard who die anywhere: what is committed under a guard counts as acknowledged at that.

use crate::coherence_world::{Budget, Config, ENDLESS, Event as E, GuardPart, Red};
use crate::schedule::{Schedule, replay, shrink, trace};
use crate::{all_green_within, from_env};

/// Schedules with writers who die.
const SCHEDULES: u64 = 4_000;
/// Among so many some must break a promise with a part off.
const SEEDS: std::ops::Range<u64> = 0..10_000;

fn guarded_writers() -> Config {
    Config {
        pods: 3,
        readers: 2,
        bypass: true,
        ticks: vec![1, 4, 10, 40, 120, 450],
        budget: Budget {
            guards: 6,
            writes: 1,
            flights: 30,
            refreshes: 4,
            retries: 20,
            attempts: ENDLESS,
            looks: 10,
            polls: ENDLESS,
            connects: ENDLESS,
            losses: 4,
            disconnects: 3,
            pauses: 2,
            evictions: 3,
            kills: 4,
            ..Budget::default()
        },
        ..Config::default()
    }
}

#[test]
fn what_is_committed_under_a_guard_is_acknowledged_whoever_dies() {
    let count = from_env("TIDINGS_SIM_GUARDS", SCHEDULES);
    all_green_within(&guarded_writers(), count);
}

/// A few pods of which nothing ends but what `change` says.
fn calm(change: impl FnOnce(&mut Budget)) -> Config {
    let mut budget = Budget {
        guards: 3,
        flights: 12,
        retries: 4,
        attempts: ENDLESS,
        polls: ENDLESS,
        connects: ENDLESS,
        ..Budget::default()
    };
    change(&mut budget);
    Config {
        ticks: vec![10, 40],
        budget,
        ..Config::default()
    }
}

/// Some schedule breaks a promise without `part`, and the same does not with it.
fn is_needed(part: GuardPart, config: &Config) {
    let off = Config {
        guard_off: Some(part),
        ..config.clone()
    };
    let broken = SEEDS.into_iter().find_map(|seed| {
        let (events, world) = Schedule::within(seed, off.clone()).run();
        world.red.map(|red| (seed, events, red))
    });
    let (seed, events, red) = broken.unwrap_or_else(|| panic!("nothing breaks without {part:?}"));
    let events = shrink(&off, events);
    println!("{part:?}: seed {seed}: {red:?}\n{}", trace(&off, &events));
    assert_eq!(replay(config, &events), None);
}

#[test]
fn h23_without_a_marker_a_commit_whose_writer_dies_is_missed() {
    is_needed(GuardPart::Marker, &calm(|_| {}));
}

#[test]
fn h23_what_is_loaded_under_a_marker_and_kept_as_any_other_is_stale() {
    is_needed(GuardPart::Youth, &calm(|_| {}));
}

/// 1. A load finds the marker, and reads the old value.
/// 2. The commit.
/// 3. The bound passes, and the lane is live all the time.
/// 4. A reader comes, and the load has not ended.
#[test]
fn h28_a_load_under_a_marker_would_be_joined_after_the_commit() {
    let confirmed = [
        E::Advance(40),
        E::Poll(0),
        E::AtStore(0, 0),
        E::Answer(0, 0),
    ];
    let events = [
        &[E::Begin(1, 0), E::Guard(1, 0), E::Guard(1, 0)],
        &[E::Deliver(0, 0), E::Miss(0, 0)][..],
        &[E::Flight(0, 0); 5],
        &[E::Guard(1, 0)],
        &confirmed,
        &confirmed,
        &confirmed,
        &[E::Miss(0, 0), E::Flight(0, 0)],
    ];
    let (events, config) = (events.concat(), calm(|_| {}));
    let off = Config {
        guard_off: Some(GuardPart::Join),
        ..config.clone()
    };
    let red = replay(&off, &events);
    assert!(matches!(red, Some(Red::Load(0, 0, 0, 1))), "{red:?}");
    assert_eq!(replay(&config, &events), None);
}

#[test]
fn h23_a_load_that_could_not_ask_would_be_kept_as_if_no_marker_stood() {
    let config = Config {
        bypass: true,
        ..calm(|budget| budget.disconnects = 1)
    };
    is_needed(GuardPart::Reckoning, &config);
}
