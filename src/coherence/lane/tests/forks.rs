//! Epochs that continue another one: what is taken over, believed, logged again, and voided.

use super::*;

#[test]
fn a_fork_keeps_the_shared_prefix_and_reissues_what_was_lost() {
    let mut lane = Bench::at(5);
    lane.ack(E, 6);
    lane.ack(E, 7);
    let successor = Epoch(0xF);
    let fork = Head {
        prev_epoch: E,
        fork_seq: 6,
        fork: true,
        ..head(successor, 8)
    };
    assert_eq!(lane.head(fork, 100, 101), [Action::ReadLog { from: 6 }]);
    let opened = LogEntry {
        seq: 7,
        kind: Kind::Fork,
        prev: Nonce(6),
        nonce: Nonce(70),
        hashes: vec![],
    };
    let next = LogEntry {
        prev: Nonce(70),
        ..entry(8)
    };
    let actions = lane.log(6, &[entry(6), opened, next], 102);
    assert!(matches!(&actions[0], Action::Reissue(call) if call.key_hashes() == [700]));
    assert_eq!(actions[1..], [evict(8, 2)]);
    assert!(matches!(lane.ack(E, 6).0, Ack::Acknowledged(_)), "shared");
    assert_eq!(lane.ack(E, 7).0, Ack::Lost);
}

#[test]
fn a_fork_that_is_ahead_of_what_is_applied_brings_the_shared_prefix_first() {
    let mut lane = Bench::at(5);
    let fork = Head {
        prev_epoch: E,
        fork_seq: 6,
        fork: true,
        ..head(Epoch(0xF), 7)
    };
    assert_eq!(lane.head(fork, 100, 101), [Action::ReadLog { from: 5 }]);
    let opened = LogEntry {
        kind: Kind::Fork,
        hashes: vec![],
        ..entry(7)
    };
    let actions = lane.log(5, &[entry(5), entry(6), opened], 102);
    assert_eq!(actions, [evict(6, 1)]);
    assert_eq!(
        lane.0.view().map(|view| view.applied),
        Some(Rank::new(2, 7))
    );
}

#[test]
fn a_fork_whose_log_is_gone_is_flushed_but_what_it_lost_is_reissued() {
    let mut lane = Bench::at(5);
    lane.ack(E, 6);
    lane.ack(E, 7);
    let fork = Head {
        prev_epoch: E,
        fork_seq: 6,
        fork: true,
        ..head(Epoch(0xF), 8)
    };
    assert_eq!(lane.head(fork, 100, 101), [Action::ReadLog { from: 6 }]);
    let actions = lane.log(6, &[], 102);
    assert_eq!(actions[0], Action::Flush);
    assert!(matches!(&actions[1], Action::Reissue(call) if call.key_hashes() == [700]));
    assert_eq!(actions.len(), 2);
}

/// A lane that follows a fork at its end, learnt of at time 101.
fn forked() -> (Bench, Head) {
    let mut lane = Bench::at(5);
    let fork = Head {
        prev_epoch: E,
        fork_seq: 5,
        fork: true,
        ..head(Epoch(0xF), 6)
    };
    lane.head(fork, 100, 101);
    let opened = LogEntry {
        kind: Kind::Fork,
        hashes: vec![],
        ..entry(6)
    };
    assert_eq!(lane.log(5, &[entry(5), opened], 101), []);
    (lane, fork)
}

#[test]
fn a_fork_is_believed_only_after_every_pod_had_the_time_to_log_again_what_it_lost() {
    let (mut lane, fork) = forked();
    let in_doubt = |lane: &Bench| lane.0.view().expect("followed").in_doubt;
    let doubt = LaneState::DOUBT.as_millis() as u64;
    assert_eq!(lane.head(fork, 100 + doubt, 9000), [], "sent too early");
    assert!(in_doubt(&lane));
    assert_eq!(lane.head(fork, 101 + doubt, 9000), [confirm(101 + doubt)]);
    assert!(!in_doubt(&lane));
}

