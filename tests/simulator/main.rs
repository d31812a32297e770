//! Random schedules of a whole deployment: all promises are kept with every protection on, and some
//! promise is broken with any one of them off.
//!
//! `TIDINGS_SEED` sets the first seed, `TIDINGS_SIM_SCHEDULES` the number of schedules,
//! `TIDINGS_SIM_FAILOVERS` that of failovers, `TIDINGS_SIM_VERSIONS` that of sources that lag and of puts.

mod clocks;
#[path = "../coherence_world/mod.rs"]
#[expect(dead_code, reason = "the model checker asks a little more of it")]
mod coherence_world;
mod controls;
mod guards;
mod schedule;
mod tags;
mod versions;

use coherence_world::{Budget, Config, ENDLESS, Event as E, Red, Tally};
use schedule::{Schedule, replay, shrink, trace};
use std::fmt::{Debug, Display};
use std::str::FromStr;
use tidings::coherence::Mechanism;

const SCHEDULES: u64 = 100_000;
/// Failovers that lose something.
const FAILOVERS: u64 = 2_000;

fn from_env<T: FromStr + Display>(name: &str, default: T) -> T {
    let given = std::env::var(name).ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn first_seed() -> u64 {
    from_env("TIDINGS_SEED", 0x5EED)
}

/// Runs one schedule; what came of it, or a readable account of what it broke.
fn verdict(seed: u64, schedule: Schedule) -> Result<Tally, String> {
    let config = schedule.config.clone();
    let (events, world) = schedule.run();
    let Some(red) = world.red else {
        return Ok(world.tally);
    };
    let events = shrink(&config, events);
    let trace = trace(&config, &events);
    Err(format!("seed {seed}: {red:?}\n{trace}"))
}

/// Runs the schedules of seeds in turn until there is `enough`, half of them on another thread.
fn all_green(
    schedule: impl Fn(u64) -> Schedule + Sync,
    enough: impl Fn(u64, &Tally) -> bool + Sync,
) -> Tally {
    let first = first_seed();
    let half = |rest: u64| {
        let mut sum = Tally::default();
        for (done, seed) in (first + rest..).step_by(2).enumerate() {
            if enough(2 * done as u64, &sum) {
                println!("TIDINGS_SEED={first}: {done} schedules");
                break;
            }
            match verdict(seed, schedule(seed)) {
                Ok(tally) => sum += tally,
                Err(account) => panic!("{account}"),
            }
        }
        sum
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| half(1));
        let mut sum = half(0);
        sum += other.join().expect("no promise is broken");
        sum
    })
}

/// Runs `count` schedules of a deployment that is configured so.
fn all_green_within(config: &Config, count: u64) {
    let schedule = |seed| Schedule::within(seed, config.clone());
    all_green(schedule, |done, _| done >= count);
}

/// Some schedule breaks a promise as `expected` in `off`, which lacks `part`, and the same does not in
/// `config`.
fn breaks_without(part: impl Debug, off: &Config, config: &Config, expected: impl Fn(Red) -> bool) {
    let broken = (0..2_000).find_map(|seed| {
        let (events, world) = Schedule::within(seed, off.clone()).run();
        world.red.map(|red| (seed, events, red))
    });
    let (seed, events, red) = broken.unwrap_or_else(|| panic!("nothing breaks without {part:?}"));
    let events = shrink(off, events);
    println!("{part:?}: seed {seed}: {red:?}\n{}", trace(off, &events));
    assert!(expected(red), "{red:?}");
    assert_eq!(replay(config, &events), None);
}

#[test]
fn a_hundred_thousand_schedules_keep_every_promise() {
    let count = from_env("TIDINGS_SIM_SCHEDULES", SCHEDULES);
    all_green(Schedule::of, |done, _| done >= count);
}

/// Replicas that lag, are promoted without the last of what was acknowledged, and are cut off from a
/// primary that goes on; pods that are cut off meanwhile, stopped or killed; restarts from old snapshots.
#[test]
fn failovers_that_lose_the_tail_break_no_promise_and_lose_nothing_in_silence() {
    let count = from_env("TIDINGS_SIM_FAILOVERS", FAILOVERS);
    let sum = all_green(Schedule::of_failovers, |_, half| {
        half.lost_tails >= count / 2
    });
    println!("{sum:#?}");
    let shown = [
        sum.again,
        sum.late_answers,
        sum.minority,
        sum.inherited,
        sum.declared_lost,
    ];
    assert!(shown.iter().all(|times| *times > 0), "not shown: {sum:?}");
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
        replicas: 1,
        budget: Budget {
            promotions: 1,
            ..anything().budget
        },
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
        E::Promote(0),
        E::Connect(0),
        E::AtStore(0, 0),
        E::Timer(0),
    ];
    assert_eq!(replay(&config, &events), None);
}

