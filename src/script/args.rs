//! What is handed to commands and scripts.

use bytes::Bytes;

/// Collects what a command or script is given, in order.
#[derive(Debug, Default)]
pub struct Args {
    pub(super) keys: Words,
    pub(super) args: Words,
}

/// Words behind each other in one piece of memory.
#[derive(Default)]
pub(super) struct Words {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Words {
    pub(super) fn push(&mut self, word: &[u8]) {
        self.bytes.extend_from_slice(word);
        self.ends.push(self.bytes.len());
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let places = starts.zip(self.ends.iter().copied());
        places.map(|(start, end)| &self.bytes[start..end])
    }
}

/// Not what they say: they may be secrets.
impl std::fmt::Debug for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} words", self.len())
    }
}

impl Args {
    /// Adds a key of a script, `KEYS[n]`.
    pub fn key(&mut self, key: &[u8]) {
        self.keys.push(key);
    }

    /// Adds an argument: of a script `ARGV[n]`.
    pub fn arg(&mut self, arg: &[u8]) {
        self.args.push(arg);
    }
}

/// What can be handed to a command: one argument, several or none.
///
/// Text and bytes are handed over as they are, numbers in decimal, `bool` as `1` or `0`. `None` adds
/// nothing; lists and tuples add what is in them.
pub trait ToArgs {
    /// Adds the arguments.
    fn write(&self, args: &mut Args);
}

/// Stands for a key in the type of a [`Script`](super::Script): whatever gives bytes.
#[derive(Debug)]
pub enum Key {}

/// What can be handed to a script that takes an `S`.
///
/// | `S` | what it takes | |
/// |---|---|---|
/// | [`Key`] | text or bytes | `KEYS[n]` |
/// | `String` | text | `ARGV[n]` |
/// | [`Bytes`] | text or bytes | `ARGV[n]` |
/// | integers, `f64`, `bool` | the same | `ARGV[n]`, as [`ToArgs`] writes them |
/// | `Vec<S>` | a list of such | as many as there are |
/// | tuples of up to 8, `()` | tuples of such | in order |
///
/// Keys and arguments are numbered apart, each in the order in which they stand.
#[diagnostic::on_unimplemented(message = "a script that takes `{S}` cannot be handed `{Self}`")]
pub trait ArgsFor<S: ?Sized> {
    /// Adds keys and arguments.
    fn write_for(&self, args: &mut Args);
}

impl<T: AsRef<[u8]>> ArgsFor<Key> for T {
    fn write_for(&self, args: &mut Args) {
        args.key(self.as_ref());
    }
}

impl<T: AsRef<str>> ArgsFor<String> for T {
    fn write_for(&self, args: &mut Args) {
        args.arg(self.as_ref().as_bytes());
    }
}

impl<T: AsRef<[u8]>> ArgsFor<Bytes> for T {
    fn write_for(&self, args: &mut Args) {
        args.arg(self.as_ref());
    }
}

macro_rules! bytes_to_args {
    ($($type:ty),*) => {$(
        impl ToArgs for $type {
            fn write(&self, args: &mut Args) {
                args.arg(self.as_ref());
            }
        }
    )*};
}

bytes_to_args!(str, String, [u8], Vec<u8>, Bytes);

impl<const N: usize> ToArgs for [u8; N] {
    fn write(&self, args: &mut Args) {
        args.arg(self);
    }
}

macro_rules! integers_to_args {
    ($($type:ty),*) => {$(
        impl ToArgs for $type {
            fn write(&self, args: &mut Args) {
                args.arg(itoa::Buffer::new().format(*self).as_bytes());
            }
        }
    )*};
}

// Without `u8`: lists of those are bytes.
integers_to_args!(i8, i16, i32, i64, isize, u16, u32, u64, usize);

impl ToArgs for f64 {
    fn write(&self, args: &mut Args) {
        args.arg(self.to_string().as_bytes());
    }
}

impl ToArgs for bool {
    fn write(&self, args: &mut Args) {
        args.arg(if *self { b"1" } else { b"0" });
    }
}

macro_rules! taken_as_they_are {
    ($($type:ty),*) => {$(
        impl ArgsFor<$type> for $type {
            fn write_for(&self, args: &mut Args) {
                self.write(args);
            }
        }
    )*};
}

taken_as_they_are!(i8, i16, i32, i64, isize, u16, u32, u64, usize, f64, bool);

