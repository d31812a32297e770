//! What is stored under a physical key: an outcome with its header, or a lease.
//!
//! Bytes that cannot be used are a miss, never an error and never another value: they may be cut,
//! changed, copied from another key, or written by a later version. Each way has a name in
//! [`Unusable`], for the metrics. The checksum is seeded with the key's hash, so that a sound envelope
//! in the wrong place fails it too. `docs/wire-format.md` is the specification.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::codec::CodecError;
use crate::coherence::{Epoch, Position};
use crate::key::HashedKey;

const MAGIC: u8 = 0xD7;
const VERSION: u8 = 1;
const STATE_VALUE: u8 = 1;
const STATE_ERROR: u8 = 2;
const STATE_LEASE: u8 = 3;
const CODEC_MESSAGE_PACK: u8 = 1;
/// The key follows the tags, because the physical key holds only its hash.
const FLAG_KEY: u16 = 1;

/// Length of a stored lease in bytes: what all states have in common.
pub(crate) const LEASE_LEN: usize = 28;
/// Length of a header without tags and key.
const HEADER_LEN: usize = 64;
const CHECKSUM_LEN: usize = 8;

/// Who is loading a key, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Names this load; a fill lands only where it is still found.
    pub(crate) token: u64,
    /// The lane's head as the load began.
    pub(crate) began: Position,
}

/// Whether the payload is what the loader returned or how it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Value,
    Error,
}

/// What is known of a stored outcome beside the outcome itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The lease under which it was filled.
    pub(crate) lease: Lease,
    /// When its load began: the server's clock, Unix milliseconds.
    pub(crate) loaded_ms: u64,
    /// The end of its life: the server's clock, Unix milliseconds; 0 for never.
    pub(crate) expires_ms: u64,
    /// From when on it is stale, by the same clock; 0 if it is not before it expires.
    pub(crate) soft_expires_ms: u64,
    /// How long the load took, in microseconds, saturating.
    pub(crate) load_us: u32,
    /// The user's number for the shape of the value.
    pub(crate) schema: u32,
    /// Hash and version of each tag as the load began.
    pub(crate) tags: Vec<(u64, u64)>,
}

/// What a physical key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stored<'a> {
    Outcome(Outcome, Header, &'a [u8]),
    Lease(Lease),
}

/// Why stored bytes are treated as a miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("stored bytes have the wrong length")]
    Length,
    #[error("stored bytes are not an envelope")]
    Magic,
    #[error("envelope version {0} is unknown")]
    Version(u8),
    #[error("envelope state {0} is unknown")]
    State(u8),
    #[error("envelope codec {0} is unknown")]
    Codec(u8),
    #[error("envelope flags {0:#06x} are unknown")]
    Flags(u16),
    #[error("stored bytes were changed, or belong to another key")]
    Checksum,
    #[error("value has schema {found}")]
    Schema { found: u32 },
    #[error("value belongs to another key with the same hash")]
    OtherKey,
}

impl Lease {
    /// The stored form.
    pub(crate) fn encode(&self) -> [u8; LEASE_LEN] {
        common(STATE_LEASE, 0, self)
    }
}

fn common(state: u8, codec: u8, lease: &Lease) -> [u8; LEASE_LEN] {
    let mut out = [0; LEASE_LEN];
    out[..4].copy_from_slice(&[MAGIC, VERSION, state, codec]);
    out[4..12].copy_from_slice(&lease.token.to_be_bytes());
    out[12..20].copy_from_slice(&lease.began.epoch.0.to_be_bytes());
    out[20..28].copy_from_slice(&lease.began.seq.to_be_bytes());
    out
}

/// The stored form of an outcome of `key`, with its MessagePack `payload`.
///
/// # Errors
/// If there are more than 65,535 tags, or the key is over 4 GiB: dropping a tag would hide the entry
/// from that tag's invalidations.
pub(crate) fn encode(
    outcome: Outcome,
    header: &Header,
    key: HashedKey<'_>,
    payload: &[u8],
) -> Result<Vec<u8>, CodecError> {
    let abridged = key.is_abridged();
    let tags = u16::try_from(header.tags.len()).map_err(|_| CodecError::too_large("tag count"))?;
    let state = match outcome {
        Outcome::Value => STATE_VALUE,
        Outcome::Error => STATE_ERROR,
    };
    let key_room = if abridged { 4 + key.bytes.len() } else { 0 };
    let room = HEADER_LEN + 16 * header.tags.len() + key_room + payload.len() + CHECKSUM_LEN;

    let mut out = Vec::with_capacity(room);
    out.extend(common(state, CODEC_MESSAGE_PACK, &header.lease));
    out.extend(header.loaded_ms.to_be_bytes());
    out.extend(header.expires_ms.to_be_bytes());
    out.extend(header.soft_expires_ms.to_be_bytes());
    out.extend(header.load_us.to_be_bytes());
    out.extend(header.schema.to_be_bytes());
    out.extend(if abridged { FLAG_KEY } else { 0 }.to_be_bytes());
    out.extend(tags.to_be_bytes());
    for (hash, version) in &header.tags {
        out.extend(hash.to_be_bytes());
        out.extend(version.to_be_bytes());
    }
    if abridged {
        let len = u32::try_from(key.bytes.len()).map_err(|_| CodecError::too_large("key"))?;
        out.extend(len.to_be_bytes());
        out.extend(key.bytes);
    }
    out.extend(payload);
    out.extend(xxh3_64_with_seed(&out, key.hash).to_be_bytes());
    Ok(out)
}

