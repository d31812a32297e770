//! Whether slots can be moved in one step here.

use std::io::Write;
use tidings::testing::RedisCluster;

/// If the servers cannot, says so past what the harness captures.
pub(crate) fn moves_at_once(cluster: &RedisCluster) -> bool {
    let can = cluster.moves_at_once().unwrap();
    if !can {
        let test = std::thread::current();
        let test = test.name().unwrap_or_default();
        let why = "slots move in one step on Valkey 9 or Redis 8.4 and later: \
                   name such a server in TIDINGS_REDIS_SERVER";
        let line = format!("{test}: skipped, {why}\n");
        std::io::stdout().write_all(line.as_bytes()).unwrap();
    }
    can
}
