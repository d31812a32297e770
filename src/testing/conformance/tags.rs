//! Floors of tags.

use super::harness::{ENTITY_HASH, Harness, KEY, LANE, LONG, Probe, place};
use crate::coherence::Lane;
use crate::store::{TagFloor, TagPlace};
use std::time::Duration;

const OTHER: Lane = Lane(2);
/// The tag that invalidations of [`KEY`] are of.
const TAG: TagPlace = tag(KEY.hash);

const fn tag(key: u64) -> TagPlace {
    TagPlace {
        lane: LANE,
        name: ENTITY_HASH,
        key,
    }
}

async fn floors(probe: &Probe<'_>, tags: &[TagPlace], keep: Option<Duration>) -> Vec<u64> {
    let floors = probe.link.tag_floors(tags, keep).await.expect("tag_floors");
    let floors = floors.into_iter().map(|floor| floor.expect("a head").floor);
    floors.collect()
}

async fn floor(probe: &Probe<'_>, tag: TagPlace) -> u64 {
    floors(probe, &[tag], Some(LONG)).await[0]
}

/// Who comes first knows of nothing older than the log as it stands, and those who follow are told the
/// same.
pub async fn a_missing_tag_floor_is_set_to_where_the_log_stands(harness: &Harness) {
    let probe = harness.probe().await;
    let logged = probe.invalidate(&[place(b"user/2", 0x52)]).await;
    assert_eq!(floor(&probe, TAG).await, logged.at.seq);
    probe.invalidate(&[place(b"user/2", 0x52)]).await;
    assert_eq!(floor(&harness.probe().await, TAG).await, logged.at.seq);
}

/// The answer comes with the head of the tag's lane, which says what the floor is a number of.
pub async fn tag_floors_come_with_the_heads_of_their_lanes_in_order(harness: &Harness) {
    let probe = harness.probe().await;
    let (first, second) = (probe.touch(LANE).await, probe.touch(OTHER).await);
    probe.invalidate(&[KEY]).await;
    let moved = probe.touch(LANE).await;
    assert_ne!(first, moved);
    let elsewhere = |lane, key| TagPlace { lane, ..tag(key) };
    let many = (0..150).map(|n| elsewhere([OTHER, LANE][n as usize % 2], n));
    let many: Vec<_> = many.chain([elsewhere(Lane(0), 1)]).collect();
    let found = probe.link.tag_floors(&many, Some(LONG)).await;
    let found = found.expect("tag_floors");
    let at = |head: crate::coherence::Head| TagFloor {
        head,
        floor: head.at.seq,
    };
    for pair in found[..150].chunks(2) {
        assert_eq!(pair, [Some(at(second)), Some(at(moved))]);
    }
    assert_eq!(found[150..], [None], "a lane without a head has no floors");
    let none = probe.link.tag_floors(&[], None).await;
    assert_eq!(none.expect("tag_floors"), []);
}

/// An invalidation of a tag raises its floor, and those of others not.
pub async fn an_invalidation_raises_the_floor_of_its_tag_alone(harness: &Harness) {
    let probe = harness.probe().await;
    let before = probe.touch(LANE).await.at.seq;
    let (second, third) = (place(b"user/2", 0x52), place(b"user/3", 0x53));
    let tags = [TAG, tag(second.hash), tag(third.hash)];
    assert_eq!(floors(&probe, &tags, None).await, [before; 3]);
    let logged = probe.invalidate(&[KEY, third]).await.at.seq;
    probe.invalidate(&[place(b"user/4", 0x54)]).await;
    assert_eq!(floors(&probe, &tags, None).await, [logged, before, logged]);
}

/// An invalidation needs no keys to be one of tags: nothing need ever have been stored under them.
pub async fn an_invalidation_of_a_tag_that_nobody_asked_for_leaves_no_floor(harness: &Harness) {
    let probe = harness.probe().await;
    probe.invalidate(&[KEY]).await;
    let logged = probe.invalidate(&[place(b"user/2", 0x52)]).await;
    assert_eq!(floor(&probe, TAG).await, logged.at.seq);
}

/// A name goes with all of its keys.
pub async fn a_clear_raises_the_floors_of_its_name_and_of_all_tags_of_it(harness: &Harness) {
    let probe = harness.probe().await;
    let before = probe.touch(LANE).await.at.seq;
    let stranger = TagPlace { name: 0xF, ..TAG };
    let tags = [TAG, tag(7), tag(ENTITY_HASH)];
    assert_eq!(floors(&probe, &tags, Some(LONG)).await, [before; 3]);
    assert_eq!(floor(&probe, stranger).await, before);
    let logged = probe.clear().await.at.seq;
    probe.invalidate(&[place(b"user/2", 0x52)]).await;
    assert_eq!(floors(&probe, &tags, Some(LONG)).await, [logged; 3]);
    assert_eq!(floor(&probe, stranger).await, before);
}

/// A floor is kept for as long as somebody asked for, and then set anew, higher.
pub async fn a_tag_floor_ends_with_the_longest_time_that_was_asked_for(harness: &Harness) {
    let probe = harness.probe().await;
    let before = probe.touch(LANE).await.at.seq;
    let (long, short) = (tag(1), tag(2));
    let ms = Duration::from_millis(1);
    assert_eq!(floors(&probe, &[long], Some(LONG)).await, [before]);
    assert_eq!(floors(&probe, &[long, short], Some(ms)).await, [before; 2]);
    let logged = probe.invalidate(&[KEY]).await.at.seq;
    // Asked about for no longer than it has: asking does not keep it.
    while floors(&probe, &[short], Some(ms)).await != [logged] {
        tokio::time::sleep(5 * ms).await;
    }
    assert_eq!(floors(&probe, &[long], Some(ms)).await, [before]);
    assert_eq!(floors(&probe, &[long, short], None).await, [before, logged]);
}

/// A floor outlives its epoch, but says which one it is asked in: older values are told by that.
pub async fn a_tag_floor_comes_with_the_epoch_that_a_fence_opened(harness: &Harness) {
    let probe = harness.probe().await;
    let old = probe.touch(LANE).await;
    floor(&probe, TAG).await;
    let new = probe.fence(old.at.epoch).await;
    let found = probe.link.tag_floors(&[TAG], Some(LONG)).await;
    let found = found.expect("tag_floors");
    let answered = found[0].expect("a head");
    assert_eq!(answered.head, new, "values of the old epoch are told by it");
    assert!(answered.floor <= new.at.seq);
}
