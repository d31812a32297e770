//! Raw data of one namespace. It is kept beside the state of the protocol, which knows nothing of it,
//! and not bounded: whoever stored it counts on it.

use super::link::{Access, MemoryLink};
use super::values::expiry;
use crate::coherence::Lane;
use crate::error::{StoreError, StoreErrorKind};
use crate::store::{BoxFuture, RawFound, RawLink, RawPage, RawPlace, StoreResult};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

/// How many keys or fields one step of a walk gives.
const PAGE: usize = 1000;
/// How many expired entries one write removes: more than the one it may add.
const SWEEP: usize = 4;

/// Keys with what stands under them. `by_expiry` is derived from `by_key`.
#[derive(Debug, Default)]
pub(super) struct RawState {
    by_key: BTreeMap<Bytes, Entry>,
    by_expiry: BTreeSet<(u64, Bytes)>,
}

#[derive(Debug)]
struct Entry {
    content: Content,
    /// The millisecond at which it is gone.
    expires_ms: Option<u64>,
}

#[derive(Debug)]
enum Content {
    Value(Bytes),
    Hash(BTreeMap<Bytes, Bytes>),
}

impl Entry {
    fn is_over(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|at| now_ms >= at)
    }

    fn value(&self) -> StoreResult<&Bytes> {
        match &self.content {
            Content::Value(value) => Ok(value),
            Content::Hash(_) => Err(wrong_type()),
        }
    }

    fn fields(&self) -> StoreResult<&BTreeMap<Bytes, Bytes>> {
        match &self.content {
            Content::Hash(fields) => Ok(fields),
            Content::Value(_) => Err(wrong_type()),
        }
    }

    fn fields_mut(&mut self) -> StoreResult<&mut BTreeMap<Bytes, Bytes>> {
        match &mut self.content {
            Content::Hash(fields) => Ok(fields),
            Content::Value(_) => Err(wrong_type()),
        }
    }
}

fn wrong_type() -> StoreError {
    StoreError::new(StoreErrorKind::WrongType, "raw")
}

/// `prefix:`, lane, key. A prefix holds no colon, so its keys stand together, in order of lane and key.
fn address(place: RawPlace<'_>) -> Bytes {
    let lane = place.lane.0.to_be_bytes();
    [place.prefix.as_bytes(), b":", &lane, place.key]
        .concat()
        .into()
}

impl RawState {
    fn entry(&self, place: RawPlace<'_>, now_ms: u64) -> Option<&Entry> {
        let entry = self.by_key.get(&address(place))?;
        (!entry.is_over(now_ms)).then_some(entry)
    }

    fn get(&self, place: RawPlace<'_>, now_ms: u64) -> StoreResult<Option<Bytes>> {
        let entry = self.entry(place, now_ms);
        entry.map(|entry| entry.value().cloned()).transpose()
    }

    fn set(&mut self, place: RawPlace<'_>, value: &[u8], ttl: Option<Duration>, now_ms: u64) {
        let entry = Entry {
            content: Content::Value(Bytes::copy_from_slice(value)),
            expires_ms: expiry(now_ms, ttl),
        };
        self.put(address(place), entry, now_ms);
    }

    fn put(&mut self, at: Bytes, entry: Entry, now_ms: u64) {
        self.sweep(now_ms);
        self.take(&at);
        if let Some(end) = entry.expires_ms {
            self.by_expiry.insert((end, at.clone()));
        }
        self.by_key.insert(at, entry);
    }

    fn take(&mut self, at: &Bytes) -> Option<Entry> {
        let entry = self.by_key.remove(at)?;
        if let Some(end) = entry.expires_ms {
            self.by_expiry.remove(&(end, at.clone()));
        }
        Some(entry)
    }

    fn remove(&mut self, place: RawPlace<'_>, now_ms: u64) -> bool {
        let taken = self.take(&address(place));
        taken.is_some_and(|entry| !entry.is_over(now_ms))
    }

    fn expire(&mut self, place: RawPlace<'_>, ttl: Option<Duration>, now_ms: u64) -> bool {
        let at = address(place);
        match self.take(&at) {
            Some(entry) if !entry.is_over(now_ms) => {
                let expires_ms = expiry(now_ms, ttl);
                self.put(
                    at,
                    Entry {
                        expires_ms,
                        ..entry
                    },
                    now_ms,
                );
                true
            }
            _ => false,
        }
    }

