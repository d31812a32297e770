//! The backend for Redis 7 and later, and for Valkey.
//!
//! A link is two sockets: one multiplexed connection for commands, one for the subscription. What has
//! to be atomic is a Lua script (`lua/`, one file a step); everything else is a plain command. Neither
//! connection reconnects by itself: the driver opens a new link, and finds out first what it missed.
//!
//! Keys of lane `xx` (two hex digits) of namespace `ns`:
//!
//! | key | type | content |
//! |---|---|---|
//! | `{ns:xx}h` | string | the [head](crate::coherence::Head), 56 bytes |
//! | `{ns:xx}s` | stream | the log: id `seq-0`, field `e` a [log entry](crate::coherence::LogEntry) |
//! | `{ns:xx}v:key` | string | a value's envelope, or a lease of 28 bytes |
//! | `{ns:xx}f:entity` | string | the entity's floor, a decimal number |
//! | `{ns:xx}r:prefix:key` | string, hash | raw data |
//! | `{ns}cfg` | string | the namespace's [record](crate::store::Link::register) |
//! | `{ns:00}b` | none | what the write of a poll is aimed at |
//! | `{ns:xx}p:room:s` | string | where a room's events are: epoch, seq, incarnation, 24 bytes |
//! | `{ns:xx}p:room:l` | sorted set | the room's holds by the end of their leases |
//! | `{ns:xx}p:room:m` | hash | each member's version 8, number of holds 4, meta |
//! | `{ns:xx}p:room:x` | sorted set | the members in order, all with score 0 |
//! | `{ns:xx}p:room:h` | sorted set | the members of each hold: its id 8, then the member; score 0 |
//!
//! Hints go through the channel `{ns}c`, the events of a room through `{ns:xx}p:room:c`.

mod batch;
mod commands;
mod error;
mod groups;
mod hints;
mod inspect;
mod keys;
mod link;
mod raw;
mod reply;
mod rooms;
mod scripts;
mod server;

use self::hints::Subscription;
use self::keys::Keys;
pub(crate) use self::link::RedisLink;
use crate::error::{StoreError, StoreErrorKind};
use crate::store::{BoxFuture, Connected, Namespace, Store, StoreResult};
use ::redis::io::tcp::TcpSettings;
use ::redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    ProtocolVersion,
};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How long connecting may take: a server that does not answer within a second serves no cache.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Commands that may wait for the connection's writer before their callers have to.
const COMMANDS_QUEUED: usize = 512;

const URL_FORM: &str = "expected redis://[[user]:password@]host[:port][/db]";

/// The address of a Redis (7 or later) or Valkey server.
///
/// Cloning is cheap. Making one does no I/O; [`Store::connect`] opens two sockets to the server and
/// makes four to six round trips.
#[derive(Clone)]
pub struct Redis {
    client: Client,
    connect_timeout: Duration,
}

impl Redis {
    /// Reads an address: `redis://[[user]:password@]host[:port][/db]`, or the same with `rediss://`
    /// for TLS, or `unix:///path?db=0`.
    ///
    /// With TLS, a cryptography provider (ring) is installed for the process if it has none yet.
    ///
    /// # Errors
    /// [`StoreErrorKind::Config`] if the address cannot be used; the error says why and repeats no
    /// part of the address. `rediss://` needs the feature `tls`.
    pub fn new(url: &str) -> Result<Self, StoreError> {
        let url = url.trim();
        if wants_tls(url) && !cfg!(feature = "tls") {
            return Err(config(
                "a rediss:// address needs the feature `tls`".to_owned(),
            ));
        }
        let info = url
            .into_connection_info()
            .map_err(|error| refused(&error))?;
        check(&info)?;
        let redis = info
            .redis_settings()
            .clone()
            .set_protocol(ProtocolVersion::RESP2);
        let tcp = TcpSettings::default().set_nodelay(true);
        #[cfg(feature = "tls")]
        if wants_tls(url) {
            install_crypto_provider();
        }
        let info = info.set_redis_settings(redis).set_tcp_settings(tcp);
        Ok(Self {
            client: Client::open(info).map_err(|error| refused(&error))?,
            connect_timeout: CONNECT_TIMEOUT,
        })
    }

    /// How long connecting may take as a whole, handshakes and subscription included. Default: 1 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    async fn open(&self, namespace: &Namespace) -> StoreResult<Connected> {
        // Deadlines of commands are the caller's; whoever drops a call does not disturb the others.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(COMMANDS_QUEUED);
        let connection = self
            .client
            .get_multiplexed_async_connection_with_config(&config);
        let mut connection = connection
            .await
            .map_err(|failed| error::of_client("connect", &failed))?;
        let incarnation = server::identify(&mut connection).await?;
        let keys = Keys::new(namespace);
        let (hints, sink) = Subscription::open(&self.client, &keys.channel).await?;
        let link = RedisLink::new(connection, sink, keys, incarnation);
        Ok((Arc::new(link), Box::new(hints)))
    }
}

