//! Damages valid input a little, in the ways that break decoders: flipped bits, numbers at the edges of their types, parts
//! cut, repeated, or taken from another input.

use rand::rngs::ChaCha8Rng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

/// Longest input made: the decoders' own limits are far above, and long inputs only slow the run.
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// Most changes of one input: more make garbage that is refused at its first byte.
const CHANGES_MAX: u32 = 4;
/// Numbers at which decoders break.
const EDGES: [u64; 10] =
    [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX];

/// An endless, repeatable source of damaged inputs.
pub(crate) struct Mutator {
    random: ChaCha8Rng,
    seeds: Vec<Vec<u8>>,
}

impl Mutator {
    /// From valid inputs.
    pub(crate) fn new(seed: u64, seeds: Vec<Vec<u8>>) -> Self {
        assert!(!seeds.is_empty(), "a target has at least one valid input");
        Self { random: ChaCha8Rng::seed_from_u64(seed), seeds }
    }

    /// The next input.
    pub(crate) fn next(&mut self) -> Vec<u8> {
        let mut input = self.any_seed();
        for _ in 0..self.random.random_range(1..=CHANGES_MAX) {
            self.change(&mut input);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn any_seed(&mut self) -> Vec<u8> {
        let at = self.random.random_range(0..self.seeds.len());
        self.seeds[at].clone()
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.random.random_range(0..=input.len());
        match self.random.random_range(0..8) {
            0 | 1 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.random.random_range(0..8);
                }
            }
            2 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = self.random.next_u32().to_le_bytes()[0];
                }
            }
            3 => input.truncate(at),
            4 => self.overwrite_with_edge(input, at),
            5 => {
                let end = self.random.random_range(at..=input.len());
                input.drain(at..end);
            }
            6 => {
                let end = self.random.random_range(at..=input.len());
                let part = input[at..end].to_vec();
                input.splice(at..at, part);
            }
            _ => {
                let other = self.any_seed();
                let from = self.random.random_range(0..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }

    fn overwrite_with_edge(&mut self, input: &mut [u8], at: usize) {
        let edge = EDGES[self.random.random_range(0..EDGES.len())];
        let width = [1, 2, 4, 8][self.random.random_range(0..4)];
        let bytes = edge.to_le_bytes();
        for (to, from) in input[at..].iter_mut().zip(&bytes[..width]) {
            *to = *from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_damages_alike() {
        let inputs = || {
            let mut mutator = Mutator::new(7, vec![b"hello".to_vec(), b"world, again".to_vec()]);
            (0..100).map(|_| mutator.next()).collect::<Vec<_>>()
        };
        assert_eq!(inputs(), inputs());
    }

    #[test]
    fn an_empty_input_can_be_damaged_too() {
        let mut mutator = Mutator::new(1, vec![Vec::new()]);
        assert!((0..1000).all(|_| mutator.next().len() <= INPUT_BYTES_MAX));
    }
}