#[test]
fn without_doubt_a_fork_is_believed_before_what_it_lost_is_logged_again() {
    let (mut lane, fork) = forked();
    lane.0.mechanisms = Mechanisms::default().without(Mechanism::DoubtForks);
    lane.0.forget(&mut Vec::new());
    assert!(lane.head(fork, 102, 103).contains(&confirm(102)));
    assert!(!lane.0.view().expect("followed").in_doubt);
}

#[test]
fn who_learns_late_of_a_fork_does_not_doubt_it() {
    let doubt = LaneState::DOUBT.as_millis() as u64;
    for (age, doubted) in [(doubt - 1, true), (doubt + 2000, false)] {
        let (mut lane, fork) = forked();
        lane.0.on_clock(&fork, age);
        assert_eq!(lane.head(fork, 200, 201).is_empty(), doubted, "{age}");
    }
}

#[test]
fn a_fence_that_a_successor_does_not_know_is_repeated() {
    let mut lane = Bench::at(5);
    let fenced = Head {
        prev_epoch: E,
        fork_seq: 5,
        ..head(Epoch(0xB), 6)
    };
    lane.head(fenced, 100, 101);
    let successor = |prev_epoch| Head {
        prev_epoch,
        fork_seq: 5,
        fork: true,
        ..head(Epoch(0xC), 6)
    };
    let fence = Action::Fence { epoch: Epoch(0xC) };
    let lost = Bench(lane.0.clone()).head(successor(E), 200, 201);
    assert!(lost.contains(&fence), "{lost:?}");
    let elsewhere = lane.head(successor(Epoch(0xD)), 200, 201);
    assert!(!elsewhere.contains(&fence), "{elsewhere:?}");
}

#[test]
fn a_fork_that_lost_more_than_is_remembered_is_fenced() {
    let mut lane = Bench::at(5);
    lane.ack(E, 6);
    let call = Arc::new(Call::clear(&"e".into(), ENTITY));
    let late = Millis(2) + Ring::RETENTION;
    let later = LogEntry {
        kind: Kind::Clear,
        ..entry(7)
    };
    lane.run(|lane, out| assert_ne!(lane.on_ack(&call, &later, E, late, out), Ack::Lost));
    let successor = Epoch(0xF);
    let fork = |fork_seq| Head {
        prev_epoch: E,
        fork_seq,
        fork: true,
        ..head(successor, 8)
    };
    let fences = |lane: &Bench, fork_seq| {
        let mut lane = Bench(lane.0.clone());
        lane.head(fork(fork_seq), 100_000, 100_001);
        let actions = lane.log(6, &[], 100_002);
        actions.contains(&Action::Fence { epoch: successor })
    };
    assert!(fences(&lane, 5), "entry 6 is lost and forgotten");
    assert!(!fences(&lane, 6), "entry 7 is lost and remembered");
}

/// Pod A's entries 6 and 7 were heard of, and the successor lacks 7.
fn heard_and_lost() -> (Bench, Head) {
    let mut lane = Bench::at(5);
    lane.hint(E, 6, 1);
    lane.hint(E, 7, 1);
    let fork = Head {
        prev_epoch: E,
        fork_seq: 6,
        fork: true,
        ..head(Epoch(0xF), 7)
    };
    lane.head(fork, 100, 101);
    let opened = LogEntry {
        kind: Kind::Fork,
        hashes: vec![],
        ..entry(7)
    };
    assert_eq!(lane.log(6, &[entry(6), opened], 101), []);
    (lane, fork)
}

