//! Compressed and sealed envelopes, as they come back whole, damaged, moved or made up.

use super::*;
use crate::envelope::compression::{HEAD_LEN, expand};
use allocation_counter::measure;

const OLD: [u8; 32] = [1; 32];
const NEW: [u8; 32] = [2; 32];
const LZ4: Compression = Compression::Lz4;
const ZSTD: Compression = Compression::Zstd { level: 3 };
const LIMIT: u32 = 64 << 20;

fn compressed(how: Compression) -> Packing {
    Packing {
        compression: Some(how),
        ..PLAIN
    }
}

fn sealed(ring: KeyRing) -> Packing {
    Packing {
        seal: Some(Seal::new(ring, "shop", "user")),
        ..PLAIN
    }
}

fn ring() -> KeyRing {
    KeyRing::new(1, &OLD)
}

/// Each way to pack.
fn packings() -> Vec<Packing> {
    vec![
        compressed(LZ4),
        compressed(ZSTD),
        sealed(ring()),
        Packing {
            compression: Some(LZ4),
            ..sealed(ring())
        },
        Packing {
            compression: Some(ZSTD),
            ..sealed(ring())
        },
    ]
}

fn stored(payload: &[u8], packing: &Packing) -> Vec<u8> {
    encode(Outcome::Value, &a_header(), KEY, payload, packing).unwrap()
}

fn read(bytes: &[u8], packing: &Packing) -> Result<Vec<u8>, Unusable> {
    match decode(bytes, KEY, SCHEMA, packing)? {
        Stored::Outcome(_, _, payload) => Ok(payload.into_owned()),
        Stored::Lease(_) => panic!("not a lease"),
    }
}

/// The same with a checksum that is right again, as somebody who knows the format makes it.
fn with_checksum(mut bytes: Vec<u8>, hash: u64) -> Vec<u8> {
    bytes.truncate(bytes.len() - CHECKSUM_LEN);
    bytes.extend(xxh3_64_with_seed(&bytes, hash).to_be_bytes());
    bytes
}

/// What compresses to less than a tenth.
fn text(len: usize) -> Vec<u8> {
    b"good tidings ".iter().copied().cycle().take(len).collect()
}

#[test]
fn every_single_bit_flip_and_truncation_of_a_packed_outcome_is_unusable() {
    for packing in packings() {
        let good = stored(&text(300), &packing);
        assert_eq!(read(&good, &packing), Ok(text(300)));
        for len in 0..good.len() {
            assert!(read(&good[..len], &packing).is_err(), "cut at {len}");
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bad, &packing).is_err(), "bit {bit} flipped");
        }
    }
}

#[test]
fn a_sealed_outcome_with_any_bit_changed_is_unusable_though_its_checksum_is_right() {
    for packing in [sealed(ring()), packings().remove(3)] {
        let mut header = a_header();
        header.tags = vec![version([8, 9, 10, 11])];
        let good = encode(Outcome::Value, &header, KEY, &text(100), &packing).unwrap();
        for bit in 0..(good.len() - CHECKSUM_LEN) * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let bad = with_checksum(bad, KEY.hash);
            // A schema that is not ours is told before.
            let read = decode(&bad, KEY, SCHEMA, &packing);
            assert!(read.is_err(), "bit {bit} flipped: {read:?}");
        }
        for len in LEASE_LEN..good.len() {
            let bad = with_checksum(good[..len].to_vec(), KEY.hash);
            assert!(read(&bad, &packing).is_err(), "cut at {len}");
        }
    }
}

#[test]
fn a_sealed_value_opens_only_for_its_key_entity_and_namespace() {
    let packing = sealed(ring());
    let good = stored(b"payload", &packing);
    let elsewhere = HashedKey {
        hash: 8,
        bytes: b"43",
    };
    let moved = with_checksum(good.clone(), elsewhere.hash);
    let read = decode(&moved, elsewhere, SCHEMA, &packing);
    assert_eq!(read, Err(Unusable::Forged));
    // Another key behind the same hash.
    let twin = HashedKey {
        bytes: b"43",
        ..KEY
    };
    let read = decode(&good, twin, SCHEMA, &packing);
    assert_eq!(read, Err(Unusable::Forged));
    for (namespace, entity) in [("shop", "order"), ("mall", "user"), ("sho", "puser")] {
        let other = Packing {
            seal: Some(Seal::new(ring(), namespace, entity)),
            ..PLAIN
        };
        let read = decode(&good, KEY, SCHEMA, &other);
        assert_eq!(read, Err(Unusable::Forged), "{namespace} {entity}");
    }
}

