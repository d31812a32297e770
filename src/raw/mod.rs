//! The raw store: bytes under bytes, shared by all pods, with no level in this process and so nothing to
//! keep coherent.

mod scan;

pub use scan::RawKeys;

use crate::cache::Cache;
use crate::error::{BuildError, StoreError, StoreErrorKind};
use crate::key;
use crate::store::{BoxFuture, Link, RawPlace, StoreResult};
use crate::ttl::Ttl;
use bytes::Bytes;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The longest prefix in bytes: it is part of every key.
const LONGEST_PREFIX: usize = 64;
/// How many keys or fields go in one round trip: what the server does at once without others noticing.
const BATCH: usize = 1000;
/// The most bytes of a key, a field and a value together, and of all that is written in one round trip. All
/// that a pod asks of a server goes over one connection, and whoever is behind a long value there waits for
/// it: as long as a read may take, 250 ms, if it has four times this length and the network 1 Gbit/s.
pub const MAX_RAW_BYTES: usize = 8 << 20;
/// How long a write may take. Unlike a read, nothing stands in for it, so it gets more time.
const WRITE_LIMIT: Duration = Duration::from_secs(2);

/// Bytes under bytes in the backing store, below one prefix.
///
/// Every call goes to the store: what one pod has written, the next call of any pod reads. Values and
/// hashes share one space of keys, as they do in Redis. Keys, fields and values may be any bytes.
///
/// A call is one round trip, and one more for each further 1000 keys or fields, and, of a write, for each
/// further [8 MiB](MAX_RAW_BYTES), which is also the most that one value may have. Reads take at most
/// 250 ms, writes 2 s, a step of a walk the same. Nothing is repeated: after `Timeout` or `Unavailable`
/// a write may or may not have happened. Cheap to clone.
///
/// # Errors
/// Each call: [`Unavailable`](crate::StoreErrorKind::Unavailable) without a connection to the store,
/// [`Timeout`](crate::StoreErrorKind::Timeout) if it does not answer in time,
/// [`WrongType`](crate::StoreErrorKind::WrongType) if the key holds a hash where a value was asked for or
/// the other way round, [`TooLong`](crate::StoreErrorKind::TooLong) for more than [`MAX_RAW_BYTES`] under
/// one key or field, before anything is sent, [`Closed`](crate::StoreErrorKind::Closed) after [`Cache::close`], and what else
/// the store may refuse ([`StoreErrorKind`](crate::StoreErrorKind)). Of a call with many keys a part may
/// have happened.
///
/// # Cancel safety
/// Each call: a write whose future is dropped may or may not happen.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use tidings::{Cache, Ttl};
///
/// let cache = Cache::builder("shop").build().await?;
/// let sessions = cache.raw("session")?;
/// sessions.set("s1", "ada", Duration::from_secs(60)).await?;
/// assert_eq!(sessions.get("s1").await?.as_deref(), Some(&b"ada"[..]));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Raw(Arc<Inner>);

struct Inner {
    cache: Cache,
    keys: key::RawKeys,
}

impl Cache {
    /// The raw store below `prefix`: 1 to 64 bytes, any characters. Does no I/O.
    ///
    /// # Errors
    /// [`BuildError`] naming `raw` if the prefix is empty or longer.
    pub fn raw(&self, prefix: &str) -> Result<Raw, BuildError> {
        if !(1..=LONGEST_PREFIX).contains(&prefix.len()) {
            let reason = format!("{prefix:?} is not 1 to {LONGEST_PREFIX} bytes long");
            return Err(BuildError::new("raw", reason));
        }
        Ok(Raw(Arc::new(Inner {
            cache: self.clone(),
            keys: self.0.bus.space.raw(prefix),
        })))
    }
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raw")
            .field("prefix", &self.0.keys.name())
            .finish_non_exhaustive()
    }
}

