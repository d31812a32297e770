//! What commands and scripts answer.

use ::redis::Value;
use bytes::Bytes;
use std::collections::HashMap;
use std::hash::Hash;

/// An answer as Redis gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// Nothing: a missing value, Lua's `nil` and `false`.
    Nil,
    /// An integer: also a number of Lua, without its fraction, and its `true` (1).
    Int(i64),
    /// A word of the server, such as `OK`.
    Status(String),
    /// A string.
    Bytes(Bytes),
    /// A list: also a table of Lua, up to its first `nil`.
    Array(Vec<Reply>),
}

impl Reply {
    /// `None` if it is of no kind that the protocol in use has.
    pub(super) fn of(value: Value) -> Option<Self> {
        Some(match value {
            Value::Nil => Self::Nil,
            Value::Int(number) => Self::Int(number),
            Value::Okay => Self::Status("OK".to_owned()),
            Value::SimpleString(word) => Self::Status(word),
            Value::BulkString(bytes) => Self::Bytes(bytes.into()),
            Value::Array(items) => {
                Self::Array(items.into_iter().map(Self::of).collect::<Option<_>>()?)
            }
            _ => return None,
        })
    }

    /// What it is, not what it says.
    pub(super) fn kind(&self) -> String {
        match self {
            Self::Nil => "nil".to_owned(),
            Self::Int(_) => "an integer".to_owned(),
            Self::Status(_) => "a status".to_owned(),
            Self::Bytes(_) => "a string".to_owned(),
            Self::Array(items) => format!("a list of {}", items.len()),
        }
    }

    fn text(self) -> Option<String> {
        match self {
            Self::Status(word) => Some(word),
            Self::Bytes(bytes) => String::from_utf8(bytes.into()).ok(),
            _ => None,
        }
    }
}

/// What an answer can be read as.
///
/// | type | answers that it takes |
/// |---|---|
/// | `()` | any |
/// | integers | an integer in range, or a string of decimal digits |
/// | `f64` | a number in a string, or an integer |
/// | `bool` | 1 or `OK`; 0 or nil |
/// | `String` | a string in UTF-8, or a status |
/// | [`Bytes`], `Vec<u8>` | a string or a status |
/// | `Option<T>` | nil, or what `T` takes |
/// | `Vec<T>` | a list of what `T` takes |
/// | `HashMap<K, V>` | a list of keys and values in turns, as `HGETALL` gives it |
/// | tuples of up to 8 | a list of exactly these |
/// | [`Reply`] | any |
pub trait FromReply: Sized {
    /// Reads the answer; `None` if it has another form.
    fn from_reply(reply: Reply) -> Option<Self>;
}

impl FromReply for Reply {
    fn from_reply(reply: Reply) -> Option<Self> {
        Some(reply)
    }
}

impl FromReply for () {
    fn from_reply(_any: Reply) -> Option<Self> {
        Some(())
    }
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl FromReply for $type {
            fn from_reply(reply: Reply) -> Option<Self> {
                match reply {
                    Reply::Int(number) => number.try_into().ok(),
                    reply => reply.text()?.parse().ok(),
                }
            }
        }
    )*};
}

// Without `u8`: lists of those are bytes.
integers!(i8, i16, i32, i64, isize, u16, u32, u64, usize);

impl FromReply for f64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "whoever asks for a float gets one"
    )]
    fn from_reply(reply: Reply) -> Option<Self> {
        match reply {
            Reply::Int(number) => Some(number as Self),
            reply => reply.text()?.parse().ok(),
        }
    }
}

impl FromReply for bool {
    fn from_reply(reply: Reply) -> Option<Self> {
        match reply {
            Reply::Nil | Reply::Int(0) => Some(false),
            Reply::Int(1) => Some(true),
            Reply::Status(word) if word == "OK" => Some(true),
            _ => None,
        }
    }
}

impl FromReply for String {
    fn from_reply(reply: Reply) -> Option<Self> {
        reply.text()
    }
}

impl FromReply for Bytes {
    fn from_reply(reply: Reply) -> Option<Self> {
        match reply {
            Reply::Bytes(bytes) => Some(bytes),
            Reply::Status(word) => Some(word.into()),
            _ => None,
        }
    }
}

impl FromReply for Vec<u8> {
    fn from_reply(reply: Reply) -> Option<Self> {
        Bytes::from_reply(reply).map(Self::from)
    }
}

impl<T: FromReply> FromReply for Option<T> {
    fn from_reply(reply: Reply) -> Option<Self> {
        match reply {
            Reply::Nil => Some(None),
            reply => T::from_reply(reply).map(Some),
        }
    }
}

fn items(reply: Reply) -> Option<Vec<Reply>> {
    match reply {
        Reply::Array(items) => Some(items),
        _ => None,
    }
}

