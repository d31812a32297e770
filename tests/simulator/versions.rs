//! Sources that say which state they gave: loads from a replica that lags, held to the versions that
//! invalidations named; and values that are put where a lower version stands.

use crate::coherence_world::{Budget, Config, ENDLESS, Event as E, Red, Tally, VersionPart};
use crate::controls::stored;
use crate::schedule::{Schedule, replay};
use crate::{all_green, breaks_without, from_env};

/// Schedules of a source whose replica lags, and of puts; half as many of each with failovers.
const SCHEDULES: u64 = 2_000;

/// Loads read a replica that is so far behind.
const LAGS_MS: [u64; 3] = [20, 120, 300];

fn trouble() -> Budget {
    Budget {
        writes: 6,
        flights: 30,
        refreshes: 6,
        retries: 20,
        attempts: ENDLESS,
        looks: 10,
        polls: ENDLESS,
        connects: ENDLESS,
        losses: 4,
        repeats: 2,
        disconnects: 3,
        pauses: 3,
        evictions: 3,
        ..Budget::default()
    }
}

fn with_failovers(config: Config) -> Config {
    Config {
        replicas: 1,
        ticks: vec![1, 4, 10, 10, 40, 40, 120, 700, 4000],
        budget: Budget {
            replications: ENDLESS,
            promotions: ENDLESS,
            splits: ENDLESS,
            kills: 4,
            cuts: 2,
            ..config.budget
        },
        ..config
    }
}

fn lagging(lag_ms: u64) -> Config {
    Config {
        pods: 3,
        keys: 2,
        readers: 2,
        lag_ms,
        bypass: true,
        reorder: true,
        budget: Budget {
            minimums_lost: 2,
            restarts: 1,
            snapshots: 2,
            flushes: 1,
            ..trouble()
        },
        ..Config::default()
    }
}

/// Writers who put; some only invalidate.
fn putting() -> Config {
    Config {
        pods: 3,
        keys: 2,
        readers: 2,
        bypass: true,
        reorder: true,
        budget: Budget {
            puts: 8,
            writes: 3,
            clears: 1,
            restarts: 1,
            snapshots: 2,
            floors_lost: 1,
            ..trouble()
        },
        ..Config::default()
    }
}

fn keeps_every_promise(config: impl Fn(u64) -> Config + Sync, count: u64) -> Tally {
    let sum = all_green(
        |seed| Schedule::within(seed, config(seed)),
        |done, _| done >= count,
    );
    println!("{sum:#?}");
    sum
}

fn count() -> u64 {
    from_env("TIDINGS_SIM_VERSIONS", SCHEDULES)
}

fn any_lag(seed: u64) -> Config {
    lagging(LAGS_MS[(seed % 3) as usize])
}

#[test]
fn a_replica_that_lags_gives_nothing_below_what_was_said() {
    let sum = keeps_every_promise(any_lag, count());
    assert!(sum.behind > 0 && sum.forgotten > 0, "not shown: {sum:?}");
}

#[test]
fn a_version_that_a_failover_lost_is_said_again() {
    let sum = keeps_every_promise(|seed| with_failovers(any_lag(seed)), count() / 2);
    let shown = [sum.behind, sum.lost, sum.forgotten];
    assert!(shown.iter().all(|times| *times > 0), "not shown: {sum:?}");
}

#[test]
fn puts_in_any_order_bring_no_older_value_back() {
    let sum = keeps_every_promise(|_| putting(), count());
    assert!(sum.puts > 0, "not shown: {sum:?}");
}

#[test]
fn puts_around_failovers_bring_no_older_value_back() {
    let sum = keeps_every_promise(|_| with_failovers(putting()), count() / 2);
    assert!(sum.puts > 0 && sum.lost > 0, "not shown: {sum:?}");
}

/// Some schedule breaks a promise without `part`, and the same does not with it.
fn is_needed(part: VersionPart, config: &Config, expected: impl Fn(Red) -> bool) {
    let off = Config {
        version_off: Some(part),
        ..config.clone()
    };
    breaks_without(part, &off, config, expected);
}

/// A copy that lags, and nothing else that fails but what `change` adds.
fn calm(change: impl FnOnce(&mut Budget)) -> Config {
    let mut budget = Budget {
        writes: 4,
        flights: 20,
        retries: 20,
        attempts: ENDLESS,
        polls: ENDLESS,
        connects: ENDLESS,
        ..Budget::default()
    };
    change(&mut budget);
    Config {
        lag_ms: 120,
        budget,
        ..Config::default()
    }
}

fn calm_puts() -> Config {
    Config {
        lag_ms: 0,
        ..calm(|budget| budget.puts = 6)
    }
}

fn given(red: Red) -> bool {
    matches!(red, Red::Load(..) | Red::Hit(..))
}

