//! The lane state machine, rule by rule. Whole histories are the simulator's business.

mod forks;

use super::*;
use crate::coherence::{Batch, Change, Incarnation, Lane};

const E: Epoch = Epoch(0xE);
const ENTITY: u64 = 7;

fn entry(seq: u64) -> LogEntry {
    LogEntry {
        seq,
        kind: Kind::Invalidate,
        prev: Nonce(seq - 1),
        nonce: Nonce(seq),
        hashes: vec![ENTITY, seq * 100],
    }
}

fn hint(epoch: Epoch, seq: u64) -> Hint {
    Hint {
        lane: Lane(0),
        epoch,
        server_ms: 0,
        entry: entry(seq),
    }
}

fn head(epoch: Epoch, seq: u64) -> Head {
    Head {
        at: Position { epoch, seq },
        nonce: Nonce(seq),
        incarnation: Incarnation(1),
        prev_epoch: Epoch(0),
        fork_seq: 0,
        last_pub_ms: 0,
        fork: false,
        forked_s: 0,
    }
}

fn evict(seq: u64, ordinal: u16) -> Action {
    Action::Evict {
        hash: seq * 100,
        rank: Rank::new(ordinal, seq),
    }
}

fn confirm(sent: u64) -> Action {
    Action::Confirm { sent: Millis(sent) }
}

/// A lane that follows `E` up to `seq` since time 0, and a way to run one step on it.
struct Bench(LaneState);

impl Bench {
    fn at(seq: u64) -> Self {
        let mut bench = Self(LaneState::new(Mechanisms::default()));
        let actions = bench.head(head(E, seq), 0, 0);
        assert_eq!(actions, [Action::Flush, confirm(0)]);
        bench
    }

    fn run(&mut self, step: impl FnOnce(&mut LaneState, &mut Vec<Action>)) -> Vec<Action> {
        let mut out = Vec::new();
        step(&mut self.0, &mut out);
        // Who is told is a matter of its own.
        out.retain(|action| !matches!(action, Action::Tell { .. }));
        out
    }

    fn head(&mut self, head: Head, sent: u64, now: u64) -> Vec<Action> {
        self.run(|lane, out| lane.on_head(Some(head), Millis(sent), Millis(now), out))
    }

    fn hint(&mut self, epoch: Epoch, seq: u64, now: u64) -> Vec<Action> {
        self.run(|lane, out| lane.on_hint(&hint(epoch, seq), Millis(now), out))
    }

    fn log(&mut self, from: u64, entries: &[LogEntry], now: u64) -> Vec<Action> {
        self.run(|lane, out| lane.on_log(from, entries, Millis(now), out))
    }

    fn timer(&mut self, now: u64) -> Vec<Action> {
        self.run(|lane, out| lane.on_timer(Millis(now), out))
    }

    fn ack(&mut self, epoch: Epoch, seq: u64) -> (Ack, Vec<Action>) {
        let call = Arc::new(Call {
            kind: Kind::Invalidate,
            hashes: vec![ENTITY, seq * 100],
            keys: vec![],
            entity: "e".into(),
        });
        let mut out = Vec::new();
        let ack = self
            .0
            .on_ack(&call, &entry(seq), epoch, Millis(1), &mut out);
        out.retain(|action| !matches!(action, Action::Tell { .. }));
        (ack, out)
    }

    fn seq(&self) -> u64 {
        self.0.applied().expect("followed").seq
    }
}

#[test]
fn a_poll_confirms_from_when_it_was_sent_and_only_what_is_applied() {
    let mut lane = Bench::at(5);
    assert_eq!(lane.head(head(E, 5), 300, 900), [confirm(300)]);
    assert_eq!(lane.head(head(E, 6), 1000, 1001), [], "not applied yet");
    assert_eq!(
        lane.hint(E, 6, 1002),
        [evict(6, 1), confirm(1000)],
        "the hint catches up"
    );
}

#[test]
fn a_lost_last_hint_is_read_from_the_log_after_the_grace() {
    let mut lane = Bench::at(5);
    lane.head(head(E, 7), 100, 101);
    assert_eq!(lane.timer(110), []);
    assert_eq!(lane.timer(111), [Action::ReadLog { from: 5 }]);
    let actions = lane.log(5, &[entry(5), entry(6), entry(7)], 112);
    assert_eq!(actions, [evict(6, 1), evict(7, 1), confirm(100)]);
}

