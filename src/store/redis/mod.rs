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
//! | `{ns:xx}g` | hash | which keys are being written: key hash 8, to guard 8 and end 8 for each writer |
//! | `{ns:00}u` | string | why nobody publishes at present, where not each entry is [at once](Publish); a lane's own on a cluster |
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

mod address;
mod batch;
mod cluster;
mod commands;
mod error;
mod groups;
mod hints;
mod inspect;
mod keys;
mod link;
mod nodes;
mod publish;
mod raw;
mod replicas;
mod replicated;
mod reply;
mod rooms;
#[cfg(feature = "testing")]
mod rubbish;
mod scripts;
mod sentinel;
mod server;
mod slots;
#[cfg(feature = "tls")]
mod tls;
mod watch;

use self::address::Address;
use self::hints::Subscription;
use self::keys::Keys;
pub(crate) use self::link::RedisLink;
use self::nodes::{Elsewhere, Fate, Node, Nodes};
pub use self::publish::Publish;
pub use self::replicated::Acknowledge;
use self::replicated::{REPLICATION_TIMEOUT, Replicated, Wanted};
#[cfg(feature = "testing")]
pub(crate) use self::rubbish::{read_rubbish, read_rubbish_info};
use self::server::Mode;
#[cfg(feature = "tls")]
pub use self::tls::Tls;
use crate::error::StoreError;
#[cfg(any(doc, test))]
use crate::error::StoreErrorKind;
use crate::store::{BoxFuture, Connected, Namespace, Store, StoreResult};
use ::redis::{AsyncConnectionConfig, Client};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How long connecting may take: a server that does not answer within a second serves no cache.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Commands that may wait for the connection's writer before their callers have to.
const COMMANDS_QUEUED: usize = 512;

/// The address of a Redis (7 or later) or Valkey server, or of the sentinels of one.
///
/// Cloning is cheap. Making one does no I/O; [`Store::connect`] opens two sockets to the server and
/// makes four to six round trips, behind one to all sentinels if there are some.
#[derive(Clone)]
pub struct Redis {
    address: Address,
    options: Options,
}

/// What is the same for every kind of address.
#[derive(Clone, Copy)]
struct Options {
    connect_timeout: Duration,
    /// Whether a promotion counts as a loss.
    fences: bool,
    acknowledge: Acknowledge,
    replication_timeout: Duration,
    /// Whether entities are read from replicas.
    replicas: bool,
    publish: Publish,
}

impl Options {
    /// What replicas are asked for, if they are.
    fn wanted(&self) -> Option<Wanted> {
        match self.acknowledge {
            Acknowledge::Replicated(replicas @ 1..) => Some(Wanted {
                replicas,
                timeout: self.replication_timeout,
            }),
            _ => None,
        }
    }
}

impl Redis {
    /// Reads an address: `redis://[[user]:password@]host[:port][/db]`, or the same with `rediss://`
    /// for TLS, or `unix:///path?db=0`; or
    /// `redis+sentinel://[[user]:password@]host[:port],…/primary-name[/db]`, which names sentinels (port
    /// 26379 unless given), with user and password of the primary. Those of the sentinels, if they have
    /// others, are `?sentinel_user=…&sentinel_password=…`. `rediss+sentinel://` is for TLS to both.
    ///
    /// With TLS, a cryptography provider (ring) is installed for the process if it has none yet.
    ///
    /// # Errors
    /// [`StoreErrorKind::Config`] if the address cannot be used; the error says why and repeats no
    /// part of the address. `rediss://` needs the feature `tls`.
    pub fn new(url: &str) -> Result<Self, StoreError> {
        Address::read(url, &Ok).map(Self::at)
    }

    /// As [`new`](Self::new), of a `rediss://` address, with certificates other than those of the platform.
    ///
    /// Each server is connected to with them: sentinels, nodes of a cluster, replicas. A certificate names
    /// what the server is connected at: where sentinels or a cluster tell addresses, those.
    ///
    /// ```no_run
    /// use tidings::Cache;
    /// use tidings::store::{Redis, Tls};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let tls = Tls::new()
    ///     .root_certificates(std::fs::read("/etc/shop/ca.pem")?)
    ///     .client_certificate(std::fs::read("/etc/shop/pod.pem")?, std::fs::read("/etc/shop/pod.key")?);
    /// let redis = Redis::with_tls("rediss://redis.example:6379/0", &tls)?;
    /// let cache = Cache::builder("shop").store(redis).build().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`StoreErrorKind::Config`] as `new`, and if the address is one without TLS, or a certificate or key
    /// cannot be read.
    #[cfg(feature = "tls")]
    pub fn with_tls(url: &str, tls: &Tls) -> Result<Self, StoreError> {
        Address::read(url, &|info| tls.prepare(info)).map(Self::at)
    }

