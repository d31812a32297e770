//! A value that is to be left in the store, with the invalidation of its key.

use crate::coherence::{Epoch, Lane};
use crate::store::{Place, Put};
use bytes::Bytes;
use std::time::Duration;

/// A [`Put`] and where it belongs. It goes with the first attempt at its call alone: what is repeated is
/// the invalidation, which is never wrong.
#[derive(Debug)]
pub(crate) struct OwnedPut {
    pub(crate) hash: u64,
    pub(crate) key: Bytes,
    pub(crate) version: u64,
    pub(crate) epoch: Epoch,
    pub(crate) envelope: Vec<u8>,
    pub(crate) ttl: Option<Duration>,
}

impl OwnedPut {
    pub(super) fn place<'a>(&'a self, lane: Lane, entity: &'a str) -> Place<'a> {
        Place {
            lane,
            hash: self.hash,
            entity,
            key: &self.key,
        }
    }

    pub(super) fn put(&self) -> Put<'_> {
        Put {
            version: self.version,
            epoch: self.epoch,
            envelope: &self.envelope,
            ttl: self.ttl,
        }
    }
}
