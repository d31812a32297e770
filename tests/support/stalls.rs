//! Whether a server stood still for others: by what it says of its own commands.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::fs;
use std::time::Duration;
use tidings::testing::RedisServer;

/// The commands of a server from now on that take longer than a limit.
pub(crate) struct Stalls<'a> {
    server: &'a RedisServer,
    limit: Duration,
    waited: u64,
}

impl<'a> Stalls<'a> {
    pub(crate) fn watch(server: &'a RedisServer, limit: Duration) -> Self {
        for (setting, value) in [
            ("slowlog-log-slower-than", limit.as_micros()),
            ("slowlog-max-len", 100_000),
            ("latency-monitor-threshold", limit.as_millis()),
        ] {
            let set = ["CONFIG", "SET", setting, &value.to_string()];
            server.cli(&set).unwrap();
        }
        server.cli(&["SLOWLOG", "RESET"]).unwrap();
        server.cli(&["LATENCY", "RESET"]).unwrap();
        Self {
            server,
            limit,
            waited: waited(server),
        }
    }

    /// Panics if a command took longer than the limit. The server's log measures the time that passed, also
    /// while others had the processor: what a command took beyond the limit must be theirs.
    pub(crate) fn refuse(&self) {
        let excused = (waited(self.server) - self.waited) / 1_000;
        let slow = slow_commands(self.server);
        let latency = self.server.cli(&["LATENCY", "LATEST"]).unwrap();
        let limit = u64::try_from(self.limit.as_micros()).unwrap();
        let beyond: u64 = slow.iter().map(|(micros, _)| micros - limit).sum();
        assert!(beyond <= excused, "{slow:?} beyond {excused} µs; {latency}");
    }
}

/// Nanoseconds for which a server was ready to run and did not: somebody else had the processor.
fn waited(server: &RedisServer) -> u64 {
    let pid = server.pid().unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    let waited = stat.split_whitespace().nth(1);
    waited.and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Microseconds and name of each command in the server's slow log.
fn slow_commands(server: &RedisServer) -> Vec<(u64, String)> {
    // Their arguments may be any bytes.
    type Entry = (u64, u64, u64, Vec<Vec<u8>>, String, String);
    let client = ::redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_connection().unwrap();
    let mut get = ::redis::cmd("SLOWLOG");
    let log: Vec<Entry> = get.arg("GET").arg("-1").query(&mut connection).unwrap();
    let name = |entry: Entry| (entry.2, entry.3[0].escape_ascii().to_string());
    log.into_iter().map(name).collect()
}
