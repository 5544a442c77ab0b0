//! A 64-bit fingerprint of a slot's bytes, by which the receiver of a copy knows that it is whole.
//!
//! ```text
//! fingerprint = mix64(length) + sum over i of mix64(word[i] + (i + 1) * GAMMA)      (mod 2^64)
//! ```
//!
//! where `word[i]` are the bytes `8i .. 8i + 8` in little-endian order, the last one padded with zeros.
//! The terms are summed, so any number of threads may take any words in any order and give the same value:
//! on a device it is one pass at memory speed and one reduction. The position is mixed into each term, so
//! exchanged words do not cancel. `mix64` is a bijection, so a change confined to one word always shows;
//! other accidents escape with probability 2^-64. It is no defence against an adversary.

use crate::mix::{GAMMA, mix64};
use std::fmt;

/// The fingerprint of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub u64);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The fingerprint of bytes that arrive in pieces.
#[derive(Debug, Clone, Default)]
pub struct FingerprintStream {
    sum: u64,
    length: u64,
}

impl FingerprintStream {
    /// Takes the next piece. Every piece but the last must be a multiple of eight bytes long.
    pub fn update(&mut self, bytes: &[u8]) {
        assert!(self.length.is_multiple_of(8), "only the last piece may end inside a word");
        let first = self.length / 8;
        let words = bytes.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        });
        let terms =
            (first + 1..).zip(words).map(|(place, word)| mix64(word.wrapping_add(GAMMA.wrapping_mul(place))));
        self.sum = terms.fold(self.sum, u64::wrapping_add);
        self.length += bytes.len() as u64;
    }

    /// The fingerprint of all pieces.
    pub fn finish(&self) -> Fingerprint {
        Fingerprint(self.sum.wrapping_add(mix64(self.length)))
    }
}

/// The fingerprint of `bytes`.
pub fn fingerprint(bytes: &[u8]) -> Fingerprint {
    let mut stream = FingerprintStream::default();
    stream.update(bytes);
    stream.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_definition_is_pinned() {
        let expected = mix64(9)
            .wrapping_add(mix64(0x0807_0605_0403_0201u64.wrapping_add(GAMMA)))
            .wrapping_add(mix64(9u64.wrapping_add(GAMMA.wrapping_mul(2))));
        assert_eq!(fingerprint(&[1, 2, 3, 4, 5, 6, 7, 8, 9]).0, expected);
    }

    #[track_caller]
    fn check_differ(a: &[u8], b: &[u8]) {
        assert_ne!(fingerprint(a), fingerprint(b));
    }

    #[test]
    fn length_order_and_padding_matter() {
        check_differ(&[], &[0]);
        check_differ(&[0; 8], &[0; 16]);
        check_differ(&[1; 7], &[1, 1, 1, 1, 1, 1, 1, 0]);
        let words = |a: u64, b: u64| [a.to_le_bytes(), b.to_le_bytes()].concat();
        check_differ(&words(1, 2), &words(2, 1));
    }

    proptest! {
        #[test]
        fn every_single_byte_change_shows(
            bytes in prop::collection::vec(any::<u8>(), 1..200), at in any::<prop::sample::Index>(), flip in 1u8..
        ) {
            let mut other = bytes.clone();
            other[at.index(bytes.len())] ^= flip;
            prop_assert_ne!(fingerprint(&bytes), fingerprint(&other));
        }

        #[test]
        fn pieces_give_the_fingerprint_of_the_whole(
            bytes in prop::collection::vec(any::<u8>(), 0..200), words in 1usize..9
        ) {
            let mut stream = FingerprintStream::default();
            bytes.chunks(words * 8).for_each(|piece| stream.update(piece));
            prop_assert_eq!(stream.finish(), fingerprint(&bytes));
        }
    }
}