#[test]
fn polls_in_quick_succession_do_not_put_off_the_read_of_the_log() {
    let mut lane = Bench::at(5);
    lane.head(head(E, 6), 100, 101);
    lane.head(head(E, 6), 106, 107);
    assert_eq!(lane.timer(111), [Action::ReadLog { from: 5 }]);
}

#[test]
fn a_hint_out_of_order_evicts_at_once_and_advances_nothing() {
    let mut lane = Bench::at(5);
    assert_eq!(lane.hint(E, 7, 50), [evict(7, 1)]);
    assert_eq!(lane.seq(), 5);
    assert_eq!(lane.hint(E, 6, 51), [evict(6, 1)]);
    assert_eq!(lane.seq(), 6);
    assert_eq!(
        lane.timer(60),
        [Action::ReadLog { from: 6 }],
        "7 was not kept: read it"
    );
    assert_eq!(lane.log(6, &[entry(6), entry(7)], 61), [evict(7, 1)]);
    assert_eq!(
        lane.hint(E, 7, 62),
        [evict(7, 1)],
        "a duplicate is harmless"
    );
    assert_eq!(lane.seq(), 7);
}

#[test]
fn a_log_trimmed_past_what_is_applied_flushes_the_lane() {
    let mut lane = Bench::at(5);
    lane.head(head(E, 9), 100, 101);
    assert_eq!(
        lane.log(5, &[entry(8), entry(9)], 102),
        [Action::Flush, confirm(100)]
    );
    assert_eq!(lane.seq(), 9);
}

#[test]
fn a_log_whose_entry_at_the_applied_number_has_another_nonce_is_fenced() {
    let mut lane = Bench::at(5);
    lane.head(head(E, 6), 100, 101);
    let other = LogEntry {
        nonce: Nonce(77),
        ..entry(5)
    };
    let next = LogEntry {
        prev: Nonce(77),
        ..entry(6)
    };
    let fence = [Action::Fence { epoch: E }];
    assert_eq!(lane.log(5, &[other.clone(), next.clone()], 102), fence);
    // A hint of the rewritten log leads there as well, without any poll.
    let mut lane = Bench::at(5);
    assert_eq!(lane.log(5, &[other, next], 102), fence);
}

#[test]
fn a_log_longer_than_one_read_is_read_in_turns() {
    let mut lane = Bench::at(5);
    lane.head(head(E, 9), 100, 101);
    let first = lane.log(5, &[entry(5), entry(6), entry(7)], 102);
    assert_eq!(
        first,
        [evict(6, 1), evict(7, 1), Action::ReadLog { from: 7 }]
    );
    let second = lane.log(7, &[entry(7), entry(8), entry(9)], 103);
    assert_eq!(second, [evict(8, 1), evict(9, 1), confirm(100)]);
}

#[test]
fn a_read_of_the_log_that_hints_have_overtaken_flushes_nothing() {
    let mut lane = Bench::at(5);
    lane.head(head(E, 9), 100, 101);
    for seq in 6..=8 {
        lane.hint(E, seq, 102);
    }
    assert_eq!(
        lane.log(5, &[entry(5), entry(6)], 103),
        [Action::ReadLog { from: 8 }]
    );
}

#[test]
fn a_head_without_known_history_flushes_and_is_taken_as_it_stands() {
    let mut lane = Bench::at(5);
    assert_eq!(
        lane.head(head(Epoch(0xF), 1), 100, 101),
        [Action::Flush, confirm(100)]
    );
    assert_eq!(lane.seq(), 1);
    assert_eq!(
        lane.hint(E, 6, 102),
        [Action::Drop { hash: 600 }],
        "dead epoch: no poll"
    );
    assert_eq!(
        lane.hint(Epoch(3), 6, 102),
        [Action::Poll, Action::Drop { hash: 600 }]
    );
}