    fn scan(&self, prefix: &str, from: Option<&[u8]>, now_ms: u64) -> RawPage<RawFound> {
        let own = [prefix.as_bytes(), b":"].concat();
        let after = [&own[..], from.unwrap_or_default()].concat();
        // Nothing stands where the first step begins: an address goes on with the lane.
        let after = (Bound::Excluded(&after[..]), Bound::Unbounded);
        let rest = self.by_key.range::<[u8], _>(after);
        let rest = rest.take_while(|(at, _)| at.starts_with(&own));
        let looked_at: Vec<_> = rest.take(PAGE).collect();
        let full = looked_at.len() == PAGE;
        let next = looked_at.last().filter(|_| full);
        let next = next.map(|(at, _)| at.slice(own.len()..));
        let alive = looked_at.iter().filter(|(_, entry)| !entry.is_over(now_ms));
        let found = alive.filter_map(|(at, _)| {
            let (lane, key) = at[own.len()..].split_first_chunk()?;
            Some(RawFound {
                lane: Lane(u16::from_be_bytes(*lane)),
                key: Bytes::copy_from_slice(key),
            })
        });
        RawPage {
            items: found.collect(),
            next,
        }
    }

    fn hash_set(
        &mut self,
        place: RawPlace<'_>,
        fields: &[(&[u8], &[u8])],
        now_ms: u64,
    ) -> StoreResult<u64> {
        if fields.is_empty() {
            return Ok(0);
        }
        let at = address(place);
        if self.entry(place, now_ms).is_none() {
            let entry = Entry {
                content: Content::Hash(BTreeMap::new()),
                expires_ms: None,
            };
            self.put(at.clone(), entry, now_ms);
        }
        let entry = self.by_key.get_mut(&at);
        let entry = entry.expect("it was there, or was put there");
        let own = entry.fields_mut()?;
        let before = own.len();
        own.extend(fields.iter().map(|(field, value)| {
            let copy = Bytes::copy_from_slice;
            (copy(field), copy(value))
        }));
        Ok((own.len() - before) as u64)
    }

    fn hash_remove(&mut self, place: RawPlace<'_>, field: &[u8], now_ms: u64) -> StoreResult<bool> {
        let at = address(place);
        let entry = self.by_key.get_mut(&at);
        let Some(entry) = entry.filter(|entry| !entry.is_over(now_ms)) else {
            return Ok(false);
        };
        let fields = entry.fields_mut()?;
        let was_there = fields.remove(field).is_some();
        if fields.is_empty() {
            self.take(&at);
        }
        Ok(was_there)
    }

    fn hash_scan(
        &self,
        place: RawPlace<'_>,
        from: Option<&[u8]>,
        now_ms: u64,
    ) -> StoreResult<RawPage<(Bytes, Bytes)>> {
        let mut page = RawPage {
            items: Vec::new(),
            next: None,
        };
        if let Some(entry) = self.entry(place, now_ms) {
            let after = from.map_or(Bound::Unbounded, Bound::Excluded);
            let rest = entry.fields()?.range::<[u8], _>((after, Bound::Unbounded));
            let rest = rest.map(|(field, value)| (field.clone(), value.clone()));
            page.items.extend(rest.take(PAGE));
            let last = page.items.last().filter(|_| page.items.len() == PAGE);
            page.next = last.map(|(field, _)| field.clone());
        }
        Ok(page)
    }

    fn sweep(&mut self, now_ms: u64) {
        for _ in 0..SWEEP {
            match self.by_expiry.first() {
                Some((end, _)) if now_ms >= *end => {
                    let (_, at) = self.by_expiry.pop_first().expect("it has a first element");
                    self.by_key.remove(&at);
                }
                _ => return,
            }
        }
    }
}

impl MemoryLink {
    fn raw_step<'a, T: Send + 'a>(
        &'a self,
        operation: &'static str,
        access: Access,
        step: impl FnOnce(&mut RawState, u64) -> T + Send + 'a,
    ) -> BoxFuture<'a, StoreResult<T>> {
        self.step(operation, access, |inside, now, _| {
            step(&mut inside.raw, now)
        })
    }

    /// A step that may meet what is of another kind.
    fn typed_step<'a, T: Send + 'a>(
        &'a self,
        operation: &'static str,
        access: Access,
        step: impl FnOnce(&mut RawState, u64) -> StoreResult<T> + Send + 'a,
    ) -> BoxFuture<'a, StoreResult<T>> {
        let call = self.raw_step(operation, access, step);
        Box::pin(async move {
            call.await?
                .map_err(|error| StoreError::new(error.kind(), operation))
        })
    }
}

