//! What can be built, and what is refused.

use crate::bed::{Bed, TTL, eventually};
use std::time::Duration;
use tidings::presence::{MAX_META, PresenceError};

async fn a_room_has_any_name_of_1_to_256_bytes(bed: Bed) {
    let pod = bed.pod().await;
    for name in ["a:b", "{x}", "a b", "\u{fc}\0%", &"r".repeat(256)] {
        let room = pod.room_called(name);
        assert_eq!(room.room(), name);
        let _lease = room.join("ada", &String::new()).await.unwrap();
        assert_eq!(room.count().await.unwrap(), 1, "{name}");
        let mut account = crate::bed::Account::of(&room);
        account.sees(&["ada"]).await;
    }
    for name in ["", &*"r".repeat(257)] {
        let refused = pod.cache.presence::<()>(name).build().unwrap_err();
        assert_eq!(refused.option(), "room");
    }
}

async fn a_ttl_is_1_second_to_a_day_and_one_for_a_room(bed: Bed) {
    let pod = bed.pod().await;
    for ttl in [
        Duration::ZERO,
        Duration::from_millis(999),
        Duration::from_secs(86_401),
    ] {
        let refused = pod
            .cache
            .presence::<()>("room")
            .ttl(ttl)
            .build()
            .unwrap_err();
        assert_eq!(refused.option(), "ttl");
    }
    let room = pod.room();
    let lease = room.join("ada", &String::new()).await.unwrap();
    let other = || pod.cache.presence::<()>("room").ttl(2 * TTL).build();
    assert_eq!(other().unwrap_err().option(), "ttl");
    lease.leave().await.unwrap();
    drop(room);
    eventually("nothing uses the room any more", async || other().is_ok()).await;
}

async fn a_member_has_a_name_of_1_to_256_bytes(bed: Bed) {
    let room = bed.pod().await.room();
    for len in [0, 257] {
        let refused = room.join(&"m".repeat(len), &String::new()).await;
        assert!(matches!(refused, Err(PresenceError::Name { len: l }) if l == len));
    }
    let longest = "m".repeat(256);
    let _lease = room.join(&longest, &String::new()).await.unwrap();
    assert!(room.get(&longest).await.unwrap().is_some());
}

async fn a_meta_takes_64_kib_at_most(bed: Bed) {
    let room = bed.pod().await.room();
    // The encoded form of a string of this length begins with three bytes.
    let longest = "x".repeat(MAX_META - 3);
    let lease = room.join("ada", &longest).await.unwrap();
    assert_eq!(
        room.get("ada").await.unwrap().unwrap().meta.unwrap(),
        longest
    );
    let longer = longest + "x";
    let refused = |len| matches!(len, PresenceError::MetaTooLarge { len } if len == MAX_META + 1);
    assert!(refused(lease.update(&longer).await.unwrap_err()));
    assert!(refused(room.join("bob", &longer).await.unwrap_err()));
    assert_eq!(room.count().await.unwrap(), 1);
}

on_both_stores!(
    a_room_has_any_name_of_1_to_256_bytes,
    a_ttl_is_1_second_to_a_day_and_one_for_a_room,
    a_member_has_a_name_of_1_to_256_bytes,
    a_meta_takes_64_kib_at_most,
);
