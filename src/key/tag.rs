//! Tags: the names that invalidations go by.

use super::{Key, KeySpace};
use crate::coherence::Lane;
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

/// A tag as log entries and hints carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HashedTag {
    pub(crate) name: u64,
    /// The hash of the key and the lane that its invalidations are logged on; a bare name's are logged
    /// on all of them.
    pub(crate) key: Option<(u64, Lane)>,
}

impl KeySpace {
    pub(crate) fn hash_tag(&self, tag: &Tag) -> HashedTag {
        let keys = self.entity(&tag.name);
        HashedTag {
            name: keys.entity_hash(),
            key: tag.key().map(|bytes| {
                let hash = keys.hash(bytes).hash;
                (hash, self.lane_of(hash))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZero;

    #[test]
    fn the_first_colon_parts_name_and_key() {
        for (text, name, key) in [
            ("user", "user", None),
            ("user:", "user", Some("")),
            ("user:a:b", "user", Some("a:b")),
            (":x", "", Some("x")),
            ("", "", None),
        ] {
            let tag = Tag::from(text);
            assert_eq!(tag.name(), name);
            assert_eq!(tag.key(), key.map(str::as_bytes));
            assert_eq!(tag.to_string(), text);
        }
    }

    #[test]
    fn a_tag_of_an_entity_and_its_key_is_the_key_as_the_entity_hashes_it() {
        let space = KeySpace::new("shop", NonZero::new(16).expect("not zero"), None);
        let hashed = space.hash_tag(&Tag::of("user", &("org/7".to_owned(), 42_u64)));
        let keys = space.entity("user");
        let key = keys.hash(b"org%2F7/42").hash;
        assert_eq!(hashed.name, keys.entity_hash());
        assert_eq!(hashed.key, Some((key, space.lane_of(key))));
    }
}
