//! What an H800 node does, by the published figures of the kernels that DeepSeek serves with. Nothing here is measured by this
//! project.

/// FP8 GEMM, FLOP/s. DeepGEMM: "up to 1350+ FP8 TFLOPS" on Hopper (its announcement, February 2025, the time of the figures that
/// the model is held against; later versions reach 1550).
pub const GEMM_FLOPS: f64 = 1350e12;
/// BF16 core attention, FLOP/s, decode. FlashMLA's README: 660 TFLOPS where computation bounds it, on an H800.
pub const DECODE_ATTENTION_FLOPS: f64 = 660e12;
/// The same in prefill. FlashMLA's README: up to 640 TFLOPS forward on an H800.
pub const PREFILL_ATTENTION_FLOPS: f64 = 640e12;
/// Memory, bytes/s. FlashMLA's README: 3000 GB/s where memory bounds it (of 3.35 TB/s that the part has).
pub const MEMORY_BYTES: f64 = 3000e9;
/// Multiprocessors, and those that communicate in prefill under overlap (profile-data: "Computation 108 SMs", "Communication
/// 24 SMs"; in decode communication takes none).
pub const SMS: f64 = 132.0;
/// See [`SMS`].
pub const COMMUNICATION_SMS: f64 = 24.0;

/// Bytes/s of dispatch and combine at EP32. DeepEP's README, normal kernels, bottleneck bandwidth: 58 and 57 GB/s over the nodes
/// that a token reaches, its own included. (A port carries 50 GB/s; NVLink, at 160 GB/s, is no bottleneck.)
pub const DISPATCH_BYTES_PER_S: f64 = 58e9;
/// See [`DISPATCH_BYTES_PER_S`].
pub const COMBINE_BYTES_PER_S: f64 = 57e9;
/// Of the 4 nodes of a prefill unit, those that a token reaches: 4 of 8 groups are chosen and a node holds 2, so that a node is missed
/// with C(6,4)/C(8,4). Derived, for groups chosen alike.
pub const NODES_REACHED: f64 = 4.0 * (1.0 - 15.0 / 70.0);

/// Tokens of a rank to which the latencies below belong.
const LATENCY_TOKENS: f64 = 128.0;
/// DeepEP's README, low-latency kernels with 128 tokens a rank: ranks, dispatch and combine in microseconds.
const LOW_LATENCY_US: [(f64, [f64; 2]); 6] = [
    (8.0, [77.0, 114.0]),
    (16.0, [118.0, 195.0]),
    (32.0, [155.0, 273.0]),
    (64.0, [173.0, 314.0]),
    (128.0, [192.0, 369.0]),
    (256.0, [194.0, 360.0]),
];

/// Dispatch and combine of one token in decode on `ranks` ranks, microseconds: between the published sizes by the logarithm of the
/// ranks, by tokens in proportion (the published bandwidth of 39 GB/s says that bytes bound it).
pub fn low_latency_us(ranks: u16) -> [f64; 2] {
    let at = f64::from(ranks).clamp(LOW_LATENCY_US[0].0, LOW_LATENCY_US[5].0);
    let above = LOW_LATENCY_US.iter().position(|&(size, _)| size >= at).unwrap_or(5).max(1);
    let ((low, from), (high, to)) = (LOW_LATENCY_US[above - 1], LOW_LATENCY_US[above]);
    let part = (at / low).log2() / (high / low).log2();
    [0, 1].map(|which| (from[which] + part * (to[which] - from[which])) / LATENCY_TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_the_published_ones_and_lie_between_them() {
        let check = |ranks, dispatch: f64, combine: f64| {
            let [found_dispatch, found_combine] = low_latency_us(ranks);
            assert!((found_dispatch * 128.0 - dispatch).abs() < 1e-9, "{ranks} ranks");
            assert!((found_combine * 128.0 - combine).abs() < 1e-9, "{ranks} ranks");
        };
        check(1, 77.0, 114.0);
        check(8, 77.0, 114.0);
        check(128, 192.0, 369.0);
        check(1024, 194.0, 360.0);
        let [at_144, _] = low_latency_us(144).map(|us| us * 128.0);
        assert!(at_144 > 192.0 && at_144 < 194.0, "{at_144}");
    }
}
