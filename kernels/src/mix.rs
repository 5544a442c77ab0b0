//! Integer mixers: bijections that spread every input bit over all output bits.

/// The increment of the splitmix64 sequence: 2^64 divided by the golden ratio, made odd.
pub const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// The output function of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
/// OOPSLA 2014, with the constants of variant 13 by Stafford). A bijection on 64-bit words.
pub fn mix64(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// The finaliser of MurmurHash3 for 32-bit words (Appleby, public domain): a bijection of five operations,
/// cheap enough to run once per token in a kernel.
pub fn mix32(word: u32) -> u32 {
    let word = (word ^ (word >> 16)).wrapping_mul(0x85EB_CA6B);
    let word = (word ^ (word >> 13)).wrapping_mul(0xC2B2_AE35);
    word ^ (word >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix64_gives_the_published_splitmix64_sequence() {
        // First outputs of splitmix64 with seed 1234567.
        let outputs = (1..=3u64).map(|i| mix64(1_234_567u64.wrapping_add(GAMMA.wrapping_mul(i))));
        assert!(outputs.eq([
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423
        ]));
    }

    #[test]
    fn mix32_keeps_zero_and_spreads_one() {
        assert_eq!(mix32(0), 0);
        assert!((8..=24).contains(&mix32(1).count_ones()));
    }
}
