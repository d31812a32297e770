//! Entries that carry a tag, invalidated from any pod: the promise is that of a key, on another lane than the
//! entry's.

use crate::coherence_world::{Budget, Config, ENDLESS, Event as E, Red, TagPart, Tally};
use crate::controls::hit;
use crate::schedule::{Schedule, replay};
use crate::{all_green, breaks_without, from_env};

/// Schedules without failovers, and with; as many of the second kind as make half of the first.
const SCHEDULES: u64 = 2_000;

fn tagged() -> Config {
    Config {
        pods: 3,
        keys: 2,
        readers: 2,
        tags: true,
        bypass: true,
        reorder: true,
        budget: Budget {
            tags: 6,
            writes: 3,
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
            restarts: 1,
            snapshots: 2,
            flushes: 1,
            tag_floors_lost: 2,
            ..Budget::default()
        },
        ..Config::default()
    }
}

/// Failovers of all lanes, and of the node alone that the tag is on.
fn with_failovers(config: Config) -> Config {
    Config {
        replicas: 1,
        ticks: vec![1, 4, 10, 10, 40, 40, 120, 700, 4000],
        budget: Budget {
            replications: ENDLESS,
            promotions: ENDLESS,
            tag_promotions: 3,
            kills: 4,
            cuts: 2,
            ..config.budget
        },
        ..config
    }
}

fn keeps_every_promise(config: &Config, count: u64) -> Tally {
    let sum = all_green(
        |seed| Schedule::within(seed, config.clone()),
        |done, _| done >= count,
    );
    println!("{sum:#?}");
    sum
}

fn count() -> u64 {
    from_env("TIDINGS_SIM_TAGS", SCHEDULES)
}

#[test]
fn entries_that_carry_a_tag_are_as_fresh_as_those_of_a_key() {
    keeps_every_promise(&tagged(), count());
}

#[test]
fn failovers_of_the_tag_and_of_what_carries_it_break_no_promise() {
    let sum = keeps_every_promise(&with_failovers(tagged()), count() / 2);
    assert!(sum.lost > 0 && sum.repaired > 0, "not shown: {sum:?}");
}

fn calm(change: impl FnOnce(&mut Budget)) -> Config {
    let mut budget = Budget {
        tags: 4,
        flights: 20,
        retries: 20,
        attempts: ENDLESS,
        polls: ENDLESS,
        connects: ENDLESS,
        ..Budget::default()
    };
    change(&mut budget);
    Config {
        tags: true,
        budget,
        ..Config::default()
    }
}

/// Some schedule breaks a promise without `part`, and the same does not with it.
fn is_needed(part: TagPart, config: &Config, expected: impl Fn(Red) -> bool) {
    let off = Config {
        tag_off: Some(part),
        ..config.clone()
    };
    breaks_without(part, &off, config, expected);
}

fn any(red: Red) -> bool {
    hit(red) || matches!(red, Red::Load(..) | Red::Store(..) | Red::StoreDiverged(..))
}

#[test]
fn an_entry_whose_tag_was_invalidated_would_be_served_without_its_count() {
    is_needed(TagPart::Counts, &calm(|_| {}), hit);
}

#[test]
fn an_entry_would_be_served_though_the_lane_of_its_tag_is_not_live() {
    is_needed(TagPart::Liveness, &calm(|budget| budget.losses = 4), hit);
}

#[test]
fn a_load_that_a_tag_overtook_would_be_kept() {
    is_needed(TagPart::Noticed, &calm(|_| {}), any);
}

/// 1. A load reads the old value.
/// 2. The tag is invalidated, and that is acknowledged: nothing detaches the load, for nobody knows its tags.
/// 3. A reader joins it.
#[test]
fn who_joined_a_load_after_its_tag_was_invalidated_would_get_what_it_read() {
    let call = E::Invalidation(0, 0);
    let events = [
        &[E::EvictLocal(0, 0), E::Evict(0), E::Miss(0, 0)][..],
        &[E::Flight(0, 0); 5],
        &[E::CommitTag(0), call, call, call, E::Miss(0, 0)],
        &[E::Flight(0, 0)],
    ];
    let (events, config) = (events.concat(), calm(|budget| budget.evictions = 2));
    let off = Config {
        tag_off: Some(TagPart::Overtaken),
        ..config.clone()
    };
    assert_eq!(replay(&off, &events), Some(Red::Load(0, 0, 0, 1)));
    assert_eq!(replay(&config, &events), None);
}

#[test]
fn a_stored_value_whose_tag_was_invalidated_would_be_believed_without_a_floor() {
    is_needed(TagPart::Floors, &calm(|_| {}), any);
}

#[test]
fn a_floor_that_was_overtaken_would_be_kept() {
    is_needed(TagPart::CountsFirst, &calm(|budget| budget.losses = 4), any);
}

#[test]
fn until_its_own_invalidation_is_acknowledged_a_pod_would_believe_the_store() {
    is_needed(TagPart::Poison, &calm(|_| {}), any);
}

#[test]
fn what_a_fork_of_the_tags_lane_brought_back_would_be_believed() {
    is_needed(TagPart::Doubt, &with_failovers(calm(|_| {})), any);
}
