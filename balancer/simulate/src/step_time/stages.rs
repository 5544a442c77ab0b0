//! How long the stages of one layer take for one microbatch at the published rates of the kernels: a roofline of each.

use super::hardware::{
    COMBINE_BYTES_PER_S, COMMUNICATION_SMS, DECODE_ATTENTION_FLOPS, DISPATCH_BYTES_PER_S, GEMM_FLOPS,
    MEMORY_BYTES, NODES_REACHED, PREFILL_ATTENTION_FLOPS, SMS, low_latency_us,
};
use super::model::{
    ATTENTION_ACTIVATION_BYTES, COMBINE_BYTES, DENSE, DENSE_LAYERS, DISPATCH_BYTES, EXPERT,
    EXPERT_ACTIVATION_BYTES, HEAD, KEYS_UP, KV_TOKEN_BYTES, KV_TOKEN_FLOP, OUTPUT, PAIR_FLOP,
    PHYSICAL_EXPERTS, PROJECTIONS, TOP_K, VALUES_UP,
};
use crate::overlap::{Overlap, StageTimes};

/// FP8 GEMM of `rows` rows by weights of so many parameters, microseconds: computing or reading the weights.
fn gemm_us(rows: f64, parameters: f64) -> f64 {
    (2.0 * rows * parameters / GEMM_FLOPS).max(parameters / MEMORY_BYTES) * 1e6
}

/// The same in BF16, at the rate of attention's kernels.
fn gemm_bf16_us(rows: f64, parameters: f64) -> f64 {
    (2.0 * rows * parameters / DECODE_ATTENTION_FLOPS).max(2.0 * parameters / MEMORY_BYTES) * 1e6
}

/// Prefill: `tokens` new tokens with `pairs` attention pairs. The weights are read beside much computing and cost nothing.
pub(super) fn prefill(overlap: Overlap, tokens: f64, pairs: f64) -> StageTimes {
    let cores = if overlap == Overlap::None { 1.0 } else { (SMS - COMMUNICATION_SMS) / SMS };
    let gemm = |parameters: f64| 2.0 * tokens * parameters / (GEMM_FLOPS * cores);
    let reached = tokens * NODES_REACHED;
    StageTimes([
        gemm(PROJECTIONS + KEYS_UP + VALUES_UP) + tokens * ATTENTION_ACTIVATION_BYTES / MEMORY_BYTES,
        pairs * PAIR_FLOP / (PREFILL_ATTENTION_FLOPS * cores) + gemm(OUTPUT),
        reached * DISPATCH_BYTES / DISPATCH_BYTES_PER_S,
        gemm(EXPERT),
        gemm(TOP_K * EXPERT) + tokens * TOP_K * EXPERT_ACTIVATION_BYTES / MEMORY_BYTES,
        reached * COMBINE_BYTES / COMBINE_BYTES_PER_S,
    ])
    .scaled(1e6)
}

/// What a prefill step takes beside its layers with experts, microseconds: the dense layers and the head.
pub(super) fn prefill_rest_us(tokens: f64, pairs: f64) -> f64 {
    let dense = 2.0 * tokens * (PROJECTIONS + KEYS_UP + VALUES_UP + OUTPUT + DENSE) / GEMM_FLOPS
        + pairs * PAIR_FLOP / PREFILL_ATTENTION_FLOPS;
    DENSE_LAYERS as f64 * dense * 1e6 + gemm_bf16_us(1.0, HEAD)
}

/// Decode on `ranks` ranks: one token each for `requests` requests whose KV is `kv_tokens` tokens in all.
pub(super) fn decode(ranks: u16, kv_tokens: f64, requests: f64) -> StageTimes {
    let [dispatch, combine] = low_latency_us(ranks);
    StageTimes([
        attention_before_us(requests),
        attention_core_us(kv_tokens, requests),
        dispatch * requests,
        gemm_us(requests, EXPERT),
        // As many tokens come from others as go to them.
        gemm_us(requests * TOP_K / experts(ranks), EXPERT) * experts(ranks),
        combine * requests,
    ])
}

/// What a decode step takes beside its layers with experts, microseconds.
pub(super) fn decode_rest_us(kv_tokens: f64, requests: f64) -> f64 {
    let dense =
        attention_before_us(requests) + attention_core_us(kv_tokens, requests) + gemm_us(requests, DENSE);
    DENSE_LAYERS as f64 * dense + gemm_bf16_us(requests, HEAD)
}

fn attention_before_us(requests: f64) -> f64 {
    gemm_us(requests, PROJECTIONS) + gemm_bf16_us(requests, KEYS_UP)
}

fn attention_core_us(kv_tokens: f64, requests: f64) -> f64 {
    let core = (KV_TOKEN_FLOP / DECODE_ATTENTION_FLOPS).max(KV_TOKEN_BYTES / MEMORY_BYTES) * kv_tokens * 1e6;
    core + gemm_bf16_us(requests, VALUES_UP) + gemm_us(requests, OUTPUT)
}

/// Routed experts of a rank, the redundant ones included: 2 on 144 ranks (day 6).
fn experts(ranks: u16) -> f64 {
    f64::from(PHYSICAL_EXPERTS.div_ceil(ranks.max(1)))
}
