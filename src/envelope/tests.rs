//! Envelopes: what is written is read, and nothing else is.

#[cfg(all(feature = "lz4", feature = "zstd", feature = "seal"))]
mod packed;

use proptest::prelude::*;

use super::*;

const KEY: HashedKey<'_> = HashedKey {
    hash: 7,
    bytes: b"42",
};
const SCHEMA: u32 = 3;
const PLAIN: Packing = Packing {
    compression: None,
    compress_above: 0,
    seal: None,
};

fn lease() -> impl Strategy<Value = Lease> {
    any::<(u64, u64, u64)>().prop_map(|(token, epoch, seq)| Lease {
        token,
        began: Position {
            epoch: Epoch(epoch),
            seq,
        },
    })
}

fn header() -> impl Strategy<Value = Header> {
    let tags = prop::collection::vec(any::<[u64; 4]>().prop_map(version), 0..4);
    let at = any::<(u64, u64, u32, Option<u64>)>();
    (lease(), at, tags).prop_map(|(lease, at, tags)| Header {
        lease,
        loaded_ms: at.0 ^ at.1,
        expires_ms: at.0,
        soft_expires_ms: at.1,
        load_us: at.2,
        schema: SCHEMA,
        version: at.3,
        tags,
    })
}

fn version([name, key, epoch, seq]: [u64; 4]) -> TagVersion {
    TagVersion {
        carried: Carried {
            tag: TagHash { name, key },
            soft: seq % 2 == 1,
        },
        at: Position {
            epoch: Epoch(epoch),
            seq: seq >> 1,
        },
    }
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop::sample::select(&[Outcome::Value, Outcome::Error][..])
}

fn a_header() -> Header {
    Header {
        lease: Lease {
            token: 1,
            began: Position {
                epoch: Epoch(2),
                seq: 3,
            },
        },
        loaded_ms: 3,
        expires_ms: 4,
        soft_expires_ms: 5,
        load_us: 6,
        schema: SCHEMA,
        version: None,
        tags: vec![],
    }
}

#[test]
fn every_single_bit_flip_and_truncation_of_an_outcome_is_unusable() {
    let mut header = a_header();
    for tags in [
        vec![],
        vec![version([8, 9, 10, 11]), version([12, 12, 13, 14])],
    ] {
        header.tags = tags;
        for payload in [&b""[..], b"p", &[0; 40], &[7; 300]] {
            let good = encode(Outcome::Value, &header, KEY, payload, &PLAIN).unwrap();
            for len in 0..good.len() {
                assert!(
                    decode(&good[..len], KEY, SCHEMA, &PLAIN).is_err(),
                    "cut at {len}"
                );
            }
            for bit in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(
                    decode(&bad, KEY, SCHEMA, &PLAIN).is_err(),
                    "bit {bit} flipped"
                );
            }
        }
    }
}

#[test]
fn each_reason_is_told_apart() {
    let good = encode(Outcome::Value, &a_header(), KEY, b"payload", &PLAIN).unwrap();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        decode(&bytes, KEY, SCHEMA, &PLAIN).unwrap_err()
    };
    assert_eq!(with(0, 0), Unusable::Magic);
    assert_eq!(with(1, 2), Unusable::Version(2));
    assert_eq!(with(2, 4), Unusable::State(4));
    assert_eq!(with(2, 3), Unusable::Length);
    assert_eq!(with(3, 2), Unusable::Codec(2));
    assert_eq!(with(50, 1), Unusable::Checksum);
    assert_eq!(
        decode(&good, KEY, 9, &PLAIN),
        Err(Unusable::Schema { found: SCHEMA })
    );
    assert_eq!(
        decode(&good[..27], KEY, SCHEMA, &PLAIN),
        Err(Unusable::Length)
    );
    assert_eq!(
        decode(&good[..28], KEY, SCHEMA, &PLAIN),
        Err(Unusable::Checksum)
    );

    // A later version set a flag, and the checksum with it.
    let mut flagged = good[..good.len() - CHECKSUM_LEN].to_vec();
    flagged[61] = 16;
    flagged.extend(xxh3_64_with_seed(&flagged, KEY.hash).to_be_bytes());
    assert_eq!(
        decode(&flagged, KEY, SCHEMA, &PLAIN),
        Err(Unusable::Flags(16))
    );
}

