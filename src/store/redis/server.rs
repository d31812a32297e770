//! What a server says about itself, and whether this backend can work with it.

use super::error;
use super::reply::Reply;
use crate::coherence::Incarnation;
use crate::error::{StoreError, StoreErrorKind};
use crate::store::StoreResult;
use ::redis::aio::MultiplexedConnection;
use xxhash_rust::xxh3::xxh3_64;

const OLDEST_MAJOR: u32 = 7;

/// Stands for the life of a server that does not let this user ask: never the hash of a replication id
/// that is one. Whoever goes by it learns of a restart from the log alone.
pub(super) const UNKNOWN_LIFE: Incarnation = Incarnation(0);

/// One life of the server: a time in which nothing that it acknowledged was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) incarnation: Incarnation,
    /// The life that it took over from: this process had followed its stream of writes as a replica, up
    /// to some point, when it was promoted.
    pub(super) continues: Option<Incarnation>,
    /// Whether it refuses writes without enough replicas (`min-replicas-to-write`).
    pub(super) needs_replicas: bool,
}

impl Life {
    /// Whether the server lets this user ask.
    pub(super) fn is_known(&self) -> bool {
        self.incarnation != UNKNOWN_LIFE
    }
}

/// What a server is expected to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// By itself, with replicas or without.
    Standalone,
    /// A node of a cluster.
    Cluster,
}

/// Asks the server what it is; gives its life if it can be used.
pub(super) async fn identify(
    connection: &mut MultiplexedConnection,
    mode: Mode,
) -> StoreResult<Life> {
    let mut questions = ::redis::pipe();
    questions.cmd("INFO").arg("server");
    questions.cmd("INFO").arg("replication");
    let answers = connection.send_packed_commands(&questions, 0, questions.len());
    let answers = answers
        .await
        .map_err(|failed| error::of_client("connect", &failed))?;
    match Reply::pipeline("connect", answers) {
        Ok([server, replication]) => {
            check_server(&server.text()?, mode)?;
            life("connect", &replication.text()?)
        }
        // A replica shows when it is written to, an old server in what it does not know.
        Err(refused) if refused.kind() == StoreErrorKind::Denied => Ok(Life {
            incarnation: UNKNOWN_LIFE,
            continues: None,
            needs_replicas: false,
        }),
        Err(refused) => Err(refused),
    }
}

/// The life of the server, from `INFO replication`.
pub(super) fn life(operation: &'static str, replication: &str) -> StoreResult<Life> {
    if field(replication, "role").is_some_and(|role| role != "master") {
        let error = StoreError::new(StoreErrorKind::ReadOnly, operation);
        return Err(error.with_detail("the server is a replica"));
    }
    match field(replication, "master_replid") {
        Some(id) if !id.is_empty() => Ok(Life {
            incarnation: incarnation(id),
            continues: promoted_from(replication).map(incarnation),
            needs_replicas: field(replication, "min_slaves_good_slaves").is_some(),
        }),
        _ => Err(unsupported(operation, "the server gives no replication id")),
    }
}

fn incarnation(id: &str) -> Incarnation {
    Incarnation(xxh3_64(id.as_bytes()))
}

/// The replication id that the server had followed as a replica until it was promoted.
///
/// The second id alone does not say that: a primary that starts again from a snapshot takes the id in
/// it for its second one, and what it wrote behind the snapshot is lost. What tells the two apart is
/// the backlog. That of a replica holds writes from before its promotion; that of a server which has
/// just started begins at its start.
fn promoted_from(replication: &str) -> Option<&str> {
    let id =
        field(replication, "master_replid2").filter(|id| id.bytes().any(|digit| digit != b'0'))?;
    let number = |name| field(replication, name)?.parse::<i64>().ok();
    let (promoted, begins) = (
        number("second_repl_offset")?,
        number("repl_backlog_first_byte_offset")?,
    );
    let followed = number("repl_backlog_histlen")? > 0 && begins > 0 && begins < promoted;
    followed.then_some(id)
}

pub(super) fn check_server(info: &str, mode: Mode) -> StoreResult<()> {
    match mode_named(info) {
        Some("cluster") if mode != Mode::Cluster => Err(unsupported(
            "connect",
            "the server is a node of a cluster: it belongs in a redis+cluster:// address",
        )),
        Some("standalone") if mode == Mode::Cluster => {
            Err(unsupported("connect", "the server is no node of a cluster"))
        }
        Some("sentinel") => Err(unsupported(
            "connect",
            "the server is a sentinel: it belongs in a redis+sentinel:// address",
        )),
        _ => check_version(info),
    }
}