#[test]
fn h5_without_being_told_the_version_a_load_would_give_and_store_the_old_value() {
    is_needed(VersionPart::Told, &calm(|_| {}), |red| {
        given(red) || stored(red)
    });
}

#[test]
fn h5_a_load_that_is_behind_and_not_made_again_would_give_the_old_value() {
    is_needed(VersionPart::Again, &calm(|_| {}), |red| {
        given(red) || stored(red)
    });
}

/// A version is lost with the tail, and its pod logs the call again. Another one loads, and the copy has not
/// caught up.
#[test]
fn h5_what_is_logged_again_without_its_version_would_let_the_old_value_in() {
    let call = E::Invalidation(0, 0);
    let events = [
        &[E::Commit(0, 0), call, call, call, E::Promote(0)][..],
        &follows(0),
        &[call, call, E::Advance(120)],
        &follows(1),
        &[E::Miss(1, 0)],
        &[E::Flight(1, 0); 6],
    ];
    let config = Config {
        lag_ms: 300,
        ..with_failovers(calm(|_| {}))
    };
    let off = Config {
        version_off: Some(VersionPart::Repeated),
        ..config.clone()
    };
    let events = events.concat();
    assert_eq!(replay(&off, &events), Some(Red::Load(1, 0, 0, 1)));
    assert_eq!(replay(&config, &events), None);
}

#[test]
fn h5_a_version_that_the_store_lost_would_not_be_held_to_by_who_said_it() {
    let config = calm(|budget| budget.minimums_lost = 4);
    is_needed(VersionPart::Held, &config, |red| given(red) || stored(red));
}

#[test]
fn h5_a_load_that_could_not_ask_would_be_kept_as_if_no_version_was_said() {
    let config = Config {
        bypass: true,
        ..calm(|budget| budget.disconnects = 1)
    };
    is_needed(VersionPart::Reckoning, &config, |red| {
        matches!(red, Red::Hit(..) | Red::LocalDiverged(..))
    });
}

#[test]
fn h30_a_put_that_compares_nothing_brings_an_older_value_back() {
    is_needed(VersionPart::Compared, &calm_puts(), |red| {
        given(red) || stored(red)
    });
}

#[test]
fn h30_a_put_where_nothing_stands_brings_an_older_value_back() {
    is_needed(VersionPart::Standing, &calm_puts(), |red| {
        given(red) || stored(red)
    });
}

/// A pod connects, and follows the log to its end.
fn follows(pod: u8) -> [E; 8] {
    let answer = [E::AtStore(pod, 0), E::Answer(pod, 0)];
    let [at_store, taken] = answer;
    [
        E::Connect(pod),
        at_store,
        taken,
        at_store,
        taken,
        E::Poll(pod),
        at_store,
        taken,
    ]
}

/// 1. Version 2 is acknowledged, and a replica is promoted that lacks it: version 0 stands there again.
/// 2. Version 1, which was committed before, is put in its place, and looks as if it was stored since.
#[test]
fn h30_a_put_over_a_value_of_a_fork_in_doubt_brings_an_older_value_back() {
    let step = E::Invalidation(0, 0);
    let events = [
        &[E::CommitPut(1, 0), E::Commit(0, 0), step, step, step][..],
        &[E::Promote(0)],
        &follows(1),
        &[E::Invalidation(1, 0); 2],
    ];
    let (events, config) = (events.concat(), with_failovers(calm_puts()));
    let off = Config {
        version_off: Some(VersionPart::Believed),
        ..config.clone()
    };
    assert_eq!(replay(&off, &events), Some(Red::Store(1, 0, 1, 2)));
    assert_eq!(replay(&config, &events), None);
}

/// 1. Version 1 is to be put, and version 2 stands in the store.
/// 2. Version 3 is acknowledged, and heard of. A replica is promoted that lacks it, and who knew it ends.
/// 3. The put arrives, and leaves version 2. It is logged as an invalidation of the key, so whoever had heard of
///    version 3 takes it for made up for.
#[test]
fn a_put_from_before_a_failover_lets_nothing_stand_that_the_failover_brought_back() {
    let acknowledged = |pod| {
        [
            E::Commit(pod, 0),
            E::Invalidation(pod, 0),
            E::Invalidation(pod, 0),
            E::Invalidation(pod, 0),
        ]
    };
    let events = [
        &[E::CommitPut(1, 0), E::Invalidation(1, 0)][..],
        &acknowledged(2),
        &[E::Miss(2, 0)],
        &[E::Flight(2, 0); 6],
        &[E::Fill(0), E::Replicate(0)],
        &acknowledged(0),
        &[E::Deliver(1, 0); 2],
        &[E::Promote(0), E::Kill(0)],
        &follows(1),
        &[E::Invalidation(1, 0); 2],
    ];
    let config = Config {
        pods: 3,
        ..with_failovers(calm_puts())
    };
    assert_eq!(replay(&config, &events.concat()), None);
}
