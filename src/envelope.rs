//! What is stored under a physical key: an outcome with its header, or a lease.
//!
//! Bytes that cannot be used are a miss, never an error and never another value: they may be cut,
//! changed, copied from another key, or written by a later version. Each way has a name in
//! [`Unusable`], for the metrics. The checksum is seeded with the key's hash, so that a sound envelope
//! in the wrong place fails it too. Payloads may be compressed, and sealed after that, as the entity's
//! [`Packing`] says. `docs/wire-format.md` is the specification.

#[cfg(any(feature = "lz4", feature = "zstd"))]
mod compression;
#[cfg(feature = "seal")]
mod seal;
mod without;

#[cfg(any(feature = "lz4", feature = "zstd"))]
pub use compression::Compression;
#[cfg(feature = "seal")]
pub use seal::KeyRing;
pub(crate) use seal::Seal;
#[cfg(not(any(feature = "lz4", feature = "zstd")))]
use without::compression;
#[cfg(not(any(feature = "lz4", feature = "zstd")))]
pub(crate) use without::compression::Compression;
#[cfg(not(feature = "seal"))]
use without::seal;
#[cfg(not(feature = "seal"))]
pub(crate) use without::seal::KeyRing;

use std::borrow::Cow;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::codec::CodecError;
use crate::coherence::{Epoch, Position};
use crate::key::{Carried, HashedKey, TagHash};

const MAGIC: u8 = 0xD7;
pub(crate) const VERSION: u8 = 1;
const STATE_VALUE: u8 = 1;
const STATE_ERROR: u8 = 2;
const STATE_LEASE: u8 = 3;
const CODEC_MESSAGE_PACK: u8 = 1;
/// The key follows the tags, because the physical key holds only its hash.
const FLAG_KEY: u16 = 1;
/// The payload is compressed.
const FLAG_COMPRESSED: u16 = 2;
/// Key and payload are sealed.
const FLAG_SEALED: u16 = 4;
/// The version that the source gives the value comes before the tags.
const FLAG_VERSION: u16 = 8;
const KNOWN_FLAGS: u16 = FLAG_KEY | FLAG_COMPRESSED | FLAG_SEALED | FLAG_VERSION;

/// Length of a stored lease in bytes: what all states have in common.
pub(crate) const LEASE_LEN: usize = 28;
/// Length of a header without tags and key.
const HEADER_LEN: usize = 64;
const CHECKSUM_LEN: usize = 8;
const TAG_LEN: usize = 32;
/// Set in the number of a position, which has 48 bits, of a soft tag.
const SOFT: u64 = 1 << 63;

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
    /// What the source calls this state of the value: later ones have greater numbers.
    pub(crate) version: Option<u64>,
    /// What it is invalidated with.
    pub(crate) tags: Vec<TagVersion>,
}

/// A tag, and up to where the log of its lane says nothing against the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TagVersion {
    pub(crate) carried: Carried,
    /// No later than this the tag was not invalidated since the load began.
    pub(crate) at: Position,
}

/// What becomes of an entity's payloads on their way into the store. On the way out whatever is
/// compressed is expanded, but sealed is what the packing asks for, or of no use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Packing {
    pub(crate) compression: Option<Compression>,
    /// The longest payload that is not compressed.
    pub(crate) compress_above: usize,
    pub(crate) seal: Option<Seal>,
}

impl Packing {
    /// The payload as it is stored, and the flags that say so.
    fn pack<'a>(&self, payload: &'a [u8]) -> (Cow<'a, [u8]>, u16) {
        let compressed = match self.compression {
            Some(compression) if payload.len() > self.compress_above => {
                compression.compress(payload)
            }
            _ => None,
        };
        let sealed = if self.seal.is_some() { FLAG_SEALED } else { 0 };
        match compressed {
            Some(smaller) => (smaller.into(), FLAG_COMPRESSED | sealed),
            None => (payload.into(), sealed),
        }
    }

    /// What follows the tags, opened if it is sealed.
    fn open<'a>(
        &self,
        flags: u16,
        header: &[u8],
        rest: &'a [u8],
        key: &[u8],
    ) -> Result<Cow<'a, [u8]>, Unusable> {
        match (&self.seal, flags & FLAG_SEALED != 0) {
            (None, false) => Ok(rest.into()),
            (Some(seal), true) => seal.open(header, rest, key).map(Cow::from),
            (None, true) => Err(Unusable::Sealed),
            // Who can write to the store could have put it there.
            (Some(_), false) => Err(Unusable::NotSealed),
        }
    }
}

