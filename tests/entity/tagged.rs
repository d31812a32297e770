//! Tags on entries: what goes with a tag, what does not, and what it costs.

use crate::bed::{Bed, Numbers, Pod, eventually};
use crate::lab::{Lab, MS, SECOND};
use crate::source::Source;
use std::time::Duration;
use tidings::{LoadContext, Loaded, Ttl};

/// Numbers that carry the tag of their parity: 1 and 3 `org:1`, 2 and 4 `org:0`.
pub(crate) fn tagged(pod: &Pod, source: &Source) -> Numbers {
    let builder = pod.builder(source).tags(|key, _| [parity(*key)]);
    builder.build().unwrap()
}

pub(crate) fn parity(key: u64) -> String {
    format!("org:{}", key % 2)
}

pub(crate) async fn value(numbers: &Numbers, key: u64) -> u64 {
    *numbers.get(&key).await.unwrap()
}

/// A round trip more than nothing is one too many.
fn calls(pod: &Pod) -> u64 {
    let calls = ["read", "read_many", "lease", "lease_many", "fill", "tags"];
    calls.into_iter().map(|call| pod.wire.calls(call)).sum()
}

async fn a_tag_takes_its_entries_along_in_every_pod_and_no_others(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (tagged(&a, &source), tagged(&b, &source));
    for version in 1..=20 {
        for key in 1..=4 {
            value(&on_a, key).await;
            value(&on_b, key).await;
            source.commit(key, version);
        }
        a.cache.invalidate(["org:1"]).await.unwrap();
        assert_eq!((on_a.peek(&1), on_a.peek(&3)), (None, None));
        assert_eq!(on_a.peek(&2).as_deref(), Some(&0), "of another org");
        eventually("the other pod", async || {
            on_b.peek(&1).is_none() && on_b.peek(&3).is_none()
        })
        .await;
        assert_eq!(on_b.peek(&4).as_deref(), Some(&0), "of another org");
        for numbers in [&on_a, &on_b] {
            for (key, expected) in [(1, version), (2, 0), (3, version), (4, 0)] {
                assert_eq!(value(numbers, key).await, expected, "{key}");
            }
        }
    }
}

/// No pod that has the entry, or has ever heard of the tag, need be there.
async fn a_tag_takes_along_what_only_the_store_holds(bed: Bed) {
    let source = Source::new();
    let a = bed.pod().await;
    let on_a = tagged(&a, &source);
    for key in 1..=4 {
        value(&on_a, key).await;
        source.commit(key, 1);
    }
    a.done("fill", 4).await;
    a.cache.close().await;
    let b = bed.pod().await;
    b.cache.invalidate(["org:1"]).await.unwrap();
    let c = bed.pod().await;
    for pod in [&b, &c] {
        let numbers = tagged(pod, &source);
        for (key, version) in [(1, 1), (2, 0), (3, 1), (4, 0)] {
            assert_eq!(value(&numbers, key).await, version, "{key}");
        }
    }
    assert_eq!(source.loads(), 6, "what was not invalidated was not loaded");
}

async fn a_tag_goes_with_the_whole_of_its_name_and_a_bare_name_not_with_its_parts(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let build = |pod: &Pod| {
        let builder = pod.builder(&source);
        let tags = |key: &u64, _: &u64| match key {
            1 => vec!["org"],
            2 => vec!["org:7", "team:1"],
            _ => vec!["organ"],
        };
        builder.tags(tags).build().unwrap()
    };
    let (on_a, on_b) = (build(&a), build(&b));
    for key in 1..=3 {
        value(&on_a, key).await;
        a.done("fill", key).await;
        value(&on_b, key).await;
        source.commit(key, 1);
    }
    a.cache.invalidate(["org:7"]).await.unwrap();
    let there = |numbers: &Numbers| [1, 2, 3].map(|key| numbers.peek(&key).is_some());
    assert_eq!(there(&on_a), [true, false, true]);
    eventually("the part", async || there(&on_b) == [true, false, true]).await;
    assert_eq!((value(&on_a, 2).await, value(&on_b, 2).await), (1, 1));
    source.commit(2, 2);
    a.cache.invalidate(["org"]).await.unwrap();
    assert_eq!(there(&on_a), [false, false, true]);
    eventually("the whole", async || there(&on_b) == [false, false, true]).await;
    for numbers in [&on_a, &on_b] {
        assert_eq!((value(numbers, 1).await, value(numbers, 2).await), (1, 2));
        assert_eq!(value(numbers, 3).await, 0);
    }
}

