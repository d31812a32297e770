//! Hashes, lanes and physical keys of one namespace. Wire-stable.

use bytes::Bytes;
use std::iter;
use std::num::NonZeroU16;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed, xxh3_128};

use crate::coherence::Lane;
use crate::envelope;
use crate::registration::{Migration, Settings};
use crate::store::RawPlace;

/// The longest percent-encoded key that is kept as it is; a longer one is replaced by its hash, and
/// its envelope carries the whole key.
const MAX_PLAIN: usize = 1024;

/// The lanes that raw data and rooms are spread over, whatever the number of logs: nobody loads them
/// again where another number would have them looked for.
pub(crate) const DATA_LANES: NonZeroU16 = NonZeroU16::new(16).expect("16 is not zero");

/// A key's canonical bytes with their hash, which names the namespace and the entity as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HashedKey<'a> {
    pub(crate) hash: u64,
    pub(crate) bytes: &'a [u8],
}

impl HashedKey<'_> {
    /// Whether the physical key holds only a hash of this key, so that two keys could share it.
    #[inline]
    pub(crate) fn is_abridged(&self) -> bool {
        // One byte becomes at most three, so most keys need not be looked at.
        self.bytes.len() > MAX_PLAIN / 3 && encoded_len(self.bytes) > MAX_PLAIN
    }
}

/// One namespace: where its keys, entities and tags are.
#[derive(Clone, Debug)]
pub(crate) struct KeySpace {
    seed: u64,
    lanes: NonZeroU16,
    migration: Option<Migration>,
}

impl KeySpace {
    pub(crate) fn new(
        namespace: &str,
        lanes: NonZeroU16,
        migration: impl Into<Option<Migration>>,
    ) -> Self {
        Self {
            seed: xxh3_64(namespace.as_bytes()),
            lanes,
            migration: migration.into(),
        }
    }

    /// What other pods of the namespace must agree on.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            lanes: self.lanes.get(),
            migration: self.migration,
            seed: self.seed,
            envelope: envelope::VERSION,
        }
    }

    /// How many lanes there are logs of, in all.
    pub(crate) fn logs(&self) -> u16 {
        let other = self.migration.map_or(0, Migration::other);
        self.lanes.get().max(other)
    }

    /// The hash of a tag's name. An entity's name is a tag; its hash seeds those of its keys.
    pub(crate) fn tag_hash(&self, name: &str) -> u64 {
        xxh3_64_with_seed(name.as_bytes(), self.seed)
    }

    /// The lane of a key (or tag) hash: its top half scaled to the number of lanes.
    #[inline]
    pub(crate) fn lane_of(&self, hash: u64) -> Lane {
        lane_among(self.lanes.get(), hash)
    }

    /// The lanes that an invalidation of a hash is logged on: the one it is read at, and in a migration
    /// the one where other pods read it.
    pub(crate) fn lanes_to_tell(&self, hash: u64) -> impl Iterator<Item = Lane> + use<> {
        let here = self.lane_of(hash);
        let there = self.migration.map(|way| lane_among(way.other(), hash));
        iter::once(here).chain(there.filter(move |&there| there != here))
    }

    /// The keys of raw data under `prefix`.
    pub(crate) fn raw(&self, prefix: &str) -> RawKeys {
        // With the characters that patterns give a meaning: so a pattern of the name matches the name.
        let mut name = String::new();
        percent_encode(prefix.as_bytes(), b":*?[]\\^{}", &mut name);
        RawKeys {
            seed: self.tag_hash(prefix),
            name,
        }
    }

    /// The lane of the room called `name`, and its name in printable ASCII without `:`.
    pub(crate) fn room(&self, name: &str) -> (Lane, String) {
        let mut printable = String::new();
        percent_encode(name.as_bytes(), b":", &mut printable);
        (lane_among(DATA_LANES.get(), self.tag_hash(name)), printable)
    }

    /// The keys of the entity called `name`.
    pub(crate) fn entity(&self, name: &str) -> EntityKeys {
        let mut prefix = String::new();
        percent_encode(name.as_bytes(), b":", &mut prefix);
        prefix.push(':');
        EntityKeys {
            seed: self.tag_hash(name),
            prefix,
        }
    }
}

/// One entity's keys.
#[derive(Clone, Debug)]
pub(crate) struct EntityKeys {
    seed: u64,
    /// The percent-encoded name and a colon.
    prefix: String,
}

