//! What the pure state keeps through the accidents of a server.

use super::super::layout::{Front, State};
use super::*;
use crate::store::LeaseState;
use std::time::Duration;

const LANE: Lane = Lane(0);
const FIRST_LIFE: Incarnation = Incarnation(1);
const SECOND_LIFE: Incarnation = Incarnation(2);
const PLACE: Place<'static> = Place {
    lane: LANE,
    hash: 7,
    entity: "user",
    key: b"user/1",
};

fn opening(id: u64) -> Opening {
    Opening {
        epoch: Epoch(id),
        nonce: Nonce(id),
    }
}

fn touch(state: &mut MemoryState, id: u64) -> Head {
    state.touch(&[(LANE, opening(id))], 0, &mut Vec::new())[0]
}

fn invalidate(state: &mut MemoryState, id: u64) -> Logged {
    let (nonce, opening) = (Nonce(id), opening(id));
    state.invalidate(LANE, &[], &[7], nonce, opening, 0, &mut Vec::new())
}

fn ask(state: &mut MemoryState, token: u64, now_ms: u64) -> LeaseReply {
    let request = LeaseRequest {
        token,
        ttl: Duration::from_millis(10),
        unusable: None,
        opening: opening(90),
    };
    state.lease(PLACE, request, now_ms, &mut Vec::new())
}

fn value(head: Head) -> Bytes {
    let front = Front {
        state: State::Value,
        token: 0,
        epoch: head.at.epoch,
        seq: head.at.seq,
    };
    Bytes::copy_from_slice(&front.write())
}

fn fill(state: &mut MemoryState, token: u64, head: Head) -> bool {
    let envelope = value(head);
    let fill = Fill {
        token,
        replaces: Replaces::Lease,
        epoch: head.at.epoch,
        envelope: &envelope,
        ttl: None,
    };
    state.fill(PLACE, fill, 0, &mut Vec::new())
}

/// A state in epoch 10 with a value under the key.
fn filled() -> (MemoryState, Bytes) {
    let mut state = MemoryState::new(FIRST_LIFE);
    touch(&mut state, 10);
    let head = ask(&mut state, 1, 0).head;
    assert!(fill(&mut state, 1, head));
    (state, value(head))
}

#[test]
fn touch_after_a_restart_fences_and_old_values_are_dead() {
    let (mut state, _) = filled();
    let snapshot = state.clone();
    invalidate(&mut state, 11);
    state.restart_from(snapshot, SECOND_LIFE);
    let head = touch(&mut state, 20);
    assert_eq!((head.at.epoch, head.at.seq), (Epoch(20), 2));
    assert_eq!((head.prev_epoch, head.fork_seq), (Epoch(10), 1));
    assert_eq!((head.incarnation, head.fork), (SECOND_LIFE, false));
    assert_eq!(touch(&mut state, 21), head, "once for each life");
    assert_eq!(ask(&mut state, 2, 0).state, LeaseState::Granted);
}

#[test]
fn touch_after_a_promotion_that_lost_nothing_forks_and_old_values_live() {
    let (state, value) = filled();
    let mut promoted = MemoryState::new(FIRST_LIFE);
    promoted.restart_from(state.with_continuity(Continuity::Fork), SECOND_LIFE);
    let head = touch(&mut promoted, 20);
    assert_eq!((head.prev_epoch, head.fork), (Epoch(10), true));
    assert_eq!(promoted.log_since(LANE, 2, 9)[0].kind, Kind::Fork);
    assert_eq!(ask(&mut promoted, 2, 0).state, LeaseState::Present(value));
    // A second fork continues only the first.
    promoted.restart_from(promoted.clone(), Incarnation(3));
    touch(&mut promoted, 30);
    assert_eq!(ask(&mut promoted, 2, 0).state, LeaseState::Granted);
}

#[test]
fn a_fill_that_straddles_a_restart_is_refused() {
    let mut state = MemoryState::new(FIRST_LIFE);
    let head = ask(&mut state, 1, 0).head;
    state.restart_from(state.clone(), SECOND_LIFE);
    touch(&mut state, 20);
    assert!(!fill(&mut state, 1, head));
}

