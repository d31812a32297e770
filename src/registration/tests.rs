//! Pods that agree, and pods that must not.

use super::Migration::{From, To};
use super::*;
use proptest::prelude::*;

const OPENING: Epoch = Epoch(0xE);

fn pod(lanes: u16, migration: impl Into<Option<Migration>>) -> Settings {
    Settings {
        lanes,
        migration: migration.into(),
        seed: 7,
        envelope: 1,
    }
}

/// What stands when this pod has done all it has to, or why it keeps out.
fn join(pod: Settings, mut record: Option<Bytes>) -> Result<Bytes, Mismatch> {
    for _ in 0..3 {
        record = match pod.judge(record.as_deref(), OPENING) {
            Verdict::Join => break,
            Verdict::Propose(next) | Verdict::Settle(_, next) => Some(next),
            Verdict::Refuse(mismatch) => return Err(mismatch),
        };
    }
    let record = record.expect("somebody registered");
    assert_eq!(pod.judge(Some(&record), OPENING), Verdict::Join);
    Ok(record)
}

/// Whether each invalidates where the other reads.
fn hear_each_other(a: Settings, b: Settings) -> bool {
    let reaches = |a: Settings, b: Settings| {
        a.lanes == b.lanes || a.migration.is_some_and(|m| m.other() == b.lanes)
    };
    reaches(a, b) && reaches(b, a)
}

/// `docs/wire-format.md` shows the same.
#[test]
fn the_record_is_wire_stable() {
    let shop = Settings {
        seed: 0xf3fb_bc38_4d51_8cd9,
        ..pod(16, None)
    };
    let record = join(shop, None).expect("the first one");
    assert_eq!(record, "1 lanes=16 seed=f3fbbc384d518cd9 keys=1 envelope=1");
}

#[test]
fn a_pod_with_other_lanes_seed_or_envelope_is_refused_with_both_values() {
    let record = join(pod(16, None), None).expect("the first one");
    for (other, setting, registered, ours) in [
        (pod(8, None), "lanes", "16", "8"),
        (pod(8, From(16)), "lanes", "16", "8 (migrating from 16)"),
        (pod(8, To(16)), "lanes", "16", "8 (migrating to 16)"),
        (
            Settings {
                seed: 8,
                ..pod(16, None)
            },
            "seed",
            "0000000000000007",
            "0000000000000008",
        ),
        (
            Settings {
                envelope: 2,
                ..pod(16, None)
            },
            "envelope",
            "1",
            "2",
        ),
    ] {
        let mismatch = join(other, Some(record.clone())).expect_err("another configuration");
        let all = (mismatch.setting(), mismatch.registered(), mismatch.ours());
        assert_eq!(all, (setting, registered, ours));
    }
}

#[test]
fn a_record_that_is_not_understood_in_every_word_is_heeded() {
    let record = join(pod(16, None), None).expect("the first one");
    let longer = [&record[..], b" more=1"].concat();
    for strange in [
        &longer[..],
        b"",
        b"2 lanes=16",
        b"\xff\x1b",
        &record[1..],
        b"1 lanes=99999",
    ] {
        let verdict = pod(16, None).judge(Some(strange), OPENING);
        let Verdict::Refuse(mismatch) = verdict else {
            panic!("{strange:?}: {verdict:?}");
        };
        assert_eq!(mismatch.setting(), "record");
        assert!(!mismatch.to_string().contains('\x1b'), "{mismatch}");
    }
}

#[test]
fn three_rolls_change_the_number_of_lanes_and_no_roll_can_be_skipped() {
    let rolls = [
        pod(16, None),
        pod(16, To(64)),
        pod(64, From(16)),
        pod(64, None),
    ];
    let mut record = join(rolls[0], None).expect("the first one");
    for roll in 1..rolls.len() {
        if let Some(&skipping) = rolls.get(roll + 1) {
            join(skipping, Some(record.clone())).expect_err("a roll was skipped");
        }
        record = join(rolls[roll], Some(record)).expect("its turn");
        // Those of the roll before restart now and then.
        assert_eq!(
            join(rolls[roll - 1], Some(record.clone())),
            Ok(record.clone())
        );
        if roll > 1 {
            join(rolls[roll - 2], Some(record.clone())).expect_err("its time is over");
        }
    }
    assert_eq!(record, "1 lanes=64 seed=0000000000000007 keys=1 envelope=1");
}

#[test]
fn a_record_that_was_lost_in_a_migration_is_written_anew_by_whoever_is_left() {
    let (to, from) = (pod(16, To(64)), pod(64, From(16)));
    for (first, second) in [(to, from), (from, to)] {
        let record = join(first, None).expect("nothing stands");
        let record = join(second, Some(record)).expect("it is its turn");
        assert_eq!(join(first, Some(record.clone())), Ok(record.clone()));
        assert!(record.starts_with(b"1 lanes=64 "), "{record:?}");
    }
}

proptest! {
    /// Whoever comes, in whatever order: those that the record welcomes hear each other.
    #[test]
    fn pods_that_are_welcome_at_once_hear_each_other(
        comes in prop::collection::vec((1..4_u16, 1..4_u16, 0..3), 1..12),
    ) {
        let pods = comes.into_iter().map(|(lanes, other, way)| match way {
            1 if other != lanes => pod(lanes, To(other)),
            2 if other != lanes => pod(lanes, From(other)),
            _ => pod(lanes, None),
        });
        let pods: Vec<_> = pods.collect();
        let mut record = None;
        for &pod in &pods {
            if let Ok(next) = join(pod, record.clone()) {
                record = Some(next);
            }
            let found = record.as_deref();
            let welcome = |pod: &&Settings| pod.judge(found, OPENING) == Verdict::Join;
            let welcome: Vec<_> = pods.iter().filter(welcome).collect();
            for (&a, &b) in welcome.iter().flat_map(|a| welcome.iter().map(move |b| (a, b))) {
                prop_assert!(hear_each_other(*a, *b), "{record:?}: {a:?} {b:?}");
            }
        }
    }

    #[test]
    fn no_bytes_make_judging_panic(found: Vec<u8>) {
        let _ = pod(16, To(64)).judge(Some(&found), OPENING);
    }
}
