//! Claims on the namespace's record.

use super::harness::Harness;
use crate::store::Link;
use bytes::Bytes;
use tokio::task::JoinSet;

async fn register(link: &dyn Link, expected: Option<&[u8]>, record: &[u8]) -> Option<Bytes> {
    let registered = link.register(expected, record).await;
    registered.expect("register")
}

async fn polled(link: &dyn Link) -> Option<Bytes> {
    link.poll().await.expect("poll").record
}

/// The first record stands, whoever comes with another; every poll gives it, byte by byte.
pub async fn the_first_record_stands_and_every_poll_gives_it(harness: &Harness) {
    let (first, second) = (harness.probe().await, harness.probe().await);
    assert_eq!(polled(&*first.link).await, None);
    let record = b"\x00\xff any bytes".to_vec();
    let stands = Some(Bytes::from(record.clone()));
    assert_eq!(register(&*first.link, None, &record).await, stands);
    assert_eq!(register(&*second.link, None, b"other").await, stands);
    for probe in [first, second] {
        assert_eq!(polled(&*probe.link).await, stands);
    }
}

/// A record takes the place of the one that is expected, and of no other, and of none where there is
/// none.
pub async fn a_record_replaces_the_one_it_expects_and_no_other(harness: &Harness) {
    let probe = harness.probe().await;
    let link = &*probe.link;
    assert_eq!(register(link, Some(b"a"), b"b").await, None);
    assert_eq!(polled(link).await, None);
    assert_eq!(register(link, None, b"a").await.as_deref(), Some(&b"a"[..]));
    assert_eq!(
        register(link, Some(b"x"), b"b").await.as_deref(),
        Some(&b"a"[..])
    );
    assert_eq!(
        register(link, Some(b"a"), b"b").await.as_deref(),
        Some(&b"b"[..])
    );
    assert_eq!(polled(link).await.as_deref(), Some(&b"b"[..]));
}

/// Of many who register at once one wins, and all are told the same.
pub async fn of_many_who_register_at_once_one_wins(harness: &Harness) {
    let probes = [harness.probe().await, harness.probe().await];
    let mut calls = JoinSet::new();
    for number in 0..20_u8 {
        let link = probes[usize::from(number) % 2].link.clone();
        calls.spawn(async move { register(&*link, None, &[b'0' + number]).await });
    }
    let answers = calls.join_all().await;
    let stands = polled(&*probes[0].link).await;
    assert!(stands.is_some());
    assert!(
        answers.iter().all(|answer| *answer == stands),
        "{answers:?}"
    );
}

/// Two namespaces have a record each.
pub async fn two_namespaces_share_no_record(harness: &Harness) {
    let (ours, other) = (harness.probe().await, harness.elsewhere());
    register(&*ours.link, None, b"ours").await;
    let other = other.probe().await;
    assert_eq!(polled(&*other.link).await, None);
    register(&*other.link, None, b"theirs").await;
    assert_eq!(polled(&*ours.link).await.as_deref(), Some(&b"ours"[..]));
}
