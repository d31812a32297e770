//! The look at a server's settings, and at what this user may do, when a link is opened.

use super::keys::Keys;
use super::link::RedisLink;
use super::node::Node;
use super::reply::Reply;
use super::scripts::PERMISSIONS;
use super::server::{field, mode_named, version_named};
use crate::error::{StoreError, StoreErrorKind};
use crate::store::together::together;
use crate::store::{BoxFuture, FailoverWindow, Finding, ServerReport, StoreResult};
use ::redis::{Cmd, Value};
use std::collections::BTreeMap;
use std::time::Duration;

/// A limit for subscribers below this cuts pods off in a burst of a few ten thousand invalidations.
const SMALL_BUFFER: u64 = 4 << 20;

/// What a mode needs of an ACL, with how a call of it looks: `K` stands for a key of a lane, `N` for the
/// record of the namespace, `C` for the channel of its hints, `R` for that of a room.
type Needs = &'static [(&'static str, &'static str)];

/// Without these there is no cache.
const CORE: Needs = &[
    ("mget", "mget K"),
    ("get", "get N"),
    ("set", "set N v"),
    ("time", "time"),
    ("unlink", "unlink K"),
    ("getrange", "getrange K 0 1"),
    ("setrange", "setrange K 0 v"),
    ("xadd", "xadd K 1-0 e v"),
    ("xrange", "xrange K - +"),
    ("publish", "publish C v"),
    ("subscribe", "subscribe C"),
    ("exists", "exists K"),
    ("hmget", "hmget K f"),
];

const GUARDS: Needs = &[
    ("type", "type K"),
    ("hget", "hget K f"),
    ("hset", "hset K f v"),
    ("hdel", "hdel K f"),
    ("hrandfield", "hrandfield K 1"),
];

const RAW: Needs = &[
    ("scan", "scan 0"),
    ("pexpire", "pexpire K 1"),
    ("persist", "persist K"),
    ("exists", "exists K"),
    ("hget", "hget K f"),
    ("hset", "hset K f v"),
    ("hscan", "hscan K 0"),
    ("hdel", "hdel K f"),
    ("hlen", "hlen K"),
];

const PRESENCE: Needs = &[
    ("unsubscribe", "unsubscribe R"),
    ("subscribe", "subscribe R"),
    ("publish", "publish R v"),
    ("type", "type K"),
    ("exists", "exists K"),
    ("pexpire", "pexpire K 1"),
    ("hget", "hget K f"),
    ("hset", "hset K f v"),
    ("hdel", "hdel K f"),
    ("hlen", "hlen K"),
    ("hmget", "hmget K f"),
    ("zadd", "zadd K 0 m"),
    ("zrem", "zrem K m"),
    ("zscore", "zscore K m"),
    ("zrangebyscore", "zrangebyscore K 0 1"),
    ("zrangebylex", "zrangebylex K - +"),
    ("pttl", "pttl K"),
];

const MODES: [(&str, Needs); 4] = [
    ("core", CORE),
    ("write guards", GUARDS),
    ("raw data", RAW),
    ("presence", PRESENCE),
];

/// Asked of `CONFIG GET`, all at once.
const SETTINGS: [&str; 7] = [
    "min-replicas-to-write",
    "min-replicas-max-lag",
    "save",
    "stop-writes-on-bgsave-error",
    "client-output-buffer-limit",
    "cluster-node-timeout",
    "cluster-require-full-coverage",
];