async fn a_local_hit_on_a_tagged_entry_makes_no_call(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = tagged(&pod, &source);
    value(&numbers, 1).await;
    pod.done("fill", 1).await;
    let before = calls(&pod);
    for _ in 0..1_000 {
        value(&numbers, 1).await;
    }
    assert_eq!((calls(&pod), source.loads()), (before, 1));
}

/// A floor is asked for once; from then on the pod is told.
async fn a_tag_costs_a_pod_one_round_trip_however_many_entries_carry_it(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let on_b = tagged(&b, &source);
    let from = source.clone();
    let load_many = move |keys: Vec<u64>| {
        let from = from.clone();
        async move { Ok(from.ask_many(keys).await) }
    };
    let builder = a.builder(&source).loader_many(load_many);
    let on_a = builder.tags(|key, _| [parity(*key)]).build().unwrap();
    for key in 0..50 {
        value(&on_a, 2 * key).await;
        a.done("fill", key + 1).await;
    }
    assert_eq!(a.wire.calls("tags"), 1);
    for key in 0..50 {
        value(&on_b, 2 * key).await;
    }
    assert_eq!((b.wire.calls("tags"), source.loads()), (1, 50));
    let many: Vec<_> = (100..200).collect();
    on_a.get_many(&many).await;
    a.done("fill_many", 1).await;
    assert_eq!(a.wire.calls("tags"), 2, "that of all odd ones");
    let c = bed.pod().await;
    tagged(&c, &source).get_many(&many).await;
    assert_eq!((c.wire.calls("tags"), source.loads()), (1, 51));
}

async fn what_has_no_tags_costs_nothing_for_them(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    // Those that every entry has are no more than that.
    let builder = a.builder(&source);
    let own = |key: &u64, _: &u64| ["number".to_owned(), format!("number:{key}")];
    let on_a = builder.tags(own).build().unwrap();
    value(&on_a, 1).await;
    a.done("fill", 1).await;
    value(&b.numbers(&source), 1).await;
    assert_eq!((a.wire.calls("tags"), b.wire.calls("tags")), (0, 0));
    source.commit(1, 1);
    b.cache.invalidate(["number:1"]).await.unwrap();
    eventually("the key", async || on_a.peek(&1).is_none()).await;
    assert_eq!(value(&on_a, 1).await, 1);
}

/// What the loader says of one value adds to what the entity says of all.
async fn tags_that_the_loader_names_count_as_those_of_the_entity(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let from = source.clone();
    let load = move |load: LoadContext<u64, u64>| {
        let from = from.clone();
        async move {
            let loaded = Loaded::new(from.ask(*load.key()).await?);
            Ok(loaded.tags([parity(*load.key())]).tags(["team:1"]))
        }
    };
    let numbers = pod.cache.entity_with("number", load);
    let numbers = numbers.tags(|_, _| ["all:1"]).build().unwrap();
    for (version, tag) in (1..).zip(["org:1", "team:1", "all:1"]) {
        value(&numbers, 1).await;
        source.commit(1, version);
        pod.cache.invalidate(["org:0"]).await.unwrap();
        assert!(numbers.peek(&1).is_some());
        pod.cache.invalidate([tag]).await.unwrap();
        assert_eq!(value(&numbers, 1).await, version, "{tag}");
    }
}

async fn a_stamp_of_a_tag_is_seen_by_who_is_handed_it(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let on_b = tagged(&b, &source);
    b.wire.deafen(true);
    for version in 1..=50 {
        value(&on_b, 1).await;
        source.commit(1, version);
        let stamp = a.cache.invalidate(["org:1"]).await.unwrap();
        assert_eq!(*on_b.get_at_least(&1, &stamp).await.unwrap(), version);
    }
}