#[test]
fn a_clear_in_an_unknown_epoch_is_not_taken_for_the_keys_of_its_hashes() {
    let mut lane = Bench::at(5);
    let mut clear = hint(Epoch(3), 6);
    clear.entry.kind = Kind::Clear;
    let actions = lane.run(|lane, out| lane.on_hint(&clear, Millis(50), out));
    assert_eq!(actions, [Action::Poll]);
}

#[test]
fn a_store_in_an_epoch_that_was_taken_for_over_is_fenced() {
    let mut lane = Bench::at(5);
    lane.head(head(Epoch(0xF), 1), 100, 101);
    assert_eq!(lane.head(head(E, 5), 101, 102), [], "merely overtaken");
    let fence = Action::Fence { epoch: E };
    assert_eq!(lane.head(head(E, 5), 102, 103), [fence]);
}

#[test]
fn an_epoch_that_the_log_opens_in_place_of_a_promised_entry_confirms_nothing() {
    let mut lane = Bench::at(5);
    lane.head(head(E, 6), 100, 101);
    let opened = LogEntry {
        kind: Kind::Fence,
        nonce: Nonce(60),
        hashes: vec![],
        ..entry(6)
    };
    let actions = lane.log(5, &[entry(5), opened], 102);
    assert_eq!(
        actions,
        [Action::Flush, confirm(100)],
        "flushed: nothing missed"
    );
    assert_eq!(lane.0.applied(), Some(head(E, 6).at), "the promised one");
}

#[test]
fn another_entry_in_the_place_of_a_promised_one_flushes_and_fences() {
    let mut lane = Bench::at(5);
    let promised = Head {
        nonce: Nonce(66),
        ..head(E, 6)
    };
    lane.head(promised, 100, 101);
    let actions = lane.hint(E, 6, 102);
    let fence = Action::Fence { epoch: E };
    assert_eq!(actions, [evict(6, 1), fence, Action::Flush, Action::Poll]);
    assert_eq!(lane.0.applied(), None);
}

#[test]
fn a_missing_head_is_opened() {
    let mut lane = Bench::at(5);
    let actions = lane.run(|lane, out| lane.on_head(None, Millis(1), Millis(2), out));
    assert_eq!(actions, [Action::Touch]);
}

#[test]
fn a_store_that_went_back_in_time_is_fenced() {
    let mut lane = Bench::at(5);
    lane.hint(E, 6, 50);
    assert_eq!(
        lane.head(head(E, 5), 49, 52),
        [confirm(49)],
        "the answer is merely older"
    );
    assert_eq!(lane.head(head(E, 5), 51, 52), [Action::Fence { epoch: E }]);
    let other = Head {
        nonce: Nonce(99),
        ..head(E, 6)
    };
    assert_eq!(
        lane.head(other, 53, 54),
        [Action::Fence { epoch: E }],
        "another entry 6"
    );
}

#[test]
fn an_ack_is_worth_what_its_timeline_is_worth() {
    let mut lane = Bench::at(5);
    let at = |epoch, seq| Position { epoch, seq };
    assert_eq!(
        lane.ack(E, 6),
        (Ack::Acknowledged(at(E, 6)), vec![evict(6, 1)])
    );
    assert_eq!(lane.seq(), 6);
    let unknown = Epoch(0xF);
    let (ack, actions) = lane.ack(unknown, 1);
    assert_eq!(ack, Ack::Unknown(at(unknown, 1)));
    assert_eq!(actions, [Action::Drop { hash: 100 }, Action::Poll]);
    lane.head(head(unknown, 1), 100, 101);
    assert_eq!(lane.ack(unknown, 1).0, Ack::Acknowledged(at(unknown, 1)));
    assert_eq!(lane.ack(E, 7).0, Ack::Lost);
}

#[test]
fn who_watches_tags_is_told_after_the_removals() {
    let mut lane = Bench::at(5);
    let mut told = Vec::new();
    let mut clear = hint(E, 7);
    clear.entry.kind = Kind::Clear;
    clear.entry.hashes = vec![ENTITY];
    lane.0.on_hint(&hint(E, 6), Millis(1), &mut told);
    lane.0.on_hint(&clear, Millis(1), &mut told);
    lane.0.on_hint(&hint(Epoch(3), 8), Millis(1), &mut told);
    let tell = |seq: u64, keys: &[u64]| Action::Tell {
        nonce: Nonce(seq),
        change: Change {
            entity: ENTITY,
            keys: keys.to_vec(),
        },
    };
    let cleared = Action::Clear {
        entity: ENTITY,
        rank: Rank::new(1, 7),
    };
    assert_eq!(
        told,
        [
            evict(6, 1),
            tell(6, &[600]),
            cleared,
            tell(7, &[]),
            Action::Poll,
            Action::Drop { hash: 800 },
            tell(8, &[800]),
        ]
    );
}

