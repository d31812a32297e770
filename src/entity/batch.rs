//! A loader of many keys at once.

use super::builder::EntityBuilder;
use super::loader::Loader;
use super::outcome::Outcome;
use crate::key::Key;
use crate::store::BoxFuture;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

/// Keys of one call of a batch loader: enough that its round trip counts for little, few enough for a
/// query to hold.
pub const DEFAULT_MAX_BATCH: usize = 1_000;

/// What a batch loader gives: an answer for each key, or one error for all.
pub(super) type Answers<K, V, E> = Result<Vec<(K, Result<V, E>)>, E>;
/// Answers by the hash of their key; mostly one for each.
type ByHash<K, V, E> = HashMap<u64, Vec<(K, Outcome<V, E>)>>;
type Load<K, V, E> = Box<dyn Fn(Vec<K>) -> BoxFuture<'static, Answers<K, V, E>> + Send + Sync>;

/// How an entity loads many keys.
pub(super) struct Batches<K, V, E> {
    /// `None` loads them one by one.
    pub(super) load: Option<Load<K, V, E>>,
    /// Keys of one call at most.
    pub(super) max: usize,
}

impl<K, V, E> Default for Batches<K, V, E> {
    fn default() -> Self {
        Self {
            load: None,
            max: DEFAULT_MAX_BATCH,
        }
    }
}

impl<K: Key, L: Loader<K>> EntityBuilder<K, L> {
    /// Loads the keys that [`get_many`](super::Entity::get_many) misses with one call of `load`,
    /// instead of one call of the entity's loader for each.
    ///
    /// `load` is given different keys, at most [`max_batch`](Self::max_batch), and gives an answer for
    /// each, in any order: a `HashMap`, a `Vec`, whatever pairs keys with results. `Err` is the answer
    /// for all of them. A key that has none fails as [`CacheError::LoadAborted`], and nothing is kept
    /// of it: whether it is absent is for the source to say, not for a row that is missing. Answers for
    /// other keys are left out.
    ///
    /// What holds for a [`Loader`] holds for `load`: it sees everything that was committed before it
    /// starts, and is cancel safe. It runs in a task of its own, and is dropped when nobody waits for
    /// any of its keys any more, or when it takes longer than a single load may.
    ///
    /// ```
    /// # use std::collections::HashMap;
    /// # use std::convert::Infallible;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let cache = tidings::Cache::builder("shop").build().await?;
    /// # async fn select(ids: &[u64]) -> Result<HashMap<u64, String>, Infallible> {
    /// #     Ok(ids.iter().filter(|&&id| id < 3).map(|&id| (id, format!("user {id}"))).collect())
    /// # }
    /// let users = cache
    ///     .entity("user", |id: u64| async move { select(&[id]).await.map(|mut rows| rows.remove(&id)) })
    ///     .loader_many(|ids: Vec<u64>| async move {
    ///         let mut rows = select(&ids).await?; // … WHERE id = ANY($1)
    ///         Ok(ids.into_iter().map(move |id| (id, Ok(rows.remove(&id)))))
    ///     })
    ///     .build()?;
    /// let found = users.get_many(&[1, 2, 3]).await;
    /// assert_eq!(found[1].as_ref().unwrap().as_deref(), Some("user 2"));
    /// assert_eq!(**found[2].as_ref().unwrap(), None);
    /// # Ok(()) }
    /// ```
    ///
    /// [`CacheError::LoadAborted`]: crate::CacheError::LoadAborted
    pub fn loader_many<F, Fut, A>(mut self, load: F) -> Self
    where
        F: Fn(Vec<K>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<A, L::Error>> + Send + 'static,
        A: IntoIterator<Item = (K, Result<L::Value, L::Error>)>,
    {
        self.batches.load = Some(Box::new(move |keys| {
            let load = load(keys);
            Box::pin(async move { Ok(load.await?.into_iter().collect()) })
        }));
        self
    }

    /// How many keys one call of [`loader_many`](Self::loader_many) is given at most:
    /// [`DEFAULT_MAX_BATCH`] if not set. More keys are more calls, side by side.
    pub fn max_batch(mut self, keys: usize) -> Self {
        self.batches.max = keys;
        self
    }
}

/// The outcomes of one call of a batch loader.
pub(super) enum Loaded<K, V, E> {
    Each(ByHash<K, V, E>),
    All(Outcome<V, E>),
}

impl<K: Key, V, E> Loaded<K, V, E> {
    pub(super) fn new(answers: Answers<K, V, E>, hash: impl Fn(&K) -> u64) -> Self {
        match answers {
            Ok(answers) => {
                let mut each = ByHash::with_capacity(answers.len());
                for (key, answer) in answers {
                    let outcome = answer.map(Arc::new).map_err(Arc::new);
                    each.entry(hash(&key)).or_default().push((key, outcome));
                }
                Self::Each(each)
            }
            Err(error) => Self::All(Err(Arc::new(error))),
        }
    }

    /// What became of a key; `None` if the loader did not say.
    pub(super) fn of(&self, hash: u64, key: &K) -> Option<Outcome<V, E>> {
        match self {
            Self::All(outcome) => Some(outcome.clone()),
            Self::Each(each) => {
                let mut found = each.get(&hash)?.iter();
                let (_, outcome) = found.find(|(answered, _)| answered == key)?;
                Some(outcome.clone())
            }
        }
    }
}

/// The keys of some flights with their hashes, each once: two flights may be of one key, if an
/// invalidation came between their starts. One load that begins after both serves both.
pub(super) fn each_once<'a, K: Key>(flights: impl Iterator<Item = (u64, &'a K)>) -> Vec<K> {
    let mut seen: HashMap<u64, Vec<&K>> = HashMap::new();
    let mut keys = Vec::new();
    for (hash, key) in flights {
        let same = seen.entry(hash).or_default();
        if !same.contains(&key) {
            same.push(key);
            keys.push(key.clone());
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3 and 13 have the same hash.
    fn hash(key: &u32) -> u64 {
        u64::from(key % 10)
    }

    #[test]
    fn keys_of_one_hash_are_told_apart_and_each_is_asked_for_once() {
        let flights = [3, 4, 13, 3, 4, 13].map(|key| (hash(&key), key));
        let keys = each_once(flights.iter().map(|(hash, key)| (*hash, key)));
        assert_eq!(keys, [3, 4, 13]);
        let answers = keys.into_iter().rev().map(|key| (key, Ok(key)));
        let loaded = Loaded::<_, _, ()>::new(Ok(answers.collect()), hash);
        for key in [3, 4, 13] {
            assert_eq!(loaded.of(hash(&key), &key), Some(Ok(Arc::new(key))));
        }
        assert_eq!(loaded.of(hash(&23), &23), None);
    }
}
