//! Tags: the names that invalidations go by.

use super::{Key, KeySpace};
use crate::store::TagPlace;
use std::fmt;
use std::sync::Arc;

/// The name of something that can become invalid: `user`, all users; `user:42`, one of them.
///
/// There is one vocabulary of tags for everything. An entity is named by its own name, one of its keys
/// by name and key with a colon between, and a group by whatever you say (`org:7`). What stands after
/// the first colon is one key, in [canonical form](Key): `user:42` is the key `42` of the entity
/// `user`, be it a number or text. Any text is a tag.
///
/// Tags have two levels. To invalidate `user:42` is to invalidate a part of `user`, and to invalidate
/// `user` all of its parts: who watches `user` is told of both, who watches `user:42` of both, and
/// nobody who watches `user:43` of the first.
///
/// A bare name goes to all 16 lanes of the store, a name with a key to one: what there are many of
/// deserves a colon (`page:home`, not `page-home`).
///
/// ```
/// use tidings::Tag;
///
/// assert_eq!(Tag::from("user:42"), Tag::of("user", &42_u64));
/// assert_eq!(Tag::from("user:42").to_string(), "user:42");
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    name: Arc<str>,
    /// Canonical bytes.
    key: Option<Arc<[u8]>>,
}

impl Tag {
    /// The tag of one key of an entity or group.
    #[must_use]
    pub fn of(name: impl Into<Arc<str>>, key: &impl Key) -> Self {
        Self {
            name: name.into(),
            key: Some(key.with_bytes(|bytes| Arc::from(bytes))),
        }
    }

    /// The part before the colon, or all of it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The canonical bytes of the key, if it names one.
    #[must_use]
    pub fn key(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }

    pub(crate) fn shared_name(&self) -> &Arc<str> {
        &self.name
    }
}

impl From<&str> for Tag {
    fn from(text: &str) -> Self {
        let (name, key) = match text.split_once(':') {
            Some((name, key)) => (name, Some(key)),
            None => (text, None),
        };
        Self {
            name: name.into(),
            key: key.map(|key| key.as_bytes().into()),
        }
    }
}

impl From<String> for Tag {
    fn from(text: String) -> Self {
        Self::from(&*text)
    }
}

impl From<&String> for Tag {
    fn from(text: &String) -> Self {
        Self::from(&**text)
    }
}

impl From<&Tag> for Tag {
    fn from(tag: &Tag) -> Self {
        tag.clone()
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match &self.key {
            Some(key) => write!(f, ":{}", String::from_utf8_lossy(key)),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tag({self})")
    }
}

/// A tag as log entries, hints and envelopes carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TagHash {
    pub(crate) name: u64,
    /// The hash of the key, or that of the name again.
    pub(crate) key: u64,
}

impl TagHash {
    /// Whether it is that of a bare name.
    pub(crate) fn is_bare(&self) -> bool {
        self.key == self.name
    }
}

/// A tag as a value carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Carried {
    pub(crate) tag: TagHash,
    /// Its invalidation ends the value's time to live, and not the value.
    pub(crate) soft: bool,
}

impl KeySpace {
    pub(crate) fn hash_tag(&self, tag: &Tag) -> TagHash {
        let keys = self.entity(&tag.name);
        let name = keys.entity_hash();
        let key = tag.key().map(|bytes| keys.hash(bytes).hash);
        TagHash {
            name,
            key: key.unwrap_or(name),
        }
    }

    /// Where the floor of a tag is kept. The invalidations of a tag with a key are logged on its lane; a
    /// bare name's are logged on all lanes, of which this is one.
    pub(crate) fn place_tag(&self, tag: TagHash) -> TagPlace {
        TagPlace {
            lane: self.lane_of(tag.key),
            name: tag.name,
            key: tag.key,
        }
    }
}
