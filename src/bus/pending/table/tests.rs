//! The table of what is pending: nothing is forgotten, and it stays within its bound.

use super::*;
use crate::bus::pending::Name;
use crate::coherence::{Epoch, Position};
use bytes::Bytes;

fn name(text: &str) -> Name {
    let hash = text
        .bytes()
        .fold(7, |hash, byte| hash * 31 + u64::from(byte));
    Name {
        text: text.into(),
        hash,
    }
}

fn key(lane: u16, of: &str, hash: u64) -> Item {
    Item::Key {
        lane: Lane(lane),
        of: name(of),
        hash,
        key: Bytes::from(format!("{of}:{hash}")),
    }
}

fn entity(lane: u16, of: &str) -> Item {
    Item::Entity {
        lane: Lane(lane),
        of: name(of),
    }
}

fn lane(lane: u16) -> Item {
    Item::Lane { lane: Lane(lane) }
}

fn add(table: &mut Table, item: Item) -> Changes {
    table.add(item, Millis(5), Waiter::nobody(1))
}

fn names(table: &Table) -> Vec<String> {
    let mut names: Vec<_> = table.items().map(|(item, _)| item.to_string()).collect();
    names.sort_unstable();
    names
}

#[test]
fn the_same_item_counts_once() {
    let mut table = Table::new(64);
    assert_eq!(add(&mut table, key(0, "user", 1)).begun.len(), 1);
    for _ in 0..1000 {
        assert_eq!(add(&mut table, key(0, "user", 1)), Changes::default());
    }
    assert_eq!(table.len(), 1);
}

#[test]
fn what_something_coarser_covers_joins_it() {
    let mut table = Table::new(64);
    add(&mut table, entity(0, "user"));
    assert_eq!(add(&mut table, key(0, "user", 1)), Changes::default());
    assert_eq!(
        add(&mut table, key(1, "user", 1)).begun.len(),
        1,
        "another lane"
    );
    add(&mut table, lane(1));
    assert_eq!(add(&mut table, key(1, "user", 2)), Changes::default());
    assert_eq!(add(&mut table, entity(1, "org")), Changes::default());
}

#[test]
fn at_the_bound_the_fullest_entity_of_a_lane_becomes_one_item() {
    let mut table = Table::new(5);
    for hash in 0..3 {
        add(&mut table, key(0, "user", hash));
    }
    add(&mut table, key(1, "user", 9));
    add(&mut table, key(0, "org", 9));
    let changes = add(&mut table, key(0, "org", 10));
    let begun: Vec<_> = changes.begun.iter().map(|(item, _)| item.clone()).collect();
    assert_eq!(begun, [entity(0, "user"), key(0, "org", 10)]);
    assert_eq!(changes.merged.len(), 3);
    let left = ["org:10", "org:9", "user (lane 0)", "user:9"];
    assert_eq!(names(&table), left);
    assert_eq!(table.merged(), 3);
}

#[test]
fn an_item_that_its_own_arrival_merges_away_is_covered() {
    let mut table = Table::new(2);
    add(&mut table, key(0, "user", 1));
    add(&mut table, key(0, "user", 2));
    let changes = add(&mut table, key(0, "user", 3));
    assert_eq!(changes.begun.len(), 1);
    assert_eq!(names(&table), ["user (lane 0)"]);
}

#[test]
fn where_no_entity_has_two_keys_the_fullest_lane_becomes_one_item() {
    let mut table = Table::new(4);
    add(&mut table, entity(0, "a"));
    add(&mut table, entity(0, "b"));
    add(&mut table, key(0, "c", 1));
    add(&mut table, entity(1, "a"));
    add(&mut table, entity(2, "a"));
    let left = ["a (lane 1)", "a (lane 2)", "everything (lane 0)"];
    assert_eq!(names(&table), left);
}

#[test]
fn the_table_is_bounded_whatever_is_added() {
    let mut table = Table::new(64);
    for n in 0..50_000_u64 {
        let on = (n % 16) as u16;
        match n % 3 {
            0 => add(&mut table, entity(on, &format!("group-{n}"))),
            1 => add(&mut table, key(on, "user", n)),
            _ => add(&mut table, key(on, &format!("kind-{}", n % 97), n)),
        };
        assert!(table.len() <= 64, "{} at {n}", table.len());
    }
}

#[test]
fn who_came_while_an_attempt_was_under_way_needs_another() {
    let mut table = Table::new(64);
    let item = key(0, "user", 1);
    let task = add(&mut table, item.clone()).begun[0].1;
    let first = table.attempt(&item, task).expect("it is there");
    add(&mut table, item.clone());
    let (served, all) = table.acknowledge(&item, task, first).expect("it is there");
    assert_eq!((served.len(), all), (1, false));
    let second = table.attempt(&item, task).expect("it is there");
    let (served, all) = table.acknowledge(&item, task, second).expect("it is there");
    assert_eq!((served.len(), all, table.len()), (1, true, 0));
}

/// 1. An attempt at a key begins; the key is merged into its entity; the entity is acknowledged.
/// 2. The key is invalidated anew.
/// 3. The attempt of 1 is acknowledged: it says nothing about 2.
#[test]
fn an_attempt_that_outlived_its_item_acknowledges_nothing() {
    let mut table = Table::new(2);
    let item = key(0, "user", 1);
    let task = add(&mut table, item.clone()).begun[0].1;
    let old = table.attempt(&item, task).expect("it is there");
    add(&mut table, key(0, "user", 2));
    let merged = add(&mut table, key(0, "user", 3));
    let (coarse, coarse_task) = merged.begun[0].clone();
    assert!(table.attempt(&item, task).is_none());
    let number = table.attempt(&coarse, coarse_task).expect("it is there");
    let (served, all) = table
        .acknowledge(&coarse, coarse_task, number)
        .expect("there");
    assert!(all && !served.is_empty());
    add(&mut table, item.clone());
    assert!(table.acknowledge(&item, task, old).is_none());
    assert_eq!(table.len(), 1);
}

#[test]
fn a_waiter_is_acknowledged_at_the_newest_position_of_its_items() {
    let at = |seq| Position {
        epoch: Epoch(1),
        seq,
    };
    let waiter = Waiter::nobody(3);
    for seq in [4, 9, 7] {
        assert_eq!(waiter.position(), None);
        waiter.acknowledged(at(seq));
    }
    assert_eq!(waiter.position(), Some(at(9)));
}

/// Somebody may hold a key invalid a million times, and drop every handle.
#[test]
fn waiters_that_nobody_listens_to_are_forgotten() {
    let mut table = Table::new(64);
    let item = key(0, "user", 1);
    for _ in 0..100_000 {
        add(&mut table, item.clone());
    }
    let entry = &table.entries[&item];
    assert!(entry.waiters.len() <= 16, "{}", entry.waiters.len());
}