/// By floors that are asked for then, though the pod knows some.
async fn a_strict_read_sees_every_tag_that_was_acknowledged_before_it(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (tagged(&a, &source), tagged(&b, &source));
    for key in [1, 3] {
        value(&on_a, key).await;
    }
    a.done("fill", 2).await;
    value(&on_b, 3).await;
    assert_eq!(*on_b.get_strict(&1).await.unwrap(), 0);
    b.wire.deafen(true);
    b.wire.hang("poll");
    for version in 1..=10 {
        source.commit(1, version);
        a.cache.invalidate(["org:1"]).await.unwrap();
        assert_eq!(*on_b.get_strict(&1).await.unwrap(), version);
    }
}

/// A floor may be evicted as anything else. That costs loads.
async fn a_floor_that_was_evicted_costs_loads_and_never_a_stale_read(bed: Bed) {
    let source = Source::new();
    let a = bed.pod().await;
    let on_a = tagged(&a, &source);
    value(&on_a, 1).await;
    a.done("fill", 1).await;
    bed.evict_tag_floors();
    source.commit(1, 1);
    a.cache.invalidate(["org:1"]).await.unwrap();
    let b = bed.pod().await;
    let on_b = tagged(&b, &source);
    assert_eq!(value(&on_b, 1).await, 1, "not what the store holds");
    b.done("fill", 1).await;
    let c = bed.pod().await;
    assert_eq!(value(&tagged(&c, &source), 1).await, 1);
    assert_eq!(source.loads(), 2, "there is a floor again");
}

async fn what_the_store_loses_goes_here_too(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = tagged(&pod, &source);
    for version in 1..=3 {
        value(&numbers, 1).await;
        source.commit(1, version);
        bed.flush();
        eventually("the lanes start anew", async || numbers.peek(&1).is_none()).await;
        assert_eq!(value(&numbers, 1).await, version);
        pod.cache.invalidate(["org:1"]).await.unwrap();
    }
}

/// 1. The pod is deaf. 2. The tag is invalidated. 3. The entry goes as the next poll shows.
async fn a_lost_hint_of_a_tag_is_made_up_for(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let on_b = tagged(&b, &source);
    value(&on_b, 1).await;
    b.wire.deafen(true);
    source.commit(1, 1);
    a.cache.invalidate(["org:1"]).await.unwrap();
    eventually("the log is read", async || on_b.peek(&1).is_none()).await;
    assert_eq!(value(&on_b, 1).await, 1);
}

/// The bound of a tag is that of a key, and a value that is read from the store in between brings no
/// time of its own along.
#[tokio::test]
async fn without_polls_a_tagged_entry_is_served_no_longer_than_the_bound() {
    let lab = Lab::new();
    let (a, b) = (lab.pod().await, lab.pod().await);
    let (on_a, on_b) = (tagged(&a, &lab.source), tagged(&b, &lab.source));
    for key in [1, 3] {
        value(&on_a, key).await;
    }
    a.done("fill", 2).await;
    value(&on_b, 1).await;
    lab.pass(10 * SECOND, &[&a, &b]).await;
    b.wire.hang("poll");
    b.wire.deafen(true);
    for key in [1, 3] {
        lab.source.commit(key, 1);
    }
    a.cache.invalidate(["org:1"]).await.unwrap();
    lab.clock.advance(900 * MS);
    assert_eq!(value(&on_b, 1).await, 0, "within the bound");
    assert_eq!(value(&on_b, 3).await, 0, "from the store, within the bound");
    lab.clock.advance(99 * MS);
    assert!(on_b.peek(&1).is_some() && on_b.peek(&3).is_some());
    lab.clock.advance(MS);
    assert!(on_b.peek(&1).is_none() && on_b.peek(&3).is_none());
    assert_eq!((value(&on_b, 1).await, value(&on_b, 3).await), (1, 1));
}