#[test]
fn a_key_that_is_stored_by_its_hash_is_compared_in_full() {
    let key = |bytes| HashedKey { hash: 7, bytes };
    let (long, other) = ([b'a'; 2000], [b'b'; 2000]);
    let stored = encode(Outcome::Error, &a_header(), key(&long), b"payload", &PLAIN).unwrap();
    assert_eq!(
        decode(&stored, key(&long), SCHEMA, &PLAIN),
        Ok(Stored::Outcome(
            Outcome::Error,
            a_header(),
            b"payload"[..].into()
        ))
    );
    assert_eq!(
        decode(&stored, key(&other), SCHEMA, &PLAIN),
        Err(Unusable::OtherKey)
    );
    // The key is missing although it is needed.
    let unnamed = encode(Outcome::Value, &a_header(), KEY, b"payload", &PLAIN).unwrap();
    assert_eq!(
        decode(&unnamed, key(&long), SCHEMA, &PLAIN),
        Err(Unusable::OtherKey)
    );
}

#[test]
fn no_tag_is_ever_dropped_to_make_the_header_fit() {
    let mut header = a_header();
    header.tags = vec![version([1, 2, 3, 4]); 65_535];
    let stored = encode(Outcome::Value, &header, KEY, b"", &PLAIN).unwrap();
    assert!(decode(&stored, KEY, SCHEMA, &PLAIN).is_ok());
    header.tags.push(version([1, 2, 3, 4]));
    assert!(encode(Outcome::Value, &header, KEY, b"", &PLAIN).is_err());
}

proptest! {
    #[test]
    fn outcomes_round_trip(outcome in outcome(), header in header(), payload: Vec<u8>) {
        let stored = encode(outcome, &header, KEY, &payload, &PLAIN).unwrap();
        prop_assert_eq!(decode(&stored, KEY, SCHEMA, &PLAIN), Ok(Stored::Outcome(outcome, header, payload.into())));
    }

    #[test]
    fn leases_round_trip(lease in lease(), waited_for in 0..2_u8) {
        let mut stored = lease.encode();
        stored[3] = waited_for;
        prop_assert_eq!(decode(&stored, KEY, SCHEMA, &PLAIN), Ok(Stored::Lease(lease)));
    }

    #[test]
    fn an_outcome_in_the_place_of_another_key_is_unusable(
        outcome in outcome(), header in header(), payload: Vec<u8>, hash: u64,
    ) {
        prop_assume!(hash != KEY.hash);
        let stored = encode(outcome, &header, KEY, &payload, &PLAIN).unwrap();
        let elsewhere = HashedKey { hash, ..KEY };
        prop_assert_eq!(decode(&stored, elsewhere, SCHEMA, &PLAIN), Err(Unusable::Checksum));
    }

    #[test]
    fn no_bytes_make_decoding_panic(
        start in prop::sample::select(vec![&b""[..], &[MAGIC, VERSION, 1, 1], &[MAGIC, VERSION, 3]]),
        rest in prop::collection::vec(any::<u8>(), 0..120),
        sound: bool,
    ) {
        let mut bytes = [start, &rest].concat();
        if sound {
            bytes.extend(xxh3_64_with_seed(&bytes, KEY.hash).to_be_bytes());
        }
        let _ = decode(&bytes, KEY, SCHEMA, &PLAIN);
        let _ = decode(&bytes, HashedKey { hash: KEY.hash, bytes: &[0; 500] }, SCHEMA, &PLAIN);
    }
}