impl RawLink for MemoryLink {
    fn get<'a>(
        &'a self,
        places: &'a [RawPlace<'a>],
    ) -> BoxFuture<'a, StoreResult<Vec<Option<Bytes>>>> {
        self.typed_step("raw get", Access::Read, |raw, now| {
            places.iter().map(|&place| raw.get(place, now)).collect()
        })
    }

    fn set<'a>(
        &'a self,
        entries: &'a [(RawPlace<'a>, &'a [u8])],
        ttl: Option<Duration>,
    ) -> BoxFuture<'a, StoreResult<()>> {
        self.raw_step("raw set", Access::Write, move |raw, now| {
            for &(place, value) in entries {
                raw.set(place, value, ttl, now);
            }
        })
    }

    fn remove<'a>(&'a self, places: &'a [RawPlace<'a>]) -> BoxFuture<'a, StoreResult<u64>> {
        self.raw_step("raw remove", Access::Write, |raw, now| {
            let removed = places.iter().filter(|place| raw.remove(**place, now));
            removed.count() as u64
        })
    }

    fn expire<'a>(
        &'a self,
        place: RawPlace<'a>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'a, StoreResult<bool>> {
        self.raw_step("raw expire", Access::Write, move |raw, now| {
            raw.expire(place, ttl, now)
        })
    }

    fn scan<'a>(
        &'a self,
        prefix: &'a str,
        from: Option<&'a [u8]>,
        removing: &'a [RawFound],
    ) -> BoxFuture<'a, StoreResult<(u64, RawPage<RawFound>)>> {
        let access = match removing {
            [] => Access::Read,
            _ => Access::Write,
        };
        self.raw_step("raw scan", access, move |raw, now| {
            let places = removing.iter().map(|found| found.place(prefix));
            let removed = places.filter(|place| raw.remove(*place, now)).count();
            (removed as u64, raw.scan(prefix, from, now))
        })
    }

    fn hash_get<'a>(
        &'a self,
        place: RawPlace<'a>,
        field: &'a [u8],
    ) -> BoxFuture<'a, StoreResult<Option<Bytes>>> {
        self.typed_step("raw hget", Access::Read, move |raw, now| {
            let fields = raw.entry(place, now).map(Entry::fields).transpose()?;
            Ok(fields.and_then(|fields| fields.get(field).cloned()))
        })
    }

    fn hash_set<'a>(
        &'a self,
        place: RawPlace<'a>,
        fields: &'a [(&'a [u8], &'a [u8])],
    ) -> BoxFuture<'a, StoreResult<u64>> {
        self.typed_step("raw hset", Access::Write, move |raw, now| {
            raw.hash_set(place, fields, now)
        })
    }

    fn hash_remove<'a>(
        &'a self,
        place: RawPlace<'a>,
        field: &'a [u8],
    ) -> BoxFuture<'a, StoreResult<bool>> {
        self.typed_step("raw hdel", Access::Write, move |raw, now| {
            raw.hash_remove(place, field, now)
        })
    }

    fn hash_len<'a>(&'a self, place: RawPlace<'a>) -> BoxFuture<'a, StoreResult<u64>> {
        self.typed_step("raw hlen", Access::Read, move |raw, now| {
            let fields = raw.entry(place, now).map(Entry::fields).transpose()?;
            Ok(fields.map_or(0, |fields| fields.len() as u64))
        })
    }

    fn hash_scan<'a>(
        &'a self,
        place: RawPlace<'a>,
        from: Option<&'a [u8]>,
    ) -> BoxFuture<'a, StoreResult<RawPage<(Bytes, Bytes)>>> {
        self.typed_step("raw hgetall", Access::Read, move |raw, now| {
            raw.hash_scan(place, from, now)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(key: &'static [u8]) -> RawPlace<'static> {
        RawPlace {
            lane: Lane(1),
            prefix: "p",
            key,
        }
    }

    #[test]
    fn what_has_expired_is_gone_to_every_call_and_swept_by_writes() {
        let mut raw = RawState::default();
        raw.set(at(b"k"), b"v", Some(MS), 10);
        let found = |raw: &RawState, now| raw.get(at(b"k"), now).expect("a value");
        assert_eq!(found(&raw, 10), Some("v".into()));
        assert_eq!(found(&raw, 11), None, "the end is inclusive");
        assert!(!raw.expire(at(b"k"), None, 11));
        for key in [&b"a"[..], b"b", b"c"] {
            raw.set(at(key), b"v", Some(MS), 10);
        }
        assert_eq!(raw.scan("p", None, 11).items, []);
        assert!(!raw.remove(at(b"a"), 11));
        raw.set(at(b"k"), b"v", None, 11);
        assert_eq!((raw.by_key.len(), raw.by_expiry.len()), (1, 0));
    }

    #[test]
    fn a_hash_that_has_expired_leaves_no_field_behind() {
        let mut raw = RawState::default();
        let hset = |raw: &mut RawState, field: &[u8], now| {
            raw.hash_set(at(b"k"), &[(field, b"v")], now)
                .expect("a hash")
        };
        assert_eq!(hset(&mut raw, b"f", 0), 1);
        assert!(raw.expire(at(b"k"), Some(MS), 0));
        assert!(!raw.hash_remove(at(b"k"), b"f", 1).expect("a hash"));
        assert_eq!(hset(&mut raw, b"g", 1), 1);
        let page = raw.hash_scan(at(b"k"), None, 1 << 40).expect("a hash");
        assert_eq!(page.items, [("g".into(), "v".into())]);
    }
}