/// One round trip to each node.
///
/// # Errors
/// `Denied`, with the names of the commands, if this user may not do what every cache needs.
pub(super) async fn inspect(link: &RedisLink) -> StoreResult<ServerReport> {
    let asked = link.nodes.all().iter();
    let asked = asked.map(|node| -> BoxFuture<'_, _> { Box::pin(inspect_node(node, &link.keys)) });
    let mut report: Option<ServerReport> = None;
    for found in together(asked).await {
        let found = match found {
            Ok(found) => found,
            // The others go on without it.
            Err(error) if link.keys.is_sharded() && error.kind() != StoreErrorKind::Denied => {
                continue;
            }
            Err(error) => return Err(error),
        };
        report = Some(match report {
            Some(report) => report.and(found),
            None => found,
        });
    }
    Ok(report.unwrap_or_default())
}

async fn inspect_node(node: &Node, keys: &Keys) -> StoreResult<ServerReport> {
    let mut questions = ::redis::pipe();
    questions.add_command(PERMISSIONS.load());
    questions.add_command(permissions(keys));
    questions
        .cmd("INFO")
        .arg(&["server", "replication", "memory", "persistence"]);
    questions.cmd("CONFIG").arg("GET").arg(&SETTINGS);
    let answers = node.send_many("inspect", &questions).await?;
    let [loaded, denied, info, settings]: [Value; 4] = answers
        .try_into()
        .map_err(|_| Reply::malformed("inspect"))?;
    Reply::new("inspect", loaded)?;
    let denied = denied_of(&Reply::new("inspect", denied)?.array()?);
    let findings = missing(&denied, keys.is_sharded())?;
    // What may not be asked is unknown, and no error.
    let info = Reply::new("inspect", info).and_then(Reply::text).ok();
    let settings = Reply::new("inspect", settings).and_then(pairs).ok();
    let mut report = assess(info.as_deref(), settings.as_ref(), findings);
    let attached = info.and_then(|info| field(&info, "connected_slaves")?.trim().parse().ok());
    if let (Some(asked), Some(attached)) = (node.replicas_asked(), attached)
        && attached < u64::from(asked)
    {
        let finding = Finding::TooFewReplicas { asked, attached };
        report.findings.push(finding);
    }
    Ok(report)
}

/// What modes lack, given the numbers of the commands that this user may not run.
fn missing(denied: &[usize], sharded: bool) -> StoreResult<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut numbers = 1..;
    for (mode, needs) in MODES {
        let numbered = needs.iter().zip(numbers.by_ref());
        let lacking = numbered.filter(|(_, number)| denied.contains(number));
        let commands: Vec<_> = lacking
            .map(|(&(name, _), _)| named(name, sharded))
            .collect();
        match (mode, commands.is_empty()) {
            (_, true) => {}
            ("core", false) => return Err(lacking_all(&commands)),
            (mode, false) => findings.push(Finding::MissingPermissions { mode, commands }),
        }
    }
    Ok(findings)
}

/// What a command is called here: the channels of a cluster belong to slots.
fn named(command: &'static str, sharded: bool) -> &'static str {
    match (sharded, command) {
        (true, "publish") => "spublish",
        (true, "subscribe") => "ssubscribe",
        (true, "unsubscribe") => "sunsubscribe",
        _ => command,
    }
}

/// Asks the script about every command of every mode.
fn permissions(keys: &Keys) -> Cmd {
    let mut call = PERMISSIONS.call(0);
    let lane = &keys.lanes()[0];
    let room = lane.room("").channel;
    for (name, example) in MODES.iter().flat_map(|(_, needs)| *needs) {
        let words: Vec<&str> = example.split(' ').skip(1).collect();
        call.arg(1 + words.len())
            .arg(named(name, keys.is_sharded()));
        for word in words {
            match word {
                "K" => call.arg(&lane.head),
                "N" => call.arg(&keys.record),
                "C" => call.arg(&lane.channel),
                "R" => call.arg(&room),
                word => call.arg(word),
            };
        }
    }
    call
}

fn denied_of(numbers: &[Value]) -> Vec<usize> {
    let number = |value: &Value| match value {
        Value::Int(number) => usize::try_from(*number).ok(),
        _ => None,
    };
    numbers.iter().filter_map(number).collect()
}

fn lacking_all(commands: &[&str]) -> StoreError {
    let rules: Vec<_> = commands.iter().map(|name| format!("+{name}")).collect();
    let detail = format!(
        "this user lacks {}, or the namespace's keys and channels",
        rules.join(" ")
    );
    StoreError::new(StoreErrorKind::Denied, "inspect").with_detail(detail)
}

/// Names and values in turn.
fn pairs(reply: Reply) -> StoreResult<BTreeMap<String, String>> {
    let text = |value: &Value| match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    };
    let words: Vec<_> = reply.array()?.iter().filter_map(text).collect();
    let pairs = words.chunks_exact(2);
    Ok(pairs
        .map(|pair| (pair[0].clone(), pair[1].clone()))
        .collect())
}