#[test]
fn what_was_heard_of_and_is_not_logged_again_in_time_voids_the_lane() {
    let (mut lane, fork) = heard_and_lost();
    let fence = [Action::Fence { epoch: Epoch(0xF) }];
    let patience = LaneState::PATIENCE.as_millis() as u64;
    lane.0.on_clock(&fork, patience);
    assert_eq!(
        lane.head(fork, 200, 201),
        [],
        "two seconds are not over for certain"
    );
    lane.0.on_clock(&fork, patience + 1000);
    assert_eq!(lane.head(fork, 300, 301), fence);
    assert_eq!(lane.head(fork, 500, 501), fence, "until it has happened");
    let doubt = LaneState::DOUBT.as_millis() as u64;
    assert_eq!(
        lane.head(fork, 9 * doubt, 9 * doubt),
        fence,
        "and nothing is confirmed"
    );
    lane.0.on_clock(&fork, 9 * doubt);
    assert!(lane.0.view().expect("followed").in_doubt);
    let fenced = head(Epoch(0x10), 8);
    assert!(
        lane.head(fenced, 10 * doubt, 10 * doubt)
            .contains(&confirm(10 * doubt))
    );
    assert!(!lane.0.view().expect("followed").in_doubt);
}

#[test]
fn what_was_heard_of_and_is_logged_again_voids_nothing() {
    let again = LogEntry {
        seq: 8,
        prev: Nonce(7),
        nonce: Nonce(80),
        ..entry(7)
    };
    let late = LaneState::PATIENCE.as_millis() as u64 + 1000;
    let doubt = LaneState::DOUBT.as_millis() as u64;
    // By a hint, from the log, or by this very pod.
    for way in 0..3 {
        let (mut lane, fork) = heard_and_lost();
        match way {
            0 => lane.run(|lane, out| {
                let hint = Hint {
                    entry: again.clone(),
                    ..hint(Epoch(0xF), 8)
                };
                lane.on_hint(&hint, Millis(150), out);
            }),
            1 => lane.log(7, &[entry(7), again.clone()], 150),
            _ => lane.run(|lane, out| {
                let call = Arc::new(Call::clear(&"e".into(), ENTITY));
                lane.on_ack(&call, &again, Epoch(0xF), Millis(150), out);
            }),
        };
        let moved = Head {
            at: Position {
                epoch: Epoch(0xF),
                seq: 8,
            },
            nonce: again.nonce,
            ..fork
        };
        lane.0.on_clock(&moved, late);
        let actions = lane.head(moved, 101 + doubt, 102 + doubt);
        assert_eq!(actions, [confirm(101 + doubt)], "{way}");
    }
}

#[test]
fn more_lost_than_a_hearer_remembers_voids_the_lane() {
    let mut lane = Bench::at(5);
    let count = Heard::CAPACITY as u64;
    for seq in 6..=6 + count {
        lane.hint(E, seq, 1);
    }
    let fork = |fork_seq| Head {
        prev_epoch: E,
        fork_seq,
        fork: true,
        ..head(Epoch(0xF), fork_seq)
    };
    for (fork_seq, voids) in [(5, true), (6 + count, false)] {
        let mut lane = Bench(lane.0.clone());
        lane.0.heard.enter(&fork(fork_seq), Millis(2));
        let all: Vec<_> = (7..=6 + count).map(|seq| seq * 100).collect();
        lane.0.heard.repaired(&all);
        assert_eq!(lane.0.heard.has_orphans(), voids, "{fork_seq}");
    }
}

#[test]
fn of_an_unknown_past_a_hearer_minds_the_last_minute_alone() {
    let elsewhere = Head {
        prev_epoch: Epoch(0xD),
        fork_seq: 5,
        fork: true,
        ..head(Epoch(0xF), 6)
    };
    let minute = Ring::RETENTION.as_millis() as u64;
    for (now, minds) in [(minute, true), (2 * minute + 1, false)] {
        let mut lane = Bench::at(5);
        lane.hint(E, 6, 1);
        lane.0.heard.enter(&elsewhere, Millis(now));
        assert_eq!(lane.0.heard.has_orphans(), minds, "{now}");
    }
}

#[test]
fn a_fence_needs_nothing_reissued() {
    let mut lane = Bench::at(5);
    lane.ack(E, 6);
    let actions = lane.head(head(Epoch(0xF), 8), 100, 101);
    assert_eq!(actions, [Action::Flush, confirm(100)]);
}
