//! Claims on raw data.

use super::harness::{Harness, LANE, LONG, Probe, eventually};
use crate::coherence::Lane;
use crate::error::StoreErrorKind;
use crate::store::{RawFound, RawLink, RawPlace, StoreResult};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::time::Duration;

const PREFIX: &str = "cart";
const KEY: RawPlace<'static> = at(b"1");
const OTHER: RawPlace<'static> = at(b"2");
/// More than any backend looks at in one step.
const MANY: usize = 5_000;
/// How long what must end may take to.
const SHORT: Duration = Duration::from_millis(50);
/// Long enough that a slow machine changes what it has just stored before it ends.
const AWHILE: Duration = Duration::from_secs(1);

const fn at(key: &'static [u8]) -> RawPlace<'static> {
    RawPlace {
        lane: LANE,
        prefix: PREFIX,
        key,
    }
}

impl Probe<'_> {
    fn raw(&self) -> &dyn RawLink {
        self.link.raw()
    }

    async fn raw_get(&self, place: RawPlace<'_>) -> Option<Bytes> {
        let mut found = self.raw().get(&[place]).await.expect("raw get");
        found.pop().expect("one answer for one key")
    }

    async fn raw_set(&self, place: RawPlace<'_>, value: &[u8], ttl: Option<Duration>) {
        self.raw()
            .set(&[(place, value)], ttl)
            .await
            .expect("raw set");
    }

    async fn hset(&self, place: RawPlace<'_>, field: &[u8], value: &[u8]) -> u64 {
        let added = self.raw().hash_set(place, &[(field, value)]).await;
        added.expect("raw hset")
    }

    async fn hget(&self, place: RawPlace<'_>, field: &[u8]) -> Option<Bytes> {
        self.raw().hash_get(place, field).await.expect("raw hget")
    }

    /// All keys under `prefix`; whatever a page gives is removed by the step after it, if so wished.
    async fn walk(&self, prefix: &str, removing: bool) -> (u64, Vec<RawFound>) {
        let (mut all, mut total, mut from) = (Vec::new(), 0, None::<Bytes>);
        let mut doomed = Vec::new();
        loop {
            let step = self.raw().scan(prefix, from.as_deref(), &doomed).await;
            let (removed, page) = step.expect("raw scan");
            total += removed;
            all.extend(page.items.iter().cloned());
            doomed = if removing { page.items } else { Vec::new() };
            from = page.next;
            if from.is_none() && doomed.is_empty() {
                return (total, all);
            }
        }
    }

    async fn fill_prefix(&self, prefix: &str, keys: impl Iterator<Item = usize>) {
        let names: Vec<_> = keys.map(|key| key.to_string()).collect();
        for names in names.chunks(1_000) {
            let place = |name| RawPlace {
                lane: LANE,
                prefix,
                key: str::as_bytes(name),
            };
            let entries: Vec<_> = names.iter().map(|name| (place(name), &b"v"[..])).collect();
            self.raw().set(&entries, None).await.expect("raw set");
        }
    }
}

fn is_wrong_type<T>(answer: StoreResult<T>) -> bool {
    answer.is_err_and(|error| error.kind() == StoreErrorKind::WrongType)
}