impl<T: ToArgs + ?Sized> ToArgs for &T {
    fn write(&self, args: &mut Args) {
        (**self).write(args);
    }
}

impl<T: ToArgs> ToArgs for Option<T> {
    fn write(&self, args: &mut Args) {
        if let Some(given) = self {
            given.write(args);
        }
    }
}

impl<T: ToArgs> ToArgs for [T] {
    fn write(&self, args: &mut Args) {
        self.iter().for_each(|one| one.write(args));
    }
}

impl<T: ToArgs> ToArgs for Vec<T> {
    fn write(&self, args: &mut Args) {
        self[..].write(args);
    }
}

impl<T: ToArgs, const N: usize> ToArgs for [T; N] {
    fn write(&self, args: &mut Args) {
        self[..].write(args);
    }
}

impl<S, T: ArgsFor<S>> ArgsFor<Vec<S>> for [T] {
    fn write_for(&self, args: &mut Args) {
        self.iter().for_each(|one| one.write_for(args));
    }
}

impl<S, T: ArgsFor<S>> ArgsFor<Vec<S>> for &[T] {
    fn write_for(&self, args: &mut Args) {
        (**self).write_for(args);
    }
}

impl<S, T: ArgsFor<S>> ArgsFor<Vec<S>> for Vec<T> {
    fn write_for(&self, args: &mut Args) {
        self[..].write_for(args);
    }
}

impl<S, T: ArgsFor<S>, const N: usize> ArgsFor<Vec<S>> for [T; N] {
    fn write_for(&self, args: &mut Args) {
        self[..].write_for(args);
    }
}

macro_rules! tuples {
    ($($head:ident $head_of:ident $at:tt, $($rest:tt)*)?) => {
        tuples!(@rest [] $($head $head_of $at, $($rest)*)?);
    };
    (@rest [$($name:ident $shape:ident $at:tt,)*]) => { tuples!(@one $($name $shape $at,)*); };
    (@rest [$($name:ident $shape:ident $at:tt,)*] $next:ident $next_of:ident $next_at:tt, $($rest:tt)*) => {
        tuples!(@one $($name $shape $at,)*);
        tuples!(@rest [$($name $shape $at,)* $next $next_of $next_at,] $($rest)*);
    };
    (@one $($name:ident $shape:ident $at:tt,)*) => {
        impl<$($name: ToArgs),*> ToArgs for ($($name,)*) {
            fn write(&self, _args: &mut Args) {
                $(self.$at.write(_args);)*
            }
        }

        impl<$($shape, $name: ArgsFor<$shape>),*> ArgsFor<($($shape,)*)> for ($($name,)*) {
            fn write_for(&self, _args: &mut Args) {
                $(self.$at.write_for(_args);)*
            }
        }
    };
}

tuples!(A SA 0, B SB 1, C SC 2, D SD 3, E SE 4, F SF 5, G SG 6, H SH 7,);

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &Words) -> Vec<&[u8]> {
        words.iter().collect()
    }

    #[test]
    fn arguments_are_written_in_order_and_lists_are_flat() {
        let mut args = Args::default();
        let given = (
            "k",
            5,
            (true, 0.5, None::<&str>),
            vec!["a".to_owned()],
            [b"\xff\x00".to_vec()],
            (),
        );
        given.write(&mut args);
        let expected: [&[u8]; 6] = [b"k", b"5", b"1", b"0.5", b"a", b"\xff\x00"];
        assert_eq!(words(&args.args), expected);
        assert_eq!(args.keys.len(), 0);
    }

    #[test]
    fn keys_and_arguments_of_a_script_are_numbered_apart() {
        type Shape = (Key, i64, Vec<Key>, (String, Bytes), Vec<u64>);
        fn hand<S>(given: impl ArgsFor<S>) -> Args {
            let mut args = Args::default();
            given.write_for(&mut args);
            args
        }
        let secret = String::from("hunter2");
        let args = hand::<Shape>((&secret, 5, ["a", "b"], ("é", b"\xff"), &[7, 8][..]));
        assert_eq!(words(&args.keys), [&b"hunter2"[..], b"a", b"b"]);
        let expected: [&[u8]; 5] = [b"5", "é".as_bytes(), b"\xff", b"7", b"8"];
        assert_eq!(words(&args.args), expected);
        assert!(!format!("{args:?}").contains("hunter2"));
    }
}
