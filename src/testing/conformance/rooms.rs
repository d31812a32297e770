//! Claims on rooms.

use super::harness::{Ears, Harness, LANE, LONG, Probe, eventually};
use crate::coherence::{Epoch, Position};
use crate::store::rooms::{
    Beat, Beaten, Change, Footing, Hold, Look, MAX_PAGE, Page, Present, Room, RoomEvent,
    RoomEventKind,
};
use std::time::{Duration, Instant};

const ROOM: Room<'static> = room("doc%3A7");
/// A lease that ends while a claim waits for it.
const SHORT: Duration = Duration::from_millis(300);

const fn room(name: &'static str) -> Room<'static> {
    Room { lane: LANE, name }
}

const fn hold(id: u64) -> Hold {
    Hold { id, ttl: LONG }
}

fn put<'a>(members: &[(&'a str, &'a [u8])]) -> Vec<Change<'a>> {
    let put = |&(member, meta): &(&'a str, &'a [u8])| Change::Put(member, meta);
    members.iter().map(put).collect()
}

impl Probe<'_> {
    async fn begin(&self, hold: Hold, changes: &[Change<'_>]) {
        let footing = Footing::Begins(Epoch(hold.id | 0xE000));
        let rooms = self.link.rooms();
        let begun = rooms.change(ROOM, hold, footing, changes).await;
        assert!(begun.expect("change"), "a hold that begins is there");
    }

    async fn change(&self, hold: Hold, changes: &[Change<'_>]) -> bool {
        let rooms = self.link.rooms();
        let changed = rooms.change(ROOM, hold, Footing::Stands, changes).await;
        changed.expect("change")
    }

    async fn release_hold(&self, hold: Hold) {
        while self
            .link
            .rooms()
            .release(ROOM, hold.id)
            .await
            .expect("release")
            == Look::Again
        {}
    }

    async fn beat(&self, room: Room<'_>, hold: Option<Hold>) -> Beaten {
        let beat = [Beat { room, hold }];
        let beaten = self.link.rooms().beat(&beat).await.expect("beat");
        beaten[0]
    }

    async fn page(&self, after: Option<&str>, limit: usize) -> Page {
        loop {
            match self
                .link
                .rooms()
                .page(ROOM, after, limit)
                .await
                .expect("page")
            {
                Look::Seen(page) => return page,
                Look::Again => {}
            }
        }
    }

    /// Members and metas in order.
    async fn all(&self) -> Vec<(String, Vec<u8>)> {
        let page = self.page(None, MAX_PAGE).await;
        assert!(page.ends);
        let pair = |present: Present| (present.member, present.meta.to_vec());
        page.members.into_iter().map(pair).collect()
    }

    async fn names(&self) -> Vec<String> {
        self.all().await.into_iter().map(|(name, _)| name).collect()
    }

    async fn count(&self) -> u64 {
        loop {
            match self.link.rooms().count(ROOM).await.expect("count") {
                Look::Seen(count) => return count,
                Look::Again => {}
            }
        }
    }

    async fn member(&self, member: &str) -> Option<Present> {
        loop {
            match self.link.rooms().get(ROOM, member).await.expect("get") {
                Look::Seen(found) => return found,
                Look::Again => {}
            }
        }
    }

    async fn watch(&self) {
        self.link.rooms().watch(ROOM).await.expect("watch");
    }
}

impl Ears {
    /// The next event of a room.
    async fn event(&mut self) -> RoomEvent {
        let bytes = self.hear().await;
        RoomEvent::decode(&bytes).unwrap_or_else(|| panic!("not an event: {bytes:?}"))
    }

    async fn happens(&mut self, kind: RoomEventKind, member: &str) -> RoomEvent {
        let event = self.event().await;
        assert_eq!((event.kind, &*event.member), (kind, member));
        event
    }
}

/// Members are found one by one, counted and listed, on every link.
pub async fn members_of_a_room_are_found_counted_and_listed(harness: &Harness) {
    let (here, there) = (harness.probe().await, harness.probe().await);
    assert_eq!((here.count().await, here.names().await.len()), (0, 0));
    here.begin(hold(1), &put(&[("bob", b"1"), ("ada", b"\0\xFF\r\n")]))
        .await;
    assert_eq!(there.count().await, 2);
    let expected = [
        ("ada".to_owned(), b"\0\xFF\r\n".to_vec()),
        ("bob".to_owned(), b"1".to_vec()),
    ];
    assert_eq!(there.all().await, expected);
    let found = there.member("bob").await.expect("he is there");
    assert_eq!(
        (&*found.member, &found.meta[..], found.version),
        ("bob", &b"1"[..], 1)
    );
    assert_eq!(there.member("carol").await, None);
}

/// A member of two holds is one member, and leaves with the last of them.
pub async fn a_member_of_two_holds_leaves_with_the_last(harness: &Harness) {
    let (probe, mut ears) = harness.connect().await;
    probe.watch().await;
    probe.begin(hold(1), &put(&[("ada", b"x")])).await;
    ears.happens(RoomEventKind::Joined, "ada").await;
    probe
        .begin(hold(2), &put(&[("ada", b"x"), ("bob", b"")]))
        .await;
    ears.happens(RoomEventKind::Joined, "bob").await;
    assert_eq!(probe.count().await, 2);
    assert!(probe.change(hold(1), &[Change::Remove("ada")]).await);
    assert_eq!(probe.count().await, 2);
    assert!(
        probe
            .change(hold(2), &[Change::Remove("ada"), Change::Remove("ada")])
            .await
    );
    ears.happens(RoomEventKind::Left, "ada").await;
    assert_eq!(probe.names().await, ["bob"]);
}

/// The newest `Put` says what the meta is; `Keep` leaves it, unless the member is not there.
pub async fn the_newest_meta_wins_and_keep_leaves_it(harness: &Harness) {
    let (probe, mut ears) = harness.connect().await;
    probe.watch().await;
    probe.begin(hold(1), &put(&[("ada", b"1")])).await;
    ears.happens(RoomEventKind::Joined, "ada").await;
    probe.begin(hold(2), &put(&[("ada", b"2")])).await;
    let updated = ears.happens(RoomEventKind::Updated, "ada").await;
    assert_eq!(&updated.meta[..], b"2");
    assert!(
        probe
            .change(
                hold(1),
                &[Change::Keep("ada", b"1"), Change::Keep("bob", b"b")]
            )
            .await
    );
    ears.happens(RoomEventKind::Joined, "bob").await;
    let metas: Vec<_> = probe
        .all()
        .await
        .into_iter()
        .map(|(_, meta)| meta)
        .collect();
    assert_eq!(metas, [b"2", b"b"]);
    let found = probe.member("ada").await.expect("she is there");
    assert_eq!(
        found.version, updated.at.seq,
        "a version is the number of its event"
    );
}

/// A change of a hold that does not stand does nothing, and says so.
pub async fn a_hold_that_does_not_stand_changes_nothing(harness: &Harness) {
    let probe = harness.probe().await;
    assert!(!probe.change(hold(1), &put(&[("ada", b"")])).await);
    assert_eq!(probe.count().await, 0);
    probe.begin(hold(1), &put(&[("ada", b"")])).await;
    assert!(!probe.change(hold(2), &put(&[("bob", b"")])).await);
    assert_eq!(probe.names().await, ["ada"]);
}

/// A hold ends with its last member, and a room with its last hold.
pub async fn an_empty_room_is_gone_and_opens_again_with_another_epoch(harness: &Harness) {
    let probe = harness.probe().await;
    probe.begin(hold(1), &put(&[("ada", b"")])).await;
    let at = probe.beat(ROOM, None).await.at.expect("a room");
    assert_eq!(
        at,
        Position {
            epoch: Epoch(0xE001),
            seq: 1
        }
    );
    assert!(probe.change(hold(1), &[Change::Remove("ada")]).await);
    let gone = Beaten {
        stood: false,
        at: None,
        again: false,
    };
    assert_eq!(probe.beat(ROOM, Some(hold(1))).await, gone);
    assert_eq!(probe.page(None, 10).await.at, None);
    probe.begin(hold(2), &put(&[("bob", b"")])).await;
    let at = probe.page(None, 10).await.at.expect("a room");
    assert_eq!(
        at,
        Position {
            epoch: Epoch(0xE002),
            seq: 1
        }
    );
}

/// Whoever lets a hold go takes its members along, but not those of others; it never comes back.
pub async fn a_released_hold_takes_its_members_along(harness: &Harness) {
    let (probe, mut ears) = harness.connect().await;
    let names: Vec<_> = (0..300).map(|n| format!("m{n:03}")).collect();
    let changes: Vec<_> = names.iter().map(|name| Change::Put(name, b"")).collect();
    let mut begun = false;
    for changes in changes.chunks(64) {
        match std::mem::replace(&mut begun, true) {
            false => probe.begin(hold(1), changes).await,
            true => assert!(probe.change(hold(1), changes).await),
        }
    }
    probe.begin(hold(2), &put(&[("m007", b"")])).await;
    probe.watch().await;
    probe.release_hold(hold(1)).await;
    assert_eq!(probe.names().await, ["m007"]);
    for name in names.iter().filter(|name| *name != "m007") {
        ears.happens(RoomEventKind::Left, name).await;
    }
    assert!(!probe.beat(ROOM, Some(hold(1))).await.stood);
    assert!(!probe.change(hold(1), &put(&[("ada", b"")])).await);
    assert_eq!(probe.names().await, ["m007"]);
}

/// What no longer stands under its lease is found by nobody, and its going is told once.
pub async fn members_go_when_the_lease_of_their_hold_ends(harness: &Harness) {
    let (probe, mut ears) = harness.connect().await;
    let short = Hold { id: 1, ttl: SHORT };
    probe
        .begin(short, &put(&[("ada", b""), ("bob", b"")]))
        .await;
    probe.begin(hold(2), &put(&[("bob", b"")])).await;
    probe.watch().await;
    let gone = async || (probe.count().await == 1).then_some(());
    eventually("the lease ends", gone).await;
    ears.happens(RoomEventKind::Expired, "ada").await;
    assert_eq!(probe.names().await, ["bob"]);
    assert_eq!(probe.member("ada").await, None);
    assert!(!probe.beat(ROOM, Some(short)).await.stood);
    assert!(probe.change(hold(2), &put(&[("carol", b"")])).await);
    ears.happens(RoomEventKind::Joined, "carol").await;
}

/// A beat of anybody removes what has ended, and tells how the room then is.
pub async fn a_beat_removes_what_has_ended(harness: &Harness) {
    let (probe, mut ears) = harness.connect().await;
    probe
        .begin(Hold { id: 1, ttl: SHORT }, &put(&[("ada", b"")]))
        .await;
    probe.watch().await;
    let gone = async || {
        let beaten = probe.beat(ROOM, None).await;
        assert!(!beaten.again);
        beaten.at.is_none().then_some(())
    };
    eventually("the lease ends", gone).await;
    ears.happens(RoomEventKind::Expired, "ada").await;
}

/// A hold stands for as long as it is renewed.
pub async fn a_beat_renews_a_hold(harness: &Harness) {
    let probe = harness.probe().await;
    let ttl = Duration::from_secs(1);
    let began = Instant::now();
    probe
        .begin(Hold { id: 1, ttl }, &put(&[("ada", b"")]))
        .await;
    while began.elapsed() < ttl * 3 / 2 {
        assert!(probe.beat(ROOM, Some(Hold { id: 1, ttl })).await.stood);
        tokio::time::sleep(ttl / 20).await;
    }
    assert_eq!(probe.count().await, 1);
}

/// One call answers for many rooms, in the order asked.
pub async fn a_beat_answers_for_many_rooms_in_order(harness: &Harness) {
    let probe = harness.probe().await;
    probe.begin(hold(1), &put(&[("ada", b"")])).await;
    let names: Vec<_> = (0..150).map(|n| format!("room-{n}")).collect();
    let mut beats: Vec<_> = names
        .iter()
        .map(|name| Beat {
            room: Room { lane: LANE, name },
            hold: Some(hold(1)),
        })
        .collect();
    beats[70] = Beat {
        room: ROOM,
        hold: Some(hold(1)),
    };
    beats[71] = Beat {
        room: ROOM,
        hold: None,
    };
    let beaten = probe.link.rooms().beat(&beats).await.expect("beat");
    assert_eq!(beaten.len(), beats.len());
    for (n, beaten) in beaten.iter().enumerate() {
        assert_eq!(beaten.stood, n == 70);
        assert_eq!(beaten.at.is_some(), n == 70 || n == 71);
    }
}

/// Pages follow each other in the order of the members' bytes, none twice and none left out.
pub async fn pages_walk_a_room_in_the_order_of_bytes(harness: &Harness) {
    let probe = harness.probe().await;
    let mut names: Vec<_> = (0..200).map(|n| format!("m{n}")).collect();
    names.extend(["\u{fc}ber", "(a", "[a", "-", "+", "\0", " ", "Z"].map(str::to_owned));
    let changes: Vec<_> = names.iter().map(|name| Change::Put(name, b"m")).collect();
    for (n, changes) in changes.chunks(50).enumerate() {
        probe.begin(hold(n as u64), changes).await;
    }
    names.sort_unstable();
    for limit in [1, 7, MAX_PAGE] {
        let mut walked: Vec<String> = Vec::new();
        loop {
            let page = probe.page(walked.last().map(String::as_str), limit).await;
            assert!(page.members.len() <= limit);
            walked.extend(page.members.into_iter().map(|present| present.member));
            if page.ends {
                break;
            }
        }
        assert_eq!(walked, names, "pages of {limit}");
    }
    assert_eq!(probe.page(Some("m1000"), 1).await.members[0].member, "m101");
}

/// A page of large metas may be cut short, and then says that more follow.
pub async fn a_page_of_large_metas_is_cut_short_and_says_so(harness: &Harness) {
    let probe = harness.probe().await;
    let meta = vec![7; 1 << 16];
    let names: Vec<_> = (0..64).map(|n| format!("m{n:02}")).collect();
    let changes: Vec<_> = names.iter().map(|name| Change::Put(name, &meta)).collect();
    for (n, changes) in changes.chunks(16).enumerate() {
        probe.begin(hold(n as u64), changes).await;
    }
    let mut walked = Vec::new();
    loop {
        let last = walked
            .last()
            .map(|present: &Present| present.member.clone());
        let page = probe.page(last.as_deref(), MAX_PAGE).await;
        walked.extend(page.members);
        if page.ends {
            break;
        }
    }
    assert!(
        walked
            .iter()
            .all(|present| present.meta.len() == meta.len())
    );
    assert_eq!(walked.len(), names.len());
}

/// The events of an epoch are numbered from 1 without holes, and come in order.
pub async fn events_of_a_room_are_numbered_without_holes(harness: &Harness) {
    let (probe, mut ears) = harness.connect().await;
    probe.watch().await;
    probe
        .begin(
            hold(1),
            &put(&[("ada", b"1"), ("bob", b"1"), ("ada", b"2")]),
        )
        .await;
    probe.change(hold(1), &[Change::Remove("bob")]).await;
    let other = harness.probe().await;
    other.begin(hold(2), &put(&[("carol", b"")])).await;
    probe.release_hold(hold(1)).await;
    let kinds = [
        (RoomEventKind::Joined, "ada"),
        (RoomEventKind::Joined, "bob"),
        (RoomEventKind::Updated, "ada"),
        (RoomEventKind::Left, "bob"),
        (RoomEventKind::Joined, "carol"),
        (RoomEventKind::Left, "ada"),
    ];
    for (seq, (kind, member)) in (1..).zip(kinds) {
        let event = ears.happens(kind, member).await;
        assert_eq!(
            event.at,
            Position {
                epoch: Epoch(0xE001),
                seq
            }
        );
        assert_eq!(event.room, ROOM.name);
    }
    assert_eq!(probe.beat(ROOM, None).await.at.map(|at| at.seq), Some(6));
}

/// Events come to the links that watch the room, and to no others.
pub async fn only_who_watches_a_room_hears_of_it(harness: &Harness) {
    let (probe, mut ears) = harness.connect().await;
    let (stranger, mut strange) = harness.connect().await;
    probe.watch().await;
    stranger
        .link
        .rooms()
        .watch(room("doc%3A71"))
        .await
        .expect("watch");
    probe.begin(hold(1), &put(&[("ada", b"")])).await;
    ears.happens(RoomEventKind::Joined, "ada").await;
    probe.link.rooms().unwatch(ROOM).await.expect("unwatch");
    probe.change(hold(1), &put(&[("bob", b"")])).await;
    probe.touch(LANE).await;
    // The next that either hears is of the log.
    assert!(!RoomEvent::is_one(&ears.hear().await));
    assert!(!RoomEvent::is_one(&strange.hear().await));
}

/// A room of one namespace is not that of another.
pub async fn two_namespaces_share_no_room(harness: &Harness) {
    let elsewhere = harness.elsewhere();
    let (here, there) = (harness.probe().await, elsewhere.probe().await);
    here.begin(hold(1), &put(&[("ada", b"")])).await;
    assert_eq!(there.count().await, 0);
    assert!(!there.beat(ROOM, Some(hold(1))).await.stood);
}