impl<T: FromReply> FromReply for Vec<T> {
    fn from_reply(reply: Reply) -> Option<Self> {
        items(reply)?.into_iter().map(T::from_reply).collect()
    }
}

impl<K: FromReply + Eq + Hash, V: FromReply> FromReply for HashMap<K, V> {
    fn from_reply(reply: Reply) -> Option<Self> {
        let mut items = items(reply)?.into_iter();
        let mut map = Self::with_capacity(items.len() / 2);
        while let Some(key) = items.next() {
            map.insert(K::from_reply(key)?, V::from_reply(items.next()?)?);
        }
        Some(map)
    }
}

macro_rules! tuples {
    ($($first:ident $($name:ident)*;)*) => {$(
        impl<$first: FromReply $(, $name: FromReply)*> FromReply for ($first, $($name,)*) {
            fn from_reply(reply: Reply) -> Option<Self> {
                let mut items = items(reply)?.into_iter();
                let read = ($first::from_reply(items.next()?)?, $($name::from_reply(items.next()?)?,)*);
                items.next().is_none().then_some(read)
            }
        }
    )*};
}

tuples! {
    A;
    A B;
    A B C;
    A B C D;
    A B C D E;
    A B C D E F;
    A B C D E F G;
    A B C D E F G H;
}

/// Reads any answer as everything that an answer can be read as.
#[cfg(feature = "testing")]
pub(crate) fn read_rubbish(value: Value) {
    let Some(reply) = Reply::of(value) else {
        return;
    };
    let _ = <Vec<Option<String>>>::from_reply(reply.clone());
    let _ = <Option<i64>>::from_reply(reply.clone());
    let _ = <(Vec<u8>, u64)>::from_reply(reply.clone());
    let _ = bool::from_reply(reply);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(text: &str) -> Reply {
        Reply::Bytes(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn answers_are_read_as_what_they_are_and_as_nothing_else() {
        assert_eq!(i64::from_reply(Reply::Int(-5)), Some(-5));
        assert_eq!(
            u64::from_reply(text("18446744073709551615")),
            Some(u64::MAX)
        );
        assert_eq!(u64::from_reply(Reply::Int(-5)), None);
        assert_eq!(i8::from_reply(Reply::Int(128)), None);
        assert_eq!(i64::from_reply(text("5 ")), None);
        assert_eq!(f64::from_reply(text("0.5")), Some(0.5));
        assert_eq!(f64::from_reply(Reply::Nil), None);
        assert_eq!(bool::from_reply(Reply::Nil), Some(false));
        assert_eq!(bool::from_reply(Reply::Status("OK".into())), Some(true));
        assert_eq!(bool::from_reply(Reply::Int(2)), None);
        assert_eq!(String::from_reply(text("é")).as_deref(), Some("é"));
        let latin = Reply::Bytes(Bytes::from_static(b"\xe9"));
        assert_eq!(String::from_reply(latin.clone()), None);
        assert_eq!(Vec::<u8>::from_reply(latin), Some(b"\xe9".to_vec()));
        assert_eq!(Option::<i64>::from_reply(Reply::Nil), Some(None));
        assert_eq!(Option::<i64>::from_reply(text("x")), None);
        let list = Reply::Array(vec![text("a"), Reply::Int(1)]);
        let pair = Some(("a".to_owned(), 1_i64));
        assert_eq!(FromReply::from_reply(list.clone()), pair);
        assert_eq!(<(String,)>::from_reply(list.clone()), None, "too many");
        assert_eq!(<(String, i64, ())>::from_reply(list.clone()), None);
        assert_eq!(Vec::<String>::from_reply(list.clone()), None);
        assert_eq!(
            FromReply::from_reply(list.clone()),
            pair.map(|pair| HashMap::from([pair]))
        );
        let odd = Reply::Array(vec![text("a")]);
        assert_eq!(HashMap::<String, i64>::from_reply(odd), None);
        assert_eq!(<()>::from_reply(list), Some(()));
    }

    fn any_reply() -> impl Strategy<Value = Reply> {
        let leaf = prop_oneof![
            Just(Reply::Nil),
            any::<i64>().prop_map(Reply::Int),
            ".{0,4}".prop_map(Reply::Status),
            prop::collection::vec(any::<u8>(), 0..4).prop_map(|bytes| Reply::Bytes(bytes.into())),
        ];
        leaf.prop_recursive(3, 20, 5, |inner| {
            prop::collection::vec(inner, 0..5).prop_map(Reply::Array)
        })
    }

    proptest! {
        #[test]
        fn no_answer_makes_a_reader_panic(reply in any_reply()) {
            type Everything = (i64, (u64, f64), Option<Vec<bool>>, HashMap<String, Vec<u8>>);
            let _ = Everything::from_reply(reply.clone());
            let _ = Vec::<Everything>::from_reply(reply.clone());
            prop_assert_eq!(Reply::from_reply(reply.clone()), Some(reply));
        }
    }
}