fn assess(
    info: Option<&str>,
    settings: Option<&BTreeMap<String, String>>,
    mut findings: Vec<Finding>,
) -> ServerReport {
    let info_of = |name| info.and_then(|info| field(info, name)).map(str::trim);
    let number = |name| info_of(name)?.parse::<u64>().ok();
    let set = |name: &str| settings.and_then(|all| all.get(name)).map(String::as_str);
    let replicas = number("connected_slaves");
    let cluster = info.and_then(mode_named) == Some("cluster");
    let failover_window = window(replicas, cluster, set);
    if cluster && set("cluster-require-full-coverage") == Some("yes") {
        findings.push(Finding::StopsWithOneNode);
    }
    if let (FailoverWindow::Unbounded, Some(replicas)) = (failover_window, replicas) {
        findings.push(Finding::UnguardedReplicas { replicas });
    }
    if let (Some(policy), Some(1..)) = (info_of("maxmemory_policy"), number("maxmemory"))
        && policy.starts_with("allkeys-")
    {
        let policy = policy.to_owned();
        findings.push(Finding::EvictsLogs { policy });
    }
    let saves = set("save").is_some_and(|save| !save.is_empty());
    let stops = saves && set("stop-writes-on-bgsave-error") == Some("yes");
    if stops || number("aof_enabled") == Some(1) {
        findings.push(Finding::StopsWithItsDisk);
    }
    match set("client-output-buffer-limit").and_then(subscription_limit) {
        Some((0, 0)) => findings.push(Finding::UnboundedSubscriptionBuffer),
        Some((bytes @ 1..SMALL_BUFFER, _)) => {
            findings.push(Finding::SmallSubscriptionBuffer { bytes });
        }
        _ => {}
    }
    if info.is_none() {
        findings.push(Finding::LifeUnknown);
    }
    if settings.is_none() {
        findings.push(Finding::SettingsUnknown);
    }
    ServerReport {
        version: info.and_then(version_named).map(str::to_owned),
        failover_window,
        findings,
    }
}

fn window<'a>(
    replicas: Option<u64>,
    cluster: bool,
    set: impl Fn(&str) -> Option<&'a str>,
) -> FailoverWindow {
    let number = |name| set(name)?.parse::<u64>().ok();
    let (needed, lag) = (
        number("min-replicas-to-write"),
        number("min-replicas-max-lag"),
    );
    // The server looks once a second how far its replicas are behind.
    let lacks_replicas = match (needed, lag) {
        (Some(1..), Some(lag @ 1..)) => Some(Duration::from_secs(lag.saturating_add(1))),
        _ => None,
    };
    // One that sees only a minority of its cluster stops by itself.
    let timeout = number("cluster-node-timeout").filter(|_| cluster);
    let lacks_others = timeout.map(Duration::from_millis);
    match (
        replicas,
        lacks_replicas.into_iter().chain(lacks_others).min(),
    ) {
        (Some(0), _) if lacks_replicas.is_none() => FailoverWindow::None,
        (None, _) if lacks_replicas.is_none() => FailoverWindow::Unknown,
        (_, Some(after)) => FailoverWindow::AtMost(after),
        (_, None) if cluster || needed.and(lag).is_none() => FailoverWindow::Unknown,
        (_, None) => FailoverWindow::Unbounded,
    }
}

