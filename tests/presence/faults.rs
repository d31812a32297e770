//! A real server that is killed, forgets, goes back in time, or is full.

use crate::bed::{Account, Bed, PATIENCE, TTL, eventually, names, nobody_comes_or_goes};
use std::time::Instant;
use tidings::StoreErrorKind;
use tidings::presence::PresenceError;
use tidings::store::Redis;
use tidings::testing::RedisServer;

fn word(word: &str) -> String {
    word.to_owned()
}

fn bed() -> (Bed, RedisServer) {
    let server = RedisServer::start().unwrap();
    (Bed::on(Redis::new(&server.url()).unwrap()), server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_lost_its_data_is_told_again_and_nobody_sees_anyone_go() {
    let (bed, mut server) = bed();
    let [a, b, c] = bed.pods().await;
    let room = a.room();
    let ada = room.join("ada", &word("1")).await.unwrap();
    let _more = room.join("more", &word("1")).await.unwrap();
    let _bob = b.room().join("bob", &word("1")).await.unwrap();
    let mut account = Account::of(&c.room());
    account.sees(&["ada", "bob", "more"]).await;
    account.news();
    tokio::task::block_in_place(|| server.restart_empty()).unwrap();
    let all = ["ada", "bob", "more"];
    let are_back = async || c.room().list().await.is_ok() && names(&c.room()).await == all;
    eventually("they are there", are_back).await;
    // Who watches hears again.
    let mark = room.join("mark", &word("1")).await.unwrap();
    account.sees(&["ada", "bob", "mark", "more"]).await;
    mark.leave().await.unwrap();
    ada.leave().await.unwrap();
    account.sees(&["bob", "more"]).await;
    assert_eq!(account.news(), ["+mark", "-mark Left", "-ada Left"]);
    // No ghost and none lost, also when the doubts have ended.
    nobody_comes_or_goes(&c.room(), 2 * TTL, &["bob", "more"]).await;
    let _new = room.join("new", &word("1")).await.unwrap();
    account.sees(&["bob", "more", "new"]).await;
    assert_eq!(account.news(), ["+new"]);
}

/// Who died together with the data is missed after a TTL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_brought_back_is_missed_when_the_ttl_is_over() {
    let (bed, mut server) = bed();
    let [a, b] = bed.pods().await;
    let _ada = a.room().join("ada", &word("1")).await.unwrap();
    let _bob = b.room().join("bob", &word("1")).await.unwrap();
    let mut account = Account::of(&b.room());
    account.sees(&["ada", "bob"]).await;
    account.news();
    a.wire.cut(true);
    tokio::task::block_in_place(|| server.restart_empty()).unwrap();
    account.sees(&["bob"]).await;
    assert_eq!(account.news(), ["-ada Missed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_back_in_time_brings_no_ghost_and_loses_nobody() {
    let (bed, mut server) = bed();
    let [a, b] = bed.pods().await;
    let room = a.room();
    let ada = room.join("ada", &word("1")).await.unwrap();
    let _kept = room.join("kept", &word("1")).await.unwrap();
    let snapshot = tokio::task::block_in_place(|| server.snapshot()).unwrap();
    ada.leave().await.unwrap();
    let _new = room.join("new", &word("1")).await.unwrap();
    let mut account = Account::of(&b.room());
    account.sees(&["kept", "new"]).await;
    account.news();
    tokio::task::block_in_place(|| server.restart_from(&snapshot)).unwrap();
    let are_back = async || match b.room().list().await {
        Ok(_) => names(&b.room()).await == ["kept", "new"],
        Err(_) => false,
    };
    eventually("they are there", are_back).await;
    nobody_comes_or_goes(&b.room(), 2 * TTL, &["kept", "new"]).await;
    let _last = room.join("z", &word("1")).await.unwrap();
    account.sees(&["kept", "new", "z"]).await;
    assert_eq!(account.news(), ["+z"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_is_killed_costs_no_event_for_good() {
    let (bed, server) = bed();
    let [a, b] = bed.pods().await;
    let room = a.room();
    let mut account = Account::synced(&b.room()).await;
    let mut leases = Vec::new();
    for n in 0..5 {
        server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]).unwrap();
        let name = format!("m{n}");
        let deadline = Instant::now() + PATIENCE;
        let lease = loop {
            // The killed one takes the whole link along.
            match room.join(&name, &word("1")).await {
                Ok(lease) => break lease,
                Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
            }
            tokio::task::yield_now().await;
        };
        leases.push(lease);
        let names: Vec<_> = (0..=n).map(|n| format!("m{n}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        account.sees(&names).await;
    }
}

/// Any one of a room's keys may be evicted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_that_was_evicted_in_part_is_whole_again_within_a_heartbeat() {
    loses_a_part(|key| vec!["DEL".to_owned(), key.to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_that_was_written_over_in_part_is_whole_again_within_a_heartbeat() {
    loses_a_part(|key| ["SET", key, "rubbish"].map(str::to_owned).to_vec()).await;
}

async fn loses_a_part(command: impl Fn(&str) -> Vec<String>) {
    let (bed, server) = bed();
    let [a, b] = bed.pods().await;
    let _ada = a.room().join("ada", &word("1")).await.unwrap();
    let _bob = b.room().join("bob", &word("1")).await.unwrap();
    let mut account = Account::of(&b.room());
    account.sees(&["ada", "bob"]).await;
    account.news();
    for part in ["s", "l", "m", "x", "h"] {
        let keys = server.cli(&["KEYS", &format!("*}}p:room:{part}")]).unwrap();
        let command = command(keys.trim());
        let command: Vec<_> = command.iter().map(String::as_str).collect();
        server.cli(&command).unwrap();
        let beats = (a.wire.done("beat"), b.wire.done("beat"));
        let beaten = async || a.wire.done("beat") > beats.0 && b.wire.done("beat") > beats.1;
        eventually("heartbeats", beaten).await;
        eventually("they are there", async || {
            names(&a.room()).await == ["ada", "bob"]
        })
        .await;
        let beats = a.wire.done("beat") - beats.0;
        assert!(beats <= 3, "{beats} heartbeats without {part}");
    }
    let _carol = a.room().join("carol", &word("1")).await.unwrap();
    account.sees(&["ada", "bob", "carol"]).await;
    assert_eq!(account.news(), ["+carol"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_takes_leaves_and_heartbeats_and_refuses_joins() {
    let (bed, server) = bed();
    let [a, b] = bed.pods().await;
    let room = a.room();
    let ada = room.join("ada", &word("1")).await.unwrap();
    let _kept = room.join("kept", &word("1")).await.unwrap();
    server.cli(&["CONFIG", "SET", "maxmemory", "1mb"]).unwrap();
    let refused = room.join("bob", &word("1")).await.unwrap_err();
    let PresenceError::Store(error) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(error.kind(), StoreErrorKind::Full);
    ada.leave().await.unwrap();
    nobody_comes_or_goes(&b.room(), 2 * TTL, &["kept"]).await;
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    let _bob = room.join("bob", &word("1")).await.unwrap();
}

/// Of a room that everybody has left nothing is kept, and of one that everybody was killed in
/// nothing for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_room_takes_no_key_and_an_abandoned_one_expires() {
    let (bed, server) = bed();
    let pod = bed.pod().await;
    let keys = |server: &RedisServer| server.cli(&["KEYS", "*}p:*"]).unwrap();
    let ada = pod.room().join("ada", &word("1")).await.unwrap();
    let bob = pod.room().join("bob", &word("1")).await.unwrap();
    let there = keys(&server);
    assert_eq!(there.lines().count(), 5, "{there}");
    for key in there.lines() {
        let life: i64 = server.cli(&["PTTL", key]).unwrap().trim().parse().unwrap();
        assert!((9_000..=10_000).contains(&life), "{key} lives {life} ms");
    }
    ada.leave().await.unwrap();
    bob.leave().await.unwrap();
    assert_eq!(keys(&server).trim(), "");
}
