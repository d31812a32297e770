//! Machines that are paused with their clocks, and clocks that jump: what a hypervisor does to its guests.
//!
//! Every promise holds by the clock of the pod. So a pod that stood still for a minute may serve, for what is
//! left of its second, what was confirmed before: as old as the pause and Δ, and no longer than Δ.

use crate::coherence_world::{Budget, Config, ENDLESS, Event as E, Red, World};
use crate::schedule::{Schedule, replay};
use crate::{all_green_within, from_env};

/// Schedules with clocks that stand still or jump.
const SCHEDULES: u64 = 5_000;

fn paused_machines() -> Config {
    Config {
        pods: 3,
        readers: 2,
        ticks: vec![1, 4, 10, 40, 120, 3000],
        budget: Budget {
            writes: 6,
            clears: 1,
            flights: 20,
            refreshes: 4,
            retries: 20,
            attempts: ENDLESS,
            looks: 10,
            polls: ENDLESS,
            connects: ENDLESS,
            losses: 4,
            disconnects: 2,
            freezes: 4,
            jumps: 2,
            ..Budget::default()
        },
        ..Config::default()
    }
}

#[test]
fn clocks_that_stand_still_or_jump_keep_every_promise_by_their_own_time() {
    let count = from_env("TIDINGS_SIM_CLOCKS", SCHEDULES);
    all_green_within(&paused_machines(), count);
}

/// A clock that only jumps ahead makes confirmations end early: what is promised holds by the true time.
#[test]
fn clocks_that_jump_ahead_keep_every_promise_by_the_true_time() {
    let count = from_env("TIDINGS_SIM_CLOCKS", SCHEDULES) / 4;
    let config = paused_machines();
    let jumps = Config {
        true_time: true,
        budget: Budget {
            freezes: 0,
            jumps: ENDLESS,
            ..config.budget
        },
        ..config
    };
    all_green_within(&jumps, count);
}

/// Pod 0 stands still, and what it holds is invalidated. Whether it would serve that at the end.
fn served_after(after: &[E]) -> (bool, World) {
    let config = paused_machines();
    let mut world = World::new(&config);
    for event in [
        E::Freeze(0),
        E::Commit(1, 0),
        E::Invalidation(1, 0),
        E::Invalidation(1, 0),
        E::Invalidation(1, 0),
    ] {
        assert!(world.apply(&config, event), "{event:?}");
    }
    for _ in 0..20 {
        assert!(world.apply(&config, E::Advance(3000)));
    }
    for event in after {
        assert!(world.apply(&config, *event), "{event:?}");
    }
    assert_eq!(world.red, None);
    // A reader that finds something to serve does not miss.
    let missed = world.clone().apply(&config, E::Miss(0, 0));
    (!missed, world)
}

#[test]
fn a_machine_that_was_paused_for_a_minute_serves_old_values_for_no_longer_than_the_bound() {
    let (served, mut world) = served_after(&[E::Resume(0)]);
    assert!(served, "what is impossible, 3");
    let (served, _) = served_after(&[E::Resume(0), E::Advance(120)]);
    assert!(!served, "its own time has passed");
    let (served, _) = served_after(&[E::Resume(0), E::Deliver(0, 0)]);
    assert!(!served, "it has heard of it");
    let asked = [
        E::Resume(0),
        E::Poll(0),
        E::AtStore(0, 0),
        E::Answer(0, 0),
        E::Advance(10),
        E::Timer(0),
        E::AtStore(0, 0),
        E::Answer(0, 0),
    ];
    let (served, _) = served_after(&asked[..5]);
    assert!(served, "it is not over yet");
    let (served, _) = served_after(&asked);
    assert!(!served, "it has asked");
    // And then all agree.
    world.settle(&paused_machines());
    assert_eq!(world.red, None);
}

/// Nobody inside can do better: measured by the true time the same is red.
#[test]
fn a_paused_machine_would_break_a_promise_by_the_true_time() {
    let config = Config {
        true_time: true,
        ..paused_machines()
    };
    let broken = (0..1000).find_map(|seed| {
        let (events, world) = Schedule::within(seed, config.clone()).run();
        world.red.map(|red| (events, red))
    });
    let (events, red) = broken.expect("it is impossible");
    assert!(matches!(red, Red::Hit(..) | Red::Load(..)), "{red:?}");
    assert_eq!(replay(&paused_machines(), &events), None);
}