impl EntityKeys {
    /// What a `Clear` of this entity carries: the hash of its name as a tag.
    pub(crate) fn entity_hash(&self) -> u64 {
        self.seed
    }

    /// The 64-bit name of a key within the namespace.
    #[inline]
    pub(crate) fn hash<'a>(&self, bytes: &'a [u8]) -> HashedKey<'a> {
        HashedKey {
            hash: xxh3_64_with_seed(bytes, self.seed),
            bytes,
        }
    }

    /// The physical key within its lane.
    pub(crate) fn name(&self, key: HashedKey<'_>) -> Bytes {
        let mut name = String::new();
        self.push_name(key, &mut name);
        Bytes::from(name)
    }

    /// Appends `entity:key` in printable ASCII: at most [`MAX_PLAIN`] bytes after the colon.
    pub(crate) fn push_name(&self, key: HashedKey<'_>, out: &mut String) {
        // As much as a key of plain bytes takes, so that it is neither moved nor cut to size.
        out.reserve_exact(self.prefix.len() + key.bytes.len().min(MAX_PLAIN));
        out.push_str(&self.prefix);
        if key.is_abridged() {
            // A plain key never begins with `#`.
            out.push_str(&format!("#{:032x}", xxh3_128(key.bytes)));
        } else if let [b'#', rest @ ..] = key.bytes {
            out.push_str("%23");
            percent_encode(rest, b"", out);
        } else {
            percent_encode(key.bytes, b"", out);
        }
    }
}

/// The keys under one prefix.
#[derive(Clone, Debug)]
pub(crate) struct RawKeys {
    seed: u64,
    /// The percent-encoded prefix.
    name: String,
}

impl RawKeys {
    /// The prefix as physical keys hold it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where `key` lives.
    pub(crate) fn place<'a>(&'a self, key: &'a [u8]) -> RawPlace<'a> {
        RawPlace {
            lane: lane_among(DATA_LANES.get(), xxh3_64_with_seed(key, self.seed)),
            prefix: &self.name,
            key,
        }
    }
}

#[inline]
fn lane_among(lanes: u16, hash: u64) -> Lane {
    let lane = ((hash >> 32) * u64::from(lanes)) >> 32;
    Lane(u16::try_from(lane).expect("a 32-bit fraction of a u16 is a u16"))
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b'%'
}

/// The length of a key's percent-encoded form.
fn encoded_len(bytes: &[u8]) -> usize {
    let leading = usize::from(bytes.first() == Some(&b'#'));
    let escaped = bytes.iter().filter(|&&byte| !is_plain(byte)).count() + leading;
    bytes.len() + 2 * escaped
}

