//! Lists, counts and single members.

use crate::bed::{Bed, TTL, listed, names};
use std::collections::BTreeMap;
use tidings::presence::Presence;

async fn every_pod_finds_lists_and_counts_the_members(bed: Bed) {
    let [here, there] = bed.pods().await;
    let room = there.room();
    assert!(names(&room).await.is_empty());
    assert_eq!(room.count().await.unwrap(), 0);
    let said = [("bob", "b"), ("ada", "a"), ("\u{fc}", "u"), ("Zoe", "")];
    let mut leases = Vec::new();
    for (name, word) in said {
        leases.push(here.room().join(name, &word.to_owned()).await.unwrap());
    }
    let expected: BTreeMap<_, _> = said.map(|(n, w)| (n.to_owned(), w.to_owned())).into();
    assert_eq!(listed(&room).await, expected);
    assert_eq!(
        names(&room).await,
        ["Zoe", "ada", "bob", "\u{fc}"],
        "in the order of bytes"
    );
    assert_eq!(room.count().await.unwrap(), 4);
    let bob = room.get("bob").await.unwrap().unwrap();
    assert_eq!((&*bob.name, &*bob.meta.unwrap()), ("bob", "b"));
    assert!(room.get("carol").await.unwrap().is_none());
}

async fn pages_follow_each_other_until_one_is_short(bed: Bed) {
    let pod = bed.pod().await;
    let room = pod.room();
    let said: Vec<_> = (0..700)
        .map(|n| (format!("m{n:03}"), String::new()))
        .collect();
    let said = said.iter().map(|(name, meta)| (&**name, meta));
    let _leases = room.join_many(said).await.unwrap();
    for limit in [1, 99, 300, 700, usize::MAX] {
        let mut walked = 0;
        let mut last: Option<String> = None;
        loop {
            let page = room.page(last.as_deref(), limit).await.unwrap();
            let in_order = page
                .iter()
                .enumerate()
                .all(|(n, member)| member.name == format!("m{:03}", walked + n));
            assert!(in_order && page.len() <= limit);
            walked += page.len();
            last = page.last().map(|member| member.name.clone()).or(last);
            if page.len() < limit {
                break;
            }
        }
        assert_eq!(walked, 700, "pages of {limit}");
    }
    assert!(room.page(Some("m699"), 10).await.unwrap().is_empty());
    assert!(room.page(None, 0).await.unwrap().is_empty());
}

async fn a_meta_of_another_version_spoils_only_itself(bed: Bed) {
    let pod = bed.pod().await;
    let room = pod.room();
    let numbers: Presence<u64> = pod.cache.presence("room").ttl(TTL).build().unwrap();
    let _ada = room.join("ada", &"a".to_owned()).await.unwrap();
    let _bob = numbers.join("bob", &7).await.unwrap();
    let read = room.list().await.unwrap();
    assert_eq!(read.len(), 2);
    assert_eq!(read[0].meta.as_ref().unwrap(), "a");
    assert!(read[1].meta.is_err());
    assert_eq!(numbers.get("bob").await.unwrap().unwrap().meta.unwrap(), 7);
}

on_both_stores!(
    every_pod_finds_lists_and_counts_the_members,
    pages_follow_each_other_until_one_is_short,
    a_meta_of_another_version_spoils_only_itself,
);