    fn at(address: Address) -> Self {
        Self {
            address,
            options: Options {
                connect_timeout: CONNECT_TIMEOUT,
                fences: false,
                acknowledge: Acknowledge::Primary,
                replication_timeout: REPLICATION_TIMEOUT,
                replicas: false,
                publish: Publish::default(),
            },
        }
    }

    /// How long connecting may take as a whole, handshakes and subscription included. Default: 1 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.options.connect_timeout = timeout;
        self
    }

    /// Believes nothing that was stored before a failover: every key is loaded once more. Default:
    /// what a promoted replica has goes on being used, a few seconds after its promotion, and pods log
    /// again those of their own invalidations that it lacks, or void the lanes of those that they had
    /// only heard of.
    ///
    /// What it is for: an invalidation that the replica lacks, and whose pod ended before it could log it
    /// again, with all that had heard of it. By default the old value is then served until its TTL ends.
    /// Use the same setting in all pods.
    #[must_use]
    pub fn fence_on_failover(mut self) -> Self {
        self.options.fences = true;
        self
    }

    /// When an invalidation counts as acknowledged: when the server has carried it out (the default), or
    /// when so many of its replicas have it besides.
    ///
    /// What it is for: a failover that loses what was acknowledged last. With as many replicas as there are
    /// nothing is lost, even if every pod ends with the primary; with fewer it depends on which one is
    /// promoted. It concerns every invalidation, clear, put and write guard of the cache, on one server, with
    /// sentinels and on a cluster alike. What is read or stored waits for nobody.
    ///
    /// One more connection to each server, and for each batch of calls that are under way at once one
    /// `WAIT`: a round trip between primary and replica. Its user needs `+wait`.
    ///
    /// If fewer confirm in time, the call gives
    /// [`InvalidateError::Pending`](crate::InvalidateError::Pending) for the reason
    /// [`StoreErrorKind::Unreplicated`]: it is in the log, other pods have most likely heard of it, and it is
    /// repeated until enough replicas have it.
    ///
    /// ```no_run
    /// use tidings::Cache;
    /// use tidings::store::{Acknowledge, Redis};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let redis = Redis::new("redis+sentinel://10.0.0.1,10.0.0.2,10.0.0.3/main")?
    ///     .acknowledge(Acknowledge::Replicated(1));
    /// let cache = Cache::builder("shop").store(redis).build().await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn acknowledge(mut self, acknowledge: Acknowledge) -> Self {
        self.options.acknowledge = acknowledge;
        self
    }

    /// How long replicas may take to confirm a batch of calls. Default: 500 ms. Where it is longer than the
    /// cache's [`invalidate_timeout`](crate::CacheBuilder::invalidate_timeout), callers are told of a
    /// [`Timeout`](StoreErrorKind::Timeout) in place of `Unreplicated`.
    #[must_use]
    pub fn replication_timeout(mut self, timeout: Duration) -> Self {
        self.options.replication_timeout = timeout;
        self
    }

    /// Reads entities from replicas where that is as good: each pod keeps a connection to one replica of each
    /// primary, chosen at random among those that the primary is in touch with. Default: all reads go to
    /// primaries.
    ///
    /// What it is for: relief of a primary whose processor is busy with reads. It makes nothing faster, and
    /// costs a round trip where the replica is behind. Only `get` and `get_many` of an entity ask
    /// replicas, for values without tags; leases, loads, invalidations and everything else go to primaries.
    ///
    /// # Consistency
    /// The same bound as ever. A replica's value counts only while the lane is live, and if the lane's log
    /// reaches as far on the replica as this pod has followed it; otherwise the primary is asked.
    #[must_use]
    pub fn read_from_replicas(mut self) -> Self {
        self.options.replicas = true;
        self
    }

    /// When the hints of invalidations are published; [`Publish::Immediate`] by default. From some thirty
    /// pods on another choice may spare the server most of its work: see `docs/operations.md`.
    ///
    /// Connecting fails with [`StoreErrorKind::Config`] if the time is not from 1 to 100 ms.
    ///
    /// # Consistency
    /// The bound is the same. Other pods learn of an invalidation later by up to that time, as a rule.
    #[must_use]
    pub fn publish(mut self, publish: Publish) -> Self {
        self.options.publish = publish;
        self
    }

    async fn open(&self, namespace: &Namespace) -> StoreResult<Connected> {
        self.options.publish.check()?;
        match &self.address {
            Address::Server(client) => {
                let (link, hints) = self.open_at(client, namespace).await?;
                Ok((Arc::new(link), Box::new(hints)))
            }
            Address::Sentinel(sentinels) => {
                let primary = sentinels.primary().await?;
                let (link, hints) = self.open_at(&primary.client, namespace).await?;
                if !link
                    .nodes
                    .all()
                    .iter()
                    .all(|node| node.life().needs_replicas)
                {
                    sentinels.warn_of_lone_writes();
                }
                let link = link.watched(sentinels.watch(&primary));
                Ok((Arc::new(link), Box::new(hints)))
            }
            Address::Cluster(cluster) => cluster.open(namespace, self.options).await,
        }
    }

    async fn open_at(
        &self,
        client: &Client,
        namespace: &Namespace,
    ) -> StoreResult<(RedisLink, Subscription)> {
        let config = connection_config(self.options.connect_timeout);
        let connection = client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = connection
            .await
            .map_err(|failed| error::of_opening(&failed, self.address.is_tls()))?;
        let life = server::identify(&mut connection, Mode::Standalone).await?;
        let keys = Arc::new(Keys::new(namespace));
        let (hints, channels) = Subscription::open(client, &keys.channel).await?;
        let fate = Fate::default();
        let replicated = match self.options.wanted() {
            Some(wanted) => {
                let (found, lost) = ((Mode::Standalone, life), Arc::clone(&fate.lost));
                Some(Replicated::open(client, &config, found, wanted, lost).await?)
            }
            None => None,
        };
        let node = Node::alone(connection, channels, life, &keys).replicating(replicated, fate);
        let nodes = Nodes::new(vec![node], Arc::clone(&keys), Elsewhere::default());
        let mut link = RedisLink::new(nodes, keys, self.options);
        if self.options.replicas {
            link = link.reading_replicas(client.get_connection_info().clone());
        }
        Ok((link, hints))
    }
}

