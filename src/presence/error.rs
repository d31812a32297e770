//! Why a member could not join or be updated.

use super::{MAX_META, MAX_NAME};
use crate::codec::CodecError;
use crate::error::{StoreError, StoreErrorKind};

/// A member could not join, or its meta not be changed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PresenceError {
    /// The backing store could not do it.
    #[error("backing store failed")]
    Store(#[source] StoreError),
    /// The meta could not be encoded.
    #[error("meta could not be encoded")]
    Codec(#[source] CodecError),
    /// The member's name has no bytes, or more than 256.
    #[error("member's name of {len} bytes is not within 1 to {MAX_NAME}")]
    Name {
        /// The bytes it has.
        len: usize,
    },
    /// The encoded meta is longer than [`MAX_META`].
    #[error("meta of {len} bytes is over the limit of {MAX_META}")]
    MetaTooLarge {
        /// The bytes it takes.
        len: usize,
    },
    /// The cache was closed.
    #[error("cache closed")]
    Closed,
}

impl From<StoreError> for PresenceError {
    fn from(error: StoreError) -> Self {
        match error.kind() {
            StoreErrorKind::Closed => Self::Closed,
            _ => Self::Store(error),
        }
    }
}