/// Hard and soft limit of subscribers in `normal 0 0 0 slave 1 1 60 pubsub 33554432 8388608 60`.
fn subscription_limit(setting: &str) -> Option<(u64, u64)> {
    let mut words = setting
        .split(' ')
        .skip_while(|&word| word != "pubsub")
        .skip(1);
    let mut number = || words.next()?.parse().ok();
    Some((number()?, number()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn settings(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        all.iter().map(owned).collect()
    }

    #[test]
    fn the_failover_window_is_bounded_only_by_replicas_that_are_needed() {
        let window = |info: &str, min: &str, lag: &str| {
            let set = settings(&[
                ("min-replicas-to-write", min),
                ("min-replicas-max-lag", lag),
            ]);
            assess(Some(info), Some(&set), Vec::new()).failover_window
        };
        let (alone, two) = ("connected_slaves:0\r\n", "connected_slaves:2\r\n");
        assert_eq!(window(alone, "0", "10"), FailoverWindow::None);
        assert_eq!(window(two, "0", "10"), FailoverWindow::Unbounded);
        assert_eq!(window(two, "1", "0"), FailoverWindow::Unbounded);
        let bounded = FailoverWindow::AtMost(Duration::from_secs(3));
        assert_eq!(window(two, "1", "2"), bounded);
        assert_eq!(window("", "0", "10"), FailoverWindow::Unknown);
        let unasked = assess(Some(two), None, Vec::new());
        assert_eq!(unasked.failover_window, FailoverWindow::Unknown);
    }

    #[test]
    fn a_node_of_a_cluster_stops_by_itself() {
        let assess = |replicas: u64, min: &str, covered: &str| {
            let info = format!("redis_mode:cluster\r\nconnected_slaves:{replicas}\r\n");
            let set = settings(&[
                ("cluster-node-timeout", "5000"),
                ("cluster-require-full-coverage", covered),
                ("min-replicas-to-write", min),
                ("min-replicas-max-lag", "2"),
            ]);
            assess(Some(&info), Some(&set), Vec::new())
        };
        let at_most = |seconds| FailoverWindow::AtMost(Duration::from_secs(seconds));
        assert_eq!(assess(0, "0", "no").failover_window, FailoverWindow::None);
        assert_eq!(assess(1, "0", "no").failover_window, at_most(5));
        assert_eq!(
            assess(1, "1", "no").failover_window,
            at_most(3),
            "what comes first"
        );
        assert_eq!(assess(1, "0", "no").findings, []);
        let whole = assess(1, "0", "yes").findings;
        assert_eq!(whole, [Finding::StopsWithOneNode]);
        let unasked = "redis_mode:cluster\r\nconnected_slaves:1\r\n";
        let unasked = super::assess(Some(unasked), None, Vec::new());
        assert_eq!(unasked.failover_window, FailoverWindow::Unknown);
    }

    /// As Valkey calls itself, unless told to call itself Redis.
    #[test]
    fn a_valkey_is_known_by_its_own_mode_and_version() {
        let set = settings(&[
            ("cluster-node-timeout", "5000"),
            ("cluster-require-full-coverage", "yes"),
        ]);
        let info = "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2\r\nserver_mode:cluster\r\nconnected_slaves:1\r\n";
        let found = assess(Some(info), Some(&set), Vec::new());
        assert_eq!(
            found.failover_window,
            FailoverWindow::AtMost(Duration::from_secs(5))
        );
        assert_eq!(found.findings, [Finding::StopsWithOneNode]);
        assert_eq!(found.version.as_deref(), Some("9.1.2"));
    }

    #[test]
    fn each_setting_that_weakens_something_is_found_and_sound_ones_are_not() {
        let sound = [
            ("min-replicas-to-write", "1"),
            ("min-replicas-max-lag", "2"),
            ("save", ""),
            ("stop-writes-on-bgsave-error", "yes"),
            (
                "client-output-buffer-limit",
                "normal 0 0 0 slave 1 1 60 pubsub 33554432 8388608 60",
            ),
        ];
        let info = "connected_slaves:2\r\nmaxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\naof_enabled:0\r\n";
        let found = |info: &str, set: &[(&str, &str)]| {
            let set = settings(&[&sound[..], set].concat());
            assess(Some(info), Some(&set), Vec::new()).findings
        };
        assert_eq!(found(info, &[]), []);
        let full = info.replace("maxmemory:0", "maxmemory:1000");
        let policy = "allkeys-lru".to_owned();
        assert_eq!(found(&full, &[]), [Finding::EvictsLogs { policy }]);
        let durable = info.replace("aof_enabled:0", "aof_enabled:1");
        assert_eq!(found(&durable, &[]), [Finding::StopsWithItsDisk]);
        assert_eq!(
            found(info, &[("save", "60 1")]),
            [Finding::StopsWithItsDisk]
        );
        let open = [("min-replicas-to-write", "0")];
        assert_eq!(
            found(info, &open),
            [Finding::UnguardedReplicas { replicas: 2 }]
        );
        let limit = |limit| [("client-output-buffer-limit", limit)];
        assert_eq!(
            found(info, &limit("pubsub 0 0 0")),
            [Finding::UnboundedSubscriptionBuffer]
        );
        let small = Finding::SmallSubscriptionBuffer { bytes: 100 };
        assert_eq!(found(info, &limit("pubsub 100 0 0")), [small]);
    }

    #[test]
    fn what_may_not_be_asked_is_unknown_and_rubbish_finds_nothing() {
        let unknown = assess(None, None, Vec::new());
        assert_eq!(
            unknown.findings,
            [Finding::LifeUnknown, Finding::SettingsUnknown]
        );
        assert_eq!(unknown.version, None);
        let odd = settings(&[
            ("client-output-buffer-limit", "pubsub x"),
            ("min-replicas-to-write", ""),
        ]);
        let rubbish = assess(
            Some("connected_slaves:many\r\nmaxmemory:-1"),
            Some(&odd),
            Vec::new(),
        );
        assert_eq!(rubbish.findings, []);
    }

    /// The rule in `docs/operations.md` grants what is asked here and what connecting needs, no more.
    #[test]
    fn the_rule_in_the_docs_grants_what_is_needed_and_no_more() {
        let page = include_str!("../../../docs/operations.md");
        let rule = page.lines().find(|line| line.starts_with("ACL SETUSER"));
        let words = rule.expect("the page has a rule").split(' ');
        let granted: BTreeSet<_> = words.filter_map(|word| word.strip_prefix('+')).collect();
        let needed = MODES
            .iter()
            .flat_map(|(_, needs)| *needs)
            .map(|(name, _)| *name);
        let connecting = ["info", "select", "evalsha", "script|load"];
        let needed: BTreeSet<_> = needed.chain(connecting).collect();
        assert_eq!(granted, needed);
    }
}
