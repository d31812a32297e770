//! Payloads made smaller: the way in one byte, the length as it was in four, the compressed bytes.
//!
//! What comes back from the store may claim anything. The claimed length is held against a limit and
//! against what so many compressed bytes can stand for at most, before memory is asked for.

use super::Unusable;
use crate::error::BuildError;

#[cfg(feature = "lz4")]
const LZ4: u8 = 1;
#[cfg(feature = "zstd")]
const ZSTD: u8 = 2;
pub(super) const HEAD_LEN: usize = 5;

/// The longest payload that is compressed, and the most that one is expanded to: 64 MiB, far above what
/// is sensible to keep in a cache, and little enough that a forged value does not end a pod.
const MAX_LEN: usize = 64 << 20;
/// An LZ4 length grows by at most 255 for each byte that states it.
#[cfg(feature = "lz4")]
const LZ4_BYTE_EXPANDS_TO: usize = 255;
/// The shortest zstd block is four bytes, and the longest stands for 128 KiB.
#[cfg(feature = "zstd")]
const ZSTD_BYTE_EXPANDS_TO: usize = (128 << 10) / 4;

/// How values are made smaller in the store; see
/// [`EntityBuilder::compress`](crate::EntityBuilder::compress).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// LZ4: quick, and text becomes two to three times smaller (feature `lz4`).
    #[cfg(feature = "lz4")]
    Lz4,
    /// Zstandard: smaller, for more work (feature `zstd`).
    #[cfg(feature = "zstd")]
    Zstd {
        /// The higher, the smaller and slower: 1 to 22, and 3 is a good choice. Negative ones are
        /// quicker than 1; 0 stands for zstd's own default.
        level: i32,
    },
}

impl Compression {
    /// Whether the level is one that zstd has.
    pub(crate) fn check(self) -> Result<(), BuildError> {
        match self {
            #[cfg(feature = "lz4")]
            Self::Lz4 => Ok(()),
            #[cfg(feature = "zstd")]
            Self::Zstd { level } if zstd::compression_level_range().contains(&level) => Ok(()),
            #[cfg(feature = "zstd")]
            Self::Zstd { .. } => Err(BuildError::new(
                "compress",
                "zstd has no such level: it goes up to 22",
            )),
        }
    }

    /// The compressed form, if it is smaller.
    pub(super) fn compress(self, payload: &[u8]) -> Option<Vec<u8>> {
        let len = u32::try_from(payload.len()).ok()?;
        if payload.len() > MAX_LEN {
            return None; // nobody would read it
        }
        let (way, compressed) = match self {
            #[cfg(feature = "lz4")]
            Self::Lz4 => (LZ4, lz4_flex::block::compress(payload)),
            // It fails for want of memory alone, and then the payload is stored as it is.
            #[cfg(feature = "zstd")]
            Self::Zstd { level } => (ZSTD, zstd::bulk::compress(payload, level).ok()?),
        };
        (HEAD_LEN + compressed.len() < payload.len())
            .then(|| [&[way], &len.to_be_bytes()[..], &compressed].concat())
    }
}

/// The payload behind a compressed form.
///
/// # Errors
/// If it was compressed in a way that is not built in, or is not what it claims to be.
pub(super) fn expand(bytes: &[u8]) -> Result<Vec<u8>, Unusable> {
    let (&[way, a, b, c, d], compressed) = bytes.split_first_chunk().ok_or(Unusable::Length)?;
    let claimed = u32::from_be_bytes([a, b, c, d]);
    let len = usize::try_from(claimed).map_err(|_| Unusable::Expansion)?;
    let expand = match way {
        #[cfg(feature = "lz4")]
        LZ4 => expand_lz4,
        #[cfg(feature = "zstd")]
        ZSTD => expand_zstd,
        _ => return Err(Unusable::Compression(way)),
    };
    let payload = expand(compressed, len).ok_or(Unusable::Expansion)?;
    match payload.len() == len {
        true => Ok(payload),
        false => Err(Unusable::Expansion),
    }
}

/// Whether `compressed` may stand for `len` bytes, if each of its bytes stands for `each` at most.
fn is_plausible(compressed: &[u8], len: usize, each: usize) -> bool {
    len <= MAX_LEN.min(compressed.len().saturating_mul(each))
}

#[cfg(feature = "lz4")]
fn expand_lz4(compressed: &[u8], len: usize) -> Option<Vec<u8>> {
    if !is_plausible(compressed, len, LZ4_BYTE_EXPANDS_TO) {
        return None;
    }
    let mut payload = vec![0; len];
    let written = lz4_flex::block::decompress_into(compressed, &mut payload).ok()?;
    (written == len).then_some(payload)
}

#[cfg(feature = "zstd")]
fn expand_zstd(compressed: &[u8], len: usize) -> Option<Vec<u8>> {
    if !is_plausible(compressed, len, ZSTD_BYTE_EXPANDS_TO) {
        return None;
    }
    // At once rather than as a stream: a window of the frame's choice is never set up.
    zstd::bulk::decompress(compressed, len).ok()
}