impl Raw {
    /// The value under `key`; `None` if there is none, or it has expired.
    ///
    /// # Errors
    /// As [all calls](Raw).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, StoreError> {
        let places = [self.place(&key)];
        let link = self.link("raw get")?;
        let mut found = self.read("raw get", link.raw().get(&places)).await?;
        Ok(found.pop().flatten())
    }

    /// The values under `keys`, in their order. Not a snapshot: each is read by itself.
    ///
    /// # Errors
    /// As [all calls](Raw); one key of the wrong type fails the call.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn get_many(
        &self,
        keys: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> Result<Vec<Option<Bytes>>, StoreError> {
        let keys: Vec<_> = keys.into_iter().collect();
        let mut found = Vec::with_capacity(keys.len());
        for keys in keys.chunks(BATCH) {
            let places: Vec<_> = keys.iter().map(|key| self.place(key)).collect();
            let link = self.link("raw get")?;
            found.extend(self.read("raw get", link.raw().get(&places)).await?);
        }
        Ok(found)
    }

    /// Stores `value` under `key`, whatever stands there: a value or a hash, and what was left of its
    /// time to live. [`Ttl::NONE`] removes instead.
    ///
    /// # Errors
    /// As [all calls](Raw), but never `WrongType`.
    ///
    /// # Cancel safety
    /// The write may or may not happen.
    pub async fn set(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        ttl: impl Into<Ttl>,
    ) -> Result<(), StoreError> {
        self.set_many([(key, value)], ttl).await
    }

    /// Stores each value under its key, as [`set`](Self::set) does. Of two values under one key the
    /// later one stays. Not atomic: others may see a part.
    ///
    /// # Errors
    /// As [all calls](Raw), but never `WrongType`.
    ///
    /// # Cancel safety
    /// A part of the writes may or may not happen.
    pub async fn set_many(
        &self,
        entries: impl IntoIterator<Item = (impl AsRef<[u8]>, impl AsRef<[u8]>)>,
        ttl: impl Into<Ttl>,
    ) -> Result<(), StoreError> {
        let (entries, ttl): (Vec<_>, _) = (entries.into_iter().collect(), ttl.into());
        for entries in batches("raw set", &entries, 0)? {
            self.set_batch(entries, ttl).await?;
        }
        Ok(())
    }

    async fn set_batch(
        &self,
        entries: &[(impl AsRef<[u8]>, impl AsRef<[u8]>)],
        ttl: Ttl,
    ) -> Result<(), StoreError> {
        let Some(ttl) = Life::of(ttl) else {
            let places: Vec<_> = entries.iter().map(|(key, _)| self.place(key)).collect();
            return self.remove_batch(&places).await.map(|_were_there| ());
        };
        let entry = |(key, value)| (self.place(key), AsRef::<[u8]>::as_ref(value));
        let entries: Vec<_> = entries
            .iter()
            .map(|(key, value)| entry((key, value)))
            .collect();
        let link = self.link("raw set")?;
        self.write("raw set", link.raw().set(&entries, ttl.0)).await
    }

    /// Removes the value or hash under `key`; whether there was one.
    ///
    /// # Errors
    /// As [all calls](Raw), but never `WrongType`.
    ///
    /// # Cancel safety
    /// The write may or may not happen.
    pub async fn remove(&self, key: impl AsRef<[u8]>) -> Result<bool, StoreError> {
        Ok(self.remove_batch(&[self.place(&key)]).await? > 0)
    }

    /// Removes the values and hashes under `keys`; how many there were.
    ///
    /// # Errors
    /// As [all calls](Raw), but never `WrongType`.
    ///
    /// # Cancel safety
    /// A part of the writes may or may not happen.
    pub async fn remove_many(
        &self,
        keys: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> Result<u64, StoreError> {
        let keys: Vec<_> = keys.into_iter().collect();
        let mut removed = 0;
        for keys in keys.chunks(BATCH) {
            let places: Vec<_> = keys.iter().map(|key| self.place(key)).collect();
            removed += self.remove_batch(&places).await?;
        }
        Ok(removed)
    }

    async fn remove_batch(&self, places: &[RawPlace<'_>]) -> Result<u64, StoreError> {
        let link = self.link("raw remove")?;
        self.write("raw remove", link.raw().remove(places)).await
    }

    /// Keeps the value or hash under `key` for `ttl` from now on; whether there is one. [`Ttl::NONE`]
    /// removes it.
    ///
    /// # Errors
    /// As [all calls](Raw), but never `WrongType`.
    ///
    /// # Cancel safety
    /// The write may or may not happen.
    pub async fn expire(
        &self,
        key: impl AsRef<[u8]>,
        ttl: impl Into<Ttl>,
    ) -> Result<bool, StoreError> {
        let place = self.place(&key);
        match Life::of(ttl.into()) {
            Some(ttl) => {
                let link = self.link("raw expire")?;
                self.write("raw expire", link.raw().expire(place, ttl.0))
                    .await
            }
            None => Ok(self.remove_batch(&[place]).await? > 0),
        }
    }

    /// Removes everything below this prefix, and nothing else; how many keys there were.
    ///
    /// Walks the store's keys in steps of 1000, one round trip and at most 2 s each, in which others are
    /// served. On Redis that is every key of the database, whatever its prefix. What is written meanwhile
    /// may stay or go.
    ///
    /// # Errors
    /// As [all calls](Raw); what the steps before have removed stays removed.
    ///
    /// # Cancel safety
    /// A part may be removed: call it again.
    pub async fn clear(&self) -> Result<u64, StoreError> {
        let (mut total, mut found, mut from) = (0, Vec::new(), None::<Bytes>);
        loop {
            let link = self.link("raw clear")?;
            let step = link.raw().scan(self.0.keys.name(), from.as_deref(), &found);
            let (removed, page) = self.write("raw clear", step).await?;
            total += removed;
            if let Some(next) = page.next {
                (found, from) = (page.items, Some(next));
                continue;
            }
            for found in page.items.chunks(BATCH) {
                let places = found.iter().map(|found| found.place(self.0.keys.name()));
                total += self.remove_batch(&places.collect::<Vec<_>>()).await?;
            }
            return Ok(total);
        }
    }

    /// The keys below this prefix, in no order, as a stream.
    ///
    /// A key that is there all the time comes at least once. One that comes or goes meanwhile may be
    /// missing, and while the store grows or shrinks its tables one may come twice: only within a step
    /// are they told apart. Steps are as those of [`clear`](Self::clear), but 250 ms at most; the stream
    /// ends after an error.
    #[must_use]
    pub fn scan(&self) -> RawKeys {
        RawKeys::new(self.clone())
    }

    /// The value of `field` in the hash under `key`.
    ///
    /// # Errors
    /// As [all calls](Raw).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn hget(
        &self,
        key: impl AsRef<[u8]>,
        field: impl AsRef<[u8]>,
    ) -> Result<Option<Bytes>, StoreError> {
        let link = self.link("raw hget")?;
        let call = link.raw().hash_get(self.place(&key), field.as_ref());
        self.read("raw hget", call).await
    }

    /// Sets `field` of the hash under `key`, which need not be there yet; whether the field is new.
    ///
    /// A hash that is there keeps its time to live, a new one has none: see [`expire`](Self::expire).
    ///
    /// # Errors
    /// As [all calls](Raw).
    ///
    /// # Cancel safety
    /// The write may or may not happen.
    pub async fn hset(
        &self,
        key: impl AsRef<[u8]>,
        field: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<bool, StoreError> {
        Ok(self.hset_many(key, [(field, value)]).await? > 0)
    }

    /// Sets fields as [`hset`](Self::hset) does; how many are new. Up to 1000 fields of no more than
    /// [`MAX_RAW_BYTES`] in all are set at once: others see all of them or none.
    ///
    /// # Errors
    /// As [all calls](Raw).
    ///
    /// # Cancel safety
    /// The write may or may not happen; with more than are set at once, a part of it.
    pub async fn hset_many(
        &self,
        key: impl AsRef<[u8]>,
        fields: impl IntoIterator<Item = (impl AsRef<[u8]>, impl AsRef<[u8]>)>,
    ) -> Result<u64, StoreError> {
        let fields: Vec<_> = fields.into_iter().collect();
        let mut added = 0;
        for fields in batches("raw hset", &fields, key.as_ref().len())? {
            let fields = fields
                .iter()
                .map(|(field, value)| (field.as_ref(), value.as_ref()));
            let fields: Vec<(&[u8], &[u8])> = fields.collect();
            let link = self.link("raw hset")?;
            let call = link.raw().hash_set(self.place(&key), &fields);
            added += self.write("raw hset", call).await?;
        }
        Ok(added)
    }

    /// All fields of the hash under `key`; empty if there is none.
    ///
    /// A large hash (on Redis, more than 128 fields or a long one) is read in steps of 1000 fields, one
    /// round trip and at most 250 ms each, so it is no snapshot: a field that is there all the time is
    /// given, with a value that it had meanwhile.
    ///
    /// # Errors
    /// As [all calls](Raw).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn hgetall(
        &self,
        key: impl AsRef<[u8]>,
    ) -> Result<HashMap<Bytes, Bytes>, StoreError> {
        let (mut all, mut from) = (HashMap::new(), None::<Bytes>);
        loop {
            let link = self.link("raw hgetall")?;
            let step = link.raw().hash_scan(self.place(&key), from.as_deref());
            let page = self.read("raw hgetall", step).await?;
            all.extend(page.items);
            match page.next {
                Some(next) => from = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// Removes `field` from the hash under `key`, and with the last field the hash; whether the field was
    /// there.
    ///
    /// # Errors
    /// As [all calls](Raw).
    ///
    /// # Cancel safety
    /// The write may or may not happen.
    pub async fn hdel(
        &self,
        key: impl AsRef<[u8]>,
        field: impl AsRef<[u8]>,
    ) -> Result<bool, StoreError> {
        let link = self.link("raw hdel")?;
        let call = link.raw().hash_remove(self.place(&key), field.as_ref());
        self.write("raw hdel", call).await
    }

    /// How many fields the hash under `key` has; 0 if there is none.
    ///
    /// # Errors
    /// As [all calls](Raw).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn hlen(&self, key: impl AsRef<[u8]>) -> Result<u64, StoreError> {
        let link = self.link("raw hlen")?;
        self.read("raw hlen", link.raw().hash_len(self.place(&key)))
            .await
    }

    fn place<'a>(&'a self, key: &'a impl AsRef<[u8]>) -> RawPlace<'a> {
        self.0.keys.place(key.as_ref())
    }

    fn link(&self, operation: &'static str) -> StoreResult<Arc<dyn Link>> {
        self.0.cache.0.bus.link_now(operation)
    }

    async fn read<T>(
        &self,
        operation: &'static str,
        call: BoxFuture<'_, StoreResult<T>>,
    ) -> StoreResult<T> {
        let bus = &self.0.cache.0.bus;
        let limit = bus.timing.read_timeout;
        bus.within(limit, operation, call).await
    }

    async fn write<T>(
        &self,
        operation: &'static str,
        call: BoxFuture<'_, StoreResult<T>>,
    ) -> StoreResult<T> {
        let bus = &self.0.cache.0.bus;
        bus.within(WRITE_LIMIT, operation, call).await
    }
}

/// What is written, in as few parts as go in one round trip each. Fails if something is too long, before
/// anything is sent.
fn batches<'a, K: AsRef<[u8]>, V: AsRef<[u8]>>(
    operation: &'static str,
    entries: &'a [(K, V)],
    key_len: usize,
) -> StoreResult<Vec<&'a [(K, V)]>> {
    let (mut batches, mut begins, mut bytes) = (Vec::new(), 0, 0);
    for (at, (key, value)) in entries.iter().enumerate() {
        let len = key_len + key.as_ref().len() + value.as_ref().len();
        if len > MAX_RAW_BYTES {
            let detail = format!("{len} bytes are over the limit of {MAX_RAW_BYTES}");
            return Err(StoreError::new(StoreErrorKind::TooLong, operation).with_detail(detail));
        }
        if at - begins == BATCH || bytes + len > MAX_RAW_BYTES {
            batches.push(&entries[begins..at]);
            (begins, bytes) = (at, 0);
        }
        bytes += len;
    }
    batches.push(&entries[begins..]);
    batches.retain(|batch| !batch.is_empty());
    Ok(batches)
}

/// How long something that is kept is kept; `None` for ever.
struct Life(Option<Duration>);

impl Life {
    /// `None` if it is not kept at all.
    fn of(ttl: Ttl) -> Option<Self> {
        match ttl {
            Ttl::For(Duration::ZERO) => None,
            Ttl::For(life) => Some(Self(Some(life))),
            Ttl::Forever => Some(Self(None)),
        }
    }
}
