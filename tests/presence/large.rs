//! A room of 100,000 members.

use crate::bed::{Account, Bed};
use std::time::Duration;
use tidings::Cache;
use tidings::store::Redis;
use tidings::testing::RedisServer;

const MEMBERS: usize = 100_000;
/// No command of a walk takes longer, in microseconds.
const LIMIT: &str = "5000";

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

    server
        .cli(&["CONFIG", "SET", "slowlog-log-slower-than", LIMIT])
        .unwrap();
    let mut slow = String::new();
    // A process that is not given the processor looks slow: once in three tries it is.
    for _ in 0..3 {
        server.cli(&["SLOWLOG", "RESET"]).unwrap();
        let mut walked = 0;
        let mut last: Option<String> = None;
        loop {
            let page = room.page(last.as_deref(), 256).await.unwrap();
            let expected = names[walked..].iter().take(256);
            assert!(page.iter().map(|member| &member.name).eq(expected));
            walked += page.len();
            match page.last() {
                Some(member) if page.len() == 256 => last = Some(member.name.clone()),
                _ => break,
            }
        }
        assert_eq!(walked, MEMBERS);
        slow = server.cli(&["SLOWLOG", "GET"]).unwrap();
        if slow.trim().is_empty() {
            break;
        }
    }
    assert_eq!(slow.trim(), "");
    let mut watch = room.watch();
    let mut told = 0;
    while let Some(tidings::presence::Event::Joined(_)) = watch.next().await {
        told += 1;
    }
    assert_eq!(told, MEMBERS, "and then it is synced");
    drop(leases);
    while room.count().await.unwrap() > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let _ = Account::synced(&bed.pod().await.room()).await;
}