/// 1. A value is stored whose tag has a floor that is kept for less long.
/// 2. The log moves on.
/// 3. The floor ends, and is set anew, above what the value knows.
#[tokio::test]
async fn a_floor_outlives_every_value_that_carries_its_tag() {
    const MINUTE: Duration = Duration::from_secs(60);
    let lab = Lab::new();
    let a = lab.pod().await;
    let build = |pod: &Pod| {
        let ttl = |key: &u64, _: &u64| match key {
            0 => Ttl::Forever,
            &minutes => Ttl::For(MINUTE * u32::try_from(minutes).unwrap()),
        };
        let builder = pod.builder(&lab.source).jitter(0.0).ttl_with(ttl);
        builder.tags(|_, _| ["org:1"]).build().unwrap()
    };
    let on_a = build(&a);
    for (fill, key) in (1..).zip([1, 100, 0]) {
        value(&on_a, key).await;
        a.done("fill", fill).await;
        let last = [1, 99, 10_000][usize::try_from(fill - 1).unwrap()];
        a.cache.invalidate(["dish"]).await.unwrap(); // on every lane
        lab.pass(MINUTE * last - SECOND, &[&a]).await;
        a.cache.invalidate(["dish"]).await.unwrap();
        let b = lab.pod().await;
        assert_eq!(value(&build(&b), key).await, 0);
        assert_eq!(lab.source.loads() as u64, fill, "it is still there");
        b.cache.close().await;
    }
}

/// Grace is for what expired.
#[tokio::test]
async fn what_was_invalidated_by_a_tag_is_not_served_in_grace() {
    let lab = Lab::new();
    let (a, b) = (lab.pod().await, lab.pod().await);
    let build = |pod: &Pod| {
        let builder = pod.builder(&lab.source).jitter(0.0).ttl(SECOND);
        let builder = builder.grace(60 * SECOND).tags(|_, _| ["org:1"]);
        builder.build().unwrap()
    };
    let (on_a, on_b) = (build(&a), build(&b));
    value(&on_a, 1).await;
    a.done("fill", 1).await;
    lab.pass(2 * SECOND, &[&a, &b]).await;
    lab.source.hold();
    let served = on_a.get_with(&1).await.unwrap();
    assert!(served.is_stale(), "{:?}", served.freshness);
    lab.source.let_go();
    lab.source.commit(1, 1);
    a.cache.invalidate(["org:1"]).await.unwrap();
    for numbers in [&on_a, &on_b] {
        let served = numbers.get_with(&1).await.unwrap();
        assert_eq!((*served.value, served.is_stale()), (1, false));
    }
}

/// Numbers with a grace that carry a soft tag, and one that is not.
fn soft(pod: &Pod, source: &Source) -> Numbers {
    let builder = pod.builder(source).grace(60 * SECOND);
    let builder = builder.soft_tags(|key, _| [parity(*key), "team:1".to_owned()]);
    builder.tags(|_, _| ["team:1"]).build().unwrap()
}

/// What is served of a key at once, and whether it is stale.
async fn served(numbers: &Numbers, key: u64) -> (u64, bool) {
    let served = numbers.get_with(&key).await.unwrap();
    (*served.value, served.is_stale())
}

async fn a_soft_tag_makes_its_entries_stale_and_a_hard_one_removes_them(bed: Bed) {
    let source = Source::new();
    let (a, b, c) = (bed.pod().await, bed.pod().await, bed.pod().await);
    let [on_a, on_b, on_c] = [&a, &b, &c].map(|pod| soft(pod, &source));
    for (numbers, key) in [(&on_a, 1), (&on_a, 2), (&on_b, 1)] {
        value(numbers, key).await;
        a.done("fill", key).await;
    }
    source.commit(1, 1);
    source.hold();
    a.cache.invalidate(["org:1"]).await.unwrap();
    assert_eq!(on_a.peek(&1), None, "not fresh");
    assert_eq!(served(&on_a, 1).await, (0, true), "in grace");
    assert_eq!(served(&on_a, 2).await, (0, false), "of another org");
    eventually("the other pod", async || on_b.peek(&1).is_none()).await;
    assert_eq!(served(&on_b, 1).await, (0, true), "in grace");
    assert_eq!(served(&on_c, 1).await, (0, true), "from the store");
    eventually("it is refreshed", async || source.running() == 1).await;
    source.let_go();
    for numbers in [&on_a, &on_b, &on_c] {
        eventually("the new one", async || {
            served(numbers, 1).await == (1, false)
        })
        .await;
    }
    source.commit(1, 2);
    a.cache.invalidate(["team:1"]).await.unwrap();
    assert_eq!(served(&on_a, 1).await, (2, false), "never the old one");
    eventually("everywhere", async || value(&on_c, 1).await == 2).await;
}

