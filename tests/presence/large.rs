//! A room of 100,000 members.

use crate::bed::{Account, Bed};
use crate::stalls::Stalls;
use std::collections::BTreeMap;
use std::time::Duration;
use tidings::Cache;
use tidings::store::Redis;
use tidings::testing::RedisServer;

const MEMBERS: usize = 100_000;
const PAGE: usize = 256;
/// Commands that give all there is of a room, however much that is.
const WHOLE: [&str; 8] = [
    "hgetall", "hkeys", "hvals", "smembers", "zrange", "lrange", "keys", "sort",
];

/// How often each command was run.
fn calls(server: &RedisServer) -> BTreeMap<String, usize> {
    let stats = server.cli(&["INFO", "commandstats"]).unwrap();
    let calls = stats.lines().filter_map(|line| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        let (calls, _) = rest.split_once(',')?;
        Some((name.to_owned(), calls.parse().unwrap()))
    });
    calls.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_of_100_000_members_is_walked_by_short_commands() {
    let server = RedisServer::start().unwrap();
    let bed = Bed::on(Redis::new(&server.url()).unwrap());
    let pod = Cache::builder(&*bed.namespace).store(Redis::new(&server.url()).unwrap());
    let pod = pod.build().await.unwrap();
    let room = pod
        .presence::<u32>("room")
        .ttl(Duration::from_secs(30))
        .build()
        .unwrap();
    let names: Vec<_> = (0..MEMBERS).map(|n| format!("member-{n:06}")).collect();
    let members = names.iter().map(|name| (&**name, &7));
    let leases = room.join_many(members).await.unwrap();
    assert_eq!(leases.len(), MEMBERS);
    assert_eq!(room.count().await.unwrap(), MEMBERS as u64);

    server.cli(&["CONFIG", "RESETSTAT"]).unwrap();
    let stalls = Stalls::watch(&server, Duration::from_millis(5));
    let (mut walked, mut pages) = (0, 0);
    let mut last: Option<String> = None;
    loop {
        let page = room.page(last.as_deref(), PAGE).await.unwrap();
        let expected = names[walked..].iter().take(PAGE);
        assert!(page.iter().map(|member| &member.name).eq(expected));
        walked += page.len();
        pages += 1;
        match page.last() {
            Some(member) if page.len() == PAGE => last = Some(member.name.clone()),
            _ => break,
        }
    }
    assert_eq!(walked, MEMBERS);
    let calls = calls(&server);
    for command in WHOLE {
        assert!(!calls.contains_key(command), "{command}: {calls:?}");
    }
    assert_eq!(
        calls["zrangebylex"], pages,
        "one range of 256 for each page"
    );
    let mut watch = room.watch();
    let mut told = 0;
    while let Some(tidings::presence::Event::Joined(_)) = watch.next().await {
        told += 1;
    }
    assert_eq!(told, MEMBERS, "and then it is synced");
    stalls.refuse();
    drop(leases);
    while room.count().await.unwrap() > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let _ = Account::synced(&bed.pod().await.room()).await;
}
