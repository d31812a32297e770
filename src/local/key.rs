//! How an entry is found: by a hash that the caller computed once, then by the key itself.

use std::hash::{BuildHasher, Hash, Hasher};

use quick_cache::Equivalent;

use super::Stored;

/// A key as the map holds it, with its hash and its weight.
///
/// Two stored keys are equal when their hashes are, whatever the keys: the map holds **one entry per
/// hash**, and of two keys that collide the later insert displaces the earlier. That makes removal
/// by hash, which is all that the wire carries, exact and a single step, and costs one reload when
/// two keys of 2^64 meet. A lookup compares the key as well, so it never answers for another key.
///
/// The weight is kept because a policy asks for it again when it evicts: a weigher whose answer
/// changed meanwhile would corrupt its sums, and one that panics would poison its locks.
#[derive(Debug)]
pub(crate) struct StoredKey<K> {
    pub(crate) hash: u64,
    pub(crate) weight: u32,
    pub(crate) key: K,
}

impl<K> PartialEq for StoredKey<K> {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl<K> Eq for StoredKey<K> {}

impl<K> Hash for StoredKey<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl<K: Send + Sync + 'static, S> Stored<S> for StoredKey<K> {
    #[inline]
    fn weight(&self, _slot: &S) -> u32 {
        self.weight
    }
}

/// Finds the entry of one key without cloning it.
#[derive(Debug)]
pub(crate) struct Query<'a, K> {
    pub(crate) hash: u64,
    pub(crate) key: &'a K,
}

impl<K> Hash for Query<'_, K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl<K: Eq> Equivalent<StoredKey<K>> for Query<'_, K> {
    #[inline]
    fn equivalent(&self, stored: &StoredKey<K>) -> bool {
        self.hash == stored.hash && *self.key == stored.key
    }
}

/// Finds the entry of whichever key has this hash.
#[derive(Debug)]
pub(crate) struct ByHash(pub(crate) u64);

impl Hash for ByHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

impl<K> Equivalent<StoredKey<K>> for ByHash {
    #[inline]
    fn equivalent(&self, stored: &StoredKey<K>) -> bool {
        self.0 == stored.hash
    }
}

/// Hands the engines the hash that the caller computed.
///
/// Nothing is mixed again: every bit of xxh3-64 is good, and the engines draw shard, bucket and
/// tag from different ones.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Prehashed;

impl BuildHasher for Prehashed {
    type Hasher = PassThrough;

    #[inline]
    fn build_hasher(&self) -> PassThrough {
        PassThrough(0)
    }
}

/// The hasher of [`Prehashed`].
#[derive(Debug)]
pub(crate) struct PassThrough(u64);

impl Hasher for PassThrough {
    #[inline]
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("the keys of this map write one u64 and nothing else");
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}
