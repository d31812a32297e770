//! From a user's key to the places where its value lives.
//!
//! ```text
//! Key ──encode──▶ canonical bytes ──hash──▶ 64 bits: place in the local level, in log entries, in hints
//!                        │                     └─────▶ lane
//!                        └──percent-encode──▶ physical key in the backing store
//! ```
//!
//! All of it is seen by other pods and by later versions, so none of it may change:
//! `docs/wire-format.md` is the specification, the tests hold concrete values.

mod space;
mod tag;

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::sync::Arc;

use bytes::Bytes;

#[cfg(feature = "redis")]
pub(crate) use space::DATA_LANES;
pub(crate) use space::{EntityKeys, HashedKey, KeySpace, RawKeys};
pub use tag::Tag;
pub(crate) use tag::{Carried, TagHash};

/// What an entity's values are kept under.
///
/// A key has *canonical bytes*. Equal keys have equal bytes and different keys of one type have
/// different bytes, in every process and every version of the program: they name the entry in the
/// backing store, and their hash names it in invalidations. Keys of different types may share bytes,
/// so an entity's key type should change only in ways that keep them (`u32` to `u64` does).
///
/// | type | canonical bytes |
/// |---|---|
/// | `String`, `Box<str>`, `Arc<str>`, `&'static str`, `Cow<'static, str>`, `char` | the UTF-8 text |
/// | `Vec<u8>`, [`Bytes`] | the bytes |
/// | integers | decimal digits |
/// | `bool` | `true`, `false` |
/// | `[u8; N]` | lower-case hexadecimal digits |
/// | tuples | the parts joined by `/`; `%` and `/` inside a part become `%25` and `%2F` |
/// | `Arc<K>`, `Box<K>` | those of `K` |
///
/// # Examples
/// A newtype forwards to its field:
/// ```
/// use tidings::{Key, KeyBuf};
///
/// #[derive(Clone, PartialEq, Eq)]
/// struct UserId(u64);
///
/// impl Key for UserId {
///     fn encode(&self, out: &mut KeyBuf) {
///         self.0.encode(out);
///     }
/// }
/// assert_eq!(UserId(42).with_bytes(<[u8]>::to_vec), b"42");
/// assert_eq!(("org/7", UserId(42)).with_bytes(<[u8]>::to_vec), b"org%2F7/42");
/// ```
/// Several fields forward to a tuple: `(self.org, &*self.name)` has no separator to get wrong.
pub trait Key: Clone + Eq + Send + Sync + 'static {
    /// Appends the canonical bytes to `out`.
    fn encode(&self, out: &mut KeyBuf);

    /// Calls `f` with the canonical bytes.
    ///
    /// The provided method encodes into a buffer on the stack, which allocates only above
    /// [`KeyBuf::INLINE`] bytes. A type that holds its canonical bytes passes them on as they are.
    fn with_bytes<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        let mut buf = KeyBuf::new();
        self.encode(&mut buf);
        f(buf.as_bytes())
    }
}

/// A buffer for canonical key bytes: the first [`INLINE`](Self::INLINE) are kept in place, without an
/// allocation.
///
/// Text can also be written with [`write!`], which never fails here.
#[derive(Clone)]
pub struct KeyBuf {
    inline: [u8; Self::INLINE],
    inline_len: usize,
    /// Everything, once it no longer fits in place; empty until then.
    spilled: Vec<u8>,
}

impl KeyBuf {
    /// How many bytes fit without an allocation.
    pub const INLINE: usize = 128;

    /// An empty buffer.
    #[inline]
    #[must_use]
    pub fn new() -> Self {
        Self {
            inline: [0; Self::INLINE],
            inline_len: 0,
            spilled: Vec::new(),
        }
    }

    /// Appends `bytes`.
    #[inline]
    pub fn push(&mut self, bytes: &[u8]) {
        let end = self.inline_len + bytes.len();
        if self.spilled.is_empty() && end <= Self::INLINE {
            self.inline[self.inline_len..end].copy_from_slice(bytes);
            self.inline_len = end;
        } else {
            self.push_spilled(bytes);
        }
    }

    #[cold]
    fn push_spilled(&mut self, bytes: &[u8]) {
        if self.spilled.is_empty() {
            self.spilled.extend(&self.inline[..self.inline_len]);
        }
        self.spilled.extend(bytes);
    }

