//! The same world as the simulator's, in small deployments, tried in every order: each run is
//! exhausted, and each protection switched off is missed.

#[expect(dead_code, reason = "the simulator asks a little more of it")]
mod coherence_world;

use coherence_world::{Budget, Config, Event, TagPart, VersionPart, World};
use stateright::{Checker, Model, Property};
use tidings::coherence::{LaneState, Mechanism};

/// More states than any run here has; to reach it is a failure.
const TOO_MANY: usize = 2_000_000;

const KEPT: &str = "every promise is kept";
const SETTLED: &str = "what comes to rest agrees with the source";

struct Protocol(Config);

impl Model for Protocol {
    type State = World;
    type Action = Event;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(&self.0)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Event>) {
        actions.extend(world.enabled(&self.0));
    }

    fn next_state(&self, world: &World, event: Event) -> Option<World> {
        let mut next = world.clone();
        next.apply(&self.0, event).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(KEPT, |_, world: &World| world.red.is_none()),
            Property::always(SETTLED, |model: &Self, world: &World| {
                !world.enabled(&model.0).is_empty() || {
                    let mut end = world.clone();
                    end.settle(&model.0);
                    end.red.is_none()
                }
            }),
            Property::sometimes("an invalidation is acknowledged", |_, world: &World| {
                world.has_acks()
            }),
        ]
    }
}

/// Milliseconds of one tick: the grace, and L.
const TICK: u16 = 10;

/// Two warm pods; the first writes, the second loads.
fn small() -> Config {
    Config {
        lease_ms: u64::from(TICK),
        ticks: vec![TICK],
        until: 3 * u64::from(TICK),
        writers: 0b01,
        loaders: 0b10,
        pollers: 0b10,
        budget: Budget {
            writes: 1,
            flights: 1,
            polls: 1,
            ..Budget::default()
        },
        ..Config::default()
    }
}

fn keeps_every_promise(config: Config) {
    let started = std::time::Instant::now();
    let checker = Protocol(config)
        .checker()
        .threads(2)
        .target_state_count(TOO_MANY)
        .spawn_bfs()
        .join();
    println!(
        "{}: {} states, {} unique, depth {}, {:?}",
        std::thread::current().name().unwrap_or_default(),
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        started.elapsed()
    );
    checker.assert_properties();
    assert!(checker.is_done() && checker.state_count() < TOO_MANY);
}

fn breaks_without(mechanism: Mechanism, config: Config) {
    breaks(&format!("{mechanism:?}"), config.without(mechanism));
}

fn breaks_without_part(part: VersionPart, config: Config) {
    let off = Config {
        version_off: Some(part),
        ..config
    };
    breaks(&format!("{part:?}"), off);
}