#[test]
fn an_entry_of_a_later_version_moves_the_chain_and_does_nothing_else() {
    let mut bench = Bench::at(4);
    let mut unknown = hint(E, 5);
    unknown.entry.kind = Kind::Unknown(200);
    let actions = bench.run(|lane, out| lane.on_hint(&unknown, Millis(1), out));
    assert_eq!(actions, []);
    let actions = bench.hint(E, 6, 2);
    assert_eq!(actions, [evict(6, 1)], "in its turn");
}

/// Entries `from..=to` as one message.
fn batch(from: u64, to: u64) -> Batch {
    Batch {
        lane: Lane(0),
        epoch: E,
        server_ms: 0,
        entries: (from..=to).map(entry).collect(),
    }
}

#[test]
fn a_batch_is_applied_as_its_entries_would_be() {
    let mut lane = Bench::at(5);
    assert_eq!(lane.head(head(E, 8), 300, 310), [], "not applied yet");
    let actions = lane.run(|lane, out| {
        let hints = batch(6, 8).into_hints();
        hints.for_each(|hint| lane.on_hint(&hint, Millis(320), out));
    });
    assert_eq!(
        actions,
        [evict(6, 1), evict(7, 1), evict(8, 1), confirm(300)]
    );
    assert_eq!((lane.seq(), lane.0.due()), (8, None));
}

/// What a version that knows no batches does about one, wherever it stands.
#[test]
fn whoever_knows_no_batches_reads_the_log_and_skips_nothing() {
    for at in 5..=8 {
        let mut lane = Bench::at(at);
        let front = Hint::decode(&batch(6, 8).encode()).expect("a hint");
        assert_eq!(
            lane.run(|lane, out| lane.on_hint(&front, Millis(0), out)),
            []
        );
        assert_eq!(lane.seq(), at, "it moves nothing");
        let read = Action::ReadLog { from: at };
        let expected = if at < 8 { vec![read] } else { vec![] };
        assert_eq!(lane.timer(10), expected);
    }
}

#[test]
fn a_gap_that_hints_close_is_not_read_from_the_log() {
    let mut lane = Bench::at(5);
    lane.ack(E, 8);
    assert!(lane.0.due().is_some(), "6 and 7 are missing");
    for seq in 6..=7 {
        lane.hint(E, seq, 2);
        assert!(lane.0.due().is_some());
    }
    lane.hint(E, 8, 3);
    assert_eq!((lane.seq(), lane.timer(1000)), (8, vec![]));
}

#[test]
fn a_lane_waits_as_long_as_hints_may_be_deferred_before_it_reads_the_log() {
    let deferral = Duration::from_millis(50);
    let mut lane = Bench::at(5);
    lane.0 = lane.0.deferring(deferral);
    lane.head(head(E, 6), 300, 300);
    let due = Millis(300) + LaneState::GRACE + deferral;
    assert_eq!(lane.0.due(), Some(due));
    assert_eq!(lane.timer(due.0 - 1), []);
    assert_eq!(lane.timer(due.0), [Action::ReadLog { from: 5 }]);
}

#[test]
fn hints_are_missed_only_of_what_was_published() {
    let mut lane = Bench::at(5);
    assert!(!lane.0.misses_hints());
    let last_pub_ms = (1 << 47) + 2;
    let unpublished = Head {
        last_pub_ms,
        ..head(E, 7)
    };
    assert_eq!(unpublished.unpublished(), 2);
    lane.head(unpublished, 300, 300);
    assert!(lane.0.is_behind() && !lane.0.misses_hints());
    lane.head(
        Head {
            at: Position { epoch: E, seq: 8 },
            ..unpublished
        },
        310,
        310,
    );
    assert!(lane.0.misses_hints(), "6 was published");
}