/// Hole H19: whatever is lost, numbers never start again in an epoch that somebody may know.
#[test]
fn everything_flushed_opens_a_new_epoch() {
    let (mut state, _) = filled();
    state.flush_all();
    assert_eq!(state, MemoryState::new(FIRST_LIFE));
    let logged = invalidate(&mut state, 20);
    assert_eq!((logged.at.epoch, logged.at.seq), (Epoch(20), 2));
    state.restart_empty(SECOND_LIFE);
    assert_eq!(touch(&mut state, 30).at.epoch, Epoch(30));
}

#[test]
fn a_lost_head_opens_a_new_epoch_and_forgets_the_log_but_no_floor() {
    let (mut state, _) = filled();
    let nonce = Nonce(11);
    for _ in 0..5 {
        state.clear(LANE, "user", 8, nonce, opening(11), 0, &mut Vec::new());
    }
    state.drop_head(LANE);
    assert_eq!(state.read(PLACE, 0).head, None);
    touch(&mut state, 20);
    assert_eq!(state.log_since(LANE, 0, 9).len(), 1);
    assert_eq!(state.read(PLACE, 0).floor, Some(6));
    let reply = ask(&mut state, 2, 0);
    assert_eq!((reply.floor, reply.state), (1, LeaseState::Granted));
    assert!(
        fill(&mut state, 2, reply.head),
        "a floor above the head blocks nothing"
    );
}

#[test]
fn a_lost_floor_makes_everything_filled_before_the_last_entry_absent() {
    let (mut state, value) = filled();
    state.drop_floor(LANE, "user");
    assert_eq!(ask(&mut state, 2, 0).state, LeaseState::Present(value));
    invalidate(&mut state, 11);
    state.drop_floor(LANE, "user");
    let reply = ask(&mut state, 2, 0);
    assert_eq!((reply.floor, reply.state), (2, LeaseState::Granted));
}

#[test]
fn a_lost_log_leaves_the_head_and_the_chain() {
    let (mut state, _) = filled();
    state.trim_log(LANE);
    assert_eq!(state.log_since(LANE, 0, 9), []);
    let logged = invalidate(&mut state, 11);
    assert_eq!((logged.at.seq, logged.prev), (2, Nonce(10)));
    assert_eq!(state.log_since(LANE, 0, 9)[0].prev, Nonce(10));
}

#[test]
fn the_log_keeps_its_newest_entries() {
    let mut state = MemoryState::new(FIRST_LIFE).with_retention(2);
    for id in 10..14 {
        invalidate(&mut state, id);
    }
    let seqs: Vec<_> = state.log_since(LANE, 0, 9).iter().map(|e| e.seq).collect();
    assert_eq!(seqs, [4, 5]);
}

#[test]
fn an_evicted_lease_refuses_its_fill() {
    let mut state = MemoryState::new(FIRST_LIFE);
    let head = ask(&mut state, 1, 0).head;
    assert!(state.evict(LANE, PLACE.key));
    assert!(!state.evict(LANE, PLACE.key));
    assert!(!fill(&mut state, 1, head));
}

#[test]
fn a_lease_ends_at_its_expiry_even_if_somebody_waits() {
    let mut state = MemoryState::new(FIRST_LIFE);
    assert_eq!(ask(&mut state, 1, 0).state, LeaseState::Granted);
    assert_eq!(ask(&mut state, 2, 9).state, LeaseState::Held);
    assert_eq!(ask(&mut state, 3, 10).state, LeaseState::Granted);
}

#[test]
fn steps_that_change_nothing_leave_an_equal_state() {
    let mut state = MemoryState::new(FIRST_LIFE);
    let empty = state.clone();
    state.release(PLACE, 1, 0, &mut Vec::new());
    assert!(!state.evict(LANE, PLACE.key));
    assert_eq!(state.read(PLACE, 0).value, None);
    assert_eq!(state, empty);
}