async fn a_soft_tag_that_is_invalidated_during_a_load_wins(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = soft(&pod, &source);
    source.hold();
    let old = {
        let numbers = numbers.clone();
        tokio::spawn(async move { value(&numbers, 1).await })
    };
    eventually("the load runs", async || source.running() == 1).await;
    source.commit(1, 1);
    pod.cache.invalidate(["org:1"]).await.unwrap();
    source.let_go();
    assert_eq!(old.await.unwrap(), 0, "it asked before");
    assert_eq!(served(&numbers, 1).await, (1, false));
}

/// 1. The pod invalidates a soft tag, and the store does not hear of it. 2. The store has the old value.
async fn a_soft_tag_that_is_not_acknowledged_yet_makes_stale_at_once(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let builder = pod
        .builder(&source)
        .grace(60 * SECOND)
        .local_ttl(Duration::ZERO);
    let numbers = builder.soft_tags(|_, _| ["org:1"]).build().unwrap();
    value(&numbers, 1).await;
    pod.done("fill", 1).await;
    assert_eq!(served(&numbers, 1).await, (0, false));
    source.commit(1, 1);
    source.hold();
    pod.wire.hang("invalidate");
    let mut call = std::pin::pin!(pod.cache.invalidate(["org:1"]));
    crate::bed::poll_once(&mut call).await;
    assert_eq!(served(&numbers, 1).await, (0, true));
    source.let_go();
    pod.wire.heal();
    call.await.unwrap();
    eventually("the new one", async || {
        served(&numbers, 1).await == (1, false)
    })
    .await;
}

#[tokio::test]
async fn soft_tags_without_a_grace_are_refused_or_as_any_others() {
    let source = Source::new();
    let bed = Bed::memory();
    let pod = bed.pod().await;
    let refused = pod.builder(&source).soft_tags(|_, _| ["org:1"]).build();
    assert_eq!(refused.unwrap_err().option(), "soft_tags");
    let from = source.clone();
    let load = move |load: LoadContext<u64, u64>| {
        let from = from.clone();
        async move { Ok(Loaded::new(from.ask(*load.key()).await?).soft_tags(["org:1"])) }
    };
    let numbers = pod.cache.entity_with("number", load).build().unwrap();
    value(&numbers, 1).await;
    pod.done("fill", 1).await;
    source.commit(1, 1);
    pod.cache.invalidate(["org:1"]).await.unwrap();
    assert_eq!(served(&numbers, 1).await, (1, false));
}

on_both_stores!(
    a_tag_takes_its_entries_along_in_every_pod_and_no_others,
    a_tag_takes_along_what_only_the_store_holds,
    a_tag_goes_with_the_whole_of_its_name_and_a_bare_name_not_with_its_parts,
    a_local_hit_on_a_tagged_entry_makes_no_call,
    a_tag_costs_a_pod_one_round_trip_however_many_entries_carry_it,
    what_has_no_tags_costs_nothing_for_them,
    tags_that_the_loader_names_count_as_those_of_the_entity,
    a_stamp_of_a_tag_is_seen_by_who_is_handed_it,
    a_strict_read_sees_every_tag_that_was_acknowledged_before_it,
    a_floor_that_was_evicted_costs_loads_and_never_a_stale_read,
    what_the_store_loses_goes_here_too,
    a_lost_hint_of_a_tag_is_made_up_for,
    a_soft_tag_makes_its_entries_stale_and_a_hard_one_removes_them,
    a_soft_tag_that_is_invalidated_during_a_load_wins,
    a_soft_tag_that_is_not_acknowledged_yet_makes_stale_at_once,
);