/// Reads what is stored under `key`, borrowing the payload. Costs one pass over the bytes for the
/// checksum; allocates only for tags.
///
/// # Errors
/// Why the bytes are of no use; they are to be treated as a miss.
pub(crate) fn decode<'a>(
    bytes: &'a [u8],
    key: HashedKey<'_>,
    schema: u32,
) -> Result<Stored<'a>, Unusable> {
    let (common, rest) = bytes.split_first_chunk().ok_or(Unusable::Length)?;
    let (state, codec, lease) = decode_common(common)?;
    let outcome = match state {
        STATE_VALUE => Outcome::Value,
        STATE_ERROR => Outcome::Error,
        STATE_LEASE if rest.is_empty() => return Ok(Stored::Lease(lease)),
        STATE_LEASE => return Err(Unusable::Length),
        other => return Err(Unusable::State(other)),
    };
    if codec != CODEC_MESSAGE_PACK {
        return Err(Unusable::Codec(codec));
    }
    let (body, checksum) = bytes.split_last_chunk().ok_or(Unusable::Length)?;
    if xxh3_64_with_seed(body, key.hash) != u64::from_be_bytes(*checksum) {
        return Err(Unusable::Checksum);
    }
    // From here on the bytes are as they were written for a key with this hash.
    let body = body.get(LEASE_LEN..).ok_or(Unusable::Length)?;
    let (header, payload) = decode_header(lease, body, key)?;
    if header.schema != schema {
        return Err(Unusable::Schema {
            found: header.schema,
        });
    }
    Ok(Stored::Outcome(outcome, header, payload))
}

/// State, codec and lease from the part that all states have in common.
fn decode_common(bytes: &[u8; LEASE_LEN]) -> Result<(u8, u8, Lease), Unusable> {
    let (&[magic, version, state, codec], mut rest) =
        bytes.split_first_chunk().ok_or(Unusable::Length)?;
    if magic != MAGIC {
        return Err(Unusable::Magic);
    }
    if version != VERSION {
        return Err(Unusable::Version(version));
    }
    let token = u64::from_be_bytes(take(&mut rest)?);
    let epoch = Epoch(u64::from_be_bytes(take(&mut rest)?));
    let seq = u64::from_be_bytes(take(&mut rest)?);
    let began = Position { epoch, seq };
    Ok((state, codec, Lease { token, began }))
}

/// The rest of the header, and the payload behind it.
fn decode_header<'a>(
    lease: Lease,
    mut rest: &'a [u8],
    key: HashedKey<'_>,
) -> Result<(Header, &'a [u8]), Unusable> {
    let mut header = Header {
        lease,
        loaded_ms: u64::from_be_bytes(take(&mut rest)?),
        expires_ms: u64::from_be_bytes(take(&mut rest)?),
        soft_expires_ms: u64::from_be_bytes(take(&mut rest)?),
        load_us: u32::from_be_bytes(take(&mut rest)?),
        schema: u32::from_be_bytes(take(&mut rest)?),
        tags: Vec::new(),
    };
    let flags = u16::from_be_bytes(take(&mut rest)?);
    if flags & !FLAG_KEY != 0 {
        return Err(Unusable::Flags(flags));
    }
    let tags = usize::from(u16::from_be_bytes(take(&mut rest)?));
    let mut tag_bytes = take_slice(&mut rest, 16 * tags)?;
    header.tags.reserve_exact(tags);
    while !tag_bytes.is_empty() {
        let hash = u64::from_be_bytes(take(&mut tag_bytes)?);
        let version = u64::from_be_bytes(take(&mut tag_bytes)?);
        header.tags.push((hash, version));
    }
    let named = flags & FLAG_KEY != 0;
    if named {
        let len = u32::from_be_bytes(take(&mut rest)?);
        let len = usize::try_from(len).map_err(|_| Unusable::Length)?;
        if take_slice(&mut rest, len)? != key.bytes {
            return Err(Unusable::OtherKey);
        }
    } else if key.is_abridged() {
        return Err(Unusable::OtherKey);
    }
    Ok((header, rest))
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], Unusable> {
    let (head, tail) = bytes.split_first_chunk().ok_or(Unusable::Length)?;
    *bytes = tail;
    Ok(*head)
}

