//! The hash of an argument: any `K: Hash`, with a seed of the memo's own.
//!
//! Entities hash a key's canonical bytes, because the hash travels. Here it stays in the process, so
//! the key's own `Hash` does, which neither encodes nor copies anything. The mixing is that of wyhash and
//! its kin [1]: multiply two words to 128 bits, and let the upper half meet the lower. Nobody who does
//! not know the two secret words can make keys collide. The engines draw shard, bucket and tag from
//! different bits, hence the last fold in `finish`. With xxh3, which entities use, a hit of a 33-byte key
//! cost 6 to 9 % more.
//!
//! [1]: Wang Yi et al., "wyhash", 2019; Orson Peters, "foldhash", 2024.

use crate::random::random;
use std::hash::{BuildHasher, Hasher};

/// An odd number with its bits well mixed: the golden ratio's.
const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// Makes hashers that agree with each other, and with no other memo's.
#[derive(Clone, Debug)]
pub(super) struct Seeded {
    state: u64,
    secret: u64,
}

impl Seeded {
    pub(super) fn new() -> Self {
        Self {
            state: random(),
            secret: random(),
        }
    }
}

impl BuildHasher for Seeded {
    type Hasher = FoldHasher;

    #[inline]
    fn build_hasher(&self) -> FoldHasher {
        let Self { state, secret } = *self;
        FoldHasher { state, secret }
    }
}

#[derive(Debug)]
pub(super) struct FoldHasher {
    state: u64,
    secret: u64,
}

#[inline]
fn folded(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

impl FoldHasher {
    #[inline]
    fn number(&mut self, number: u64) {
        self.state = folded(self.state ^ number, MULTIPLIER);
    }

    #[inline]
    fn pair(&mut self, (a, b): (u64, u64)) {
        self.state = folded(self.state ^ a, self.secret ^ b);
    }
}

/// The first and the last bytes of at most 16, which may overlap: all of them, in two words.
#[inline]
fn short(bytes: &[u8]) -> (u64, u64) {
    if let (Some(first), Some(last)) = (bytes.first_chunk::<8>(), bytes.last_chunk()) {
        (u64::from_le_bytes(*first), u64::from_le_bytes(*last))
    } else if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk()) {
        let (first, last) = (u32::from_le_bytes(*first), u32::from_le_bytes(*last));
        (first.into(), last.into())
    } else if let [first, .., last] = bytes {
        let middle = bytes[bytes.len() / 2];
        ((*first).into(), u64::from(middle) << 8 | u64::from(*last))
    } else {
        (bytes.first().map_or(0, |&byte| byte.into()), 0)
    }
}

impl Hasher for FoldHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        // The length, which the overlapping words below do not tell.
        self.state = self.state.rotate_right(bytes.len() as u32) ^ bytes.len() as u64;
        let mut rest = bytes;
        while let Some((chunk, left)) = rest.split_first_chunk::<16>()
            && !left.is_empty()
        {
            self.pair(short(chunk));
            rest = left;
        }
        match bytes.last_chunk::<16>() {
            Some(last) => self.pair(short(last)),
            None => self.pair(short(bytes)),
        }
    }

    #[inline]
    fn write_u8(&mut self, number: u8) {
        self.number(number.into());
    }

    #[inline]
    fn write_u16(&mut self, number: u16) {
        self.number(number.into());
    }

    #[inline]
    fn write_u32(&mut self, number: u32) {
        self.number(number.into());
    }

    #[inline]
    fn write_u64(&mut self, number: u64) {
        self.number(number);
    }

    #[inline]
    fn write_u128(&mut self, number: u128) {
        self.number(number as u64);
        self.number((number >> 64) as u64);
    }

    #[inline]
    fn write_usize(&mut self, number: usize) {
        self.number(number as u64);
    }

    #[inline]
    fn finish(&self) -> u64 {
        folded(self.state, MULTIPLIER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Each bit of the hash flips for about half of the changes of one bit of the argument.
    fn every_bit_counts(hash: impl Fn(u64) -> u64) {
        const SAMPLES: u64 = 1_000;
        for bit in 0..64 {
            let mut flips = [0_u32; 64];
            for sample in 0..SAMPLES {
                let number = sample * sample;
                let changed = hash(number) ^ hash(number ^ (1 << bit));
                (0..64).for_each(|n| flips[n] += (changed >> n) as u32 & 1);
            }
            let rare = flips.iter().min().expect("there are 64");
            assert!(*rare > 300, "bit {bit} of the argument: {rare} flips");
        }
    }

    #[test]
    fn every_bit_of_a_number_reaches_every_bit_of_its_hash() {
        let seeded = Seeded::new();
        every_bit_counts(|number| seeded.hash_one(number));
        every_bit_counts(|number| seeded.hash_one((3_u8, number)));
        for before in [0, 3, 8, 9, 40] {
            for after in [0, 5, 8, 33] {
                every_bit_counts(|number| {
                    let (before, after) = (vec![7; before], vec![9; after]);
                    seeded.hash_one([before, number.to_le_bytes().to_vec(), after].concat())
                });
            }
        }
    }

    #[test]
    fn arguments_of_every_shape_hash_apart() {
        let seeded = Seeded::new();
        let numbers = (0..100_000_u64).map(|n| seeded.hash_one(n));
        assert_eq!(numbers.collect::<HashSet<_>>().len(), 100_000);
        let pairs = (0..100_000_u32).map(|n| seeded.hash_one((n % 300, n / 300)));
        assert_eq!(pairs.collect::<HashSet<_>>().len(), 100_000);
        let texts = (0..100_000).map(|n| seeded.hash_one(format!("customer/{n}")));
        assert_eq!(texts.collect::<HashSet<_>>().len(), 100_000);
        let zeros = (0..200).map(|n| seeded.hash_one(vec![0_u8; n]));
        assert_eq!(zeros.collect::<HashSet<_>>().len(), 200);
        let bytes = (0..200_usize).flat_map(|len| {
            (0..len).map(move |at| (0..len).map(|n| u8::from(n == at)).collect::<Vec<u8>>())
        });
        let bytes: HashSet<_> = bytes.map(|bytes| seeded.hash_one(bytes)).collect();
        assert_eq!(bytes.len(), 199 * 200 / 2, "each byte of each length");
        let cut = [("ab", "c"), ("a", "bc"), ("", "abc"), ("abc", "")];
        let cut = cut.map(|pair| seeded.hash_one(pair));
        assert_eq!(HashSet::from(cut).len(), 4);
    }

    #[test]
    fn two_memos_hash_differently() {
        assert_ne!(Seeded::new().hash_one(1_u8), Seeded::new().hash_one(1_u8));
    }
}
