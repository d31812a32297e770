//! Payloads that only pods with the key can read, and nobody else can change: XChaCha20-Poly1305.
//!
//! Sealed is what follows the tags: the key field, if any, and the payload. Authenticated with it are
//! everything before it, the namespace, the entity and the canonical key, so that a sealed value opens
//! in its own place and under its own header alone. `docs/decisions/seal.md` has the reasons.

use super::Unusable;
use crate::codec::CodecError;
use crate::error::BuildError;
use chacha20poly1305::{AeadInOut, KeyInit, Tag, XChaCha20Poly1305, XNonce};
use std::fmt;
use std::sync::Arc;

const KEY_ID_LEN: usize = 4;
/// Long enough to be drawn at random for ever: after 2^80 values the odds of a repetition are 2^-33.
const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;
/// By how much a sealed envelope is longer.
pub(super) const EXTRA_LEN: usize = KEY_ID_LEN + NONCE_LEN + TAG_LEN;

/// Keys that values are sealed with in the store; see
/// [`CacheBuilder::seal`](crate::CacheBuilder::seal). Cheap to clone.
///
/// The first key seals, all of them open. Each has an id of your choice, which is stored with every
/// value in clear. The keys are 32 random bytes each, not passwords; they are overwritten in memory
/// when the last clone goes, and never appear in `Debug`.
///
/// ```
/// # let (march, june) = ([3; 32], [6; 32]);
/// use tidings::KeyRing;
///
/// // Seals with key 2, and still opens what was sealed with key 1.
/// let ring = KeyRing::new(2, &june).and(1, &march);
/// assert_eq!(format!("{ring:?}"), "KeyRing { seals: 2, opens: [2, 1] }");
/// ```
#[derive(Clone)]
pub struct KeyRing {
    seals: Arc<RingKey>,
    others: Vec<Arc<RingKey>>,
}

/// The cipher holds the key, and wipes it when it is dropped.
struct RingKey {
    id: u32,
    cipher: XChaCha20Poly1305,
}

impl RingKey {
    fn new(id: u32, key: &[u8; 32]) -> Arc<Self> {
        let cipher = XChaCha20Poly1305::new(key.into());
        Arc::new(Self { id, cipher })
    }
}

impl KeyRing {
    /// A ring with one key, which seals and opens.
    #[must_use]
    pub fn new(id: u32, key: &[u8; 32]) -> Self {
        Self {
            seals: RingKey::new(id, key),
            others: Vec::new(),
        }
    }

    /// The same with another key, which opens. An id that is on the ring already is an error of `build`.
    #[must_use]
    pub fn and(mut self, id: u32, key: &[u8; 32]) -> Self {
        self.others.push(RingKey::new(id, key));
        self
    }

    fn keys(&self) -> impl Iterator<Item = &RingKey> {
        [&self.seals]
            .into_iter()
            .chain(&self.others)
            .map(|key| &**key)
    }

    /// Whether each id stands for one key.
    pub(crate) fn check(&self) -> Result<(), BuildError> {
        for (at, key) in self.keys().enumerate() {
            if self.keys().take(at).any(|other| other.id == key.id) {
                let reason = format!("key id {} is on the ring twice", key.id);
                return Err(BuildError::new("seal", reason));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let opens: Vec<_> = self.keys().map(|key| key.id).collect();
        f.debug_struct("KeyRing")
            .field("seals", &self.seals.id)
            .field("opens", &opens)
            .finish()
    }
}

/// Where nonces come from.
type Draw = fn(&mut [u8; NONCE_LEN]) -> Result<(), getrandom::Error>;

/// Seals and opens the values of one entity.
#[derive(Clone, Debug)]
pub(crate) struct Seal {
    ring: KeyRing,
    /// Namespace and entity, each behind its length: one part of what is authenticated.
    scope: Vec<u8>,
    draw: Draw,
}

impl Seal {
    /// Of `entity` in `namespace`.
    pub(crate) fn new(ring: KeyRing, namespace: &str, entity: &str) -> Self {
        let mut scope = Vec::new();
        for name in [namespace, entity] {
            scope.extend((name.len() as u64).to_be_bytes());
            scope.extend(name.as_bytes());
        }
        Self {
            ring,
            scope,
            draw: |nonce| getrandom::fill(nonce),
        }
    }

    /// The same with nonces from `draw`, for bytes that are to be known beforehand.
    #[cfg(test)]
    pub(crate) fn drawing(self, draw: Draw) -> Self {
        Self { draw, ..self }
    }

    /// Appends to `out`, which holds a header, what `content` appends, sealed for `key`.
    pub(super) fn seal(
        &self,
        out: &mut Vec<u8>,
        key: &[u8],
        content: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), CodecError> {
        let mut nonce = [0; NONCE_LEN];
        (self.draw)(&mut nonce).map_err(CodecError::no_nonce)?;
        out.extend(self.ring.seals.id.to_be_bytes());
        let identity = self.identity(out, key);
        out.extend(nonce);
        let start = out.len();
        content(out);
        let tag = self
            .ring
            .seals
            .cipher
            .encrypt_inout_detached(&nonce.into(), &identity, (&mut out[start..]).into())
            .map_err(|_| CodecError::too_large("value"))?;
        out.extend(tag);
        Ok(())
    }

    /// What was sealed for `key` behind `header`.
    pub(super) fn open(
        &self,
        header: &[u8],
        sealed: &[u8],
        key: &[u8],
    ) -> Result<Vec<u8>, Unusable> {
        let (id, rest) = sealed.split_first_chunk().ok_or(Unusable::Length)?;
        let (nonce, rest) = rest
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(Unusable::Length)?;
        let (content, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(Unusable::Length)?;
        let id = u32::from_be_bytes(*id);
        let found = self.ring.keys().find(|key| key.id == id);
        let cipher = &found.ok_or(Unusable::UnknownKey(id))?.cipher;
        let mut head = Vec::with_capacity(header.len() + KEY_ID_LEN);
        head.extend(header);
        head.extend(id.to_be_bytes());
        let identity = self.identity(&head, key);
        let mut content = content.to_vec();
        let (nonce, tag): (&XNonce, &Tag) = (nonce.into(), tag.into());
        cipher
            .decrypt_inout_detached(nonce, &identity, content.as_mut_slice().into(), tag)
            .map_err(|_| Unusable::Forged)?;
        Ok(content)
    }

    /// What a value is authenticated with. Unambiguous: the header says how many tags it has, the names
    /// are behind their lengths, and the key is what is left.
    fn identity(&self, head: &[u8], key: &[u8]) -> Vec<u8> {
        [head, &self.scope, key].concat()
    }
}