fn take_slice<'a>(bytes: &mut &'a [u8], len: usize) -> Result<&'a [u8], Unusable> {
    let (head, tail) = bytes.split_at_checked(len).ok_or(Unusable::Length)?;
    *bytes = tail;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: HashedKey<'_> = HashedKey {
        hash: 7,
        bytes: b"42",
    };
    const SCHEMA: u32 = 3;

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
        let tags = prop::collection::vec(any::<(u64, u64)>(), 0..4);
        (lease(), any::<(u64, u64, u32)>(), tags).prop_map(|(lease, at, tags)| Header {
            lease,
            loaded_ms: at.0 ^ at.1,
            expires_ms: at.0,
            soft_expires_ms: at.1,
            load_us: at.2,
            schema: SCHEMA,
            tags,
        })
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
            tags: vec![],
        }
    }

    #[test]
    fn every_single_bit_flip_and_truncation_of_an_outcome_is_unusable() {
        let mut header = a_header();
        for tags in [vec![], vec![(8, 9), (10, 11)]] {
            header.tags = tags;
            for payload in [&b""[..], b"p", &[0; 40], &[7; 300]] {
                let good = encode(Outcome::Value, &header, KEY, payload).unwrap();
                for len in 0..good.len() {
                    assert!(decode(&good[..len], KEY, SCHEMA).is_err(), "cut at {len}");
                }
                for bit in 0..good.len() * 8 {
                    let mut bad = good.clone();
                    bad[bit / 8] ^= 1 << (bit % 8);
                    assert!(decode(&bad, KEY, SCHEMA).is_err(), "bit {bit} flipped");
                }
            }
        }
    }

    #[test]
    fn each_reason_is_told_apart() {
        let good = encode(Outcome::Value, &a_header(), KEY, b"payload").unwrap();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            decode(&bytes, KEY, SCHEMA).unwrap_err()
        };
        assert_eq!(with(0, 0), Unusable::Magic);
        assert_eq!(with(1, 2), Unusable::Version(2));
        assert_eq!(with(2, 4), Unusable::State(4));
        assert_eq!(with(2, 3), Unusable::Length);
        assert_eq!(with(3, 2), Unusable::Codec(2));
        assert_eq!(with(50, 1), Unusable::Checksum);
        assert_eq!(
            decode(&good, KEY, 9),
            Err(Unusable::Schema { found: SCHEMA })
        );
        assert_eq!(decode(&good[..27], KEY, SCHEMA), Err(Unusable::Length));
        assert_eq!(decode(&good[..28], KEY, SCHEMA), Err(Unusable::Checksum));

        // A later version set a flag, and the checksum with it.
        let mut flagged = good[..good.len() - CHECKSUM_LEN].to_vec();
        flagged[61] = 2;
        flagged.extend(xxh3_64_with_seed(&flagged, KEY.hash).to_be_bytes());
        assert_eq!(decode(&flagged, KEY, SCHEMA), Err(Unusable::Flags(2)));
    }

    #[test]
    fn a_key_that_is_stored_by_its_hash_is_compared_in_full() {
        let key = |bytes| HashedKey { hash: 7, bytes };
        let (long, other) = ([b'a'; 2000], [b'b'; 2000]);
        let stored = encode(Outcome::Error, &a_header(), key(&long), b"payload").unwrap();
        assert_eq!(
            decode(&stored, key(&long), SCHEMA),
            Ok(Stored::Outcome(Outcome::Error, a_header(), b"payload"))
        );
        assert_eq!(
            decode(&stored, key(&other), SCHEMA),
            Err(Unusable::OtherKey)
        );
        // The key is missing although it is needed.
        let unnamed = encode(Outcome::Value, &a_header(), KEY, b"payload").unwrap();
        assert_eq!(
            decode(&unnamed, key(&long), SCHEMA),
            Err(Unusable::OtherKey)
        );
    }

    #[test]
    fn no_tag_is_ever_dropped_to_make_the_header_fit() {
        let mut header = a_header();
        header.tags = vec![(1, 2); 65_535];
        let stored = encode(Outcome::Value, &header, KEY, b"").unwrap();
        assert!(decode(&stored, KEY, SCHEMA).is_ok());
        header.tags.push((1, 2));
        assert!(encode(Outcome::Value, &header, KEY, b"").is_err());
    }

    proptest! {
        #[test]
        fn outcomes_round_trip(outcome in outcome(), header in header(), payload: Vec<u8>) {
            let stored = encode(outcome, &header, KEY, &payload).unwrap();
            prop_assert_eq!(decode(&stored, KEY, SCHEMA), Ok(Stored::Outcome(outcome, header, &payload)));
        }

        #[test]
        fn leases_round_trip(lease in lease(), waited_for in 0..2_u8) {
            let mut stored = lease.encode();
            stored[3] = waited_for;
            prop_assert_eq!(decode(&stored, KEY, SCHEMA), Ok(Stored::Lease(lease)));
        }

        #[test]
        fn an_outcome_in_the_place_of_another_key_is_unusable(
            outcome in outcome(), header in header(), payload: Vec<u8>, hash: u64,
        ) {
            prop_assume!(hash != KEY.hash);
            let stored = encode(outcome, &header, KEY, &payload).unwrap();
            let elsewhere = HashedKey { hash, ..KEY };
            prop_assert_eq!(decode(&stored, elsewhere, SCHEMA), Err(Unusable::Checksum));
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
            let _ = decode(&bytes, KEY, SCHEMA);
            let _ = decode(&bytes, HashedKey { hash: KEY.hash, bytes: &[0; 500] }, SCHEMA);
        }
    }
}
