//! What an entity goes by once it is built, and what it goes by unless its builder says otherwise.

use super::outcome::{EarlyRefresh, Refresh};
use super::tagging::TagsOf;
use crate::codec::CodecError;
use crate::envelope::Packing;
use crate::ttl::Ttl;
use std::sync::Arc;
use std::time::Duration;

/// Five minutes: long enough to spare the source, short enough that what nobody invalidates heals.
pub const DEFAULT_TTL: Duration = Duration::from_secs(300);
/// Entries of the local level: a few megabytes of small records.
pub const DEFAULT_CAPACITY: u64 = 10_000;
/// The hard limit of a read that has to load.
pub const DEFAULT_LOAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a read, or a computation of a memo, may be let wait: whoever waits for a day waits for
/// ever.
pub const MAX_LOAD_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Loads at the same time while the store cannot coordinate them.
pub const DEFAULT_UNLEASED_LOADS: usize = 64;
/// ±10 % on lives over ten seconds.
pub const DEFAULT_JITTER: f64 = 0.1;
/// How long a key is left alone after it could not be refreshed: long enough for a source that is down
/// to be asked by nobody most of the time, short enough that a hiccup is over soon.
pub const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);
/// Bytes of a payload that are left as they are: with their header they fit one network packet, so
/// that less of them would save nothing.
pub const DEFAULT_COMPRESS_ABOVE: usize = 1024;
/// The most bytes that are stored of one value. All that a pod asks of a server goes over one connection,
/// where a network of 1 Gbit/s brings 8 MiB in 70 ms: whoever waits behind it for at most 250 ms, the poll
/// that keeps the pod live among them, has his answer in time.
pub const DEFAULT_STORE_MAX_BYTES: usize = 8 << 20;
/// What a server takes in one piece, 512 MiB unless told otherwise, and half of that again.
pub(super) const MAX_STORE_BYTES: usize = 256 << 20;

type ErrorTtl<E> = Box<dyn Fn(&E) -> Option<Duration> + Send + Sync>;
type TtlOf<K, V> = Arc<dyn Fn(&K, &V) -> Ttl + Send + Sync>;
pub(super) type WeightOf<K, V> = Arc<dyn Fn(&K, &V) -> u32 + Send + Sync>;

/// How typed errors are kept.
pub(super) struct ErrorCodec<E> {
    pub(super) ttl: ErrorTtl<E>,
    pub(super) encode: fn(&E) -> Result<Vec<u8>, CodecError>,
    pub(super) decode: fn(&[u8]) -> Result<E, CodecError>,
}

pub(super) struct Options<K, V, E> {
    pub(super) ttl: TtlOf<K, V>,
    /// The tags of each value.
    pub(super) tags: Option<TagsOf<K, V>>,
    /// Those that end its time to live, and not the value.
    pub(super) soft_tags: Option<TagsOf<K, V>>,
    pub(super) error_codec: Option<ErrorCodec<E>>,
    pub(super) local_ttl: Duration,
    pub(super) jitter: f64,
    pub(super) load_timeout: Duration,
    pub(super) soft_timeout: Option<Duration>,
    pub(super) grace: Duration,
    pub(super) refresh: Refresh,
    pub(super) retry_after: Duration,
    pub(super) early_refresh: EarlyRefresh,
    pub(super) schema: u32,
    pub(super) packing: Packing,
    pub(super) hold_off: Duration,
    pub(super) store_max_bytes: usize,
}
