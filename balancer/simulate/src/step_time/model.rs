//! DeepSeek-V3 as arithmetic. Source of the sizes: deepseek-ai/DeepSeek-V3, `config_671B.json` and the technical report.

/// Values of the hidden state.
pub const HIDDEN: f64 = 7168.0;
/// Layers with experts.
pub const MOE_LAYERS: usize = 58;
/// Layers without, at the beginning.
pub const DENSE_LAYERS: usize = 3;
/// Routed experts of a token.
pub const TOP_K: f64 = 8.0;
/// Routed experts with the 32 redundant ones that the primary source states for both of its units.
pub const PHYSICAL_EXPERTS: u16 = 288;

const HEADS: f64 = 128.0;
const QUERY_RANK: f64 = 1536.0;
const KV_RANK: f64 = 512.0;
const ROPE: f64 = 64.0;
const NOPE: f64 = 128.0;
const VALUE: f64 = 128.0;
const EXPERT_HIDDEN: f64 = 2048.0;
const DENSE_HIDDEN: f64 = 18432.0;
const VOCABULARY: f64 = 129_280.0;

/// Parameters of MLA's projections down, and of the queries up.
pub const PROJECTIONS: f64 = HIDDEN * (QUERY_RANK + KV_RANK + ROPE) + QUERY_RANK * HEADS * (NOPE + ROPE);
/// Parameters of keys up; in decode they are absorbed into the queries.
pub const KEYS_UP: f64 = KV_RANK * HEADS * NOPE;
/// Parameters of values up; in decode they are applied to the result.
pub const VALUES_UP: f64 = KV_RANK * HEADS * VALUE;
/// Parameters of the output projection.
pub const OUTPUT: f64 = HEADS * VALUE * HIDDEN;
/// Parameters of one expert.
pub const EXPERT: f64 = 3.0 * HIDDEN * EXPERT_HIDDEN;
/// Parameters of a dense layer's feed-forward part.
pub const DENSE: f64 = 3.0 * HIDDEN * DENSE_HIDDEN;
/// Parameters of the head.
pub const HEAD: f64 = VOCABULARY * HIDDEN;

/// Operations of one attention pair in prefill, where keys and values are multiplied out.
pub const PAIR_FLOP: f64 = HEADS * (NOPE + ROPE + VALUE) * 2.0;
/// Operations of one KV token in decode, where 128 heads share the latent vector.
pub const KV_TOKEN_FLOP: f64 = HEADS * (KV_RANK + ROPE + KV_RANK) * 2.0;
/// Bytes of one KV token in a layer, BF16.
pub const KV_TOKEN_BYTES: f64 = (KV_RANK + ROPE) * 2.0;

/// Bytes of a token on its way to an expert: FP8 and a 4-byte scale for each 128 values (day 6: dispatch in FP8).
pub const DISPATCH_BYTES: f64 = HIDDEN + HIDDEN / 128.0 * 4.0;
/// Bytes on the way back: BF16 (day 6).
pub const COMBINE_BYTES: f64 = HIDDEN * 2.0;

/// Bytes that a token's activations move through memory beside the GEMMs in ATTN-0: norm, latent vectors, queries, keys and values,
/// each written once and read once in BF16. Derived; kernels that fuse less move more.
pub const ATTENTION_ACTIVATION_BYTES: f64 = HIDDEN * 3.0 * 2.0
    + (QUERY_RANK + KV_RANK + ROPE) * 2.0 * 2.0
    + HEADS * (NOPE + ROPE) * 2.0
    + HEADS * (NOPE + VALUE) * 2.0;
/// The same in one routed expert: the token in, gate and up out and in, their product out, the result out and in.
pub const EXPERT_ACTIVATION_BYTES: f64 =
    HIDDEN * 2.0 + 2.0 * EXPERT_HIDDEN * 2.0 * 2.0 + EXPERT_HIDDEN * 2.0 + HIDDEN * 2.0 * 2.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_and_a_pair_cost_what_the_model_says() {
        let token = 2.0 * (PROJECTIONS + KEYS_UP + VALUES_UP + OUTPUT + (TOP_K + 1.0) * EXPERT);
        assert!((token / 1e9 - 1.167).abs() < 0.001, "{token}");
        assert_eq!(PAIR_FLOP, 81_920.0);
        assert_eq!(KV_TOKEN_BYTES * 61.0, 70_272.0);
    }
}
