//! A row: what it names, and what is no name.

use crate::key::Tag;
use tokio_postgres::Row;

/// The longest name of an entity or group, in bytes; every one that a cache makes up is much shorter.
pub(super) const MAX_NAME: usize = 1024;
/// The longest key, in bytes: far beyond what anybody looks rows up by, and 10,000 of them fit in memory.
pub(super) const MAX_KEY: usize = 8192;

/// What is wrong with a row.
pub(super) type Rubbish = &'static str;

/// One row of the table.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) id: i64,
    pub(super) tag: Result<Tag, Rubbish>,
    /// How long ago it was written, in seconds by the database's clock.
    pub(super) age: f64,
}

impl Waiting {
    /// Columns as [`Table::look`](super::schema::Table::look) names them.
    ///
    /// # Errors
    /// If it has no id: then the table is none of ours.
    pub(super) fn read(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let text = row.try_get::<_, Option<&str>>("tag");
        let key = row.try_get::<_, Option<&[u8]>>("key");
        let tag = match (text, key) {
            (Ok(Some(text)), Ok(key)) => tag(text, key),
            (Ok(None), _) => Err("no tag"),
            _ => Err("not text, or no bytes"),
        };
        Ok(Self {
            id: row.try_get("id")?,
            tag,
            age: row.try_get("age").unwrap_or_default(),
        })
    }
}

/// `text` is a whole tag, or the name of one whose key is given apart.
fn tag(text: &str, key: Option<&[u8]>) -> Result<Tag, Rubbish> {
    let tag = match key {
        Some(key) => Tag::of(text, &Box::<[u8]>::from(key)),
        None => Tag::from(text),
    };
    check(&tag).map(|()| tag)
}

/// Whether a row can hold `tag`.
pub(super) fn check(tag: &Tag) -> Result<(), Rubbish> {
    match (tag.name().len(), tag.key().map_or(0, <[u8]>::len)) {
        (0, _) => Err("a tag without a name"),
        (name, _) if name > MAX_NAME => Err("a name of more than 1024 bytes"),
        (_, key) if key > MAX_KEY => Err("a key of more than 8192 bytes"),
        _ if tag.name().contains('\0') => Err("a name with a zero byte"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_tag_that_the_cache_would_be_given() {
        assert_eq!(tag("user:42", None), Ok(Tag::of("user", &42)));
        assert_eq!(tag("user", Some(b"42")), Ok(Tag::of("user", &42)));
        assert_eq!(tag("user", None), Ok(Tag::from("user")));
        assert_eq!(tag("a:b", Some(b"c")), Ok(Tag::of("a:b", &"c")));
    }

    #[test]
    fn what_names_nothing_or_too_much_is_rubbish() {
        for (text, key) in [("", 0), (":42", 0), (&*"n".repeat(1025), 0), ("user", 8193)] {
            assert!(
                tag(
                    text,
                    Some(&vec![0; key]).filter(|_| key > 0).map(|key| &**key)
                )
                .is_err()
            );
        }
        assert!(tag(&"n".repeat(1024), Some(&[0; 8192])).is_ok());
    }
}