/// Connections for commands. Their deadlines are the caller's; whoever drops a call does not disturb the
/// others.
fn connection_config(connect_timeout: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(connect_timeout))
        .set_response_timeout(None)
        .set_pipeline_buffer_size(COMMANDS_QUEUED)
}

impl Store for Redis {
    fn connect<'a>(&'a self, namespace: &'a Namespace) -> BoxFuture<'a, StoreResult<Connected>> {
        Box::pin(async move {
            match tokio::time::timeout(self.options.connect_timeout, self.open(namespace)).await {
                Ok(connected) => connected,
                Err(_elapsed) => Err(error::of_silence(self.address.is_tls())),
            }
        })
    }

    fn connect_timeout(&self) -> Duration {
        self.options.connect_timeout
    }

    fn publishes_within(&self) -> Duration {
        self.options.publish.pace()
    }

    fn fixes_lanes(&self) -> bool {
        matches!(self.address, Address::Cluster(_))
    }

    fn describe(&self) -> String {
        self.address.describe()
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("address", &self.describe())
            .field("connect_timeout", &self.options.connect_timeout)
            .field("fence_on_failover", &self.options.fences)
            .field("acknowledge", &self.options.acknowledge)
            .field("replication_timeout", &self.options.replication_timeout)
            .field("read_from_replicas", &self.options.replicas)
            .field("publish", &self.options.publish)
            .finish()
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
            (
                "redis+sentinel://user:hunter2@a,[::1]:7,c:8/primary?sentinel_password=hunter2",
                "redis+sentinel://a:26379,[::1]:7,c:8/primary/0",
            ),
            (
                "redis+sentinel://h/p/5?sentinel_user=user&sentinel_password=hunter2",
                "redis+sentinel://h:26379/p/5",
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
            "redis+sentinel://user:hunter2@host",
            "redis+sentinel://user:hunter2@host/a/b",
            "redis+sentinel://user:hunter2@host/a/1/c",
            "redis+sentinel://user:hunter2@,/a",
            "redis+sentinel://host/a?sentinel_user=hunter2",
            "redis+hunter2://host",
        ] {
            let error = refused(url);
            assert_eq!(error.kind(), StoreErrorKind::Config, "{url}");
            assert!(!error.is_transient());
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("hunter2"), "{shown}");
            assert!(
                [
                    "database number",
                    "expected redis",
                    "sentinel_user needs",
                    "kind of address"
                ]
                .iter()
                .any(|reason| shown.contains(reason)),
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
