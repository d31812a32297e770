//! A server that answers, but refuses: full, read only, forgetful, or no longer knowing its users.

use crate::fleet::{Fleet, Plan};
use tidings::StoreState;
use tidings::error::StoreErrorKind;
use tidings::testing::{RedisServer, ServerError};

/// Waits until every pod's store is down for `kind`. A poll that came too late on a busy machine may have
/// told another reason first.
async fn down_for(fleet: &Fleet, kind: StoreErrorKind) {
    let is_down = |pod: &crate::fleet::Pod| match pod.health().store {
        StoreState::Down { reason } => reason.kind() == kind,
        _ => false,
    };
    fleet.each_pod("noticed", is_down).await;
}

/// Invalidations go through, fills do not, reads go on (hole H20).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full() {
    let fleet = Fleet::start().await;
    fleet.work(500).await;
    fleet.cli("CONFIG SET maxmemory-policy noeviction");
    fleet.cli("CONFIG SET maxmemory 1");
    fleet.work(500).await;
    let stored = || fleet.pods.iter().map(|pod| pod.stats().fills).sum::<u64>();
    let before = stored();
    fleet.work(1000).await;
    fleet.heals().await;
    assert_eq!(stored(), before, "nothing is stored any more");
    for pod in &fleet.pods {
        assert_eq!(pod.health().links, 1, "full is not down");
    }
    let logged = fleet.logged();
    fleet.work(300).await;
    assert!(fleet.logged() > logged, "invalidations are not");
    fleet.cli("CONFIG SET maxmemory 0");
    fleet.work(500).await;
    fleet.finish().await;
}

/// What an invalidation in the obvious order would meet on a full server: refused as a whole, with the
/// old value left standing.
#[test]
fn a_full_server_refuses_a_script_that_does_not_say_that_it_may_run() {
    let server = RedisServer::start().unwrap();
    server.cli(&["SET", "value", "old"]).unwrap();
    let full = ["CONFIG", "SET", "maxmemory", "1"];
    server.cli(&full).unwrap();
    let log_first = "redis.call('SET', KEYS[2], '1') redis.call('UNLINK', KEYS[1])";
    let unlink_first = "redis.call('UNLINK', KEYS[1]) redis.call('SET', KEYS[2], '1')";
    let allowed = format!("#!lua flags=allow-oom\n{log_first}");
    let flagless = format!("#!lua\n{unlink_first}");
    let run = |script: &str| server.cli(&["EVAL", script, "2", "value", "head"]);
    for refused in [log_first, &flagless] {
        assert!(matches!(run(refused), Err(ServerError::Reply(why)) if why.contains("OOM")));
        assert_eq!(server.cli(&["GET", "value"]).unwrap(), "old");
    }
    run(&allowed).unwrap();
    assert_eq!(server.cli(&["GET", "value"]).unwrap(), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only() {
    let fleet = Fleet::start().await;
    fleet.work(500).await;
    fleet.cli("CONFIG SET min-replicas-to-write 1");
    down_for(&fleet, StoreErrorKind::ReadOnly).await;
    fleet.work(1500).await;
    for writer in &fleet.pods[1..] {
        assert_ne!(writer.health().pending, 0);
    }
    fleet.cli("CONFIG SET min-replicas-to-write 0");
    fleet.heals().await;
    fleet.work(300).await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_forgotten_all_the_time() {
    let fleet = Fleet::start().await;
    for _ in 0..100 {
        fleet.work(20).await;
        fleet.cli("SCRIPT FLUSH");
    }
    fleet.heals().await;
    let errors = fleet.cli("INFO errorstats");
    let missed = errors
        .lines()
        .find(|line| line.starts_with("errorstat_NOSCRIPT:count="));
    let missed = missed.and_then(|line| line.trim().rsplit_once('=')?.1.parse::<u64>().ok());
    assert!(missed.is_some_and(|missed| missed >= 50), "{errors}");
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_is_changed() {
    let server = RedisServer::start().unwrap();
    let user = |password: &str| format!("ACL SETUSER pod on resetpass >{password} ~* &* +@all");
    let run = |server: &RedisServer, command: &str| {
        let words: Vec<_> = command.split(' ').collect();
        server.cli(&words).unwrap()
    };
    run(&server, &user("first"));
    let plan = Plan {
        user: Some(("pod", "first")),
        ..Plan::default()
    };
    let fleet = Fleet::on(server, plan).await;
    fleet.work(500).await;
    fleet.cli(&user("second"));
    fleet.cli("CLIENT KILL USER pod");
    let is_refused = |pod: &crate::fleet::Pod| matches!(pod.health().store, StoreState::Down { reason } if reason.kind() == StoreErrorKind::Auth);
    fleet.each_pod("was refused", is_refused).await;
    fleet.work(1500).await;
    for pod in &fleet.pods {
        assert!(!format!("{:?}", pod.health()).contains("first"));
    }
    fleet.cli(&user("first"));
    fleet.heals().await;
    fleet.work(300).await;
    fleet.finish().await;
}

/// The user keeps its connection and loses its rights.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_are_taken_away() {
    let server = RedisServer::start().unwrap();
    let rights = ["ACL", "SETUSER", "pod", "on", ">first", "~*", "&*", "+@all"];
    server.cli(&rights).unwrap();
    let plan = Plan {
        user: Some(("pod", "first")),
        ..Plan::default()
    };
    let fleet = Fleet::on(server, plan).await;
    fleet.work(500).await;
    fleet.cli("ACL SETUSER pod -@write -@scripting");
    down_for(&fleet, StoreErrorKind::Denied).await;
    fleet.work(1000).await;
    fleet.cli("ACL SETUSER pod +@all");
    fleet.heals().await;
    fleet.work(300).await;
    fleet.finish().await;
}

/// A server that is busy with a script answers everything with an error, at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy() {
    let fleet = Fleet::start().await;
    fleet.cli("CONFIG SET busy-reply-threshold 20");
    fleet.work(500).await;
    let url = fleet.server.url();
    let script = std::thread::spawn(move || {
        let mut admin = redis::Client::open(url).unwrap().get_connection().unwrap();
        let forever = redis::Script::new("while true do end");
        forever.invoke::<()>(&mut admin)
    });
    down_for(&fleet, StoreErrorKind::Busy).await;
    fleet.work(1500).await;
    fleet.cli("SCRIPT KILL");
    assert!(script.join().unwrap().is_err());
    fleet.heals().await;
    fleet.work(300).await;
    fleet.finish().await;
}
