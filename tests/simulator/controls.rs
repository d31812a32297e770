//! Negative controls: with one protection off, random schedules break a promise; with it on, the same
//! schedules keep them all. A check that never failed proves nothing.

use crate::coherence_world::{Budget, Config, ENDLESS, Event, Red, World};
use crate::schedule::{Schedule, replay, shrink, trace};
use tidings::coherence::{LinkState, Mechanism, Mechanisms};

const SEEDS: std::ops::Range<u64> = 0..10_000;

/// A small deployment in which nothing fails but what `trouble` adds.
fn calm() -> Config {
    Config {
        budget: Budget {
            writes: 4,
            flights: 20,
            retries: 20,
            attempts: ENDLESS,
            polls: ENDLESS,
            connects: ENDLESS,
            ..Budget::default()
        },
        ..Config::default()
    }
}

fn with(change: impl FnOnce(&mut Budget)) -> Config {
    let mut config = calm();
    change(&mut config.budget);
    config
}

/// Some schedule breaks a promise without `mechanism`, and none does with it.
fn is_needed(mechanism: Mechanism, config: Config, expected: impl Fn(Red) -> bool) {
    let off = config.clone().without(mechanism);
    let broken = SEEDS.into_iter().find_map(|seed| {
        let (events, world) = Schedule::within(seed, off.clone()).run();
        world.red.map(|red| (seed, events, red))
    });
    let Some((seed, events, red)) = broken else {
        panic!("nothing breaks without {mechanism:?}");
    };
    let events = shrink(&off, events);
    println!(
        "{mechanism:?}: seed {seed}: {red:?}\n{}",
        trace(&off, &events)
    );
    assert!(expected(red), "{red:?}");
    if let Some(red) = replay(&config, &events) {
        let account = trace(&config, &events);
        panic!("the same events with {mechanism:?}: {red:?}\n{account}");
    }
    for seed in 0..=seed.max(200) {
        let (_, world) = Schedule::within(seed, config.clone()).run();
        assert_eq!(world.red, None, "seed {seed} with {mechanism:?}");
    }
}

pub(crate) fn hit(red: Red) -> bool {
    matches!(red, Red::Hit(..) | Red::LocalDiverged(..))
}

pub(crate) fn stored(red: Red) -> bool {
    matches!(red, Red::Load(..) | Red::Store(..) | Red::StoreDiverged(..))
}

#[test]
fn h1_a_fill_without_a_lease_brings_the_old_value_back() {
    is_needed(Mechanism::LeaseFence, calm(), stored);
}

/// The same for a fill that takes the place of a value: scenario 38.
#[test]
fn h1_a_refresh_that_replaces_anything_brings_the_old_value_back() {
    let config = Config {
        loaders: 0b11,
        ..with(|budget| {
            budget.flights = 0;
            budget.refreshes = 20;
        })
    };
    is_needed(Mechanism::LeaseFence, config, stored);
}

#[test]
fn h2_a_load_that_raced_an_invalidation_would_be_kept() {
    is_needed(Mechanism::InsertStamp, calm(), hit);
}

#[test]
fn h3_a_reader_would_join_a_load_that_began_before_the_invalidation() {
    let joined = |red| matches!(red, Red::Load(..));
    let config = Config {
        ticks: vec![1, 40, 120],
        ..with(|budget| budget.disconnects = 2)
    };
    is_needed(Mechanism::JoinRule, config, joined);
}

#[test]
fn h7_a_late_answer_would_pass_for_fresh_evidence() {
    is_needed(Mechanism::SendTime, with(|budget| budget.losses = 4), hit);
}

#[test]
fn h9_a_lost_last_message_would_never_be_noticed() {
    is_needed(Mechanism::PollHeads, with(|budget| budget.losses = 4), hit);
}

#[test]
fn h10_a_published_time_would_be_old_after_a_pause() {
    is_needed(
        Mechanism::KernelClock,
        with(|budget| budget.pauses = 3),
        hit,
    );
}

#[test]
fn h11_liveness_looked_at_after_the_entry_would_vouch_for_a_removed_one() {
    let config = Config {
        readers: 2,
        ..with(|budget| budget.looks = 10)
    };
    is_needed(Mechanism::CheckOrder, config, hit);
}

#[test]
fn h12_a_subscription_that_stays_silent_while_the_log_grows_is_replaced() {
    let silent = |mechanisms| {
        let mut link = LinkState::default();
        (0..10).any(|_| link.polled(true, mechanisms))
    };
    assert!(silent(Mechanisms::default()));
    let off = Mechanisms::default().without(Mechanism::RecycleSubscription);
    assert!(!silent(off));
}

