//! Values to bytes and back: MessagePack with named fields.
//!
//! Fields are named so that pods of different versions can share values: a new field with a serde
//! default is compatible both ways. Bytes that come back may have been cut, changed, or written for
//! another type, so decoding refuses whatever is not exactly one value, and never allocates more than
//! the bytes at hand can justify.
//!
//! MessagePack has one `nil`: `Some(None)` and `Some(())` come back as `None`. A value type that needs
//! the difference spells it out as an enum.

use std::error::Error;
use std::io;
use std::sync::Arc;

use rmp_serde::{Deserializer, decode};
use serde::Serialize;
use serde::de::{Deserialize, DeserializeOwned};

/// The deepest nesting of arrays, maps and structs that is read: a bound on the stack.
const MAX_DEPTH: usize = 256;

/// A value could not be turned into bytes, or bytes into a value.
#[derive(Clone, Debug, thiserror::Error)]
#[error(transparent)]
pub struct CodecError(#[from] Reason);

/// What a [`CodecError`] stands for. Sources are shared, as all waiters of a load get the same error.
#[derive(Clone, Debug, thiserror::Error)]
enum Reason {
    #[error("value could not be encoded")]
    Encode(#[source] Arc<dyn Error + Send + Sync>),
    #[error("value could not be decoded")]
    Decode(#[source] Arc<dyn Error + Send + Sync>),
    #[error("value is followed by other bytes")]
    TrailingBytes,
    #[error("{what} does not fit in the stored header")]
    TooLarge { what: &'static str },
    #[cfg(feature = "seal")]
    #[error("no randomness to seal the value with")]
    NoNonce(#[source] Arc<dyn Error + Send + Sync>),
    #[error("stored outcome is an {what}, which this entity does not cache")]
    Unreadable { what: &'static str },
}

impl CodecError {
    /// A part of the stored header is over its limit.
    pub(crate) fn too_large(what: &'static str) -> Self {
        Reason::TooLarge { what }.into()
    }

    /// The system had no randomness to give.
    #[cfg(feature = "seal")]
    pub(crate) fn no_nonce(cause: impl Error + Send + Sync + 'static) -> Self {
        Reason::NoNonce(Arc::new(cause)).into()
    }

    /// A stored outcome of a sort that this entity was not told how to read.
    pub(crate) fn unreadable(what: &'static str) -> Self {
        Reason::Unreadable { what }.into()
    }
}

/// The bytes of a value.
///
/// # Errors
/// If the value's `Serialize` fails.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    rmp_serde::to_vec_named(value).map_err(|cause| Reason::Encode(Arc::new(cause)).into())
}

/// The value that `bytes` hold, all of them.
///
/// # Errors
/// If they do not hold one `T`, or hold more.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let mut from = Deserializer::from_read_ref(bytes);
    from.set_max_depth(MAX_DEPTH);
    let value = T::deserialize(&mut from).map_err(|cause| Reason::Decode(Arc::new(cause)))?;
    // The deserializer does not say how far it came: only asking for more tells that there is none.
    match <()>::deserialize(&mut from) {
        Err(decode::Error::InvalidMarkerRead(cause))
            if cause.kind() == io::ErrorKind::UnexpectedEof =>
        {
            Ok(value)
        }
        _ => Err(Reason::TrailingBytes.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::Deserialize as DeserializeDerive;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, DeserializeDerive)]
    struct User {
        id: u64,
        name: String,
        tags: Vec<String>,
        more: BTreeMap<String, Option<f64>>,
    }

    #[derive(Debug, PartialEq, Serialize, DeserializeDerive)]
    struct LaterUser {
        name: String,
        id: u64,
        #[serde(default)]
        email: Option<String>,
    }

    #[derive(Debug, Serialize, DeserializeDerive)]
    struct Nested(Vec<Nested>);

    fn user() -> User {
        User {
            id: 1,
            name: "Ada".into(),
            tags: vec!["x".into()],
            more: BTreeMap::from([("y".into(), None)]),
        }
    }

    #[test]
    fn versions_of_a_struct_that_share_fields_read_each_other() {
        let later: LaterUser = decode(&encode(&user()).unwrap()).unwrap();
        assert_eq!((later.id, &*later.name, later.email), (1, "Ada", None));
    }

    #[test]
    fn every_proper_prefix_and_any_trailing_byte_is_refused() {
        let bytes = encode(&user()).unwrap();
        for len in 0..bytes.len() {
            assert!(decode::<User>(&bytes[..len]).is_err());
        }
        for extra in 0..=255 {
            let longer = [&bytes[..], &[extra]].concat();
            let error = decode::<User>(&longer).unwrap_err();
            assert_eq!(error.to_string(), "value is followed by other bytes");
        }
    }

    #[test]
    fn a_failed_decode_names_its_cause_as_source() {
        let error = decode::<User>(&encode("text").unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "value could not be decoded");
        assert!(error.source().is_some());
    }

    #[test]
    fn a_huge_declared_length_is_refused_without_the_memory_for_it() {
        // 4 GiB elements or bytes, none of which follow. Reserving them would abort the test.
        assert!(decode::<Vec<[u64; 32]>>(&[0xdd, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(decode::<String>(&[0xdb, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(decode::<Vec<u8>>(&[0xc6, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(decode::<BTreeMap<u8, u8>>(&[0xdf, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(decode::<User>(&[0xdf, 0xff, 0xff, 0xff, 0xff]).is_err());
    }

    #[test]
    fn bytes_nested_too_deep_are_refused_before_the_stack_ends() {
        let bomb = vec![0x91; 1_000_000];
        assert!(decode::<Nested>(&bomb).is_err());
        // The same as the value of a field that the type does not know.
        let unknown = [&[0x81, 0xa1, b'?'], &bomb[..]].concat();
        assert!(decode::<LaterUser>(&unknown).is_err());
    }

    proptest! {
        #[test]
        fn values_round_trip(id: u64, name: String, tags: Vec<String>, more: BTreeMap<String, Option<i32>>) {
            let more = more.into_iter().map(|(k, v)| (k, v.map(f64::from))).collect();
            let user = User { id, name, tags, more };
            prop_assert_eq!(decode::<User>(&encode(&user).unwrap()).unwrap(), user);
        }

        #[test]
        fn no_bytes_make_decoding_panic(bytes: Vec<u8>) {
            let _ = decode::<User>(&bytes);
            let _ = decode::<Nested>(&bytes);
            let _ = decode::<Option<BTreeMap<String, Vec<(u8, char)>>>>(&bytes);
        }
    }
}