#[test]
fn the_life_of_a_sealed_value_cannot_be_edited() {
    let packing = sealed(ring());
    let good = stored(b"payload", &packing);
    for field in [2, 4, 12, 20, 28, 36, 44, 52] {
        let mut edited = good.clone();
        edited[field] ^= 3;
        let edited = with_checksum(edited, KEY.hash);
        assert_eq!(read(&edited, &packing), Err(Unusable::Forged), "{field}");
    }
}

#[test]
fn values_of_an_old_key_open_while_it_is_on_the_ring() {
    let old = stored(b"payload", &sealed(ring()));
    let both = sealed(KeyRing::new(2, &NEW).and(1, &OLD));
    assert_eq!(read(&old, &both), Ok(b"payload".to_vec()));
    let new = stored(b"payload", &both);
    assert_eq!(read(&new, &sealed(ring())), Err(Unusable::UnknownKey(2)));
    let rotated = sealed(KeyRing::new(2, &NEW));
    assert_eq!(read(&new, &rotated), Ok(b"payload".to_vec()));
    assert_eq!(read(&old, &rotated), Err(Unusable::UnknownKey(1)));
    // The right id of a wrong key.
    let mistaken = sealed(KeyRing::new(1, &NEW));
    assert_eq!(read(&old, &mistaken), Err(Unusable::Forged));
}

#[test]
fn what_is_not_sealed_is_unusable_where_a_seal_is_demanded_and_the_other_way_round() {
    let (plain, closed) = (PLAIN, sealed(ring()));
    let (open, shut) = (stored(b"payload", &plain), stored(b"payload", &closed));
    assert_eq!(read(&open, &closed), Err(Unusable::NotSealed));
    assert_eq!(read(&shut, &plain), Err(Unusable::Sealed));
    // Not even with the flag: what follows is not a seal then.
    let mut flagged = open.clone();
    flagged[61] |= 4;
    let flagged = with_checksum(flagged, KEY.hash);
    assert!(read(&flagged, &closed).is_err());
}

#[test]
fn nothing_of_a_sealed_value_or_a_long_key_is_readable() {
    let long = vec![b'k'; 2000];
    let key = HashedKey {
        bytes: &long,
        ..KEY
    };
    let (payload, packing) = (b"a secret value", sealed(ring()));
    let bytes = encode(Outcome::Error, &a_header(), key, payload, &packing).unwrap();
    assert!(!bytes.windows(8).any(|part| part == &payload[..8]));
    assert!(!bytes.windows(8).any(|part| part == &long[..8]));
    let again = encode(Outcome::Error, &a_header(), key, payload, &packing).unwrap();
    let body = HEADER_LEN + 4;
    assert_ne!(bytes[body..], again[body..], "each has a nonce of its own");
    assert_eq!(
        decode(&bytes, key, SCHEMA, &packing),
        Ok(Stored::Outcome(
            Outcome::Error,
            a_header(),
            payload[..].into()
        ))
    );
}

#[test]
fn without_randomness_nothing_is_sealed() {
    let seal = Seal::new(ring(), "shop", "user").drawing(|_| Err(getrandom::Error::UNSUPPORTED));
    let packing = Packing {
        seal: Some(seal),
        ..PLAIN
    };
    let error = encode(Outcome::Value, &a_header(), KEY, b"payload", &packing).unwrap_err();
    assert_eq!(error.to_string(), "no randomness to seal the value with");
}

#[test]
fn a_ring_shows_ids_alone_and_takes_each_once() {
    let ring = KeyRing::new(2, &[0xAB; 32]).and(1, &OLD);
    assert_eq!(format!("{ring:?}"), "KeyRing { seals: 2, opens: [2, 1] }");
    assert!(ring.check().is_ok());
    let error = ring.and(2, &NEW).check().unwrap_err();
    assert_eq!(
        error.to_string(),
        "option `seal`: key id 2 is on the ring twice"
    );
}

#[test]
fn a_payload_is_compressed_above_the_size_and_if_that_is_smaller() {
    let packing = Packing {
        compress_above: 100,
        ..compressed(LZ4)
    };
    let flags = |payload: &[u8]| stored(payload, &packing)[61];
    assert_eq!(
        (flags(&text(100)), flags(&text(101))),
        (0, FLAG_COMPRESSED as u8)
    );
    let noise: Vec<u8> = (0..100)
        .flat_map(|_| crate::random::random().to_be_bytes())
        .collect();
    assert_eq!(flags(&noise), 0);
    for how in [LZ4, ZSTD] {
        assert!(stored(&text(10_000), &compressed(how)).len() < 500);
    }
}