fn breaks(without: &str, config: Config) {
    let checker = Protocol(config)
        .checker()
        .threads(2)
        .target_state_count(TOO_MANY)
        .finish_when(stateright::HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let path = checker
        .discovery(KEPT)
        .or_else(|| checker.discovery(SETTLED));
    let states = checker.state_count();
    let path = path.unwrap_or_else(|| panic!("nothing in {states} states without {without}"));
    let actions = path.into_actions();
    println!(
        "{without}: {states} states, {} steps: {actions:?}",
        actions.len()
    );
}

/// The small deployment with another budget; writes once unless `change` says otherwise.
fn with(change: impl FnOnce(&mut Budget)) -> Config {
    let mut config = small();
    config.budget = Budget {
        writes: 1,
        ..Budget::default()
    };
    change(&mut config.budget);
    config
}

fn a_lost_hint() -> Config {
    with(|budget| {
        budget.losses = 1;
        budget.polls = 1;
    })
}

fn an_old_snapshot() -> Config {
    Config {
        until: u64::from(TICK),
        ..with(|budget| {
            budget.restarts = 1;
            budget.connects = 1;
            budget.polls = 1;
            budget.flights = 1;
        })
    }
}

/// A load that starts while the lane is live: the value may be evicted first.
fn a_slow_load() -> Config {
    Config {
        until: 2 * u64::from(TICK),
        ..with(|budget| {
            budget.evictions = 1;
            budget.flights = 1;
            budget.polls = 1;
        })
    }
}

#[test]
fn a_write_races_a_load_and_a_poll() {
    keeps_every_promise(small());
}

#[test]
fn a_write_races_two_loads_and_their_fills() {
    let config = Config {
        until: 0,
        loaders: 0b11,
        ..with(|budget| {
            budget.flights = 2;
            budget.evictions = 1;
        })
    };
    keeps_every_promise(config);
}

#[test]
fn a_write_races_a_refresh_and_a_load() {
    let config = Config {
        until: 0,
        loaders: 0b11,
        ..with(|budget| {
            budget.refreshes = 1;
            budget.flights = 1;
            budget.evictions = 1;
        })
    };
    keeps_every_promise(config);
}

#[test]
fn two_refreshes_race_a_write() {
    let config = Config {
        until: 0,
        loaders: 0b11,
        ..with(|budget| {
            budget.refreshes = 2;
            budget.flights = 0;
        })
    };
    keeps_every_promise(config);
}

#[test]
fn a_hint_or_an_answer_is_lost() {
    keeps_every_promise(a_lost_hint());
}

#[test]
fn two_writes_are_heard_in_any_order() {
    let config = Config {
        reorder: true,
        until: u64::from(TICK),
        ..with(|budget| {
            budget.writes = 2;
            budget.polls = 1;
        })
    };
    keeps_every_promise(config);
}

#[test]
fn the_server_restarts_from_an_old_snapshot() {
    keeps_every_promise(an_old_snapshot());
}

#[test]
fn everything_is_removed_from_the_server_before_a_poll() {
    let config = Config {
        until: 2 * u64::from(TICK),
        pollers: 0b11,
        ..with(|budget| {
            budget.flushes = 1;
            budget.polls = 1;
        })
    };
    keeps_every_promise(config);
}

#[test]
fn everything_is_removed_from_the_server_during_a_load() {
    let config = Config {
        until: 2 * u64::from(TICK),
        ..with(|budget| {
            budget.flushes = 1;
            budget.evictions = 1;
            budget.flights = 1;
        })
    };
    keeps_every_promise(config);
}

#[test]
fn the_link_breaks_and_loads_go_without_the_store() {
    let config = Config {
        bypass: true,
        until: 2 * u64::from(TICK),
        ..with(|budget| {
            budget.disconnects = 1;
            budget.connects = 1;
            budget.flights = 1;
        })
    };
    keeps_every_promise(config);
}

#[test]
fn the_entity_is_cleared_while_it_is_loaded() {
    let config = Config {
        until: 2 * u64::from(TICK),
        ..with(|budget| {
            budget.writes = 0;
            budget.clears = 1;
            budget.flights = 1;
            budget.floors_lost = 1;
        })
    };
    keeps_every_promise(config);
}

#[test]
fn what_a_promoted_replica_lacks_is_logged_again() {
    let config = Config {
        replicas: 1,
        until: 0,
        ..with(|budget| {
            budget.promotions = 1;
            budget.connects = 2;
            budget.polls = 1;
        })
    };
    keeps_every_promise(config);
}

/// A promotion that loses what was acknowledged, and all the time in which it is doubted.
fn a_lost_tail() -> Config {
    let doubt = LaneState::DOUBT.as_millis() as u16;
    Config {
        replicas: 1,
        ticks: vec![doubt],
        until: u64::from(doubt),
        pollers: 0,
        ..with(|budget| {
            budget.promotions = 1;
            budget.connects = 2;
            budget.polls = 2;
        })
    }
}

#[test]
fn a_fork_is_doubted_until_what_it_lacks_is_logged_again() {
    keeps_every_promise(a_lost_tail());
}

/// The primary ends, and with it the pod whose call no replica has; another pod had heard of it or not.
fn an_inheritance() -> Config {
    Config {
        replicas: 1,
        until: 0,
        ..with(|budget| {
            budget.promotions = 1;
            budget.kills = 1;
            budget.connects = 2;
            budget.polls = 1;
        })
    }
}

#[test]
fn what_was_heard_of_a_pod_that_ended_is_not_forgotten() {
    keeps_every_promise(an_inheritance());
}

#[test]
fn without_hearsay_what_was_heard_of_a_pod_that_ended_is_forgotten() {
    breaks_without(Mechanism::Hearsay, an_inheritance());
}

/// Both primaries are at work, and pods choose between them.
#[test]
fn two_primaries_keep_what_each_acknowledges() {
    let config = Config {
        replicas: 1,
        until: 0,
        ..with(|budget| {
            budget.splits = 1;
            budget.connects = 1;
            budget.polls = 1;
        })
    };
    keeps_every_promise(config);
}

/// Loads read a copy that has the change a tick after it was committed.
fn a_copy_that_lags() -> Config {
    Config {
        lag_ms: u64::from(TICK),
        until: u64::from(TICK),
        ..with(|budget| {
            budget.flights = 1;
            budget.evictions = 1;
        })
    }
}

#[test]
fn a_version_is_named_while_a_copy_that_lags_is_loaded() {
    keeps_every_promise(a_copy_that_lags());
}

/// What every entry is made of is written, and an entry is loaded.
fn a_tag() -> Config {
    Config {
        tags: true,
        until: 0,
        ..with(|budget| {
            budget.writes = 0;
            budget.tags = 1;
            budget.flights = 1;
            budget.evictions = 2;
        })
    }
}

#[test]
fn a_tag_is_invalidated_while_what_carries_it_is_loaded() {
    keeps_every_promise(a_tag());
}

#[test]
fn without_a_part_of_tags_a_counterexample_is_found() {
    for part in [TagPart::Counts, TagPart::Noticed, TagPart::Floors] {
        let off = Config {
            tag_off: Some(part),
            ..a_tag()
        };
        breaks(&format!("{part:?}"), off);
    }
}

/// One who puts what it has committed, one who invalidates, and a reader.
fn a_put_and_a_write() -> Config {
    Config {
        until: 0,
        ..with(|budget| {
            budget.puts = 1;
            budget.flights = 1;
        })
    }
}

#[test]
fn a_put_races_a_write_and_a_load() {
    keeps_every_promise(a_put_and_a_write());
}

#[test]
fn without_a_part_of_versions_a_counterexample_is_found() {
    breaks_without_part(VersionPart::Told, a_copy_that_lags());
    breaks_without_part(VersionPart::Again, a_copy_that_lags());
    breaks_without_part(VersionPart::Compared, a_put_and_a_write());
    breaks_without_part(VersionPart::Standing, a_put_and_a_write());
}

#[test]
fn without_a_protection_a_counterexample_is_found() {
    use Mechanism as M;
    let an_empty_store = with(|budget| {
        budget.evictions = 2;
        budget.flights = 1;
    });
    breaks_without(M::LeaseFence, an_empty_store);
    breaks_without(M::InsertStamp, a_slow_load());
    breaks_without(M::JoinRule, a_slow_load());
    breaks_without(M::SendTime, a_lost_hint());
    breaks_without(M::PollHeads, a_lost_hint());
    breaks_without(M::Liveness, a_lost_hint());
    let an_old_snapshot = || Config {
        until: 2 * u64::from(TICK),
        ..an_old_snapshot()
    };
    breaks_without(M::FenceOnRestart, an_old_snapshot());
    breaks_without(M::RandomEpoch, an_old_snapshot());
    breaks_without(M::KernelClock, with(|budget| budget.pauses = 1));
    breaks_without(
        M::CheckOrder,
        Config {
            readers: 1,
            ..with(|budget| {
                budget.looks = 1;
                budget.polls = 1;
            })
        },
    );
    breaks_without(M::NonceChain, an_old_snapshot());
    breaks_without(M::Reissue, a_lost_tail());
    breaks_without(M::DoubtForks, a_lost_tail());
    breaks_without(M::LateAcks, a_lost_tail());
}