/// What a physical key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stored<'a> {
    Outcome(Outcome, Header, Cow<'a, [u8]>),
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
    #[error("value is compressed in way {0}, which this build cannot read")]
    Compression(u8),
    #[cfg(any(feature = "lz4", feature = "zstd"))]
    #[error("compressed value is not what it claims to be")]
    Expansion,
    #[error("value is sealed, and this entity has no keys")]
    Sealed,
    #[error("value is not sealed, as this entity demands")]
    NotSealed,
    #[cfg(feature = "seal")]
    #[error("value is sealed with key {0}, which is not on the ring")]
    UnknownKey(u32),
    #[cfg(feature = "seal")]
    #[error("sealed value was changed, or belongs to another key, entity or namespace")]
    Forged,
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
/// from that tag's invalidations. If it is to be sealed, and there is no randomness.
pub(crate) fn encode(
    outcome: Outcome,
    header: &Header,
    key: HashedKey<'_>,
    payload: &[u8],
    packing: &Packing,
) -> Result<Vec<u8>, CodecError> {
    let tags = u16::try_from(header.tags.len()).map_err(|_| CodecError::too_large("tag count"))?;
    let key_len = u32::try_from(key.bytes.len()).map_err(|_| CodecError::too_large("key"))?;
    let state = match outcome {
        Outcome::Value => STATE_VALUE,
        Outcome::Error => STATE_ERROR,
    };
    let (payload, flags) = packing.pack(payload);
    let (flags, key_room) = match key.is_abridged() {
        true => (flags | FLAG_KEY, 4 + key.bytes.len()),
        false => (flags, 0),
    };
    let flags = flags | header.version.map_or(0, |_| FLAG_VERSION);
    let extra = packing.seal.as_ref().map_or(0, |_| seal::EXTRA_LEN);
    let room = HEADER_LEN
        + 8 * usize::from(header.version.is_some())
        + TAG_LEN * header.tags.len()
        + key_room
        + payload.len()
        + extra;

    let mut out = Vec::with_capacity(room + CHECKSUM_LEN);
    out.extend(common(state, CODEC_MESSAGE_PACK, &header.lease));
    out.extend(header.loaded_ms.to_be_bytes());
    out.extend(header.expires_ms.to_be_bytes());
    out.extend(header.soft_expires_ms.to_be_bytes());
    out.extend(header.load_us.to_be_bytes());
    out.extend(header.schema.to_be_bytes());
    out.extend(flags.to_be_bytes());
    out.extend(tags.to_be_bytes());
    out.extend(
        header
            .version
            .iter()
            .flat_map(|version| version.to_be_bytes()),
    );
    for TagVersion { carried, at } in &header.tags {
        let Carried { tag, soft } = carried;
        let seq = if *soft { at.seq | SOFT } else { at.seq };
        let words = [tag.name, tag.key, at.epoch.0, seq];
        out.extend(words.iter().flat_map(|word| word.to_be_bytes()));
    }
    let content = |out: &mut Vec<u8>| {
        if flags & FLAG_KEY != 0 {
            out.extend(key_len.to_be_bytes());
            out.extend(key.bytes);
        }
        out.extend(&*payload);
    };
    match &packing.seal {
        Some(seal) => seal.seal(&mut out, key.bytes, content)?,
        None => content(&mut out),
    }
    out.extend(xxh3_64_with_seed(&out, key.hash).to_be_bytes());
    Ok(out)
}

/// The version of a stored value, if it has one, and no tags: as far as a store itself looks at it.
pub(crate) fn version_of(bytes: &[u8]) -> Option<u64> {
    const FLAGS_AT: usize = HEADER_LEN - 4;
    let is_value = bytes.first() == Some(&MAGIC) && bytes.get(2) == Some(&STATE_VALUE);
    let (_, mut rest) = bytes.split_at_checked(FLAGS_AT).filter(|_| is_value)?;
    let flags = u16::from_be_bytes(take(&mut rest).ok()?);
    let tags = u16::from_be_bytes(take(&mut rest).ok()?);
    let version = u64::from_be_bytes(take(&mut rest).ok()?);
    (flags & FLAG_VERSION != 0 && tags == 0).then_some(version)
}

/// Reads what is stored under `key`. Costs one pass over the bytes for the checksum; allocates only for
/// tags, and for a payload that is sealed or compressed.
///
/// # Errors
/// Why the bytes are of no use; they are to be treated as a miss.
pub(crate) fn decode<'a>(
    bytes: &'a [u8],
    key: HashedKey<'_>,
    schema: u32,
    packing: &Packing,
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
    // From here on the bytes are as they were written for a key with this hash, unless somebody means
    // ill: the checksum is no secret.
    let mut rest = body.get(LEASE_LEN..).ok_or(Unusable::Length)?;
    let (header, flags) = decode_header(lease, &mut rest)?;
    if header.schema != schema {
        return Err(Unusable::Schema {
            found: header.schema,
        });
    }
    let before = &body[..body.len() - rest.len()];
    let content = packing.open(flags, before, rest, key.bytes)?;
    let start = key_field_len(flags, &content, key)?;
    let payload = match content {
        _ if flags & FLAG_COMPRESSED != 0 => compression::expand(&content[start..])?.into(),
        Cow::Borrowed(content) => content[start..].into(),
        Cow::Owned(mut content) => {
            content.drain(..start);
            content.into()
        }
    };
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

/// The rest of the header and the flags, leaving what follows.
fn decode_header(lease: Lease, rest: &mut &[u8]) -> Result<(Header, u16), Unusable> {
    let mut header = Header {
        lease,
        loaded_ms: u64::from_be_bytes(take(rest)?),
        expires_ms: u64::from_be_bytes(take(rest)?),
        soft_expires_ms: u64::from_be_bytes(take(rest)?),
        load_us: u32::from_be_bytes(take(rest)?),
        schema: u32::from_be_bytes(take(rest)?),
        version: None,
        tags: Vec::new(),
    };
    let flags = u16::from_be_bytes(take(rest)?);
    if flags & !KNOWN_FLAGS != 0 {
        return Err(Unusable::Flags(flags));
    }
    let tags = usize::from(u16::from_be_bytes(take(rest)?));
    if flags & FLAG_VERSION != 0 {
        header.version = Some(u64::from_be_bytes(take(rest)?));
    }
    let mut tag_bytes = take_slice(rest, TAG_LEN * tags)?;
    header.tags.reserve_exact(tags);
    while !tag_bytes.is_empty() {
        let mut word = || take(&mut tag_bytes).map(u64::from_be_bytes);
        let tag = TagHash {
            name: word()?,
            key: word()?,
        };
        let (epoch, seq) = (Epoch(word()?), word()?);
        let at = Position {
            epoch,
            seq: seq & !SOFT,
        };
        let carried = Carried {
            tag,
            soft: seq & SOFT != 0,
        };
        header.tags.push(TagVersion { carried, at });
    }
    Ok((header, flags))
}

/// How long the key in front of the payload is with its length, if it is this key.
fn key_field_len(flags: u16, content: &[u8], key: HashedKey<'_>) -> Result<usize, Unusable> {
    let mut rest = content;
    if flags & FLAG_KEY != 0 {
        let len = u32::from_be_bytes(take(&mut rest)?);
        let len = usize::try_from(len).map_err(|_| Unusable::Length)?;
        if take_slice(&mut rest, len)? != key.bytes {
            return Err(Unusable::OtherKey);
        }
    } else if key.is_abridged() {
        return Err(Unusable::OtherKey);
    }
    Ok(content.len() - rest.len())
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
mod tests;