/// Keys, fields and values are any bytes, empty ones and all that there are.
pub async fn raw_values_are_kept_under_any_bytes(harness: &Harness) {
    let probe = harness.probe().await;
    let all: Vec<u8> = (0..=255).collect();
    let names: [&'static [u8]; 6] = [b"", b"\0", b"\xff\xfe", b"a:b", b"{x}*?[a-z]\\%3A", b"\r\n"];
    for (n, name) in names.into_iter().enumerate() {
        let value = [&all[..], &[n as u8]].concat();
        probe.raw_set(at(name), &value, None).await;
        assert_eq!(probe.raw_get(at(name)).await.as_deref(), Some(&value[..]));
    }
    probe.raw_set(at(&[b'k'; 2_000]), b"", None).await;
    assert_eq!(probe.raw_get(at(&[b'k'; 2_000])).await, Some(Bytes::new()));
    for name in names {
        assert_eq!(probe.hset(at(b"h"), name, name).await, 1);
    }
    for name in names {
        assert_eq!(probe.hget(at(b"h"), name).await.as_deref(), Some(name));
    }
    let mut found = probe.walk(PREFIX, false).await.1;
    found.retain(|found| found.key.len() < 20 && found.key != "h");
    let found: BTreeSet<_> = found.into_iter().map(|found| found.key).collect();
    assert_eq!(found, names.into_iter().map(Bytes::from_static).collect());
}

/// One answer for each key, also for those that are missing or asked for twice.
pub async fn raw_values_are_given_in_the_order_asked(harness: &Harness) {
    let probe = harness.probe().await;
    let entries = [(KEY, &b"a"[..]), (OTHER, b"b"), (KEY, b"c")];
    probe.raw().set(&entries, None).await.expect("raw set");
    let found = probe.raw().get(&[OTHER, at(b"3"), KEY, OTHER]).await;
    let found = found.expect("raw get");
    let text = |text: &'static str| Some(Bytes::from(text));
    assert_eq!(found, [text("b"), None, text("c"), text("b")]);
    assert_eq!(probe.raw().get(&[]).await.expect("raw get"), []);
    probe.raw().set(&[], None).await.expect("raw set");
    assert_eq!(probe.raw().remove(&[]).await.expect("raw remove"), 0);
}

/// A value replaces a value or a hash, and what was left of its time to live.
pub async fn a_raw_value_takes_the_place_of_what_stood_there(harness: &Harness) {
    let probe = harness.probe().await;
    probe.raw_set(KEY, b"first", Some(SHORT)).await;
    probe.raw_set(KEY, b"second", None).await;
    probe.hset(OTHER, b"f", b"v").await;
    probe.raw_set(OTHER, b"value", None).await;
    probe.raw_set(at(b"timer"), b"v", Some(SHORT)).await;
    eventually("the timer ends", async || {
        probe.raw_get(at(b"timer")).await.is_none().then_some(())
    })
    .await;
    assert_eq!(probe.raw_get(KEY).await.as_deref(), Some(&b"second"[..]));
    assert_eq!(probe.raw_get(OTHER).await.as_deref(), Some(&b"value"[..]));
}

/// What was stored for a while is gone to every call; what was stored for good stays.
pub async fn a_raw_value_ends_with_its_ttl(harness: &Harness) {
    let probe = harness.probe().await;
    probe.raw_set(OTHER, b"v", None).await;
    probe.raw_set(KEY, b"v", Some(SHORT)).await;
    let ended = async || probe.raw_get(KEY).await.is_none().then_some(());
    eventually("it ends", ended).await;
    assert_eq!(probe.raw().remove(&[KEY]).await.expect("raw remove"), 0);
    assert!(!probe.raw().expire(KEY, None).await.expect("raw expire"));
    let keys = probe.walk(PREFIX, false).await.1;
    assert_eq!(keys.len(), 1, "{keys:?}");
    assert_eq!(probe.raw_get(OTHER).await.as_deref(), Some(&b"v"[..]));
}

/// An end can be set, moved and taken away, for values and for hashes.
pub async fn a_raw_ttl_is_changed_and_taken_away(harness: &Harness) {
    let probe = harness.probe().await;
    let expire = async |place, ttl| probe.raw().expire(place, ttl).await.expect("raw expire");
    probe.raw_set(KEY, b"v", Some(AWHILE)).await;
    probe.hset(OTHER, b"f", b"v").await;
    assert!(expire(KEY, None).await);
    assert!(expire(KEY, None).await, "also without an end before");
    assert!(expire(OTHER, Some(AWHILE)).await);
    assert!(!expire(at(b"3"), Some(SHORT)).await);
    assert!(!expire(at(b"3"), None).await);
    let len = async || probe.raw().hash_len(OTHER).await.expect("raw hlen");
    eventually("the hash ends", async || (len().await == 0).then_some(())).await;
    assert!(probe.raw_get(KEY).await.is_some());
    assert!(expire(KEY, Some(LONG)).await);
    assert!(expire(KEY, Some(Duration::from_nanos(1))).await);
    let ended = async || probe.raw_get(KEY).await.is_none().then_some(());
    eventually("the value ends", ended).await;
}

/// A nanosecond is a time to live, and so is more than any clock will see.
pub async fn a_raw_ttl_below_the_resolution_rounds_up(harness: &Harness) {
    let probe = harness.probe().await;
    probe
        .raw_set(KEY, b"v", Some(Duration::from_nanos(1)))
        .await;
    probe.raw_set(OTHER, b"v", Some(Duration::MAX)).await;
    let ended = async || probe.raw_get(KEY).await.is_none().then_some(());
    eventually("it ends", ended).await;
    assert!(probe.raw_get(OTHER).await.is_some());
    let moved = probe.raw().expire(OTHER, Some(Duration::MAX)).await;
    assert!(moved.expect("raw expire"));
}

/// Each key counts once, whatever it holds and however often it is named.
pub async fn removing_raw_keys_counts_those_that_were_there(harness: &Harness) {
    let probe = harness.probe().await;
    probe.raw_set(KEY, b"v", None).await;
    probe.hset(OTHER, b"f", b"v").await;
    let elsewhere = RawPlace {
        lane: Lane(LANE.0 + 1),
        ..KEY
    };
    probe.raw_set(elsewhere, b"v", None).await;
    let places = [KEY, at(b"3"), OTHER, KEY, elsewhere];
    assert_eq!(probe.raw().remove(&places).await.expect("raw remove"), 3);
    assert_eq!(probe.raw().remove(&places).await.expect("raw remove"), 0);
    assert_eq!(probe.raw_get(KEY).await, None);
}

/// Fields are set, counted, read and removed one by one; with the last one the hash is gone.
pub async fn raw_hashes_keep_fields_and_end_with_the_last(harness: &Harness) {
    let probe = harness.probe().await;
    let len = async || probe.raw().hash_len(KEY).await.expect("raw hlen");
    let hdel = async |field| probe.raw().hash_remove(KEY, field).await.expect("raw hdel");
    assert_eq!((len().await, probe.hget(KEY, b"a").await), (0, None));
    assert!(!hdel(b"a").await);
    let none = probe.raw().hash_set(KEY, &[]).await.expect("raw hset");
    assert_eq!((none, len().await), (0, 0));
    let fields: [(&[u8], &[u8]); 3] = [(b"a", b"1"), (b"b", b"2"), (b"a", b"3")];
    let added = probe.raw().hash_set(KEY, &fields).await.expect("raw hset");
    assert_eq!((added, len().await), (2, 2));
    assert_eq!(probe.hget(KEY, b"a").await.as_deref(), Some(&b"3"[..]));
    assert_eq!(probe.hset(KEY, b"b", b"4").await, 0);
    assert_eq!(probe.hget(KEY, b"c").await, None);
    assert!(hdel(b"a").await && !hdel(b"a").await && hdel(b"b").await);
    assert_eq!(probe.walk(PREFIX, false).await.1, []);
}

/// Fields that are set or removed change nothing about when the hash ends.
pub async fn a_raw_hash_keeps_its_ttl_as_fields_come_and_go(harness: &Harness) {
    let probe = harness.probe().await;
    probe.hset(KEY, b"a", b"1").await;
    let set = probe.raw().expire(KEY, Some(AWHILE)).await;
    assert!(set.expect("raw expire"));
    probe.hset(KEY, b"b", b"2").await;
    let removed = probe.raw().hash_remove(KEY, b"a").await;
    assert!(removed.expect("raw hdel"));
    let ended = async || probe.hget(KEY, b"b").await.is_none().then_some(());
    eventually("the hash ends", ended).await;
    assert_eq!(probe.hset(KEY, b"c", b"3").await, 1);
    assert_eq!(probe.raw().hash_len(KEY).await.expect("raw hlen"), 1);
}

/// Whoever asks for a value where a hash stands is told so, and the other way round.
pub async fn raw_values_and_hashes_are_told_apart(harness: &Harness) {
    let probe = harness.probe().await;
    let raw = probe.raw();
    probe.raw_set(KEY, b"v", None).await;
    probe.hset(OTHER, b"f", b"v").await;
    assert!(is_wrong_type(raw.get(&[OTHER]).await));
    assert!(is_wrong_type(raw.get(&[KEY, OTHER]).await));
    assert!(is_wrong_type(raw.hash_get(KEY, b"f").await));
    assert!(is_wrong_type(raw.hash_set(KEY, &[(b"f", b"v")]).await));
    assert!(is_wrong_type(raw.hash_remove(KEY, b"f").await));
    assert!(is_wrong_type(raw.hash_len(KEY).await));
    assert!(is_wrong_type(raw.hash_scan(KEY, None).await));
    assert_eq!(probe.raw_get(KEY).await.as_deref(), Some(&b"v"[..]));
    assert_eq!(probe.hget(OTHER, b"f").await.as_deref(), Some(&b"v"[..]));
}

/// What is there from the first step to the last is given, while other keys come and go.
pub async fn a_raw_scan_gives_every_key_that_stays(harness: &Harness) {
    let probe = harness.probe().await;
    let stays = |n: &usize| n.is_multiple_of(2);
    probe.fill_prefix(PREFIX, 0..MANY).await;
    let goes: Vec<_> = (0..MANY)
        .filter(|n| !stays(n))
        .map(|n| n.to_string())
        .collect();
    let mut goes = goes.chunks(500);
    let (mut seen, mut from, mut steps) = (BTreeSet::new(), None::<Bytes>, 0);
    loop {
        let step = probe.raw().scan(PREFIX, from.as_deref(), &[]).await;
        let (removed, page) = step.expect("raw scan");
        assert_eq!(removed, 0);
        seen.extend(page.items.into_iter().map(|found| found.key));
        if let Some(goes) = goes.next() {
            let places: Vec<_> = goes
                .iter()
                .map(|name| RawPlace {
                    key: name.as_bytes(),
                    ..KEY
                })
                .collect();
            probe.raw().remove(&places).await.expect("raw remove");
            let start = MANY * (steps + 2);
            probe.fill_prefix(PREFIX, start..start + MANY / 5).await;
        }
        steps += 1;
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    assert!(steps > 1, "{MANY} keys in one step");
    for n in (0..MANY).filter(stays) {
        assert!(seen.contains(n.to_string().as_bytes()), "{n} is missing");
    }
}

/// Each step removes what the one before has found; nothing beyond the prefix.
pub async fn a_raw_scan_removes_what_it_is_told_to(harness: &Harness) {
    let probe = harness.probe().await;
    probe.fill_prefix("a", 0..MANY).await;
    probe.fill_prefix("ab", 0..10).await;
    let hash = RawPlace {
        prefix: "a",
        lane: Lane(LANE.0 + 1),
        key: b"hash",
    };
    probe.hset(hash, b"f", b"v").await;
    let (removed, found) = probe.walk("a", true).await;
    assert_eq!(removed, MANY as u64 + 1);
    assert!(found.contains(&RawFound {
        lane: hash.lane,
        key: "hash".into()
    }));
    assert_eq!(probe.walk("a", false).await.1, []);
    assert_eq!(probe.walk("ab", false).await.1.len(), 10);
}

/// As with keys, so with the fields of a hash that is large.
pub async fn a_walk_over_a_raw_hash_gives_every_field_that_stays(harness: &Harness) {
    let probe = harness.probe().await;
    let names: Vec<_> = (0..MANY).map(|n| n.to_string()).collect();
    for names in names.chunks(1_000) {
        let fields = names.iter().map(|name| (name.as_bytes(), name.as_bytes()));
        let fields: Vec<_> = fields.collect();
        let added = probe.raw().hash_set(KEY, &fields).await.expect("raw hset");
        assert_eq!(added, 1_000);
    }
    let (mut seen, mut from, mut steps) = (BTreeSet::new(), None::<Bytes>, 0);
    loop {
        let step = probe.raw().hash_scan(KEY, from.as_deref()).await;
        let page = step.expect("raw hgetall");
        for (field, value) in page.items {
            assert_eq!(field, value);
            seen.insert(field);
        }
        let new = format!("new {steps}");
        probe.hset(KEY, new.as_bytes(), new.as_bytes()).await;
        let name = &names[steps % 10];
        probe.hset(KEY, name.as_bytes(), name.as_bytes()).await;
        steps += 1;
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    assert!(steps > 1, "{MANY} fields in one step");
    for name in &names {
        assert!(seen.contains(name.as_bytes()), "{name} is missing");
    }
    let none = probe
        .raw()
        .hash_scan(OTHER, None)
        .await
        .expect("raw hgetall");
    assert_eq!((none.items, none.next), (Vec::new(), None));
}

/// One key may stand in many places: each of its own.
pub async fn raw_lanes_prefixes_and_namespaces_share_nothing(harness: &Harness) {
    let elsewhere = harness.elsewhere();
    let (here, there) = (harness.probe().await, elsewhere.probe().await);
    let lane = RawPlace {
        lane: Lane(LANE.0 + 1),
        ..KEY
    };
    let longer = RawPlace {
        prefix: "cart%3A",
        ..KEY
    };
    here.raw_set(KEY, b"0", None).await;
    here.raw_set(lane, b"1", None).await;
    here.raw_set(longer, b"2", None).await;
    there.raw_set(KEY, b"3", None).await;
    for (probe, place, value) in [(&here, KEY, "0"), (&here, lane, "1"), (&here, longer, "2")] {
        assert_eq!(
            probe.raw_get(place).await.as_deref(),
            Some(value.as_bytes())
        );
    }
    assert_eq!(here.walk(PREFIX, true).await.0, 2);
    assert_eq!(here.raw_get(longer).await.as_deref(), Some(&b"2"[..]));
    assert_eq!(there.raw_get(KEY).await.as_deref(), Some(&b"3"[..]));
    assert_eq!(there.walk(PREFIX, false).await.1.len(), 1);
}