    /// What was appended so far.
    #[inline]
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        if self.spilled.is_empty() {
            &self.inline[..self.inline_len]
        } else {
            &self.spilled
        }
    }

    /// Appends one part of a tuple, so that it holds no `/` of its own.
    fn push_part(&mut self, part: &[u8]) {
        for run in part.split_inclusive(|&byte| matches!(byte, b'%' | b'/')) {
            match run {
                [head @ .., b'%'] => {
                    self.push(head);
                    self.push(b"%25");
                }
                [head @ .., b'/'] => {
                    self.push(head);
                    self.push(b"%2F");
                }
                plain => self.push(plain),
            }
        }
    }
}

impl Default for KeyBuf {
    fn default() -> Self {
        Self::new()
    }
}

impl Write for KeyBuf {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

impl fmt::Debug for KeyBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyBuf({})", self.as_bytes().escape_ascii())
    }
}

/// Types that hold their canonical bytes: no copy.
macro_rules! key_of_slice {
    ($($ty:ty: $this:ident => $bytes:expr;)*) => {$(
        impl Key for $ty {
            fn encode(&self, out: &mut KeyBuf) {
                self.with_bytes(|bytes| out.push(bytes));
            }

            #[inline]
            fn with_bytes<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
                let $this = self;
                f($bytes)
            }
        }
    )*};
}
key_of_slice! {
    String: s => s.as_bytes();
    Box<str>: s => s.as_bytes();
    Arc<str>: s => s.as_bytes();
    &'static str: s => s.as_bytes();
    Cow<'static, str>: s => s.as_bytes();
    Vec<u8>: b => b;
    Bytes: b => b;
    Arc<[u8]>: b => b;
    Box<[u8]>: b => b;
    bool: b => if *b { &b"true"[..] } else { b"false" };
    char: c => c.encode_utf8(&mut [0; 4]).as_bytes();
    u8: n => itoa::Buffer::new().format(*n).as_bytes();
    u16: n => itoa::Buffer::new().format(*n).as_bytes();
    u32: n => itoa::Buffer::new().format(*n).as_bytes();
    u64: n => itoa::Buffer::new().format(*n).as_bytes();
    u128: n => itoa::Buffer::new().format(*n).as_bytes();
    usize: n => itoa::Buffer::new().format(*n).as_bytes();
    i8: n => itoa::Buffer::new().format(*n).as_bytes();
    i16: n => itoa::Buffer::new().format(*n).as_bytes();
    i32: n => itoa::Buffer::new().format(*n).as_bytes();
    i64: n => itoa::Buffer::new().format(*n).as_bytes();
    i128: n => itoa::Buffer::new().format(*n).as_bytes();
    isize: n => itoa::Buffer::new().format(*n).as_bytes();
}

impl<const N: usize> Key for [u8; N] {
    fn encode(&self, out: &mut KeyBuf) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for byte in self {
            let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
            out.push(&[DIGITS[high], DIGITS[low]]);
        }
    }
}

macro_rules! key_of_pointer {
    ($($pointer:ident),*) => {$(
        impl<K: Key> Key for $pointer<K> {
            fn encode(&self, out: &mut KeyBuf) {
                K::encode(self, out);
            }

            #[inline]
            fn with_bytes<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
                K::with_bytes(self, f)
            }
        }
    )*};
}
key_of_pointer!(Arc, Box);

/// The only key of an entity with one entry.
impl Key for () {
    fn encode(&self, _out: &mut KeyBuf) {}
}