/// How the server runs, in its words: `standalone`, `cluster` or `sentinel`.
pub(super) fn mode_named(info: &str) -> Option<&str> {
    // Valkey says `server_mode`, unless it was told to call itself Redis.
    field(info, "redis_mode").or_else(|| field(info, "server_mode"))
}

/// Its own version, not that of the Redis it is compatible with.
pub(super) fn version_named(info: &str) -> Option<&str> {
    field(info, "valkey_version").or_else(|| field(info, "redis_version"))
}

fn check_version(info: &str) -> StoreResult<()> {
    // Valkey names the Redis version that it is compatible with in this field.
    let Some(version) = field(info, "redis_version") else {
        return Err(unsupported("connect", "the server gives no Redis version"));
    };
    let major = version
        .split('.')
        .next()
        .and_then(|major| major.parse::<u32>().ok());
    if major.is_some_and(|major| major >= OLDEST_MAJOR) {
        return Ok(());
    }
    let found = format!("found Redis {version}, version {OLDEST_MAJOR} or later is needed");
    Err(unsupported("connect", found))
}

fn unsupported(
    operation: &'static str,
    detail: impl Into<std::borrow::Cow<'static, str>>,
) -> StoreError {
    StoreError::new(StoreErrorKind::Unsupported, operation).with_detail(detail)
}

pub(super) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = info.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_standalone_server_of_version_7_or_later_is_accepted() {
        let kind = |info: &str| {
            check_server(info, Mode::Standalone)
                .err()
                .map(|error| error.kind())
        };
        assert_eq!(
            kind("redis_version:7.0.15\r\nredis_mode:standalone\r\n"),
            None
        );
        let valkey = "redis_version:7.2.4\r\nserver_name:valkey\r\nserver_mode:standalone\r\n";
        assert_eq!(kind(valkey), None);
        assert_eq!(kind("redis_version:10.0.0\r\n"), None);
        for refused in [
            "redis_version:6.2.6\r\nredis_mode:standalone\r\n",
            "redis_version:7.0.15\r\nredis_mode:cluster\r\n",
            "redis_version:7.0.15\r\nredis_mode:sentinel\r\n",
            "redis_version:rubbish\r\n",
            "",
        ] {
            assert_eq!(
                kind(refused),
                Some(StoreErrorKind::Unsupported),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn an_old_server_is_named_in_the_error() {
        let error = check_server("redis_version:6.2.6\r\n", Mode::Standalone).unwrap_err();
        assert!(error.to_string().contains("found Redis 6.2.6"), "{error}");
    }

    #[test]
    fn the_incarnation_follows_the_replication_id_and_a_replica_has_none() {
        let of = |text: &str| {
            let life = life("poll", text).map_err(|error| error.kind());
            life.map(|life| life.incarnation)
        };
        let first = of("role:master\r\nmaster_replid:aaaa\r\n");
        assert_ne!(first, of("role:master\r\nmaster_replid:bbbb\r\n"));
        assert_eq!(first, of("master_replid:aaaa\r\n"));
        assert_eq!(
            of("role:slave\r\nmaster_replid:aaaa\r\n"),
            Err(StoreErrorKind::ReadOnly)
        );
        assert_eq!(of("role:master\r\n"), Err(StoreErrorKind::Unsupported));
    }

    #[test]
    fn a_life_continues_another_only_after_a_promotion() {
        let old = "a".repeat(40);
        let info = |second: &str, promoted: i64, begins: i64, len: i64| {
            let text = format!(
                "role:master\r\nmaster_replid:bbbb\r\nmaster_replid2:{second}\r\n\
                 second_repl_offset:{promoted}\r\nrepl_backlog_first_byte_offset:{begins}\r\n\
                 repl_backlog_histlen:{len}\r\n"
            );
            life("poll", &text).expect("a primary").continues
        };
        assert_eq!(info(&old, 101, 1, 100), Some(incarnation(&old)));
        assert_eq!(info(&old, 101, 100, 900), Some(incarnation(&old)));
        let zeros = "0".repeat(40);
        assert_eq!(info(&zeros, -1, 1, 100), None, "never a replica");
        assert_eq!(info(&old, 101, 101, 0), None, "started from a snapshot");
        assert_eq!(info(&old, 101, 101, 50), None, "and written to since");
        assert_eq!(info(&old, 101, 900, 1000), None, "too long ago to tell");
        assert_eq!(info(&old, 101, 0, 0), None, "no backlog");
    }
}