/// Appends `bytes` with everything but printable ASCII, `%`, and what is in `also` as `%XX`.
fn percent_encode(bytes: &[u8], also: &[u8], out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.reserve(bytes.len());
    for &byte in bytes {
        if is_plain(byte) && !also.contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(DIGITS[usize::from(byte >> 4)]));
            out.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space(namespace: &str) -> KeySpace {
        KeySpace::new(namespace, NonZeroU16::new(16).unwrap(), None)
    }

    /// Lane and name within it.
    fn address(namespace: &str, entity: &str, bytes: &[u8]) -> (u16, String) {
        let space = space(namespace);
        let entity = space.entity(entity);
        let key = entity.hash(bytes);
        let mut name = String::new();
        entity.push_name(key, &mut name);
        (space.lane_of(key.hash).0, name)
    }

    /// `docs/wire-format.md` lists the same values, which were computed with another implementation
    /// of XXH3. They can never change: pods that hash a key
    /// differently do not hear each other's invalidations.
    #[test]
    fn hashes_lanes_and_physical_keys_are_wire_stable() {
        let shop = space("shop");
        let user = shop.entity("user");
        let key = user.hash(b"42");
        assert_eq!(shop.seed, 0xf3fb_bc38_4d51_8cd9);
        assert_eq!(shop.tag_hash("user"), 0x263c_9cc6_5d2b_d5ce);
        assert_eq!(user.entity_hash(), shop.tag_hash("user"));
        assert_eq!(key.hash, 0x8f5e_28a5_2204_fd9b);
        assert_eq!(shop.lane_of(key.hash), Lane(8));
        let at = |lane, name: &str| (lane, name.to_owned());
        assert_eq!(address("shop", "user", b"42"), at(8, "user:42"));
        assert_eq!(
            address("shop", "user", b"a b/\xff%"),
            at(4, "user:a%20b/%FF%25")
        );
        assert_eq!(address("shop", "user", b"#1"), at(7, "user:%231"));
        assert_eq!(address("a:{b}", "x:y", b""), at(14, "x%3Ay:"));
        assert_eq!(shop.room("doc:7"), (Lane(11), "doc%3A7".to_owned()));
        let hashed = "user:#54c8d2259a56d016dce352d839be41f1";
        assert_eq!(address("shop", "user", &[b'k'; 1025]), at(2, hashed));
    }

    /// `docs/wire-format.md` lists the same.
    #[test]
    fn raw_places_are_wire_stable_and_prefixes_hold_no_pattern() {
        let shop = space("shop");
        let (cart, odd) = (shop.raw("cart"), shop.raw("50%:*"));
        let place = |lane, prefix, key| RawPlace {
            lane: Lane(lane),
            prefix,
            key,
        };
        assert_eq!(cart.place(b"1"), place(11, "cart", b"1"));
        assert_eq!(odd.place(b"a:*"), place(7, "50%25%3A%2A", b"a:*"));
        let all = shop.raw(":*?[]\\^{}% \u{e9}");
        assert_eq!(all.name(), "%3A%2A%3F%5B%5D%5C%5E%7B%7D%25%20%C3%A9");
    }

    #[test]
    fn lanes_share_the_hash_space_evenly_and_in_order() {
        let shop = space("shop");
        assert_eq!(shop.lane_of(0), Lane(0));
        assert_eq!(shop.lane_of(u64::MAX), Lane(15));
        assert_eq!(shop.lane_of(1 << 60), Lane(1));
        assert_eq!(shop.lane_of((1 << 60) - 1), Lane(0));
    }

    #[test]
    fn raw_data_and_rooms_stay_where_they_are_whatever_the_number_of_lanes() {
        let few = KeySpace::new("shop", NonZeroU16::new(3).unwrap(), Migration::To(64));
        let (cart, usual) = (few.raw("cart"), space("shop").raw("cart"));
        assert_eq!(cart.place(b"1"), usual.place(b"1"));
        assert_eq!(few.room("doc:7"), space("shop").room("doc:7"));
    }

    #[test]
    fn in_a_migration_an_invalidation_is_told_where_each_side_reads() {
        let both = KeySpace::new("shop", NonZeroU16::new(4).unwrap(), Migration::To(64));
        let told = |hash| both.lanes_to_tell(hash).collect::<Vec<_>>();
        assert_eq!(told(u64::MAX), [Lane(3), Lane(63)]);
        assert_eq!(told(0), [Lane(0)]);
        assert_eq!(both.logs(), 64);
    }

    #[test]
    fn only_keys_above_the_limit_are_replaced_by_their_hash() {
        let abridged = |bytes: &[u8]| HashedKey { hash: 0, bytes }.is_abridged();
        assert!(!abridged(&[b'k'; 1024]));
        assert!(abridged(&[b'k'; 1025]));
        assert!(!abridged(&[0; 341]));
        assert!(abridged(&[0; 342]));
        let mut marked = [b'k'; 1023];
        marked[0] = b'#';
        assert!(abridged(&marked), "the escaped marker counts");
    }

    proptest! {
        #[test]
        fn names_are_printable_and_bounded(
            entity in ".{0,20}",
            key in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            let (_, name) = address("n", &entity, &key);
            prop_assert!(name.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert!(name.len() <= 1 + 3 * entity.len() + MAX_PLAIN);
        }

        #[test]
        fn different_entries_have_different_names(
            a in ("[a:%#\u{fc}]{0,3}", prop::collection::vec(prop::sample::select(&b"a:%#2\xff"[..]), 0..4)),
            b in ("[a:%#\u{fc}]{0,3}", prop::collection::vec(prop::sample::select(&b"a:%#2\xff"[..]), 0..4)),
        ) {
            let name = |x: &(String, Vec<u8>)| address("n", &x.0, &x.1).1;
            prop_assert_eq!(a == b, name(&a) == name(&b));
        }

        #[test]
        fn encoded_length_is_computed_without_encoding(key: Vec<u8>) {
            let entity = space("n").entity("e");
            let mut out = String::new();
            entity.push_name(entity.hash(&key), &mut out);
            prop_assert_eq!(out.len() - 2, encoded_len(&key));
        }
    }
}
