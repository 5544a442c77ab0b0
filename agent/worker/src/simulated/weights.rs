//! The bytes that stand for expert weights: a stream that anyone can derive from (seed, layer, expert), so
//! that an independent reader can say what every byte of every slot must be.
//!
//! ```text
//! start   = mix64(mix64(seed + GAMMA) ^ (layer << 32 | expert + 1))
//! word[i] = mix64(start + (i + 1) * GAMMA)        little-endian, the last one cut off
//! ```
//!
//! This is splitmix64 started at `start`; any word can be had without those before it.

use evenkeel_core::ids::{ExpertId, LayerId};
use evenkeel_kernels::mix::{GAMMA, mix64};

/// Writes the bytes of an expert from `offset`, which must be a multiple of eight.
pub fn fill(seed: u64, layer: LayerId, expert: ExpertId, offset: u64, bytes: &mut [u8]) {
    assert!(offset.is_multiple_of(8), "the stream is made of words");
    let name = (u64::from(layer.0) << 32) | (u64::from(expert.0) + 1);
    let start = mix64(mix64(seed.wrapping_add(GAMMA)) ^ name);
    for (i, chunk) in (offset / 8..).zip(bytes.chunks_mut(8)) {
        let word = mix64(start.wrapping_add(GAMMA.wrapping_mul(i + 1)));
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}

/// What the digest of the weights is taken over: everything that decides a byte of them.
pub fn identity(seed: u64, layers: u16, experts: u16, expert_bytes: u64) -> Vec<u8> {
    let mut bytes = b"evenkeel simulated weights 1\0".to_vec();
    bytes.extend_from_slice(&seed.to_le_bytes());
    bytes.extend_from_slice(&layers.to_le_bytes());
    bytes.extend_from_slice(&experts.to_le_bytes());
    bytes.extend_from_slice(&expert_bytes.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(seed: u64, layer: u16, expert: u16, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        fill(seed, LayerId(layer), ExpertId(expert), offset, &mut bytes);
        bytes
    }

    #[test]
    fn any_part_is_a_part_of_the_whole() {
        let whole = bytes(1, 2, 3, 0, 61);
        assert_eq!(bytes(1, 2, 3, 16, 45), whole[16..]);
        assert_eq!(bytes(1, 2, 3, 0, 5), whole[..5]);
    }

    #[test]
    fn seed_layer_and_expert_each_change_the_bytes() {
        let one = bytes(1, 2, 3, 0, 32);
        for other in [bytes(2, 2, 3, 0, 32), bytes(1, 3, 3, 0, 32), bytes(1, 2, 4, 0, 32)] {
            assert_ne!(one, other);
        }
    }
}