macro_rules! key_of_tuple {
    ($($first:ident $(, $rest:ident)*;)*) => {$(
        impl<$first: Key $(, $rest: Key)*> Key for ($first, $($rest,)*) {
            #[expect(non_snake_case, reason = "the macro names fields like their types")]
            fn encode(&self, out: &mut KeyBuf) {
                let ($first, $($rest,)*) = self;
                $first.with_bytes(|part| out.push_part(part));
                $(
                    out.push(b"/");
                    $rest.with_bytes(|part| out.push_part(part));
                )*
            }
        }
    )*};
}
key_of_tuple! {
    A;
    A, B;
    A, B, C;
    A, B, C, D;
    A, B, C, D, E;
    A, B, C, D, E, F;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(key: impl Key) -> Vec<u8> {
        let mut buf = KeyBuf::new();
        key.encode(&mut buf);
        let encoded = buf.as_bytes().to_vec();
        assert_eq!(
            key.with_bytes(<[u8]>::to_vec),
            encoded,
            "with_bytes and encode agree"
        );
        encoded
    }

    #[test]
    fn canonical_bytes_of_each_type_are_what_the_table_says() {
        assert_eq!(bytes("grüße/1%"), "grüße/1%".as_bytes());
        assert_eq!(bytes(String::from("a")), b"a");
        assert_eq!(bytes(Arc::<str>::from("a")), b"a");
        assert_eq!(bytes(Box::<str>::from("a")), b"a");
        assert_eq!(bytes(Cow::Borrowed("a")), b"a");
        assert_eq!(bytes(vec![0, 255]), [0, 255]);
        assert_eq!(bytes(Bytes::from_static(&[0, 255])), [0, 255]);
        assert_eq!(bytes(i64::MIN), b"-9223372036854775808");
        assert_eq!(bytes(u128::MAX), b"340282366920938463463374607431768211455");
        assert_eq!(bytes(true), b"true");
        assert_eq!(bytes('ü'), "ü".as_bytes());
        assert_eq!(bytes([0x0f_u8, 0xa0]), b"0fa0");
        assert_eq!(bytes(()), b"");
        assert_eq!(bytes(("a/b", 7_u8, "%")), b"a%2Fb/7/%25");
        assert_eq!(bytes((("a", "b/c"), "d")), b"a%2Fb%252Fc/d");
        assert_eq!(bytes(Arc::new((Box::new(1_u8),))), b"1");
    }

    #[test]
    fn keys_up_to_the_inline_size_do_not_allocate() {
        let mut buf = KeyBuf::new();
        for _ in 0..KeyBuf::INLINE {
            buf.push(b"x");
        }
        assert_eq!(buf.spilled.capacity(), 0);
        buf.push(b"y");
        assert_eq!(buf.as_bytes().len(), KeyBuf::INLINE + 1);
        assert_eq!(buf.as_bytes().last(), Some(&b'y'));
    }

    /// Text made of the characters that could confuse a separator scheme.
    fn tricky() -> impl Strategy<Value = String> {
        "[a/%25F:#\u{fc}]{0,4}"
    }

    proptest! {
        #[test]
        fn buffer_holds_what_was_pushed(parts: Vec<Vec<u8>>) {
            let mut buf = KeyBuf::new();
            parts.iter().for_each(|part| buf.push(part));
            prop_assert_eq!(buf.as_bytes(), parts.concat());
        }

        #[test]
        fn different_tuples_have_different_bytes(
            a in (tricky(), tricky(), tricky()),
            b in (tricky(), tricky(), tricky()),
        ) {
            prop_assert_eq!(a == b, bytes(a) == bytes(b));
        }

        #[test]
        fn different_nested_tuples_have_different_bytes(
            a in ((tricky(), tricky()), (tricky(), tricky())),
            b in ((tricky(), tricky()), (tricky(), tricky())),
        ) {
            prop_assert_eq!(a == b, bytes(a) == bytes(b));
        }

        #[test]
        fn a_tuple_can_be_read_back_from_its_bytes(key: (String, Vec<u8>, i16)) {
            let unescape = |part: &[u8]| {
                let mut out = Vec::new();
                let mut rest = part;
                while let Some((&byte, tail)) = rest.split_first() {
                    let (byte, skip) = match (byte, tail) {
                        (b'%', [b'2', b'5', ..]) => (b'%', 2),
                        (b'%', [b'2', b'F', ..]) => (b'/', 2),
                        _ => (byte, 0),
                    };
                    out.push(byte);
                    rest = &tail[skip..];
                }
                out
            };
            let encoded = bytes(key.clone());
            let parts: Vec<_> = encoded.split(|&b| b == b'/').map(unescape).collect();
            prop_assert_eq!(parts, [key.0.into_bytes(), key.1, key.2.to_string().into_bytes()]);
        }

        #[test]
        fn different_arrays_and_numbers_have_different_bytes(a: ([u8; 2], i8), b: ([u8; 2], i8)) {
            prop_assert_eq!(a.0 == b.0, bytes(a.0) == bytes(b.0));
            prop_assert_eq!(a.1 == b.1, bytes(a.1) == bytes(b.1));
        }
    }
}