#[test]
fn compressed_values_are_read_without_the_option() {
    for how in [LZ4, ZSTD] {
        let bytes = stored(&text(1000), &compressed(how));
        assert_eq!(read(&bytes, &PLAIN), Ok(text(1000)));
    }
    let mut later = stored(&text(1000), &compressed(LZ4));
    later[HEADER_LEN] = 3;
    let later = with_checksum(later, KEY.hash);
    assert_eq!(read(&later, &PLAIN), Err(Unusable::Compression(3)));
}

#[test]
fn a_claimed_length_gets_no_memory_that_the_bytes_do_not_justify() {
    for way in [1, 2] {
        for claimed in [1, 100, LIMIT, LIMIT + 1, u32::MAX] {
            let bomb = [&[way], &claimed.to_be_bytes()[..], b"abc"].concat();
            let mut result = Ok(Vec::new());
            let memory = measure(|| result = expand(&bomb)).bytes_max;
            assert_eq!(result, Err(Unusable::Expansion), "{way} {claimed}");
            assert!(memory < 4096, "{way} {claimed}: {memory} bytes");
        }
    }
}

#[test]
fn nothing_is_expanded_beyond_the_limit_or_to_another_length_than_claimed() {
    let over = vec![0; LIMIT as usize + 1];
    for how in [LZ4, ZSTD] {
        assert_eq!(how.compress(&over), None, "nobody would read it");
        let good = how.compress(&over[1..]).unwrap();
        assert_eq!(
            expand(&good).map(|payload| payload.len()),
            Ok(LIMIT as usize)
        );
        for claimed in [0, 1, LIMIT - 1, LIMIT + 1] {
            let lie = [&good[..1], &claimed.to_be_bytes(), &good[HEAD_LEN..]].concat();
            let expanded = expand(&lie);
            assert_eq!(expanded, Err(Unusable::Expansion), "{claimed}");
        }
    }
    for how in [LZ4, ZSTD] {
        for claimed in [999, 1001, 2000_u32] {
            let mut lie = how.compress(&text(1000)).unwrap();
            lie[1..HEAD_LEN].copy_from_slice(&claimed.to_be_bytes());
            assert_eq!(expand(&lie), Err(Unusable::Expansion), "{how:?} {claimed}");
        }
    }
    // A frame that gives more than the limit: two of them, one behind the other.
    let half = ZSTD.compress(&over[1..]).unwrap();
    let twice = [&half[..], &half[HEAD_LEN..]].concat();
    assert_eq!(expand(&twice), Err(Unusable::Expansion));
}

#[test]
fn zstd_levels_are_checked() {
    for level in [-7, 0, 1, 22] {
        assert!(Compression::Zstd { level }.check().is_ok(), "{level}");
    }
    let error = Compression::Zstd { level: 23 }.check().unwrap_err();
    assert_eq!(error.option(), "compress");
}

proptest! {
    #[test]
    fn packed_outcomes_round_trip(
        outcome in outcome(), header in header(), piece: Vec<u8>, times in 1..50_usize, way in 0..5_usize,
    ) {
        let (payload, packing) = (piece.repeat(times), &packings()[way]);
        let stored = encode(outcome, &header, KEY, &payload, packing).unwrap();
        prop_assert_eq!(
            decode(&stored, KEY, SCHEMA, packing),
            Ok(Stored::Outcome(outcome, header, payload.into()))
        );
    }

    #[test]
    fn no_changes_under_a_right_checksum_make_decoding_panic(
        way in 0..5_usize,
        changes in prop::collection::vec((0..400_usize, any::<u8>()), 1..6),
        cut in prop::option::of(HEADER_LEN..400_usize),
    ) {
        let packing = &packings()[way];
        let good = stored(&text(300), packing);
        let mut bytes = good.clone();
        bytes.truncate(cut.unwrap_or(usize::MAX));
        for (at, byte) in changes {
            if let Some(there) = bytes.get_mut(at) {
                *there = byte;
            }
        }
        let bytes = with_checksum(bytes, KEY.hash);
        let usable = decode(&bytes, KEY, SCHEMA, packing).is_ok();
        prop_assert!(!usable || packing.seal.is_none() || bytes == good);
    }

    #[test]
    fn no_bytes_make_expanding_panic_or_take_more_than_they_claim(
        way in 1..4_u8, claimed in 0..100_000_u32, rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let bytes = [&[way], &claimed.to_be_bytes()[..], &rest].concat();
        if let Ok(payload) = expand(&bytes) {
            prop_assert_eq!(payload.len(), claimed as usize);
        }
    }
}