impl Store for Redis {
    fn connect<'a>(&'a self, namespace: &'a Namespace) -> BoxFuture<'a, StoreResult<Connected>> {
        Box::pin(async move {
            match tokio::time::timeout(self.connect_timeout, self.open(namespace)).await {
                Ok(connected) => connected,
                Err(_elapsed) => Err(StoreError::new(StoreErrorKind::Timeout, "connect")),
            }
        })
    }

    fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    fn describe(&self) -> String {
        let info = self.client.get_connection_info();
        let db = info.redis_settings().db();
        match info.addr() {
            ConnectionAddr::Tcp(host, port) => format!("redis://{}:{port}/{db}", Host(host)),
            ConnectionAddr::TcpTls { host, port, .. } => {
                format!("rediss://{}:{port}/{db}", Host(host))
            }
            other => format!("unix://{other}?db={db}"),
        }
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("address", &self.describe())
            .field("connect_timeout", &self.connect_timeout)
            .finish()
    }
}

/// A host as addresses name it: IPv6 in brackets.
struct Host<'a>(&'a str);

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.contains(':') {
            true => write!(f, "[{}]", self.0),
            false => f.write_str(self.0),
        }
    }
}

fn wants_tls(url: &str) -> bool {
    let scheme = url.split(':').next().unwrap_or_default();
    ["rediss", "valkeys"]
        .iter()
        .any(|tls| scheme.eq_ignore_ascii_case(tls))
}

fn check(info: &ConnectionInfo) -> StoreResult<()> {
    if info.redis_settings().db() < 0 {
        return Err(config("the database number is negative".to_owned()));
    }
    match info.addr() {
        ConnectionAddr::TcpTls { insecure: true, .. } => Err(config(
            "the check of certificates cannot be switched off".to_owned(),
        )),
        _ => Ok(()),
    }
}

/// Why the client library refused an address. Its errors read `reason - kind[: detail]`; the reason is
/// a constant text, the detail may repeat a part of the address.
fn refused(error: &::redis::RedisError) -> StoreError {
    let text = error.to_string();
    let reason = text.split(" - ").next().unwrap_or_default();
    config(format!("{reason}; {URL_FORM}"))
}

fn config(detail: String) -> StoreError {
    StoreError::new(StoreErrorKind::Config, "read the address").with_detail(detail)
}

#[cfg(feature = "tls")]
fn install_crypto_provider() {
    use rustls::crypto::{CryptoProvider, ring};
    if CryptoProvider::get_default().is_none() {
        // Losing a race means that somebody else has installed one.
        let _ = ring::default_provider().install_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> StoreError {
        Redis::new(url).expect_err(url)
    }

    #[test]
    fn an_address_is_described_without_user_and_password() {
        for (url, described) in [
            ("redis://cache.example", "redis://cache.example:6379/0"),
            ("valkey://10.0.0.1:7000/3", "redis://10.0.0.1:7000/3"),
            ("redis://user:hunter2@[::1]:7000/3", "redis://[::1]:7000/3"),
            ("redis://:hunter2@host/", "redis://host:6379/0"),
            (
                "unix:///run/r.sock?db=2&pass=hunter2",
                "unix:///run/r.sock?db=2",
            ),
        ] {
            let store = Redis::new(url).expect(url);
            assert_eq!(store.describe(), described);
            let debug = format!("{store:?}");
            assert!(debug.contains(described), "{debug}");
            assert!(
                !debug.contains("hunter2") && !debug.contains("user"),
                "{debug}"
            );
        }
    }

    #[test]
    fn a_refused_address_is_a_config_error_that_repeats_nothing_of_it() {
        for url in [
            "",
            "hunter2",
            "http://user:hunter2@host",
            "redis://user:hunter2@host:99999",
            "redis://user:hunter2@host/hunter2",
            "redis://user:hunter2@host/-1",
            "redis://user:hunter2@/0",
            "redis://user:hunter2@0.0.0.0",
            "redis://user:hunter2@host/0?protocol=hunter2",
            "redis://user:%ff@host",
        ] {
            let error = refused(url);
            assert_eq!(error.kind(), StoreErrorKind::Config, "{url}");
            assert!(!error.is_transient());
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("hunter2"), "{shown}");
            assert!(
                shown.contains("database number") || shown.contains(URL_FORM),
                "{shown}"
            );
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_without_the_feature_names_the_feature() {
        let error = refused("Rediss://user:hunter2@host");
        assert_eq!(error.kind(), StoreErrorKind::Config);
        assert!(error.to_string().contains("feature `tls`"), "{error}");
    }

    #[cfg(feature = "tls")]
    #[test]
    fn tls_checks_certificates_and_has_its_provider() {
        let store = Redis::new("rediss://:hunter2@host").expect("usable");
        assert_eq!(store.describe(), "rediss://host:6379/0");
        assert!(rustls::crypto::CryptoProvider::get_default().is_some());
        let error = refused("rediss://host/#insecure");
        assert_eq!(error.kind(), StoreErrorKind::Config);
    }
}