/// How many loads the reads of a second cost while the store is away: one read each 10 ms.
fn loads_in_an_outage(config: &Config) -> usize {
    let mut world = World::new(config);
    world.apply(config, Event::Disconnect(0));
    let reads = (0..100).filter(|_| {
        world.apply(config, Event::Advance(10));
        let missed = world.apply(config, Event::Miss(0, 0));
        world.apply(config, Event::Bypass(0, 0));
        while world.apply(config, Event::Flight(0, 0)) {}
        missed
    });
    reads.count()
}

#[test]
fn h13_without_its_own_age_an_entry_would_be_of_no_use_in_an_outage() {
    let config = with(|budget| {
        budget.disconnects = 1;
        budget.flights = ENDLESS;
    });
    let off = config.clone().without(Mechanism::OwnAge);
    // One load in each 100 ms, and the first 100 ms are covered by the last poll.
    assert_eq!(loads_in_an_outage(&config), 10);
    assert_eq!(loads_in_an_outage(&off), 91);
}

#[test]
fn h14_bare_numbers_would_take_another_log_for_the_one_followed() {
    let config = with(|budget| {
        budget.restarts = 2;
        budget.snapshots = 2;
    });
    is_needed(Mechanism::NonceChain, config, |_| true);
}

#[test]
fn h22_a_log_that_began_anew_would_be_read_as_the_old_one() {
    let config = with(|budget| {
        budget.flushes = 2;
        budget.losses = 4;
    });
    is_needed(Mechanism::NonceChain, config, |_| true);
}

/// Failovers in which nothing else fails. `change` adds to it.
fn failovers(change: impl FnOnce(&mut Budget)) -> Config {
    Config {
        pods: 3,
        replicas: 1,
        ticks: vec![1, 4, 10, 10, 40, 40, 120, 700, 4000],
        ..with(|budget| {
            budget.writes = 20;
            budget.replications = ENDLESS;
            budget.promotions = ENDLESS;
            budget.splits = ENDLESS;
            change(budget);
        })
    }
}

#[test]
fn h15_what_a_promoted_replica_lacks_would_be_lost_for_good() {
    is_needed(Mechanism::Reissue, failovers(|_| {}), |red| {
        matches!(red, Red::Forgotten(..)) || stored(red) || hit(red)
    });
}

/// Scenario 21: the primary and the pod whose call it was end together, and others had heard of it.
#[test]
fn h15_what_was_heard_of_and_nobody_logs_again_would_be_lost_for_good() {
    let config = failovers(|budget| budget.kills = 4);
    is_needed(Mechanism::Hearsay, config, |red| {
        matches!(red, Red::Forgotten(..)) || stored(red) || hit(red)
    });
}

#[test]
fn h15_a_fork_that_is_believed_at_once_gives_old_values() {
    let config = failovers(|budget| budget.evictions = 4);
    is_needed(Mechanism::DoubtForks, config, |red| stored(red) || hit(red));
}

#[test]
fn h16_an_answer_that_comes_after_the_failover_would_acknowledge_what_is_lost() {
    let config = failovers(|_| {});
    let (call, learns) = (
        Event::Invalidation(0, 0),
        [Event::AtStore(0, 0), Event::Answer(0, 0)],
    );
    // Logged, and nobody hears of it before the primary dies; then the pod follows its successor, and only
    // then takes the answer.
    let events = [
        &[
            Event::Commit(0, 0),
            call,
            call,
            Event::Promote(0),
            Event::Connect(0),
        ][..],
        &learns,
        &learns,
        &[call],
    ];
    let events = events.concat();
    assert_eq!(replay(&config, &events), None);
    let off = config.without(Mechanism::LateAcks);
    assert_eq!(replay(&off, &events), Some(Red::Forgotten(0, 1)));
}

#[test]
fn a_fence_that_a_promoted_replica_lacks_would_be_undone() {
    let config = Config {
        pods: 2,
        ..failovers(|budget| {
            (budget.flights, budget.writes) = (0, 3);
            (budget.restarts, budget.snapshots) = (4, 0);
            budget.kills = 4;
        })
    };
    is_needed(Mechanism::FenceAgain, config, |_| true);
}

#[test]
fn h18_a_server_restarted_from_an_old_snapshot_would_be_believed() {
    let config = with(|budget| {
        budget.restarts = 2;
        budget.snapshots = 2;
    });
    is_needed(Mechanism::FenceOnRestart, config, stored);
}

#[test]
fn h19_an_epoch_that_comes_again_would_revive_dead_values() {
    let config = with(|budget| {
        budget.restarts = 2;
        budget.snapshots = 2;
    });
    is_needed(Mechanism::RandomEpoch, config, |_| true);
}

#[test]
fn a_local_level_without_liveness_would_be_stale_without_bound() {
    is_needed(Mechanism::Liveness, with(|budget| budget.losses = 4), hit);
}