/// Some deployment with a replica, for failovers.
fn replicated() -> Config {
    Config {
        replicas: 1,
        budget: Budget {
            replications: 9,
            promotions: 9,
            splits: 9,
            cuts: 9,
            ..anything().budget
        },
        ..anything()
    }
}

/// A pod commits, and has the invalidation acknowledged.
fn acknowledged(pod: u8) -> [E; 4] {
    let step = E::Invalidation(pod, 0);
    [E::Commit(pod, 0), step, step, step]
}

/// Nothing is broken by `events`, and without logging again what was lost something is.
fn is_logged_again(events: &[E]) {
    assert_eq!(replay(&replicated(), events), None);
    let off = replicated().without(Mechanism::Reissue);
    assert!(replay(&off, events).is_some());
}

/// Scenario 24.
#[test]
fn what_a_minority_acknowledged_is_logged_again_when_it_heals() {
    let takes_to_the_new_primary = [E::Disconnect(1), E::Connect(1), E::AtStore(1, 0)];
    let events = [
        &[E::Split(0, 500)][..],
        &takes_to_the_new_primary,
        &acknowledged(0),
        &[E::Advance(120), E::Miss(1, 0), E::Heal],
    ];
    is_logged_again(&events.concat());
}

/// Scenario 26: for the pod that was away the epoch has no known past.
#[test]
fn a_pod_that_was_away_for_two_failovers_logs_again_what_they_lost() {
    let joins = [E::Connect(0), E::AtStore(0, 0), E::Answer(0, 0)];
    let events = [
        &acknowledged(2)[..],
        &[E::Cut(2), E::Promote(0)],
        &joins,
        &[E::Advance(120), E::Replicate(0), E::Promote(0)],
        &joins,
        &[E::Mend(2)],
    ];
    is_logged_again(&events.concat());
}

/// The primary came back empty, and pods took to its new epoch. Then a replica was promoted that had
/// never heard of that, and lacked calls of the epoch before, whose pod had ended.
#[test]
fn an_epoch_that_ended_with_its_data_is_not_continued_by_a_replica() {
    let config = Config {
        replicas: 1,
        budget: Budget {
            promotions: 1,
            empty_restarts: 1,
            kills: 1,
            ..anything().budget
        },
        ..anything()
    };
    let events = [
        E::Commit(2, 0),
        E::Invalidation(2, 0),
        E::Invalidation(2, 0),
        E::Invalidation(2, 0),
        E::Deliver(1, 0),
        E::RestartEmpty,
        E::Connect(1),
        E::AtStore(1, 0),
        E::Answer(1, 0),
        E::Kill(2),
        E::Promote(0),
    ];
    assert_eq!(replay(&config, &events), None);
    let off = config.without(Mechanism::FenceAgain);
    assert!(replay(&off, &events).is_some());
}

/// The same, of a pod that came when the epoch of the first primary was already continued by another: it has
/// never followed that one, and yet must know that it is over.
#[test]
fn an_epoch_that_a_pod_knows_only_as_continued_is_not_continued_again_behind_a_fence() {
    let config = Config {
        replicas: 2,
        warm: false,
        budget: Budget {
            promotions: 9,
            splits: 9,
            replications: 9,
            ..anything().budget
        },
        ..anything()
    };
    let events = [
        E::Connect(1),
        E::AtStore(1, 0),
        E::Replicate(0),
        E::Commit(0, 0),
        E::Promote(0),
        E::Invalidation(0, 0),
        E::Connect(0),
        E::AtStore(0, 0),
        E::Answer(0, 0),
        E::Poll(0),
        E::AtStore(0, 0),
        E::Split(1, 3000),
        E::Answer(0, 0),
        E::Invalidation(0, 0),
        E::Invalidation(0, 0),
        E::Heal,
        E::Connect(0),
        E::AtStore(0, 0),
        E::Answer(0, 0),
        E::Promote(0),
    ];
    assert_eq!(replay(&config, &events), None);
}

/// The primary came back from an old snapshot and was fenced, which a pod saw, and so forgot what it had called
/// before. A replica was promoted that had continued the epoch before the fence by one which the pod never knew.
#[test]
fn a_fence_that_is_undone_by_an_epoch_nobody_knew_forgets_no_call() {
    let config = Config {
        keys: 2,
        budget: Budget {
            heads_lost: 1,
            ..replicated().budget
        },
        ..replicated()
    };
    let before = [
        &acknowledged(1)[..],
        &[E::Promote(0), E::Connect(2), E::AtStore(2, 0)],
    ]
    .concat();
    let fences = [
        [E::Replicate(0), E::Connect(1), E::DropHead],
        [E::Replicate(0), E::Restart, E::Connect(1)],
    ];
    for fence in fences {
        let after = [E::AtStore(1, 0), E::Promote(0), E::Answer(1, 0)];
        let events = [&before[..], &fence, &after].concat();
        assert_eq!(replay(&config, &events), None);
    }
}
