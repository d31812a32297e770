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

/// Asks the server what it is; gives its life if it can be used.
pub(super) async fn identify(connection: &mut MultiplexedConnection) -> StoreResult<Incarnation> {
    let mut questions = ::redis::pipe();
    questions.cmd("INFO").arg("server");
    questions.cmd("INFO").arg("replication");
    let answers = connection.send_packed_commands(&questions, 0, questions.len());
    let answers = answers
        .await
        .map_err(|failed| error::of_client("connect", &failed))?;
    match Reply::pipeline("connect", answers) {
        Ok([server, replication]) => {
            check_server(&server.text()?)?;
            incarnation("connect", &replication.text()?)
        }
        // A replica shows when it is written to, an old server in what it does not know.
        Err(refused) if refused.kind() == StoreErrorKind::Denied => Ok(UNKNOWN_LIFE),
        Err(refused) => Err(refused),
    }
}

/// The life of the server, from `INFO replication`.
pub(super) fn incarnation(operation: &'static str, replication: &str) -> StoreResult<Incarnation> {
    if field(replication, "role").is_some_and(|role| role != "master") {
        let error = StoreError::new(StoreErrorKind::ReadOnly, operation);
        return Err(error.with_detail("the server is a replica"));
    }
    match field(replication, "master_replid") {
        Some(id) if !id.is_empty() => Ok(Incarnation(xxh3_64(id.as_bytes()))),
        _ => Err(unsupported(operation, "the server gives no replication id")),
    }
}

fn check_server(info: &str) -> StoreResult<()> {
    match field(info, "redis_mode") {
        Some("cluster") => Err(unsupported("connect", "cluster support is not there yet")),
        Some("sentinel") => Err(unsupported("connect", "sentinel support is not there yet")),
        _ => check_version(info),
    }
}

fn check_version(info: &str) -> StoreResult<()> {
    // Valkey names the Redis version that it is compatible with in the same field.
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
        let kind = |info: &str| check_server(info).err().map(|error| error.kind());
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
        let error = check_server("redis_version:6.2.6\r\n").unwrap_err();
        assert!(error.to_string().contains("found Redis 6.2.6"), "{error}");
    }

    #[test]
    fn the_incarnation_follows_the_replication_id_and_a_replica_has_none() {
        let of = |text: &str| incarnation("poll", text).map_err(|error| error.kind());
        let first = of("role:master\r\nmaster_replid:aaaa\r\n");
        assert_ne!(first, of("role:master\r\nmaster_replid:bbbb\r\n"));
        assert_eq!(first, of("master_replid:aaaa\r\n"));
        assert_eq!(
            of("role:slave\r\nmaster_replid:aaaa\r\n"),
            Err(StoreErrorKind::ReadOnly)
        );
        assert_eq!(of("role:master\r\n"), Err(StoreErrorKind::Unsupported));
    }
}
